"""Volumes that are computed slab by slab: a slab is a run of planes along D.

A 3 x 3 x 3 kernel needs one plane more on each side of a slab. Normalization and activation are applied to the slab
just before its convolution, while it is still in the cache, and are never stored. A concatenation is never
materialized: each part has a convolution of its own.

GroupNorm needs mean and variance of the whole volume; they are computed in float32 for each slab and merged exactly.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from MedDPMLib.networks.fused import fused_normalization
from MedDPMLib.networks.memory_mode import MemoryMode
from MedDPMLib.runtime.moments import Moments

#: Bytes of a slab. On the CPU it fits into the last cache together with its convolution; a GPU needs larger ones.
_CPU_SLAB, _GPU_SLAB = 4 << 20, 96 << 20
#: The same where memory counts more.
_LEAN_CPU_SLAB, _LEAN_GPU_SLAB = 2 << 20, 32 << 20
#: With fewer planes, the neighboring ones, which are normalized twice, would take considerable time.
LEAST_PLANES = 4


@dataclass(frozen=True)
class Frame:
    """Where and in which pieces volumes are made."""

    device: torch.device
    dtype: torch.dtype
    #: The type of volumes that are kept.
    storage: torch.dtype
    #: About the size of a slab of one volume in ``dtype``; it has at least :data:`LEAST_PLANES`.
    slab_bytes: int
    #: Whether the two volumes of full size that a single convolution makes of small ones, the first and the last
    #: that is upsampled, are kept; else they are made anew where they are needed.
    keeps_all: bool

    @classmethod
    def of(cls, device: torch.device, dtype: torch.dtype, mode: MemoryMode) -> Frame:
        fast = mode is MemoryMode.FAST
        if device.type == "cpu":
            slab_bytes = _CPU_SLAB if fast else _LEAN_CPU_SLAB
        else:
            slab_bytes = _GPU_SLAB if fast else _LEAN_GPU_SLAB
        storage = torch.bfloat16 if mode is MemoryMode.LOWEST and dtype.itemsize > 2 else dtype
        return cls(device, dtype, storage, slab_bytes, keeps_all=fast)

    def slabs(self, channels: int, sides: Sequence[int]) -> list[tuple[int, int]]:
        """The planes [a, b) of each slab of a volume."""
        depth, height, width = sides
        planes = max(LEAST_PLANES, self.slab_bytes // (channels * height * width * self.dtype.itemsize))
        count = -(-depth // planes)
        return [(depth * i // count, depth * (i + 1) // count) for i in range(count)]

    def weight(self, tensor: Tensor) -> Tensor:
        """A convolution's weight for this device, in the layout of the volumes."""
        return tensor.detach().to(self.device, self.dtype).contiguous(memory_format=torch.channels_last_3d)

    def exact(self, tensor: Tensor) -> Tensor:
        """Numbers for each channel; there are so few that they stay float32."""
        return tensor.detach().to(self.device, torch.float32)


class FeatureVolume:
    """A volume (1, ``channels``, *``sides``): ``planes(a, b)`` are its planes [a, b), to be read only.

    ``mean`` and ``variance`` (channels,) are those of each channel; ``values`` the whole volume, if it is kept.
    """

    def __init__(
        self,
        channels: int,
        sides: tuple[int, ...],
        planes: Callable[[int, int], Tensor],
        mean: Tensor,
        variance: Tensor,
        values: Tensor | None = None,
    ) -> None:
        self.channels, self.sides, self.planes = channels, sides, planes
        self.mean, self.variance, self.values = mean, variance, values

    def mapped(self, function: Callable[[Tensor], Tensor], a: int, b: int) -> Tensor:
        """``function``, which treats every voxel alone and returns a tensor of its own, of the planes [a, b)."""
        return function(self.planes(a, b))


class Repeated(FeatureVolume):
    """``source`` on a grid of twice the size, each voxel repeated; never stored. Its moments are the source's."""

    def __init__(self, source: FeatureVolume) -> None:
        sides = tuple(2 * side for side in source.sides)
        super().__init__(source.channels, sides, self._planes, source.mean, source.variance)
        self.source = source

    def _planes(self, a: int, b: int) -> Tensor:
        return self.mapped(lambda planes: planes, a, b)

    def mapped(self, function: Callable[[Tensor], Tensor], a: int, b: int) -> Tensor:
        first = a // 2
        planes = self.source.mapped(function, first, -(-b // 2))
        return F.interpolate(planes, scale_factor=2.0, mode="nearest")[:, :, a - 2 * first : b - 2 * first]


def keep(frame: Frame, values: Tensor, mean: Tensor, variance: Tensor) -> FeatureVolume:
    """The volume that is there: ``values`` (1, C, D, H, W) with the moments of each channel."""
    return FeatureVolume(
        values.shape[1],
        tuple(values.shape[2:]),
        lambda a, b: values[:, :, a:b].to(frame.dtype),
        mean,
        variance,
        values,
    )


def make(
    frame: Frame,
    channels: int,
    sides: tuple[int, ...],
    piece: Callable[[int, int], Tensor],
    into: Tensor | None = None,
) -> FeatureVolume:
    """The volume whose planes [a, b) are ``piece(a, b)``, in the memory ``into`` if that is given."""
    moments = Moments()
    for a, b in frame.slabs(channels, sides):
        slab = piece(a, b).to(frame.storage)
        moments.add(slab)
        if into is None and b - a == sides[0]:
            into = slab
            break
        if into is None:
            into = torch.empty(
                (1, channels, *sides),
                dtype=frame.storage,
                device=frame.device,
                memory_format=torch.channels_last_3d,
            )
        into[:, :, a:b] = slab
    return keep(frame, into, *moments.merged())


def remake(frame: Frame, channels: int, sides: tuple[int, ...], piece: Callable[[int, int], Tensor]) -> FeatureVolume:
    """The volume of :func:`make` without its memory: its planes are made whenever they are asked for."""
    moments = Moments()
    for a, b in frame.slabs(channels, sides):
        moments.add(piece(a, b))
    return FeatureVolume(channels, sides, piece, *moments.merged())


class Convolution:
    """A convolution of a concatenation as the sum of one for each of its ``parts`` (their numbers of channels)."""

    def __init__(self, conv: nn.Conv3d, frame: Frame, parts: Sequence[int] | None = None) -> None:
        self.weights = [frame.weight(weight) for weight in conv.weight.split(parts or [conv.in_channels], dim=1)]
        self.bias = frame.exact(conv.bias)
        self.stride = conv.stride
        self.width = conv.out_channels

    def __call__(self, parts: Iterable[Tensor], padding: int, shift: Tensor | None = None) -> Tensor:
        """With ``padding`` planes of zeros at both ends of D; ``shift`` (width,) is added to the output. Parts that are
        only made when it is their turn are gone after it.
        """
        made = None
        bias = self.bias if shift is None else self.bias + shift
        bias = bias.to(self.weights[0].dtype)
        around = (self.weights[0].shape[-1] - 1) // 2  # a kernel of 2 goes from block to block
        for part, weight in zip(parts, self.weights, strict=True):
            share = F.conv3d(part, weight, bias, self.stride, (padding, around, around))
            del part
            made, bias = share if made is None else made.add_(share), None
        return made

    def voxelwise(self, parts: Sequence[FeatureVolume], a: int, b: int, onto: Tensor | None = None) -> Tensor:
        """The convolution of planes [a, b) with a kernel of one voxel, added to ``onto`` if that is given."""
        bias = self.bias.to(self.weights[0].dtype)
        for part, weight in zip(parts, self.weights, strict=True):
            share = part.mapped(lambda x: F.conv3d(x, weight, bias), a, b)  # noqa: B023
            onto, bias = share if onto is None else onto.add_(share), None
        return onto


class Norm:
    """GroupNorm over the concatenation of ``parts`` (their numbers of channels), from their channels' moments.

    If it is ``activated``, SiLU follows.
    """

    def __init__(self, norm: nn.GroupNorm, frame: Frame, parts: Sequence[int], *, activated: bool) -> None:
        self.weights = frame.exact(norm.weight).split(parts)
        self.biases = frame.exact(norm.bias).split(parts)
        self.groups, self.eps = norm.num_groups, norm.eps
        self.activated = activated
        self.fused = fused_normalization(frame.device, frame.dtype) if activated else None

    def __call__(self, parts: Sequence[FeatureVolume]) -> list[Callable[[Tensor], Tensor]]:
        """For each part the function that normalizes its planes and returns a new tensor."""
        means = torch.cat([part.mean for part in parts]).view(self.groups, -1)
        variances = torch.cat([part.variance for part in parts]).view(self.groups, -1)
        mean = means.mean(1, keepdim=True)
        variance = (variances + (means - mean).square()).mean(1, keepdim=True).expand_as(means).flatten()
        mean = mean.expand_as(means).flatten()
        sizes = [part.channels for part in parts]

        def normalizer(mean: Tensor, variance: Tensor, weight: Tensor, bias: Tensor) -> Callable[[Tensor], Tensor]:
            def normalize(planes: Tensor) -> Tensor:
                if self.fused:
                    return self.fused(planes, mean, variance, weight, bias, self.eps)
                # With given moments this is one multiply-add for each value, in float32 inside.
                normed = F.batch_norm(planes, mean, variance, weight, bias, False, 0.0, self.eps)
                return F.silu(normed, inplace=True) if self.activated else normed

            return normalize

        return [
            normalizer(*each)
            for each in zip(mean.split(sizes), variance.split(sizes), self.weights, self.biases, strict=True)
        ]


class NormedConvolution:
    """GroupNorm, SiLU and a 3 x 3 x 3 convolution."""

    def __init__(self, norm: nn.GroupNorm, conv: nn.Conv3d, frame: Frame, parts: Sequence[int]) -> None:
        self.norm = Norm(norm, frame, parts, activated=True)
        self.convolution = Convolution(conv, frame, parts)
        self.width = conv.out_channels

    def __call__(self, parts: Sequence[FeatureVolume], shift: Tensor | None = None) -> Callable[[int, int], Tensor]:
        """What makes planes [a, b) of the output."""
        depth = parts[0].sides[0]
        makers = [partial(part.mapped, normalize) for part, normalize in zip(parts, self.norm(parts), strict=True)]

        def piece(a: int, b: int) -> Tensor:
            slabs = (with_neighbors(maker, depth, a, b) for maker in makers)
            return self.convolution(slabs, padding_left(depth, a, b), shift)

        return piece


class Residual:
    """Two normed convolutions of a concatenation, and ``shortcut`` (None: the input itself) beside them; ``time`` makes
    of the timestep's embedding what is added between the two."""

    def __init__(
        self,
        first: tuple[nn.GroupNorm, nn.Conv3d],
        time: nn.Linear,
        second: tuple[nn.GroupNorm, nn.Conv3d],
        shortcut: nn.Conv3d | None,
        frame: Frame,
        parts: Sequence[int],
    ) -> None:
        self.first = NormedConvolution(*first, frame, parts)
        self.width = self.first.width
        self.second = NormedConvolution(*second, frame, [self.width])
        self.shift = copy.deepcopy(time).to(frame.device, torch.float32)
        self.shortcut = None if shortcut is None else Convolution(shortcut, frame, parts)

    def __call__(self, frame: Frame, parts: Sequence[FeatureVolume], time: Tensor, reuse: bool) -> FeatureVolume:
        """``reuse`` says that the memory of the parts may be overwritten."""
        sides = parts[0].sides
        between = make(frame, self.width, sides, self.first(parts, self.shift(time)))
        second = self.second([between])

        def piece(a: int, b: int) -> Tensor:
            made = second(a, b)
            if self.shortcut is None:
                return made.add_(parts[0].planes(a, b))
            return self.shortcut.voxelwise(parts, a, b, onto=made)

        # The second pass reads of the parts only the planes that it is making: these may take the place of a part.
        fitting = [part.values for part in parts if reuse and part.values is not None and part.channels == self.width]
        return make(frame, self.width, sides, piece, fitting[0] if fitting else None)


def with_neighbors(planes: Callable[[int, int], Tensor], depth: int, a: int, b: int) -> Tensor:
    """Planes [a - 1, b + 1) of a volume of ``depth`` planes; what lies beyond it is zero, or left to the padding."""
    below, above = int(a == 0), int(b == depth)
    slab = planes(a - 1 + below, b + 1 - above)
    return F.pad(slab, (0, 0, 0, 0, below, above)) if below != above else slab


def padding_left(depth: int, a: int, b: int) -> int:
    """The planes of zeros that :func:`with_neighbors` leaves to a convolution: of a whole volume, all of them."""
    return int(a == 0 and b == depth)
