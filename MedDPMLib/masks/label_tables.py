"""What are a file's values called, and how are they colored? Tables and ``dataset.json`` beside it say.

Read are the color tables of 3D Slicer (``.ctbl``, ``.txt``, ``.csv``), the label descriptions of ITK-SNAP and
FreeSurfer's lookup table.
"""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from MedDPMLib.errors import MedDPMError
from MedDPMLib.imaging.io import volume_stem
from MedDPMLib.validation import quoted

_SUFFIXES = (".ctbl", ".txt", ".csv", ".label", ".lut", ".json")

#: What stands behind a mask's name in that of its table.
_ENDINGS = ("", "colortable", "labels", "label", "colors", "colours", "lut", "segments")

#: Tables of a whole folder.
_OF_A_FOLDER = (
    "colortable",
    "labels",
    "label",
    "labeldescriptions",
    "itksnap",
    "itksnaplabels",
    "freesurfercolorlut",
    "lut",
)

#: Folders of masks that ``dataset.json`` lies above.
_MASKS_BELOW = re.compile(r"(labels|pred|val|test|seg|mask).*", re.IGNORECASE)

#: What programs call a label that has no name of its own.
_UNNAMED = re.compile(r"(label|segment|region|value)?[ _-]*\d*|\(none\)|invalid|clear label|undefined", re.IGNORECASE)

#: A table is a short text.
_LONGEST, _LONGEST_NAME = 2_000_000, 200

_ITK_SNAP = re.compile(
    r'(?P<value>\d+)\s+(?P<red>\d+)\s+(?P<green>\d+)\s+(?P<blue>\d+)\s+[\d.]+\s+\d\s+\d\s+"(?P<name>.*)"'
)
_SLICER = re.compile(r"(?P<value>\d+)\s+(?P<name>\S.*?)\s+(?P<red>\d+)\s+(?P<green>\d+)\s+(?P<blue>\d+)(\s+\d+)?")


@dataclass(frozen=True)
class Entry:
    """What a table says of a value: its ``name``, and its ``color`` (red, green, blue; 0 to 255) if it has one."""

    name: str
    color: tuple[int, int, int] | None = None


def tables_beside(mask: Path) -> Iterator[tuple[Path, dict[int, str], bool]]:
    """The tables that may speak of the values of ``mask``: the file, names by value, and whether it is the mask's own.

    The mask's own comes first; one of a whole folder may be there for other files.
    """
    stem = _plain(volume_stem(mask))
    bases = {stem, re.sub(r"label(map)?$", "", stem)}
    own = {base + ending for base in bases for ending in _ENDINGS}
    try:
        files = sorted(path for path in mask.parent.iterdir() if path.suffix.lower() in _SUFFIXES and path.is_file())
    except OSError:
        return
    for is_own, names in ((True, own), (False, _OF_A_FOLDER)):
        for path in files:
            if _plain(path.stem) in names and path.suffix.lower() != ".json" and (found := _read_quietly(path)):
                yield path, found, is_own
    above = [mask.parent, *([mask.parent.parent] if _MASKS_BELOW.fullmatch(mask.parent.name) else [])]
    for folder in above:
        path = folder / "dataset.json"
        if path.is_file() and (found := _read_quietly(path)):
            yield path, found, True


def read_table(path: Path) -> dict[int, str]:
    """Names by value in a color table, a label file or a ``dataset.json``; the background and what has no name left
    out. Raises :class:`MedDPMError` if it is none of these."""
    return {value: entry.name for value, entry in read_entries(path).items()}


def read_entries(path: Path, *, whole: bool = False) -> dict[int, Entry]:
    """As :func:`read_table`, with colors. With ``whole`` a line that begins with a number and names no label is a
    :class:`MedDPMError`, too: whoever skips it loses a label."""
    try:
        if path.stat().st_size > _LONGEST:
            raise MedDPMError(f"{path} is too large for a table of labels")
        raw = path.read_bytes()
    except OSError as error:
        raise MedDPMError(f"{path} cannot be read ({error.strerror}): check the path") from error
    try:
        text = raw.decode("utf-8-sig")
    except UnicodeDecodeError:
        text = raw.decode("latin-1")
    try:
        named, strange = (_of_a_dataset(text), None) if path.suffix.lower() == ".json" else _of_lines(text)
    except (ValueError, KeyError, TypeError, AttributeError, ArithmeticError, RecursionError, csv.Error) as error:
        raise MedDPMError(f"{path} does not name its labels ({quoted(error, 100)})") from error
    if named and strange and whole:
        raise MedDPMError(f"{path}, line {strange}: it has no number, name and color like the others: correct it")
    named = {
        value: Entry(one.name.strip()[:_LONGEST_NAME], one.color) for value, one in named.items() if 0 < value < 65_536
    }
    named = {value: one for value, one in named.items() if not is_unnamed(one.name) and one.name != "ignore"}
    if not named:
        raise MedDPMError(f"{path} names no labels: a color table, a label file of ITK-SNAP or dataset.json does")
    return named


def is_unnamed(name: str) -> bool:
    """Whether ``name`` is what programs call a label that nobody has named, such as "Segment_4"."""
    return _UNNAMED.fullmatch(name.strip()) is not None


def nnunet_labels(said: Mapping) -> dict[int, str]:
    """What each value of a segmentation is called in the ``labels`` of a ``dataset.json``, without the background.

    ``said`` has values by name (version 2), names by value (version 1), or several values by the name of a region,
    one inside the other: then a value is the smallest region that has it.
    """
    if all(re.fullmatch(r"\d+", str(key)) and isinstance(name, str) for key, name in said.items()):
        said = {name: int(key) for key, name in said.items()}
    regions = {str(name): value if isinstance(value, list) else [value] for name, value in said.items()}
    labels = {}
    for name in sorted(regions, key=lambda name: len(regions[name]), reverse=True):
        for value in regions[name]:
            labels[int(value)] = name
    return {value: name for value, name in labels.items() if value > 0 and name != "ignore"}


def _read_quietly(path: Path) -> dict[int, str] | None:
    """What is in ``path``, if it is a table: another file may have the name of one."""
    try:
        return read_table(path)
    except MedDPMError:
        return None


def _of_a_dataset(text: str) -> dict[int, Entry]:
    return {value: Entry(str(name)) for value, name in nnunet_labels(json.loads(text)["labels"]).items()}


def _of_lines(text: str) -> tuple[dict[int, Entry], int | None]:
    """What the lines of ``text`` name, and the first, from 1, that begins with a number and names nothing."""
    if "LabelValue" in text[:200] and "," in text[:200]:
        rows = list(csv.DictReader(io.StringIO(text)))
        return {
            int(row["LabelValue"]): Entry(row["Name"] or "", _color(row, "Color_R", "Color_G", "Color_B"))
            for row in rows
        }, None
    named: dict[int, Entry] = {}
    strange = None
    for number, line in enumerate(text.splitlines(), 1):
        line = line.strip()
        if match := _ITK_SNAP.fullmatch(line) or _SLICER.fullmatch(line):
            color = _color(match.groupdict(), "red", "green", "blue")
            named[int(match["value"])] = Entry(match["name"].replace("_", " "), color)
        elif strange is None and re.match(r"\d", line):
            strange = number
    return named, strange


def _color(row: Mapping[str, str | None], *names: str) -> tuple[int, int, int] | None:
    parts = [row.get(name) or "" for name in names]
    if not all(part.strip().isdecimal() and int(part) <= 255 for part in parts):
        return None
    red, green, blue = map(int, parts)
    return red, green, blue


def _plain(name: str) -> str:
    return re.sub(r"[\W_]+", "", name.casefold())
