"""Which labels exist?

A :class:`LabelScheme` is data (``resources/schemes/*.json``, a model's card, or a user's file, see
``masks/scheme_files.py``): labels with value, name, color, terminology, priority and the volumes in which they occur.
How files number them: ``masks/numberings.py``.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Set
from dataclasses import dataclass, field, replace
from functools import cached_property, lru_cache

import numpy as np

from MedDPMLib.errors import MedDPMError
from MedDPMLib.masks.scheme_fields import LABEL_FIELDS, NUMBERING_FIELDS, TEXT
from MedDPMLib.moved import former_attribute
from MedDPMLib.runtime.paths import RESOURCES
from MedDPMLib.validation import list_of, quoted, read_fields, table, table_with

_SCHEMES = RESOURCES / "schemes"

#: Names of labels until version 0.1 with the current ones: models, masks and scenes from before have them.
FORMER_NAMES = {"Oedema": "Edema", "Enhancing tumour": "Enhancing tumor", "Tumour": "Tumor"}

#: What a numbering calls a value that is left out.
NOTHING = "none"


@dataclass(frozen=True)
class Code:
    """An entry of a terminology: ``scheme`` ("SCT" is SNOMED CT), ``value`` and ``meaning``."""

    scheme: str
    value: str
    meaning: str


@dataclass(frozen=True)
class Label:
    """One label: its ``value`` (1 to 255) in arrays, ``color`` (red, green, blue; 0 to 255) and terminology.

    Of overlapping labels the one with the lowest ``priority`` wins. ``role`` is one of
    :data:`~MedDPMLib.masks.scheme_fields.ROLES`, ``tissue`` one of :data:`~MedDPMLib.masks.scheme_fields.TISSUES`, or
    None. ``category`` and ``type`` are its terminology, if any. ``aliases`` are other names under which it is met;
    ``plausible_ml`` is the least and the most, in milliliters, that it measures in anyone (None: not known).
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
        """The labels that show ``tissue``, one of :data:`~MedDPMLib.masks.scheme_fields.TISSUES`."""
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
        name = read_fields(data, "the label scheme", {"name": TEXT}, ["name"], more=True)["name"]
        assert isinstance(data, Mapping)
        where = f"the label scheme {quoted(name)}"
        rules = {"title": TEXT, "labels": list_of(table(), 1, 1000)}
        # Before schemes named their own numbering, "numberings" were all that there are.
        if "own_numbering" in data:
            rules |= {"own_numbering": TEXT, "numberings": list_of(table(), 0, 1000)}
        fields = read_fields(data, where, rules, ["title", "labels"], more=True)
        labels = tuple(sorted((read_label(entry, where) for entry in fields["labels"]), key=lambda label: label.value))
        labels = _with_current_names(labels)
        if not any(label.tissue for label in labels):
            labels = _with_known_tissues(labels)
        for what in ("value", "priority"):
            _check_unique([getattr(label, what) for label in labels], f"{where}: each label needs its own {what}")
        _check_unique([label.name.casefold() for label in labels], f"{where}: each label needs its own name")
        if sum(label.role == "rest" for label in labels) > 1:
            raise MedDPMError(f'{where}: only one label can have the role "rest"')
        own_numbering = fields.get("own_numbering") or TEXT.read(
            _own_numbering(data, {label.value for label in labels}), f"{where}: the name of its own numbering"
        )
        names = {text.casefold() for label in labels for text in (label.name, *label.aliases)}
        conventions = tuple(read_convention(entry, names, where) for entry in fields.get("numberings", ()))
        known = [own_numbering, *(one.name for one in conventions)]
        _check_unique(known, f"{where}: each numbering needs its own name")
        return cls(name, fields["title"], labels, own_numbering, conventions)


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


# Reading data of unknown origin -----------------------------------------------------------------------


def read_label(data: object, where: str) -> Label:
    """One label of :meth:`LabelScheme.to_dict`'s data; ``where`` names the scheme in messages."""
    where = _named(data, "label", where)
    if isinstance(data, Mapping) and "name" in data and "priority" not in data:
        raise MedDPMError(f"{where} has no priority: give one to all labels of the scheme, or to none")
    values = table_with(LABEL_FIELDS, more=True).read(data, where)
    codes = {key: Code(**values[key]) for key in ("category", "type") if values[key]}
    return Label(**{**values, **codes, "aliases": values["aliases"] or ()})


def read_convention(data: object, names: Set[str], where: str) -> Convention:
    """One numbering of :meth:`LabelScheme.to_dict`'s data, of labels that are called ``names`` (in small letters)."""
    where = _named(data, "numbering", where)
    values = table_with(NUMBERING_FIELDS, more=True).read(data, where)
    if not values["values"]:
        raise MedDPMError(f'{where}: "values" is empty: say which label each value is')
    for value, meaning in values["values"].items():
        if meaning.casefold() not in {*names, NOTHING}:
            raise MedDPMError(
                f"{where}: the value {value} is called {quoted(meaning)}, which is no label: use its name, or none"
            )
    return Convention(
        name=values["name"],
        title=values["title"] or values["name"],
        meanings=tuple(sorted(values["values"].items())),
        file_names=values["file_names"] or (),
    )


def _named(data: object, kind: str, where: str) -> str:
    """What messages call a label or numbering: by its name, if it has a valid one."""
    name = data.get("name") if isinstance(data, Mapping) else None
    return f"{where}: {kind} {quoted(name)}" if TEXT.fits(name) else f"a {kind} of {where}"


def _plain(one: Convention) -> dict:
    values = {str(value): name for value, name in one.meanings}
    return {"name": one.name, "title": one.title, "values": values, "file_names": list(one.file_names)}


def _own_numbering(data: Mapping, values: set[int]) -> object:
    """The name of the numbering of a scheme's own ``values`` in ``data`` that do not give it; else the scheme's."""
    identity = {str(value): value for value in values}
    known = data["numberings"] if isinstance(data.get("numberings"), list) else []
    return (
        next((one.get("name") for one in known if isinstance(one, dict) and one.get("values") == identity), None)
        or (data["name"])
    )


def _check_unique(values: list, message: str) -> None:
    if len(set(values)) != len(values):
        raise MedDPMError(message)


def _listed(values: list) -> str:
    """At most ten values for a message."""
    return ", ".join(map(str, values[:10])) + (", ..." if len(values) > 10 else "")
