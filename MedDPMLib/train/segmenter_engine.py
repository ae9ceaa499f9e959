"""How does a segmenter take one step of its training? As every network does, on another loss."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from MedDPMLib.masks.schemes import Label, load_scheme
from MedDPMLib.train.engine import Engine
from MedDPMLib.train.segmentation_objective import segmentation_loss
from MedDPMLib.train.segmenter_examples import SegmenterExample

#: A structure that never has more than this (ml) is small.
_SMALL = 300.0


class SegmenterEngine(Engine):
    """The engine of a :class:`MedDPMLib.recipes.segmenter.SegmenterRecipe`."""

    def _set_objective(self) -> None:
        """How much each class of both outputs counts; there is no teacher."""
        self.teacher = None
        settings, scheme = self.recipe.training, load_scheme(self.recipe.scheme)
        structures = [settings.small_weight if _is_small(one) else 1.0 for one in scheme.labels if one.role != "tumor"]
        regions = [1.0] * len(scheme.tumor)
        self.weights = [
            torch.tensor([settings.background_weight, *weights], device=self.device)
            for weights in (structures, regions)
        ]

    def _start_network(self) -> None:
        """Nothing of the network depends on a schedule."""

    def loss(self, network: nn.Module, batch: SegmenterExample) -> Tensor:  # type: ignore[override]
        batch = batch.to(self.device)
        x = batch.x.to(next(network.parameters()).dtype)
        targets = [batch.structures, batch.tumor if batch.asked else None]
        return segmentation_loss(network, x, targets, batch.places, self.weights)


def _is_small(label: Label) -> bool:
    return label.role == "structure" and label.plausible_ml is not None and label.plausible_ml[1] <= _SMALL
