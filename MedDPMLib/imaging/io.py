"""How is a volume read from a file, and written to one?"""

from __future__ import annotations

import importlib
import os
from pathlib import Path

import numpy as np

from MedDPMLib.errors import MedDPMError
from MedDPMLib.imaging.checksums import check_voxels
from MedDPMLib.imaging.geometry import Geometry
from MedDPMLib.imaging.nifti import read_nifti
from MedDPMLib.imaging.text_headers import Damaged, TextHeader, read_text_header
from MedDPMLib.imaging.volume import Volume
from MedDPMLib.runtime.content import describe_content, read_head, volume_format
from MedDPMLib.runtime.files import atomic_write

NIFTI_SUFFIXES = (".nii", ".nii.gz")
#: What nibabel reads beside them: FreeSurfer's files, and pairs of Analyze or NIfTI.
_PAIR_SUFFIXES = (".hdr", ".img")
_NIBABEL_SUFFIXES = (*NIFTI_SUFFIXES, ".mgz", ".mgh", *_PAIR_SUFFIXES)
#: Read through SimpleITK, whose world is LPS.
ITK_SUFFIXES = (".seg.nrrd", ".nrrd", ".nhdr", ".mha", ".mhd")
SUFFIXES = _NIBABEL_SUFFIXES + ITK_SUFFIXES

_SUFFIXES_OF = {
    "NIfTI": NIFTI_SUFFIXES,
    "MGH": (".mgz", ".mgh"),
    "NRRD": (".seg.nrrd", ".nrrd", ".nhdr"),
    "MetaImage": (".mha", ".mhd"),
}

#: What stands in the NIfTI header of everything that is generated: it must not be mistaken for a patient.
SYNTHETIC = "synthetic, MedDPM"

_LPS_TO_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])


def volume_suffix(path: Path) -> str | None:
    """The suffix of ``path`` as one of :data:`SUFFIXES`, or None."""
    name = path.name.lower()
    return next((suffix for suffix in SUFFIXES if name.endswith(suffix)), None)


def names_volume(path: Path) -> bool:
    """Whether ``path`` is to be listed as a volume by its name: of a pair of .hdr and .img, the first alone is."""
    suffix = volume_suffix(path)
    return suffix is not None and not (suffix == ".img" and path.with_suffix(".hdr").is_file())


def volume_stem(path: Path) -> str:
    """The file's name without its suffix: "case_01" for "case_01.nii.gz"."""
    suffix = volume_suffix(path)
    return path.name[: -len(suffix)] if suffix else path.stem


def read_volume(path: str | os.PathLike, *, geometry: str | None = None, component: int | None = None) -> Volume:
    """Reads a 3-D image: NIfTI (any affine), Analyze, FreeSurfer's .mgz, NRRD or MetaImage, in native byte order.

    Compressed files are checked to the end. A trailing axis of one element is dropped. ``geometry`` ("sform" or
    "qform") says which counts where a NIfTI header contradicts itself, ``component`` which volume of a fourth axis is
    wanted, from 0 on. Raises :class:`MedDPMError` for a missing, damaged, 2-D, 4-D or non-finite file, for a folder,
    for a header whose matrix is singular, and for one that gives two positions of the volume.
    """
    path = Path(path)
    suffix = check_readable(path)
    form = None if suffix in _PAIR_SUFFIXES else volume_format(read_head(path))
    by_itk = suffix in ITK_SUFFIXES if form is None else form in ("NRRD", "MetaImage")
    array, ijk_to_ras, notes = _read_itk(path) if by_itk else _read_nifti(path, geometry)
    if form is not None and suffix not in _SUFFIXES_OF[form]:
        notes += (f"{path.name} is {form}, although its name does not indicate it",)
    if component is not None and array.ndim == 4:
        if not 0 <= component < len(array):
            raise MedDPMError(f"{path} has {len(array)} volumes: number {component} is not among them")
        array = np.ascontiguousarray(array[component])
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
        head = read_head(path)
    except OSError as error:
        raise MedDPMError(f"{path} cannot be opened ({error.strerror}): check the path and its permissions") from error
    content = "a zip archive: unpack it first" if head.startswith(b"PK\x03\x04") else describe_content(head)
    if content is not None:
        raise MedDPMError(f"{path} is {content}")
    suffix = volume_suffix(path)
    if suffix is None:
        raise MedDPMError(
            f"{path} is not a volume that can be read: use one of {', '.join(SUFFIXES)}"
            " (3D Slicer or dcm2niix convert DICOM)"
        )
    return suffix


def _read_nifti(path: Path, geometry: str | None) -> tuple[np.ndarray, np.ndarray, tuple[str, ...]]:
    importlib.import_module("nibabel")  # a library that is broken is no fault of the file
    # A damaged header makes the parsers fail in any way they like; whatever they raise, the file is at fault.
    try:
        return read_nifti(path, geometry)
    except MedDPMError:
        raise
    except Damaged as error:
        raise MedDPMError(f"{path} is damaged: {error}") from error
    except Exception as error:
        raise MedDPMError(f"{path} cannot be read ({_first_line(error)}): the file is damaged or not NIfTI") from error


def _read_itk(path: Path) -> tuple[np.ndarray, np.ndarray, tuple[str, ...]]:
    header = read_text_header(path)
    image = read_itk(path, header)
    if image.GetDimension() != 3 or image.GetNumberOfComponentsPerPixel() != 1:
        raise MedDPMError(
            f"{path} has {image.GetDimension()} axes and {image.GetNumberOfComponentsPerPixel()} components:"
            " one 3-D volume is needed (in 3D Slicer, export the segmentation as a label map)"
        )
    return itk_array(image), itk_ijk_to_ras(image), notes_on_space(path, header)


def notes_on_space(path: Path, header: TextHeader) -> tuple[str, ...]:
    """A note where an NRRD file does not name the space, and so the directions, of its axes."""
    if not header.is_nrrd or "space" in header.fields:
        return ()
    return (f"{path.name} does not name its space: its axes are taken to run to L, P and S, as ITK does",)


def read_itk(path: Path, header: TextHeader):
    """The SimpleITK image in ``path``, of whatever dimension and number of components, if its voxels are as ``header``
    promises."""
    import SimpleITK

    try:
        check_voxels(path, header)
        # By the format of its content: what else ITK would try by the name has other parsers.
        return SimpleITK.ReadImage(str(path), imageIO="NrrdImageIO" if header.is_nrrd else "MetaImageIO")
    except Damaged as error:
        raise MedDPMError(f"{path} is damaged: {error}") from error
    except (RuntimeError, ValueError, OSError) as error:
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


# Writing ---------------------------------------------------------------------------------------------


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
    with atomic_write(path) as temporary:
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
