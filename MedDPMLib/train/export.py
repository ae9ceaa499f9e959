"""How does a run become a model? Its averaged weights, with a card that describes the training."""

from __future__ import annotations

from pathlib import Path

import torch

from MedDPMLib.errors import MedDPMError
from MedDPMLib.models.bundle import write_bundle
from MedDPMLib.models.card import Card
from MedDPMLib.recipes.recipe import Recipe, recipe_card
from MedDPMLib.train.checkpoints import read
from MedDPMLib.train.folder import RunFolder, RunHistory, spoken_machine, spoken_time

#: So many names of cases fit on a card.
_MOST_NAMES = 12


def export_run(run: Path, out: Path, *, best: bool = False) -> Card:
    """Writes the averaged weights of the newest checkpoint (or the ``best``) in the folder ``run`` as a bundle.

    Weights are stored in float16. An unfinished run may be exported too: the card says so. Returns the card. Raises
    :class:`MedDPMError` for a folder without a run or checkpoint.
    """
    folder = RunFolder(run)
    recipe, history, checkpoints = folder.recipe(), folder.history(), folder.checkpoints()
    if best and not checkpoints.best.is_file():
        raise MedDPMError(f"{run} has no best weights yet: train further, or export the newest")
    state = read(checkpoints.best) if best else checkpoints.load(lambda sentence: None)
    if state is None:
        raise MedDPMError(f"{run} has no checkpoint yet: train further")
    card = run_card(recipe, history, state["iteration"])
    write_bundle(out, card, state["ema"], dtype=torch.float16)
    return card


def run_card(recipe: Recipe, history: RunHistory, iteration: int) -> Card:
    """The card of the weights after ``iteration`` iterations of the run with that ``history``."""
    data = history.data
    cases = data["cases"]
    finished = iteration >= recipe.iterations
    seconds = history.seconds * iteration / max(1, history.iteration)
    sentences = [
        f"Trained by the recipe {recipe.name} for {iteration:,} iterations"
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
    names = ", ".join(cases[:_MOST_NAMES]) + (", ..." if len(cases) > _MOST_NAMES else "")
    license = data["license"] or "not stated: that of the images"
    entry = {"name": f"{data['name']}: {names}", "license": license, "cases": len(cases)}
    return recipe_card(recipe, training=" ".join(sentences), training_data=[entry])


def _stage(stage) -> str:
    grid = " x ".join(map(str, stage.size))
    patch = f" in patches of {' x '.join(map(str, stage.patch))}" if stage.patch else ""
    return f"{grid}{patch}, {stage.iterations:,} iterations"
