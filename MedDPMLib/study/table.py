"""What did each reader say of each case? The table of ratings that every analysis starts from."""

from __future__ import annotations

import csv
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from MedDPMLib.errors import MedDPMError
from MedDPMLib.validation import quoted

COLUMNS = ("reader", "treatment", "case", "truth", "rating")


@dataclass(frozen=True, eq=False)
class Ratings:
    """``values`` (T, R, C): the rating of every treatment, reader and case; ``truth`` (C), boolean, True for abnormal
    (synthetic). ``notes`` say what was left out."""

    values: np.ndarray
    truth: np.ndarray
    treatments: tuple[str, ...]
    readers: tuple[str, ...]
    cases: tuple[str, ...]
    notes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        expected = (len(self.treatments), len(self.readers), len(self.cases))
        if self.values.shape != expected or self.truth.shape != expected[2:]:
            raise MedDPMError(f"ratings of shape {self.values.shape} do not fit {expected}")
        for abnormal in (True, False):
            if np.count_nonzero(self.truth == abnormal) < 2:
                raise MedDPMError(
                    f"there are fewer than two cases with truth {int(abnormal)}: a comparison needs cases of both kinds"
                )

    def of_treatment(self, index: int) -> Ratings:
        """The ratings of one treatment alone."""
        return Ratings(
            self.values[index : index + 1], self.truth, (self.treatments[index],), self.readers, self.cases, self.notes
        )


def read_table(path: str | os.PathLike) -> Ratings:
    """Reads a CSV file with the columns reader, treatment, case, truth and rating, in any order.

    ``truth`` is 0 or 1, ``rating`` a number that grows with the belief that the truth is 1. A case that lacks a rating
    of any reader under any treatment is left out for all, as the methods need a full table. Raises
    :class:`MedDPMError` for what is missing, said twice or no number.
    """
    path = Path(path)
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            rows = csv.DictReader(file)
            missing = [name for name in COLUMNS if name not in (rows.fieldnames or ())]
            if missing:
                raise MedDPMError(f"{path} has no column {', '.join(missing)}: it needs {', '.join(COLUMNS)}")
            return ratings_of(rows, str(path), first_line=2)
    except (UnicodeDecodeError, csv.Error) as error:
        raise MedDPMError(f"{path} is not a CSV file in UTF-8 ({error}): export it again") from error
    except OSError as error:
        raise MedDPMError(f"{path} cannot be read ({error.strerror}): check the path") from error


def ratings_of(rows: Iterable[Mapping[str, str]], source: str, first_line: int = 1) -> Ratings:
    """The :class:`Ratings` of ``rows`` with :data:`COLUMNS`; ``source`` and ``first_line`` are for messages."""
    ratings: dict[tuple[str, str, str], float] = {}
    truths: dict[str, bool] = {}
    for line, row in enumerate(rows, first_line):
        where = f"{source}, line {line}"
        reader, treatment, case = (_name(row[column], column, where) for column in COLUMNS[:3])
        truth = (row["truth"] or "").strip()
        if truth not in {"0", "1"}:
            raise MedDPMError(f"{where}: the truth {quoted(truth)} is neither 0 nor 1")
        if truths.setdefault(case, truth == "1") != (truth == "1"):
            raise MedDPMError(f"{where}: case {case} has another truth than before; each case has one")
        if (treatment, reader, case) in ratings:
            raise MedDPMError(f"{where}: reader {reader} rates case {case} of treatment {treatment} a second time")
        rating = _rating(row["rating"], where)
        if rating is not None:
            ratings[treatment, reader, case] = rating
    if not ratings:
        raise MedDPMError(f"{source} holds no ratings: there is nothing to analyze")
    treatments = _in_order({key[0] for key in ratings})
    readers = _in_order({key[1] for key in ratings})
    combinations = [(treatment, reader) for treatment in treatments for reader in readers]
    cases = [case for case in _in_order(truths) if all((*pair, case) in ratings for pair in combinations)]
    left_out = [case for case in _in_order(truths) if case not in set(cases)]
    notes: tuple[str, ...] = ()
    if left_out:
        notes = (f"left out, because not every reader rated them: {', '.join(left_out)}",)
    if not cases:
        raise MedDPMError(
            f"{source}: no case was rated by every reader under every treatment: leave out readers who stopped early"
        )
    values = np.array([[[ratings[t, r, c] for c in cases] for r in readers] for t in treatments])
    return Ratings(values, np.array([truths[c] for c in cases]), treatments, readers, tuple(cases), notes)


def _name(text: str | None, column: str, where: str) -> str:
    text = (text or "").strip()
    if not text:
        raise MedDPMError(f"{where}: the column {column} is empty")
    return text


def _rating(text: str | None, where: str) -> float | None:
    """A finite number, or None where there is no answer."""
    text = (text or "").strip()
    if not text:
        return None
    try:
        rating = float(text)
    except ValueError:
        rating = np.nan
    if not np.isfinite(rating):
        raise MedDPMError(f"{where}: the rating {quoted(text)} is not a number")
    return rating


def _in_order(names: Iterable[str]) -> tuple[str, ...]:
    """By number where all are whole numbers, else by letter."""
    names = list(names)
    numeric = all(name.isdecimal() for name in names)
    return tuple(sorted(names, key=int if numeric else str))
