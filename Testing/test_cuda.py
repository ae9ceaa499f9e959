"""The fast paths on a CUDA device: against the plain networks, against each other, and in the predicted memory."""

from __future__ import annotations

import pytest
import torch
from conftest import small_geometry, small_labels
from exactness import arguments, error, exact

from MedDPMLib import generate, load_model
from MedDPMLib.diffusion.names import METHODS
from MedDPMLib.diffusion.samplers import sample
from MedDPMLib.diffusion.schedule import make_schedule
from MedDPMLib.imaging.volume import Volume
from MedDPMLib.networks import build_network
from MedDPMLib.networks.memory_mode import MemoryMode
from MedDPMLib.networks.optimized import memory_modes, optimize, working_bytes
from MedDPMLib.runtime.device import choose_execution

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device")

CUDA = torch.device("cuda")
DESCRIPTIONS = {
    "published": {"kind": "unet", "base": 32, "multipliers": [1, 1, 2], "blocks": 2, "attention": [4]},
    "compact": {"kind": "wavelet-unet", "channels": [16, 24, 32]},
    "compact, with places": {"kind": "wavelet-unet", "channels": [16, 24, 32], "place_octaves": 2},
}


@pytest.fixture(scope="module")
def dtype() -> torch.dtype:
    """What this device computes best in."""
    return choose_execution("cuda").dtype


@pytest.fixture(scope="module", params=DESCRIPTIONS)
def network(request):
    torch.manual_seed(7)
    network = build_network({"image_channels": 2, "condition_channels": 5, **DESCRIPTIONS[request.param]})
    for parameter in network.eval().requires_grad_(False).parameters():
        parameter.add_(torch.randn_like(parameter) * 0.05)
    return network


@pytest.fixture(autouse=True)
def no_tf32(monkeypatch):
    """Convolutions in float32 keep their digits."""
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)


def on_cuda(tensors):
    return [tensor.to(CUDA) for tensor in tensors]


@pytest.mark.parametrize("mode", [MemoryMode.FAST, MemoryMode.LOW])
def test_in_float32_it_is_the_plain_network(network, mode):
    given = arguments(5, batch=2, sides=(24, 16, 8))
    fast = optimize(network, CUDA, torch.float32, mode)
    assert error(fast(*on_cuda(given)).cpu(), exact(network, *given)) < 1e-5


def test_in_half_precision_it_is_about_as_close_as_the_cpu(network, dtype):
    x, t, condition = given = arguments(5, batch=1, sides=(24, 16, 8))
    expected = exact(network, *given)
    on_cpu = optimize(network, torch.device("cpu"), torch.bfloat16)(x.bfloat16(), t, condition)
    x, t, condition = on_cuda(given)
    found = optimize(network, CUDA, dtype)(x.to(dtype), t, condition)
    assert found.dtype == dtype
    assert error(found.cpu(), expected) < 1.5 * error(on_cpu, expected) + 1e-3


@pytest.mark.parametrize("in_float32", [False, True])
def test_replayed_steps_are_the_worked_ones(in_float32, dtype, caplog):
    dtype = torch.float32 if in_float32 else dtype
    network = build_network({"image_channels": 2, "condition_channels": 5, **DESCRIPTIONS["compact"]})
    torch.nn.init.normal_(network.out.weight, std=0.05)
    fast, worked = (optimize(network, CUDA, dtype, mode) for mode in memory_modes(network))
    encoded = fast.encode_condition(torch.randn(1, 5, 32, 32, 32, device=CUDA))
    results = []
    for t in (249, 100, 3, 249, 0):
        x, t = torch.randn(1, 2, 32, 32, 32, device=CUDA), torch.tensor([t], device=CUDA)
        results.append((fast.denoise(x, t, encoded), worked.denoise(x, t, encoded)))
    assert fast._replay._recorded is not None, caplog.text
    for found, expected in results:  # how they are cut differs
        assert error(found, expected) < (1e-5 if in_float32 else 2 * torch.finfo(dtype).eps)


@pytest.mark.parametrize("method", METHODS)
def test_nothing_in_the_loop_waits(network, method, dtype):
    fast = optimize(network, CUDA, dtype)
    condition = torch.randn(1, 5, 16, 16, 16, device=CUDA)
    encoded = fast.encode_condition(condition)
    seen = []

    def denoiser(x, t, _):
        seen.append(t)
        if len(seen) == 4:  # what is done once, at the first steps, may wait
            torch.cuda.set_sync_debug_mode("error")
        return fast.denoise(x.to(dtype), t, encoded)

    try:
        sample(
            denoiser, condition, make_schedule("cosine", 250), shape=(1, 2, 16, 16, 16), method=method, steps=8,
            generator=torch.Generator().manual_seed(0),
        )  # fmt: skip
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_a_volume_is_repeatable_and_near_that_of_the_cpu(small_model, brats):
    mask = Volume(small_labels(brats), small_geometry())
    model, reported = load_model(small_model), []
    first, again, on_cpu = (
        generate(
            model,
            mask,
            seed=4,
            steps=6,
            device=device,
            precision="float32",
            progress=lambda step, *_: reported.append(step),
        )
        for device in ("cuda", "cuda", "cpu")
    )
    for modality in first:
        assert (first[modality].array == again[modality].array).all()
        assert abs(first[modality].array - on_cpu[modality].array).max() < 1e-3
    assert reported == 3 * [1, 2, 3, 4, 5, 6]
    assert first.record["device"].startswith("cuda")


@pytest.mark.parametrize("mode", [MemoryMode.FAST, MemoryMode.LOW])
def test_the_memory_predicted_is_about_what_is_taken(mode, dtype):
    """By a network as wide as the published ones."""
    network = build_network(
        {
            "kind": "unet", "image_channels": 4, "condition_channels": 4, "base": 64, "multipliers": [1, 1, 2],
            "blocks": 2, "attention": [],
        }
    ).requires_grad_(False)  # fmt: skip
    sides = (96, 96, 96)
    fast = optimize(network, CUDA, dtype, mode)
    x, t = torch.randn(1, 4, *sides, device=CUDA).to(dtype), torch.zeros(1, dtype=torch.int64, device=CUDA)
    encoded = fast.encode_condition(torch.randn(1, 4, *sides, device=CUDA))
    fast.denoise(x, t, encoded)
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    fast.denoise(x, t, encoded)
    taken = torch.cuda.max_memory_allocated() - before
    assert 0.5 < taken / working_bytes(network, sides, CUDA, dtype, mode) < 1.3  # libraries take some, too
