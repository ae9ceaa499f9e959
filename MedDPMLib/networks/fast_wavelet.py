"""The compact network for inference: the function of :class:`MedDPMLib.networks.wavelet.WaveletUNet3d`, faster.

Like the published networks (:mod:`MedDPMLib.networks.fast_unet`) it computes volumes slab by slab. The Haar transform
is never computed: split, merge and the blend with ``x`` are linear, and become part of the weights of the first and
last convolutions, which then read and write the eight voxels of a block as channels.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from MedDPMLib.networks.memory_mode import MemoryMode
from MedDPMLib.networks.replay import Replay
from MedDPMLib.networks.slabs import (
    Convolution,
    FeatureVolume,
    Frame,
    NormedConvolution,
    Repeated,
    Residual,
    make,
    padding_left,
    with_neighbors,
)
from MedDPMLib.networks.wavelet import WaveletDenoiser, WaveletUNet3d, haar_of_blocks, timestep_features

#: Peak number of values in memory per voxel of the grid, in the last step of a guided run, measured.
_VALUES_PER_VOXEL = 96


def working_bytes(
    network: WaveletUNet3d, sides: Sequence[int], device: torch.device, dtype: torch.dtype, mode: MemoryMode
) -> int:
    """About how many bytes :class:`FastWaveletUNet3d` uses at its peak, in addition to weights and arguments."""
    taken = math.ceil(_VALUES_PER_VOXEL * math.prod(sides) * dtype.itemsize)
    # A recorded step keeps what it works in.
    return 2 * taken if device.type == "cuda" and mode is MemoryMode.FAST else taken


class FastWaveletUNet3d(WaveletDenoiser):
    """``network`` (float32, on the CPU) on ``device`` in ``dtype``; its predictions differ by rounding only."""

    def __init__(
        self, network: WaveletUNet3d, device: torch.device, dtype: torch.dtype, mode: MemoryMode = MemoryMode.FAST
    ) -> None:
        super().__init__()
        self.side_multiple, self.exact_condition = network.side_multiple, network.exact_condition
        self._frame = frame = Frame.of(device, dtype, mode)
        # For the condition; the rest of it is not needed twice.
        self._plain = copy.deepcopy(network).to(device, dtype, memory_format=torch.channels_last_3d)
        for name in ("down", "widen", "middle", "narrow", "up", "out_norm"):
            delattr(self._plain, name)
        self._time = copy.deepcopy(network.time).to(device, torch.float32)
        self._skip_weight_logits = frame.exact(network.skip_weight_logits)
        # (8 C voxels of a block, 8 C sub-bands): every channel has its own.
        channels = network.image_stem.in_channels // 8
        self._haar = torch.kron(haar_of_blocks(), torch.eye(channels)).to(device)
        self._stem = Convolution(_of_voxels(network.image_stem), frame)
        widths = [block.conv1.in_channels for block in network.down]
        self._down = [_residual(block, frame, [width]) for block, width in zip(network.down, widths, strict=True)]
        self._widen = [Convolution(layer, frame) for layer in network.widen]
        self._middle = [_residual(block, frame, [block.conv1.in_channels]) for block in network.middle]
        self._narrow = [Convolution(layer, frame) for layer in network.narrow]
        self._up = [_residual(block, frame, [width, width]) for block, width in zip(network.up, widths, strict=True)]
        self._out_norm = copy.deepcopy(network.out_norm).to(device, torch.float32)
        self._out = copy.deepcopy(network.out).to(device, torch.float32)
        self._replay = Replay() if device.type == "cuda" and mode is MemoryMode.FAST else None

    @torch.no_grad()
    def encode_shifted(self, condition: Tensor, shift: tuple[int, int, int]) -> Tensor:
        return self._plain.encode_shifted(condition, shift)

    @torch.no_grad()
    def denoise(self, x: Tensor, t: Tensor, encoded: Tensor) -> Tensor:
        t, encoded = t.expand(len(x)), encoded.expand(len(x), -1, -1, -1, -1)
        step = self._one if self._replay is None else partial(self._replay, self._one)
        # Volumes of this size keep any device busy one at a time.
        return torch.cat([step(x[i : i + 1], t[i : i + 1], encoded[i : i + 1]) for i in range(len(x))])

    def _one(self, x: Tensor, t: Tensor, encoded: Tensor) -> Tensor:
        frame = self._frame
        time = self._time(timestep_features(t, self._time[0].in_features))[0]
        blocks = blocks_of(x.to(frame.dtype))
        h = self._first(blocks, encoded)
        skips = []
        for residual, widen in zip(self._down, self._widen, strict=True):
            h = residual(frame, [h], time, reuse=True)
            skips.append(h)
            h = _halved(frame, widen, h)
        for residual in self._middle:
            h = residual(frame, [h], time, reuse=True)
        for residual, narrow in zip(reversed(self._up), reversed(self._narrow), strict=True):
            parts = [Repeated(_voxelwise(frame, narrow, h)), skips.pop()]
            h = residual(frame, parts, time, reuse=True)
        return self._last(blocks, h, self._skip_weight_logits[t][0].sigmoid())

    def _first(self, blocks: Tensor, encoded: Tensor) -> FeatureVolume:
        sides = tuple(blocks.shape[2:])

        def piece(a: int, b: int) -> Tensor:
            slab = with_neighbors(lambda low, high: blocks[:, :, low:high], sides[0], a, b)
            return self._stem([slab], padding_left(sides[0], a, b)).add_(encoded[:, :, a:b])

        return make(self._frame, self._stem.width, sides, piece)

    def _last(self, blocks: Tensor, h: FeatureVolume, skip_weight: Tensor) -> Tensor:
        """The output: ``skip_weight`` is the weight of ``x`` in each sub-band, the rest that of the network."""
        frame = self._frame
        merge = self._haar * (1 - skip_weight)
        own = copy.deepcopy(self._out)
        own.weight.copy_(torch.einsum("vb,bidhw->vidhw", merge, self._out.weight))
        own.bias.copy_(merge @ self._out.bias)
        estimate = NormedConvolution(self._out_norm, own, frame, [h.channels])([h])
        share = frame.weight(((self._haar * skip_weight) @ self._haar.T)[:, :, None, None, None])
        made = torch.empty_like(blocks)
        for a, b in frame.slabs(h.channels, h.sides):
            made[:, :, a:b] = estimate(a, b).add_(F.conv3d(blocks[:, :, a:b], share))
        return voxels_of(made)


def blocks_of(x: Tensor) -> Tensor:
    """(B, C, D, H, W) to (B, 8 C, D/2, H/2, W/2), channels last: voxel ``v`` of each block (bit 2, 1, 0 along D, H, W)
    of channel ``c`` is channel ``v * C + c``."""
    for axis in (4, 3, 2):
        x = x.unflatten(axis, (-1, 2))
    return x.permute(0, 2, 4, 6, 3, 5, 7, 1).flatten(4).permute(0, 4, 1, 2, 3)


def voxels_of(blocks: Tensor) -> Tensor:
    """The inverse of :func:`blocks_of`."""
    x = blocks.unflatten(1, (2, 2, 2, -1)).permute(0, 4, 5, 1, 6, 2, 7, 3)
    for axis in (2, 3, 4):
        x = x.flatten(axis, axis + 1)
    return x


def _of_voxels(stem: nn.Conv3d) -> nn.Conv3d:
    """``stem``, a convolution of the sub-bands, as one of the voxels of the blocks."""
    made = copy.deepcopy(stem)
    weight = stem.weight.detach().unflatten(1, (8, -1))
    made.weight.data = torch.einsum("obcdhw,vb->ovcdhw", weight, haar_of_blocks()).flatten(1, 2)
    return made


def _residual(block: nn.Module, frame: Frame, parts: list[int]) -> Residual:
    shortcut = None if isinstance(block.shortcut, nn.Identity) else block.shortcut
    return Residual((block.norm1, block.conv1), block.time, (block.norm2, block.conv2), shortcut, frame, parts)


def _halved(frame: Frame, convolution: Convolution, h: FeatureVolume) -> FeatureVolume:
    """The convolution of each block of 2 x 2 x 2 voxels."""
    sides = tuple(side // 2 for side in h.sides)
    return make(frame, convolution.width, sides, lambda a, b: convolution([h.planes(2 * a, 2 * b)], 0))


def _voxelwise(frame: Frame, convolution: Convolution, h: FeatureVolume) -> FeatureVolume:
    return make(frame, convolution.width, h.sides, lambda a, b: convolution.voxelwise([h], a, b))
