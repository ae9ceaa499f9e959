"""What assigns voxels of a scan to labels? A U-Net on blocks of 2 x 2 x 2 voxels that answers for each voxel.

The first layer folds each block into channels, so that everything is computed on an eighth of the voxels; the last one
has eight outputs for each class, one for each voxel of the block. In between is a residual U-Net whose groups of eight
channels are normalized over the volume, which makes it indifferent to a scan's contrast.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from MedDPMLib.errors import MedDPMError
from MedDPMLib.networks.denoiser import Network

#: Voxels of a block.
BLOCK = 8

#: Channels that are normalized together.
_GROUP = 8


class _Block(nn.Module):
    """Two normalized convolutions with a residual connection."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.first = nn.Conv3d(channels, channels, 3, padding=1, bias=False)
        self.norm_first = nn.GroupNorm(channels // _GROUP, channels)
        self.second = nn.Conv3d(channels, channels, 3, padding=1, bias=False)
        self.norm_second = nn.GroupNorm(channels // _GROUP, channels)

    def forward(self, x: Tensor) -> Tensor:
        return F.silu(x + self.norm_second(self.second(F.silu(self.norm_first(self.first(x))))))


class SegmentationUNet3d(Network):
    """Features of a scan, and from them the scores of the ``classes`` of each output.

    ``channels`` are those at 1/2, 1/4, 1/8, ... of the scan's grid, multiples of 8; ``inputs`` the channels of the
    scan. There is one output for each number of ``classes``, such as (19, 4) for structures and tumor, each with the
    background first.
    """

    #: In float32, with the scan and the scores of one voxel of each block.
    values_per_voxel = 23

    def __init__(self, channels: Sequence[int], inputs: int, classes: Sequence[int]) -> None:
        super().__init__()
        channels, classes = tuple(channels), tuple(classes)
        if len(channels) < 2 or any(width % _GROUP for width in channels):
            raise MedDPMError(f"a segmenter needs at least two levels of channels, each a multiple of {_GROUP}")
        if not classes or min(classes) < 2:
            raise MedDPMError("a segmenter needs at least two classes in each output")
        self.classes = classes
        #: Every side of a scan must be a multiple of this.
        self.side_multiple = 2 ** len(channels)
        self.stem = nn.Conv3d(inputs, channels[0], 2, stride=2)
        self.down = nn.ModuleList(_Block(width) for width in channels)
        self.up = nn.ModuleList(_Block(width) for width in channels[:-1])
        pairs = list(zip(channels, channels[1:], strict=False))
        self.widen = nn.ModuleList(nn.Conv3d(fine, coarse, 2, stride=2) for fine, coarse in pairs)
        self.narrow = nn.ModuleList(nn.Conv3d(coarse, fine, 1) for fine, coarse in pairs)
        self.heads = nn.ModuleList(nn.Conv3d(channels[0], BLOCK * count, 1) for count in classes)

    def forward(self, x: Tensor) -> Tensor:
        """Features (B, channels[0], D/2, H/2, W/2) of a scan ``x`` (B, inputs, D, H, W)."""
        x = self.stem(x.contiguous(memory_format=torch.channels_last_3d))
        skips = []
        for level, block in enumerate(self.down):
            x = block(x)
            if level < len(self.widen):
                skips.append(x)
                x = self.widen[level](x)
        for narrow, block in zip(reversed(self.narrow), reversed(self.up), strict=True):
            x = block(skips.pop() + F.interpolate(narrow(x), scale_factor=2.0, mode="nearest"))
        return x

    def scores(self, features: Tensor, output: int, voxel: int) -> Tensor:
        """Scores (B, classes[output], D/2, H/2, W/2) of the ``voxel`` 4 z + 2 y + x of each block, before softmax."""
        head, count = self.heads[output], self.classes[output]
        part = slice(voxel * count, (voxel + 1) * count)
        return F.conv3d(features, head.weight[part], head.bias[part])


def voxel_of_block(voxel: int) -> tuple[slice, slice, slice]:
    """The voxels (D, H, W) of a volume that lie at place ``voxel`` of their blocks."""
    return slice(voxel >> 2 & 1, None, 2), slice(voxel >> 1 & 1, None, 2), slice(voxel & 1, None, 2)
