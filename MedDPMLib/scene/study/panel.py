"""The course of a study on the screen: opening, reading, pausing, the end."""

from __future__ import annotations

from pathlib import Path

import qt
import slicer
from slicer.i18n import tr as _

from MedDPMLib.errors import MedDPMError
from MedDPMLib.scene.study.keys import Keys
from MedDPMLib.scene.study.questions import Questions
from MedDPMLib.scene.study.screen import StudyScreen
from MedDPMLib.scene.study.views import StudyViews
from MedDPMLib.study.order import PAIR
from MedDPMLib.study.pack import SUFFIX, Task, read_task, unpack
from MedDPMLib.study.reading import Reading, missing_answers

START, READING, PAUSE, END = range(4)

#: Milliseconds between two looks at the clock for a break.
_LOOK = 5000


class StudyPanel:
    """Drives the form ``ui`` of the module. ``ui.pages`` has a page for each of START, READING, PAUSE, END."""

    def __init__(self, ui) -> None:
        self.ui = ui
        self.task: Task | None = None
        self.reading: Reading | None = None
        self.views, self.screen = StudyViews(), StudyScreen(self._may_leave)
        self.questions = Questions(ui.questionsPlace, self._on_answers)
        self._point: tuple[float, float, float] | None = None
        self._learning = False  # a training case is answered and its truth shown
        self.keys = Keys(
            {
                **{str(number): lambda number=number: self.questions.press(number) for number in range(1, 7)},
                "Left": lambda: self.questions.choose_side(0),
                "Right": lambda: self.questions.choose_side(1),
                "Up": lambda: self.views.step(1),
                "Down": lambda: self.views.step(-1),
                "PgUp": lambda: self.views.step(10),
                "PgDown": lambda: self.views.step(-10),
                "V": self.views.next_view,
                "0": self.views.standard_window,
                "N": lambda: self.questions.move(1),
                "B": lambda: self.questions.move(-1),
                "W": self._on_why,
                "M": self._on_mark,
                "P": self._on_pause,
                "Space": self._on_next,
                "Ctrl+Return": self._on_reason_done,
                "Esc": self._on_reason_done,
            }
        )
        self._clock = qt.QTimer()
        self._clock.interval = _LOOK
        self._clock.timeout.connect(self._look)
        for button, do in (
            (ui.openButton, self._on_open),
            (ui.beginButton, self._on_begin),
            (ui.nextButton, self._on_next),
            (ui.whyButton, self._on_why),
            (ui.markButton, self._on_mark),
            (ui.doneButton, self._on_reason_done),
            (ui.windowButton, self.views.standard_window),
            (ui.pauseButton, self._on_pause),
            (ui.resumeButton, self._on_resume),
            (ui.leaveButton, self._on_leave),
            (ui.pauseLeaveButton, self._on_leave),
            (ui.exportButton, self._on_export),
            (ui.closeButton, self._on_leave),
        ):
            button.clicked.connect(lambda checked=None, do=do: do())
        for button in (ui.nextButton, ui.whyButton, ui.markButton, ui.windowButton, ui.pauseButton, ui.leaveButton):
            button.setFocusPolicy(qt.Qt.NoFocus)
        self._show_start()

    # Opening -----------------------------------------------------------------------------------------

    def open(self, path: str | Path) -> None:
        """A reader's archive, which is unpacked beside itself, or the study file of one that was unpacked."""
        path = Path(path)
        try:
            if path.name.endswith(SUFFIX):
                self.task = unpack(path, path.with_name(path.name[: -len(SUFFIX)]))
            else:
                self.task = read_task(path.parent)
        except MedDPMError as error:
            self.task = None
            self._show_start(str(error))
            return
        self._show_start()

    def _on_open(self) -> None:
        path = qt.QFileDialog.getOpenFileName(
            slicer.util.mainWindow(), _("Open a study"), "", _("Studies (*{suffix} study.toml)").format(suffix=SUFFIX)
        )
        if path:
            self.open(path)

    def _show_start(self, message: str = "") -> None:
        self.ui.pages.setCurrentIndex(START)
        self.ui.beginButton.enabled = self.task is not None
        self.ui.startMessage.text = message
        if self.task is None:
            self.ui.studyLabel.text = _("Open the archive that the organizer of the study gave you.")
            return
        definition = self.task.definition
        self.ui.studyLabel.text = _(
            "<b>{title}</b><br>Reader: {reader}<br>{number} cases, {length} in a session"
        ).format(
            title=_escaped(definition.title), reader=_escaped(self.task.reader),
            number=len(self.task.presentations), length=definition.sessions.length,
        )  # fmt: skip

    def _on_begin(self) -> None:
        try:
            reading = Reading(self.task)
        except MedDPMError as error:
            self._show_start(str(error))
            return
        if reading.wait_days() > 0:
            message = _("The next session can begin in {days:.1f} days: the study requires a washout period.")
            self._show_start(message.format(days=reading.wait_days()))
            reading.close()
            return
        if _has_data():
            question = _("The scene is closed before a study begins, and unsaved changes are lost. Continue?")
            if not slicer.util.confirmOkCancelDisplay(question, _("Reader study")):
                reading.close()
                return
            slicer.mrmlScene.Clear(False)
        self.reading = reading
        self.views.begin()
        self.screen.enter()
        self.keys.start()
        self._clock.start()
        self._show_case()

    # Reading -----------------------------------------------------------------------------------------

    def _show_case(self) -> None:
        if self.reading.finished:
            self._show_end()
            return
        try:
            presentation = self.reading.show()
            self.views.show(self.task, presentation, self.reading.watched)
        except MedDPMError as error:
            self.leave(str(error))
            return
        self._point, self._learning = None, False
        self.ui.nextButton.text = _("Space   Lock the answer, next case")
        done, total = self.reading.progress
        self.ui.progressLabel.text = _("{done} of {total}").format(done=done, total=total) + (
            _(" (training)") if presentation.training else ""
        )
        self.ui.progressBar.maximum = total
        self.ui.progressBar.value = done - 1
        self.questions.ask(self.task.definition.tasks, presentation)
        self.ui.reasonText.setPlainText("")
        self.ui.whyButton.setVisible(self.task.definition.tasks.reason)
        self._show_reason(False)
        self.ui.messageLabel.text = ""
        self.ui.keysLabel.text = _(_PAIR_KEYS if presentation.kind == PAIR else _KEYS)
        self.ui.pages.setCurrentIndex(READING)
        self._on_answers()

    def _on_answers(self) -> None:
        given = self.questions.given
        self.ui.nextButton.enabled = not missing_answers(self.task, self.reading.current, given)

    def _on_next(self) -> None:
        if not self._is_reading() or not self.ui.nextButton.enabled:
            return
        if self._learning:
            self._show_case()
            return
        presentation = self.reading.current
        given = self.questions.given
        reason = self.ui.reasonText.toPlainText().strip()
        given |= {"reason": reason} if reason else {}
        given |= {"point": list(self._point)} if self._point is not None else {}
        try:
            right = self.reading.answer(given)
        except MedDPMError as error:
            self.ui.messageLabel.text = str(error)
            return
        if presentation.training:  # the truth is shown while the case is still seen
            self._learning = True
            self.questions.lock()
            self.ui.messageLabel.text = self._feedback(presentation, right)
            self.ui.nextButton.text = _("Space   Next case")
            return
        if self.reading.session_is_over:
            self.leave(_("This session is done. Thank you! Open the study again for the next one."))
            return
        self._show_case()
        self._look()

    def _feedback(self, presentation, right: bool | None) -> str:
        if presentation.kind == PAIR:
            truth = _("the right one was synthetic") if presentation.answer else _("the left one was synthetic")
        else:
            truth = _("the case was synthetic") if presentation.answer else _("the case was real")
        judged = {True: _("Correct: "), False: _("Incorrect: "), None: ""}[right]
        return _("Training. {judged}{truth}.").format(judged=judged, truth=truth)

    # Why? --------------------------------------------------------------------------------------------

    def _on_why(self) -> None:
        if self._is_answering() and self.task.definition.tasks.reason:
            self._show_reason(True)
            self.ui.reasonText.setFocus()

    def _on_mark(self) -> None:
        if self._is_answering() and self.task.definition.tasks.reason:
            self._point = self.views.mark()
            self._show_reason(True)

    def _on_reason_done(self) -> None:
        if self._is_reading():
            self._show_reason(False)

    def _show_reason(self, shown: bool) -> None:
        """While a reason is written, keys enter text."""
        self.ui.reasonBox.setVisible(shown)
        self.keys.set_enabled(not shown, but=("Ctrl+Return", "Esc"))
        place = self._point
        self.ui.pointLabel.text = (
            _("Location marked")
            if place is not None
            else _("Hold Shift and move the mouse to put the crosshair on the finding")
        )
        if not shown:
            self.ui.reasonText.clearFocus()

    # Pauses and the end ------------------------------------------------------------------------------

    def _look(self) -> None:
        if self._is_reading() and self.reading.break_is_due():
            self.ui.messageLabel.text = _("You have read for a while: how about a break? (P pauses.)")

    def _on_pause(self) -> None:
        if self._is_reading():
            self.reading.pause()
            self.keys.set_enabled(False)
            self.views.cover(True)
            self.ui.pages.setCurrentIndex(PAUSE)

    def _on_resume(self) -> None:
        self.views.cover(False)
        self.reading.resume()
        self.ui.pages.setCurrentIndex(READING)
        self._show_reason(False)
        self.ui.messageLabel.text = ""

    def _show_end(self) -> None:
        self.views.clear()
        self.keys.set_enabled(False)
        self.ui.endLabel.text = _("Done: all cases are answered. Send the file with your answers to the organizer.")
        self.ui.pages.setCurrentIndex(END)

    def _on_export(self) -> None:
        folder = qt.QFileDialog.getExistingDirectory(slicer.util.mainWindow(), _("Folder for the answers"))
        if not folder:
            return
        try:
            path = self.reading.export(Path(folder))
        except MedDPMError as error:
            self.ui.endLabel.text = str(error)
            return
        self.ui.endLabel.text = _("Written: {path}").format(path=path)

    def _on_leave(self) -> None:
        if self._may_leave():
            self.leave()

    def _may_leave(self) -> bool:
        """Whether the reader confirms it, if cases are left."""
        if self.reading is None or self.reading.finished:
            return True
        question = _("Leave the study? Your answers are kept; the open case will be shown again.")
        return slicer.util.confirmOkCancelDisplay(question, _("Reader study"))

    def leave(self, message: str = "") -> None:
        """Ends the reading for now."""
        self.stop()
        self._show_start(message)

    def stop(self) -> None:
        """Restores screen, views and scene; the answers are closed. May be called at any time."""
        self._clock.stop()
        self.keys.stop()
        if self.reading is not None:
            self.reading.close()
            self.reading = None
            self.views.end()
            self.questions.clear()
        self.screen.leave()

    def _is_answering(self) -> bool:
        return self._is_reading() and not self._learning

    def _is_reading(self) -> bool:
        return self.reading is not None and self.ui.pages.currentIndex == READING


_KEYS = (
    "1 to 6: answer; space: next case. Up, down: slices; V: other view; 0: window. W: why?; M: mark; P: pause."
    " N, B: other question."
)
_PAIR_KEYS = (
    "Left, right: answer; space: next case. Up, down: slices; V: other plane; 0: window. W: why?; M: mark; P: pause."
)


def _has_data() -> bool:
    """Whether the scene holds something that a user would miss."""
    kinds = ("vtkMRMLVolumeNode", "vtkMRMLSegmentationNode", "vtkMRMLMarkupsNode", "vtkMRMLModelNode")
    nodes = (node for kind in kinds for node in slicer.util.getNodesByClass(kind))
    return any(not node.GetHideFromEditors() for node in nodes)


def _escaped(text: str) -> str:
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
