"""Does a result hold for other readers and other cases? Obuchowski and Rockette's analysis.

Obuchowski, Rockette: Commun. Stat. Simul. Comput. 24 (1995) 285-308; degrees of freedom: Hillis, Stat. Med. 26 (2007)
596-619; one treatment alone: Hillis, Stat. Med. 33 (2014) 330-360. Covariances are estimated by the jackknife.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from MedDPMLib.study.merit import Merit


@dataclass(frozen=True)
class Estimate:
    """A mean over readers, its standard error, degrees of freedom (infinite for fixed readers) and interval."""

    value: float
    se: float
    df: float
    ci: tuple[float, float]


@dataclass(frozen=True)
class Test:
    """A test that all treatments are equal: ``statistic`` is F, or chi-squared where ``ddf`` is None."""

    statistic: float
    df: float
    ddf: float | None
    p: float


@dataclass(frozen=True)
class Single:
    """One treatment: ``random`` readers and cases, ``fixed`` readers; its own error variance and ``cov2``."""

    random: Estimate | None
    fixed: Estimate
    cov2: float
    var_error: float
    mean_square_readers: float


@dataclass(frozen=True)
class Comparison:
    """Two treatments or more. ``differences`` are (first, second) -> estimates with random and with fixed readers."""

    random: Test
    fixed_readers: Test
    fixed_cases: Test
    differences: dict[tuple[int, int], tuple[Estimate, Estimate]]
    cov1: float
    cov2: float
    cov3: float
    var_error: float
    var_r: float
    var_tr: float
    mean_squares: dict[str, float]


def jackknife_covariance(merit: Merit) -> np.ndarray:
    """(T, R, T, R): the covariances of the figures of merit over the draw of cases."""
    number = merit.without.shape[2]
    deviation = merit.without - merit.without.mean(axis=2, keepdims=True)
    return (number - 1) / number * np.einsum("tri,sqi->trsq", deviation, deviation)


def single(merit: Merit, treatment: int = 0, level: float = 0.95) -> Single:
    """The mean of one treatment over readers. With one reader there is no ``random`` estimate: readers cannot vary."""
    values = merit.value[treatment]
    readers = len(values)
    covariance = jackknife_covariance(merit)[treatment, :, treatment, :]
    var_error = float(np.diag(covariance).mean())
    cov2 = float(covariance[~np.eye(readers, dtype=bool)].mean()) if readers > 1 else 0.0
    mean = float(values.mean())
    fixed = _estimate(mean, (var_error + (readers - 1) * max(cov2, 0)) / readers, np.inf, level)
    if readers == 1:
        return Single(None, fixed, cov2, var_error, 0.0)
    spread = float(values.var(ddof=1))
    denominator = spread + readers * max(cov2, 0)
    df = denominator**2 / (spread**2 / (readers - 1)) if spread > 0 else np.inf
    return Single(_estimate(mean, denominator / readers, df, level), fixed, cov2, var_error, spread)


def compare(merit: Merit, level: float = 0.95) -> Comparison:
    """Two or more treatments read by the same readers (at least two) on the same cases."""
    from scipy import stats

    values = merit.value
    treatments, readers = values.shape
    covariance = jackknife_covariance(merit)
    var_error, cov1, cov2, cov3 = _pooled(covariance)
    of_treatment, of_reader, grand = values.mean(axis=1), values.mean(axis=0), values.mean()
    interaction = values - of_treatment[:, None] - of_reader[None, :] + grand
    ms_t = readers * float(((of_treatment - grand) ** 2).sum()) / (treatments - 1)
    ms_r = treatments * float(((of_reader - grand) ** 2).sum()) / (readers - 1)
    ms_tr = float((interaction**2).sum()) / ((treatments - 1) * (readers - 1))

    beyond = max(cov2 - cov3, 0.0)
    random_denominator = ms_tr + readers * beyond
    df_tr = (treatments - 1) * (readers - 1)
    ddf = random_denominator**2 / (ms_tr**2 / df_tr) if ms_tr > 0 else np.inf
    fixed_denominator = var_error - cov1 + (readers - 1) * beyond
    random_f, chi2, fixed_cases_f = (
        _ratio(ms_t, random_denominator),
        _ratio((treatments - 1) * ms_t, fixed_denominator),
        _ratio(ms_t, ms_tr),
    )
    differences = {}
    for first in range(treatments):
        for second in range(first + 1, treatments):
            difference = float(of_treatment[first] - of_treatment[second])
            differences[first, second] = (
                _estimate(difference, 2 / readers * random_denominator, ddf, level),
                _estimate(difference, 2 / readers * max(fixed_denominator, 0), np.inf, level),
            )
    return Comparison(
        random=Test(random_f, treatments - 1, ddf, _p_of_f(random_f, treatments - 1, ddf)),
        fixed_readers=Test(chi2, treatments - 1, None, float(stats.chi2.sf(chi2, treatments - 1))),
        fixed_cases=Test(fixed_cases_f, treatments - 1, df_tr, _p_of_f(fixed_cases_f, treatments - 1, df_tr)),
        differences=differences,
        cov1=cov1,
        cov2=cov2,
        cov3=cov3,
        var_error=var_error,
        var_r=(ms_r - ms_tr) / treatments - cov1 + cov3,
        var_tr=ms_tr - var_error + cov1 + beyond,
        mean_squares={"T": ms_t, "R": ms_r, "TR": ms_tr},
    )


def _pooled(covariance: np.ndarray) -> tuple[float, float, float, float]:
    """Error variance; covariances of the same reader under two treatments, of two readers under the same treatment,
    and of two readers under two treatments."""
    treatments, readers = covariance.shape[:2]
    t, r, s, q = np.indices(covariance.shape)
    kinds = ((t == s) & (r == q), (t != s) & (r == q), (t == s) & (r != q), (t != s) & (r != q))
    var_error, cov1, cov2, cov3 = (float(covariance[kind].mean()) for kind in kinds)
    return var_error, cov1, cov2, cov3


def _estimate(value: float, variance: float, df: float, level: float) -> Estimate:
    from scipy import stats

    se = float(np.sqrt(variance))
    half = float(stats.t.ppf(0.5 + level / 2, df)) * se
    return Estimate(value, se, float(df), (value - half, value + half))


def _ratio(numerator: float, denominator: float) -> float:
    """F of a numerator over a denominator; where nothing varies no difference is 0 and any other is infinite."""
    if denominator > 0:
        return numerator / denominator
    return np.inf if numerator > 0 else 0.0


def _p_of_f(statistic: float, df: float, ddf: float) -> float:
    from scipy import stats

    return float(stats.f.sf(statistic, df, ddf) if np.isfinite(ddf) else stats.chi2.sf(df * statistic, df))
