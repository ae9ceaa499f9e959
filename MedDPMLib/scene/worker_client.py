"""How does the application talk to the worker? A child process through ``QProcess``: nothing here ever blocks on it.

``docs/worker-protocol.md`` describes the messages. Results come by signals of plain Python:
PythonQt crashes on custom ones of Qt.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

import numpy as np
import qt
from slicer.i18n import tr as _

from MedDPMLib.errors import MedDPMError
from MedDPMLib.scene.processes import describe_end, python_program
from MedDPMLib.scene.worker_process import WorkerProcess, new_session
from MedDPMLib.worker.protocol import (
    Bye,
    Cancel,
    Cancelled,
    Error,
    Event,
    Generate,
    Hello,
    Load,
    Loaded,
    Progress,
    ProtocolError,
    Ready,
    Request,
    Result,
    Shutdown,
    State,
    Status,
)
from MedDPMLib.worker.session import Session

#: Seconds without work until the worker releases the model, and as many until it ends.
IDLE = 600.0

#: Seconds between two questions whether the worker is alive, while a request is open.
_PULSE = 5.0
#: Seconds without a line after which it is considered dead; at the start it imports PyTorch, from a cold disk and
#: through a virus scanner.
_SILENCE = 30.0
_SILENCE_AT_START = 300.0
#: Seconds that a request waits for the step of one that was cancelled; then the worker is replaced.
_PATIENCE = 10.0
_LOG_LINES = 300


class Signal:
    """Calls the connected functions, in that order."""

    def __init__(self) -> None:
        self._slots: list[Callable] = []

    def connect(self, slot: Callable) -> None:
        self._slots.append(slot)

    def disconnect(self, slot: Callable) -> None:
        self._slots.remove(slot)

    def emit(self, *arguments) -> None:
        for slot in list(self._slots):
            slot(*arguments)


class WorkerClient:
    """One worker, started with the first request and again after whatever ended it.

    Signals: ``received`` (event of a request that is wanted), ``failed`` (a sentence; every request has ended),
    ``state_changed`` (no argument).
    """

    def __init__(self, *, idle: float = IDLE) -> None:
        self._idle = idle
        self.received, self.failed, self.state_changed = Signal(), Signal(), Signal()
        #: What worker and libraries wrote to standard error, and how workers started and ended.
        self.log: deque[str] = deque(maxlen=_LOG_LINES)
        self._owner = qt.QObject()  # a process may end inside one of its own signals: deleteLater frees it
        self._worker: WorkerProcess | None = None
        self._wanted: dict[str, Request] = {}
        self._unsent: list[Request] = []
        self._unfinished: set[str] = set()  # cancelled ids whose step may still be computed
        self._number = 0
        self._pulse = qt.QTimer()
        self._pulse.interval = int(1000 * _PULSE)
        self._pulse.timeout.connect(self._on_pulse)
        self._waiting = qt.QTimer()
        self._waiting.setSingleShot(True)
        self._waiting.interval = int(1000 * _PATIENCE)
        self._waiting.timeout.connect(self._on_waited)

    # Requests of the panel ----------------------------------------------------------------------------

    @property
    def running(self) -> bool:
        """Whether there is a worker."""
        return self._worker is not None

    @property
    def busy(self) -> bool:
        """Whether a request is open."""
        return bool(self._wanted)

    @property
    def pid(self) -> int | None:
        """The worker's process, from its first line on."""
        return None if self._worker is None else self._worker.pid

    @property
    def ready(self) -> Ready | None:
        """Where and how it computes, once PyTorch is imported."""
        return None if self._worker is None else self._worker.ready

    def load(self, model: str) -> str:
        """Has the model called ``model`` loaded, so that the first request starts at once; returns the request's id.

        Raises :class:`MedDPMError` if no worker can be started.
        """
        return self._ask(Load(id=self._new_id(), model=model))

    def generate(self, labels: np.ndarray, **request) -> str:
        """Asks for volumes for ``labels`` (k, j, i; uint8); the rest as in :class:`protocol.Generate`. Returns the id.

        Raises :class:`MedDPMError` if no worker can be started, or if the mask cannot be written.
        """
        mask = self._started().session.write("mask", labels)
        return self._ask(Generate(id=self._new_id(), mask=mask, **request))

    def cancel(self, id: str) -> None:
        """Cancels a request. Nothing more is received of it."""
        if self._wanted.pop(id, None) is None:
            return
        unsent = next((request for request in self._unsent if request.id == id), None)
        if unsent is not None:
            self._unsent.remove(unsent)
            if isinstance(unsent, Generate):
                self._worker.session.remove(unsent.mask)
        else:
            self._unfinished.add(id)
            self._worker.write(Cancel(id=id))
        self._on_wanted_changed()

    def read(self, files: dict[str, str]) -> dict[str, np.ndarray]:
        """The arrays of a preview or result by modality, copied; the files are removed.

        Raises :class:`MedDPMError` if they are gone, as they are when the worker has ended.
        """
        if self._worker is None:
            raise MedDPMError(_("the worker has ended: click Generate again"))
        session, arrays = self._worker.session, {}
        for modality, name in files.items():
            try:
                arrays[modality] = np.array(session.read(name))
            finally:
                session.remove(name)
        return arrays

    def discard(self, files: dict[str, str]) -> None:
        """Removes files that will not be read."""
        if self._worker is not None:
            for name in files.values():
                self._worker.session.remove(name)

    def stop(self) -> None:
        """Ends the worker, whatever it is doing, and leaves no process and no file. For the end of scene or module."""
        worker = self._worker
        if worker is None:
            return
        worker.leaving = True
        self._wanted.clear()
        self._unsent.clear()
        worker.write(Shutdown(id=self._new_id()))
        if not worker.wait():
            worker.kill()
            worker.wait()
        if self._worker is worker:  # else its signal came first
            self._clean_up()

    # The process -------------------------------------------------------------------------------------

    def _started(self) -> WorkerProcess:
        """The worker; starts one if there is none."""
        if self._worker is None:
            self._start(python_program(), new_session())
        if self._worker is None:  # some systems report at once that there is no such program
            raise MedDPMError(self.log[-1])
        return self._worker

    def _start(self, program: str, session: Session) -> None:
        self._worker = worker = WorkerProcess(self._owner, program, session)
        # Never disconnected, for that must not happen inside a signal: signals of an earlier worker are ignored.
        worker.process.readyReadStandardOutput.connect(lambda: self._on_output(worker))
        worker.process.readyReadStandardError.connect(lambda: self._on_log(worker))
        worker.process.finished.connect(lambda code: self._on_finished(worker, code))
        worker.process.errorOccurred.connect(lambda error: self._on_error(worker, error))
        self.log.append(f"{program} is started in {session.folder}")
        self._pulse.start()
        worker.start(self._idle)
        self.state_changed.emit()

    def _ask(self, request: Request) -> str:
        worker = self._started()
        self._wanted[request.id] = request
        if worker.pid is None:  # before its first line it does not listen
            self._unsent.append(request)
        else:
            worker.write(request)
        self._on_wanted_changed()
        return request.id

    def _new_id(self) -> str:
        self._number += 1
        return f"request-{self._number}"

    def _on_wanted_changed(self) -> None:
        if self._unfinished and any(isinstance(request, Generate) for request in self._wanted.values()):
            self._waiting.start()
        else:
            self._waiting.stop()
        self.state_changed.emit()

    # Its messages ------------------------------------------------------------------------------------

    def _on_output(self, worker: WorkerProcess) -> None:
        if worker is not self._worker:
            return
        try:
            for event in worker.reader.feed(worker.output()):
                worker.unheard = 0
                self._receive(worker, event)
                if worker is not self._worker:  # ended by a consequence of the event
                    return
        except ProtocolError as error:
            self._fail(_("the worker sent an invalid message ({reason}): click Generate again").format(reason=error))

    def _receive(self, worker: WorkerProcess, event: Event) -> None:
        if isinstance(event, Hello):
            worker.pid = event.pid
            self.log.extend(worker.reader.passed_over)
            self.log.append(", ".join(f"{name} {version}" for name, version in event.versions.items()))
            unsent, self._unsent = self._unsent, []
            for request in unsent:
                worker.write(request)
        elif isinstance(event, Ready):
            worker.ready = event
            self.log.append(f"ready {event.reason}")
        elif isinstance(event, Bye):
            worker.leaving = True
        elif isinstance(event, Error) and event.id is None:
            if event.kind == "package" or self._wanted:
                self._fail(event.message)
        elif not isinstance(event, State):
            self._pass_on(event)

    def _pass_on(self, event: Event) -> None:
        id = getattr(event, "id", None)
        if isinstance(event, Progress) and id in self._wanted:
            self._unfinished.clear()  # requests are carried out one after the other
            self._waiting.stop()
        if id not in self._wanted:  # cancelled: its step may still be computed
            self.discard(getattr(event, "files", {}))
            return
        last = isinstance(event, Result) and event.sample == event.samples
        if last or isinstance(event, (Error, Cancelled, Loaded)):
            del self._wanted[id]
        if isinstance(event, Error):
            self.log.append(event.message)
        self.received.emit(event)
        if id not in self._wanted:
            self._on_wanted_changed()

    def _on_log(self, worker: WorkerProcess) -> None:
        self.log.extend(worker.log())

    # Its end -----------------------------------------------------------------------------------------

    def _on_pulse(self) -> None:
        """Asks whether the worker is alive, and counts unanswered questions, not seconds: the application may sleep."""
        worker = self._worker
        self._on_output(worker)
        if worker is not self._worker:
            return
        if not self.busy:
            worker.unheard = 0
            return
        limit = _SILENCE_AT_START if worker.ready is None else _SILENCE
        if 1000 * limit < worker.unheard * self._pulse.interval:
            self._fail(
                _("the worker has not answered for {seconds:.0f} seconds and was ended: click Generate again; if it"
                  " happens again, restart 3D Slicer").format(seconds=limit)
            )  # fmt: skip
            return
        worker.unheard += 1
        if worker.pid is not None:
            worker.write(Status(id=self._new_id()))

    def _on_waited(self) -> None:
        """A step that is no longer wanted delays what is wanted: with another worker it begins sooner."""
        worker = self._worker
        self._on_output(worker)
        if worker is not self._worker or not self._unfinished:
            return
        if worker.ready is None:  # PyTorch takes long
            self._waiting.start()
            return
        self.log.append("the worker is replaced: a cancelled step takes too long")
        worker.replaced = True
        self._unsent = list(self._wanted.values())
        worker.kill()

    def _on_finished(self, worker: WorkerProcess, code: int) -> None:
        self._on_output(worker)
        if worker is not self._worker:
            return
        self._on_log(worker)
        end = describe_end(worker.process.exitStatus() == qt.QProcess.CrashExit, code)
        self.log.append(f"the worker ended: {end}")
        if worker.replaced:
            worker.process.deleteLater()
            self._unfinished.clear()
            self._worker = None
            self._start(worker.program, worker.session)
            return
        expected = worker.leaving and not self._wanted
        message = _explain_end(worker, end)
        self._clean_up()
        if not expected:
            self.failed.emit(message)

    def _on_error(self, worker: WorkerProcess, error) -> None:
        if worker is self._worker and error == qt.QProcess.FailedToStart:
            message = _("the worker cannot be started ({reason}): install 3D Slicer again").format(
                reason=worker.process.errorString()
            )
            self.log.append(message)
            self._clean_up()
            self.failed.emit(message)

    def _fail(self, message: str) -> None:
        """Ends the worker now; the next request starts another."""
        self.log.append(message)
        self._worker.kill()
        self._clean_up()
        self.failed.emit(message)

    def _clean_up(self) -> None:
        worker, self._worker = self._worker, None
        self._pulse.stop()
        self._waiting.stop()
        self._wanted.clear()
        self._unsent.clear()
        self._unfinished.clear()
        worker.remove()
        self.state_changed.emit()


def _explain_end(worker: WorkerProcess, end: str) -> str:
    """What to do after the worker has ended by itself."""
    if worker.leaving:
        return _("the worker has just ended, because it had been idle for a long time: click Generate again")
    if worker.pid is None:
        return _(
            "the worker could not start ({end}; {words}): restart 3D Slicer, then click Generate again (see the log"
            " for details)"
        ).format(end=end, words=worker.last_words[:200] or _("no message"))
    return _(
        "the worker ended unexpectedly ({end}), most often because memory ran out: the scene is as it was; close other"
        " programs or choose a smaller model, then click Generate again (see the log for details)"
    ).format(end=end)
