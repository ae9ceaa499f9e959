"""What is the interface of every network, and of those that are asked at timesteps?"""

from __future__ import annotations

from abc import ABC, abstractmethod

from torch import Tensor, nn


class Network(nn.Module):
    """What a model's file holds, or what one run of training makes of it."""

    #: Every side of a volume must be a multiple of this.
    side_multiple: int
    #: Peak number of values in memory per voxel of the grid when a volume is generated, measured.
    values_per_voxel: float
    #: Whether the condition stays float32 whatever the precision: positions in 16 bits are off by a fifth of a voxel.
    exact_condition: bool = False
    #: Whether it is asked at noise levels instead of the timesteps of a schedule.
    draws_by_levels: bool = False
    #: Whether its weights stay float32 while it computes in the type of its input.
    keeps_float32: bool = False

    def after_step(self) -> None:
        """Brings the weights back to where they have to be after a step of the optimizer; nothing in most networks."""


class Denoiser(Network, ABC):
    """``network(x (B, C, D, H, W), t (B,), condition (B, K, D, H, W))`` is a (B, C, D, H, W) tensor.

    What it predicts (noise, x0 or v) is stated on the model card. The condition is the same at every step of the
    sampling, so its share of the work can be done once: :meth:`encode_condition`, then :meth:`denoise` at each step.
    """

    @abstractmethod
    def encode_condition(self, condition: Tensor) -> Tensor:
        """What :meth:`denoise` needs of ``condition`` (B, K, D, H, W); its shape is the network's own."""

    @abstractmethod
    def denoise(self, x: Tensor, t: Tensor, encoded: Tensor) -> Tensor:
        """The prediction (B, C, D, H, W) for ``x`` (B, C, D, H, W) at timestep ``t`` (B,)."""

    def forward(self, x: Tensor, t: Tensor, condition: Tensor) -> Tensor:
        return self.denoise(x, t, self.encode_condition(condition))

    def denoise_last(self, x: Tensor, t: Tensor, condition: Tensor, encoded: Tensor) -> Tensor:
        """:meth:`denoise` for the last step, which no later one corrects: more accurate in some networks."""
        return self.denoise(x, t, encoded)

    def start_training(self, alpha_bar: Tensor) -> None:
        """Initializes weights that depend on the schedule ``alpha_bar`` (T,); nothing in most networks."""
