"""Means and deviations inside labels, and what is made of them."""

from __future__ import annotations

import numpy as np
import pytest

from MedDPMLib.metrics.label_moments import (
    LEAST_VOXELS,
    correlation,
    label_moments,
    median_colors,
    share_in_range,
)


def test_moments_are_those_of_numpy_and_a_small_label_has_none():
    random = np.random.default_rng(0)
    labels = random.integers(0, 4, (12, 14, 10)).astype(np.uint8)
    labels[labels == 3] = 0
    labels.flat[: LEAST_VOXELS - 1] = 3
    image = random.standard_normal(labels.shape).astype(np.float32) + 5 * labels
    moments = label_moments(image, labels, (1, 2, 3, 9))
    for index, value in enumerate((1, 2)):
        assert moments.mean[index] == pytest.approx(image[labels == value].mean(), rel=1e-5)
        assert moments.sd[index] == pytest.approx(image[labels == value].std(), rel=1e-5)
    assert moments.voxels.tolist() == [(labels == value).sum() for value in (1, 2, 3, 9)]
    assert np.isnan(moments.mean[2:]).all() and np.isnan(moments.sd[2:]).all()


def test_correlation_counts_labels_that_both_have():
    first, second = np.array([0.0, 1, 2, np.nan, 4]), np.array([1.0, 3, 5, 100, np.nan])
    assert correlation(first, second) == pytest.approx(1)
    assert correlation(first, -second) == pytest.approx(-1)
    assert np.isnan(correlation(first[:2], second[:2]))
    assert np.isnan(correlation(np.ones(5), np.arange(5.0)))


def test_share_in_range_counts_labels_with_a_mean_on_both_sides():
    real = np.array([[0.0, 0, np.nan, np.nan], [1, 2, np.nan, 5]])
    assert share_in_range(np.array([0.5, 3, 7, 5]), real) == pytest.approx(2 / 3)
    assert share_in_range(np.array([np.nan, 2, np.nan, np.nan]), real) == 1
    assert np.isnan(share_in_range(np.full(4, np.nan), real))


def test_a_colored_mask_takes_each_labels_median():
    assert median_colors(np.array([[0.0, np.nan], [1, 3], [5, 4]])) == pytest.approx([1, 3.5])
