"""How is one segmenter trained and judged? Interrupted at any moment, it resumes and ends with the same weights."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from monai.inferers import sliding_window_inference
from monai.losses import DiceLoss
from monai.networks.nets import SegResNet, UNet
from torch import Tensor, nn

from MedDPMLib.data import Case
from MedDPMLib.errors import MedDPMError
from MedDPMLib.experiment.cases import Cases, Split
from MedDPMLib.experiment.examples import ArmExamples, regions_of, whole_image
from MedDPMLib.experiment.recipe import ExperimentRecipe
from MedDPMLib.metrics.overlap import dice
from MedDPMLib.metrics.surfaces import agreement
from MedDPMLib.runtime.device import Execution
from MedDPMLib.train.checkpoints import Checkpoints
from MedDPMLib.train.examples import made_ahead

_NEEDED = ("iteration", "network", "optimizer", "best", "score", "curve")

#: By patient, then region, then figure.
Scores = dict[str, dict[str, dict[str, float]]]


def build_segmenter(recipe: ExperimentRecipe) -> nn.Module:
    """A fresh network from images (B, C, D, H, W) to the scores (B, R, D, H, W) of the regions, before the sigmoid."""
    settings, inputs, outputs = recipe.network, len(recipe.modalities), len(recipe.regions)
    if settings.kind == "segresnet":
        return SegResNet(
            in_channels=inputs, out_channels=outputs, init_filters=settings.width,
            blocks_down=(1, *[2] * (settings.levels - 1)), blocks_up=(1,) * (settings.levels - 1),
        )  # fmt: skip
    channels = [settings.width * 2**level for level in range(settings.levels)]
    strides = [2] * (settings.levels - 1)
    return UNet(spatial_dims=3, in_channels=inputs, out_channels=outputs, channels=channels, strides=strides,
                num_res_units=2)  # fmt: skip


class SegmenterTraining:
    """The training of one segmenter on ``examples`` in ``folder``; ``validation`` cases choose the weights."""

    def __init__(
        self,
        recipe: ExperimentRecipe,
        examples: ArmExamples,
        validation: Cases,
        seed: int,
        folder: Path,
        execution: Execution,
        tell: Callable[[str], None],
    ) -> None:
        self.recipe, self.examples, self.validation, self.execution = recipe, examples, validation, execution
        torch.manual_seed(seed)
        self.network = build_segmenter(recipe).to(execution.device)
        budget = recipe.budget
        self.optimizer = torch.optim.AdamW(
            self.network.parameters(), lr=budget.learning_rate, weight_decay=budget.weight_decay
        )
        self.overlap = DiceLoss(sigmoid=True, batch=True)
        self.iteration, self.best, self.score = 0, _copied(self.network), -math.inf
        #: Iteration, mean loss since the entry before, and mean Dice of the validation patients (None without any).
        self.curve: list[tuple[int, float, float | None]] = []
        self.checkpoints = Checkpoints(folder, keep=1)
        self.checkpoints.clean()
        if (state := self.checkpoints.load(tell, _NEEDED)) is not None:
            self._resume(state)

    def run(self, report: Callable[[int], None]) -> None:
        """Trains to the end of the budget; ``report`` is called with the number of iterations that are done."""
        budget = self.recipe.budget
        losses = []
        wanted = range(self.iteration, budget.iterations)
        for images, regions in made_ahead(self.examples.batch, wanted, workers=1):
            losses.append(self._step(images.to(self.execution.device), regions.to(self.execution.device)))
            if self.iteration % budget.checkpoint_every == 0 or self.iteration == budget.iterations:
                self._judge(sum(losses) / len(losses))
                losses = []
                self.checkpoints.save(self._state())
            report(self.iteration)
        self.network.load_state_dict(self.best)

    @torch.inference_mode()
    def segment(self, case: Case) -> np.ndarray:
        """The regions (R, D, H, W), boolean, of ``case`` on its own voxels."""
        self.network.eval()
        image = whole_image(case, self.recipe).to(self.execution.device)
        with self._precision():
            scores = self.network(image) if self.recipe.patch is None else self._by_patches(image)
        scores = scores.float()
        shape = tuple(case.labels.shape)
        if tuple(scores.shape[2:]) != shape:
            scores = F.interpolate(scores, shape, mode="trilinear", align_corners=False)
        return (scores[0] > 0).cpu().numpy()

    def _precision(self) -> torch.autocast:
        """MONAI's networks keep float32 weights: their convolutions are computed in bfloat16 where that is faster."""
        low = self.execution.dtype == torch.bfloat16
        return torch.autocast(self.execution.device.type, torch.bfloat16, enabled=low)

    def _by_patches(self, image: Tensor) -> Tensor:
        part = tuple(reversed(self.recipe.patch or self.recipe.size))
        return sliding_window_inference(image, part, 1, self.network, overlap=0.5, mode="gaussian")

    def _step(self, images: Tensor, regions: Tensor) -> float:
        budget = self.recipe.budget
        self.network.train()
        for group in self.optimizer.param_groups:
            group["lr"] = budget.learning_rate * 0.5 * (1 + math.cos(math.pi * self.iteration / budget.iterations))
        with self._precision():
            scores = self.network(images).float()
        loss = self.overlap(scores, regions) + F.binary_cross_entropy_with_logits(scores, regions)
        self.optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(self.network.parameters(), 1.0)
        self.optimizer.step()
        self.iteration += 1
        if not math.isfinite(value := float(loss.detach())):
            raise MedDPMError(f"the loss of iteration {self.iteration} is not finite: lower budget.learning_rate")
        return value

    def _judge(self, loss: float) -> None:
        """Keeps the weights if they are the best so far; without validation cases the last are."""
        score = None
        if len(self.validation):
            score = float(np.mean([list(self._dice(case)) for case in _each(self.validation)]))
        if score is None or score > self.score:
            self.best, self.score = _copied(self.network), self.score if score is None else score
        self.curve.append((self.iteration, loss, score))

    def _dice(self, case: Case) -> Iterator[float]:
        truth = regions_of(case.labels, self.recipe).numpy()
        for found, true in zip(self.segment(case), truth, strict=True):
            yield dice(found, true) if found.any() or true.any() else 1.0

    def _state(self) -> dict[str, Any]:
        return {
            "iteration": self.iteration, "network": self.network.state_dict(), "best": self.best, "score": self.score,
            "optimizer": self.optimizer.state_dict(), "curve": self.curve,
        }  # fmt: skip

    def _resume(self, state: dict[str, Any]) -> None:
        self.network.load_state_dict(state["network"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.iteration, self.best, self.score = state["iteration"], state["best"], state["score"]
        self.curve = [tuple(entry) for entry in state["curve"]]


@dataclass(frozen=True)
class Done:
    """What came of a training: ``scores`` of the test cases, the number of ``cases`` that it was trained on, and the
    ``curve``: iteration, loss, and mean Dice of the validation patients (None without any)."""

    scores: Scores
    cases: int
    curve: list[tuple[int, float, float | None]]


def train_segmenter(
    recipe: ExperimentRecipe,
    split: Split,
    arm_name: str,
    count: int,
    seed: int,
    folder: Path,
    execution: Execution,
    report: Callable[[int], None],
    tell: Callable[[str], None],
) -> Done:
    """Trains the segmenter of an arm with its checkpoints in ``folder``, or resumes, and judges it by Dice, IoU and
    HD95 of every region in each test case."""
    arm = recipe.arm(arm_name)
    cases = split.training(arm.data, count, seed)
    examples = ArmExamples(recipe, arm, cases, seed)
    training = SegmenterTraining(recipe, examples, split.validation, seed, folder, execution, tell)
    training.run(report)
    scores: Scores = {}
    for case in _each(split.test):
        truth = regions_of(case.labels, recipe).numpy()
        pairs = zip(recipe.regions, training.segment(case), truth, strict=True)
        scores[case.name] = {region: asdict(agreement(found, true, case.spacing)) for region, found, true in pairs}
    return Done(scores, len(cases), training.curve)


def _each(cases: Cases) -> Iterator[Case]:
    return (cases[index] for index in range(len(cases)))


def _copied(network: nn.Module) -> dict[str, Tensor]:
    return {name: value.detach().cpu().clone() for name, value in network.state_dict().items()}
