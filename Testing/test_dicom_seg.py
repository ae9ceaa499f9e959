"""DICOM segmentations: labels by the codes of their segments, in place."""

from __future__ import annotations

import numpy as np
import pytest
from test_damaged_files import BRATS, glioma

from MedDPMLib.errors import MedDPMError
from MedDPMLib.imaging.geometry import Geometry
from MedDPMLib.imaging.io import read_volume
from MedDPMLib.imaging.resample import resample_labels
from MedDPMLib.masks.mask import read_mask

highdicom = pytest.importorskip("highdicom")
pydicom = pytest.importorskip("pydicom")


def turned() -> Geometry:
    """As a scanner places slices: oblique, from feet to head."""
    directions = np.linalg.qr(np.array([[-1, 0.1, 0.2], [0.1, -1, 0.1], [0.2, 0.1, 1.0]]))[0]
    directions *= np.sign(np.diag(directions)) * [-1, -1, 1]
    matrix = np.eye(4)
    matrix[:3, :3] = directions * glioma().geometry.spacing
    matrix[:3, 3] = [70, 60, -80]
    return Geometry(glioma().geometry.size, matrix)


def source_slices(geometry: Geometry):
    lps = np.diag([-1, -1, 1, 1]) @ geometry.ijk_to_ras
    study, series, frame = (pydicom.uid.generate_uid() for _ in range(3))
    for k in range(geometry.size[2]):
        slice_ = pydicom.Dataset()
        slice_.file_meta = pydicom.dataset.FileMetaDataset()
        slice_.file_meta.TransferSyntaxUID = pydicom.uid.ExplicitVRLittleEndian
        slice_.SOPClassUID, slice_.SOPInstanceUID = "1.2.840.10008.5.1.4.1.1.4", pydicom.uid.generate_uid()
        slice_.StudyInstanceUID, slice_.SeriesInstanceUID, slice_.FrameOfReferenceUID = study, series, frame
        for name in ("PatientID", "PatientName", "PatientBirthDate", "PatientSex", "AccessionNumber", "StudyID",
                     "StudyDate", "StudyTime", "ReferringPhysicianName", "PositionReferenceIndicator"):  # fmt: skip
            setattr(slice_, name, "")
        slice_.Modality, slice_.InstanceNumber, slice_.SeriesNumber = "MR", k + 1, 1
        slice_.Rows, slice_.Columns = geometry.size[1], geometry.size[0]
        slice_.ImagePositionPatient = (lps @ [0, 0, k, 1])[:3].tolist()
        unit = lps[:3, :3] / geometry.spacing
        slice_.ImageOrientationPatient = [*unit[:, 0], *unit[:, 1]]
        slice_.PixelSpacing = [geometry.spacing[1], geometry.spacing[0]]
        slice_.SliceThickness = slice_.SpacingBetweenSlices = geometry.spacing[2]
        slice_.SamplesPerPixel, slice_.PhotometricInterpretation = 1, "MONOCHROME2"
        slice_.BitsAllocated = slice_.BitsStored = 16
        slice_.HighBit, slice_.PixelRepresentation = 15, 0
        slice_.PixelData = bytes(2 * slice_.Rows * slice_.Columns)
        yield slice_


def save(path, array, geometry, segments):
    """``segments``: for each the value in ``array``, its name, and the code of its type."""
    descriptions = [
        highdicom.seg.SegmentDescription(
            number, name, pydicom.sr.coding.Code("49755003", "SCT", "Morphologically Altered Structure"),
            pydicom.sr.coding.Code(*code), highdicom.seg.SegmentAlgorithmTypeValues.MANUAL,
        )
        for number, (_, name, code) in enumerate(segments, start=1)
    ]  # fmt: skip
    pixels = np.stack([array == value for value, _, _ in segments], axis=-1).astype(np.uint8)
    file = highdicom.seg.Segmentation(
        list(source_slices(geometry)), pixels, "BINARY", descriptions, pydicom.uid.generate_uid(), 2,
        pydicom.uid.generate_uid(), 1, "none", "none", "1", "1",
    )  # fmt: skip
    file.save_as(path)
    return path


def segments_of(order):
    return [
        (value, f"Segment {n}", (label.type.value, label.type.scheme, label.type.meaning))
        for n, value in enumerate(order)
        for label in [BRATS.label_by_value(value)]
    ]


def test_segments_are_labels_by_their_codes(tmp_path):
    array, geometry = glioma().array, turned()
    path = save(tmp_path / "case.dcm", array, geometry, segments_of([3, 1, 4, 2]))
    mask = read_mask(path, BRATS)
    # Slices without a segment are not in the file.
    again = resample_labels(mask.volume, geometry, BRATS.priority)
    np.testing.assert_array_equal(again.array, array)
    k, j, i = np.nonzero(array == 3)
    k2, j2, i2 = np.nonzero(mask.volume.array == 3)
    np.testing.assert_allclose(
        mask.volume.geometry.to_ras(np.stack([i2, j2, k2], 1)).mean(0),
        geometry.to_ras(np.stack([i, j, k], 1)).mean(0),
        atol=1e-3,
    )
    assert mask.name == "case" and any("by the codes of its segments" in note for note in mask.notes)


def test_what_no_code_and_no_name_says_is_refused(tmp_path):
    array, geometry = glioma().array, turned()
    segments = segments_of([1, 2, 3])
    strange = (4, "Brain", ("10200004", "SCT", "Liver"))
    assert read_mask(save(tmp_path / "a.dcm", array, geometry, [*segments, strange]), BRATS).volume.array.max() == 4
    strange = (4, "Segment 4", ("10200004", "SCT", "Liver"))
    with pytest.raises(MedDPMError, match="none of the scheme .* Segment 4"):
        read_mask(save(tmp_path / "b.dcm", array, geometry, [*segments, strange]), BRATS)


def test_damaged_files_and_images_are_refused(tmp_path):
    path = save(tmp_path / "case.dcm", glioma().array, turned(), segments_of([1, 2, 3, 4]))
    content = path.read_bytes()
    for length in (400, 2000, len(content) // 2):
        path.write_bytes(content[:length])
        with pytest.raises(MedDPMError, match="cannot be read|is DICOM"):
            read_mask(path, BRATS)
    image = next(source_slices(turned()))
    image.file_meta.MediaStorageSOPClassUID = image.SOPClassUID
    pydicom.dcmwrite(tmp_path / "image.dcm", image, enforce_file_format=True)
    for read in (read_volume, lambda path: read_mask(path, BRATS)):
        with pytest.raises(MedDPMError, match="is DICOM: convert it to NIfTI"):
            read(tmp_path / "image.dcm")
