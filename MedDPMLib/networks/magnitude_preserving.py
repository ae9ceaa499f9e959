"""A U-Net whose layers keep the size of what passes through them, without any normalization layer.

Every filter has unit norm, sums are weighted and activations scaled so that independent unit inputs give unit outputs
(Karras et al. 2024, arXiv 2312.02696). No statistics of the volume enter: what is learned on patches holds on whole
volumes of any size.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

#: Root mean square of SiLU of a standard normal number.
_SILU_GAIN = 0.596

#: Share of the branch in a residual sum, and of the coarser level where levels meet.
_BRANCH, _LEVELS = 0.3, 0.5

#: So many cosines describe a number.
_FREQUENCIES = 32


def silu(x: Tensor) -> Tensor:
    return F.silu(x) / _SILU_GAIN


def weighted_sum(first: Tensor, second: Tensor, share: float) -> Tensor:
    """(1 - share) ``first`` + share ``second``, as large as each where they are independent."""
    return (first * (1 - share) + second * share) / math.sqrt((1 - share) ** 2 + share**2)


def normalize_voxels(x: Tensor) -> Tensor:
    """``x`` (B, C, ...) with a mean square of 1 over the channels of each voxel."""
    return x * torch.rsqrt(x.float().square().mean(dim=1, keepdim=True) + 1e-4).to(x.dtype)


class UnitConv(nn.Module):
    """A convolution without bias whose filters have unit norm whatever the stored weight's.

    A ``kernel`` of 0 is a linear map of (B, inputs), one of 2 halves the grid. With ``gain`` a learned number, 0 at
    first, scales the output.
    """

    def __init__(self, inputs: int, outputs: int, kernel: int, *, gain: bool = False) -> None:
        super().__init__()
        self.kernel = kernel
        shape = (outputs, inputs, *[kernel] * (3 if kernel else 0))
        self.weight = nn.Parameter(torch.empty(shape))
        if not self.weight.is_meta:
            nn.init.normal_(self.weight)
        self.gain = nn.Parameter(torch.zeros([])) if gain else None
        self._frozen: Tensor | None = None

    def unit_weight(self) -> Tensor:
        """The filters as they are used, float32."""
        weight = self.weight.float()
        norm = weight.flatten(1).norm(dim=1).clamp_min(1e-4)
        weight = weight / norm.view(-1, *[1] * (weight.ndim - 1))
        return weight if self.gain is None else weight * self.gain

    def forward(self, x: Tensor) -> Tensor:
        weight = self._filters(x.dtype) if self._frozen is None else self._frozen
        if not self.kernel:
            return x @ weight.t()
        if self.kernel == 2:
            return F.conv3d(x, weight, stride=2)
        return F.conv3d(x, weight, padding=self.kernel // 2)

    def _filters(self, dtype: torch.dtype) -> Tensor:
        weight = self.unit_weight().to(dtype)
        return weight.contiguous(memory_format=torch.channels_last_3d) if self.kernel > 1 else weight

    @torch.no_grad()
    def freeze(self, dtype: torch.dtype) -> None:
        """Computes the filters once, in ``dtype``: for inference."""
        self._frozen = self._filters(dtype if self.kernel else torch.float32)

    @torch.no_grad()
    def rescale(self) -> None:
        """Brings the stored weight back to a root mean square of 1, so that a step of the optimizer turns every filter
        as far as any other, at the beginning of a training as at its end."""
        norm = self.weight.flatten(1).norm(dim=1).clamp_min(1e-4)
        self.weight.mul_((math.sqrt(self.weight[0].numel()) / norm).view(-1, *[1] * (self.weight.ndim - 1)))


class _Block(nn.Module):
    """Two convolutions with a residual connection, whose hidden channels the embedding scales; then, with ``heads``,
    attention between all voxels."""

    def __init__(self, channels: int, embedding: int, *, normalize: bool, heads: int) -> None:
        super().__init__()
        self.normalize, self.heads = normalize, heads
        self.first = UnitConv(channels, channels, 3)
        self.second = UnitConv(channels, channels, 3)
        self.scale = UnitConv(embedding, channels, 0, gain=True)
        if heads:
            self.qkv = UnitConv(channels, 3 * channels, 1)
            self.projection = UnitConv(channels, channels, 1)

    def forward(self, x: Tensor, embedded: Tensor) -> Tensor:
        if self.normalize:
            x = normalize_voxels(x)
        scale = (self.scale(embedded) + 1)[:, :, None, None, None]
        h = self.second(silu(self.first(silu(x)) * scale.to(x.dtype)))
        x = weighted_sum(x, h, _BRANCH)
        if self.heads:
            x = weighted_sum(x, self.projection(self._attention(x)), _BRANCH)
        return x

    def _attention(self, x: Tensor) -> Tensor:
        width = x.shape[1] // self.heads
        query, key, value = (
            normalize_voxels(part.flatten(0, 1)).unflatten(0, (len(x), self.heads)).transpose(2, 3)
            for part in self.qkv(x).reshape(len(x), 3, self.heads, width, -1).unbind(1)
        )
        return F.scaled_dot_product_attention(query, key, value).transpose(2, 3).reshape(x.shape)


class UnitUNet3d(nn.Module):
    """Denoised ``image_channels`` from ``given_channels`` on the same grid and an appearance.

    ``widths`` are the channels at 1, 1/2, 1/4, ... of the grid, ``depths`` the blocks of each on the way down; as many
    follow on the way up, but for the coarsest, which alone attends, with ``heads`` (0 for none). Sides are multiples of
    2 to the number of widths less one.
    """

    def __init__(
        self,
        image_channels: int,
        given_channels: int,
        appearance: int,
        widths: Sequence[int],
        depths: Sequence[int],
        *,
        given_width: int,
        heads: int = 0,
        embedding: int = 128,
    ) -> None:
        super().__init__()
        self.register_buffer("frequencies", torch.empty(_FREQUENCIES))
        self.register_buffer("phases", torch.empty(_FREQUENCIES))
        if not self.phases.is_meta:
            generator = torch.Generator().manual_seed(0)
            self.frequencies.copy_(2 * math.pi * torch.randn(_FREQUENCIES, generator=generator))
            self.phases.copy_(2 * math.pi * torch.rand(_FREQUENCIES, generator=generator))
        self.embed_noise = UnitConv(2 * _FREQUENCIES, embedding, 0)
        self.embed_appearance = UnitConv(appearance + 1, embedding, 0)
        self.mix = UnitConv(embedding, embedding, 0)
        self.given_first = UnitConv(given_channels + 1, 2 * given_width, 1)
        self.given_second = UnitConv(2 * given_width, given_width, 1)
        self.stem = UnitConv(image_channels + given_width + 1, widths[0], 3)
        self.down, self.up = nn.ModuleList(), nn.ModuleList()
        self.widen, self.narrow = nn.ModuleList(), nn.ModuleList()
        for level, (width, depth) in enumerate(zip(widths, depths, strict=True)):
            last = level == len(widths) - 1
            self.down.append(_blocks(depth, width, embedding, normalize=True, heads=heads if last else 0))
            if not last:
                self.up.append(_blocks(depth, width, embedding, normalize=False, heads=0))
                self.widen.append(UnitConv(width, widths[level + 1], 2))
                self.narrow.append(UnitConv(widths[level + 1], width, 1))
        self.out = UnitConv(widths[0], image_channels, 3, gain=True)
        if not self.out.gain.is_meta:
            nn.init.constant_(self.out.gain, 0.5)

    def encode(self, given: Tensor) -> Tensor:
        """The share of ``given`` (B, given_channels, D, H, W) in the first convolution, the same at every step."""
        return self.given_second(silu(self.given_first(_with_ones(given))))

    def forward(self, x: Tensor, noise: Tensor, condition_noise: Tensor, appearance: Tensor, encoded: Tensor) -> Tensor:
        """``x`` (B, image_channels, D, H, W) of about unit variance; ``noise`` and ``condition_noise`` (B,), a quarter
        of the logarithm of the noise in ``x`` and in what is given; ``appearance`` (B, A), standardized; ``encoded``
        from :meth:`encode`."""
        embedded = self._embed(noise, condition_noise, appearance)
        x = _with_ones(torch.cat([x, encoded.to(x.dtype)], dim=1))
        x = self.stem(x.contiguous(memory_format=torch.channels_last_3d))
        skips = []
        for level, blocks in enumerate(self.down):
            for block in blocks:
                x = block(x, embedded)
            if level < len(self.widen):
                skips.append(x)
                x = self.widen[level](x)
        for narrow, blocks in zip(reversed(self.narrow), reversed(self.up), strict=True):
            x = F.interpolate(narrow(x), scale_factor=2.0, mode="nearest")
            x = weighted_sum(skips.pop(), x, _LEVELS)
            for block in blocks:
                x = block(x, embedded)
        return self.out(x)

    def _embed(self, noise: Tensor, condition_noise: Tensor, appearance: Tensor) -> Tensor:
        numbers = torch.stack([noise, condition_noise], dim=1)
        waves = (numbers[:, :, None] * self.frequencies + self.phases).cos().flatten(1) * 2**0.5
        both = weighted_sum(self.embed_noise(waves), self.embed_appearance(_with_ones(appearance)), _LEVELS)
        return silu(self.mix(silu(both)))

    def rescale(self) -> None:
        """:meth:`UnitConv.rescale` of every layer: after each step of the optimizer."""
        for layer in self._layers():
            layer.rescale()

    def freeze(self, dtype: torch.dtype) -> None:
        """:meth:`UnitConv.freeze` of every layer."""
        for layer in self._layers():
            layer.freeze(dtype)

    def _layers(self) -> list[UnitConv]:
        return [module for module in self.modules() if isinstance(module, UnitConv)]


def _blocks(depth: int, width: int, embedding: int, *, normalize: bool, heads: int) -> nn.ModuleList:
    return nn.ModuleList(_Block(width, embedding, normalize=normalize, heads=heads) for _ in range(depth))


def _with_ones(x: Tensor) -> Tensor:
    """A channel of ones in place of every bias."""
    return torch.cat([x, torch.ones_like(x[:, :1])], dim=1)
