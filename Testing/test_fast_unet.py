"""The fast path of the published networks against the plain one, on random inputs and weights."""

from __future__ import annotations

from functools import partial

import exactness
import pytest
import torch
from alive import Alive
from exactness import error, exact

from MedDPMLib.errors import MedDPMError
from MedDPMLib.networks import build_network, slabs
from MedDPMLib.networks.fast_unet import FastUNet3d
from MedDPMLib.networks.memory_mode import MemoryMode
from MedDPMLib.networks.optimized import optimize, working_bytes
from MedDPMLib.networks.slabs import Frame
from MedDPMLib.runtime.moments import Moments

CPU = torch.device("cpu")
#: Of every kind of step: shortcuts with and without a convolution, blocks with attention, levels of other widths.
ARCHITECTURES = {
    "one block": {"multipliers": [1, 2], "blocks": 1, "attention": [2]},
    "two blocks": {"multipliers": [1, 1, 2], "blocks": 2, "attention": [4]},
}


@pytest.fixture(scope="module", params=ARCHITECTURES)
def network(request):
    description = {"kind": "unet", "image_channels": 2, "condition_channels": 3, "base": 32}
    torch.manual_seed(4)
    network = build_network({**description, **ARCHITECTURES[request.param]}).eval().requires_grad_(False)
    for parameter in network.parameters():
        parameter.add_(torch.randn_like(parameter) * 0.05)
    return network


arguments = partial(exactness.arguments, 3, batch=1, sides=(20, 8, 12))


@pytest.mark.parametrize("slab_bytes", [1, 40_000, 1 << 30])
@pytest.mark.parametrize("mode", [MemoryMode.FAST, MemoryMode.LOW])
def test_in_float32_it_is_the_plain_network(network, mode, slab_bytes, monkeypatch):
    for name in ("_CPU_SLAB", "_LEAN_CPU_SLAB"):
        monkeypatch.setattr(slabs, name, slab_bytes)
    fast, given = optimize(network, CPU, torch.float32, mode), arguments(batch=2)
    assert isinstance(fast, FastUNet3d)
    expected = exact(network, *given)
    assert error(fast(*given), expected) < 1e-5
    # An order of magnitude closer than a mistake at one voxel's border would be.
    assert (fast(*given).double() - expected).abs().max() < 1e-4 * expected.std()


def test_how_it_is_cut_changes_nothing_but_rounding(network, monkeypatch):
    given, results = arguments(), []
    for slab_bytes in (1, 1 << 30):
        monkeypatch.setattr(slabs, "_CPU_SLAB", slab_bytes)
        results.append(optimize(network, CPU, torch.float32)(*given))
    torch.testing.assert_close(*results, rtol=0, atol=1e-5 * float(results[0].std()))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_in_16_bits_it_is_as_close_as_the_plain_network(network, dtype):
    given = arguments()
    expected = exact(network, *given)
    x, t, condition = given
    fast = optimize(network, CPU, dtype)(x.to(dtype), t, condition)
    assert fast.dtype == dtype
    try:
        plain = network.to(dtype)(x.to(dtype), t, condition.to(dtype))
    finally:
        network.float()
    assert error(fast, expected) < 1.2 * error(plain, expected) + 1e-3


def test_volumes_kept_in_bfloat16_cost_the_digits_of_bfloat16(network):
    given = arguments()
    expected = exact(network, *given)
    leanest = optimize(network, CPU, torch.float32, MemoryMode.LOWEST)(*given)
    assert leanest.dtype == torch.float32
    assert 1e-5 < error(leanest, expected) < 0.02


def test_a_batch_is_its_elements(network):
    x, t, condition = arguments(batch=2)
    fast = optimize(network, CPU, torch.float32)
    together = fast(x, t, condition)
    for i in range(2):
        assert torch.equal(together[i : i + 1], fast(x[i : i + 1], t[i : i + 1], condition[i : i + 1]))


def test_arguments_are_left_as_they_are(network):
    given = arguments()
    before = [tensor.clone() for tensor in given]
    fast = optimize(network, CPU, torch.float32)
    first = fast(*given)
    assert all(torch.equal(*pair) for pair in zip(given, before, strict=True))
    assert torch.equal(fast(*given), first)


def test_arguments_that_do_not_fit_are_refused(network):
    x, t, condition = arguments()
    fast = optimize(network, CPU, torch.float32)
    with pytest.raises(MedDPMError, match="needs an image"):
        fast(x[:, :1], t, condition)
    with pytest.raises(MedDPMError, match="multiple of"):
        fast(x[..., :-1], t, condition[..., :-1])


def test_moments_of_pieces_are_those_of_the_whole():
    volume = 3 + 5 * torch.randn(1, 32, 11, 16, 96) * torch.arange(1, 33).view(1, -1, 1, 1, 1)
    volume = volume.contiguous(memory_format=torch.channels_last_3d)
    moments = Moments()
    for piece in volume.split([1, 6, 4], dim=2):
        moments.add(piece)
    mean, variance = moments.merged()
    whole = volume.double().transpose(0, 1).flatten(1)
    torch.testing.assert_close(mean.double(), whole.mean(1), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(variance.double(), whole.var(1, correction=0), rtol=1e-5, atol=0)


def test_slabs_cover_every_plane_once():
    frame = Frame(CPU, torch.bfloat16, torch.bfloat16, 5 * 32 * 8 * 8 * 2, keeps_all=True)
    for depth in (1, 2, 3, 7, 64):
        runs = frame.slabs(32, (depth, 8, 8))
        assert [i for a, b in runs for i in range(a, b)] == list(range(depth))
        assert all(b - a <= 5 for a, b in runs)
    assert all(b - a >= 4 for a, b in frame.slabs(4096, (64, 8, 8)))  # never thinner, however small


# Memory ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", MemoryMode)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_the_memory_predicted_is_the_memory_taken(network, dtype, mode, monkeypatch):
    monkeypatch.setattr(slabs, "_CPU_SLAB", 1 << 16)
    monkeypatch.setattr(slabs, "_LEAN_CPU_SLAB", 1 << 15)
    sides = (96, 16, 16)
    x, t, condition = arguments(sides=sides)
    fast = optimize(network, CPU, dtype, mode)
    x, encoded = x.to(dtype), fast.encode_condition(condition)
    with Alive() as alive:
        fast.denoise(x, t, encoded)
    # In so small a network the tables beside the volumes count too.
    assert 0.9 < working_bytes(network, sides, CPU, dtype, mode) / alive.peak < 1.3


def test_it_takes_half_the_memory_of_the_plain_network(network, monkeypatch):
    monkeypatch.setattr(slabs, "_CPU_SLAB", 1 << 15)
    sides = (96, 16, 16)
    x, t, condition = arguments(sides=sides)
    with Alive() as plain:
        network(x, t, condition)
    assert working_bytes(network, sides, CPU, torch.bfloat16) < 0.5 * plain.peak
