"""How does a second example become part of one? MixUp, CutMix and TumorCutMix of an image and its regions.

MONAI's MixUp and CutMix mix the images of a batch with each other: with one image a batch they do nothing, and which
images meet depends on the batch. Here the second example follows from the number of the first, as everything else does.

- MixUp (Zhang et al. 2018, arXiv 1710.09412): a share of both, the larger one of the first.
- CutMix (Yun et al. 2019, arXiv 1905.04899): a box of the second in the place where it lies there.
- TumorCutMix: CutMix whose box is that of the second's tumor with a margin, so that every cut brings a whole tumor.
  Related, with other outlines: TumorCP (Yang et al. 2021, arXiv 2107.09843), CarveMix (Zhang et al. 2021,
  arXiv 2108.06883).
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from MedDPMLib.experiment.recipe import CUTMIX, MIXUP, TUMOR_CUTMIX

Box = tuple[slice, slice, slice]

#: Voxels around a tumor that are cut out with it.
MARGIN = 2


def mixed(first: Tensor, second: Tensor, method: str, random: np.random.Generator, *, regions: int, alpha: float):
    """``first`` with a part of ``second``: (C + R, D, H, W) float, of which the last ``regions`` are the regions in
    [0, 1], the first of these the whole tumor. ``method`` is one of :data:`~MedDPMLib.experiment.recipe.MIXING`,
    ``alpha`` MixUp's. A second example without a tumor leaves TumorCutMix nothing to cut."""
    if method == MIXUP:
        share = random.beta(alpha, alpha)
        share = max(share, 1 - share)
        return share * first + (1 - share) * second
    shape = tuple(first.shape[1:])
    box = {CUTMIX: lambda: random_box(shape, random), TUMOR_CUTMIX: lambda: tumor_box(second[-regions])}[method]()
    if box is None:
        return first
    result = first.clone()
    result[(slice(None), *box)] = second[(slice(None), *box)]
    return result


def random_box(shape: tuple[int, ...], random: np.random.Generator) -> Box:
    """A box in ``shape`` whose middle and share of the volume are uniformly random; what juts out is cut off."""
    side = (1 - random.uniform()) ** (1 / 3)
    box = []
    for length in shape:
        middle = random.uniform(0, length)
        low, high = round(middle - side * length / 2), round(middle + side * length / 2)
        box.append(slice(max(low, 0), min(high, length)))
    z, y, x = box
    return z, y, x


def tumor_box(tumor: Tensor) -> Box | None:
    """The box around the voxels of ``tumor`` (D, H, W), with :data:`MARGIN` around it; None where there are none."""
    inside = torch.nonzero(tumor > 0.5)
    if not len(inside):
        return None
    low, high = inside.amin(dim=0).tolist(), inside.amax(dim=0).tolist()
    z, y, x = (slice(max(a - MARGIN, 0), b + 1 + MARGIN) for a, b in zip(low, high, strict=True))
    return z, y, x
