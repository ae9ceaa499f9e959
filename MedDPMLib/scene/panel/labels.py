"""Which segment is which label? The table of labels, and the question about a painted segment that has none."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

import qt
import slicer
from slicer.i18n import tr as _

from MedDPMLib.errors import MedDPMError
from MedDPMLib.imaging.io import NIFTI_SUFFIXES
from MedDPMLib.imaging.nifti import check_place
from MedDPMLib.masks.readings import AmbiguousLabels
from MedDPMLib.masks.schemes import LabelScheme
from MedDPMLib.scene.numbered_segments import numbered_segments, read_numbers, take_reading
from MedDPMLib.scene.panel.readings import ask_reading
from MedDPMLib.scene.segmentation import likely_label, missing_labels, set_label, table_of, unlabeled_segments
from MedDPMLib.scene.worker_client import Signal

#: So many segments of one label are listed each in a row; more of them share one, which unfolds.
_LISTED = 3


class LabelTable:
    """A row for each segment. Signal: ``changed`` (the user chose a label)."""

    def __init__(self, ui) -> None:
        self._ui = ui
        self.changed = Signal()
        self._segmentation: slicer.vtkMRMLSegmentationNode | None = None
        self._scheme: LabelScheme | None = None
        #: Labels whose segments are listed each in a row, however many they are.
        self._unfolded: set[int] = set()
        table = ui.labelTable
        table.setColumnCount(2)
        table.setHorizontalHeaderLabels([_("Segment"), _("Label")])
        table.horizontalHeader().setSectionResizeMode(qt.QHeaderView.Stretch)
        table.verticalHeader().hide()
        table.setEditTriggers(qt.QAbstractItemView.NoEditTriggers)
        table.setSelectionMode(qt.QAbstractItemView.NoSelection)

    @property
    def values(self) -> dict[str, int]:
        """Segment ID to label value."""
        if self._segmentation is None or self._scheme is None:
            return {}
        return table_of(self._segmentation, self._scheme)

    def show(self, segmentation: slicer.vtkMRMLSegmentationNode | None, scheme: LabelScheme | None) -> None:
        """Fills the table; of another segmentation or scheme it is expanded if something needs attention."""
        other = segmentation is not self._segmentation or scheme is not self._scheme
        self._segmentation, self._scheme = segmentation, scheme
        if other:
            self._unfolded = set()
        table, values = self._ui.labelTable, self.values
        rows = self._rows(values)
        for row in range(table.rowCount):  # deleted when the event loop comes round
            if table.cellWidget(row, 1) is not None:
                table.cellWidget(row, 1).hide()
        table.setRowCount(len(rows))
        for row, ids in enumerate(rows):
            segments = [segmentation.GetSegmentation().GetSegment(id_) for id_ in ids]
            names = [segment.GetName() for segment in segments]
            several = len(ids) > 1
            item = qt.QTableWidgetItem(_("{count} segments").format(count=len(ids)) if several else names[0])
            item.setToolTip(", ".join(names))
            if not several:
                item.setData(qt.Qt.DecorationRole, qt.QColor.fromRgbF(*segments[0].GetColor()))
            table.setItem(row, 0, item)
            table.setCellWidget(
                row, 1, self._unfold_button(values[ids[0]]) if several else self._label_box(ids[0], values)
            )
        self._show_assigned(values)
        if other:
            self._fold(values)

    def _rows(self, values: dict[str, int]) -> list[list[str]]:
        """The segments of each row of the table: many structures that are one label of the model share the last."""
        if self._segmentation is None or self._scheme is None:
            return []
        ids = list(self._segmentation.GetSegmentation().GetSegmentIDs())
        groups = {value: [id_ for id_ in ids if values.get(id_) == value] for value in values.values()}
        folded = [group for value, group in groups.items() if len(group) > _LISTED and value not in self._unfolded]
        hidden = {id_ for group in folded for id_ in group}
        return [[id_] for id_ in ids if id_ not in hidden] + folded

    def _unfold_button(self, value: int) -> qt.QPushButton:
        label = self._scheme.label_by_value(value)
        button = qt.QPushButton(_("{label} (list them)").format(label=label.name))
        button.setFlat(True)
        button.toolTip = _("These segments together are one label of the model: click to list them")

        def unfold(_checked=None):
            self._unfolded.add(value)
            qt.QTimer.singleShot(0, lambda: self.show(self._segmentation, self._scheme))  # the button goes

        button.clicked.connect(unfold)
        return button

    def _label_box(self, id_: str, values: dict[str, int]) -> qt.QComboBox:
        box = _label_choices(self._scheme)
        box.currentIndex = box.findData(values[id_] if id_ in values else 0)
        box.toolTip = _("Which label of the model this segment is")

        def choose(_changed=None):
            set_label(self._segmentation, id_, self._scheme, box.currentData)
            self._show_assigned(self.values)
            self.changed.emit()

        box.currentIndexChanged.connect(choose)
        return box

    def _show_assigned(self, values: dict[str, int]) -> None:
        """Shows in the section's title how many labels are assigned, and which are missing."""
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
            several = _("{count} segments not used") if unused > 1 else _("{count} segment not used")
            text += ", " + several.format(count=unused)
        section.text = text

    def _fold(self, values: dict[str, int]) -> None:
        if self._segmentation is None or self._scheme is None:
            self._ui.labelsSection.collapsed = True
            return
        unused = self._segmentation.GetSegmentation().GetNumberOfSegments() > len(values)
        self._ui.labelsSection.collapsed = not unused and not missing_labels(values, self._scheme)

    def ask(self) -> bool:
        """Asks which labels the painted segments are that have none, if there are any; whether to continue.

        Raises :class:`MedDPMError` for a segmentation whose file gives two positions, or that is no brain.
        """
        if self._segmentation is None or self._scheme is None:
            return True
        _check_place(self._segmentation)
        if not self._read_numbers():
            return False
        open_ = unlabeled_segments(self._segmentation, self.values, self._scheme)
        if not open_:
            return True
        chosen = _ask(self._segmentation, open_, self._scheme)
        if chosen is None:
            return False
        for id_, value in chosen.items():
            set_label(self._segmentation, id_, self._scheme, value)
        self.show(self._segmentation, self._scheme)
        return True

    def _read_numbers(self) -> bool:
        """Reads the numbers of a segmentation that was a label map, as those of a file; whether to continue."""
        values = numbered_segments(self._segmentation, self.values, self._scheme)
        if not values:
            return True
        try:
            reading, why = read_numbers(self._segmentation, values, self._scheme)
        except AmbiguousLabels as error:
            if not any(not one.doubts for one in error.readings):
                return True  # nothing to choose from: each segment is asked about
            continues, reading = ask_reading(self._segmentation.GetName(), error.readings, self._scheme)
            if not continues or reading is None:
                return continues
            why = "as chosen in the panel"
        except MedDPMError as error:
            raise error.at(f'"{self._segmentation.GetName()}"') from error
        take_reading(self._segmentation, values, self._scheme, reading, why)
        self.show(self._segmentation, self._scheme)
        return True

    def unlabeled_names(self) -> list[str]:
        """The names of the segments that :meth:`ask` would ask about."""
        if self._segmentation is None or self._scheme is None:
            return []
        core = self._segmentation.GetSegmentation()
        open_ = unlabeled_segments(self._segmentation, self.values, self._scheme)
        return [core.GetSegment(id_).GetName() for id_ in open_]


def _check_place(segmentation: slicer.vtkMRMLSegmentationNode) -> None:
    """Refuses what was loaded from a NIfTI file that gives two positions: 3D Slicer takes one of them."""
    storage = segmentation.GetStorageNode()
    path = Path(storage.GetFileName() or "") if storage is not None else Path()
    if path.name.lower().endswith(NIFTI_SUFFIXES) and path.is_file():
        with suppress(ImportError):  # asked for when an image is to be generated
            check_place(path)


def _label_choices(scheme: LabelScheme) -> qt.QComboBox:
    box = qt.QComboBox()
    box.setSizeAdjustPolicy(qt.QComboBox.AdjustToMinimumContentsLengthWithIcon)
    box.addItem(_("(not used)"), 0)
    for label in (*scheme.tumor, *(label for label in scheme.labels if label not in scheme.tumor)):
        box.addItem(label.name, label.value)
    return box


def _ask(
    segmentation: slicer.vtkMRMLSegmentationNode, ids: Sequence[str], scheme: LabelScheme
) -> dict[str, int] | None:
    """The label values that the user chooses for the segments ``ids``; None if the user cancels."""
    dialog = qt.QDialog(slicer.util.mainWindow())
    dialog.setWindowTitle(_("Which label is this?"))
    layout = qt.QVBoxLayout(dialog)
    text = qt.QLabel(
        _("It is not known which label of the model these segments are. Choose what each of them is; a segment that is"
          " not used does not appear in the image.")
    )  # fmt: skip
    text.setWordWrap(True)
    layout.addWidget(text)
    form = qt.QFormLayout()
    layout.addLayout(form)
    boxes = {}
    for id_ in ids:
        name = segmentation.GetSegmentation().GetSegment(id_).GetName()
        boxes[id_] = box = _label_choices(scheme)
        box.setObjectName(id_)
        likely = likely_label(name, scheme)
        box.currentIndex = box.findData(likely.value) if likely is not None else 0
        form.addRow(f"{name}:", box)
    buttons = qt.QDialogButtonBox()
    buttons.setStandardButtons(qt.QDialogButtonBox.Ok | qt.QDialogButtonBox.Cancel)
    buttons.accepted.connect(dialog.accept)
    buttons.rejected.connect(dialog.reject)
    layout.addWidget(buttons)
    accepted = dialog.exec_() == qt.QDialog.Accepted
    chosen = {id_: box.currentData for id_, box in boxes.items()}
    dialog.deleteLater()
    return chosen if accepted else None
