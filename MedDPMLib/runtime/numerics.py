"""Does this device compute correctly in this precision?

Libraries have shipped half-precision 3D convolutions with silently wrong results. So before a device is used in
bfloat16 or float16, the operations of the networks are run once on a small block and compared with float32 on the CPU.
This is quick; it cannot find faults that occur only at certain sizes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from MedDPMLib.runtime.moments import channel_moments

#: In epsilons of the precision, root mean square. Rounding a right result leaves 0.21, attention, which rounds on the
#: way too, 0.28; so there is room for other orders of summation, and what is wrong is wrong by far more.
TOLERANCE = 1
#: The same in float32, relative: NVIDIA's convolutions round the factors to ten bits (TF32).
_TF32 = 2**-10
#: How far a fast path may be from the simple one in float32, relative.
FLOAT32_TOLERANCE = 1e-5

_SIDE = 8

#: Name, channels in and out, kernel, stride and padding of each class of convolution in the networks.
_CONVOLUTIONS = (
    ("the convolution of a volume", 64, 64, 3, 1, (1, 1, 1)),
    ("the convolution of a slab", 96, 64, 3, 1, (0, 1, 1)),
    ("the convolution of few channels", 3, 64, 3, 1, (1, 1, 1)),
    ("the convolution to one channel", 64, 1, 3, 1, (1, 1, 1)),
    ("the convolution to four channels", 64, 4, 3, 1, (1, 1, 1)),
    ("the convolution that halves a volume", 64, 64, 3, 2, (1, 1, 1)),
    ("the convolution that halves a slab", 64, 64, 3, 2, (0, 1, 1)),
    ("the convolution of blocks", 48, 80, 2, 2, (0, 0, 0)),
    ("the convolution of single voxels", 128, 64, 1, 1, (0, 0, 0)),
)

Convolve = Callable[..., Tensor]


@torch.no_grad()
def find_fault(device: torch.device, dtype: torch.dtype, convolve: Convolve = F.conv3d) -> str | None:
    """What ``device`` computes wrongly, or not at all, in ``dtype``, as a part of a sentence; None if nothing.

    ``convolve`` takes what ``torch.nn.functional.conv3d`` takes.
    """
    tolerance = _TF32 if dtype == torch.float32 else TOLERANCE * torch.finfo(dtype).eps
    for name, operation, tensors in _trials(convolve):
        rounded = [tensor.to(dtype) for tensor in tensors]
        expected = operation(*[tensor.float() for tensor in rounded])
        fault = fault_of(name, operation, rounded, device, expected, tolerance, RuntimeError)
        if fault is not None:
            return fault
    return None


def fault_of(
    name: str,
    operation: Callable[..., Tensor],
    tensors: Sequence[Tensor],
    device: torch.device,
    expected: Tensor,
    tolerance: float,
    failures: type[Exception],
) -> str | None:
    """What is wrong with ``operation`` of ``tensors`` on ``device``, as a part of a sentence; None if nothing.

    ``failures`` is what it raises where it cannot be computed.
    """
    try:
        found = operation(*[_channels_last(tensor.to(device)) for tensor in tensors]).float().cpu()
    except torch.OutOfMemoryError:
        raise  # what is in the way now says nothing of the device
    except failures as error:
        return f"{name} fails ({str(error):.80})"
    difference = relative_error(found, expected)
    return None if difference < tolerance else f"{name} is wrong by {difference:.0%}"  # NaN is no small difference


def relative_error(found: Tensor, expected: Tensor) -> float:
    """The root mean square of their difference over that of ``expected``, computed in float32."""
    return float((found.float() - expected.float()).norm() / expected.float().norm())


def _trials(convolve: Convolve) -> Iterator[tuple[str, Callable[..., Tensor], list[Tensor]]]:
    """Name, operation and arguments of each trial. Float32, of about unit variance, the same every time."""
    generator = torch.Generator().manual_seed(0)

    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator)

    for name, inputs, outputs, kernel, stride, padding in _CONVOLUTIONS:
        weight = draw(outputs, inputs, kernel, kernel, kernel) / (inputs * kernel**3) ** 0.5
        volume = draw(1, inputs, _SIDE, _SIDE, _SIDE)
        yield name, _convolution(convolve, stride, padding), [volume, weight, draw(outputs)]
    volume = draw(1, 64, _SIDE, _SIDE, _SIDE)
    yield "normalization by given moments", _normalize, [volume]
    yield "normalization of groups", lambda x: F.group_norm(x, 32), [volume]
    yield "the SiLU function", F.silu, [volume]
    yield "interpolation", lambda x: F.interpolate(x, scale_factor=2, mode="trilinear"), [volume]
    yield "repetition", lambda x: F.interpolate(x, scale_factor=2.0, mode="nearest"), [volume]
    yield "mean and variance", lambda x: torch.stack(channel_moments(x)), [volume]
    yield "attention", F.scaled_dot_product_attention, [draw(1, 1, 128, 256) for _ in range(3)]
    yield "the product of matrices", F.linear, [draw(128, 64), draw(192, 64) / 8, draw(192)]


def _convolution(convolve: Convolve, stride: int, padding: tuple[int, ...]) -> Callable[..., Tensor]:
    return lambda x, weight, bias: convolve(x, weight, bias, stride, padding)


def _normalize(x: Tensor) -> Tensor:
    moments = torch.linspace(0.5, 2, x.shape[1], device=x.device)
    return F.batch_norm(x, moments, moments, moments, moments, False, 0.0, 1e-5)


def _channels_last(tensor: Tensor) -> Tensor:
    return tensor.contiguous(memory_format=torch.channels_last_3d) if tensor.ndim == 5 else tensor
