"""What is the effect of fewer steps and of guidance? Images of the same masks and seeds with different settings.

Every volume is written as by ``meddpm generate``, with its record; existing ones are not generated again.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from itertools import combinations
from pathlib import Path
from statistics import fmean, median

import numpy as np

from MedDPMLib.errors import MedDPMError
from MedDPMLib.imaging.volume import Volume
from MedDPMLib.inference.generation import plan_run
from MedDPMLib.inference.record import describe_run, is_finished, read_result, sidecar, volume_path, write_result
from MedDPMLib.inference.settings import GenerationSettings
from MedDPMLib.masks.fit import fit
from MedDPMLib.masks.mask import Mask
from MedDPMLib.metrics.label_statistics import compare_labels
from MedDPMLib.metrics.similarity import SAME, bounding_box, gradient_energy, likeness, ms_ssim, spread
from MedDPMLib.models.card import Card
from MedDPMLib.models.model import Model
from MedDPMLib.runtime.device import Execution

#: Numbers of steps to compare, in addition to all steps of the schedule.
STEPS = (4, 8, 12, 20, 50)


@dataclass(frozen=True)
class Variant:
    """What is compared: ``settings`` with sampler and steps, for the model or for the student of that name."""

    settings: GenerationSettings
    student: str = ""

    @property
    def name(self) -> str:
        """For a table: "20 dpm-solver++", "20 dpm-solver++, guidance 2", "2 ddim, brain-student"."""
        guided = f", guidance {self.settings.guidance:g}" if self.settings.guided else ""
        student = f", {self.student}" if self.student else ""
        return f"{self.settings.steps} {self.settings.sampler}{guided}{student}"

    @property
    def folder(self) -> str:
        return self.name.replace(", ", "-").replace(" ", "-")


def variants(card: Card, steps: Sequence[str], guidance: Sequence[float], base: GenerationSettings) -> list[Variant]:
    """The variants of ``base`` with all combinations of ``steps`` ("20" or "20:ddim") and ``guidance``, fewest first.

    If no sampler is given, the number of steps of the card's reference uses the reference's sampler, any other number
    that of the quality "standard". Raises :class:`MedDPMError` for what the model cannot do.
    """
    reference = card.qualities["reference"]
    found = []
    for text in steps:
        number, _, sampler = str(text).partition(":")
        if not number.isdecimal():
            raise MedDPMError(f'"{text}" is not a number of steps: write 20, or 20:ddim')
        count = int(number)
        if not sampler:
            sampler = card.qualities["reference" if count == reference["steps"] else "standard"]["sampler"]
        for scale in guidance:
            found.append(Variant(base.changed(steps=count, sampler=sampler, guidance=scale).for_card(card)))
    return sorted(dict.fromkeys(found), key=lambda one: (one.settings.steps, one.name))


def student_variant(card: Card, student: Card, base: GenerationSettings) -> Variant:
    """The student's own standard quality; :class:`MedDPMError` unless it generates the same images from the same
    masks."""
    if (student.scheme, student.modalities, student.grid) != (card.scheme, card.modalities, card.grid):
        raise MedDPMError(
            f"{student.name} differs from {card.name} in label scheme, modalities or grid: they cannot be compared"
        )
    return Variant(base.for_card(student), student=student.name)


def reference_of(card: Card, among: Sequence[Variant]) -> Variant:
    """The variant that the others are compared with: the card's reference, otherwise the most steps; without guidance
    if possible."""
    quality = card.qualities["reference"]

    def rank(one: Variant) -> tuple:
        settings = one.settings
        is_reference = (settings.steps, settings.sampler) == (quality["steps"], quality["sampler"])
        return not settings.guided, is_reference, settings.steps

    return max((one for one in among if not one.student), key=rank)


@dataclass(frozen=True)
class Row:
    """The figures of one variant, each by modality, averaged over masks and seeds.

    - ``correlation``: of the labels' mean intensities with those of the reference of the same mask and seed.
    - ``mean_difference``, ``sd_difference``: differences of the labels' means and deviations from the reference's.
    - ``ms_ssim``, ``mae``: to the reference of the same mask and seed.
    - ``sharpness``: gradient energy inside the brain over the reference's; below 1 is blurred, above 1 is grainy.
    - ``ms_ssim_between_seeds``: of all pairs of seeds of a mask; empty with one seed. Lower is more varied.
    - ``sd_tumor``, ``sd_brain``: standard deviation of a voxel over the seeds of a mask, in and outside the tumor.

    ``seconds`` is the median time of a volume. A figure that is undefined is None.
    """

    variant: Variant
    seconds: float
    correlation: dict[str, float | None] = field(default_factory=dict)
    mean_difference: dict[str, float] = field(default_factory=dict)
    sd_difference: dict[str, float] = field(default_factory=dict)
    ms_ssim: dict[str, float] = field(default_factory=dict)
    mae: dict[str, float] = field(default_factory=dict)
    sharpness: dict[str, float] = field(default_factory=dict)
    ms_ssim_between_seeds: dict[str, float | None] = field(default_factory=dict)
    sd_tumor: dict[str, float | None] = field(default_factory=dict)
    sd_brain: dict[str, float | None] = field(default_factory=dict)

    def to_dict(self) -> dict:
        """As plain data for JSON."""
        return {"name": self.variant.name, **asdict(self)}


@dataclass(frozen=True, eq=False)
class Study:
    """Masks and seeds to compare ``variants`` on; the volumes are in ``folder``, a folder for each variant.

    ``students`` are the models, by name, that the variants refer to.
    """

    model: Model
    masks: Sequence[Mask]
    seeds: Sequence[int]
    variants: Sequence[Variant]
    folder: Path
    execution: Execution
    students: Mapping[str, Model] = field(default_factory=dict)

    def make(self, progress: Callable[[str, int], None]) -> None:
        """Generates the missing volumes; ``progress`` receives a description and the number of steps done."""
        for variant in self.variants:
            for mask, seed in self._runs():
                doing = f"{variant.name}, {mask.name}, seed {seed}"
                if self._is_there(variant, mask, seed):
                    progress(doing, variant.settings.steps)
                    continue
                run = plan_run(self._maker(variant), variant.settings, self.execution)
                made = run.generate(mask, seed=seed, progress=lambda *_, doing=doing: progress(doing, 1))
                write_result(self.folder / variant.folder, self._stem(mask, seed), made)

    def compare(self, progress: Callable[[str], None]) -> list[Row]:
        """The figures of every variant; ``progress`` receives a description for each variant and mask."""
        rows = []
        reference = reference_of(self.model.card, self.variants)
        for variant in self.variants:
            collected: dict[str, dict[str, list]] = {}
            for mask in self.masks:
                progress(f"comparing {variant.name}, {mask.name}")
                for name, modality, value in self._figures(variant, reference, mask):
                    collected.setdefault(name, {}).setdefault(modality, []).append(value)
            figures = {
                name: {modality: _mean(values) for modality, values in by_modality.items()}
                for name, by_modality in collected.items()
            }
            seconds = median(self._seconds(variant, mask, seed) for mask, seed in self._runs())
            rows.append(Row(variant, seconds, **figures))
        return rows

    def volumes(self, variant: Variant, mask: Mask, seed: int) -> dict[str, Volume]:
        """The volumes that :meth:`make` wrote, by modality."""
        return {
            modality: read_result(volume_path(self.folder / variant.folder, self._stem(mask, seed), modality))
            for modality in self.model.card.modalities
        }

    def example(self) -> Mask:
        """The mask to show: the first with a tumor, if there is one."""
        values = [label.value for label in self.model.card.scheme.tumor]
        return next((mask for mask in self.masks if np.isin(mask.volume.array, values).any()), self.masks[0])

    def _figures(self, variant: Variant, reference: Variant, mask: Mask) -> Iterator[tuple[str, str, float | None]]:
        """Name, modality and value of every figure of one mask."""
        card, fitted = self.model.card, fit(mask, self.model.card.grid)
        labels = Volume(fitted.labels, fitted.geometry)
        inside = fitted.labels > 0
        tumor = np.isin(fitted.labels, [label.value for label in card.scheme.tumor])
        of_seeds = []
        for seed in self.seeds:
            made, compared = self.volumes(variant, mask, seed), self.volumes(reference, mask, seed)
            pairs = {modality: (made[modality].array, compared[modality].array) for modality in card.modalities}
            of_seeds.append({modality: pair[0] for modality, pair in pairs.items()})
            in_labels = compare_labels(pairs, labels, card.scheme)
            for modality, pair in pairs.items():
                alike = SAME if variant == reference else likeness(*pair, inside)
                yield "ms_ssim", modality, alike.ms_ssim
                yield "mae", modality, alike.mae
                yield "correlation", modality, in_labels.correlation[modality]
                yield "mean_difference", modality, in_labels.mean_difference(modality)
                yield "sd_difference", modality, in_labels.sd_difference(modality)
                yield "sharpness", modality, gradient_energy(pair[0], inside) / gradient_energy(pair[1], inside)
        box = bounding_box(inside)
        for modality in card.modalities:
            images = [one[modality] for one in of_seeds]
            for first, second in combinations(images, 2):
                yield "ms_ssim_between_seeds", modality, ms_ssim(first[box], second[box])
            if len(images) > 1:
                yield "sd_tumor", modality, spread(images, tumor)
                yield "sd_brain", modality, spread(images, inside & ~tumor)

    def _runs(self) -> Iterator[tuple[Mask, int]]:
        return ((mask, seed) for mask in self.masks for seed in self.seeds)

    def _maker(self, variant: Variant) -> Model:
        return self.students[variant.student] if variant.student else self.model

    def _is_there(self, variant: Variant, mask: Mask, seed: int) -> bool:
        maker = self._maker(variant)
        run = describe_run(
            card=maker.card, model_hash=maker.hash, mask=mask, execution=self.execution,
            settings=variant.settings, seed=seed,
        )  # fmt: skip
        return is_finished(self.folder / variant.folder, self._stem(mask, seed), self.model.card.modalities, run)

    def _seconds(self, variant: Variant, mask: Mask, seed: int) -> float:
        path = volume_path(self.folder / variant.folder, self._stem(mask, seed), self.model.card.modalities[0])
        return json.loads(sidecar(path).read_text())["seconds"]

    @staticmethod
    def _stem(mask: Mask, seed: int) -> str:
        return f"{mask.name}_seed{seed}"


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return fmean(known) if known else None
