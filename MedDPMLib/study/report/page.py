"""The report as one HTML page that opens anywhere, without a network."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from MedDPMLib.figures.page import render as fill
from MedDPMLib.runtime.files import atomic_write
from MedDPMLib.study.analysis import Analysis, Detected
from MedDPMLib.study.definition import Margin
from MedDPMLib.study.detection import Proportion
from MedDPMLib.study.mrmc import Estimate
from MedDPMLib.study.report import plots
from MedDPMLib.study.report.conclusion import conclude, p, within_scale
from MedDPMLib.version import __version__

#: Cases with pictures, most fooling first.
_SHOWN_CASES = 8


def write_report(path: Path, analysis: Analysis) -> None:
    text = render(analysis)
    with atomic_write(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def render(analysis: Analysis) -> str:
    definition, detected = analysis.readings.definition, analysis.detected
    reasons = [row for row in analysis.readings.rows if row.reason and row.counts]
    points = [row.point for row in analysis.readings.rows if row.point]
    return fill(
        "study/report.html",
        {"share": _share, "estimate": _estimate, "number": _number, "p": p},
        version=__version__,
        study=definition,
        analysis=analysis,
        models=[_model(detected, model, definition.margin) for model in definition.models] if detected else [],
        ratings_plot=_ratings_plot(analysis),
        domains_plot=plots.domains(analysis.domains) if analysis.domains else "",
        cases=[(one, plots.thumbnail(analysis.readings, one.case)) for one in analysis.fooling[:_SHOWN_CASES]],
        heat_map=plots.heat_map(analysis.readings, points) if points else "",
        points=len(points),
        reasons=reasons,
    )


def _model(detected: Detected, model: str, margin: Margin) -> dict[str, Any]:
    of_auc, of_accuracy, of_sensitivity, of_specificity = detected.means[model]
    both = detected.equivalence[model] or (None, None)
    return {
        "name": model,
        "auc": of_auc,
        "accuracy": of_accuracy,
        "sensitivity": of_sensitivity,
        "specificity": of_specificity,
        "conclusions": [conclude("AUC", of_auc, both[0]), conclude("accuracy", of_accuracy, both[1])],
        "equivalence": both,
        "readers": detected.readers[model],
        "agreement": detected.agreement[model],
        "roc": plots.roc(detected.readers[model], of_auc.value),
        "intervals": plots.intervals(detected.readers[model], of_auc.value, of_auc.ci, margin.auc),
    }


def _ratings_plot(analysis: Analysis) -> str:
    counts = np.zeros((2, 6), int)
    for row in analysis.readings.rows:
        if row.counts and row.rating is not None:
            counts[row.truth, row.rating - 1] += 1
    return plots.ratings(counts) if counts.any() else ""


def _share(found: Proportion) -> str:
    return f"{found.value:.2f} ({found.ci[0]:.2f} to {found.ci[1]:.2f})"


def _estimate(found: Estimate) -> str:
    low, high = within_scale(found.ci)
    return f"{found.value:.3f} ({low:.3f} to {high:.3f})"


def _number(value, digits: int = 2) -> str:
    """A number, "value (low to high)" or what stands for none."""
    if value is None:
        return "not defined"
    if isinstance(value, tuple):
        return f"{value[0]:.{digits}f} ({value[1]:.{digits}f} to {value[2]:.{digits}f})"
    return f"{value:.{digits}f}"
