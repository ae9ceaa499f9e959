"""What do the values of this file mean? Nothing is guessed: what could mean two things is asked.

Every numbering that explains all values is a :class:`Reading`, and is held against anatomy: the volume of every label,
that of the brain, both halves of it, and how the parts of a tumor lie in each other (``masks/nesting.py``). A file's
name can speak for a numbering, where nothing speaks against it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import permutations

import numpy as np

from MedDPMLib.errors import MedDPMError
from MedDPMLib.imaging.geometry import Geometry
from MedDPMLib.masks.brain_area import describe_volume
from MedDPMLib.masks.nesting import EDEMA, NECROSIS, OTHER, RIM, Nesting, judge_nesting
from MedDPMLib.masks.numberings import (
    Numbering,
    brain_parts,
    find_numbering,
    label_for,
    numberings,
    plausible_ml,
)
from MedDPMLib.masks.schemes import LabelScheme, load_scheme
from MedDPMLib.masks.size import is_absurd, odd_size

_ML = 1000.0

#: A brain measures so much, in mm^3: the smallest is a newborn's.
_BRAIN = (300 * _ML, 2500 * _ML)

#: With so many structures it is a brain, without a question.
_MANY_STRUCTURES = 5

#: A part of the box around it that a brain fills at least; organs spread over a trunk fill less.
_LEAST_FILLED = 0.2

#: A part of at least so many ml is in every brain, and in every picture of one.
_LARGE = 100

#: So many structures, or this part of them, may be smaller than in anyone: cut off, or pushed aside by a tumor.
_MOST_SMALL = (2, 0.5)

#: The most readings that a message lists.
_MOST_LISTED = 3

_STRUCTURES = {label.name for label in load_scheme("anatomy").labels if label.role == "structure"}

_TISSUES = {"core": NECROSIS, "edema": EDEMA, "rim": RIM}
_ROLES = {label.name: _TISSUES[label.tissue] for label in load_scheme("anatomy").labels if label.tissue in _TISSUES}


@dataclass(frozen=True)
class Reading:
    """A way to read a file: ``volumes`` in mm^3 by (name of the part, the file's values), and what speaks against it.

    ``numbering.name`` is what ``--labels`` takes. ``nesting`` says how the parts of a tumor lie.
    """

    numbering: Numbering
    volumes: tuple[tuple[str, tuple[int, ...], float], ...]
    doubts: tuple[str, ...] = ()
    nesting: Nesting = Nesting.POSSIBLE

    @property
    def parts(self) -> frozenset[str]:
        return frozenset(name for name, _, _ in self.volumes)

    @property
    def is_possible(self) -> bool:
        return not self.doubts and self.nesting is not Nesting.WRONG

    def describe(self) -> str:
        """For messages: "necrosis (1) 4.94 ml, edema (2) 44.1 ml"."""
        return ", ".join(
            f"{name[:1].lower() + name[1:]} ({', '.join(map(str, values))}) {describe_volume(volume)}"
            for name, values, volume in self.volumes
        )


class AmbiguousLabels(MedDPMError):
    """A file's values can mean different things, or nothing that is known; ``readings`` are what to choose from.

    The most likely one comes first. A reading with ``doubts`` is listed to be seen, not to be taken.
    """

    def __init__(self, fact: str, readings: Sequence[Reading] = (), **remedy: object) -> None:
        super().__init__(fact, **remedy)
        self.readings = tuple(readings)


def choose_reading(
    array: np.ndarray,
    geometry: Geometry,
    volumes: Mapping[int, float],
    scheme: LabelScheme,
    stem: str = "",
    expected: str | None = None,
) -> tuple[Reading, str]:
    """The reading of ``array`` (k, j, i), unsigned, whose values fill ``volumes`` (mm^3), and why it is this one.

    ``stem`` is the file's name without suffix, ``expected`` the name of the numbering that files of its folder have.
    Raises :class:`AmbiguousLabels` where it is not the only one, or none is
    plausible, and :class:`MedDPMError` where that is for the volume's size.
    """

    def is_named(numbering: Numbering) -> bool:
        return numbering.name == expected or numbering.fits_name(stem)

    candidates = _candidates(volumes, scheme, is_named)
    if not candidates:
        raise _unknown(array, geometry, volumes, scheme)
    readings = [judge(numbering, array, geometry, volumes, scheme) for numbering in candidates]
    plausible = [reading for reading in readings if not reading.doubts]
    named = [one for one in plausible if is_named(one.numbering)]
    if named:
        rivals = [one for one in plausible if _is_typical(one) and one not in named]
        if len(named) == 1 and (_is_typical(named[0]) or named[0].is_possible and not rivals):
            return named[0], "by names of files and folders"
        raise _asked([*named, *rivals], volumes)
    possible = [reading for reading in plausible if reading.is_possible]
    if len(possible) == 1 and (_is_sure(possible[0], volumes) or len(readings) == 1):
        return possible[0], "by the volumes of its labels"
    complete = [reading for reading in possible if reading.parts >= _ROLES.keys()]
    if len(complete) == 1 and _is_typical(complete[0]):
        return complete[0], "by how the parts of the tumor lie"
    if is_absurd(array, geometry, scheme):
        raise MedDPMError(odd_size(array, geometry, scheme))
    if possible:
        # No convention need be right: what it looks like in any order is asked about, too.
        ordered = None if any(map(_is_typical, possible)) else _in_some_order(array, geometry, volumes, scheme)
        own = next((one for one in readings if one.numbering.name == scheme.own_numbering and one.doubts), None)
        raise _asked([*([ordered] if ordered else []), *possible], volumes, own)
    raise _implausible(readings, array, geometry, volumes, scheme)


def read_as(numbering: Numbering, volumes: Mapping[int, float], scheme: LabelScheme) -> Reading:
    """What ``numbering`` makes of ``volumes`` (mm^3 by the file's values), with what is not plausible about it."""
    merged: dict[str, list] = {}
    meanings = dict(numbering.meanings)
    for value in sorted(volumes):
        entry = merged.setdefault(meanings[value], [[], 0.0])
        entry[0].append(value)
        entry[1] += float(volumes[value])
    parts = tuple((name, tuple(values), volume) for name, (values, volume) in merged.items())
    return Reading(numbering, parts, tuple(_doubts(numbering, parts, volumes, scheme)))


def compare_readings(readings: Sequence[Reading], scheme: LabelScheme) -> list[tuple[str, list[str]]]:
    """A row for each label that any of ``readings`` finds: its name, and for each reading "1,160 ml (1)" or "".

    Labels come in the order of ``scheme``, then what it has no label for.
    """
    known = [label.name for label in scheme.labels]
    found = {name: None for reading in readings for name, _, _ in reading.volumes}
    names = [name for name in known if name in found] + [name for name in found if name not in known]
    cells = [
        {
            name: f"{float(f'{volume / _ML:.3g}'):,.10g} ml ({', '.join(map(str, values))})"
            for name, values, volume in reading.volumes
        }
        for reading in readings
    ]
    return [(name, [column.get(name, "") for column in cells]) for name in names]


# Candidates ------------------------------------------------------------------------------------------


def _candidates(
    volumes: Mapping[int, float], scheme: LabelScheme, is_named: Callable[[Numbering], bool]
) -> list[Numbering]:
    """The numberings that explain all values. Of those that mean the same: one that a name speaks for, or else the one
    that says least beyond it."""
    explaining = [numbering for numbering in numberings(scheme) if numbering.explains(volumes)]
    found: dict[tuple, Numbering] = {}
    for numbering in sorted(explaining, key=lambda one: (not is_named(one), len(one.meanings))):
        meanings = dict(numbering.meanings)
        found.setdefault(tuple(meanings[value] for value in sorted(volumes)), numbering)
    return [numbering for numbering in explaining if numbering in found.values()]


def judge(
    numbering: Numbering, array: np.ndarray, geometry: Geometry, volumes: Mapping[int, float], scheme: LabelScheme
) -> Reading:
    """As :func:`read_as`, with how what it finds lies in ``array`` (k, j, i)."""
    reading = read_as(numbering, volumes, scheme)
    doubts = [*reading.doubts, *_spread(reading, array, geometry)]
    nesting = Nesting.POSSIBLE
    if not doubts and reading.parts & _ROLES.keys():
        nesting = judge_nesting(_roles(reading, array), geometry)
    return Reading(numbering, reading.volumes, tuple(doubts), nesting)


def _doubts(numbering: Numbering, parts: Sequence, volumes: Mapping[int, float], scheme: LabelScheme) -> list[str]:
    doubts: list[str] = []
    small: list[str] = []
    if any(name in _STRUCTURES for _, name in numbering.meanings):
        scheme = load_scheme("anatomy")  # where the rest of the brain is what its structures leave
    for name, _, volume in parts:
        least, most = plausible_ml(name, scheme)
        if volume > most * _ML:
            doubts.append(f"{_lower(name)} of {describe_volume(volume)}, where {most:g} ml are the most")
        elif volume < least * _ML:
            few = small if least < _LARGE else doubts
            few.append(f"{_lower(name)} of {describe_volume(volume)}, where {least:g} ml are the least")
    if len(small) > max(_MOST_SMALL[0], _MOST_SMALL[1] * len(parts)) or len(small) == len(parts):
        doubts += small
    brain = sum(volume for _, _, volume in parts)
    if _brain_parts(parts) and not _BRAIN[0] <= brain <= _BRAIN[1]:
        few = brain < _BRAIN[0]
        limit = f"{_BRAIN[0 if few else 1] / _ML:g} ml are the {'least' if few else 'most'}"
        doubts.append(f"a brain of {describe_volume(brain)}, where {limit}")
    there = [(left in volumes, right in volumes) for left, right in numbering.halves]
    one_sided = [left for left, right in there if left != right]
    if len(one_sided) * 2 > sum(left or right for left, right in there):
        doubts.append(f"only the {'left' if one_sided[0] else 'right'} half of the brain is labeled")
    return doubts


def _spread(reading: Reading, array: np.ndarray, geometry: Geometry) -> list[str]:
    """A doubt if what is to be a brain fills little of the box around it."""
    if not _brain_parts(reading.volumes):
        return []
    sides = [np.flatnonzero(array.any(axis=tuple({0, 1, 2} - {axis}))) for axis in range(3)]
    lengths = [side[-1] - side[0] + 1 for side in sides]
    filled = np.count_nonzero(array) / np.prod(lengths, dtype=float)
    if filled >= _LEAST_FILLED:
        return []
    box = " x ".join(f"{n * s:.3g}" for n, s in zip(lengths[::-1], geometry.spacing, strict=True))
    return [f"a brain that fills {100 * filled:.2g} % of a box of {box} mm"]


def _roles(reading: Reading, array: np.ndarray) -> np.ndarray:
    """The parts of the tumor in ``array``, as :func:`judge_nesting` numbers them."""
    table = np.zeros(np.iinfo(array.dtype).max + 1, np.uint8)
    tumor = {label.name for label in load_scheme("anatomy").tumor}
    for name, values, _ in reading.volumes:
        if name in _ROLES:
            table[list(values)] = _ROLES[name]
        elif name in tumor or label_for(name, load_scheme("anatomy")) is None:
            table[list(values)] = OTHER
    return table[array]


def _brain_parts(parts: Sequence) -> list[str]:
    known, others = load_scheme("anatomy"), brain_parts()
    return [
        name
        for name, _, _ in parts
        if name in others or ((label := known.label_by_name(name)) and label.role != "tumor")
    ]


def _is_sure(reading: Reading, volumes: Mapping[int, float]) -> bool:
    """Whether the one possible ``reading`` has what no other can have: many structures, a brain, a typical tumor.

    A brain and all parts of a tumor, numbered one after the other, can also be an export in the order of segments, of
    which necrosis and rim are swapped: there the tumor has to be typical.
    """
    if _is_typical(reading) or len(_brain_parts(reading.volumes)) >= _MANY_STRUCTURES:
        return True
    rest = sum(volume for name, _, volume in reading.volumes if name in ("Rest of the brain", "Head"))
    return rest >= _BRAIN[0] and not (reading.parts >= _ROLES.keys() and max(volumes) == len(volumes))


def _is_typical(reading: Reading) -> bool:
    return reading.nesting is Nesting.TYPICAL


def _lower(name: str) -> str:
    return name[:1].lower() + name[1:]


# What is asked ---------------------------------------------------------------------------------------


def _asked(
    readings: Sequence[Reading], volumes: Mapping[int, float], implausible: Reading | None = None
) -> AmbiguousLabels:
    """What to choose from. ``implausible`` is what the file would be taken for, if anything, were it not for its
    volumes: a wrong spacing is seen there."""
    readings = sorted(readings, key=lambda one: (-one.nesting.value, len(one.numbering.meanings)))
    choices = "; ".join(f"{_quoted(one.numbering.name)} ({one.describe()})" for one in readings[:_MOST_LISTED])
    if len(readings) > _MOST_LISTED:
        choices += f"; or, less likely, {', '.join(one.numbering.name for one in readings[_MOST_LISTED:])}"
    values = _listed(sorted(volumes))
    fact = f"the values {values} can mean different things"
    if len(readings) == 1:
        fact = f"the values {values} fit one label convention, but can mean something else"
    if implausible is not None and len(readings) == 1:
        fact += f' (in "{implausible.numbering.name}" they would be {"; ".join(implausible.doubts[:2])})'
    return AmbiguousLabels(
        fact,
        readings,
        remedy=f"choose the label convention: {choices}",
        code="ambiguous-labels",
        choices=choices,
    )


def _quoted(name: str) -> str:
    """``name`` as a shell takes it for one word."""
    return f'"{name}"' if " " in name else name


def _implausible(
    readings: Sequence[Reading],
    array: np.ndarray,
    geometry: Geometry,
    volumes: Mapping[int, float],
    scheme: LabelScheme,
) -> AmbiguousLabels:
    own = scheme.own_numbering
    closest = min(readings, key=lambda one: (len(one.doubts), -one.nesting.value, one.numbering.name != own))
    why = (
        "they would be " + "; ".join(closest.doubts[:2])
        if closest.doubts
        else "the parts of a tumor are never nested like this"
    )
    fact = (
        f'the values {_listed(sorted(volumes))} are in no known label convention: in "{closest.numbering.name}" {why}'
    )
    return _unread(fact, array, geometry, volumes, scheme, closest)


def _unknown(
    array: np.ndarray, geometry: Geometry, volumes: Mapping[int, float], scheme: LabelScheme
) -> AmbiguousLabels:
    closest = max(numberings(scheme), key=lambda one: sum(one.explains([value]) for value in volumes))
    strange = sorted(value for value in volumes if not closest.explains([value]))
    fact = (
        f'the values {_listed(strange)} are not in the scheme "{scheme.name}" ({scheme.describe_labels()}), nor are all'
        " in one known label convention"
    )
    return _unread(fact, array, geometry, volumes, scheme)


def _unread(
    fact: str,
    array: np.ndarray,
    geometry: Geometry,
    volumes: Mapping[int, float],
    scheme: LabelScheme,
    *readings: Reading,
) -> AmbiguousLabels:
    """What is said of values in no numbering, with the order of segments that they can be in, if there is one."""
    ordered = _in_some_order(array, geometry, volumes, scheme)
    if ordered is not None:
        fact += f"; they look like {ordered.describe()}"
        readings = (ordered, *readings)
        example = ordered.numbering.name
    else:
        example = ",".join(
            f"{value}={label.name.lower()}" for value, label in zip(sorted(volumes)[:3], scheme.labels, strict=False)
        )
    return AmbiguousLabels(
        fact,
        readings,
        remedy=f'define each value, as in "{example}", or use a model with another scheme',
        code="unknown-labels",
        example=example,
    )


def _in_some_order(
    array: np.ndarray, geometry: Geometry, volumes: Mapping[int, float], scheme: LabelScheme
) -> Reading | None:
    """The one reading as a brain and the three parts of a tumor, numbered in any order, that is nested as a glioma.

    So 3D Slicer numbers the segments of a label map that it exports.
    """
    labels = [label for name in _ROLES if (label := scheme.label_by_name(name))]
    brains = [value for value, volume in volumes.items() if volume >= _BRAIN[0]]
    values = [value for value in volumes if value not in brains]
    if scheme.rest is None or len(brains) > 1 or not len(values) == len(labels) == len(_ROLES):
        return None
    found = []
    for order in permutations(values):
        named = dict(zip(order, labels, strict=True)) | dict.fromkeys(brains, scheme.rest)
        text = ",".join(f"{value}={label.name.lower()}" for value, label in sorted(named.items()))
        reading = judge(find_numbering(scheme, text), array, geometry, volumes, scheme)
        if not reading.doubts and _is_typical(reading):
            found.append(reading)
    return found[0] if len(found) == 1 else None


def _listed(values: Sequence[int]) -> str:
    """At most ten values for a message."""
    return ", ".join(map(str, values[:10])) + (", ..." if len(values) > 10 else "")
