"""How does noise of a great standard deviation become an image? Sampling by noise level, without timesteps.

x = x0 + sigma noise (Karras et al. 2022, arXiv 2206.00364), for networks that estimate x0 at any sigma.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from MedDPMLib.errors import MedDPMError

#: Bends the noise levels toward the small ones.
_RHO = 7.0


def noise_levels(steps: int, lowest: float, highest: float) -> list[float]:
    """The sigma at each of ``steps`` steps from ``highest`` to ``lowest``, equally spaced in sigma^(1/7)."""
    if steps < 1 or not 0 < lowest < highest:
        raise MedDPMError(f"sampling takes at least one step between two noise levels above 0, not {steps} steps")
    if steps == 1:
        return [highest]
    low, high = lowest ** (1 / _RHO), highest ** (1 / _RHO)
    return [(high + i / (steps - 1) * (low - high)) ** _RHO for i in range(steps)]


@torch.no_grad()
def sample_levels(
    estimate: Callable[[Tensor, float], Tensor],
    noise: Tensor,
    levels: list[float],
    *,
    progress: Callable[[int, Tensor], None] | None = None,
) -> Tensor:
    """An image of the shape of ``noise``, by DPM-Solver++(2M) (Lu et al. 2022, arXiv 2211.01095) on x0.

    ``estimate(x, sigma)`` is that of x0 for x = x0 + sigma noise; ``noise`` has the standard deviation that each of its
    values has at sigma 1. After the last of ``levels`` its estimate is the image. ``progress(step, x0)`` is called
    after each step, counted from 1.
    """
    x, before, width_before = noise * levels[0], None, 0.0
    for index, sigma in enumerate(levels):
        x0 = estimate(x, sigma)
        if progress is not None:
            progress(index + 1, x0)
        if index + 1 == len(levels):
            return x0
        share = levels[index + 1] / sigma
        width = -torch.tensor(share, dtype=torch.float64).log().item()
        ahead = x0 if before is None else x0 + (x0 - before) * (width / (2 * width_before))
        x = x * share + ahead * (1 - share)
        before, width_before = x0, width
    raise MedDPMError("sampling takes at least one step")
