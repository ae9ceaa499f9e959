"""Masks: what is usable is read and placed exactly, what is not is refused with a way out."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from test_geometry import ALL_ORIENTATIONS, oriented, random_matrix

from MedDPMLib.errors import MedDPMError
from MedDPMLib.imaging.geometry import Geometry, Grid
from MedDPMLib.imaging.io import read_volume, write_nifti
from MedDPMLib.imaging.resample import resample_labels
from MedDPMLib.imaging.volume import Volume
from MedDPMLib.masks.condition import condition
from MedDPMLib.masks.fit import fit
from MedDPMLib.masks.mask import Mask, read_mask
from MedDPMLib.masks.schemes import LabelScheme, load_scheme

SHARED = Path(__file__).parents[2] / "shared" / "data"
needs_data = pytest.mark.skipif(not SHARED.is_dir(), reason="real data (../shared/data) is not here")

BRATS = load_scheme("brats")
GRID = Grid((40, 44, 36), (2.0, 2.0, 2.0), "LPS")
SEMI_AXES = np.array([28.0, 34.0, 26.0])


def positions(geometry):
    k, j, i = np.mgrid[tuple(map(slice, geometry.shape))]
    return geometry.to_ras(np.stack([i, j, k], axis=-1))


def painted(geometry, center, tumor=(9.0, 11.0, 6.0), radius=9.0):
    """A brain (an ellipsoid) with a tumor of three layers, as its labels are at the voxels of ``geometry``."""
    ras = positions(geometry) - center
    labels = np.where((ras**2 / SEMI_AXES**2).sum(axis=-1) < 1, 4, 0).astype(np.uint8)
    distance = np.linalg.norm(ras - tumor, axis=-1)
    for value, edge in ((2, radius), (3, 0.75 * radius), (1, 0.45 * radius)):
        labels[distance < edge] = value
    return Volume(labels, geometry)


def mask_of(volume, scheme=BRATS, **options):
    return Mask.from_volume(volume, scheme, numbering=scheme.own_numbering, **options)


def centroid(labels, geometry):
    """RAS position of the middle of the tumor."""
    return geometry.to_ras(np.argwhere((labels > 0) & (labels < 4))[:, ::-1].mean(axis=0))


def enclosing(matrix, center, reach=42.0):
    """The geometry with the axes of ``matrix`` whose box holds ``reach`` mm around ``center``."""
    span = np.ceil(2 * reach * np.linalg.norm(np.linalg.inv(matrix[:3, :3]), axis=1)).astype(int)
    placed = matrix.copy()
    placed[:3, 3] = center - matrix[:3, :3] @ ((span - 1) / 2)
    return Geometry(tuple(span), placed)


# Placing ---------------------------------------------------------------------------------------------


def assert_tumor_stays(mask, grid=GRID):
    """The tumor's centroid is the painted one to half a voxel, in the model's grid and back on the mask's own."""
    geometry = mask.volume.geometry
    expected = centroid(mask.volume.array, geometry)
    fitted = fit(mask, grid)
    assert fitted.labels.shape == grid.shape and fitted.labels.dtype == np.uint8
    np.testing.assert_allclose(fitted.geometry.spacing, grid.spacing)
    assert fitted.geometry.orientation == grid.orientation
    assert not fitted.outside and not fitted.notes
    assert set(np.unique(fitted.labels)) == set(np.unique(mask.volume.array))
    there = centroid(fitted.labels, fitted.geometry) - expected
    assert np.abs(there).max() < 0.5 * min(grid.spacing)
    back = resample_labels(Volume(fitted.labels, fitted.geometry), geometry, mask.scheme.priority)
    offset = geometry.ras_to_ijk[:3, :3] @ (centroid(back.array, geometry) - expected)
    assert np.abs(offset).max() < 0.5
    return fitted


@pytest.mark.parametrize("orientation", ALL_ORIENTATIONS)
def test_the_tumor_stays_where_it_was_painted_in_every_orientation(orientation):
    center = np.array([12.3, -45.6, 78.9])
    for spacing in ((2.0, 2.0, 2.0), (1.7, 2.3, 3.1)):
        geometry = oriented(orientation, tuple(int(84 / s) for s in spacing), spacing, center + [3.3, 1.7, -2.9])
        assert_tumor_stays(mask_of(painted(geometry, center)))


@pytest.mark.parametrize("spacing", [(0.7, 0.7, 0.7), (1, 1, 1), (3, 3, 3), (1, 1, 5), (5, 1, 1), (0.9, 3, 0.9)])
@pytest.mark.parametrize("orientation", ["LPS", "SAR"])
def test_the_tumor_stays_for_any_spacing(orientation, spacing):
    center = np.array([-3.0, 20.0, -11.0])
    geometry = oriented(orientation, tuple(int(84 / s) for s in spacing), spacing, center + [1.9, -1.3, 0.4])
    assert_tumor_stays(mask_of(painted(geometry, center)))


@settings(max_examples=12, deadline=None)
@given(st.integers(0, 10**6))
def test_the_tumor_stays_when_the_mask_is_oblique_or_sheared(seed):
    generator = np.random.default_rng(seed)
    matrix = random_matrix(seed)
    lengths = np.linalg.norm(matrix[:3, :3], axis=0)
    matrix[:3, :3] *= generator.uniform(1.0, 3.0, 3) / lengths
    center = generator.uniform(-100, 100, 3)
    assert_tumor_stays(mask_of(painted(enclosing(matrix, center), center)))


@pytest.mark.parametrize("orientation", ALL_ORIENTATIONS)
def test_a_mask_on_the_models_grid_stays_put_and_loses_nothing(orientation):
    own = GRID.centered_on(np.array([5.0, -6.0, 7.0]))
    along = ["RLAPSI".index(letter) // 2 for letter in orientation]
    geometry = oriented(orientation, tuple(GRID.size[axis] for axis in along), GRID.spacing, own.center)
    # The brain is off the middle: it stays there, since the mask is in the model's own space.
    mask = mask_of(painted(geometry, own.center + [4.2, -3.3, 2.1]))
    fitted = fit(mask, GRID)
    assert fitted.geometry.is_close(own)
    back = resample_labels(Volume(fitted.labels, fitted.geometry), geometry, BRATS.priority)
    np.testing.assert_array_equal(back.array, mask.volume.array)
    if orientation == "LPS":
        np.testing.assert_array_equal(fitted.labels, mask.volume.array)


@pytest.mark.parametrize("orientation", ["RAS", "LPS", "PIR"])
def test_a_mask_with_the_models_spacing_is_copied_voxel_by_voxel(orientation):
    geometry = oriented(orientation, (50, 55, 60), GRID.spacing, (1, 2, 3))
    mask = mask_of(painted(geometry, np.array([9.0, -4.0, 6.5])))
    fitted = assert_tumor_stays(mask)
    np.testing.assert_array_equal(np.bincount(fitted.labels.ravel())[1:], np.bincount(mask.volume.array.ravel())[1:])


def ellipsoid(scale):
    geometry = oriented("RAS", (80, 90, 80), (2.0, 2.0, 2.0))
    ras = positions(geometry)
    labels = np.where((ras**2 / (scale * SEMI_AXES) ** 2).sum(axis=-1) < 1, 4, 0).astype(np.uint8)
    inside = (np.abs(ras) < np.array(GRID.size) * GRID.spacing / 2).all(axis=-1)
    return mask_of(Volume(labels, geometry)), inside


def test_a_mask_is_never_stretched():
    """A brain that is a little too large stays as large, and what does not fit is said."""
    mask, inside = ellipsoid(1.45)
    fitted = fit(mask, GRID)
    brain = mask.volume.array == 4
    assert fitted.outside == pytest.approx({"Rest of the brain": np.count_nonzero(brain & ~inside) * 8.0})
    assert np.count_nonzero(fitted.labels) == np.count_nonzero(brain & inside)
    (note,) = fitted.notes
    assert "Rest of the brain" in note and "cut off" in note


def test_what_would_lose_a_brain_or_a_tumor_is_refused():
    with pytest.raises(MedDPMError, match=r"[234]\d(\.\d)? % of mask .* lie outside the model's grid"):
        fit(ellipsoid(2.0)[0], GRID)
    mask, inside = ellipsoid(1.45)
    corner = np.argwhere((mask.volume.array == 4) & ~inside)[0]
    mask.volume.array[tuple(corner)] = 3
    with pytest.raises(MedDPMError, match="all of the enhancing tumor of mask lies outside the model's grid"):
        fit(mask, GRID)


@pytest.mark.parametrize(
    "factor, advice",
    [(1e-3, "seems to give meters"), (1e3, "give micrometers"), (5, "2 x 2 x 2 mm would")],
)
def test_an_absurd_size_is_refused_with_the_unit_that_would_make_sense(factor, advice):
    geometry = oriented("LPS", (90, 100, 80), (2, 2, 2))
    ras = positions(geometry)
    labels = np.where((ras**2 / np.array([75, 90, 65]) ** 2).sum(axis=-1) < 1, 4, 0).astype(np.uint8)
    labels[40:50, 40:50, 40:50] = 2
    matrix = geometry.ijk_to_ras * np.array([[factor], [factor], [factor], [1]])
    scaled = Volume(labels, Geometry(geometry.size, matrix))
    with pytest.raises(MedDPMError, match=advice):
        fit(mask_of(scaled), Grid((96, 96, 72), (2.0, 2.0, 2.0), "LPS"))
    with pytest.raises(MedDPMError, match=advice):
        Mask.from_volume(scaled, BRATS)


@pytest.mark.filterwarnings("error")
def test_an_extent_that_is_lost_in_the_position_is_refused_without_a_warning():
    """So far from the origin that all voxels are at one place: the mask has no length, and none is divided by it."""
    mask = ellipsoid(1.0)[0].volume
    matrix = mask.geometry.ijk_to_ras.copy()
    matrix[:3, 3] = 1e30
    with pytest.raises(MedDPMError, match="not the size of a brain: check the spacing in its header, "):
        Mask.from_volume(Volume(mask.array, Geometry(mask.geometry.size, matrix)), BRATS)


@settings(max_examples=8, deadline=None)
@given(st.integers(0, 10**6))
def test_what_falls_outside_is_counted_exactly(seed):
    generator = np.random.default_rng(seed)
    matrix = random_matrix(seed)
    matrix[:3, :3] *= 2.5 / np.linalg.norm(matrix[:3, :3], axis=0)
    geometry = Geometry((26, 28, 30), matrix)
    labels = generator.choice(np.array([0, 1, 2, 3, 4], np.uint8), geometry.shape, p=[0.6, 0.1, 0.1, 0.1, 0.1])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("MedDPMLib.masks.fit._MOST_LOST", 1.0)
        fitted = fit(mask_of(Volume(labels, geometry)), Grid((10, 14, 12), (2.0, 2.0, 3.0), "RAS"))
    nearest = np.round(fitted.geometry.to_ijk(positions(geometry)))
    inside = ((nearest >= 0) & (nearest < fitted.geometry.size)).all(axis=-1)
    for label in BRATS.labels:
        outside = np.count_nonzero((labels == label.value) & ~inside) * geometry.voxel_volume
        assert fitted.outside.get(label.name, 0.0) == pytest.approx(outside)


def test_a_brain_that_just_fits_is_not_cut():
    """The middle of the bulk is not the middle of the box: the grid gives way as far as it is needed."""
    labels = np.zeros((60, 60, 60), np.uint8)
    labels[20:40, 10:30, 12:52] = 4  # as long as the grid below
    labels[20:40, 10:30, 12:18] = 0
    labels[30, 20, 12:18] = 4  # a thin end, as the brain stem is
    geometry = oriented("LPS", (60, 60, 60), (1, 1, 1))
    fitted = fit(mask_of(Volume(labels, geometry)), Grid((40, 30, 30), (1.0, 1.0, 1.0), "LPS"))
    assert not fitted.outside and np.count_nonzero(fitted.labels) == np.count_nonzero(labels)


def test_a_structure_that_vanishes_is_reported():
    volume = painted(oriented("LPS", (84, 84, 84)), np.zeros(3))
    labels = volume.array.copy()
    labels[(labels > 0) & (labels < 4)] = 4
    labels[42, 42, 42] = 3
    fitted = fit(mask_of(Volume(labels, volume.geometry)), GRID)
    assert any("Enhancing tumor" in note and "vanishes" in note for note in fitted.notes)
    assert not fitted.outside


def test_nothing_left_is_an_error():
    labels = np.zeros((40, 40, 40), np.uint8)
    labels[0], labels[-1] = 4, 4
    hollow = mask_of(Volume(labels, oriented("RAS", (40, 40, 40), (2, 2, 2))))
    with pytest.raises(MedDPMError, match="nothing of mask is left"):
        fit(hollow, Grid((8, 8, 8), (2.0, 2.0, 2.0), "RAS"))


def test_tiny_masks_work():
    labels = np.full((2, 2, 2), 4, np.uint8)
    labels[0, 0, 0] = 3
    mask = mask_of(Volume(labels, Geometry((2, 2, 2), np.diag([2.0, 2, 2, 1]))))
    assert any("not the size of a brain" in note for note in mask.notes)
    fitted = fit(mask, Grid((4, 4, 4), (2.0, 2.0, 2.0), "RAS"))
    assert np.bincount(fitted.labels.ravel()).tolist() == [56, 0, 0, 1, 7]


@pytest.mark.parametrize("low, high", [(0, 1), (-1, 1)])
def test_the_condition_has_a_channel_for_each_label_and_none_for_the_background(low, high):
    labels = np.array([[[0, 1, 2], [3, 4, 0]]], np.uint8)
    channels = condition(labels, BRATS, (low, high))
    assert channels.shape == (4, 1, 2, 3) and channels.dtype == np.float32
    for channel, value in zip(channels, (1, 2, 3, 4), strict=True):
        np.testing.assert_array_equal(channel, np.where(labels == value, high, low))


def test_positions_say_where_a_voxel_lies_on_the_grid():
    """After the labels, along i, j and k: the middles of the voxels, the grid's faces being at -1 and 1."""
    labels = np.ones((2, 4, 8), np.uint8)
    channels = condition(labels, BRATS, (-1, 1), positions=True)
    np.testing.assert_array_equal(channels[:4], condition(labels, BRATS, (-1, 1)))
    i, j, k = channels[4:]
    np.testing.assert_allclose(i[1, 2], [-0.875, -0.625, -0.375, -0.125, 0.125, 0.375, 0.625, 0.875])
    np.testing.assert_allclose(j[1, :, 5], [-0.75, -0.25, 0.25, 0.75])
    np.testing.assert_allclose(k[:, 3, 5], [-0.5, 0.5])
    assert (i == i[:1, :1]).all() and (j == j[:1, :, :1]).all() and (k == k[:, :1, :1]).all()


# Reading ---------------------------------------------------------------------------------------------


def brain(size=16, spacing=6.0, orientation="LPS"):
    labels = np.zeros((size,) * 3, np.uint8)
    labels[2:-2, 2:-2, 2:-2] = 4
    labels[4:11, 4:11, 4:11], labels[5:10, 5:10, 5:10] = 2, 3
    labels[6:9, 6:9, 6:9] = 1
    return Volume(labels, oriented(orientation, (size,) * 3, (spacing,) * 3))


@pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.int32, np.float32, np.float64])
def test_files_of_every_dtype_give_the_same_mask(tmp_path, dtype):
    volume = brain()
    write_nifti(tmp_path / "case_7.nii.gz", Volume(volume.array.astype(dtype), volume.geometry))
    mask = read_mask(tmp_path / "case_7.nii.gz", BRATS)
    np.testing.assert_array_equal(mask.volume.array, volume.array)
    assert mask.volume.array.dtype == np.uint8
    assert mask.name == "case_7" and mask.source == str(tmp_path / "case_7.nii.gz") and mask.scheme is BRATS
    assert len(mask.notes) == 1
    assert 'read as "med-ddpm"' in mask.notes[0] and "necrosis (1) 5.83 ml, edema (2) 47.1 ml" in mask.notes[0]
    assert mask.hash == mask_of(volume).hash


def test_the_hash_follows_labels_and_position_alone():
    volume = brain()
    changed = volume.array.copy()
    changed[2, 2, 2] = 0
    moved = Geometry(volume.geometry.size, volume.geometry.ijk_to_ras + np.outer([1, 0, 0, 0], [0, 0, 0, 1.0]))
    turned = volume.array.transpose(2, 1, 0)
    masks = [mask_of(v) for v in (volume, Volume(changed, volume.geometry), Volume(volume.array, moved))]
    assert len({mask.hash for mask in masks}) == 3
    assert mask_of(volume, name="other").hash == masks[0].hash
    assert mask_of(Volume(turned, volume.geometry)).hash == mask_of(Volume(turned.copy(), volume.geometry)).hash


def test_raw_brats_is_translated_and_reported():
    volume = brain()
    raw = np.where(volume.array == 3, 4, np.where(volume.array == 4, 0, volume.array))
    image = Volume((volume.array > 0) * 100.0, volume.geometry)
    mask = Mask.from_volume(Volume(raw, volume.geometry), BRATS, brain_from=image)
    np.testing.assert_array_equal(mask.volume.array, volume.array)
    assert 'read as "brats"' in mask.notes[0] and "enhancing tumor (4) 21.2 ml" in mask.notes[0]
    with pytest.raises(MedDPMError, match="no meaning in the label convention"):
        Mask.from_volume(Volume(raw, volume.geometry), BRATS, numbering="brats-2023", brain_from=image)


def bad(array, match, scheme=BRATS, **options):
    array = np.asarray(array)
    with pytest.raises(MedDPMError, match=match) as caught:
        Mask.from_volume(Volume(array, oriented("RAS", array.shape[::-1])), scheme, name="case_7", **options)
    assert str(caught.value).startswith("case_7: ") and "\n" not in str(caught.value)


def test_masks_that_cannot_be_used():
    blank = np.zeros((4, 4, 4))
    bad(blank, "empty")
    bad(blank.astype(bool), "empty")
    for value, match in (
        (0.5, "not whole"),
        (-1, "from -1"),
        (np.nan, "not finite"),
        (np.inf, "not finite"),
        (1e6, "an image"),
    ):
        array = np.full((4, 4, 4), 4.0)
        array[1, 1, 1] = value
        bad(array, match)
    bad(np.full((4, 4, 4), 7), "7 .*1 head, 2 tumor", load_scheme("whole-head"))
    bad(np.full((4, 4, 4), 300), "300 .*4 rest of the brain")
    bad(np.full((4, 4, 4), 1 + 1j), "complex")
    bad(np.full((4, 4, 4), 4), "choose the label convention")
    bad(np.full((4, 4, 4), 4), "there is no label convention", numbering="mine")


@pytest.mark.parametrize("shape", [(4, 4), (4, 4, 4, 4), (1, 4, 4, 4)])
def test_arrays_of_other_than_three_axes_are_refused(shape):
    with pytest.raises(MedDPMError, match="shape"):
        Volume(np.ones(shape), Geometry((4, 4, 4), np.eye(4)))


@pytest.mark.parametrize(
    "scheme, value, missing",
    [
        ("brats", 1, "label 4, rest of the brain"),
        ("whole-head", 2, "label 1, head"),
        ("anatomy", 20, "label 18, rest of the brain"),
    ],
)
def test_without_a_brain_area_the_way_out_is_named(scheme, value, missing):
    for_files = r"no brain area \(" + missing + r".*fill it from any skull-stripped image"
    loaded = load_scheme(scheme)
    bad(np.full((4, 4, 4), value), for_files, loaded, numbering=loaded.own_numbering)


def test_an_anatomy_without_the_rest_of_the_brain_is_usable_and_reported():
    mask = mask_of(Volume(np.full((4, 4, 4), 7), oriented("RAS", (4, 4, 4), (30, 30, 30))), load_scheme("anatomy"))
    assert any("label 18" in note and "filled from a skull-stripped image" in note for note in mask.notes)


def test_a_scheme_without_a_rest_takes_no_image():
    data = BRATS.to_dict()
    data["labels"] = [label for label in data["labels"] if label["role"] == "tumor"]
    scheme = LabelScheme.from_dict(data)
    array = np.ones((4, 4, 4), np.uint8)
    assert mask_of(Volume(array, oriented("RAS", (4, 4, 4), (20, 20, 20))), scheme).volume.array.all()
    with pytest.raises(MedDPMError, match="no label for the rest of the brain"):
        mask_of(tumor_only(brain()), scheme, brain_from=brain())


# The brain area from an image ------------------------------------------------------------------------


def tumor_only(volume):
    return Volume(np.where(volume.array == 4, 0, volume.array).astype(np.uint8), volume.geometry)


@pytest.mark.parametrize("background, scale", [(0.0, 1.0), (-1.0, 1.0), (0.0, -1.0), (-1024.0, 3000.0)])
def test_the_brain_is_what_differs_from_the_background_with_holes_filled(tmp_path, background, scale):
    volume = brain()
    generator = np.random.default_rng(0)
    image = background + scale * (volume.array > 0) * generator.uniform(0.2, 1, volume.array.shape)
    image[8, 8, 11:13] = background  # dark fluid inside
    write_nifti(tmp_path / "t1.nii.gz", Volume(image, volume.geometry))
    for source in (tmp_path / "t1.nii.gz", read_volume(tmp_path / "t1.nii.gz")):
        mask = Mask.from_volume(tumor_only(volume), BRATS, brain_from=source)
        np.testing.assert_array_equal(mask.volume.array, volume.array)
        assert any("brain area of" in note for note in mask.notes)


@settings(max_examples=6, deadline=None)
@given(st.integers(0, 10**6))
def test_the_image_may_lie_in_any_geometry(seed):
    center = np.array([20.0, -30.0, 10.0])
    geometry = oriented("LPS", (44, 48, 40), (2, 2, 2), center)
    volume = painted(geometry, center)
    matrix = random_matrix(seed)
    matrix[:3, :3] *= 2.0 / np.linalg.norm(matrix[:3, :3], axis=0)
    other = enclosing(matrix, center)
    image = Volume((painted(other, center).array > 0) * 500, other)
    mask = Mask.from_volume(tumor_only(volume), BRATS, numbering="med-ddpm", brain_from=image)
    differing = np.count_nonzero(mask.volume.array != volume.array)
    assert differing < 0.05 * np.count_nonzero(volume.array)  # voxels that the surface passes through
    assert not any("within the mask" in note or "outside" in note for note in mask.notes)


def test_labels_already_there_are_kept():
    volume = brain()
    everywhere = np.zeros(volume.array.shape)
    everywhere[1:-1, 1:-1, 1:-1] = 7
    mask = Mask.from_volume(volume, BRATS, brain_from=Volume(everywhere, volume.geometry))
    np.testing.assert_array_equal(mask.volume.array[volume.array > 0], volume.array[volume.array > 0])
    np.testing.assert_array_equal(mask.volume.array > 0, everywhere > 0)


def test_images_that_show_no_brain_are_refused():
    volume = brain()
    far = Geometry(volume.geometry.size, volume.geometry.ijk_to_ras + np.outer([1, 0, 0, 0], [0, 0, 0, 500.0]))
    whole = np.random.default_rng(0).uniform(1, 2, volume.array.shape)
    for image, match in (
        (Volume(volume.array.astype(float), far), "do not overlap"),
        (Volume(np.full(volume.array.shape, 3.0), volume.geometry), "empty"),
        (Volume(whole, volume.geometry), "skull-stripped"),
    ):
        with pytest.raises(MedDPMError, match=match):
            Mask.from_volume(tumor_only(volume), BRATS, numbering="med-ddpm", brain_from=image)
    with pytest.raises(MedDPMError, match="does not exist"):
        Mask.from_volume(tumor_only(volume), BRATS, numbering="med-ddpm", brain_from="absent.nii")


def test_a_mask_that_holds_a_part_of_the_brain_only_is_reported():
    volume = brain()
    part = volume.geometry.cut(np.array([0, 0, 0]), np.array([16, 16, 8]))
    mask = Mask.from_volume(Volume(tumor_only(volume).array[:8], part), BRATS, numbering="med-ddpm", brain_from=volume)
    assert any("50 % of it within the mask" in note for note in mask.notes)


# Tumor outside the brain ----------------------------------------------------------------------------


def test_tumor_inside_the_brain_is_no_remark():
    assert len(mask_of(brain()).notes) == 1


def test_tumor_at_the_brains_surface_is_no_remark():
    volume = brain()
    volume.array[2:6, 6:10, 6:10] = 3  # one face in six on the background
    assert len(mask_of(volume).notes) == 1


@pytest.mark.parametrize("orientation", ["LPS", "SAR"])
def test_tumor_beside_the_brain_is_reported_with_its_volume(orientation):
    volume = brain(orientation=orientation)
    volume.array[0, 0, 0:3] = 3
    assert mask_of(volume).notes[1] == "648 mm^3 of tumor lie outside the brain"


def test_tumor_that_touches_the_brain_with_a_foot_is_outside():
    volume = brain()
    volume.array[:2, 4:8, 4:8] = 1
    (note,) = mask_of(volume).notes[1:]
    assert note == "6.91 ml of tumor lie outside the brain"


def test_with_an_image_the_part_outside_it_is_reported():
    volume = brain()
    volume.array[0:4, 12:14, 12:14] = 2
    image = brain()
    mask = mask_of(tumor_only(volume), brain_from=image)
    assert mask.notes[-1] == "1.73 ml of tumor lie outside the brain"  # 8 voxels of 216 mm^3


def test_at_the_edge_of_the_volume_nothing_is_known_and_nothing_said():
    labels = np.full((10, 10, 10), 4, np.uint8)
    labels[:3, :3, :3] = 2
    assert len(mask_of(Volume(labels, oriented("LPS", (10,) * 3, (10,) * 3))).notes) == 1


# Real data -------------------------------------------------------------------------------------------

ONE_MM = Grid((192, 192, 144), (1.0, 1.0, 1.0), "LPS")


@needs_data
@pytest.mark.parametrize("case", ["BraTS2021_00495", "BraTS-GLI-0009"])
def test_real_tumors_become_masks_with_an_image(case):
    path = SHARED / "brats" / case / f"{case}_seg.nii.gz"
    with pytest.raises(MedDPMError, match="no brain area.*skull-stripped"):
        read_mask(path, BRATS)
    mask = read_mask(path, BRATS, brain_from=path.with_name(f"{case}_t1.nii.gz"))
    assert f'"{"brats" if case == "BraTS2021_00495" else "brats-2023"}"' in mask.notes[0]
    raw = read_volume(path).array
    assert np.count_nonzero(mask.volume.array == 3) == np.count_nonzero((raw == 3) | (raw == 4))
    fitted = fit(mask, ONE_MM)
    assert not fitted.outside  # 240 x 240 x 155 to 192 x 192 x 144 loses background alone
    np.testing.assert_array_equal(np.bincount(fitted.labels.ravel())[1:], np.bincount(mask.volume.array.ravel())[1:])


@needs_data
def test_med_ddpms_own_masks_are_read_as_they_are():
    path = SHARED / "med_ddpm" / "brats2021" / "seg" / "BraTS2021_01306_seg.nii.gz"
    mask = read_mask(path, BRATS)
    np.testing.assert_array_equal(fit(mask, ONE_MM).labels, read_volume(path).array)
    path = SHARED / "med_ddpm" / "whole_head" / "mask" / "sample_1.nii.gz"
    mask = read_mask(path, load_scheme("whole-head"))
    fitted = fit(mask, Grid((128, 128, 128), (1.5, 1.5, 1.5), "RAS"))
    np.testing.assert_array_equal(fitted.labels, read_volume(path).array)


@needs_data
@pytest.mark.parametrize("scheme, spacing", list(itertools.product(["anatomy", "brats"], [1.0, 2.0])))
def test_a_real_anatomy_fits_its_grid(scheme, spacing):
    path = SHARED / "anatomies" / "anatomy_03.nii.gz"  # the largest of them
    grid = Grid(tuple(int(n / spacing) for n in ONE_MM.size), (spacing,) * 3, "LPS")
    mask = read_mask(path, load_scheme(scheme))
    fitted = fit(mask, grid)
    assert not fitted.outside and not fitted.notes
    kept = np.count_nonzero(fitted.labels) * fitted.geometry.voxel_volume
    assert kept == pytest.approx(np.count_nonzero(mask.volume.array), rel=0.01)


@needs_data
def test_a_brain_without_tumor_is_read_with_its_image():
    path = SHARED / "anatomy" / "patient07_anatomy.nii.gz"
    mask = read_mask(path, load_scheme("anatomy"), brain_from=SHARED / "ms" / "patient07" / "patient07_t1.nii.gz")
    assert np.count_nonzero(mask.volume.array == 18) > 100_000
    fitted = fit(mask, ONE_MM)
    assert fitted.geometry.orientation == "LPS" and mask.volume.geometry.orientation == "LAS"
    assert not fitted.outside
