"""A brain drawn from coarse to fine: a cascade of small diffusion networks.

Three levels work on cells of 4, 4 and 2 voxels. The first decides contrast and shape: it draws the means of its cells,
an image of 4 voxels. Each of the others adds the seven details of the Haar transform that the image before it lacks
(wavelet score-based generation: Guth et al. 2022, arXiv 2208.05003). What is drawn has unit variance everywhere: the
bands (means or details) less those of the *painted* mask, in the colors that labels have in a brain of the wanted
appearance, in units of their local spread, by label and appearance; both by regression over the training brains. Every
level sees the labels at twice its own resolution, how deep each cell lies, where it lies, and the painted bands.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from MedDPMLib.errors import MedDPMError
from MedDPMLib.imaging.appearance import FEATURES
from MedDPMLib.imaging.haar import DETAILS, halve_mask, merge, split, to_blocks
from MedDPMLib.networks.denoiser import Network
from MedDPMLib.networks.magnitude_preserving import UnitUNet3d

#: Voxels along a cell's side, and how many resolutions the network has, by level.
CELLS = (4, 4, 2)
_RESOLUTIONS = (3, 2, 2)

_DEPTHS, _POSITIONS = 2, 3

# So that what is given has about unit size: of the fractions most are zero.
_FRACTION_SCALE, _DEPTH_SCALE, _POSITION_SCALE = 4.0, 1.5, 1.5
#: Voxels of depth that make a difference, and half of the box that positions are measured in.
_DEPTH_REACH, _HALF_BOX = 8.0, 96.0

#: A brain's appearance is met with so much of the brains' deviation on top, in training and where it is drawn by seed.
APPEARANCE_JITTER = 0.15

#: How far an appearance changes the logarithm of a variance at most, and the least local spread of a whitened band.
_MOST_LOG_VARIANCE, _LEAST_SPREAD = 4.0, 0.05


class CascadeLevel(Network):
    """Draws bands of ``channels`` images on cells of ``cell`` voxels: the ``first`` level means, the others details.

    Images of cells are (C, d, h, w), bands (B, d, h, w): for the first level C means, for the others the seven details
    of :func:`MedDPMLib.imaging.haar.split`, detail by detail, each of C images.
    """

    keeps_float32 = True

    painted_share: Tensor

    def __init__(
        self, cell: int, channels: int, labels: int, widths: Sequence[int], depths: Sequence[int], given: int,
        heads: int, *, first: bool,
    ) -> None:  # fmt: skip
        super().__init__()
        self.cell, self.channels, self.labels, self.first = cell, channels, labels, first
        self.bands = channels if first else DETAILS * channels
        coarser = 0 if first else channels
        count = 8 * labels + _DEPTHS + _POSITIONS + self.bands + coarser
        appearance = channels * len(FEATURES)
        self.network = UnitUNet3d(self.bands, count, appearance, widths, depths, given_width=given, heads=heads)
        #: Sides of what it draws, in cells, are multiples of this.
        self.multiple = 2 ** (len(widths) - 1)
        self.side_multiple = cell * self.multiple
        #: So many arrays of the widest layer are alive at once.
        self.values_per_voxel = 12 * widths[0] / cell**3
        #: Mean and deviation of the cells' means, (C,), deviation of the details, (7, C), over the training brains.
        self.register_buffer("mean", torch.zeros(channels))
        self.register_buffer("deviation", torch.ones(channels))
        if not first:
            self.register_buffer("detail_deviation", torch.ones(DETAILS, channels))
        #: Share of the painted bands in the real ones, (B,); variance of the rest by label, the last that of a cell's
        #: mixture, (labels + 1, B); and regression of its logarithm on the appearance, the constant last, (B, A + 1).
        self.register_buffer("painted_share", torch.zeros(self.bands))
        self.register_buffer("variances", torch.ones(labels + 1, self.bands))
        self.register_buffer("variance_weights", torch.zeros(self.bands, appearance + 1))

    def whiten_means(self, means: Tensor) -> Tensor:
        return (means - _column(self.mean)) / _column(self.deviation)

    def bands_of(self, means: Tensor, details: Tensor) -> Tensor:
        """The whitened bands (B, d, h, w) of an image that :func:`MedDPMLib.imaging.haar.split` gave ``means`` (C, d,
        h, w) and ``details`` (7, C, d, h, w) of."""
        return self.whiten_means(means) if self.first else (details / _column(self.detail_deviation)).flatten(0, 1)

    def image_of(self, bands: Tensor, means: Tensor | None) -> Tensor:
        """The image of whitened ``bands`` (B, d, h, w): for the first level of cells, for the others of half cells,
        with the ``means`` (C, d, h, w) of the cells."""
        if means is None:
            return bands * _column(self.deviation) + _column(self.mean)
        return merge(means, bands.unflatten(0, (DETAILS, self.channels)) * _column(self.detail_deviation))

    @property
    def drawn_cell(self) -> int:
        """Voxels along a cell's side in the image that :meth:`image_of` gives."""
        return self.cell if self.first else self.cell // 2

    def given(
        self, fractions: Tensor, depth: Tensor, position: Tensor, painted: Tensor, coarser: Tensor | None
    ) -> Tensor:
        """What the network sees beside the noisy bands: (count, d, h, w).

        ``fractions`` (labels, 2 d, 2 h, 2 w) is the share of each label in half cells, ``depth`` (2, d, h, w) that of
        :func:`MedDPMLib.masks.distances.depths`, ``position`` (3, d, h, w) that of :func:`cell_positions`, ``painted``
        (B, d, h, w) that of :meth:`painted`, ``coarser`` (C, d, h, w) the whitened means (not for the first level).
        """
        parts = [
            to_blocks(fractions).flatten(0, 1) * _FRACTION_SCALE,
            (depth / _DEPTH_REACH).tanh() * _DEPTH_SCALE,
            position / _HALF_BOX * _POSITION_SCALE,
            painted,
        ]
        return torch.cat(parts if coarser is None else [*parts, coarser])

    def painted(self, fractions: Tensor, colors: Tensor) -> Tensor:
        """The whitened bands (B, d, h, w) of the labels themselves, each in its color, ``colors`` (labels, C)."""
        if self.first:
            fractions = F.avg_pool3d(fractions[None], 2)[0]
        total = fractions.sum(dim=0)
        painted = torch.einsum("lc,ldhw->cdhw", colors, fractions) / total.clamp_min(1e-3)
        inside = total > 0
        if self.first:
            return self.whiten_means(painted) * inside
        return self.bands_of(*split(painted, inside)) * halve_mask(inside)

    def cell_shares(self, fractions: Tensor) -> Tensor:
        """(labels + 1, d, h, w): the share of each label in the labeled part of each cell, and how mixed it is: 1 less
        the sum of their squares."""
        shares = F.avg_pool3d(fractions[None], 2)[0]
        shares = shares / shares.sum(dim=0).clamp_min(1e-3)
        return torch.cat([shares, 1 - shares.square().sum(dim=0, keepdim=True)])

    def spread(self, fractions: Tensor, appearance: Tensor) -> Tensor:
        """The deviation (B, d, h, w) that whitened bands have from the painted ones' share, by :meth:`cell_shares` and
        the ``appearance`` (A,)."""
        shares = self.cell_shares(fractions)
        factor = _regressed(self.variance_weights, appearance)
        factor = factor.clamp(-_MOST_LOG_VARIANCE, _MOST_LOG_VARIANCE).exp()
        variance = torch.einsum("ldhw,lb->bdhw", shares, self.variances) * _column(factor)
        return variance.clamp_min(_LEAST_SPREAD**2).sqrt()

    def estimate(
        self, x: Tensor, sigma: Tensor, condition_noise: Tensor, appearance: Tensor, encoded: Tensor, dtype: torch.dtype
    ) -> tuple[Tensor, Tensor]:
        """What is drawn, clean, (B, bands, d, h, w), for ``x``, in which it has the noise sigma (B,); and the
        network's own answer, of unit size (Karras et al. 2022, with a data variance of 1)."""
        noise, keep, add, scale = self.preconditioning(sigma)
        answer = self.network((x * scale).to(dtype), sigma.log() / 4, condition_noise, appearance, encoded).float()
        return keep * x + add * answer, answer

    def forward(self, x: Tensor, sigma: Tensor, condition_noise: Tensor, appearance: Tensor, given: Tensor) -> Tensor:
        """The network's own answer of :meth:`estimate`, float32; ``given`` (B, count, d, h, w) is encoded first, and
        its type is the one that is computed in."""
        return self.estimate(x, sigma, condition_noise, appearance, self.network.encode(given), given.dtype)[1]

    def after_step(self) -> None:
        self.network.rescale()

    def start_training(self) -> None:
        self.network.rescale()

    def preconditioning(self, sigma: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """(B, 1, 1, 1, 1) each: the noise, the factors of x and of the answer in the estimate, and of the input."""
        noise = sigma[:, None, None, None, None]
        scale = (1 + noise**2).rsqrt()
        return noise, scale**2, noise * scale, scale


def condition_noise(sigma: Tensor) -> Tensor:
    """(B,): how the network is given the noise ``sigma`` (B,) in the coarser means, in their deviations."""
    return (sigma + 0.01).log() / 4


class Cascade(Network):
    """The levels of a cascade for ``image_channels`` images of ``condition_channels`` labels, and what it knows of the
    ``brains`` that it was trained on: how they look.

    ``widths``, ``depths`` and ``given`` are those of the levels one after the other, three widths and depths for the
    first and two for each of the others.
    """

    side_multiple = CELLS[0] * 2 ** (_RESOLUTIONS[0] - 1)
    #: Values alive at the peak of a drawing, all that it takes, for each voxel of the grid: 32 were measured where a
    #: quarter of the grid is brain, and large brains take more.
    values_per_voxel = 45
    draws_by_levels = True

    appearances: Tensor
    appearance_mean: Tensor
    appearance_deviation: Tensor
    color_weights: Tensor

    def __init__(
        self, image_channels: int, condition_channels: int, widths: Sequence[int], depths: Sequence[int],
        given: Sequence[int], heads: int, brains: int = 1,
    ) -> None:  # fmt: skip
        super().__init__()
        count = sum(_RESOLUTIONS)
        if len(widths) != count or len(depths) != count or len(given) != len(CELLS):
            raise MedDPMError("a cascade has seven widths, seven depths and three widths of what is given")
        self.image_channels, self.condition_channels = image_channels, condition_channels
        self.levels = nn.ModuleList()
        start = 0
        for cell, resolutions, given_width in zip(CELLS, _RESOLUTIONS, given, strict=True):
            first, own = start == 0, slice(start, start + resolutions)
            self.levels.append(
                CascadeLevel(
                    cell, image_channels, condition_channels, widths[own], depths[own], given_width,
                    heads if first else 0, first=first,
                )
            )  # fmt: skip
            start += resolutions
        features = image_channels * len(FEATURES)
        #: The appearance of each training brain, standardized, and what it was standardized by: (brains, A), (A,).
        self.register_buffer("appearances", torch.zeros(brains, features))
        self.register_buffer("appearance_mean", torch.zeros(features))
        self.register_buffer("appearance_deviation", torch.ones(features))
        #: Regression of each label's mean on the appearance, the constant last: (labels, C, A + 1).
        self.register_buffer("color_weights", torch.zeros(condition_channels, image_channels, features + 1))

    def colors(self, appearance: Tensor) -> Tensor:
        """The mean intensity (labels, C) that labels have in a brain of ``appearance`` (A,), standardized."""
        return known_colors(self.color_weights, appearance)

    def freeze(self, dtype: torch.dtype) -> None:
        """Computes the filters of all levels once, in ``dtype``: for inference."""
        for level in self.levels:
            level.network.freeze(dtype)

    def standardize(self, appearance: Tensor) -> Tensor:
        """An appearance as measured, (A,), in the training brains' deviations, at most 3."""
        return ((appearance - self.appearance_mean) / self.appearance_deviation).clamp(-3, 3)

    def tables(self) -> dict[str, Tensor]:
        """What it knows of its training brains, its own and its levels', by name in the state dict."""
        learnt = {name for name, _ in self.named_parameters()}
        return {name: t for name, t in self.state_dict().items() if name not in learnt and ".network." not in name}


def known_colors(color_weights: Tensor, appearance: Tensor) -> Tensor:
    """The mean intensity (labels, C) by a regression ``color_weights`` (labels, C, A + 1), the constant last."""
    return _regressed(color_weights, appearance).clamp(-1, 1)


def _regressed(weights: Tensor, features: Tensor) -> Tensor:
    """``weights`` (..., A + 1), the constant last, of ``features`` (A,): a sum, for a matrix product is rounded as its
    operands happen to lie in memory."""
    return (weights[..., :-1] * features).sum(dim=-1) + weights[..., -1]


def label_fractions(labels: Tensor, count: int, factor: int) -> Tensor:
    """(count, D/factor, H/factor, W/factor) float32: the share of the labels 1 to ``count`` of ``labels`` (D, H, W,
    0 for none) in blocks of ``factor`` voxels."""
    shares = [(labels == value).float() for value in range(1, count + 1)]
    if factor == 1:
        return torch.stack(shares)
    return torch.cat([F.avg_pool3d(share[None], factor) for share in shares])


def cell_positions(cell: int, start: Sequence[int], shape: Sequence[int], box: Sequence[int]) -> Tensor:
    """(3, d, h, w): where the middles of ``shape`` cells from cell ``start`` lie from the middle of a ``box`` (D, H, W)
    of voxels, in voxels along k, j, i."""
    axes = [(torch.arange(n) + first + 0.5) * cell - side / 2 for n, first, side in zip(shape, start, box, strict=True)]
    return torch.stack(torch.meshgrid(*axes, indexing="ij"))


def box_around(inside: Tensor, multiple: int) -> tuple[slice, ...]:
    """The smallest box, in cells, that holds ``inside`` (d, h, w) and a cell around it, its sides multiples."""
    box = []
    for axis, length in enumerate(inside.shape):
        others = [other for other in range(3) if other != axis]
        filled = torch.nonzero(inside.any(dim=others[1]).any(dim=others[0])).flatten()
        first, last = (int(filled[0]), int(filled[-1])) if len(filled) else (0, 0)
        low, high = max(first - 1, 0), min(last + 2, length)
        side = min(-(-(high - low) // multiple) * multiple, length)
        low = min(low, length - side)
        box.append(slice(low, low + side))
    return tuple(box)


def _column(values: Tensor) -> Tensor:
    return values[..., None, None, None]
