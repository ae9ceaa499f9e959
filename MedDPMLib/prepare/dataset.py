"""How is a dataset written, by several processes, so that it can be continued?

It has nnU-Net's raw layout: ``imagesTr/CASE_0000.nii.gz`` (a file for each modality), ``labelsTr/CASE.nii.gz`` and
``dataset.json``. Beside these ``cases.csv`` is the table of what was found, and ``prepared/CASE.json`` what each case
was made of. A case's label file is written last: where it is, and its source is unchanged, the case is done.
"""

from __future__ import annotations

import csv
import hashlib
import json
import os
import re
import signal
import threading
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, replace
from multiprocessing import connection, get_context, parent_process
from pathlib import Path
from typing import Any

from MedDPMLib.errors import MedDPMError
from MedDPMLib.imaging.geometry import Grid
from MedDPMLib.imaging.io import write_nifti
from MedDPMLib.imaging.normalize import NORMALIZATIONS
from MedDPMLib.masks.said import check_said
from MedDPMLib.masks.schemes import FORMER_NAMES, LabelScheme, load_scheme
from MedDPMLib.models.card import MODALITIES
from MedDPMLib.moved import former_attribute
from MedDPMLib.prepare.cases import prepare_case
from MedDPMLib.prepare.sources import CaseFiles
from MedDPMLib.recipes.standard import Standard, standard
from MedDPMLib.runtime.files import atomic_write
from MedDPMLib.validation import quoted, with_current_names

TABLE = "cases.csv"
_RECORDS = "prepared"

#: Changes when the same source gives another dataset than before.
_VERSION = 2

_TEMPORARY = re.compile(r"\.[0-9a-f]{8}\..+")


@dataclass(frozen=True)
class DatasetSettings:
    """What a dataset is made of, the same for all its cases.

    ``anatomy`` is a folder of ``CASE_anatomy.nii.gz``; ``numbering`` says what the values of segmentations mean, if
    neither layout nor values do; ``geometry`` which of two places in a header counts. ``scheme``
    is the name of one that ships with the package, or one of your own, with its ``grid``; its label with the role
    "rest" is filled from the images with ``fill_rest``.
    """

    scheme: str | LabelScheme
    modalities: tuple[str, ...]
    anatomy: Path | None = None
    numbering: str | None = None
    normalization: str = NORMALIZATIONS[0]
    geometry: str | None = None
    grid: Grid | None = None
    fill_rest: bool = False

    #: The name of :attr:`normalization` until version 0.1.
    normalisation = former_attribute("normalisation", "normalization")

    def __post_init__(self) -> None:
        if isinstance(self.scheme, str):
            known = standard(self.scheme).modalities
            if not self.modalities or not set(self.modalities) <= set(known):
                raise MedDPMError(
                    f'"{",".join(self.modalities)}" are not modalities of the scheme "{self.scheme}": use one or'
                    f" several of {', '.join(known)}"
                )
        elif self.grid is None:
            raise MedDPMError(
                f'the scheme "{self.scheme.name}" has no grid of its own: give --size, --spacing and --orientation'
            )
        else:
            MODALITIES.read(self.modalities, "the modalities (--modalities)")
            if self.fill_rest and self.scheme.rest is None:
                raise MedDPMError(
                    f'no label of the scheme "{self.scheme.name}" has the role "rest": nothing can be filled'
                )
        if self.normalization not in NORMALIZATIONS:
            raise MedDPMError(
                f"there is no normalization {quoted(self.normalization)}: use one of {', '.join(NORMALIZATIONS)}"
            )
        if self.anatomy is not None and self.scheme != "anatomy":
            raise MedDPMError(f'the scheme "{self.label_scheme.name}" has no structures: leave out --anatomy')
        if self.numbering is not None:
            check_said(load_scheme("brats") if self.anatomy else self.label_scheme, self.numbering)

    @property
    def label_scheme(self) -> LabelScheme:
        return load_scheme(self.scheme) if isinstance(self.scheme, str) else self.scheme

    @property
    def standard(self) -> Standard:
        if isinstance(self.scheme, str):
            known = standard(self.scheme)
            return known if self.grid is None else replace(known, grid=self.grid)
        return Standard(self.grid, self.modalities, self.fill_rest)

    def description(self) -> dict:
        """What ``dataset.json`` says, without the number of cases."""
        scheme, grid = self.label_scheme, self.standard.grid
        # A scheme of one's own is kept whole: its file may change or be lost.
        own = {} if isinstance(self.scheme, str) else {"scheme": scheme.to_dict()}
        return own | {
            "channel_names": {str(index): modality for index, modality in enumerate(self.modalities)},
            "labels": {"background": 0} | {label.name: label.value for label in scheme.labels},
            "file_ending": ".nii.gz",
            "label_scheme": scheme.name,
            "grid": {"size": list(grid.size), "spacing": list(grid.spacing), "orientation": grid.orientation},
            "normalization": self.normalization,
        }


@dataclass(frozen=True)
class Report:
    """What became of a case: ``found`` is its row in the table, ``problem`` what is wrong with it, if anything;
    ``was_done`` says that it had been prepared before."""

    name: str
    found: Mapping[str, str]
    problem: MedDPMError | None = None
    was_done: bool = False


def write_dataset(
    cases: Sequence[CaseFiles], out: Path, settings: DatasetSettings, *, workers: int = 1
) -> Iterator[Report]:
    """Writes ``cases`` into the dataset ``out`` and yields a report on each, as it is done.

    A case with a problem is reported and skipped. Cases that are done are not done again; those of earlier calls stay.
    Raises :class:`MedDPMError` if ``out`` holds a dataset with other settings or one of the cases themselves, if it
    cannot be written, and if a process dies.
    """
    for case in cases:
        for path in (*case.images.values(), case.segmentation):
            if out.resolve() in path.resolve().parents:
                raise MedDPMError(f"{path} is to be prepared and lies in {out} itself: choose another folder for --out")
    _begin(out, settings)
    reports = []
    for report in _in_processes(cases, out, settings, workers):
        reports.append(report)
        yield report
    _describe(out, settings)
    _write_table(out, settings, reports)


def _in_processes(cases: Sequence[CaseFiles], out: Path, settings: DatasetSettings, workers: int) -> Iterator[Report]:
    if min(workers, len(cases)) <= 1:
        for case in cases:
            yield _prepare(case, out, settings)
        return
    # Spawned, because a forked process can inherit a lock of SimpleITK's threads.
    pool = ProcessPoolExecutor(min(workers, len(cases)), mp_context=get_context("spawn"), initializer=_become_worker)
    try:
        pending = [pool.submit(_prepare, case, out, settings) for case in cases]
        for done in as_completed(pending):
            yield done.result()
    except BrokenProcessPool as error:
        raise MedDPMError(
            "a process ended while it prepared a case, most likely for lack of memory: use fewer --workers, the same"
            " command resumes from here"
        ) from error
    finally:
        pool.shutdown(cancel_futures=True)


def _become_worker() -> None:
    import SimpleITK

    # Ctrl-C reaches every process of a terminal: the command ends after the cases that are being prepared.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    SimpleITK.ProcessObject.SetGlobalDefaultNumberOfThreads(1)  # the other cores have a case of their own

    parent = parent_process()
    assert parent is not None, "this is a child process"

    def end_with_parent() -> None:
        connection.wait([parent.sentinel])
        os._exit(1)

    threading.Thread(target=end_with_parent, daemon=True).start()


# One case --------------------------------------------------------------------------------------------


def _prepare(case: CaseFiles, out: Path, settings: DatasetSettings) -> Report:
    found = {"case": case.name, "source": str(case.source), "layout": case.layout}
    record, labels = out / _RECORDS / f"{case.name}.json", out / "labelsTr" / f"{case.name}.nii.gz"
    images = [out / "imagesTr" / f"{case.name}_{index:04d}.nii.gz" for index in range(len(settings.modalities))]
    try:
        # A case with a problem has lost a file since it was done.
        key = None if case.problem else _key(case, settings)
        if (done := _done(record, labels)) and done["key"] == key:
            return Report(case.name, done["found"], was_done=True)
        # What is there is of another source, or was interrupted. The label file goes first, as it comes last.
        for path in (labels, record, *images):
            path.unlink(missing_ok=True)
        prepared = prepare_case(
            case,
            settings.standard,
            settings.label_scheme,
            anatomy=settings.anatomy,
            numbering=settings.numbering,
            normalization=settings.normalization,
            geometry=settings.geometry,
        )
    except MedDPMError as error:
        return Report(case.name, found, error)
    found |= prepared.found
    for path, modality in zip(images, settings.modalities, strict=True):
        write_nifti(path, prepared.images[modality])
    with atomic_write(record) as temporary:
        temporary.write_text(json.dumps({"key": key, "found": found}, indent=1))
    write_nifti(labels, prepared.labels)
    return Report(case.name, found)


def _key(case: CaseFiles, settings: DatasetSettings) -> str:
    """What the case is made of: as long as this is the same, so is the result."""
    paths = [*case.images.values(), *([case.segmentation] if case.segmentation.is_file() else [])]
    if settings.anatomy is not None:
        paths.append(settings.anatomy / f"{case.name}_anatomy.nii.gz")
    stamps = []
    for path in paths:
        try:
            stamps.append((str(path.resolve()), path.stat().st_size, path.stat().st_mtime_ns))
        except OSError as error:
            raise MedDPMError(f"{path} cannot be read ({error.strerror}): check the path") from error
    said = [sorted((case.labels or {}).items()), sorted((case.components or {}).items())]
    choices = [settings.anatomy is None, settings.numbering, settings.geometry]
    made_of = [_VERSION, said, stamps, *choices, _with_former_names(settings.description())]
    return hashlib.sha256(json.dumps(made_of).encode()).hexdigest()


def _done(record: Path, labels: Path) -> dict | None:
    """The record of a case that is done."""
    try:
        said = json.loads(record.read_text(encoding="utf-8"))
        if not labels.is_file() or not {"key", "found"} <= said.keys():
            return None
        return {**said, "found": {_current_heading(heading): text for heading, text in said["found"].items()}}
    except (OSError, ValueError, AttributeError, RecursionError):
        return None


def _current_heading(heading: str) -> str:
    """A column of the table of cases with the current name of its label."""
    name = heading.removesuffix(" (voxels)")
    return heading.replace(name, FORMER_NAMES.get(name, name))


# The dataset -----------------------------------------------------------------------------------------


def _begin(out: Path, settings: DatasetSettings) -> None:
    """Checks that ``out`` is of these settings, and clears what a process left that was ended half-way."""
    path = out / "dataset.json"
    if path.exists():
        try:
            said = _with_current_names(json.loads(path.read_text(encoding="utf-8")))
        except (OSError, ValueError, RecursionError):
            said = {}
        for name, value in settings.description().items():
            if not isinstance(said, dict) or said.get(name) != value:
                raise MedDPMError(f"{out} holds another dataset ({name} differs): choose another folder for this one")
    for folder in ("imagesTr", "labelsTr", _RECORDS):
        for left in (out / folder).glob(".*"):
            if _TEMPORARY.fullmatch(left.name):
                left.unlink(missing_ok=True)
    _describe(out, settings)


def _with_current_names(description: Any) -> Any:
    """The content of a ``dataset.json`` with the current names of labels and fields, where it has those before 0.2."""
    if not isinstance(description, dict):
        return description
    description = with_current_names(description, {"normalisation": "normalization"}, "dataset.json")
    if isinstance(labels := description.get("labels"), dict):
        description["labels"] = {FORMER_NAMES.get(name, name): value for name, value in labels.items()}
    return description


def _with_former_names(description: dict) -> dict:
    """The same the other way round. The keys of cases hold it, so that those of version 0.1 are not prepared again."""
    former = {current: name for name, current in FORMER_NAMES.items()}
    labels = {former.get(name, name): value for name, value in description["labels"].items()}
    return with_current_names({**description, "labels": labels}, {"normalization": "normalisation"}, "dataset.json")


def _describe(out: Path, settings: DatasetSettings) -> None:
    """Writes ``dataset.json``; what was added to it (name, license) stays."""
    path = out / "dataset.json"
    description = settings.description() | {"numTraining": len(list((out / "labelsTr").glob("*.nii.gz")))}
    try:
        description = _with_current_names(json.loads(path.read_text(encoding="utf-8"))) | description
    except (OSError, ValueError, TypeError, RecursionError):
        pass
    with atomic_write(path) as temporary:
        temporary.write_text(json.dumps(description, indent=2, ensure_ascii=False), encoding="utf-8")


def _write_table(out: Path, settings: DatasetSettings, reports: Sequence[Report]) -> None:
    """The table of all cases, those of earlier calls too: a row for each, with its problem if it has one."""
    rows = {}
    for path in (out / _RECORDS).glob("*.json"):
        if done := _done(path, out / "labelsTr" / f"{path.stem}.nii.gz"):
            rows[done["found"]["case"]] = {**done["found"], "problem": ""}
    for report in reports:
        rows[report.name] = {**report.found, "problem": str(report.problem or "")}
    headings = ["case", "problem"]
    for row in rows.values():
        headings += [heading for heading in row if heading not in headings]
    with atomic_write(out / TABLE) as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, headings, restval="")
        writer.writeheader()
        writer.writerows(row for _, row in sorted(rows.items()))
