"""How well do two label maps agree?"""

from __future__ import annotations

import math
from collections.abc import Iterable

import numpy as np


def dice(first: np.ndarray, second: np.ndarray) -> float:
    """The Dice coefficient of two boolean arrays of one shape: 2 |A and B| / (|A| + |B|); NaN if both are empty."""
    sizes = np.count_nonzero(first) + np.count_nonzero(second)
    return 2 * np.count_nonzero(first & second) / sizes if sizes else math.nan


def dice_by_label(
    found: np.ndarray, truth: np.ndarray, values: Iterable[int], counted: np.ndarray | None = None
) -> dict[int, float]:
    """The Dice coefficient of each of ``values`` in two label maps of one shape, NaN where neither has it; voxels
    outside of ``counted`` (boolean) do not count."""
    if counted is not None:
        found, truth = found[counted], truth[counted]
    return {value: dice(found == value, truth == value) for value in values}
