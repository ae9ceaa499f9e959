"""How do the arms compare? Each against the reference, on the same patients with the same seeds."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from MedDPMLib.experiment.cases import Split, patient_of
from MedDPMLib.experiment.design import PHANTOMS, REAL
from MedDPMLib.experiment.jobs import Job, Result
from MedDPMLib.experiment.recipe import AnyRecipe, ExperimentRecipe
from MedDPMLib.metrics.paired import Estimate, holm, least_p, mean_with_interval, sign_test
from MedDPMLib.runtime.versions import versions

#: Fewer test patients, or seeds, are said to be few.
_FEW_PATIENTS, _FEW_SEEDS = 30, 3


@dataclass(frozen=True)
class Row:
    """One ``figure`` of one ``arm`` in one ``subject`` (region or modality), trained with ``count`` real patients (0:
    all): its mean over test patients and seeds, its ``difference`` from the reference, and the p-value of that, as it
    is and corrected (all None for the reference)."""

    arm: str
    count: int
    subject: str
    figure: str
    mean: Estimate
    difference: Estimate | None
    p: float | None
    p_corrected: float | None

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True, eq=False)
class Comparison:
    """All that a report shows: ``rows``, ``notes`` on what they cannot show, ``about`` how they came about."""

    recipe: AnyRecipe
    results: list[Result]
    rows: list[Row]
    notes: list[str]
    about: dict[str, str]
    #: Test patients in whom a region is missing, by region.
    missing: dict[str, int]

    def to_dict(self) -> dict[str, Any]:
        """As plain data for JSON."""
        return {
            "description": "experiment, MedDPM",
            "recipe": self.recipe.to_dict(),
            "rows": [row.to_dict() for row in self.rows],
            "notes": self.notes,
            "about": self.about,
            "test_patients_without": self.missing,
            "versions": versions(),
        }

    def values(self) -> Iterator[dict[str, Any]]:
        """Every single figure, as rows of a table for other programs."""
        for result in self.results:
            for case, subjects in result.done.scores.items():
                for subject, figures in subjects.items():
                    yield {
                        "arm": result.job.arm,
                        "real_patients": "none" if result.job.count is None else result.job.count or "all",
                        "training_cases": result.done.cases,
                        "seed": result.job.seed,
                        "patient": patient_of(case, self.recipe.patient),
                        "case": case,
                        self.recipe.subject: subject,
                        **figures,
                    }


def compare(recipe: AnyRecipe, split: Split, results: Sequence[Result]) -> Comparison:
    """Compares the ``results`` of all jobs of ``recipe``."""
    by_job = {result.job: result for result in results}
    rows: list[Row] = []
    for count in recipe.real_cases:
        for subject in recipe.subjects:
            for figure in recipe.figures:
                rows += _rows(recipe, by_job, count, subject, figure)
    missing = _missing(recipe, split)
    return Comparison(recipe, list(results), rows, _notes(recipe, split, missing), _about(recipe, split), missing)


def _rows(recipe: AnyRecipe, by_job: dict[Job, Result], count: int, subject: str, figure: str) -> Iterator[Row]:
    values = {}
    for arm in recipe.arms:
        jobs = [Job(arm.name, seed, count if REAL in arm.data else None) for seed in recipe.seeds]
        values[arm.name] = np.stack([_by_patient(recipe, by_job[job], subject, figure) for job in jobs], axis=1)
    reference = values[recipe.reference]
    others = [name for name in values if name != recipe.reference]
    differences = {name: values[name] - reference for name in others}
    p_values = [sign_test(differences[name].mean(axis=1)) for name in others]
    tests = dict(zip(others, zip(p_values, holm(p_values), strict=True), strict=True))
    for name, figures in values.items():
        difference = mean_with_interval(differences[name]) if name in differences else None
        p, corrected = tests.get(name, (None, None))
        yield Row(name, count, subject, figure, mean_with_interval(figures), difference, p, corrected)


def _by_patient(recipe: AnyRecipe, result: Result, subject: str, figure: str) -> np.ndarray:
    """The figure of each test patient, in the order of their names; of several scans the mean."""
    by_patient: dict[str, list[float]] = {}
    for case, subjects in sorted(result.done.scores.items()):
        by_patient.setdefault(patient_of(case, recipe.patient), []).append(subjects[subject][figure])
    return np.array([np.mean(by_patient[patient]) for patient in sorted(by_patient)])


def _missing(recipe: AnyRecipe, split: Split) -> dict[str, int]:
    if not isinstance(recipe, ExperimentRecipe):
        return {}
    cases = [split.test[index] for index in range(len(split.test))]
    return {
        region: sum(not bool(np.isin(case.labels.numpy(), labels).any()) for case in cases)
        for region, labels in recipe.region_values.items()
    }


def _notes(recipe: AnyRecipe, split: Split, missing: dict[str, int]) -> list[str]:
    patients, seeds, others = len(split.test_patients), len(recipe.seeds), len(recipe.arms) - 1
    notes = []
    if recipe.real == PHANTOMS:
        notes.append("these are drawn ellipsoids, not brains: the table shows that the machinery works, nothing else")
    if patients < _FEW_PATIENTS:
        notes.append(
            f"{patients} test patients are few: their intervals are too narrow rather than too wide, and other patients"
            " may order the arms differently"
        )
    if seeds < _FEW_SEEDS:
        plural = "seed says" if seeds == 1 else "seeds say"
        notes.append(f"{seeds} {plural} little about how much the figures change from one training to the next")
    if others and least_p(patients) * others > 0.05:
        notes.append(
            f"with {patients} test patients no p-value is below {least_p(patients):.2g}, and after the correction for"
            f" {others} comparisons none can be below 0.05, whatever the differences"
        )
    for region, count in missing.items():
        if count:
            notes.append(
                f"{region.lower()} is missing in {count} of the test scans: found in none of its voxels it counts as"
                " Dice 1, found anywhere as Dice 0 and the diagonal of the image"
            )
    if split.left_out:
        notes.append(
            f"{len(split.left_out)} synthetic cases were left out, made from masks of patients who are held out"
        )
    return notes


def _about(recipe: AnyRecipe, split: Split) -> dict[str, str]:
    synthetic = "none" if split.synthetic is None else f"{recipe.synthetic}, {len(split.synthetic)} cases"
    return {
        "real cases": f"{recipe.real}: {len(split.training_patients)} patients to train on,"
        f" {len(split.validation_patients)} to choose the weights by, {len(split.test_patients)} to judge by",
        "synthetic cases": synthetic,
        "test patients": ", ".join(split.test_patients),
        "modalities": ", ".join(recipe.modalities),
        **recipe.described(),
        "reference": recipe.reference,
        "intervals": "95 %, percentile bootstrap over patients and seeds"
        + ("" if len(recipe.seeds) > 1 else " (a single seed: over patients)"),
        "p-values": "permutation of the signs of the patients' differences from the reference; corrected by Holm for"
        f" {len(recipe.arms) - 1} arms, within each figure and {recipe.subject}",
    }
