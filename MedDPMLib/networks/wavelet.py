"""The compact network of the bundled models: a U-Net on the Haar sub-bands of image and labels.

One orthonormal Haar split turns every channel into eight sub-bands at half the resolution (the front end of
wavelet diffusion, Friedrich et al. 2024, arXiv 2402.19043), so that no convolution runs on the full grid,
and nothing is lost: labels keep their one-voxel detail, unit-variance noise stays unit-variance noise.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from MedDPMLib.errors import MedDPMError
from MedDPMLib.networks.denoiser import Denoiser

_GROUPS = 8
_TIME_WIDTH = 192
_EMBEDDING_WIDTH = 64
_PLACE_WIDTH = 64
#: One period of the eighth octave is the size of a voxel or two.
_MOST_OCTAVES = 8
#: Channels of the condition that are embedded at a time.
_CHANNELS_AT_ONCE = 8
#: Standard deviation of the network's error from which the learned skip weight is initialized, for sub-bands with 0, 1,
#: 2 and 3 high-pass axes. Smaller than measured, because a skip weight that is too large leaves grain in the image.
_TYPICAL_ERROR = (0.08, 0.03, 0.012, 0.006)

#: Along D, H, W: it turns the sign of every sub-band with an odd number of high-pass axes, which are the strong ones.
_SHIFT = (1, 1, 1)


def haar_split(x: Tensor) -> Tensor:
    """Orthonormal 3-D Haar analysis: (B, C, D, H, W), even sides, to (B, 8 C, D/2, H/2, W/2).

    Sub-band ``b`` of channel ``c`` is channel ``b * C + c``; bit 2, 1, 0 of ``b`` says high-pass along D, H, W.
    """
    for axis in (4, 3, 2):
        even, odd = x.unflatten(axis, (-1, 2)).unbind(axis + 1)
        x = torch.cat([even + odd, even - odd], dim=1)
    return x * math.sqrt(0.125)


def haar_merge(x: Tensor) -> Tensor:
    """The inverse of :func:`haar_split`: (B, 8 C, D/2, H/2, W/2) to (B, C, D, H, W)."""
    for axis in (2, 3, 4):
        low, high = x.chunk(2, dim=1)
        x = torch.stack([low + high, low - high], dim=axis + 1).flatten(axis, axis + 1)
    return x * math.sqrt(0.125)


def haar_of_blocks(device: torch.device | None = None) -> Tensor:
    """The sub-bands (b) of each of the eight voxels (v) of a block, alone: (v, b), orthonormal."""
    return haar_split(torch.eye(8, device=device).view(8, 1, 2, 2, 2)).flatten(1)


def timestep_features(t: Tensor, width: int) -> Tensor:
    """Sinusoids of timestep ``t`` (B,): (B, width), float32 (Vaswani et al. 2017)."""
    frequencies = torch.exp(-math.log(10_000) * torch.arange(width // 2, device=t.device) / (width // 2))
    angles = t.float()[:, None] * frequencies
    return torch.cat([angles.cos(), angles.sin()], dim=1)


def place_features(positions: Tensor, octaves: int) -> Tensor:
    """Sines and cosines of ``positions`` (B, 3, D, H, W) in [-1, 1]: (B, 6 octaves, D/2, H/2, W/2), float32.

    The first octave has one period across the grid, each further one twice as many (Tancik et al. 2020, arXiv
    2006.10739).
    """
    middles = F.avg_pool3d(positions.float(), 2)
    frequencies = math.pi * 2 ** torch.arange(octaves, device=positions.device)
    angles = (middles[:, None] * frequencies.view(-1, 1, 1, 1, 1)).flatten(1, 2)
    return torch.cat([angles.sin(), angles.cos()], dim=1)


class _Block(nn.Module):
    """Two convolutions with a residual connection; the timestep enters as a bias between them (Ho et al. 2020)."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.norm1 = nn.GroupNorm(_GROUPS, inputs)
        self.conv1 = nn.Conv3d(inputs, outputs, 3, padding=1)
        self.time = nn.Linear(_TIME_WIDTH, outputs)
        self.norm2 = nn.GroupNorm(_GROUPS, outputs)
        self.conv2 = _zero(nn.Conv3d(outputs, outputs, 3, padding=1))
        self.shortcut = nn.Identity() if inputs == outputs else nn.Conv3d(inputs, outputs, 1)

    def forward(self, x: Tensor, time: Tensor) -> Tensor:
        h = _add(self.conv1(_silu(self.norm1(x))), self.time(time)[:, :, None, None, None])
        return _add(self.conv2(_silu(self.norm2(h))), self.shortcut(x))


def _zero(layer: nn.Module) -> nn.Module:
    """``layer`` with zero weights and bias, so that a residual branch has no effect at first."""
    for parameter in layer.parameters():
        nn.init.zeros_(parameter)
    return layer


# The new output of a layer has no other user: without gradients it is changed in place.


def _add(fresh: Tensor, other: Tensor) -> Tensor:
    return fresh + other if torch.is_grad_enabled() else fresh.add_(other)


def _silu(fresh: Tensor) -> Tensor:
    return F.silu(fresh, inplace=not torch.is_grad_enabled())


class WaveletDenoiser(Denoiser):
    """A denoiser on Haar sub-bands, whose output contains a faint pattern of their blocks."""

    def encode_condition(self, condition: Tensor) -> Tensor:
        """The condition's share of the first convolution, (B, channels[0], D/2, H/2, W/2)."""
        return self.encode_shifted(condition, (0, 0, 0))

    @abstractmethod
    def encode_shifted(self, condition: Tensor, shift: tuple[int, int, int]) -> Tensor:
        """:meth:`encode_condition` of ``condition`` rolled by ``shift`` voxels along D, H, W, without a copy of it."""

    def denoise_last(self, x: Tensor, t: Tensor, condition: Tensor, encoded: Tensor) -> Tensor:
        """:meth:`denoise`, averaged with its output for image and labels that are shifted by one voxel along all axes.

        Each output contains a faint pattern of the 2 x 2 x 2 blocks of the Haar split. Shifted by :data:`_SHIFT`, that
        of a sub-band with one or three high-pass axes changes its sign and cancels; the weaker one of two axes remains
        (full cycle spinning, Coifman and Donoho 1995, needs eight shifts to cancel all).
        """
        shifted = self.denoise(_rolled(x, _SHIFT), t, self.encode_shifted(condition, _SHIFT))
        back = tuple(-step for step in _SHIFT)
        return (self.denoise(x, t, encoded).float() + _rolled(shifted.float(), back)) / 2


class WaveletUNet3d(WaveletDenoiser):
    """A U-Net on Haar sub-bands. D, H and W are multiples of 2 to the number of ``channels``.

    ``channels`` are the widths at 1/2, 1/4, 1/8, ... of the grid. The output is a blend of the network's estimate and
    ``x`` itself, which is better than any estimate where the image is almost clean, and useless where it is noise. The
    weight of ``x`` is learned for each of the ``timesteps`` and sub-bands: the learned skip weight, whose logits are
    :attr:`skip_weight_logits`.

    With ``place_octaves`` the last three channels of the condition are positions
    (:func:`MedDPMLib.masks.condition.condition`), and the network also receives :func:`place_features` of them: with
    few labels it has to know where in a brain the ventricles are, which convolutions hardly learn from three linear
    ramps.
    """

    values_per_voxel = 130

    def __init__(
        self,
        image_channels: int,
        condition_channels: int,
        channels: Sequence[int] = (48, 64, 96, 128),
        timesteps: int = 250,
        place_octaves: int = 0,
    ) -> None:
        super().__init__()
        if any(width % _GROUPS for width in channels):
            raise MedDPMError(f"the widths {tuple(channels)} of a wavelet U-Net must be multiples of {_GROUPS}")
        self.side_multiple = 2 ** len(channels)
        self.time = nn.Sequential(nn.Linear(64, _TIME_WIDTH), nn.SiLU(), nn.Linear(_TIME_WIDTH, _TIME_WIDTH), nn.SiLU())
        self.image_stem = nn.Conv3d(8 * image_channels, channels[0], 3, padding=1)
        self.embedding = nn.Conv3d(8 * condition_channels, _EMBEDDING_WIDTH, 1)
        # Only one label is present at a voxel: with the usual scale, for dense inputs, noise would dominate.
        if not self.embedding.weight.is_meta:  # drawing numbers there would import torch's compiler, for seconds
            nn.init.normal_(self.embedding.weight, std=0.5)
        self.condition_stem = nn.Conv3d(_EMBEDDING_WIDTH, channels[0], 3, padding=1, bias=False)
        self.place_octaves = place_octaves
        self.exact_condition = place_octaves > 0
        if place_octaves > _MOST_OCTAVES or (place_octaves and condition_channels < 3):
            raise MedDPMError(
                f"a wavelet U-Net takes three channels of positions in at most {_MOST_OCTAVES} octaves, not"
                f" {condition_channels} channels in {place_octaves}"
            )
        if place_octaves:
            self.places = nn.Sequential(
                nn.Conv3d(_EMBEDDING_WIDTH + 6 * place_octaves, _PLACE_WIDTH, 1),
                nn.SiLU(),
                nn.Conv3d(_PLACE_WIDTH, _PLACE_WIDTH, 1),
                nn.SiLU(),
                nn.Conv3d(_PLACE_WIDTH, _EMBEDDING_WIDTH, 1),
            )
        self.down = nn.ModuleList(_Block(width, width) for width in channels[:-1])
        self.widen = nn.ModuleList(
            nn.Conv3d(a, b, 2, stride=2) for a, b in zip(channels[:-1], channels[1:], strict=True)
        )
        self.middle = nn.ModuleList(_Block(channels[-1], channels[-1]) for _ in range(2))
        self.narrow = nn.ModuleList(nn.Conv3d(b, a, 1) for a, b in zip(channels[:-1], channels[1:], strict=True))
        self.up = nn.ModuleList(_Block(2 * width, width) for width in channels[:-1])
        self.out_norm = nn.GroupNorm(_GROUPS, channels[0])
        self.out = _zero(nn.Conv3d(channels[0], 8 * image_channels, 3, padding=1))
        self.timesteps = timesteps
        self.register_parameter("trust", nn.Parameter(torch.zeros(timesteps, 8 * image_channels)))
        if not self.skip_weight_logits.is_meta:  # arithmetic there imports it too
            self.start_training(torch.linspace(1, 0, timesteps + 2)[1:-1])

    def encode_shifted(self, condition: Tensor, shift: tuple[int, int, int]) -> Tensor:
        if any(side % self.side_multiple for side in condition.shape[2:]):
            sides = tuple(condition.shape[2:])
            raise MedDPMError(f"this wavelet U-Net needs sides that are multiples of {self.side_multiple}, not {sides}")
        # Some channels at a time: another memory layout of all would be the largest tensor of a run.
        kernel = self._embedding_of_voxels()
        embedded = None
        for first in range(0, condition.shape[1], _CHANNELS_AT_ONCE):
            part = slice(first, first + _CHANNELS_AT_ONCE)
            voxels = _channels_last(_rolled(condition[:, part], shift).to(kernel.dtype))
            bias = self.embedding.bias if embedded is None else None
            share = F.conv3d(voxels, _channels_last(kernel[:, part]), bias, stride=2)
            embedded = share if embedded is None else _add(embedded, share)
        if self.place_octaves:
            positions = _rolled(condition[:, -3:], shift)
            places = place_features(positions, self.place_octaves).to(kernel.dtype)
            embedded = embedded + self.places(_channels_last(torch.cat([embedded, places], dim=1)))
        return self.condition_stem(embedded)

    def _embedding_of_voxels(self) -> Tensor:
        """Haar split and :attr:`embedding` as one convolution of stride 2, without the sub-bands: (E, K, 2, 2, 2)."""
        weight = self.embedding.weight.float().flatten(1).unflatten(1, (8, -1))
        return (
            torch.einsum("ebk,vb->ekv", weight, haar_of_blocks(weight.device))
            .unflatten(2, (2, 2, 2))
            .to(self.embedding.weight.dtype)
        )

    @property
    def skip_weight_logits(self) -> nn.Parameter:
        """(timesteps, 8 * image channels): logits of the weight of ``x``; "trust" in bundles and checkpoints."""
        return self.trust  # type: ignore[return-value]

    def denoise(self, x: Tensor, t: Tensor, encoded: Tensor) -> Tensor:
        dtype = self.out.weight.dtype
        time = self.time(timestep_features(t, 64).to(dtype))
        bands = haar_split(x.to(dtype))
        h = _add(self.image_stem(_channels_last(bands)), encoded)
        skips = []
        for block, widen in zip(self.down, self.widen, strict=True):
            h = block(h, time)
            skips.append(h)
            h = widen(h)
        for block in self.middle:
            h = block(h, time)
        for block, narrow in zip(reversed(self.up), reversed(self.narrow), strict=True):
            h = F.interpolate(narrow(h), scale_factor=2.0, mode="nearest")
            h = block(torch.cat([h, skips.pop()], dim=1), time)
        estimate = self.out(_silu(self.out_norm(h)))
        return haar_merge(torch.lerp(estimate, bands, self.skip_weight_logits[t].sigmoid()[:, :, None, None, None]))

    @torch.no_grad()
    def start_training(self, alpha_bar: Tensor) -> None:
        """Initializes the learned skip weight from the noise in x at each timestep, ``alpha_bar`` (timesteps,).

        Of two estimates of x0, the network's with an error of :data:`_TYPICAL_ERROR` and x with its noise, the best
        blend weighs each with the inverse of its variance.
        """
        if len(alpha_bar) != self.timesteps:
            raise MedDPMError(
                f"a wavelet U-Net for {self.timesteps} timesteps does not fit a schedule of {len(alpha_bar)}"
            )
        noise = ((1 - alpha_bar) / alpha_bar).log()
        error = 2 * torch.tensor([_TYPICAL_ERROR[band.bit_count()] for band in range(8)]).log()
        logits = error[None, :] - noise[:, None].to(error)
        parameter = self.skip_weight_logits
        parameter.copy_(logits.repeat_interleave(parameter.shape[1] // 8, dim=1))


def _rolled(x: Tensor, shift: tuple[int, int, int]) -> Tensor:
    """``x`` rolled along D, H and W."""
    return x.roll(shift, (2, 3, 4)) if any(shift) else x


def _channels_last(x: Tensor) -> Tensor:
    return x.contiguous(memory_format=torch.channels_last_3d)
