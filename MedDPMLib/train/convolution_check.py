"""Does this PyTorch compute 16-bit convolutions correctly on this device?

Several released versions did not: forward with cuDNN 9.10.2, the gradient of the weights on CPUs with volumes of a few
voxels. Such faults are silent, so a quick test is done once before the first step.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from MedDPMLib.errors import MedDPMError

#: A single volume has no memory layout of its own, and can be correct where others are not.
_BATCH, _CHANNELS = 2, 16
#: Rounding to bfloat16 makes 0.003.
_TOLERANCE = 0.03


def check_convolution(device: torch.device, dtype: torch.dtype, shape: Sequence[int]) -> None:
    """Raises :class:`MedDPMError` if a convolution in ``dtype`` is not that of float32, on ``shape`` (D, H, W)."""
    if dtype == torch.float32:
        return
    generator = torch.Generator().manual_seed(0)
    sizes = [(_BATCH, _CHANNELS, *shape), (_CHANNELS, _CHANNELS, 3, 3, 3), (_CHANNELS,), (_BATCH, _CHANNELS, *shape)]
    x, weight, bias, gradient = (torch.randn(size, generator=generator).to(device, dtype) for size in sizes)
    expected = _convolved(x, weight, bias, gradient, torch.float32)
    for _ in range(5):  # reading uninitialized memory does not give a wrong result every time
        spoilt = [torch.full((2**n,), torch.nan, device=device, dtype=dtype) for n in range(6, 21)]
        del spoilt
        for found, right in zip(_convolved(x, weight, bias, gradient, dtype), expected, strict=True):
            if not (found.float() - right).norm() <= _TOLERANCE * right.norm():
                sides = " x ".join(map(str, reversed(shape)))
                raise MedDPMError(
                    f"this PyTorch ({torch.__version__}) computes convolutions of {sides} voxels, the network's"
                    f" coarsest, wrongly in {str(dtype).removeprefix('torch.')} on {device}: use --precision float32,"
                    " a larger grid or patch, or another version of PyTorch"
                )


def _convolved(x: Tensor, weight: Tensor, bias: Tensor, gradient: Tensor, dtype: torch.dtype) -> list[Tensor]:
    """The result and the gradients."""
    last = torch.channels_last_3d
    inputs = [value.to(dtype, copy=True, memory_format=last) for value in (x, weight)] + [bias.to(dtype, copy=True)]
    for value in inputs:
        value.requires_grad_()
    result = nn.functional.conv3d(*inputs, padding=1)
    gradient = gradient.to(dtype, memory_format=last)
    return [result.detach(), *torch.autograd.grad(result, inputs, gradient)]
