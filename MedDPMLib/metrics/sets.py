"""How far apart are two sets of images? By their feature vectors: Fréchet distance and maximum mean discrepancy."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from MedDPMLib.errors import MedDPMError


@dataclass(frozen=True)
class Frechet:
    """A Fréchet ``distance`` (squared, as FID is given), and whether its covariances were shrunk: another figure."""

    distance: float
    shrunk: bool

    @property
    def name(self) -> str:
        return "FID, covariances shrunk (Ledoit and Wolf)" if self.shrunk else "FID"


def frechet_distance(first: np.ndarray, second: np.ndarray) -> Frechet:
    """The squared Fréchet distance of the normal distributions of two sets of features (N, F) (Heusel et al. 2017,
    arXiv 1706.08500): |m1 - m2|^2 + tr(C1 + C2 - 2 (C1 C2)^(1/2)), in float64.

    With N at most F a sample's covariance is singular, and the distance is mostly that of two samples of one
    distribution. Then both are shrunk (Ledoit and Wolf 2004), and the result says so: it is not comparable with a FID.
    Raises :class:`MedDPMError` for fewer than two vectors in a set, other numbers of features, and what is not finite.
    """
    from sklearn.covariance import ledoit_wolf

    first, second = _checked(first, second)
    shrunk = min(len(first), len(second)) <= first.shape[1]
    covariances = [
        ledoit_wolf(one)[0] if shrunk else np.atleast_2d(np.cov(one, rowvar=False)) for one in (first, second)
    ]
    # The trace of the root of C1 C2 is that of the symmetric C1^(1/2) C2 C1^(1/2), which rounds far less.
    values, vectors = np.linalg.eigh(covariances[0])
    root = (vectors * np.sqrt(np.clip(values, 0, None))) @ vectors.T
    cross = np.sqrt(np.clip(np.linalg.eigvalsh(root @ covariances[1] @ root), 0, None)).sum()
    difference = first.mean(axis=0) - second.mean(axis=0)
    distance = difference @ difference + np.trace(covariances[0]) + np.trace(covariances[1]) - 2 * cross
    return Frechet(max(0.0, float(distance)), shrunk)


def linear_kernel(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """k(x, y) = x . y: its discrepancy is that of the means alone, as MONAI's MMDMetric has it."""
    return first @ second.T


def polynomial_kernel(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """k(x, y) = (x . y / F + 1)^3, the kernel of KID (Bińkowski et al. 2018, arXiv 1801.01401)."""
    return (first @ second.T / first.shape[1] + 1) ** 3


def rbf_kernel(first: np.ndarray, second: np.ndarray, length: float) -> np.ndarray:
    """k(x, y) = exp(-|x - y|^2 / (2 length^2))."""
    from scipy.spatial.distance import cdist

    return np.exp(-cdist(first, second, "sqeuclidean") / (2 * length**2))


def median_distance(features: np.ndarray) -> float:
    """The median of the distances between the vectors of ``features`` (N, F), N at least 2: a kernel's length."""
    from scipy.spatial.distance import pdist

    return float(np.median(pdist(features)))


def squared_mmd(within_first: np.ndarray, within_second: np.ndarray, between: np.ndarray) -> float:
    """The unbiased estimate of the squared maximum mean discrepancy (Gretton et al. 2012, JMLR 13, eq. 3).

    From the kernel's matrices (N, N), (M, M) and (N, M). It is 0 on average for two samples of one distribution, so
    that it can be negative. Raises :class:`MedDPMError` for sets of fewer than two.
    """
    n, m = between.shape
    if min(n, m) < 2:
        raise MedDPMError(f"an unbiased MMD needs at least two images in each set, not {n} and {m}")
    first = (within_first.sum() - np.trace(within_first)) / (n * (n - 1))
    second = (within_second.sum() - np.trace(within_second)) / (m * (m - 1))
    return float(first + second - 2 * between.mean())


def mmd(first: np.ndarray, second: np.ndarray, kernel: str, length: float | None = None) -> float:
    """:func:`squared_mmd` of two sets of features (N, F) with the ``kernel`` linear, polynomial or rbf.

    ``length`` is that of the rbf kernel; without it the median distance of both sets together.
    """
    first, second = _checked(first, second)
    if kernel == "rbf":
        scale = length or median_distance(np.concatenate([first, second])) or 1.0
        of = lambda x, y: rbf_kernel(x, y, scale)  # noqa: E731
    else:
        of = {"linear": linear_kernel, "polynomial": polynomial_kernel}[kernel]
    return squared_mmd(of(first, first), of(second, second), of(first, second))


def jackknife(
    first: np.ndarray, second: np.ndarray, groups: Sequence[Sequence], statistic
) -> tuple[float, float] | None:
    """A 95 % interval of ``statistic(first, second)``, leaving out one group of one set at a time.

    ``groups`` says for each vector of either set which group (patient, mask) it is of: those of one group are no
    independent cases. A bootstrap would repeat cases, which distances between sets take for a smaller spread. None with
    fewer than four groups in a set.
    """
    from scipy.stats import t

    whole = statistic(first, second)
    variance, least = 0.0, np.inf
    for index, (features, of) in enumerate(zip((first, second), groups, strict=True)):
        names = list(dict.fromkeys(of))
        if len(names) < 4:
            return None
        left_out = []
        for name in names:
            kept = features[[one != name for one in of]]
            left_out.append(statistic(kept, second) if index == 0 else statistic(first, kept))
        n = len(names)
        variance += (n - 1) / n * float(((np.array(left_out) - np.mean(left_out)) ** 2).sum())
        least = min(least, n)
    half = float(t.ppf(0.975, least - 1)) * variance**0.5
    return whole - half, whole + half


def floor(features: np.ndarray, groups: Sequence, statistic, *, splits: int = 20, seed: int = 0) -> float | None:
    """The mean ``statistic`` of two random halves of the groups of one set of ``features``: what the same distribution
    has at half the number of cases. None with fewer than four groups."""
    names = list(dict.fromkeys(groups))
    if len(names) < 4:
        return None
    random, values = np.random.default_rng(seed), []
    for _ in range(splits):
        chosen = set(random.permutation(len(names))[: len(names) // 2].tolist())
        half = np.array([names.index(name) in chosen for name in groups])
        values.append(statistic(features[half], features[~half]))
    return float(np.mean(values))


def _checked(first: np.ndarray, second: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    first, second = np.asarray(first, np.float64), np.asarray(second, np.float64)
    if first.ndim != 2 or second.ndim != 2 or first.shape[1] != second.shape[1]:
        raise MedDPMError(f"sets of features (N, F) need the same F, not the shapes {first.shape} and {second.shape}")
    if min(len(first), len(second)) < 2:
        raise MedDPMError(f"a distance of sets needs at least two images in each, not {len(first)} and {len(second)}")
    if not (np.isfinite(first).all() and np.isfinite(second).all()):
        raise MedDPMError("features hold values that are not finite (NaN or infinity): check the images")
    return first, second
