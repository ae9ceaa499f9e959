"""What the application would ask or tell in a window of its own: recorded, and answered as the test says."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from bench.pythonqt import qt_module

qt = qt_module()


@dataclass(frozen=True)
class Shown:
    """A dialog that was opened; ``kind`` is message, question, open file, save file, folder, text, menu or dialog."""

    kind: str
    text: str
    title: str = ""
    details: str = ""


class Dialogs:
    """Every dialog that was opened (``shown``) and the replies for those to come (``reply_with``).

    A message with one button answers itself. Any other dialog needs a reply: a value, or a callable that gets
    the dialog (or its parameters) and returns the value. An unexpected dialog is an error: in the application
    it would stop everything.
    """

    def __init__(self) -> None:
        self.shown: list[Shown] = []
        self._replies: deque[Any] = deque()

    def reply_with(self, *replies: Any) -> None:
        self._replies.extend(replies)

    def clear(self) -> None:
        self.shown.clear()
        self._replies.clear()

    @property
    def messages(self) -> list[str]:
        """The texts of the messages that were shown."""
        return [shown.text for shown in self.shown if shown.kind == "message"]

    def answer(self, shown: Shown, dialog: Any) -> Any:
        self.shown.append(shown)
        if not self._replies:
            raise AssertionError(f"nobody answers this dialog: {shown}")
        reply = self._replies.popleft()
        return reply(dialog) if isinstance(reply, Callable) else reply


dialogs = Dialogs()


def _run_message_box(box) -> Any:
    buttons = [
        button for button in box.buttons() if box.buttonRole(button) != qt.QMessageBox.ActionRole
    ]  # "Show Details..."
    shown = Shown("message" if len(buttons) <= 1 else "question", box.text, box.windowTitle, box.detailedText)
    if shown.kind == "message":
        dialogs.shown.append(shown)
        return box.standardButtons
    return dialogs.answer(shown, box)


def _run_dialog(dialog) -> Any:
    return dialogs.answer(Shown("dialog", dialog.windowTitle, dialog.windowTitle), dialog)


def _run_menu(menu, *_) -> Any:
    return dialogs.answer(Shown("menu", " | ".join(action.text for action in menu.actions())), menu)


def _asking(kind: str) -> Callable:
    """A static function of Qt that opens a dialog and, in PythonQt, returns the chosen text alone."""

    def ask(parent=None, title="", *arguments):
        return dialogs.answer(Shown(kind, str(arguments[0]) if arguments else "", title), (parent, title, *arguments))

    return staticmethod(ask)


def install() -> None:
    """Puts the stand-ins in the place of Qt's modal dialogs."""
    qt.QMessageBox.exec_ = _run_message_box
    qt.QDialog.exec_ = _run_dialog
    qt.QMenu.exec_ = _run_menu
    qt.QFileDialog.getOpenFileName = _asking("open file")
    qt.QFileDialog.getSaveFileName = _asking("save file")
    qt.QFileDialog.getExistingDirectory = _asking("folder")
    qt.QInputDialog.getText = _asking("text")
