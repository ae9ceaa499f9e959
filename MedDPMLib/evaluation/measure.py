"""What is measured of one case? Everything that can be said of it alone, so that a volume is read once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np

from MedDPMLib.evaluation.cases import LoadedCase
from MedDPMLib.evaluation.features import Features
from MedDPMLib.masks.schemes import LabelScheme
from MedDPMLib.metrics.label_moments import LEAST_VOXELS
from MedDPMLib.metrics.modalities import edge_agreement, mutual_information
from MedDPMLib.metrics.spectrum import band_power
from MedDPMLib.metrics.vessels import Topology, centerline_dice, topology, vesselness, vessels

#: Quantiles by which a distribution of intensities is kept.
QUANTILES = np.linspace(0, 1, 201)

#: Edges of the bands of a spectrum, in cycles a voxel.
SPECTRUM = tuple(np.round(np.linspace(0.02, 0.5, 17), 4).tolist())

#: Voxels of the box that every brain is stretched to, to find the nearest of others: an affine alignment.
ALIGNED = (36, 48, 40)

#: The modality in which vessels are bright.
VESSEL_MODALITY = "t1ce"


@dataclass(frozen=True, eq=False)
class Measured:
    """Of one case: by modality ``features`` (F,), ``spectrum`` (bands,) and the histogram's quantiles by label;
    ``agreement`` of pairs of modalities (mutual information, edges); ``aligned`` (C, 36, 48, 40) to compare brains, and
    three ``slices`` of the first modality for pictures."""

    name: str
    group: str
    features: dict[str, np.ndarray]
    quantiles: dict[tuple[str, str], np.ndarray]
    spectrum: dict[str, np.ndarray]
    agreement: dict[tuple[str, str], tuple[float, float]]
    aligned: np.ndarray
    slices: tuple[np.ndarray, ...]
    vesselness: np.ndarray | None = None
    brain_liters: float = float("nan")


def measure(
    case: LoadedCase, modalities: Sequence[str], features: Features, scheme: LabelScheme | None, *,
    spacing: Sequence[float], find_vessels: bool = False,
) -> Measured:  # fmt: skip
    """Everything that is kept of ``case``; ``scheme`` is None without masks."""
    inside = case.inside
    images = dict(zip(modalities, case.images, strict=True))
    quantiles = {}
    for modality, image in images.items():
        for name, where in _regions(case, scheme):
            quantiles[modality, name] = np.quantile(image[where], QUANTILES)
    return Measured(
        name=case.name,
        group=case.group,
        features={modality: features.describe(image, inside) for modality, image in images.items()},
        quantiles=quantiles,
        spectrum={modality: band_power(image, inside, SPECTRUM) for modality, image in images.items()},
        agreement={
            (a, b): (mutual_information(images[a], images[b], inside), edge_agreement(images[a], images[b], inside))
            for a, b in combinations(modalities, 2)
        },
        aligned=_aligned(case.images, inside),
        slices=_slices(case.images[0], inside),
        vesselness=vesselness(images[VESSEL_MODALITY], inside).astype(np.float16) if find_vessels else None,
        brain_liters=float(inside.sum() * np.prod(spacing) / 1e6),
    )


def _regions(case: LoadedCase, scheme: LabelScheme | None):
    """The brain, and with masks each label of at least :data:`LEAST_VOXELS` voxels: name and voxels."""
    yield "brain", case.inside
    if scheme is not None:
        for label in scheme.labels:
            where = case.labels == label.value
            if np.count_nonzero(where) >= LEAST_VOXELS:
                yield label.name, where


def _aligned(images: np.ndarray, inside: np.ndarray) -> np.ndarray:
    """The brain's box stretched to :data:`ALIGNED`, averaged where that is coarser."""
    import torch

    from MedDPMLib.metrics.similarity import bounding_box

    part = torch.from_numpy(np.ascontiguousarray(images[(slice(None), *bounding_box(inside))]))[None]
    return torch.nn.functional.interpolate(part, ALIGNED, mode="area")[0].numpy()


def _slices(image: np.ndarray, inside: np.ndarray) -> tuple[np.ndarray, ...]:
    """Axial, coronal and sagittal slice through the middle of the brain, (rows, columns) uint8."""
    middle = [int(np.median(axis)) for axis in np.nonzero(inside)]
    planes = (image[middle[0]], image[::-1, middle[1]], image[::-1, :, middle[2]])
    return tuple(np.round((np.clip(plane, -1, 1) + 1) * 127.5).astype(np.uint8) for plane in planes)


def vessel_threshold(real: Sequence[Measured]) -> float:
    """The vesselness that two percent of the voxels of real brains that look like a tube at all exceed."""
    found = [one.vesselness for one in real if one.vesselness is not None]
    values = np.concatenate([array[array > 0][::7] for array in found]).astype(np.float32)
    return float(np.quantile(values, 0.98)) if len(values) else np.inf


def vessel_figures(one: Measured, threshold: float, other: Measured | None) -> tuple[Topology, float]:
    """Topology of a case's vessels, and the clDice with those of ``other`` (NaN without)."""
    own = vessels(one.vesselness, threshold)
    if other is None:
        return topology(own), float("nan")
    return topology(own), centerline_dice(own, vessels(other.vesselness, threshold))
