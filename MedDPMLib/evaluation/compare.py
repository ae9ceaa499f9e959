"""How do the synthetic cases compare with the real ones? Every figure of the table, from what was measured of each."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np
from scipy.stats import wasserstein_distance

from MedDPMLib.errors import MedDPMError
from MedDPMLib.evaluation.measure import SPECTRUM, Measured, vessel_figures, vessel_threshold
from MedDPMLib.evaluation.table import Figure, of_mean
from MedDPMLib.metrics import sets
from MedDPMLib.metrics.intervals import mean_over_groups
from MedDPMLib.metrics.memorization import nearest
from MedDPMLib.metrics.similarity import Likeness

#: The bands that a table has of a spectrum: cycles a voxel.
_BANDS = ((0.02, 0.08), (0.08, 0.2), (0.2, 0.35), (0.35, 0.5))

#: A synthetic brain this much nearer to a training brain than half of the held-out real ones are may be a copy.
SUSPICIOUS = 0.5

SETS, PAIRS, INTENSITIES = "distance of the sets", "pairs", "intensities"
DETAIL, MODALITIES, COPIES, VESSELS, MASKS = "detail", "between modalities", "copies", "vessels", "mask fidelity"


def compare_sets(real: Sequence[Measured], synthetic: Sequence[Measured], modality: str, features: str) -> list[Figure]:
    """FID and MMD with three kernels of one ``modality``, from the features called so. What is refused says why."""
    first, second = (np.array([one.features[modality] for one in cases]) for cases in (real, synthetic))
    groups = [[one.group for one in cases] for cases in (real, synthetic)]
    n = f"{len(real)} real, {len(synthetic)} synthetic"
    common = {"group": SETS, "subject": modality, "better": "lower", "n": n}
    scale = first.std(axis=0) + 1e-12 if len(first) > 1 else np.ones(first.shape[1])
    standard = [(one - first.mean(axis=0)) / scale for one in (first, second)]

    found = []
    try:
        frechet = sets.frechet_distance(first, second)
        statistic = lambda a, b: sets.frechet_distance(a, b).distance  # noqa: E731
        note = f"N is not above the {first.shape[1]} features: shrunk, no FID" if frechet.shrunk else ""
        found.append(
            Figure(
                name=f"3D-{frechet.name}, {features}",
                value=frechet.distance,
                range="0 and above",
                note=note,
                **_interval(first, second, groups, statistic, least=0.0),
                **common,
            )  # fmt: skip
        )
    except MedDPMError as error:
        found.append(Figure(name=f"3D-FID, {features}", value=None, range="0 and above", note=str(error), **common))
    for kernel, title in (("linear", "linear"), ("rbf", "RBF"), ("polynomial", "polynomial (KID)")):
        name = f"MMD squared, {title} kernel, {features}"
        try:
            length = sets.median_distance(standard[0]) or 1.0 if kernel == "rbf" and len(first) > 1 else None
            statistic = lambda a, b, kernel=kernel, length=length: sets.mmd(a, b, kernel, length)  # noqa: E731
            value = statistic(*standard)
            found.append(
                Figure(
                    name=name,
                    value=value,
                    range="unbiased, so that it can be below 0",
                    **_interval(standard[0], standard[1], groups, statistic),
                    **common,
                )  # fmt: skip
            )
        except MedDPMError as error:
            found.append(Figure(name=name, value=None, range="0 and above", note=str(error), **common))
    return found


def _interval(first: np.ndarray, second: np.ndarray, groups, statistic, least: float = -np.inf) -> dict:
    try:
        ci = sets.jackknife(first, second, groups, statistic)
    except MedDPMError:
        ci = None
    try:
        floor = sets.floor(first, groups[0], statistic)
    except MedDPMError:
        floor = None
    ci = (max(least, ci[0]), ci[1]) if ci else None
    return {"ci": ci, "method": "jackknife" if ci else "", "floor": floor}


@dataclass(frozen=True)
class Pair:
    """The ``likeness`` of two cases by modality; ``group`` is the mask or patient that the pair counts for."""

    group: str
    likeness: Mapping[str, Likeness]


def compare_pairs(
    paired: Sequence[Pair], within: Sequence[Pair], across: Sequence[Pair], real: Sequence[Pair], modality: str
) -> list[Figure]:
    """MSE and MS-SSIM of synthetic volumes with the real one of the same mask, of synthetic ones of one mask, and of
    different masks; beside them pairs of different real ones."""

    def mean(pairs: Sequence[Pair], what: str):
        return mean_over_groups([getattr(one.likeness[modality], what) for one in pairs], [one.group for one in pairs])

    floors = {what: mean(real, what) for what in ("mse", "ms_ssim")}
    fields = {"group": PAIRS, "subject": modality}
    lacking = "no synthetic volume was made from the mask of a real case"
    return [
        of_mean(mean(paired, "mse"), "pairs", name="MSE, synthetic and real of one mask", better="lower",
                range="0 to 4 (intensities from -1 to 1), inside the brain", note="" if paired else lacking,
                **_floor(floors["mse"]), **fields),
        of_mean(mean(paired, "ms_ssim"), "pairs", name="MS-SSIM, synthetic and real of one mask", better="higher",
                range="0 to 1", note="" if paired else lacking, **_floor(floors["ms_ssim"]), **fields),
        of_mean(mean(within, "ms_ssim"), "pairs", name="MS-SSIM of synthetic volumes of one mask", better="like real",
                range="0 to 1; 1 is no variety",
                note="" if within else "no mask has several synthetic volumes", **fields),
        of_mean(mean(across, "ms_ssim"), "pairs", name="MS-SSIM of synthetic volumes of different masks",
                better="like real", range="0 to 1; above real: less variety", **_floor(floors["ms_ssim"]), **fields),
    ]  # fmt: skip


def _floor(mean) -> dict:
    return {} if mean is None else {"floor": mean.value, "floor_ci": mean.ci}


def compare_intensities(
    real: Sequence[Measured], synthetic: Sequence[Measured], modality: str, labels: Sequence[str]
) -> list[Figure]:
    """Distance of the distributions by label, and the share of labels whose mean is one that real patients have.

    A case, real or synthetic, is compared with the real cases of other groups: of two copies neither is nearer.
    """

    @cache
    def others(group: str) -> tuple[dict[str, np.ndarray], dict[str, tuple[float, float]]]:
        cases = [one for one in real if one.group != group]
        means = {
            name: [_mean(one.quantiles[modality, name]) for one in cases if (modality, name) in one.quantiles]
            for name in labels
        }
        ranges = {name: (min(values), max(values)) for name, values in means.items() if len(values) > 1}
        return _pooled(cases, modality, labels), ranges

    titles = (
        ("Wasserstein distance by label", "lower", "0 to 2 (intensities from -1 to 1), each label counted once"),
        (
            "share of label means within the range of real patients",
            "like real",
            f"0 to 1; range of {len(real)} real cases",
        ),
    )
    found = []
    measures: tuple[Callable[..., float], ...] = (_distance, _share)
    for index, ((name, better, scale), measure) in enumerate(zip(titles, measures, strict=True)):
        means = [
            mean_over_groups(
                [measure(one, others(one.group)[index], modality) for one in cases], [one.group for one in cases]
            )
            for cases in (real, synthetic)
        ]
        found.append(
            of_mean(
                means[1],
                "synthetic volumes",
                group=INTENSITIES,
                name=name,
                subject=modality,
                better=better,
                range=scale,
                note="" if means[1] else "too few real cases of other patients",
                **_floor(means[0]),
            )  # fmt: skip
        )
    return found


def _pooled(cases: Sequence[Measured], modality: str, labels: Sequence[str]) -> dict[str, np.ndarray]:
    """By label the values of all ``cases`` together, as their quantiles, each case counted once."""
    found = {}
    for name in labels:
        values = [one.quantiles[modality, name] for one in cases if (modality, name) in one.quantiles]
        if values:
            found[name] = np.concatenate(values)
    return found


def _distance(one: Measured, pooled: Mapping[str, np.ndarray], modality: str) -> float:
    distances = [
        wasserstein_distance(one.quantiles[modality, name], values)
        for name, values in pooled.items()
        if (modality, name) in one.quantiles
    ]
    return float(np.mean(distances)) if distances else float("nan")


def _share(one: Measured, ranges: Mapping[str, tuple[float, float]], modality: str) -> float:
    within = [
        low <= _mean(one.quantiles[modality, name]) <= high
        for name, (low, high) in ranges.items()
        if (modality, name) in one.quantiles
    ]
    return float(np.mean(within)) if within else float("nan")


def _mean(quantiles: np.ndarray) -> float:
    return float((quantiles[1:] + quantiles[:-1]).mean() / 2)


def compare_detail(real: Sequence[Measured], synthetic: Sequence[Measured], modality: str) -> list[Figure]:
    """Power of the synthetic volumes over that of the real ones, by band of frequencies."""
    found = []
    edges = np.array(SPECTRUM)
    for low, high in _BANDS:
        within = (edges[:-1] >= low - 1e-6) & (edges[1:] <= high + 1e-6)
        power = [np.array([one.spectrum[modality][within].mean() for one in cases]) for cases in (real, synthetic)]
        reference = np.log(np.maximum(power[0], 1e-12)).mean()
        logs = [np.log(np.maximum(values, 1e-12)) - reference for values in power]
        mean = mean_over_groups(logs[1].tolist(), [one.group for one in synthetic])
        assert mean is not None, "there are synthetic cases"
        spread = np.exp([logs[0].min(), logs[0].max()])
        found.append(
            Figure(
                group=DETAIL,
                name=f"power over real, {low:g} to {high:g} cycles a voxel",
                subject=modality,
                value=float(np.exp(mean.value)),
                ci=tuple(np.exp(mean.ci).tolist()) if mean.ci else None,
                method="bootstrap (BCa)" if mean.ci else "",
                better="like real",
                range="1 is real; below, detail is lost; above, grain",
                n=f"{len(real)} real, {mean.count} synthetic",
                floor=1.0,
                floor_ci=tuple(spread.tolist()),
                note="real: range of single cases over their mean",
            )  # fmt: skip
        )
    return found


def compare_modalities(real: Sequence[Measured], synthetic: Sequence[Measured], pair: tuple[str, str]) -> list[Figure]:
    """Mutual information and edge agreement of two modalities."""
    found = []
    for index, (name, scale) in enumerate(
        (("normalized mutual information", "1 to 2"), ("agreement of edges (Dice)", "0.1 (chance) to 1"))
    ):
        means = [
            mean_over_groups([one.agreement[pair][index] for one in cases], [one.group for one in cases])
            for cases in (real, synthetic)
        ]
        found.append(
            of_mean(
                means[1],
                "synthetic volumes",
                group=MODALITIES,
                name=name,
                subject=" and ".join(pair),
                better="like real",
                range=scale,
                **_floor(means[0]),
            )  # fmt: skip
        )
    return found


@dataclass(frozen=True)
class Neighbor:
    """The nearest training case of a synthetic one, and its distance over the median of those of held-out real ones."""

    case: Measured
    training: Measured
    distance: float
    ratio: float

    @property
    def suspicious(self) -> bool:
        return self.ratio < SUSPICIOUS


def find_copies(
    real: Sequence[Measured], synthetic: Sequence[Measured], training: Sequence[Measured]
) -> tuple[list[Figure], list[Neighbor]]:
    """Whether synthetic brains are nearer to a training brain than real brains are that were never trained on.

    Real cases that are among the training cases (by name) do not count as held out.
    """
    names = {one.name for one in training}
    held_out = [one for one in real if one.name not in names]
    if not held_out:
        note = "all real cases are training cases: none is held out"
        return [_copies(None, None, note, f"{len(training)} training")], []
    boxes = [one.aligned for one in training]
    usual = [nearest(one.aligned, boxes).distance for one in held_out]
    median = float(np.median(usual))
    neighbors = []
    for one in synthetic:
        found = nearest(one.aligned, boxes)
        ratio = found.distance / median if median else float("nan")
        neighbors.append(Neighbor(one, training[found.index], found.distance, ratio))
    neighbors.sort(key=lambda one: one.ratio)
    mean = mean_over_groups([one.ratio for one in neighbors], [one.case.group for one in neighbors])
    spread = (min(usual) / median, max(usual) / median) if median else None
    n = f"{len(synthetic)} synthetic, {len(held_out)} held out, {len(training)} training"
    count = sum(one.suspicious for one in neighbors)
    note = f"{count} below {SUSPICIOUS:g}; least {neighbors[0].ratio:.2f} ({neighbors[0].case.name})"
    return [_copies(mean, spread, note, n)], neighbors


def _copies(mean, spread, note: str, n: str) -> Figure:
    return Figure(
        group=COPIES, name="distance to the nearest training brain over that of held-out real ones", subject="all",
        value=mean.value if mean else None, ci=mean.ci if mean else None, method="bootstrap (BCa)" if mean else "",
        better="like real", range="0 is a copy, 1 is as far as another patient", n=n, floor=1.0 if mean else None,
        floor_ci=spread, note=note,
    )  # fmt: skip


def compare_vessels(
    real: Sequence[Measured], synthetic: Sequence[Measured], partners: Mapping[str, str]
) -> list[Figure]:
    """Exploratory: pieces and loops of bright tubes in a liter of brain, and their clDice with those of the real scan
    (``partners``: by the name of a synthetic case that of its real one)."""
    threshold = vessel_threshold(real)
    by_name = {one.name: one for one in real}
    rows = [(one, *vessel_figures(one, threshold, None)) for one in real]
    made = [(one, *vessel_figures(one, threshold, by_name.get(partners.get(one.name)))) for one in synthetic]
    found = []
    for name, of in (("pieces", lambda t: t.pieces), ("loops", lambda t: t.loops)):
        means = [
            mean_over_groups(
                [of(shape) / one.brain_liters for one, shape, _ in cases], [one.group for one, *_ in cases]
            )
            for cases in (rows, made)
        ]
        found.append(
            of_mean(
                means[1],
                "synthetic volumes",
                group=VESSELS,
                name=f"{name} of bright tubes in a liter of brain",
                subject="t1ce",
                better="like real",
                range="0 and above",
                exploratory=True,
                **_floor(means[0]),
            )  # fmt: skip
        )
    different = (
        [vessel_figures(one, threshold, real[index - 1])[1] for index, one in enumerate(real)] if len(real) > 1 else []
    )
    paired = [(value, one.group) for one, _, value in made if not np.isnan(value)]
    found.append(
        of_mean(
            mean_over_groups([value for value, _ in paired], [group for _, group in paired]),
            "pairs",
            group=VESSELS,
            name="clDice of bright tubes, synthetic and real of one mask",
            subject="t1ce",
            better="higher",
            range="0 to 1; real: of different patients",
            exploratory=True,
            note="" if paired else "no synthetic volume was made from the mask of a real case",
            **_floor(mean_over_groups(different, [one.group for one in real][: len(different)])),
        )  # fmt: skip
    )
    return found


def compare_masks(
    dice_real: Sequence[Mapping[str, float]], dice_synthetic: Sequence[Mapping[str, float]],
    groups: tuple[Sequence[str], Sequence[str]],
) -> list[Figure]:  # fmt: skip
    """Dice by label of a frozen segmenter's output on synthetic images with their masks, beside that on real images."""
    found = []
    for label in dict.fromkeys(name for one in (*dice_real, *dice_synthetic) for name in one):
        means = [
            mean_over_groups([one.get(label, float("nan")) for one in dices], of)
            for dices, of in zip((dice_real, dice_synthetic), groups, strict=True)
        ]
        found.append(
            of_mean(
                means[1],
                "synthetic volumes",
                group=MASKS,
                name="Dice of a segmenter with the mask",
                subject=label,
                better="like real",
                range="0 to 1",
                **_floor(means[0]),
            )  # fmt: skip
        )
    return found
