"""Volumes: read as they are, resampled where they lie, written whole or not at all."""

from __future__ import annotations

import gzip
import os
import subprocess
import sys
import textwrap
from pathlib import Path

import nibabel
import numpy as np
import pytest
import SimpleITK
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from scipy import ndimage
from test_geometry import ALL_ORIENTATIONS, oriented, random_matrix

from MedDPMLib.errors import MedDPMError
from MedDPMLib.imaging.geometry import Geometry
from MedDPMLib.imaging.io import (
    SUFFIXES,
    SYNTHETIC,
    itk_ijk_to_ras,
    read_volume,
    volume_stem,
    volume_suffix,
    write_nifti,
)
from MedDPMLib.imaging.resample import resample_image, resample_labels
from MedDPMLib.imaging.volume import Volume
from MedDPMLib.runtime.files import atomic_write

fuzz = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


def noise(shape=(5, 6, 7), dtype=np.int16, seed=0):
    return np.random.default_rng(seed).integers(0, 100, shape).astype(dtype)


def blobs(shape, values, seed=0, sigma=2.0):
    """Smooth regions of the ``values``, background in between and all around."""
    generator = np.random.default_rng(seed)
    fields = [ndimage.gaussian_filter(generator.standard_normal(shape), sigma) for _ in range(len(values) + 1)]
    labels = np.array([0, *values], np.uint8)[np.argmax(fields, axis=0)]
    labels[[0, -1]] = labels[:, [0, -1]] = labels[:, :, [0, -1]] = 0
    return labels


# Reading and writing ---------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", [".nii", ".nii.gz"])
@pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.uint16, np.int32, np.float32, np.float64])
def test_written_is_read_back(tmp_path, dtype, suffix):
    volume = Volume(noise(dtype=dtype), Geometry((7, 6, 5), random_matrix(2)))
    write_nifti(tmp_path / f"a{suffix}", volume, description=SYNTHETIC)
    back = read_volume(tmp_path / f"a{suffix}")
    assert back.array.dtype == dtype and back.notes == ()
    np.testing.assert_array_equal(back.array, volume.array)
    assert back.geometry.is_close(volume.geometry, 1e-4)
    assert bytes(nibabel.load(tmp_path / f"a{suffix}").header["descrip"]).rstrip(b"\0") == SYNTHETIC.encode()


@pytest.mark.parametrize(
    "dtype, stored", [(bool, np.uint8), (np.int64, np.int32), (np.uint64, np.int32), (np.float16, np.float32)]
)
def test_dtypes_that_nifti_readers_lack_are_widened_or_narrowed_without_loss(tmp_path, dtype, stored):
    array = noise(dtype=dtype)
    write_nifti(tmp_path / "a.nii", Volume(array, Geometry((7, 6, 5), np.eye(4))))
    back = read_volume(tmp_path / "a.nii").array
    assert back.dtype == stored
    np.testing.assert_array_equal(back, array)


def test_integers_beyond_32_bits_are_not_written(tmp_path):
    with pytest.raises(MedDPMError, match="32 bits"):
        write_nifti(tmp_path / "a.nii", Volume(np.full((2, 2, 2), 2**40), Geometry((2, 2, 2), np.eye(4))))
    assert not list(tmp_path.iterdir())


def test_a_shear_survives_although_the_qform_cannot_hold_it(tmp_path):
    matrix = np.array([[1, 0.3, 0, 5], [0, 2, 0.2, 6], [0, 0, 3, 7], [0, 0, 0, 1.0]])
    write_nifti(tmp_path / "a.nii.gz", Volume(noise(), Geometry((7, 6, 5), matrix)))
    np.testing.assert_allclose(read_volume(tmp_path / "a.nii.gz").geometry.ijk_to_ras, matrix, atol=1e-6)
    header = nibabel.load(tmp_path / "a.nii.gz").header
    assert header["sform_code"] == header["qform_code"] == 1
    assert header.get_xyzt_units()[0] == "mm"


def test_a_rotation_is_the_same_for_readers_of_sform_and_qform(tmp_path):
    matrix = np.eye(4)
    matrix[:3, :3] = np.linalg.qr(np.random.default_rng(1).standard_normal((3, 3)))[0] * [1, 2, 3]
    write_nifti(tmp_path / "a.nii", Volume(noise(), Geometry((7, 6, 5), matrix)))
    header = nibabel.load(tmp_path / "a.nii").header
    np.testing.assert_allclose(header.get_qform(), header.get_sform(), atol=1e-5)
    image = SimpleITK.ReadImage(str(tmp_path / "a.nii"))  # as 3D Slicer reads it, in LPS
    lps = np.array(image.TransformContinuousIndexToPhysicalPoint((1.0, 2.0, 3.0)))
    np.testing.assert_allclose(lps * [-1, -1, 1], (matrix @ [1, 2, 3, 1])[:3], atol=1e-4)


@pytest.mark.parametrize("suffix", [".nrrd", ".mha", ".nhdr", ".mhd"])
def test_itk_formats_lie_where_the_same_nifti_lies(tmp_path, suffix):
    image = SimpleITK.GetImageFromArray(noise())
    image.SetSpacing((1, 2, 3))
    image.SetOrigin((10, -20, 30))
    image.SetDirection(np.linalg.qr(np.random.default_rng(3).standard_normal((3, 3)))[0].ravel().tolist())
    SimpleITK.WriteImage(image, str(tmp_path / f"a{suffix}"))
    SimpleITK.WriteImage(image, str(tmp_path / "a.nii"))
    one, other = read_volume(tmp_path / f"a{suffix}"), read_volume(tmp_path / "a.nii")
    np.testing.assert_array_equal(one.array, other.array)
    assert one.geometry.is_close(other.geometry)


def test_only_a_qform(tmp_path):
    image = nibabel.Nifti1Image(noise().T, None)
    matrix = oriented("PIR", (7, 6, 5), (1, 2, 3)).ijk_to_ras
    image.set_qform(matrix, code=1)
    image.set_sform(None, code=0)
    nibabel.save(image, tmp_path / "a.nii")
    np.testing.assert_allclose(read_volume(tmp_path / "a.nii").geometry.ijk_to_ras, matrix, atol=1e-6)


def test_a_file_that_does_not_say_how_it_lies_is_noted(tmp_path):
    image = nibabel.Nifti1Image(noise().T, None)
    image.header.set_zooms((1, 2, 3))
    nibabel.save(image, tmp_path / "a.nii")
    volume = read_volume(tmp_path / "a.nii")
    assert volume.geometry.orientation == "LPS" and list(volume.geometry.spacing) == [1, 2, 3]
    assert "has no orientation in the patient" in volume.notes[0]
    itk = SimpleITK.ReadImage(str(tmp_path / "a.nii"))
    np.testing.assert_allclose(volume.geometry.ijk_to_ras, itk_ijk_to_ras(itk), atol=1e-6)


@pytest.mark.parametrize("endianness", "<>")
def test_both_byte_orders_become_native(tmp_path, endianness):
    header = nibabel.Nifti1Header(endianness=endianness)
    header.set_data_dtype(np.dtype(np.int16).newbyteorder(endianness))
    nibabel.save(nibabel.Nifti1Image(noise().T, np.eye(4), header), tmp_path / "a.nii")
    array = read_volume(tmp_path / "a.nii").array
    assert array.dtype == np.int16 and array.dtype.isnative and array.flags.c_contiguous
    np.testing.assert_array_equal(array, noise())


def test_slope_and_intercept_are_applied(tmp_path):
    image = nibabel.Nifti1Image(noise().T, np.eye(4))
    image.header.set_slope_inter(0.5, -3)
    nibabel.save(image, tmp_path / "a.nii")
    stored = bytearray((tmp_path / "a.nii").read_bytes())
    stored[112:120] = np.array([0.5, -3], "<f4").tobytes()  # scl_slope, scl_inter
    (tmp_path / "a.nii").write_bytes(stored)
    raw = np.frombuffer(bytes(stored[352:]), "<i2").reshape(5, 6, 7)
    np.testing.assert_allclose(read_volume(tmp_path / "a.nii").array, raw * 0.5 - 3)


def test_a_file_can_be_replaced_after_it_was_read(tmp_path):
    path = tmp_path / "a.nii"
    write_nifti(path, Volume(noise(), Geometry((7, 6, 5), np.eye(4))))
    array = read_volume(path).array
    path.write_bytes(b"")  # with the voxels mapped from the file, touching them now would kill the process
    np.testing.assert_array_equal(array, noise())


def test_names():
    assert volume_suffix(Path("x/CASE.1.NII.GZ")) == ".nii.gz" and volume_stem(Path("x/CASE.1.NII.GZ")) == "CASE.1"
    assert volume_stem(Path("a.seg.nrrd")) == "a" and volume_suffix(Path("a.jpg")) is None


# Bad input -------------------------------------------------------------------------------------------


def refused(path, match):
    with pytest.raises(MedDPMError, match=match) as caught:
        read_volume(path)
    assert path.name in str(caught.value) and "\n" not in str(caught.value)


def save(path, array, affine=None):
    nibabel.save(nibabel.Nifti1Image(array, np.eye(4) if affine is None else affine), path)
    return path


def test_shapes_other_than_one_volume_are_refused(tmp_path):
    refused(save(tmp_path / "a.nii", np.zeros((4, 5), np.uint8)), "not one 3-D volume")
    refused(save(tmp_path / "b.nii", np.zeros((4, 5, 1), np.uint8)), "4 x 5 x 1")
    refused(save(tmp_path / "c.nii.gz", np.zeros((4, 5, 6, 2), np.uint8)), "4 x 5 x 6 x 2")
    refused(save(tmp_path / "d.nii", np.zeros((4, 5, 6, 1, 3), np.uint8)), "not one 3-D volume")
    assert read_volume(save(tmp_path / "e.nii", np.zeros((4, 5, 6, 1), np.uint8))).array.shape == (6, 5, 4)
    for name, array, is_vector in (("f.nrrd", np.zeros((4, 5, 6, 2), np.uint8), True), ("g.mha", noise((4, 5)), False)):
        SimpleITK.WriteImage(SimpleITK.GetImageFromArray(array, isVector=is_vector), str(tmp_path / name))
        refused(tmp_path / name, "one 3-D volume")


def test_values_that_are_no_numbers_are_refused(tmp_path):
    rgb = np.zeros((4, 5, 6), [("R", "u1"), ("G", "u1"), ("B", "u1")])
    refused(save(tmp_path / "rgb.nii", rgb), "one channel")
    refused(save(tmp_path / "complex.nii", np.zeros((4, 5, 6), np.complex64)), "one channel")
    for value in (np.nan, np.inf):
        array = np.zeros((4, 5, 6), np.float32)
        array[1, 2, 3] = value
        refused(save(tmp_path / "nan.nii.gz", array), "not finite")


def test_a_singular_matrix_is_refused(tmp_path):
    path = save(tmp_path / "a.nii", np.zeros((4, 5, 6), np.uint8))
    stored = bytearray(path.read_bytes())
    stored[296:312] = stored[280:296]  # the second row of the sform becomes the first
    path.write_bytes(stored)
    refused(path, "singular")


def test_what_is_no_volume_file_is_refused(tmp_path):
    refused(tmp_path, "folder")
    refused(tmp_path / "absent.nii", "does not exist")
    (tmp_path / "a.png").write_bytes(b"x")
    refused(tmp_path / "a.png", "not a volume")
    (tmp_path / "a.nii").write_bytes(b"")
    refused(tmp_path / "a.nii", "an empty file")
    refused(tmp_path / "a.nii" / "b.nii", "does not exist")
    with pytest.raises(MedDPMError, match="cannot be opened"):
        read_volume(tmp_path / ("x" * 300 + ".nii"))


@pytest.mark.skipif(not hasattr(os, "setuid"), reason="file permissions of POSIX")
def test_files_and_folders_without_permission(tmp_path):
    """As an ordinary user: the administrator may read and write everything."""
    script = """
        import os, sys
        from pathlib import Path
        import nibabel, numpy as np
        from MedDPMLib.errors import MedDPMError
        from MedDPMLib.imaging.geometry import Geometry
        from MedDPMLib.imaging.io import read_volume, write_nifti
        from MedDPMLib.imaging.volume import Volume
        folder = Path(sys.argv[1])
        if os.getuid() == 0:
            os.setuid(65534)
        volume = Volume(np.zeros((2, 2, 2), np.uint8), Geometry((2, 2, 2), np.eye(4)))
        for attempt in (
            lambda: read_volume(folder / "locked.nii"),
            lambda: read_volume(folder / "closed" / "a.nii"),
            lambda: write_nifti(folder / "closed" / "b.nii", volume),
            lambda: write_nifti(folder / "closed" / "deeper" / "b.nii", volume),
        ):
            try:
                attempt()
            except MedDPMError as error:
                print(error)
    """
    (tmp_path / "locked.nii").write_bytes(b"x")
    (tmp_path / "locked.nii").chmod(0)
    (tmp_path / "closed").mkdir()
    (tmp_path / "closed").chmod(0)
    if os.getuid() == 0:
        for parent in (tmp_path, *tmp_path.parents[:2]):
            parent.chmod(0o755)
    lines = run_script(script, str(tmp_path)).stdout.splitlines()
    (tmp_path / "closed").chmod(0o700)
    assert len(lines) == 4
    assert all("Permission denied" in line for line in lines), lines


def run_script(script, *arguments):
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])}
    return subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script), *arguments],
        capture_output=True, text=True, check=True, env=environment, cwd="/",
    )  # fmt: skip


@pytest.mark.parametrize("suffix", [".nii", ".nii.gz", ".nrrd", ".mha"])
def test_a_file_cut_short_anywhere_is_refused(tmp_path, suffix):
    path = tmp_path / f"a{suffix}"
    if suffix.startswith(".nii"):
        write_nifti(path, Volume(noise((4, 4, 4)), Geometry((4, 4, 4), np.eye(4))))
    else:
        SimpleITK.WriteImage(SimpleITK.GetImageFromArray(noise((4, 4, 4))), str(path), suffix == ".nrrd")
    whole = path.read_bytes()
    assert read_volume(path).array.shape == (4, 4, 4)
    # The last 8 bytes of gzip are a checksum that readers may leave unread.
    lengths = range(0, len(whole) - (8 if suffix in (".nii.gz", ".nrrd") else 0), 1 if suffix == ".nii.gz" else 7)
    for length in lengths:
        path.write_bytes(whole[:length])
        with pytest.raises(MedDPMError):
            read_volume(path)


def test_a_header_that_promises_too_much_is_refused_before_memory_is_taken(tmp_path):
    path = save(tmp_path / "a.nii", np.zeros((4, 5, 6), np.uint8))
    stored = bytearray(path.read_bytes())
    stored[42:48] = np.array([32767, 32767, 32767], "<i2").tobytes()
    for name, content in (("a.nii", bytes(stored)), ("a.nii.gz", gzip.compress(bytes(stored)))):
        (tmp_path / name).write_bytes(content)
        refused(tmp_path / name, "damaged")


@fuzz
@given(st.sampled_from(SUFFIXES), st.binary(max_size=600))
def test_any_bytes_give_an_error_that_can_be_read(tmp_path, suffix, content):
    path = tmp_path / f"fuzz{suffix}"
    path.write_bytes(content)
    with pytest.raises(MedDPMError):
        read_volume(path)


@fuzz
@given(st.data())
def test_a_damaged_header_gives_a_volume_or_an_error(tmp_path, data):
    path = tmp_path / "a.nii"
    if not path.exists():
        write_nifti(path, Volume(noise((4, 4, 4), np.float32), Geometry((4, 4, 4), random_matrix(5))))
    stored = bytearray(path.read_bytes())
    for _ in range(data.draw(st.integers(1, 6))):
        stored[data.draw(st.integers(0, 351))] = data.draw(st.integers(0, 255))
    damaged = tmp_path / data.draw(st.sampled_from(["b.nii", "b.nii.gz"]))
    damaged.write_bytes(gzip.compress(bytes(stored), 1) if damaged.suffix == ".gz" else bytes(stored))
    try:
        volume = read_volume(damaged)
    except MedDPMError:
        return
    assert volume.array.shape == volume.geometry.shape and np.isfinite(volume.array).all()


# Written whole or not at all -------------------------------------------------------------------------


@pytest.mark.parametrize("interruption", [KeyboardInterrupt, SystemExit, RuntimeError, MedDPMError])
def test_an_interrupted_write_leaves_what_was_there(tmp_path, interruption):
    path = tmp_path / "a.nii.gz"
    path.write_text("before")
    with pytest.raises(interruption), atomic_write(path) as temporary:
        assert temporary.parent == tmp_path and temporary.name.endswith(".nii.gz") and temporary != path
        temporary.write_text("half")
        raise interruption("stop")
    assert path.read_text() == "before" and list(tmp_path.iterdir()) == [path]


def test_a_finished_write_replaces_and_is_readable_by_others(tmp_path):
    path = tmp_path / "new" / "folder" / "a.json"
    umask = os.umask(0o022)
    try:
        for text in ("first", "second"):
            with atomic_write(path) as temporary:
                temporary.write_text(text)
    finally:
        os.umask(umask)
    assert path.read_text() == "second" and list(path.parent.iterdir()) == [path]
    assert path.stat().st_mode & 0o777 == 0o644 or os.name == "nt"


def test_a_name_of_the_longest_length_can_be_written(tmp_path):
    path = tmp_path / ("ü" * 120 + ".nii")
    with atomic_write(path) as temporary:
        temporary.write_text("x")
    assert path.read_text() == "x"


def test_places_that_cannot_be_written(tmp_path):
    volume = Volume(noise(), Geometry((7, 6, 5), np.eye(4)))
    (tmp_path / "file").write_text("x")
    (tmp_path / "folder.nii").mkdir()
    for path in (tmp_path / "file" / "a.nii", tmp_path / "folder.nii"):
        with pytest.raises(MedDPMError, match="cannot be written"):
            write_nifti(path, volume)
    with pytest.raises(MedDPMError, match="end with .nii"):
        write_nifti(tmp_path / "a.nrrd", volume)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "folder.nii"]


@pytest.mark.skipif(os.name == "nt", reason="limits of POSIX")
@pytest.mark.parametrize("suffix", [".nii", ".nii.gz"])
def test_a_full_disk_leaves_nothing_and_says_so(tmp_path, suffix):
    """A limit on the size of files stands for the full disk: the write fails half-way in the same manner."""
    script = """
        import resource, sys
        from pathlib import Path
        import numpy as np
        from MedDPMLib.errors import MedDPMError
        from MedDPMLib.imaging.geometry import Geometry
        from MedDPMLib.imaging.io import write_nifti
        from MedDPMLib.imaging.volume import Volume
        volume = Volume(np.random.default_rng(0).standard_normal((60, 60, 60)), Geometry((60, 60, 60), np.eye(4)))
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
        try:
            write_nifti(sys.argv[1], volume)
        except MedDPMError as error:
            print(error)
    """
    path = tmp_path / f"a{suffix}"
    path.write_text("before")
    result = run_script(script, str(path))
    assert "cannot be written" in result.stdout and "free some space" in result.stdout
    assert result.stderr == ""
    assert path.read_text() == "before" and list(tmp_path.iterdir()) == [path]


# Resampling ------------------------------------------------------------------------------------------


def points(volume, value):
    """The points of space that carry ``value``."""
    ijk = np.argwhere(volume.array == value)[:, ::-1]
    return set(map(tuple, np.round(volume.geometry.to_ras(ijk), 3)))


@pytest.mark.parametrize("orientation", ALL_ORIENTATIONS)
def test_a_lattice_shared_is_copied_and_comes_back_unchanged(orientation):
    source = Volume(blobs((9, 11, 13), [1, 2, 3]), oriented("LPS", (13, 11, 9), (2, 2, 2), (5, 6, 7)))
    target = oriented(orientation, (15, 15, 15), (2, 2, 2), (5, 6, 7))  # odd sizes: the middles are voxels
    there = resample_labels(source, target, [1, 2, 3])
    for value in (1, 2, 3):
        assert points(there, value) == points(source, value)
    np.testing.assert_array_equal(resample_labels(there, source.geometry, [1, 2, 3]).array, source.array)


def test_a_smaller_box_on_the_lattice_is_cut_out():
    array = blobs((9, 11, 13), [1, 2])
    geometry = Geometry((13, 11, 9), random_matrix(4))
    part = geometry.cut(np.array([-2, 3, 1]), np.array([7, 20, 8]))
    cut = resample_labels(Volume(array, geometry), part, [1, 2]).array
    expected = np.zeros((7, 17, 9), np.uint8)
    expected[:, :8, 2:] = array[1:8, 3:, :7]
    np.testing.assert_array_equal(cut, expected)
    elsewhere = geometry.cut(np.array([50, 0, 0]), np.array([55, 5, 5]))
    assert not resample_labels(Volume(array, geometry), elsewhere, [1, 2]).array.any()


def test_labels_without_priority_are_background_on_any_grid():
    source = Volume(blobs((9, 11, 13), [1, 2, 3]), oriented("RAS", (13, 11, 9)))
    for target in (oriented("LPI", (13, 11, 9)), oriented("RAS", (13, 11, 9), (1.3, 1.3, 1.3))):
        assert set(np.unique(resample_labels(source, target, [3, 1]).array)) == {0, 1, 3}


def shares(volume, target, values, points):
    """Independent: scipy's linear interpolation of each label's indicator, averaged over ``points`` a voxel."""
    to_source = volume.geometry.ras_to_ijk @ target.ijk_to_ras
    found = []
    for value in values:
        indicator = np.pad((volume.array == value).astype(float), 1)
        total = np.zeros(target.shape)
        for offset in np.ndindex(*points):
            shift = (np.array(offset) + 0.5) / points - 0.5
            start = to_source[:3, 3] + to_source[:3, :3] @ shift + 1
            total += ndimage.affine_transform(
                indicator, to_source[:3, :3][::-1, ::-1], start[::-1], target.shape, order=1, mode="constant"
            )
        found.append(total / np.prod(points))
    return np.array(found)


@pytest.mark.parametrize(
    "matrix, points",
    [
        (random_matrix(11) @ np.diag([0.3, 0.3, 0.3, 1]), None),
        (np.diag([0.7, 1.3, 0.9, 1.0]), (1, 2, 1)),
        (np.diag([2.0, 2.0, 2.0, 1.0]), (2, 2, 2)),
        (np.diag([1.5, 1.5, 4.0, 1.0]), (2, 2, 4)),
    ],
)
def test_labels_agree_with_an_independent_interpolation(matrix, points):
    source = Volume(blobs((30, 32, 34), [1, 2, 3, 4], sigma=3.0), oriented("LPS", (34, 32, 30)))
    matrix = matrix.copy()
    target = Geometry((20, 20, 20), matrix)
    matrix[:3, 3] += source.geometry.center - target.center
    target = Geometry((20, 20, 20), matrix)
    if points is None:
        step = np.abs(source.geometry.ras_to_ijk[:3, :3] @ matrix[:3, :3]).max(axis=0)
        points = tuple(int(n) for n in np.maximum(1, np.ceil(step - 0.01)))
    found = resample_labels(source, target, [4, 3, 2, 1]).array
    share = shares(source, target, [1, 2, 3, 4], points)
    share = np.concatenate([1 - share.sum(axis=0, keepdims=True), share])
    ranked = np.sort(share, axis=0)
    clear = ranked[-1] - ranked[-2] > 1e-3
    assert clear.mean() > 0.9 and len(np.unique(found)) == 5
    np.testing.assert_array_equal(found[clear], share.argmax(axis=0)[clear])


def test_a_tie_goes_to_the_label_that_comes_first():
    array = np.zeros((6, 6, 6), np.uint8)
    array[:, :, :3], array[:, :, 3:] = 1, 2
    geometry = oriented("RAS", (6, 6, 6))
    between = Geometry((1, 4, 4), np.block([[np.eye(3), geometry.to_ras([2.5, 1, 1])[:, None]], [np.zeros(3), 1]]))
    for priority in ([1, 2], [2, 1]):
        assert set(np.unique(resample_labels(Volume(array, geometry), between, priority).array)) == {priority[0]}


@pytest.mark.parametrize("in_plane, along", [(0.8, 0.8), (1.4, 1.4), (2, 2), (3, 3), (1, 3), (2.5, 1.2)])
def test_a_labels_volume_is_conserved(in_plane, along):
    """On average over positions and rotations, where the luck of the lattice cancels.

    Averaging over a voxel of side h and linear interpolation at 1 mm blur by a variance s^2 of h^2 / 12 + 1 / 6,
    which moves the surface of a ball of radius r inwards by s^2 / r: 3 s^2 / r^2 of the volume at most.
    """
    radius = 14
    k, j, i = np.mgrid[:40, :40, :40] - 19.5
    ball = (k**2 + j**2 + i**2 < radius**2).astype(np.uint8)
    source = Volume(ball, oriented("RAS", (40, 40, 40)))
    ratios = []
    for seed in range(8):
        generator = np.random.default_rng(seed)
        matrix = np.eye(4)
        matrix[:3, :3] = np.linalg.qr(generator.standard_normal((3, 3)))[0] * [in_plane, in_plane, along]
        size = tuple(int(46 / s) for s in (in_plane, in_plane, along))
        matrix[:3, 3] = generator.uniform(-1, 1, 3) - Geometry(size, matrix).center
        target = Geometry(size, matrix)
        there = resample_labels(source, target, [1]).array
        ratios.append(np.count_nonzero(there) * target.voxel_volume / np.count_nonzero(ball))
    shrinkage = 3 * (max(in_plane, along) ** 2 / 12 + 1 / 6) / radius**2
    noise = 3 * np.std(ratios) / np.sqrt(len(ratios))
    assert 1 - shrinkage - noise < np.mean(ratios) < 1 + noise
    assert np.std(ratios) < 0.02


@given(st.integers(0, 10**6))
@settings(max_examples=15, deadline=None)
def test_linear_intensities_are_interpolated_exactly(seed):
    """Interpolation and averaging both keep what is linear in space, whatever the two geometries are."""
    generator = np.random.default_rng(seed)
    source = Geometry((20, 22, 24), random_matrix(seed))
    slope = generator.uniform(-1, 1, 3)
    k, j, i = np.mgrid[:24, :22, :20]
    ramp = source.to_ras(np.stack([i, j, k], axis=-1)) @ slope
    matrix = random_matrix(seed + 1)
    matrix[:3, :3] *= 0.5
    matrix[:3, 3] += source.center - Geometry((5, 6, 7), matrix).center
    target = Geometry((5, 6, 7), matrix)
    found = resample_image(Volume(ramp, source), target, fill=np.nan).array
    k, j, i = np.mgrid[:7, :6, :5]
    expected = target.to_ras(np.stack([i, j, k], axis=-1)) @ slope
    corners = np.stack(np.meshgrid([-0.5, 0.5], [-0.5, 0.5], [-0.5, 0.5]), axis=-1).reshape(-1, 3)
    reach = source.to_ijk(target.to_ras(np.stack([i, j, k], axis=-1)[..., None, :] + corners))
    inside = ((reach > 0) & (reach < np.array(source.size) - 1)).all(axis=(-1, -2))
    np.testing.assert_allclose(found[inside], expected[inside], atol=2e-3)


def test_what_lies_outside_an_image_is_filled():
    source = Volume(np.ones((4, 4, 4), np.int16), oriented("RAS", (4, 4, 4)))
    found = resample_image(source, oriented("RAS", (8, 8, 8)), fill=-1).array
    expected = -np.ones((8, 8, 8), np.float32)
    expected[2:6, 2:6, 2:6] = 1
    np.testing.assert_array_equal(found, expected)
    same = resample_image(source, oriented("RAS", (4, 4, 4)), fill=-1)
    assert same.array.dtype == np.float32 and (same.array == 1).all()


def test_a_coarser_grid_averages_instead_of_picking():
    """A pattern of every other voxel would alias to all or nothing."""
    array = np.zeros((16, 16, 16), np.float32)
    array[:, :, ::2] = 1
    target = oriented("RAS", (8, 8, 8), (2, 2, 2))
    np.testing.assert_allclose(resample_image(Volume(array, oriented("RAS", (16, 16, 16))), target, fill=0).array, 0.5)


@pytest.mark.parametrize("fine", [0.2, 0.25, 0.5])
def test_a_much_coarser_grid_averages_whole_voxels(fine):
    """From 0.2 mm to 2 mm, 1000 voxels become one, on and off the lattice; means and shares come out right."""
    n = int(16 / fine)
    array = np.random.default_rng(0).uniform(size=(n, n, n)).astype(np.float32)
    array[: n // 2] += 1
    source = Volume(array, oriented("LPS", (n, n, n), (fine,) * 3))
    found = resample_image(source, oriented("LPS", (8, 8, 8), (2, 2, 2)), fill=0).array
    blocks = array.reshape(8, n // 8, 8, n // 8, 8, n // 8).mean(axis=(1, 3, 5))
    np.testing.assert_allclose(found[1:-1, 1:-1, 1:-1], blocks[1:-1, 1:-1, 1:-1], atol=0.1)
    assert abs(found[1:-1].mean() - blocks[1:-1].mean()) < 0.01
    labels = Volume((array > 1).astype(np.uint8) + 1, source.geometry)
    turned = oriented("LPS", (6, 6, 6), (2.1, 1.9, 2.0), (0.1, 0.2, 0.9))
    k = positions_along_k(turned)
    np.testing.assert_array_equal(
        resample_labels(labels, turned, [1, 2]).array, np.where(k < 0, 2, 1)[:, None, None] * np.ones((6, 6, 6))
    )


def positions_along_k(geometry):
    return geometry.to_ras(np.stack([np.zeros(6), np.zeros(6), np.arange(6)], axis=1))[:, 2]


def test_a_volume_of_microscopic_size_takes_no_time():
    """Millimeters taken for meters: a thousand voxels along each side of one."""
    tiny = Volume(blobs((20, 20, 20), [1, 2]), oriented("LPS", (20, 20, 20), (0.002, 0.002, 0.002)))
    grid = oriented("LPS", (20, 20, 20), (2, 2, 2))
    assert not resample_labels(tiny, grid, [1, 2]).array.any()
    assert np.isfinite(resample_image(tiny, grid, fill=-1).array).all()


@pytest.mark.skipif(os.name == "nt", reason="Windows has no such modes")
def test_what_is_written_can_be_read_by_those_whom_the_user_lets(tmp_path):
    before = os.umask(0o027)
    try:
        with atomic_write(tmp_path / "a.json") as temporary:
            temporary.unlink()  # as writers do that move a private file of their own there
            temporary.touch(0o600)
    finally:
        os.umask(before)
    assert (tmp_path / "a.json").stat().st_mode & 0o777 == 0o640
