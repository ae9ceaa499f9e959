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


def sensitivity(ratings: Ratings, cut: float) -> Merit:
    """The share of abnormal cases with a rating above ``cut``."""
    return _share_right(ratings, cut, abnormal=True)


def specificity(ratings: Ratings, cut: float) -> Merit:
    """The share of normal cases with a rating not above ``cut``."""
    return _share_right(ratings, cut, abnormal=False)


def accuracy(ratings: Ratings, cut: float) -> Merit:
    """The mean of sensitivity and specificity.

    With as many cases of either kind this is the share of right answers; with unequal numbers chance is still 0.5.
    """
    first, second = sensitivity(ratings, cut), specificity(ratings, cut)
    return Merit((first.value + second.value) / 2, (first.without + second.without) / 2)


def _share_right(ratings: Ratings, cut: float, abnormal: bool) -> Merit:
    of_kind = ratings.truth == abnormal
    right = ((ratings.values[:, :, of_kind] > cut) == abnormal).astype(float)
    total, number = right.sum(axis=2), np.count_nonzero(of_kind)
    without = np.repeat((total / number)[..., None], len(of_kind), axis=2)
    without[:, :, of_kind] = (total[..., None] - right) / (number - 1)
    return Merit(total / number, without)
