"""Mask in, volumes out: the one way that the API, the command line and the panel take."""

from __future__ import annotations

import operator
import os
import time
from collections.abc import Callable
from contextlib import contextmanager, nullcontext

import numpy as np
import torch
from torch import Tensor

from MedDPMLib.diffusion.samplers import sample
from MedDPMLib.errors import MedDPMError, OutOfMemory
from MedDPMLib.imaging.geometry import Geometry
from MedDPMLib.imaging.resample import resample_image
from MedDPMLib.imaging.volume import Volume
from MedDPMLib.inference import cascade
from MedDPMLib.inference.appearance import RANDOM, TYPICAL, Appearance, random_appearance, typical_appearance
from MedDPMLib.inference.atlas import network_labels
from MedDPMLib.inference.memory_plan import MemoryPlan, not_enough, plan_memory
from MedDPMLib.inference.record import make_record
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

#: Where the result lies: on the model's own grid, or resampled onto the mask's.
SPACES = ("model", "mask")

#: Beyond this an image is nothing but contrast.
MAX_GUIDANCE = 20.0

#: (step from 1, steps, current estimate of x0 (1, C, D, H, W)) after every step; what it raises ends the run.
Progress = Callable[[int, int, Tensor], None]


class Generated(dict[str, Volume]):
    """The volumes by modality, float32 in the card's intensity range, and the ``record`` of how they were made."""

    def __init__(self, volumes: dict[str, Volume], record: dict) -> None:
        super().__init__(volumes)
        self.record = record


def generate(
    model: Model,
    mask: str | os.PathLike | Mask | Volume,
    *,
    seed: int = 0,
    steps: int | None = None,
    sampler: str | None = None,
    device: str | torch.device = "auto",
    precision: str = "auto",
    guidance: float = 1.0,
    appearance: str | Appearance = RANDOM,
    memory: str | MemoryPlan = "auto",
    space: str = "model",
    progress: Progress | None = None,
) -> Generated:
    """One synthetic volume of each of the model's modalities for ``mask``.

    ``mask`` is a file, a :class:`Volume` of labels or a checked :class:`Mask`. ``steps`` and ``sampler`` (one of
    :data:`MedDPMLib.diffusion.names.METHODS`) default to the card's quality "standard". The same seed gives the same
    volumes on the same device. ``guidance`` above 1 draws the labels more strongly than they were learnt, at twice the
    work for each step (see :func:`check_guidance`). ``appearance`` is whose look the brain gets, of models that know
    several (a cascade; others ignore it): "random" that of a training brain drawn by the seed, "typical" their median,
    or one from :func:`MedDPMLib.inference.appearance.appearance_of`. ``memory`` is "auto", "low" or a limit such as
    "4 GB" (see :func:`MedDPMLib.inference.memory_plan.plan_memory`, whose plan is taken too). ``space`` is one of
    :data:`SPACES`; voxels of the mask's grid that the model's does not reach are background.

    Raises :class:`MedDPMError` for whatever is wrong with mask or settings, and :class:`OutOfMemory`.
    """
    if space not in SPACES:
        raise MedDPMError(f'there is no space "{space}": use {" or ".join(SPACES)}')
    seed = _whole("seed", seed)
    if not 0 <= seed < 2**63:
        raise MedDPMError(f"the seed is a whole number from 0 to 2^63 - 1, not {seed}")
    card = model.card
    standard = card.qualities["standard"]
    steps = standard["steps"] if steps is None else _whole("number of steps", steps)
    sampler = standard["sampler"] if sampler is None else sampler
    guidance = check_guidance(card, guidance)
    mask = as_mask(mask, model)
    execution = choose_execution(device, precision)
    plan = memory
    if not isinstance(plan, MemoryPlan):
        plan = plan_memory(model, execution, memory=memory, guided=guidance != 1)
    started = time.perf_counter()
    sparing = nullcontext() if plan.mode is MemoryMode.FAST else handing_back()
    with _memory_explained(model, execution, guided=guidance != 1), sparing:
        fitted = network_labels(mask, card, seed)
        network = model.prepared(execution, plan.mode)
        if isinstance(network, Cascade):
            check_steps(card, sampler, steps)
            look = _look(network, appearance, seed)
            images = cascade.draw(
                network, fitted.labels, card.condition_scheme, look.values, seed=seed, steps=steps,
                dtype=execution.dtype, progress=progress,
            )  # fmt: skip
        else:
            look = None
            images = _sample(model, network, fitted, execution, seed, steps, sampler, guidance, progress)
    record = make_record(
        model=model, mask=mask, fitted=fitted, execution=execution, seed=seed, steps=steps, sampler=sampler,
        guidance=guidance, appearance=look and look.name, memory=plan.way, space=space,
        seconds=time.perf_counter() - started,
    )  # fmt: skip
    geometry = mask.volume.geometry if space == "mask" else fitted.geometry
    return Generated(volumes(card, images, fitted.geometry, geometry), record)


def _whole(what: str, value: object) -> int:
    """``value`` as Python's own integer, which generators and JSON need; those of numpy count."""
    try:
        return operator.index(value)
    except TypeError:
        raise MedDPMError(f"the {what} is a whole number, not {value!r:.50}") from None


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


def check_guidance(card: Card, guidance: float) -> float:
    """``guidance`` if the model of ``card`` can be guided so: 1 is no guidance, another needs ``label_dropout``.

    Raises :class:`MedDPMError` otherwise, and outside 0 to :data:`MAX_GUIDANCE`.
    """
    try:
        guidance = float(guidance)
    except (TypeError, ValueError):
        raise MedDPMError(f"the guidance is a number from 0 to {MAX_GUIDANCE:g}, not {guidance!r:.50}") from None
    if not 0 <= guidance <= MAX_GUIDANCE:
        raise MedDPMError(f"the guidance is a number from 0 to {MAX_GUIDANCE:g}, not {guidance:g}")
    if guidance != 1 and not card.label_dropout:
        raise MedDPMError(
            f"the model {card.name} cannot be guided, because it was trained with labels only: leave the guidance at 1"
        )
    return guidance


def check_steps(card: Card, sampler: str, steps: int) -> None:
    """:class:`MedDPMError` unless the cascade of ``card`` can be sampled so."""
    if sampler != cascade.METHOD:
        raise MedDPMError(f"the model {card.name} is sampled by {cascade.METHOD}, not by {sampler}")
    most = card.schedule["timesteps"]
    if not 1 <= steps <= most:
        raise MedDPMError(f"the number of steps is 1 to {most} for this model, not {steps}")


def _look(network: Cascade, appearance: str | Appearance, seed: int) -> Appearance:
    if isinstance(appearance, Appearance):
        return appearance
    if appearance not in (RANDOM, TYPICAL):
        raise MedDPMError(f'there is no appearance "{appearance}": use {RANDOM}, {TYPICAL} or that of a scan')
    return random_appearance(network, seed) if appearance == RANDOM else typical_appearance(network)


def _sample(
    model: Model,
    network: Denoiser,
    fitted: Fitted,
    execution: Execution,
    seed: int,
    steps: int,
    sampler: str,
    guidance: float,
    progress: Progress | None,
) -> Tensor:
    """The images (C, D, H, W), float32 on the CPU."""
    card = model.card
    labels = condition_tensor(card, fitted.labels, execution, exact=network.exact_condition)
    # Noise from a generator of the CPU is the same for every device.
    images = sample(
        _predictor(network, card, labels, execution.dtype, guidance, steps),
        labels,
        model.schedule,
        shape=(1, len(card.modalities), *fitted.labels.shape),
        method=sampler,
        steps=steps,
        generator=torch.Generator().manual_seed(seed),
        prediction=card.prediction,
        progress=_in_step(progress, execution.device) if progress else None,
    )
    return images[0].cpu()


def _in_step(progress: Progress, device: torch.device) -> Progress:
    """``progress``, told of a step not before ``device`` has done the one before it: a GPU is given its work long
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

    In the execution's precision, or with ``exact`` in float32 (:attr:`Denoiser.exact_condition`). Made section by
    section, because the whole in float32 would be the largest array of a run.
    """
    channels = card.network_description["condition_channels"]
    dtype = torch.float32 if exact else execution.dtype
    made = torch.empty(1, channels, *labels.shape, dtype=dtype, device=execution.device)
    scheme = card.condition_scheme
    count = len(scheme.labels)
    for k, section in enumerate(labels):
        made[0, :count, k] = torch.from_numpy(condition(section[None], scheme, card.mask_encoding)[:, 0])
    if card.positions:
        made[0, count:] = torch.from_numpy(voxel_positions(labels.shape))
    return made


def _predictor(
    network: Denoiser, card: Card, labels: Tensor, dtype: torch.dtype, guidance: float, steps: int
) -> Callable[[Tensor, Tensor, Tensor], Tensor]:
    """``network``, which computes in ``dtype``, for ``steps`` steps; its work on ``labels`` (1, K, D, H, W) done once.

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
        if asked == steps:
            pairs = zip(conditions, encoded, strict=True)
            predicted = [network.denoise_last(x, t, condition, share) for condition, share in pairs]
        else:
            predicted = [network.denoise(x, t, share) for share in encoded]
        if guidance == 1:
            return predicted[0]
        return torch.lerp(predicted[1].float(), predicted[0].float(), guidance)

    return predict


def volumes(card: Card, images: Tensor, geometry: Geometry, wanted: Geometry) -> dict[str, Volume]:
    """By modality the ``images`` (C, D, H, W; on the CPU) of ``geometry``, in the card's range, on ``wanted``."""
    low, high = card.intensity_range
    made = {}
    for modality, image in zip(card.modalities, images, strict=True):
        volume = Volume(((image + 1) * ((high - low) / 2) + low).numpy(), geometry)
        made[modality] = volume if wanted is geometry else resample_image(volume, wanted, fill=low)
    return made


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
