"""Which grid and modalities does a dataset of a label scheme have?"""

from __future__ import annotations

from dataclasses import dataclass

from MedDPMLib.errors import MedDPMError
from MedDPMLib.imaging.geometry import Grid
from MedDPMLib.validation import quoted

_FOUR_MODALITIES = ("t1", "t1ce", "t2", "flair")


@dataclass(frozen=True)
class Standard:
    """The ``grid`` to which every case is resampled, and its ``modalities``, in the order of the channels.

    ``skull_stripped``: the background of the images is outside the brain, so that they show where the brain is.
    """

    grid: Grid
    modalities: tuple[str, ...]
    skull_stripped: bool


_BRAIN = Grid(size=(192, 192, 144), spacing=(1.0, 1.0, 1.0), orientation="LPS")

#: By the name of the scheme: grids and modalities of the published networks and of the bundled models.
STANDARDS = {
    "anatomy": Standard(_BRAIN, _FOUR_MODALITIES, skull_stripped=True),
    "brats": Standard(_BRAIN, _FOUR_MODALITIES, skull_stripped=True),
    "whole-head": Standard(
        Grid(size=(128, 128, 128), spacing=(1.5, 1.5, 1.5), orientation="RAS"), ("t1",), skull_stripped=False
    ),
}


def standard(scheme: str) -> Standard:
    """The dataset's standard for ``scheme``; :class:`MedDPMError` if there is none of this name."""
    if scheme not in STANDARDS:
        raise MedDPMError(f"there is no label scheme {quoted(scheme)}: use one of {', '.join(STANDARDS)}")
    return STANDARDS[scheme]
