"""How far do readers agree with one another, and with themselves?"""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from itertools import combinations

import numpy as np


@dataclass(frozen=True)
class Agreement:
    """Kappas of the answers real or synthetic, intraclass correlations of the ratings; None where nothing varies.

    ``pairs`` is (first reader, second reader) -> Cohen's kappa; ``icc_2_1`` and ``icc_2_k`` are (value, low, high) of
    one reader and of the mean of all (two-way random effects, absolute agreement).
    """

    pairs: dict[tuple[str, str], float | None]
    fleiss: float | None
    icc_2_1: tuple[float, float, float] | None
    icc_2_k: tuple[float, float, float] | None


@dataclass(frozen=True)
class Repeats:
    """One reader's answers to the ``number`` of cases shown twice: how many were the same, and kappa (None where
    nothing varies), plain for real or synthetic, with quadratic weights for the ratings."""

    number: int
    same: int
    kappa: float | None
    weighted_kappa: float | None


def agree(values: np.ndarray, readers: tuple[str, ...], cut: float) -> Agreement:
    """``values`` (R, C) are ratings; above ``cut`` the answer is "synthetic"."""
    said = values > cut
    pairs = {(readers[a], readers[b]): cohen_kappa(said[a], said[b]) for a, b in combinations(range(len(readers)), 2)}
    icc_2_1, icc_2_k = intraclass(values)
    return Agreement(pairs, _fleiss(said), icc_2_1, icc_2_k)


def agree_with_oneself(first: np.ndarray, second: np.ndarray, cut: float) -> Repeats:
    """Ratings (N) of the same cases at the first and the second reading."""
    same = np.count_nonzero((first > cut) == (second > cut))
    return Repeats(
        len(first), int(same), cohen_kappa(first > cut, second > cut), cohen_kappa(first, second, weights="quadratic")
    )


def cohen_kappa(first: np.ndarray, second: np.ndarray, weights: str | None = None) -> float | None:
    """Cohen's kappa; None where both gave one and the same answer to everything, so that it is not defined."""
    from sklearn.metrics import cohen_kappa_score

    if len(first) == 0 or len(np.unique(np.concatenate([first, second]))) < 2:
        return None
    return float(cohen_kappa_score(first, second, weights=weights))


def _fleiss(said: np.ndarray) -> float | None:
    from statsmodels.stats.inter_rater import fleiss_kappa

    readers = len(said)
    if readers < 2 or said.all() or not said.any():
        return None
    synthetic = said.sum(axis=0)
    return float(fleiss_kappa(np.stack([synthetic, readers - synthetic], axis=1)))


def intraclass(values: np.ndarray) -> tuple[tuple[float, float, float] | None, tuple[float, float, float] | None]:
    """ICC(2,1) and ICC(2,k) of ``values`` (R, C), each (value, low, high); None with one reader or constant ratings."""
    readers, cases = values.shape
    if readers < 2 or cases < 5 or np.ptp(values) == 0:  # fewer than five cases have no interval
        return None, None
    import pandas
    import pingouin

    r, c = np.indices(values.shape)
    table = pandas.DataFrame({"reader": r.ravel(), "case": c.ravel(), "rating": values.ravel()})
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # ratings without any residual divide by zero
        found = pingouin.intraclass_corr(table, targets="case", raters="reader", ratings="rating")
    return _icc(found, "ICC(A,1)"), _icc(found, "ICC(A,k)")


def _icc(table, name: str) -> tuple[float, float, float] | None:
    row = table[table["Type"] == name].iloc[0]
    interval = next(row[column] for column in table.columns if column.startswith("CI95"))
    numbers = float(row["ICC"]), float(interval[0]), float(interval[1])
    return numbers if np.isfinite(numbers[0]) else None
