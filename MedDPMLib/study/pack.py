"""What does a reader get? One archive: the study file, the cases, the reader's own order; nothing of the truth."""

from __future__ import annotations

import json
import shutil
import zipfile
from dataclasses import dataclass
from pathlib import Path

from MedDPMLib.errors import MedDPMError
from MedDPMLib.runtime.files import atomic_write
from MedDPMLib.study.definition import CASES, READERS, STUDY_FILE, Definition, read_definition, slug
from MedDPMLib.study.order import Presentation

SUFFIX = ".study.zip"
ORDER_FILE = "reader.json"

#: The one time stamp in an archive.
_TIME = (1980, 1, 1, 0, 0, 0)


def pack(folder: Path, out: Path) -> list[Path]:
    """Writes one archive for each reader of the study in ``folder`` into ``out``."""
    definition = read_definition(folder)
    cases = sorted((folder / CASES).rglob("*.nrrd"))
    if len({path.stat().st_size for path in cases}) != 1:
        raise MedDPMError(f"{folder / CASES}: the cases were changed after the study was made, make it again")
    made = []
    for reader in definition.readers:
        order = folder / READERS / f"{slug(reader)}.json"
        _check_order(order, definition)
        path = out / f"{slug(reader)}{SUFFIX}"
        with atomic_write(path) as temporary, zipfile.ZipFile(temporary, "w") as archive:
            _add(archive, STUDY_FILE, folder / STUDY_FILE)
            _add(archive, ORDER_FILE, order)
            for case in cases:
                _add(archive, case.relative_to(folder).as_posix(), case)
        made.append(path)
    return made


def _check_order(path: Path, definition: Definition) -> None:
    try:
        stored = json.loads(path.read_text(encoding="utf-8"))
        if stored["study"] == definition.hash:
            return
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise MedDPMError(
            f"{path} cannot be read ({error!s:.80}): take it from a backup of the study folder"
        ) from error
    raise MedDPMError(f"{path} belongs to another study, or the study was edited: make the study again")


def _add(archive: zipfile.ZipFile, name: str, path: Path) -> None:
    info = zipfile.ZipInfo(name, _TIME)
    info.external_attr = 0o644 << 16
    archive.writestr(info, path.read_bytes())  # stored: the cases are compressed, and all of one length


@dataclass(frozen=True)
class Task:
    """What lies in an unpacked archive: the study, who reads it, and what is shown in which order."""

    folder: Path
    definition: Definition
    reader: str
    presentations: tuple[Presentation, ...]

    def case_file(self, case: str, modality: str) -> Path:
        return self.folder / CASES / case / f"{modality}.nrrd"


def unpack(archive: Path, folder: Path) -> Task:
    """Unpacks a reader's archive into ``folder``, or takes what was unpacked there before; see :func:`read_task`."""
    if not (folder / STUDY_FILE).is_file():
        unfinished = folder.with_name(f".{folder.name}-unfinished")
        shutil.rmtree(unfinished, ignore_errors=True)
        try:
            with zipfile.ZipFile(archive) as file:
                for name in file.namelist():
                    if name.startswith(("/", "\\")) or ".." in Path(name).parts or ":" in name:
                        raise MedDPMError(f"{archive} is no study: it holds the path {name}")
                if not {STUDY_FILE, ORDER_FILE} <= set(file.namelist()):
                    raise MedDPMError(f"{archive} is no study for a reader: ask its organizer for yours")
                file.extractall(unfinished)
            folder.parent.mkdir(parents=True, exist_ok=True)
            unfinished.rename(folder)
        except (zipfile.BadZipFile, EOFError) as error:
            raise MedDPMError(f"{archive} is damaged ({error}): copy it again") from error
        except OSError as error:
            raise MedDPMError(
                f"{archive} cannot be unpacked ({error.strerror or error}): free some space, or copy it elsewhere"
            ) from error
        finally:
            shutil.rmtree(unfinished, ignore_errors=True)
    return read_task(folder)


def read_task(folder: Path) -> Task:
    """The unpacked archive in ``folder``. Raises :class:`MedDPMError` for one that was edited or lacks a case."""
    definition = read_definition(folder)
    path = folder / ORDER_FILE
    try:
        stored = json.loads(path.read_text(encoding="utf-8"))
        presentations = tuple(Presentation.from_dict(one) for one in stored["presentations"])
        reader, study = stored["reader"], stored["study"]
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise MedDPMError(f"{path} cannot be read ({error!s:.80}): unpack the study again") from error
    if study != definition.hash or reader not in definition.readers:
        raise MedDPMError(f"{path} belongs to another study: ask its organizer for yours")
    task = Task(folder, definition, reader, presentations)
    for presentation in presentations:
        for case in presentation.cases:
            for modality in definition.modalities:
                if not task.case_file(case, modality).is_file():
                    raise MedDPMError(f"{task.case_file(case, modality)} is missing: unpack the study again")
    return task
