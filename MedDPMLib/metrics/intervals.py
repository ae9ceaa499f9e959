"""How certain is a mean over cases? A bootstrap over groups: images of one patient or mask are not independent."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

#: Fewer groups have no interval that means anything.
LEAST_GROUPS = 3


@dataclass(frozen=True)
class Mean:
    """A ``value`` with its 95 % interval ``ci`` (None: too few groups) over ``count`` values in ``groups``."""

    value: float
    ci: tuple[float, float] | None
    count: int
    groups: int


def mean_over_groups(values: Sequence[float], groups: Sequence, *, seed: int = 0) -> Mean | None:
    """The mean of the groups' means, with SciPy's BCa bootstrap (Efron 1987) over ``groups``; None without a value.

    ``values`` that are NaN do not count.
    """
    from scipy.stats import bootstrap

    by_group: dict = {}
    for value, group in zip(values, groups, strict=True):
        if not np.isnan(value):
            by_group.setdefault(group, []).append(value)
    if not by_group:
        return None
    means = np.array([np.mean(of_group) for of_group in by_group.values()])
    count = sum(map(len, by_group.values()))
    ci = None
    if len(means) >= LEAST_GROUPS:
        if np.ptp(means) == 0:
            ci = (float(means[0]), float(means[0]))
        else:
            found = bootstrap((means,), np.mean, n_resamples=2000, method="BCa", rng=np.random.default_rng(seed))
            ci = (float(found.confidence_interval.low), float(found.confidence_interval.high))
    return Mean(float(means.mean()), ci, count, len(means))
