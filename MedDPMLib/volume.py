"""How a volume is read, resampled and written: the array and its geometry travel together."""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from MedDPMLib.errors import MedDPMError
from MedDPMLib.geometry import Geometry
from MedDPMLib.paths import reachable

NIFTI_SUFFIXES = (".nii", ".nii.gz")
#: Read through SimpleITK, whose world is LPS.
ITK_SUFFIXES = (".seg.nrrd", ".nrrd", ".nhdr", ".mha", ".mhd")
SUFFIXES = NIFTI_SUFFIXES + ITK_SUFFIXES

#: What stands in the NIfTI header of everything that is generated: nobody may take it for a patient.
SYNTHETIC = "synthetic, MedDPM"

#: Deflate shrinks no further than 1032 to 1: a header that promises more voxels than that is damaged.
_LARGEST_EXPANSION = 1100

#: Points along one axis of a voxel that are averaged at most.
_MOST_POINTS = 8

_LPS_TO_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])


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


def volume_suffix(path: Path) -> str | None:
    """The suffix of ``path`` as one of :data:`SUFFIXES`, or None."""
    name = path.name.lower()
    return next((suffix for suffix in SUFFIXES if name.endswith(suffix)), None)


def volume_stem(path: Path) -> str:
    """The file's name without its suffix: "case_01" for "case_01.nii.gz"."""
    suffix = volume_suffix(path)
    return path.name[: -len(suffix)] if suffix else path.stem


def read_volume(path: str | os.PathLike) -> Volume:
    """Reads a 3-D image: NIfTI (any affine), NRRD or MetaImage, in native byte order.

    A trailing axis of one element is dropped. Raises :class:`MedDPMError` for a missing, damaged, 2-D, 4-D
    or non-finite file, for a folder, and for a header whose matrix is singular.
    """
    path = Path(path)
    suffix = check_readable(path)
    array, ijk_to_ras, notes = (_read_nifti if suffix in NIFTI_SUFFIXES else _read_itk)(path)
    while array.ndim > 3 and array.shape[0] == 1:
        array = array[0]
    if array.ndim != 3 or min(array.shape) < 2:
        sides = " x ".join(map(str, array.shape[::-1]))
        raise MedDPMError(f"{path} is not one 3-D volume: its size is {sides}")
    if array.dtype.kind not in "buif":
        raise MedDPMError(
            f"{path} holds {array.dtype} values, not numbers of one channel: export it as a plain label map or image"
        )
    if array.dtype.kind == "f" and not np.isfinite(array).all():
        raise MedDPMError(f"{path} holds values that are not finite (NaN or infinity): replace them first")
    try:
        return Volume(array, Geometry(array.shape[::-1], ijk_to_ras), notes)
    except MedDPMError as error:
        raise MedDPMError(f"{path}: {error}") from None


def check_readable(path: Path) -> str:
    """The suffix of ``path``, one of :data:`SUFFIXES`; :class:`MedDPMError` if there is no such file to be read."""
    try:
        if path.is_dir():
            raise MedDPMError(
                f"{path} is a folder, not a volume: convert a DICOM series to NIfTI first (3D Slicer or dcm2niix do it)"
            )
        if not path.is_file():
            raise MedDPMError(f"{path} does not exist: check the path")
        path.open("rb").close()
    except OSError as error:
        raise MedDPMError(f"{path} cannot be opened ({error.strerror}): check the path and its permissions") from error
    suffix = volume_suffix(path)
    if suffix is None:
        raise MedDPMError(
            f"{path} is not a volume that can be read: use one of {', '.join(SUFFIXES)}"
            " (3D Slicer or dcm2niix convert DICOM)"
        )
    return suffix


def _read_nifti(path: Path) -> tuple[np.ndarray, np.ndarray, tuple[str, ...]]:
    import nibabel

    # A damaged header makes the parsers fail in any way they like; whatever they raise, the file is at fault.
    try:
        image = nibabel.load(path)
        promised = int(np.prod(image.shape, dtype=object)) * image.get_data_dtype().itemsize
        if promised > _LARGEST_EXPANSION * path.stat().st_size:
            raise EOFError(f"it promises {promised} bytes of voxels and is too small to hold them")
        data = np.asanyarray(image.dataobj)
        array = np.array(data.T, dtype=data.dtype.newbyteorder("="), order="C")
        codes = int(image.header["sform_code"]), int(image.header["qform_code"])
    except Exception as error:
        raise MedDPMError(f"{path} cannot be read ({_first_line(error)}): the file is damaged or not NIfTI") from error
    notes = ()
    if codes == (0, 0):
        notes = (f"{path.name} does not say how it lies in the patient: its axes are taken to run L, A and S",)
    return array, image.affine, notes


def _read_itk(path: Path) -> tuple[np.ndarray, np.ndarray, tuple[str, ...]]:
    image = read_itk(path)
    if image.GetDimension() != 3 or image.GetNumberOfComponentsPerPixel() != 1:
        raise MedDPMError(
            f"{path} has {image.GetDimension()} axes and {image.GetNumberOfComponentsPerPixel()} components:"
            " one 3-D volume is needed (in 3D Slicer, export the segmentation as a label map)"
        )
    return itk_array(image), itk_ijk_to_ras(image), ()


def read_itk(path: Path):
    """The SimpleITK image in ``path``, of whatever dimension and number of components."""
    import SimpleITK

    try:
        return SimpleITK.ReadImage(str(path))
    except RuntimeError as error:
        raise MedDPMError(
            f"{path} cannot be read ({_first_line(error)}): the file is damaged or not NRRD or MetaImage"
        ) from error


def itk_array(image) -> np.ndarray:
    """The voxels of a SimpleITK image: (k, j, i), or (k, j, i, components)."""
    import SimpleITK

    return SimpleITK.GetArrayFromImage(image)


def itk_ijk_to_ras(image) -> np.ndarray:
    """The IJK-to-RAS matrix of a 3-D SimpleITK image, whose world is LPS."""
    matrix = np.eye(4)
    matrix[:3, :3] = np.array(image.GetDirection()).reshape(3, 3) * np.array(image.GetSpacing())
    matrix[:3, 3] = image.GetOrigin()
    return _LPS_TO_RAS @ matrix


def itk_image(array: np.ndarray, geometry: Geometry):
    """The SimpleITK image of ``array`` (k, j, i) on a ``geometry`` without shear; :func:`itk_ijk_to_ras` reads it."""
    import SimpleITK

    image = SimpleITK.GetImageFromArray(array)
    matrix = _LPS_TO_RAS @ geometry.ijk_to_ras  # its own inverse
    image.SetSpacing(geometry.spacing.tolist())
    image.SetOrigin(matrix[:3, 3].tolist())
    image.SetDirection((matrix[:3, :3] / geometry.spacing).ravel().tolist())
    return image


def _first_line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1] if lines else type(error).__name__


# Resampling ------------------------------------------------------------------------------------------


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
        indicator = volume.array == value
        if not indicator.any():
            continue
        cut, cut_geometry = _averaged(*_crop(indicator, source, block), block)
        where, box = _box_around(cut_geometry, geometry)
        if box is None:
            continue
        share = _sample(cut, cut_geometry, box, 0.0)
        covered[where] += share
        # A later label wins only if its share is larger by more than interpolation's rounding.
        wins = share > best[where] + 1e-5
        labels[where][wins] = value
        best[where][wins] = share[wins]
    labels[1.0 - covered > best + 1e-5] = 0
    return Volume(labels, geometry)


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


# Writing ---------------------------------------------------------------------------------------------


@contextmanager
def written_whole(path: Path) -> Iterator[Path]:
    """Gives a temporary path beside ``path`` that is moved onto it when the block ends well, else removed.

    So a reader sees the whole file or none, whatever interrupts. The temporary name keeps the suffix and is
    short, for systems that limit the length of paths. An ``OSError`` in the block (no space, no permission)
    becomes :class:`MedDPMError`.
    """
    target = reachable(path)
    temporary = target.with_name(f".{secrets.token_hex(4)}{volume_suffix(target) or target.suffix}")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        # Taken at once, so that a folder without permission is told before anything is computed for it.
        os.close(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666))
        mode = temporary.stat().st_mode
        yield temporary
        temporary.chmod(mode)  # some writers put a file of their own there, for its owner's eyes only
        os.replace(temporary, target)
    except OSError as error:
        reason = error.strerror or _first_line(error)
        raise MedDPMError(f"{path} cannot be written ({reason}): free some space or choose another folder") from error
    finally:
        with suppress(OSError):
            temporary.unlink()


def write_nifti(path: str | os.PathLike, volume: Volume, *, description: str = "") -> None:
    """Writes ``volume`` as NIfTI-1, whole or not at all; ``description`` (79 bytes) goes into the header.

    The dtype is kept where readers know it: bool becomes uint8, float16 float32, 64-bit integers int32.
    """
    import nibabel

    path = Path(path)
    if volume_suffix(path) not in NIFTI_SUFFIXES:
        raise MedDPMError(f"{path} cannot be written as NIfTI: the name has to end with .nii or .nii.gz")
    image = nibabel.Nifti1Image(_as_stored(volume.array, path).T, volume.geometry.ijk_to_ras)
    # A qform cannot hold a shear: it gets the nearest rotation, for readers that know no sform.
    image.set_sform(volume.geometry.ijk_to_ras, code="scanner")
    image.set_qform(volume.geometry.ijk_to_ras, code="scanner", strip_shears=True)
    image.header.set_xyzt_units("mm")
    image.header["descrip"] = description.encode()[:79]
    with written_whole(path) as temporary:
        nibabel.save(image, temporary)


def _as_stored(array: np.ndarray, path: Path) -> np.ndarray:
    """``array`` in a dtype that readers of NIfTI know."""
    if array.dtype == bool:
        return array.astype(np.uint8)
    if array.dtype == np.float16:
        return array.astype(np.float32)
    if array.dtype.kind in "iu" and array.dtype.itemsize == 8:
        limits = np.iinfo(np.int32)
        if array.min() < limits.min or array.max() > limits.max:
            raise MedDPMError(f"{path} cannot be written: it has integers of more than 32 bits")
        return array.astype(np.int32)
    return array
