"""Would these brains pass for real ones? Figures of synthetic brains of held-out masks beside real-against-real floors.

Everything is measured on files: a prepared dataset with training and held-out brains, and a folder in which volumes are
generated once. Figures of a brain are kept in that folder, so that a table of many brains is cheap to make again.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import combinations, pairwise
from pathlib import Path
from typing import Any

import numpy as np
from scipy.ndimage import binary_erosion

from MedDPMLib.data import Case
from MedDPMLib.imaging.geometry import Geometry
from MedDPMLib.imaging.normalize import normalize
from MedDPMLib.imaging.volume import Volume
from MedDPMLib.metrics.discriminator import tell_apart
from MedDPMLib.metrics.label_moments import correlation, label_moments, median_colors, share_in_range
from MedDPMLib.metrics.memorization import coarse, nearest
from MedDPMLib.metrics.similarity import bounding_box, gradient_energy, ms_ssim
from MedDPMLib.metrics.spectrum import BANDS, band_power
from MedDPMLib.runtime.files import atomic_write

#: Of several values these percentiles are reported as their spread.
SPREAD = (10, 90)

#: Figures by modality, in the order of the table, with what is compared.
FIGURES = {
    "correlation": "correlation of label means with the real brain's",
    "in_range": "share of label means within the range of the training brains",
    **{f"band{n}": f"spectrum {low:g} to {high:g} cycles/voxel" for n, (low, high) in enumerate(pairwise(BANDS))},
    "gradient": "gradient energy, over the real brain's",
    "sd": "standard deviation within labels, over the real brain's",
    "ms_ssim": "MS-SSIM between seeds of a mask",
}

#: Figures of all modalities together.
WHOLE = {"nearest": "distance to the nearest training brain", "auc": "AUC of a classifier on unseen patients"}

Images = np.ndarray  # (C, D, H, W) float32 in [-1, 1], the background -1


@dataclass(frozen=True)
class BrainFigures:
    """What is measured of one brain: by modality and label ``mean`` and ``sd`` (C, L), NaN where a label is missing, by
    modality and band ``power`` (C, bands), and ``gradient`` energy (C,)."""

    mean: np.ndarray
    sd: np.ndarray
    power: np.ndarray
    gradient: np.ndarray

    def to_dict(self) -> dict[str, Any]:
        """As plain data for JSON, None for NaN."""
        found = {name: values.astype(object) for name, values in vars(self).items()}
        for name, values in found.items():
            values[~np.isfinite(getattr(self, name))] = None
        return {name: values.tolist() for name, values in found.items()}

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> BrainFigures:
        return cls(**{name: np.array(values, float) for name, values in data.items()})


def brain_figures(images: Images, labels: np.ndarray, values: Sequence[int]) -> BrainFigures:
    """The figures of ``images`` with ``labels`` (D, H, W), of which ``values`` are looked at.

    Each image is normalized inside its labels first: scanners have no common unit. The gradient is that inside the
    brain, away from its outline.
    """
    inside = labels > 0
    deep = binary_erosion(inside, iterations=2)
    moments, power, gradient = [], [], []
    for image in images:
        normal = normalized(image, inside)
        moments.append(label_moments(normal, labels, values))
        power.append(band_power(normal, inside))
        gradient.append(gradient_energy(normal, deep))
    return BrainFigures(
        np.stack([one.mean for one in moments]), np.stack([one.sd for one in moments]), np.stack(power),
        np.array(gradient),
    )  # fmt: skip


def normalized(image: np.ndarray, inside: np.ndarray) -> np.ndarray:
    """``image`` (D, H, W) with the brain's percentiles at -1 and 1."""
    geometry = Geometry(image.shape[::-1], np.eye(4))
    return normalize(Volume(image.astype(np.float32), geometry), inside).array


def compared(one: BrainFigures, real: BrainFigures, training: np.ndarray) -> dict[str, list[float]]:
    """By figure a number for each modality: brain ``one`` against ``real``; ``training`` (brains, C, L) are means."""
    channels = range(len(one.mean))
    with np.errstate(all="ignore"):
        return {
            "correlation": [correlation(one.mean[c], real.mean[c]) for c in channels],
            "in_range": [share_in_range(one.mean[c], training[:, c]) for c in channels],
            **{f"band{n}": (one.power[:, n] / real.power[:, n]).tolist() for n in range(one.power.shape[1])},
            "gradient": (one.gradient / real.gradient).tolist(),
            "sd": [float(np.nanmedian(one.sd[c] / real.sd[c])) for c in channels],
        }


@dataclass(frozen=True)
class Summary:
    """Several values, ``count`` of them: their ``middle`` (the mean of correlations, shares and MS-SSIM, the median of
    ratios), and their :data:`SPREAD` from ``low`` to ``high``."""

    middle: float
    low: float
    high: float
    count: int


def summarize(values: Sequence[float], *, ratio: bool) -> Summary | None:
    """None where there is no finite value."""
    known = np.array([value for value in values if value is not None and np.isfinite(value)])
    if not len(known):
        return None
    low, high = np.percentile(known, SPREAD)
    return Summary(float(np.median(known) if ratio else known.mean()), float(low), float(high), len(known))


class Kept:
    """Numbers in the JSON file ``path``, by key, computed once."""

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            self.values: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError):  # a damaged one is computed anew
            self.values = {}

    def get(self, key: str, compute: Callable[[], Any]) -> Any:
        if key not in self.values:
            self.values[key] = compute()
            with atomic_write(self.path) as temporary:
                temporary.write_text(json.dumps(self.values) + "\n", encoding="utf-8")
        return self.values[key]


@dataclass
class Synthetic:
    """A brain generated of the mask of ``case`` with ``seed``; ``load()`` gives its images, ``key`` says of what they
    are."""

    case: str
    seed: int
    key: str
    load: Callable[[], Images]


@dataclass
class Realism:
    """Compares ``synthetic`` brains with the real ones of ``held_out``; ``training`` are those that the model knows.

    ``values`` are the labels, ``modalities`` the channels; ``report`` receives what is being measured.
    """

    training: Sequence[Case]
    held_out: Sequence[Case]
    synthetic: Sequence[Synthetic]
    values: Sequence[int]
    modalities: Sequence[str]
    kept: Kept
    report: Callable[[str], None] = lambda doing: None
    _coarse: list[np.ndarray] = field(default_factory=list)

    def table(self, *, classifier: bool = False) -> dict[str, Any]:
        """By figure (:data:`FIGURES`) and modality, and for those of :data:`WHOLE`, three summaries or None: of the
        ``synthetic`` brains, the ``floor`` real against real, and what a ``colored`` mask reaches."""
        real = {case.name: self._real(case) for case in (*self.training, *self.held_out)}
        means = np.stack([real[case.name].mean for case in self.training])
        made = [self._compared(one, real[one.case], means) for one in self.synthetic]
        floor = [compared(real[one.name], real[other.name], means) for other in self.held_out for one in self.training]
        held_out = [compared(real[case.name], real[case.name], means) for case in self.held_out]
        colors = np.stack([median_colors(means[:, c]) for c in range(means.shape[1])])
        table: dict[str, Any] = {}
        for figure in FIGURES:
            if figure == "ms_ssim":
                continue
            ratio = figure not in ("correlation", "in_range")
            for channel, modality in enumerate(self.modalities):
                of_floor = held_out if figure == "in_range" else floor
                entry = {
                    "synthetic": summarize([one[figure][channel] for one in made], ratio=ratio),
                    "floor": summarize([one[figure][channel] for one in of_floor], ratio=ratio),
                    "colored": None,
                }
                if figure == "correlation":
                    painted = [correlation(colors[channel], real[c.name].mean[channel]) for c in self.held_out]
                    entry["colored"] = summarize(painted, ratio=False)
                table.setdefault(figure, {})[modality] = entry
        table["ms_ssim"] = self._between()
        table["nearest"] = self._nearest()
        if classifier:
            table["auc"] = {"synthetic": self._classifier(), "floor": None, "colored": None}
        return table

    def _real(self, case: Case) -> BrainFigures:
        self.report(f"measuring {case.name}")
        return BrainFigures.from_dict(
            self.kept.get(
                f"real {case.name} {_stamp(case)}",
                lambda: brain_figures(_images(case), case.labels.numpy(), self.values).to_dict(),
            )
        )

    def _compared(self, one: Synthetic, real: BrainFigures, means: np.ndarray) -> dict[str, list[float]]:
        self.report(f"measuring {one.case}, seed {one.seed}")
        labels = self._case(one.case).labels.numpy()
        figures = self.kept.get(one.key, lambda: brain_figures(one.load(), labels, self.values).to_dict())
        return compared(BrainFigures.from_dict(figures), real, means)

    def _between(self) -> dict[str, dict[str, Summary | None]]:
        """MS-SSIM between the seeds of each mask, and between each held-out patient and the next."""
        seeds: list[list[float]] = []
        for case in self.held_out:
            of_case = [one for one in self.synthetic if one.case == case.name]
            box = bounding_box(case.labels.numpy() > 0)
            for one, other in combinations(of_case, 2):
                self.report(f"comparing seeds {one.seed} and {other.seed} of {case.name}")
                key = f"ms-ssim {one.key} {other.key}"
                seeds.append(self._alike(key, one.load, other.load, box))
        patients: list[list[float]] = []
        for case, following in zip(self.held_out, (*self.held_out[1:], self.held_out[0]), strict=True):
            if case is following:
                continue
            self.report(f"comparing {case.name} and {following.name}")
            box = bounding_box((case.labels.numpy() > 0) | (following.labels.numpy() > 0))
            key = f"ms-ssim {case.name} {_stamp(case)} {following.name} {_stamp(following)}"
            patients.append(self._alike(key, partial(_images, case), partial(_images, following), box))
        return {
            modality: {
                "synthetic": summarize([one[channel] for one in seeds], ratio=False),
                "floor": summarize([one[channel] for one in patients], ratio=False),
                "colored": None,
            }
            for channel, modality in enumerate(self.modalities)
        }

    def _alike(
        self, key: str, first: Callable[[], Images], second: Callable[[], Images], box: tuple[slice, ...]
    ) -> list[float]:
        """MS-SSIM of two brains in ``box``, by modality."""
        return self.kept.get(
            key, lambda: [ms_ssim(one[box], other[box]) for one, other in zip(first(), second(), strict=True)]
        )

    def _nearest(self) -> dict[str, Summary | None]:
        """How far the nearest training brain of a synthetic brain is, and that of a real one that was held out."""
        names = ",".join(sorted(f"{case.name}-{_stamp(case)}" for case in self.training))

        def distance(load: Callable[[], Images]) -> float:
            if not self._coarse:
                self._coarse = [coarse(_images(case)) for case in self.training]
            return nearest(coarse(load()), self._coarse).distance

        made, real = [], []
        for one in self.synthetic:
            self.report(f"looking for the nearest brain of {one.case}, seed {one.seed}")
            made.append(self.kept.get(f"nearest {one.key} among {names}", lambda one=one: distance(one.load)))
        for case in self.held_out:
            self.report(f"looking for the nearest brain of {case.name}")
            key = f"nearest {case.name} {_stamp(case)} among {names}"
            real.append(self.kept.get(key, lambda case=case: distance(partial(_images, case))))
        return {
            "synthetic": summarize(made, ratio=False), "floor": summarize(real, ratio=False), "colored": None,
        }  # fmt: skip

    def _classifier(self) -> Summary | None:
        """Trained on one half of the held-out patients and tested on the other, and the other way round."""
        halves = [self.held_out[::2], self.held_out[1::2]]
        if not all(halves):
            return None
        areas = []
        for learnt, unseen in (halves, halves[::-1]):
            self.report("training a classifier")
            key = f"auc {' '.join(case.name for case in learnt)} {' '.join(one.key for one in self.synthetic)}"
            sets = [self._volumes(learnt), self._volumes(unseen)]
            areas.append(self.kept.get(key, lambda sets=sets: tell_apart(*sets)[0]))
        return summarize(areas, ratio=False)

    def _volumes(self, cases: Sequence[Case]) -> tuple[list[np.ndarray], list[np.ndarray]]:
        names = {case.name for case in cases}
        real = [_images(case) for case in cases]
        return real, [one.load() for one in self.synthetic if one.case in names]

    def _case(self, name: str) -> Case:
        return next(case for case in self.held_out if case.name == name)


def rows(table: dict[str, Any], modalities: Sequence[str]) -> Iterator[list[str]]:
    """For people: figure, then by modality the synthetic value; below it the floor and, where there is one, the colored
    mask."""
    for figure, title in FIGURES.items():
        for what, name in (("synthetic", title), ("floor", "  real against real"), ("colored", "  colored mask")):
            entries = [table[figure][modality][what] for modality in modalities]
            if any(entries):
                yield [name, *map(_spoken, entries)]
    for figure, title in WHOLE.items():
        if figure in table:
            yield [title, _spoken(table[figure]["synthetic"]), *[""] * (len(modalities) - 1)]
            if table[figure]["floor"]:
                yield ["  of held-out real brains", _spoken(table[figure]["floor"]), *[""] * (len(modalities) - 1)]


def _spoken(summary: Summary | None) -> str:
    return f"{summary.middle:.2f} ({summary.low:.2f} to {summary.high:.2f})" if summary else ""


def _images(case: Case) -> Images:
    return case.image.float().numpy()


def _stamp(case: Case) -> str:
    """Changes when the files of a case do."""
    return case.file.name.partition(".")[0] if case.file else "memory"
