"""Recipes: what ships, what may be changed, and how a mistake is reported."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from MedDPMLib.diffusion.schedule import make_schedule
from MedDPMLib.errors import MedDPMError
from MedDPMLib.models.card import official_cards
from MedDPMLib.models.segmenter_card import GENERATOR
from MedDPMLib.networks import state_shapes
from MedDPMLib.prepare import standard
from MedDPMLib.recipes.recipe import (
    load_recipe,
    recipe_card,
    recipe_changes,
    recipe_from,
    recipe_names,
    recipe_toml,
    recipe_values,
)
from MedDPMLib.recipes.toml_files import tomllib


@pytest.mark.parametrize("name", recipe_names(GENERATOR))
def test_shipped_recipes_are_whole(name):
    recipe = load_recipe(name)
    assert recipe.name == name and recipe.iterations == sum(stage.iterations for stage in recipe.stages)
    if recipe.levels:  # which are asked at noise levels
        assert [recipe.at_level(level.name).iterations for level in recipe.levels] == [
            stage.iterations for stage in recipe.stages
        ]
    else:
        make_schedule(**recipe.schedule)
    card = recipe_card(recipe)
    state_shapes(card.network_description)
    box = np.multiply(standard(recipe.scheme).grid.size, standard(recipe.scheme).grid.spacing)
    assert np.allclose(np.multiply(card.grid.size, card.grid.spacing), box)
    assert set(recipe.modalities) <= set(standard(recipe.scheme).modalities)


@pytest.mark.parametrize("name", recipe_names(GENERATOR))
def test_a_recipe_is_read_as_it_is_written(name, tmp_path):
    recipe = load_recipe(name)
    (tmp_path / "recipe.toml").write_text(recipe_toml(recipe), encoding="utf-8")
    assert load_recipe(tmp_path / "recipe.toml") == recipe


#: The fields of [training] that had another name in version 0.1.
FORMER_NAMES = {
    "min_lr_ratio": "final_share", "gradient_accumulation_steps": "accumulate", "max_grad_norm": "gradient_norm",
    "optimizer": "optimiser", "tumor_weight": "tumour_weight",
}  # fmt: skip


@pytest.mark.parametrize("name", recipe_names(GENERATOR))
def test_a_recipe_with_former_names_means_the_same(name, tmp_path):
    text = (Path(__file__).parents[1] / f"MedDPMLib/resources/recipes/{name}.toml").read_text(encoding="utf-8")
    for current, former in FORMER_NAMES.items():
        assert text.count(f"\n{current} = ") == 1
        text = text.replace(f"\n{current} = ", f"\n{former} = ")
    old = tmp_path / f"{name}.toml"
    old.write_text(text, encoding="utf-8")
    assert load_recipe(old) == load_recipe(name)
    for current, former in FORMER_NAMES.items():
        value = '"adam"' if current == "optimizer" else "1"
        changed = load_recipe(name, [f"training.{current}={value}"])
        for file in (old, name):
            assert load_recipe(file, [f"training.{former}={value}"]) == changed
            assert load_recipe(file, [f"training.{current}={value}"]) == changed


def test_a_field_under_both_names_is_refused(tmp_path):
    twice = tmp_path / "twice.toml"
    twice.write_text(recipe_toml(load_recipe("brats")).replace("[training]", "[training]\naccumulate = 4"))
    with pytest.raises(MedDPMError, match='twice.toml.*"accumulate" is the former name of "gradient_accumulation_step'):
        load_recipe(twice)


@pytest.mark.parametrize("card", official_cards(), ids=lambda card: card.name)
def test_the_papers_recipes_train_the_published_networks(card):
    recipe = load_recipe(card.name.removeprefix("med-ddpm-"))
    own = recipe_card(recipe)
    for field in ("network", "scheme", "modalities", "grid", "mask_encoding", "schedule", "prediction"):
        assert getattr(own, field) == getattr(card, field), field
    training = recipe.training
    assert (training.loss, training.optimizer, training.learning_rate) == ("l1", "adam", 1e-5)
    assert (training.gradient_accumulation_steps, recipe.stages[0].batch, recipe.iterations) == (2, 1, 100_000)
    assert (training.ema, training.ema_start) == (0.995, 2000)


def test_overrides_change_what_they_name_alone():
    recipe = load_recipe(
        "brats",
        ["training.loss=l2", "training.learning_rate=1", "stages.0.patch=[96, 96, 80]", "network.attention=[8]"],
    )
    plain = load_recipe("brats")
    assert recipe.training == replace(plain.training, loss="l2", learning_rate=1.0)
    assert recipe.stages[0].example_size == (96, 96, 80) and recipe.network == {**plain.network, "attention": [8]}
    assert isinstance(recipe.training.learning_rate, float)


@pytest.mark.parametrize(
    ("override", "says"),
    [
        ("training.loss=l3", '"loss" must be one of l1, l2, huber, not'),
        ("training.learning_rate=fast", '"learning_rate" must be a number above 0'),
        ("training.learning_rate=nan", '"learning_rate" must be a number above 0'),
        (
            "training.gradient_accumulation_steps=0",
            '"gradient_accumulation_steps" must be a whole number of at least 1',
        ),
        ("training.ema=1", '"ema" must be a number of at least 0 and below 1'),
        ("training.speed=1", r'\[training\] has no field "speed": it has background_weight'),
        ("positions=1", '"positions" must be true or false'),
        ("prediction=y", '"prediction" must be one of noise, x0, v'),
        ("stages.0.patch=[500, 8, 8]", "does not fit into"),
        ("stages.1.size=[8, 8, 8]", 'there is no "1" in stages, but 0 to 0'),
        ("stages=[]", "is empty"),
        ("nonsense.field=1", 'there is no "nonsense" in the recipe'),
        ("training", "write field=value"),
        ("scheme=cats", "anatomy"),
        ("card.title=", "title"),
        ("schedule.timesteps=0", "timesteps"),
    ],
)
def test_a_wrong_override_is_reported_with_what_is_allowed(override, says):
    with pytest.raises(MedDPMError, match=says):
        load_recipe("brats", [override])


@pytest.mark.parametrize(
    ("old", "new", "says"),
    [
        ("seed = 2305", "", 'lacks the field "seed"'),
        ("seed = 2305", "seeed = 1", 'no field "seeed"'),
        ("scheme =", "skeme =", 'no field "skeme"'),
        ("[training]", "[training", "is not TOML"),
        ("iterations = ", "iterations = -", "iterations"),
    ],
)
def test_a_wrong_file_is_refused_in_a_sentence(tmp_path, old, new, says):
    text = (Path(__file__).parents[1] / "MedDPMLib/resources/recipes/brain-anatomy.toml").read_text()
    assert old in text
    path = tmp_path / "mine.toml"
    path.write_text(text.replace(old, new))
    with pytest.raises(MedDPMError, match=says):
        load_recipe(path)


def test_an_unknown_recipe_lists_what_there_is():
    with pytest.raises(MedDPMError, match="brain-anatomy"):
        load_recipe("nonsense")


def test_a_run_may_change_how_it_trains_but_not_what():
    old = load_recipe("brain-anatomy")
    assert recipe_changes(old, load_recipe("brain-anatomy", ["monitor.keep=9", "card.title=Mine"])) == []
    assert recipe_changes(old, load_recipe("brain-anatomy", ["stages.1.iterations=1000"])) == [
        "stages.1.iterations 900 becomes 1000"
    ]
    for change in ("network.channels=[8, 16]", "prediction=v", "positions=false", "schedule.timesteps=100"):
        with pytest.raises(MedDPMError, match="another model"):
            recipe_changes(old, load_recipe("brain-anatomy", [change, "card.qualities.reference.steps=100"]))


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=6,
)
FIELDS = sorted(
    [(table, field) for table, values in recipe_values(load_recipe("brats")).items() if isinstance(values, dict)
     for field in values] + [(field,) for field in recipe_values(load_recipe("brats"))]
)  # fmt: skip


@settings(max_examples=150, deadline=None)
@given(st.sampled_from(FIELDS), VALUES)
def test_whatever_a_field_holds_is_taken_or_reported(path, value):
    values = recipe_values(load_recipe("brats"))
    table = values[path[0]] if len(path) == 2 else values
    table[path[-1]] = value
    try:
        recipe = recipe_from(values)
    except MedDPMError as error:
        assert path[-1] in str(error) or path[0] in str(error), error
    else:
        assert recipe_from(tomllib.loads(recipe_toml(recipe))) == recipe


@settings(max_examples=100, deadline=None)
@given(st.text(max_size=30), st.text(max_size=20))
def test_whatever_is_written_after_set_is_taken_or_reported(name, value):
    try:
        recipe = load_recipe("brats", [f"{name}={value}"])
    except MedDPMError:
        return
    assert recipe_from(tomllib.loads(recipe_toml(recipe))) == recipe
