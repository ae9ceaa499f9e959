"""Pictures of a report: SVG and PNG, as text to be put into a page."""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping, Sequence

import numpy as np

from MedDPMLib.figures.charts import REAL, SYNTHETIC, figure_of, png, svg
from MedDPMLib.imaging.io import read_volume
from MedDPMLib.study.casefile import case_geometry
from MedDPMLib.study.definition import RATINGS, SCORES, Preparation
from MedDPMLib.study.detection import Detection
from MedDPMLib.study.likert import Domain
from MedDPMLib.study.rows import Readings

_GRAYS = ("#7b2d00", "#c96f3b", "#cccccc", "#6f9fc4", "#0b4a75")
#: Pixels along the longer side of a thumbnail.
_THUMBNAIL = 128


def roc(detections: Mapping[str, Detection], mean_auc: float) -> str:
    """Each reader's empirical ROC curve, and the mean of their sensitivities at each rate of false positives."""
    with figure_of(4.2, 4.0) as (figure, axes):
        axes.plot((0, 1), (0, 1), color="#999999", linewidth=1, linestyle=":")
        for index, (reader, found) in enumerate(detections.items()):
            axes.plot(*found.roc, marker=".", linewidth=1.2, color=_cycle(index), label=f"{reader}: {found.auc:.2f}")
        rates = np.linspace(0, 1, 201)
        mean = np.mean([np.interp(rates, *found.roc) for found in detections.values()], axis=0)
        axes.plot(np.r_[0, rates], np.r_[0, mean], color="black", linewidth=2)
        axes.set(xlabel="1 - specificity", ylabel="sensitivity", xlim=(-0.02, 1.02), ylim=(-0.02, 1.02), aspect=1)
        axes.set_title(f"mean AUC {mean_auc:.3f}", loc="left", fontsize=9)
        axes.legend(frameon=False, fontsize=8, loc="lower right", title="AUC", title_fontsize=8)
        return svg(figure)


def intervals(detections: Mapping[str, Detection], mean: float, ci: Sequence[float], margin: float) -> str:
    """Each reader's AUC, the mean with its interval, and the margin around chance."""
    names = list(detections)
    with figure_of(6.2, 0.8 + 0.28 * (len(names) + 1)) as (figure, axes):
        axes.axvspan(0.5 - margin, 0.5 + margin, color="#009E73", alpha=0.13, linewidth=0)
        axes.axvline(0.5, color="#999999", linewidth=1, linestyle=":")
        for place, name in enumerate(names):
            axes.plot(detections[name].auc, place, "o", color="#555555", markersize=5)
        last = len(names)
        axes.plot(ci, (last, last), color="black", linewidth=2)
        axes.plot(mean, last, "D", color="black", markersize=6)
        axes.set_yticks(range(last + 1), [*names, "mean, 95 %"])
        axes.invert_yaxis()
        axes.set(xlabel="AUC (green: chance plus or minus the margin)", xlim=(min(0.0, ci[0]), max(1.0, ci[1])))
        return svg(figure)


def ratings(counts: np.ndarray) -> str:
    """``counts`` (2, 6): how often each rating was given to real and synthetic cases."""
    with figure_of(6.2, 2.6) as (figure, axes):
        places = np.arange(6)
        for kind, (name, color) in enumerate((("real", REAL), ("synthetic", SYNTHETIC))):
            axes.bar(places + (kind - 0.5) * 0.38, counts[kind], 0.36, color=color, label=f"{name} cases")
        axes.set_xticks(places, [words.replace(" ", "\n") for _, words in RATINGS])
        axes.set(ylabel="answers")
        axes.legend(frameon=False, fontsize=8, ncols=2, loc="lower right", bbox_to_anchor=(1.0, 1.0))
        return svg(figure)


def domains(found: Sequence[Domain]) -> str:
    """Stacked shares of the five scores, real above synthetic in each domain."""
    with figure_of(6.2, 1.0 + 0.55 * len(found)) as (figure, axes):
        names, place = [], 0.0
        for domain in found:
            for kind, class_ in enumerate(("real", "synthetic")):
                left, total = 0.0, max(1, domain.counts[kind].sum())
                for score, color in enumerate(_GRAYS):
                    share = domain.counts[kind][score] / total
                    axes.barh(place, share, 0.8, left=left, color=color, label=_once(axes, SCORES[score][1]))
                    left += share
                names.append((place, f"{domain.name}, {class_}" if kind == 0 else class_))
                place += 0.95
            place += 0.4
        axes.set_yticks([at for at, _ in names], [name for _, name in names])
        axes.invert_yaxis()
        axes.set(xlim=(0, 1), xlabel="share of answers")
        axes.legend(frameon=False, fontsize=8, ncols=5, loc="lower center", bbox_to_anchor=(0.4, 1.0))
        return svg(figure)


def thumbnail(readings: Readings, case: str) -> str:
    """Axial, coronal and sagittal slice through the middle of a case's first modality, as a PNG's data URI."""
    array = read_volume(readings.case_file(case, readings.definition.modalities[0])).array
    k, j, i = (n // 2 for n in array.shape)
    # Axes run L, P, S: shown as radiologists look at them, with the patient's left on the right.
    planes = (array[k], array[::-1, j], array[::-1, :, i])
    height = max(plane.shape[0] for plane in planes)
    return png(np.concatenate([_centered(plane, height) for plane in planes], axis=1), 3 * _THUMBNAIL)


def heat_map(readings: Readings, points: Sequence[tuple[float, float, float]]) -> str:
    """Where points were placed, over the mean of the cases they were placed in; projections along the three axes."""
    from scipy import ndimage

    preparation: Preparation = readings.definition.preparation
    geometry = case_geometry(grid_of(preparation))
    ijk = np.rint(geometry.to_ijk(np.array(points))).astype(int)
    density = np.zeros(geometry.shape, np.float32)
    for i, j, k in np.clip(ijk, 0, np.array(geometry.size) - 1):
        density[k, j, i] += 1
    density = ndimage.gaussian_filter(density, 6.0 / preparation.spacing)
    cases = sorted({row.case for row in readings.rows if row.point})
    mean = np.mean([read_volume(readings.case_file(c, readings.definition.modalities[0])).array for c in cases], axis=0)
    with figure_of(8.4, 3.0, columns=3) as (figure, all_axes):
        for axis, (axes, name) in enumerate(zip(all_axes, ("axial", "coronal", "sagittal"), strict=True)):
            flip = slice(None) if axis == 0 else slice(None, None, -1)
            background = mean.take(mean.shape[axis] // 2, axis)[flip]
            shown = density.sum(axis=axis)[flip]
            axes.imshow(background, cmap="gray", interpolation="bilinear")
            axes.imshow(
                np.ma.masked_less(shown, 0.15 * shown.max()), cmap="inferno", alpha=0.6, interpolation="bilinear"
            )
            at = (ijk[:, [0, 1]], ijk[:, [0, 2]], ijk[:, [1, 2]])[axis]
            rows = at[:, 1] if axis == 0 else mean.shape[0] - 1 - at[:, 1]
            axes.plot(at[:, 0], rows, "+", color="#56B4E9", markersize=5, markeredgewidth=0.8)
            axes.set_title(name, fontsize=9)
            axes.set_axis_off()
        buffer = io.BytesIO()
        figure.savefig(buffer, format="png", dpi=110, bbox_inches="tight", metadata={"Software": None})
        return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()


def grid_of(preparation: Preparation):
    """The grid of all cases."""
    from MedDPMLib.imaging.geometry import Grid

    return Grid(preparation.size, (preparation.spacing,) * 3, preparation.orientation)


def _centered(plane: np.ndarray, height: int) -> np.ndarray:
    above = (height - plane.shape[0]) // 2
    return np.pad(plane, ((above, height - plane.shape[0] - above), (0, 0)))


def _cycle(index: int) -> str:
    colors = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#555555", "#8B6914")
    return colors[index % len(colors)]


def _once(axes, label: str) -> str | None:
    return label if label not in axes.get_legend_handles_labels()[1] else None
