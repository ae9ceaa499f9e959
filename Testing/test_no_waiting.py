"""A step on another device touches nothing on the host: it would be waited for, and no CUDA graph could hold it.

PyTorch's "meta" device stands for the other one: it has no values, so whoever asks for one fails.
"""

from __future__ import annotations

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from MedDPMLib.diffusion.names import METHODS
from MedDPMLib.diffusion.samplers import sample
from MedDPMLib.diffusion.schedule import make_schedule
from MedDPMLib.networks import build_network
from MedDPMLib.networks.optimized import memory_modes, optimize

META = torch.device("meta")
DESCRIPTIONS = {
    "published": {"kind": "unet", "base": 32, "multipliers": [1, 2], "blocks": 1, "attention": [2]},
    "cross-attention": {
        "kind": "unet",
        "conditioning": "cross-attention",
        "base": 32,
        "multipliers": [1, 2],
        "blocks": 1,
        "attention": [2],
    },
    "adaptive normalization": {
        "kind": "unet",
        "conditioning": "spade",
        "base": 32,
        "multipliers": [1, 2],
        "blocks": 1,
        "attention": [2],
    },
    "compact": {"kind": "wavelet-unet", "channels": [16, 24]},
    "compact, with places": {"kind": "wavelet-unet", "channels": [16, 24], "place_octaves": 2},
}


class Crossing(TorchDispatchMode):
    """The operations between the two devices: those that see tensors of both, or make one of the other's."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
        made = operation(*args, **(kwargs or {}))
        tensors = [leaf for leaf in tree_leaves((args, kwargs, made)) if isinstance(leaf, torch.Tensor)]
        if len({tensor.device.type for tensor in tensors}) > 1:
            self.found.append(str(operation))
        return made


@pytest.mark.parametrize("lean", [False, True])
@pytest.mark.parametrize("name", DESCRIPTIONS)
def test_a_step_stays_on_its_device(name, lean):
    network = build_network({"image_channels": 2, "condition_channels": 5, **DESCRIPTIONS[name]}).eval()
    fast = optimize(network, META, torch.bfloat16, memory_modes(network)[-lean])
    assert {tensor.device.type for tensor in (*fast.parameters(), *fast.buffers())} <= {"meta"}
    x, t = torch.empty(1, 2, 16, 16, 16, device=META), torch.zeros(1, dtype=torch.int64, device=META)
    encoded = fast.encode_condition(torch.empty(1, 5, 16, 16, 16, device=META))
    fast.denoise(x, t, encoded)  # the first step may bring what the others use again
    with torch.no_grad(), Crossing() as crossing:
        assert fast.denoise(x, t, encoded).device == META
    assert not crossing.found


@pytest.mark.parametrize("method", METHODS)
def test_the_sampler_brings_noise_and_nothing_else(method):
    def crossings(steps: int) -> int:
        condition = torch.empty(1, 3, 8, 8, 8, device=META)
        with Crossing() as crossing:
            made = sample(
                lambda x, t, condition: x, condition, make_schedule("cosine", 50), shape=(1, 2, 8, 8, 8),
                method=method, steps=steps, generator=torch.Generator().manual_seed(0),
            )  # fmt: skip
        assert made.device == META
        return len(crossing.found)

    of_each_step = (crossings(9) - crossings(4)) / 5
    assert of_each_step == (1 if method == "ddpm" else 0)


def test_what_crosses_is_found():
    with Crossing() as crossing:
        torch.zeros(2).to(META)
    assert crossing.found
    with pytest.raises((NotImplementedError, RuntimeError)):
        torch.empty(1, device=META).item()
