"""What does an analysis of a table of ratings say? As data for JSON."""

from __future__ import annotations

from typing import Any

import numpy as np

from MedDPMLib.study.merit import Merit, auc
from MedDPMLib.study.mrmc import Estimate, compare, single
from MedDPMLib.study.table import Ratings


def analyze_table(ratings: Ratings, level: float = 0.95) -> dict[str, Any]:
    """AUC of each treatment and reader, each treatment alone, and with several treatments their comparison."""
    return describe(ratings, auc(ratings), level)


def describe(ratings: Ratings, merit: Merit, level: float = 0.95) -> dict[str, Any]:
    """The multi-reader multi-case analysis of ``merit``; "auc" is the key of its values. Infinite numbers are None."""
    names = ratings.treatments
    found: dict[str, Any] = {
        "readers": list(ratings.readers),
        "treatments": list(names),
        "cases": {"normal": int((~ratings.truth).sum()), "abnormal": int(ratings.truth.sum())},
        "level": level,
        "auc": {name: merit.value[index].tolist() for index, name in enumerate(names)},
        "mean": {name: float(merit.value[index].mean()) for index, name in enumerate(names)},
        "single": {},
        "notes": list(ratings.notes),
    }
    for index, name in enumerate(names):
        alone = single(merit, index, level)
        found["single"][name] = {
            **(estimate(alone.random) if alone.random else {"value": alone.fixed.value, "se": None, "df": None}),
            "ci": list(alone.random.ci) if alone.random else None,
            "cov2": alone.cov2,
            "var_error": alone.var_error,
            "ms_readers": alone.mean_square_readers,
            "fixed_readers": estimate(alone.fixed),
        }
    if len(names) > 1 and len(ratings.readers) > 1:
        both = compare(merit, level)
        found |= {
            "F": finite(both.random.statistic),
            "ddf": finite(both.random.ddf),
            "p": both.random.p,
            "cov1": both.cov1,
            "cov2": both.cov2,
            "cov3": both.cov3,
            "var_error": both.var_error,
            "var_R": both.var_r,
            "var_TR": both.var_tr,
            "mean_squares": both.mean_squares,
            "differences": [
                {"treatments": [names[a], names[b]], **estimate(random), "fixed_readers": estimate(fixed)}
                for (a, b), (random, fixed) in both.differences.items()
            ],
            "fixed_readers": {"chi2": finite(both.fixed_readers.statistic), "p": both.fixed_readers.p},
            "fixed_cases": {
                "F": finite(both.fixed_cases.statistic),
                "ddf": finite(both.fixed_cases.ddf),
                "p": both.fixed_cases.p,
            },
        }
    return found


def estimate(found: Estimate) -> dict[str, Any]:
    return {"value": found.value, "se": found.se, "df": finite(found.df), "ci": list(found.ci)}


def finite(number: float | None) -> float | None:
    """JSON knows neither infinity nor NaN."""
    return float(number) if number is not None and np.isfinite(number) else None
