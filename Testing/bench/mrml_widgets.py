"""The widgets of Slicer that forms use, and that show the scene: ``slicer.qMRMLWidget`` and its kin."""

from __future__ import annotations

import slicer
from PySide6.QtCore import Property, Signal

from bench.dialogs import Shown, dialogs
from bench.pythonqt import qt_module, standin

qt = qt_module()


@standin
class qMRMLWidget(qt.QWidget):
    mrmlSceneChanged = Signal(object)

    def __init__(self, parent=None):
        super().__init__(parent)
        self._scene = None

    def mrmlScene(self):
        return self._scene

    def setMRMLScene(self, scene):
        if scene is not self._scene:
            self._scene = scene
            self.mrmlSceneChanged.emit(scene)


def _flag(name: str, default):
    """A property kept in ``_name``; a change rebuilds the list."""

    def get(self):
        return getattr(self, f"_{name}", default)

    def set_(self, value):
        setattr(self, f"_{name}", value)
        self._rebuild()

    return Property(type(default), get, set_)


def _stop_observing(observers: list) -> None:
    for observed, tag in observers:
        observed.RemoveObserver(tag)
    observers.clear()


@standin
class qMRMLNodeComboBox(qt.QWidget):
    """Nodes of the scene, of some classes, in a combo box with "None" and the actions that are enabled.

    As Slicer's: without "None" the first node is taken as soon as there is one; hidden nodes are left out; a
    node that goes from the scene goes from the list.
    """

    currentNodeChanged = Signal(object)
    currentNodeIDChanged = Signal(str)
    nodeAddedByUser = Signal(object)
    nodeAddedByUserAction = Signal(object)

    noneEnabled = _flag("noneEnabled", False)
    addEnabled = _flag("addEnabled", True)
    removeEnabled = _flag("removeEnabled", True)
    editEnabled = _flag("editEnabled", False)
    renameEnabled = _flag("renameEnabled", False)
    showHidden = _flag("showHidden", False)
    showChildNodeTypes = _flag("showChildNodeTypes", True)
    selectNodeUponCreation = _flag("selectNodeUponCreation", True)
    noneDisplay = _flag("noneDisplay", "None")
    baseName = _flag("baseName", "")

    def __init__(self, parent=None):
        super().__init__(parent)
        self._scene = None
        self._types = []
        self._attributes = []
        self._current = None  # the node's ID
        self._observers = []
        observers = self._observers  # not self, which is gone by then
        self.destroyed.connect(lambda: _stop_observing(observers))
        self._filling = False
        self._box = qt.QComboBox(self)
        layout = qt.QHBoxLayout(self)
        layout.setContentsMargins(0, 0, 0, 0)
        layout.addWidget(self._box)
        self._box.currentIndexChanged.connect(self._on_index)
        self.enabled = False

    def _node_types(self):
        return self._types

    def _set_node_types(self, types):
        self._types = list(types)
        self._rebuild()

    nodeTypes = Property("QStringList", _node_types, _set_node_types)
    currentNodeID = Property(str, lambda self: self._current or "", lambda self, id: self.setCurrentNodeID(id))

    def addAttribute(self, nodeType, name, value=None):
        self._attributes.append((nodeType, name, value))
        self._rebuild()

    def mrmlScene(self):
        return self._scene

    def setMRMLScene(self, scene):
        _stop_observing(self._observers)
        self._scene = scene
        if scene is not None:
            for event in (
                "NodeAddedEvent",
                "NodeRemovedEvent",
                "EndCloseEvent",
                "EndImportEvent",
                "EndBatchProcessEvent",
            ):
                tag = scene.AddObserver(getattr(slicer.vtkMRMLScene, event), lambda *_: self._rebuild())
                self._observers.append((scene, tag))
        self.enabled = scene is not None
        self._rebuild()

    def currentNode(self):
        return self._scene.GetNodeByID(self._current) if self._scene is not None and self._current else None

    def setCurrentNode(self, node):
        self.setCurrentNodeID(node if isinstance(node, str) else node.GetID() if node is not None else "")

    def setCurrentNodeID(self, id):
        self._select(id if id in [node.GetID() for node in self._nodes()] else None)

    def nodeCount(self):
        return len(self._nodes())

    def nodeFromIndex(self, index):
        nodes = self._nodes()
        return nodes[index] if 0 <= index < len(nodes) else None

    def addNode(self, nodeType=None):
        nodeType = nodeType or self._types[0]
        name = self.baseName or self._scene.CreateNodeByClass(nodeType).GetNodeTagName()
        node = self._scene.AddNewNodeByClass(nodeType, self._scene.GenerateUniqueName(name))
        if self.selectNodeUponCreation:
            self.setCurrentNode(node)
        self.nodeAddedByUser.emit(node)
        self.nodeAddedByUserAction.emit(node)
        return node

    def removeCurrentNode(self):
        node = self.currentNode()
        if node is not None:
            self._scene.RemoveNode(node)

    def renameCurrentNode(self):
        node = self.currentNode()
        node.SetName(dialogs.answer(Shown("text", node.GetName(), "Rename"), self))
        self._rebuild()

    def _nodes(self):
        if self._scene is None or self._scene.IsClosing():
            return []
        found = []
        for nodeType in self._types:
            for node in slicer.util.getNodesByClass(nodeType, self._scene):
                fits = self.showChildNodeTypes or node.GetClassName() == nodeType
                fits = fits and (self.showHidden or not node.GetHideFromEditors()) and node not in found
                if fits and all(self._has(node, *attribute) for attribute in self._attributes):
                    found.append(node)
        return sorted(found, key=lambda node: node.GetName())

    @staticmethod
    def _has(node, nodeType, name, value):
        if not node.IsA(nodeType):
            return True
        present = node.GetAttribute(name)
        return present is not None and (value is None or present == str(value))

    def _rebuild(self):
        nodes = self._nodes()
        self._filling = True
        self._box.clear()
        if self.noneEnabled:
            self._box.addItem(self.noneDisplay, "")
        for node in nodes:
            self._box.addItem(node.GetName(), node.GetID())
        self._filling = False
        ids = [node.GetID() for node in nodes]
        keep = self._current if self._current in ids else None
        if keep is None and nodes and not self.noneEnabled:
            keep = ids[0]
        self._select(keep)

    def _select(self, id):
        self._filling = True
        self._box.currentIndex = self._box.findData(id or "")
        self._filling = False
        if id != self._current:
            self._current = id
            self.currentNodeChanged.emit(self.currentNode())
            self.currentNodeIDChanged.emit(id or "")

    def _on_index(self, index):
        if not self._filling:
            self._select(self._box.itemData(index) or None)
