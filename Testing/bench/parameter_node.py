"""``slicer.parameterNodeWrapper``: typed parameters kept in a vtkMRMLScriptedModuleNode and shown in widgets.

The kinds of parameters that modules commonly use: bool, int, float, str, enumerations, lists and dictionaries
of these, and MRML nodes, with the validators of Slicer.
"""

from __future__ import annotations

import enum
import typing

import slicer
import vtk

from bench.ctk_widgets import ctkSliderWidget
from bench.mrml_widgets import qMRMLNodeComboBox
from bench.parameter_types import Choice, Default, Minimum, NodeParameter, Validator, WithinRange, split, storage
from bench.pythonqt import qt_module

__all__ = ["Choice", "Default", "Minimum", "Validator", "WithinRange", "isParameterNodeWrapper", "parameterNodeWrapper"]

qt = qt_module()

SlicerParameterNamePropertyName = "SlicerParameterName"


# Widgets -------------------------------------------------------------------------------------------


class _Connector:
    """How one widget shows one parameter: its signal, how it is read and how it is written."""

    def __init__(self, signal, read, write):
        self.signal, self.read, self.write = signal, read, write


def _connector(widget, annotated) -> _Connector:
    kind, annotations = split(annotated)
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
        return _Connector(
            widget.valueChanged, lambda: kind(widget.value), lambda value: setattr(widget, "value", value)
        )
    if kind is str and cls is qt.QLineEdit:
        return _Connector(
            widget.textChanged, lambda: widget.text, lambda text: text == widget.text or setattr(widget, "text", text)
        )
    if cls is qt.QComboBox:
        return _combo_box(widget, kind, annotations)
    if cls is qMRMLNodeComboBox and isinstance(storage(annotated), NodeParameter):
        node_class = storage(annotated).type
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
        storages[name] = storage(annotated)
        given = next((a for a in split(annotated)[1] if isinstance(a, Default)), None)
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
        for name, kept in self._storages.items():
            if not kept.is_in(parameterNode, self._prefix + name):
                kept.write(parameterNode, self._prefix + name, self._defaults[name].value)

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
        """Connects the widgets of ``gui`` (a widget, or an object with widgets as attributes) that name a parameter."""
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
