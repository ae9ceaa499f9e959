"""What do fewer steps cost, and what does guidance do? Images of the same masks and seeds, made in several settings.

Every volume is written as ``meddpm generate`` writes it, with its record; what is there already is not made again.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from itertools import combinations
from pathlib import Path
from statistics import fmean, median

import numpy as np

from MedDPMLib.diffusion.names import METHODS
from MedDPMLib.diffusion.samplers import timestep_grid
from MedDPMLib.errors import MedDPMError
from MedDPMLib.imaging.io import read_volume
from MedDPMLib.imaging.volume import Volume
from MedDPMLib.inference.generation import check_guidance, generate
from MedDPMLib.inference.record import describe_run, is_finished, sidecar, volume_path, write_result
from MedDPMLib.masks.fit import fit
from MedDPMLib.masks.mask import Mask
from MedDPMLib.metrics.label_statistics import compare_labels
from MedDPMLib.metrics.similarity import SAME, bounding_box, gradient_energy, likeness, ms_ssim, spread
from MedDPMLib.models.card import Card
from MedDPMLib.models.model import Model
from MedDPMLib.runtime.device import Execution

#: Numbers of steps to compare, beside all of the schedule's.
STEPS = (4, 8, 12, 20, 50)


@dataclass(frozen=True)
class Setting:
    """How a volume is made: a row of the table. ``student`` is the name of the model that makes it, if that is another
    than the one that is studied."""

    steps: int
    sampler: str
    guidance: float = 1.0
    student: str = ""

    @property
    def name(self) -> str:
        """For a table: "20 dpm-solver++", "20 dpm-solver++, guidance 2", "2 ddim, brain-student"."""
        guided = "" if self.guidance == 1 else f", guidance {self.guidance:g}"
        return f"{self.steps} {self.sampler}{guided}" + (f", {self.student}" if self.student else "")

    @property
    def folder(self) -> str:
        return self.name.replace(", ", "-").replace(" ", "-")


def settings(card: Card, steps: Sequence[str], guidance: Sequence[float] = (1.0,)) -> list[Setting]:
    """The settings that ``steps`` ("20", or "20:ddim") and ``guidance`` make together, few steps first.

    Without a sampler named, as many steps as the card's reference takes are made with the reference's sampler, fewer
    with that of the quality "standard". Raises :class:`MedDPMError` for what the model cannot do.
    """
    reference = card.qualities["reference"]
    found = []
    for text in steps:
        number, _, sampler = str(text).partition(":")
        if not number.isdecimal():
            raise MedDPMError(f'"{text}" is no number of steps: write 20, or 20:ddim')
        count = int(number)
        timestep_grid(card.schedule["timesteps"], count)
        if not sampler:
            sampler = card.qualities["reference" if count == reference["steps"] else "standard"]["sampler"]
        if sampler not in METHODS:
            raise MedDPMError(f'"{sampler}" is not a sampler: use one of {", ".join(METHODS)}')
        found += [Setting(count, sampler, check_guidance(card, strength)) for strength in guidance]
    return sorted(dict.fromkeys(found), key=lambda one: (one.steps, one.sampler, one.guidance))


def student_setting(card: Card, student: Card) -> Setting:
    """The student's own standard quality; :class:`MedDPMError` unless it makes the same of the same masks."""
    if (student.scheme, student.modalities, student.grid) != (card.scheme, card.modalities, card.grid):
        raise MedDPMError(f"{student.name} makes something else than {card.name}: they cannot be compared")
    return Setting(**student.qualities["standard"], student=student.name)


def reference_of(card: Card, among: Sequence[Setting]) -> Setting:
    """What the others are compared with: the card's reference, or else the most steps; without guidance if possible."""
    quality = card.qualities["reference"]

    def rank(one: Setting) -> tuple:
        return one.guidance == 1, (one.steps, one.sampler) == (quality["steps"], quality["sampler"]), one.steps

    return max((one for one in among if not one.student), key=rank)


@dataclass(frozen=True)
class Row:
    """The figures of one setting, each by modality, averaged over masks and seeds.

    - ``correlation``: of the labels' mean intensities with those of the reference of the same mask and seed.
    - ``mean_difference``, ``sd_difference``: how far the labels' means and deviations are from the reference's.
    - ``ms_ssim``, ``mae``: to the reference of the same mask and seed.
    - ``sharpness``: gradient energy inside the brain over the reference's; below 1 is blurred, above 1 is grainy.
    - ``ms_ssim_between_seeds``: of all pairs of seeds of a mask; empty with one seed. Lower is more varied.
    - ``sd_tumour``, ``sd_brain``: the deviation of a voxel over the seeds of a mask, in the tumour and outside of it.

    ``seconds`` is the median time of a volume. None stands where nothing can be said.
    """

    setting: Setting
    seconds: float
    correlation: dict[str, float | None] = field(default_factory=dict)
    mean_difference: dict[str, float] = field(default_factory=dict)
    sd_difference: dict[str, float] = field(default_factory=dict)
    ms_ssim: dict[str, float] = field(default_factory=dict)
    mae: dict[str, float] = field(default_factory=dict)
    sharpness: dict[str, float] = field(default_factory=dict)
    ms_ssim_between_seeds: dict[str, float | None] = field(default_factory=dict)
    sd_tumour: dict[str, float | None] = field(default_factory=dict)
    sd_brain: dict[str, float | None] = field(default_factory=dict)

    def to_dict(self) -> dict:
        """As plain data for JSON."""
        return {"name": self.setting.name, **asdict(self)}


@dataclass(frozen=True, eq=False)
class Study:
    """Masks and seeds to compare settings on; the volumes lie in ``folder``, a folder for each setting.

    ``students`` are the models, by name, that settings name.
    """

    model: Model
    masks: Sequence[Mask]
    seeds: Sequence[int]
    settings: Sequence[Setting]
    folder: Path
    execution: Execution
    students: Mapping[str, Model] = field(default_factory=dict)

    def make(self, progress: Callable[[str, int], None]) -> None:
        """Makes the volumes that are not there yet; ``progress`` is told what is done and how many steps that was."""
        for setting in self.settings:
            for mask, seed in self._runs():
                doing = f"{setting.name}, {mask.name}, seed {seed}"
                if self._is_there(setting, mask, seed):
                    progress(doing, setting.steps)
                    continue
                made = generate(
                    self._maker(setting), mask, seed=seed, steps=setting.steps, sampler=setting.sampler,
                    guidance=setting.guidance, device=self.execution.device, precision=self.execution.precision,
                    progress=lambda *_, doing=doing: progress(doing, 1),
                )  # fmt: skip
                write_result(self.folder / setting.folder, self._stem(mask, seed), made)

    def compare(self, progress: Callable[[str], None]) -> list[Row]:
        """The figures of every setting; ``progress`` is told what is being compared, once for each setting and mask."""
        rows = []
        reference = reference_of(self.model.card, self.settings)
        for setting in self.settings:
            collected: dict[str, dict[str, list]] = {}
            for mask in self.masks:
                progress(f"comparing {setting.name}, {mask.name}")
                for name, modality, value in self._figures(setting, reference, mask):
                    collected.setdefault(name, {}).setdefault(modality, []).append(value)
            figures = {
                name: {modality: _mean(values) for modality, values in by_modality.items()}
                for name, by_modality in collected.items()
            }
            seconds = median(self._seconds(setting, mask, seed) for mask, seed in self._runs())
            rows.append(Row(setting, seconds, **figures))
        return rows

    def volumes(self, setting: Setting, mask: Mask, seed: int) -> dict[str, Volume]:
        """By modality what :meth:`make` made."""
        return {
            modality: read_volume(volume_path(self.folder / setting.folder, self._stem(mask, seed), modality))
            for modality in self.model.card.modalities
        }

    def example(self) -> Mask:
        """The mask to show: the first with a tumour, if there is one."""
        values = [label.value for label in self.model.card.scheme.tumour]
        return next((mask for mask in self.masks if np.isin(mask.volume.array, values).any()), self.masks[0])

    def _figures(self, setting: Setting, reference: Setting, mask: Mask) -> Iterator[tuple[str, str, float | None]]:
        """Name, modality and value of every figure of one mask."""
        card, fitted = self.model.card, fit(mask, self.model.card.grid)
        labels = Volume(fitted.labels, fitted.geometry)
        inside = fitted.labels > 0
        tumour = np.isin(fitted.labels, [label.value for label in card.scheme.tumour])
        of_seeds = []
        for seed in self.seeds:
            made, compared = self.volumes(setting, mask, seed), self.volumes(reference, mask, seed)
            pairs = {modality: (made[modality].array, compared[modality].array) for modality in card.modalities}
            of_seeds.append({modality: pair[0] for modality, pair in pairs.items()})
            in_labels = compare_labels(pairs, labels, card.scheme)
            for modality, pair in pairs.items():
                alike = SAME if setting == reference else likeness(*pair, inside)
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
                yield "sd_tumour", modality, spread(images, tumour)
                yield "sd_brain", modality, spread(images, inside & ~tumour)

    def _runs(self) -> Iterator[tuple[Mask, int]]:
        return ((mask, seed) for mask in self.masks for seed in self.seeds)

    def _maker(self, setting: Setting) -> Model:
        return self.students[setting.student] if setting.student else self.model

    def _is_there(self, setting: Setting, mask: Mask, seed: int) -> bool:
        maker = self._maker(setting)
        run = describe_run(
            card=maker.card, model_hash=maker.hash, mask=mask, execution=self.execution, seed=seed,
            steps=setting.steps, sampler=setting.sampler, guidance=setting.guidance, space="model",
        )  # fmt: skip
        return is_finished(self.folder / setting.folder, self._stem(mask, seed), self.model.card.modalities, run)

    def _seconds(self, setting: Setting, mask: Mask, seed: int) -> float:
        path = volume_path(self.folder / setting.folder, self._stem(mask, seed), self.model.card.modalities[0])
        return json.loads(sidecar(path).read_text())["seconds"]

    @staticmethod
    def _stem(mask: Mask, seed: int) -> str:
        return f"{mask.name}_seed{seed}"


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return fmean(known) if known else None
