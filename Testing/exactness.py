"""How far is a fast network from the plain one?"""

from __future__ import annotations

import torch


def arguments(labels: int, batch: int, sides: tuple[int, ...]) -> tuple[torch.Tensor, ...]:
    """Random x of two channels, timesteps, and a condition of so many ``labels``: the same every time."""
    generator = torch.Generator().manual_seed(batch)
    x = torch.randn(batch, 2, *sides, generator=generator)
    condition = torch.randint(0, 2, (batch, labels, *sides), generator=generator).float()
    return x, torch.tensor([201, 3])[:batch], condition


def exact(network, x, t, condition) -> torch.Tensor:
    """The plain network in float64."""
    try:
        return network.double()(x.double(), t, condition.double())
    finally:
        network.float()


def error(found: torch.Tensor, expected: torch.Tensor) -> float:
    return float((found.double() - expected).norm() / expected.norm())
