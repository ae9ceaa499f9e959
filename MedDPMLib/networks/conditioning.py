"""The published U-Net with other conditioning on the labels, for comparison: cross-attention and SPADE.

In both the convolutions see the noisy image alone. The rest of the network, and the names of its parameters, are those
of :class:`MedDPMLib.networks.unet.UNet3d`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from MedDPMLib.networks.unet import LabeledLayer, ResidualBlock, UNet3d, zeroed

#: Sides of the region that is one token, if the network halves the volume often enough.
_REGION = 8
_TOKEN_WIDTH = 128
#: Waves along each axis that say where something lies; the shortest is a sixteenth of the volume.
_WAVES = 5

#: Channels between the labels and the scale and shift that are made of them.
_SPADE_WIDTH = 64


class _LabeledUNet3d(UNet3d):
    """A U-Net whose first convolution does not see the labels."""

    def _stem_channels(self) -> int:
        return self.image_channels

    def forward(self, x: Tensor, t: Tensor, condition: Tensor) -> Tensor:
        self.check_input(x, t, condition)
        return self.denoise(x, t, self.encode_condition(condition))

    def denoise(self, x: Tensor, t: Tensor, encoded: Tensor) -> Tensor:
        return self._after_stem(self._stem(x.to(self._stem.weight.dtype)), t, encoded)


class CrossAttentionUNet3d(_LabeledUNet3d):
    """Labels as tokens, one for each region, that voxels attend to wherever they attend to each other.

    As text enters latent diffusion (Rombach et al. 2022, arXiv 2112.10752); a token is embedded from all voxels of
    its region, as in a vision transformer, and says where it lies. Arguments are those of :class:`UNet3d`.
    """

    def __init__(self, image_channels: int, condition_channels: int, *numbers: object, **others: object) -> None:
        super().__init__(image_channels, condition_channels, *numbers, **others)
        region = min(_REGION, self.side_multiple)
        self.label_embed = nn.Conv3d(condition_channels, _TOKEN_WIDTH, region, stride=region)
        self.label_place = nn.Linear(6 * _WAVES, _TOKEN_WIDTH)
        self.label_norm = nn.LayerNorm(_TOKEN_WIDTH)

    def _attention(self, channels: int) -> list[nn.Module]:
        return [*super()._attention(channels), _CrossAttention(channels)]

    def encode_condition(self, condition: Tensor) -> Tensor:
        """Tokens (B, regions, 128)."""
        embedded = self.label_embed(condition.to(self.label_embed.weight.dtype))
        place = self.label_place(place_waves(embedded.shape[2:], embedded.device).to(embedded.dtype))
        return self.label_norm(embedded.flatten(2).transpose(1, 2) + place)


class _CrossAttention(LabeledLayer):
    """Attention of voxels, which know where they lie, to the tokens; one head."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(channels)
        self.place = nn.Linear(6 * _WAVES, channels)
        self.q = nn.Linear(channels, channels)
        self.kv = nn.Linear(_TOKEN_WIDTH, 2 * channels)
        self.proj_out = zeroed(nn.Linear(channels, channels))

    def forward(self, h: Tensor, labels: Tensor) -> Tensor:
        voxels = h.flatten(2).transpose(1, 2)
        place = self.place(place_waves(h.shape[2:], h.device).to(h.dtype))
        q = self.q(self.norm(voxels) + place)
        k, v = self.kv(labels).chunk(2, dim=2)
        # Attention in PyTorch wants an axis of heads to be fast.
        attended = F.scaled_dot_product_attention(q[:, None], k[:, None], v[:, None])[:, 0]
        return (voxels + self.proj_out(attended)).transpose(1, 2).reshape(h.shape)


def place_waves(sides: Sequence[int], device: torch.device) -> Tensor:
    """(voxels, 30), float32: sines and cosines of each voxel's place on a grid of ``sides``, whatever its spacing."""
    axes = [(2 * torch.arange(side, device=device) + 1) / side - 1 for side in sides]
    places = torch.stack(torch.meshgrid(*axes, indexing="ij"), dim=-1).view(-1, 3)
    angles = (places[:, :, None] * (math.pi / 2 * 2.0 ** torch.arange(_WAVES, device=device))).flatten(1)
    return torch.cat([angles.sin(), angles.cos()], dim=1)


class SpadeUNet3d(_LabeledUNet3d):
    """Labels as a scale and a shift for each voxel after every normalization of a residual block.

    Spatially adaptive normalization (Park et al. 2019, arXiv 1903.07291). Arguments are those of :class:`UNet3d`.
    """

    def _block(self, channels: int, width: int, time_channels: int) -> nn.Module:
        return _SpadeBlock(channels, width, time_channels, self.condition_channels)

    def encode_condition(self, condition: Tensor) -> Tensor:
        """The label channels themselves: each level has its own share of the work."""
        return condition.to(self._stem.weight.dtype)


class _SpadeBlock(ResidualBlock):
    def __init__(self, channels: int, width: int, time_channels: int, labels: int) -> None:
        super().__init__(channels, width, time_channels)
        self.in_modulation = _Modulation(channels, labels)
        self.out_modulation = _Modulation(width, labels)

    def forward(self, h: Tensor, embedding: Tensor, labels: Tensor) -> Tensor:
        # Areas keep the fraction of a thin label, where the nearest voxel would miss it.
        labels = F.interpolate(labels, size=h.shape[2:], mode="area")
        norm, *layers = self.in_layers
        made = self.in_modulation(norm(h), labels)
        for layer in layers:
            made = layer(made)
        made = made + self.emb_layers(embedding)[:, :, None, None, None]
        norm, *layers = self.out_layers
        made = self.out_modulation(norm(made), labels)
        for layer in layers:
            made = layer(made)
        return self.skip_connection(h) + made


class _Modulation(nn.Module):
    """``normed`` times a scale plus a shift, both of them convolved from the labels at its resolution."""

    def __init__(self, channels: int, labels: int) -> None:
        super().__init__()
        self.shared = nn.Conv3d(labels, _SPADE_WIDTH, 3, padding=1)
        self.scale_shift = zeroed(nn.Conv3d(_SPADE_WIDTH, 2 * channels, 3, padding=1))

    def forward(self, normed: Tensor, labels: Tensor) -> Tensor:
        scale, shift = self.scale_shift(F.relu(self.shared(labels))).chunk(2, dim=1)
        return normed * (1 + scale) + shift
