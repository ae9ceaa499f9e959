"""What assigns voxels of a scan to labels? A U-Net on blocks of 2 x 2 x 2 voxels that answers for each voxel.

The first layer folds each block into channels, so that everything is computed on an eighth of the voxels; the last one
has eight outputs for each class, one for each voxel of the block. In between are the layers of
:mod:`MedDPMLib.networks.magnitude_preserving`, without any normalization over the volume: what is learnt on crops
holds on whole scans of any size.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from MedDPMLib.errors import MedDPMError
from MedDPMLib.networks.magnitude_preserving import UnitConv, normalize_voxels, silu, weighted_sum

#: Share of the branch in a residual sum, and of the coarser level where levels meet.
_BRANCH, _LEVELS = 0.3, 0.5

#: Voxels of a block.
BLOCK = 8


class _Block(nn.Module):
    """Two convolutions with a residual connection."""

    def __init__(self, channels: int, *, normalize: bool) -> None:
        super().__init__()
        self.normalize = normalize
        self.first = UnitConv(channels, channels, 3)
        self.second = UnitConv(channels, channels, 3)

    def forward(self, x: Tensor) -> Tensor:
        if self.normalize:
            x = normalize_voxels(x)
        return weighted_sum(x, self.second(silu(self.first(silu(x)))), _BRANCH)


class SegmentationUNet3d(nn.Module):
    """Features of a scan, and from them the scores of the ``classes`` of each output.

    ``channels`` are those at 1/2, 1/4, 1/8, ... of the scan's grid; ``inputs`` the channels of the scan. There is one
    output for each number of ``classes``, such as (19, 4) for structures and tumor, each with the background first.
    """

    def __init__(self, channels: Sequence[int], inputs: int, classes: Sequence[int]) -> None:
        super().__init__()
        channels, classes = tuple(channels), tuple(classes)
        if len(channels) < 2 or not classes or min(classes) < 2:
            raise MedDPMError("a segmenter needs at least two levels and two classes in each output")
        self.classes = classes
        #: Every side of a scan must be a multiple of this.
        self.side_multiple = 2 ** len(channels)
        self.stem = UnitConv(inputs + 1, channels[0], 2)
        self.down = nn.ModuleList(nn.ModuleList([_Block(width, normalize=True)]) for width in channels)
        self.up = nn.ModuleList(nn.ModuleList([_Block(width, normalize=False)]) for width in channels[:-1])
        pairs = list(zip(channels, channels[1:], strict=False))
        self.widen = nn.ModuleList(UnitConv(fine, coarse, 2) for fine, coarse in pairs)
        self.narrow = nn.ModuleList(UnitConv(coarse, fine, 1) for fine, coarse in pairs)
        self.heads = nn.ModuleList(nn.Conv3d(channels[0], BLOCK * count, 1) for count in classes)
        for head in self.heads:
            if not head.weight.is_meta:
                nn.init.normal_(head.weight, std=0.05)
                nn.init.zeros_(head.bias)

    def forward(self, x: Tensor) -> Tensor:
        """Features (B, channels[0], D/2, H/2, W/2) of a scan ``x`` (B, inputs, D, H, W)."""
        x = torch.cat([x, torch.ones_like(x[:, :1])], dim=1)
        x = self.stem(x.contiguous(memory_format=torch.channels_last_3d))
        skips = []
        for level, blocks in enumerate(self.down):
            for block in blocks:
                x = block(x)
            if level < len(self.widen):
                skips.append(x)
                x = self.widen[level](x)
        for narrow, blocks in zip(reversed(self.narrow), reversed(self.up), strict=True):
            x = F.interpolate(narrow(x), scale_factor=2.0, mode="nearest")
            x = weighted_sum(skips.pop(), x, _LEVELS)
            for block in blocks:
                x = block(x)
        return silu(x)

    def scores(self, features: Tensor, output: int, voxel: int) -> Tensor:
        """Scores (B, classes[output], D/2, H/2, W/2) of the ``voxel`` 4 z + 2 y + x of each block, before softmax."""
        head, count = self.heads[output], self.classes[output]
        part = slice(voxel * count, (voxel + 1) * count)
        return F.conv3d(features, head.weight[part].to(features.dtype), head.bias[part].to(features.dtype))

    def rescale(self) -> None:
        """:meth:`UnitConv.rescale` of every layer: after each step of the optimizer."""
        for layer in self._layers():
            layer.rescale()

    def freeze(self, dtype: torch.dtype) -> None:
        """:meth:`UnitConv.freeze` of every layer, and the outputs' weights in ``dtype``: for inference."""
        for layer in self._layers():
            layer.freeze(dtype)

    def _layers(self) -> list[UnitConv]:
        return [module for module in self.modules() if isinstance(module, UnitConv)]


def voxel_of_block(voxel: int) -> tuple[slice, slice, slice]:
    """The voxels (D, H, W) of a volume that lie at place ``voxel`` of their blocks."""
    return slice(voxel >> 2 & 1, None, 2), slice(voxel >> 1 & 1, None, 2), slice(voxel & 1, None, 2)
