"""From a dataset to a trained network: recipe, training."""

from __future__ import annotations

import itertools
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from MedDPMLib.data import Case
from MedDPMLib.device import choose_execution
from MedDPMLib.errors import MedDPMError
from MedDPMLib.labels import load_scheme
from MedDPMLib.recipe import DATASET_GRID, Augmentation, Stage, load_recipe, recipe_card, recipe_names
from MedDPMLib.schedule import make_schedule
from MedDPMLib.train import CHECKPOINT, Trainer, learning_rate, make_example, train

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
