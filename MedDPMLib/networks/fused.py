"""Can normalization and SiLU be one kernel on this device?"""

from __future__ import annotations

import logging
from collections.abc import Callable
from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor

from MedDPMLib.runtime.numerics import FLOAT32_TOLERANCE, TOLERANCE, fault_of

_log = logging.getLogger(__name__)

#: The first compute capability that Triton has code for.
_TRITON_SINCE = (7, 0)

Fused = Callable[[Tensor, Tensor, Tensor, Tensor, Tensor, float], Tensor]


@lru_cache
def fused_normalization(device: torch.device, dtype: torch.dtype) -> Fused | None:
    """:func:`MedDPMLib.networks.triton_kernels.normalize_silu` if ``device`` computes it correctly in ``dtype``.

    Otherwise None, and the log says why. Tested once in a process.
    """
    if device.type != "cuda":
        return None
    # On an older GPU the compiler might end the process instead of raising something.
    if torch.version.cuda and torch.cuda.get_device_capability(device) < _TRITON_SINCE:
        _log.info("normalization and SiLU are two kernels, because Triton does not support this GPU")
        return None
    try:
        from MedDPMLib.networks.triton_kernels import normalize_silu
    except Exception as error:  # it is missing, or broken in whatever way
        _log.info("normalization and SiLU are two kernels, because Triton is not installed (%s)", error)
        return None
    fault = find_fusion_fault(device, dtype, normalize_silu)
    if fault is not None:
        _log.warning("normalization and SiLU are two kernels, because %s in %s", fault, dtype)
        return None
    return normalize_silu


@torch.no_grad()
def find_fusion_fault(device: torch.device, dtype: torch.dtype, normalize_silu: Fused) -> str | None:
    """What ``normalize_silu`` computes wrongly, or not at all, on ``device`` in ``dtype``; None if nothing."""
    generator = torch.Generator().manual_seed(0)
    # The values fill no whole number of blocks.
    volume = torch.randn(1, 72, 5, 6, 7, generator=generator).to(dtype)
    numbers = [0.5 + torch.rand(72, generator=generator) for _ in range(4)]
    expected = F.silu(F.batch_norm(volume.float(), *numbers, False, 0.0, 1e-5))
    tolerance = FLOAT32_TOLERANCE if dtype == torch.float32 else TOLERANCE * torch.finfo(dtype).eps

    def operation(*tensors: Tensor) -> Tensor:
        return normalize_silu(*tensors, 1e-5)

    # No compiler, an unknown GPU: whatever it raises, PyTorch's two kernels are there.
    return fault_of("the one kernel", operation, [volume, *numbers], device, expected, tolerance, Exception)
