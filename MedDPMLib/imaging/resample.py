"""How is a volume brought onto another grid? Images linearly, labels by the share of each voxel that they fill."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from MedDPMLib.imaging.geometry import Geometry
from MedDPMLib.imaging.volume import Volume

#: Shares of a class that count as none.
_LEAST_SHARE = 0.01

#: Points along one axis of a voxel that are averaged at most.
_MOST_POINTS = 8


def resample_image(volume: Volume, geometry: Geometry, *, fill: float) -> Volume:
    """``volume`` linearly interpolated at the voxels of ``geometry``, in float32; ``fill`` outside.

    Where ``geometry`` is coarser, each of its voxels is averaged over, so that nothing aliases.
    """
    if volume.geometry.is_close(geometry):
        return Volume(volume.array.astype(np.float32), geometry)
    block = _block(volume.geometry, geometry)
    array = np.pad(volume.array, [(0, -n % b) for n, b in zip(volume.array.shape, block[::-1], strict=True)], "edge")
    return Volume(_sample(*_averaged(array, volume.geometry, block), geometry, fill), geometry)


def resample_labels(volume: Volume, geometry: Geometry, priority: Sequence[int]) -> Volume:
    """``volume`` of labels at the voxels of ``geometry``, label by label: the one with the largest share wins.

    Each label's indicator is interpolated linearly (averaged over each voxel where ``geometry`` is
    coarser); the background, 0, takes the rest. Of equal shares the label named first in ``priority`` wins.
    Values that ``priority`` does not name count as background.
    """
    source = volume.geometry
    shift = _integer_shift(source, geometry)
    if shift is not None:
        copied = _shifted(volume.array, shift, geometry)
        copied[~np.isin(copied, list(priority))] = 0
        return Volume(copied, geometry)
    block = _block(source, geometry)
    labels = np.zeros(geometry.shape, volume.array.dtype)
    best = np.zeros(geometry.shape, np.float32)
    covered = np.zeros(geometry.shape, np.float32)
    for value in priority:
        reached = _reached(volume.array == value, source, geometry, block)
        if reached is None:
            continue
        where, share = reached
        covered[where] += share
        # A later label wins only if its share is larger by more than interpolation's rounding.
        wins = share > best[where] + 1e-5
        labels[where][wins] = value
        best[where][wins] = share[wins]
    labels[1.0 - covered > best + 1e-5] = 0
    return Volume(labels, geometry)


def resample_classes(
    shares: np.ndarray, values: Sequence[int], source: Geometry, target: Geometry
) -> tuple[np.ndarray, np.ndarray]:
    """The class of largest share at the voxels of ``target``, and that share: labels uint8 and float32, both (k, j, i).

    ``shares`` (K, k, j, i) on ``source``, such as probabilities that add up to 1, are interpolated linearly (averaged
    where ``target`` is coarser) one by one; ``values`` are the labels of the classes. The first class is the
    background, and takes the rest.
    """
    shift = _integer_shift(source, target)
    if shift is not None:
        chosen = np.asarray(values, np.uint8)[shares.argmax(axis=0)]
        return _shifted(chosen, shift, target), _shifted(shares.max(axis=0).astype(np.float32), shift, target)
    block = _block(source, target)
    labels = np.full(target.shape, values[0], np.uint8)
    best, covered = np.zeros((2, *target.shape), np.float32)
    for value, share in zip(values[1:], shares[1:], strict=True):
        reached = _reached(np.where(share > _LEAST_SHARE, share, 0), source, target, block)
        if reached is None:
            continue
        where, sampled = reached
        covered[where] += sampled
        wins = sampled > best[where]
        labels[where][wins] = value
        best[where][wins] = sampled[wins]
    outside = 1.0 - covered >= best
    labels[outside] = values[0]
    best[outside] = (1.0 - covered)[outside]
    return labels, best


def _reached(
    array: np.ndarray, source: Geometry, target: Geometry, block: np.ndarray
) -> tuple[tuple[slice, ...], np.ndarray] | None:
    """The slices (k, j, i) of ``target`` that the non-zero part of ``array`` (on ``source``) reaches, and its values
    there, interpolated, averaged over blocks of ``block`` (i, j, k) beforehand; None if there are none."""
    if not array.any():
        return None
    cut, cut_geometry = _averaged(*_crop(array, source, block), block)
    where, box = _box_around(cut_geometry, target)
    return None if box is None else (where, _sample(cut, cut_geometry, box, 0.0))


def _integer_shift(source: Geometry, target: Geometry) -> np.ndarray | None:
    """The permutation-and-flip matrix (4 x 4, target index to source index) if the lattices coincide."""
    matrix = source.ras_to_ijk @ target.ijk_to_ras
    rounded = np.round(matrix)
    corner = np.array([*(np.array(target.size) - 1), 1])
    drift = np.abs(matrix - rounded) @ corner
    is_permutation = (np.abs(rounded[:3, :3]).sum(0) == 1).all() and (np.abs(rounded[:3, :3]).sum(1) == 1).all()
    return rounded.astype(int) if is_permutation and drift.max() < 0.05 else None


def _shifted(array: np.ndarray, shift: np.ndarray, target: Geometry) -> np.ndarray:
    """``array`` read at the voxels of ``target`` through the integer map ``shift``; 0 outside."""
    source_axis = np.abs(shift[:3, :3]).argmax(axis=0)  # for each target axis i, j, k the source axis it runs along
    result = np.zeros(target.shape, array.dtype)
    take, put = [slice(None)] * 3, [slice(None)] * 3
    for axis in range(3):
        along = source_axis[axis]
        index = shift[along, axis] * np.arange(target.size[axis]) + shift[along, 3]
        inside = np.flatnonzero((index >= 0) & (index < array.shape[2 - along]))
        if inside.size == 0:
            return result
        put[2 - axis] = slice(inside[0], inside[-1] + 1)
        take[2 - along] = index[inside]
    picked = array[np.ix_(*take)]
    order = [2 - source_axis[2 - array_axis] for array_axis in range(3)]
    result[tuple(put)] = picked.transpose(order)
    return result


def _block(source: Geometry, target: Geometry) -> np.ndarray:
    """How many source voxels (i, j, k) may be averaged into one beforehand: at most half a target voxel's side."""
    block = target.spacing.min() / source.spacing / 2
    return np.clip(block.astype(int), 1, source.size)


def _averaged(array: np.ndarray, geometry: Geometry, block: np.ndarray) -> tuple[np.ndarray, Geometry]:
    """The means, float32, over blocks of ``block`` (i, j, k) voxels, and where they lie; blocks divide the sides."""
    k, j, i = (n // b for n, b in zip(array.shape, block[::-1], strict=True))
    means = array.reshape(k, block[2], j, block[1], i, block[0]).mean(axis=(1, 3, 5), dtype=np.float32)
    matrix = geometry.ijk_to_ras @ np.diag([*block, 1])
    matrix[:3, 3] = geometry.to_ras((block - 1) / 2)
    return means, Geometry(means.shape[::-1], matrix)


def _crop(array: np.ndarray, geometry: Geometry, block: np.ndarray) -> tuple[np.ndarray, Geometry]:
    """``array`` cut to its non-zero part with a block of zeros or more around it, and where that lies.

    The cut begins and ends at multiples of ``block`` (i, j, k), so that the blocks of all labels are the same.
    """
    take, pad, low = [], [], np.zeros(3, int)
    for axis, step in enumerate(block[::-1]):
        filled = np.flatnonzero(array.any(axis=tuple(a for a in range(3) if a != axis)))
        first, last = (filled[0] // step - 1) * step, (filled[-1] // step + 2) * step
        inside = slice(max(first, 0), min(last, array.shape[axis]))
        take.append(inside)
        pad.append((inside.start - first, last - inside.stop))
        low[axis] = first
    cut = np.pad(array[tuple(take)], pad)
    return cut, geometry.cut(low[::-1], low[::-1] + cut.shape[::-1])


def _box_around(part: Geometry, geometry: Geometry) -> tuple[tuple[slice, ...], Geometry | None]:
    """The slices (k, j, i) of ``geometry`` that ``part`` can reach, and their geometry; None if there are none."""
    corners = np.array(np.meshgrid(*[[-0.5, n - 0.5] for n in part.size], indexing="ij")).reshape(3, -1).T
    ijk = geometry.to_ijk(part.to_ras(corners))
    low = np.clip(np.floor(ijk.min(axis=0)).astype(int), 0, geometry.size)
    high = np.clip(np.ceil(ijk.max(axis=0)).astype(int) + 1, 0, geometry.size)
    if (high <= low).any():
        return (), None
    return tuple(slice(a, b) for a, b in zip(low[::-1], high[::-1], strict=True)), geometry.cut(low, high)


def _sample(array: np.ndarray, source: Geometry, target: Geometry, fill: float) -> np.ndarray:
    """Linear interpolation of ``array`` (float32) at ``target``, averaged over several points in coarser voxels.

    Both are given to SimpleITK in index space, with the whole map as one affine transform: its images
    cannot carry a shear, its transforms can.
    """
    import SimpleITK

    to_source = source.ras_to_ijk @ target.ijk_to_ras
    # One point for each source voxel that a target voxel spans along i, j and k.
    points = np.ceil(np.abs(to_source[:3, :3]).max(axis=0) - 0.01).clip(1, _MOST_POINTS).astype(int)
    image = SimpleITK.GetImageFromArray(array)
    total = np.zeros(target.shape, np.float32)
    for offset in np.ndindex(*points):
        shift = (np.array(offset) + 0.5) / points - 0.5
        transform = SimpleITK.AffineTransform(3)
        transform.SetMatrix(to_source[:3, :3].ravel().tolist())
        transform.SetTranslation((to_source[:3, 3] + to_source[:3, :3] @ shift).tolist())
        resampled = SimpleITK.Resample(
            image, list(map(int, target.size)), transform, SimpleITK.sitkLinear, (0.0,) * 3, (1.0,) * 3,
            (1.0, 0, 0, 0, 1.0, 0, 0, 0, 1.0), float(fill), SimpleITK.sitkFloat32,
        )  # fmt: skip
        total += SimpleITK.GetArrayViewFromImage(resampled)
    return total / float(np.prod(points))
