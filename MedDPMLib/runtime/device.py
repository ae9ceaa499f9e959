"""Which device and which precision? One choice for every command, with its reason."""

from __future__ import annotations

from dataclasses import dataclass

import psutil
import torch

from MedDPMLib.errors import MedDPMError
from MedDPMLib.runtime.allocator import is_own_process
from MedDPMLib.runtime.host_memory import available_memory
from MedDPMLib.runtime.names import PRECISIONS, SHORT_PRECISIONS
from MedDPMLib.runtime.self_test_cache import self_test_fault
from MedDPMLib.validation import quoted

_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}

#: CPU features that make bfloat16 convolutions faster than float32 ones.
_CPU_BFLOAT16 = ("_is_amx_tile_supported", "_is_avx512_bf16_supported")


@dataclass(frozen=True)
class Execution:
    """Where and how a network runs, and why: ``reason`` is a sentence for the log."""

    device: torch.device
    dtype: torch.dtype
    reason: str

    @property
    def precision(self) -> str:
        return str(self.dtype).removeprefix("torch.")


def choose_execution(device: str | torch.device = "auto", precision: str = "auto") -> Execution:
    """The device ("auto", "cpu", "cuda", "cuda:1", "mps") and precision (one of :data:`PRECISIONS`) to run with.

    "auto" uses a GPU if there is one that computes correctly, and the fastest precision in which the device computes
    correctly, as tested by :mod:`MedDPMLib.runtime.numerics`. An explicit precision is tested too, and used in any
    case; the reason then reports the fault. An explicit device that is missing, and an unknown name, raise
    :class:`MedDPMError`.
    """
    chosen, why = _choose_device(device)
    dtype, how = _choose_dtype(chosen, precision)
    if device == "auto" and chosen.type == "cuda" and dtype == torch.float32:
        fault = self_test_fault(chosen, dtype)  # as of a GPU that this PyTorch has no kernels for
        if fault is not None:
            chosen, why = torch.device("cpu"), f"on the CPU, because {fault} {why}"
            dtype, how = _choose_dtype(chosen, precision)
    return Execution(chosen, dtype, f"{why}; {how}")


def _choose_device(device: str | torch.device) -> tuple[torch.device, str]:
    if device == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda"), f"on {torch.cuda.get_device_name()}"
        return torch.device("cpu"), "on the CPU, because PyTorch sees no CUDA device"
    try:
        chosen = torch.device(device)
    except RuntimeError as error:
        raise MedDPMError(f"there is no device {quoted(device)}: use auto, cpu, cuda, cuda:1 or mps") from error
    if chosen.type == "cuda" and not torch.cuda.is_available():
        raise MedDPMError(
            f"the device {quoted(device)} cannot be used, because PyTorch sees no CUDA device: use cpu or auto"
        )
    if chosen.type == "cuda" and (chosen.index or 0) >= torch.cuda.device_count():
        raise MedDPMError(
            f"there is no device {quoted(device)}: this machine has {torch.cuda.device_count()} CUDA device(s)"
        )
    if chosen.type == "mps" and not torch.backends.mps.is_available():
        raise MedDPMError(
            f"the device {quoted(device)} cannot be used, because PyTorch sees no Apple GPU: use cpu or auto"
        )
    if chosen.type not in ("cpu", "cuda", "mps"):
        raise MedDPMError(f"the device {quoted(device)} is not supported: use auto, cpu, cuda, cuda:1 or mps")
    return chosen, f"on {chosen}, as requested"


def _choose_dtype(device: torch.device, precision: str) -> tuple[torch.dtype, str]:
    name = SHORT_PRECISIONS.get(precision, precision)
    if name in _DTYPES:
        if device.type == "cpu" and name == "float16":
            raise MedDPMError("float16 is not computed on the CPU: use bfloat16, float32 or auto")
        fault = self_test_fault(device, _DTYPES[name])
        return _DTYPES[name], f"in {name}, as requested" + (f", although {fault} in it on this device" if fault else "")
    if name != "auto":
        raise MedDPMError(f"there is no precision {quoted(precision)}: use {', '.join(PRECISIONS)}")
    faults: list[str] = []
    for dtype, why in _fast_dtypes(device):
        fault = self_test_fault(device, dtype)
        if fault is None:
            return dtype, "; ".join([f"in {str(dtype).removeprefix('torch.')}, {why}", *faults])
        faults.append(f"not in {str(dtype).removeprefix('torch.')}, because {fault} in it on this device")
    if faults:
        return torch.float32, "; ".join(["in float32", *faults])
    return torch.float32, f"in float32, because this {device.type.upper()} has no fast bfloat16"


def _fast_dtypes(device: torch.device) -> list[tuple[torch.dtype, str]]:
    """The types in which ``device`` is faster than in float32, the best first, each with the reason."""
    if device.type == "cuda":
        if torch.cuda.get_device_capability(device) < (8, 0):
            return [(torch.float16, "because this GPU has no fast bfloat16")]
        return [(torch.bfloat16, "which this GPU computes fast"), (torch.float16, "which this GPU computes fast")]
    if device.type == "cpu" and any(getattr(torch.cpu, name, bool)() for name in _CPU_BFLOAT16):
        return [(torch.bfloat16, "which this CPU computes fast")]
    return []


def free_memory(device: torch.device) -> int:
    """Bytes that are free on ``device`` now."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    return available_memory()


def held_memory(device: torch.device) -> int:
    """Bytes on ``device`` that this process has already allocated and a run can reuse.

    In one of MedDPM's own processes that is everything it has allocated; in another program, on a GPU what PyTorch has
    reserved and nothing uses, on the CPU nothing.
    """
    if device.type == "cuda":
        used = 0 if is_own_process() else torch.cuda.memory_allocated(device)
        return torch.cuda.memory_reserved(device) - used
    return psutil.Process().memory_info().rss if is_own_process() else 0
