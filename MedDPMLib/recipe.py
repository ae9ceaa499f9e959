"""With which settings is a model trained? A recipe is a TOML file; every field is required, so none is hidden."""

from __future__ import annotations

import math
import os
from dataclasses import dataclass, fields
from importlib.resources import files
from pathlib import Path
from typing import Any

from MedDPMLib.card import Card
from MedDPMLib.errors import MedDPMError
from MedDPMLib.geometry import Grid
from MedDPMLib.labels import load_scheme

#: Every dataset lies on this grid; the grids of a recipe's stages span the same box.
DATASET_GRID = Grid(size=(192, 192, 144), spacing=(1.0, 1.0, 1.0), orientation="LPS")

try:
    import tomllib
except ModuleNotFoundError:  # Python 3.10
    import tomli as tomllib


@dataclass(frozen=True)
class Stage:
    """``iterations`` on a grid of ``size`` (i, j, k) voxels that spans the data's box."""

    size: tuple[int, int, int]
    iterations: int


@dataclass(frozen=True)
class Training:
    """Optimisation: AdamW with linear warm-up and cosine decay, one volume an iteration."""

    seed: int
    learning_rate: float
    final_learning_rate: float
    warm_up: int
    weight_decay: float
    gradient_norm: float
    ema: float
    high_noise: float
    sigma_floor: float
    background_weight: float
    tumour_weight: float


@dataclass(frozen=True)
class Augmentation:
    """How far a case is varied; lengths in mm, angles in degrees, deviations of normal distributions."""

    flip: float
    rotation: float
    scaling: float
    translation: float
    elastic: float
    elastic_points: int
    gamma: float
    bias: float
    bias_points: int


@dataclass(frozen=True)
class Recipe:
    """All that decides about a training run except the data."""

    name: str
    scheme: str
    modalities: tuple[str, ...]
    prediction: str
    mask_encoding: tuple[float, float]
    network: dict[str, Any]
    schedule: dict[str, Any]
    training: Training
    stages: tuple[Stage, ...]
    augmentation: Augmentation
    #: The texts of the model's card; :func:`recipe_card` adds the rest.
    card: dict[str, Any]

    @property
    def iterations(self) -> int:
        return sum(stage.iterations for stage in self.stages)


def recipe_names() -> list[str]:
    """Names of the recipes that ship with the package."""
    folder = files("MedDPMLib") / "resources" / "recipes"
    return sorted(Path(entry.name).stem for entry in folder.iterdir() if entry.name.endswith(".toml"))


def load_recipe(name_or_path: str | os.PathLike) -> Recipe:
    """The recipe of that name, or the one in that TOML file; :class:`MedDPMError` names the field at fault."""
    path = Path(name_or_path)
    if path.suffix != ".toml":
        if str(name_or_path) not in recipe_names():
            raise MedDPMError(
                f'there is no recipe "{name_or_path}": use one of {", ".join(recipe_names())}, or a .toml file'
            )
        path = Path(str(files("MedDPMLib") / "resources" / "recipes" / f"{name_or_path}.toml"))
    try:
        values = tomllib.loads(path.read_text())
    except OSError as error:
        raise MedDPMError(f"the recipe {path} cannot be read ({error.strerror}): check the path") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise MedDPMError(f"the recipe {path} is not TOML: {error}") from error
    try:
        return _recipe(path.stem, values)
    except MedDPMError as error:
        raise MedDPMError(f"{path}: {error}") from None


def recipe_card(recipe: Recipe) -> Card:
    """The card of a model trained by ``recipe``: it works on the last stage's grid."""
    size = recipe.stages[-1].size
    extent = [n * spacing for n, spacing in zip(DATASET_GRID.size, DATASET_GRID.spacing, strict=True)]
    spacing = tuple(length / n for length, n in zip(extent, size, strict=True))
    try:
        return Card(
            name=recipe.name,
            network=recipe.network,
            scheme=load_scheme(recipe.scheme),
            modalities=recipe.modalities,
            grid=Grid(size, spacing, DATASET_GRID.orientation),
            mask_encoding=recipe.mask_encoding,
            intensity_range=(-1.0, 1.0),
            schedule=recipe.schedule,
            prediction=recipe.prediction,
            **recipe.card,
        )
    except TypeError as error:
        raise MedDPMError(f"[card] of the recipe {recipe.name} does not fit: {error}") from error


def _recipe(name: str, values: dict[str, Any]) -> Recipe:
    values = _checked("the recipe", Recipe, {"name": name, **values})
    stages = [Stage(**_checked("[[stages]]", Stage, stage)) for stage in values["stages"]]
    if not stages:
        raise MedDPMError("[[stages]] is empty: name at least one grid and its iterations")
    for stage in stages:
        if len(stage.size) != 3 or not all(isinstance(side, int) and side > 0 for side in stage.size):
            raise MedDPMError(f'[[stages]]: "size" must be three whole numbers above 0, not {stage.size}')
    return Recipe(
        **values
        | {
            "modalities": tuple(values["modalities"]),
            "mask_encoding": tuple(map(float, values["mask_encoding"])),
            "training": Training(**_checked("[training]", Training, values["training"])),
            "stages": tuple(Stage(tuple(stage.size), stage.iterations) for stage in stages),
            "augmentation": Augmentation(**_checked("[augmentation]", Augmentation, values["augmentation"])),
        }
    )


def _checked(section: str, kind: type, values: dict[str, Any]) -> dict[str, Any]:
    """``values`` if they are the fields of ``kind``, each of its type and no number below zero."""
    if not isinstance(values, dict):
        raise MedDPMError(f"{section} must be a table of fields, not {values!r:.50}")
    expected = {field.name: str(field.type) for field in fields(kind)}
    for name in sorted(set(values) - set(expected)):
        raise MedDPMError(f'{section} has no field "{name}": it has {", ".join(sorted(expected))}')
    for name, annotation in sorted(expected.items()):
        if name not in values:
            raise MedDPMError(f'{section} lacks the field "{name}"')
        what, fits = _TYPES.get(annotation.partition("[")[0], ("a table", lambda value: isinstance(value, dict)))
        if not fits(values[name]):
            raise MedDPMError(f'{section}: "{name}" must be {what}, not {values[name]!r:.50}')
    return values


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and 0 <= value < math.inf


#: For the types of the fields above: what to call them, and how to tell them.
_TYPES = {
    "str": ("a text", lambda value: isinstance(value, str)),
    "int": ("a whole number of at least 0", lambda value: isinstance(value, int) and _is_number(value)),
    "float": ("a number of at least 0", _is_number),
    "tuple": ("a list", lambda value: isinstance(value, (list, tuple))),
}
