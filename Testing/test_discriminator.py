"""Can a small network tell them apart?"""

from __future__ import annotations

import numpy as np
import pytest

pytest.importorskip("scipy")

from MedDPMLib.errors import MedDPMError
from MedDPMLib.metrics.discriminator import area_under_curve, tell_apart


def test_area_counts_pairs_and_ties_by_half():
    random = np.random.default_rng(0)
    scores, positive = random.integers(0, 6, 60), random.random(60) < 0.4
    pairs = [(p > n) + 0.5 * (p == n) for p in scores[positive] for n in scores[~positive]]
    assert area_under_curve(scores, positive) == pytest.approx(np.mean(pairs))
    with pytest.raises(MedDPMError, match="both kinds"):
        area_under_curve(scores, np.ones(60))


def _volumes(count: int, blur: bool, seed: int) -> list[np.ndarray]:
    random = np.random.default_rng(seed)
    volumes = 0.3 * random.standard_normal((count, 1, 40, 40, 40)).astype(np.float32)
    if blur:
        volumes = (volumes + np.roll(volumes, 1, -1)) / 2**0.5
    return list(volumes)


def test_grain_of_another_kind_is_found_out():
    training = _volumes(3, False, 0), _volumes(3, True, 1)
    unseen = _volumes(3, False, 2), _volumes(3, True, 3)
    by_patch, by_volume = tell_apart(training, unseen, iterations=30)
    assert by_patch > 0.95 and by_volume == 1


def test_what_is_alike_is_not_distinguished():
    training = _volumes(3, False, 0), _volumes(3, False, 1)
    unseen = _volumes(3, False, 2), _volumes(3, False, 3)
    by_patch, _ = tell_apart(training, unseen, iterations=8)
    assert 0.3 < by_patch < 0.7
