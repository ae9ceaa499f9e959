"""Which sampling algorithms and prediction types are there? Names alone: whoever lists them needs no PyTorch."""

from __future__ import annotations

#: - "dpm-solver++": second-order multistep solver on x0 (2M; Lu et al. 2022, arXiv 2211.01095, algorithm 2).
#: - "ddim": Song, Meng and Ermon 2021, arXiv 2010.02502, equation 12, deterministic; first order.
#: - "ddpm": ancestral sampling (Ho, Jain and Abbeel 2020, arXiv 2006.11239, algorithm 2).
METHODS = ("dpm-solver++", "ddim", "ddpm")

#: What a network may predict: the noise, the clean image, or the velocity of Salimans and Ho (2022),
#: v = sqrt(alpha_bar) noise - sqrt(1 - alpha_bar) x0.
PREDICTIONS = ("noise", "x0", "v")

#: The schedule of a network that is asked at noise levels (:mod:`MedDPMLib.diffusion.noise_levels`), not at timesteps.
NOISE_LEVELS = "noise-levels"

#: Longer than any schedule in use; keeps a damaged card from asking for gigabytes of tables.
MAX_TIMESTEPS = 10_000
