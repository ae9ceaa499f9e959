"""The result of a run: volumes in place, with the record of how they were generated."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from torch import Tensor

from MedDPMLib.imaging.geometry import Geometry
from MedDPMLib.imaging.resample import resample_image
from MedDPMLib.imaging.volume import Volume
from MedDPMLib.inference.stored import to_stored
from MedDPMLib.masks.brain_area import labeled_area
from MedDPMLib.models.card import Card


class Generated(dict[str, Volume]):
    """The volumes by modality, float32 in the card's intensity range, the ``record`` of how they were made, and the
    ``labels`` of the mask (D, H, W; uint8) at the volumes' voxels."""

    def __init__(self, volumes: dict[str, Volume], record: dict, labels: np.ndarray) -> None:
        super().__init__(volumes)
        self.record, self.labels = record, labels

    def stored(self, modalities: Sequence[str] | None = None) -> dict[str, Volume]:
        """The volumes as they are written, int16 (:mod:`MedDPMLib.inference.stored`), of ``modalities`` alone."""
        line, brain = self.record["intensities"], labeled_area(self.labels)
        return {name: to_stored(self[name], line, brain) for name in (self if modalities is None else modalities)}


def volumes_of(
    card: Card, images: Tensor, geometry: Geometry, wanted: Geometry, modalities: Sequence[str] | None = None
) -> dict[str, Volume]:
    """By modality the ``images`` (C, D, H, W; on any device) of ``geometry``, in the card's range, on ``wanted``.

    Of ``modalities`` alone, None for all.
    """
    low, high = card.intensity_range
    made = {}
    for modality, image in zip(card.modalities, images, strict=True):
        if modalities is None or modality in modalities:
            array = ((image.float().cpu() + 1) * ((high - low) / 2) + low).numpy()
            volume = Volume(array, geometry)
            made[modality] = volume if wanted is geometry else resample_image(volume, wanted, fill=low)
    return made
