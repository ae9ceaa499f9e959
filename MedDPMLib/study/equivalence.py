"""Is a result as good as chance, within the margin that was stated before the study?"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from MedDPMLib.study.mrmc import Estimate


@dataclass(frozen=True)
class Equivalence:
    """Two one-sided tests of ``estimate`` against ``chance`` plus or minus ``margin``.

    ``p`` is the larger of the two p-values; ``ci`` is the interval of level 1 - 2 alpha, which lies within the margin
    if and only if ``shown``. ``differs`` says whether the interval of level 1 - alpha leaves out chance.
    """

    chance: float
    margin: float
    alpha: float
    p: float
    ci: tuple[float, float]
    shown: bool
    differs: bool


def two_one_sided_tests(estimate: Estimate, margin: float, chance: float = 0.5, alpha: float = 0.05) -> Equivalence:
    """Schuirmann's procedure (J. Pharmacokinet. Biopharm. 15 (1987) 657-680) with the estimate's standard error and
    degrees of freedom. An estimate without spread is taken as it is."""
    from scipy import stats

    distance = estimate.value - chance
    if estimate.se == 0:
        shown = abs(distance) < margin
        return Equivalence(
            chance, margin, alpha, float(not shown), (estimate.value, estimate.value), shown, distance != 0
        )
    above = stats.t.sf((distance + margin) / estimate.se, estimate.df)
    below = stats.t.cdf((distance - margin) / estimate.se, estimate.df)
    p = float(max(above, below))
    half = float(stats.t.ppf(1 - alpha, estimate.df)) * estimate.se
    two_sided = 2 * float(stats.t.sf(abs(distance) / estimate.se, estimate.df))
    return Equivalence(
        chance, margin, alpha, p, (estimate.value - half, estimate.value + half), p < alpha, bool(two_sided < alpha)
    )


def expected_power(
    readers: int, var_error: float, cov2: float, var_r: float, margin: float, alpha: float = 0.05, value: float = 0.5
) -> tuple[float, float]:
    """(power of the two one-sided tests, expected half width of the 95 % interval) for so many readers.

    ``var_error`` and ``cov2`` are those of the number of cases planned, ``var_r`` the variance of the readers' true
    values; ``value`` is the true mean, 0.5 for readers who cannot tell. The test's statistic is taken as t
    distributed around its expectation.
    """
    from scipy import stats

    spread = var_r + var_error - cov2  # the expectation of the mean square of the readers
    se = float(np.sqrt((spread + readers * cov2) / readers))
    df = (spread + readers * cov2) ** 2 / (spread**2 / (readers - 1))
    room = margin - float(stats.t.ppf(1 - alpha, df)) * se  # how far the estimate may lie from chance
    half = float(stats.t.ppf(0.975, df)) * se
    if room <= 0:
        return 0.0, half
    power = stats.t.cdf((room + 0.5 - value) / se, df) - stats.t.cdf((-room + 0.5 - value) / se, df)
    return float(power), half
