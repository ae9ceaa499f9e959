"""What is painted? The second section: segmentation, template, table of labels, stamp, the Segment Editor."""

from __future__ import annotations

import qt
import slicer
import vtk
from slicer.i18n import tr as _

from MedDPMLib.errors import MedDPMError
from MedDPMLib.labels import LabelScheme
from MedDPMLib.scene import dependencies, painting
from MedDPMLib.scene.panel.telling import say
from MedDPMLib.scene.segmentation import missing_labels, set_label, table_of
from MedDPMLib.scene.worker_client import Signal
from MedDPMLib.templates import find_template, load_template, templates

#: Milliseconds without a further edit until the mask counts as changed.
_REST = 700

#: Effects of the Segment Editor in this order, the rest behind them is left out.
_EFFECTS = [
    "Paint", "Draw", "Erase", "Threshold", "Scissors", "Islands", "Smoothing", "Margin", "Hollow", "Logical operators",
    "Grow from seeds", "Fill between slices",
]  # fmt: skip

#: Own tag: the panel's editor keeps its choices apart from those of the Segment Editor module.
_EDITOR_TAG = "MedDPM"


class MaskSection:
    """Signals: ``edited`` (a moment after the last edit), ``started`` (the segmentation made from a template)."""

    def __init__(self, ui) -> None:
        self._ui = ui
        self.edited, self.started = Signal(), Signal()
        self._scheme: LabelScheme | None = None
        self._segmentation: slicer.vtkMRMLSegmentationNode | None = None
        self._observed: list[tuple[vtk.vtkObject, int]] = []
        self._stamps = 0
        self.editor = slicer.qMRMLSegmentEditorWidget()
        self.editor.maximumNumberOfUndoStates = 10
        self.editor.segmentationNodeSelectorVisible = False
        self.editor.setEffectNameOrder(_EFFECTS)
        self.editor.unorderedEffectsVisible = False
        ui.editorPlace.layout().addWidget(self.editor)
        self._rest = qt.QTimer()
        self._rest.setSingleShot(True)
        self._rest.interval = _REST
        self._rest.timeout.connect(self.edited.emit)
        self._refresh = qt.QTimer()  # many events, one table
        self._refresh.setSingleShot(True)
        self._refresh.interval = 0
        self._refresh.timeout.connect(self._fill_table)
        for template in templates():
            ui.templateBox.addItem(template.title, template.name)
        table = ui.labelTable
        table.setColumnCount(2)
        table.setHorizontalHeaderLabels([_("Segment"), _("Label")])
        table.horizontalHeader().setSectionResizeMode(qt.QHeaderView.Stretch)
        table.verticalHeader().hide()
        table.setEditTriggers(qt.QAbstractItemView.NoEditTriggers)
        table.setSelectionMode(qt.QAbstractItemView.NoSelection)
        ui.templateButton.clicked.connect(self._on_template)
        ui.addMissingButton.clicked.connect(self._on_add_missing)
        ui.brainButton.clicked.connect(self._on_brain)
        ui.stampButton.clicked.connect(self._on_stamp)
        ui.brainSelector.currentNodeChanged.connect(self._on_brain_volume)
        say(ui.maskMessage, "")
        self._fill_table()

    # What is chosen ----------------------------------------------------------------------------------

    @property
    def table(self) -> dict[str, int]:
        """Segment ID to label value."""
        if self._segmentation is None or self._scheme is None:
            return {}
        return table_of(self._segmentation, self._scheme)

    def set_scheme(self, scheme: LabelScheme | None) -> None:
        self._scheme = scheme
        self._fill_table()

    def set_segmentation(self, segmentation: slicer.vtkMRMLSegmentationNode | None) -> None:
        if segmentation is self._segmentation:
            return
        self.forget()
        self._segmentation = segmentation
        if segmentation is not None:
            events = slicer.vtkSegmentation
            for event in (events.SegmentAdded, events.SegmentRemoved, events.SegmentModified):
                self._observe(segmentation.GetSegmentation(), event, self._on_segments)
            self._observe(segmentation.GetSegmentation(), events.SourceRepresentationModified, self._on_edit)
        if self.editor.mrmlSegmentEditorNode() is not None:  # else :meth:`enter` does it
            self.editor.setSegmentationNode(segmentation)
        self._fill_table()

    def forget(self) -> None:
        """Lets go of the segmentation, which may be about to go."""
        for observed, tag in self._observed:
            observed.RemoveObserver(tag)
        self._observed = []
        self._segmentation = None
        self._rest.stop()
        self._refresh.stop()

    def _observe(self, observed: vtk.vtkObject, event: int, slot) -> None:
        self._observed.append((observed, observed.AddObserver(event, slot)))

    def _on_segments(self, *_arguments) -> None:
        self._refresh.start()

    def _on_edit(self, *_arguments) -> None:
        self._rest.start()

    # Life cycle of the editor ------------------------------------------------------------------------

    def enter(self) -> None:
        node = slicer.mrmlScene.GetSingletonNode(_EDITOR_TAG, "vtkMRMLSegmentEditorNode")
        if node is None:
            node = slicer.vtkMRMLSegmentEditorNode()
            node.SetSingletonTag(_EDITOR_TAG)
            node = slicer.mrmlScene.AddNode(node)
        self.editor.setMRMLSegmentEditorNode(node)
        self.editor.setMRMLScene(slicer.mrmlScene)
        self.editor.setSegmentationNode(self._segmentation)
        self.editor.setupViewObservations()
        self.editor.installKeyboardShortcuts()
        self.editor.updateWidgetFromMRML()

    def exit(self) -> None:
        self.editor.setActiveEffect(None)
        self.editor.uninstallKeyboardShortcuts()
        self.editor.removeViewObservations()

    def close_scene(self) -> None:
        self.set_segmentation(None)
        self.editor.removeViewObservations()
        say(self._ui.maskMessage, "")

    # The table ---------------------------------------------------------------------------------------

    def _fill_table(self) -> None:
        ui, segmentation, scheme = self._ui, self._segmentation, self._scheme
        table, values = ui.labelTable, self.table
        ids = list(segmentation.GetSegmentation().GetSegmentIDs()) if segmentation and scheme else []
        table.setRowCount(len(ids))
        for row, id_ in enumerate(ids):
            segment = segmentation.GetSegmentation().GetSegment(id_)
            item = qt.QTableWidgetItem(segment.GetName())
            item.setData(qt.Qt.DecorationRole, qt.QColor.fromRgbF(*segment.GetColor()))
            table.setItem(row, 0, item)
            table.setCellWidget(row, 1, self._label_box(id_, values))
        self._show_missing(values)
        ready = segmentation is not None and scheme is not None
        ui.stampButton.enabled = ready
        ui.templateButton.enabled = scheme is not None
        self._on_brain_volume()

    def _label_box(self, id_: str, values: dict[str, int]) -> qt.QComboBox:
        box = qt.QComboBox()
        box.addItem(_("(not used)"), 0)
        for label in self._scheme.labels:
            box.addItem(label.name, label.value)
        box.currentIndex = box.findData(values[id_] if id_ in values else 0)
        box.toolTip = _("Which label of the model this segment is")

        def choose(index):
            self._choose_label(id_, box.itemData(index))

        box.currentIndexChanged.connect(choose)
        return box

    def _choose_label(self, id_: str, value: int) -> None:
        set_label(self._segmentation, id_, self._scheme, value)
        self._show_missing(self.table)
        self._rest.start()

    def _show_missing(self, values: dict[str, int]) -> None:
        missing = missing_labels(values, self._scheme) if self._segmentation and self._scheme else ()
        self._ui.addMissingButton.visible = bool(missing)
        self._ui.missingLabel.visible = bool(missing)
        self._ui.missingLabel.text = _("No segment for: {labels}").format(
            labels=", ".join(label.name for label in missing)
        )

    # Painting ----------------------------------------------------------------------------------------

    def _attempt(self, action) -> None:
        """Does it, and says below the editor what went wrong or what was found."""
        try:
            say(self._ui.maskMessage, action() or "")
        except MedDPMError as error:
            say(self._ui.maskMessage, str(error))

    def _on_template(self) -> None:
        self._attempt(self._start_from_template)

    def _start_from_template(self) -> None:
        dependencies.ensure()
        template = find_template(self._ui.templateBox.currentData)
        mask = load_template(template.name, self._scheme)
        node = painting.add_segmentation(mask.volume, self._scheme, template.title)
        self.started.emit(node)

    def _on_add_missing(self) -> None:
        self.editor.saveStateForUndo()
        painting.add_segments(self._segmentation, missing_labels(self.table, self._scheme))
        self._fill_table()

    def _on_brain_volume(self, node=None) -> None:
        ready = self._segmentation is not None and self._scheme is not None
        self._ui.brainButton.enabled = ready and self._ui.brainSelector.currentNode() is not None

    def _on_brain(self) -> None:
        self._attempt(self._fill_brain)

    def _fill_brain(self) -> str:
        self.editor.saveStateForUndo()
        image = self._ui.brainSelector.currentNode()
        return painting.fill_brain(self._segmentation, self.table, self._scheme, image)

    def _on_stamp(self) -> None:
        self._attempt(self._stamp)

    def _stamp(self) -> None:
        self.editor.saveStateForUndo()
        radius = self._ui.stampSlider.value
        painting.stamp_tumour(
            self._segmentation, self.table, self._scheme, _crosshair(), radius, seed=self._stamps
        )
        self._stamps += 1  # each has its own outline


def _crosshair() -> tuple[float, float, float]:
    """Where the crosshair is, RAS in mm."""
    node = slicer.mrmlScene.GetFirstNodeByClass("vtkMRMLCrosshairNode")
    return tuple(node.GetCrosshairRAS()) if node is not None else (0.0, 0.0, 0.0)
