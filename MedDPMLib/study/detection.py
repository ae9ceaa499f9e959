"""What does one reader see? Proportions with exact intervals, the ROC curve, sensitivity index and criterion."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Proportion:
    """``hits`` of ``number``, with the exact interval of Clopper and Pearson."""

    hits: int
    number: int
    ci: tuple[float, float]

    @property
    def value(self) -> float:
        return self.hits / self.number


@dataclass(frozen=True, eq=False)
class Detection:
    """One reader: ``roc`` is (false positive rates, true positive rates); d' and criterion are those of
    :func:`sensitivity_index`."""

    accuracy: Proportion
    sensitivity: Proportion
    specificity: Proportion
    auc: float
    roc: tuple[np.ndarray, np.ndarray]
    d_prime: float
    criterion: float


def proportion(hits: int, number: int, level: float = 0.95) -> Proportion:
    from scipy.stats import binomtest

    interval = binomtest(int(hits), int(number)).proportion_ci(level, method="exact")
    return Proportion(int(hits), int(number), (float(interval.low), float(interval.high)))


def detect(ratings: np.ndarray, truth: np.ndarray, cut: float, level: float = 0.95) -> Detection:
    """One reader's ``ratings`` (C) of cases with ``truth`` (C), boolean; above ``cut`` the answer is "synthetic"."""
    from sklearn.metrics import roc_auc_score, roc_curve

    said = ratings > cut
    false_positive_rates, true_positive_rates, _ = roc_curve(truth, ratings, drop_intermediate=False)
    d_prime, criterion = sensitivity_index(
        np.count_nonzero(said & truth),
        np.count_nonzero(truth),
        np.count_nonzero(said & ~truth),
        np.count_nonzero(~truth),
    )
    return Detection(
        accuracy=proportion(np.count_nonzero(said == truth), len(truth), level),
        sensitivity=proportion(np.count_nonzero(said & truth), np.count_nonzero(truth), level),
        specificity=proportion(np.count_nonzero(~said & ~truth), np.count_nonzero(~truth), level),
        auc=float(roc_auc_score(truth, ratings)),
        roc=(false_positive_rates, true_positive_rates),
        d_prime=d_prime,
        criterion=criterion,
    )


def sensitivity_index(hits: int, signals: int, false_alarms: int, noises: int) -> tuple[float, float]:
    """d' and criterion c of a yes/no task: z(H) - z(F) and -(z(H) + z(F)) / 2.

    Rates are (count + 0.5) / (number + 1), which keeps them finite where a reader always gives one answer (Hautus,
    Behav. Res. Methods 27 (1995) 46-51). A negative criterion is a leaning toward "synthetic".
    """
    from scipy.stats import norm

    z_hit, z_false = norm.ppf((hits + 0.5) / (signals + 1)), norm.ppf((false_alarms + 0.5) / (noises + 1))
    return float(z_hit - z_false), float(-(z_hit + z_false) / 2)
