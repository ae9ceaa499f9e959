"""How is a NIfTI, Analyze or FreeSurfer file read? By what is in it, and its place only where it is said once.

A NIfTI header can say three times where its voxels lie: by the matrix sform, by the rotation qform, and by the voxels'
size alone. Programs choose differently where these differ, so that is refused.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from MedDPMLib.errors import MedDPMError
from MedDPMLib.imaging.checksums import gunzip, is_gzipped
from MedDPMLib.runtime.content import HEAD, read_head, volume_format

#: Which of a header's two statements counts, where they contradict each other.
SFORM, QFORM = GEOMETRIES = ("sform", "qform")

#: Millimeters in the units that a header can name.
_MILLIMETERS = {"meter": 1000.0, "micron": 0.001}

#: Part of a voxel by which two statements may differ anywhere in the volume.
_MOST_APART = 0.5

_TWO_PLACES = {"remedy": "look which is right, and say geometry=sform or geometry=qform", "code": "two-places"}

#: Sines of angles between axes that are right angles, but for rounding.
_RIGHT_ANGLE = 1e-3

#: What a header, its extensions and rounding up may add to the voxels.
_AROUND_VOXELS = 1 << 24


def read_nifti(path: Path, geometry: str | None = None) -> tuple[np.ndarray, np.ndarray, tuple[str, ...]]:
    """Voxels (..., k, j, i), the IJK-to-RAS matrix in mm, and notes.

    ``geometry`` is one of :data:`GEOMETRIES`, or None. Anything that the parser raises for a damaged file comes
    through; :class:`MedDPMError` is raised for a header that contradicts itself.
    """
    image, notes = _opened(path)
    data = np.asanyarray(image.dataobj)
    array = np.array(data.T, dtype=data.dtype.newbyteorder("="), order="C")
    if array.ndim < 3:
        return array, np.eye(4), notes
    if not hasattr(image.header, "get_qform"):
        if not hasattr(image.header, "get_ras2vox"):  # FreeSurfer's header has a matrix, one only
            notes += (
                f"{path.name} is Analyze, which does not define the left side: its first axis is taken to run to L",
            )
        return array, image.affine, notes
    matrix, more = _place(image.header, image.shape, path, geometry)
    return array, matrix, (*notes, *more)


def check_place(path: Path) -> None:
    """Raises :class:`MedDPMError` if the header of the NIfTI file ``path`` gives two positions.

    The voxels are not read, and what else may be wrong with the file is not looked for.
    """
    import nibabel

    try:
        image = nibabel.load(path)
        header, shape = image.header, image.shape
    except Exception:  # whatever the parser raises: another program has read the file
        return
    if hasattr(header, "get_qform"):
        _place(header, shape, path, None)


def _opened(path: Path):
    """The image in ``path``, checked to the end of its compressed part, and notes."""

    name = path.name.lower()
    head = read_head(path)
    if name.endswith((".hdr", ".img")):
        return _pair(path), ()
    notes: tuple[str, ...] = ()
    if name.endswith((".nii", ".mgh")) and is_gzipped(head):
        notes = (f"{path.name} is compressed, although its name does not indicate it",)
    elif name.endswith((".nii.gz", ".mgz")) and not is_gzipped(head):
        notes = (f"{path.name} is not compressed, although its name indicates it",)
    data = path.read_bytes()
    if is_gzipped(head):
        # What the header promises bounds what is unpacked: a small file can be made to fill any memory.
        data = gunzip(data, _promised(_first_bytes(data), len(data)))
    return _kind(data).from_bytes(data), notes


def _pair(path: Path):
    """A pair of .hdr and .img: NIfTI or Analyze 7.5."""
    import nibabel

    for suffix in (".hdr", ".img"):
        if not any(path.with_suffix(s).is_file() for s in (suffix, suffix.upper())):
            raise MedDPMError(f"{path.with_suffix(suffix)} is missing: {path} is one half of a pair of files")
    image = nibabel.load(path.with_suffix(".hdr"))
    promised = int(np.prod(image.shape, dtype=object)) * image.get_data_dtype().itemsize
    if promised > path.with_suffix(".img").stat().st_size:
        raise EOFError(f"its header requires {promised} bytes of voxels, and it is too small to hold them")
    return image


def _kind(data: bytes):
    import nibabel

    if volume_format(data[:HEAD]) == "MGH":
        return nibabel.MGHImage
    lengths = {int.from_bytes(data[:4], order) for order in ("little", "big")}
    return nibabel.Nifti2Image if 540 in lengths else nibabel.Nifti1Image


def _first_bytes(data: bytes) -> bytes:
    import zlib

    return zlib.decompressobj(31).decompress(data, 4096)


def _promised(head: bytes, size: int) -> int:
    """How many bytes a file that begins with ``head`` and is ``size`` bytes long when compressed may unpack to."""
    import io

    kind = _kind(head)
    header = kind.header_class.from_fileobj(io.BytesIO(head), check=False)
    voxels = int(np.prod(header.get_data_shape(), dtype=object)) * header.get_data_dtype().itemsize
    # Deflate shrinks no further than 1032 to 1: a header that promises more is damaged.
    if voxels > 1100 * size:
        raise EOFError(f"its header requires {voxels} bytes of voxels, and it is too small to hold them")
    return voxels + _AROUND_VOXELS


# Place -----------------------------------------------------------------------------------------------


def _place(header, shape: tuple[int, ...], path: Path, wanted: str | None) -> tuple[np.ndarray, tuple[str, ...]]:
    """The IJK-to-RAS matrix in mm that ``header`` gives a volume of ``shape`` (i, j, k, ...), and notes."""
    name, notes = path.name, []
    unit = header.get_xyzt_units()[0]
    scale = _MILLIMETERS.get(unit, 1.0)
    if scale != 1:
        notes.append(f"{name} has lengths in {unit}s: converted to millimeters")
    sform, qform = header.get_sform(coded=True)[0], header.get_qform(coded=True)[0]
    if sform is not None and not _is_regular(sform):
        if qform is None:
            return _scaled(sform, scale), tuple(notes)  # refused where it becomes a geometry
        notes.append(f"{name} has an invalid sform: its qform is used")
        sform = None
    if wanted is not None and (chosen := {SFORM: sform, QFORM: qform}[wanted]) is not None:
        return _scaled(chosen, scale), (*notes, f"{name} is positioned by its {wanted}, as requested")
    if sform is None and qform is None:
        notes.append(
            f"{name} has no orientation in the patient: its axes are taken to run to L, P and S from the origin,"
            " as 3D Slicer does"
        )
        return _scaled(_without_codes(header), scale), tuple(notes)
    if sform is None or qform is None:
        chosen = sform if qform is None else qform
        _check_sizes(chosen, header, shape, path)
        return _scaled(chosen, scale), tuple(notes)
    _check_agreement(sform, qform, header, shape, path)
    return _scaled(sform, scale), tuple(notes)


def _without_codes(header) -> np.ndarray:
    """Where ITK, and so 3D Slicer, puts a volume that says nothing: LPS from the first voxel on."""
    sizes = np.array([float(size) or 1.0 for size in header.get_zooms()[:3]])
    return np.diag([-sizes[0], -sizes[1], sizes[2], 1.0])


def _check_agreement(sform: np.ndarray, qform: np.ndarray, header, shape, path: Path) -> None:
    """Refuses an sform and a qform that put a voxel at places more than half a voxel apart.

    A qform cannot hold a shear (a gantry tilt): there it has to be the rotation that is closest to the sform.
    """
    expected = sform if _has_right_angles(sform) else _without_shear(sform)
    apart, where = _farthest(expected, qform, shape)
    if apart > _MOST_APART * _voxel(sform):
        raise MedDPMError(
            f"{path} gives two positions, which are up to {apart:.3g} mm apart (its sform, code"
            f" {int(header['sform_code'])}, puts voxel {where} at {_ras(sform, where)}, its qform, code"
            f" {int(header['qform_code'])}, at {_ras(qform, where)}), and 3D Slicer and other programs take the one or"
            " the other",
            **_TWO_PLACES,
        )


def _check_sizes(matrix: np.ndarray, header, shape, path: Path) -> None:
    """Refuses an sform that stands alone and whose voxels are not as large as the header says."""
    said = np.array([float(size) for size in header.get_zooms()[:3]])
    sizes = np.linalg.norm(matrix[:3, :3], axis=0)
    # The distance of slices that are shifted against each other can be measured along or across.
    across = 1 / np.linalg.norm(np.linalg.inv(matrix[:3, :3]), axis=1)
    far = np.minimum(np.abs(sizes - said), np.abs(across - said)) * (np.array(shape[:3]) - 1)
    if (said > 0).all() and (far > _MOST_APART * np.minimum(sizes, said)).any():
        raise MedDPMError(
            f"{path} gives two sizes of its voxels ({_sizes(sizes)} mm in its sform, {_sizes(said)} mm in pixdim)",
            **_TWO_PLACES,
        )


def _is_regular(matrix: np.ndarray) -> bool:
    return bool(np.isfinite(matrix).all() and abs(np.linalg.det(matrix[:3, :3])) > 1e-12)


def _has_right_angles(matrix: np.ndarray) -> bool:
    directions = matrix[:3, :3] / np.linalg.norm(matrix[:3, :3], axis=0)
    return bool(np.abs(directions.T @ directions - np.eye(3)).max() < _RIGHT_ANGLE)


def _without_shear(matrix: np.ndarray) -> np.ndarray:
    """``matrix`` with the rotation (and mirroring) closest to its axes' directions, and the same sizes of voxels."""
    sizes = np.linalg.norm(matrix[:3, :3], axis=0)
    left, _, right = np.linalg.svd(matrix[:3, :3] / sizes)
    straight = matrix.copy()
    straight[:3, :3] = left @ right * sizes
    return straight


def _farthest(one: np.ndarray, other: np.ndarray, shape) -> tuple[float, tuple[int, int, int]]:
    """How far (in the header's unit) the places of a voxel are apart at most, and the voxel (i, j, k), a corner."""
    corners = np.array(np.meshgrid(*[[0, n - 1] for n in shape[:3]], indexing="ij")).reshape(3, -1).T
    homogeneous = np.c_[corners, np.ones(len(corners))]
    apart = np.linalg.norm((homogeneous @ (one - other).T)[:, :3], axis=1)
    i, j, k = corners[apart.argmax()].tolist()
    return float(apart.max()), (i, j, k)


def _voxel(matrix: np.ndarray) -> float:
    return float(np.linalg.norm(matrix[:3, :3], axis=0).min())


def _scaled(matrix: np.ndarray, scale: float) -> np.ndarray:
    scaled = matrix.astype(np.float64)
    scaled[:3] *= scale
    return scaled


def _ras(matrix: np.ndarray, ijk) -> str:
    """ "R +26.7, A +26.2, S +23.9"."""
    place = (matrix @ [*ijk, 1])[:3]
    return ", ".join(f"{letter} {number:+.1f}" for letter, number in zip("RAS", place, strict=True))


def _sizes(sizes: np.ndarray) -> str:
    return " x ".join(f"{size:.4g}" for size in sizes)
