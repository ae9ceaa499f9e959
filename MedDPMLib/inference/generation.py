"""Mask in, volumes out: the one function behind library, command line and panel."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from MedDPMLib.errors import MedDPMError, OutOfMemory
from MedDPMLib.imaging.volume import Volume
from MedDPMLib.inference.atlas import network_labels
from MedDPMLib.inference.memory_plan import MemoryPlan, not_enough, plan_memory
from MedDPMLib.inference.record import make_record
from MedDPMLib.inference.result import Generated, volumes_of
from MedDPMLib.inference.sampling import sample_images
from MedDPMLib.inference.settings import GenerationSettings
from MedDPMLib.inference.timesteps import Progress, first_glance
from MedDPMLib.masks.fit import fit
from MedDPMLib.masks.mask import Mask, read_mask
from MedDPMLib.models.model import Model
from MedDPMLib.networks.denoiser import Denoiser
from MedDPMLib.networks.memory_mode import MemoryMode
from MedDPMLib.runtime.allocator import handing_back
from MedDPMLib.runtime.device import Execution, choose_execution
from MedDPMLib.validation import as_python, whole

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
        self,
        mask: str | os.PathLike | Mask | Volume,
        *,
        seed: int = 0,
        progress: Progress | None = None,
        glance: Callable[[Tensor], None] | None = None,
    ) -> Generated:
        """As the function :func:`generate`, without planning it anew.

        ``glance`` is called once before the first step, where that takes long, with a coarse image (1, C, D, H, W) of
        what it will show.
        """
        model, settings, execution = self.model, self.settings, self.execution
        mask, seed = as_mask(mask, model), check_seed(seed)
        started = time.perf_counter()
        sparing = nullcontext() if self.plan.mode is MemoryMode.FAST else handing_back()
        with _memory_explained(model, execution, guided=settings.guided), sparing:
            fitted = network_labels(mask, model.card, seed)
            network = model.prepared(execution, self.plan.mode)
            # A GPU has taken the first step by then, and levels begin with the coarse image themselves.
            if glance is not None and isinstance(network, Denoiser) and execution.device.type == "cpu":
                glance(first_glance(model, network, fitted.labels, execution, settings, seed))
            images = sample_images(model, network, fitted.labels, execution, settings, seed, progress)
        record = make_record(
            model=model, mask=mask, fitted=fitted, execution=execution, settings=settings, seed=seed,
            memory=self.plan.computation, seconds=time.perf_counter() - started,
        )  # fmt: skip
        # Where the volumes lie; what a network that needs structures sees instead has the same outline.
        place = mask.volume if settings.space == "mask" else Volume(fit(mask, model.card.grid).labels, fitted.geometry)
        return Generated(volumes_of(model.card, images, fitted.geometry, place.geometry), record, place.array)


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
