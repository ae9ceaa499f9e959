"""The study of steps: its settings, its figures where they are known, and that it resumes where it stopped."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
from conftest import small_card, write_small_mask, write_small_model
from PIL import Image

from MedDPMLib import load_model
from MedDPMLib.benchmark.steps import Study, Variant, reference_of, variants
from MedDPMLib.errors import MedDPMError
from MedDPMLib.figures.comparison import draw_comparison
from MedDPMLib.imaging.io import write_nifti
from MedDPMLib.inference.generation import generate
from MedDPMLib.inference.record import read_result
from MedDPMLib.inference.settings import GenerationSettings
from MedDPMLib.masks.fit import fit
from MedDPMLib.masks.mask import read_mask
from MedDPMLib.masks.schemes import load_scheme
from MedDPMLib.metrics.similarity import gradient_energy, ms_ssim
from MedDPMLib.models.card import QUALITIES
from MedDPMLib.runtime.device import choose_execution

BASE = GenerationSettings(device="cpu", precision="float32")
EXECUTION = choose_execution(BASE.device, BASE.precision)


@pytest.fixture(scope="module")
def guided_model(tmp_path_factory, brats):
    """A tiny model that can be guided."""
    card = replace(small_card(brats), label_dropout=0.1)
    return write_small_model(tmp_path_factory.mktemp("model") / "guided.safetensors", card)


@pytest.fixture
def masks(tmp_path, brats):
    paths = [write_small_mask(tmp_path / "masks" / f"case{seed}.nii.gz", brats, seed=seed) for seed in (0, 1)]
    return [read_mask(path, brats, numbering=brats.own_numbering) for path in paths]


def make(study: Study) -> list[str]:
    """Makes what is missing; returns what was done step by step."""
    done = []
    study.make(lambda doing, count: done.append((doing, count)))
    return done


# Settings --------------------------------------------------------------------------------------------


def test_settings_take_the_sampler_of_their_number_of_steps(brats):
    card = small_card(brats)
    found = variants(card, ["50", "4", "4:ddim", "4"], [1.0], BASE)
    assert found == [
        Variant(BASE.changed(steps=steps, sampler=sampler))
        for steps, sampler in ((4, "ddim"), (4, "dpm-solver++"), (50, "ddpm"))
    ]
    assert [one.name for one in found] == ["4 ddim", "4 dpm-solver++", "50 ddpm"]
    assert reference_of(card, found) == found[-1]
    assert reference_of(card, found[:2]).settings.steps == 4


def test_guidance_is_another_axis_and_never_the_reference(brats):
    card = replace(small_card(brats), label_dropout=0.1)
    found = variants(card, ["4", "50"], (1.0, 2.0), BASE)
    assert [(one.settings.steps, one.settings.guidance) for one in found] == [(4, 1), (4, 2), (50, 1), (50, 2)]
    assert found[1].name == "4 dpm-solver++, guidance 2"
    assert reference_of(card, found) == Variant(BASE.changed(steps=50, sampler="ddpm"))
    assert len({one.folder for one in found}) == 4
    with pytest.raises(MedDPMError, match="does not support guidance"):
        variants(small_card(brats), ["4"], (2.0,), BASE)


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("four", "is not a number of steps"),
        ("51", "1 to 50"),
        ("0", "1 to 10000"),
        ("4:euler", '"sampler" must be one of'),
    ],
)
def test_impossible_settings_are_refused(brats, text, complaint):
    with pytest.raises(MedDPMError, match=complaint):
        variants(small_card(brats), [text], (1.0,), BASE)


# Images ----------------------------------------------------------------------------------------------


def test_images_are_those_of_generate_and_are_made_once(small_model, masks, tmp_path):
    model = load_model(small_model)
    rows = variants(model.card, ["2", "3"], (1.0,), BASE)
    study = Study(model, masks, [5, 6], rows, tmp_path / "study", EXECUTION)
    done = make(study)
    assert sum(count for _, count in done) == (2 + 3) * 4 == len(done)
    expected = generate(model, masks[1], seed=6, steps=2, sampler="dpm-solver++", device="cpu", precision="float32")
    for modality, volume in study.volumes(rows[0], masks[1], 6).items():
        inside = expected.labels != 0  # outside there is nothing in a file
        wanted = expected[modality].array[inside]
        np.testing.assert_allclose(volume.array[inside], wanted, atol=0.0011)  # half of a stored step

    files = {path: path.stat().st_mtime_ns for path in (tmp_path / "study").rglob("*.nii.gz")}
    assert len(files) == 2 * 2 * 2 * 2
    gone = next(path for path in files if "case1_seed5_t2" in path.name and path.parent.name.startswith("3"))
    gone.unlink()
    done = make(study)
    assert sum(count for _, count in done) == (2 + 3) * 4 and len(done) == 3 + 7
    assert gone.exists()
    changed = {path.name for path, time in files.items() if path.stat().st_mtime_ns != time}
    assert changed == {"case1_seed5_t1.nii.gz", "case1_seed5_t2.nii.gz"}


# Figures ---------------------------------------------------------------------------------------------


def test_the_reference_agrees_with_itself_and_the_others_by_hand(small_model, masks, tmp_path):
    model = load_model(small_model)
    study = Study(model, masks[:1], [0, 1], variants(model.card, ["3", "50"], (1.0,), BASE), tmp_path, EXECUTION)
    make(study)
    few, reference = study.compare(lambda doing: None)
    for modality in model.card.modalities:
        assert (reference.ms_ssim[modality], reference.mae[modality], reference.sharpness[modality]) == (1, 0, 1)
        assert reference.correlation[modality] == pytest.approx(1)
        assert reference.mean_difference[modality] == reference.sd_difference[modality] == 0

    fitted = fit(masks[0], model.card.grid)
    inside = fitted.labels > 0
    tumor = (fitted.labels > 0) & (fitted.labels < 4)
    images = {
        (variant, seed): study.volumes(variant, masks[0], seed)["t1"].array
        for variant in study.variants
        for seed in (0, 1)
    }
    first, last = study.variants
    mae = np.mean([np.abs(images[first, seed] - images[last, seed])[inside].mean() for seed in (0, 1)])
    assert few.mae["t1"] == pytest.approx(mae, rel=1e-5)
    sharpness = [
        gradient_energy(images[first, seed], inside) / gradient_energy(images[last, seed], inside) for seed in (0, 1)
    ]
    assert few.sharpness["t1"] == pytest.approx(np.mean(sharpness), rel=1e-5)
    # The deviation of two numbers is their distance over the root of two.
    apart = np.abs(images[first, 0] - images[first, 1]) / np.sqrt(2)
    assert few.sd_tumor["t1"] == pytest.approx(apart[tumor].mean(), rel=1e-4)
    assert few.sd_brain["t1"] == pytest.approx(apart[inside & ~tumor].mean(), rel=1e-4)
    where = np.argwhere(inside)
    box = tuple(slice(low, high + 1) for low, high in zip(where.min(axis=0), where.max(axis=0), strict=True))
    between = ms_ssim(images[first, 0][box], images[first, 1][box])
    assert few.ms_ssim_between_seeds["t1"] == pytest.approx(between, rel=1e-5)
    assert few.seconds > 0


def test_one_seed_says_nothing_about_variety(small_model, masks, tmp_path):
    model = load_model(small_model)
    study = Study(model, masks[:1], [0], variants(model.card, ["2", "3"], (1.0,), BASE), tmp_path, EXECUTION)
    make(study)
    for row in study.compare(lambda doing: None):
        assert row.ms_ssim_between_seeds == row.sd_tumor == row.sd_brain == {}
        assert json.loads(json.dumps(row.to_dict()))["variant"]["settings"]["steps"] == row.variant.settings.steps


def test_blur_is_found_out(small_model, masks, tmp_path):
    model = load_model(small_model)
    study = Study(model, masks[:1], [0], variants(model.card, ["2", "3"], (1.0,), BASE), tmp_path, EXECUTION)
    make(study)
    for path in (tmp_path / "2-dpm-solver++").glob("*.nii.gz"):
        sharp = read_result(tmp_path / "3-dpm-solver++" / path.name)
        blurred = sum(np.roll(sharp.array, step, axis) for axis in (0, 1, 2) for step in (-1, 0, 1)) / 9
        write_nifti(path, replace(sharp, array=blurred.astype(np.float32)))
    few, reference = study.compare(lambda doing: None)
    assert max(few.sharpness.values()) < 0.9 and max(few.ms_ssim.values()) < 0.999 < min(reference.ms_ssim.values())
    assert min(few.sd_difference.values()) > 0


# The command -----------------------------------------------------------------------------------------


def test_the_command_writes_figures_and_a_picture_and_goes_on(meddpm, guided_model, masks, tmp_path):
    arguments = [
        "benchmark", "steps", *(mask.source for mask in masks), "--model", guided_model, "--out", "study",
        "--steps", "2,3:ddim,4:ddpm", "--guidance", "1,3", "--device", "cpu",
    ]  # fmt: skip
    result = meddpm(*arguments)
    assert result.returncode == 0, result.stderr
    written = json.loads((tmp_path / "study" / "steps.json").read_text())
    assert written["reference"] == "4 ddpm" and written["masks"] == ["case0", "case1"] and written["seeds"] == [0, 1]
    names = [row["name"] for row in written["rows"]]
    rows = ("2 dpm-solver++", "3 ddim", "4 ddpm")
    assert names == [name + guided for name in rows for guided in ("", ", guidance 3")]
    for row in written["rows"]:
        line = next(line for line in result.stdout.splitlines() if line.strip().startswith(row["name"] + "  "))
        assert f"{np.mean(list(row['mae'].values())):.3f}" in line
    # Guidance changes the image.
    assert written["rows"][4]["mae"]["t1"] == 0 < written["rows"][5]["mae"]["t1"]
    with Image.open(tmp_path / "study" / "steps.png") as picture:
        assert picture.height > picture.width
    times = {path: path.stat().st_mtime_ns for path in (tmp_path / "study").rglob("*.nii.gz")}
    assert meddpm(*arguments).returncode == 0
    assert times == {path: path.stat().st_mtime_ns for path in times}


def test_a_student_is_compared_with_its_teachers_reference(meddpm, guided_model, masks, tmp_path):
    """One of the teacher's own weights is as good as the teacher in as many steps."""
    card = load_model(guided_model).card
    student = replace(card, name="student", qualities=dict.fromkeys(QUALITIES, {"sampler": "ddim", "steps": 2}))
    write_small_model(tmp_path / "student.safetensors", student)
    arguments = ["benchmark", "steps", masks[0].source, "--model", guided_model, "--out", "study", "--samples", 1]
    result = meddpm(*arguments, "--steps", "2:ddim,4:ddpm", "--student", tmp_path / "student.safetensors")
    assert result.returncode == 0, result.stderr
    written = json.loads((tmp_path / "study" / "steps.json").read_text())
    assert written["reference"] == "4 ddpm"
    rows = {row["name"]: row for row in written["rows"]}
    assert list(rows) == ["2 ddim", "4 ddpm", "2 ddim, student"]
    assert rows["2 ddim"]["mae"] == rows["2 ddim, student"]["mae"] and rows["2 ddim"]["mae"]["t1"] > 0
    result = meddpm(*arguments, *("--student", tmp_path / "student.safetensors") * 2)
    assert result.returncode == 2 and "two of the models are called student" in result.stderr
    other = write_small_model(tmp_path / "other.safetensors", replace(small_card(load_scheme("anatomy")), name="other"))
    result = meddpm(*arguments, "--student", other)
    assert result.returncode == 2 and "in label scheme, modalities or grid" in result.stderr


def test_the_comparison_has_a_row_for_each_setting(small_model, masks, brats):
    model = load_model(small_model)
    made = generate(model, masks[0], steps=2)
    one = draw_comparison({"a": made}, masks[0].volume, brats, caption="c")
    three = draw_comparison({"a": made, "b": made, "c": made}, masks[0].volume, brats, caption="c")
    assert one.width == three.width
    per_row = (three.height - one.height) / 2
    pixels = np.asarray(three)
    rows = [pixels[26 + round(i * per_row) + 26 : 26 + round((i + 1) * per_row)] for i in range(3)]
    np.testing.assert_array_equal(rows[0], rows[2])
    assert rows[0].max() > 0


def test_a_guidance_that_is_no_number_is_reported(meddpm, small_model, small_mask):
    result = meddpm("benchmark", "steps", small_mask, "--model", small_model, "--out", "o", "--guidance", "1;2")
    assert result.returncode == 2 and "is not a list of numbers" in result.stderr
