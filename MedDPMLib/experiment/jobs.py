"""Which networks are trained in an experiment, and how are the jobs spread, interrupted and resumed?

A job is an arm with one seed and one number of real cases. Jobs are independent of each other: any number of processes
may share a folder, each doing its own. The result of a job is one file that is written last, so that where it is, the
job is done, and no job is done twice.
"""

from __future__ import annotations

import json
import re
import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from MedDPMLib.errors import MedDPMError
from MedDPMLib.experiment.ablation import train_generator
from MedDPMLib.experiment.ablation_recipe import AblationRecipe
from MedDPMLib.experiment.cases import Split
from MedDPMLib.experiment.design import REAL
from MedDPMLib.experiment.recipe import AnyRecipe
from MedDPMLib.experiment.training import Done, train_segmenter
from MedDPMLib.runtime.device import Execution
from MedDPMLib.runtime.files import atomic_write
from MedDPMLib.runtime.versions import versions
from MedDPMLib.validation import read_json

#: What an experiment's folder says about itself.
_ABOUT = "about.json"

_RESULT = "result.json"


@dataclass(frozen=True)
class Job:
    """One training: ``count`` real patients (0: all of them; None: no real data at all)."""

    arm: str
    seed: int
    count: int | None

    @property
    def name(self) -> str:
        """Of its folder."""
        arm = re.sub(r"\W+", "-", self.arm).strip("-").lower()
        cases = "none" if self.count is None else self.count or "all"
        return f"{arm}_real-{cases}_seed-{self.seed}"


@dataclass(frozen=True)
class Result:
    """What came of a ``job``, and how many ``seconds`` the last process needed for it."""

    job: Job
    done: Done
    seconds: float


def jobs_of(recipe: AnyRecipe) -> list[Job]:
    """All jobs, one seed after the other, so that an experiment that is cut short has whole seeds."""
    jobs = []
    for seed in recipe.seeds:
        for count in recipe.real_cases:
            for arm in recipe.arms:
                job = Job(arm.name, seed, count if REAL in arm.data else None)
                if job not in jobs:
                    jobs.append(job)
    return jobs


class ExperimentFolder:
    """The results of ``recipe`` in ``folder``, created if missing.

    Raises :class:`MedDPMError` if it holds those of another recipe, or of other patients.
    """

    def __init__(self, folder: Path, recipe: AnyRecipe, split: Split) -> None:
        self.folder, self.recipe, self.split = folder, recipe, split
        names = [job.name for job in jobs_of(recipe)]
        if len(set(names)) < len(names):
            raise MedDPMError("[[arms]]: two names differ in punctuation only: choose others")
        # As JSON has it, to be compared with what was read.
        about = json.loads(json.dumps({"recipe": recipe.to_dict(), "patients": _patients(split)}))
        path = folder / _ABOUT
        if path.is_file():
            found = read_json(path.read_bytes(), str(path))
            changed = _difference(found, about)
            if changed:
                raise MedDPMError(f"{folder} holds another experiment ({changed} differs): choose another folder")
            return
        with atomic_write(path) as temporary:
            temporary.write_text(json.dumps(about, indent=1) + "\n", encoding="utf-8")

    def result(self, job: Job) -> Result | None:
        """The result of ``job``, None if it is not done. A damaged file counts as none."""
        try:
            found = read_json((self._of(job) / _RESULT).read_bytes(), _RESULT)
            curve = [(int(n), float(loss), score) for n, loss, score in found["curve"]]
            return Result(job, Done(found["scores"], int(found["cases"]), curve), float(found["seconds"]))
        except FileNotFoundError:
            return None
        except (MedDPMError, OSError, KeyError, TypeError, ValueError):
            return None

    def _write(self, result: Result, execution: Execution) -> None:
        values = {
            "arm": result.job.arm, "seed": result.job.seed, "real_cases": result.job.count, "cases": result.done.cases,
            "scores": result.done.scores, "curve": result.done.curve, "seconds": result.seconds,
            "execution": execution.reason, "versions": versions(),
        }  # fmt: skip
        with atomic_write(self._of(result.job) / _RESULT) as temporary:
            temporary.write_text(json.dumps(values, indent=1) + "\n", encoding="utf-8")

    def run(
        self,
        job: Job,
        execution: Execution,
        report: Callable[[int], None] = lambda iteration: None,
        tell: Callable[[str], None] = lambda sentence: None,
    ) -> Result:
        """Does the ``job``, or what is left of it."""
        started, work = time.monotonic(), self._of(job) / "work"
        do = train_generator if isinstance(self.recipe, AblationRecipe) else train_segmenter
        done = do(self.recipe, self.split, job.arm, job.count or 0, job.seed, work, execution, report, tell)
        result = Result(job, done, round(time.monotonic() - started, 1))
        self._write(result, execution)
        shutil.rmtree(work, ignore_errors=True)
        return result

    def _of(self, job: Job) -> Path:
        return self.folder / "jobs" / job.name


def run_jobs(
    folder: ExperimentFolder,
    jobs: Sequence[Job],
    execution: Execution,
    progress: Callable[[Job, int], None] = lambda job, iteration: None,
    tell: Callable[[str], None] = lambda sentence: None,
) -> list[Result]:
    """Does those of ``jobs`` that are not done, one after the other; returns the results of all of them."""
    results = []
    for job in jobs:
        result = folder.result(job)
        if result is None:
            result = folder.run(job, execution, lambda iteration, job=job: progress(job, iteration), tell)
        else:
            progress(job, folder.recipe.iterations)
        results.append(result)
    return results


def _patients(split: Split) -> dict[str, Any]:
    synthetic = [] if split.synthetic is None else [split.synthetic[n].name for n in range(len(split.synthetic))]
    return {
        "test": split.test_patients,
        "validation": split.validation_patients,
        "training": split.training_patients,
        "synthetic": synthetic,
        "synthetic, left out": split.left_out,
    }


def _difference(found: dict[str, Any], wanted: dict[str, Any]) -> str | None:
    """What differs between two descriptions; where the data lie, and what the recipe is called, does not matter."""
    for part in wanted:
        one, other = found.get(part), wanted[part]
        if not isinstance(one, dict):
            return part
        for name in sorted((one.keys() | other.keys()) - {"name", "real", "synthetic"} if part == "recipe" else other):
            if one.get(name) != other.get(name):
                return f"{part}: {name}"
    return None
