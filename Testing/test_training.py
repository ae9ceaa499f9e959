"""From case folders to a trained network: data, variation, recipe, training."""

from __future__ import annotations

import itertools
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from MedDPMLib.data import Case, draw_variation, read_dataset, smoothed_for
from MedDPMLib.device import choose_execution
from MedDPMLib.errors import MedDPMError
from MedDPMLib.geometry import Geometry
from MedDPMLib.labels import load_scheme
from MedDPMLib.prepare import compose_anatomy, normalise, prepare
from MedDPMLib.recipe import DATASET_GRID, Augmentation, Stage, load_recipe, recipe_card, recipe_names
from MedDPMLib.schedule import make_schedule
from MedDPMLib.train import CHECKPOINT, Trainer, learning_rate, make_example, train
from MedDPMLib.volume import Volume, write_nifti

EXACT = choose_execution("cpu", "float32")
STILL = Augmentation(
    flip=0, rotation=0, scaling=0, translation=0, elastic=0, elastic_points=3, gamma=0, bias=0, bias_points=2
)


def phantom(shape=(16, 24, 32), channels=2, seed=0) -> Case:
    """A random label map whose labels decide the intensities."""
    rng = np.random.default_rng(seed)
    labels = np.zeros(shape, np.uint8)
    labels[2:-2, 2:-2, 2:-2] = rng.integers(1, 22, [n - 4 for n in shape])
    levels = rng.uniform(-0.8, 1, (channels, 22)).astype(np.float32)
    levels[:, 0] = -1
    return Case("phantom", torch.from_numpy(levels[:, labels]), torch.from_numpy(labels), (1.0, 1.0, 1.0))


def small_recipe(**changes):
    recipe = load_recipe("brain-anatomy")
    return replace(
        recipe,
        modalities=("t1", "t2"),
        network={"kind": "wavelet-unet", "channels": [8, 16]},
        stages=(Stage((16, 12, 8), 3), Stage((32, 24, 16), 4)),
        training=replace(recipe.training, warm_up=2),
        **changes,
    )


# Variation -------------------------------------------------------------------------------------------


def test_no_variation_is_the_identity():
    case = phantom()
    image, labels = draw_variation(case, STILL, torch.Generator()).apply(case, case.labels.shape)
    torch.testing.assert_close(image, case.image, atol=1e-5, rtol=0)
    assert torch.equal(labels, case.labels)


def test_a_flip_mirrors_left_and_right_only():
    case = phantom()
    image, labels = draw_variation(case, replace(STILL, flip=1), torch.Generator()).apply(case, case.labels.shape)
    torch.testing.assert_close(image, case.image.flip(3), atol=1e-5, rtol=0)
    assert torch.equal(labels, case.labels.flip(2))


def test_the_same_generator_state_gives_the_same_variation():
    case, settings = phantom(), load_recipe("brain-anatomy").augmentation
    first, again, other = (
        draw_variation(case, settings, torch.Generator().manual_seed(seed)).apply(case, (8, 12, 16))
        for seed in (1, 1, 2)
    )
    assert torch.equal(first[0], again[0]) and torch.equal(first[1], again[1])
    assert not torch.equal(first[0], other[0])


def test_image_and_labels_move_together():
    """A bright cube that is also a label: after any variation both are in the same place."""
    labels = torch.zeros((48, 48, 48), dtype=torch.uint8)
    labels[14:28, 20:34, 22:36] = 19
    case = Case("cube", (labels[None] > 0).float() * 2 - 1, labels, (2.0, 2.0, 2.0))
    settings = replace(load_recipe("brain-anatomy").augmentation, gamma=0, bias=0, elastic=1.0)
    for seed in range(5):
        image, varied = draw_variation(case, settings, torch.Generator().manual_seed(seed)).apply(case, (48, 48, 48))
        bright, labelled = image[0] > 0, varied > 0
        overlap = 2 * (bright & labelled).sum() / (bright.sum() + labelled.sum())
        assert overlap > 0.9, seed


def test_rotation_is_about_millimetres_not_about_the_box():
    """In a box of unequal sides a rotated ball stays a ball: its volume is kept and its axes stay equal."""
    k, j, i = np.mgrid[:40, :60, :80]
    ball = ((k - 19.5) ** 2 + (j - 29.5) ** 2 + (i - 39.5) ** 2 < 12**2).astype(np.uint8)
    case = Case("ball", torch.from_numpy(ball[None].astype(np.float32) * 2 - 1), torch.from_numpy(ball), (1.0,) * 3)
    for seed in range(4):
        settings = replace(STILL, rotation=40.0)
        _, labels = draw_variation(case, settings, torch.Generator().manual_seed(seed)).apply(case, ball.shape)
        spread = torch.nonzero(labels).float().std(dim=0)
        assert abs(int(labels.sum()) / ball.sum() - 1) < 0.03
        assert spread.max() / spread.min() < 1.03


def test_smoothing_keeps_the_mean_and_only_coarser_axes():
    case = phantom()
    assert smoothed_for(case, case.labels.shape).image is case.image
    smooth = smoothed_for(case, (16, 24, 16)).image
    torch.testing.assert_close(smooth.mean(dim=3), case.image.mean(dim=3), atol=0.08, rtol=0)
    assert smooth.std() < case.image.std()


# Recipes ---------------------------------------------------------------------------------------------


def test_shipped_recipes_load_and_fit_their_scheme():
    assert "brain-anatomy" in recipe_names()
    for name in recipe_names():
        recipe = load_recipe(name)
        assert recipe.name == name and recipe.iterations == sum(stage.iterations for stage in recipe.stages)
        make_schedule(**recipe.schedule)
        card = recipe_card(recipe)
        assert card.name == name
        assert np.allclose(np.multiply(card.grid.size, card.grid.spacing), DATASET_GRID.size)


@pytest.mark.parametrize(
    ("old", "new", "says"),
    [
        ("seed = 2305", "", 'lacks the field "seed"'),
        ("seed = 2305", "seeed = 1", 'no field "seeed"'),
        ("scheme =", "skeme =", 'no field "skeme"'),
        ("[training]", "[training", "is not TOML"),
        ("seed = 2305", 'seed = "many"', "seed"),
        ("iterations = ", "iterations = -", "iterations"),
    ],
)
def test_a_wrong_recipe_is_refused_in_a_sentence(tmp_path, old, new, says):
    text = (Path(__file__).parents[1] / "MedDPMLib/resources/recipes/brain-anatomy.toml").read_text()
    path = tmp_path / "mine.toml"
    path.write_text(text.replace(old, new))
    with pytest.raises(MedDPMError, match=says):
        load_recipe(path)


def test_unknown_recipe_lists_what_there_is():
    with pytest.raises(MedDPMError, match="brain-anatomy"):
        load_recipe("nonsense")


# Preparing -------------------------------------------------------------------------------------------


def write_case(source: Path, anatomy: Path, name: str, matrix: np.ndarray, *, damaged=False) -> None:
    rng = np.random.default_rng(3)
    labels = np.zeros((60, 70, 80), np.uint8)
    labels[10:50, 10:60, 10:70] = 1
    labels[20:40, 20:50, 20:60] = 2
    image = np.where(labels > 0, 100 * labels + rng.normal(0, 5, labels.shape), 0).astype(np.int16)
    image[10:50, 10:60, 70] = 50  # brain without a structure
    geometry = Geometry(labels.shape[::-1], matrix)
    for modality in ("t1", "t2"):
        write_nifti(source / name / f"{name}_{modality}.nii.gz", Volume(image, geometry))
    tumour = np.zeros_like(labels)
    tumour[25:30, 25:30, 25:30] = 4
    tumour[25:30, 25:30, 30:33] = 1
    write_nifti(source / name / f"{name}_seg.nii.gz", Volume(tumour, geometry))
    write_nifti(anatomy / f"{name}_anatomy.nii.gz", Volume(labels, geometry))
    if damaged:
        (source / name / f"{name}_t2.nii.gz").write_bytes(b"broken")


def test_preparing_a_folder_of_cases(tmp_path):
    lps = np.diag([-1.0, -1.0, 1.0, 1.0])
    write_case(tmp_path / "in", tmp_path / "anatomy", "one", lps)
    write_case(tmp_path / "in", tmp_path / "anatomy", "two", np.eye(4))
    write_case(tmp_path / "in", tmp_path / "anatomy", "bad", lps, damaged=True)
    out = tmp_path / "out"
    found = dict(prepare([tmp_path / "in"], out, anatomy=tmp_path / "anatomy", modalities=["t1", "t2"]))
    assert found["one"] is None and found["two"] is None and "bad_t2.nii.gz" in found["bad"]
    assert json.loads((out / "dataset.json").read_text())["numTraining"] == 2

    one, two = read_dataset(out, ["t1", "t2"])
    assert one.labels.shape == DATASET_GRID.shape
    assert one.image.min() == -1 and one.image.max() == 1
    counts = torch.bincount(one.labels.flatten(), minlength=22)
    assert (counts[21], counts[19], counts[18]) == (125, 75, 40 * 50)
    # The same voxels in another orientation are the same patient mirrored, in place.
    assert torch.equal(two.labels.flip(1, 2).count_nonzero(), one.labels.count_nonzero())
    with pytest.raises(MedDPMError, match="holds t1, t2, the recipe asks for t2"):
        read_dataset(out, ["t2"])


def test_composing_needs_one_grid():
    def volume(size):
        return Volume(np.ones((size,) * 3, np.uint8), Geometry((size,) * 3, np.eye(4)))

    with pytest.raises(MedDPMError, match="one grid"):
        compose_anatomy(volume(8), [volume(9)], None)


def test_normalising_maps_the_brains_percentiles():
    array = np.zeros((10, 10, 11), np.float32)
    brain = np.zeros(array.shape, bool)
    brain[:, :, 1:] = True
    array[brain] = np.arange(1000) + 5000
    scaled = normalise(Volume(array, Geometry((11, 10, 10), np.eye(4))), brain).array
    assert (scaled[~brain] == -1).all()
    assert abs(scaled[brain].mean()) < 1e-3 and scaled.max() == 1
    with pytest.raises(MedDPMError, match="constant"):
        normalise(Volume(np.ones_like(array), Geometry((11, 10, 10), np.eye(4))), brain)


# Training --------------------------------------------------------------------------------------------


def run(recipe, folder, cases):
    losses = {}
    state = train(recipe, cases, folder, execution=EXACT, report=losses.__setitem__)
    return state, losses


def test_a_stopped_run_ends_with_the_weights_of_an_uninterrupted_one(tmp_path, monkeypatch):
    monkeypatch.setattr("MedDPMLib.train._CHECKPOINT_EVERY", 2)
    recipe, cases = small_recipe(), [phantom(seed=1), phantom(seed=2)]
    whole, losses = run(recipe, tmp_path / "whole", cases)
    assert list(losses) == list(range(1, 8))

    class Stopped(Exception):
        pass

    def stop(iteration, loss):
        if iteration == 5:
            raise Stopped

    with pytest.raises(Stopped):
        train(recipe, cases, tmp_path / "part", execution=EXACT, report=stop)
    resumed, later = run(recipe, tmp_path / "part", cases)
    assert list(later) == [5, 6, 7]  # from the checkpoint of iteration 4
    for name, tensor in whole.items():
        assert torch.equal(tensor, resumed[name]), name
    assert [path.name for path in (tmp_path / "part").iterdir()] == [CHECKPOINT]


def test_a_checkpoint_of_another_network_is_refused(tmp_path):
    recipe = small_recipe()
    Trainer(recipe, EXACT).save(tmp_path / CHECKPOINT)
    other = Trainer(replace(recipe, network={"kind": "wavelet-unet", "channels": [16, 16]}), EXACT)
    with pytest.raises(MedDPMError, match="another recipe"):
        other.load(tmp_path / CHECKPOINT)


def test_a_loss_that_is_not_finite_stops_the_run(tmp_path):
    case = phantom()
    case.image[0, 5, 5, 5] = float("nan")
    with pytest.raises(MedDPMError, match="iteration 1 "):
        run(small_recipe(augmentation=STILL), tmp_path, [case])


def test_training_learns(tmp_path):
    """Two labels, two intensities: after a few dozen steps the labels decide the image, whatever the noise."""
    labels = torch.zeros((16, 16, 16), dtype=torch.uint8)
    labels[4:12, 4:12, 4:8], labels[4:12, 4:12, 8:12] = 1, 2
    image = torch.full((2, 16, 16, 16), -1.0)
    image[:, labels == 1], image[:, labels == 2] = 0.8, -0.2
    case = Case("two", image, labels, (1.0,) * 3)
    recipe = small_recipe(augmentation=STILL)
    recipe = replace(
        recipe,
        stages=(Stage((16, 16, 16), 60),),
        training=replace(recipe.training, learning_rate=5e-3, ema=0.5),
    )
    _, losses = run(recipe, tmp_path, [case])
    values = list(losses.values())
    assert np.mean(values[-10:]) < 0.4 * np.mean(values[:5])


def test_an_iteration_sees_the_same_every_time_and_each_its_own():
    recipe, cases = small_recipe(), [phantom(seed=1), phantom(seed=2)]
    make = [recipe, load_scheme(recipe.scheme), make_schedule(**recipe.schedule), cases, (8, 12, 16)]
    first, again, second = (make_example(*make, iteration) for iteration in (4, 4, 5))
    for name, tensor in vars(first).items():
        assert torch.equal(tensor, getattr(again, name)), name
    assert not torch.equal(first.noise, second.noise)
    assert first.condition.sum() == (first.weight > recipe.training.background_weight).sum()


def test_high_noise_is_drawn_more_often():
    recipe = small_recipe()
    make = [recipe, load_scheme(recipe.scheme), make_schedule(**recipe.schedule), [phantom((8, 8, 8))], (4, 4, 4)]
    drawn = torch.cat([make_example(*make, iteration).t for iteration in range(400)]).float()
    assert 0 <= drawn.min() and drawn.max() == 249
    # E[1 - r^p] = p / (p + 1)
    expected = 250 * recipe.training.high_noise / (recipe.training.high_noise + 1)
    assert abs(drawn.mean() - expected) < 12


def test_the_learning_rate_rises_then_falls():
    settings = load_recipe("brain-anatomy").training
    rates = [learning_rate(settings, i, 4000) for i in range(4000)]
    top = rates.index(max(rates))
    assert max(rates) == pytest.approx(settings.learning_rate) and abs(top - settings.warm_up) <= 1
    assert rates[-1] == pytest.approx(settings.final_learning_rate, rel=1e-2)
    assert all(a > b for a, b in itertools.pairwise(rates[top + 1 :]))
