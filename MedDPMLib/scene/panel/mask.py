"""What is painted? The second section: segmentation, template, table of labels, stamp, the Segment Editor."""

from __future__ import annotations

import numpy as np
import qt
import slicer
import vtk
from slicer.i18n import tr as _

from MedDPMLib.errors import MedDPMError
from MedDPMLib.masks.numberings import shows_brain
from MedDPMLib.masks.schemes import LabelScheme
from MedDPMLib.masks.templates import can_hold_templates, templates
from MedDPMLib.scene import dependencies, painting, volumes
from MedDPMLib.scene.background_work import BackgroundWork, Work
from MedDPMLib.scene.panel.labels import LabelTable
from MedDPMLib.scene.panel.messages import say
from MedDPMLib.scene.segmentation import fingerprint, missing_labels
from MedDPMLib.scene.surface import replace_slow_surfaces
from MedDPMLib.scene.views import (
    is_outlined,
    show_background,
    show_crosshair,
    show_only,
    show_outline,
    show_place,
    shown_background,
)
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
    """Signals: ``edited`` (a moment after the last edit), ``started`` (the segmentation made from a template),
    ``surfaced`` (Slicer's own surfaces, which slow each stroke down, have been removed)."""

    def __init__(self, ui) -> None:
        self._ui = ui
        self.edited, self.started, self.surfaced = Signal(), Signal(), Signal()
        self._scheme: LabelScheme | None = None
        self._segmentation: slicer.vtkMRMLSegmentationNode | None = None
        self._observed: list[tuple[vtk.vtkObject, int]] = []
        self._painted: tuple = ()
        self._stamps = 0
        self.labels = LabelTable(ui)
        self.labels.changed.connect(self._on_label)
        self._work = BackgroundWork()
        self.editor = slicer.qMRMLSegmentEditorWidget()
        self.editor.maximumNumberOfUndoStates = 10
        self.editor.segmentationNodeSelectorVisible = False
        self.editor.setEffectNameOrder(_EFFECTS)
        self.editor.unorderedEffectsVisible = False
        if hasattr(self.editor, "show3DButtonVisible"):  # the panel has surfaces of its own, which do not slow it down
            self.editor.show3DButtonVisible = False
        # Where the module is the first to be opened, effects are registered later.
        slicer.qSlicerSegmentEditorEffectFactory.instance().connect("effectRegistered(QString)", self._on_effect)
        # What the views show is decided here; the editor would replace what lies over its source volume.
        self.editor.autoShowSourceVolumeNode = False
        self.editor.setSizePolicy(qt.QSizePolicy.Preferred, qt.QSizePolicy.Maximum)  # no gap below it
        self.editor.currentSegmentIDChanged.connect(self._on_segment_selected)
        ui.editorPlace.layout().addWidget(self.editor)
        self._rest = qt.QTimer()
        self._rest.setSingleShot(True)
        self._rest.interval = _REST
        self._rest.timeout.connect(self._on_rest)
        self._refresh = qt.QTimer()  # many events, one table
        self._refresh.setSingleShot(True)
        self._refresh.interval = 0
        self._refresh.timeout.connect(self._fill_table)
        self._slow = qt.QTimer()
        self._slow.setSingleShot(True)
        self._slow.interval = 0
        self._slow.timeout.connect(self._replace_surfaces)
        self._source = qt.QTimer()
        self._source.setSingleShot(True)
        self._source.interval = 0
        self._source.timeout.connect(self._choose_source)
        for template in templates():
            ui.templateBox.addItem(template.title, template.name)
        ui.templateButton.clicked.connect(self._on_template)
        ui.addMissingButton.clicked.connect(self._on_add_missing)
        ui.brainButton.clicked.connect(self._on_brain)
        ui.stampButton.clicked.connect(self._on_stamp)
        ui.brainSelector.currentNodeChanged.connect(self._on_brain_volume)
        say(ui.maskMessage, "")
        ui.editorPlace.visible = False
        self._fill_table()

    def stop(self) -> None:
        """Drops all references: the module is about to be closed."""
        slicer.qSlicerSegmentEditorEffectFactory.instance().disconnect("effectRegistered(QString)", self._on_effect)
        self.forget()

    def _on_effect(self, name: str) -> None:
        self.editor.updateEffectList()

    # What is chosen ----------------------------------------------------------------------------------

    @property
    def table(self) -> dict[str, int]:
        """Segment ID to label value."""
        return self.labels.values

    @property
    def busy(self) -> bool:
        """Whether something is being painted that takes more than a moment."""
        return self._work.busy

    def set_scheme(self, scheme: LabelScheme | None) -> None:
        self._scheme = scheme
        self._offer(scheme)
        self._fill_table()

    def _offer(self, scheme: LabelScheme | None) -> None:
        """Shows what can be done with ``scheme``: templates are brains, a stamp is a tumor, a rest can be filled."""
        ui = self._ui
        offered = {
            (ui.templateLabel, ui.templateBox, ui.templateButton): scheme is None or can_hold_templates(scheme),
            (ui.brainLabel, ui.brainSelector, ui.brainButton): scheme is None or scheme.rest is not None,
            (ui.stampLabel, ui.stampSlider, ui.stampButton): scheme is None or bool(scheme.tumor),
        }
        for widgets, is_offered in offered.items():
            for widget in widgets:
                widget.visible = is_offered
        if scheme is not None and scheme.rest is not None and not shows_brain(scheme):
            ui.brainLabel.text = _("{label} from volume:").format(label=scheme.rest.name)
        else:
            ui.brainLabel.text = _("Brain from volume:")

    def set_segmentation(self, segmentation: slicer.vtkMRMLSegmentationNode | None) -> None:
        if segmentation is self._segmentation:
            return
        self.forget()
        say(self._ui.maskMessage, "")  # it referred to another mask
        self._segmentation = segmentation
        if segmentation is not None:
            events = slicer.vtkSegmentation
            for event in (events.SegmentAdded, events.SegmentRemoved, events.SegmentModified):
                self._observe(segmentation.GetSegmentation(), event, self._on_segments)
            # Undo and redo send SegmentModified alone, as a change of name does: what changed is determined later.
            for event in (events.SegmentModified, events.SegmentRemoved, events.SourceRepresentationModified):
                self._observe(segmentation.GetSegmentation(), event, self._on_edit)
            self._observe(
                segmentation.GetSegmentation(), events.ContainedRepresentationNamesModified, self._on_surfaces
            )
            self._slow.start()
            self._painted = fingerprint(segmentation)
            show_only(segmentation)
        self._ui.editorPlace.visible = segmentation is not None
        if self.editor.mrmlSegmentEditorNode() is not None:  # else :meth:`enter` does it
            self.editor.setSegmentationNode(segmentation)
            self.check_source()
        self._fill_table()

    def forget(self) -> None:
        """Drops the segmentation, which may be about to be removed."""
        for observed, tag in self._observed:
            observed.RemoveObserver(tag)
        self._observed = []
        self._segmentation = None
        self._rest.stop()
        self._refresh.stop()
        self._slow.stop()
        self._source.stop()
        self._work.stop()
        self._show_busy()

    def check_source(self) -> None:
        """Makes sure, in the next pass of the event loop, that there is a volume to paint over."""
        self._source.start()

    def _choose_source(self) -> None:
        """What the user has chosen; else the newest result of this mask, what the views show, or a blank volume."""
        segmentation, editor = self._segmentation, self.editor
        if segmentation is None or editor.mrmlSegmentEditorNode() is None:
            return
        shown, sheet = shown_background(), volumes.sheet_of(segmentation)
        made = volumes.result_to_show(segmentation, volumes.modality_of(shown))
        free = shown is None or volumes.is_sheet(shown) or self._is_foreign(shown)
        source = editor.sourceVolumeNode()
        if source is not None and not volumes.is_sheet(source) and not self._is_foreign(source):
            if free:
                show_background(source, fit=shown is None)
            return
        if made is not None:
            self.paint_over(made)
            if free:
                show_background(made, fit=shown is None)
                show_outline(segmentation, True)
            return
        if sheet is None and not free and not volumes.is_synthetic(shown):
            self.paint_over(shown)
            return
        try:
            source, new = sheet or volumes.add_sheet(segmentation), sheet is None
        except MedDPMError:  # without a geometry; the editor asks for a source volume itself
            return
        self.paint_over(source)
        if free and shown is not source:
            show_background(source, fit=new)

    def _is_foreign(self, node: slicer.vtkMRMLVolumeNode) -> bool:
        """Whether ``node`` was generated from another segmentation, as far as is known of it."""
        made_from = node.GetNodeReference(volumes.SEGMENTATION_ROLE)
        loaded = made_from is None and node.GetStorageNode() is not None
        return volumes.is_synthetic(node) and made_from is not self._segmentation and not loaded

    def paint_over(self, volume: slicer.vtkMRMLVolumeNode) -> None:
        """Makes ``volume`` the source volume, here and where the Segment Editor module opens this segmentation."""
        if self._segmentation is not None:
            volumes.paint_over(self._segmentation, volume)
            self.editor.setSourceVolumeNode(volume)

    def _observe(self, observed: vtk.vtkObject, event: int, slot) -> None:
        self._observed.append((observed, observed.AddObserver(event, slot)))

    def _on_segments(self, *_arguments) -> None:
        self._refresh.start()

    def _on_surfaces(self, *_arguments) -> None:
        self._slow.start()

    def _replace_surfaces(self) -> None:
        if self._segmentation is not None and replace_slow_surfaces(self._segmentation):
            text = _(
                'with "Show 3D", each stroke makes the surfaces of all segments again: the tumor in the brain is shown'
                " instead, and follows when you pause"
            )
            say(self._ui.maskMessage, text)
            self.surfaced.emit()

    def _on_edit(self, *_arguments) -> None:
        self._rest.start()

    def _on_label(self) -> None:
        self._painted = ()  # the same segments mean something else
        self._rest.start()

    def _on_rest(self) -> None:
        """Some time has passed without an edit: emits ``edited`` if the mask has changed."""
        if self._segmentation is None:
            return
        painted = fingerprint(self._segmentation)
        if painted != self._painted:
            self._painted = painted
            self.edited.emit()

    def _on_segment_selected(self, _id=None) -> None:
        """Makes the segment that is being painted visible in the list and in the views."""
        if self._segmentation is not None and is_outlined(self._segmentation):
            show_outline(self._segmentation, True)
        for name in ("QTableView", "QTableWidget", "qMRMLSegmentsTableView"):
            for table in slicer.util.findChildren(self.editor, className=name):
                if hasattr(table, "selectionModel") and hasattr(table, "scrollTo"):
                    for index in table.selectionModel().selectedRows()[:1]:
                        table.scrollTo(index)

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
        display = self._segmentation.GetDisplayNode() if self._segmentation is not None else None
        if display is not None and not display.GetVisibility():  # another module has shown another one
            show_only(self._segmentation)
        self.check_source()

    def settle(self) -> None:
        """Makes sure that the editor has the chosen segmentation: the end of a batch of changes removes it."""
        if self.editor.mrmlSegmentEditorNode() is not None:
            if self.editor.segmentationNode() is not self._segmentation:
                self.editor.setSegmentationNode(self._segmentation)
            self.check_source()

    def exit(self) -> None:
        self.editor.setActiveEffect(None)
        self.editor.uninstallKeyboardShortcuts()
        self.editor.removeViewObservations()

    def close_scene(self) -> None:
        self.forget()  # also what is still being made, with nothing chosen yet
        self.set_segmentation(None)
        self.editor.removeViewObservations()
        say(self._ui.maskMessage, "")

    # The table ---------------------------------------------------------------------------------------

    def _fill_table(self) -> None:
        self.labels.show(self._segmentation, self._scheme)
        self._show_busy()

    # Painting ----------------------------------------------------------------------------------------

    def _begin(self, work: Work, done) -> None:
        """Does ``work`` while the panel stays responsive, and reports errors below."""
        self._work.start(work, lambda result: self._ended(done, result), self._failed)
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
        """One thing at a time; a button shows that it is busy."""
        ui, busy = self._ui, self._work.busy
        ready = self._segmentation is not None and self._scheme is not None and not busy
        ui.templateButton.enabled = self._scheme is not None and not busy
        ui.stampButton.enabled = ui.addMissingButton.enabled = ready
        ui.brainButton.enabled = ready and ui.brainSelector.currentNode() is not None

    def _on_template(self) -> None:
        try:
            dependencies.ensure(torch=False)
        except MedDPMError as error:
            say(self._ui.maskMessage, error)
            return
        self._begin(painting.starting(self._ui.templateBox.currentData, self._scheme), self._show_started)

    def _show_started(self, started: tuple[slicer.vtkMRMLSegmentationNode, np.ndarray | None]) -> None:
        segmentation, center = started
        self.started.emit(segmentation)
        self._begin(self._showing(segmentation, center), lambda _nothing: None)

    def _showing(self, segmentation: slicer.vtkMRMLSegmentationNode, center: np.ndarray | None) -> Work:
        """The work of opening the views at what was started, a little at a time."""
        yield
        show_background(volumes.sheet_of(segmentation), fit=True)
        yield
        show_crosshair()
        if center is not None:
            show_place(center)
        yield
        tumor = next(iter((*self._scheme.of_tissue("rim"), *self._scheme.tumor)), None)
        if tumor is not None:  # what most users paint first
            self.editor.setCurrentSegmentID(tumor.name)
        # The next step is to paint.
        self._ui.sections.verticalScrollBar().setValue(
            self._ui.editorPlace.mapTo(self._ui.sectionsPlace, qt.QPoint(0, 0)).y()
        )

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
        work = painting.stamping_tumor(
            self._segmentation, self.table, self._scheme, _crosshair(), self._ui.stampSlider.value, seed=self._stamps
        )
        self._begin(work, self._count_stamp)

    def _count_stamp(self, _nothing) -> None:
        self._stamps += 1  # each has its own outline


def _crosshair() -> tuple[float, float, float]:
    """Where the crosshair is, RAS in mm."""
    node = slicer.mrmlScene.GetFirstNodeByClass("vtkMRMLCrosshairNode")
    return tuple(node.GetCrosshairRAS()) if node is not None else (0.0, 0.0, 0.0)
