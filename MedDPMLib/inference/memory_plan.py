"""How much memory does a run need, and what is done if less is free?"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from MedDPMLib.errors import OutOfMemory
from MedDPMLib.inference.settings import memory_limit
from MedDPMLib.networks.memory_mode import MemoryMode
from MedDPMLib.networks.optimized import memory_modes, working_bytes
from MedDPMLib.runtime.allocator import keeps_freed_memory
from MedDPMLib.runtime.device import Execution, free_memory, held_memory

if TYPE_CHECKING:
    from MedDPMLib.models.model import Model

#: What PyTorch itself takes of a process once it computes, or of a GPU, with what its allocators leave unused.
_PYTORCH = 800_000_000

#: What a process that keeps freed memory (:mod:`MedDPMLib.runtime.allocator`) holds for each byte in use, gaps and
#: all, where nothing is handed back: at most, measured with the published and the bundled models.
_WITH_GAPS = 1.5

#: Images in float32 that a sampler holds while the network works, and while it takes a step itself.
_IMAGES_BESIDE_NETWORK, _IMAGES_OF_A_STEP = 3, 8


@dataclass(frozen=True)
class MemoryPlan:
    """How a run will use memory: the ``mode`` of its network and the predicted bytes that it ``needs`` at its peak."""

    mode: MemoryMode
    needs: int
    #: How the network is computed, in words: the part of :attr:`sentence` that does not depend on the free memory.
    computation: str
    #: How much memory may be used, in words.
    limit: str

    @property
    def sentence(self) -> str:
        """For the log: what was chosen, and why."""
        return f"about {_gigabytes(self.needs)} at the peak, {self.computation} ({self.limit})"


def plan_memory(model: Model, execution: Execution, *, memory: str = "auto", guided: bool = False) -> MemoryPlan:
    """The fastest plan that fits for a run, ``guided`` or not, before any memory is allocated.

    ``memory`` is "auto" (fit into what is free on the device now), "low" (use as little as possible) or a number of
    gigabytes, "4 GB" (10^9 bytes; on the CPU of the whole process, PyTorch included).

    Raises :class:`OutOfMemory` if no plan fits, with what would, and :class:`MedDPMError` for any other ``memory``.
    """
    limit, what = _limit(memory, execution)
    modes = memory_modes(model.network)
    for mode in modes[-1:] if memory == "low" else modes:
        needs = peak_bytes(model, execution.device, execution.dtype, mode, guided)
        if needs <= limit:
            return MemoryPlan(mode, needs, _computation(mode, execution.dtype), what)
    raise OutOfMemory(not_enough(model, execution, what, guided))


def peak_bytes(
    model: Model,
    device: torch.device,
    dtype: torch.dtype,
    mode: MemoryMode = MemoryMode.FAST,
    guided: bool = False,
) -> int:
    """The predicted peak of a run in bytes: PyTorch, weights (as loaded and as used), condition, images, activations.
    A ``guided`` run has a second, empty condition."""
    card, width = model.card, dtype.itemsize
    voxels = math.prod(card.grid.size)
    described = card.network_description
    weights = sum(parameter.numel() for parameter in model.network.parameters())
    weights *= 4 + width if device.type == "cpu" else width
    condition = described["condition_channels"] * voxels * (4 if model.network.exact_condition else width)
    condition *= 2 if guided else 1
    image = described["image_channels"] * voxels * 4
    working = working_bytes(model.network, card.array_shape, device, dtype, mode)
    if card.draws_by_levels:  # never has whole images or a whole condition beside its bands
        used = weights + working
    else:
        used = weights + condition + max(working + _IMAGES_BESIDE_NETWORK * image, _IMAGES_OF_A_STEP * image)
    gaps = device.type == "cpu" and mode is MemoryMode.FAST and keeps_freed_memory()
    return _PYTORCH + (math.ceil(_WITH_GAPS * used) if gaps else used)


def not_enough(model: Model, execution: Execution, found: str, guided: bool = False) -> str:
    """The message for a run that does not fit, with what would; ``found`` is the evidence."""
    least = memory_modes(model.network)[-1]
    needs = ", ".join(
        f"{_gigabytes(peak_bytes(model, execution.device, dtype, least, guided))}"
        f" in {str(dtype).removeprefix('torch.')}"
        for dtype in (torch.bfloat16, torch.float32)
    )
    return (
        f"there is not enough memory on {execution.device} for {model.card.name} in {execution.precision} ({found}):"
        f" including PyTorch it needs at least about {needs};"
        " close other programs, choose another precision or device, or a model with a smaller grid"
    )


def _limit(memory: str, execution: Execution) -> tuple[int, str]:
    """How many bytes may be used, also in words."""
    limit = memory_limit(memory)
    if limit is not None:
        return limit, f"{_gigabytes(limit)} are allowed"
    # What this process holds is left from an earlier run, and is reused.
    free = free_memory(execution.device) + held_memory(execution.device)
    return free, f"{_gigabytes(free)} are free"


def _computation(mode: MemoryMode, dtype: torch.dtype) -> str:
    return {
        MemoryMode.FAST: "whole",
        MemoryMode.LOW: "in thin slabs",
        MemoryMode.LOWEST: "in thin slabs" if dtype.itemsize == 2 else "in thin slabs, with volumes kept in bfloat16",
    }[mode]


def _gigabytes(size: float) -> str:
    return f"{size / 1e9:.1f} GB"
