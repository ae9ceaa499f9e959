"""How does a user define what a file's values mean? With ``--labels``, or in a table beside the file."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path

from MedDPMLib.errors import MedDPMError
from MedDPMLib.imaging.volume import Volume
from MedDPMLib.masks.label_tables import read_table, tables_beside
from MedDPMLib.masks.numberings import Numbering, find_numbering, named_numbering
from MedDPMLib.masks.readings import read_as
from MedDPMLib.masks.schemes import LabelScheme
from MedDPMLib.masks.values import volumes_by_value, whole_numbers


def asked_numbering(scheme: LabelScheme, text: str) -> Numbering:
    """The numbering that ``text`` names: one that is known, "1=necrosis,2=edema", or the path of a table of labels."""
    path = Path(text)
    if path.suffix and "=" not in text and path.is_file():
        return named_numbering(scheme, read_table(path), path.name, f"the names in {path}")
    return find_numbering(scheme, text)


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
        problem = f'calls the value {value} of {path} "{name}", which is no label of the scheme "{scheme.name}"'
        problem += f" ({scheme.describe_labels()}): rename it there"
    elif doubts := read_as(numbering, volumes, scheme).doubts:
        problem = f"would make the values of {path} {'; '.join(doubts[:2])}: check whether it belongs to this file"
    else:
        return numbering
    raise MedDPMError(f"{table} {problem}, or choose the label convention with --labels")
