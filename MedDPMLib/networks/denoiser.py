"""What does every network of this package offer?"""

from __future__ import annotations

import copy
import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from enum import Enum

import torch
from torch import Tensor, nn


class Economy(Enum):
    """What inference gives for less memory."""

    FAST = "nothing"
    LEAN = "some time"
    LEANEST = "some time and digits: volumes are kept in bfloat16"


class Denoiser(nn.Module, ABC):
    """``network(x (B, C, D, H, W), t (B,), condition (B, K, D, H, W))`` is a (B, C, D, H, W) tensor.

    What it predicts (noise, x0 or v) is the model card's affair. The condition stays the same at every step of the
    sampling, so its share of the work can be done once: :meth:`encode_condition`, then :meth:`denoise` at each step.
    """

    #: Every side of a volume must be a multiple of this.
    side_multiple: int
    #: Values alive at the peak of :meth:`forward` without gradients for each voxel of the grid, measured.
    values_per_voxel: float
    #: What can be given for less memory, the fastest first.
    economies: tuple[Economy, ...] = (Economy.FAST,)
    #: Whether the condition stays float32 whatever the precision: positions in 16 bits are off by a fifth of a voxel.
    exact_condition: bool = False

    @abstractmethod
    def encode_condition(self, condition: Tensor) -> Tensor:
        """What :meth:`denoise` needs of ``condition`` (B, K, D, H, W); its shape is the network's own."""

    @abstractmethod
    def denoise(self, x: Tensor, t: Tensor, encoded: Tensor) -> Tensor:
        """The prediction (B, C, D, H, W) for ``x`` (B, C, D, H, W) at timestep ``t`` (B,)."""

    def forward(self, x: Tensor, t: Tensor, condition: Tensor) -> Tensor:
        return self.denoise(x, t, self.encode_condition(condition))

    def denoise_last(self, x: Tensor, t: Tensor, condition: Tensor, encoded: Tensor) -> Tensor:
        """:meth:`denoise` for the last step, which no later one corrects: more careful where a network knows how."""
        return self.denoise(x, t, encoded)

    def start_training(self, alpha_bar: Tensor) -> None:
        """Sets what fresh weights have to know of the schedule ``alpha_bar`` (T,); nothing in most networks."""

    def for_inference(self, device: torch.device, dtype: torch.dtype, economy: Economy = Economy.FAST) -> Denoiser:
        """A copy on ``device`` in ``dtype`` that predicts the same up to rounding, faster and in less memory."""
        return copy.deepcopy(self).to(device, dtype, memory_format=torch.channels_last_3d)

    def working_bytes(
        self, sides: Sequence[int], device: torch.device, dtype: torch.dtype, economy: Economy = Economy.FAST
    ) -> int:
        """About how many bytes that copy has alive at its peak, beside weights and arguments, for a grid of ``sides``.

        A batch takes no more than that where it is computed one by one, as these are that the fast paths are for.
        """
        return math.ceil(self.values_per_voxel * math.prod(sides) * dtype.itemsize)
