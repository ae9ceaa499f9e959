"""meddpm segment: many scans, a mask of each, and only what is missing."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from MedDPMLib.cli.checks import check_writable
from MedDPMLib.cli.options import DeviceOption, GeometryOption, OutOption, PrecisionOption, segmenter_names
from MedDPMLib.cli.output import Progress, complain, show_progress
from MedDPMLib.cli.remedies import worded
from MedDPMLib.errors import MedDPMError

if TYPE_CHECKING:
    from MedDPMLib.models.store import ModelEntry
    from MedDPMLib.segmentation.segmenter import Segmenter

#: Must be what :data:`MedDPMLib.segmentation.segmenter.BUNDLED_SEGMENTER` is, which is not imported for a help text.
_BUNDLED = "brain-structures"


@dataclass(frozen=True)
class Patient:
    """The ``files`` of one patient, by modality (None: unknown), and what the results are called."""

    stem: str
    files: dict[str | None, Path]


def segment(
    scans: Annotated[
        list[str],
        typer.Argument(
            metavar="SCAN",
            help="Scans, or folders of them, each of a patient of its own. t1=FILE flair=FILE and so on are the scans"
            " of one patient.",
        ),
    ],
    out: OutOption,
    model: Annotated[
        str, typer.Option("--model", help="The segmenter, by name or file.", autocompletion=segmenter_names)
    ] = _BUNDLED,
    form: Annotated[
        str, typer.Option("--format", metavar="FORMAT", help="seg.nrrd (for 3D Slicer) or nifti.")
    ] = "seg.nrrd",
    confidence: Annotated[
        bool, typer.Option("--confidence", help="Also write how probable the label of each voxel is.")
    ] = False,
    device: DeviceOption = "auto",
    precision: PrecisionOption = "auto",
    geometry: GeometryOption = None,
) -> None:
    """Make masks from brain MRI scans of any contrast, resolution and orientation.

    For each scan a mask (SCAN.seg.nrrd), the volume of each label in mm^3 (SCAN_volumes.csv), a picture to check it by
    (SCAN_qc.png) and a record are written. Masks that exist already are skipped. A scan that cannot be used is
    reported and skipped, the others are processed; the exit code is then 2. Not for diagnosis.
    """
    from MedDPMLib.models.store import SEGMENTER, ModelStore
    from MedDPMLib.segmentation.files import FORMATS

    if form not in FORMATS:
        raise MedDPMError(f'there is no format "{form}": use {" or ".join(FORMATS)}')
    entry = ModelStore().find(model, SEGMENTER)
    patients = find_patients(scans, out, entry.card.modalities)
    check_writable(out)
    batch = Batch(entry, out, form, confidence, device, precision, geometry)
    with show_progress(100 * len(patients), "starting") as progress:
        for number, patient in enumerate(patients):
            batch.make(patient, 100 * number, progress)
    typer.echo(batch.summary())
    if batch.failed:
        raise typer.Exit(2)


class Batch:
    """What all scans have in common; the segmenter is loaded when the first mask is due."""

    def __init__(
        self, entry: ModelEntry, out: Path, form: str, confidence: bool, device: str, precision: str,
        geometry: str | None,
    ) -> None:  # fmt: skip
        from MedDPMLib.runtime.device import choose_execution

        self.entry, self.out, self.form, self.confidence, self.geometry = entry, out, form, confidence, geometry
        self.execution = choose_execution(device, precision)
        self.made = self.skipped = self.failed = 0

    @cached_property
    def segmenter(self) -> Segmenter:
        from MedDPMLib.segmentation.segmenter import load_segmenter

        return load_segmenter(self.entry.path)

    def make(self, patient: Patient, before: int, progress: Progress) -> None:
        """The files of one patient. An error in a scan is reported, an error in writing ends the run."""
        from MedDPMLib.figures.segmentation import draw_segmentation
        from MedDPMLib.imaging.io import read_volume
        from MedDPMLib.runtime.files import atomic_write
        from MedDPMLib.segmentation.files import check_format, describe, is_finished, write_record, write_segmented

        stem, scheme = patient.stem, self.entry.card.scheme
        started = time.perf_counter()
        try:
            volumes = {modality: read_volume(path, geometry=self.geometry) for modality, path in patient.files.items()}
            run = describe(self.segmenter, patient.files, volumes, self.execution.precision, self.form, self.confidence)
            if is_finished(self.out, stem, run):
                self.skipped += 1
                typer.echo(f"{stem}: finished before, skipped")
                progress.reach(before + 100, stem)
                return
            check_format(self.form, next(iter(volumes.values())).geometry, stem)
            made = self.segmenter.segment(
                volumes,
                name=stem,
                execution=self.execution,
                progress=lambda done, total: progress.reach(before + 100 * done // total, stem),
            )
        except MedDPMError as error:
            self.failed += 1
            progress.reach(before + 100, stem)
            complain(worded(error))
            return
        for note in made.notes:
            typer.echo(f"{stem}: {note}")
        paths = write_segmented(self.out, stem, made, scheme, run)
        first = next(iter(volumes.values()))
        picture = draw_segmentation(first, made.labels, scheme, caption=f"{stem}, segmented by {self.entry.name}")
        paths.append(self.out / f"{stem}_qc.png")
        with atomic_write(paths[-1]) as temporary:
            picture.save(temporary)
        write_record(self.out, stem, made, run, time.perf_counter() - started)
        for path in paths:
            typer.echo(str(path))
        self.made += 1

    def summary(self) -> str:
        parts = [f"{self.made} segmented"]
        if self.skipped:
            parts.append(f"{self.skipped} skipped, because finished before")
        if self.failed:
            parts.append(f"{self.failed} {'scan' if self.failed == 1 else 'scans'} could not be used")
        return f"{', '.join(parts)}; results in {self.out}"


def find_patients(arguments: Sequence[str], out: Path, modalities: Sequence[str]) -> list[Patient]:
    """The patients in ``arguments``, each with a name of its own."""
    from MedDPMLib.cli.generate import find_masks
    from MedDPMLib.imaging.io import volume_stem

    named: dict[str | None, Path] = {}
    plain = []
    for argument in arguments:
        modality, equals, file = argument.partition("=")
        if equals and modality in modalities:
            if modality in named:
                raise MedDPMError(f"{modality} is given twice, but there is one patient: give each modality once")
            named[modality] = Path(file)
        elif equals and not Path(argument).exists():
            known = ", ".join(modalities) or "none"
            raise MedDPMError(f'"{argument}" names no modality that the model knows ({known}) and no file')
        else:
            plain.append(Path(argument))
    patients = [Patient(volume_stem(path), {None: path}) for path in find_masks(plain, out, "scans")]
    if named:
        stem = volume_stem(next(iter(named.values())))
        patients.append(Patient(stem, named))
    twice = [stem for stem, count in Counter(one.stem for one in patients).items() if count > 1]
    if twice:
        raise MedDPMError(f'several scans are called "{twice[0]}", and their results would be too: rename them')
    return patients
