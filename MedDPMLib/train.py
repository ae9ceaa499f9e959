"""How is a model trained?

Every iteration draws its case, variation, timestep and noise from a generator of its own, seeded with the
recipe's seed and the iteration's number: a run that is stopped and started again sees what it would have seen.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from MedDPMLib.data import Case, draw_variation, smoothed_for
from MedDPMLib.device import Execution
from MedDPMLib.errors import MedDPMError
from MedDPMLib.labels import LabelScheme, load_scheme
from MedDPMLib.networks import build_network
from MedDPMLib.networks.wavelet import WaveletUNet3d
from MedDPMLib.recipe import Recipe, Training, recipe_card
from MedDPMLib.schedule import NoiseSchedule, make_schedule
from MedDPMLib.volume import written_whole

CHECKPOINT = "checkpoint.pt"
_CHECKPOINT_EVERY = 250


@dataclass(frozen=True)
class Example:
    """One iteration's input, float32: ``x0`` and ``noise`` (1, C, D, H, W), ``condition`` (1, K, D, H, W), ``t`` (1,)
    and ``weight`` (1, 1, D, H, W), how much an error counts at each voxel."""

    x0: Tensor
    noise: Tensor
    condition: Tensor
    t: Tensor
    weight: Tensor


def train(
    recipe: Recipe,
    cases: Sequence[Case],
    run: Path,
    *,
    execution: Execution,
    report: Callable[[int, float], None],
    compile: bool = False,
) -> dict[str, Tensor]:
    """Trains ``recipe`` on ``cases`` in the folder ``run`` and returns the averaged (EMA) weights.

    Continues from ``run``'s checkpoint if there is one. ``execution`` says where and in which precision; ``compile``
    fuses the network's kernels, which takes a minute and a C++ compiler. ``report(iteration, loss)`` is called after
    each iteration. Raises :class:`MedDPMError` when the loss is not finite, with the iteration.
    """
    trainer = Trainer(recipe, execution, compile=compile)
    trainer.load(run / CHECKPOINT)
    for example in _prepared_ahead(_examples(recipe, cases, trainer)):
        loss = trainer.step(example)
        if not math.isfinite(loss):
            raise MedDPMError(f"the loss of iteration {trainer.iteration} is not finite: lower the learning rate")
        report(trainer.iteration, loss)
        if trainer.iteration % _CHECKPOINT_EVERY == 0 or trainer.iteration == recipe.iterations:
            trainer.save(run / CHECKPOINT)
    return trainer.ema.state_dict()


class Trainer:
    """The state of a run: float32 weights, their average, the optimiser; and one step of it.

    Forward and backward run on a copy of the network in the execution's precision; its gradients update the float32
    weights. float16 is not for training: it would need its loss scaled.
    """

    def __init__(self, recipe: Recipe, execution: Execution, *, compile: bool = False) -> None:
        if execution.dtype == torch.float16:
            raise MedDPMError("training in float16 is not supported: use bfloat16 or float32")
        device = execution.device
        torch.manual_seed(recipe.training.seed)
        self.recipe = recipe
        self.device = device
        self.schedule = make_schedule(**recipe.schedule).to(device)
        self.network = build_network(recipe_card(recipe).network_description).to(
            device, memory_format=torch.channels_last_3d
        )
        if isinstance(self.network, WaveletUNet3d):
            self.network.trust_by_noise(self.schedule.alpha_bar)
        self.ema = copy.deepcopy(self.network).requires_grad_(False)
        self.working = copy.deepcopy(self.network).to(execution.dtype)
        # Each stage has one shape of its own.
        self.predict = torch.compile(self.working, dynamic=False) if compile else self.working
        self.optimiser = torch.optim.AdamW(
            self.network.parameters(), lr=recipe.training.learning_rate, weight_decay=recipe.training.weight_decay
        )
        self.iteration = 0

    def step(self, example: Example) -> float:
        """One optimisation step; the loss."""
        settings = self.recipe.training
        loss = self._loss(example)
        loss.backward()
        for master, worker in zip(self.network.parameters(), self.working.parameters(), strict=True):
            master.grad = worker.grad.float()
            worker.grad = None
        nn.utils.clip_grad_norm_(self.network.parameters(), settings.gradient_norm)
        for group in self.optimiser.param_groups:
            group["lr"] = learning_rate(settings, self.iteration, self.recipe.iterations)
        self.optimiser.step()
        self.iteration += 1
        decay = min(settings.ema, (1 + self.iteration) / (10 + self.iteration))
        with torch.no_grad():
            for average, master, worker in zip(
                self.ema.parameters(), self.network.parameters(), self.working.parameters(), strict=True
            ):
                average.lerp_(master, 1 - decay)
                worker.copy_(master)
        return loss.item()

    def _loss(self, example: Example) -> Tensor:
        """Weighted L1 between the predicted and the true x0."""
        x0, t = example.x0.to(self.device), example.t.to(self.device)
        x_t = self.schedule.add_noise(x0, t, example.noise.to(self.device))
        predicted = self.predict(x_t, t, example.condition.to(self.device)).float()
        estimate = self.schedule.x0_from(predicted, x_t, t, self.recipe.prediction)
        weight = example.weight.to(self.device)
        sigma = (1 - self.schedule.alpha_bar[t]).sqrt()
        error = ((estimate - x0).abs() * weight).mean() / weight.mean()
        return error / sigma.clamp(min=self.recipe.training.sigma_floor).squeeze()

    def save(self, path: Path) -> None:
        state = {
            "iteration": self.iteration,
            "network": self.network.state_dict(),
            "ema": self.ema.state_dict(),
            "optimiser": self.optimiser.state_dict(),
        }
        with written_whole(path) as temporary:
            torch.save(state, temporary)

    def load(self, path: Path) -> None:
        """Continues from the checkpoint at ``path``, if it exists."""
        if not path.exists():
            return
        state = torch.load(path, map_location=self.device, weights_only=True)
        try:
            self.network.load_state_dict(state["network"])
            self.ema.load_state_dict(state["ema"])
        except RuntimeError as error:
            raise MedDPMError(f"{path} is of another recipe's network: choose another run folder") from error
        self.optimiser.load_state_dict(state["optimiser"])
        self.iteration = state["iteration"]
        with torch.no_grad():
            for master, worker in zip(self.network.parameters(), self.working.parameters(), strict=True):
                worker.copy_(master)


def learning_rate(settings: Training, iteration: int, iterations: int) -> float:
    """Linear warm-up, then half a cosine down to the final rate."""
    if iteration < settings.warm_up:
        return settings.learning_rate * (iteration + 1) / settings.warm_up
    done = (iteration - settings.warm_up) / max(1, iterations - settings.warm_up)
    low, high = settings.final_learning_rate, settings.learning_rate
    return low + (high - low) * 0.5 * (1 + math.cos(math.pi * min(1.0, done)))


def _examples(recipe: Recipe, cases: Sequence[Case], trainer: Trainer) -> Iterator[Example]:
    """The examples of all iterations that ``trainer`` has not done yet, in order."""
    scheme = load_scheme(recipe.scheme)
    schedule = make_schedule(**recipe.schedule)
    first = 0
    start = trainer.iteration
    for stage in recipe.stages:
        last = first + stage.iterations
        if start < last:
            shape = tuple(reversed(stage.size))
            smoothed = [smoothed_for(case, shape) for case in cases]
            for iteration in range(max(first, start), last):
                yield make_example(recipe, scheme, schedule, smoothed, shape, iteration)
        first = last


def make_example(
    recipe: Recipe,
    scheme: LabelScheme,
    schedule: NoiseSchedule,
    cases: Sequence[Case],
    shape: Sequence[int],
    iteration: int,
) -> Example:
    """What iteration ``iteration`` learns from, on a grid of ``shape`` (D, H, W); the same each time it is asked."""
    settings = recipe.training
    generator = torch.Generator().manual_seed((settings.seed << 32) + iteration)
    case = cases[int(torch.randint(len(cases), (), generator=generator))]
    image, labels = draw_variation(case, recipe.augmentation, generator).apply(case, shape)
    r = torch.rand((1,), generator=generator, dtype=torch.float64)
    t = ((1 - r**settings.high_noise) * schedule.timesteps).long().clamp(max=schedule.timesteps - 1)
    low, high = recipe.mask_encoding
    condition = torch.from_numpy(scheme.one_hot(labels.numpy())).float() * (high - low) + low
    weight = torch.full(labels.shape, settings.background_weight)
    weight[labels > 0] = 1.0
    for label in scheme.tumour:
        weight[labels == label.value] = settings.tumour_weight
    noise = torch.randn((1, *image.shape), generator=generator)
    return Example(image[None], noise, condition[None], t, weight[None, None])


def _prepared_ahead(examples: Iterator[Example]) -> Iterator[Example]:
    """``examples``, the next one made in a thread while the current one is learnt from."""
    # One thread of its own, or its threads and those of the convolutions wait for each other.
    with ThreadPoolExecutor(max_workers=1, initializer=torch.set_num_threads, initargs=(1,)) as pool:
        pending = pool.submit(next, examples, None)
        while (example := pending.result()) is not None:
            pending = pool.submit(next, examples, None)
            yield example
