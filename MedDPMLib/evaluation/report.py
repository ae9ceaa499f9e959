"""The report of an evaluation: one HTML page with tables, charts and pictures, and the same figures in JSON."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from MedDPMLib.evaluation.measure import SPECTRUM, Measured
from MedDPMLib.evaluation.run import Evaluation
from MedDPMLib.evaluation.table import formatted
from MedDPMLib.figures.charts import REAL, SYNTHETIC, figure_of, png, svg
from MedDPMLib.figures.page import render
from MedDPMLib.imaging.io import SYNTHETIC as NOT_A_PATIENT
from MedDPMLib.runtime.files import atomic_write
from MedDPMLib.version import __version__

#: Cases of each kind, and pairs of a synthetic and its nearest training brain, that are shown.
_SHOWN, _SHOWN_NEIGHBORS = 4, 4

#: Pixels along the longer side of a picture.
_PICTURE = 420


def write_report(folder: Path, evaluation: Evaluation) -> list[Path]:
    """Writes ``evaluation.json`` and ``evaluation.html``; returns their paths."""
    paths = [folder / "evaluation.json", folder / "evaluation.html"]
    texts = [json.dumps(evaluation.to_dict(), indent=1, allow_nan=False) + "\n", page(evaluation)]
    for path, text in zip(paths, texts, strict=True):
        with atomic_write(path) as temporary:
            temporary.write_text(text, encoding="utf-8")
    return paths


def page(evaluation: Evaluation) -> str:
    """The report as one HTML page."""
    groups: dict[str, list] = {}
    for figure in evaluation.figures:
        groups.setdefault(figure.group, []).append(figure)
    return render(
        "evaluation/report.html",
        {"formatted": formatted},
        version=__version__,
        evaluation=evaluation,
        groups=groups,
        notice=NOT_A_PATIENT,
        histograms=[(modality, _histogram(evaluation, modality)) for modality in evaluation.modalities],
        spectra=[(modality, _spectrum(evaluation, modality)) for modality in evaluation.modalities],
        pictures=_pictures(evaluation),
        neighbors=[
            (one, png(_side_by_side([one.case, one.training]), 2 * _PICTURE))
            for one in evaluation.neighbors[:_SHOWN_NEIGHBORS]
        ],
    )


def _histogram(evaluation: Evaluation, modality: str) -> str:
    """The distribution of intensities in the brain, a line for each case."""
    edges = np.linspace(-1, 1, 41)
    with figure_of(4.2, 2.6) as (figure, axes):
        for cases, color, name in _kinds(evaluation):
            for index, one in enumerate(cases):
                region = (modality, "brain")
                density = np.histogram(_refined(one.quantiles[region]), edges, density=True)[0]
                label = name if index == 0 else None
                axes.plot((edges[1:] + edges[:-1]) / 2, density, color=color, alpha=0.55, linewidth=1, label=label)
        axes.set(xlabel=f"{modality}, intensity", ylabel="density")
        axes.legend(frameon=False, fontsize=8)
        return svg(figure)


def _refined(quantiles: np.ndarray) -> np.ndarray:
    """Values of the distribution with these quantiles."""
    return np.interp(np.linspace(0, len(quantiles) - 1, 4000), np.arange(len(quantiles)), quantiles)


def _spectrum(evaluation: Evaluation, modality: str) -> str:
    """The mean power by frequency, and the range of single cases."""
    middles = (np.array(SPECTRUM[1:]) + np.array(SPECTRUM[:-1])) / 2
    with figure_of(4.2, 2.6) as (figure, axes):
        for cases, color, name in _kinds(evaluation):
            power = np.maximum([one.spectrum[modality] for one in cases], 1e-12)
            axes.fill_between(middles, power.min(axis=0), power.max(axis=0), color=color, alpha=0.15, linewidth=0)
            axes.plot(middles, np.exp(np.log(power).mean(axis=0)), color=color, label=name)
        axes.set(xlabel=f"{modality}, cycles a voxel", ylabel="power", yscale="log")
        axes.legend(frameon=False, fontsize=8)
        return svg(figure)


def _kinds(evaluation: Evaluation):
    return (evaluation.real, REAL, "real"), (evaluation.synthetic, SYNTHETIC, "synthetic")


def _pictures(evaluation: Evaluation) -> list[tuple[str, str, str]]:
    """Real cases, and the synthetic ones of their masks first: kind, name and picture."""
    groups = {one.group for one in evaluation.synthetic}
    real = sorted(evaluation.real, key=lambda one: (one.name not in groups and one.group not in groups, one.name))
    real = real[:_SHOWN]
    names = {name for one in real for name in (one.name, one.group)}
    made = sorted(evaluation.synthetic, key=lambda one: (one.group not in names, one.name))[:_SHOWN]
    rows = [("real", one) for one in real] + [("synthetic", one) for one in made]
    return [(kind, one.name, png(_side_by_side([one]), _PICTURE)) for kind, one in rows]


def _side_by_side(cases: Sequence[Measured]) -> np.ndarray:
    planes = [plane for one in cases for plane in one.slices]
    height = max(plane.shape[0] for plane in planes)
    padded = []
    for plane in planes:
        above = (height - plane.shape[0]) // 2
        padded.append(np.pad(plane, ((above, height - plane.shape[0] - above), (0, 0))))
    return np.concatenate(padded, axis=1)
