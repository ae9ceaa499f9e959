"""Which patient's look does a brain get? One of a training brain's by the seed, the typical one, or that of a scan."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from MedDPMLib.errors import MedDPMError
from MedDPMLib.imaging.appearance import FEATURES, appearance
from MedDPMLib.imaging.normalize import normalise
from MedDPMLib.imaging.resample import resample_image
from MedDPMLib.imaging.volume import Volume
from MedDPMLib.masks.fit import fit
from MedDPMLib.masks.mask import Mask
from MedDPMLib.models.card import Card
from MedDPMLib.networks.cascade import Cascade

#: The appearances that need no scan.
RANDOM, TYPICAL = "random", "typical"

#: A random appearance is that of a training brain with so much of the brains' deviation on top, so that none of them
#: is met exactly.
_JITTER = 0.15


@dataclass(frozen=True, eq=False)
class Appearance:
    """``values`` (A,), standardized, and in words what they are."""

    values: Tensor
    name: str


def random_appearance(cascade: Cascade, seed: int) -> Appearance:
    """That of one of the training brains, varied a little; the same for the same ``seed``."""
    # Another stream than the noise of the images, which the same seed starts.
    random = np.random.default_rng((seed, 1))
    table = cascade.appearances.cpu()
    values = table[int(random.integers(len(table)))]
    jitter = torch.from_numpy(random.standard_normal(len(values)).astype(np.float32))
    return Appearance((values + _JITTER * jitter).clamp(-3, 3), RANDOM)


def typical_appearance(cascade: Cascade) -> Appearance:
    """The median of the training brains'."""
    return Appearance(cascade.appearances.cpu().median(dim=0).values, TYPICAL)


def appearance_of(cascade: Cascade, card: Card, scans: Mapping[str, Volume], mask: Mask) -> Appearance:
    """How ``scans`` look, skull-stripped images by modality of the brain whose structures are ``mask``.

    ``mask`` is of the scheme of the card's condition. The scans may lie on any grid that overlaps the mask's. Where a
    modality has no scan it takes the look of the training brain that is most like the others. Raises
    :class:`MedDPMError` for a modality that the model does not draw, for none at all, and for a scan that is constant.
    """
    strange = [modality for modality in scans if modality not in card.modalities]
    if strange or not scans:
        known = ", ".join(card.modalities)
        raise MedDPMError(f"an appearance is taken from scans of {known}, not of {', '.join(strange) or 'nothing'}")
    fitted = fit(mask, card.grid)
    inside = fitted.labels > 0
    measured = torch.full((len(card.modalities), len(FEATURES)), torch.nan)
    for index, modality in enumerate(card.modalities):
        if modality not in scans:
            continue
        scan = scans[modality]
        placed = resample_image(scan, fitted.geometry, fill=float(scan.array.min()))
        image = normalise(placed, inside).array
        measured[index] = torch.from_numpy(appearance(image, fitted.labels, card.condition_scheme))
    values = cascade.standardize(measured.flatten())
    known = ~values.isnan()
    distances = (cascade.appearances[:, known] - values[known]).square().sum(dim=1)
    values = torch.where(known, values, cascade.appearances[int(distances.argmin())])
    return Appearance(values, f"like {', '.join(scans)} of {mask.name}")
