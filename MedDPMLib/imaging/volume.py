"""What is a volume? An array and the geometry that places it travel together."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from MedDPMLib.errors import MedDPMError
from MedDPMLib.imaging.geometry import Geometry


@dataclass(frozen=True, eq=False)
class Volume:
    """An ``array`` (k, j, i) on a ``geometry``; ``notes`` say what the reader should know about it."""

    array: np.ndarray
    geometry: Geometry
    notes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.array.shape != self.geometry.shape:
            raise MedDPMError(
                f"an array of shape {self.array.shape} does not fit a geometry of shape {self.geometry.shape}"
            )
