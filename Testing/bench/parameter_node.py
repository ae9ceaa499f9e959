"""``slicer.parameterNodeWrapper``: typed parameters kept in a vtkMRMLScriptedModuleNode and shown in widgets.

The kinds of parameters that modules commonly use: bool, int, float, str, enumerations, lists and dictionaries
of these, and MRML nodes, with the validators of Slicer. They are stored under the names that Slicer uses, so
that a scene saved by one is read by the other.
"""

from __future__ import annotations

import collections.abc
import enum
import typing
from typing import Annotated, Any

import slicer
import vtk

from bench.ctk_widgets import ctkSliderWidget
from bench.mrml_widgets import qMRMLNodeComboBox
from bench.pythonqt import qt_module

qt = qt_module()

SlicerParameterNamePropertyName = "SlicerParameterName"


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


class _Node:
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


def _split(annotated) -> tuple[Any, list]:
    if typing.get_origin(annotated) is Annotated:
        return annotated.__origin__, list(annotated.__metadata__)
    return annotated, []


def _storage(annotated):
    kind, annotations = _split(annotated)
    if typing.get_origin(kind) is list:
        return _List(_storage(typing.get_args(kind)[0]))
    if typing.get_origin(kind) is dict:
        return _Dict(*map(_storage, typing.get_args(kind)))
    if isinstance(kind, type) and issubclass(kind, slicer.vtkMRMLNode):
        return _Node(kind)
    if isinstance(kind, type) and issubclass(kind, (bool, int, float, str, enum.Enum)):
        return _Scalar(kind, [annotation for annotation in annotations if isinstance(annotation, Validator)])
    raise TypeError(f"the bench keeps no parameter of type {kind}")


# Widgets -------------------------------------------------------------------------------------------


class _Connector:
    """How one widget shows one parameter: its signal, how it is read and how it is written."""

    def __init__(self, signal, read, write):
        self.signal, self.read, self.write = signal, read, write


def _connector(widget, annotated) -> _Connector:
    kind, annotations = _split(annotated)
    cls = type(widget)
    bounds = next((annotation for annotation in annotations if isinstance(annotation, WithinRange)), None)
    if kind is bool and cls in (qt.QCheckBox, qt.QPushButton):
        widget.checkable = True
        return _property(widget, "checked", widget.toggled)
    if kind is int and cls in (qt.QSpinBox, qt.QSlider):
        if bounds is None and cls is qt.QSlider:
            raise RuntimeError("a QSlider needs a parameter with a range")
        widget.setRange(*((bounds.minimum, bounds.maximum) if bounds else (-(2**31), 2**31 - 1)))
        return _property(widget, "value", widget.valueChanged)
    if kind in (int, float) and cls in (qt.QDoubleSpinBox, ctkSliderWidget):
        if bounds is None and cls is ctkSliderWidget:
            raise RuntimeError("a ctkSliderWidget needs a parameter with a range")
        if kind is int:
            widget.decimals = 0
        widget.minimum, widget.maximum = (bounds.minimum, bounds.maximum) if bounds else (float("-inf"), float("inf"))
        return _Connector(widget.valueChanged, lambda: kind(widget.value), lambda value: setattr(widget, "value", value))
    if kind is str and cls is qt.QLineEdit:
        return _Connector(
            widget.textChanged, lambda: widget.text, lambda text: text == widget.text or setattr(widget, "text", text)
        )
    if cls is qt.QComboBox:
        return _combo_box(widget, kind, annotations)
    if cls is qMRMLNodeComboBox and isinstance(_storage(annotated), _Node):
        node_class = _storage(annotated).type
        widget.nodeTypes = [node_class().GetClassName()]
        return _Connector(widget.currentNodeChanged, widget.currentNode, widget.setCurrentNode)
    raise RuntimeError(f"{cls.__name__} cannot show a parameter of type {annotated}")


def _property(widget, name, signal) -> _Connector:
    return _Connector(signal, lambda: getattr(widget, name), lambda value: setattr(widget, name, value))


def _combo_box(widget, kind, annotations) -> _Connector:
    """An enumeration fills the box with its labels; other values are the choices of a Choice annotation."""
    if isinstance(kind, type) and issubclass(kind, enum.Enum):
        choices = list(kind)
        labels = [kind.label(choice) if hasattr(kind, "label") else choice.name for choice in choices]
    else:
        choice = next((annotation for annotation in annotations if isinstance(annotation, Choice)), None)
        if choice is None:
            raise RuntimeError("a QComboBox needs a parameter with a Choice annotation")
        choices, labels = list(choice.choices), list(map(str, choice.choices))
    widget.clear()
    widget.addItems(labels)
    return _Connector(
        widget.currentIndexChanged,
        lambda: choices[widget.currentIndex],
        lambda value: setattr(widget, "currentIndex", choices.index(value)),
    )


# The wrapper ---------------------------------------------------------------------------------------


def parameterNodeWrapper(classtype: type | None = None):
    """Class decorator: each annotated member becomes a property that is kept in the parameter node."""
    if classtype is None:
        return parameterNodeWrapper
    types_ = typing.get_type_hints(classtype, include_extras=True)
    storages, defaults = {}, {}
    for name, annotated in types_.items():
        storages[name] = _storage(annotated)
        given = next((a for a in _split(annotated)[1] if isinstance(a, Default)), None)
        if hasattr(classtype, name):
            given = Default(getattr(classtype, name))
        defaults[name] = given or Default(storages[name].default())
        setattr(classtype, name, _member(name))
    for name, member in vars(_Wrapper).items():
        if not name.startswith("__") or name == "__init__":
            setattr(classtype, name, member)
    classtype._types, classtype._storages, classtype._defaults = types_, storages, defaults
    return classtype


def _member(name: str) -> property:
    return property(lambda self: self.getValue(name), lambda self, value: self.setValue(name, value))


class _Wrapper:
    """What every parameter node wrapper has beside its parameters."""

    def __init__(self, parameterNode, prefix=None):
        self.parameterNode = parameterNode
        self._prefix = prefix or ""
        self._guis, self._next_tag = {}, 0
        self._showing = False
        for name, storage in self._storages.items():
            if not storage.is_in(parameterNode, self._prefix + name):
                storage.write(parameterNode, self._prefix + name, self._defaults[name].value)

    def getValue(self, name):
        return self._storages[name].read(self.parameterNode, self._prefix + name)

    def setValue(self, name, value):
        with slicer.util.NodeModify(self.parameterNode):
            self._storages[name].write(self.parameterNode, self._prefix + name, value)

    def default(self, name):
        return self._defaults[name]

    def dataType(self, name):
        return self._types[name]

    def connectGui(self, gui):
        """Connects each widget of ``gui`` (a widget, or an object that has them as attributes) that names a parameter."""
        widgets = gui.findChildren(qt.QWidget) if isinstance(gui, qt.QWidget) else vars(gui).values()
        named = [(widget.property(SlicerParameterNamePropertyName), widget) for widget in widgets]
        return self.connectParametersToGui({name: widget for name, widget in named if name})

    def connectParametersToGui(self, mapping):
        for name in mapping:
            if name not in self._types:
                raise ValueError(f"there is no parameter {name}; there are {', '.join(self._types)}")
        connected = []
        for name, widget in mapping.items():
            connector = _connector(widget, self._types[name])
            connector.write(self.getValue(name))

            slot = self._writer(name, connector)
            connector.signal.connect(slot)
            connected.append((name, connector, slot))
        tag = self._next_tag
        self._next_tag += 1
        observer = self.AddObserver(vtk.vtkCommand.ModifiedEvent, lambda *_: self._show())
        self._guis[tag] = (connected, observer)
        return tag

    def _writer(self, name, connector):
        def write():
            if not self._showing:
                self.setValue(name, connector.read())

        return write

    def disconnectGui(self, tag):
        if tag in self._guis:
            connected, observer = self._guis.pop(tag)
            for _, connector, slot in connected:
                connector.signal.disconnect(slot)
            self.RemoveObserver(observer)

    def _show(self):
        if self._showing:
            return
        self._showing = True
        try:
            with slicer.util.NodeModify(self):
                for connected, _ in list(self._guis.values()):
                    for name, connector, _slot in connected:
                        connector.write(self.getValue(name))
        finally:
            self._showing = False

    def StartModify(self):
        return self.parameterNode.StartModify()

    def EndModify(self, wasModified):
        return self.parameterNode.EndModify(wasModified)

    def AddObserver(self, event, callback, priority=0.0):
        return self.parameterNode.AddObserver(event, callback, priority)

    def RemoveObserver(self, tag):
        self.parameterNode.RemoveObserver(tag)

    def Modified(self):
        self.parameterNode.Modified()


def isParameterNodeWrapper(object_) -> bool:
    return hasattr(object_, "_storages")
