"""The Haar transform inside a mask."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from MedDPMLib.imaging.haar import from_blocks, haar_matrix, halve_mask, merge, split, to_blocks

SIDES = st.tuples(*[st.integers(1, 3).map(lambda n: 2 * n)] * 3)


def _image_and_mask(sides, seed, share=0.5):
    generator = torch.Generator().manual_seed(seed)
    image = torch.randn(3, *sides, generator=generator)
    return image, torch.rand(sides, generator=generator) < share


@settings(deadline=None, max_examples=30)
@given(SIDES, st.integers(0, 99))
def test_merging_gives_back_what_was_inside(sides, seed):
    image, inside = _image_and_mask(sides, seed)
    torch.testing.assert_close(merge(*split(image, inside))[:, inside], image[:, inside])


@settings(deadline=None, max_examples=30)
@given(SIDES, st.integers(0, 99))
def test_what_is_outside_changes_nothing(sides, seed):
    image, inside = _image_and_mask(sides, seed)
    other = torch.where(inside, image, torch.full_like(image, 1e3))
    for first, second in zip(split(image, inside), split(other, inside), strict=True):
        torch.testing.assert_close(first, second)


def test_an_even_brain_has_no_details_though_its_edge_crosses_blocks():
    _, inside = _image_and_mask((6, 8, 4), 3)
    mean, details = split(inside * 0.7 - ~inside * 1.0 + torch.zeros(1, 6, 8, 4), inside)
    assert details.abs().max() < 1e-6
    torch.testing.assert_close(mean[0][halve_mask(inside)], torch.full_like(mean[0][halve_mask(inside)], 0.7))
    assert not mean[0][~halve_mask(inside)].any()


def test_where_all_is_inside_means_are_averages_and_bands_orthonormal():
    image, _ = _image_and_mask((4, 6, 8), 0)
    mean, details = split(image, torch.ones(4, 6, 8, dtype=torch.bool))
    torch.testing.assert_close(mean, torch.nn.functional.avg_pool3d(image[None], 2)[0])
    torch.testing.assert_close(8 * mean.square().sum() + details.square().sum(), image.square().sum())
    matrix = haar_matrix()
    torch.testing.assert_close(matrix @ matrix.T, torch.eye(8))


@pytest.mark.parametrize(("axis", "band"), [(0, 4), (1, 2), (2, 1)])
def test_a_step_along_an_axis_is_in_that_axis_band_alone(axis, band):
    image = torch.zeros(1, 2, 2, 2)
    image.select(axis + 1, 0).fill_(1.0)
    _, details = split(image, torch.ones(2, 2, 2, dtype=torch.bool))
    expected = torch.zeros(7)
    expected[band - 1] = 4 / 8**0.5
    torch.testing.assert_close(details.flatten(), expected)


def test_blocks_are_numbered_along_d_h_w():
    image = torch.arange(8.0).view(1, 2, 2, 2)
    assert to_blocks(image).flatten().tolist() == list(range(8))
    random = torch.randn(2, 4, 6, 2)
    torch.testing.assert_close(from_blocks(to_blocks(random)), random)
