"""Geometry and Grid: positions are exact, and the model's grid goes where the mask is."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from MedDPMLib.errors import MedDPMError
from MedDPMLib.imaging.geometry import Geometry, Grid, center_of

few = settings(max_examples=30, deadline=None)

ALL_ORIENTATIONS = [
    "".join(letters[sign] for letters, sign in zip(axes, signs, strict=True))
    for axes in itertools.permutations(["RL", "AP", "SI"])
    for signs in itertools.product((0, 1), repeat=3)
]


def oriented(orientation, size, spacing=(1.0, 1.0, 1.0), center=(0.0, 0.0, 0.0)):
    return Grid(size, spacing, orientation).centered_on(np.array(center))


def random_matrix(seed):
    """Any affine that a header may hold: rotated, scaled, flipped and a little sheared."""
    generator = np.random.default_rng(seed)
    rotation = np.linalg.qr(generator.standard_normal((3, 3)))[0]
    shear = np.eye(3) + np.triu(generator.uniform(-0.2, 0.2, (3, 3)), 1)
    matrix = np.eye(4)
    matrix[:3, :3] = rotation @ shear @ np.diag(generator.uniform(0.5, 5, 3))
    matrix[:3, 3] = generator.uniform(-300, 300, 3)
    return matrix


@few
@given(st.integers(0, 10**6))
def test_positions_go_there_and_back(seed):
    geometry = Geometry((5, 7, 9), random_matrix(seed))
    ijk = np.random.default_rng(seed).uniform(-20, 20, (10, 3))
    homogeneous = np.c_[ijk, np.ones(10)] @ geometry.ijk_to_ras.T
    np.testing.assert_allclose(geometry.to_ras(ijk), homogeneous[:, :3], atol=1e-9)
    np.testing.assert_allclose(geometry.to_ijk(geometry.to_ras(ijk)), ijk, atol=1e-8)
    assert geometry.shape == (9, 7, 5)
    np.testing.assert_allclose(
        geometry.center, np.mean([geometry.to_ras([0, 0, 0]), geometry.to_ras([4, 6, 8])], axis=0), atol=1e-9
    )


def test_there_are_48_orientations_and_each_is_recognized():
    nibabel = pytest.importorskip("nibabel")
    assert len(set(ALL_ORIENTATIONS)) == 48
    for orientation in ALL_ORIENTATIONS:
        geometry = oriented(orientation, (3, 4, 5), (1.0, 2.0, 3.0), (10, 20, 30))
        assert geometry.orientation == orientation == "".join(nibabel.aff2axcodes(geometry.ijk_to_ras))
        assert geometry.is_axis_aligned
        np.testing.assert_allclose(geometry.spacing, (1, 2, 3))
        assert geometry.voxel_volume == pytest.approx(6)
        np.testing.assert_allclose(geometry.center, (10, 20, 30))


@few
@given(st.integers(0, 10**6))
def test_orientation_names_each_axis_once_even_when_oblique(seed):
    assert Geometry((2, 2, 2), random_matrix(seed)).orientation in ALL_ORIENTATIONS


def test_a_slightly_rotated_volume_is_oblique():
    turn = np.eye(4)
    turn[:2, :2] = [[np.cos(0.01), -np.sin(0.01)], [np.sin(0.01), np.cos(0.01)]]
    assert not Geometry((4, 4, 4), turn).is_axis_aligned


@pytest.mark.parametrize(
    "matrix",
    [
        np.zeros((4, 4)),
        np.diag([1.0, 1, 0, 1]),
        np.array([[1.0, 1, 0, 0], [1, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]]),
        np.diag([1.0, 1, np.nan, 1]),
        np.diag([1.0, 1, 1, 2]),
        np.eye(3),
    ],
)
def test_unusable_matrices_are_refused(matrix):
    with pytest.raises(MedDPMError, match="matrix"):
        Geometry((4, 4, 4), matrix)


def test_a_geometry_cannot_be_changed_from_outside():
    matrix = np.eye(4)
    geometry = Geometry((4, 4, 4), matrix)
    matrix[0, 3] = 5
    assert geometry.to_ras([0, 0, 0])[0] == 0
    with pytest.raises(ValueError):
        geometry.ijk_to_ras[0, 3] = 5


def test_a_cut_keeps_positions():
    geometry = Geometry((5, 7, 9), random_matrix(3))
    part = geometry.cut(np.array([-1, 2, 3]), np.array([4, 6, 9]))
    assert part.size == (5, 4, 6)
    np.testing.assert_allclose(part.to_ras([2, 1, 1]), geometry.to_ras([1, 3, 4]))


def test_closeness_is_judged_at_the_corners():
    matrix = random_matrix(1)
    geometry = Geometry((50, 60, 70), matrix)
    assert geometry.is_close(Geometry((50, 60, 70), matrix * (1 + 1e-9)))
    assert not geometry.is_close(Geometry((50, 60, 71), matrix))
    stretched = matrix @ np.diag([1.001, 1, 1, 1])  # 0.05 voxels at the far corner
    assert not geometry.is_close(Geometry((50, 60, 70), stretched))


# The model's grid ------------------------------------------------------------------------------------


@pytest.mark.parametrize("orientation", ["LPX", "LP", "LLS", "LPSA", "lps", "RLA"])
def test_impossible_orientations_are_refused(orientation):
    with pytest.raises(MedDPMError, match="orientation"):
        Grid((4, 4, 4), (1, 1, 1), orientation)


@pytest.mark.parametrize(
    "size, spacing",
    [
        ((4, 4), (1, 1, 1)),
        ((4, 4, 0), (1, 1, 1)),
        ((4, 4, 4), (1, 1)),
        ((4, 4, 4), (1, 0, 1)),
        ((4, 4, 4), (1, np.nan, 1)),
        ((4, 4, 4), (1, np.inf, 1)),
    ],
)
def test_impossible_grids_are_refused(size, spacing):
    with pytest.raises(MedDPMError, match="grid"):
        Grid(size, spacing, "LPS")


@pytest.mark.parametrize("orientation", ALL_ORIENTATIONS)
def test_a_mask_on_the_models_grid_stays_put_however_its_axes_run(orientation):
    grid = Grid((10, 12, 14), (1.0, 1.5, 2.0), "LPS")
    own = grid.centered_on(np.array([3.0, -40.0, 17.0]))
    along = ["RLAPSI".index(letter) // 2 for letter in orientation]  # RAS axis of each of the mask's axes
    size, spacing = [grid.size[axis] for axis in along], [grid.spacing[axis] for axis in along]
    mask = oriented(orientation, tuple(size), tuple(spacing), own.center)
    # Wherever its brain is: a mask in the model's own space is not moved.
    assert grid.place(mask, own.center + [2.2, 1.1, -0.7]).is_close(own)


@pytest.mark.parametrize("orientation", ALL_ORIENTATIONS)
def test_a_mask_with_the_models_spacing_keeps_its_lattice(orientation):
    grid = Grid((10, 12, 14), (1.5, 1.5, 1.5), "RAS")
    mask = oriented(orientation, (31, 24, 27), (1.5, 1.5, 1.5), (7, 8, 9))
    center = np.array([9.3, 5.1, 11.9])
    placed = grid.place(mask, center)
    ijk = mask.to_ijk(placed.to_ras([0, 0, 0]))
    np.testing.assert_allclose(ijk, np.round(ijk), atol=1e-6)
    assert np.abs(placed.center - center).max() <= 0.75 + 1e-6
    assert placed.orientation == "RAS"


@few
@given(st.integers(0, 10**6))
def test_any_other_mask_gets_the_grid_around_its_brain(seed):
    mask = Geometry((20, 20, 20), random_matrix(seed))
    placed = Grid((10, 12, 14), (1.5, 1.5, 1.5), "LAS").place(mask, mask.center)
    np.testing.assert_allclose(placed.center, mask.center, atol=1e-6)
    np.testing.assert_allclose(placed.spacing, 1.5)
    assert placed.orientation == "LAS" and placed.is_axis_aligned


@few
@given(st.integers(0, 10**6))
def test_holding_moves_no_further_than_needed(seed):
    generator = np.random.default_rng(seed)
    grid = Grid((10, 20, 30), (2.0, 1.0, 1.0), "SLP")  # 20 mm along R, 30 along A, 20 along S
    half, farthest = np.array([10, 15, 10]), 8
    center, low = generator.integers(-20, 20, (2, 3))
    high = low + generator.integers(1, 40, 3)
    moved = grid.holding(center, low, high, farthest)
    for axis in range(3):
        tried = center[axis] + np.array(sorted(range(-farthest, farthest + 1), key=abs))
        holding = tried[(tried - half[axis] <= low[axis]) & (tried + half[axis] >= high[axis])]
        assert moved[axis] == (holding[0] if len(holding) else center[axis])


def test_the_brains_center_is_the_boxs_and_ignores_strays():
    geometry = oriented("LPS", (60, 60, 60))
    foreground = np.zeros(geometry.shape, bool)
    foreground[10:50, 20:50, 5:35] = True
    middle = geometry.to_ras((np.array([5 + 34, 20 + 49, 10 + 49])) / 2)
    np.testing.assert_allclose(center_of(foreground, geometry), middle, atol=0.51)
    foreground[0, 0, 0] = foreground[59, 0, 59] = True
    np.testing.assert_allclose(center_of(foreground, geometry), middle, atol=0.51)


def test_the_center_of_a_large_brain_is_found_from_a_part_of_its_voxels():
    geometry = oriented("RAS", (160, 140, 130))
    foreground = np.zeros(geometry.shape, bool)
    foreground[4:126, 10:130, 11:141] = True  # 1.9 million voxels
    middle = geometry.to_ras((np.array([11 + 140, 10 + 129, 4 + 125])) / 2)
    np.testing.assert_allclose(center_of(foreground, geometry), middle, atol=0.51)
