"""Which part of which case does the network see, and when?"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from MedDPMLib.data.cases import Case, SmoothedCases
from MedDPMLib.data.variation import Part, Variation, centers, draw_variation, whole_box
from MedDPMLib.errors import MedDPMError
from MedDPMLib.masks.schemes import LabelScheme
from MedDPMLib.recipes.recipe import Augmentation

#: How often a patch is centered on a voxel of a tumor, of the brain, and of the brain's bounding box. In a case without
#: a tumor its share is divided between the other two.
BALANCE = (0.5, 0.4, 0.1)

#: Streams of random numbers that must not follow each other.
_ORDER, _VARIATION, _PATCH = range(3)


@dataclass(frozen=True)
class Sample:
    """A training sample: ``image`` (C, D, H, W) float32 in [-1, 1] and ``labels`` (D, H, W) uint8 of ``case``.

    ``positions`` (3, D, H, W), float32, are the coordinates of each voxel center along i, j and k (channel by channel),
    the whole grid being [-1, 1]: they locate a patch.
    """

    image: Tensor
    labels: Tensor
    positions: Tensor
    case: str


class VariedCases(Dataset):
    """Varied ``cases``, by the number of the sample: 0 to ``len - 1`` is the first epoch, ``len`` begins the second.

    Sample ``index`` is the same each time it is asked for, in whatever process and order: its random numbers depend
    on (``seed``, ``index``) alone. Each epoch has every case once, in an order of its own.

    A sample is the whole grid of ``shape`` (D, H, W) over the cases' box, or a ``patch`` (D, H, W) of it whose middle
    is chosen with the probabilities ``balance`` (:data:`BALANCE`). Where ``shape`` is coarser than the cases, these
    are smoothed first (:class:`SmoothedCases`). Raises :class:`MedDPMError` for a patch larger than the grid,
    and if there is no case.
    """

    def __init__(
        self,
        cases: Sequence[Case] | Dataset,
        augmentation: Augmentation,
        shape: Sequence[int],
        patch: Sequence[int] | None,
        scheme: LabelScheme,
        seed: int,
        *,
        balance: tuple[float, float, float] = BALANCE,
    ) -> None:
        if not len(cases):
            raise MedDPMError("there is no case to train on: prepare some with meddpm prepare")
        self.augmentation = augmentation
        self.shape = tuple(shape)
        self.patch = self.shape if patch is None else tuple(patch)
        self.seed = seed
        self.balance = balance
        if any(side > length for side, length in zip(self.patch, self.shape, strict=True)):
            sizes = (" x ".join(map(str, reversed(size))) for size in (self.patch, self.shape))
            raise MedDPMError("a patch of {} voxels does not fit into the grid of {}: make it smaller".format(*sizes))
        if len(balance) != 3 or min(balance) < 0 or not sum(balance[1:]):
            raise MedDPMError(
                f"the balance of patches needs three shares of at least 0 (tumor, brain, anywhere), and brain or"
                f" anywhere above 0, not {balance}"
            )
        from monai.data import CacheDataset

        from MedDPMLib.data.transforms import PatchMiddles

        tumor = [label.value for label in scheme.tumor]
        self._cases, self._middles = cases, None
        if any(side < length for side, length in zip(self.shape, cases[0].labels.shape, strict=True)):
            self._cases = SmoothedCases(cases, self.shape)
        if self.patch != self.shape:
            self._middles = CacheDataset(cases, PatchMiddles(tumor), progress=False, copy_cache=False)

    def __len__(self) -> int:
        return len(self._cases)

    def __getitem__(self, index: int) -> Sample:
        if index < 0:
            raise IndexError(f"samples are counted from 0, not {index}")
        epoch, place = divmod(index, len(self))
        number = int(torch.randperm(len(self), generator=self._generator(_ORDER, epoch))[place])
        case = self._cases[number]
        variation = draw_variation(case, self.augmentation, self._generator(_VARIATION, index))
        part = self._part(number, case, variation, index)
        image, labels = variation.apply(case, self.shape, part)
        k, j, i = torch.meshgrid(*centers(self.shape, part), indexing="ij")
        return Sample(image, labels, torch.stack([i, j, k]), case.name)

    def _generator(self, stream: int, index: int) -> torch.Generator:
        return torch.Generator().manual_seed(int(self._entropy(stream, index).generate_state(1)[0]))

    def _entropy(self, stream: int, index: int) -> np.random.SeedSequence:
        # Neighboring numbers give independent states: a generator itself looks at 32 bits of its seed only.
        return np.random.SeedSequence((self.seed, stream, index))

    def _part(self, number: int, case: Case, variation: Variation, index: int) -> Part:
        """The patch of sample ``index``: around a chosen voxel of the case, there where the variation puts it."""
        if self._middles is None:
            return whole_box(self.shape)
        from monai.transforms.utils import generate_label_classes_crop_centers

        size = case.labels.shape
        random = np.random.RandomState(self._entropy(_PATCH, index).generate_state(1))
        # One voxel, so that nothing is moved to fit a patch in: that is for after the variation.
        ((*voxel,),) = generate_label_classes_crop_centers(
            1, 1, size, self._middles[number], list(self.balance), random, warn=False
        )
        source = (2 * torch.tensor(voxel, dtype=torch.float32) + 1) / torch.tensor(size) - 1
        middle = variation.place_of(source.flip(0)).flip(0)
        part = []
        for coordinate, length, side in zip(middle.tolist(), self.shape, self.patch, strict=True):
            start = round((coordinate + 1) / 2 * length - side / 2)
            start = min(max(start, 0), length - side)
            part.append(slice(start, start + side))
        z, y, x = part
        return z, y, x
