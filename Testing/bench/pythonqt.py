"""PySide6 made to behave as PythonQt does in 3D Slicer, and offered as the module ``qt``.

Slicer reaches Qt through PythonQt, which differs from PySide6 where it hurts: properties are attributes
(``button.text``), unknown attributes of a C++ object are refused, a slot gets as many arguments as it takes,
dialogs are run with ``exec_()``. The classes of PySide6 are changed in place, for the whole process.
"""

from __future__ import annotations

import inspect
import types
import xml.etree.ElementTree
from collections.abc import Callable

import shiboken6
from PySide6 import QtCore, QtGui, QtUiTools, QtWidgets

#: Signals of which PythonQt passes fewer arguments than Qt sends.
_FIRST_ARGUMENTS = {("QProcess", "finished"): 1}

#: Names of PySide6 that PythonQt has not: code that uses them does not run in Slicer.
_ABSENT = {"Signal", "Slot", "Property", "SIGNAL", "SLOT"}

#: Stand-ins of classes that are not Qt's own, by name: for ``QUiLoader`` and for the rule on new attributes.
standins: dict[str, type] = {}

_installed: types.ModuleType | None = None


def qt_module() -> types.ModuleType:
    """The module ``qt``; changes PySide6's classes on the first call."""
    global _installed
    if _installed is None:
        module = types.ModuleType("qt", "PySide6 in PythonQt's place")
        for source in (QtCore, QtGui, QtWidgets, QtUiTools):
            for name in dir(source):
                if not name.startswith("_") and name not in _ABSENT:
                    setattr(module, name, getattr(source, name))
        for cls in _classes(module):
            _adapt(cls)
        QtCore.QObject.name = QtCore.QObject.objectName
        QtCore.QObject.className = lambda self: self.metaObject().className()
        for cls in (
            QtWidgets.QDialog,
            QtWidgets.QMenu,
            QtWidgets.QApplication,
            QtCore.QCoreApplication,
            QtCore.QEventLoop,
        ):
            cls.exec_ = cls.exec
        _accept_text(QtCore.QProcess)
        module.QUiLoader = UiLoader
        _installed = module
    return _installed


def standin(cls: type) -> type:
    """Class decorator of a stand-in widget: its signals and attributes follow the same rules as Qt's own."""
    standins[cls.__name__] = cls
    _adapt_signals(cls)
    cls.__setattr__ = _set_attribute
    return cls


def _classes(module: types.ModuleType) -> list[type]:
    """QObject and all its subclasses in ``module``, base classes first."""
    classes = {value for value in vars(module).values() if inspect.isclass(value) and issubclass(value, QtCore.QObject)}
    return sorted(classes, key=lambda cls: len(cls.__mro__))


def _adapt(cls: type) -> None:
    meta = cls.staticMetaObject
    for index in range(meta.propertyOffset(), meta.propertyCount()):
        name = meta.property(index).name()
        # A static slot hides the property of its name, in PythonQt too (QTimer.singleShot).
        getter = inspect.getattr_static(cls, name, None)
        if not isinstance(getter, staticmethod):
            setattr(cls, name, _property(name, getter if callable(getter) else None, meta.property(index).isWritable()))
    _adapt_signals(cls)
    cls.__setattr__ = _set_attribute


# Properties ----------------------------------------------------------------------------------------


def _property(name: str, getter: Callable | None, writable: bool) -> property:
    """The attribute for a property of Qt; ``getter`` is the method of its name, if there is one.

    A virtual getter (``sizeHint``) must be called directly: through the property system Qt would look for an
    override in Python, and find this attribute.
    """

    def get(self):
        return getter(self) if getter is not None else QtCore.QObject.property(self, name)

    def set_(self, value):
        if not QtCore.QObject.setProperty(self, name, value):
            raise ValueError(f"{value!r} is not a value for {type(self).__name__}.{name}")

    return property(get, set_ if writable else None)


def _set_attribute(self, name: str, value) -> None:
    """As PythonQt: a property is set, an attribute of a Python subclass too, anything else is a mistake."""
    if UiLoader.busy and isinstance(value, QtCore.QObject) and value.objectName == name:
        return  # PySide6 makes each child of a form an attribute of the form, PythonQt does not
    for cls in type(self).__mro__:
        member = cls.__dict__.get(name)
        if type(member) is QtCore.Property:
            QtCore.QObject.setProperty(self, name, value)
            return
        if hasattr(type(member), "__set__"):
            member.__set__(self, value)
            return
    cls = type(self)
    if cls.__module__.startswith("PySide6") or (cls is standins.get(cls.__name__) and not name.startswith("_")):
        reason = "is a method" if hasattr(cls, name) else "does not exist"
        raise AttributeError(f"{cls.__name__}.{name} {reason}: PythonQt sets only properties of C++ objects")
    self.__dict__[name] = value


# Signals -------------------------------------------------------------------------------------------


class BoundSignal:
    """A signal of one object: ``connect``, ``disconnect``, ``emit``, or a call to emit it."""

    #: (address of the sender, name of the signal) -> [(slot, what is connected in its place)]
    _connections: dict[tuple[int, str], list[tuple[Callable, Callable]]] = {}

    def __init__(self, owner: QtCore.QObject, description: _SignalDescriptor):
        self._owner, self._name, self._limit = owner, description.name, description.limit
        signal = description.signal.__get__(owner)
        # "clicked(); clicked(bool)": clones with default arguments, of which PythonQt connects the fullest.
        self._overloads = {
            len(types.split(",")) if types else 0: signal[types] if types else signal for types in description.overloads
        }
        self._signal = self._overloads[max(self._overloads)]

    def connect(self, slot: Callable) -> bool:
        connected = _taking_what_it_can(slot, self._limit)
        self._signal.connect(connected)
        self._known().append((slot, connected))
        return True

    def disconnect(self, slot: Callable) -> bool:
        known = self._known()
        for index, (candidate, connected) in enumerate(known):
            if candidate == slot:
                self._signal.disconnect(connected)
                del known[index]
                return True
        return False

    def emit(self, *arguments) -> None:
        self._overloads.get(len(arguments), self._signal).emit(*arguments)

    __call__ = emit

    def _known(self) -> list[tuple[Callable, Callable]]:
        address = shiboken6.getCppPointer(self._owner)[0]
        key = address, self._name
        if key not in self._connections:
            self._connections[key] = []
            _raw(QtCore.QObject, "destroyed").__get__(self._owner).connect(lambda *_: self._connections.pop(key, None))
        return self._connections[key]


class _SignalDescriptor:
    def __init__(self, cls: type, name: str, signal: QtCore.Signal):
        self.name, self.signal = name, signal
        self.limit = _FIRST_ARGUMENTS.get((cls.__name__, name))
        overloads = [text.strip().partition("(")[2].rstrip(")") for text in str(signal).split(";")]
        # Of several with as many arguments (Qt 5's currentIndexChanged) the first is PythonQt's.
        self.overloads = overloads[::-1]

    def __get__(self, owner: QtCore.QObject | None, cls: type):
        return self if owner is None else BoundSignal(owner, self)

    def __set__(self, owner: QtCore.QObject, value) -> None:
        # PySide6 stores its own signal in the object on the first use, where it would win over this descriptor.
        if type(value) is not QtCore.SignalInstance:
            raise AttributeError(f"{type(owner).__name__}.{self.name} is a signal")


def _adapt_signals(cls: type) -> None:
    for name, value in list(vars(cls).items()):
        if isinstance(value, QtCore.Signal):
            setattr(cls, name, _SignalDescriptor(cls, name, value))


def _raw(cls: type, name: str) -> QtCore.Signal:
    member = inspect.getattr_static(cls, name)
    return member.signal if isinstance(member, _SignalDescriptor) else member


def _taking_what_it_can(slot: Callable, limit: int | None) -> Callable:
    """``slot`` called with as many of the signal's arguments as it has places for, as PythonQt does."""
    if inspect.isbuiltin(slot) or isinstance(slot, BoundSignal):
        return slot.emit if isinstance(slot, BoundSignal) else slot
    function = slot.__func__ if inspect.ismethod(slot) else slot
    if inspect.isfunction(function) and not function.__code__.co_flags & inspect.CO_VARARGS:
        places = function.__code__.co_argcount - inspect.ismethod(slot)
        limit = places if limit is None else min(places, limit)
    return lambda *arguments: slot(*arguments[:limit])


# Text and forms ------------------------------------------------------------------------------------


def _accept_text(process: type) -> None:
    """Lets ``QProcess.write`` take str beside bytes and QByteArray."""
    write = process.write
    process.write = lambda self, data: write(self, data.encode() if isinstance(data, str) else data)


class UiLoader(QtUiTools.QUiLoader):
    """Reads a ``.ui`` file with the stand-ins; a class that has none is an error, not a plain widget.

    Connections that hand the MRML scene from widget to widget carry a VTK pointer, which only C++ can: they
    are made here, as the file says them.
    """

    busy = False

    def __init__(self, parent: QtCore.QObject | None = None):
        super().__init__(parent)
        self._strange: list[str] = []
        for cls in standins.values():
            if issubclass(cls, QtWidgets.QWidget):
                self.registerCustomWidget(cls)

    def createWidget(self, class_name: str, parent: QtWidgets.QWidget | None = None, name: str = ""):
        if class_name not in standins and not hasattr(QtWidgets, class_name):
            self._strange.append(class_name)
        return super().createWidget(class_name, parent, name)

    def load(self, device: QtCore.QIODevice, parent: QtWidgets.QWidget | None = None) -> QtWidgets.QWidget:
        form = xml.etree.ElementTree.fromstring(device.readAll().data())
        handed_on = []
        for connections in form.findall("connections"):
            for connection in list(connections):
                if connection.findtext("signal") == "mrmlSceneChanged(vtkMRMLScene*)":
                    handed_on.append(
                        (connection.findtext("sender"), connection.findtext("receiver"), connection.findtext("slot"))
                    )
                    connections.remove(connection)
        buffer = QtCore.QBuffer()
        buffer.setData(xml.etree.ElementTree.tostring(form))
        buffer.open(QtCore.QIODevice.ReadOnly)
        UiLoader.busy = True
        try:
            widget = super().load(buffer, parent)
        finally:
            UiLoader.busy = False
        if self._strange:
            raise RuntimeError(f"the form uses {', '.join(self._strange)}, for which the bench has no stand-in")
        by_name = {child.objectName: child for child in [widget, *widget.findChildren(QtCore.QObject)]}
        for sender, receiver, slot in handed_on:
            by_name[sender].mrmlSceneChanged.connect(getattr(by_name[receiver], slot.partition("(")[0]))
        return widget
