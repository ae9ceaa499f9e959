"""The compact network: its transform, its symmetries, its limits."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from MedDPMLib.errors import MedDPMError
from MedDPMLib.networks.wavelet import WaveletUNet3d, wavelet_matrix, wavelet_merge, wavelet_split

SIDES = st.integers(1, 4).map(lambda n: 2 * n)


def small_network() -> WaveletUNet3d:
    torch.manual_seed(0)
    network = WaveletUNet3d(2, 3, channels=(8, 16)).eval()
    for parameter in network.parameters():  # nothing at zero, so that every path counts
        torch.nn.init.normal_(parameter, std=0.1)
    return network


@settings(deadline=None, max_examples=20)
@given(SIDES, SIDES, SIDES, st.integers(1, 3))
def test_the_transform_is_invertible(depth, height, width, channels):
    x = torch.randn(2, channels, depth, height, width, generator=torch.Generator().manual_seed(1))
    bands = wavelet_split(x)
    assert bands.shape == (2, 8 * channels, depth // 2, height // 2, width // 2)
    torch.testing.assert_close(wavelet_merge(bands), x)


@pytest.mark.parametrize("side", [4, 6, 16, 96])
def test_the_filters_are_those_of_cdf_9_7(side):
    """Against properties of their own: gains at the ends of the spectrum, moments, the published 9-tap filter."""
    matrix = wavelet_matrix(side)
    low, high = matrix[: side // 2], matrix[side // 2 :]
    one, line = torch.ones(side, dtype=torch.float64), torch.arange(side, dtype=torch.float64)
    turning = one * (-1) ** torch.arange(side)
    torch.testing.assert_close(low @ one, 2**0.5 * torch.ones(side // 2, dtype=torch.float64))
    assert (high @ one).abs().max() < 1e-12 and (low @ turning).abs().max() < 1e-12
    assert torch.linalg.cond(matrix) < 1.7  # nearly orthonormal
    if side >= 16:  # away from the ends: four vanishing moments
        for power in range(4):
            assert (high[3:-3] @ (line / side) ** power).abs().max() < 1e-12
        published = [0.026748757411, -0.016864118443, -0.078223266529, 0.266864118443, 0.602949018236]
        torch.testing.assert_close(
            low[4, 4:9], 2**0.5 * torch.tensor(published, dtype=torch.float64), atol=1e-9, rtol=0
        )


def test_bands_say_what_they_promise():
    """Bits 2, 1, 0 of a band's number are waves along D, H, W; channels stay apart."""
    for band in range(8):
        bits = [band >> 2 & 1, band >> 1 & 1, band & 1]
        axes = [torch.ones(16) if not bit else (-1.0) ** torch.arange(16) for bit in bits]
        x = torch.zeros(1, 2, 16, 16, 16)
        x[0, 1] = torch.einsum("i,j,k->ijk", *axes)
        bands = wavelet_split(x).abs().amax(dim=(0, 2, 3, 4))
        assert bands.argmax() == 2 * band + 1 and (bands > 1e-4).sum() == 1


def test_smooth_images_live_in_the_low_band():
    """So a network that knows nothing of the high bands draws no grid of blocks."""
    axes = [torch.linspace(-1, 1, n) for n in (32, 48, 64)]
    x = torch.stack(torch.meshgrid(*axes, indexing="ij")).prod(dim=0)[None, None]
    bands = wavelet_split(x)
    bands[:, 1:] = 0
    torch.testing.assert_close(wavelet_merge(bands)[..., 8:-8, 8:-8, 8:-8], x[..., 8:-8, 8:-8, 8:-8], atol=1e-5, rtol=0)


def test_white_noise_stays_white():
    x = torch.randn(1, 1, 64, 64, 64, generator=torch.Generator().manual_seed(1))
    assert ((wavelet_split(x).std(dim=(0, 2, 3, 4)) - 1).abs() < 0.1).all()


def test_a_patch_is_drawn_as_in_the_whole():
    """Far enough from its border: nothing in the network looks at the whole volume."""
    network = small_network()
    x, condition, t = torch.randn(1, 2, 8, 8, 160), torch.rand(1, 3, 8, 8, 160), torch.tensor([50])
    with torch.no_grad():
        whole = network(x, t, condition)[..., 72:88]
        part = network(x[..., 20:140], t, condition[..., 20:140])[..., 52:68]
    torch.testing.assert_close(part, whole)


def test_batch_equals_singles():
    network = small_network()
    x, condition = torch.randn(3, 2, 8, 8, 16), torch.randint(0, 2, (3, 3, 8, 8, 16)).float()
    t = torch.tensor([0, 100, 249])
    with torch.no_grad():
        together = network(x, t, condition)
        for i in range(3):
            torch.testing.assert_close(network(x[i : i + 1], t[i : i + 1], condition[i : i + 1]), together[i : i + 1])


def test_every_input_matters_everywhere_and_every_parameter_learns():
    network = small_network()
    x = torch.randn(1, 2, 8, 8, 8, requires_grad=True)
    condition = torch.rand(1, 3, 8, 8, 8, requires_grad=True)
    out = network(x, torch.tensor([100]), condition)
    assert out.shape == x.shape
    out.square().mean().backward()
    assert (x.grad != 0).all() and (condition.grad != 0).all()
    assert all(parameter.grad is not None and (parameter.grad != 0).any() for parameter in network.parameters())


def test_condition_can_be_encoded_once():
    network = small_network()
    x, condition, t = torch.randn(1, 2, 8, 8, 8), torch.rand(1, 3, 8, 8, 8), torch.tensor([7])
    with torch.no_grad():
        torch.testing.assert_close(network.denoise(x, t, network.encode_condition(condition)), network(x, t, condition))


def test_trust_starts_where_two_estimates_blend_best():
    """With the network's error at its typical size, the weight of x minimises the error of the blend."""
    network = WaveletUNet3d(1, 1, channels=(8,), timesteps=4)
    alpha_bar = torch.tensor([0.999, 0.9, 0.5, 0.01])
    network.start_training(alpha_bar)
    weights = network.trust.detach().sigmoid()
    assert (weights[:-1] > weights[1:]).all()  # the more noise, the less trust
    assert (weights[:, 0] > weights[:, 1]).all() and (weights[:, 1] > weights[:, 7]).all()
    noise, error = (1 - alpha_bar) / alpha_bar, 0.08**2
    candidates = torch.linspace(0, 1, 10_001)[:, None]
    best = (candidates**2 * noise + (1 - candidates) ** 2 * error).argmin(dim=0) / 10_000
    torch.testing.assert_close(weights[:, 0], best, atol=1e-3, rtol=0)
    with pytest.raises(MedDPMError, match="4 timesteps does not fit a schedule of 5"):
        network.start_training(torch.linspace(0.9, 0.1, 5))


def test_full_trust_returns_the_image():
    network = small_network()
    torch.nn.init.constant_(network.trust, 60)
    x = torch.randn(1, 2, 8, 8, 8)
    with torch.no_grad():
        torch.testing.assert_close(network(x, torch.tensor([3]), torch.rand(1, 3, 8, 8, 8)), x)


def test_bfloat16_follows_float32():
    network = small_network()
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
