"""How does a volume lose everything that tells where it comes from, but what it shows?

The steps are the same for all cases and look at nothing but the voxels: one orientation and spacing, the brain in the
middle, the background exactly 0 outside a brain area found by one rule, intensities between the same percentiles on the
same levels, with histograms that tell nothing of the levels before. Files that hold the same image in other numbers
(integers with a slope, floats in [-1, 1], another orientation or origin) leave as the same bytes.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from MedDPMLib.errors import MedDPMError
from MedDPMLib.imaging.geometry import Geometry, Grid
from MedDPMLib.imaging.io import read_volume
from MedDPMLib.imaging.resample import resample_image
from MedDPMLib.imaging.volume import Volume

ORIENTATION = "LPS"

#: Percentiles of the brain that become the lowest and the highest level above the background.
_PERCENTILES = (0.5, 99.5)
#: A voxel belongs to the brain if it differs from the background by more than this part of the bright voxels' distance.
_BRAIN_THRESHOLD = 0.05
#: Ripples of a histogram that are this part of all levels apart, or closer, are smoothed away.
_RIPPLE = 1 / 64
#: Voxels around the largest brain.
_RIM = 4
#: Integers of more steps than these are taken for floats.
_MOST_STEPS = 1 << 17
#: An image with steps wider than this part of its range cannot be made like the others without spoiling them.
_WIDEST_STEP = 1 / 48
#: Spacings that differ by less are the same: header rounding.
_SAME_SPACING = 1e-3


@dataclass(frozen=True, eq=False)
class Canonical:
    """A volume without its metadata: ``array`` (k, j, i) runs L, P, S with ``spacing`` (i, j, k) in mm; ``directions``
    is what is left of an oblique orientation. ``step`` is the distance of two gray levels as part of the range between
    the percentiles, 0 where values are continuous. ``brain`` is the brain area."""

    array: np.ndarray
    brain: np.ndarray
    spacing: np.ndarray
    directions: np.ndarray
    step: float


@dataclass(frozen=True)
class Form:
    """What all prepared cases have in common."""

    grid: Grid
    levels: int
    smoothing: float


def canonical(path: Path) -> Canonical:
    """Reads the volume in ``path``; :class:`MedDPMError` if it shows no brain before a background."""
    volume = read_volume(path)
    array, spacing, directions = _along_axes(volume)
    array = on_integers(array)
    brain = _brain(array, str(path))
    low, high = _range(array[brain], str(path))
    step = 1 / (high - low) if array.dtype.kind == "i" else 0.0
    if step > _WIDEST_STEP:
        raise MedDPMError(
            f"{path} has only {round(1 / step)} gray levels between its dark and its bright voxels: that would show"
            " among the others, leave it out"
        )
    return Canonical(array, brain, spacing, directions, step)


def common_form(
    cases: Mapping[str, Mapping[str, Path]], *, levels: int, smoothing: float, spacing: float | None, advance=str
) -> Form:
    """The :class:`Form` for ``cases`` (case -> modality -> file): a grid that holds the largest brain, at the coarsest
    spacing of any case (unless ``spacing`` says another), so that none is made finer than it was."""
    extents, coarsest = np.zeros(3), 0.0
    for name, files in cases.items():
        modalities = _read_case(name, files)
        brain = np.logical_or.reduce([one.brain for one in modalities.values()])
        first = next(iter(modalities.values()))
        extents = np.maximum(extents, np.abs(first.directions) @ (_extent(brain) * first.spacing))
        coarsest = max(coarsest, float(first.spacing.max()))
        advance(name)
    side = spacing or float(f"{coarsest:.4g}")
    size = np.ceil(extents / side).astype(int) + 2 * _RIM
    return Form(Grid(tuple(int(n + n % 2) for n in size), (side,) * 3, ORIENTATION), levels, smoothing)


def prepare(name: str, files: Mapping[str, Path], form: Form) -> dict[str, np.ndarray]:
    """Modality -> array (k, j, i), uint8, on the grid of ``form``: 0 outside the brain, 1 to ``levels`` - 1 in it."""
    modalities = _read_case(name, files)
    brain = np.logical_or.reduce([one.brain for one in modalities.values()])
    return {
        modality: _leveled(*_placed(one, brain, form), one.step, form, f"{name}, {modality}")
        for modality, one in modalities.items()
    }


def on_integers(array: np.ndarray) -> np.ndarray:
    """``array`` as int32 counted from 0, if its values lie at equal steps (whatever slope and offset the file gave
    them), else as float32."""
    values = np.unique(array).astype(np.float64)
    if len(values) > 1:
        gaps = np.diff(values)
        step = gaps[gaps < 1.5 * gaps.min()].mean()
        span = values[-1] - values[0]
        steps = np.rint(span / step)
        if steps <= _MOST_STEPS:
            positions = (values - values[0]) * (steps / span)
            if np.abs(positions - np.rint(positions)).max() < 0.05:
                counted = (array.astype(np.float64) - values[0]) * (steps / span)
                return np.rint(counted).astype(np.int32)
    return array.astype(np.float32)


def _read_case(name: str, files: Mapping[str, Path]) -> dict[str, Canonical]:
    found = {modality: canonical(path) for modality, path in files.items()}
    first = next(iter(found))
    for modality, one in found.items():
        same = one.array.shape == found[first].array.shape and np.allclose(
            one.spacing, found[first].spacing, rtol=_SAME_SPACING
        )
        if not same:
            raise MedDPMError(
                f"{files[modality]} and {files[first]} differ in size or spacing: the modalities of one case ({name})"
                " have to lie on one grid, resample them first"
            )
    return found


def _along_axes(volume: Volume) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The array turned and flipped, without interpolation, so that i, j, k run to L, P, S as nearly as they can."""
    geometry = volume.geometry
    order = {"L": (0, 1), "R": (0, -1), "P": (1, 1), "A": (1, -1), "S": (2, 1), "I": (2, -1)}
    axes, signs = zip(*(order[letter] for letter in geometry.orientation), strict=True)
    source = [axes.index(axis) for axis in range(3)]  # for each of i, j, k of the result, the axis it comes from
    array = volume.array.transpose([2 - source[2 - axis] for axis in range(3)])
    array = np.flip(array, [2 - target for target in range(3) if signs[source[target]] < 0])
    columns = geometry.ijk_to_ras[:3, :3][:, source] * np.array([signs[s] for s in source])
    spacing = np.linalg.norm(columns, axis=0)
    directions = np.diag([-1.0, -1.0, 1.0]) @ (columns / spacing)
    if np.abs(directions - np.eye(3)).max() < 1e-3:
        directions = np.eye(3)
    return np.ascontiguousarray(array), np.round(spacing, 4), np.round(directions, 4)


def _brain(array: np.ndarray, name: str) -> np.ndarray:
    """The largest piece that differs from the background, without holes and with a smooth border."""
    from scipy import ndimage

    signal = np.abs(array - np.median(_faces(array)).astype(array.dtype))
    bright = np.percentile(signal, 99.9)  # of the whole volume: noise in the background does not change it
    if not bright:
        raise MedDPMError(f"{name} is empty: all its values are the same")
    found = _largest(signal > _BRAIN_THRESHOLD * bright)
    ball = ndimage.generate_binary_structure(3, 1)
    found = np.pad(found, 3)
    found = ndimage.binary_closing(found, ball, 2)
    found = ndimage.binary_fill_holes(found)
    found = _largest(ndimage.binary_opening(found, ball, 2))[3:-3, 3:-3, 3:-3]
    if not found.mean() > 0.001 or _faces(found).mean() > 0.5:
        raise MedDPMError(f"{name} shows no brain or head before an empty background: it cannot be shown with others")
    return found


def _faces(array: np.ndarray) -> np.ndarray:
    """The values on the six faces."""
    return np.concatenate([array.take(end, axis).ravel() for axis in range(3) for end in (0, -1)])


def _largest(found: np.ndarray) -> np.ndarray:
    from scipy import ndimage

    pieces, _ = ndimage.label(found)
    sizes = np.bincount(pieces.ravel())
    sizes[0] = 0
    return pieces == sizes.argmax() if sizes.any() else found


def _range(values: np.ndarray, name: str) -> tuple[float, float]:
    low, high = (float(v) for v in np.percentile(values, _PERCENTILES, method="nearest"))
    if not high > low:
        raise MedDPMError(f"{name} is constant inside the brain: leave it out")
    return low, high


def _box(brain: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """First and one past the last voxel (i, j, k) of ``brain``."""
    ends = [np.flatnonzero(brain.any(axis=tuple(a for a in range(3) if a != axis)))[[0, -1]] for axis in (2, 1, 0)]
    return np.array([e[0] for e in ends]), np.array([e[1] + 1 for e in ends])


def _extent(brain: np.ndarray) -> np.ndarray:
    low, high = _box(brain)
    return high - low


def _placed(one: Canonical, brain: np.ndarray, form: Form) -> tuple[np.ndarray, np.ndarray]:
    """Image and brain area on the grid of ``form``, the middle of the brain in its middle."""
    grid, (low, high) = form.grid, _box(brain)
    upright = np.array_equal(one.directions, np.eye(3))
    if upright and np.allclose(one.spacing, grid.spacing, rtol=_SAME_SPACING):
        first = (low + high) // 2 - np.array(grid.size) // 2
        return _cut(one.array, first[::-1], grid.shape), _cut(brain, first[::-1], grid.shape)
    matrix = np.eye(4)
    matrix[:3, :3] = one.directions * one.spacing
    source = Geometry(brain.shape[::-1], matrix)
    middle = source.to_ras((low + high - 1) / 2)
    target = np.diag([*grid.spacing, 1.0])
    target[:3, 3] = middle - (np.array(grid.size) - 1) / 2 * np.array(grid.spacing)
    place = Geometry(grid.size, target)
    outside = float(np.median(one.array[~brain])) if not brain.all() else 0.0
    image = resample_image(Volume(one.array, source), place, fill=outside).array
    return image, resample_image(Volume(brain.astype(np.float32), source), place, fill=0.0).array > 0.5


def _cut(array: np.ndarray, first: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """The box of ``shape`` from index ``first`` on; what lies beyond ``array`` is 0."""
    result = np.zeros(shape, array.dtype)
    take = [slice(max(0, f), max(0, min(n, f + s))) for f, n, s in zip(first, array.shape, shape, strict=True)]
    put = [slice(t.start - f, t.stop - f) for t, f in zip(take, first, strict=True)]
    result[tuple(put)] = array[tuple(take)]
    return result


def _leveled(image: np.ndarray, brain: np.ndarray, step: float, form: Form, name: str) -> np.ndarray:
    """Gray levels whose histogram is the image's own, smoothed.

    Images that were stored in few levels, or rescaled between whole numbers, have gaps and ripples in their histogram,
    whatever they show. So values within a ``step`` of the image are put in random order (drawn from the image itself:
    the same image gets the same), and ranks become levels so that their counts follow the smoothed histogram.
    """
    from scipy import ndimage

    if form.smoothing:
        image = _smoothed(image, brain, form)
    if image.dtype.kind == "f":  # resampled, smoothed or continuous from the start
        step = 0.0
    low, high = _range(image[brain], name)
    share = (image[brain].astype(np.float64) - low) / (high - low)
    if step:
        seed = np.frombuffer(hashlib.sha256(share.astype(np.float32)).digest(), np.uint32)
        share += step * (np.random.default_rng(seed).random(share.shape) - 0.5)
    levels = np.floor(np.clip(share, 0, 1) * (form.levels - 2) + 0.5).astype(np.intp)
    counts = np.bincount(levels, minlength=form.levels - 1).astype(np.float64)
    smooth = ndimage.gaussian_filter1d(counts, _RIPPLE * form.levels, mode="nearest")
    limits = np.cumsum(smooth) * (len(share) / smooth.sum())
    ranks = np.empty(len(share))
    ranks[np.argsort(share, kind="stable")] = np.arange(len(share)) + 0.5
    result = np.zeros(image.shape, np.uint8)
    result[brain] = 1 + np.minimum(np.searchsorted(limits, ranks), form.levels - 2)
    return result


def _smoothed(image: np.ndarray, brain: np.ndarray, form: Form) -> np.ndarray:
    """A Gaussian within the brain alone: the background does not bleed into it."""
    from scipy import ndimage

    sigma = form.smoothing / form.grid.spacing[0] / np.sqrt(8 * np.log(2))
    weight = ndimage.gaussian_filter(brain.astype(np.float32), sigma, truncate=3)
    blurred = ndimage.gaussian_filter(np.where(brain, image, 0).astype(np.float32), sigma, truncate=3)
    return blurred / np.maximum(weight, 1e-6)


def smoothness(prepared: np.ndarray, spacing: float) -> float:
    """The full width at half maximum (mm) of the noise in a prepared case, from the correlation of neighbors.

    Forman et al., Magn. Reson. Med. 33 (1995) 636-647, within the brain and of what a local mean leaves.
    """
    from scipy import ndimage

    values = prepared.astype(np.float32)
    brain = ndimage.binary_erosion(prepared > 0, iterations=4)
    rest = values - ndimage.uniform_filter(values, 5)
    widths = []
    for axis in range(3):
        both = brain & np.roll(brain, 1, axis)
        variance = float((rest[both] ** 2).mean()) if both.any() else 0.0
        change = float(((rest - np.roll(rest, 1, axis))[both] ** 2).mean()) if both.any() else 0.0
        inside = 1 - change / (2 * variance) if variance else 0.0
        widths.append(spacing * np.sqrt(-2 * np.log(2) / np.log(min(max(inside, 1e-6), 1 - 1e-6))))
    return float(np.mean(widths))
