"""How is one arm of an ablation trained and measured? A diffusion model, and volumes of the test patients' masks."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch
from torch.nn import functional as F

from MedDPMLib.data import Case, smoothed_for
from MedDPMLib.experiment.ablation_recipe import AblationRecipe
from MedDPMLib.experiment.cases import Split
from MedDPMLib.experiment.training import Done, Scores
from MedDPMLib.inference.sampling import sample_images
from MedDPMLib.inference.settings import GenerationSettings
from MedDPMLib.metrics.similarity import likeness
from MedDPMLib.models.model import load_model
from MedDPMLib.runtime.device import Execution
from MedDPMLib.train.export import export_run
from MedDPMLib.train.run import train


def train_generator(
    recipe: AblationRecipe,
    split: Split,
    arm_name: str,
    count: int,
    seed: int,
    folder: Path,
    execution: Execution,
    report: Callable[[int], None],
    tell: Callable[[str], None],
) -> Done:
    """Trains the model of an arm in ``folder``, or resumes, and measures it on the test patients."""
    arm = recipe.arm(arm_name)
    training = split.training(arm.data, count, seed)
    run, bundle = folder / "run", folder / "model.safetensors"
    history = train(
        recipe.training_recipe(arm, seed), training, run, execution=execution,
        data={"name": str(recipe.real), "license": None}, report=lambda iteration, loss: report(iteration), tell=tell,
    )  # fmt: skip
    export_run(run, bundle)
    model = load_model(bundle)
    settings = GenerationSettings() if arm.steps is None else GenerationSettings(steps=arm.steps)
    network, settings = model.prepared(execution), settings.for_card(model.card)
    scores: Scores = {}
    for case in (split.test[index] for index in range(len(split.test))):
        real, labels = on_grid(case, model.card.grid.shape)
        made = sample_images(model, network, labels, execution, settings, seed, None).numpy()
        figures = zip(recipe.modalities, made, real, strict=True)
        scores[case.name] = {modality: measured(image, truth, labels) for modality, image, truth in figures}
    curve = [(row["iteration"], row["loss"], None) for row in history.losses]
    return Done(scores, len(training), curve)


def on_grid(case: Case, shape: tuple[int, int, int]) -> tuple[np.ndarray, np.ndarray]:
    """Images (C, D, H, W) and labels (D, H, W) of ``case`` on a grid of ``shape`` over the same box."""
    image = smoothed_for(case, shape).image.float()[None]
    image = F.interpolate(image, shape, mode="trilinear", align_corners=False)[0]
    labels = F.interpolate(case.labels[None, None].float(), shape, mode="nearest-exact")[0, 0]
    return image.numpy(), labels.to(torch.uint8).numpy()


def measured(made: np.ndarray, real: np.ndarray, labels: np.ndarray) -> dict[str, float]:
    """The figures of an image (D, H, W) and the real one of the same ``labels``, in [-1, 1]."""
    found = likeness(made, real, labels > 0)
    differences = list(_differences(made, real, labels))
    return {"ms_ssim": found.ms_ssim, "mse": found.mse, "label_means": float(np.mean(differences))}


def _differences(made: np.ndarray, real: np.ndarray, labels: np.ndarray) -> Iterator[float]:
    for value in np.unique(labels[labels > 0]):
        inside = labels == value
        yield abs(float(made[inside].mean()) - float(real[inside].mean()))
