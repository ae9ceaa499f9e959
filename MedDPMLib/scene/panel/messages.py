"""How does the panel show a message? In a line that is visible while it has text, or in a window.

The panel words the library's errors for its user: a remedy names a control of the panel, not an option."""

from __future__ import annotations

import qt
import slicer
from slicer.i18n import tr as _

from MedDPMLib.errors import MedDPMError


def say(line: qt.QLabel, message: str | MedDPMError) -> None:
    """Shows ``message`` in the ``line``, an error in the panel's words; without text it takes no space."""
    line.text = message.worded(_remedies()) if isinstance(message, MedDPMError) else message
    line.visible = bool(line.text)


def _remedies() -> dict[str, str]:
    """What to do in the panel about errors whose remedy depends on the interface, by their code."""
    fill = _('paint it, or fill it with "Brain from volume" in the section Mask')
    return {
        "ambiguous-labels": _("choose the label of each segment in the table of labels ({choices})"),
        "card-needed": _('describe it in the dialog that "Add..." opens'),
        "lone-region": _("choose its label in the table of labels"),
        "model-name-taken": _("rename the file, or remove the other model first"),
        "no-brain-area": fill,
        "no-brain-area-or-other-convention": fill,
        "no-rest-label": _("paint what is missing, or choose a model whose labels include the rest of the brain"),
        "two-places": _(
            "compare the segmentation with the scan that it belongs to; where it lies right here, save it as .seg.nrrd,"
            " otherwise correct the header of the file and load it again"
        ),
        "unknown-segment": _("choose its label in the table of labels"),
        "unknown-labels": _("choose the label of each segment in the table of labels"),
    }


def show_text(title: str, text: str) -> qt.QDialog:
    """Opens a window called ``title`` with ``text``, which can be selected and copied."""
    window = qt.QDialog(slicer.util.mainWindow())
    window.setWindowTitle(title)
    window.setAttribute(qt.Qt.WA_DeleteOnClose)
    field = qt.QPlainTextEdit()
    field.setReadOnly(True)
    field.setPlainText(text)
    font = qt.QFont("monospace")
    font.setStyleHint(qt.QFont.TypeWriter)
    field.setFont(font)
    layout = qt.QVBoxLayout(window)
    layout.addWidget(field)
    window.resize(860, 560)
    window.show()
    return window
