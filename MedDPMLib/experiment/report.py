"""The report of an experiment: an HTML page with tables and charts, the same in JSON, and all single figures as CSV."""

from __future__ import annotations

import csv
import json
from pathlib import Path

from MedDPMLib.experiment.comparison import Comparison, Row
from MedDPMLib.experiment.design import REAL, Figure
from MedDPMLib.figures.charts import figure_of, svg
from MedDPMLib.figures.page import render
from MedDPMLib.metrics.paired import Estimate
from MedDPMLib.runtime.files import atomic_write
from MedDPMLib.version import __version__

#: Okabe and Ito's colors, which everyone can distinguish, and markers for more arms than colors.
_COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#888888")
_MARKERS = "osD^vPX"


def write_report(folder: Path, comparison: Comparison) -> list[Path]:
    """Writes ``experiment.csv``, ``experiment.json`` and ``experiment.html``; returns their paths."""
    table, data, html = (folder / f"experiment.{suffix}" for suffix in ("csv", "json", "html"))
    rows = list(comparison.values())
    with atomic_write(table) as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    texts = {data: json.dumps(comparison.to_dict(), indent=1, allow_nan=False) + "\n", html: page(comparison)}
    for path, text in texts.items():
        with atomic_write(path) as temporary:
            temporary.write_text(text, encoding="utf-8")
    return [table, data, html]


def estimated(estimate: Estimate | None, figure: Figure) -> str:
    """A mean of this figure with its interval."""
    if estimate is None:
        return ""
    parts = [f"{value:.{figure.decimals}f}" for value in (estimate.value, *(estimate.ci or ()))]
    return parts[0] if estimate.ci is None else f"{parts[0]} ({parts[1]} to {parts[2]})"


def probability(p: float | None) -> str:
    return "" if p is None else f"{p:.2g}" if p >= 0.001 else "below 0.001"


def real_patients(count: int) -> str:
    """So many real patients, as a table says it."""
    return str(count) if count else "all"


def page(comparison: Comparison) -> str:
    """The report as one HTML page."""
    recipe = comparison.recipe
    groups: dict[str, list[Row]] = {}
    for row in comparison.rows:
        groups.setdefault(f"{row.subject}: {recipe.figures[row.figure].title}", []).append(row)
    curves = [(subject, _learning_curve(comparison, subject)) for subject in recipe.subjects]
    return render(
        "experiment/report.html",
        {"estimated": estimated, "probability": probability, "real_patients": real_patients},
        version=__version__,
        comparison=comparison,
        groups=groups,
        figures=recipe.figures,
        curves=curves if len(recipe.real_cases) > 1 else [],
        differences=[(subject, _differences(comparison, subject)) for subject in recipe.subjects],
        trainings=_trainings(comparison),
    )


def _differences(comparison: Comparison, subject: str) -> str:
    """The difference of each arm's first figure from the reference's, with its interval; of the most real patients."""
    count, (first, figure) = _most(comparison), _first(comparison)
    rows = [r for r in comparison.rows if (r.subject, r.figure, r.count) == (subject, first, count) and r.difference]
    with figure_of(4.6, 0.9 + 0.28 * len(rows)) as (chart, axes):
        for place, row in enumerate(reversed(rows)):
            assert row.difference is not None
            if row.difference.ci:
                axes.plot(row.difference.ci, (place, place), color=_COLORS[0], linewidth=1.5)
            axes.plot(row.difference.value, place, "o", color=_COLORS[0], markersize=5)
        axes.axvline(0, color="#888888", linewidth=0.8)
        axes.set(yticks=range(len(rows)), yticklabels=[row.arm for row in reversed(rows)], ylim=(-0.6, len(rows) - 0.4))
        axes.set(xlabel=f"difference of {figure.title}", title=subject)
        return svg(chart)


def _learning_curve(comparison: Comparison, subject: str) -> str:
    """The mean of the first figure by the number of real patients, a line for each arm."""
    recipe, (first, figure) = comparison.recipe, _first(comparison)
    counts = sorted(recipe.real_cases, key=lambda count: count or 10**9)
    with figure_of(4.6, 3.6) as (chart, axes):
        for number, arm in enumerate(recipe.arms):
            rows = {
                r.count: r.mean for r in comparison.rows if (r.arm, r.subject, r.figure) == (arm.name, subject, first)
            }
            style = {
                "color": _COLORS[number % len(_COLORS)],
                "marker": _MARKERS[number // len(_COLORS) % len(_MARKERS)],
            }
            if REAL not in arm.data:
                style |= {"linestyle": ":", "marker": ""}
            places = [place + 0.02 * (number - len(recipe.arms) / 2) for place in range(len(counts))]
            axes.plot(places, [rows[count].value for count in counts], label=arm.name, markersize=4, **style)
            for place, count in zip(places, counts, strict=True):
                if rows[count].ci:
                    axes.plot((place, place), rows[count].ci, color=style["color"], linewidth=0.6, alpha=0.6)
        axes.set(xticks=range(len(counts)), xticklabels=[real_patients(count) for count in counts])
        axes.set(xlabel="real patients to train on", ylabel=f"{subject}: {figure.title}")
        chart.legend(loc="outside lower center", ncols=2, frameon=False, fontsize=7)
        return svg(chart)


def _trainings(comparison: Comparison) -> list[tuple[str, str]]:
    """The loss of all trainings of an arm: did they end?"""
    charts = []
    for arm in comparison.recipe.arms:
        with figure_of(3.2, 2.0) as (figure, axes):
            for result in comparison.results:
                if result.job.arm == arm.name:
                    axes.plot(
                        [n for n, _, _ in result.done.curve], [loss for _, loss, _ in result.done.curve], linewidth=1
                    )
            axes.set(xlabel="iteration", ylabel="loss")
            charts.append((arm.name, svg(figure)))
    return charts


def _most(comparison: Comparison) -> int:
    counts = comparison.recipe.real_cases
    return 0 if 0 in counts else max(counts)


def _first(comparison: Comparison) -> tuple[str, Figure]:
    """The figure that is drawn."""
    return next(iter(comparison.recipe.figures.items()))
