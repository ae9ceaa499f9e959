"""Which segmenters are trained on what, and how are they compared? A recipe of an experiment is a TOML file.

Arms differ in their data and in how these are augmented, and in nothing else: network, number of iterations, batch,
learning rate and patients are the same for all of them.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from MedDPMLib.errors import MedDPMError
from MedDPMLib.experiment.ablation_recipe import ABLATION, AblationRecipe, ablation_from
from MedDPMLib.experiment.design import PHANTOMS, REAL, SYNTHETIC, Arm, Design, Figure, check_arms
from MedDPMLib.masks.scheme_files import SUFFIXES
from MedDPMLib.masks.schemes import LabelScheme, load_scheme
from MedDPMLib.recipes.parts import SCHEME, Augmentation
from MedDPMLib.recipes.toml_files import read_toml, set_field, split_override
from MedDPMLib.runtime.paths import RESOURCES
from MedDPMLib.segmentation.accuracy import CORE, ENHANCING, WHOLE, tumor_regions
from MedDPMLib.validation import build, field, list_of, number, one_of, optional, text, whole

#: How examples are augmented: by the recipe's table [augmentation], or with a second example.
CLASSICAL, MIXUP, CUTMIX, TUMOR_CUTMIX = "classical", "mixup", "cutmix", "tumor-cutmix"
MIXING = (MIXUP, CUTMIX, TUMOR_CUTMIX)

NETWORKS = ("unet", "segresnet")

_FOLDER = RESOURCES / "experiments"

#: Sides of a box of voxels, in (i, j, k) order.
_SIDES = list_of(whole(1), 3, 3)


@dataclass(frozen=True, kw_only=True)
class SegmentationArm(Arm):
    """Trained on ``data``, with ``augmentation``; of several mixings one is drawn each time."""

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


@dataclass(frozen=True, kw_only=True)
class ExperimentRecipe(Design):
    """All that determines an experiment with segmenters, except what is in the folders."""

    scheme: Any = field(SCHEME)
    modalities: tuple[str, ...] = field(list_of(text(), 1, 16))
    #: Grid (i, j, k) over the box of the dataset on which the networks work, and the part of it that they are trained
    #: on at a time (None: all of it). Judged is on the voxels of the dataset.
    size: tuple[int, int, int] = field(_SIDES)
    patch: tuple[int, int, int] | None = field(optional(_SIDES), default=None)
    #: Regions that are segmented and judged.
    regions: tuple[str, ...] = field(list_of(one_of(WHOLE, CORE, ENHANCING), 1, 3, unique=True))
    #: An example is mixed with a second one with this probability, and MixUp's share is drawn from Beta(alpha, alpha).
    mixing_probability: float = field(number(0, 1))
    mixup_alpha: float = field(number(0, open_low=True))
    network: SegmentationNetwork
    budget: Budget
    augmentation: Augmentation

    figures: ClassVar = {
        "dice": Figure("Dice", "higher", 3),
        "iou": Figure("IoU", "higher", 3),
        "hd95": Figure("HD95 (mm)", "lower", 1),
    }
    subject: ClassVar = "region"
    sentence: ClassVar = (
        "Segmenters that differ in nothing but what they were trained on, judged on the same patients, whom none of"
        " them has seen. Not for diagnosis."
    )

    @property
    def subjects(self) -> tuple[str, ...]:
        return self.regions

    @property
    def iterations(self) -> int:
        return self.budget.iterations

    @property
    def label_scheme(self) -> LabelScheme:
        return load_scheme(self.scheme) if isinstance(self.scheme, str) else LabelScheme.from_dict(self.scheme)

    @property
    def region_values(self) -> dict[str, list[int]]:
        """The values of the labels in each region, in the order of the network's outputs."""
        known = tumor_regions(self.label_scheme)
        return {name: known[name] for name in self.regions}

    def described(self) -> dict[str, str]:
        budget, network = self.budget, self.network
        size, patch = (" x ".join(map(str, box)) for box in (self.size, self.patch or self.size))
        kind = "U-Net" if network.kind == "unet" else "SegResNet"
        return {
            "network": f"MONAI's {kind}, {network.levels} levels from {network.width} channels, on {size} voxels,"
            f" in parts of {patch}",
            "budget of every arm": f"{budget.iterations:,} iterations of {budget.batch} examples,"
            f" seeds {', '.join(map(str, self.seeds))}",
            "missing regions": "in scan and result: Dice and IoU 1, HD95 0; in one of them: 0, and the diagonal",
        }


#: The recipes of all kinds.
AnyRecipe = ExperimentRecipe | AblationRecipe


def experiment_names() -> list[str]:
    """Names of the recipes that come with the package."""
    return sorted(path.stem for path in _FOLDER.glob("*.toml"))


def load_experiment(name_or_path: str | Path, overrides: Sequence[str] = ()) -> AnyRecipe:
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


def experiment_from(values: Mapping[str, Any]) -> AnyRecipe:
    """The recipe of the tables ``values``; :class:`MedDPMError` names an invalid field."""
    recipe = ablation_from(values) if values.get("kind") == ABLATION else _segmenters_from(values)
    if recipe.patient is not None:
        try:
            groups = re.compile(recipe.patient).groups
        except re.error as error:
            raise MedDPMError(f'"patient" is not a regular expression ({error})') from error
        if groups < 1:
            raise MedDPMError('"patient" has no group: put the part of the name that is the patient in parentheses')
    return recipe


def _segmenters_from(values: Mapping[str, Any]) -> ExperimentRecipe:
    made = dict(values)
    for name, kind in (("network", SegmentationNetwork), ("budget", Budget), ("augmentation", Augmentation)):
        if name in made:
            made[name] = build(kind, made[name], f"[{name}]")
    if "arms" in made:
        if not isinstance(made["arms"], (list, tuple)) or not made["arms"]:
            raise MedDPMError("[[arms]] is empty: give at least one arm with name and data")
        made["arms"] = tuple(build(SegmentationArm, arm, "[[arms]]") for arm in made["arms"])
    recipe = build(ExperimentRecipe, made, "the recipe")
    check_arms(recipe.reference, [arm.name for arm in recipe.arms])
    _check_sizes(recipe)
    if not tumor_regions(recipe.label_scheme)[WHOLE]:
        raise MedDPMError(f'the scheme "{recipe.label_scheme.name}" has no tumor to segment')
    empty = [name for name, labels in recipe.region_values.items() if not labels]
    if empty:
        raise MedDPMError(
            f'no label of the scheme "{recipe.label_scheme.name}" is in {empty[0]}: leave out that region'
        )
    return recipe


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
