"""Which cases are trained on, and how is each one varied?

What is random (:func:`draw_variation`) is split from what is not (:meth:`Variation.apply`), as in TorchIO: a
variation is a small record of numbers, and applying it twice gives the same tensors twice.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from MedDPMLib.errors import MedDPMError
from MedDPMLib.recipe import Augmentation
from MedDPMLib.volume import read_volume


@dataclass(frozen=True)
class Case:
    """``image`` (C, D, H, W) float32 in [-1, 1] and ``labels`` (D, H, W) uint8; ``spacing`` (i, j, k) in mm."""

    name: str
    image: Tensor
    labels: Tensor
    spacing: tuple[float, float, float]


def read_dataset(folder: Path, modalities: Sequence[str]) -> list[Case]:
    """The cases of the nnU-Net raw dataset in ``folder``; its channels must be ``modalities``, in this order."""
    try:
        description = json.loads((folder / "dataset.json").read_text())
    except (OSError, ValueError) as error:
        raise MedDPMError(f"{folder} is not a prepared dataset ({error}): make one with meddpm prepare") from error
    names = [name for _, name in sorted(description["channel_names"].items(), key=lambda item: int(item[0]))]
    if names != list(modalities):
        raise MedDPMError(f"{folder} holds {', '.join(names)}, the recipe asks for {', '.join(modalities)}")
    return [
        _read_case(folder, path.name.removesuffix(".nii.gz"), len(names))
        for path in sorted((folder / "labelsTr").glob("*.nii.gz"))
    ]


def _read_case(folder: Path, name: str, channels: int) -> Case:
    labels = read_volume(folder / "labelsTr" / f"{name}.nii.gz")
    images = [read_volume(folder / "imagesTr" / f"{name}_{index:04d}.nii.gz") for index in range(channels)]
    for image in images:
        if not image.geometry.is_close(labels.geometry):
            raise MedDPMError(f"{folder}: the images of {name} do not lie on the grid of its labels")
    stacked = torch.from_numpy(np.stack([image.array.astype(np.float32) for image in images]))
    spacing = tuple(float(s) for s in labels.geometry.spacing)
    return Case(name, stacked, torch.from_numpy(labels.array.astype(np.uint8)), spacing)


def smoothed_for(case: Case, shape: Sequence[int]) -> Case:
    """``case`` with the image blurred to the resolution of a grid of ``shape`` (D, H, W) over the same box.

    A Gaussian takes the point spread from one source voxel to one target voxel (full width at half maximum),
    so that a coarser grid sees what a scanner with larger voxels would.
    """
    image = case.image
    for axis, target in enumerate(shape):
        ratio = image.shape[axis + 1] / target
        if ratio > 1:
            sigma = (ratio**2 - 1) ** 0.5 / 2.355
            reach = int(np.ceil(3 * sigma))
            kernel = torch.exp(-0.5 * (torch.arange(-reach, reach + 1) / sigma) ** 2)
            window = [1, 1, 1]
            window[axis] = 2 * reach + 1
            padding = [0] * 6
            padding[2 * (2 - axis)] = padding[2 * (2 - axis) + 1] = reach
            padded = F.pad(image[:, None], padding, mode="replicate")
            image = F.conv3d(padded, (kernel / kernel.sum()).view(1, 1, *window))[:, 0]
    return Case(case.name, image, case.labels, case.spacing)


@dataclass(frozen=True)
class Variation:
    """One way to vary a case. ``matrix`` (3, 4) maps normalised output to input coordinates (x, y, z), each axis of
    the box being [-1, 1]; ``displacement`` (1, 3, n, n, n) is added to it, interpolated; ``gamma`` (C,) is an
    exponent and ``log_bias`` (1, C, m, m, m) the logarithm of a factor on intensities in [0, 1]."""

    matrix: Tensor
    displacement: Tensor
    gamma: Tensor
    log_bias: Tensor

    def apply(self, case: Case, shape: Sequence[int]) -> tuple[Tensor, Tensor]:
        """The varied image (C, *shape) in [-1, 1] and labels (*shape) uint8, on ``shape`` (D, H, W) voxels."""
        grid = F.affine_grid(self.matrix[None], [1, 1, *shape], align_corners=False)
        field = F.interpolate(self.displacement, size=tuple(shape), mode="trilinear", align_corners=True)
        grid = grid + field.movedim(1, -1)
        unit = (case.image[None] + 1) / 2  # 0 is background, so that what lies outside the box is background
        image = F.grid_sample(unit, grid, mode="bilinear", padding_mode="zeros", align_corners=False)[0]
        labels = F.grid_sample(
            case.labels[None, None].float(), grid, mode="nearest", padding_mode="zeros", align_corners=False
        )
        bias = F.interpolate(self.log_bias, size=tuple(shape), mode="trilinear", align_corners=True)[0].exp()
        image = (image.clamp(0, 1) ** self.gamma.view(-1, 1, 1, 1) * bias).clamp(0, 1)
        return image * 2 - 1, labels[0, 0].to(torch.uint8)


def draw_variation(case: Case, settings: Augmentation, generator: torch.Generator) -> Variation:
    """A random :class:`Variation` of ``case``; the same generator state gives the same one."""

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator)

    channels = len(case.image)
    extent = torch.tensor(
        [n * s for n, s in zip(reversed(case.labels.shape), case.spacing, strict=True)]
    )  # x, y, z in mm
    x, y, z = (torch.deg2rad(angle) for angle in settings.rotation * normal(3))
    rotation = _rotation(x, y, z)
    linear = rotation @ torch.diag(torch.exp(settings.scaling * normal(3)))
    if torch.rand((), generator=generator) < settings.flip:
        linear = linear @ torch.diag(torch.tensor([-1.0, 1.0, 1.0]))
    # Rotations are about millimetres, the coordinates are fractions of the box.
    linear = linear * (extent[None, :] / extent[:, None])
    shift = settings.translation * normal(3) * 2 / extent
    points = settings.elastic_points
    displacement = settings.elastic * normal(1, 3, points, points, points) * (2 / extent).view(1, 3, 1, 1, 1)
    return Variation(
        matrix=torch.cat([linear, shift[:, None]], dim=1),
        displacement=displacement,
        gamma=torch.exp(settings.gamma * normal(channels)),
        log_bias=settings.bias * normal(1, channels, *[settings.bias_points] * 3),
    )


def _rotation(x: Tensor, y: Tensor, z: Tensor) -> Tensor:
    """Rotation matrix about the x, then the y, then the z axis; radians."""
    one, zero = torch.ones(()), torch.zeros(())
    about_x = torch.stack([one, zero, zero, zero, x.cos(), -x.sin(), zero, x.sin(), x.cos()]).view(3, 3)
    about_y = torch.stack([y.cos(), zero, y.sin(), zero, one, zero, -y.sin(), zero, y.cos()]).view(3, 3)
    about_z = torch.stack([z.cos(), -z.sin(), zero, z.sin(), z.cos(), zero, zero, zero, one]).view(3, 3)
    return about_z @ about_y @ about_x
