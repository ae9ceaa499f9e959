"""What does a study show? Everything that is computed from its answers."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from MedDPMLib.errors import MedDPMError
from MedDPMLib.study.agreement import Agreement, Repeats, agree, agree_with_oneself
from MedDPMLib.study.definition import CUT
from MedDPMLib.study.detection import Detection, Proportion, detect, proportion
from MedDPMLib.study.equivalence import Equivalence, two_one_sided_tests
from MedDPMLib.study.likert import Domain, compare_domains
from MedDPMLib.study.merit import Merit, accuracy, auc, sensitivity, specificity
from MedDPMLib.study.mrmc import Estimate, single
from MedDPMLib.study.mrmc_report import describe, estimate, finite
from MedDPMLib.study.order import PAIR, SINGLE
from MedDPMLib.study.rows import Readings, Row
from MedDPMLib.study.table import Ratings, ratings_of


@dataclass(frozen=True, eq=False)
class Detected:
    """The task real or synthetic: ratings, MRMC analyses (JSON), and for each model readers and tests.

    ``means`` are those of AUC, accuracy, sensitivity and specificity over readers; equivalence is of the first two.
    """

    ratings: Ratings
    auc: dict[str, Any]
    accuracy: dict[str, Any]
    readers: dict[str, dict[str, Detection]]
    means: dict[str, tuple[Estimate, Estimate, Estimate, Estimate]]
    equivalence: dict[str, tuple[Equivalence, Equivalence] | None]
    agreement: dict[str, Agreement]


@dataclass(frozen=True)
class Choice:
    """The task of two alternatives: each reader's share of right choices, and the mean over readers."""

    readers: dict[str, Proportion]
    mean: Estimate | None


@dataclass(frozen=True)
class Fooling:
    """A case and how many of its readers were wrong."""

    case: str
    name: str
    model: str
    wrong: int
    readers: int


@dataclass(frozen=True, eq=False)
class Analysis:
    readings: Readings
    detected: Detected | None
    repeats: dict[str, Repeats]
    domains: list[Domain]
    choice: Choice | None
    fooling: list[Fooling]
    seconds: dict[str, tuple[float, float, float]]
    notes: tuple[str, ...]


def analyze(readings: Readings) -> Analysis:
    """All analyses that the study's tasks allow; what could not be done stands in the notes."""
    notes = list(readings.notes)
    singles = [row for row in readings.rows if row.presentation.kind == SINGLE and row.counts]
    pairs = [row for row in readings.rows if row.presentation.kind == PAIR and row.counts]
    detected = None
    if readings.definition.tasks.real_or_synthetic and singles:
        detected = _detected(readings, singles)
        notes += detected.ratings.notes
        notes += _one_sided(detected)
    return Analysis(
        readings=readings,
        detected=detected,
        repeats=_repeats(readings),
        domains=_domains(readings, singles),
        choice=_choice(pairs) if pairs else None,
        fooling=_fooling(singles),
        seconds=_seconds(readings),
        notes=tuple(notes),
    )


def ratings_table(readings: Readings, singles: list[Row]) -> Ratings:
    """First readings as a table whose treatments are the models; real cases are common to all.

    With several models the synthetic cases of one name (made from one mask) are one case under several treatments;
    names that not all models have are left out.
    """
    models = readings.definition.models
    named: dict[tuple[str, str], str] = {(row.model, row.names[0]): row.case for row in singles if row.truth}
    shared = {name for _, name in named if all((model, name) in named for model in models)}
    if len(models) > 1 and len(shared) < 2:
        raise MedDPMError(
            "the models have fewer than two cases of the same name: to be compared, their volumes have to be made from"
            " the same masks and named alike"
        )
    rows = []
    for row in singles:
        for model in models:
            if row.truth and row.model != model:
                continue
            if row.truth and len(models) > 1 and row.names[0] not in shared:
                continue
            case = row.names[0] if row.truth and len(models) > 1 else row.case
            rows.append(
                {
                    "reader": row.reader,
                    "treatment": model,
                    "case": f"synthetic {case}" if row.truth and len(models) > 1 else case,
                    "truth": str(row.truth),
                    "rating": str(row.rating),
                }
            )
    return ratings_of(rows, "the answers")


def _detected(readings: Readings, singles: list[Row]) -> Detected:
    ratings = ratings_table(readings, singles)
    merits = auc(ratings), *(merit(ratings, CUT) for merit in (accuracy, sensitivity, specificity))
    margin = readings.definition.margin
    found: dict[str, dict] = {"readers": {}, "means": {}, "equivalence": {}, "agreement": {}}
    for index, model in enumerate(ratings.treatments):
        means = tuple(_mean(merit, index) for merit in merits)
        found["readers"][model] = {
            reader: detect(ratings.values[index, r], ratings.truth, CUT) for r, reader in enumerate(ratings.readers)
        }
        found["means"][model] = means
        # One reader says nothing of readers in general.
        found["equivalence"][model] = (
            (two_one_sided_tests(means[0], margin.auc), two_one_sided_tests(means[1], margin.accuracy))
            if len(ratings.readers) > 1
            else None
        )
        found["agreement"][model] = agree(ratings.values[index], ratings.readers, CUT)
    return Detected(ratings, describe(ratings, merits[0]), describe(ratings, merits[1]), **found)


def _mean(merit: Merit, index: int) -> Estimate:
    found = single(merit, index)
    return found.random or found.fixed


def _one_sided(detected: Detected) -> list[str]:
    notes = []
    for r, reader in enumerate(detected.ratings.readers):
        said = detected.ratings.values[:, r] > CUT
        if said.all() or not said.any():
            notes.append(f"{reader} called every case {'synthetic' if said.all() else 'real'}")
    return notes


def _repeats(readings: Readings) -> dict[str, Repeats]:
    found = {}
    for reader in readings.definition.readers:
        of_reader = [r for r in readings.rows if r.reader == reader and r.rating is not None]
        first = {row.case: row.rating for row in of_reader if row.counts}
        again = [(first[row.case], row.rating) for row in of_reader if row.repeat and row.case in first]
        if again:
            first_reading, second_reading = np.array(again, float).T
            found[reader] = agree_with_oneself(first_reading, second_reading, CUT)
    return found


def _domains(readings: Readings, singles: list[Row]) -> list[Domain]:
    scored = [row for row in singles if row.scores]
    if not scored:
        return []
    readers = sorted({row.reader for row in scored})
    truth = {row.case: bool(row.truth) for row in scored}
    cases = sorted(truth)
    scores = {domain: np.full((len(readers), len(cases)), np.nan) for domain in readings.definition.tasks.likert}
    for row in scored:
        for domain, score in row.scores.items():
            scores[domain][readers.index(row.reader), cases.index(row.case)] = score
    kinds = np.array([truth[case] for case in cases])
    if kinds.all() or not kinds.any():
        return []
    return compare_domains(scores, kinds)


def _choice(pairs: list[Row]) -> Choice:
    of_readers: dict[str, list[Row]] = defaultdict(list)
    for row in pairs:
        of_readers[row.reader].append(row)
    readers = {
        reader: proportion(sum(row.right for row in rows), len(rows)) for reader, rows in sorted(of_readers.items())
    }
    shown = [{frozenset(row.presentation.cases) for row in rows} for rows in of_readers.values()]
    common = sorted(set.intersection(*map(set, shown)), key=sorted)
    mean = None
    if len(readers) > 1 and len(common) > 1:
        right = np.zeros((1, len(readers), len(common)))
        for r, rows in enumerate(of_readers.values()):
            known = {frozenset(row.presentation.cases): row.right for row in rows}
            right[0, r] = [known[pair] for pair in common]
        without = (right.sum(axis=2, keepdims=True) - right) / (len(common) - 1)
        mean = single(Merit(right.mean(axis=2), without)).random
    return Choice(readers, mean)


def _fooling(singles: list[Row]) -> list[Fooling]:
    """Most fooling first."""
    of_cases: dict[str, list[Row]] = defaultdict(list)
    for row in singles:
        if row.right is not None:
            of_cases[row.case].append(row)
    found = [
        Fooling(case, rows[0].names[0], rows[0].model, sum(not row.right for row in rows), len(rows))
        for case, rows in of_cases.items()
    ]
    return sorted(found, key=lambda one: (-one.wrong / one.readers, one.name))


def _seconds(readings: Readings) -> dict[str, tuple[float, float, float]]:
    """Reader -> quartiles of the seconds for a case, without pauses and training."""
    found = {}
    for reader in readings.definition.readers:
        seconds = [r.seconds for r in readings.rows if r.reader == reader and not r.presentation.training]
        if seconds:
            low, middle, high = np.percentile(seconds, (25, 50, 75)).tolist()
            found[reader] = low, middle, high
    return found


def to_json(analysis: Analysis) -> dict[str, Any]:
    """Everything but the answers themselves, as data."""
    definition, detected = analysis.readings.definition, analysis.detected
    result: dict[str, Any] = {
        "study": {"title": definition.title, "identifier": definition.identifier, "hash": definition.hash},
        "margin": asdict(definition.margin),
        "notes": list(analysis.notes),
        "seconds": {name: dict(zip(("q1", "median", "q3"), q, strict=True)) for name, q in analysis.seconds.items()},
        "repeats": {reader: asdict(repeats) for reader, repeats in analysis.repeats.items()},
        "domains": [
            {"name": d.name, "median_real": d.median_real, "median_synthetic": d.median_synthetic, "test": d.test,
             "p": finite(d.p), "p_holm": finite(d.p_holm), "counts": d.counts.tolist()}
            for d in analysis.domains
        ],
        "fooling": [asdict(one) for one in analysis.fooling],
    }  # fmt: skip
    if detected is not None:
        result |= {"auc": detected.auc, "accuracy": detected.accuracy}
        result["models"] = {model: _model_json(detected, model) for model in detected.ratings.treatments}
    if analysis.choice is not None:
        result["forced_choice"] = {
            "readers": {name: _proportion_json(p) for name, p in analysis.choice.readers.items()},
            "mean": estimate(analysis.choice.mean) if analysis.choice.mean else None,
        }
    return result


def _model_json(detected: Detected, model: str) -> dict[str, Any]:
    agreement = detected.agreement[model]
    both = detected.equivalence[model]
    return {
        "readers": {
            name: {
                "accuracy": _proportion_json(found.accuracy),
                "sensitivity": _proportion_json(found.sensitivity),
                "specificity": _proportion_json(found.specificity),
                "auc": found.auc,
                "d_prime": found.d_prime,
                "criterion": found.criterion,
            }
            for name, found in detected.readers[model].items()
        },
        "mean": dict(
            zip(("auc", "accuracy", "sensitivity", "specificity"), map(estimate, detected.means[model]), strict=True)
        ),
        "equivalence": {"auc": asdict(both[0]), "accuracy": asdict(both[1])} if both else None,
        "agreement": {
            "cohen_kappa": [{"readers": list(pair), "kappa": finite(kappa)} for pair, kappa in agreement.pairs.items()],
            "fleiss_kappa": finite(agreement.fleiss),
            "icc_2_1": _interval_json(agreement.icc_2_1),
            "icc_2_k": _interval_json(agreement.icc_2_k),
        },
    }


def _proportion_json(found: Proportion) -> Mapping[str, Any]:
    return {"value": found.value, "hits": found.hits, "number": found.number, "ci": list(found.ci)}


def _interval_json(found: tuple[float, float, float] | None) -> Mapping[str, Any] | None:
    return None if found is None else {"value": found[0], "ci": [finite(found[1]), finite(found[2])]}
