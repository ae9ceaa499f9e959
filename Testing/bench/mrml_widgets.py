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
        for observed, tag in self._observers:
            observed.RemoveObserver(tag)
        self._scene = scene
        self._observers = []
        if scene is not None:
            for event in ("NodeAddedEvent", "NodeRemovedEvent", "EndCloseEvent", "EndImportEvent", "EndBatchProcessEvent"):
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


@standin
class qMRMLSegmentEditorWidget(qMRMLWidget):
    """Slicer's Segment Editor as an embedding module sees it: selections, segment list, effects by name, undo.

    The list of segments and the row of effects are drawn so that a picture of the panel looks right; painting
    itself goes through the segmentation's own functions. As in Slicer, the selections live in the
    vtkMRMLSegmentEditorNode, undo in a vtkSegmentationHistory, and using the widget before its parameter node
    is set is an error.
    """

    currentSegmentIDChanged = Signal(str)
    sourceVolumeNodeChanged = Signal(object)
    segmentationNodeChanged = Signal(object)
    _EFFECTS = ["Threshold", "Paint", "Draw", "Erase", "Level tracing", "Grow from seeds", "Fill between slices", "Margin", "Hollow",
                "Smoothing", "Scissors", "Islands", "Logical operators", "Mask volume"]  # fmt: skip

    def __init__(self, parent=None):
        super().__init__(parent)
        self._node = None
        self._observed, self._tags = None, []
        self._order, self._unordered, self._active = [], True, None
        self._shortcuts, self._observing = False, False
        self._history = slicer.vtkSegmentationHistory()
        self._history.SetMaximumNumberOfStates(10)
        layout = qt.QVBoxLayout(self)
        layout.setContentsMargins(0, 0, 0, 0)
        self._selectors = {}
        for role, text in (("segmentation", "Segmentation:"), ("source", "Source volume:")):
            row = qt.QWidget(self)
            line = qt.QHBoxLayout(row)
            line.setContentsMargins(0, 0, 0, 0)
            line.addWidget(qt.QLabel(text, row))
            selector = qMRMLNodeComboBox(row)
            selector.noneEnabled = True
            line.addWidget(selector, 1)
            layout.addWidget(row)
            self._selectors[role] = selector
        self._selectors["segmentation"].nodeTypes = ["vtkMRMLSegmentationNode"]
        self._selectors["source"].nodeTypes = ["vtkMRMLScalarVolumeNode"]
        self._selectors["segmentation"].currentNodeChanged.connect(self.setSegmentationNode)
        self._selectors["source"].currentNodeChanged.connect(self.setSourceVolumeNode)
        self._table = qt.QTableWidget(0, 2, self)
        self._table.setHorizontalHeaderLabels(["", "Name"])
        self._table.horizontalHeader().setStretchLastSection(True)
        self._table.verticalHeader().hide()
        self._table.setColumnWidth(0, 26)
        self._table.setSelectionBehavior(qt.QAbstractItemView.SelectRows)
        self._table.setMaximumHeight(170)
        self._table.currentCellChanged.connect(self._on_row)
        layout.addWidget(self._table)
        self._effects = qt.QWidget(self)
        qt.QGridLayout(self._effects).setContentsMargins(0, 0, 0, 0)
        layout.addWidget(self._effects)
        self._show_effects()

    def _row_visible(role):
        return Property(
            bool,
            lambda self: not self._selectors[role].parentWidget().isHidden(),
            lambda self, on: self._selectors[role].parentWidget().setVisible(on),
        )

    segmentationNodeSelectorVisible = _row_visible("segmentation")
    sourceVolumeNodeSelectorVisible = _row_visible("source")
    del _row_visible

    def _unordered_visible(self):
        return self._unordered

    def _set_unordered_visible(self, on):
        self._unordered = on
        self._show_effects()

    unorderedEffectsVisible = Property(bool, _unordered_visible, _set_unordered_visible)
    maximumNumberOfUndoStates = Property(
        int,
        lambda self: self._history.GetMaximumNumberOfStates(),
        lambda self, count: self._history.SetMaximumNumberOfStates(count),
    )
    switchToSegmentationsButtonVisible = Property(bool, lambda self: True, lambda self, on: None)
    autoShowSourceVolumeNode = Property(bool, lambda self: True, lambda self, on: None)

    # Selections

    def setMRMLScene(self, scene):
        super().setMRMLScene(scene)
        for selector in self._selectors.values():
            selector.setMRMLScene(scene)
        self.updateWidgetFromMRML()

    def mrmlSegmentEditorNode(self):
        return self._node

    def setMRMLSegmentEditorNode(self, node):
        self._node = node
        self.updateWidgetFromMRML()

    def segmentationNode(self):
        return self._node.GetSegmentationNode() if self._node is not None else None

    def sourceVolumeNode(self):
        return self._node.GetSourceVolumeNode() if self._node is not None else None

    def setSegmentationNode(self, segmentation):
        if self._node is None:
            if segmentation is not None:
                raise RuntimeError("setSegmentationNode before setMRMLSegmentEditorNode: Slicer would not take it")
            return
        if segmentation is not self._node.GetSegmentationNode():
            self._node.SetAndObserveSegmentationNode(segmentation)
            if segmentation is not None and segmentation.GetDisplayNode() is None:
                segmentation.CreateDefaultDisplayNodes()
            self._node.SetSelectedSegmentID(self._ids()[0] if self._ids() else "")
            self.segmentationNodeChanged.emit(segmentation)
        self.updateWidgetFromMRML()

    def setSourceVolumeNode(self, volume):
        if self._node is None:
            return
        segmentation = self.segmentationNode()
        if segmentation is not None and volume is not None:
            role = slicer.vtkMRMLSegmentationNode.GetReferenceImageGeometryReferenceRole()
            if segmentation.GetNodeReference(role) is None and not segmentation.GetSegmentation().GetNumberOfSegments():
                segmentation.SetReferenceImageGeometryParameterFromVolumeNode(volume)
        if volume is not self._node.GetSourceVolumeNode():
            self._node.SetAndObserveSourceVolumeNode(volume)
            self.sourceVolumeNodeChanged.emit(volume)
        self.updateWidgetFromMRML()

    def currentSegmentID(self):
        return (self._node.GetSelectedSegmentID() or "") if self._node is not None else ""

    def setCurrentSegmentID(self, id):
        if id != self.currentSegmentID():
            self._node.SetSelectedSegmentID(id)
            self.updateWidgetFromMRML()
            self.currentSegmentIDChanged.emit(id)

    def updateWidgetFromMRML(self):
        segmentation = self.segmentationNode()
        self._selectors["segmentation"].setCurrentNode(segmentation)
        self._selectors["source"].setCurrentNode(self.sourceVolumeNode())
        if segmentation is not self._observed:
            for observed, tag in self._tags:
                observed.RemoveObserver(tag)
            self._observed = segmentation
            self._history.SetSegmentation(segmentation.GetSegmentation() if segmentation is not None else None)
            self._tags = []
            if segmentation is not None:
                for event in ("SegmentAdded", "SegmentRemoved", "SegmentModified"):
                    core = segmentation.GetSegmentation()
                    tag = core.AddObserver(getattr(slicer.vtkSegmentation, event), lambda *_: self._fill_table())
                    self._tags.append((core, tag))
        self._fill_table()

    def _ids(self):
        return list(self.segmentationNode().GetSegmentation().GetSegmentIDs()) if self.segmentationNode() is not None else []

    def _fill_table(self):
        blocked = self._table.blockSignals(True)
        ids = self._ids()
        self._table.setRowCount(len(ids))
        for row, id in enumerate(ids):
            segment = self.segmentationNode().GetSegmentation().GetSegment(id)
            swatch = qt.QTableWidgetItem()
            swatch.setBackground(qt.QColor.fromRgbF(*segment.GetColor()))
            self._table.setItem(row, 0, swatch)
            self._table.setItem(row, 1, qt.QTableWidgetItem(segment.GetName()))
            self._table.setRowHeight(row, 20)
        if self.currentSegmentID() in ids:
            self._table.selectRow(ids.index(self.currentSegmentID()))
        self._table.blockSignals(blocked)

    def _on_row(self, row):
        ids = self._ids()
        if 0 <= row < len(ids):
            self.setCurrentSegmentID(ids[row])

    # Effects and undo

    def availableEffectNames(self):
        return list(self._EFFECTS)

    def effectNameOrder(self):
        return list(self._order)

    def setEffectNameOrder(self, names):
        self._order = list(names)
        self._show_effects()

    def effectCount(self):
        return len(self._shown_effects())

    def activeEffect(self):
        return self._active

    def setActiveEffect(self, effect):
        self._active = effect

    def setActiveEffectByName(self, name):
        self._active = name or None

    def _shown_effects(self):
        rest = [name for name in self._EFFECTS if name not in self._order] if self._unordered else []
        return [name for name in self._order if name in self._EFFECTS] + rest

    def _show_effects(self):
        grid = self._effects.layout()
        while grid.count():
            grid.takeAt(0).widget().deleteLater()
        for index, name in enumerate(self._shown_effects()):
            button = qt.QToolButton(self._effects)
            button.text = name
            button.checkable = True
            button.setSizePolicy(qt.QSizePolicy.Expanding, qt.QSizePolicy.Fixed)
            button.clicked.connect(lambda checked, name=name: self.setActiveEffectByName(name if checked else ""))
            grid.addWidget(button, index // 3, index % 3)

    def saveStateForUndo(self):
        self._history.SaveState()

    def undo(self):
        self._history.RestorePreviousState()

    def redo(self):
        self._history.RestoreNextState()

    # Life cycle

    def installKeyboardShortcuts(self, parent=None):
        self._shortcuts = True

    def uninstallKeyboardShortcuts(self):
        self._shortcuts = False

    def setupViewObservations(self):
        self._observing = True

    def removeViewObservations(self):
        self._observing = False
