"""How does a segmenter take one step of its training? As every network does, on another loss."""

from __future__ import annotations

from torch import nn

from MedDPMLib.train.engine import Engine
from MedDPMLib.train.segmentation_objective import segmentation_loss
from MedDPMLib.train.segmenter_examples import SegmenterExample


class SegmenterEngine(Engine):
    """The engine of a :class:`MedDPMLib.recipes.segmenter.SegmenterRecipe`."""

    def _set_objective(self) -> None:
        """The loss needs no schedule and no teacher."""
        self.teacher = None

    def _start_network(self) -> None:
        """Nothing of the network depends on a schedule."""

    def loss(self, network: nn.Module, batch: SegmenterExample):  # type: ignore[override]
        batch = batch.to(self.device)
        x = batch.x.to(next(network.parameters()).dtype)
        targets = [batch.structures, batch.tumor if batch.asked else None]
        return segmentation_loss(network, x, targets, batch.places, self.recipe.training.background_weight)
