"""How do labels become the network's condition?"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from MedDPMLib.masks.schemes import LabelScheme


def condition(
    labels: np.ndarray, scheme: LabelScheme, encoding: tuple[float, float], *, positions: bool = False
) -> np.ndarray:
    """The network's condition, float32 (K, D, H, W), for ``labels`` (D, H, W) in the values of ``scheme``.

    ``encoding`` (low, high) is what a channel holds where its label is not and where it is. The background
    has no channel. With ``positions`` three channels follow, :func:`voxel_positions`, and K is the number of labels
    and three.
    """
    low, high = encoding
    one_hot = scheme.one_hot(labels)
    channels = np.empty((len(one_hot) + (3 if positions else 0), *labels.shape), np.float32)
    for channel, present in zip(channels, one_hot, strict=False):
        np.copyto(channel, present)
        channel *= high - low
        channel += low
    if positions:
        channels[len(one_hot) :] = voxel_positions(labels.shape)
    return channels


def voxel_positions(shape: Sequence[int]) -> np.ndarray:
    """(3, D, H, W) float32: where each voxel's center lies along i, j and k, the whole grid of ``shape`` (D, H, W)
    reaching from -1 to 1. A patch of the grid has the same patch of this array."""
    axes = [(2 * np.arange(side, dtype=np.float32) + 1) / side - 1 for side in shape]
    return np.stack(np.broadcast_arrays(*np.meshgrid(*axes, indexing="ij", sparse=True))[::-1])
