"""What does it look like? One picture of a generated brain.

Rows are the axial, coronal and sagittal plane through the tumor (or the middle of the mask), columns the
modalities, each without and with the outline of the painted tumor. Planes are cut by geometry, so that any
orientation and spacing of the volumes comes out in the radiological convention: the patient's right on the
image's left, anterior and superior up; sagittal planes look to the image's left.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from MedDPMLib.errors import MedDPMError
from MedDPMLib.imaging.geometry import Geometry, center_of
from MedDPMLib.imaging.resample import resample_image
from MedDPMLib.imaging.volume import Volume
from MedDPMLib.masks.schemes import Label, LabelScheme

_BACKGROUND = (0, 0, 0)
_TEXT = (235, 235, 235)
_FAINT_TEXT = (150, 150, 150)

#: Half the width of an outline in pixels, and how much of it is opaque before it fades.
_LINE = 0.9

_MARGIN_MM = 6.0
_GAP = 6


@dataclass(frozen=True)
class Plane:
    """A cut: ``right`` and ``down`` are where the picture's axes point in RAS, ``letters`` what lies left and right."""

    name: str
    right: tuple[int, int, int]
    down: tuple[int, int, int]
    letters: tuple[str, str]


PLANES = (
    Plane("axial", right=(-1, 0, 0), down=(0, -1, 0), letters=("R", "L")),
    Plane("coronal", right=(-1, 0, 0), down=(0, 0, -1), letters=("R", "L")),
    Plane("sagittal", right=(0, -1, 0), down=(0, 0, -1), letters=("A", "P")),
)


def draw_montage(
    volumes: Mapping[str, Volume],
    labels: Volume,
    scheme: LabelScheme,
    *,
    caption: str,
    pixels_per_mm: float = 1.25,
) -> Image.Image:
    """The picture of ``volumes`` (intensities in [-1, 1], by modality), RGB.

    ``labels`` holds the painted mask in the values of ``scheme``, on any geometry; ``caption`` is drawn below.
    Raises :class:`MedDPMError` if there is nothing to draw.
    """
    return _lay_out(draw_cuts(volumes, labels, scheme, pixels_per_mm=pixels_per_mm), list(volumes), caption)


def draw_cuts(
    volumes: Mapping[str, Volume], labels: Volume, scheme: LabelScheme, *, pixels_per_mm: float
) -> list[list[Image.Image]]:
    """For each of :data:`PLANES` and each volume two pictures of equal size: without and with the outlines."""
    if not volumes:
        raise MedDPMError("a montage needs at least one volume")
    if not labels.array.any():
        raise MedDPMError("a montage needs a mask that is not empty")
    first = next(iter(volumes.values()))
    center = _point_of_interest(labels, scheme, first.geometry)
    low, high = _extent(labels.array > 0, labels.geometry)
    tumor = _outermost_first(labels, scheme)
    rows = []
    for plane in PLANES:
        sheet = plane_geometry(plane, center, low, high, float(first.geometry.spacing.min()))
        fine = _refined(sheet, pixels_per_mm)
        outlines = [(_outline(labels, label.value, fine), label.color) for label in tumor]
        row = []
        for volume in volumes.values():
            gray = Image.fromarray(_gray(volume, sheet))
            plain = gray.resize(fine.size[:2], Image.Resampling.BICUBIC).convert("RGB")
            row += [plain, _with_outlines(plain, outlines)]
        rows.append(row)
    return rows


def plane_geometry(plane: Plane, center: np.ndarray, low: np.ndarray, high: np.ndarray, pixel: float) -> Geometry:
    """A sheet of square pixels of ``pixel`` mm through ``center`` (RAS) that covers the RAS box ``low`` to ``high``.

    i runs to the right of the picture, j downwards; the sheet is one voxel thick.
    """
    right, down = np.array(plane.right, float), np.array(plane.down, float)
    matrix = np.eye(4)
    matrix[:3, :3] = np.column_stack([right, down, np.cross(right, down)]) * pixel
    size = []
    corner = np.array(center, float)
    for direction in (right, down):
        ends = sorted([(low - center) @ direction, (high - center) @ direction])
        before, after = np.ceil(-ends[0] / pixel), np.ceil(ends[1] / pixel)
        size.append(int(before + after) + 1)
        corner -= direction * before * pixel
    matrix[:3, 3] = corner
    return Geometry((*size, 1), matrix)


def _refined(sheet: Geometry, pixels_per_mm: float) -> Geometry:
    """``sheet`` cut into about ``pixels_per_mm``; both cover the same area, edge to edge, as a resized picture does."""
    size = [max(1, round(n * s * pixels_per_mm)) for n, s in zip(sheet.size[:2], sheet.spacing[:2], strict=True)]
    ratio = np.array([sheet.size[0] / size[0], sheet.size[1] / size[1], 1.0])
    matrix = sheet.ijk_to_ras.copy()
    matrix[:3, :3] *= ratio
    matrix[:3, 3] = sheet.to_ras(0.5 * ratio - 0.5)
    return Geometry((*size, 1), matrix)


def _point_of_interest(labels: Volume, scheme: LabelScheme, image: Geometry) -> np.ndarray:
    """RAS position of the tumor's centroid, or of the mask's middle, moved to the closest voxel of ``image``.

    Through the center of a voxel no plane is interpolated between two planes of the image.
    """
    tumor = np.isin(labels.array, [label.value for label in scheme.tumor])
    if tumor.any():
        ras = labels.geometry.to_ras(np.argwhere(tumor)[:, ::-1].mean(axis=0))
    else:
        ras = center_of(labels.array > 0, labels.geometry)
    return image.to_ras(np.round(image.to_ijk(ras)))


def _extent(where: np.ndarray, geometry: Geometry) -> tuple[np.ndarray, np.ndarray]:
    """The RAS box around the voxels of ``where``, with a margin."""
    ras = geometry.to_ras(np.argwhere(where)[:, ::-1])
    return ras.min(axis=0) - _MARGIN_MM, ras.max(axis=0) + _MARGIN_MM


def _outermost_first(labels: Volume, scheme: LabelScheme) -> list[Label]:
    """The tumor labels that are present, or all but the rest in a scheme without a tumor; where two borders coincide,
    the outline of the inner one is drawn on top."""
    reach = {}
    for label in scheme.tumor or [label for label in scheme.labels if label.role != "rest"]:
        where = labels.array == label.value
        if where.any():
            low, high = _extent(where, labels.geometry)
            reach[label] = np.prod(high - low)
    return sorted(reach, key=reach.get, reverse=True)


def _gray(volume: Volume, geometry: Geometry) -> np.ndarray:
    """The slice as 8-bit gray values: -1 is black, 1 is white."""
    cut = resample_image(volume, geometry, fill=-1.0).array[0]
    return np.round((np.clip(cut, -1, 1) + 1) * 127.5).astype(np.uint8)


def _outline(labels: Volume, value: int, geometry: Geometry) -> np.ndarray:
    """How opaque (0 to 1) the outline of label ``value`` is at each pixel of the cut, float32.

    The label's indicator is interpolated; its distance to the level 0.5 is, to first order, the difference over
    the gradient. A line of that distance is as smooth as the picture, where the voxels' edges would be stairs.
    """
    indicator = Volume((labels.array == value).astype(np.float32), labels.geometry)
    share = resample_image(indicator, geometry, fill=0.0).array[0]
    slope = np.hypot(*np.gradient(share)) if min(share.shape) > 1 else np.zeros_like(share)
    distance = np.abs(share - 0.5) / np.maximum(slope, 1e-6)
    return np.clip(_LINE + 0.5 - distance, 0, 1)


def _with_outlines(picture: Image.Image, outlines: Sequence[tuple[np.ndarray, tuple[int, int, int]]]) -> Image.Image:
    pixels = np.asarray(picture, np.float32)
    for opacity, color in outlines:
        pixels = pixels + opacity[..., None] * (np.array(color, np.float32) - pixels)
    return Image.fromarray(np.round(pixels).astype(np.uint8))


def _lay_out(rows: Sequence[Sequence[Image.Image]], names: Sequence[str], caption: str) -> Image.Image:
    """The cuts in a table: modality names on top, letters of orientation in each row, the caption below."""
    widest = max(cut.width for row in rows for cut in row)
    name_font, letter_font = ImageFont.load_default(size=17), ImageFont.load_default(size=13)
    head, foot = 30, 30
    width = (widest + _GAP) * len(rows[0]) + _GAP
    height = head + sum(row[0].height + _GAP for row in rows) + foot
    page = Image.new("RGB", (width, height), _BACKGROUND)
    draw = ImageDraw.Draw(page)
    for index, name in enumerate(names):
        middle = _GAP + (2 * index + 1) * (widest + _GAP) - _GAP // 2
        draw.text((middle, head // 2), name.upper(), fill=_TEXT, font=name_font, anchor="mm")
    top = head
    for plane, row in zip(PLANES, rows, strict=True):
        for column, cut in enumerate(row):
            left = _GAP + column * (widest + _GAP)
            page.paste(cut, (left + (widest - cut.width) // 2, top))
            draw.text((left + 3, top + 2), plane.letters[0], fill=_FAINT_TEXT, font=letter_font, anchor="lt")
            draw.text((left + widest - 3, top + 2), plane.letters[1], fill=_FAINT_TEXT, font=letter_font, anchor="rt")
        top += row[0].height + _GAP
    draw.text((width // 2, height - foot // 2), caption, fill=_TEXT, font=name_font, anchor="mm")
    return page
