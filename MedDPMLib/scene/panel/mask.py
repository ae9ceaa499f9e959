"""What is painted? The second section: segmentation, template, table of labels, stamp, the Segment Editor."""

from __future__ import annotations

from functools import partial

import qt
import slicer
import vtk
from slicer.i18n import tr as _

from MedDPMLib.errors import MedDPMError
from MedDPMLib.masks.schemes import LabelScheme
from MedDPMLib.masks.templates import find_template, load_template, templates
from MedDPMLib.scene import dependencies, painting, volumes
from MedDPMLib.scene.background_work import Turns, Work
from MedDPMLib.scene.panel.messages import say
from MedDPMLib.scene.segmentation import missing_labels, set_label, table_of
from MedDPMLib.scene.views import show_background, show_crosshair, shown_background
from MedDPMLib.scene.worker_client import Signal

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
        self._turns = Turns()
        self.editor = slicer.qMRMLSegmentEditorWidget()
        self.editor.maximumNumberOfUndoStates = 10
        self.editor.segmentationNodeSelectorVisible = False
        self.editor.setEffectNameOrder(_EFFECTS)
        self.editor.unorderedEffectsVisible = False
        # Where the module is the first to be opened, effects are registered later.
        slicer.qSlicerSegmentEditorEffectFactory.instance().connect("effectRegistered(QString)", self._on_effect)
        ui.editorPlace.layout().addWidget(self.editor)
        self._rest = qt.QTimer()
        self._rest.setSingleShot(True)
        self._rest.interval = _REST
        self._rest.timeout.connect(self.edited.emit)
        self._refresh = qt.QTimer()  # many events, one table
        self._refresh.setSingleShot(True)
        self._refresh.interval = 0
        self._refresh.timeout.connect(self._fill_table)
        self._source = qt.QTimer()
        self._source.setSingleShot(True)
        self._source.interval = 0
        self._source.timeout.connect(self._choose_source)
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
        self._fold_labels()

    def stop(self) -> None:
        """Lets go of everything: the module is about to go."""
        slicer.qSlicerSegmentEditorEffectFactory.instance().disconnect("effectRegistered(QString)", self._on_effect)
        self.forget()

    def _on_effect(self, name: str) -> None:
        self.editor.updateEffectList()

    # What is chosen ----------------------------------------------------------------------------------

    @property
    def table(self) -> dict[str, int]:
        """Segment ID to label value."""
        if self._segmentation is None or self._scheme is None:
            return {}
        return table_of(self._segmentation, self._scheme)

    @property
    def busy(self) -> bool:
        """Whether something is being painted that takes more than a moment."""
        return self._turns.busy

    def set_scheme(self, scheme: LabelScheme | None) -> None:
        self._scheme = scheme
        self._fill_table()
        self._fold_labels()

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
            self.check_source()
        self._fill_table()
        self._fold_labels()

    def forget(self) -> None:
        """Lets go of the segmentation, which may be about to go."""
        for observed, tag in self._observed:
            observed.RemoveObserver(tag)
        self._observed = []
        self._segmentation = None
        self._rest.stop()
        self._refresh.stop()
        self._source.stop()
        self._turns.stop()
        self._show_busy()

    def check_source(self) -> None:
        """Sees to it, once the event loop comes round, that there is a volume to paint over."""
        self._source.start()

    def _choose_source(self) -> None:
        """The newest result of this mask; else what the editor has; else what the views show; else a blank volume."""
        segmentation, editor = self._segmentation, self.editor
        if segmentation is None or editor.mrmlSegmentEditorNode() is None:
            return
        made, sheet = volumes.results_of(segmentation), volumes.sheet_of(segmentation)
        source = editor.sourceVolumeNode()
        if source is not None and (source is not sheet or not made):
            return
        if not made and sheet is None and shown_background() is not None:
            editor.setSourceVolumeNode(shown_background())
            return
        try:
            source = made[-1] if made else sheet or volumes.add_sheet(segmentation)
        except MedDPMError:  # without a geometry; the editor asks for a source volume itself
            return
        editor.setSourceVolumeNode(source)
        show_background(source, fit=not made and sheet is None)

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
        self.check_source()

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
        self._show_assigned(values)
        self._show_busy()

    def _label_box(self, id_: str, values: dict[str, int]) -> qt.QComboBox:
        box = qt.QComboBox()
        box.addItem(_("(not used)"), 0)
        for label in self._scheme.labels:
            box.addItem(label.name, label.value)
        box.currentIndex = box.findData(values[id_] if id_ in values else 0)
        box.toolTip = _("Which label of the model this segment is")

        def choose(_changed=None):
            self._choose_label(id_, box.currentData)

        box.currentIndexChanged.connect(choose)
        return box

    def _choose_label(self, id_: str, value: int) -> None:
        set_label(self._segmentation, id_, self._scheme, value)
        self._show_assigned(self.table)
        self._rest.start()

    def _show_assigned(self, values: dict[str, int]) -> None:
        """How far the labels are assigned, in the section's title, and what is missing."""
        ui, section = self._ui, self._ui.labelsSection
        if self._segmentation is None or self._scheme is None:
            ui.addMissingButton.visible = ui.missingLabel.visible = False
            section.text = _("Labels")
            return
        missing = missing_labels(values, self._scheme)
        ui.addMissingButton.visible = ui.missingLabel.visible = bool(missing)
        ui.missingLabel.text = _("No segment for: {labels}").format(labels=", ".join(label.name for label in missing))
        count = len(self._scheme.labels)
        text = _("Labels: {found} of {count} found").format(found=count - len(missing), count=count)
        unused = self._segmentation.GetSegmentation().GetNumberOfSegments() - len(values)
        if unused:
            text += _(", {unused} segments not used").format(unused=unused)
        section.text = text

    def _fold_labels(self) -> None:
        """Shows the table of another segmentation or model if there is something to look at."""
        values, scheme, segmentation = self.table, self._scheme, self._segmentation
        if segmentation is None or scheme is None:
            self._ui.labelsSection.collapsed = True
            return
        unused = segmentation.GetSegmentation().GetNumberOfSegments() > len(values)
        self._ui.labelsSection.collapsed = not unused and not missing_labels(values, scheme)

    # Painting ----------------------------------------------------------------------------------------

    def _begin(self, work: Work, done) -> None:
        """Does ``work`` while the panel stays alive, and says below what went wrong."""
        self._turns.start(work, lambda result: self._ended(done, result), self._failed)
        self._show_busy()

    def _ended(self, done, result) -> None:
        self._show_busy()
        say(self._ui.maskMessage, done(result) or "")

    def _failed(self, error: Exception) -> None:
        self._show_busy()
        if not isinstance(error, MedDPMError):
            raise error
        say(self._ui.maskMessage, error)

    def _show_busy(self) -> None:
        """One thing at a time; a button says by itself that it works."""
        ui, busy = self._ui, self._turns.busy
        ready = self._segmentation is not None and self._scheme is not None and not busy
        ui.templateButton.enabled = self._scheme is not None and not busy
        ui.stampButton.enabled = ui.addMissingButton.enabled = ready
        ui.brainButton.enabled = ready and ui.brainSelector.currentNode() is not None

    def _on_template(self) -> None:
        try:
            dependencies.ensure()
        except MedDPMError as error:
            say(self._ui.maskMessage, error)
            return
        self._begin(_start(self._ui.templateBox.currentData, self._scheme), self._show_started)

    def _show_started(self, segmentation: slicer.vtkMRMLSegmentationNode) -> None:
        self.started.emit(segmentation)
        show_background(volumes.sheet_of(segmentation), fit=True)
        show_crosshair()
        tumour = next(iter((*self._scheme.of_tissue("rim"), *self._scheme.tumour)), None)
        if tumour is not None:  # what most will paint first
            self.editor.setCurrentSegmentID(tumour.name)

    def _on_add_missing(self) -> None:
        self.editor.saveStateForUndo()
        painting.add_segments(self._segmentation, missing_labels(self.table, self._scheme))
        self._fill_table()

    def _on_brain_volume(self, _node=None) -> None:
        self._show_busy()

    def _on_brain(self) -> None:
        self.editor.saveStateForUndo()
        image = self._ui.brainSelector.currentNode()
        work = painting.filling_brain(self._segmentation, self.table, self._scheme, image)
        self._begin(work, lambda note: note)

    def _on_stamp(self) -> None:
        self.editor.saveStateForUndo()
        work = painting.stamping_tumour(
            self._segmentation, self.table, self._scheme, _crosshair(), self._ui.stampSlider.value, seed=self._stamps
        )
        self._begin(work, self._count_stamp)

    def _count_stamp(self, _nothing) -> None:
        self._stamps += 1  # each has its own outline


def _start(name: str, scheme: LabelScheme) -> Work:
    """A segmentation of the template called ``name``, with a blank volume to paint over."""
    mask = yield partial(load_template, name, scheme)
    segmentation = painting.add_segmentation(mask.volume, scheme, find_template(name).title)
    yield
    volumes.add_sheet(segmentation)
    yield
    return segmentation


def _crosshair() -> tuple[float, float, float]:
    """Where the crosshair is, RAS in mm."""
    node = slicer.mrmlScene.GetFirstNodeByClass("vtkMRMLCrosshairNode")
    return tuple(node.GetCrosshairRAS()) if node is not None else (0.0, 0.0, 0.0)
