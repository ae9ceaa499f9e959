"""How does a run become a model? Its averaged weights, with a card that describes the training."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from MedDPMLib.errors import MedDPMError
from MedDPMLib.models.bundle import write_bundle
from MedDPMLib.models.card import Card
from MedDPMLib.recipes.recipe import Recipe, recipe_card
from MedDPMLib.train.checkpoints import read
from MedDPMLib.train.folder import RunFolder, RunHistory, spoken_machine, spoken_time
from MedDPMLib.train.stored_tables import TABLES, check_names, for_brains, read_tables

#: So many names of cases fit on a card.
_MOST_NAMES = 100


def export_run(run: Path, out: Path, *, best: bool = False) -> Card:
    """Writes the averaged weights of the newest checkpoint (or the ``best``) in the folder ``run`` as a bundle.

    Weights are stored in float16. An unfinished run may be exported too: the card says so. Returns the card. Raises
    :class:`MedDPMError` for a folder without a run or checkpoint.
    """
    folder = RunFolder(run)
    recipe = folder.recipe()
    if recipe.levels:
        return _export_cascade(run, recipe, out, best)
    state = _state(folder, best)
    card = run_card(recipe, folder.history(), state["iteration"])
    write_bundle(out, card, state["ema"], dtype=torch.float16)
    return card


def _state(folder: RunFolder, best: bool) -> dict[str, Any]:
    """The averaged weights ("ema") of the run in ``folder`` and their "iteration"."""
    checkpoints = folder.checkpoints()
    if best:
        if not checkpoints.best.is_file():
            raise MedDPMError(f"{folder.path} has no best weights yet: train further, or export the newest")
        return read(checkpoints.best)
    state = checkpoints.load(lambda sentence: None)
    if state is None:
        raise MedDPMError(f"{folder.path} has no checkpoint yet: train further")
    return state


def _export_cascade(run: Path, recipe: Recipe, out: Path, best: bool) -> Card:
    """The levels in ``run`` and the tables that they share, as one bundle."""
    if recipe.level:
        raise MedDPMError(f"{run} is one level of a cascade: export the folder that all levels lie in")
    tables = read_tables(run / TABLES)
    check_names(recipe, tables.cases)
    recipe = for_brains(recipe, len(tables.cases))
    weights, sentences, data = dict(tables.known), [], {}
    for index, level in enumerate(recipe.levels):
        folder = RunFolder(run / level.name)
        if not folder.has_recipe:
            raise MedDPMError(f"the level {level.name} in {run} is not trained yet: train it with --level {level.name}")
        state, history = _state(folder, best), folder.history()
        data = history.data
        if tuple(data["cases"]) != tables.cases:
            raise MedDPMError(f"the level {level.name} in {run} was trained on other cases than {TABLES} is of")
        weights |= {f"levels.{index}.{name}": tensor for name, tensor in state["ema"].items()}
        sentences.append(_trained(folder.recipe(), history, state["iteration"]))
    card = recipe_card(recipe, training=" ".join(sentences), training_data=[_data(data)])
    write_bundle(out, card, weights, dtype=torch.float16)
    return card


def run_card(recipe: Recipe, history: RunHistory, iteration: int) -> Card:
    """The card of the weights after ``iteration`` iterations of the run with that ``history``."""
    return recipe_card(recipe, training=_trained(recipe, history, iteration), training_data=[_data(history.data)])


def _trained(recipe: Recipe, history: RunHistory, iteration: int) -> str:
    """How a network came to its weights, in sentences."""
    data = history.data
    cases = data["cases"]
    finished = iteration >= recipe.iterations
    seconds = history.seconds * iteration / max(1, history.iteration)
    trained = f"Level {recipe.level}: trained" if recipe.level else "Trained"
    sentences = [
        f"{trained} by the recipe {recipe.name} for {iteration:,} iterations"
        + ("" if finished else f" of {recipe.iterations:,}: the run is not finished")
        + f", on {len(cases)} cases"
        + (f" ({len(data['held_out'])} more held out)" if data["held_out"] else "")
        + f", in {spoken_time(seconds)} on {spoken_machine(history.machine)}.",
        f"Grids: {'; '.join(_stage(stage) for stage in recipe.stages)}.",
    ]
    if history.init:
        sentences.append(f"It began with the weights of {history.init['model']}.")
    if recipe.distillation:
        taught = recipe.distillation
        teacher = history.teacher["model"] if history.teacher else taught.teacher
        sentences.append(f"It was distilled to take {taught.teacher_steps} steps of {teacher} in {taught.steps}.")
    return " ".join(sentences)


def _data(data: dict[str, Any]) -> dict[str, Any]:
    """An entry of the card's training data."""
    cases = data["cases"]
    names = ", ".join(cases[:_MOST_NAMES]) + (", ..." if len(cases) > _MOST_NAMES else "")
    license = data["license"] or "not stated: that of the images"
    return {"name": f"{data['name']}: {names}", "license": license, "cases": len(cases)}


def _stage(stage) -> str:
    grid = " x ".join(map(str, stage.size))
    patch = f" in patches of {' x '.join(map(str, stage.patch))}" if stage.patch else ""
    return f"{grid}{patch}, {stage.iterations:,} iterations"
