"""What is the objective of a segmenter's training?

    loss = mean over outputs and places of  (cross-entropy + 1 - mean Dice of the labels that are there)

The Dice coefficient is that of the probabilities (Milletari et al. 2016, arXiv 1606.04797): 2 sum(p q) / sum(p + q).
Small structures count in it as much as large ones. Voxels whose label is not known count in neither.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from MedDPMLib.networks.segmenter import SegmentationUNet3d, voxel_of_block

#: The class of a voxel whose label is not known.
UNKNOWN = 255

#: A label with fewer voxels is not taken for there.
_FEWEST = 20


def segmentation_loss(
    network: SegmentationUNet3d,
    x: Tensor,
    targets: Sequence[Tensor | None],
    places: Sequence[int],
    weights: Sequence[Tensor],
) -> Tensor:
    """One number, float32: the loss of ``network`` on scans ``x`` (B, C, D, H, W) at the ``places`` (0 to 7) of blocks.

    ``targets`` are the classes (B, D, H, W; integer) of each output, None where an output is not asked; ``weights``
    (classes,) of each output are how much the cross-entropy of a voxel counts, by its class.
    """
    features = network(x)
    losses = []
    for output, (target, weight) in enumerate(zip(targets, weights, strict=True)):
        if target is not None:
            for place in places:
                scores = network.scores(features, output, place).float()
                losses.append(_loss(scores, target[(slice(None), *voxel_of_block(place))].long(), weight))
    return torch.stack(losses).mean()


def _loss(scores: Tensor, target: Tensor, class_weight: Tensor) -> Tensor:
    """Cross-entropy and Dice of ``scores`` (B, K, ...) against ``target`` (B, ...)."""
    count = scores.shape[1]
    known = (target != UNKNOWN).flatten()
    logarithms = F.log_softmax(scores.movedim(1, -1).reshape(-1, count)[known], dim=1)
    classes = target.flatten()[known]
    entropy = F.nll_loss(logarithms, classes, reduction="none")
    weight = class_weight[classes]
    mean = (entropy * weight).sum() / weight.sum().clamp_min(1e-6)
    probabilities = logarithms.exp()
    common = probabilities.new_zeros(count).index_add_(0, classes, probabilities.gather(1, classes[:, None])[:, 0])
    sizes = torch.bincount(classes, minlength=count)
    dice = (2 * common + 1) / (sizes + probabilities.sum(dim=0) + 1)
    there = sizes >= _FEWEST
    there[0] = False
    return mean + (1 - dice[there]).mean() if bool(there.any()) else mean
