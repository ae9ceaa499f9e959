"""Which volumes make a case? Folders and tables of an organizer."""

from __future__ import annotations

import csv
import re
from collections.abc import Sequence
from pathlib import Path

from MedDPMLib.errors import MedDPMError
from MedDPMLib.imaging.io import volume_stem, volume_suffix


def collect(source: Path, contrasts: Sequence[str]) -> dict[str, dict[str, Path]]:
    """Case -> contrast -> file, of a folder or of a CSV table.

    A table has a column ``case`` and one for each contrast, with paths relative to it. In a folder (with the folders in
    it) a file is of the contrast that is a part of its name ("case_01_t1.nii.gz", "case_01-T1.nii"), and of the case
    that the rest of its name and its folder say. With one contrast whose name no file has, each file is a case.
    Raises :class:`MedDPMError` for cases that lack a contrast or have one twice.
    """
    if source.is_dir():
        found = _of_folder(source, contrasts)
    elif source.suffix.lower() == ".csv":
        found = _of_table(source, contrasts)
    else:
        raise MedDPMError(f"{source} is neither a folder of volumes nor a table (.csv): check the path")
    for case, files in found.items():
        missing = [contrast for contrast in contrasts if contrast not in files]
        if missing:
            raise MedDPMError(
                f"{source}: the case {case} has no volume of {', '.join(missing)}: every case needs the same contrasts"
            )
    if not found:
        raise MedDPMError(
            f"{source} holds no volume of {', '.join(contrasts)}: check the folder and how files name their contrast"
        )
    return dict(sorted(found.items()))


def _of_folder(folder: Path, contrasts: Sequence[str]) -> dict[str, dict[str, Path]]:
    paths = sorted(path for path in folder.rglob("*") if volume_suffix(path) and path.is_file())
    found: dict[str, dict[str, Path]] = {}
    for path in paths:
        parts = re.split(r"([_\-. ]+)", volume_stem(path))
        places = [(i, c) for i, part in enumerate(parts) for c in contrasts if part.lower() == c.lower()]
        if not places:
            continue
        place, contrast = places[-1]
        rest = "".join(part for i, part in enumerate(parts) if i != place).strip("_-. ")
        _add(found, str((path.parent / rest).relative_to(folder)) if rest else _parent(path, folder), contrast, path)
    if not found and len(contrasts) == 1:
        for path in paths:
            case = (path.parent / volume_stem(path)).relative_to(folder).as_posix()
            _add(found, case, contrasts[0], path)
    return found


def _parent(path: Path, folder: Path) -> str:
    return path.parent.relative_to(folder).as_posix()


def _of_table(table: Path, contrasts: Sequence[str]) -> dict[str, dict[str, Path]]:
    found: dict[str, dict[str, Path]] = {}
    try:
        with table.open(newline="", encoding="utf-8-sig") as file:
            rows = csv.DictReader(file)
            missing = [name for name in ("case", *contrasts) if name not in (rows.fieldnames or ())]
            if missing:
                raise MedDPMError(f"{table} has no column {', '.join(missing)}: it needs case, {', '.join(contrasts)}")
            for row in rows:
                for contrast in contrasts:
                    if (row[contrast] or "").strip():
                        _add(found, (row["case"] or "").strip(), contrast, table.parent / row[contrast].strip())
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise MedDPMError(f"{table} cannot be read ({error}): save it as CSV in UTF-8") from error
    return found


def _add(found: dict[str, dict[str, Path]], case: str, contrast: str, path: Path) -> None:
    other = found.setdefault(case, {}).setdefault(contrast, path)
    if other != path:
        raise MedDPMError(f"{path} and {other} are both {contrast} of the case {case}: name the files in a table")
