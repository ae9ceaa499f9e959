"""With which settings is a model trained?

A recipe is a TOML file. Every field that decides about the result is required, so none is hidden; any can be
overridden (``training.learning_rate=1e-4``). The unit of training is the iteration: one step of the optimizer.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

from MedDPMLib.diffusion.names import CASCADE_LEVELS, NOISE_LEVELS, PREDICTIONS
from MedDPMLib.errors import MedDPMError
from MedDPMLib.imaging.geometry import Grid
from MedDPMLib.masks.scheme_files import SUFFIXES
from MedDPMLib.models.card import GRID, QUALITIES, Card
from MedDPMLib.models.segmenter_card import GENERATOR, SEGMENTER, SegmenterCard
from MedDPMLib.recipes.former_names import current_path, current_tables
from MedDPMLib.recipes.parts import SCHEME, Augmentation, Level, Monitor, Optimization, Stage, Staged, card_fields
from MedDPMLib.recipes.segmenter import FIXED, Randomization, SegmenterRecipe, SegmenterTraining, segmenter_card
from MedDPMLib.recipes.standard import standard
from MedDPMLib.recipes.toml_files import read_toml, set_field, split_override
from MedDPMLib.validation import build, field, flag, list_of, number, one_of, optional, quoted, table, text, whole

LOSSES = ("l1", "l2", "huber")

#: The tables of a recipe that do not affect the trained weights.
_INDIFFERENT = ("monitor", "card")

#: What a run's checkpoints depend on: if one of these changes, it is another model.
_FIXED = (
    "scheme", "dataset_grid", "modalities", "prediction", "mask_encoding", "positions", "network", "schedule",
    "distillation", "level",
)  # fmt: skip

#: What the fields of a cascade's recipe say that mean something for networks of timesteps only: nothing.
_UNUSED_BY_LEVELS: dict[str, dict[str, Any]] = {
    "training": {"loss_space": "v", "min_snr": 0, "sigma_floor": 1, "high_noise": 1, "background_weight": 0},
    "augmentation": {"gamma": 0, "bias": 0},
    "monitor": {"montage_every": 0},
}


@dataclass(frozen=True)
class Training(Optimization):
    """Objective and optimization of a generator; see :mod:`MedDPMLib.train.objective` for the terms of the loss."""

    #: One of :data:`LOSSES`, between prediction and truth in ``loss_space``.
    loss: str = field(one_of(*LOSSES))
    loss_space: str = field(one_of(*PREDICTIONS))
    #: Gamma of the min-SNR weighting (Hang et al. 2023, arXiv 2303.09556); 0 disables it.
    min_snr: float = field(number(0))
    #: The loss at noise sigma is weighted by 1 / max(sigma, floor); 1 disables it.
    sigma_floor: float = field(number(0, 1, open_low=True))
    #: Weights of an error outside every label, and in a tumor; elsewhere it is 1.
    background_weight: float = field(number(0))
    tumor_weight: float = field(number(0))
    #: t / T is drawn as 1 - r^p, r uniform: p above 1 draws high noise more often; 1 draws uniformly.
    high_noise: float = field(number(0, open_low=True))


@dataclass(frozen=True)
class Distillation:
    """The teacher whose steps the model learns, and in how many of its own; see :mod:`MedDPMLib.train.distillation`."""

    #: Name or file of a model.
    teacher: str = field(text())
    #: Steps of the teacher from noise to image: a multiple of ``steps``, those of the model that is trained.
    teacher_steps: int = field(whole(1))
    steps: int = field(whole(1))


@dataclass(frozen=True)
class Recipe(Staged):
    """Everything that determines the training of a generator, except the data."""

    name: str
    #: The name of a scheme that ships with the package, or the table of one of your own.
    scheme: Any = field(SCHEME)
    modalities: tuple[str, ...] = field(list_of(text(), 1, 16))
    #: What the network predicts.
    prediction: str = field(one_of(*PREDICTIONS))
    mask_encoding: tuple[float, float] = field(list_of(number(), 2, 2))
    #: Whether the network receives the position of each voxel, see :func:`MedDPMLib.masks.condition.condition`.
    positions: bool = field(flag())
    #: Share of the examples without labels, for classifier-free guidance; see
    #: :attr:`MedDPMLib.models.card.Card.label_dropout`.
    label_dropout: float = field(number(0, 1, open_high=True))
    network: dict[str, Any] = field(table())
    schedule: dict[str, Any] = field(table())
    #: The texts of the model's card; :func:`recipe_card` adds the rest.
    card: dict[str, Any] = field(table())
    training: Training
    stages: tuple[Stage, ...]
    augmentation: Augmentation
    monitor: Monitor
    #: None trains on the images alone.
    distillation: Distillation | None = None
    #: The grid of the dataset; None: that of a scheme that ships with the package.
    dataset_grid: Grid | None = None
    #: Names of cases that are never trained on, whatever share of the others is held out: they are for validation.
    validation: tuple[str, ...] = field(list_of(text(), 0, 1000), default=())
    #: The levels of a cascade, and which of them is trained: one by one.
    levels: tuple[Level, ...] = ()
    level: str | None = field(optional(one_of(*CASCADE_LEVELS)), default=None)

    def at_level(self, name: str) -> Any:
        if not self.levels:
            super().at_level(name)
        if name not in {level.name for level in self.levels}:
            known = ", ".join(level.name for level in self.levels)
            raise MedDPMError(f'the recipe {self.name} has no level "{name}": use one of {known}')
        return recipe_from({**recipe_values(self), "level": name})

    @property
    def trained_level(self) -> Level:
        """The level of a cascade that is trained, of a recipe :meth:`at_level`."""
        return next(level for level in self.levels if level.name == self.level)

    kind = GENERATOR


def recipe_names(kind: str | None = None) -> list[str]:
    """Names of the recipes that come with the package, for models of that ``kind`` (None: of every kind)."""
    folder = files("MedDPMLib") / "resources" / "recipes"
    paths = [Path(str(entry)) for entry in folder.iterdir() if entry.name.endswith(".toml")]
    return sorted(path.stem for path in paths if kind is None or read_toml(path).get("kind", GENERATOR) == kind)


def load_recipe(name_or_path: str | os.PathLike, overrides: Sequence[str] = ()) -> Recipe | SegmenterRecipe:
    """The recipe of that name, or the one in that TOML file, with the fields of ``overrides`` changed.

    An override is ``field=value`` with dots between table and field and a TOML value; text needs no quotes where it is
    unambiguous: ``training.loss=l2``, ``stages.0.size=[96, 96, 72]``. Former names of fields are accepted.
    :class:`MedDPMError` names the invalid field and its valid values.
    """
    path = Path(name_or_path)
    if path.suffix != ".toml":
        if str(name_or_path) not in recipe_names():
            raise MedDPMError(
                f"there is no recipe {quoted(name_or_path, 200)}: use one of {', '.join(recipe_names())}, or a .toml"
                " file"
            )
        path = Path(str(files("MedDPMLib") / "resources" / "recipes" / f"{name_or_path}.toml"))
    values = read_toml(path)
    try:
        values = current_tables({"name": path.stem, **values})
    except MedDPMError as error:
        raise MedDPMError(f"{path}: {error}") from None
    if isinstance(said := values.get("scheme"), str) and said.endswith(SUFFIXES):
        values["scheme"] = str(path.parent / said)
    for override in overrides:
        _override(values, override)
    try:
        return recipe_from(values)
    except MedDPMError as error:
        raise MedDPMError(f"{path}: {error}") from None


def recipe_from(values: Mapping[str, Any]) -> Recipe | SegmenterRecipe:
    """The recipe of the tables ``values``, as read from TOML; :class:`MedDPMError` names an invalid field."""
    made = current_tables(values)
    of_segmenter = made.get("kind") == SEGMENTER
    of_cascade = "levels" in made and not of_segmenter
    if of_cascade:
        _give_learning_rate(made)
    training = SegmenterTraining if of_segmenter else Training
    for name, table_kind in (("training", training), ("augmentation", Augmentation), ("monitor", Monitor)):
        if name in made:
            made[name] = build(table_kind, made[name], f"[{name}]")
    if "distillation" in made:
        made["distillation"] = _distillation(made["distillation"], made.get("schedule"))
    if made.get("dataset_grid") is not None:
        made["dataset_grid"] = Grid(**GRID.read(made["dataset_grid"], "[dataset_grid]"))
    if of_cascade:
        _take_levels(made)
    elif "stages" in made:
        made["stages"] = _stages(made["stages"])
    if of_segmenter:
        if "randomization" in made:
            made["randomization"] = build(Randomization, made["randomization"], "[randomization]")
        segmenter = build(SegmenterRecipe, made, "the recipe")
        if segmenter.monitor.montage_every:
            raise MedDPMError('[monitor]: "montage_every" must be 0 for a segmenter, which draws no images')
        segmenter_card(segmenter)
        return segmenter
    recipe = build(Recipe, made, "the recipe")
    recipe_card(recipe)  # what is invalid on the card is invalid in the recipe
    return recipe


def recipe_values(recipe: Recipe | SegmenterRecipe) -> dict[str, Any]:
    """The tables of ``recipe`` as :func:`recipe_from` takes them."""
    values: dict[str, Any] = {name: _plain(value) for name, value in asdict(recipe).items()}
    values["stages"] = [{name: side for name, side in stage.items() if side is not None} for stage in values["stages"]]
    for name in ("distillation", "level", "dataset_grid"):
        if values.get(name, "") is None:
            del values[name]
    if not values["validation"]:
        del values["validation"]
    if values.get("levels"):  # which say what the stages are, and the learning rates
        del values["stages"], values["training"]["learning_rate"]
    else:
        values.pop("levels", None)
    return values


def recipe_toml(recipe: Recipe | SegmenterRecipe) -> str:
    """``recipe`` as the text of a TOML file that :func:`load_recipe` reads."""
    import tomli_w  # only training writes recipes

    return tomli_w.dumps(recipe_values(recipe), multiline_strings=True)


def recipe_changes(old: Recipe | SegmenterRecipe, new: Recipe | SegmenterRecipe) -> list[str]:
    """The differences of the recipe ``new`` from the recipe ``old`` of a run, a phrase for each field.

    Raises :class:`MedDPMError` if they are not recipes of the same model, so that its weights do not fit.
    """
    before, after = _flat(recipe_values(old)), _flat(recipe_values(new))
    changes = []
    for name in sorted(before.keys() | after.keys()):
        if before.get(name) == after.get(name) or name.split(".")[0] in (*_INDIFFERENT, "name"):
            continue
        change = f"{name} {before.get(name, 'unset')} becomes {after.get(name, 'unset')}"
        if name.split(".")[0] in (*_FIXED, *FIXED):
            raise MedDPMError(
                f"the run was started with another model ({change}): choose another run folder, or start a new"
                " run from the model of this one with --init"
            )
        changes.append(change)
    return changes


def recipe_card(
    recipe: Recipe | SegmenterRecipe,
    *,
    training: str = "",
    training_data: Sequence[Mapping[str, Any]] = (),
    cases: Sequence[str] = (),
) -> Card | SegmenterCard:
    """The card of a model trained with ``recipe`` on ``cases``, on the grid of the last stage.

    ``training`` describes the run; it is appended to the text of the recipe's own card. ``training_data`` is used
    unless the recipe's card lists its data itself.
    """
    make = segmenter_card if isinstance(recipe, SegmenterRecipe) else generator_card
    return make(recipe, training=training, training_data=training_data, cases=cases)


def generator_card(
    recipe: Recipe,
    *,
    training: str = "",
    training_data: Sequence[Mapping[str, Any]] = (),
    cases: Sequence[str] = (),
) -> Card:
    """:func:`recipe_card` of a generator, whose card does not name its ``cases``."""
    given = card_fields(recipe.card, training, training_data)
    if recipe.distillation:  # it was trained for these steps only
        steps = {"sampler": "ddim", "steps": recipe.distillation.steps}
        given["qualities"] = dict.fromkeys(QUALITIES, steps)
    try:
        return Card(
            name=recipe.name,
            network=recipe.network,
            scheme=recipe.label_scheme,
            modalities=recipe.modalities,
            grid=recipe.stage_grid(recipe.stages[-1]),
            mask_encoding=recipe.mask_encoding,
            intensity_range=(-1.0, 1.0),
            schedule=recipe.schedule,
            prediction=recipe.prediction,
            positions=recipe.positions,
            label_dropout=recipe.label_dropout,
            **given,
        )
    except TypeError as error:
        raise MedDPMError(f"[card] of the recipe {recipe.name} does not fit: {error}") from error


def _distillation(values: Any, schedule: Any) -> Distillation:
    settings = build(Distillation, values, "[distillation]")
    timesteps = schedule.get("timesteps") if isinstance(schedule, Mapping) else None
    if isinstance(timesteps, int) and settings.teacher_steps > timesteps:
        raise MedDPMError(
            f'[distillation]: "teacher_steps" must be at most the {timesteps} timesteps of the schedule,'
            f" not {settings.teacher_steps}"
        )
    if settings.teacher_steps % settings.steps:
        raise MedDPMError(
            f'[distillation]: "teacher_steps" must be a multiple of "steps" ({settings.steps}),'
            f" not {settings.teacher_steps}"
        )
    return settings


def _stages(values: Any) -> tuple[Stage, ...]:
    if not isinstance(values, (list, tuple)) or not values:
        raise MedDPMError("[[stages]] is empty: give at least one grid and its iterations")
    stages = tuple(build(Stage, stage, "[[stages]]") for stage in values)
    for stage in stages:
        if any(part > whole for part, whole in zip(stage.example_size, stage.size, strict=True)):
            raise MedDPMError(
                f'[[stages]]: "patch" {list(stage.example_size)} does not fit into "size" {list(stage.size)}:'
                " make it smaller"
            )
    return stages


def _give_learning_rate(made: dict[str, Any]) -> None:
    """Puts that of the level, of a cascade the first one's, among the settings of the training."""
    levels, training = made["levels"], made.get("training")
    if not levels or not isinstance(levels, (list, tuple)) or not all(isinstance(one, Mapping) for one in levels):
        raise MedDPMError("[[levels]] must be tables, one for each level of the cascade")
    if isinstance(training, Mapping):
        if "learning_rate" in training:
            raise MedDPMError('[training]: "learning_rate" is given for each of the [[levels]]: remove it here')
        own = next((level for level in levels if level.get("name") == made.get("level")), levels[0])
        made["training"] = {**training, "learning_rate": own.get("learning_rate")}


def _take_levels(made: dict[str, Any]) -> None:
    """Checks the levels of a cascade, and makes stages of them: of all, or of the one that is trained."""
    if "stages" in made:
        raise MedDPMError("a recipe has [[stages]] or, for a cascade, [[levels]]: remove one of them")
    levels = tuple(build(Level, level, "[[levels]]") for level in made["levels"])
    if tuple(level.name for level in levels) != CASCADE_LEVELS:
        raise MedDPMError(f"[[levels]] must be {', '.join(CASCADE_LEVELS)}, in this order")
    schedule = made.get("schedule")
    if not isinstance(schedule, Mapping) or schedule.get("name") != NOISE_LEVELS:
        raise MedDPMError(f'[schedule]: "name" must be "{NOISE_LEVELS}" for a cascade')
    for section, wanted in _UNUSED_BY_LEVELS.items():
        for name, value in wanted.items():
            if getattr(made.get(section), name, value) != value:
                raise MedDPMError(f'[{section}]: "{name}" must be {value!r} for a cascade, which does not use it')
    made["levels"] = levels
    if not isinstance(made.get("scheme"), str):  # reported with the rest
        return
    chosen = [level for level in levels if made.get("level") in (None, level.name)]
    stages = [
        {
            "size": standard(made["scheme"]).grid.size,
            "iterations": level.iterations,
            "batch": level.batch,
            "patch": level.patch,
        }
        for level in chosen or levels
    ]
    made["stages"] = _stages(stages)


def _override(values: dict[str, Any], override: str) -> None:
    """Changes one field of ``values``; whether the result is valid is checked with the rest."""
    name, written = split_override(override)
    set_field(values, current_path(name), written)


def _plain(value: Any) -> Any:
    """``value`` with lists for tuples, all the way down."""
    if isinstance(value, Mapping):
        return {name: _plain(entry) for name, entry in value.items()}
    return [_plain(entry) for entry in value] if isinstance(value, (list, tuple)) else value


def _flat(values: Any, prefix: str = "") -> dict[str, Any]:
    """The leaves of nested tables by their dotted names; tables in a list count from 0."""
    leaves = {}
    pairs = values.items() if isinstance(values, dict) else ((str(n), entry) for n, entry in enumerate(values))
    for name, value in pairs:
        nested = isinstance(value, dict) or (isinstance(value, list) and any(isinstance(e, dict) for e in value))
        leaves.update(_flat(value, f"{prefix}{name}.") if nested else {f"{prefix}{name}": value})
    return leaves
