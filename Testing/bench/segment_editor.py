"""``slicer.qMRMLSegmentEditorWidget``: Slicer's Segment Editor as a module that embeds it sees it."""

from __future__ import annotations

import slicer
from PySide6.QtCore import Property, Signal

from bench.mrml_widgets import _stop_observing, qMRMLNodeComboBox, qMRMLWidget
from bench.pythonqt import qt_module, standin

qt = qt_module()

#: Pixels that Slicer's widget needs in width, as its form is drawn.
_WIDTH = 413


class qSlicerSegmentEditorEffectFactory:
    """Where effects are registered; here all of them are from the start."""

    _instance = None

    def __init__(self):
        self._slots = []

    @classmethod
    def instance(cls):
        cls._instance = cls._instance or cls()
        return cls._instance

    def connect(self, signal, slot):
        assert signal == "effectRegistered(QString)"
        self._slots.append(slot)
        return True

    def disconnect(self, signal, slot):
        if slot not in self._slots:
            return False
        self._slots.remove(slot)
        return True

    def registerEffect(self, name):
        for slot in list(self._slots):
            slot(name)


@standin
class qMRMLSegmentEditorWidget(qMRMLWidget):
    """Selections, segment list, effects by name, undo.

    The list of segments and the row of effects are drawn so that a picture of the panel looks right; painting
    itself goes through the segmentation's own functions. As in Slicer, the selections live in the
    vtkMRMLSegmentEditorNode, undo in a vtkSegmentationHistory, using the widget before its parameter node is set is
    an error, a segmentation brings the volume of its reference geometry as source volume, a source volume is shown in
    the views, and without one the effects are disabled.
    """

    currentSegmentIDChanged = Signal(str)
    sourceVolumeNodeChanged = Signal(object)
    segmentationNodeChanged = Signal(object)
    _EFFECTS = [
        "Threshold", "Paint", "Draw", "Erase", "Level tracing", "Grow from seeds", "Fill between slices", "Margin",
        "Hollow", "Smoothing", "Scissors", "Islands", "Logical operators", "Mask volume",
    ]  # fmt: skip

    def __init__(self, parent=None):
        super().__init__(parent)
        self._node = None
        self._observed, self._tags = None, []
        self._scene_tag, self._shows_source, self._shows_3d_button = None, True, True
        self._order, self._unordered, self._active = [], True, None
        self._shortcuts, self._observing = False, False
        self._history = slicer.vtkSegmentationHistory()
        self._history.SetMaximumNumberOfStates(10)
        self.setMinimumWidth(_WIDTH)
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
    show3DButtonVisible = Property(
        bool, lambda self: self._shows_3d_button, lambda self, on: setattr(self, "_shows_3d_button", on)
    )
    autoShowSourceVolumeNode = Property(
        bool, lambda self: self._shows_source, lambda self, on: setattr(self, "_shows_source", on)
    )

    # Selections

    def setMRMLScene(self, scene):
        if scene is not self.mrmlScene():
            batch = slicer.vtkMRMLScene.EndBatchProcessEvent
            if self._scene_tag is not None:
                self.mrmlScene().RemoveObserver(self._scene_tag)
            observers = self._scene_observers = []
            if scene is not None:
                self._scene_tag = scene.AddObserver(batch, lambda *_: self._on_batch())
                observers.append((scene, self._scene_tag))
                self.destroyed.connect(lambda: _stop_observing(observers))
        super().setMRMLScene(scene)
        for selector in self._selectors.values():
            selector.setMRMLScene(scene)
        self.updateWidgetFromMRML()

    def _on_batch(self):
        if self._node is not None and not self.mrmlScene().IsClosing():
            self.setSegmentationNode(None)

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
            self.setActiveEffect(None)
            if segmentation is not None:
                role = slicer.vtkMRMLSegmentationNode.GetReferenceImageGeometryReferenceRole()
                self._selectors["source"].setCurrentNode(segmentation.GetNodeReference(role))
        self.updateWidgetFromMRML()

    def setSourceVolumeNode(self, volume):
        if self._node is None:
            return
        if volume is not self._node.GetSourceVolumeNode():
            self._node.SetAndObserveSourceVolumeNode(volume)
            if self._shows_source:
                self._show_source()
            self.sourceVolumeNodeChanged.emit(volume)
        self.updateWidgetFromMRML()

    def _show_source(self):
        volume = self._node.GetSourceVolumeNode()
        for composite in slicer.util.getNodesByClass("vtkMRMLSliceCompositeNode") if volume is not None else ():
            if volume.GetID() not in (composite.GetBackgroundVolumeID(), composite.GetForegroundVolumeID()):
                composite.SetBackgroundVolumeID(volume.GetID())
                composite.SetForegroundVolumeID(None)
                composite.SetLabelVolumeID(None)

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
        self._effects.enabled = self.sourceVolumeNode() is not None
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
        return (
            list(self.segmentationNode().GetSegmentation().GetSegmentIDs())
            if self.segmentationNode() is not None
            else []
        )

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

    def updateEffectList(self):
        self._show_effects()

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
