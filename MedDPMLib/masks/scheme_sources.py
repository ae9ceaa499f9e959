"""What would be the scheme of these files? A first version of a label scheme, to be corrected by hand.

From masks (a file, or all below a folder), a ``.seg.nrrd``, nnU-Net's ``dataset.json``, a label file of ITK-SNAP, or a
color table of 3D Slicer or FreeSurfer.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from MedDPMLib.errors import MedDPMError
from MedDPMLib.imaging.io import names_volume, read_volume, volume_stem
from MedDPMLib.masks.label_tables import read_entries, tables_beside
from MedDPMLib.masks.numberings import has_side, part_named
from MedDPMLib.masks.scheme_files import completed
from MedDPMLib.masks.schemes import Code, Convention, Label, LabelScheme
from MedDPMLib.masks.seg_nrrd import Segment, header_segments, holds_segments
from MedDPMLib.masks.values import whole_numbers

#: A scheme's own values, and so many labels, are at most this.
_MOST = 255

#: How deep below a folder its masks lie at most.
_DEEPEST = 5

#: Masks are distinguished from images by their number of values.
_MOST_VALUES = 1000


@dataclass(frozen=True)
class _Found:
    """A label as files have it."""

    name: str
    color: tuple[int, int, int] | None = None
    code: tuple[Code, Code] | None = None


def draft_scheme(
    source: str | os.PathLike, name: str | None = None, report: Callable[[str], None] = lambda sentence: None
) -> tuple[LabelScheme, list[str]]:
    """The scheme, called ``name``, of what ``source`` holds, and remarks on where its labels come from.

    Names of labels that are known give role, terminology and color. ``report`` is called for each file that is read
    or skipped. Raises :class:`MedDPMError` for a source without labels, and for one with more than 255.
    """
    source = Path(source)
    found, remarks = _found(source, report)
    if not found:
        raise MedDPMError(f"{source} holds no labels: all is background")
    if len(found) > _MOST:
        raise MedDPMError(
            f"{source} has {len(found)} labels, a scheme at most {_MOST}: leave only those that are needed"
        )
    stem = re.sub(r"[^a-z0-9]+", "-", (name or _stem(source)).casefold()).strip("-") or "labels"
    fits = max(found) <= _MOST
    numbers = {value: value if fits else number for number, value in enumerate(sorted(found), 1)}
    labels: list[dict] = []
    taken: set[str] = set()
    for value, one in sorted(found.items()):
        data = _described(one, rest_is_there=any(label.get("role") == "rest" for label in labels))
        data["name"] = _unique(data["name"], taken)
        labels.append({"value": numbers[value], **data})
    scheme = LabelScheme.from_dict(completed({"name": stem, "title": name or _stem(source), "labels": labels}, stem))
    if not fits:
        meanings = tuple((value, scheme.label_by_value(number).name) for value, number in numbers.items())
        convention = Convention(f"{stem}-files", f"values in {source.name}", meanings)
        scheme = replace(scheme, conventions=(convention,))
        remarks.append(f"Values above {_MOST} were numbered anew: the table at the end says what they are in files.")
        remarks.append("Whoever renames a label renames it there, too.")
    return scheme, remarks


def _stem(source: Path) -> str:
    if source.name == "dataset.json":
        return source.resolve().parent.name
    return volume_stem(source) if names_volume(source) else source.resolve().stem


def _found(source: Path, report: Callable[[str], None]) -> tuple[dict[int, _Found], list[str]]:
    if source.is_dir():
        if (source / "dataset.json").is_file():
            return _of_a_table(source / "dataset.json")
        return _of_masks(list(_volumes_below(source, _DEEPEST)), source, report)
    if not source.is_file():
        raise MedDPMError(f"{source} is not there: name a folder of masks, a mask, a table of labels or dataset.json")
    return _of_masks([source], source, report) if names_volume(source) else _of_a_table(source)


def _of_a_table(path: Path) -> tuple[dict[int, _Found], list[str]]:
    entries = read_entries(path, whole=True)
    return {value: _Found(one.name, one.color) for value, one in entries.items()}, [f"Labels of {path.name}."]


def _of_masks(paths: list[Path], source: Path, report: Callable[[str], None]) -> tuple[dict[int, _Found], list[str]]:
    """Every value that occurs, with what it is called beside the masks, or in segmentations of 3D Slicer."""
    values: dict[int, int] = {}
    names: dict[int, _Found] = {}
    segments: dict[str, _Found] = {}
    read = 0
    for path in paths:
        try:
            if holds_segments(path):
                segments |= {one.name: _of_a_segment(one) for one in header_segments(path)}
            else:
                there = _values(path)
                for value in there:
                    values[value] = values.get(value, 0) + 1
                for _, said, _ in tables_beside(path):
                    names = {value: _Found(name) for value, name in said.items()} | names
            read += 1
            report(f"{path} read")
        except MedDPMError as error:
            if len(paths) == 1:
                raise
            report(f"skipped: {error}")
    if not read:
        raise MedDPMError(f"{source} holds no masks: name a folder of masks, a mask, or a table of labels")
    remarks = [f"Labels of {read} {'mask' if read == 1 else 'masks'} in {source.name}."]
    found = {value: names.get(value, _Found(f"Label {value}")) for value in values}
    if read > 1:
        remarks += [f"Value {value} is in {count} of {read} masks." for value, count in sorted(values.items())]
    if segments:
        first = max(found, default=0) + 1
        found |= dict(enumerate(segments.values(), first))
        remarks.append("Segments are identified by their names and terminology: the values are assigned here.")
    if any(one.name.startswith("Label ") for one in found.values()):
        remarks.append('Give every "Label ..." its name.')
    return found, remarks


def _values(path: Path) -> list[int]:
    array = read_volume(path).array
    if array.dtype.kind == "f" and len(np.unique(array.ravel()[:: max(1, array.size // 100_000)])) > _MOST_VALUES:
        raise MedDPMError(f"{path} is an image, not a mask")
    try:
        found = np.unique(whole_numbers(array))
    except MedDPMError as error:
        raise error.at(str(path)) from None
    if len(found) > _MOST_VALUES:
        raise MedDPMError(f"{path} is an image, not a mask: it has {len(found):,} values")
    return [int(value) for value in found if value]


def _of_a_segment(segment: Segment) -> _Found:
    return _Found(segment.name, segment.color, segment.terminology)


def _described(found: _Found, *, rest_is_there: bool) -> dict[str, Any]:
    """The fields of a label, except its value."""
    name = "".join(letter if letter.isprintable() else " " for letter in found.name).strip()[:200] or "Label"
    data: dict[str, Any] = {"name": name[:1].upper() + name[1:]}
    known: Label | None = part_named(name)
    if known is not None:
        if known.role and not (known.role == "rest" and rest_is_there):
            data["role"] = known.role
        if known.tissue:
            data["tissue"] = known.tissue
        if not has_side(name):  # of two halves neither is the whole
            data |= {"color": list(known.color)}
            if known.name.casefold() != name.casefold():
                data["aliases"] = [known.name]
            if known.category and known.type:
                data |= {"category": vars(known.category).copy(), "type": vars(known.type).copy()}
    if found.color:
        data["color"] = list(found.color)
    if found.code:
        data |= {"category": vars(found.code[0]).copy(), "type": vars(found.code[1]).copy()}
    return data


def _unique(name: str, taken: set[str]) -> str:
    number, wanted = 1, name
    while wanted.casefold() in taken:
        number += 1
        wanted = f"{name} {number}"
    taken.add(wanted.casefold())
    return wanted


def _volumes_below(folder: Path, depth: int) -> Iterator[Path]:
    for path in sorted(folder.iterdir()):
        if path.name.startswith("."):
            continue
        if path.is_dir() and depth > 1:
            yield from _volumes_below(path, depth - 1)
        elif path.is_file() and names_volume(path):
            yield path
