"""Do readers judge real and synthetic volumes differently, domain by domain?"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Domain:
    """One domain's scores, 1 to 5: medians of both classes over cases, and the test of their difference.

    The test takes each reader's mean of either class as a pair where there are readers enough (Wilcoxon signed rank),
    and the cases' means over readers as two samples otherwise (Wilcoxon rank sum); ``test`` says which. ``p_holm`` is
    corrected for the number of domains by Holm's method. ``counts`` (2, 5) are the answers given to real and to
    synthetic volumes.
    """

    name: str
    median_real: float
    median_synthetic: float
    test: str
    p: float
    p_holm: float
    counts: np.ndarray


#: Below this number of pairs the exact signed rank test cannot reach 5 %.
_FEWEST_PAIRS = 6


def compare_domains(scores: Mapping[str, np.ndarray], truth: np.ndarray) -> list[Domain]:
    """``scores`` is domain -> (R, C), NaN where there is no answer; ``truth`` (C) is True for synthetic."""
    from statsmodels.stats.multitest import multipletests

    found = []
    for name, values in scores.items():
        test, p = _p_value(values, truth)
        counts = np.array([[np.count_nonzero(values[:, truth == kind] == s) for s in range(1, 6)] for kind in (0, 1)])
        medians = [float(np.nanmedian(values[:, truth == kind])) for kind in (0, 1)]
        found.append((name, *medians, test, p, counts))
    corrected = multipletests([row[4] for row in found], method="holm")[1] if found else []
    return [
        Domain(name, real, synthetic, test, p, float(holm), counts)
        for (name, real, synthetic, test, p, counts), holm in zip(found, corrected, strict=True)
    ]


def _p_value(values: np.ndarray, truth: np.ndarray) -> tuple[str, float]:
    from scipy.stats import ranksums, wilcoxon

    of_readers = np.nanmean(values[:, truth], axis=1) - np.nanmean(values[:, ~truth], axis=1)
    if np.count_nonzero(of_readers) >= _FEWEST_PAIRS:
        return "signed rank over readers", float(wilcoxon(of_readers).pvalue)
    of_cases = np.nanmean(values, axis=0)
    return "rank sum over cases", float(ranksums(of_cases[truth], of_cases[~truth]).pvalue)
