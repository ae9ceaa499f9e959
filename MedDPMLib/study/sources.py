"""Which volumes make a case? Folders and tables of an organizer."""

from __future__ import annotations

import csv
import re
from collections.abc import Sequence
from pathlib import Path

from MedDPMLib.errors import MedDPMError
from MedDPMLib.imaging.io import volume_stem, volume_suffix


def collect(source: Path, modalities: Sequence[str]) -> dict[str, dict[str, Path]]:
    """Case -> modality -> file, of a folder or of a CSV table.

    A table has a column ``case`` and one for each modality, with paths relative to it. In a folder (with the folders in
    it) a file is of the modality that is a part of its name ("case_01_t1.nii.gz", "case_01-T1.nii"), and of the case
    that the rest of its name and its folder say. With one modality whose name no file has, each file is a case.
    Raises :class:`MedDPMError` for cases that lack a modality or have one twice.
    """
    if source.is_dir():
        found = _of_folder(source, modalities)
    elif source.suffix.lower() == ".csv":
        found = _of_table(source, modalities)
    else:
        raise MedDPMError(f"{source} is neither a folder of volumes nor a table (.csv): check the path")
    for case, files in found.items():
        missing = [modality for modality in modalities if modality not in files]
        if missing:
            raise MedDPMError(
                f"{source}: the case {case} has no volume of {', '.join(missing)}: every case needs the same modalities"
            )
    if not found:
        raise MedDPMError(
            f"{source} holds no volume of {', '.join(modalities)}: check the folder and how files name their modality"
        )
    return dict(sorted(found.items()))


def _of_folder(folder: Path, modalities: Sequence[str]) -> dict[str, dict[str, Path]]:
    paths = sorted(path for path in folder.rglob("*") if volume_suffix(path) and path.is_file())
    found: dict[str, dict[str, Path]] = {}
    for path in paths:
        parts = re.split(r"([_\-. ]+)", volume_stem(path))
        places = [(i, c) for i, part in enumerate(parts) for c in modalities if part.lower() == c.lower()]
        if not places:
            continue
        place, modality = places[-1]
        rest = "".join(part for i, part in enumerate(parts) if i != place).strip("_-. ")
        _add(found, str((path.parent / rest).relative_to(folder)) if rest else _parent(path, folder), modality, path)
    if not found and len(modalities) == 1:
        for path in paths:
            case = (path.parent / volume_stem(path)).relative_to(folder).as_posix()
            _add(found, case, modalities[0], path)
    return found


def _parent(path: Path, folder: Path) -> str:
    return path.parent.relative_to(folder).as_posix()


def _of_table(table: Path, modalities: Sequence[str]) -> dict[str, dict[str, Path]]:
    found: dict[str, dict[str, Path]] = {}
    try:
        with table.open(newline="", encoding="utf-8-sig") as file:
            rows = csv.DictReader(file)
            missing = [name for name in ("case", *modalities) if name not in (rows.fieldnames or ())]
            if missing:
                raise MedDPMError(f"{table} has no column {', '.join(missing)}: it needs case, {', '.join(modalities)}")
            for row in rows:
                for modality in modalities:
                    if (row[modality] or "").strip():
                        _add(found, (row["case"] or "").strip(), modality, table.parent / row[modality].strip())
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise MedDPMError(f"{table} cannot be read ({error}): save it as CSV in UTF-8") from error
    return found


def _add(found: dict[str, dict[str, Path]], case: str, modality: str, path: Path) -> None:
    other = found.setdefault(case, {}).setdefault(modality, path)
    if other != path:
        raise MedDPMError(f"{path} and {other} are both {modality} of the case {case}: name the files in a table")
