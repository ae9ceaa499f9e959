"""How does a model make images of labels? As its card says: by timesteps, or level by level."""

from __future__ import annotations

import numpy as np
from torch import Tensor

from MedDPMLib.inference.cascade import sample_by_levels
from MedDPMLib.inference.settings import GenerationSettings
from MedDPMLib.inference.timesteps import Progress, sample_by_timesteps
from MedDPMLib.models.model import Model
from MedDPMLib.networks.denoiser import Network
from MedDPMLib.runtime.device import Execution


def sample_images(
    model: Model,
    network: Network,
    labels: np.ndarray,
    execution: Execution,
    settings: GenerationSettings,
    seed: int,
    progress: Progress | None,
) -> Tensor:
    """The images (C, D, H, W), float32 on the CPU, that ``network`` makes of ``labels`` (D, H, W).

    ``network`` is what :meth:`Model.prepared` gives for ``execution``, ``labels`` are values of the card's condition
    scheme on its grid, and ``settings`` those of :meth:`GenerationSettings.for_card`.
    """
    sample = sample_by_levels if model.card.draws_by_levels else sample_by_timesteps
    return sample(model, network, labels, execution, settings, seed, progress)  # type: ignore[arg-type]
