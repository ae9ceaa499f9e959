"""What does a network learn, from which examples? One answer for networks of timesteps, one for levels of a cascade."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

from MedDPMLib.data import Case
from MedDPMLib.diffusion.schedule import make_schedule
from MedDPMLib.networks import build_network
from MedDPMLib.networks.denoiser import Denoiser, Network
from MedDPMLib.recipes.recipe import Recipe, Stage, recipe_card
from MedDPMLib.train.distillation import Teacher
from MedDPMLib.train.examples import Example, Examples
from MedDPMLib.train.objective import Objective


class Batch(Protocol):
    """What one forward pass learns from; ``cases`` are the names of the cases in it."""

    @property
    def cases(self) -> tuple[str, ...]: ...


class BatchesByNumber(Protocol):
    """The examples of a stage, each the same whenever it is asked for."""

    def batch(self, numbers: Sequence[int]) -> Any:
        """The examples of these numbers together."""

    def held_out(self) -> Iterator[Any]:
        """The fixed batches to measure on, where the cases are held out."""


class Task(ABC):
    """What is learnt: the fresh ``network`` (float32), its loss, and its examples."""

    network: Network
    #: The model whose steps are learnt, if any.
    teacher: Teacher | None = None
    #: Whether the processes of a run may share the network's weights among them.
    shardable = True

    @abstractmethod
    def loss(self, network: nn.Module, batch: Any) -> Tensor:
        """The loss of a batch, float32, on the device; ``network`` is one that answers as :attr:`network` does."""

    @abstractmethod
    def examples(self, stage: Stage, cases: Dataset | Sequence[Case]) -> BatchesByNumber:
        """What is learnt from ``cases``."""

    def own_weights(self, weights: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        """Those of another model's ``weights`` that the network may start from, by its own names."""
        return weights

    @abstractmethod
    def random_batch(self, size: Sequence[int], count: int) -> Any:
        """A batch of ``count`` examples of ``size`` (i, j, k) voxels of nothing, for measuring time and memory."""


class TimestepTask(Task):
    """The recipe of a network that is asked at timesteps; computed on ``device``, the teacher in ``dtype``."""

    def __init__(self, recipe: Recipe, device: torch.device, dtype: torch.dtype) -> None:
        self.recipe, self.device = recipe, device
        self.schedule = make_schedule(**recipe.schedule).to(device)
        self.objective = Objective(recipe.training, recipe.prediction, self.schedule)
        self.teacher = Teacher(recipe, self.schedule, device, dtype) if recipe.distillation else None
        network: Denoiser = build_network(recipe_card(recipe).network_description)
        network.start_training(self.schedule.alpha_bar.cpu())
        self.network = network

    def loss(self, network: nn.Module, batch: Example) -> Tensor:
        batch = batch.to(self.device)
        x_t = self.schedule.add_noise(batch.x0, batch.t, batch.noise)
        x0, noise = batch.x0, batch.noise
        if self.teacher:
            x0 = self.teacher.x0(x_t, batch.t, batch.condition)
            noise = self.schedule.noise_from(x0, x_t, batch.t, "x0")
        predicted = network(x_t.contiguous(memory_format=torch.channels_last_3d), batch.t, batch.condition)
        return self.objective.loss(predicted, x0, noise, batch.t, batch.weight)

    def examples(self, stage: Stage, cases: Dataset | Sequence[Case]) -> Examples:
        return Examples(self.recipe, stage, cases)

    def random_batch(self, size: Sequence[int], count: int) -> Example:
        described = recipe_card(self.recipe).network_description
        generator = torch.Generator().manual_seed(0)
        images = described["image_channels"]
        x0, noise, condition, weight = (
            torch.rand((count, channels, *reversed(size)), generator=generator)
            for channels in (images, images, described["condition_channels"], 1)
        )
        t = torch.full((count,), self.recipe.schedule["timesteps"] // 2)
        return Example(x0, noise, condition, t, weight, ("random",)).to(self.device)
