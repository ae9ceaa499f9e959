"""Experiments with segmenters: the same for every arm but its data, resumable, spread over processes, and compared
correctly: figures and statistics against closed forms."""

from __future__ import annotations

import csv
import json
import re
from dataclasses import replace
from itertools import product

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from MedDPMLib.errors import MedDPMError
from MedDPMLib.experiment.ablation import measured
from MedDPMLib.experiment.cases import open_cases, patient_of
from MedDPMLib.experiment.comparison import compare
from MedDPMLib.experiment.examples import ArmExamples
from MedDPMLib.experiment.jobs import ExperimentFolder, Job, jobs_of, run_jobs
from MedDPMLib.experiment.mixing import mixed, random_box, tumor_box
from MedDPMLib.experiment.phantoms import phantoms
from MedDPMLib.experiment.recipe import experiment_names, load_experiment
from MedDPMLib.experiment.report import page
from MedDPMLib.metrics.paired import holm, least_p, mean_with_interval, sign_test
from MedDPMLib.metrics.surfaces import agreement
from MedDPMLib.runtime.device import Execution

CPU = Execution(torch.device("cpu"), torch.float32, "for a test")

#: The same data under two names, and other data.
ARMS = 'arms=[{name="real", data=["real"]}, {name="again", data=["real"]}, {name="made", data=["synthetic"]}]'
SMALL = [ARMS, "budget.iterations=4", "budget.checkpoint_every=2", "real_cases=[0]", "seeds=[3]"]


# Figures -------------------------------------------------------------------------------------------


def ball(radius: float, shift: float = 0.0, spacing=(1.0, 1.0, 1.0)) -> np.ndarray:
    """A ball in mm, its middle moved along x, on voxels of ``spacing`` (i, j, k)."""
    side = 44.0
    axes = [np.arange(0, side, step) - side / 2 for step in reversed(spacing)]
    z, y, x = np.meshgrid(*axes, indexing="ij")
    return z**2 + y**2 + (x - shift) ** 2 <= radius**2


def test_agreement_of_balls_is_that_of_geometry():
    same = agreement(ball(12), ball(12), (1, 1, 1))
    assert (same.dice, same.iou, same.hd95) == (1, 1, 0)
    # Two lenses of the height r - d/2 are common; and a point of the surface in the direction c = cos(angle), which is
    # uniform in [-1, 1], is | sqrt(r^2 + d^2 + 2 r d c) - r | away, which is at most q for a share q / d of them.
    radius, shift = 14.0, 6.0
    moved = agreement(ball(radius), ball(radius, shift), (1, 1, 1))
    dice = 1 - 3 * shift / (4 * radius) + shift**3 / (16 * radius**3)
    assert moved.dice == pytest.approx(dice, abs=0.01)
    assert moved.iou == pytest.approx(dice / (2 - dice), abs=0.01)
    assert moved.hd95 == pytest.approx(0.95 * shift, abs=0.5), "half a voxel"
    around = agreement(ball(10), ball(15), (1, 1, 1))
    assert around.dice == pytest.approx(2 * 10**3 / (10**3 + 15**3), abs=0.02)
    assert around.hd95 == pytest.approx(5, abs=0.7)


def test_distances_are_millimeters_along_each_axis():
    spacing = (1.0, 2.0, 0.5)  # i, j, k
    found = agreement(ball(14, 0, spacing), ball(14, 6, spacing), spacing)
    assert found.hd95 == pytest.approx(0.95 * 6, abs=1.0)
    block = np.zeros((20, 20, 20), bool)
    block[5:15, 5:15, 5:15] = True
    for axis, millimeters in enumerate(reversed(spacing)):
        moved = agreement(block, np.roll(block, 3, axis), spacing)
        assert moved.hd95 == pytest.approx(3 * millimeters), axis


def test_what_is_missing_in_one_or_both_counts_as_in_the_challenge():
    here, nothing = ball(5), np.zeros((44, 44, 44), bool)
    both = agreement(nothing, nothing, (1, 1, 2))
    assert (both.dice, both.iou, both.hd95) == (1, 1, 0)
    for pair in ((here, nothing), (nothing, here)):
        one = agreement(*pair, (1, 1, 2))
        assert (one.dice, one.iou) == (0, 0)
        assert one.hd95 == pytest.approx(44 * 6**0.5), "the diagonal of 44 x 44 x 88 mm"


# Statistics ----------------------------------------------------------------------------------------


def test_the_interval_has_the_variance_of_patients_and_of_seeds():
    random = np.random.default_rng(0)
    patients, seeds = random.normal(size=60), random.normal(0, 0.5, 12)
    found = mean_with_interval(patients[:, None] + seeds[None])
    expected = 1.96 * (patients.var() / 60 + seeds.var() / 12) ** 0.5
    assert found.value == pytest.approx(patients.mean() + seeds.mean())
    assert (found.ci[1] - found.ci[0]) / 2 == pytest.approx(expected, rel=0.05)
    alone = mean_with_interval(patients[:, None])
    assert (alone.ci[1] - alone.ci[0]) / 2 == pytest.approx(1.96 * (patients.var() / 60) ** 0.5, rel=0.05)


def test_intervals_of_few_or_equal_values():
    assert mean_with_interval(np.ones((2, 3))).ci is None
    assert mean_with_interval(np.full((4, 2), 0.25)).ci == (0.25, 0.25)


def test_the_sign_test_is_that_of_all_signs():
    values = np.array([0.3, -0.1, 0.2, 0.4, 0.05, -0.02])
    means = [np.mean(values * signs) for signs in product((1, -1), repeat=6)]
    expected = np.mean(np.abs(means) >= abs(values.mean()) - 1e-12)
    assert sign_test(values) == pytest.approx(expected)
    assert sign_test(np.abs(values)) == pytest.approx(least_p(6)) == pytest.approx(2 / 64)
    assert sign_test(np.zeros(5)) == 1 and sign_test(np.ones(1)) is None


def test_holm_corrects_as_published():
    # Holm 1979: the k-th smallest of m is multiplied by m - k + 1, and none is below one before it.
    assert holm([0.01, None, 0.04, 0.03, 0.005]) == [
        pytest.approx(0.03), None, pytest.approx(0.06), pytest.approx(0.06), pytest.approx(0.02),
    ]  # fmt: skip
    assert holm([None]) == [None]


# Mixing --------------------------------------------------------------------------------------------


def pair() -> tuple[torch.Tensor, torch.Tensor]:
    """Two images with two regions, of which the second example has a tumor."""
    generator = torch.Generator().manual_seed(0)
    first, second = (torch.rand((3, 10, 12, 14), generator=generator) for _ in range(2))
    first[1:], second[1:] = 0, 0
    second[1, 4:6, 5:8, 3:9], second[2, 5, 6, 4:7] = 1, 1
    return first, second


def test_mixup_is_one_share_of_image_and_regions():
    first, second = pair()
    shares = []
    for seed in range(20):
        made = mixed(first, second, "mixup", np.random.default_rng(seed), regions=2, alpha=0.4)
        share = 1 - float(made[1].max())
        assert 0.5 <= share <= 1
        torch.testing.assert_close(made, share * first + (1 - share) * second)
        shares.append(share)
    assert len({round(share, 6) for share in shares}) == 20


def test_cutmix_takes_a_box_where_it_is():
    first, second = pair()
    random = np.random.default_rng(1)
    for _ in range(20):
        made = mixed(first, second, "cutmix", random, regions=2, alpha=1)
        changed = made[0] != first[0]
        assert torch.equal(made[:, changed], second[:, changed]) and torch.equal(made[:, ~changed], first[:, ~changed])
        if changed.any():
            where = torch.nonzero(changed)
            assert int(changed.sum()) == int((where.amax(0) - where.amin(0) + 1).prod()), "a box"
    shape = (1000, 1000, 1000)  # uniform middles: half a side juts out at most
    sides = [[part.stop - part.start for part in random_box(shape, random)] for _ in range(200)]
    assert 0 <= min(map(min, sides)) and max(map(max, sides)) <= 1000


def test_tumor_cutmix_brings_the_whole_tumor():
    first, second = pair()
    made = mixed(first, second, "tumor-cutmix", np.random.default_rng(0), regions=2, alpha=1)
    assert torch.equal(made[1:], second[1:])
    assert tumor_box(second[1]) == (slice(2, 8), slice(3, 10), slice(1, 11))
    assert torch.equal(made[0, 2:8, 3:10, 1:11], second[0, 2:8, 3:10, 1:11])
    assert torch.equal(made[0, 8:], first[0, 8:])
    assert mixed(second, first, "tumor-cutmix", np.random.default_rng(0), regions=2, alpha=1) is second


# Who is on which side ------------------------------------------------------------------------------


def test_patients_are_on_one_side_and_smaller_sets_are_parts_of_larger():
    recipe = load_experiment("phantoms")
    split = open_cases(recipe)
    sides = [set(split.test_patients), set(split.validation_patients), set(split.training_patients)]
    assert sum(map(len, sides)) == len(set().union(*sides)) == 24
    assert len(sides[0]) == 7
    few, more, everyone = (set(split.subset(count, 5)) for count in (3, 8, 0))
    assert len(few) == 3 and few < more < everyone == sides[2]
    assert split.subset(3, 5) != split.subset(3, 6), "another seed draws others"
    names = [case.name for case in split.training(["real", "synthetic"], 3, 5)]
    assert len(names) == 3 + 12 and set(names[:3]) == few


def test_follow_ups_belong_to_their_patient():
    assert patient_of("BraTS-GLI-00005-101", None) == patient_of("BraTS-GLI-00005-000", None) == "BraTS-GLI-00005"
    assert patient_of("BraTS2021_00005", None) == "BraTS2021_00005"
    assert patient_of("sub-07_ses-2", r"(sub-\d+)_") == "sub-07"
    with pytest.raises(MedDPMError, match="but not other"):
        patient_of("other", r"(sub-\d+)_")


def test_synthetic_cases_of_patients_who_are_held_out_are_left_out(monkeypatch):
    recipe = replace(load_experiment("phantoms"), test=("phantom-03", "phantom-05"), validation=0.0)
    made = phantoms(recipe.label_scheme, 2, synthetic=True)
    made = [replace(case, name=f"phantom-{number:02d}_seed0") for number, case in enumerate(made)]
    real = phantoms(recipe.label_scheme, 2)
    monkeypatch.setattr("MedDPMLib.experiment.cases.phantoms", lambda *_, synthetic=False: made if synthetic else real)
    split = open_cases(recipe)
    assert split.left_out == ("phantom-03_seed0", "phantom-05_seed0")
    names = {split.synthetic[index].name for index in range(len(split.synthetic))}
    assert len(names) == 10 and not names & set(split.left_out)
    with pytest.raises(MedDPMError, match="names nobody, who is not among the patients"):
        open_cases(replace(recipe, test=("nobody",)))


# Recipes -------------------------------------------------------------------------------------------


def test_recipes_that_ship_have_the_arms_of_the_question():
    for name in experiment_names():
        recipe = load_experiment(name)
        if name == "ablation":
            continue
        arms = {(arm.data, arm.augmentation) for arm in recipe.arms}
        assert {(("real",), ()), (("synthetic",), ()), (("real", "synthetic"), ())} <= arms
        assert {method for _, methods in arms for method in methods} == {"classical", "mixup", "cutmix", "tumor-cutmix"}
        assert recipe.arm(recipe.reference).data == ("real",)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ("nonsense=1", 'no field "nonsense"'),
        ("reference=nobody", '"reference" must be the name of an arm'),
        ("arms=[]", "at least one arm"),
        ('arms=[{name="real", data=["dreams"]}]', "one of real, synthetic"),
        ("size=[24, 24, 15]", "multiples of 4"),
        ("patch=[32, 16, 16]", "does not fit"),
        ("test=1.5", '"test" must be'),
        ("scheme=whole-head", "no label of the scheme"),
        ("network.kind=transformer", "one of unet, segresnet"),
        ("budget.batch=0", '"batch" must be'),
        ("patient=(", "not a regular expression"),
        ("patient=abc", "no group"),
        ("seeds=[1, 1]", '"seeds" must be'),
    ],
)
def test_what_is_invalid_in_a_recipe_is_named(change, says):
    with pytest.raises(MedDPMError, match=".") as raised:
        load_experiment("phantoms", [change])
    assert says in str(raised.value)


def test_a_recipe_without_data_asks_for_it():
    with pytest.raises(MedDPMError, match="--set real=FOLDER"):
        open_cases(load_experiment("paper-table"))
    with pytest.raises(MedDPMError, match='"real_cases" asks for 99'):
        open_cases(load_experiment("phantoms", ["real_cases=[99]"]))


# Running -------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    recipe = load_experiment("phantoms", SMALL)
    split = open_cases(recipe)
    folder = ExperimentFolder(tmp_path_factory.mktemp("experiment"), recipe, split)
    return folder, run_jobs(folder, jobs_of(recipe), CPU)


def test_arms_differ_in_nothing_but_their_data(done):
    folder, results = done
    real, again, made = results
    assert real.done == again.done, "the same data, weights, order and budget"
    assert real.done != made.done
    found = compare(folder.recipe, folder.split, results)
    rows = [row for row in found.rows if row.arm == "again"]
    assert len(rows) == 9
    assert all(row.difference.value == 0 and row.p == 1 and row.p_corrected == 1 for row in rows)
    assert any("no p-value is below 0.016" in note for note in found.notes) == (2 * least_p(7) > 0.05)


def test_an_interrupted_job_resumes_and_ends_the_same(done, tmp_path):
    folder, (real, *_) = done
    other = ExperimentFolder(tmp_path, folder.recipe, folder.split)

    def stop(iteration: int) -> None:
        seen.append(iteration)
        if iteration == 3:
            raise KeyboardInterrupt

    seen: list[int] = []
    with pytest.raises(KeyboardInterrupt):
        other.run(real.job, CPU, stop)
    assert other.result(real.job) is None
    seen = [-9]
    resumed = other.run(real.job, CPU, seen.append)
    assert seen == [-9, 3, 4], "from the checkpoint of iteration 2"
    assert resumed.done == real.done
    assert not list(tmp_path.rglob("*.pt")), "nothing is left of a job that is done"


def test_what_is_done_is_not_done_again_and_a_damaged_result_is(done, monkeypatch):
    folder, results = done
    jobs = [result.job for result in results]
    monkeypatch.setattr(ExperimentFolder, "run", lambda self, job, *_: pytest.fail(f"{job.name} is done twice"))
    assert run_jobs(folder, jobs, CPU) == results
    path = folder.folder / "jobs" / jobs[1].name / "result.json"
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    assert folder.result(jobs[1]) is None
    path.write_bytes(whole)
    assert folder.result(jobs[1]) == results[1]


def test_another_recipe_does_not_fit_into_the_folder(done):
    folder, _ = done
    ExperimentFolder(folder.folder, replace(folder.recipe, name="renamed"), folder.split)
    changed = load_experiment("phantoms", [*SMALL, "budget.learning_rate=0.5"])
    with pytest.raises(MedDPMError, match="another experiment .recipe: budget differs"):
        ExperimentFolder(folder.folder, changed, folder.split)
    changed = load_experiment("phantoms", [*SMALL, "test=0.5"])
    with pytest.raises(MedDPMError, match="another experiment"):
        ExperimentFolder(folder.folder, changed, open_cases(changed))


def test_synthetic_data_alone_are_trained_once_for_all_numbers_of_real_cases():
    recipe = load_experiment("phantoms", [ARMS, "real_cases=[4, 0]", "seeds=[1, 2]"])
    jobs = jobs_of(recipe)
    assert len(jobs) == len(set(jobs)) == 2 * (2 * 2 + 1)
    assert [job for job in jobs if job.arm == "made"] == [Job("made", 1, None), Job("made", 2, None)]


def test_examples_follow_from_their_number_and_mixing_changes_some():
    recipe = load_experiment("phantoms")
    cases = open_cases(recipe).training(["real"], 0, 0)
    plain, cut = (ArmExamples(recipe, recipe.arm(name), cases, 7) for name in ("real", "real, CutMix"))
    same = 0
    for iteration in range(6):
        images, regions = cut.batch(iteration)
        again = ArmExamples(recipe, recipe.arm("real, CutMix"), cases, 7).batch(iteration)
        assert torch.equal(images, again[0]) and torch.equal(regions, again[1])
        assert images.shape == (2, 2, 16, 24, 24) and regions.shape == (2, 3, 16, 24, 24)
        whole, core, enhancing = regions.unbind(1)
        assert (whole >= core).all() and (core >= enhancing).all()
        same += sum(torch.equal(one, other) for one, other in zip(images, plain.batch(iteration)[0], strict=True))
    assert 0 < same < 12


def test_patches_and_a_coarser_grid_give_results_on_the_voxels_of_the_dataset(tmp_path):
    recipe = load_experiment(
        "phantoms", [*SMALL, "size=[16, 16, 16]", "patch=[8, 8, 8]", "network.kind=segresnet", "validation=0.0"]
    )
    folder = ExperimentFolder(tmp_path, recipe, open_cases(recipe))
    result = folder.run(Job("real", 3, 0), CPU)
    assert len(result.done.scores) == 7 and all(score is None for _, _, score in result.done.curve)


# Ablations -----------------------------------------------------------------------------------------

#: A network of 8 channels for the phantoms, trained for two iterations.
ABLATION = [
    "base=brats-compact", "real=phantoms", "test=0.1", "seeds=[0]", "reference=x0",
    'changes=["modalities=[\'t1ce\', \'flair\']", "network={kind=\'wavelet-unet\', channels=[8, 16]}",'
    ' "stages=[{size=[24, 24, 16], iterations=2, batch=1}]", "training.warm_up=0",'
    ' "dataset_grid={size=[24, 24, 16], spacing=[6, 6, 6], orientation=\'LPS\'}"]',
    'arms=[{name="x0", steps=3}, {name="noise", steps=3, changes=["prediction=noise"]},'
    ' {name="fewer steps", steps=2}]',
]  # fmt: skip


def test_an_ablation_compares_models_on_volumes_of_unseen_masks(tmp_path):
    recipe = load_experiment("ablation", ABLATION)
    split = open_cases(recipe)
    folder = ExperimentFolder(tmp_path, recipe, split)
    results = run_jobs(folder, jobs_of(recipe), CPU)
    x0, noise, fewer = (result.done for result in results)
    assert x0.curve == fewer.curve and x0.scores != fewer.scores, "the same training, sampled in fewer steps"
    assert noise.curve != x0.curve
    assert set(x0.scores) == set(split.test_patients) and x0.cases == 22
    for figures in x0.scores[split.test_patients[0]].values():
        assert set(figures) == {"ms_ssim", "mse", "label_means"} and np.isfinite(list(figures.values())).all()
    found = compare(recipe, split, results)
    assert len(found.rows) == 3 * 2 * 3 and found.about["arm noise"] == "prediction=noise, sampled in 3 steps"
    assert run_jobs(folder, jobs_of(recipe), CPU) == results
    assert "MS-SSIM" in page(found)


def test_figures_of_an_image_with_itself_are_the_best():
    image = np.random.default_rng(0).uniform(-1, 1, (16, 24, 24)).astype(np.float32)
    labels = np.ones(image.shape, np.uint8)
    labels[:, :12] = 2
    assert measured(image, image, labels) == {"ms_ssim": pytest.approx(1), "mse": 0, "label_means": 0}
    brighter = measured(np.where(labels == 2, image + 0.3, image), image, labels)
    assert brighter["mse"] == pytest.approx(0.5 * 0.3**2, rel=1e-4)
    assert brighter["label_means"] == pytest.approx(0.15, rel=1e-4), "0.3 in one of two labels"


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ("base=nothing", 'there is no recipe "nothing"'),
        ('arms=[{name="x0"}, {name="other", changes=["training.loss=l7"]}]', 'the arm "other"'),
        ('arms=[{name="x0"}, {name="longer", changes=["stages.0.iterations=9"]}]', "other iterations"),
        ('arms=[{name="x0", data=["synthetic"]}]', 'no "data"'),
        ("synthetic=phantoms", 'no field "synthetic"'),
    ],
)
def test_what_is_invalid_in_an_ablation_is_named(change, says):
    with pytest.raises(MedDPMError, match=".") as raised:
        load_experiment("ablation", [*ABLATION, change])
    assert says in str(raised.value)


def test_a_cascade_is_no_model_of_one_network():
    with pytest.raises(MedDPMError, match="of one network, not brain-cascade"):
        load_experiment("ablation", ["base=brain-cascade", "changes=[]", 'arms=[{name="as it is"}]'])


def test_shards_share_the_jobs_and_the_last_one_prints_the_table(tmp_path):
    from MedDPMLib.cli.app import app

    two = 'arms=[{name="real", data=["real"]}, {name="made", data=["synthetic"]}]'
    changes = [word for change in [*SMALL, two] for word in ("--set", change)]
    run = CliRunner().invoke
    command = ["experiment", "phantoms", "--out", str(tmp_path), "--device", "cpu", "--precision", "float32", *changes]
    first = run(app, [*command, "--shard", "1/2"])
    assert first.exit_code == 0 and "1 of 2 jobs are done" in first.output
    assert not (tmp_path / "experiment.html").exists()
    last = run(app, [*command, "--shard", "2/2"])
    assert last.exit_code == 0 and "difference (95 %)" in last.output and "ellipsoids" in last.output
    told = json.loads((tmp_path / "experiment.json").read_text())
    assert len(told["rows"]) == 2 * 9 and told["test_patients_without"]["Whole tumor"] == 0
    with (tmp_path / "experiment.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 2 * 7 * 3
    chosen = [float(row["dice"]) for row in rows if (row["arm"], row["region"]) == ("made", "Tumor core")]
    row = next(row for row in told["rows"] if (row["arm"], row["subject"]) == ("made", "Tumor core"))
    assert row["figure"] == "dice" and row["mean"]["value"] == pytest.approx(np.mean(chosen))
    html = (tmp_path / "experiment.html").read_text()
    assert html.count("<svg") == 3 + 2
    for link in re.findall(r"(?:src|href)=[\"']([^\"']*)", html) + re.findall(r"url\(([^)]*)\)", html):
        assert link.startswith(("data:", "#")), link
    wrong = run(app, [*command, "--set", "seeds=[4]"])
    assert wrong.exit_code == 2
