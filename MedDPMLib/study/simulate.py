"""Do the intervals cover the truth, and does the equivalence test keep its level? Readers that are made up."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from MedDPMLib.errors import MedDPMError
from MedDPMLib.study.equivalence import two_one_sided_tests
from MedDPMLib.study.merit import auc
from MedDPMLib.study.mrmc import single
from MedDPMLib.study.table import Ratings

#: Points of the quadrature over readers.
_NODES = 40


@dataclass(frozen=True)
class Readers:
    """A population of readers who rate on a scale of 1 to 6.

    What a reader perceives of a case is normal with variance 1: d' higher for synthetic cases, of which the share
    ``shared`` is the case's own (it makes readers agree) and the rest the reader's. d' varies between readers by
    ``spread`` (standard deviation). ``bias`` moves all thresholds toward "synthetic"; with the probability ``lapses``
    an answer is drawn at random.
    """

    d_prime: float
    spread: float = 0.2
    bias: float = 0.0
    lapses: float = 0.02
    shared: float = 0.4

    #: Where the perceived strength passes from one rating to the next, without bias and around the middle.
    thresholds = (-1.0, -0.5, 0.0, 0.5, 1.0)

    def __post_init__(self) -> None:
        if self.spread < 0 or not 0 <= self.lapses <= 1 or not 0 <= self.shared < 1:
            raise MedDPMError("the spread is 0 or more, lapses lie between 0 and 1, the shared part between 0 and 1")

    def draw(self, readers: int, synthetic: int, real: int, rng: np.random.Generator) -> Ratings:
        """One study."""
        truth = np.arange(synthetic + real) < synthetic
        own = self.d_prime + self.spread * rng.standard_normal((readers, 1))
        noise = np.sqrt(self.shared) * rng.standard_normal(len(truth)) + np.sqrt(1 - self.shared) * rng.standard_normal(
            (readers, len(truth))
        )
        perceived = own * (truth - 0.5) + noise + self.bias
        values = 1.0 + np.searchsorted(self.thresholds, perceived)
        lapsed = rng.random(values.shape) < self.lapses
        values[lapsed] = rng.integers(1, 7, np.count_nonzero(lapsed))
        names = [tuple(f"{kind}{n + 1}" for n in range(many)) for kind, many in (("R", readers), ("C", len(truth)))]
        return Ratings(values[None], truth, ("synthetic",), *names)

    def mean_auc(self) -> float:
        """The AUC on this scale, expected of a reader drawn from the population: computed, not simulated."""
        from scipy.stats import norm

        nodes, weights = np.polynomial.hermite_e.hermegauss(_NODES)
        total = 0.0
        for node, weight in zip(nodes, weights / weights.sum(), strict=True):
            half = (self.d_prime + self.spread * node) / 2
            chances = []
            for mean in (half + self.bias, -half + self.bias):
                edges = norm.cdf(np.array([-np.inf, *self.thresholds, np.inf]) - mean)
                chances.append((1 - self.lapses) * np.diff(edges) + self.lapses / 6)
            synthetic, real = chances
            total += weight * float(synthetic @ (np.cumsum(real) - real / 2))
        return total

    def with_mean_auc(self, wanted: float) -> Readers:
        """These readers with the d' at which the mean AUC is ``wanted``."""
        from dataclasses import replace

        from scipy.optimize import brentq

        return replace(self, d_prime=brentq(lambda d: replace(self, d_prime=d).mean_auc() - wanted, -8, 8))


@dataclass(frozen=True)
class Simulation:
    """What became of ``studies`` simulated studies: how often the 95 % interval held the true mean AUC, how often
    equivalence was shown, and the mean half width of the interval."""

    studies: int
    true_auc: float
    covered: int
    shown: int
    half_width: float

    @property
    def coverage(self) -> float:
        return self.covered / self.studies


def simulate(
    population: Readers,
    *,
    readers: int,
    synthetic: int,
    real: int,
    margin: float,
    studies: int,
    seed: int,
    alpha: float = 0.05,
    advance=lambda: None,
) -> Simulation:
    """Draws ``studies`` studies and analyzes each as a real one; ``advance()`` is called after each."""
    if readers < 2 or min(synthetic, real) < 2:
        raise MedDPMError("a simulated study needs at least two readers, two synthetic and two real cases")
    truth = population.mean_auc()
    covered = shown = 0
    widths = 0.0
    for child in np.random.SeedSequence(seed).spawn(studies):
        found = single(auc(population.draw(readers, synthetic, real, np.random.default_rng(child)))).random
        assert found is not None, "there are two readers or more"
        covered += found.ci[0] <= truth <= found.ci[1]
        shown += two_one_sided_tests(found, margin, alpha=alpha).shown
        widths += (found.ci[1] - found.ci[0]) / 2
        advance()
    return Simulation(studies, truth, int(covered), int(shown), widths / studies)
