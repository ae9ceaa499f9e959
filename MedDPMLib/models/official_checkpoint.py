"""Which network is in a checkpoint of Med-DDPM's family, and how is it described?

By the names and shapes of its weights alone, if it is a published one; of any other these say which network it is
(:mod:`MedDPMLib.networks.recognition`), and a card says the rest (:mod:`MedDPMLib.models.card_file`). Such a file is a
pickle in a zip archive; it is read by torch's restricted unpickler, which cannot run code, after the archive itself has
been found sane. Weights in a safetensors file without a card are a checkpoint, too.
"""

from __future__ import annotations

import os
import re
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor

from MedDPMLib.diffusion.names import MAX_TIMESTEPS
from MedDPMLib.diffusion.schedule import make_schedule, schedule_names
from MedDPMLib.errors import MedDPMError
from MedDPMLib.models.bundle import SUFFIX as BUNDLE_SUFFIX
from MedDPMLib.models.bundle import check_values, is_bare
from MedDPMLib.models.card import Card, known_cards, official_cards
from MedDPMLib.networks import shape_mismatch, state_shapes
from MedDPMLib.networks.recognition import FIRST, describe_network
from MedDPMLib.validation import quoted

#: What may stand before a name, in any order: the diffusion, and what trains, compiles or averages it.
_PREFIXES = ("denoise_fn.", "module.", "_orig_mod.", "model.", _AVERAGE := "ema_model.")

#: Tables of the diffusion that official checkpoints hold beside the weights; all follow from the first.
_TABLES = (
    "betas", "alphas_cumprod", "alphas_cumprod_prev", "sqrt_alphas_cumprod", "sqrt_one_minus_alphas_cumprod",
    "log_one_minus_alphas_cumprod", "sqrt_recip_alphas_cumprod", "sqrt_recipm1_alphas_cumprod", "posterior_variance",
    "posterior_log_variance_clipped", "posterior_mean_coef1", "posterior_mean_coef2", "posterior_mean_coef3",
)  # fmt: skip

#: How files of models end, as they lie in the archive that a download of a folder is.
_MODELS = (".pt", ".pth", ".ckpt", BUNDLE_SUFFIX)

#: The pickle names the tensors and holds none of their numbers: 10 kB in the official checkpoints.
_MAX_PICKLE = 16_000_000

#: Largest difference of two float32 tables of one schedule.
_TABLE_TOLERANCE = 1e-6


@dataclass(frozen=True, eq=False)
class Checkpoint:
    """What was read in a file: the ``weights`` (float32, CPU), the ``network`` that has them (a description with its
    channels), and the noise ``schedule`` (name and timesteps), if the file has its tables."""

    path: Path
    weights: Mapping[str, Tensor]
    network: Mapping[str, Any]
    schedule: Mapping[str, Any] | None

    def facts(self) -> dict[str, Any]:
        """As plain data, for somebody who is to say the rest."""
        name = re.sub(r"[^a-z0-9]+", "-", self.path.stem.casefold()).strip("-")[:60] or "model"
        return {
            "name": name,
            "network": dict(self.network),
            "schedule": self.schedule,
            "described": self.describe(),
        }

    def describe(self) -> str:
        """For people: what the network makes of what, and how large it is."""
        network, numbers = self.network, "/".join(map(str, self.network["multipliers"]))
        places = ", ".join(f"1/{factor}" for factor in network["attention"])
        attention = f"at {places} of the resolution and in the middle" if places else "in the middle"
        schedule = f"{self.schedule['name']}, {self.schedule['timesteps']} timesteps" if self.schedule else "not stated"
        return (
            f"{network['image_channels']} image and {network['condition_channels']} condition channels, base"
            f" {network['base']}, multipliers {numbers}, residual blocks a level {network['blocks']}, attention"
            f" {attention};"
            f" noise schedule: {schedule}"
        )


def read_checkpoint(path: str | os.PathLike) -> tuple[Card, dict[str, Tensor]]:
    """The card and the network's state dict (float32, CPU) of the published checkpoint at ``path``.

    Accepted are ``{"step", "model", "ema"}`` (the average ``ema`` is used) and a bare state dict, names with or
    without ``denoise_fn.`` and ``module.``. A noise schedule in the file decides about the card's.

    Raises :class:`MedDPMError` for a file that is not a checkpoint, is damaged, tries to run code, holds weights
    that are not finite, or belongs to no published network: then with what was expected and found.
    """
    path = Path(path)
    if not is_bare(path):
        _check_archive(path)
    try:
        weights, tables = _split(_weights(_content(path)))
        card = _recognized(weights, tables)
        state = _state(weights)
    except MedDPMError as error:
        raise error.at(str(path)) from error.__cause__
    return card, state


def open_checkpoint(path: str | os.PathLike) -> Checkpoint:
    """Any checkpoint of the family at ``path``, published or not; see :func:`read_checkpoint` for what is refused."""
    path = Path(path)
    if not is_bare(path):
        _check_archive(path)
    try:
        weights, tables = _split(_weights(_content(path)))
        network = describe_network({name: tuple(tensor.shape) for name, tensor in weights.items()})
        return Checkpoint(path, _state(weights), network, _schedule(tables))
    except MedDPMError as error:
        raise error.at(str(path)) from error.__cause__


def _state(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    state = {name: tensor.to(torch.float32) for name, tensor in weights.items()}
    check_values(state)
    return state


def _content(path: Path) -> object:
    """What is stored in the file: by torch, or as bare tensors by safetensors."""
    if not is_bare(path):
        return _unpickled(path)
    try:
        return safetensors.torch.load_file(path)
    except (safetensors.SafetensorError, OSError) as error:
        raise MedDPMError(f"the file is damaged ({error}): download it again") from error


def _check_archive(path: Path) -> None:
    """Refuses what is no zip archive of torch's, and an archive whose parts claim more than the file holds."""
    if path.is_dir():
        raise MedDPMError(f"{path} is a folder, not a checkpoint")
    try:
        with open(path, "rb") as file:
            start = file.read(4)
            size = os.fstat(file.fileno()).st_size
    except OSError as error:
        raise MedDPMError(f"{path} cannot be read ({error.strerror}): check the path") from error
    if start[:1] == b"\x80":
        raise MedDPMError(
            f"{path} is a bare pickle, or a checkpoint of PyTorch before 1.6, which cannot be read safely:"
            " if its source is reliable, load it with torch.load and save it again with torch.save"
        )
    try:
        with zipfile.ZipFile(path) as archive:
            parts = archive.infolist()
    except Exception as error:  # zipfile meets a damaged directory with more than its own exception
        kind = "a truncated or damaged checkpoint" if start == b"PK\x03\x04" else "not a PyTorch checkpoint"
        raise MedDPMError(f"{path} is {kind} ({error}): download it again, or choose another file") from None
    inside = next((part.filename for part in parts if part.filename.lower().endswith(_MODELS)), None)
    if inside is not None:
        raise MedDPMError(f"{path} is an archive of files: unpack it, and use {inside} in it")
    pickles = [part for part in parts if part.filename.endswith("/data.pkl")]
    if len(pickles) != 1:
        raise MedDPMError(f"{path} is an archive but not a PyTorch checkpoint: choose another file")
    # torch stores every part as it is; compression is how a small file unpacks to an enormous one.
    stored = all(part.compress_type == zipfile.ZIP_STORED and part.file_size == part.compress_size for part in parts)
    if not stored or sum(part.file_size for part in parts) > size or pickles[0].file_size > _MAX_PICKLE:
        raise MedDPMError(f"{path} was not written by PyTorch (its parts are compressed or overlap): it is not opened")


def _unpickled(path: Path) -> object:
    # Mapped, the weights that are not used cost no memory; but torch takes a name that ends so for safetensors.
    mapped = path.suffix != BUNDLE_SUFFIX
    try:
        with open(path, "rb") as file:
            return torch.load(path if mapped else file, map_location="cpu", weights_only=True, mmap=mapped)
    except Exception as error:  # a damaged or hostile pickle may raise anything
        asked = re.search(r"GLOBAL ([\w.]+)", str(error))
        if asked:
            raise MedDPMError(
                f"the file holds more than weights ({asked[1]:.80}): it is not opened",
                remedy="if its source is reliable, load it with torch.load(FILE, weights_only=False), and save its"
                ' "ema" or "model" alone with torch.save',
            ) from error
        raise MedDPMError("the checkpoint is truncated or damaged: download it again") from error


def _weights(content: object) -> Mapping[str, Tensor]:
    """The state dict in the file's ``content``, with the prefixes taken off its names."""
    for entry in ("ema", "model", "state_dict"):
        if isinstance(content, Mapping) and isinstance(content.get(entry), Mapping) and content[entry]:
            content = content[entry]
            break
    if not isinstance(content, Mapping):
        raise MedDPMError(f"the checkpoint holds {type(content).__name__}, not a state dict: {_expectation()}")
    # An average that is kept beside the weights it is of, and a count of steps.
    averaged = {name: tensor for name, tensor in content.items() if str(name).startswith(_AVERAGE)}
    weights: dict[str, Tensor] = {}
    for full_name, tensor in (averaged or content).items():
        if not isinstance(full_name, str):
            raise MedDPMError(f"the checkpoint has an entry without a name: {_expectation()}")
        name = full_name
        while prefix := next((prefix for prefix in _PREFIXES if name.startswith(prefix)), None):
            name = name[len(prefix) :]
        if not isinstance(tensor, Tensor) or tensor.layout != torch.strided or tensor.device.type != "cpu":
            raise MedDPMError(
                f"the checkpoint's entry {quoted(full_name, 100)} is not a plain tensor: {_expectation()}"
            )
        if name in weights:
            raise MedDPMError(f"the checkpoint names {quoted(name, 100)} twice, with different prefixes: it is damaged")
        weights[name] = tensor
    return weights


def _split(weights: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """The network's weights and the diffusion's tables."""
    tables = {name: tensor for name, tensor in weights.items() if name in _TABLES}
    network = {name: tensor for name, tensor in weights.items() if name not in _TABLES}
    for name, tensor in weights.items():
        if not tensor.is_floating_point():
            raise MedDPMError(f"the checkpoint's tensor {quoted(name, 100)} holds {tensor.dtype}, not weights")
    return network, tables


def _recognized(weights: Mapping[str, Tensor], tables: Mapping[str, Tensor]) -> Card:
    """The card of the published network whose names and shapes these are, with the noise schedule of the file."""
    found = {name: tuple(tensor.shape) for name, tensor in weights.items()}
    closest: tuple[int, Card, str] | None = None
    for card in official_cards():
        expected = state_shapes(card.network_description)
        mismatch = shape_mismatch(expected, found)
        if mismatch is None:
            schedule = _schedule(tables)
            if schedule is None or schedule == card.schedule:
                return card
            return replace(card, schedule=schedule, qualities=None)
        shared = sum(found.get(name) == shape for name, shape in expected.items())
        if closest is None or shared > closest[0]:
            closest = shared, card, mismatch
    shared, card, mismatch = closest
    is_close = 2 * shared >= len(found)
    try:
        network = describe_network(found)
    except MedDPMError as error:
        if not shared:
            first = next((f"first {quoted(name, 100)} {shape}" for name, shape in found.items()), "none of weights")
            raise MedDPMError(
                f"not a Med-DDPM checkpoint: {_expectation()}; found were {len(found)} tensors, {first}"
            ) from None
        if FIRST in found and not is_close:
            raise error  # what it lacks as a network of its own
        raise MedDPMError(
            f"neither of the published Med-DDPM networks; compared with {card.name}, the closest: {mismatch}"
        ) from None
    schedule = _schedule(tables)
    for other in known_cards():
        if _is_like(network, other) and schedule == other.schedule:
            kept = {name: value for name, value in network.items() if not name.endswith("_channels")}
            return replace(other, network=kept)
    checkpoint = Checkpoint(Path(), weights, network, schedule)
    unlike = f"; unlike {card.name}: {mismatch}" if is_close else ""
    raise MedDPMError(
        f"a network of Med-DDPM's family that is none of the published ones ({checkpoint.describe()}{unlike})",
        remedy="names and shapes do not say which modalities and labels these are: describe it in a card",
        code="card-needed",
    )


def _is_like(network: Mapping[str, Any], card: Card) -> bool:
    """Whether ``network`` is that of ``card``, wherever it has attention: that is not published of every one."""
    wanted = card.network_description
    return all(network[name] == wanted[name] for name in network if name != "attention")


def _expectation() -> str:
    expected = []
    for card in official_cards():
        shapes = state_shapes(card.network_description)
        first = next(iter(shapes))
        expected.append(f'{len(shapes)} tensors ({card.name}; "{first}" {shapes[first]}, ...)')
    return f"expected are {' or '.join(expected)}"


def _schedule(tables: Mapping[str, Tensor]) -> dict[str, Any] | None:
    """Name and timesteps of the noise schedule that the file's ``tables`` are of; None if there are none.

    A table that cannot be one of any schedule counts as absent; one of an unknown schedule is refused.
    """
    tables = {name: tables[name] for name in ("betas", "alphas_cumprod") if name in tables}
    for name, table in tables.items():
        if table.ndim != 1 or not 1 <= len(table) <= MAX_TIMESTEPS:
            raise MedDPMError(
                f'the noise schedule\'s "{name}" has the shape {tuple(table.shape)}, not one value a timestep'
            )
    # No beta or alpha_bar is 0 or less, 1 or more, unless it was rounded: such a table is a placeholder of a file made
    # from names and shapes.
    likely = {name: table for name, table in tables.items() if not ((table <= 0) | (table >= 1)).any()}
    for given in filter(None, (tables, likely)):
        for schedule in (make_schedule(name, len(next(iter(given.values())))) for name in schedule_names()):
            own = {"betas": schedule.betas, "alphas_cumprod": schedule.alpha_bar}
            if all(_equals(table, own[name]) for name, table in given.items()):
                return {"name": schedule.name, "timesteps": schedule.timesteps}
    if likely:
        name, table = next(iter(likely.items()))
        raise MedDPMError(
            f'the checkpoint was trained with an unknown noise schedule ("{name}": {len(table)} values'
            f" from {table[0]:.3g} to {table[-1]:.3g}): known are {', '.join(schedule_names())}"
        )
    return None


def _equals(table: Tensor, own: Tensor) -> bool:
    """Whether ``table`` is ``own``, rounded to the precision that it is stored in."""
    if table.shape != own.shape:
        return False
    tolerance = _TABLE_TOLERANCE + torch.finfo(table.dtype).eps * own.abs()
    return bool(((table.to(own.dtype) - own).abs() <= tolerance).all())
