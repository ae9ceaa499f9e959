"""The compact network of the bundled models: a U-Net on the wavelet sub-bands of the image.

One level of the CDF 9/7 wavelet (Cohen, Daubechies and Feauveau 1992; JPEG 2000's) splits every channel into eight
sub-bands at half the resolution, as wavelet diffusion does with Haar's (Friedrich et al. 2024, arXiv 2402.19043), so
that no convolution runs on the full grid, and nothing is lost. Its filters overlap: errors of the network are smooth,
where Haar's show as a grid of 2 x 2 x 2 blocks.

Nothing in the network looks at a volume as a whole (it normalises each voxel for itself), so it can learn from patches
and draw whole volumes.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from MedDPMLib.errors import MedDPMError
from MedDPMLib.networks.denoiser import Denoiser

_WIDTH_MULTIPLE = 8
_TIME_WIDTH = 192
_EMBEDDING_WIDTH = 64
#: Standard deviation of the network's error that :attr:`trust` starts from, for sub-bands with 0, 1, 2 and 3 high-pass
#: axes. Smaller than measured, because what is trusted too far stays in the image as grain.
_TYPICAL_ERROR = (0.08, 0.03, 0.012, 0.006)

#: The four lifting steps of CDF 9/7, alternately into the odd and into the even samples, and the scale that makes it
#: nearly orthonormal (Daubechies and Sweldens 1998).
_LIFTING = (-1.586134342059924, -0.052980118572961, 0.882911075530934, 0.443506852043971)
_SCALE = 1.149604398860241


@lru_cache(maxsize=64)
def wavelet_matrix(side: int) -> Tensor:
    """(side, side), float64: rows 0 to side / 2 - 1 are the low-pass, the others the high-pass filters of CDF 9/7.

    ``side`` is even. The signal is continued beyond its ends by reflection, without repeating the end.
    """
    even, odd = torch.eye(side, dtype=torch.float64).unflatten(0, (-1, 2)).unbind(1)
    for number, weight in enumerate(_LIFTING):
        if number % 2 == 0:  # an odd sample lies between its even one and the next; beyond the last is its reflection
            odd = odd + weight * (even + torch.cat([even[1:], even[-1:]]))
        else:
            even = even + weight * (odd + torch.cat([odd[:1], odd[:-1]]))
    return torch.cat([even * _SCALE, odd / _SCALE])


@lru_cache(maxsize=64)
def _transform(side: int, inverse: bool, dtype: torch.dtype, device: torch.device) -> Tensor:
    with torch.inference_mode(False):  # what is kept must serve in training too
        matrix = wavelet_matrix(side)
        return (torch.linalg.inv(matrix) if inverse else matrix).to(device, dtype)


def _along_each_axis(x: Tensor, inverse: bool) -> Tensor:
    """``x`` (B, C, D, H, W) with the transform, or its inverse, applied along D, H and W, as matrix products."""
    depth, height, width = (_transform(side, inverse, x.dtype, x.device) for side in x.shape[2:])
    x = x @ width.T
    x = height @ x
    return (depth @ x.flatten(3)).view_as(x)


def wavelet_split(x: Tensor) -> Tensor:
    """CDF 9/7 analysis in three dimensions: (B, C, D, H, W), even sides, to (B, 8 C, D/2, H/2, W/2).

    Sub-band ``b`` of channel ``c`` is channel ``b * C + c``; bit 2, 1, 0 of ``b`` says high-pass along D, H, W.
    Nearly orthonormal: white noise of unit variance stays so, to about a tenth.
    """
    batch, channels, depth, height, width = x.shape
    bands = _along_each_axis(x.contiguous(), inverse=False)
    bands = bands.view(batch, channels, 2, depth // 2, 2, height // 2, 2, width // 2)
    return bands.permute(0, 2, 4, 6, 1, 3, 5, 7).reshape(batch, 8 * channels, depth // 2, height // 2, width // 2)


def wavelet_merge(bands: Tensor) -> Tensor:
    """The inverse of :func:`wavelet_split`: (B, 8 C, D/2, H/2, W/2) to (B, C, D, H, W)."""
    batch, channels, depth, height, width = bands.shape
    x = bands.reshape(batch, 2, 2, 2, channels // 8, depth, height, width).permute(0, 4, 1, 5, 2, 6, 3, 7)
    return _along_each_axis(x.reshape(batch, channels // 8, 2 * depth, 2 * height, 2 * width), inverse=True)


def timestep_features(t: Tensor, width: int) -> Tensor:
    """Sinusoids of timestep ``t`` (B,): (B, width), float32 (Vaswani et al. 2017)."""
    frequencies = torch.exp(-math.log(10_000) * torch.arange(width // 2, device=t.device) / (width // 2))
    angles = t.float()[:, None] * frequencies
    return torch.cat([angles.cos(), angles.sin()], dim=1)


class _ChannelNorm(nn.LayerNorm):
    """Normalises the channels of each voxel of (B, C, D, H, W), whatever lies around it."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.movedim(1, -1)).movedim(-1, 1)


class _Block(nn.Module):
    """Normalisation, two convolutions and a residual connection (Liu et al. 2022, arXiv 2201.03545, has one of each);
    the timestep enters as a bias between the convolutions (Ho et al. 2020)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = _ChannelNorm(width)
        self.conv1 = nn.Conv3d(width, width, 3, padding=1)
        self.time = nn.Linear(_TIME_WIDTH, width)
        self.conv2 = _zero(nn.Conv3d(width, width, 3, padding=1))

    def forward(self, x: Tensor, time: Tensor) -> Tensor:
        h = self.conv1(self.norm(x))
        h = _silu(_add(h, self.time(time)[:, :, None, None, None]))
        return _add(self.conv2(h), x)


class _Take(nn.Module):
    """What the way up takes from the way down at the same resolution: less of it the more it is noise.

    A plain sum would leave the noise of the input in every channel up to the output.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.select = nn.Conv3d(width, width, 1, bias=False)
        self.time = _zero(nn.Linear(_TIME_WIDTH, width))

    def forward(self, skip: Tensor, time: Tensor) -> Tensor:
        return _multiply(self.select(skip), 1 + self.time(time)[:, :, None, None, None])


def _zero(layer: nn.Module) -> nn.Module:
    """``layer`` with weights and bias zero, so that a residual branch starts as nothing."""
    for parameter in layer.parameters():
        nn.init.zeros_(parameter)
    return layer


# What a convolution has just made is nobody else's: without gradients it is changed in place.


def _add(fresh: Tensor, other: Tensor) -> Tensor:
    return fresh + other if torch.is_grad_enabled() else fresh.add_(other)


def _multiply(fresh: Tensor, other: Tensor) -> Tensor:
    return fresh * other if torch.is_grad_enabled() else fresh.mul_(other)


def _silu(fresh: Tensor) -> Tensor:
    return F.silu(fresh, inplace=not torch.is_grad_enabled())


class WaveletUNet3d(Denoiser):
    """A U-Net on sub-bands. D, H and W are multiples of 2 to the number of ``channels``.

    ``channels`` are the widths at 1/2, 1/4, 1/8, ... of the grid. What labels alone say of the image, whatever the
    noise, is the :attr:`prior`, made once from the labels around each voxel; the U-Net adds what the noisy image says.

    The output is a blend of this estimate and of ``x`` itself: where the image is almost clean it is better than any
    estimate, where it is noise it is worthless. How far it is trusted is learnt for each of the ``timesteps`` and
    sub-bands: :attr:`trust`, the logit of the weight of ``x``.
    """

    values_per_voxel = 120

    def __init__(
        self,
        image_channels: int,
        condition_channels: int,
        channels: Sequence[int] = (48, 80, 112, 96),
        timesteps: int = 250,
    ) -> None:
        super().__init__()
        if any(width % _WIDTH_MULTIPLE for width in channels):
            raise MedDPMError(f"the widths {tuple(channels)} of a wavelet U-Net must be multiples of {_WIDTH_MULTIPLE}")
        self.side_multiple = 2 ** len(channels)
        self.time = nn.Sequential(nn.Linear(64, _TIME_WIDTH), nn.SiLU(), nn.Linear(_TIME_WIDTH, _TIME_WIDTH), nn.SiLU())
        self.image_stem = nn.Conv3d(8 * image_channels, channels[0], 3, padding=1)
        self.embedding = nn.Conv3d(condition_channels, _EMBEDDING_WIDTH, 2, stride=2)
        # Of all labels one is present at a voxel: the usual scale, for dense inputs, would drown them in the noise.
        if not self.embedding.weight.is_meta:  # drawing numbers there would import torch's compiler, for seconds
            nn.init.normal_(self.embedding.weight, std=0.5)
        self.surroundings = nn.ModuleList(nn.Conv3d(_EMBEDDING_WIDTH, _EMBEDDING_WIDTH, 3, padding=1) for _ in range(2))
        self.condition_stem = nn.Conv3d(_EMBEDDING_WIDTH, 2 * channels[0], 1, bias=False)
        self.prior = _zero(nn.Conv3d(_EMBEDDING_WIDTH, 8 * image_channels, 3, padding=1))
        self.down = nn.ModuleList(_Block(width) for width in channels[:-1])
        pairs = list(zip(channels[:-1], channels[1:], strict=True))
        self.widen = nn.ModuleList(nn.Conv3d(a, b, 2, stride=2) for a, b in pairs)
        self.middle = nn.ModuleList(_Block(channels[-1]) for _ in range(2))
        self.narrow = nn.ModuleList(nn.Conv3d(b, a, 1) for a, b in pairs)
        self.take = nn.ModuleList(_Take(width) for width in channels[:-1])
        self.up = nn.ModuleList(_Block(width) for width in channels[:-1])
        self.out = _zero(nn.Conv3d(channels[0], 8 * image_channels, 3, padding=1))
        self.timesteps = timesteps
        self.trust = nn.Parameter(torch.zeros(timesteps, 8 * image_channels))
        if not self.trust.is_meta:  # arithmetic there imports it too
            self.start_training(torch.linspace(1, 0, timesteps + 2)[1:-1])

    def encode_condition(self, condition: Tensor) -> Tensor:
        """What labels add before the first block and before the last, and the prior: (B, 2 channels[0] + 8 C, ...)."""
        if any(side % self.side_multiple for side in condition.shape[2:]):
            sides = tuple(condition.shape[2:])
            raise MedDPMError(f"this wavelet U-Net needs sides that are multiples of {self.side_multiple}, not {sides}")
        h = _silu(self.embedding(_channels_last(condition.to(self.out.weight.dtype))))
        for layer in self.surroundings:
            h = _silu(layer(h))
        return torch.cat([self.condition_stem(h), self.prior(h)], dim=1)

    def denoise(self, x: Tensor, t: Tensor, encoded: Tensor) -> Tensor:
        dtype = self.out.weight.dtype
        time = self.time(timestep_features(t, 64).to(dtype))
        bands = _channels_last(wavelet_split(x.to(dtype)))
        width = self.out.in_channels
        before, behind, prior = encoded.tensor_split([width, 2 * width], dim=1)
        h = _add(self.image_stem(bands), before)
        skips = []
        for block, widen in zip(self.down, self.widen, strict=True):
            h = block(h, time)
            skips.append(h)
            h = widen(h)
        for block in self.middle:
            h = block(h, time)
        for level in reversed(range(len(self.up))):
            h = F.interpolate(self.narrow[level](h), scale_factor=2.0, mode="nearest")
            h = _add(h, self.take[level](skips.pop(), time))
            if level == 0:
                h = _add(h, behind)
            h = self.up[level](h, time)
        estimate = _add(self.out(h), prior)
        return wavelet_merge(torch.lerp(estimate, bands, self.trust[t].sigmoid()[:, :, None, None, None]))

    @torch.no_grad()
    def start_training(self, alpha_bar: Tensor) -> None:
        """Starts :attr:`trust` from the noise in x at each timestep, ``alpha_bar`` (timesteps,).

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
        self.trust.copy_(logits.repeat_interleave(self.trust.shape[1] // 8, dim=1))


def _channels_last(x: Tensor) -> Tensor:
    return x.contiguous(memory_format=torch.channels_last_3d)
