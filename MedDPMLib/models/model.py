"""A network with its card and noise schedule, ready to use."""

from __future__ import annotations

import math
import os
from collections.abc import Callable

import torch
from torch import Tensor

from MedDPMLib.diffusion.schedule import NoiseSchedule, make_schedule
from MedDPMLib.errors import MedDPMError
from MedDPMLib.models.card import Card
from MedDPMLib.networks import build_network
from MedDPMLib.networks.denoiser import Network
from MedDPMLib.networks.memory_mode import MemoryMode
from MedDPMLib.networks.optimized import optimize
from MedDPMLib.runtime.device import Execution


class Model:
    """A diffusion model: ``card``, ``schedule``, ``network`` (float32) and ``hash`` (SHA-256 of its file).

    One that is asked at noise levels has no schedule: it is None.

    The network of any other is a plain callable ``network(x, t, condition)`` that predicts what ``card.prediction``
    says. :attr:`denoiser` predicts the noise, whatever the network does.
    """

    def __init__(self, card: Card, network: Network, hash: str) -> None:
        self.card = card
        self.hash = hash
        if card.draws_by_levels != network.draws_by_levels:
            raise MedDPMError(
                f"the model {card.name} is damaged: the schedule {card.schedule['name']} is not for its network"
            )
        self.schedule: NoiseSchedule | None = None if card.draws_by_levels else make_schedule(**card.schedule)
        if self.schedule and getattr(network, "timesteps", self.schedule.timesteps) != self.schedule.timesteps:
            raise MedDPMError(
                f"the model {card.name} is damaged: its network was made for {network.timesteps} timesteps,"
                f" its schedule has {self.schedule.timesteps}"
            )
        self.network = network.eval().requires_grad_(False)
        self._prepared: tuple[tuple[torch.device, torch.dtype, MemoryMode], Network] | None = None

    @property
    def denoiser(self) -> Callable[[Tensor, Tensor, Tensor], Tensor]:
        """``denoiser(x, t, condition)``: the noise in x_t, float32.

        x (B, C, D, H, W), t (B,) integer, condition (B, K, D, H, W) in the card's mask encoding, all on the
        network's device. For :func:`MedDPMLib.diffusion.samplers.sample` with ``prediction="noise"``. Raises
        :class:`MedDPMError` for arrays of other shapes and, on the CPU, for timesteps outside 0 to T - 1; a cascade,
        which has no timesteps, has no denoiser.
        """
        schedule = self.schedule
        if schedule is None:
            raise MedDPMError(f"the model {self.card.name} is a cascade, which has no timesteps and so no denoiser")

        @torch.no_grad()
        def predict_noise(x: Tensor, t: Tensor, condition: Tensor) -> Tensor:
            self._check_input(x, t, condition, schedule.timesteps - 1)
            predicted = self.network(x.float(), t, condition.float())
            return schedule.noise_from(predicted, x, t, self.card.prediction)

        return predict_noise

    def _check_input(self, x: Tensor, t: Tensor, condition: Tensor, last: int) -> None:
        described = self.card.network_description
        channels, labels = described["image_channels"], described["condition_channels"]
        if x.ndim != 5 or x.shape[1] != channels:
            raise MedDPMError(f"x is (B, {channels}, D, H, W) for {self.card.name}, not {tuple(x.shape)}")
        if condition.shape != (len(x), labels, *x.shape[2:]):
            expected = (len(x), labels, *x.shape[2:])
            raise MedDPMError(f"the condition is {expected} for this x, not {tuple(condition.shape)}")
        wrong = t.shape != (len(x),) or t.is_floating_point()
        # On another device the answer would be waited for, at every step.
        if wrong or (t.device.type == "cpu" and not ((t >= 0) & (t <= last)).all()):
            raise MedDPMError(f"t is {len(x)} whole number(s) from 0 to {last}, not {t.tolist()}")

    def prepared(self, execution: Execution, mode: MemoryMode = MemoryMode.FAST) -> Network:
        """The network for inference on the device and in the precision of ``execution``; kept for the next call."""
        settings = execution.device, execution.dtype, mode
        if self._prepared is None or self._prepared[0] != settings:
            self._prepared = None  # the old copy goes before the new one comes
            self._prepared = settings, optimize(self.network, *settings)
        return self._prepared[1]

    def memory_needed(self, dtype: torch.dtype) -> int:
        """About how many bytes :attr:`network` takes in baseline form, in ``dtype``: weights, condition, activations.

        :mod:`MedDPMLib.inference.memory_plan` says what a run of ``generate`` takes.
        """
        card, width = self.card, dtype.itemsize
        voxels = math.prod(card.grid.size)
        weights = sum(parameter.numel() for parameter in self.network.parameters()) * (4 + width)
        condition = card.network_description["condition_channels"] * voxels * (4 + width)
        return weights + condition + math.ceil(voxels * self.network.values_per_voxel) * width


def load_model(model: str | os.PathLike | Model) -> Model:
    """The model of that name (bundled or imported), or in that file: a bundle or an official checkpoint.

    Raises :class:`MedDPMLib.errors.MedDPMError` for an unknown name and for a file that is neither.
    """
    from MedDPMLib.models.store import ModelStore, load_card_and_state

    if isinstance(model, Model):
        return model
    if not isinstance(model, (str, os.PathLike)):
        raise MedDPMError(f"a model is given by its name or file, not by a {type(model).__name__}")
    entry = ModelStore().find(model)
    card, state = load_card_and_state(entry.path)
    network = build_network(card.network_description)
    network.load_state_dict({name: tensor.float() for name, tensor in state.items()})
    return Model(card, network, entry.hash)
