"""How a segmenter learns: its examples, its loss, its run."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from conftest import head_phantom

from MedDPMLib.data import Case
from MedDPMLib.data.randomization import Randomizer
from MedDPMLib.errors import MedDPMError
from MedDPMLib.imaging.io import write_nifti
from MedDPMLib.masks.schemes import load_scheme
from MedDPMLib.networks import build_network
from MedDPMLib.recipes.recipe import load_recipe, recipe_card, recipe_changes, recipe_toml
from MedDPMLib.recipes.standard import standard
from MedDPMLib.runtime.device import choose_execution
from MedDPMLib.train.examples import seeded
from MedDPMLib.train.segmentation_objective import UNKNOWN, segmentation_loss
from MedDPMLib.train.segmenter_examples import SegmenterExamples

SCHEME = load_scheme("anatomy")
#: A quarter of the standard grid's sides, and as little of it as the small network takes.
SMALL = [
    "network.channels=[8, 16]",
    "stages=[{size = [48, 48, 36], patch = [24, 28, 32], iterations = 4, batch = 1}]",
    "randomization.ramp_start=0",
    "randomization.ramp_length=1",
    "training.warm_up=1",
    "monitor.checkpoint_every=2",
]


def small_recipe(*changes):
    return load_recipe("brain-structures", [*SMALL, *changes])


def small_cases():
    """Two cases with four modalities and a tumor, and one of labels alone, on a coarse copy of the standard grid."""
    _, truth = head_phantom((4.0, 4.0, 4.0), (48, 48, 36))
    labels = truth.array.copy()
    labels[20:24, 14:20, 20:26] = 20
    rng = np.random.default_rng(0)
    cases = []
    for name in ("a", "b"):
        shades = rng.uniform(-0.8, 1, (4, 22)).astype(np.float32)
        shades[:, 0] = -1
        cases.append(Case(name, torch.from_numpy(shades[:, labels]), torch.from_numpy(labels), (4.0, 4.0, 4.0)))
    empty = torch.full((1, 1, 1, 1), -1.0).expand(1, *labels.shape)
    return [*cases, Case("labels", empty, torch.from_numpy(truth.array.copy()), (4.0, 4.0, 4.0))]


@pytest.fixture(scope="module")
def examples():
    recipe = small_recipe()
    return SegmenterExamples(recipe, recipe.stages[0], small_cases())


def test_the_shipped_recipe_makes_a_network_of_at_most_three_megabytes():
    card = recipe_card(load_recipe("brain-structures"))
    network = build_network(card.network_description)
    assert 2 * sum(parameter.numel() for parameter in network.parameters()) < 3e6
    assert card.spacing == standard("anatomy").grid.spacing[0]


def test_a_recipe_is_read_as_it_is_written(tmp_path):
    recipe = load_recipe("brain-structures")
    (tmp_path / "recipe.toml").write_text(recipe_toml(recipe), encoding="utf-8")
    assert load_recipe(tmp_path / "recipe.toml") == recipe
    assert recipe_changes(recipe, load_recipe("brain-structures", ["randomization.drawn=0.5"]))
    with pytest.raises(MedDPMError, match="another model"):
        recipe_changes(recipe, small_recipe())
    with pytest.raises(MedDPMError, match="drawn"):
        load_recipe("brain-structures", ["randomization.drawn=1.5"])
    with pytest.raises(MedDPMError, match="draws no images"):
        load_recipe("brain-structures", ["monitor.montage_every=10"])
    with pytest.raises(MedDPMError, match="not that of a cascade"):
        recipe.at_level("coarse")


def test_a_step_is_measured_on_random_examples_as_it_is_trained():
    from MedDPMLib.train.tasks import make_task

    recipe = small_recipe()
    task = make_task(recipe, torch.device("cpu"), torch.float32)
    real = task.examples(recipe.stages[0], small_cases()).batch([0, 1])
    random = task.random_batch(recipe.stages[0].example_size, 2)
    for name in ("x", "structures", "tumor"):
        assert getattr(random, name).shape == getattr(real, name).shape
    loss = task.loss(task.network, random)
    loss.backward()
    assert loss.isfinite() and all(weights.grad is not None for weights in task.network.parameters())


def test_cases_for_validation_are_never_trained_on(tmp_path):
    from MedDPMLib.train.run import train

    recipe = small_recipe('validation=["b"]', "stages.0.iterations=2")
    history = train(recipe, small_cases(), tmp_path / "run", execution=choose_execution("cpu", "bfloat16"))
    assert history.data["cases"] == ["a", "labels"] and history.data["held_out"] == ["b"]
    assert history.losses[-1]["held_out"] > 0


def test_the_number_of_an_example_decides_all_about_it(examples):
    for number in (0, 5, 11):
        one, same = examples.batch([number]), examples.batch([number])
        assert torch.equal(one.x, same.x) and torch.equal(one.structures, same.structures)
        assert one.places == same.places and one.cases == same.cases
    assert not torch.equal(examples.batch([0]).x, examples.batch([3]).x)


def test_examples_are_what_the_network_expects(examples):
    kinds = set()
    for number in range(24):
        one = examples.batch([number])
        assert one.x.shape[1] == 5 and one.x.isfinite().all() and one.x.min() >= 0 and one.x.max() < 3
        assert one.x.any() and one.structures.shape == one.x.shape[:1] + one.x.shape[2:]
        # Where a tumor is, nobody knows the structure; classes are counted from the background on.
        assert torch.equal(one.structures == UNKNOWN, one.tumor > 0)
        assert set(one.tumor.unique().tolist()) <= {0, 2}  # edema is the second of three
        assert one.asked == (int(one.x[0, 1:].flatten(1).any(dim=1).sum()) >= 2)
        if one.cases == ("labels",):
            assert not one.asked and not one.x[0, 1:].any()
        kinds.add((one.asked, bool(one.x[0, 0].any())))
    assert kinds >= {(False, True), (True, True), (True, False)}  # and, rarely, a single named scan alone


def test_a_drawn_image_shows_the_borders_of_the_labels_and_nothing_outside():
    labels = torch.from_numpy(head_phantom((2.0, 2.0, 2.0))[1].array)
    quiet = dict.fromkeys(("surroundings", "lesions", "bias", "noise", "gamma", "scale"), 0.0)
    recipe = load_recipe("brain-structures", [f"randomization.{name}={value}" for name, value in quiet.items()])
    shares = []
    for number in range(6):
        image = Randomizer(recipe.randomization, SCHEME, seeded(1, 1, number)).drawn(labels)
        assert not image[labels == 0].any()
        means = [float(image[labels == value].mean()) for value in (1, 3, 8, 18)]
        within = np.mean([float(image[labels == value].std()) for value in (1, 3, 8, 18)])
        shares.append(np.std(means) / max(within, 1e-6))
    assert np.median(shares) > 1  # labels differ more from each other than from themselves


def test_the_loss_of_a_perfect_prediction_is_zero_and_unknown_voxels_do_not_count():
    class Known(torch.nn.Module):
        """Gives the scores that it holds, whatever it sees."""

        def __init__(self, scores):
            super().__init__()
            self.held = torch.nn.Parameter(scores)

        def forward(self, x):
            return x

        def scores(self, features, output, voxel):
            from MedDPMLib.networks.segmenter import voxel_of_block

            return self.held[(slice(None), slice(None), *voxel_of_block(voxel))]

    generator = torch.Generator().manual_seed(0)
    target = torch.randint(0, 3, (1, 16, 16, 16), generator=generator)
    scores = 100.0 * torch.nn.functional.one_hot(target, 3).movedim(-1, 1).float()
    perfect = segmentation_loss(Known(scores), torch.zeros(1), [target, None], range(8), [torch.ones(3)] * 2)
    assert perfect.item() < 1e-3
    network = Known(torch.randn(1, 3, 16, 16, 16, generator=generator))
    target[:, :8] = UNKNOWN
    weights = torch.tensor([0.5, 1.0, 3.0])
    loss = segmentation_loss(network, torch.zeros(1), [target], range(8), [weights])
    loss.backward()
    assert not network.held.grad[:, :, :8].any() and network.held.grad[:, :, 8:].any()
    # Independently: entropy and Dice of the known half, place by place.
    half, truth = network.held.detach()[0, :, 8:], target[0, 8:]
    expected = []
    for z, y, x in np.ndindex(2, 2, 2):
        p = half[:, z::2, y::2, x::2].softmax(dim=0)
        t = truth[z::2, y::2, x::2]
        weight = weights[t]
        entropy = -(p.gather(0, t[None])[0].log() * weight).sum() / weight.sum()
        dice = [(2 * p[k][t == k].sum() + 1) / (p[k].sum() + (t == k).sum() + 1) for k in (1, 2)]
        expected.append(entropy + 1 - sum(dice) / 2)
    assert loss.item() == pytest.approx(float(torch.stack(expected).mean()), rel=1e-5)


def test_a_run_that_was_interrupted_ends_with_the_same_weights(tmp_path):
    from MedDPMLib.models.store import load_card_and_state
    from MedDPMLib.train.export import export_run
    from MedDPMLib.train.run import train
    from MedDPMLib.train.stopping import Stopped, StopRequest

    cpu, cases, recipe = choose_execution("cpu", "float32"), small_cases(), small_recipe()
    train(recipe, cases, tmp_path / "whole", execution=cpu)
    stop = StopRequest()

    def interrupt(iteration, loss):
        stop.signal = 15 if iteration == 2 else None

    with pytest.raises(Stopped):
        train(recipe, cases, tmp_path / "parts", execution=cpu, stop=stop, report=interrupt)
    history = train(recipe, cases, tmp_path / "parts", execution=cpu)
    assert history.iteration == 4
    states = []
    for name in ("whole", "parts"):
        export_run(tmp_path / name, tmp_path / f"{name}.safetensors")
        card, state = load_card_and_state(tmp_path / f"{name}.safetensors")
        assert card.training_cases == ("a", "b", "labels") and "4 iterations" in card.training
        states.append(state)
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])


def test_label_maps_beside_a_dataset_are_read(tmp_path):
    from MedDPMLib.data import read_label_maps

    grid = standard("anatomy").grid
    assert read_label_maps(tmp_path, grid) == []
    (tmp_path / "labelMaps").mkdir()
    from MedDPMLib.imaging.volume import Volume

    labels = np.zeros(grid.shape, np.uint8)
    labels[40:90, 60:120, 60:120] = 1
    write_nifti(tmp_path / "labelMaps" / "x.nii.gz", Volume(labels, grid.centered_on([1.0, 2.0, 3.0])))
    (case,) = read_label_maps(tmp_path, grid)
    assert case.name == "x" and torch.equal(case.labels, torch.from_numpy(labels)) and not (case.image > -1).any()
    write_nifti(tmp_path / "labelMaps" / "y.nii.gz", head_phantom()[1])
    with pytest.raises(MedDPMError, match="y.nii.gz has 36 x 42 x 36 voxels"):
        read_label_maps(tmp_path, grid)
