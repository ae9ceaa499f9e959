"""The nearest training brain."""

from __future__ import annotations

import numpy as np
import pytest

from MedDPMLib.metrics.memorization import coarse, nearest


def _brains(count: int) -> list[np.ndarray]:
    random = np.random.default_rng(0)
    brains = [np.full((2, 12, 12, 12), -1.0) for _ in range(count)]
    for brain in brains:
        brain[:, 2:-2, 2:-2, 2:-2] = random.uniform(-0.9, 0.9, (2, 8, 8, 8))
    return brains


def test_a_copy_has_distance_0_and_is_found():
    brains = _brains(5)
    found = nearest(brains[3].copy(), brains)
    assert found.index == 3 and found.distance == 0


def test_brains_with_nothing_in_common_have_distance_1():
    brains = _brains(4)
    assert nearest(brains[0], brains[1:]).distance == pytest.approx(1, abs=0.05)


def test_a_blend_lies_between():
    brains = _brains(4)
    half = nearest((brains[0] + brains[1]) / 2, brains[1:])
    assert half.index == 0 and 0.3 < half.distance < 0.7


def test_coarse_takes_the_mean_of_blocks():
    image = np.arange(2 * 4 * 4 * 8, dtype=np.float32).reshape(2, 4, 4, 8)
    assert coarse(image).shape == (2, 1, 1, 2)
    assert coarse(image)[1, 0, 0, 1] == pytest.approx(image[1, :, :, 4:].mean())
