"""The compact network: its transform, its symmetries, its limits."""

from __future__ import annotations

import pytest
import torch
from alive import Alive
from hypothesis import given, settings
from hypothesis import strategies as st

from MedDPMLib.errors import MedDPMError
from MedDPMLib.masks.condition import voxel_positions
from MedDPMLib.networks.wavelet import WaveletUNet3d, haar_merge, haar_split, place_features

SIDES = st.integers(1, 4).map(lambda n: 2 * n)


def small_network(octaves: int = 0) -> WaveletUNet3d:
    torch.manual_seed(0)
    network = WaveletUNet3d(2, 3, channels=(8, 16), place_octaves=octaves).eval()
    for parameter in network.parameters():  # nothing at zero, so that every path counts
        torch.nn.init.normal_(parameter, std=0.1)
    return network


@settings(deadline=None, max_examples=20)
@given(SIDES, SIDES, SIDES, st.integers(1, 3))
def test_haar_is_orthonormal_and_invertible(depth, height, width, channels):
    x = torch.randn(2, channels, depth, height, width, generator=torch.Generator().manual_seed(1))
    bands = haar_split(x)
    assert bands.shape == (2, 8 * channels, depth // 2, height // 2, width // 2)
    torch.testing.assert_close(haar_merge(bands), x)
    torch.testing.assert_close(bands.square().sum(), x.square().sum())


def test_haar_bands_say_what_they_promise():
    """Band 0 is the mean of each 2 x 2 x 2 block times sqrt(8); bits 2, 1, 0 are differences along D, H, W."""
    x = torch.randn(1, 2, 4, 6, 8)
    bands = haar_split(x)
    torch.testing.assert_close(bands[:, :2], torch.nn.functional.avg_pool3d(x, 2) * 8**0.5)
    for bit, axis in ((4, 2), (2, 3), (1, 4)):
        step = torch.ones(2)
        step[1] = -1
        wave = x * step.repeat(x.shape[axis] // 2).view([-1 if a == axis else 1 for a in range(5)])
        torch.testing.assert_close(bands[:, 2 * bit : 2 * bit + 2], torch.nn.functional.avg_pool3d(wave, 2) * 8**0.5)


def test_batch_equals_singles():
    network = small_network()
    x, condition = torch.randn(3, 2, 8, 8, 16), torch.randint(0, 2, (3, 3, 8, 8, 16)).float()
    t = torch.tensor([0, 100, 249])
    with torch.no_grad():
        together = network(x, t, condition)
        for i in range(3):
            torch.testing.assert_close(network(x[i : i + 1], t[i : i + 1], condition[i : i + 1]), together[i : i + 1])


@pytest.mark.parametrize("octaves", [0, 2])
def test_every_input_matters_everywhere_and_every_parameter_learns(octaves):
    network = small_network(octaves)
    x = torch.randn(1, 2, 8, 8, 8, requires_grad=True)
    condition = torch.rand(1, 3, 8, 8, 8, requires_grad=True)
    out = network(x, torch.tensor([100]), condition)
    assert out.shape == x.shape
    out.square().mean().backward()
    assert (x.grad != 0).all() and (condition.grad != 0).all()
    assert all(parameter.grad is not None and (parameter.grad != 0).any() for parameter in network.parameters())


@pytest.mark.parametrize("octaves", [0, 2])
def test_condition_can_be_encoded_once(octaves):
    network = small_network(octaves)
    x, condition, t = torch.randn(1, 2, 8, 8, 8), torch.rand(1, 3, 8, 8, 8), torch.tensor([7])
    with torch.no_grad():
        torch.testing.assert_close(network.denoise(x, t, network.encode_condition(condition)), network(x, t, condition))


def test_channels_are_embedded_in_parts_as_together():
    network = WaveletUNet3d(1, 14, channels=(8, 16))
    condition = torch.randn(2, 14, 8, 8, 8)
    together = network.condition_stem(network.embedding(haar_split(condition)))
    torch.testing.assert_close(network.encode_condition(condition), together)


def test_places_are_sines_of_the_middles_of_the_blocks():
    depth, height, width = 8, 12, 16
    features = place_features(torch.from_numpy(voxel_positions((depth, height, width)))[None], 3)
    assert features.shape == (1, 18, 4, 6, 8)
    for octave in range(3):
        for axis, (side, name) in enumerate(((width, "i"), (height, "j"), (depth, "k"))):
            middles = (2 * torch.arange(side // 2) + 1) / (side / 2) - 1
            shape = [-1 if name == other else 1 for other in "kji"]
            angle = (torch.pi * 2**octave * middles).view(shape).expand(4, 6, 8)
            torch.testing.assert_close(features[0, 3 * octave + axis], angle.sin(), atol=1e-5, rtol=0)
            torch.testing.assert_close(features[0, 9 + 3 * octave + axis], angle.cos(), atol=1e-5, rtol=0)


def test_a_patch_is_given_the_same_places_as_the_whole():
    network = small_network(2)
    whole = torch.from_numpy(voxel_positions((16, 16, 24)))[None]
    with torch.no_grad():
        part = network.encode_condition(whole[..., 4:12, 8:16, 8:20])
        encoded = network.encode_condition(whole)[..., 2:6, 4:8, 4:10]
    inner = (..., slice(1, -1), slice(1, -1), slice(1, -1))  # where no border of zeros is seen
    torch.testing.assert_close(part[inner], encoded[inner])


@pytest.mark.parametrize("octaves", [0, 5])
def test_values_alive_are_no_more_than_predicted(octaves):
    sides = (16, 32, 32)
    network = WaveletUNet3d(4, 24, channels=(48, 72, 96, 120), place_octaves=octaves).requires_grad_(False)
    x, t, condition = torch.randn(1, 4, *sides), torch.tensor([3]), torch.randn(1, 24, *sides)
    with Alive() as alive:
        network(x, t, condition)
    assert alive.peak < network.values_per_voxel * x[0, 0].numel() * 4 < 3 * alive.peak


def test_trust_starts_where_two_estimates_blend_best():
    """With the network's error at its typical size, the weight of x minimizes the error of the blend."""
    network = WaveletUNet3d(1, 1, channels=(8,), timesteps=4)
    alpha_bar = torch.tensor([0.999, 0.9, 0.5, 0.01])
    network.start_training(alpha_bar)
    weights = network.skip_weight_logits.detach().sigmoid()
    assert (weights[:-1] > weights[1:]).all()  # the more noise, the smaller the skip weight
    assert (weights[:, 0] > weights[:, 1]).all() and (weights[:, 1] > weights[:, 7]).all()
    noise, error = (1 - alpha_bar) / alpha_bar, 0.08**2
    candidates = torch.linspace(0, 1, 10_001)[:, None]
    best = (candidates**2 * noise + (1 - candidates) ** 2 * error).argmin(dim=0) / 10_000
    torch.testing.assert_close(weights[:, 0], best, atol=1e-3, rtol=0)
    with pytest.raises(MedDPMError, match="4 timesteps does not fit a schedule of 5"):
        network.start_training(torch.linspace(0.9, 0.1, 5))


def test_full_trust_returns_the_image():
    network = small_network()
    torch.nn.init.constant_(network.skip_weight_logits, 60)
    x = torch.randn(1, 2, 8, 8, 8)
    with torch.no_grad():
        torch.testing.assert_close(network(x, torch.tensor([3]), torch.rand(1, 3, 8, 8, 8)), x)


@pytest.mark.parametrize("octaves", [0, 2])
def test_bfloat16_follows_float32(octaves):
    network = small_network(octaves)
    x, condition, t = torch.randn(1, 2, 8, 8, 8), torch.rand(1, 3, 8, 8, 8), torch.tensor([50])
    with torch.no_grad():
        exact = network(x, t, condition)
        reduced = network.to(torch.bfloat16)(x.bfloat16(), t, condition.bfloat16()).float()
    assert (reduced - exact).norm() < 0.03 * exact.norm()


def test_sides_and_widths_are_checked():
    with pytest.raises(MedDPMError, match="multiples of 4, not .*6"):
        small_network()(torch.zeros(1, 2, 8, 8, 6), torch.tensor([0]), torch.zeros(1, 3, 8, 8, 6))
    with pytest.raises(MedDPMError, match="multiples of 8"):
        WaveletUNet3d(1, 1, channels=(8, 12))
    for channels, octaves in ((2, 1), (7, 9), (7, 4096)):
        with pytest.raises(MedDPMError, match="positions"):
            WaveletUNet3d(1, channels, channels=(8, 16), place_octaves=octaves)


def test_the_last_step_leaves_no_pattern_of_the_blocks():
    """A network that adds a constant to a high-pass sub-band checkers every block of it; the shift cancels that
    of one high-pass axis and of three."""
    network = WaveletUNet3d(2, 3, channels=(8, 16))
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.zero_()
        network.skip_weight_logits.fill_(-60)
        network.out.bias[2 * 1] = 0.5  # sub-band 1 (high-pass along W) of the first channel
        network.out.bias[2 * 7 + 1] = 0.5  # sub-band 7 (high-pass along all axes) of the second
        x, condition, t = torch.zeros(1, 2, 16, 16, 24), torch.zeros(1, 3, 16, 16, 24), torch.tensor([5])
        encoded = network.encode_condition(condition)
        assert network.denoise(x, t, encoded).abs().min() > 0.1
        assert network.denoise_last(x, t, condition, encoded).abs().max() < 1e-6


def test_without_gradients_nothing_given_is_changed():
    network = small_network()
    given = torch.randn(1, 2, 8, 8, 8), torch.tensor([7]), torch.rand(1, 3, 8, 8, 8)
    kept = [tensor.clone() for tensor in given]
    with_gradients = network(*given)
    with torch.no_grad():
        encoded = network.encode_condition(given[2])
        share = encoded.clone()
        torch.testing.assert_close(network.denoise(given[0], given[1], encoded), with_gradients)
    assert all(torch.equal(tensor, before) for tensor, before in zip((*given, encoded), (*kept, share), strict=True))
