"""How is a model stored in one file?

A bundle is a safetensors file (an 8-byte length, a JSON header, the tensors) that carries its own card in the
header's metadata. Nothing in it can run code. The card is read without torch, from the header alone. Two models may
share their weights: then one of the files has a card alone, which names the other by file name and hash.
"""

from __future__ import annotations

import hashlib
import math
import os
import shutil
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from MedDPMLib.errors import MedDPMError
from MedDPMLib.models.card import Card
from MedDPMLib.models.segmenter_card import SegmenterCard, card_from_json
from MedDPMLib.runtime.content import describe_content, read_head
from MedDPMLib.runtime.files import atomic_write
from MedDPMLib.validation import list_of, one_of, quoted, read_json, table_with, whole

if TYPE_CHECKING:
    import torch

SUFFIX = ".safetensors"

#: The one entry of the header's metadata. One alone, so that equal models are equal files.
_CARD_KEY = "meddpm.card"

#: A header names a few hundred tensors: 8 MB is a hundred times as much.
_MAX_HEADER = 8_000_000

#: Bytes of one number, by safetensors' names of the types that weights may have.
_BYTES = {"F16": 2, "BF16": 2, "F32": 4}

#: A tensor's entry in the header.
_ENTRY = table_with(
    {
        "dtype": one_of(*_BYTES),
        "shape": list_of(whole(0, 2**48), 0, 8),
        "data_offsets": list_of(whole(0, 2**48), 2, 2),
    },
    more=True,
)


def write_bundle(
    path: str | os.PathLike,
    card: Card | SegmenterCard,
    state: Mapping[str, torch.Tensor],
    *,
    dtype: torch.dtype | None = None,
) -> None:
    """Writes ``card`` and the network's state dict to ``path``, whole or not at all.

    ``dtype`` (``torch.float16`` halves the file) is what the weights are stored as; None keeps theirs. The same
    card and weights give the same bytes. Raises :class:`MedDPMError` if the weights are not those of the card's
    network, or are not finite in ``dtype``.

    A card that shares weights (:attr:`MedDPMLib.models.card.Card.weights`) gets those of ``state`` for its own.
    """
    import safetensors.torch

    path, card = Path(path), _without_sharing(card)
    stored = {name: tensor.detach().to("cpu", dtype).contiguous() for name, tensor in state.items()}
    try:
        _check_shapes(card, {name: tuple(tensor.shape) for name, tensor in stored.items()})
        check_values(stored)
    except MedDPMError as error:
        raise MedDPMError(f"{path} is not written: {error}") from None
    with atomic_write(path) as temporary:
        # save_file would put a file of its own, readable by its owner alone, in the place of the temporary one.
        temporary.write_bytes(safetensors.torch.save(stored, {_CARD_KEY: card.to_json()}))


def write_sharing(path: str | os.PathLike, card: Card, weights: str | os.PathLike) -> None:
    """Writes ``card`` to ``path`` for the weights in the bundle ``weights``, which has to lie in the same folder.

    Raises :class:`MedDPMError` if it does not, and for weights that are not those of the card's network.
    """
    import safetensors.torch

    path, weights = Path(path), Path(weights)
    if path.parent.resolve() != weights.parent.resolve():
        raise MedDPMError(f"{path} is not written: it must lie in the folder of {weights}, whose weights it shares")
    card = replace(card, weights={"file": weights.name, "sha256": bundle_hash(weights)})
    try:
        _check_shapes(card, _shared_shapes(path, card))
    except MedDPMError as error:
        raise MedDPMError(f"{path} is not written: {error}") from None
    with atomic_write(path) as temporary:
        temporary.write_bytes(safetensors.torch.save({}, {_CARD_KEY: card.to_json()}))


def copy_bundle(path: Path, target: Path) -> None:
    """The bundle at ``path`` as a file ``target`` of its own: as it is, or with the weights that it shares."""
    card = read_card(path)
    if _lender(path, card) is None:
        shutil.copyfile(path, target)
    else:
        write_bundle(target, *read_bundle(path))


def read_card(path: str | os.PathLike) -> Card | SegmenterCard:
    """The card of the bundle at ``path``, from its header.

    Raises :class:`MedDPMError` for a file that is missing, truncated, damaged, or no bundle, and for one that shares
    the weights of a file that is missing.
    """
    card, _ = _read_header(Path(path))
    _lender(Path(path), card)
    return card


def read_bundle(path: str | os.PathLike) -> tuple[Card | SegmenterCard, dict[str, torch.Tensor]]:
    """The card and the state dict (CPU, in the stored dtype) of the bundle at ``path``.

    Raises :class:`MedDPMError` like :func:`read_card`, and for weights that are not those of the card's network
    or not finite.
    """
    import safetensors.torch

    path = Path(path)
    card, shapes = _read_header(path)
    lender = _lender(path, card)
    try:
        if lender is not None:
            shapes = _shared_shapes(path, card)
        _check_shapes(card, shapes)  # before the tensors are read: what does not fit is not worth its memory
        state = safetensors.torch.load_file(lender or path)
        if {name: tuple(tensor.shape) for name, tensor in state.items()} != shapes:
            raise MedDPMError("its header is ambiguous")
        check_values(state)
    except MedDPMError as error:
        raise MedDPMError(f"{path} is not a valid model bundle: {error}") from None
    except (safetensors.SafetensorError, OSError) as error:
        raise MedDPMError(f"{path} cannot be read ({error!s:.200}): the file is damaged") from error
    return card, state


def is_bare(path: str | os.PathLike) -> bool:
    """Whether the file at ``path`` is one of safetensors that carries no card: others' weights, if it is whole."""
    try:
        with open(path, "rb") as file:
            length = int.from_bytes(file.read(8), "little")
            header = file.read(length) if 2 <= length <= _MAX_HEADER else b""
    except OSError:
        return False
    return header.startswith(b"{") and len(header) == length and f'"{_CARD_KEY}"'.encode() not in header


def bundle_hash(path: str | os.PathLike) -> str:
    """SHA-256 of the file at ``path``, in hexadecimal."""
    digest = hashlib.sha256()
    try:
        with open(path, "rb") as file:
            while block := file.read(1 << 20):
                digest.update(block)
    except OSError as error:
        raise MedDPMError(f"{path} cannot be read ({error.strerror}): check the path") from error
    return digest.hexdigest()


def check_values(state: Mapping[str, torch.Tensor]) -> None:
    """Raises :class:`MedDPMError` unless every tensor holds finite weights of 16 or 32 bits."""
    import torch

    for name, tensor in state.items():
        if tensor.dtype not in (torch.float16, torch.bfloat16, torch.float32):
            raise MedDPMError(f"the tensor {quoted(name)} holds {tensor.dtype}, not weights of 16 or 32 bits")
        if not torch.isfinite(tensor).all():
            raise MedDPMError(f"the tensor {quoted(name)} holds values that are not finite (NaN or infinity)")


def _without_sharing(card: Card | SegmenterCard) -> Card | SegmenterCard:
    return replace(card, weights=None) if isinstance(card, Card) else card


def _lender(path: Path, card: Card | SegmenterCard) -> Path | None:
    """The file whose weights the bundle at ``path`` shares; :class:`MedDPMError` if it is missing."""
    if not isinstance(card, Card) or card.weights is None:
        return None
    lender = path.parent / card.weights["file"]
    if not lender.is_file():
        raise MedDPMError(f"{path} uses the weights of {lender.name}, which is missing: copy it to the same folder")
    return lender


def _shared_shapes(path: Path, card: Card) -> dict[str, tuple[int, ...]]:
    """The shapes of the weights that ``card``, of the bundle at ``path``, shares, if they are the very ones."""
    lender = _lender(path, card)
    assert lender is not None and card.weights is not None  # the caller has looked
    if bundle_hash(lender) != card.weights["sha256"]:
        raise MedDPMError(f"{lender.name} beside it is not the file whose weights it uses: copy both files anew")
    return _read_header(lender)[1]


def _check_shapes(card: Card | SegmenterCard, shapes: Mapping[str, tuple[int, ...]]) -> None:
    from MedDPMLib.networks import shape_mismatch, state_shapes

    mismatch = shape_mismatch(state_shapes(card.network_description), shapes)
    if mismatch:
        raise MedDPMError(f"the weights are not those of the card's network ({mismatch})")


def _read_header(path: Path) -> tuple[Card | SegmenterCard, dict[str, tuple[int, ...]]]:
    """The card, and the shape of each tensor that the file really holds."""
    if path.is_dir():
        raise MedDPMError(f"{path} is a folder, not a model bundle")
    try:
        with open(path, "rb") as file:
            size = os.fstat(file.fileno()).st_size
            length = int.from_bytes(file.read(8), "little")
            header = file.read(length) if 2 <= length <= min(_MAX_HEADER, size - 8) else b""
    except OSError as error:
        raise MedDPMError(f"{path} cannot be read ({error.strerror}): check the path") from error
    if not header.startswith(b"{"):
        if content := describe_content(read_head(path)):
            raise MedDPMError(f"{path} is {content}")
        raise MedDPMError(f"{path} is not a model bundle ({SUFFIX} file of MedDPM), or it is truncated")
    table = read_json(header, f"the header of the model bundle {path}")
    metadata = table.pop("__metadata__", None)
    text = metadata.get(_CARD_KEY) if isinstance(metadata, dict) else None
    if not isinstance(text, str):
        raise MedDPMError(f"{path} carries no model card: it is a safetensors file that MedDPM did not make")
    try:
        card = card_from_json(text)
        shapes = {name: _shape(name, entry) for name, entry in table.items()}
    except MedDPMError as error:
        raise MedDPMError(f"{path} is not a valid model bundle: {error}") from None
    if shapes and _without_sharing(card) != card:
        raise MedDPMError(f"{path} is not a valid model bundle: its card names the weights of another file")
    expected = 8 + length + max((entry["data_offsets"][1] for entry in table.values()), default=0)
    if size != expected:
        raise MedDPMError(
            f"{path} has {size:,} bytes instead of {expected:,}: the file is truncated or damaged, copy it again"
        )
    return card, shapes


def _shape(name: str, entry: object) -> tuple[int, ...]:
    """The shape of one tensor, if its entry in the header is consistent in itself."""
    what = f"the tensor {quoted(name, 100)}"
    values = _ENTRY.read(entry, what)
    start, end = values["data_offsets"]
    if end - start != math.prod(values["shape"]) * _BYTES[values["dtype"]]:
        raise MedDPMError(f"{what} does not have the bytes of its shape: the header is damaged")
    return values["shape"]
