"""Normalization by given moments and SiLU in one pass over memory, for CUDA.

PyTorch reads and writes a volume twice for them, and it is memory that a GPU waits for there. The kernel is in Triton,
which comes with PyTorch for CUDA on Linux; :func:`MedDPMLib.networks.fused.fused_normalization` finds out whether it
can be used.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

#: Values that one instance of the kernel computes.
_BLOCK = 1024


def normalize_silu(planes: Tensor, mean: Tensor, variance: Tensor, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
    """SiLU of (x - ``mean``) / sqrt(``variance`` + ``eps``) ``weight`` + ``bias`` for ``planes`` x (1, C, D, H, W).

    The numbers of each channel are (C,) float32, and so is all arithmetic; the result has the type of ``planes`` and
    is channels last, as they are or are made first.
    """
    planes = planes.contiguous(memory_format=torch.channels_last_3d)
    made = torch.empty_like(planes)
    scale = weight * torch.rsqrt(variance + eps)
    values, channels = planes.numel(), planes.shape[1]
    with torch.cuda.device_of(planes):
        _normalize_silu[(triton.cdiv(values, _BLOCK),)](
            planes, made, mean.contiguous(), scale, bias.contiguous(), values, channels, _BLOCK
        )
    return made


@triton.jit
def _normalize_silu(x, made, mean, scale, bias, values, channels: tl.constexpr, block: tl.constexpr):
    # The remainder of 64 bits is slow, so only the first value's is taken of them.
    first = tl.program_id(0).to(tl.int64) * block
    channel = ((first % channels).to(tl.int32) + tl.arange(0, block)) % channels
    at = first + tl.arange(0, block)
    inside = at < values
    y = tl.load(x + at, mask=inside, other=0.0).to(tl.float32)
    y = (y - tl.load(mean + channel)) * tl.load(scale + channel) + tl.load(bias + channel)
    tl.store(made + at, (y / (1.0 + tl.exp(-y))).to(made.dtype.element_ty), mask=inside)
