"""The two published networks of Med-DDPM: a 3-D residual U-Net that predicts the noise.

The architecture is that of guided diffusion (Dhariwal and Nichol, arXiv 2105.05233) with every convolution
in three dimensions, as Med-DDPM (arXiv 2305.18453) trained it. Parameters carry the names of the published
checkpoints, so these load as they are. Plain PyTorch throughout: the reference of every faster path.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from MedDPMLib.errors import MedDPMError
from MedDPMLib.networks.denoiser import Denoiser

#: Groups of every GroupNorm; each level's channels must be a multiple.
GROUPS = 32

#: Ratio of the shortest to the longest wave of the timestep embedding. The published networks were trained
#: with this one; 10,000 is usual elsewhere.
_MAX_PERIOD = 1000


class UNet3d(Denoiser):
    """Predicts the noise in ``x`` from the noisy image, the timestep and the label channels.

    Args:
        image_channels: C, one channel for each modality.
        condition_channels: K, one channel for each label.
        base: channels of the first level, a multiple of 32.
        multipliers: channels of each level as multiples of ``base``; each level halves the resolution.
        blocks: residual blocks at each level on the way down (one more on the way up).
        attention: the downsampling factors with self-attention after each residual block; the middle always has it.

    Raises :class:`MedDPMError` for numbers that make no network.
    """

    values_per_voxel = 660

    def __init__(
        self,
        image_channels: int,
        condition_channels: int,
        base: int = 64,
        multipliers: Sequence[int] = (1, 1, 2, 3, 4),
        blocks: int = 1,
        attention: Sequence[int] = (8,),
    ) -> None:
        super().__init__()
        _check_numbers(image_channels, condition_channels, base, multipliers, blocks, attention)
        self.image_channels = image_channels
        self.condition_channels = condition_channels
        #: Every side of a volume must be a multiple of this.
        self.side_multiple = 2 ** (len(multipliers) - 1)
        self.base = base
        time_channels = 4 * base
        widths = [base * multiplier for multiplier in multipliers]

        self.time_embed = nn.Sequential(
            nn.Linear(base, time_channels), nn.SiLU(), nn.Linear(time_channels, time_channels)
        )

        stem = nn.Conv3d(self._stem_channels(), base, 3, padding=1)
        self.input_blocks = nn.ModuleList([_Step(stem)])
        channels = base
        skips = [base]
        for level, width in enumerate(widths):
            for _ in range(blocks):
                layers = [self._block(channels, width, time_channels)]
                channels = width
                if 2**level in attention:
                    layers += self._attention(channels)
                self.input_blocks.append(_Step(*layers))
                skips.append(channels)
            if level < len(widths) - 1:
                self.input_blocks.append(_Step(Downsample(channels)))
                skips.append(channels)

        self.middle_block = _Step(
            self._block(channels, channels, time_channels),
            *self._attention(channels),
            self._block(channels, channels, time_channels),
        )

        self.output_blocks = nn.ModuleList()
        for level, width in reversed(list(enumerate(widths))):
            for block in range(blocks + 1):
                layers = [self._block(channels + skips.pop(), width, time_channels)]
                channels = width
                if 2**level in attention:
                    layers += self._attention(channels)
                if level > 0 and block == blocks:
                    layers.append(Upsample(channels))
                self.output_blocks.append(_Step(*layers))

        self.out = nn.Sequential(
            nn.GroupNorm(GROUPS, channels), nn.SiLU(), zeroed(nn.Conv3d(channels, image_channels, 3, padding=1))
        )

    # What networks that take their labels in another way replace (MedDPMLib.networks.conditioning).

    def _stem_channels(self) -> int:
        return self.image_channels + self.condition_channels

    def _block(self, channels: int, width: int, time_channels: int) -> nn.Module:
        return ResidualBlock(channels, width, time_channels)

    def _attention(self, channels: int) -> list[nn.Module]:
        return [Attention(channels)]

    def forward(self, x: Tensor, t: Tensor, condition: Tensor) -> Tensor:
        """The predicted noise (B, C, D, H, W) in the dtype of the weights.

        Args:
            x: noisy image (B, C, D, H, W).
            t: integer timestep (B,) of each element.
            condition: label channels (B, K, D, H, W).

        Raises :class:`MedDPMError` for another number of channels and for a side that is no multiple of
        ``side_multiple``.
        """
        self.check_input(x, t, condition)
        h = torch.cat([x, condition], dim=1).to(self._stem.weight.dtype)
        return self._after_stem(self._stem(h), t)

    def encode_condition(self, condition: Tensor) -> Tensor:
        """The condition's share of the first convolution, (B, base, D, H, W)."""
        return self._stem_of(condition, slice(self.image_channels, None))

    def denoise(self, x: Tensor, t: Tensor, encoded: Tensor) -> Tensor:
        bias = self._stem.bias[:, None, None, None]
        return self._after_stem(self._stem_of(x, slice(self.image_channels)) + encoded + bias, t)

    @property
    def _stem(self) -> nn.Conv3d:
        return self.input_blocks[0][0]

    def _stem_of(self, inputs: Tensor, channels: slice) -> Tensor:
        """The first convolution of the input ``channels`` alone, without bias."""
        weight = self._stem.weight[:, channels]
        return F.conv3d(inputs.to(weight.dtype), weight, padding=1)

    def _after_stem(self, h: Tensor, t: Tensor, labels: Tensor | None = None) -> Tensor:
        embedding = self.time_embed(timestep_embedding(t, self.base).to(h.dtype))
        skips = [h]
        for step in self.input_blocks[1:]:
            h = step(h, embedding, labels)
            skips.append(h)
        h = self.middle_block(h, embedding, labels)
        for step in self.output_blocks:
            h = step(torch.cat([h, skips.pop()], dim=1), embedding, labels)
        return self.out(h)

    def check_input(self, x: Tensor, t: Tensor, condition: Tensor) -> None:
        batch, sides = x.shape[0], tuple(x.shape[2:])
        if x.ndim != 5 or x.shape[1] != self.image_channels:
            raise MedDPMError(
                f"the network needs an image (B, {self.image_channels}, D, H, W), not one of shape {tuple(x.shape)}"
            )
        expected = (batch, self.condition_channels, *sides)
        if tuple(condition.shape) != expected:
            raise MedDPMError(f"the network needs a condition of shape {expected}, not {tuple(condition.shape)}")
        if tuple(t.shape) != (batch,):
            raise MedDPMError(
                f"the network needs a timestep for each of {batch} images, not a tensor of shape {tuple(t.shape)}"
            )
        if any(side % self.side_multiple for side in sides):
            raise MedDPMError(
                f"every side of the volume must be a multiple of {self.side_multiple} voxels, not {sides}"
            )


def timestep_embedding(t: Tensor, channels: int) -> Tensor:
    """Cosines, then sines, of ``t`` (B,) at ``channels / 2`` frequencies from 1 down to 1 / 1000: (B, channels).

    The sinusoidal embedding of Vaswani et al. (arXiv 1706.03762). Always in float32: bfloat16 cannot tell
    neighboring timesteps apart.
    """
    half = channels // 2
    frequencies = torch.exp(-math.log(_MAX_PERIOD) / half * torch.arange(half, dtype=torch.float32, device=t.device))
    angles = t.to(torch.float32)[:, None] * frequencies
    return torch.cat([torch.cos(angles), torch.sin(angles)], dim=1)


class LabeledLayer(nn.Module):
    """A layer that is called with what the network's ``encode_condition`` made of the labels: ``layer(h, labels)``."""


class _Step(nn.Sequential):
    """Layers in a row; those that listen to the timestep are given its embedding, and those to the labels, these."""

    def forward(self, h: Tensor, embedding: Tensor, labels: Tensor | None) -> Tensor:
        for layer in self:
            if isinstance(layer, ResidualBlock):
                h = layer(h, embedding, labels)
            else:
                h = layer(h, labels) if isinstance(layer, LabeledLayer) else layer(h)
        return h


class ResidualBlock(nn.Module):
    """Two normalized convolutions; the timestep's embedding is added between them."""

    def __init__(self, channels: int, width: int, time_channels: int) -> None:
        super().__init__()
        self.in_layers = nn.Sequential(
            nn.GroupNorm(GROUPS, channels), nn.SiLU(), nn.Conv3d(channels, width, 3, padding=1)
        )
        self.emb_layers = nn.Sequential(nn.SiLU(), nn.Linear(time_channels, width))
        # The identity holds the place of the published dropout (of nothing), so that the convolution is number 3.
        self.out_layers = nn.Sequential(
            nn.GroupNorm(GROUPS, width), nn.SiLU(), nn.Identity(), zeroed(nn.Conv3d(width, width, 3, padding=1))
        )
        self.skip_connection = nn.Identity() if channels == width else nn.Conv3d(channels, width, 1)

    def forward(self, h: Tensor, embedding: Tensor, labels: Tensor | None = None) -> Tensor:
        """Here ``labels`` play no part; they have come with the network's input."""
        shift = self.emb_layers(embedding)[:, :, None, None, None]
        return self.skip_connection(h) + self.out_layers(self.in_layers(h) + shift)


class Attention(nn.Module):
    """Self-attention with one head over all voxels."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = nn.GroupNorm(GROUPS, channels)
        self.qkv = nn.Conv1d(channels, 3 * channels, 1)
        self.proj_out = zeroed(nn.Conv1d(channels, channels, 1))

    def forward(self, h: Tensor) -> Tensor:
        voxels = h.flatten(2)
        q, k, v = self.qkv(self.norm(voxels)).transpose(1, 2).chunk(3, dim=2)
        attended = F.scaled_dot_product_attention(q, k, v)
        return (voxels + self.proj_out(attended.transpose(1, 2))).view_as(h)


class Downsample(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.op = nn.Conv3d(channels, channels, 3, stride=2, padding=1)

    def forward(self, h: Tensor) -> Tensor:
        return self.op(h)


class Upsample(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv3d(channels, channels, 3, padding=1)

    def forward(self, h: Tensor) -> Tensor:
        # Trilinear is what the published networks were trained with, where guided diffusion repeats voxels.
        return self.conv(F.interpolate(h, scale_factor=2, mode="trilinear"))


def zeroed(layer: nn.Module) -> nn.Module:
    """``layer`` with weights of zero: each residual branch starts as nothing, which steadies early training."""
    for parameter in layer.parameters():
        nn.init.zeros_(parameter)
    return layer


def _check_numbers(
    image_channels: int,
    condition_channels: int,
    base: int,
    multipliers: Sequence[int],
    blocks: int,
    attention: Sequence[int],
) -> None:
    """The bounds are far beyond any network in use; they keep an absurd description from costing minutes."""
    if min(image_channels, condition_channels, blocks, *multipliers, *attention) < 1:
        raise MedDPMError("every number of a U-Net must be at least 1")
    if base < GROUPS or base % GROUPS:
        raise MedDPMError(f'the "base" channels of a U-Net must be a multiple of {GROUPS}, not {base}')
    if not 1 <= len(multipliers) <= 8:
        raise MedDPMError(f'the "multipliers" of a U-Net must name 1 to 8 levels, not {len(multipliers)}')
    if blocks > 8:
        raise MedDPMError(f"a U-Net has at most 8 blocks a level, not {blocks}")
