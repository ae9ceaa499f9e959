"""The montage: where things lie in the picture, whatever the orientation of the volumes."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from MedDPMLib.errors import MedDPMError
from MedDPMLib.figures.montage import PLANES, draw_cuts, draw_montage, plane_geometry
from MedDPMLib.imaging.geometry import Geometry
from MedDPMLib.imaging.volume import Volume
from MedDPMLib.masks.schemes import load_scheme

BRATS = load_scheme("brats")
BRAIN = BRATS.rest.value
EDEMA = BRATS.label_by_name("edema").value
ORIENTATIONS = ["".join(letters) for letters in itertools.product("RL", "AP", "SI")]


def geometry_of(orientation: str, spacing=(1.0, 1.0, 1.0), extent=64.0, axes=(0, 1, 2)) -> Geometry:
    """A box of ``extent`` mm about the origin; index axis n runs along RAS axis ``axes[n]``."""
    signs = {"R": 1, "A": 1, "S": 1, "L": -1, "P": -1, "I": -1}
    matrix = np.eye(4)
    matrix[:3, :3] = 0
    size = tuple(round(extent / s) for s in spacing)
    for index, axis in enumerate(axes):
        matrix[axis, index] = signs[orientation[axis]] * spacing[index]
    matrix[:3, 3] = -matrix[:3, :3] @ ((np.array(size) - 1) / 2)
    return Geometry(size, matrix)


def paint(geometry: Geometry, inside) -> np.ndarray:
    """Where ``inside(r, a, s)`` holds, for the RAS position of every voxel."""
    kji = np.indices(geometry.shape).reshape(3, -1)
    ras = geometry.to_ras(kji[::-1].T)
    return inside(*ras.T).reshape(geometry.shape)


def ball(r, a, s):
    return r**2 + a**2 + s**2 < 28**2


def cuts(volumes: dict[str, Volume], labels: Volume) -> list[list[np.ndarray]]:
    return [
        [np.asarray(cut, np.float32) for cut in row] for row in draw_cuts(volumes, labels, BRATS, pixels_per_mm=2.0)
    ]


def centroid(cell: np.ndarray, bright: np.ndarray) -> np.ndarray:
    """(x, y) of the ``bright`` pixels' middle, relative to the middle of the cell, in pixels."""
    y, x = np.nonzero(bright)
    return np.array([x.mean() - (cell.shape[1] - 1) / 2, y.mean() - (cell.shape[0] - 1) / 2])


@pytest.mark.parametrize("orientation", ORIENTATIONS)
@pytest.mark.parametrize("axes", [(0, 1, 2), (2, 0, 1)])
def test_radiological_convention_for_every_orientation(orientation, axes):
    geometry = geometry_of(orientation, spacing=(2.0, 2.0, 2.0), axes=axes)
    brain = paint(geometry, ball)
    markers = {
        "left": paint(geometry, lambda r, a, s: ball(r, a, s) & (r < -14)),
        "anterior": paint(geometry, lambda r, a, s: ball(r, a, s) & (a > 14)),
        "superior": paint(geometry, lambda r, a, s: ball(r, a, s) & (s > 14)),
    }
    labels = Volume(np.where(brain, BRAIN, 0).astype(np.uint8), geometry)
    volumes = {
        name: Volume(np.where(marker, 1.0, np.where(brain, -0.6, -1.0)).astype(np.float32), geometry)
        for name, marker in markers.items()
    }
    rows = cuts(volumes, labels)
    found = {
        (plane.name, name): centroid(rows[p][2 * v], rows[p][2 * v].min(axis=2) > 200)
        for p, plane in enumerate(PLANES)
        for v, name in enumerate(markers)
        if (rows[p][2 * v].min(axis=2) > 200).sum() > 100
    }
    assert found["axial", "left"][0] > 20, "the patient's left lies on the image's right"
    assert found["axial", "anterior"][1] < -20, "anterior is up"
    assert found["coronal", "left"][0] > 20, "the patient's left lies on the image's right"
    assert found["coronal", "superior"][1] < -20, "superior is up"
    assert found["sagittal", "anterior"][0] < -20, "anterior is on the image's left"
    assert found["sagittal", "superior"][1] < -20, "superior is up"


def test_anisotropic_voxels_keep_their_shape():
    geometry = geometry_of("LPS", spacing=(1.0, 2.0, 4.0))
    brain = paint(geometry, ball)
    labels = Volume(np.where(brain, BRAIN, 0).astype(np.uint8), geometry)
    volume = Volume(np.where(brain, 1.0, -1.0).astype(np.float32), geometry)
    for row in cuts({"t1": volume}, labels):
        bright = row[0].min(axis=2) > 127
        height, width = np.ptp(np.nonzero(bright), axis=1)
        assert abs(height - width) <= 2 * 4, "a ball is round in every plane, to one of its thick slices"


@pytest.mark.parametrize("mask_spacing", [(1.0, 1.0, 1.0), (2.0, 1.0, 3.0)])
def test_outline_lies_on_the_border_of_the_tumor(mask_spacing):
    image_geometry, mask_geometry = geometry_of("RAS"), geometry_of("LPI", spacing=mask_spacing)
    center = np.array([-10.0, 6.0, 8.0])

    def tumor(r, a, s):
        return (r - center[0]) ** 2 + (a - center[1]) ** 2 + (s - center[2]) ** 2 < 10**2

    labels = np.where(paint(mask_geometry, ball), BRAIN, 0).astype(np.uint8)
    labels[paint(mask_geometry, tumor)] = EDEMA
    image = Volume(np.full(image_geometry.shape, -1.0, np.float32), image_geometry)
    color = np.array(BRATS.label_by_value(EDEMA).color, np.float32)
    for plane, (plain, outlined) in zip(PLANES, cuts({"t1": image}, Volume(labels, mask_geometry)), strict=True):
        drawn = np.abs(outlined - color).max(axis=2) < 60
        assert not (np.abs(plain - color).max(axis=2) < 60).any()
        y, x = np.nonzero(drawn)
        middle = np.array([(x.min() + x.max()) / 2, (y.min() + y.max()) / 2])
        distance = np.hypot(x - middle[0], y - middle[1])
        # 2 pixels are one millimeter.
        assert np.allclose(distance, 20, atol=1 + 1.2 * max(mask_spacing)), plane.name
        # The sheet of every plane covers the ball and its margin: its middle is the origin, to a voxel of the mask.
        offset = centroid(outlined, drawn) / 2
        expected = [center @ np.array(plane.right), center @ np.array(plane.down)]
        assert np.allclose(offset, expected, atol=1 + 0.5 * max(mask_spacing)), plane.name


def test_sheets_are_square_and_hold_the_point():
    for plane in PLANES:
        center, low, high = np.array([1.0, 2.0, 3.0]), np.array([-20.0, -30.0, -40.0]), np.array([25.0, 35.0, 45.0])
        sheet = plane_geometry(plane, center, low, high, pixel=0.7)
        assert np.allclose(sheet.spacing[:2], 0.7)
        ijk = sheet.to_ijk(center)
        assert np.allclose(ijk, np.round(ijk)) and np.isclose(ijk[2], 0)
        corners = np.array([sheet.to_ras((-0.5, -0.5, 0)), sheet.to_ras((sheet.size[0] - 0.5, sheet.size[1] - 0.5, 0))])
        for direction in (plane.right, plane.down):
            ends = corners @ np.array(direction)
            assert ends[0] <= min(low @ np.array(direction), high @ np.array(direction))
            assert ends[1] >= max(low @ np.array(direction), high @ np.array(direction))


def test_nothing_to_draw_is_reported():
    geometry = geometry_of("RAS", spacing=(8.0, 8.0, 8.0))
    empty = Volume(np.zeros(geometry.shape, np.uint8), geometry)
    with pytest.raises(MedDPMError, match="not empty"):
        draw_montage({"t1": Volume(np.zeros(geometry.shape, np.float32), geometry)}, empty, BRATS, caption="")
    with pytest.raises(MedDPMError, match="at least one volume"):
        draw_montage({}, empty, BRATS, caption="")


def test_caption_is_drawn():
    geometry = geometry_of("RAS", spacing=(4.0, 4.0, 4.0))
    labels = Volume(np.where(paint(geometry, ball), BRAIN, 0).astype(np.uint8), geometry)
    volume = Volume(np.full(geometry.shape, -1.0, np.float32), geometry)
    plain = draw_montage({"t1": volume}, labels, BRATS, caption="")
    marked = draw_montage({"t1": volume}, labels, BRATS, caption="synthetic, MedDPM, seed 7")
    difference = np.asarray(plain, int) != np.asarray(marked, int)
    rows = np.flatnonzero(difference.any(axis=(1, 2)))
    assert rows.size and rows.min() > plain.height - 30, "only the foot of the picture changes"
