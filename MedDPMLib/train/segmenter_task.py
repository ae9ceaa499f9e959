"""What does a segmenter learn? The labels of scans, and of images drawn from label maps."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

from MedDPMLib.data import Case
from MedDPMLib.masks.schemes import Label
from MedDPMLib.networks import build_network
from MedDPMLib.networks.segmenter import SegmentationUNet3d
from MedDPMLib.recipes.parts import Stage
from MedDPMLib.recipes.segmenter import SegmenterRecipe, segmenter_card
from MedDPMLib.train.segmentation_objective import segmentation_loss
from MedDPMLib.train.segmenter_examples import SegmenterExample, SegmenterExamples
from MedDPMLib.train.task import Task

#: A structure that never has more than this (ml) is small.
_SMALL = 300.0


class SegmenterTask(Task):
    """The ``recipe`` of a segmenter, computed on ``device``."""

    #: The loss asks the network for scores one by one, outside of its forward pass, which is where shards are gathered.
    shardable = False

    def __init__(self, recipe: SegmenterRecipe, device: torch.device) -> None:
        self.recipe, self.device = recipe, device
        self.network: SegmentationUNet3d = build_network(segmenter_card(recipe).network_description)
        settings, scheme = recipe.training, recipe.label_scheme
        structures = [settings.small_weight if _is_small(one) else 1.0 for one in scheme.labels if one.role != "tumor"]
        regions = [1.0] * len(scheme.tumor)
        #: How much each class of both outputs counts.
        self.weights = [
            torch.tensor([settings.background_weight, *weights], device=device) for weights in (structures, regions)
        ]

    def loss(self, network: nn.Module, batch: SegmenterExample) -> Tensor:
        batch = batch.to(self.device)
        x = batch.x.to(next(network.parameters()).dtype)
        targets = [batch.structures, batch.tumor if batch.asked else None]
        return segmentation_loss(network, x, targets, batch.places, self.weights)  # type: ignore[arg-type]

    def examples(self, stage: Stage, cases: Dataset | Sequence[Case]) -> SegmenterExamples:
        return SegmenterExamples(self.recipe, stage, cases)

    def random_batch(self, size: Sequence[int], count: int) -> SegmenterExample:
        shape = (count, *reversed(size))
        generator = torch.Generator().manual_seed(0)
        x = torch.rand((count, 1 + len(self.recipe.modalities), *shape[1:]), generator=generator)
        structures, tumor = (
            torch.randint(0, classes, shape, generator=generator, dtype=torch.uint8) for classes in self.network.classes
        )
        places = tuple(range(self.recipe.training.voxels_of_block))
        return SegmenterExample(x, structures, tumor, True, places, ("random",)).to(self.device)


def _is_small(label: Label) -> bool:
    return label.role == "structure" and label.plausible_ml is not None and label.plausible_ml[1] <= _SMALL
