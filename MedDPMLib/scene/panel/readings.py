"""The question which label convention a segmentation has: what its values mean in each, with volumes, side by side."""

from __future__ import annotations

from collections.abc import Sequence

import qt
import slicer
from slicer.i18n import tr as _

from MedDPMLib.masks.readings import Reading, compare_readings
from MedDPMLib.masks.schemes import LabelScheme

#: Pixels of the table: the most that it takes without scrolling, and of what is around its cells.
_WIDEST, _HIGHEST, _FRAME = 1000, 600, 8


def ask_reading(name: str, readings: Sequence[Reading], scheme: LabelScheme) -> tuple[bool, Reading | None]:
    """Whether the user continues, and which of ``readings`` is right for ``name``, a segmentation (None: none).

    A reading that is not plausible is shown and cannot be chosen.
    """
    dialog = qt.QDialog(slicer.util.mainWindow())
    dialog.setWindowTitle(_("Which label convention is this?"))
    layout = qt.QVBoxLayout(dialog)
    text = qt.QLabel(
        _('The segments of "{name}" have numbers and no names, and the numbers can mean different things. Choose the'
          " column that is right: volume of each label, and its number in the file.").format(name=name)
    )  # fmt: skip
    text.setWordWrap(True)
    layout.addWidget(text)
    group = qt.QButtonGroup(dialog)
    table = _table(readings, scheme, group)
    layout.addWidget(table)
    none = qt.QRadioButton(_("None of these: choose the label of each segment"))
    none.setObjectName("none")
    group.addButton(none, len(readings))
    layout.addWidget(none)
    buttons = qt.QDialogButtonBox()
    buttons.setStandardButtons(qt.QDialogButtonBox.Ok | qt.QDialogButtonBox.Cancel)
    buttons.accepted.connect(dialog.accept)
    buttons.rejected.connect(dialog.reject)
    layout.addWidget(buttons)
    ok = buttons.button(qt.QDialogButtonBox.Ok)
    ok.enabled = False  # nothing is chosen in advance: a wrong brain can look right

    def chosen(checked=None):
        ok.enabled = group.checkedId() >= 0

    for button in group.buttons():
        button.toggled.connect(chosen)
    accepted = dialog.exec_() == qt.QDialog.Accepted
    choice = group.checkedId()
    dialog.deleteLater()
    return accepted and choice >= 0, readings[choice] if 0 <= choice < len(readings) else None


def _table(readings: Sequence[Reading], scheme: LabelScheme, group: qt.QButtonGroup) -> qt.QTableWidget:
    """A row for each label and a column for each reading; ``group`` gets the buttons of the first row."""
    rows = compare_readings(readings, scheme)
    table = qt.QTableWidget(len(rows) + 1, len(readings) + 1)
    table.setObjectName("readings")
    table.setEditTriggers(qt.QAbstractItemView.NoEditTriggers)
    table.setSelectionMode(qt.QAbstractItemView.NoSelection)
    table.setHorizontalHeaderLabels([_("Label"), *map(_heading, readings)])
    table.setFocusPolicy(qt.Qt.NoFocus)
    table.verticalHeader().hide()
    for number, reading in enumerate(readings):
        button = qt.QRadioButton(_("this one"))
        button.setObjectName(reading.numbering.name)
        button.enabled = not reading.doubts
        button.toolTip = "; ".join(reading.doubts) or reading.numbering.title
        group.addButton(button, number)
        table.setCellWidget(0, number + 1, button)
        table.horizontalHeaderItem(number + 1).setToolTip(f"{reading.numbering.name}: {reading.numbering.title}")
    for row, (label, cells) in enumerate(rows, start=1):
        table.setItem(row, 0, qt.QTableWidgetItem(label))
        for column, cell in enumerate(cells, start=1):
            item = qt.QTableWidgetItem(cell)
            item.setTextAlignment(qt.Qt.AlignRight | qt.Qt.AlignVCenter)
            table.setItem(row, column, item)
    table.resizeColumnsToContents()
    table.resizeRowsToContents()
    width = sum(map(table.columnWidth, range(table.columnCount))) + _FRAME
    height = sum(map(table.rowHeight, range(table.rowCount))) + table.rowHeight(0) + _FRAME
    table.setMinimumWidth(min(width, _WIDEST))
    table.setFixedHeight(min(height, _HIGHEST))
    return table


def _heading(reading: Reading) -> str:
    """The name of the convention, or where it is written out value by value, what it is."""
    name = reading.numbering.name
    return _("in this order") if "=" in name else name
