"""How is a case augmented?

The random part (:func:`draw_variation`) is separate from the deterministic one (:meth:`Variation.apply`), as in
TorchIO: a variation is a small record of numbers, and applying it twice gives the same tensors.

MONAI's transforms are not sufficient here. Its lazy ones also compose flip, affine map and crop into one interpolation,
but not the elastic displacement, which is computed for the whole volume (7 s for 4 x 192 x 192 x 144 voxels, against
0.1 s for a patch here); without it a patch takes 1.5 times as long. Its gamma and bias field are generated for the
array at hand, so that a patch would have another brightness than the volume that it belongs to.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from MedDPMLib.data.cases import Case
from MedDPMLib.recipes.recipe import Augmentation

#: A box of voxels: a slice with start and stop along D, H and W.
Part = tuple[slice, slice, slice]


def whole_box(shape: Sequence[int]) -> Part:
    """All voxels of ``shape`` (D, H, W)."""
    depth, height, width = shape
    return slice(0, depth), slice(0, height), slice(0, width)


@dataclass(frozen=True)
class Variation:
    """A random variation. ``matrix`` (3, 4) maps normalized output to input coordinates (x, y, z), each axis of
    the box being [-1, 1]; ``displacement`` (1, 3, n, n, n) is added to it, interpolated; ``gamma`` (C,) is an
    exponent and ``log_bias`` (1, C, m, m, m) the logarithm of a factor on intensities in [0, 1]."""

    matrix: Tensor
    displacement: Tensor
    gamma: Tensor
    log_bias: Tensor

    def apply(self, case: Case, shape: Sequence[int], part: Part | None = None) -> tuple[Tensor, Tensor]:
        """The varied image (C, *shape), float32 in [-1, 1], and labels (*shape), uint8, on ``shape`` (D, H, W) voxels.

        With ``part`` only this box of them, and only this box is computed: labels are exactly those of the whole, and
        intensities too, but for the last bit. Both are interpolated once: the image linearly, labels to the nearest.
        """
        part = part or whole_box(shape)
        if tuple(shape) == case.labels.shape:
            if self.is_identity:
                return case.image[(slice(None), *part)].float(), case.labels[part].clone()
            if self.is_mirror:  # without rounding, and without reading more than the part
                width, side = shape[2], part[2]
                part = (*part[:2], slice(width - side.stop, width - side.start))
                return case.image[(slice(None), *part)].float().flip(-1), case.labels[part].flip(-1)
        grid = self._source_coordinates(shape, part)[None]
        # 0 is background, so that what lies outside the box is background.
        unit = case.image.to(torch.float32, copy=True).add_(1).mul_(0.5)
        image = F.grid_sample(unit[None], grid, mode="bilinear", padding_mode="zeros", align_corners=False)[0]
        labels = F.grid_sample(
            case.labels[None, None].float(), grid, mode="nearest", padding_mode="zeros", align_corners=False
        )
        bias = _interpolated(self.log_bias[0], shape, part).exp()
        image = (image.clamp(0, 1) ** self.gamma.view(-1, 1, 1, 1) * bias).clamp(0, 1)
        return image * 2 - 1, labels[0, 0].to(torch.uint8)

    @property
    def is_identity(self) -> bool:
        """Whether nothing is varied, as in training without augmentation."""
        return torch.equal(self.matrix, torch.eye(3, 4)) and self._only_moves

    @property
    def is_mirror(self) -> bool:
        """Whether nothing but left and right are exchanged."""
        return torch.equal(self.matrix, torch.diag(torch.tensor([-1.0, 1.0, 1.0, 1.0]))[:3]) and self._only_moves

    @property
    def _only_moves(self) -> bool:
        return not (self.displacement.any() or (self.gamma != 1).any() or self.log_bias.any())

    def _source_coordinates(self, shape: Sequence[int], part: Part) -> Tensor:
        """Where the voxels of ``part`` come from: (d, h, w, 3), normalized x, y, z in the input."""
        z, y, x = (
            axis.view([-1 if other == index else 1 for other in range(3)])
            for index, axis in enumerate(centers(shape, part))
        )
        field = _interpolated(self.displacement[0], shape, part)
        # Element by element, for a matrix product rounds differently for another number of voxels.
        moved = [row[0] * x + row[1] * y + row[2] * z + row[3] for row in self.matrix]
        return torch.stack(moved, dim=-1) + field.movedim(0, -1)

    def place_of(self, point: Tensor) -> Tensor:
        """Position of a ``point`` (3,) of the input, normalized x, y, z, in the output."""
        place = point
        for _ in range(4):  # the displacement is small and smooth: each round divides the error by ten or more
            moved = F.grid_sample(
                self.displacement, place.view(1, 1, 1, 1, 3), padding_mode="border", align_corners=True
            )
            place = torch.linalg.solve(self.matrix[:, :3], point - self.matrix[:, 3] - moved.flatten())
        return place


def centers(shape: Sequence[int], part: Part) -> list[Tensor]:
    """The middles of the voxels of ``part`` along D, H and W, the whole grid of ``shape`` being [-1, 1]."""
    return [
        (2 * torch.arange(side.start, side.stop, dtype=torch.float32) + 1) / length - 1
        for side, length in zip(part, shape, strict=True)
    ]


def _interpolated(points: Tensor, shape: Sequence[int], part: Part) -> Tensor:
    """Control ``points`` (C, n, n, n) interpolated linearly at the voxels of ``part`` of a grid of ``shape``.

    The outermost points lie on the middles of the outermost voxels. Element by element, as above.
    """
    for axis in (3, 2, 1):  # the longest axis of memory first, while there is little to compute
        side, length, count = part[axis - 1], shape[axis - 1], points.shape[axis]
        place = torch.arange(side.start, side.stop, dtype=torch.float32) * ((count - 1) / max(length - 1, 1))
        low = place.long().clamp(max=count - 2)
        share = (place - low).view([-1 if other == axis else 1 for other in range(4)])
        points = points.index_select(axis, low) * (1 - share) + points.index_select(axis, low + 1) * share
    return points


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
    # Rotations are in millimeters, the coordinates are fractions of the box.
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
