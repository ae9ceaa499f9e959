"""What is computed once for each case, as MONAI transforms: only training imports MONAI."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from monai.transforms import Transform
from monai.transforms.utils import map_classes_to_indices

from MedDPMLib.data.cases import Case

#: So many voxels of each kind, evenly spread, are remembered to choose a patch's middle from.
_MOST_CANDIDATES = 4096


class PatchMiddles(Transform):
    """Flat indices into a case's labels: of voxels of the ``tumor`` (values), the brain, and the brain's box."""

    def __init__(self, tumor: Sequence[int]) -> None:
        self.tumor = torch.tensor(tumor, dtype=torch.uint8)

    def __call__(self, case: Case) -> list[torch.Tensor]:
        kinds = torch.zeros((3, *case.labels.shape), dtype=torch.bool)
        kinds[0] = torch.isin(case.labels, self.tumor)
        kinds[1] = case.labels > 0
        box = []
        for axis in range(3):
            others = [other for other in range(3) if other != axis]
            filled = torch.nonzero(kinds[1].any(dim=others[1]).any(dim=others[0])).flatten()
            # Without any label the whole grid is the box.
            box.append(slice(int(filled[0]), int(filled[-1]) + 1) if len(filled) else slice(None))
        kinds[2][tuple(box)] = True
        return map_classes_to_indices(kinds, max_samples_per_class=_MOST_CANDIDATES)
