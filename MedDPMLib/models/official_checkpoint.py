"""How is an official Med-DDPM checkpoint recognized?

By the names and shapes of its weights alone. Such a file is a pickle in a zip archive; it is read by torch's
restricted unpickler, which cannot run code, after the archive itself has been found sane.
"""

from __future__ import annotations

import os
import re
import zipfile
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from MedDPMLib.diffusion.names import MAX_TIMESTEPS
from MedDPMLib.diffusion.schedule import make_schedule, schedule_names
from MedDPMLib.errors import MedDPMError
from MedDPMLib.models.bundle import SUFFIX as BUNDLE_SUFFIX
from MedDPMLib.models.bundle import check_values
from MedDPMLib.models.card import Card, official_cards
from MedDPMLib.networks import shape_mismatch, state_shapes

#: What may stand before a name: the diffusion's wrapper and that of data-parallel training, in any order.
_PREFIXES = ("denoise_fn.", "module.")

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


def read_checkpoint(path: str | os.PathLike) -> tuple[Card, dict[str, Tensor]]:
    """The card and the network's state dict (float32, CPU) of the official checkpoint at ``path``.

    Accepted are ``{"step", "model", "ema"}`` (the average ``ema`` is used) and a bare state dict, names with or
    without ``denoise_fn.`` and ``module.``. A noise schedule in the file decides about the card's.

    Raises :class:`MedDPMError` for a file that is not a checkpoint, is damaged, tries to run code, holds weights
    that are not finite, or belongs to neither published network: then with what was expected and found.
    """
    path = Path(path)
    _check_archive(path)
    try:
        weights, tables = _split(_weights(_unpickled(path)))
        card = _recognized({name: tuple(tensor.shape) for name, tensor in weights.items()})
        card = _with_schedule(card, tables)
        state = {name: tensor.to(torch.float32) for name, tensor in weights.items()}
        check_values(state)
    except MedDPMError as error:
        raise MedDPMError(f"{path}: {error}") from error.__cause__
    return card, state


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
            raise MedDPMError(f"the file holds more than weights ({asked[1]:.80}): it is not opened") from error
        raise MedDPMError("the checkpoint is truncated or damaged: download it again") from error


def _weights(content: object) -> Mapping[str, Tensor]:
    """The state dict in the file's ``content``, with the prefixes taken off its names."""
    for entry in ("ema", "model", "state_dict"):
        if isinstance(content, Mapping) and isinstance(content.get(entry), Mapping):
            content = content[entry]
            break
    if not isinstance(content, Mapping):
        raise MedDPMError(f"the checkpoint holds {type(content).__name__}, not a state dict: {_expectation()}")
    weights: dict[str, Tensor] = {}
    for full_name, tensor in content.items():
        if not isinstance(full_name, str):
            raise MedDPMError(f"the checkpoint has an entry without a name: {_expectation()}")
        name = full_name
        while prefix := next((prefix for prefix in _PREFIXES if name.startswith(prefix)), None):
            name = name[len(prefix) :]
        if not isinstance(tensor, Tensor) or tensor.layout != torch.strided or tensor.device.type != "cpu":
            raise MedDPMError(f"the checkpoint's entry {full_name!r:.100} is not a plain tensor: {_expectation()}")
        if name in weights:
            raise MedDPMError(f"the checkpoint names {name!r:.100} twice, with different prefixes: it is damaged")
        weights[name] = tensor
    return weights


def _split(weights: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """The network's weights and the diffusion's tables."""
    tables = {name: tensor for name, tensor in weights.items() if name in _TABLES}
    network = {name: tensor for name, tensor in weights.items() if name not in _TABLES}
    for name, tensor in weights.items():
        if not tensor.is_floating_point():
            raise MedDPMError(f"the checkpoint's tensor {name!r:.100} holds {tensor.dtype}, not weights")
    return network, tables


def _recognized(found: Mapping[str, tuple[int, ...]]) -> Card:
    """The card of the published network whose names and shapes are those ``found``."""
    closest: tuple[int, Card, str] | None = None
    for card in official_cards():
        expected = state_shapes(card.network_description)
        mismatch = shape_mismatch(expected, found)
        if mismatch is None:
            return card
        shared = sum(found.get(name) == shape for name, shape in expected.items())
        if closest is None or shared > closest[0]:
            closest = shared, card, mismatch
    shared, card, mismatch = closest
    if not shared:
        first = next((f"first {name!r:.100} {shape}" for name, shape in found.items()), "none of weights")
        raise MedDPMError(f"not a Med-DDPM checkpoint: {_expectation()}; found were {len(found)} tensors, {first}")
    raise MedDPMError(f"neither of the published Med-DDPM networks; compared with {card.name}, the closest: {mismatch}")


def _expectation() -> str:
    expected = []
    for card in official_cards():
        shapes = state_shapes(card.network_description)
        first = next(iter(shapes))
        expected.append(f'{len(shapes)} tensors ({card.name}; "{first}" {shapes[first]}, ...)')
    return f"expected are {' or '.join(expected)}"


def _with_schedule(card: Card, tables: Mapping[str, Tensor]) -> Card:
    """``card`` with the noise schedule that the file's ``tables`` are of; as it is if there are none.

    A table that cannot be one of any schedule counts as absent; one of an unknown schedule is refused.
    """
    tables = {name: tables[name].float() for name in ("betas", "alphas_cumprod") if name in tables}
    for name, table in tables.items():
        if table.ndim != 1 or not 1 <= len(table) <= MAX_TIMESTEPS:
            raise MedDPMError(
                f'the noise schedule\'s "{name}" has the shape {tuple(table.shape)}, not one value a timestep'
            )
    # No beta or alpha_bar is 0 or less, 1 or more: such a table is a placeholder of a file made from names and shapes.
    tables = {name: table for name, table in tables.items() if not ((table <= 0) | (table >= 1)).any()}
    for schedule in [make_schedule(name, len(t)) for t in list(tables.values())[:1] for name in schedule_names()]:
        own = {"betas": schedule.betas, "alphas_cumprod": schedule.alpha_bar}
        if all(t.shape == own[n].shape and (t - own[n]).abs().max() < _TABLE_TOLERANCE for n, t in tables.items()):
            if schedule.name == card.schedule["name"] and schedule.timesteps == card.schedule["timesteps"]:
                return card
            found = {"name": schedule.name, "timesteps": schedule.timesteps}
            return replace(card, schedule=found, qualities=None)
    if tables:
        name, table = next(iter(tables.items()))
        raise MedDPMError(
            f'the checkpoint was trained with an unknown noise schedule ("{name}": {len(table)} values'
            f" from {table[0]:.3g} to {table[-1]:.3g}): known are {', '.join(schedule_names())}"
        )
    return card
