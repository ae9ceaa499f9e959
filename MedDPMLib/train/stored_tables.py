"""Where are the tables of a cascade between the runs of its levels? In one file, computed by the first of them."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor
from torch.utils.data import Dataset

from MedDPMLib.data import Case
from MedDPMLib.data.cases import is_one_of
from MedDPMLib.errors import MedDPMError
from MedDPMLib.networks import build_network
from MedDPMLib.recipes.recipe import Recipe, recipe_card
from MedDPMLib.runtime.files import atomic_write
from MedDPMLib.train.cascade_tables import Brain, learn_tables

#: Beside the folders of the levels.
TABLES = "tables.safetensors"

#: What the file holds beside the cascade's own tables.
_TRAINING = "training."


@dataclass(frozen=True)
class CascadeTables:
    """What a cascade knows of the training brains called ``cases``: its ``known`` tables, by name in its state dict,
    and for training each brain's ``appearances`` (brains, A) and ``color_weights`` (brains, labels, C, A + 1), from
    other brains."""

    cases: tuple[str, ...]
    known: dict[str, Tensor]
    appearances: Tensor
    color_weights: Tensor


def for_brains(recipe: Recipe, brains: int) -> Recipe:
    """``recipe`` for a cascade that knows so many training brains."""
    return replace(recipe, network={**recipe.network, "brains": brains})


def cascade_tables(
    recipe: Recipe, cases: Dataset | Sequence[Case], path: Path, tell: Callable[[str], None] = lambda sentence: None
) -> CascadeTables:
    """Those of the training ``cases``, from the file ``path``, which is written if missing.

    Raises :class:`MedDPMError` for a file that is damaged or of other cases, and for cases that the recipe keeps for
    validation.
    """
    names = tuple(cases[index].name for index in range(len(cases)))  # type: ignore[arg-type]
    check_names(recipe, names)
    if path.is_file():
        found = read_tables(path)
        if found.cases != names:
            raise MedDPMError(
                f"{path} was computed from other cases ({len(found.cases)} instead of these {len(names)}): use the"
                " dataset that the first level was trained on, or choose another run folder"
            )
        return found
    tell(f"measuring how the {len(names)} training brains look, once")
    cascade = build_network(recipe_card(recipe).network_description)

    def brains() -> Iterator[Brain]:
        for index in range(len(cases)):  # type: ignore[arg-type]
            case = cases[index]
            yield case.image.float().numpy(), case.labels.numpy()

    learnt = learn_tables(cascade, brains, recipe.label_scheme)
    made = CascadeTables(names, cascade.tables(), learnt.appearances, learnt.color_weights)
    tensors = {**made.known, f"{_TRAINING}appearances": made.appearances, f"{_TRAINING}colors": made.color_weights}
    with atomic_write(path) as temporary:
        save_file({n: t.contiguous() for n, t in tensors.items()}, temporary, {"cases": json.dumps(names)})
    return read_tables(path)  # as every later run reads them


def read_tables(path: Path) -> CascadeTables:
    """What :func:`cascade_tables` wrote; :class:`MedDPMError` for anything else."""
    try:
        with safe_open(path, "pt") as file:
            cases = tuple(json.loads(file.metadata()["cases"]))
            tensors = {name: file.get_tensor(name) for name in file.keys()}
        appearances, colors = tensors.pop(f"{_TRAINING}appearances"), tensors.pop(f"{_TRAINING}colors")
    except (OSError, SafetensorError, KeyError, TypeError, ValueError) as error:
        raise MedDPMError(f"{path} is damaged ({str(error):.80}): delete it, it is computed anew") from error
    if not all(torch.isfinite(tensor).all() for tensor in (appearances, colors, *tensors.values())):
        raise MedDPMError(f"{path} is damaged (a number is not finite): delete it, it is computed anew")
    return CascadeTables(cases, tensors, appearances, colors)


def check_names(recipe: Recipe, names: Sequence[str]) -> None:
    """Raises :class:`MedDPMError` if one of the training cases called ``names`` is for validation."""
    kept = [name for name in names if is_one_of(name, recipe.validation)]
    if kept:
        raise MedDPMError(
            f"{kept[0]} is for validation by the recipe {recipe.name} and must not be trained on: train without it"
        )
