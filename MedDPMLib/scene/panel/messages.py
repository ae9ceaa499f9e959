"""How is the user told something? In a line of the panel that is there when it says something, or in a window."""

from __future__ import annotations

import qt
import slicer
from slicer.i18n import tr as _


def say(line: qt.QLabel, text: str) -> None:
    """Shows ``text`` in the ``line``, in the panel's words; without text it takes no space."""
    line.text = in_panel_words(text)
    line.visible = bool(text)


def in_panel_words(message: str) -> str:
    """A ``message`` of the core, which names what mends it by the command line's options, for who has only buttons."""
    message = message.replace("--brain-from IMAGE", _('"Brain from volume" in the section Mask'))
    return message.replace(", or say with --labels that the file has another numbering", "")


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
