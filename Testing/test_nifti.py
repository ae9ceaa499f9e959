"""Where a NIfTI volume lies: said once or refused, in any unit, and opened by content whatever it is called."""

from __future__ import annotations

import gzip

import nibabel
import numpy as np
import pytest
import SimpleITK
from hypothesis import given, settings
from hypothesis import strategies as st
from test_damaged_files import glioma
from test_geometry import oriented

from MedDPMLib.cli.generate import find_masks
from MedDPMLib.errors import MedDPMError
from MedDPMLib.imaging.geometry import Geometry
from MedDPMLib.imaging.io import itk_image, read_volume, write_nifti
from MedDPMLib.imaging.volume import Volume
from MedDPMLib.masks.seg_nrrd import holds_segments

SHAPE = (7, 8, 9)
ARRAY = np.random.default_rng(0).integers(0, 99, SHAPE, dtype=np.int16)


def save(path, *, sform=None, qform=None, codes=(1, 1), pixdim=None, unit=None, array=ARRAY):
    image = nibabel.Nifti1Image(array, None)
    if sform is not None:
        image.header.set_sform(sform, code=codes[0])
    if qform is not None:
        image.header.set_qform(qform, code=codes[1], strip_shears=True)
    if pixdim is not None:
        image.header["pixdim"][1:4] = pixdim
    if unit is not None:
        image.header.set_xyzt_units(unit)
    # Past nibabel's own idea of what a header has to be.
    path.write_bytes(image.header.binaryblock + b"\0\0\0\0" + array.tobytes(order="F"))
    header = bytearray(path.read_bytes())
    header[108:112] = np.array(352, "<f4").tobytes()
    header[344:348] = b"n+1\0"
    path.write_bytes(header)
    return path


def rigid(seed: int, spacing=(1.5, 2.0, 2.5)) -> np.ndarray:
    generator = np.random.default_rng(seed)
    matrix = np.eye(4)
    matrix[:3, :3] = np.linalg.qr(generator.standard_normal((3, 3)))[0] * spacing
    matrix[:3, 3] = generator.uniform(-80, 80, 3)
    return matrix


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10**6), st.floats(0.0, 3.0), st.sampled_from(["shift", "turn", "mirror"]))
def test_two_places_are_refused_where_a_voxel_is_half_a_voxel_apart(tmp_path_factory, seed, amount, kind):
    sform = rigid(seed)
    qform = sform.copy()
    if kind == "shift":
        qform[seed % 3, 3] += amount
    elif kind == "turn":
        c, s = np.cos(amount / 20), np.sin(amount / 20)
        sizes = np.linalg.norm(sform[:3, :3], axis=0)
        qform[:3, :3] = sform[:3, :3] / sizes @ np.array([[c, -s, 0], [s, c, 0], [0, 0, 1]]) * sizes
    else:
        qform[:3, 0] *= -1
    corners = np.array(np.meshgrid(*[[0, n - 1] for n in SHAPE], [1.0])).reshape(4, -1)
    apart = np.linalg.norm(((sform - qform) @ corners)[:3], axis=0).max()
    if abs(apart - 0.75) < 0.01:  # the smallest voxel is 1.5 mm
        return
    path = save(tmp_path_factory.getbasetemp() / "two.nii", sform=sform, qform=qform, codes=(2, 1))
    if apart < 0.75:
        np.testing.assert_allclose(read_volume(path).geometry.ijk_to_ras, sform, atol=1e-3)
        return
    with pytest.raises(MedDPMError, match=f"up to {apart:.3g} mm apart") as caught:
        read_volume(path)
    assert "sform, code 2" in str(caught.value) and caught.value.code == "two-places"
    for wanted, expected in (("sform", sform), ("qform", qform)):
        volume = read_volume(path, geometry=wanted)
        np.testing.assert_allclose(volume.geometry.ijk_to_ras, expected, atol=1e-3)
        assert any(f"positioned by its {wanted}" in note for note in volume.notes)


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10**6), st.floats(-25, 25))
def test_a_gantry_tilt_is_no_contradiction(tmp_path_factory, seed, degrees):
    """A qform cannot hold a shear: programs write the closest rotation into it."""
    tilt = np.eye(4)
    tilt[1, 2] = np.tan(np.radians(degrees))
    sform = rigid(seed) @ tilt
    path = save(tmp_path_factory.getbasetemp() / "tilt.nii", sform=sform, qform=sform)
    np.testing.assert_allclose(read_volume(path).geometry.ijk_to_ras, sform, atol=1e-3)
    # But a rotation that belongs to something else is one.
    path = save(tmp_path_factory.getbasetemp() / "tilt.nii", sform=sform, qform=rigid(seed + 1))
    with pytest.raises(MedDPMError, match="gives two positions"):
        read_volume(path)


def test_an_sform_against_the_size_of_voxels(tmp_path):
    sform = oriented("LPS", SHAPE, (2, 2, 2)).ijk_to_ras
    path = save(tmp_path / "a.nii", sform=sform, pixdim=(2.0, 2.0, 3.0))
    with pytest.raises(MedDPMError, match="2 x 2 x 2 mm in its sform, 2 x 2 x 3 mm in pixdim"):
        read_volume(path)
    assert read_volume(path, geometry="sform").geometry.spacing.tolist() == [2, 2, 2]
    assert read_volume(save(tmp_path / "b.nii", sform=sform, pixdim=(2.0, 2.0, 2.01))).geometry.spacing[2] == 2


@pytest.mark.parametrize("unit, factor", [("meter", 1000.0), ("micron", 0.001), ("mm", 1.0), ("unknown", 1.0)])
def test_units_are_honored(tmp_path, unit, factor):
    matrix = oriented("RAS", SHAPE, (2, 2, 2), (5, 6, 7)).ijk_to_ras
    stored = matrix.copy()
    stored[:3] /= factor
    path = save(tmp_path / "a.nii", sform=stored, qform=stored, unit=unit)
    volume = read_volume(path)
    np.testing.assert_allclose(volume.geometry.ijk_to_ras, matrix, rtol=1e-5)
    assert len(volume.notes) == (factor != 1)


def test_no_codes_are_read_as_itk_does(tmp_path):
    matrix = rigid(3)
    path = save(tmp_path / "a.nii", sform=matrix, qform=matrix, codes=(0, 0))
    image = SimpleITK.ReadImage(str(path))
    volume = read_volume(path)
    expected = np.diag([-1, -1, 1, 1]) @ np.diag([*image.GetSpacing(), 1])
    np.testing.assert_allclose(volume.geometry.ijk_to_ras, expected, atol=1e-5)
    assert image.GetOrigin() == (0, 0, 0) and "as 3D Slicer does" in volume.notes[0]


def test_names_do_not_decide_about_compression(tmp_path):
    volume = glioma(10)
    write_nifti(tmp_path / "a.nii.gz", volume)
    packed = (tmp_path / "a.nii.gz").read_bytes()
    (tmp_path / "b.nii").write_bytes(packed)
    (tmp_path / "c.nii.gz").write_bytes(gzip.decompress(packed))
    for name, said in (("b.nii", "is compressed, although"), ("c.nii.gz", "is not compressed, although")):
        read = read_volume(tmp_path / name)
        np.testing.assert_array_equal(read.array, volume.array)
        assert read.geometry.is_close(volume.geometry) and said in read.notes[0]


@pytest.mark.parametrize("named", [".nii", ".nii.gz", ".mgz", ".nrrd", ".mha", ".seg.nrrd"])
@pytest.mark.parametrize("written", [".nii", ".nii.gz", ".mgz", ".nrrd", ".mha"])
def test_names_do_not_decide_about_the_format(tmp_path, written, named):
    """What was renamed instead of converted is read as what it is, and said."""
    volume = Volume(glioma(10).array, Geometry((10, 10, 10), rigid(5)))
    path = tmp_path / f"a{written}"
    if written in (".nrrd", ".mha"):
        SimpleITK.WriteImage(itk_image(volume.array, volume.geometry), str(path), True)
    else:
        kind = nibabel.MGHImage if written == ".mgz" else nibabel.Nifti1Image
        nibabel.save(kind(volume.array.T, volume.geometry.ijk_to_ras), path)
    renamed = path.rename(tmp_path / f"b{named}")
    assert not holds_segments(renamed)
    read = read_volume(renamed)
    np.testing.assert_array_equal(read.array, volume.array)
    assert read.geometry.is_close(volume.geometry, 1e-3)
    assert any("although its name" in note for note in read.notes) == (not named.endswith(written))


@pytest.mark.parametrize("name", ["a.mgz", "a.mgh", "a.hdr", "a.img"])
def test_freesurfer_and_pairs_of_files(tmp_path, name):
    volume = Volume(glioma(10).array, Geometry((10, 10, 10), rigid(5)))
    kind = nibabel.MGHImage if ".mg" in name else nibabel.Nifti1Pair
    nibabel.save(kind(volume.array.T, volume.geometry.ijk_to_ras), tmp_path / name)
    read = read_volume(tmp_path / name)
    np.testing.assert_array_equal(read.array, volume.array)
    assert read.geometry.is_close(volume.geometry, 1e-3) and not read.notes
    if name == "a.mgz":
        content = bytearray((tmp_path / name).read_bytes())
        content[-6] ^= 1
        (tmp_path / name).write_bytes(content)
        with pytest.raises(MedDPMError, match="damaged"):
            read_volume(tmp_path / name)
    if name == "a.hdr":
        assert find_masks([tmp_path], tmp_path / "out") == [tmp_path / name]
        (tmp_path / "a.img").unlink()
        with pytest.raises(MedDPMError, match="one half of a pair"):
            read_volume(tmp_path / name)


def test_analyze_does_not_say_which_side_is_left(tmp_path):
    nibabel.save(nibabel.AnalyzeImage(ARRAY, np.diag([-2.0, 2, 2, 1])), tmp_path / "a.img")
    assert "does not define the left side" in read_volume(tmp_path / "a.img").notes[0]


@pytest.mark.parametrize(
    "content, said",
    [
        (b"", "empty file"),
        (b"\n<!DOCTYPE html><html><body>Sign in</body></html>", "web page"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:4d\n", "Git LFS"),
        (b"\x89HDF\r\n\x1a\n" + bytes(100), "HDF5"),
        (bytes(128) + b"DICM" + bytes(100), "DICOM"),
        (b"%PDF-1.7", "PDF"),
        (b"PK\x03\x04" + bytes(100), "zip|PyTorch|truncated"),
    ],
)
@pytest.mark.parametrize("name", ["mask.nii.gz", "mask.nrrd", "model.pt", "model.safetensors"])
def test_files_are_called_what_they_are(tmp_path, name, content, said):
    from MedDPMLib.models.store import load_card_and_state

    (tmp_path / name).write_bytes(content)
    with pytest.raises(MedDPMError, match=said) as caught:
        (load_card_and_state if name.startswith("model") else read_volume)(tmp_path / name)
    assert str(tmp_path / name) in str(caught.value)
