"""How does a network that is asked at timesteps make images? By the steps of a sampler, its condition encoded once."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from MedDPMLib.diffusion.samplers import plan_steps, sample
from MedDPMLib.inference.settings import GenerationSettings
from MedDPMLib.masks.condition import condition, voxel_positions
from MedDPMLib.models.card import Card
from MedDPMLib.models.model import Model
from MedDPMLib.networks.denoiser import Denoiser
from MedDPMLib.runtime.device import Execution

#: (step from 1, steps, current estimate of x0 (1, C, D, H, W)) after every step; what it raises ends the run.
Progress = Callable[[int, int, Tensor], None]


def sample_by_timesteps(
    model: Model,
    network: Denoiser,
    labels: np.ndarray,
    execution: Execution,
    settings: GenerationSettings,
    seed: int,
    progress: Progress | None,
) -> Tensor:
    """The images (C, D, H, W), float32 on the CPU; see :func:`MedDPMLib.inference.sampling.sample_images`."""
    card = model.card
    encoded = condition_tensor(card, as_network(card, labels), execution, exact=network.exact_condition)
    evaluations = sum(map(len, plan_steps(model.schedule, settings.sampler, settings.steps)))
    # Noise from a generator of the CPU is the same for every device.
    images = sample(
        _predictor(network, card, encoded, execution.dtype, settings.guidance, evaluations),
        encoded,
        model.schedule,
        shape=(1, len(card.modalities), *card.array_shape),
        method=settings.sampler,
        steps=settings.steps,
        generator=torch.Generator().manual_seed(seed),
        prediction=card.prediction,
        progress=_in_step(_of_volumes(progress, card), execution.device) if progress else None,
    )
    return as_volumes(card, images)[0].cpu()


def first_glance(
    model: Model, network: Denoiser, labels: np.ndarray, execution: Execution, settings: GenerationSettings, seed: int
) -> Tensor:
    """About what the first step will show, (1, C, D, H, W), in an eighth of its time: every second voxel along each
    axis. To be looked at while the first step is computed, which takes seconds on a CPU; nothing follows from it."""
    card = model.card
    halved = as_network(card, labels)[::2, ::2, ::2]
    sides = halved.shape
    halved = np.pad(halved, [(0, -side % network.side_multiple) for side in sides])
    encoded = condition_tensor(card, halved, execution, exact=network.exact_condition)
    assert model.schedule is not None  # the networks of timesteps have one
    first = plan_steps(model.schedule, settings.sampler, settings.steps)[0][0].t
    t = torch.full((1,), first, dtype=torch.int64, device=execution.device)
    noise = torch.randn(1, len(card.modalities), *halved.shape, generator=torch.Generator().manual_seed(seed))
    x = noise.to(execution.device)
    with torch.no_grad():
        predicted = network.denoise(x.to(execution.dtype), t, network.encode_condition(encoded))
        x0 = model.schedule.to(execution.device).x0_from(predicted, x, t, card.prediction).clamp(-1, 1)
        x0 = x0[:, :, : sides[0], : sides[1], : sides[2]]
        whole = functional.interpolate(x0.float(), scale_factor=2, mode="trilinear")
    depth, height, width = as_network(card, labels).shape
    return as_volumes(card, whole[:, :, :depth, :height, :width])


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
