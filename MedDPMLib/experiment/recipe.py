"""Which segmenters are trained on what, and how are they compared? A recipe of an experiment is a TOML file.

Arms differ in their data and in how these are augmented, and in nothing else: network, number of iterations, batch,
learning rate and patients are the same for all of them.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from MedDPMLib.errors import MedDPMError
from MedDPMLib.masks.scheme_files import SUFFIXES
from MedDPMLib.masks.schemes import LabelScheme, load_scheme
from MedDPMLib.recipes.parts import SCHEME, Augmentation
from MedDPMLib.recipes.toml_files import read_toml, set_field, split_override
from MedDPMLib.runtime.paths import RESOURCES
from MedDPMLib.segmentation.accuracy import CORE, ENHANCING, WHOLE, tumor_regions
from MedDPMLib.validation import build, either, field, list_of, number, one_of, optional, printable, text, whole

#: What an arm is trained on.
REAL, SYNTHETIC = "real", "synthetic"

#: How examples are augmented: by the recipe's table [augmentation], or with a second example.
CLASSICAL, MIXUP, CUTMIX, TUMOR_CUTMIX = "classical", "mixup", "cutmix", "tumor-cutmix"
MIXING = (MIXUP, CUTMIX, TUMOR_CUTMIX)

#: In place of a folder: brains that are drawn by :mod:`MedDPMLib.experiment.phantoms`.
PHANTOMS = "phantoms"

NETWORKS = ("unet", "segresnet")

_FOLDER = RESOURCES / "experiments"

#: Sides of a box of voxels, in (i, j, k) order.
_SIDES = list_of(whole(1), 3, 3)

#: Patients by name, or a share of them that is drawn.
_PATIENTS = either(number(0, 1, open_high=True), list_of(text(200), 1, 10_000, unique=True))


@dataclass(frozen=True)
class Arm:
    """One way to train: on which ``data``, with which ``augmentation``; one of several mixings is drawn each time."""

    name: str = field(printable(60))
    data: tuple[str, ...] = field(list_of(one_of(REAL, SYNTHETIC), 1, 2, unique=True))
    augmentation: tuple[str, ...] = field(list_of(one_of(CLASSICAL, *MIXING), 0, 4, unique=True), default=())


@dataclass(frozen=True)
class SegmentationNetwork:
    """MONAI's U-Net or SegResNet: channels are ``width`` at the finest of ``levels``, and double with each."""

    kind: str = field(one_of(*NETWORKS))
    width: int = field(whole(1, 256))
    levels: int = field(whole(2, 6))


@dataclass(frozen=True)
class Budget:
    """What every arm is given, and how it learns: AdamW, the learning rate falls along half a cosine to 0."""

    iterations: int = field(whole(1))
    batch: int = field(whole(1, 64))
    learning_rate: float = field(number(0, open_low=True))
    weight_decay: float = field(number(0))
    #: After so many iterations a checkpoint is written, and the validation patients are segmented; the weights with the
    #: best mean Dice there are used, without validation patients the last ones.
    checkpoint_every: int = field(whole(1))


@dataclass(frozen=True)
class ExperimentRecipe:
    """All that determines an experiment, except what is in the folders."""

    name: str
    scheme: Any = field(SCHEME)
    modalities: tuple[str, ...] = field(list_of(text(), 1, 16))
    #: Grid (i, j, k) over the box of the dataset on which the networks work, and the part of it that they are trained
    #: on at a time (None: all of it). Judged is on the voxels of the dataset.
    size: tuple[int, int, int] = field(_SIDES)
    #: Regions that are segmented and judged.
    regions: tuple[str, ...] = field(list_of(one_of(WHOLE, CORE, ENHANCING), 1, 3, unique=True))
    #: Patients who are never trained on, and patients by whom the weights are chosen.
    test: Any = field(_PATIENTS)
    validation: Any = field(_PATIENTS)
    #: By which the shares of patients are drawn, the same for all seeds.
    split_seed: int = field(whole(0))
    #: With so many real training patients, for a learning curve; 0 is all of them. Smaller sets are parts of larger.
    real_cases: tuple[int, ...] = field(list_of(whole(0), 1, 20, unique=True))
    seeds: tuple[int, ...] = field(list_of(whole(0), 1, 100, unique=True))
    #: The name of the arm with which the others are compared.
    reference: str = field(printable(60))
    #: An example is mixed with a second one with this probability, and MixUp's share is drawn from Beta(alpha, alpha).
    mixing_probability: float = field(number(0, 1))
    mixup_alpha: float = field(number(0, open_low=True))
    arms: tuple[Arm, ...]
    network: SegmentationNetwork
    budget: Budget
    augmentation: Augmentation
    patch: tuple[int, int, int] | None = field(optional(_SIDES), default=None)
    #: Datasets as meddpm prepare writes them, or "phantoms".
    real: str | None = field(optional(text()), default=None)
    synthetic: str | None = field(optional(text()), default=None)
    #: A regular expression whose first group is the patient in the name of a case, where the name itself is not.
    patient: str | None = field(optional(text(1000)), default=None)

    @property
    def label_scheme(self) -> LabelScheme:
        return load_scheme(self.scheme) if isinstance(self.scheme, str) else LabelScheme.from_dict(self.scheme)

    @property
    def region_values(self) -> dict[str, list[int]]:
        """The values of the labels in each region, in the order of the network's outputs."""
        known = tumor_regions(self.label_scheme)
        return {name: known[name] for name in self.regions}

    def arm(self, name: str) -> Arm:
        return next(arm for arm in self.arms if arm.name == name)

    def to_dict(self) -> dict[str, Any]:
        """As plain data for JSON, as :func:`experiment_from` takes it."""
        return {name: value for name, value in asdict(self).items() if value is not None}


def experiment_names() -> list[str]:
    """Names of the recipes that come with the package."""
    return sorted(path.stem for path in _FOLDER.glob("*.toml"))


def load_experiment(name_or_path: str | Path, overrides: Sequence[str] = ()) -> ExperimentRecipe:
    """The recipe of that name, or the one in that TOML file, with the fields of ``overrides`` (``budget.batch=2``).

    Folders in a file are relative to it, folders in overrides to the working directory. :class:`MedDPMError` names the
    invalid field and its valid values.
    """
    path = Path(name_or_path)
    if path.suffix != ".toml":
        if str(name_or_path) not in experiment_names():
            raise MedDPMError(
                f'there is no experiment "{name_or_path}": use one of {", ".join(experiment_names())}, or a .toml file'
            )
        path = _FOLDER / f"{name_or_path}.toml"
    values = {"name": path.stem, **read_toml(path)}
    for name in ("real", "synthetic"):
        if isinstance(said := values.get(name), str) and said != PHANTOMS:
            values[name] = str(path.parent / said)
    if isinstance(said := values.get("scheme"), str) and said.endswith(SUFFIXES):
        values["scheme"] = str(path.parent / said)
    for override in overrides:
        set_field(values, *split_override(override))
    try:
        return experiment_from(values)
    except MedDPMError as error:
        raise MedDPMError(f"{path}: {error}") from None


def experiment_from(values: Mapping[str, Any]) -> ExperimentRecipe:
    """The recipe of the tables ``values``; :class:`MedDPMError` names an invalid field."""
    made = dict(values)
    for name, kind in (("network", SegmentationNetwork), ("budget", Budget), ("augmentation", Augmentation)):
        if name in made:
            made[name] = build(kind, made[name], f"[{name}]")
    if "arms" in made:
        if not isinstance(made["arms"], (list, tuple)) or not made["arms"]:
            raise MedDPMError("[[arms]] is empty: give at least one arm with name and data")
        made["arms"] = tuple(build(Arm, arm, "[[arms]]") for arm in made["arms"])
    recipe = build(ExperimentRecipe, made, "the recipe")
    _check_arms(recipe)
    _check_sizes(recipe)
    if not tumor_regions(recipe.label_scheme)[WHOLE]:
        raise MedDPMError(f'the scheme "{recipe.label_scheme.name}" has no tumor to segment')
    empty = [name for name, labels in recipe.region_values.items() if not labels]
    if empty:
        raise MedDPMError(
            f'no label of the scheme "{recipe.label_scheme.name}" is in {empty[0]}: leave out that region'
        )
    if recipe.patient is not None:
        try:
            groups = re.compile(recipe.patient).groups
        except re.error as error:
            raise MedDPMError(f'"patient" is not a regular expression ({error})') from error
        if groups < 1:
            raise MedDPMError('"patient" has no group: put the part of the name that is the patient in parentheses')
    return recipe


def _check_arms(recipe: ExperimentRecipe) -> None:
    names = [arm.name for arm in recipe.arms]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise MedDPMError(f'[[arms]]: two are called "{twice[0]}": give each a name of its own')
    if recipe.reference not in names:
        raise MedDPMError(
            f'"reference" must be the name of an arm, one of {", ".join(names)}, not "{recipe.reference}"'
        )


def _check_sizes(recipe: ExperimentRecipe) -> None:
    part, multiple = recipe.patch or recipe.size, 2 ** (recipe.network.levels - 1)
    if any(side > length for side, length in zip(part, recipe.size, strict=True)):
        raise MedDPMError(f'"patch" {list(part)} does not fit into "size" {list(recipe.size)}: make it smaller')
    if any(side % multiple for side in part):
        what = "patch" if recipe.patch else "size"
        raise MedDPMError(
            f'"{what}" must be multiples of {multiple} for {recipe.network.levels} levels, not {list(part)}'
        )
    if recipe.network.kind == "segresnet" and recipe.network.width % 8:
        raise MedDPMError(f'[network]: "width" must be a multiple of 8 for a segresnet, not {recipe.network.width}')
    if any(side // multiple < 2 for side in part) and recipe.network.kind == "unet":
        raise MedDPMError(
            f"{recipe.network.levels} levels leave nothing to normalize of {list(part)} voxels: use fewer"
        )
