"""Which parameters can a parameter node keep, and how? Types, their rules, and their texts in the node.

They are stored under the names that Slicer uses, so that a scene saved by one is read by the other.
"""

from __future__ import annotations

import collections.abc
import enum
import typing
from typing import Annotated, Any

import slicer

# Annotations ---------------------------------------------------------------------------------------


class Validator:
    """A rule for a parameter's values; ``validate`` raises for one that breaks it."""

    def validate(self, value: Any) -> None:
        raise NotImplementedError


class WithinRange(Validator):
    def __init__(self, minimum, maximum):
        self.minimum, self.maximum = minimum, maximum

    def validate(self, value):
        if not self.minimum <= value <= self.maximum:
            raise ValueError(f"{value} is not within [{self.minimum}, {self.maximum}]")


class Minimum(Validator):
    def __init__(self, minimum):
        self.minimum = minimum

    def validate(self, value):
        if value < self.minimum:
            raise ValueError(f"{value} is below {self.minimum}")


class Choice(Validator):
    def __init__(self, choices):
        self.choices = choices

    def validate(self, value):
        if value not in self.choices:
            raise ValueError(f"{value} is none of {self.choices}")


class Default:
    def __init__(self, value=None, *, generator=None):
        self._value, self._generator = value, generator

    @property
    def value(self):
        return self._generator() if self._generator else self._value


# Storage -------------------------------------------------------------------------------------------


class _Scalar:
    """bool, int, float, str or an enumeration: one string."""

    def __init__(self, type_: type, validators: list[Validator]):
        self.type, self.validators = type_, validators

    def default(self):
        return next(iter(self.type)) if issubclass(self.type, enum.Enum) else self.type()

    def is_in(self, node, name):
        return node.HasParameter(name)

    def check(self, value):
        allowed = (int, float) if self.type is float else self.type
        if value is None:
            raise ValueError("a value is needed, not None")
        if not isinstance(value, allowed):
            raise TypeError(f"{value!r} is not of type {self.type.__name__}")
        for validator in self.validators:
            validator.validate(value)

    def write(self, node, name, value):
        self.check(value)
        node.SetParameter(name, value.name if isinstance(value, enum.Enum) else str(value))

    def read(self, node, name):
        text = node.GetParameter(name)
        if issubclass(self.type, enum.Enum):
            return self.type[text]
        return text == "True" if self.type is bool else self.type(text)

    def remove(self, node, name):
        node.UnsetParameter(name)


class NodeParameter:
    """A MRML node or None: a node reference, so that it is followed when a scene is loaded."""

    def __init__(self, type_: type):
        self.type = type_

    def default(self):
        return None

    def is_in(self, node, name):
        return node.HasParameter(name)

    def write(self, node, name, value):
        if value is not None and not isinstance(value, self.type):
            raise TypeError(f"{value!r} is not a {self.type.__name__}")
        node.SetParameter(name, "")
        node.SetNodeReferenceID(name, value.GetID() if value is not None else None)

    def read(self, node, name):
        return node.GetNodeReference(name)

    def remove(self, node, name):
        node.UnsetParameter(name)
        node.RemoveNodeReferenceIDs(name)


class _List:
    """A list: its length and each element under a name of its own."""

    def __init__(self, element):
        self.element = element

    def default(self):
        return []

    def is_in(self, node, name):
        return node.HasParameter(f"{name}.len")

    def _length(self, node, name):
        return int(node.GetParameter(f"{name}.len")) if self.is_in(node, name) else 0

    def write(self, node, name, values):
        with slicer.util.NodeModify(node):
            before = self._length(node, name)
            for index, value in enumerate(values):
                self.element.write(node, f"{name}.{index}", value)
            for index in range(len(values), before):
                self.element.remove(node, f"{name}.{index}")
            node.SetParameter(f"{name}.len", str(len(values)))

    def read(self, node, name):
        values = [self.element.read(node, f"{name}.{index}") for index in range(self._length(node, name))]
        return ObservedList(values, lambda changed: self.write(node, name, changed))

    def remove(self, node, name):
        for index in range(self._length(node, name)):
            self.element.remove(node, f"{name}.{index}")
        node.UnsetParameter(f"{name}.len")


class _Pair:
    """A key and its value: the element of the list that keeps a dictionary."""

    def __init__(self, key, value):
        self.parts = (key, value)

    def write(self, node, name, pair):
        for index, (part, value) in enumerate(zip(self.parts, pair, strict=True)):
            part.write(node, f"{name}.{index}", value)

    def read(self, node, name):
        return tuple(part.read(node, f"{name}.{index}") for index, part in enumerate(self.parts))

    def remove(self, node, name):
        for index, part in enumerate(self.parts):
            part.remove(node, f"{name}.{index}")


class _Dict:
    """A dictionary, in its order."""

    def __init__(self, key, value):
        self.pairs = _List(_Pair(key, value))

    def default(self):
        return {}

    def is_in(self, node, name):
        return self.pairs.is_in(node, name)

    def write(self, node, name, value):
        self.pairs.write(node, name, list(value.items()))

    def read(self, node, name):
        return ObservedDict(dict(self.pairs.read(node, name)), lambda changed: self.write(node, name, changed))

    def remove(self, node, name):
        self.pairs.remove(node, name)


class ObservedList(collections.abc.MutableSequence):
    """A list that is written back whenever it changes."""

    def __init__(self, values, save):
        self._values, self._save = values, save

    def __getitem__(self, index):
        return self._values[index]

    def __setitem__(self, index, value):
        self._values[index] = value
        self._save(self._values)

    def __delitem__(self, index):
        del self._values[index]
        self._save(self._values)

    def __len__(self):
        return len(self._values)

    def insert(self, index, value):
        self._values.insert(index, value)
        self._save(self._values)

    def __eq__(self, other):
        return list(self) == list(other)


class ObservedDict(collections.abc.MutableMapping):
    """A dictionary that is written back whenever it changes; as Slicer's, ``get`` and ``pop`` know no default."""

    def __init__(self, values, save):
        self._values, self._save = values, save

    def __getitem__(self, key):
        return self._values[key]

    def __setitem__(self, key, value):
        self._values[key] = value
        self._save(self._values)

    def __delitem__(self, key):
        del self._values[key]
        self._save(self._values)

    def __iter__(self):
        return iter(self._values)

    def __len__(self):
        return len(self._values)

    def get(self, key):
        return self._values.get(key)

    def pop(self, key):
        value = self._values.pop(key)
        self._save(self._values)
        return value


def split(annotated) -> tuple[Any, list]:
    if typing.get_origin(annotated) is Annotated:
        return annotated.__origin__, list(annotated.__metadata__)
    return annotated, []


def storage(annotated):
    kind, annotations = split(annotated)
    if typing.get_origin(kind) is list:
        return _List(storage(typing.get_args(kind)[0]))
    if typing.get_origin(kind) is dict:
        return _Dict(*map(storage, typing.get_args(kind)))
    if isinstance(kind, type) and issubclass(kind, slicer.vtkMRMLNode):
        return NodeParameter(kind)
    if isinstance(kind, type) and issubclass(kind, (bool, int, float, str, enum.Enum)):
        return _Scalar(kind, [annotation for annotation in annotations if isinstance(annotation, Validator)])
    raise TypeError(f"the bench keeps no parameter of type {kind}")
