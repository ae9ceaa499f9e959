"""How does an image become a coarser one and what is missing from it? The Haar transform inside a mask.

Blocks of 2 x 2 x 2 voxels become their mean and seven details. Voxels outside the mask take the mean of the block's
voxels inside: so the edge of a brain against its background, which the mask tells already, is in none of the bands, and
a block at the edge has the mean of its tissue, not of tissue and background.
"""

from __future__ import annotations

import torch
from torch import Tensor

#: Details of a block: the combinations of low and high pass along D, H, W, but for the mean.
DETAILS = 7


def haar_matrix(device: torch.device | None = None) -> Tensor:
    """(8, 8): the orthonormal bands (4 where high along D + 2 along H + 1 along W) of a block's voxels, in the same
    order."""
    pair = torch.tensor([[1.0, 1.0], [1.0, -1.0]], device=device)
    return torch.einsum("ai,bj,ck->abcijk", pair, pair, pair).reshape(8, 8) / 8**0.5


def to_blocks(x: Tensor) -> Tensor:
    """(C, D, H, W) as (C, 8, D/2, H/2, W/2): the voxels of each block, 4 d + 2 h + w."""
    c, d, h, w = x.shape
    x = x.view(c, d // 2, 2, h // 2, 2, w // 2, 2).permute(0, 2, 4, 6, 1, 3, 5)
    return x.reshape(c, 8, d // 2, h // 2, w // 2)


def from_blocks(blocks: Tensor) -> Tensor:
    """The inverse of :func:`to_blocks`."""
    c, _, d, h, w = blocks.shape
    return blocks.view(c, 2, 2, 2, d, h, w).permute(0, 4, 1, 5, 2, 6, 3).reshape(c, 2 * d, 2 * h, 2 * w)


def halve_mask(inside: Tensor) -> Tensor:
    """(D/2, H/2, W/2) boolean: where a block has a voxel of ``inside`` (D, H, W)."""
    return to_blocks(inside[None])[0].any(dim=0)


def split(image: Tensor, inside: Tensor) -> tuple[Tensor, Tensor]:
    """``image`` (C, D, H, W), of which ``inside`` (D, H, W, boolean) counts, as means and details.

    Means (C, D/2, H/2, W/2) are those of each block's voxels inside, 0 where there are none; details (7, C, D/2, H/2,
    W/2) are orthonormal Haar coefficients. Sides are even.
    """
    voxels, counted = to_blocks(image), to_blocks(inside[None])
    mean = _mean(voxels, counted)
    voxels = torch.where(counted, voxels, mean[:, None])
    return mean, torch.einsum("bv,cvdhw->bcdhw", haar_matrix(image.device)[1:].to(image), voxels)


def halve(image: Tensor, inside: Tensor) -> Tensor:
    """The means alone that :func:`split` gives: (C, D/2, H/2, W/2)."""
    return _mean(to_blocks(image), to_blocks(inside[None]))


def _mean(voxels: Tensor, counted: Tensor) -> Tensor:
    return (voxels * counted).sum(dim=1) / counted.sum(dim=1).clamp_min(1)


def merge(mean: Tensor, details: Tensor) -> Tensor:
    """The image (C, D, H, W) of means and details: the inverse of :func:`split` inside its mask."""
    voxels = torch.einsum("bv,bcdhw->cvdhw", haar_matrix(mean.device)[1:].to(mean), details)
    return from_blocks(voxels + mean[:, None])
