"""The result of a run: volumes in place, with the record of how they were generated."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from MedDPMLib.imaging.geometry import Geometry
from MedDPMLib.imaging.resample import resample_image
from MedDPMLib.imaging.volume import Volume
from MedDPMLib.models.card import Card


class Generated(dict[str, Volume]):
    """The volumes by modality, float32 in the card's intensity range, and the ``record`` of how they were made."""

    def __init__(self, volumes: dict[str, Volume], record: dict) -> None:
        super().__init__(volumes)
        self.record = record


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
