"""How fast could it be? The throughput of a large matrix product, and the operations of a step."""

from __future__ import annotations

import time
from collections.abc import Mapping

import torch
from torch.utils.flop_counter import FlopCounterMode

from MedDPMLib.networks import build_network

#: Sides of the matrices: large enough that larger ones are not faster.
_SIDE = {"cpu": 2048, "cuda": 8192, "mps": 4096}
#: Long enough that other work on the machine slows this measurement as it slows the steps.
_SECONDS = 0.3


class PeakThroughput:
    """Measures how many floating-point operations per second ``device`` reaches in a large matrix product."""

    def __init__(self, device: torch.device, side: int | None = None) -> None:
        self.device = device
        side = side or _SIDE[device.type]
        self._matrices = {
            "bfloat16": torch.randn(side, side, device=device).bfloat16(),
            "float32": torch.randn(side // 2, side // 2, device=device),  # slower: a smaller one takes as long
        }
        if device.type != "cpu":
            self._matrices["float16"] = torch.randn(side, side, device=device).half()
        self.measure()  # the first product of a process takes longer

    def measure(self) -> dict[str, float]:
        """FLOP/s by precision ("bfloat16", "float32", on a GPU "float16"); "highest" is the peak throughput.

        "per_cpu_second" is the highest one per second of processor time, summed over all cores: on a machine that also
        does other work, this is what the cores can reach.
        """
        rates = {name: self._rates(matrix) for name, matrix in self._matrices.items()}
        by_clock = {name: rate for name, (rate, _) in rates.items()}
        highest = max(by_clock.values())
        return {**by_clock, "highest": highest, "per_cpu_second": max(rate for _, rate in rates.values())}

    def _rates(self, matrix: torch.Tensor) -> tuple[float, float]:
        done, started, cpu_started = 0, time.perf_counter(), time.process_time()
        while True:
            torch.mm(matrix, matrix)
            synchronize(self.device)
            done += 1
            seconds, cpu_seconds = time.perf_counter() - started, time.process_time() - cpu_started
            if seconds > _SECONDS:
                flops = done * 2 * len(matrix) ** 3
                return flops / seconds, flops / cpu_seconds


def synchronize(device: torch.device) -> None:
    """Waits until ``device`` has finished its queued work."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()


def step_flops(description: Mapping[str, object], shape: tuple[int, int, int], *, encoded: bool) -> int:
    """Floating-point operations of one step of the described network on a grid (D, H, W), in products.

    Convolutions, matrix products and attention are counted, a multiplication and an addition as two. With ``encoded``
    the condition's share is excluded, as in every step after the first. Nothing is computed: all tensors are on
    PyTorch's meta device.
    """
    with torch.device("meta"), torch.no_grad():
        network = build_network(description).eval()
        x = torch.empty(1, description["image_channels"], *shape)
        condition = torch.empty(1, description["condition_channels"], *shape)
        t = torch.zeros(1, dtype=torch.int64)
        condition = network.encode_condition(condition)
        counter = FlopCounterMode(display=False)
        with counter:
            if encoded:
                network.denoise(x, t, condition)
            else:
                network(x, t, torch.empty(1, description["condition_channels"], *shape))
    return counter.get_total_flops()
