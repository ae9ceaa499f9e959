"""A network that keeps the size of what passes through it."""

from __future__ import annotations

import pytest
import torch

from MedDPMLib.networks.magnitude_preserving import (
    UnitConv,
    UnitUNet3d,
    normalize_voxels,
    silu,
    weighted_sum,
)


def _network(**more) -> UnitUNet3d:
    torch.manual_seed(0)
    network = UnitUNet3d(4, 6, 5, (16, 24), (1, 1), given_width=8, **more)
    for module in network.modules():  # so that every path counts
        if isinstance(module, UnitConv) and module.gain is not None:
            torch.nn.init.constant_(module.gain, 0.7)
    return network.eval()


def _input(sides=(4, 6, 8), seed=0):
    generator = torch.Generator().manual_seed(seed)
    x, given = (torch.randn(2, channels, *sides, generator=generator) for channels in (4, 6))
    return x, given, torch.randn(2, 5, generator=generator)


def _call(network, x, given, appearance, noise=0.1, added=-0.5):
    return network(x, torch.full((2,), noise), torch.full((2,), added), appearance, network.encode(given))


@pytest.mark.parametrize("kernel", [0, 1, 2, 3])
def test_independent_unit_inputs_give_unit_outputs(kernel):
    torch.manual_seed(1)
    layer = UnitConv(64, 48, kernel)
    x = torch.randn(4000, 64) if not kernel else torch.randn(2, 64, 12, 12, 12)
    out = (layer(x)[..., 1:-1, 1:-1, 1:-1] if kernel else layer(x)).detach()
    assert float(out.square().mean()) == pytest.approx(1, abs=0.03)


def test_silu_sums_and_voxel_norms_have_unit_size():
    torch.manual_seed(2)
    x, y = torch.randn(2, 200_000)
    assert float(silu(x).square().mean()) == pytest.approx(1, abs=0.01)
    assert float(weighted_sum(x, y, 0.3).square().mean()) == pytest.approx(1, abs=0.01)
    normalized = normalize_voxels(7 * torch.randn(2, 16, 3, 3, 3))
    torch.testing.assert_close(normalized.square().mean(dim=1), torch.ones(2, 3, 3, 3), atol=1e-3, rtol=0)


def test_the_size_of_stored_weights_makes_no_difference():
    network, inputs = _network(heads=2), _input()
    before = _call(network, *inputs)
    with torch.no_grad():
        for module in network.modules():
            if isinstance(module, UnitConv):
                module.weight.mul_(3.7)
    torch.testing.assert_close(_call(network, *inputs), before)
    network.rescale()
    torch.testing.assert_close(_call(network, *inputs), before)
    assert all(
        float(module.weight.detach().square().mean()) == pytest.approx(1, rel=1e-4)
        for module in network.modules()
        if isinstance(module, UnitConv)
    )


def test_frozen_filters_give_the_same():
    network, inputs = _network(heads=2), _input()
    before = _call(network, *inputs)
    network.freeze(torch.float32)
    torch.testing.assert_close(_call(network, *inputs), before)


def test_everything_given_counts():
    network, (x, given, appearance) = _network(), _input()
    answer = _call(network, x, given, appearance)
    others = [
        _call(network, x + 0.1, given, appearance),
        _call(network, x, given.flip(1), appearance),
        _call(network, x, given, appearance.flip(1)),
        _call(network, x, given, appearance, noise=0.4),
        _call(network, x, given, appearance, added=0.0),
    ]
    assert all((other - answer).abs().max() > 1e-3 for other in others)


def test_without_attention_a_patch_has_what_the_whole_has_away_from_its_border():
    """No statistics of the volume: what is learned on patches holds on whole volumes."""
    network, (x, given, appearance) = _network(), _input((4, 4, 64), seed=3)
    whole = _call(network, x, given, appearance)
    part = _call(network, x[..., 8:56], given[..., 8:56], appearance)
    reach = 16  # the network's reach is less
    torch.testing.assert_close(part[..., reach:-reach], whole[..., 8 + reach : 56 - reach], atol=1e-5, rtol=1e-4)
    assert (part - whole[..., 8:56]).abs().max() > 1e-3


def test_weights_can_be_learned_and_gradients_reach_every_one():
    network, inputs = _network(heads=2), _input()
    _call(network, *inputs).square().sum().backward()
    assert all(p.grad is not None and p.grad.abs().max() > 0 for p in network.parameters())
