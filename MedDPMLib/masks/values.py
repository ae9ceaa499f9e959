"""Which values does an array hold, and are they labels?"""

from __future__ import annotations

import numpy as np

from MedDPMLib.errors import MedDPMError

#: No file's numbering goes higher; more is an image or a parcellation of another kind.
_HIGHEST_VALUE = 65_535

#: So far from a whole number a value is one that was scaled, and no mixture of two.
_ROUNDED = 0.05


def whole_numbers(array: np.ndarray) -> np.ndarray:
    """``array`` (k, j, i) as uint8 or uint16, if its values are labels: whole, or as good as whole after a scaling."""
    if array.dtype.kind not in "buif":
        raise MedDPMError(f"it holds {array.dtype} values: a mask holds whole numbers")
    lowest, highest = array.min(), array.max()
    if not np.isfinite([lowest, highest]).all():
        raise MedDPMError("it holds values that are not finite (NaN or infinity): a mask holds whole numbers")
    if lowest < -_ROUNDED or highest > _HIGHEST_VALUE:
        raise MedDPMError(f"it holds values from {lowest:g} to {highest:g}: this is an image, not a mask of labels")
    kind = np.uint8 if highest < 255.5 else np.uint16
    if array.dtype.kind != "f":
        return array.astype(kind)
    whole = np.empty(array.shape, kind)
    for section, rounded in zip(array, whole, strict=True):
        rounded[:] = np.rint(section)
        strays = np.abs(section - rounded) > _ROUNDED
        if strays.any():
            raise MedDPMError(
                f"it holds values that are not whole, such as {section[strays][0]:.6g}: this is an image, or a mask"
                " that was interpolated; resample masks with nearest neighbor"
            )
    return whole


def count_values(array: np.ndarray) -> np.ndarray:
    """How often each value of an unsigned ``array`` occurs; section by section, so that memory stays small."""
    counts = np.zeros(np.iinfo(array.dtype).max + 1, np.int64)
    for section in array:
        found = np.bincount(section.ravel())
        counts[: len(found)] += found
    return counts


def volumes_by_value(array: np.ndarray, voxel_volume: float) -> dict[int, float]:
    """How many mm^3 each value but 0 of an unsigned ``array`` fills."""
    counts = count_values(array)
    return {int(value): float(counts[value] * voxel_volume) for value in np.flatnonzero(counts[1:]) + 1}
