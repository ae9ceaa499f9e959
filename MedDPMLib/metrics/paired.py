"""Do two methods differ, measured on the same patients with the same seeds? An interval, and a test.

The interval is a bootstrap over patients and seeds, each drawn with replacement, independently: both are samples of
what could have been. With a single seed it is one over patients alone. The test permutes the signs of the patients'
differences (each the mean over seeds), all of them up to 13 patients: with n patients no p-value is below 2 / 2^n,
however large the difference. Several comparisons are corrected by Holm's method.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

#: Resamples of a bootstrap, and permutations that are drawn where there are more.
RESAMPLES = 9999

#: Fewer patients have no interval that means anything.
LEAST_PATIENTS = 3


@dataclass(frozen=True)
class Estimate:
    """A mean over patients and seeds, with its 95 % interval (None: too few patients)."""

    value: float
    ci: tuple[float, float] | None


def mean_with_interval(values: np.ndarray, *, seed: int = 0) -> Estimate:
    """The mean of ``values`` (patients, seeds), and the percentile bootstrap over both (SciPy's)."""
    from scipy.stats import bootstrap

    patients, seeds = values.shape
    mean = float(values.mean())
    if patients < LEAST_PATIENTS:
        return Estimate(mean, None)
    if np.ptp(values) == 0:
        return Estimate(mean, (mean, mean))

    def of(*indices: np.ndarray, axis: int = -1) -> np.ndarray:
        chosen = values[:, 0][indices[0]] if seeds == 1 else values[indices[0][..., :, None], indices[1][..., None, :]]
        return chosen.mean(axis=-1 if seeds == 1 else (-2, -1))

    samples = [np.arange(patients)] + ([np.arange(seeds)] if seeds > 1 else [])
    found = bootstrap(
        samples, of, n_resamples=RESAMPLES, method="percentile", vectorized=True, batch=1000,
        rng=np.random.default_rng(seed),
    )  # fmt: skip
    return Estimate(mean, (float(found.confidence_interval.low), float(found.confidence_interval.high)))


def sign_test(differences: np.ndarray, *, seed: int = 0) -> float | None:
    """The two-sided p-value of the permutation test that the mean of ``differences`` (patients,) is 0; None for a
    single patient."""
    from scipy.stats import permutation_test

    if len(differences) < 2:
        return None
    found = permutation_test(
        (differences,), lambda values, axis: values.mean(axis=axis), permutation_type="samples", vectorized=True,
        n_resamples=RESAMPLES, rng=np.random.default_rng(seed),
    )  # fmt: skip
    return float(found.pvalue)


def least_p(patients: int) -> float:
    """The smallest p-value that :func:`sign_test` can have."""
    return max(2 / 2.0**patients, 2 / (RESAMPLES + 1))


def holm(p_values: Sequence[float | None]) -> list[float | None]:
    """The ``p_values`` of several comparisons, corrected (Holm 1979); None, where there is none, counts for nothing."""
    from statsmodels.stats.multitest import multipletests

    there = [p for p in p_values if p is not None]
    corrected = iter(multipletests(there, method="holm")[1] if there else [])
    return [None if p is None else float(next(corrected)) for p in p_values]
