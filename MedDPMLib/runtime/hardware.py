"""Which machine was it, and what else was running on it? Timings mean nothing without this."""

from __future__ import annotations

import os
import platform
import sys

import psutil
import torch

from MedDPMLib.runtime.host_memory import available_memory
from MedDPMLib.runtime.versions import versions

#: CPU features that decide how fast a precision is, and how PyTorch is asked for them.
_FEATURES = {
    "avx2": "_is_avx2_supported",
    "avx512": "_is_avx512_supported",
    "avx512_bf16": "_is_avx512_bf16_supported",
    "amx_bf16": "_is_amx_tile_supported",
}


def describe_machine() -> dict:
    """Processor, its features, GPUs, memory and versions; plain data for JSON."""
    memory = psutil.virtual_memory()
    return {
        "processor": processor(),
        "cores": psutil.cpu_count(logical=False) or os.cpu_count(),
        "logical_cores": os.cpu_count(),
        "features": cpu_features(),
        "threads": torch.get_num_threads(),
        "memory_bytes": memory.total,
        "gpus": [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())],
        "cuda": torch.version.cuda,
        "cudnn": torch.backends.cudnn.version() if torch.backends.cudnn.is_available() else None,
        "versions": versions(),
    }


def devices() -> list[str]:
    """The devices to measure on: the processor, and the GPU if there is one."""
    there = {"cpu": True, "cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    return [device for device, is_there in there.items() if is_there]


def load() -> dict:
    """The current load of the machine: ``busy`` is the share of all cores in use over half a second, ``average`` the
    load average of the last minute (None on Windows), ``free_bytes`` the free memory."""
    return {
        "busy": psutil.cpu_percent(interval=0.5) / 100,
        "average": os.getloadavg()[0] if hasattr(os, "getloadavg") else None,
        "free_bytes": available_memory(),
    }


def peak_memory(device: torch.device) -> int:
    """The peak memory of this process in bytes: on a GPU what PyTorch has reserved, otherwise resident memory."""
    if device.type == "cuda":
        return torch.cuda.max_memory_reserved(device)
    if sys.platform == "linux":
        # Not getrusage: its peak survives from the process that started this one.
        with open("/proc/self/status") as status:
            return next(int(line.split()[1]) * 1024 for line in status if line.startswith("VmHWM"))
    if sys.platform == "win32":
        return psutil.Process().memory_info().peak_wset
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss  # in bytes on macOS


def cpu_features() -> list[str]:
    """Those of the processor's features that decide how fast a precision is."""
    return [name for name, asked in _FEATURES.items() if getattr(torch.cpu, asked, bool)()]


def processor() -> str:
    """What the processor calls itself."""
    try:
        with open("/proc/cpuinfo") as info:
            return next(line.partition(":")[2].strip() for line in info if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()
