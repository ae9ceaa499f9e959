"""Which examples does a segmenter train on? As :mod:`MedDPMLib.train.examples`: its number decides all about one."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.utils.data import Dataset

from MedDPMLib.data import Case, VariedCases
from MedDPMLib.data.randomization import Randomizer
from MedDPMLib.data.samples import Sample
from MedDPMLib.networks.segmenter import BLOCK
from MedDPMLib.recipes.parts import Stage
from MedDPMLib.recipes.segmenter import SegmenterRecipe
from MedDPMLib.train.examples import seeded
from MedDPMLib.train.segmentation_objective import UNKNOWN

#: A stream of random numbers of its own.
_IMAGE = 18


@dataclass(frozen=True)
class SegmenterExample:
    """One batch: ``x`` (B, 1 + modalities, D, H, W), float32, what the network sees; the classes ``structures`` and
    ``tumor`` (B, D, H, W), uint8; whether the tumor is ``asked`` for; the ``places`` in blocks at which the loss is
    computed; ``cases`` are the names."""

    x: Tensor
    structures: Tensor
    tumor: Tensor
    asked: bool
    places: tuple[int, ...]
    cases: tuple[str, ...]

    def to(self, device: torch.device) -> SegmenterExample:
        """The same on ``device``."""
        moved = {name: getattr(self, name).to(device) for name in ("x", "structures", "tumor")}
        return replace(self, **moved)


class SegmenterExamples:
    """The examples of one ``stage`` by their number, out of the varied ``cases``; where an image is empty, the labels
    are all that there is."""

    def __init__(self, recipe: SegmenterRecipe, stage: Stage, cases: Dataset | Sequence[Case]) -> None:
        self.recipe, self.scheme = recipe, recipe.label_scheme
        size, patch = tuple(reversed(stage.size)), stage.patch and tuple(reversed(stage.patch))
        self.spacing = recipe.stage_grid(stage).spacing[0]
        self.varied = VariedCases(cases, recipe.augmentation, size, patch, self.scheme, recipe.training.seed)

    def batch(self, numbers: Sequence[int]) -> SegmenterExample:
        """The examples of these ``numbers`` together. The tumor is asked for where it can be seen in all of them."""
        made = [self._example(number) for number in numbers]
        joined = {name: torch.cat([getattr(one, name) for one in made]) for name in ("x", "structures", "tumor")}
        return SegmenterExample(
            **joined,
            asked=all(one.asked for one in made),
            places=made[0].places,
            cases=tuple(name for one in made for name in one.cases),
        )

    def held_out(self) -> Iterator[SegmenterExample]:
        """The fixed examples to measure on, if the cases are held out: two of each."""
        for number in range(2 * len(self.varied)):
            yield self.batch([number])

    def _example(self, number: int) -> SegmenterExample:
        recipe, settings = self.recipe, self.recipe.randomization
        sample = self.varied[number]
        strength = min(1.0, max(0.0, (number - settings.ramp_start) / settings.ramp_length))
        generator = seeded(recipe.training.seed, _IMAGE, number)
        random = Randomizer(settings, self.scheme, generator, spacing=self.spacing, strength=strength)
        drawn = random.happens(settings.drawn * strength) or not bool((sample.image > -1).any())
        named = torch.zeros(len(recipe.modalities), *sample.labels.shape)
        count = 0
        if drawn:
            unnamed = random.drawn(sample.labels)
        else:
            scans = (sample.image + 1) / 2
            unnamed = random.changed(scans[random.whole(0, len(scans) - 1)], sample.labels)
            if random.happens(settings.named):
                complete = random.happens(0.6)
                for channel, scan in zip(named, scans, strict=True):
                    if complete or random.happens(0.6):
                        channel[:] = random.known(scan, sample.labels)
                        count += 1
                if count and random.happens(settings.named_alone):
                    unnamed = torch.zeros_like(unnamed)
        places = torch.randperm(BLOCK, generator=random.generator)[: recipe.training.voxels_of_block]
        structures, tumor = self._targets(sample)
        asked = count >= recipe.tumor_modalities and bool(self.scheme.tumor)
        x = torch.cat([unnamed[None], named])[None]
        return SegmenterExample(x, structures[None], tumor[None], asked, tuple(places.tolist()), (sample.case,))

    def _targets(self, sample: Sample) -> tuple[Tensor, Tensor]:
        """The classes of both outputs; what lies under a tumor is not known."""
        lookup = torch.full((2, 256), UNKNOWN, dtype=torch.uint8)
        lookup[:, 0] = 0
        lookup[1] = 0
        tumor = [label.value for label in self.scheme.tumor]
        others = [value for value in self.scheme.values if value not in tumor]
        for output, values in enumerate((others, tumor)):
            for number, value in enumerate(values, start=1):
                lookup[output, value] = number
        return tuple(lookup[:, sample.labels.long()])  # type: ignore[return-value]
