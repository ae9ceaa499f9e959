"""Where is a voxel, and where does the model's grid go?

A :class:`Geometry` is a sampled box in the patient's space; a :class:`Grid` is what a model was
trained on (size, spacing, orientation) before it has been placed anywhere.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from MedDPMLib.errors import MedDPMError
from MedDPMLib.moved import former_names
from MedDPMLib.validation import quoted

#: The RAS axis and its sign for each letter of an orientation code: "L" points to -R.
_AXIS_LETTERS = {"R": (0, 1), "L": (0, -1), "A": (1, 1), "P": (1, -1), "S": (2, 1), "I": (2, -1)}

#: Direction cosines closer to a permutation than this are the permutation: what header rounding does.
_ALIGNED_TOLERANCE = 1e-3

#: Relative difference of two spacings that is header rounding, not another spacing.
_SPACING_TOLERANCE = 1e-3

__getattr__ = former_names(__name__, {"brain_center": "center_of"})


@dataclass(frozen=True, eq=False)
class Geometry:
    """Voxels of ``size`` (i, j, k) placed in RAS millimeters by ``ijk_to_ras`` (4 x 4, float64).

    The matrix may permute, flip, rotate, scale and shear; a singular or non-finite one raises
    :class:`MedDPMError`. ``array.shape == geometry.shape``, which is ``size`` reversed.
    """

    size: tuple[int, int, int]
    ijk_to_ras: np.ndarray

    def __post_init__(self) -> None:
        matrix = np.array(self.ijk_to_ras, dtype=np.float64)
        if matrix.shape != (4, 4) or not np.isfinite(matrix).all():
            raise MedDPMError("the IJK-to-RAS matrix is not a finite 4 x 4 matrix: repair the image's header")
        if not np.allclose(matrix[3], [0, 0, 0, 1]):
            raise MedDPMError("the last row of the IJK-to-RAS matrix is not 0 0 0 1: repair the image's header")
        lengths = np.linalg.norm(matrix[:3, :3], axis=0)
        if (lengths < 1e-6).any() or abs(np.linalg.det(matrix[:3, :3] / np.maximum(lengths, 1e-12))) < 1e-3:
            raise MedDPMError(
                "the IJK-to-RAS matrix is singular (an axis has no length of its own): repair the image's header"
            )
        if len(self.size) != 3 or min(self.size) < 1:
            raise MedDPMError(f"a volume needs three sides of at least one voxel, not {tuple(self.size)}")
        matrix.setflags(write=False)
        object.__setattr__(self, "size", tuple(int(n) for n in self.size))
        object.__setattr__(self, "ijk_to_ras", matrix)

    @property
    def shape(self) -> tuple[int, int, int]:
        """Shape (k, j, i) of an array on this geometry."""
        return self.size[::-1]

    @cached_property
    def spacing(self) -> np.ndarray:
        """Distance between neighboring voxels along i, j and k, in millimeters."""
        return np.linalg.norm(self.ijk_to_ras[:3, :3], axis=0)

    @cached_property
    def ras_to_ijk(self) -> np.ndarray:
        return np.linalg.inv(self.ijk_to_ras)

    @property
    def voxel_volume(self) -> float:
        """Volume of one voxel in cubic millimeters."""
        return float(abs(np.linalg.det(self.ijk_to_ras[:3, :3])))

    @property
    def orientation(self) -> str:
        """Three letters: where i, j and k point, to the nearest anatomical axis, for example "LPS"."""
        axes, signs = self._nearest_axes()
        letters = {axis_sign: letter for letter, axis_sign in _AXIS_LETTERS.items()}
        return "".join(letters[int(a), int(s)] for a, s in zip(axes, signs, strict=True))

    @property
    def is_axis_aligned(self) -> bool:
        """Whether i, j and k run along R, A and S in some order and direction."""
        axes, signs = self._nearest_axes()
        directions = self.ijk_to_ras[:3, :3] / self.spacing
        exact = np.zeros((3, 3))
        exact[axes, range(3)] = signs
        return bool(np.abs(directions - exact).max() < _ALIGNED_TOLERANCE)

    def _nearest_axes(self) -> tuple[np.ndarray, np.ndarray]:
        """For each of i, j, k the RAS axis it is closest to (each taken once) and the sign."""
        directions = self.ijk_to_ras[:3, :3] / self.spacing
        remaining = np.abs(directions)
        axes = np.zeros(3, dtype=int)
        for _ in range(3):
            ras, ijk = np.unravel_index(np.argmax(remaining), (3, 3))
            axes[ijk] = ras
            remaining[ras, :] = -1
            remaining[:, ijk] = -1
        return axes, np.sign(directions[axes, range(3)])

    def to_ras(self, ijk: np.ndarray) -> np.ndarray:
        """RAS positions (..., 3) of voxel indices (..., 3) in i, j, k order."""
        return np.asarray(ijk) @ self.ijk_to_ras[:3, :3].T + self.ijk_to_ras[:3, 3]

    def to_ijk(self, ras: np.ndarray) -> np.ndarray:
        """Voxel indices (..., 3), fractional, in i, j, k order of RAS positions (..., 3)."""
        return np.asarray(ras) @ self.ras_to_ijk[:3, :3].T + self.ras_to_ijk[:3, 3]

    @property
    def center(self) -> np.ndarray:
        """RAS position of the middle of the box."""
        return self.to_ras((np.array(self.size) - 1) / 2)

    def cut(self, low: np.ndarray, high: np.ndarray) -> Geometry:
        """The part from voxel index ``low`` (i, j, k) up to and without ``high``; both may lie outside."""
        matrix = self.ijk_to_ras.copy()
        matrix[:3, 3] = self.to_ras(low)
        return Geometry(tuple(np.asarray(high) - low), matrix)

    def is_close(self, other: Geometry, tolerance: float = 1e-3) -> bool:
        """Whether every voxel of both lies at the same place, within ``tolerance`` voxels."""
        if self.size != other.size:
            return False
        corners = np.array(np.meshgrid(*[[0, n - 1] for n in self.size], indexing="ij")).reshape(3, -1).T
        return bool(np.abs(other.to_ijk(self.to_ras(corners)) - corners).max() < tolerance)


@dataclass(frozen=True)
class Grid:
    """The box a model was trained on: ``size`` (i, j, k), ``spacing`` in mm, ``orientation`` such as "LPS"."""

    size: tuple[int, int, int]
    spacing: tuple[float, float, float]
    orientation: str

    def __post_init__(self) -> None:
        if sorted(_AXIS_LETTERS.get(letter, (3, 0))[0] for letter in self.orientation) != [0, 1, 2]:
            raise MedDPMError(
                f"{quoted(self.orientation)} is not an orientation: three letters are needed, one each of R/L, A/P"
                " and S/I"
            )
        spacing_is_sound = len(self.spacing) == 3 and all(0 < length < np.inf for length in self.spacing)
        if len(self.size) != 3 or min(self.size) < 1 or not spacing_is_sound:
            raise MedDPMError(
                f"a grid needs three sizes and three spacings above zero, not {self.size} and {self.spacing}"
            )

    @property
    def shape(self) -> tuple[int, int, int]:
        """Shape (D, H, W) = (k, j, i) of an array on this grid."""
        i, j, k = self.size
        return k, j, i

    @property
    def directions(self) -> np.ndarray:
        """3 x 3, columns i, j, k: the unit vector in RAS along which each index grows."""
        columns = np.zeros((3, 3))
        for ijk, letter in enumerate(self.orientation):
            axis, sign = _AXIS_LETTERS[letter]
            columns[axis, ijk] = sign
        return columns

    def centered_on(self, ras: np.ndarray) -> Geometry:
        """The geometry of this grid with its middle at ``ras``."""
        matrix = np.eye(4)
        matrix[:3, :3] = self.directions * np.array(self.spacing)
        matrix[:3, 3] = np.asarray(ras) - matrix[:3, :3] @ ((np.array(self.size) - 1) / 2)
        return Geometry(self.size, matrix)

    def holding(self, center: np.ndarray, low: np.ndarray, high: np.ndarray, farthest: float) -> np.ndarray:
        """``center`` (RAS) moved just so far that this grid, centered there, holds the box ``low`` to ``high`` (RAS).

        Along an axis where the box is longer than the grid, or ``farthest`` mm would not do, nothing is moved.
        """
        half = np.abs(self.directions) @ (np.array(self.size) * np.array(self.spacing)) / 2
        lowest, highest = np.asarray(high) - half, np.asarray(low) + half
        moved = np.clip(center, lowest, np.maximum(lowest, highest))
        return np.where((lowest <= highest) & (np.abs(moved - center) <= farthest), moved, center)

    def place(self, mask: Geometry, middle: np.ndarray) -> Geometry:
        """Where this grid goes for a mask on geometry ``mask`` whose labels are centered on ``middle`` (RAS).

        The grid lies along the patient's axes and is never stretched. A mask with the grid's own size and
        spacing keeps its place; one with the grid's spacing keeps its lattice (the shift is a whole number
        of voxels), so that no label is interpolated; for any other the middle of the grid is the labels'.
        """
        placed = self.centered_on(middle)
        if not mask.is_axis_aligned:
            return placed
        axes = [int(np.argmax(np.abs(mask.ijk_to_ras[:3, :3].T @ direction))) for direction in self.directions.T]
        if not np.allclose(mask.spacing[axes], self.spacing, rtol=_SPACING_TOLERANCE):
            return placed
        if tuple(np.array(mask.size)[axes]) == self.size:
            return self.centered_on(mask.center)
        first = mask.to_ijk(placed.to_ras(np.zeros(3)))
        shift = mask.to_ras(np.round(first)) - mask.to_ras(first)
        return self.centered_on(np.asarray(middle) + shift)


def center_of(foreground: np.ndarray, geometry: Geometry) -> np.ndarray:
    """RAS position of the middle of ``foreground`` (k, j, i), a boolean array that is not empty.

    The middle between the 0.1 and 99.9 percentiles along each RAS axis: the bounding box's middle, which a
    few stray voxels do not move.
    """
    filled = np.flatnonzero(foreground)
    # A million voxels spread over a larger one give the same percentiles to a fraction of a voxel.
    kji = np.unravel_index(filled[:: 1 + len(filled) // 1_000_000], foreground.shape)
    ras = geometry.to_ras(np.stack(kji[::-1], axis=1))
    return np.percentile(ras, [0.1, 99.9], axis=0).mean(axis=0)


def extent(foreground: np.ndarray, geometry: Geometry) -> tuple[np.ndarray, np.ndarray]:
    """The corners, in RAS, of the smallest box along R, A and S around the voxels of ``foreground``."""
    low, high = np.full(3, np.inf), np.full(3, -np.inf)
    for k, section in enumerate(foreground):
        j, i = np.nonzero(section)
        if len(j):
            ras = geometry.to_ras(np.stack([i, j, np.full_like(i, k)], axis=1))
            low, high = np.minimum(low, ras.min(axis=0)), np.maximum(high, ras.max(axis=0))
    half_voxel = np.abs(geometry.ijk_to_ras[:3, :3]).sum(axis=1) / 2
    return low - half_voxel, high + half_voxel
