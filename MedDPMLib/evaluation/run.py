"""One evaluation, from two folders to figures: which cases, which pairs, in which order."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np

from MedDPMLib.errors import MedDPMError
from MedDPMLib.evaluation import compare
from MedDPMLib.evaluation.cases import CaseFiles, LoadedCase, common_modalities, find_cases, grid_of, load_case
from MedDPMLib.evaluation.compare import Neighbor, Pair
from MedDPMLib.evaluation.features import Features, HaarFeatures
from MedDPMLib.evaluation.judge import Judge
from MedDPMLib.evaluation.measure import VESSEL_MODALITY, Measured, measure
from MedDPMLib.evaluation.table import Figure
from MedDPMLib.imaging.geometry import Grid
from MedDPMLib.masks.schemes import LabelScheme
from MedDPMLib.metrics.similarity import likeness
from MedDPMLib.runtime.versions import versions
from MedDPMLib.segmentation.segmenter import Segmenter

#: Pairs that are compared voxel by voxel, of each kind: an MS-SSIM takes seconds.
MOST_PAIRS = 20


@dataclass(frozen=True)
class Request:
    """What is evaluated: the folders ``real`` and ``synthetic``, of ``masks`` and of ``training`` cases, if any.

    Without a ``scheme`` there are no figures by label. A ``segmenter`` judges whether images show their masks.
    """

    real: Path
    synthetic: Path
    masks: Path | None = None
    training: Path | None = None
    scheme: LabelScheme | None = None
    numbering: str | None = None
    features: Features = field(default_factory=HaarFeatures)
    vessels: bool = True
    segmenter: Segmenter | None = None


@dataclass(frozen=True, eq=False)
class Evaluation:
    """``figures``, and what a report shows beside them; ``skipped`` cases with the reason, ``notes`` on all of it."""

    figures: list[Figure]
    modalities: list[str]
    real: list[Measured]
    synthetic: list[Measured]
    neighbors: list[Neighbor]
    skipped: list[str]
    notes: list[str]
    about: dict[str, str]

    def to_dict(self) -> dict[str, Any]:
        """As plain data for JSON."""
        return {
            "description": "evaluation of synthetic volumes, MedDPM",
            "figures": [figure.to_dict() for figure in self.figures],
            "real": [one.name for one in self.real],
            "synthetic": [one.name for one in self.synthetic],
            "nearest_training_brains": [
                {
                    "synthetic": one.case.name,
                    "training": one.training.name,
                    "distance": one.distance,
                    "ratio": one.ratio,
                }
                for one in self.neighbors
            ],
            "skipped": self.skipped,
            "notes": self.notes,
            "about": self.about,
            "versions": versions(),
        }


def evaluate(
    request: Request, progress: Callable[[int, int, str], None] = lambda done, total, doing: None
) -> Evaluation:
    """Compares the two folders; ``progress`` is called after each piece of work: how many of how many, and which.

    Cases that cannot be used are skipped; ``skipped`` says why. Raises :class:`MedDPMError` for folders without
    usable cases.
    """
    real, synthetic = find_cases(request.real, request.masks), find_cases(request.synthetic, request.masks)
    training = find_cases(request.training, request.masks) if request.training else []
    modalities = common_modalities(real, synthetic)
    grid, skipped = grid_of(synthetic[0]), []
    scheme = request.scheme
    with_vessels = request.vessels and VESSEL_MODALITY in modalities
    done, total = 0, len(real) + len(synthetic) + len(training)

    def advance(doing: str) -> None:
        nonlocal done
        done += 1
        progress(done, total, doing)

    @lru_cache(maxsize=6)
    def load(case: CaseFiles) -> LoadedCase:
        return load_case(case, modalities, grid, scheme, request.numbering)

    judge = Judge(request.segmenter, scheme) if request.segmenter and scheme else None
    dices: dict[str, list[Mapping[str, float]]] = {"real": [], "synthetic": []}
    unjudged: list[str] = []

    def judged(case: LoadedCase) -> Mapping[str, float]:
        assert judge is not None
        if judge.knows(case):
            unjudged.append(case.name)
            return {}
        try:
            return judge.dice(case, modalities, grid)
        except MedDPMError as error:
            skipped.append(f"mask fidelity of {case.name}: {error}")
            return {}

    def measured(cases: Sequence[CaseFiles], what: str, vessels: bool) -> Iterator[tuple[CaseFiles, Measured]]:
        for case in cases:
            try:
                loaded = load(case)
                found = measure(
                    loaded, modalities, request.features, scheme, spacing=grid.spacing, find_vessels=vessels
                )
                if judge and what in dices:
                    dices[what].append(judged(loaded))
            except MedDPMError as error:
                skipped.append(str(error) if case.name in str(error) else f"{case.name}: {error}")
                continue
            finally:
                advance(f"{what} {case.name}")
            yield case, found

    sets = {
        "real": list(measured(real, "real", with_vessels)),
        "synthetic": list(measured(synthetic, "synthetic", with_vessels)),
    }
    for what, cases in sets.items():
        if not cases:
            raise MedDPMError(f"no {what} case can be used: {skipped[0] if skipped else 'check the folders'}")
    known = [one for _, one in measured(training, "training", False)]
    real_cases, real_measured = map(list, zip(*sets["real"], strict=True))
    made_cases, made_measured = map(list, zip(*sets["synthetic"], strict=True))
    partners = _partners(real_cases, made_cases)
    pairs = _pairs(real_cases, made_cases, partners)
    total += sum(map(len, pairs.values()))
    compared: dict[str, list[Pair]] = {}
    for kind, of_kind in pairs.items():
        compared[kind] = []
        for first, second, group in of_kind:
            compared[kind].append(Pair(group, _likeness(load(first), load(second), modalities)))
            advance(f"{first.name} and {second.name}")

    names = ["brain"] if scheme is None else [label.name for label in scheme.labels]
    figures: list[Figure] = []
    for modality in modalities:
        figures += compare.compare_sets(real_measured, made_measured, modality, request.features.name)
    for modality in modalities:
        figures += compare.compare_pairs(
            compared["paired"], compared["within"], compared["across"], compared["real"], modality
        )
    for modality in modalities:
        figures += compare.compare_intensities(real_measured, made_measured, modality, names)
    for modality in modalities:
        figures += compare.compare_detail(real_measured, made_measured, modality)
    for pair in combinations(modalities, 2):
        figures += compare.compare_modalities(real_measured, made_measured, pair)
    neighbors: list[Neighbor] = []
    if known:
        of_copies, neighbors = compare.find_copies(real_measured, made_measured, known)
        figures += of_copies
    if with_vessels:
        by_name = {made.name: one.name for made, one in partners.items()}
        figures += compare.compare_vessels(real_measured, made_measured, by_name)
    if judge:
        groups = ([one.group for one in real_measured], [one.group for one in made_measured])
        figures += compare.compare_masks(dices["real"], dices["synthetic"], groups)
    notes = _notes(request, with_vessels, len(real_measured), len(made_measured), bool(known), unjudged)
    about = _about(request, grid, modalities, judge)
    return Evaluation(figures, modalities, real_measured, made_measured, neighbors, skipped, notes, about)


def _partners(real: Sequence[CaseFiles], synthetic: Sequence[CaseFiles]) -> dict[CaseFiles, CaseFiles]:
    """The real case from whose mask each synthetic one was made, where there is one."""
    by_mask = {one.mask.resolve(): one for one in real if one.mask}
    by_name = {one.name: one for one in real}
    found = {}
    for made in synthetic:
        partner = by_mask.get(made.mask.resolve()) if made.mask else None
        if partner := partner or by_name.get(made.group):
            found[made] = partner
    return found


def _pairs(
    real: Sequence[CaseFiles], synthetic: Sequence[CaseFiles], partners: Mapping[CaseFiles, CaseFiles]
) -> dict[str, list[tuple[CaseFiles, CaseFiles, str]]]:
    """Which pairs are compared voxel by voxel, at most :data:`MOST_PAIRS` of each kind, drawn evenly."""
    within = [(a, b, a.group) for a, b in combinations(synthetic, 2) if a.group == b.group]
    across = [(a, b, a.group) for a, b in combinations(synthetic, 2) if a.group != b.group]
    of_real = [(a, b, a.group) for a, b in combinations(real, 2) if a.group != b.group]
    return {
        "paired": _drawn([(made, one, made.group) for made, one in partners.items()]),
        "within": _drawn(within),
        "across": _drawn(across),
        "real": _drawn(of_real),
    }


def _drawn(pairs: list) -> list:
    if len(pairs) <= MOST_PAIRS:
        return pairs
    chosen = np.random.default_rng(0).permutation(len(pairs))[:MOST_PAIRS]
    return [pairs[index] for index in sorted(chosen)]


def _likeness(first: LoadedCase, second: LoadedCase, modalities: Sequence[str]):
    inside = first.inside | second.inside
    return {
        modality: likeness(first.images[index], second.images[index], inside)
        for index, modality in enumerate(modalities)
    }


def _notes(
    request: Request, vessels: bool, real: int, synthetic: int, training: bool, unjudged: Sequence[str]
) -> list[str]:
    notes = []
    if min(real, synthetic) < 30:
        notes.append(
            f"{real} real and {synthetic} synthetic cases are few: distances of sets say little below some hundreds of"
            " cases, and an interval over few patients is a rough one"
        )
    if request.scheme is None:
        notes.append("no masks were given: there are no figures by label")
    if not training:
        notes.append("no training cases were given: whether synthetic brains are copies was not measured")
    if request.segmenter is None:
        notes.append("no segmenter was given: mask fidelity was not measured")
    if unjudged:
        notes.append(
            f"mask fidelity was not measured of {', '.join(unjudged)}: the segmenter was trained on these patients"
        )
    if not vessels:
        notes.append("vessels were not measured" + ("" if not request.vessels else f": there is no {VESSEL_MODALITY}"))
    return notes


def _about(request: Request, grid: Grid, modalities: Sequence[str], judge: Judge | None) -> dict[str, str]:
    size, spacing = " x ".join(map(str, grid.size)), " x ".join(f"{side:g}" for side in grid.spacing)
    return {
        "real": str(request.real),
        "synthetic": str(request.synthetic),
        "masks": str(request.masks) if request.masks else "none",
        "training": str(request.training) if request.training else "none",
        "label scheme": request.scheme.name if request.scheme else "none",
        "modalities": ", ".join(modalities),
        "preprocessing": f"all cases alike: {size} voxels of {spacing} mm ({grid.orientation}), placed on the brain;"
        " percentiles 0.5 and 99.5 of the brain are -1 and 1, clipped; -1 around it",
        "features": request.features.about,
        "segmenter": judge.about if judge else "none",
        "pairs": f"at most {MOST_PAIRS} of each kind are compared voxel by voxel",
    }
