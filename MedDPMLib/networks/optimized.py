"""Which form of a network runs inference? The one place that chooses an optimized one, and knows what it takes."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from MedDPMLib.networks import fast_unet, fast_wavelet
from MedDPMLib.networks.cascade import Cascade
from MedDPMLib.networks.denoiser import Denoiser
from MedDPMLib.networks.memory_mode import MemoryMode
from MedDPMLib.networks.unet import UNet3d
from MedDPMLib.networks.wavelet import WaveletUNet3d


@dataclass(frozen=True)
class _Form:
    build: Callable[[Denoiser, torch.device, torch.dtype, MemoryMode], Denoiser]
    working_bytes: Callable[[Denoiser, Sequence[int], torch.device, torch.dtype, MemoryMode], int]
    modes: tuple[MemoryMode, ...]


def _converted(network: Denoiser, device: torch.device, dtype: torch.dtype, mode: MemoryMode) -> Denoiser:
    return copy.deepcopy(network).to(device, dtype, memory_format=torch.channels_last_3d)


def _bytes_of_plain(
    network: Denoiser, sides: Sequence[int], device: torch.device, dtype: torch.dtype, mode: MemoryMode
) -> int:
    return math.ceil(network.values_per_voxel * math.prod(sides) * dtype.itemsize)


def _frozen(network: Cascade, device: torch.device, dtype: torch.dtype, mode: MemoryMode) -> Cascade:
    network = copy.deepcopy(network).to(device)
    network.freeze(dtype)
    return network


#: By class alone: a network that is derived from one of these computes something else.
_FORMS: dict[type, _Form] = {
    UNet3d: _Form(fast_unet.FastUNet3d, fast_unet.working_bytes, tuple(MemoryMode)),
    WaveletUNet3d: _Form(fast_wavelet.FastWaveletUNet3d, fast_wavelet.working_bytes, (MemoryMode.FAST, MemoryMode.LOW)),
    Cascade: _Form(_frozen, _bytes_of_plain, (MemoryMode.FAST,)),
}
_PLAIN = _Form(_converted, _bytes_of_plain, (MemoryMode.FAST,))


def _form(network: Denoiser) -> _Form:
    return _FORMS.get(type(network), _PLAIN)


def optimize(
    network: Denoiser, device: torch.device, dtype: torch.dtype, mode: MemoryMode = MemoryMode.FAST
) -> Denoiser:
    """A copy of ``network`` (float32, on the CPU) on ``device`` in ``dtype`` that predicts the same up to rounding,
    faster and in less memory. ``mode`` is one of :func:`memory_modes`."""
    return _form(network).build(network, device, dtype, mode)


def memory_modes(network: Denoiser) -> tuple[MemoryMode, ...]:
    """The modes that :func:`optimize` offers for ``network``, the fastest first."""
    return _form(network).modes


def working_bytes(
    network: Denoiser,
    sides: Sequence[int],
    device: torch.device,
    dtype: torch.dtype,
    mode: MemoryMode = MemoryMode.FAST,
) -> int:
    """About how many bytes the result of :func:`optimize` has alive at its peak, beside weights and arguments, for a
    grid of ``sides`` (D, H, W).

    A batch takes no more where it is computed one by one, as these are that the optimized forms are for.
    """
    return _form(network).working_bytes(network, sides, device, dtype, mode)
