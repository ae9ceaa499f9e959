"""What can an experiment be tried on without data? Brains of ellipsoids with a tumor of three nested parts.

They show that the machinery works and what its tables look like, and nothing about brains.
"""

from __future__ import annotations

import numpy as np
import torch
from scipy.ndimage import gaussian_filter

from MedDPMLib.data import Case
from MedDPMLib.masks.schemes import LabelScheme

#: Sides in voxels (i, j, k) and their length in mm, and how many are drawn.
SIZE, SPACING = (24, 24, 16), 6.0
REAL_CASES, SYNTHETIC_CASES = 24, 12

#: Intensities from 0 to 1, by tissue: how bright it is for each modality in turn.
_BRIGHTNESS = {"brain": (0.55, 0.45), "edema": (0.45, 0.75), "rim": (0.8, 0.6), "core": (0.3, 0.85)}

#: Standard deviations in these: between patients, of the texture within a brain (which drawn ones lack), and of noise.
_PATIENTS, _TEXTURE, _NOISE = 0.04, 0.25, 0.06


def phantoms(scheme: LabelScheme, modalities: int, *, synthetic: bool = False) -> list[Case]:
    """Cases of ``modalities`` images and the labels of ``scheme``; others, and smoother, if ``synthetic``."""
    count = SYNTHETIC_CASES if synthetic else REAL_CASES
    kind = "phantom-synthetic" if synthetic else "phantom"
    return [_phantom(scheme, modalities, f"{kind}-{number:02d}", (number, int(synthetic))) for number in range(count)]


def _phantom(scheme: LabelScheme, modalities: int, name: str, entropy: tuple[int, int]) -> Case:
    random = np.random.default_rng(entropy)
    shape = SIZE[::-1]
    places = np.stack(np.meshgrid(*[(2 * np.arange(n) + 1) / n - 1 for n in shape], indexing="ij"))

    def ellipsoid(middle: np.ndarray, radii: np.ndarray) -> np.ndarray:
        return (((places - middle[:, None, None, None]) / radii[:, None, None, None]) ** 2).sum(axis=0) < 1

    brain = ellipsoid(np.zeros(3), random.uniform(0.8, 0.95, 3))
    middle, radii = random.uniform(-0.35, 0.35, 3), random.uniform(0.35, 0.55, 3)
    parts = {"edema": 1.0, "rim": 0.72, "core": 0.45}
    tissues = {"brain": brain} | {name: brain & ellipsoid(middle, share * radii) for name, share in parts.items()}
    rest = scheme.rest or next(label for label in scheme.labels if label.role != "tumor")
    labels = np.where(brain, rest.value, 0).astype(np.uint8)
    for tissue in parts:
        for label in scheme.of_tissue(tissue)[:1]:
            labels[tissues[tissue]] = label.value
    smooth = entropy[1] == 1
    images = np.zeros((modalities, *shape))
    for channel in range(modalities):
        for tissue, inside in tissues.items():
            brightness = _BRIGHTNESS[tissue]
            images[channel][inside] = brightness[channel % len(brightness)] + random.normal(0, _PATIENTS)
        texture = gaussian_filter(random.normal(size=shape), 1.5)
        images[channel] += 0 if smooth else _TEXTURE * texture / texture.std() * 0.4
        images[channel] += random.normal(0, _NOISE, shape)
    images = np.where(brain, images.clip(0.02, 1), 0) * 2 - 1
    return Case(name, torch.from_numpy(images.astype(np.float32)), torch.from_numpy(labels), (SPACING,) * 3)
