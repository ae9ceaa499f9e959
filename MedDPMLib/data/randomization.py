"""What might a scan of these labels look like? Images drawn from labels, and real scans made unlike themselves.

After Billot et al. 2023 (SynthSeg, arXiv 2107.09559): each label gets a random intensity and texture; then come bias
field, resolution, noise and gamma. What is around the brain is drawn, too, for heads are not at hand. Intensities are
those that a segmenter sees (:mod:`MedDPMLib.segmentation.scan`): about 0 to 1, the background 0.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from MedDPMLib.masks.schemes import LabelScheme
from MedDPMLib.recipes.segmenter import Randomization

#: Percentiles that become 0 and 1, as for a segmenter's scans.
_PERCENTILES = (0.01, 0.995)

#: How often the labels of one tissue have about the same intensity, as in MRI, and otherwise each its own.
_TISSUES = 0.45
#: How often a large label is divided into parts of their own intensities.
_DIVIDED = 0.4
#: Voxels between the points of the coarser grid on which distances are computed.
_COARSE = 4


class Randomizer:
    """The random images of one example on voxels of ``spacing`` mm; everything is drawn from ``generator``.

    ``strength``, from 0 to 1, is how much of what ``settings`` say is done to real scans.
    """

    def __init__(
        self,
        settings: Randomization,
        scheme: LabelScheme,
        generator: torch.Generator,
        *,
        spacing: float = 1.0,
        strength: float = 1.0,
    ) -> None:
        self.settings, self.scheme, self.generator = settings, scheme, generator
        self.spacing, self.strength = spacing, strength

    def happens(self, share: float) -> bool:
        return bool(torch.rand((), generator=self.generator) < share)

    def between(self, low: float, high: float) -> float:
        return low + (high - low) * float(torch.rand((), generator=self.generator))

    def whole(self, low: int, high: int) -> int:
        """One of ``low`` to ``high``, both included."""
        return int(torch.randint(low, high + 1, (), generator=self.generator))

    def normal(self, deviation: float) -> float:
        return deviation * float(torch.randn((), generator=self.generator))

    # Images ------------------------------------------------------------------------------------------

    def drawn(self, labels: Tensor) -> Tensor:
        """An image (D, H, W) of ``labels`` (D, H, W), float32."""
        surrounded = self.happens(self.settings.surroundings)
        return self._finished(self._painted(labels, surrounded), None if surrounded else labels > 0)

    def changed(self, scan: Tensor, labels: Tensor) -> Tensor:
        """A real ``scan`` (D, H, W; 0 to 1) with other intensities, maybe in surroundings that are drawn."""
        image = self._bent(scan) if self.happens(0.6 * self.strength) else scan
        if self.happens(self.settings.inverted * self.strength):
            image = 1 - image
        brain = labels > 0
        if not self.happens(self.settings.surroundings * self.strength):
            return self._finished(torch.where(brain, image, 0.0), brain)
        return self._finished(torch.where(brain, image, self._painted(labels, True)), None)

    def known(self, scan: Tensor, labels: Tensor) -> Tensor:
        """A real ``scan`` (D, H, W; 0 to 1) that is named: little is changed, because its contrast is what it tells."""
        image = scan * torch.exp(self._smooth(scan.shape, 60) * self.between(0, 0.12)) if self.happens(0.4) else scan
        image = self._blurred(image, [self.between(0.3, 0.9)] * 3) if self.happens(0.4) else image
        image = (image * math.exp(self.normal(0.06)) + self.normal(0.02)).clamp_min(0)
        return torch.where(labels > 0, image ** math.exp(self.normal(0.12)), 0.0)

    # Their parts -------------------------------------------------------------------------------------

    def _painted(self, labels: Tensor, surrounded: bool) -> Tensor:
        """An intensity and a texture for each label, and for parts that labels are divided into."""
        shape, parts = labels.shape, labels.long()
        count = int(parts.max()) + 1
        for label in self.scheme.labels:
            if label.value in (self._rest, *self._large) and self.happens(_DIVIDED):
                where = (labels == label.value) & (self._smooth(shape, self.between(4, 20)) > self.between(-0.3, 1.2))
                parts, count = torch.where(where, count, parts), count + 1
        if self.happens(self.settings.lesions):
            field, level = self._smooth(shape, self.between(14, 36)), self.between(1.3, 2.2)
            for nested in range(self.whole(1, 3)):
                parts, count = torch.where((labels > 0) & (field > level + 0.35 * nested), count, parts), count + 1
        if surrounded:
            parts, count = self._surrounded(parts, labels, count)
        means = torch.rand(count, generator=self.generator)
        spreads = torch.rand(count, generator=self.generator) * self.between(0, 0.12)
        if self.happens(_TISSUES):
            self._as_tissues(means)
            spreads *= 0.5
        if not (surrounded and self.happens(0.3)):
            means[0] = spreads[0] = 0
        image = means[parts]
        image = self._blurred(image, [self.between(0.3, 0.8)] * 3) if self.happens(0.5) else image
        return image + spreads[parts] * torch.randn(shape, generator=self.generator)

    def _as_tissues(self, means: Tensor) -> None:
        """Gray matter, white matter and fluid, with the deep gray matter in between."""
        white, gray, fluid = (self.between(0, 1) for _ in range(3))
        for label in self.scheme.labels:
            if label.value >= len(means):
                continue
            if label.tissue == "white matter" or "white matter" in label.name.lower():
                mean = white
            elif label.tissue == "fluid" or label.role == "rest":
                mean = fluid
            elif "cortex" in label.name.lower():
                mean = gray
            else:
                mean = gray + (white - gray) * self.between(0, 0.8)
            means[label.value] = mean + self.normal(0.03)

    def _surrounded(self, parts: Tensor, labels: Tensor, count: int) -> tuple[Tensor, int]:
        """``parts`` with shells around the brain, and blobs beyond them."""
        shape, outside = labels.shape, labels == 0
        depth = _distance(labels) * self.spacing + self._smooth(shape, self.between(15, 40)) * self.between(0, 3)
        edge, blobs = self.between(-1, 3), self._smooth(shape, self.between(8, 30))
        for _ in range(self.whole(1, 5)):
            parts, count = torch.where(outside & (depth > edge), count, parts), count + 1
            edge += self.between(1.5, 7)
        if self.happens(0.6):
            for side in (blobs, -blobs):
                where = outside & (depth > self.between(2, 12)) & (side > self.between(0, 1.2))
                parts, count = torch.where(where, count, parts), count + 1
        if self.happens(0.85):
            parts = torch.where(outside & (depth > edge + self.between(0, 12)), 0, parts)
        return parts, count

    def _finished(self, image: Tensor, inside: Tensor | None) -> Tensor:
        """``image`` through a scanner, with intensities as a segmenter sees them; 0 outside of ``inside``."""
        if self.happens(0.8):
            image = image * torch.exp(
                self._smooth(image.shape, self.between(35, 90)) * self.between(0, self.settings.bias)
            )
        image = self._coarser(image) if self.happens(self.strength) else image
        if self.happens(0.5 * self.strength):
            image = image + torch.randn(image.shape, generator=self.generator) * self.between(0, self.settings.noise)
        if inside is not None:
            image = torch.where(inside, image, 0.0)
        signal = image.flatten()[::7]
        signal = signal[signal.abs() > 1e-6]
        if len(signal) < 100:
            return image
        low, high = torch.quantile(signal, torch.tensor(_PERCENTILES)).tolist()
        low = low if self.happens(0.7) else min(0.0, low)
        scaled = torch.where(image.abs() > 1e-6, (image - low) / (high - low + 1e-4), 0.0).clamp(0, 1.3)
        return scaled ** math.exp(self.normal(self.settings.gamma)) * math.exp(self.normal(self.settings.scale))

    def _coarser(self, image: Tensor) -> Tensor:
        """As if scanned in larger voxels, most often in slices, and interpolated."""
        if self.happens(0.35):
            return image if self.happens(0.5) else self._blurred(image, [self.between(0.3, 1)] * 3)
        sizes = [self.between(1, 1.6)] * 3
        sizes[self.whole(0, 2)] = self.between(1, self.settings.thickness if self.happens(0.6) else 3)
        sizes = [max(size, self.spacing) for size in sizes]
        image = self._blurred(image, [0.42 * size if size > 1.15 * self.spacing else 0 for size in sizes])
        coarse = [max(8, round(side * self.spacing / size)) for side, size in zip(image.shape, sizes, strict=True)]
        if coarse == list(image.shape):
            return image
        small = F.interpolate(image[None, None], size=coarse, mode="trilinear")
        return F.interpolate(small, size=image.shape, mode="trilinear")[0, 0]

    def _bent(self, image: Tensor) -> Tensor:
        """``image`` through a random rising curve on 0 to 1."""
        pieces = self.whole(2, 4)
        rises = torch.rand(pieces, generator=self.generator) * 0.85 + 0.15
        heights = torch.cat([torch.zeros(1), rises.cumsum(0) / rises.sum()])
        place = image.clamp(0, 1) * pieces
        low = place.long().clamp(max=pieces - 1)
        return heights[low] + (heights[low + 1] - heights[low]) * (place - low)

    def _smooth(self, shape: Sequence[int], every: float) -> Tensor:
        """A smooth random field of about unit variance with a point ``every`` so many mm."""
        points = [max(2, round(side * self.spacing / every) + 1) for side in shape]
        field = torch.randn(1, 1, *points, generator=self.generator)
        return F.interpolate(field, size=tuple(shape), mode="trilinear", align_corners=True)[0, 0]

    def _blurred(self, image: Tensor, deviations: Sequence[float]) -> Tensor:
        """``image`` (D, H, W) blurred by a Gaussian of these standard deviations, in mm."""
        for axis, deviation in enumerate(deviations):
            deviation /= self.spacing
            if deviation < 0.3:
                continue
            reach = math.ceil(2.5 * deviation)
            kernel = torch.exp(-0.5 * (torch.arange(-reach, reach + 1.0) / deviation) ** 2)
            sides, around = [1, 1, 1, 1, 1], [0] * 6
            sides[2 + axis] = 2 * reach + 1
            around[4 - 2 * axis] = around[5 - 2 * axis] = reach
            padded = F.pad(image[None, None], around, mode="replicate")
            image = F.conv3d(padded, (kernel / kernel.sum()).view(sides))[0, 0]
        return image

    @property
    def _rest(self) -> int:
        return self.scheme.rest.value if self.scheme.rest else 0

    @property
    def _large(self) -> list[int]:
        """Values of labels of more than 50 ml, as far as the scheme says how large they are."""
        return [one.value for one in self.scheme.labels if one.plausible_ml and one.plausible_ml[1] > 300]


def _distance(labels: Tensor) -> Tensor:
    """Distance of each voxel from the brain, in voxels, 0 in it; computed on a coarser grid."""
    from scipy.ndimage import distance_transform_edt

    coarse = (labels[::_COARSE, ::_COARSE, ::_COARSE] == 0).numpy()
    if not coarse.all():
        coarse = distance_transform_edt(coarse)
    far = torch.as_tensor(coarse, dtype=torch.float32) * _COARSE
    return F.interpolate(far[None, None], size=labels.shape, mode="trilinear")[0, 0]
