"""How does a chart become part of a page? Figures without a window, as SVG, and pictures as PNG, both as text."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np

#: Of color-blind safe palettes: Okabe and Ito's. The same color is the same class in every chart.
REAL, SYNTHETIC = "#0072B2", "#D55E00"

_STYLE = {
    "font.size": 9,
    "svg.fonttype": "none",
    "svg.hashsalt": "MedDPM",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "font.family": "sans-serif",
}


@contextmanager
def figure_of(width: float, height: float, columns: int = 1) -> Iterator[tuple]:
    """A figure of so many inches and its axes (an array of them for several ``columns``), in the style of all pages."""
    import matplotlib
    from matplotlib.figure import Figure

    with matplotlib.rc_context(_STYLE):
        figure = Figure((width, height), layout="constrained")
        yield figure, figure.subplots(1, columns)


def svg(figure) -> str:
    """The figure as an element of a page."""
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None})
    text = buffer.getvalue()
    return text[text.index("<svg") :]


def png(pixels: np.ndarray, width: int) -> str:
    """Gray values (rows, columns), made smaller than ``width`` pixels along both sides, as a data URI."""
    from PIL import Image

    image = Image.fromarray(pixels.astype(np.uint8))
    image.thumbnail((width, width), Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    image.save(buffer, format="png", optimize=True)
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()
