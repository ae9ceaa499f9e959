"""Has this device passed the numerical self-test before, with these very versions? Then it is not run again.

The self-test (:mod:`MedDPMLib.runtime.numerics`) takes about a second, in every process. What passed is noted in the
user's cache folder: a file for each device, precision and set of versions. A fault is never noted, but found again, so
that a temporary one does not stay forever; and if anything is wrong with a note, the test is run.
"""

from __future__ import annotations

import hashlib
import json
import os
from functools import lru_cache
from pathlib import Path

import torch

from MedDPMLib.errors import MedDPMError
from MedDPMLib.runtime import moments, numerics
from MedDPMLib.runtime.files import atomic_write
from MedDPMLib.runtime.hardware import cpu_features, processor
from MedDPMLib.validation import read_json

#: Beginnings of the environment's variables that decide which kernels compute.
_SWITCHES = ("ATEN_", "CUBLAS_", "CUDNN_", "DNNL_", "MKL_", "NVIDIA_TF32", "ONEDNN_", "PYTORCH_", "TORCH_")

_NVIDIA_DRIVER = Path("/proc/driver/nvidia/version")


@lru_cache
def self_test_fault(device: torch.device, dtype: torch.dtype) -> str | None:
    """:func:`MedDPMLib.runtime.numerics.find_fault` of PyTorch's own operations, run at most once in a process; a pass
    is cached on disk."""
    if device.type == "cpu" and dtype == torch.float32:
        return None  # it is what the others are compared with
    try:
        about = _identity(device, dtype)
        note = _folder() / f"{hashlib.sha256(json.dumps(about).encode()).hexdigest()[:32]}.json"
        if _passed(note, about):
            return None
    except (ImportError, OSError, RuntimeError):  # no home, no platformdirs, no source of the trials
        return numerics.find_fault(device, dtype)
    fault = numerics.find_fault(device, dtype)
    if fault is None:
        try:
            with atomic_write(note) as temporary:
                temporary.write_text(json.dumps({**about, "passed": True}, indent=1), encoding="utf-8")
        except MedDPMError:  # no space, or no permission: the test runs again the next time
            pass
    return fault


def _passed(note: Path, about: dict[str, object]) -> bool:
    try:
        return read_json(note.read_bytes(), "the note") == {**about, "passed": True}
    except (OSError, MedDPMError):
        return False


def _identity(device: torch.device, dtype: torch.dtype) -> dict[str, object]:
    """All that the outcome depends on, plain data for JSON."""
    on_cuda = device.type == "cuda"
    trials = b"".join(Path(module.__file__).read_bytes() for module in (numerics, moments))
    return {
        "device": torch.cuda.get_device_name(device) if on_cuda else f"{device.type} of {processor()}",
        "features": cpu_features(),
        "precision": str(dtype),
        "torch": f"{torch.__version__} {torch.version.git_version}",
        "cuda": torch.version.cuda or torch.version.hip,
        "cudnn": torch.backends.cudnn.version() if on_cuda else None,
        "driver": _NVIDIA_DRIVER.read_text() if on_cuda and _NVIDIA_DRIVER.exists() else None,
        "switches": {name: value for name, value in sorted(os.environ.items()) if name.startswith(_SWITCHES)},
        "deterministic": torch.are_deterministic_algorithms_enabled(),
        "trials": hashlib.sha256(trials).hexdigest(),
    }


def _folder() -> Path:
    import platformdirs

    return Path(platformdirs.user_cache_dir("meddpm", appauthor=False)) / "self-test"
