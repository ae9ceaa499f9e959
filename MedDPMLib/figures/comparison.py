"""How do settings compare? One picture, a row for each setting, a column for each modality."""

from __future__ import annotations

from collections.abc import Mapping

from PIL import Image, ImageDraw, ImageFont

from MedDPMLib.figures.montage import draw_cuts
from MedDPMLib.imaging.volume import Volume
from MedDPMLib.masks.schemes import LabelScheme

_BACKGROUND = (0, 0, 0)
_TEXT = (235, 235, 235)
_GAP = 6
_LINE = 26


def draw_comparison(
    settings: Mapping[str, Mapping[str, Volume]],
    labels: Volume,
    scheme: LabelScheme,
    *,
    caption: str,
    pixels_per_mm: float = 1.0,
) -> Image.Image:
    """The axial slice through the tumor (or the middle of the mask) of every setting's volumes, by modality.

    ``settings`` gives for each row's name the volumes (intensities in [-1, 1]); ``labels`` holds the mask in the values
    of ``scheme``.
    """
    rows = {
        # Axial is the first plane; for each modality the slice without outlines comes first.
        name: draw_cuts(volumes, labels, scheme, pixels_per_mm=pixels_per_mm)[0][::2]
        for name, volumes in settings.items()
    }
    modalities = list(next(iter(settings.values())))
    font = ImageFont.load_default(size=15)
    first = next(iter(rows.values()))[0]
    width = (first.width + _GAP) * len(modalities) + _GAP
    page = Image.new("RGB", (width, (first.height + _LINE) * len(rows) + 2 * _LINE), _BACKGROUND)
    draw = ImageDraw.Draw(page)
    lefts = [_GAP + column * (first.width + _GAP) for column in range(len(modalities))]
    for left, modality in zip(lefts, modalities, strict=True):
        draw.text((left + first.width // 2, _LINE // 2), modality.upper(), fill=_TEXT, font=font, anchor="mm")
    top = _LINE
    for name, cuts in rows.items():
        draw.text((_GAP, top + _LINE // 2), name, fill=_TEXT, font=font, anchor="lm")
        for left, cut in zip(lefts, cuts, strict=True):
            page.paste(cut, (left, top + _LINE))
        top += _LINE + first.height
    draw.text((width // 2, top + _LINE // 2), caption, fill=_TEXT, font=font, anchor="mm")
    return page
