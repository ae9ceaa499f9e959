"""How well does a reader tell the classes apart? Figures of merit, with their jackknife values."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from MedDPMLib.study.table import Ratings


@dataclass(frozen=True, eq=False)
class Merit:
    """``value`` (T, R) of a figure of merit, and ``without`` (T, R, C): its value when case c is left out."""

    value: np.ndarray
    without: np.ndarray


def auc(ratings: Ratings) -> Merit:
    """The area under the empirical ROC curve (trapezoids; Mann and Whitney's statistic, ties count half)."""
    abnormal = ratings.values[:, :, ratings.truth, None]
    normal = ratings.values[:, :, None, ~ratings.truth]
    wins = (abnormal > normal) + 0.5 * (abnormal == normal)  # (T, R, N1, N0)
    many, few = wins.shape[2:]
    total = wins.sum(axis=(2, 3))
    without = np.empty(ratings.values.shape)
    without[:, :, ratings.truth] = (total[..., None] - wins.sum(axis=3)) / ((many - 1) * few)
    without[:, :, ~ratings.truth] = (total[..., None] - wins.sum(axis=2)) / (many * (few - 1))
    return Merit(total / (many * few), without)


def accuracy(ratings: Ratings, cut: float) -> Merit:
    """The mean of sensitivity and specificity when a rating above ``cut`` is taken as abnormal.

    With as many cases of either kind this is the share of right answers; with unequal numbers chance is still 0.5.
    """
    right = ((ratings.values > cut) == ratings.truth).astype(float)
    value = np.zeros(right.shape[:2])
    without = np.zeros(right.shape)
    for kind in (True, False):
        of_kind = ratings.truth == kind
        total, number = right[:, :, of_kind].sum(axis=2), np.count_nonzero(of_kind)
        value += total / number / 2
        without += (total / number / 2)[..., None] * ~of_kind
        without[:, :, of_kind] += (total[..., None] - right[:, :, of_kind]) / (number - 1) / 2
    return Merit(value, without)
