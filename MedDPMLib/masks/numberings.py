"""How do files number their labels? The conventions of public data sets and programs, as data.

A :class:`Numbering` says what each value of a file means. The conventions (``resources/numberings.json``) mean labels
by name, so that one list serves every scheme: a structure that a scheme does not tell apart is its rest of the brain.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Set
from dataclasses import dataclass, replace
from functools import lru_cache

import numpy as np

from MedDPMLib.errors import MedDPMError
from MedDPMLib.masks.regions import lone_regions
from MedDPMLib.masks.schemes import Label, LabelScheme, load_scheme, scheme_names
from MedDPMLib.runtime.paths import RESOURCES
from MedDPMLib.validation import quoted

_FILE = RESOURCES / "numberings.json"

#: The scheme whose labels have the names of all parts of brain and tumor.
_ALL_PARTS = "anatomy"

#: What stands beside a name and says nothing about which structure it is: FreeSurfer's and others' prefixes.
_SIDE = re.compile(r"\b(left|right|lh|rh|l|r|ctx|bilateral)\b")

#: For ``--labels 4=none``: what is meant by this value is left out.
NOTHING = ("none", "nothing", "background")


@dataclass(frozen=True)
class Numbering:
    """What the values of a file mean: ``meanings`` pairs each with the name of what it is.

    ``values`` pairs those of them that the scheme has a label for with the label's value (0: left out on purpose).
    ``file_names`` are patterns of names that files in this numbering have. ``halves`` are pairs of values for the left
    and the right of one structure.
    """

    name: str
    title: str
    values: tuple[tuple[int, int], ...]
    meanings: tuple[tuple[int, str], ...]
    file_names: tuple[str, ...] = ()
    halves: tuple[tuple[int, int], ...] = ()

    def explains(self, values: Iterable[int]) -> bool:
        """Whether every one of a file's ``values`` has a meaning here."""
        return set(values) <= dict(self.meanings).keys()

    def foreign(self, values: Iterable[int]) -> dict[int, str]:
        """Those of a file's ``values`` that mean something for which the scheme has no label."""
        there = dict(self.values)
        return {value: meaning for value, meaning in self.meanings if value in set(values) and value not in there}

    def fits_name(self, stem: str) -> bool:
        """Whether ``stem``, a file's name without its suffix, is one that this numbering's files have."""
        return any(re.fullmatch(rf"(.*[\W_])?({pattern})", stem, re.IGNORECASE) for pattern in self.file_names)

    def translate(self, array: np.ndarray) -> np.ndarray:
        """The scheme's values, uint8, for an ``array`` of the file's non-negative integer values and 0."""
        table = np.zeros(np.iinfo(array.dtype).max + 1 if array.dtype.itemsize < 4 else int(array.max()) + 1, np.uint8)
        for file_value, value in self.values:
            if file_value < len(table):
                table[file_value] = value
        return table[array]


def numberings(scheme: LabelScheme) -> tuple[Numbering, ...]:
    """The numberings in which files can hold labels of ``scheme``: its own, and the conventions that it can take."""
    # Schemes of the same labels are equal, however files number these and whatever else they are called.
    return _numberings(scheme, scheme.conventions, tuple(label.aliases for label in scheme.labels))


@lru_cache
def _numberings(scheme: LabelScheme, *_told_apart_by: tuple) -> tuple[Numbering, ...]:
    own = Numbering(
        scheme.own_numbering,
        ", ".join(f"{label.value} {label.name.lower()}" for label in scheme.labels),
        tuple((label.value, label.value) for label in scheme.labels),
        tuple((label.value, label.name) for label in scheme.labels),
    )
    found = [own]
    for convention in scheme.conventions:
        named = {value: scheme.label_by_name(name) for value, name in convention.meanings}
        found.append(
            Numbering(
                convention.name,
                convention.title,
                tuple((value, label.value if label else 0) for value, label in named.items()),
                tuple((value, label.name if label else "nothing") for value, label in named.items()),
                convention.file_names,
            )
        )
    taken = {one.name for one in found[1:]}
    for entry in _data()["numberings"]:
        meanings = tuple((value, _part(name)) for value, name in sorted(_each_value(entry["values"]).items()))
        labels = [(value, label.value) for value, name in meanings if (label := label_for(name, scheme))]
        if entry["name"] in taken:
            continue
        if entry["name"] == own.name:
            if meanings == own.meanings:
                found[0] = replace(own, title=entry["title"], file_names=tuple(entry.get("file_names", ())))
        # A convention of which the scheme has one part only is none for it.
        elif len({value for _, value in labels}) > 1 or len(labels) == len(meanings):
            found.append(
                Numbering(
                    entry["name"],
                    entry["title"],
                    tuple(labels),
                    meanings,
                    tuple(entry.get("file_names", ())),
                    tuple(map(tuple, entry.get("halves", ()))),
                )
            )
    return tuple(found)


def find_numbering(scheme: LabelScheme, name: str) -> Numbering:
    """The numbering called ``name``, or written out as "1=necrosis,2=edema,4=none" (see :func:`label_named`).

    Raises :class:`MedDPMError` if there is no such numbering, and for a name that is no label of ``scheme``.
    """
    if "=" in name:
        return _written_out(scheme, name)
    for numbering in numberings(scheme):
        if numbering.name == name:
            return numbering
    known = "; ".join(f'"{numbering.name}" ({numbering.title})' for numbering in numberings(scheme))
    raise MedDPMError(
        f'there is no label convention {quoted(name)} for the scheme "{scheme.name}": use {known}; or define'
        " each value,"
        f' as in "1={scheme.labels[0].name.lower()}"'
    )


def named_numbering(scheme: LabelScheme, names: Mapping[int, str], name: str, title: str) -> Numbering:
    """The numbering of a file that says itself what its values are called; see :func:`label_named`.

    A name that is no label of ``scheme``, or may be several (``masks/regions.py``), stays: it matters only where such a
    value is present.
    """
    lone = lone_regions({text: label_named(text, scheme) for text in names.values()})
    labels = {value: None if text in lone else label_named(text, scheme) for value, text in names.items()}
    known = tuple((value, label.value) for value, label in sorted(labels.items()) if label)
    meanings = tuple((value, label.name if (label := labels[value]) else text) for value, text in sorted(names.items()))
    return Numbering(name, title, known, meanings)


def definitions(text: str) -> list[str]:
    """The parts "1=liver" of ``text``; a comma in a label's name separates none, because no part follows it."""
    return re.split(r",(?=[^,]*=)", text)


def _written_out(scheme: LabelScheme, text: str) -> Numbering:
    values, meanings, names = {}, {}, {}
    for part in definitions(text):
        match = re.fullmatch(r"\s*(\d{1,5})\s*=\s*(.+?)\s*", part)
        if match is None or not 0 < int(match[1]) < 65_536 or int(match[1]) in meanings:
            raise MedDPMError(
                f"{quoted(part)} in {quoted(text, 200)} does not define a value: write 1=necrosis,2=edema"
            )
        value, name = int(match[1]), match[2]
        label = label_named(name, scheme)
        if label is None and name.casefold() not in NOTHING:
            raise MedDPMError(
                f'{quoted(name)} in {quoted(text, 200)} is no label of the scheme "{scheme.name}"'
                f" ({scheme.describe_labels()})"
            )
        names[name] = label
        values[value], meanings[value] = (label.value, label.name) if label else (0, "nothing")
    for name in lone_regions(names):
        parts = ", ".join(label.name.lower() for label in scheme.tumor)
        raise MedDPMError(
            f"{quoted(name)} in {quoted(text, 200)} can be any part of a tumor: write which of {parts} it is"
        )
    return Numbering(text, "as specified", tuple(values.items()), tuple(meanings.items()))


# Names -----------------------------------------------------------------------------------------------


def label_named(name: str, scheme: LabelScheme) -> Label | None:
    """The label of ``scheme`` that a file means by ``name``, if any.

    Capitals, hyphens, underscores, brackets and the words left and right make no difference. Names known from any
    scheme count; a structure that ``scheme`` does not tell apart is its rest of the brain.
    """
    if label := _spelled(name, scheme):
        return label
    for known in scheme_names():
        part = _spelled(name, load_scheme(known))
        if part and (label := label_for(part.name, scheme)):
            return label
    others = {part.casefold(): part for part in brain_parts()}
    found = next((others[text] for text in map(str.casefold, _spellings(name)) if text in others), None)
    return label_for(found, scheme) if found else None


def part_named(name: str) -> Label | None:
    """The label of any scheme that ships with the package that a file means by ``name``, if any."""
    schemes = map(load_scheme, dict.fromkeys((_ALL_PARTS, *scheme_names())))
    return next((part for scheme in schemes if (part := _spelled(name, scheme))), None)


def _spelled(name: str, scheme: LabelScheme) -> Label | None:
    return next((label for attempt in _spellings(name) if (label := scheme.label_by_name(attempt))), None)


def has_side(name: str) -> bool:
    """Whether ``name`` says left or right."""
    return any(_SIDE.search(text) for text in _spellings(name))


def label_for(part: str, scheme: LabelScheme) -> Label | None:
    """The label of ``scheme`` that holds ``part`` (a label's name in any scheme), if any."""
    label = scheme.label_by_name(part)
    if label is not None or scheme.rest is None:
        return label
    known = load_scheme(_ALL_PARTS)
    if scheme.rest.name != known.require_rest().name:
        return None
    if part in brain_parts():  # some of this and some of that structure, if there are any
        return None if any(one.role == "structure" for one in scheme.labels) else scheme.rest
    wanted = known.label_by_name(part)
    return scheme.rest if wanted is not None and wanted.role != "tumor" else None


def shows_brain(scheme: LabelScheme) -> bool:
    """Whether ``scheme`` has a label that is brain or head: then size and places of labels are known to some extent."""
    known = [label.name for one in map(load_scheme, scheme_names()) for label in one.labels if label.role != "tumor"]
    return any(scheme_label.name in known for scheme_label in scheme.labels)


def brain_parts() -> Set[str]:
    """Parts into which files divide the brain in another way than the scheme of all parts does."""
    return _data()["brain_parts_ml"].keys()


def other_parts() -> Set[str]:
    """Names of labels that are neither tumor nor brain: what a treatment leaves."""
    return _data()["other_parts_ml"].keys()


def plausible_ml(part: str, scheme: LabelScheme) -> tuple[float, float]:
    """The least and the most that ``part`` (a label's name) measures, in ml, in a file that is read into ``scheme``.

    What ``scheme`` says itself counts first, then the schemes that ship with the package.
    """
    known = (scheme, *(load_scheme(name) for name in (_ALL_PARTS, *scheme_names())))
    for one in known:
        label = one.label_by_name(part)
        if label is not None and label.name == part and label.plausible_ml:
            return label.plausible_ml
    others = _data()["other_parts_ml"] | _data()["brain_parts_ml"]
    return tuple(others.get(part, (0.0, np.inf)))


@lru_cache(maxsize=1024)
def _spellings(name: str) -> tuple[str, ...]:
    """``name`` as it is, and in plain words: "the peritumoral edema (ED)" is also "peritumoral edema"."""
    plain = name.strip().casefold()
    found = [name, plain]
    plain = re.sub(r"\s*\([^)]*\)\s*$", "", plain).removeprefix("the ")
    found.append(re.sub(r"\s*/\s*", "/", plain))
    words = " ".join(re.split(r"[\W_]+", plain)).strip()
    found += [words, re.sub(r"^non ", "non-", words), " ".join(_SIDE.sub(" ", words).split())]
    return tuple(dict.fromkeys(text for text in found if text))


def _part(name: str) -> str:
    """``name`` as the scheme of all parts has it, if it has it at all."""
    label = load_scheme(_ALL_PARTS).label_by_name(name)
    return label.name if label else name


@lru_cache
def _data() -> dict:
    return json.loads(_FILE.read_text(encoding="utf-8"))


def _each_value(values: Mapping[str, str]) -> dict[int, str]:
    """One entry for each value: "251-255" stands for five."""
    found = {}
    for key, name in values.items():
        first, _, last = key.partition("-")
        found.update(dict.fromkeys(range(int(first), int(last or first) + 1), name))
    return found
