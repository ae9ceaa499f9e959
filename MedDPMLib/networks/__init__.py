"""Which networks are there, and how does one come from its description?

A description is plain data, as model cards and recipes hold it: ``{"kind": "unet", "image_channels": 4, ...}``
with the numbers that the class of that kind takes. ``"conditioning"`` says how the labels enter.
"""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Mapping
from typing import Any

import torch

from MedDPMLib.errors import MedDPMError
from MedDPMLib.networks.denoiser import Network
from MedDPMLib.validation import either, list_of, quoted, whole

#: How labels enter a network, unless its description specifies it.
DEFAULT_CONDITIONING = "concatenation"

#: Module and class by kind and conditioning; imported when asked for.
_KINDS = {
    "unet": {
        "concatenation": ("MedDPMLib.networks.unet", "UNet3d"),
        "cross-attention": ("MedDPMLib.networks.conditioning", "CrossAttentionUNet3d"),
        "spade": ("MedDPMLib.networks.conditioning", "SpadeUNet3d"),
    },
    "wavelet-unet": {"concatenation": ("MedDPMLib.networks.wavelet", "WaveletUNet3d")},
    "cascade": {"concatenation": ("MedDPMLib.networks.cascade", "Cascade")},
    "segmentation-unet": {"concatenation": ("MedDPMLib.networks.segmenter", "SegmentationUNet3d")},
}

#: 2 GB in float32, nine times the larger published network.
MAX_PARAMETERS = 500_000_000

#: Beyond every number in use; keeps an absurd description from costing minutes.
_NUMBER = whole(1, 4096)
_NUMBERS = either(_NUMBER, list_of(_NUMBER, 0, 16))


def build_network(description: Mapping[str, object]) -> Any:
    """A :class:`Network` of the described kind with fresh float32 weights on the CPU.

    Raises :class:`MedDPMError` for an unknown kind, for numbers that make no network, and for a network of more
    than :data:`MAX_PARAMETERS` parameters, before any memory is taken.
    """
    make, numbers = _constructor(description)
    state_shapes(description)
    return make(**numbers)


def state_shapes(description: Mapping[str, object]) -> dict[str, tuple[int, ...]]:
    """Name and shape of every tensor in the state dict of the described network, without its memory.

    Raises :class:`MedDPMError` like :func:`build_network`.
    """
    make, numbers = _constructor(description)
    try:
        with torch.device("meta"):
            network = make(**numbers)
    except MedDPMError:
        raise
    except (ArithmeticError, LookupError, RuntimeError, TypeError, ValueError) as error:
        raise MedDPMError(f'these numbers make no network of the kind "{description["kind"]}": {numbers}') from error
    parameters = sum(parameter.numel() for parameter in network.parameters())
    if parameters > MAX_PARAMETERS:
        raise MedDPMError(f"a network of {parameters:,} parameters is refused: at most {MAX_PARAMETERS:,} are taken")
    return {name: tuple(tensor.shape) for name, tensor in network.state_dict().items()}


def shape_mismatch(expected: Mapping[str, tuple[int, ...]], found: Mapping[str, tuple[int, ...]]) -> str | None:
    """What keeps tensors of the shapes ``found`` from being those ``expected``, for a message; None if nothing."""
    missing = [name for name in expected if name not in found]
    strange = [name for name in found if name not in expected]
    other = [name for name in expected if name in found and tuple(found[name]) != tuple(expected[name])]
    parts = []
    if missing:
        parts.append(f"{len(missing)} of {len(expected)} tensors are missing, first {quoted(missing[0])}")
    if other:
        first = other[0]
        parts.append(
            f"{len(other)} have another shape, first {quoted(first)}"
            f" with {tuple(found[first])} instead of {tuple(expected[first])}"
        )
    if strange:
        parts.append(f"{len(strange)} do not belong to it, first {quoted(strange[0], 100)}")
    return "; ".join(parts) or None


def _constructor(description: Mapping[str, object]) -> tuple[type[Network], dict[str, object]]:
    """The class of a description and its keyword arguments, each a whole number or a tuple of such."""
    kind = description.get("kind")
    if not isinstance(kind, str) or kind not in _KINDS:
        raise MedDPMError(f"there is no network of the kind {quoted(kind)}: use one of {', '.join(_KINDS)}")
    conditioning = description.get("conditioning", DEFAULT_CONDITIONING)
    if not isinstance(conditioning, str) or conditioning not in _KINDS[kind]:
        raise MedDPMError(
            f'the conditioning {quoted(conditioning)} is not one of a "{kind}" network: use {", ".join(_KINDS[kind])}'
        )
    words = ("kind", "conditioning")
    numbers = {
        name: _NUMBERS.read(value, f'the network\'s "{name}"')
        for name, value in description.items()
        if name not in words
    }
    module, name = _KINDS[kind][conditioning]
    make = getattr(importlib.import_module(module), name)
    try:
        inspect.signature(make).bind(**numbers)
    except TypeError as error:
        raise MedDPMError(f'the description of a "{kind}" network does not fit ({error!s:.200})') from None
    return make, numbers
