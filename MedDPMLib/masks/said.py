"""How does a user define what a file's values mean? With ``--labels``, or in a table beside the file."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from pathlib import Path

from MedDPMLib.errors import MedDPMError
from MedDPMLib.imaging.volume import Volume
from MedDPMLib.masks.label_tables import read_table, tables_beside
from MedDPMLib.masks.numberings import NOTHING, Numbering, definitions, find_numbering, label_named, named_numbering
from MedDPMLib.masks.readings import read_as
from MedDPMLib.masks.schemes import Label, LabelScheme
from MedDPMLib.masks.values import volumes_by_value, whole_numbers
from MedDPMLib.validation import quoted


def asked_numbering(scheme: LabelScheme, text: str) -> Numbering:
    """The numbering that ``text`` names: one that is known, "1=necrosis,2=edema", or the path of a table of labels."""
    path = Path(text)
    if path.suffix and "=" not in text and path.is_file():
        return named_numbering(scheme, read_table(path), path.name, f"the names in {path}")
    return find_numbering(scheme, text)


def segment_labels(scheme: LabelScheme, text: str) -> dict[str, Label | None] | None:
    """What ``text``, such as "tumor core=necrosis,vessel=none", says of segments, by their names in small letters.

    None if it speaks of values instead; :class:`MedDPMError` for what is no label of ``scheme``.
    """
    pairs = [part.partition("=") for part in definitions(text)] if "=" in text else []
    if not any(mark and not re.fullmatch(r"\s*\d*\s*", name) for name, mark, _ in pairs):
        return None
    said: dict[str, Label | None] = {}
    for name, _, meaning in pairs:
        label, key = label_named(meaning, scheme), " ".join(name.casefold().split())
        if not key or key in said or (label is None and meaning.strip().casefold() not in NOTHING):
            raise MedDPMError(
                f'"{name}={meaning}" in {quoted(text, 200)} does not say which label a segment is: write NAME=LABEL'
                " for each, with"
                f' a label of the scheme "{scheme.name}" ({scheme.describe_labels()}) or none'
            )
        said[key] = label
    return said


def check_said(scheme: LabelScheme, text: str) -> None:
    """Raises :class:`MedDPMError` for a ``text`` that says neither what values nor what segments are."""
    if segment_labels(scheme, text) is None:
        asked_numbering(scheme, text)


def explaining(scheme: LabelScheme, numbering: str | Numbering, values: Iterable[int]) -> Numbering:
    """The ``numbering``, see :func:`asked_numbering`, if it says what all of a file's ``values`` are."""
    found = asked_numbering(scheme, numbering) if isinstance(numbering, str) else numbering
    strange = sorted(value for value in values if not found.explains({value}))
    if strange:
        listed = ", ".join(map(str, strange[:10]))
        raise MedDPMError(f'the values {listed} have no meaning in the label convention "{found.name}" ({found.title})')
    return found


def said_numbering(path: Path, volume: Volume, scheme: LabelScheme) -> tuple[Numbering, str] | None:
    """The numbering that a table beside ``path`` gives the values of ``volume``, and which it is; None without one.

    Raises :class:`MedDPMError` for a table of the mask's own that does not name all of its values, names what is no
    label of ``scheme``, or cannot be true.
    """
    for table, names, is_own in tables_beside(path):
        try:
            return named_by(table, names, path, volume, scheme), f"by {table.name}"
        except MedDPMError:
            if is_own:
                raise
    return None


def named_by(table: Path, names: Mapping[int, str], path: Path, volume: Volume, scheme: LabelScheme) -> Numbering:
    """The numbering in which the values of ``path``, read as ``volume``, have the ``names`` that ``table`` gives them.

    Raises :class:`MedDPMError` if it does not name all that are there, names what is no label of ``scheme``, or makes
    them what no brain is.
    """
    volumes = volumes_by_value(whole_numbers(volume.array), volume.geometry.voxel_volume)
    numbering = named_numbering(scheme, names, table.name, f"the names in {table}")
    if unnamed := [value for value in volumes if not numbering.explains({value})]:
        problem = f"does not name the values {', '.join(map(str, unnamed[:10]))} of {path}: name them there"
    elif foreign := numbering.foreign(volumes):
        value, name = next(iter(foreign.items()))
        if label_named(name, scheme):
            parts = ", ".join(label.name.lower() for label in scheme.tumor)
            raise MedDPMError(
                f"{table} calls the value {value} of {path} {quoted(name)}, inside which it names no part of the"
                " tumor: it"
                f" can be any of {parts}",
                remedy="rename it there, or say what each value is",
                code="lone-region",
                example=",".join(
                    f"{value}={(label_named(text, scheme) or scheme.tumor[0]).name.lower()}"
                    for value, text in sorted(numbering.meanings)[:8]
                ),
            )
        problem = f'calls the value {value} of {path} {quoted(name)}, which is no label of the scheme "{scheme.name}"'
        problem += f" ({scheme.describe_labels()}): rename it there"
    elif doubts := read_as(numbering, volumes, scheme).doubts:
        problem = f"would make the values of {path} {'; '.join(doubts[:2])}: check whether it belongs to this file"
    else:
        return numbering
    raise MedDPMError(f"{table} {problem}, or choose the label convention with --labels")
