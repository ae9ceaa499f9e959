"""Distances of sets, modalities, vessels and intervals: closed forms, other implementations, and cases of no value."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from MedDPMLib.errors import MedDPMError
from MedDPMLib.metrics import sets
from MedDPMLib.metrics.intervals import mean_over_groups
from MedDPMLib.metrics.modalities import edge_agreement, mutual_information
from MedDPMLib.metrics.vessels import Topology, centerline_dice, topology, vesselness, vessels


def white(n: int, f: int, seed: int = 0) -> np.ndarray:
    """A sample (n, f) whose mean is exactly 0 and whose covariance is exactly the identity."""
    sample = np.random.default_rng(seed).standard_normal((n, f))
    sample -= sample.mean(axis=0)
    return sample @ np.linalg.inv(np.linalg.cholesky(np.cov(sample, rowvar=False))).T


# Fréchet distance --------------------------------------------------------------------------------------


def test_fid_of_normal_distributions_is_its_closed_form():
    base, shift, scale = white(40, 5), np.array([3.0, 0, -1, 0, 2]), np.array([1.0, 2, 0.5, 3, 1])
    found = sets.frechet_distance(base, base * scale + shift)
    assert found.distance == pytest.approx(shift @ shift + ((1 - scale) ** 2).sum(), rel=1e-9)
    assert not found.shrunk and found.name == "FID"
    # A turn of both changes nothing.
    turn = np.linalg.qr(np.random.default_rng(1).standard_normal((5, 5)))[0]
    turned = sets.frechet_distance(base @ turn, (base * scale + shift) @ turn)
    assert turned.distance == pytest.approx(found.distance, rel=1e-9)


def test_fid_of_a_set_with_itself_is_nothing_and_monai_agrees():
    from monai.metrics.fid import get_fid_score

    random = np.random.default_rng(0)
    first, second = random.standard_normal((60, 8)), random.standard_normal((50, 8)) * 1.3 + 0.2
    assert sets.frechet_distance(first, first).distance == pytest.approx(0, abs=1e-9)
    expected = get_fid_score(torch.from_numpy(second), torch.from_numpy(first))
    assert sets.frechet_distance(first, second).distance == pytest.approx(float(expected), rel=1e-5)


def test_fid_below_the_number_of_features_is_shrunk_and_says_so():
    random = np.random.default_rng(0)
    few, many = random.standard_normal((8, 20)), random.standard_normal((60, 20))
    for pair in ((few, many), (many, few), (random.standard_normal((20, 20)), many)):
        found = sets.frechet_distance(*pair)
        assert found.shrunk and "shrunk" in found.name and np.isfinite(found.distance)
    assert not sets.frechet_distance(random.standard_normal((21, 20)), many).shrunk
    assert sets.frechet_distance(few, few).distance == pytest.approx(0, abs=1e-9)


# Maximum mean discrepancy ------------------------------------------------------------------------------


@pytest.mark.parametrize("kernel", ["linear", "rbf", "polynomial"])
def test_mmd_is_the_sum_over_pairs_that_its_definition_has(kernel):
    random = np.random.default_rng(0)
    x, y, length = random.standard_normal((5, 3)), random.standard_normal((4, 3)) + 1, 1.7

    def k(a, b):
        if kernel == "linear":
            return float(a @ b)
        if kernel == "rbf":
            return float(np.exp(-((a - b) ** 2).sum() / (2 * length**2)))
        return float((a @ b / 3 + 1) ** 3)

    within = [np.mean([k(a, b) for i, a in enumerate(s) for j, b in enumerate(s) if i != j]) for s in (x, y)]
    between = np.mean([k(a, b) for a in x for b in y])
    assert sets.mmd(x, y, kernel, length) == pytest.approx(within[0] + within[1] - 2 * between, rel=1e-10)


def test_the_linear_mmd_is_monai_s_and_that_of_the_means():
    from monai.metrics.mmd import compute_mmd

    random = np.random.default_rng(0)
    x, y = random.standard_normal((6, 4)), random.standard_normal((6, 4)) + 1
    monai = compute_mmd(torch.from_numpy(y)[:, None], torch.from_numpy(x)[:, None], None)
    assert sets.mmd(x, y, "linear") == pytest.approx(float(monai), rel=1e-9)
    # Unbiased: the square of the difference of the means, less what the scatter of the means adds on average.
    scatter = sum(np.trace(np.cov(one, rowvar=False)) / len(one) for one in (x, y))
    assert sets.mmd(x, y, "linear") == pytest.approx(((x.mean(0) - y.mean(0)) ** 2).sum() - scatter, rel=1e-9)


@pytest.mark.parametrize("kernel", ["linear", "rbf", "polynomial"])
def test_mmd_is_unbiased(kernel):
    random = np.random.default_rng(0)
    values = [sets.mmd(random.standard_normal((6, 2)), random.standard_normal((6, 2)), kernel, 1.0) for _ in range(800)]
    assert abs(np.mean(values)) < 4 * np.std(values) / 800**0.5
    assert min(values) < 0


def test_sets_that_have_no_distance_are_refused_with_a_sentence():
    good = np.random.default_rng(0).standard_normal((5, 3))
    for bad, words in (
        (good[:1], "at least two"),
        (np.where(good > 1, np.nan, good), "not finite"),
        (good[:, :2], "same F"),
        (good[0], "same F"),
    ):
        for distance in (sets.frechet_distance, lambda a, b: sets.mmd(a, b, "linear")):
            with pytest.raises(MedDPMError, match=words):
                distance(bad, good)
    constant = np.ones((5, 3))
    assert sets.mmd(constant, constant, "rbf") == pytest.approx(0)
    assert sets.frechet_distance(constant, constant).distance == pytest.approx(0, abs=1e-9)


def test_intervals_and_floors_of_sets():
    random = np.random.default_rng(0)
    mean = lambda a, b: float(a.mean() - b.mean())  # noqa: E731
    x, y = random.standard_normal((30, 1)), random.standard_normal((20, 1))
    low, high = sets.jackknife(x, y, (range(30), range(20)), mean)
    # The jackknife of a difference of means is the textbook's standard error.
    half = 2.093 * (x.var(ddof=1) / 30 + y.var(ddof=1) / 20) ** 0.5
    assert (high - low) / 2 == pytest.approx(half, rel=1e-3) and (high + low) / 2 == pytest.approx(mean(x, y))
    # Copies of a case make nothing more certain.
    twice = sets.jackknife(x.repeat(2, 0), y, (np.repeat(range(30), 2), range(20)), mean)
    np.testing.assert_allclose(twice, (low, high), rtol=1e-9)
    assert sets.jackknife(x[:3], y, (range(3), range(20)), mean) is None
    assert sets.floor(x[:3], range(3), mean) is None
    assert abs(sets.floor(x, range(30), lambda a, b: sets.mmd(a, b, "linear"))) < 0.1


# Means over groups -------------------------------------------------------------------------------------


def test_a_mean_counts_groups_and_leaves_out_what_is_not_defined():
    found = mean_over_groups([1.0, 3.0, 10.0, np.nan, 6.0], ["a", "a", "b", "b", "c"])
    assert found.value == pytest.approx((2 + 10 + 6) / 3) and (found.count, found.groups) == (4, 3)
    assert found.ci[0] < found.value < found.ci[1]
    assert mean_over_groups([np.nan], ["a"]) is None and mean_over_groups([], []) is None
    assert mean_over_groups([1.0, 2.0], "ab").ci is None, "two groups have no interval"
    assert mean_over_groups([5.0] * 4, "abcd").ci == (5.0, 5.0)


def test_the_interval_of_a_mean_covers_as_often_as_it_says():
    random = np.random.default_rng(0)
    hits = 0
    for _ in range(60):
        low, high = mean_over_groups(random.standard_normal(20).tolist(), range(20)).ci
        hits += low <= 0 <= high
    assert 50 <= hits <= 60  # 57 expected, standard deviation 1.7


# Modalities --------------------------------------------------------------------------------------------


def test_mutual_information_of_equal_and_of_independent_images():
    random = np.random.default_rng(0)
    inside = np.ones((24, 24, 24), bool)
    image, other = random.uniform(-1, 1, (2, 24, 24, 24))
    assert mutual_information(image, image, inside) == pytest.approx(2)
    assert mutual_information(image, -image, inside) == pytest.approx(2, abs=0.05), "an inverted contrast tells as much"
    assert mutual_information(image, other, inside) == pytest.approx(1, abs=0.02)
    # Two values each, independent but for a known share: entropies by hand.
    a = np.repeat([0.0, 1.0], 500)[None, None]
    b = np.concatenate([np.repeat([0.0, 1.0], [400, 100]), np.repeat([0.0, 1.0], [100, 400])])[None, None]
    h = lambda *p: -sum(q * np.log(q) for q in p)  # noqa: E731
    expected = 2 * h(0.5, 0.5) / h(0.4, 0.1, 0.1, 0.4)
    assert mutual_information(a, b, np.ones(a.shape, bool)) == pytest.approx(expected)
    assert mutual_information(np.ones(a.shape), np.ones(a.shape), np.ones(a.shape, bool)) == 1
    with pytest.raises(MedDPMError, match="empty"):
        mutual_information(a, b, np.zeros(a.shape, bool))


def test_edges_agree_where_they_are_and_by_chance_elsewhere():
    random = np.random.default_rng(0)
    inside = np.ones((30, 30, 30), bool)
    step = np.where(np.arange(30)[:, None, None] < 15, -1.0, 1.0) + np.zeros((30, 30, 30))
    assert edge_agreement(step, -3 * step, inside) == 1
    noise, other = random.standard_normal((2, 30, 30, 30))
    assert edge_agreement(noise, other, inside) == pytest.approx(0.1, abs=0.03)
    assert edge_agreement(step, step.transpose(1, 0, 2), inside) < 0.4


# Vessels -----------------------------------------------------------------------------------------------


def tube(radius: float = 1.5, gap: int = 0) -> np.ndarray:
    k, j, i = np.mgrid[:32, :32, :32]
    inside = ((j - 16) ** 2 + (i - 16) ** 2) ** 0.5 <= radius
    return inside & (k > 3) & (k < 28) & ~((k >= 16) & (k < 16 + gap))


def test_betti_numbers_of_known_shapes():
    k, j, i = np.mgrid[:32, :32, :32] - 15.5
    ring = (np.hypot(np.hypot(j, i) - 9, k)) < 3
    shell = np.abs(np.sqrt(k**2 + j**2 + i**2) - 9) < 2
    assert topology(tube()) == Topology(1, 0, 0)
    assert topology(tube(gap=4)) == Topology(2, 0, 0)
    assert topology(ring) == Topology(1, 1, 0)
    assert topology(shell) == Topology(1, 0, 1)
    assert topology(np.zeros((8, 8, 8), bool)) == Topology(0, 0, 0)


def test_centerline_dice_of_equal_broken_and_empty_vessels():
    whole, broken = tube(), tube(gap=8)
    assert centerline_dice(whole, whole) == 1
    # All of the broken one's line lies in the whole; of the whole one's line the gap does not.
    assert 0.6 < centerline_dice(whole, broken) < 0.95
    nothing = np.zeros_like(whole)
    assert centerline_dice(nothing, nothing) == 1 and centerline_dice(whole, nothing) == 0
    with pytest.raises(MedDPMError, match="one shape"):
        centerline_dice(whole, whole[:-1])


def test_bright_tubes_are_found_and_sheets_and_dark_tubes_are_not():
    inside = np.ones((32, 32, 32), bool)
    # A little noise: along a perfect tube the curvature is exactly 0, where any sign of it passes.
    noise = np.random.default_rng(0).normal(0, 0.01, inside.shape)
    bright = vesselness(np.where(tube(), 1.0, -0.5) + noise, inside)
    dark = vesselness(np.where(tube(), -1.0, 0.5) + noise, inside)
    sheet = vesselness(np.where(np.abs(np.mgrid[:32, :32, :32][1] - 16) < 2, 1.0, -0.5) + noise, inside)
    middle = (slice(10, 22), slice(16, 17), slice(16, 17))
    assert bright[middle].min() > 3 * max(dark[middle].max(), sheet[middle].max(), 1e-3)
    found = vessels(bright, float(bright[middle].min()) * 0.9)
    assert found[middle].all()
    speck = np.zeros((32, 32, 32), np.float32)
    speck[4:6, 4:6, 4:6] = 1
    assert not vessels(speck, 0.5).any(), "eight voxels are no vessel"
