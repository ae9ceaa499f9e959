"""Which labels exist?

A :class:`LabelScheme` is data (``resources/schemes/*.json``, a model's card, or a user's file, see
``masks/scheme_files.py``): labels with value, name, color, terminology, priority and the volumes in which they occur.
How files number them: ``masks/numberings.py``.
"""

from __future__ import annotations

import json
import re
from collections.abc import Set
from dataclasses import dataclass, field, replace
from functools import cached_property, lru_cache

import numpy as np

from MedDPMLib.errors import MedDPMError
from MedDPMLib.moved import former_attribute
from MedDPMLib.runtime.paths import RESOURCES
from MedDPMLib.validation import quoted

_SCHEMES = RESOURCES / "schemes"

#: What a label is to a model: part of a tumor, a structure of its own, or what is left inside brain or head.
ROLES = ("tumor", "structure", "rest")

#: What a label shows, where that decides what is done with it: a tumor's necrotic core, its enhancing rim, the edema
#: around it; fluid, which a tumor does not grow into; white matter, in which edema spreads.
TISSUES = ("core", "rim", "edema", "fluid", "white matter")

#: Names of labels until version 0.1 with the current ones: models, masks and scenes from before have them.
FORMER_NAMES = {"Oedema": "Edema", "Enhancing tumour": "Enhancing tumor", "Tumour": "Tumor"}

_FORMER_ROLES = {"tumour": "tumor"}

#: What a numbering calls a value that is left out.
NOTHING = "none"

_LONGEST_TEXT = 200


@dataclass(frozen=True)
class Code:
    """An entry of a terminology: ``scheme`` ("SCT" is SNOMED CT), ``value`` and ``meaning``."""

    scheme: str
    value: str
    meaning: str


@dataclass(frozen=True)
class Label:
    """One label: its ``value`` (1 to 255) in arrays, ``color`` (red, green, blue; 0 to 255) and terminology.

    Of overlapping labels the one with the lowest ``priority`` wins. ``role`` is one of :data:`ROLES`, ``tissue`` one of
    :data:`TISSUES`, or None. ``category`` and ``type`` are its terminology, if it has one. ``aliases`` are other names
    under which it is met; ``plausible_ml`` is the least and the most, in milliliters, that it measures in anyone (None:
    not known).
    """

    value: int
    name: str
    role: str | None
    color: tuple[int, int, int]
    priority: int
    category: Code | None = None
    type: Code | None = None
    aliases: tuple[str, ...] = field(default=(), compare=False)
    tissue: str | None = None
    plausible_ml: tuple[float, float] | None = field(default=None, compare=False)


@dataclass(frozen=True)
class Convention:
    """How files of one origin number a scheme's labels: ``meanings`` pairs each value with a label's name, or with
    "none" for what is left out. ``file_names`` are patterns of the names of such files."""

    name: str
    title: str
    meanings: tuple[tuple[int, str], ...]
    file_names: tuple[str, ...] = ()


@dataclass(frozen=True)
class LabelScheme:
    """The labels that a model knows, in the order of its channels: ascending value. 0 is the background.

    ``own_numbering`` is what the scheme's own values are called; ``conventions`` are other numberings of its labels in
    files, beside those that every scheme knows (:mod:`MedDPMLib.masks.numberings`).
    """

    name: str
    title: str
    labels: tuple[Label, ...]
    own_numbering: str
    conventions: tuple[Convention, ...] = field(default=(), compare=False)

    @cached_property
    def values(self) -> tuple[int, ...]:
        """The labels' values in channel order."""
        return tuple(label.value for label in self.labels)

    @cached_property
    def priority(self) -> tuple[int, ...]:
        """The labels' values, the one that wins over all others first."""
        return tuple(label.value for label in sorted(self.labels, key=lambda label: label.priority))

    @property
    def tumor(self) -> tuple[Label, ...]:
        """The labels that are parts of a tumor."""
        return tuple(label for label in self.labels if label.role == "tumor")

    #: The name of :attr:`tumor` until version 0.1.
    tumour = former_attribute("tumour", "tumor")

    @property
    def rest(self) -> Label | None:
        """The label of what is inside the brain (or head) and has no other label, if the scheme has one."""
        return next((label for label in self.labels if label.role == "rest"), None)

    def require_rest(self) -> Label:
        """:attr:`rest`; :class:`MedDPMError` if the scheme has none."""
        if self.rest is None:
            raise MedDPMError(
                f'the scheme "{self.name}" has no label for the rest of the brain: it has {self.describe_labels()}'
            )
        return self.rest

    def of_tissue(self, tissue: str) -> tuple[Label, ...]:
        """The labels that show ``tissue``, one of :data:`TISSUES`."""
        return tuple(label for label in self.labels if label.tissue == tissue)

    def label_by_value(self, value: int) -> Label:
        """The label with this ``value``; :class:`MedDPMError` if there is none."""
        for label in self.labels:
            if label.value == value:
                return label
        raise MedDPMError(f'the scheme "{self.name}" has no label {value}: it has {self.describe_labels()}')

    def label_by_name(self, name: str) -> Label | None:
        """The label that ``name`` (or one of the aliases; capitals do not matter) means, if any."""
        wanted = name.strip().casefold()
        for label in self.labels:
            if wanted == label.name.casefold():
                return label
        return next((label for label in self.labels if wanted in map(str.casefold, label.aliases)), None)

    def require_label(self, name: str) -> Label:
        """The label that :meth:`label_by_name` finds; :class:`MedDPMError` if there is none."""
        label = self.label_by_name(name)
        if label is None:
            raise MedDPMError(f'the scheme "{self.name}" has no label {quoted(name)}: it has {self.describe_labels()}')
        return label

    def label_by_code(self, scheme: str, value: str) -> Label | None:
        """The label whose type has this code, for example ("SCT", "79654002"), if any."""
        coded = ((label, label.type) for label in self.labels if label.type)
        return next((label for label, code in coded if (code.scheme, code.value) == (scheme, value)), None)

    def describe_labels(self) -> str:
        """For messages: "1 necrosis, 2 edema, ..."."""
        return ", ".join(f"{label.value} {label.name.lower()}" for label in self.labels)

    def one_hot(self, labels: np.ndarray) -> np.ndarray:
        """``labels`` (D, H, W), integer, to (K, D, H, W), uint8, 0 or 1: one channel for each label, none for 0.

        Raises :class:`MedDPMError` for a value that the scheme does not have.
        """
        channels = np.empty((len(self.labels), *labels.shape), np.uint8)
        for channel, value in zip(channels, self.values, strict=True):
            np.equal(labels, value, out=channel.view(bool))
        if np.count_nonzero(channels) != np.count_nonzero(labels):
            strange = sorted(set(np.unique(labels).tolist()) - {0, *self.values})
            raise MedDPMError(
                f'the values {_listed(strange)} are not in the scheme "{self.name}" ({self.describe_labels()})'
            )
        return channels

    def merge(self, channels: np.ndarray) -> np.ndarray:
        """Channels (K, D, H, W), non-zero where a label is, to labels (D, H, W), uint8; of several the first wins.

        First in :attr:`priority`, that is.
        """
        if channels.ndim != 4 or len(channels) != len(self.labels):
            raise MedDPMError(
                f'channels of shape {channels.shape} are not the {len(self.labels)} labels of "{self.name}"'
            )
        labels = np.zeros(channels.shape[1:], np.uint8)
        for value in reversed(self.priority):
            labels[channels[self.values.index(value)] != 0] = value
        return labels

    def to_dict(self) -> dict:
        """As plain data for JSON; :meth:`from_dict` reads it."""
        return {
            "name": self.name,
            "title": self.title,
            "own_numbering": self.own_numbering,
            "labels": [
                {
                    "value": label.value,
                    "name": label.name,
                    **({"role": label.role} if label.role else {}),
                    **({"tissue": label.tissue} if label.tissue else {}),
                    "color": list(label.color),
                    "priority": label.priority,
                    "aliases": list(label.aliases),
                    **({"plausible_ml": list(label.plausible_ml)} if label.plausible_ml else {}),
                    **({"category": vars(label.category).copy()} if label.category else {}),
                    **({"type": vars(label.type).copy()} if label.type else {}),
                }
                for label in self.labels
            ],
            **({"numberings": [_plain(one) for one in self.conventions]} if self.conventions else {}),
        }

    @classmethod
    def from_dict(cls, data: object) -> LabelScheme:
        """Reads :meth:`to_dict`'s data, from a file of unknown origin; :class:`MedDPMError` if it is invalid.

        Labels of version 0.1 get their current names (:data:`FORMER_NAMES`), the former ones become aliases. What its
        cards say of numberings is read for the name of the scheme's own values alone. A scheme with name and labels of
        one that ships with the package equals it, whatever its title was.
        """
        scheme = cls._read(data)
        if scheme.name in scheme_names():
            shipped = load_scheme(scheme.name)
            if scheme.labels == shipped.labels:
                return replace(scheme, title=shipped.title)
        return scheme

    @classmethod
    def _read(cls, data: object) -> LabelScheme:
        name = _text(_get(data, "name", "the label scheme"), "the label scheme's name")
        where = f"the label scheme {quoted(name)}"
        labels = tuple(
            sorted((read_label(entry, where) for entry in _list(data, "labels", where)), key=lambda label: label.value)
        )
        labels = _with_current_names(labels)
        if not any(label.tissue for label in labels):
            labels = _with_known_tissues(labels)
        if not labels:
            raise MedDPMError(f"{where} has no labels")
        for what in ("value", "priority"):
            _check_unique([getattr(label, what) for label in labels], f"{where}: each label needs its own {what}")
        _check_unique([label.name.casefold() for label in labels], f"{where}: each label needs its own name")
        if sum(label.role == "rest" for label in labels) > 1:
            raise MedDPMError(f'{where}: only one label can have the role "rest"')
        values = {label.value for label in labels}
        title = _text(_get(data, "title", where), f"{where}: title")
        own_numbering = _text(_own_numbering(data, values), f"{where}: own_numbering")
        # Before schemes named their own numbering, "numberings" were all that there are.
        listed = _list(data, "numberings", where) if "own_numbering" in data and "numberings" in data else []
        names = {text.casefold() for label in labels for text in (label.name, *label.aliases)}
        conventions = tuple(read_convention(entry, names, where) for entry in listed)
        known = [own_numbering, *(one.name for one in conventions)]
        _check_unique(known, f"{where}: each numbering needs its own name")
        return cls(name, title, labels, own_numbering, conventions)


def scheme_names() -> list[str]:
    """The names of the schemes that ship with the package."""
    return sorted(path.stem for path in _SCHEMES.glob("*.json"))


@lru_cache
def load_scheme(name: str) -> LabelScheme:
    """The scheme called ``name``, one of :func:`scheme_names`."""
    if name not in scheme_names():
        raise MedDPMError(f"there is no label scheme {quoted(name)}: use one of {', '.join(scheme_names())}")
    return LabelScheme._read(json.loads((_SCHEMES / f"{name}.json").read_text(encoding="utf-8")))


def _with_current_names(labels: tuple[Label, ...]) -> tuple[Label, ...]:
    """``labels`` with the current name of each that has a former one, which becomes an alias."""
    taken = {label.name.casefold() for label in labels}
    return tuple(
        replace(label, name=current, aliases=(label.name, *(alias for alias in label.aliases if alias != current)))
        if (current := FORMER_NAMES.get(label.name)) and current.casefold() not in taken
        else label
        for label in labels
    )


def _with_known_tissues(labels: tuple[Label, ...]) -> tuple[Label, ...]:
    """``labels`` of a file from before labels had tissues, with those of the shipped schemes' labels of their names."""
    known: dict[str, str] = {}
    for path in _SCHEMES.glob("*.json"):
        for label in json.loads(path.read_text(encoding="utf-8"))["labels"]:
            known.setdefault(label["name"], label.get("tissue"))
    return tuple(replace(label, tissue=known.get(label.name)) for label in labels)


# Reading files of unknown origin ----------------------------------------------------------------------


def read_label(data: object, where: str) -> Label:
    """One label of :meth:`LabelScheme.to_dict`'s data; ``where`` names the scheme in messages."""
    name = _text(_get(data, "name", f"a label of {where}"), f"{where}: a label's name")
    where = f"{where}: label {quoted(name)}"
    role = data.get("role")
    role = _FORMER_ROLES.get(role, role) if isinstance(role, str) else role
    if role is not None and role not in ROLES:
        raise MedDPMError(f"{where}: the role has to be one of {', '.join(ROLES)}, or left out")
    color = [_integer(part, 0, 255, f"{where}: color") for part in _list(data, "color", where)]
    if len(color) != 3:
        raise MedDPMError(f"{where}: a color is red, green and blue")
    aliases = _list(data, "aliases", where) if "aliases" in data else []
    tissue = data.get("tissue")
    if tissue is not None and tissue not in TISSUES:
        raise MedDPMError(f"{where}: the tissue has to be one of {', '.join(TISSUES)}")
    if isinstance(data, dict) and "priority" not in data:
        raise MedDPMError(f"{where} has no priority: give one to all labels of the scheme, or to none")
    return Label(
        value=_integer(_get(data, "value", where), 1, 255, f"{where}: value"),
        name=name,
        role=role,
        color=tuple(color),
        priority=_integer(_get(data, "priority", where), 0, 10_000, f"{where}: priority"),
        category=_code(data.get("category"), f"{where}: category"),
        type=_code(data.get("type"), f"{where}: type"),
        aliases=tuple(_text(alias, f"{where}: aliases") for alias in aliases),
        tissue=tissue,
        plausible_ml=_plausible(data, where),
    )


def _code(data: object, where: str) -> Code | None:
    if data is None:
        return None
    return Code(*(_text(_get(data, key, where), f"{where}: {key}") for key in ("scheme", "value", "meaning")))


def read_convention(data: object, names: Set[str], where: str) -> Convention:
    """One numbering of :meth:`LabelScheme.to_dict`'s data, of labels that are called ``names`` (in small letters)."""
    name = _text(_get(data, "name", f"a numbering of {where}"), f"{where}: a numbering's name")
    where = f"{where}: numbering {quoted(name)}"
    values = _get(data, "values", where)
    if not isinstance(values, dict) or not 0 < len(values) <= 1000:
        raise MedDPMError(f'{where}: "values" has to be a table of 1 to 1000 values')
    meanings = []
    for key, meaning in values.items():
        if not re.fullmatch(r"[1-9]\d{0,4}", str(key)) or int(key) > 65_535:
            raise MedDPMError(f"{where}: a value is a whole number from 1 to 65535, not {quoted(key)}")
        if _text(meaning, f"{where}: value {key}").casefold() not in {*names, NOTHING}:
            raise MedDPMError(
                f"{where}: the value {key} is called {quoted(meaning)}, which is no label: use its name, or none"
            )
        meanings.append((int(key), meaning))
    listed = _list(data, "file_names", where) if "file_names" in data else []
    patterns = tuple(_text(one, f"{where}: file_names") for one in listed)
    for pattern in patterns:
        try:
            re.compile(pattern)
        except (re.error, RecursionError, OverflowError) as error:
            raise MedDPMError(f"{where}: {quoted(pattern)} is no pattern of file names ({error})") from None
    title = _text(data.get("title", name), f"{where}: title")
    return Convention(name, title, tuple(sorted(meanings)), patterns)


def _plain(one: Convention) -> dict:
    values = {str(value): name for value, name in one.meanings}
    return {"name": one.name, "title": one.title, "values": values, "file_names": list(one.file_names)}


def _plausible(data: object, where: str) -> tuple[float, float] | None:
    if not isinstance(data, dict) or data.get("plausible_ml") is None:
        return None
    limits = _list(data, "plausible_ml", where)
    numbers = [n for n in limits if isinstance(n, (int, float)) and not isinstance(n, bool) and 0 <= n < np.inf]
    if len(limits) != 2 or len(numbers) != 2 or numbers[0] > numbers[1]:
        raise MedDPMError(f"{where}: plausible_ml is the least and the most volume, in ml")
    return float(numbers[0]), float(numbers[1])


def _own_numbering(data: dict, values: set[int]) -> object:
    """The name of the numbering of the scheme's own ``values``; the scheme's own name if ``data`` gives none."""
    if "own_numbering" in data:
        return data["own_numbering"]
    identity = {str(value): value for value in values}
    known = data["numberings"] if isinstance(data.get("numberings"), list) else []
    return (
        next((one.get("name") for one in known if isinstance(one, dict) and one.get("values") == identity), None)
        or (data["name"])
    )


def _get(data: object, key: str, where: str) -> object:
    if not isinstance(data, dict) or key not in data:
        raise MedDPMError(f"{where} has no {quoted(key)}, which is needed")
    return data[key]


def _list(data: object, key: str, where: str) -> list:
    entries = _get(data, key, where)
    if not isinstance(entries, list) or len(entries) > 1000:
        raise MedDPMError(f"{where}: {quoted(key)} has to be a list")
    return entries


def _text(value: object, where: str) -> str:
    if not isinstance(value, str) or not 0 < len(value) <= _LONGEST_TEXT or not value.isprintable():
        raise MedDPMError(f"{where} has to be a printable text of at most {_LONGEST_TEXT} characters")
    return value


def _integer(value: object, low: int, high: int, where: str) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or not low <= value <= high:
        raise MedDPMError(f"{where} has to be a whole number from {low} to {high}, not {quoted(value)}")
    return value


def _check_unique(values: list, message: str) -> None:
    if len(set(values)) != len(values):
        raise MedDPMError(message)


def _listed(values: list) -> str:
    """At most ten values for a message."""
    return ", ".join(map(str, values[:10])) + (", ..." if len(values) > 10 else "")
