"""With which settings is a segmenter trained? Its examples are real scans and images drawn from label maps alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from MedDPMLib.errors import MedDPMError
from MedDPMLib.imaging.geometry import Grid
from MedDPMLib.models.segmenter_card import SEGMENTER, SegmenterCard
from MedDPMLib.recipes.parts import SCHEME, Augmentation, Monitor, Optimization, Stage, Staged, card_fields
from MedDPMLib.validation import field, list_of, number, one_of, table, text, whole

#: What a run's checkpoints depend on: if one of these changes, it is another model.
FIXED = ("kind", "scheme", "dataset_grid", "modalities", "network")


@dataclass(frozen=True)
class SegmenterTraining(Optimization):
    """Objective and optimization; see :mod:`MedDPMLib.train.segmentation_objective`."""

    #: Weights of the cross-entropy in the background, where nothing is difficult, and in structures that never have
    #: more than 300 ml; elsewhere it is 1.
    background_weight: float = field(number(0))
    small_weight: float = field(number(0))
    #: At so many of the eight voxels of each block the loss is computed, drawn anew for each example.
    voxels_of_block: int = field(whole(1, 8))


@dataclass(frozen=True)
class Randomization:
    """How examples differ from the scans and label maps they come from: shares of the examples, standard deviations of
    normal distributions and upper limits of uniform ones; after Billot et al. 2023 (SynthSeg, arXiv 2107.09559)."""

    #: Examples before the first that is randomized, and those in which it grows to what the other fields say: a network
    #: that knows nothing yet learns faster from scans as they are.
    ramp_start: int = field(whole(0))
    ramp_length: int = field(whole(1))
    #: Share of the examples whose image is drawn from the labels, with random intensities for each; a case without
    #: images is always drawn.
    drawn: float = field(number(0, 1))
    #: Share of the examples with something around the brain: shells, blobs and noise.
    surroundings: float = field(number(0, 1))
    #: Share of the drawn examples with lesions of up to three nested intensities.
    lesions: float = field(number(0, 1))
    #: Share of the real scans that are inverted.
    inverted: float = field(number(0, 1))
    #: Share of the real examples in which modalities are named, and in these of the ones without an unnamed scan.
    named: float = field(number(0, 1))
    named_alone: float = field(number(0, 1))
    #: At most: bias field (logarithm), slice thickness in mm, noise (share of the intensity range).
    bias: float = field(number(0))
    thickness: float = field(number(1))
    noise: float = field(number(0))
    #: Of the logarithm of gamma, and of that of the intensities' scale.
    gamma: float = field(number(0))
    scale: float = field(number(0))


@dataclass(frozen=True)
class SegmenterRecipe(Staged):
    """Everything that determines the training of a segmenter, except the data."""

    name: str
    kind: str = field(one_of(SEGMENTER))
    #: The name of a scheme that ships with the package, or the table of one of your own.
    scheme: Any = field(SCHEME)
    modalities: tuple[str, ...] = field(list_of(text(), 0, 16))
    tumor_modalities: int = field(whole(1, 16))
    network: dict[str, Any] = field(table())
    #: The texts of the model's card; :func:`segmenter_card` adds the rest.
    card: dict[str, Any] = field(table())
    training: SegmenterTraining
    stages: tuple[Stage, ...]
    augmentation: Augmentation
    randomization: Randomization
    monitor: Monitor
    #: The grid of the dataset; None: that of a scheme that ships with the package.
    dataset_grid: Grid | None = None
    #: Names of cases that are never trained on, whatever share of the others is held out: they are for validation.
    validation: tuple[str, ...] = field(list_of(text(), 0, 1000), default=())

    #: Only generators are distilled.
    distillation = None


def segmenter_card(
    recipe: SegmenterRecipe,
    *,
    training: str = "",
    training_data: Sequence[Mapping[str, Any]] = (),
    cases: Sequence[str] = (),
) -> SegmenterCard:
    """The card of a segmenter trained with ``recipe`` on ``cases``, at the spacing of the last stage."""
    given = card_fields(recipe.card, training, training_data)
    spacing = recipe.stage_grid(recipe.stages[-1]).spacing
    if max(spacing) - min(spacing) > 1e-6:
        raise MedDPMError(f"the voxels of the last stage are {spacing} mm: a segmenter needs the same on all sides")
    try:
        return SegmenterCard(
            name=recipe.name,
            network=recipe.network,
            scheme=recipe.label_scheme,
            modalities=recipe.modalities,
            tumor_modalities=recipe.tumor_modalities,
            spacing=spacing[0],
            training_cases=tuple(cases),
            **given,
        )
    except TypeError as error:
        raise MedDPMError(f"[card] of the recipe {recipe.name} does not fit: {error}") from error
