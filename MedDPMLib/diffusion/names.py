"""Which sampling algorithms and prediction types are there? Names alone: listing them does not import PyTorch."""

from __future__ import annotations

#: - "dpm-solver++": second-order multistep solver on x0 (2M; Lu et al. 2022, arXiv 2211.01095, algorithm 2).
#: - "heun": the same solver's single steps in Heun's form, with the second evaluation at the end of each step (2S with
#:   r = 1; algorithm 1); second order, twice the time of the others.
#: - "ddim": Song, Meng and Ermon 2021, arXiv 2010.02502, equation 12, deterministic (eta = 0); first order.
#: - "ddpm": ancestral sampling (Ho, Jain and Abbeel 2020, arXiv 2006.11239, algorithm 2).
#: Each with the title that people read.
METHOD_TITLES = {
    "dpm-solver++": "DPM-Solver++",
    "heun": "Heun (two evaluations a step)",
    "ddim": "DDIM",
    "ddpm": "DDPM (ancestral)",
}
METHODS = tuple(METHOD_TITLES)

#: Noise schedules by timestep; :func:`MedDPMLib.diffusion.schedule.make_schedule` makes them.
SCHEDULES = ("cosine", "linear", "sigmoid", "exponential")

#: What a network may predict: the noise, the clean image, or the velocity of Salimans and Ho (2022),
#: v = sqrt(alpha_bar) noise - sqrt(1 - alpha_bar) x0.
PREDICTIONS = ("noise", "x0", "v")

#: The schedule of a network that is asked at noise levels (:mod:`MedDPMLib.diffusion.noise_levels`), not at timesteps.
NOISE_LEVELS = "noise-levels"
#: How such a network is sampled.
LEVELS_METHOD = "dpm-solver++"
#: The levels of a cascade, which are trained one by one, from large cells to small ones.
CASCADE_LEVELS = ("coarse", "middle", "fine")

#: Longer than any schedule in use; keeps a damaged card from asking for gigabytes of tables.
MAX_TIMESTEPS = 10_000
