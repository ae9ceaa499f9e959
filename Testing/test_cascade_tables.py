"""What a cascade knows of its training brains, against brains that were made by known rules."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from test_cascade import ANATOMY, NETWORK, _labels

from MedDPMLib.imaging.appearance import FEATURES, appearance
from MedDPMLib.imaging.haar import halve_mask, split
from MedDPMLib.networks import build_network
from MedDPMLib.networks.cascade import label_fractions
from MedDPMLib.train.cascade_tables import FOLDS, color_regression, learn_tables, mixture_variances

#: Of white matter, cortex, ventricle, rest and enhancing tumor.
_VALUES = (1, 2, 3, 18, 21)


def _brains(count: int):
    """Brains of one anatomy, the contrast and grain of which each brain draws anew."""
    random = np.random.default_rng(0)
    made = []
    for _ in range(count):
        labels = np.roll(_labels(), random.integers(-2, 3, 3), (0, 1, 2))
        images = np.full((2, *labels.shape), -1.0, np.float32)
        for image in images:
            contrast, grain = random.uniform(-0.5, 0.5), np.exp(random.uniform(-3.5, -2))
            for position, value in enumerate(_VALUES):
                where = labels == value
                spread = grain * (3 if value == 3 else 1)
                image[where] = contrast * (position - 2) / 2 + spread * random.standard_normal(where.sum())
        made.append((images.clip(-1, 1), labels))
    return made


@pytest.fixture(scope="module")
def learned():
    brains = _brains(12)
    network = build_network({**NETWORK, "brains": 12, "image_channels": 2, "condition_channels": 21})
    return network, learn_tables(network, lambda: iter(brains), ANATOMY), brains


def test_mixtures_of_known_variances_are_found():
    generator = torch.Generator().manual_seed(0)
    shares = torch.rand(3, 40_000, generator=generator) ** 3
    shares = shares / shares.sum(dim=0)
    true = torch.tensor([[0.2], [1.0], [4.0]])
    residuals = (true.T @ shares).sqrt() * torch.randn(1, 40_000, generator=generator)
    found = mixture_variances(shares, residuals.square())
    torch.testing.assert_close(found, true, rtol=0.12, atol=0)


def test_a_linear_look_is_found_and_unknown_labels_have_their_mean():
    generator = torch.Generator().manual_seed(1)
    looks = torch.randn(400, 2 * len(FEATURES), generator=generator)
    means = torch.full((400, 3, 2), torch.nan)
    means[:, 0, 0] = 0.2 + 0.1 * looks[:, 0] - 0.05 * looks[:, 3]
    means[:3, 1, 1] = torch.tensor([0.1, 0.2, 0.6])
    weights = color_regression(looks, means)
    assert weights[0, 0, 0] == pytest.approx(0.1, abs=0.01) and weights[0, 0, 3] == pytest.approx(-0.05, abs=0.01)
    assert weights[0, 0, -1] == pytest.approx(0.2, abs=0.01)
    assert weights[1, 1, -1] == pytest.approx(0.3) and not weights[1, 1, :-1].any() and not weights[2].any()


def test_brains_that_do_not_count_change_nothing():
    generator = torch.Generator().manual_seed(2)
    looks, means = torch.randn(20, 22, generator=generator), torch.randn(20, 2, 2, generator=generator)
    counted = torch.arange(20) < 12
    other = means.clone()
    other[12:] = 99
    assert torch.equal(color_regression(looks, means, counted), color_regression(looks, other, counted))


def test_appearances_are_standardized_and_kept(learned):
    network, tables, brains = learned
    measured = np.concatenate([appearance(image, brains[3][1], ANATOMY) for image in brains[3][0]])
    torch.testing.assert_close(network.standardize(torch.from_numpy(measured)), tables.appearances[3])
    assert torch.equal(network.appearances, tables.appearances)
    torch.testing.assert_close(tables.appearances.mean(dim=0), torch.zeros(22), atol=0.15, rtol=0)


def test_a_brain_is_painted_by_others_and_still_nearly_right(learned):
    network, tables, brains = learned
    folds = np.random.default_rng(0).permutation(len(brains)) % FOLDS
    same = [(a, b) for a in range(12) for b in range(a) if folds[a] == folds[b]]
    assert all(torch.equal(tables.color_weights[a], tables.color_weights[b]) for a, b in same)
    assert not torch.equal(tables.color_weights[0], network.color_weights)
    errors = []
    for (images, labels), look, weights in zip(brains, tables.appearances, tables.color_weights, strict=True):
        colors = weights[..., :-1] @ look + weights[..., -1]
        errors += [abs(colors[value - 1, c] - images[c][labels == value].mean()) for value in _VALUES for c in (0, 1)]
    assert np.mean(errors) < 0.1  # of contrasts up to 0.5 on either side


def test_bands_are_whitened(learned):
    network, _, brains = learned
    level = network.levels[2]
    cells, details = [], []
    for images, labels in brains:
        inside = torch.from_numpy(labels > 0)
        means, bands = split(torch.from_numpy(images), inside)
        inside = halve_mask(inside)
        cells.append(level.whiten_means(means)[:, inside])
        details.append(level.bands_of(means, bands)[:, inside])
    cells, details = torch.cat(cells, dim=1), torch.cat(details, dim=1)
    torch.testing.assert_close(cells.mean(dim=1), torch.zeros(2), atol=1e-3, rtol=0)
    torch.testing.assert_close(cells.std(dim=1), torch.ones(2), atol=1e-2, rtol=0)
    torch.testing.assert_close(details.square().mean(dim=1), torch.ones(14), atol=1e-2, rtol=0)


def test_what_is_drawn_has_unit_spread_in_every_tissue_of_every_brain(learned):
    network, tables, brains = learned
    level = network.levels[2]
    found = {1: [], 3: []}
    for (images, labels), look, weights in zip(brains, tables.appearances, tables.color_weights, strict=True):
        bands = level.bands_of(*split(torch.from_numpy(images), torch.from_numpy(labels > 0)))
        fractions = label_fractions(torch.from_numpy(labels), 21, 1)
        colors = (weights[..., :-1] @ look + weights[..., -1]).clamp(-1, 1)
        rest = bands - level.painted_share[:, None, None, None] * level.painted(fractions, colors)
        drawn = rest / level.spread(fractions, look)
        shares = level.cell_shares(fractions)
        for value, values in found.items():
            values.append(float(drawn[:, shares[value - 1] == 1].square().mean().sqrt()))
    for (
        values
    ) in found.values():  # the ventricle's grain is three times that of white matter, a brain's up to 4.5 times
        assert np.median(values) == pytest.approx(1, abs=0.2) and max(values) < 2 and min(values) > 0.5
