"""Mask in, volumes out: the one function behind library, command line and panel."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from MedDPMLib.diffusion.samplers import plan_steps, sample
from MedDPMLib.errors import MedDPMError, OutOfMemory
from MedDPMLib.imaging.volume import Volume
from MedDPMLib.inference import cascade
from MedDPMLib.inference.appearance import chosen_appearance
from MedDPMLib.inference.atlas import network_labels
from MedDPMLib.inference.memory_plan import MemoryPlan, not_enough, plan_memory
from MedDPMLib.inference.record import make_record
from MedDPMLib.inference.result import Generated, volumes_of
from MedDPMLib.inference.settings import GenerationSettings
from MedDPMLib.masks.condition import condition, voxel_positions
from MedDPMLib.masks.fit import Fitted
from MedDPMLib.masks.mask import Mask, read_mask
from MedDPMLib.models.card import Card
from MedDPMLib.models.model import Model
from MedDPMLib.networks.cascade import Cascade
from MedDPMLib.networks.denoiser import Denoiser
from MedDPMLib.networks.memory_mode import MemoryMode
from MedDPMLib.runtime.allocator import handing_back
from MedDPMLib.runtime.device import Execution, choose_execution
from MedDPMLib.validation import as_python, whole

#: (step from 1, steps, current estimate of x0 (1, C, D, H, W)) after every step; what it raises ends the run.
Progress = Callable[[int, int, Tensor], None]

_SEED = as_python(whole(0, 2**63 - 1))


def generate(
    model: Model,
    mask: str | os.PathLike | Mask | Volume,
    *,
    seed: int = 0,
    settings: GenerationSettings | None = None,
    progress: Progress | None = None,
    **changes: Any,
) -> Generated:
    """One synthetic volume of each of the model's modalities for ``mask``.

    ``mask`` is a file, a :class:`Volume` of labels or a checked :class:`Mask`. The same seed (0 to 2^63 - 1) gives the
    same volumes on the same device. ``settings`` are those of :class:`GenerationSettings`, each of which can be given
    by its name too: ``generate(model, mask, steps=20, device="cpu")``. Voxels of the mask's grid that the model's does
    not reach are background.

    Raises :class:`MedDPMError` for whatever is wrong with mask or settings, and :class:`OutOfMemory`.
    """
    chosen = (settings or GenerationSettings()).changed(**changes)
    checked, seed = as_mask(mask, model), check_seed(seed)
    return plan_run(model, chosen).generate(checked, seed=seed, progress=progress)


def check_seed(seed: object) -> int:
    return _SEED.read(seed, "the seed")


@dataclass(frozen=True, eq=False)
class PlannedRun:
    """Everything that the volumes of many masks and seeds have in common: ``settings`` as they are for the ``model``,
    where and how the network runs, and in how much memory. Made by :func:`plan_run`."""

    model: Model
    settings: GenerationSettings
    execution: Execution
    plan: MemoryPlan

    @property
    def description(self) -> str:
        """Where, how and in how much memory it is going to run: a line for the log."""
        return f"{self.model.card.name} {self.execution.reason}; {self.plan.sentence}"

    def generate(
        self, mask: str | os.PathLike | Mask | Volume, *, seed: int = 0, progress: Progress | None = None
    ) -> Generated:
        """As the function :func:`generate`, without planning it anew."""
        model, settings, execution = self.model, self.settings, self.execution
        mask, seed = as_mask(mask, model), check_seed(seed)
        started = time.perf_counter()
        sparing = nullcontext() if self.plan.mode is MemoryMode.FAST else handing_back()
        with _memory_explained(model, execution, guided=settings.guided), sparing:
            fitted = network_labels(mask, model.card, seed)
            network = model.prepared(execution, self.plan.mode)
            if isinstance(network, Cascade):
                images = cascade.draw(
                    network, fitted.labels, model.card.condition_scheme,
                    chosen_appearance(network, model.card, settings.appearance, seed), seed=seed, steps=settings.steps,
                    dtype=execution.dtype, progress=progress,
                )  # fmt: skip
            else:
                images = _sample(model, network, fitted, execution, settings, seed, progress)
        record = make_record(
            model=model, mask=mask, fitted=fitted, execution=execution, settings=settings, seed=seed,
            memory=self.plan.computation, seconds=time.perf_counter() - started,
        )  # fmt: skip
        geometry = mask.volume.geometry if settings.space == "mask" else fitted.geometry
        return Generated(volumes_of(model.card, images, fitted.geometry, geometry), record)


def plan_run(model: Model, settings: GenerationSettings, execution: Execution | None = None) -> PlannedRun:
    """Decides once how ``model`` makes volumes with ``settings``; ``execution`` if it has been chosen already.

    Raises :class:`MedDPMError` for settings that do not fit the model or this machine, and :class:`OutOfMemory`.
    """
    settings = settings.for_card(model.card)
    execution = execution or choose_execution(settings.device, settings.precision)
    plan = plan_memory(model, execution, memory=settings.memory, guided=settings.guided)
    return PlannedRun(model, settings, execution, plan)


def as_mask(mask: str | os.PathLike | Mask | Volume, model: Model) -> Mask:
    """``mask`` checked against the model's label scheme."""
    scheme = model.card.scheme
    if isinstance(mask, Volume):
        return Mask.from_volume(mask, scheme)
    if isinstance(mask, (str, os.PathLike)):
        return read_mask(mask, scheme)
    if not isinstance(mask, Mask):
        raise MedDPMError(
            f"a mask is a file, a Volume or a Mask, not a {type(mask).__name__}: an array has no geometry"
        )
    if mask.scheme != scheme:
        raise MedDPMError(
            f'{mask.name} is a mask of the scheme "{mask.scheme.name}",'
            f' the model {model.card.name} needs "{scheme.name}"'
        )
    return mask


def _sample(
    model: Model,
    network: Denoiser,
    fitted: Fitted,
    execution: Execution,
    settings: GenerationSettings,
    seed: int,
    progress: Progress | None,
) -> Tensor:
    """The images (C, D, H, W), float32 on the CPU."""
    card = model.card
    labels = condition_tensor(card, as_network(card, fitted.labels), execution, exact=network.exact_condition)
    evaluations = sum(map(len, plan_steps(model.schedule, settings.sampler, settings.steps)))
    # Noise from a generator of the CPU is the same for every device.
    images = sample(
        _predictor(network, card, labels, execution.dtype, settings.guidance, evaluations),
        labels,
        model.schedule,
        shape=(1, len(card.modalities), *card.array_shape),
        method=settings.sampler,
        steps=settings.steps,
        generator=torch.Generator().manual_seed(seed),
        prediction=card.prediction,
        progress=_in_step(_of_volumes(progress, card), execution.device) if progress else None,
    )
    return as_volumes(card, images)[0].cpu()


def as_network(card: Card, labels: np.ndarray) -> np.ndarray:
    """``labels`` (D, H, W) with the axes of the network's arrays."""
    return labels if card.axes == "zyx" else labels.transpose()


def as_volumes(card: Card, images: Tensor) -> Tensor:
    """The network's ``images`` (B, C, ...) as those of volumes: (B, C, D, H, W), in [-1, 1]."""
    if card.axes != "zyx":
        images = images.permute(0, 1, 4, 3, 2)
    low, high = card.image_range
    if (low, high) == (-1, 1):
        return images
    return ((images.float() - low) * (2 / (high - low)) - 1).clamp(-1, 1)


def _of_volumes(progress: Progress, card: Card) -> Progress:
    return lambda step, steps, x0: progress(step, steps, as_volumes(card, x0))


def _in_step(progress: Progress, device: torch.device) -> Progress:
    """``progress``, called for a step only when ``device`` has finished the previous one: work is queued on a GPU long
    before it is done."""
    if device.type != "cuda":
        return progress
    before = None

    def tell(step: int, steps: int, x0: Tensor) -> None:
        nonlocal before
        if before is not None:
            before.synchronize()
        before = torch.cuda.current_stream(device).record_event()
        progress(step, steps, x0)

    return tell


def condition_tensor(card: Card, labels: np.ndarray, execution: Execution, *, exact: bool = False) -> Tensor:
    """:func:`MedDPMLib.masks.condition.condition` of ``labels`` (D, H, W) for a model's ``card``: (1, K, D, H, W).

    The card's constants follow the labels. In the execution's precision, or with ``exact`` in float32
    (:attr:`Denoiser.exact_condition`). Made section by section, because the whole in float32 would be the largest array
    of a run.
    """
    channels = card.network_description["condition_channels"]
    dtype = torch.float32 if exact else execution.dtype
    made = torch.empty(1, channels, *labels.shape, dtype=dtype, device=execution.device)
    scheme = card.condition_scheme
    count = len(scheme.labels)
    for k, section in enumerate(labels):
        made[0, :count, k] = torch.from_numpy(condition(section[None], scheme, card.mask_encoding)[:, 0])
    for channel, value in enumerate(card.constants, count):
        made[0, channel] = value
    if card.positions:
        made[0, count + len(card.constants) :] = torch.from_numpy(voxel_positions(labels.shape))
    return made


def _predictor(
    network: Denoiser, card: Card, labels: Tensor, dtype: torch.dtype, guidance: float, evaluations: int
) -> Callable[[Tensor, Tensor, Tensor], Tensor]:
    """``network``, which computes in ``dtype``, for so many ``evaluations``; its work on ``labels`` (1, K, D, H, W) is
    done once.

    With a ``guidance`` it is guided (classifier-free; Ho and Salimans 2022, arXiv 2207.12598), in whatever it predicts.
    """
    conditions = [labels]
    if guidance != 1:
        nothing = labels.clone()
        nothing[:, : len(card.condition_scheme.labels)] = card.mask_encoding[0]
        conditions.append(nothing)
    with torch.no_grad():
        encoded = [network.encode_condition(condition) for condition in conditions]
    asked = 0

    def predict(x: Tensor, t: Tensor, _: Tensor) -> Tensor:
        nonlocal asked
        asked += 1
        x = x.to(dtype)
        if asked == evaluations:
            pairs = zip(conditions, encoded, strict=True)
            predicted = [network.denoise_last(x, t, condition, share) for condition, share in pairs]
        else:
            predicted = [network.denoise(x, t, share) for share in encoded]
        if guidance == 1:
            return predicted[0]
        return torch.lerp(predicted[1].float(), predicted[0].float(), guidance)

    return predict


@contextmanager
def _memory_explained(model: Model, execution: Execution, guided: bool):
    """Says what would fit when memory runs out in spite of the plan."""
    try:
        yield
    except (MemoryError, torch.OutOfMemoryError) as error:
        raise OutOfMemory(not_enough(model, execution, "it ran out", guided)) from error
    except RuntimeError as error:
        if "alloc" not in str(error) or "memory" not in str(error):  # what the CPU's allocator says
            raise
        raise OutOfMemory(not_enough(model, execution, "it ran out", guided)) from error
