"""The published networks for inference: the function of :class:`MedDPMLib.networks.unet.UNet3d`, fast and small.

Volumes are made slab by slab (:mod:`MedDPMLib.networks.slabs`), so nothing but the skips, the input of a block and the
volume between its convolutions is alive, beside one slab. The timestep's share is constant over a volume, so it goes
into a convolution's bias.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from MedDPMLib.networks.denoiser import Denoiser
from MedDPMLib.networks.memory_mode import MemoryMode
from MedDPMLib.networks.slabs import (
    LEAST_PLANES,
    Convolution,
    FeatureVolume,
    Frame,
    Norm,
    NormedConvolution,
    Residual,
    keep,
    make,
    padding_left,
    remake,
    with_neighbors,
)
from MedDPMLib.networks.unet import Attention, Downsample, ResidualBlock, UNet3d, Upsample, timestep_embedding
from MedDPMLib.runtime.moments import Moments


class FastUNet3d(Denoiser):
    """``network`` (float32, on the CPU) on ``device`` in ``dtype``; its predictions differ by rounding only."""

    def __init__(
        self, network: UNet3d, device: torch.device, dtype: torch.dtype, mode: MemoryMode = MemoryMode.FAST
    ) -> None:
        super().__init__()
        self.side_multiple = network.side_multiple
        self._check_input = network.check_input
        self._frame = frame = Frame.of(device, dtype, mode)
        self._base = network.base
        self._time_embed = copy.deepcopy(network.time_embed).to(device, torch.float32)
        stem, *down = network.input_blocks
        self._stem = Convolution(stem[0], frame)
        widths = [network.base]
        self._down = []
        for step in down:
            self._down.append(_Layers(step, frame, [widths[-1]]))
            widths.append(self._down[-1].width)
        self._middle = _Layers(network.middle_block, frame, [widths[-1]])
        width = self._middle.width
        self._up = []
        for step in network.output_blocks:
            self._up.append(_Layers(step, frame, [width, widths.pop()]))
            width = self._up[-1].width
        if not frame.keeps_all:
            upsamples = [layer for layers in self._up for layer in layers.layers if isinstance(layer, _FastUpsample)]
            for layer in upsamples[-1:]:
                layer.keeps = False
        self._out = NormedConvolution(network.out[0], network.out[2], frame, [width])

    def encode_condition(self, condition: Tensor) -> Tensor:
        """``condition`` itself: with so few channels in, what a convolution costs is its output, shared or not."""
        return condition.to(self._frame.device, self._frame.dtype)

    @torch.no_grad()
    def denoise(self, x: Tensor, t: Tensor, encoded: Tensor) -> Tensor:
        self._check_input(x, t, encoded)
        # Volumes of this size keep any device busy one at a time.
        return torch.cat([self._one(x[i : i + 1], t[i : i + 1], encoded[i : i + 1]) for i in range(len(x))])

    def _one(self, x: Tensor, t: Tensor, condition: Tensor) -> Tensor:
        frame = self._frame
        time = F.silu(self._time_embed(timestep_embedding(t, self._base)))[0]
        h = self._first(_channels_last(torch.cat([x.to(frame.device, frame.dtype), condition], dim=1)))
        skips = [h]
        for layers in self._down:
            h = layers(frame, [h], time, reuse=False)
            skips.append(h)
        h = self._middle(frame, [h], time, reuse=False)
        for layers in self._up:
            parts = [h, skips.pop()]
            del h  # the list is emptied where its volumes are needed no more
            h = layers(frame, parts, time, reuse=True)
        piece = self._out([h])
        sides = h.sides
        return torch.cat([piece(a, b) for a, b in frame.slabs(h.channels, sides)], dim=2)

    def _first(self, inputs: Tensor) -> FeatureVolume:
        """The output of the first convolution, of ``inputs`` (1, C + K, D, H, W)."""
        sides = tuple(inputs.shape[2:])

        def piece(a: int, b: int) -> Tensor:
            slab = with_neighbors(lambda low, high: inputs[:, :, low:high], sides[0], a, b)
            return self._stem([slab], padding_left(sides[0], a, b))

        build = make if self._frame.keeps_all else remake
        return build(self._frame, self._stem.width, sides, piece)


def working_bytes(
    network: UNet3d, sides: Sequence[int], device: torch.device, dtype: torch.dtype, mode: MemoryMode
) -> int:
    """Bytes that :class:`FastUNet3d` has alive at its peak, beside weights and arguments, for a grid of ``sides``."""
    frame = Frame.of(device, dtype, mode)
    voxels = math.prod(sides)

    def volume(channels: int, level: int) -> int:
        return channels * voxels // 8**level * frame.storage.itemsize

    def run(step: nn.Sequential, channels: int, level: int, own: list[int], others: int) -> tuple[int, int, int, int]:
        """Channels, level and bytes of what ``step`` makes, and its peak; ``own`` bytes of its input may be reused."""
        peak = 0
        for layer in step:
            if isinstance(layer, Upsample) and level == 1 and not frame.keeps_all:
                level = 0  # made anew of what it is made of, which stays
                continue
            if isinstance(layer, ResidualBlock):
                channels = layer.in_layers[2].out_channels
                made = volume(channels, level)
                beside = made if made in own else 2 * made
            elif isinstance(layer, Attention):
                made = volume(channels, level)
                # Normalized voxels, queries, keys, values and the result of the attention.
                beside = made + 6 * made // frame.storage.itemsize * dtype.itemsize
            else:
                level += 1 if isinstance(layer, Downsample) else -1
                beside = made = volume(channels, level)
            peak = max(peak, others + sum(own) + beside)
            own = [made]
        return channels, level, own[0], peak

    stem, *down = network.input_blocks
    channels, level = network.base, 0
    skips = [volume(channels, 0) if frame.keeps_all else 0]
    peaks = []
    for step in [*down, network.middle_block]:
        channels, level, made, peak = run(step, channels, level, [], sum(skips))
        skips.append(made)
        peaks.append(peak)
    made = skips.pop()
    for step in network.output_blocks:
        skip = skips.pop()
        channels, level, made, peak = run(step, channels, level, [made, skip], sum(skips))
        peaks.append(peak)
    inputs = (2 * network.image_channels + network.condition_channels) * voxels * dtype.itemsize
    planes = network.base * sides[1] * sides[2] * dtype.itemsize * (LEAST_PLANES + 2)
    # A slab and its neighbors, normalized and padded, for each of two parts, and the output of a convolution.
    slabs = min(10 * max(frame.slab_bytes, planes), 20 * volume(network.base, 0))
    return max(peaks) + inputs + slabs


class _Layers:
    """The layers of one step of the network; the first takes the concatenation of ``parts``."""

    def __init__(self, step: nn.Sequential, frame: Frame, parts: Sequence[int]) -> None:
        self.layers = []
        for layer in step:
            self.layers.append(_FAST[type(layer)](layer, frame, parts))
            parts = [self.layers[-1].width]
        self.width = parts[0]

    def __call__(self, frame: Frame, parts: list[FeatureVolume], time: Tensor, reuse: bool) -> FeatureVolume:
        """``reuse`` says that the memory of the parts may be overwritten. Empties ``parts``."""
        for layer in self.layers:
            h = layer(frame, parts, time, reuse)
            parts[:] = [h]
            reuse = True
        parts.clear()
        return h


def _residual(block: ResidualBlock, frame: Frame, parts: Sequence[int]) -> Residual:
    shortcut = None if isinstance(block.skip_connection, nn.Identity) else block.skip_connection
    first, second = block.in_layers, block.out_layers
    return Residual((first[0], first[2]), block.emb_layers[1], (second[0], second[3]), shortcut, frame, parts)


class _FastAttention:
    """Attention over so few voxels that nothing is cut into slabs."""

    def __init__(self, attention: Attention, frame: Frame, parts: Sequence[int]) -> None:
        (self.width,) = parts
        self.norm = Norm(attention.norm, frame, parts, activated=False)
        cast = lambda tensor: tensor.detach().to(frame.device, frame.dtype)  # noqa: E731
        weight, bias = cast(attention.qkv.weight)[:, :, 0], cast(attention.qkv.bias)
        # Three products, so that queries, keys and values are contiguous: attention is several times faster then.
        self.qkv = list(zip(weight.chunk(3), bias.chunk(3), strict=True))
        self.out = cast(attention.proj_out.weight)[:, :, 0], cast(attention.proj_out.bias)

    def __call__(self, frame: Frame, parts: list[FeatureVolume], time: Tensor, reuse: bool) -> FeatureVolume:
        (h,) = parts
        planes = h.planes(0, h.sides[0])
        (normalize,) = self.norm(parts)
        voxels = normalize(planes).permute(0, 2, 3, 4, 1).reshape(1, 1, -1, self.width)
        q, k, v = (F.linear(voxels, weight, bias) for weight, bias in self.qkv)
        attended = F.linear(F.scaled_dot_product_attention(q, k, v), *self.out)
        attended = attended.view(1, *h.sides, self.width).permute(0, 4, 1, 2, 3)
        values = attended.add_(planes).to(frame.storage)
        moments = Moments()
        moments.add(values)
        return keep(frame, values, *moments.merged())


class _FastDownsample:
    def __init__(self, layer: Downsample, frame: Frame, parts: Sequence[int]) -> None:
        self.convolution = Convolution(layer.op, frame)
        self.width = self.convolution.width

    def __call__(self, frame: Frame, parts: list[FeatureVolume], time: Tensor, reuse: bool) -> FeatureVolume:
        (h,) = parts
        depth = h.sides[0]

        def piece(a: int, b: int) -> Tensor:
            # Of a stride of two only the first plane has a neighbor outside.
            if 2 * (b - a) == depth:
                return self.convolution([h.planes(0, depth)], 1)
            low = max(0, 2 * a - 1)
            slab = h.planes(low, 2 * b)
            return self.convolution([slab if a else F.pad(slab, (0, 0, 0, 0, 1, 0))], 0)

        return make(frame, self.width, tuple(side // 2 for side in h.sides), piece)


class _FastUpsample:
    def __init__(self, layer: Upsample, frame: Frame, parts: Sequence[int]) -> None:
        self.convolution = Convolution(layer.conv, frame)
        self.width = self.convolution.width
        self.keeps = True

    def __call__(self, frame: Frame, parts: list[FeatureVolume], time: Tensor, reuse: bool) -> FeatureVolume:
        (h,) = parts
        depth = h.sides[0]

        def upsampled(low: int, high: int) -> Tensor:
            """Planes [low, high) of the volume of twice the size: each blends two planes of ``h``."""
            first, last = max(0, (low - 1) // 2), min(depth, high // 2 + 1)
            planes = F.interpolate(h.planes(first, last), scale_factor=2, mode="trilinear")
            return planes[:, :, low - 2 * first : high - 2 * first]

        def piece(a: int, b: int) -> Tensor:
            return self.convolution([with_neighbors(upsampled, 2 * depth, a, b)], padding_left(2 * depth, a, b))

        build = make if self.keeps else remake
        return build(frame, self.width, tuple(2 * side for side in h.sides), piece)


_FAST = {
    ResidualBlock: _residual,
    Attention: _FastAttention,
    Downsample: _FastDownsample,
    Upsample: _FastUpsample,
}


def _channels_last(x: Tensor) -> Tensor:
    return x.contiguous(memory_format=torch.channels_last_3d)
