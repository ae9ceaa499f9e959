"""Mean and variance of each channel of a volume, in float32 whatever its precision, gathered piece by piece."""

from __future__ import annotations

from functools import cache

import torch
from torch import Tensor

#: Voxels whose values are summed in one run on the CPU, which adds them one by one: more would cost digits.
_VOXELS_SUMMED = 8192


class Moments:
    """Mean and variance of each channel of a volume, gathered piece by piece."""

    def __init__(self) -> None:
        self._pieces: list[tuple[int, Tensor, Tensor]] = []

    def add(self, slab: Tensor) -> None:
        plane = slab.shape[3] * slab.shape[4]
        run = max(1, _VOXELS_SUMMED // plane) if slab.device.type == "cpu" else slab.shape[2]
        for piece in slab.split(run, dim=2):
            self._pieces.append((piece.shape[2], *channel_moments(piece)))

    def merged(self) -> tuple[Tensor, Tensor]:
        """(C,) float32 each; by the law of total variance, exact (Chan, Golub and LeVeque 1983)."""
        sizes, of_means, of_variances = zip(*self._pieces, strict=True)
        means, variances = torch.stack(of_means), torch.stack(of_variances)
        share = _shares(sizes, means.device)
        mean = (share * means).sum(0)
        return mean, (share * (variances + (means - mean).square())).sum(0)


@cache
def _shares(sizes: tuple[int, ...], device: torch.device) -> Tensor:
    """``sizes`` over their sum, (len, 1). Kept, because a step would wait for each copy to a device; and for good,
    because a recorded step reads them where they lie."""
    return (torch.tensor(sizes, dtype=torch.float32) / sum(sizes))[:, None].to(device)


def channel_moments(piece: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and (biased) variance of each channel, (C,) float32."""
    if piece.device.type not in ("cpu", "cuda"):
        variance, mean = torch.var_mean(piece.float(), dim=(0, 2, 3, 4), correction=0)
        return mean, variance
    if piece.device.type == "cuda":
        piece = piece.flatten(2, 3)  # of five axes it would make a float32 copy first
    # Reads the piece as it is; running statistics in float32 are what makes it answer in float32.
    running = torch.zeros(2, piece.shape[1], device=piece.device)
    return torch.batch_norm_update_stats(piece, running[0], running[1], 0.0)
