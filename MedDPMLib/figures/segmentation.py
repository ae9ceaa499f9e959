"""What does a mask look like on its scan? One picture to check it by.

Rows are axial, coronal and sagittal cuts through the brain, with the scan alone on the left and the labels over it on
the right of each pair, in the radiological convention of :mod:`MedDPMLib.figures.montage`.
"""

from __future__ import annotations

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from MedDPMLib.errors import MedDPMError
from MedDPMLib.figures.montage import PLANES, Plane, plane_geometry
from MedDPMLib.imaging.geometry import extent
from MedDPMLib.imaging.resample import resample_image, resample_labels
from MedDPMLib.imaging.volume import Volume
from MedDPMLib.masks.schemes import LabelScheme

#: Cuts in each plane, as shares of the brain's extent.
_PLACES = (0.38, 0.5, 0.62)
#: How much the labels' colors cover the scan.
_OPACITY = 0.45
_GAP, _FOOT = 4, 26
_FAINT = (170, 170, 170)


def draw_segmentation(scan: Volume, labels: Volume, scheme: LabelScheme, *, caption: str) -> Image.Image:
    """The picture of ``labels`` (values of ``scheme``) over ``scan``, on any geometries; RGB."""
    if not labels.array.any():
        raise MedDPMError("a picture needs a mask that is not empty")
    low, high = extent(labels.array > 0, labels.geometry)
    window = np.percentile(scan.array[_near(scan, low, high)], (0.5, 99.5))
    rows = [
        [picture for place in _PLACES for picture in _cut(scan, labels, scheme, plane, low, high, place, window)]
        for plane in PLANES
    ]
    return _page(rows, caption)


def _near(scan: Volume, low: np.ndarray, high: np.ndarray) -> np.ndarray:
    """Which voxels of the scan lie in the RAS box ``low`` to ``high``, roughly: those of its index box."""
    corners = np.array(np.meshgrid(*zip(low, high, strict=True), indexing="ij")).reshape(3, -1).T
    ijk = scan.geometry.to_ijk(corners)
    first = np.clip(ijk.min(axis=0).astype(int), 0, np.array(scan.geometry.size) - 1)
    last = np.clip(ijk.max(axis=0).astype(int) + 1, first + 1, scan.geometry.size)
    inside = np.zeros(scan.array.shape, bool)
    inside[tuple(slice(a, b) for a, b in zip(first[::-1], last[::-1], strict=True))] = True
    return inside


def _cut(
    scan: Volume, labels: Volume, scheme: LabelScheme, plane: Plane, low: np.ndarray, high: np.ndarray, place: float,
    window: np.ndarray,
) -> tuple[Image.Image, Image.Image]:  # fmt: skip
    """The scan, and the scan under its labels, in one plane at ``place`` of the brain's extent."""
    normal = np.abs(np.cross(plane.right, plane.down))
    center = np.where(normal > 0, low + (high - low) * place, (low + high) / 2)
    sheet = plane_geometry(plane, center, low, high, 1.0)
    cut = resample_image(scan, sheet, fill=float(window[0])).array[0]
    gray = np.clip((cut - window[0]) / max(window[1] - window[0], 1e-6), 0, 1) * 255
    pixels = np.repeat(gray[..., None], 3, axis=2)
    painted = resample_labels(labels, sheet, scheme.priority).array[0]
    colored = pixels.copy()
    for label in scheme.labels:
        if label.role != "rest":
            where = painted == label.value
            colored[where] += _OPACITY * (np.array(label.color, float) - colored[where])
    seen, labeled = (Image.fromarray(np.round(one).astype(np.uint8)) for one in (pixels, colored))
    return seen, labeled


def _page(rows: list[list[Image.Image]], caption: str) -> Image.Image:
    widest = max(cut.width for row in rows for cut in row)
    height = sum(row[0].height + _GAP for row in rows) + _FOOT
    page = Image.new("RGB", ((widest + _GAP) * len(rows[0]) + _GAP, height))
    draw, font = ImageDraw.Draw(page), ImageFont.load_default(size=12)
    top = _GAP
    for plane, row in zip(PLANES, rows, strict=True):
        for column, cut in enumerate(row):
            left = _GAP + column * (widest + _GAP) + (widest - cut.width) // 2
            page.paste(cut, (left, top))
            draw.text((left + 2, top + cut.height // 2), plane.letters[0], fill=_FAINT, font=font, anchor="lm")
            draw.text(
                (left + cut.width - 2, top + cut.height // 2), plane.letters[1], fill=_FAINT, font=font, anchor="rm"
            )
        top += row[0].height + _GAP
    draw.text((_GAP, height - _FOOT // 2), caption, fill=_FAINT, font=font, anchor="lm")
    return page
