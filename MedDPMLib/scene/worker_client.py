"""How does the application talk to the worker? A child process through ``QProcess``: nothing here ever waits for it.

``docs/worker-protocol.md`` says what is said. Results come by signals of plain Python:
PythonQt crashes on custom ones of Qt.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections import deque
from collections.abc import Callable
from pathlib import Path

import numpy as np
import qt
import slicer

import MedDPMLib
from MedDPMLib.errors import MedDPMError
from MedDPMLib.worker.protocol import (
    Bye,
    Cancel,
    Cancelled,
    Error,
    Event,
    EventReader,
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
    encode,
    worker_arguments,
)
from MedDPMLib.worker.session import Session

#: Seconds without work until the worker releases the model, and as many until it ends.
IDLE = 600.0

#: Seconds between two questions whether the worker is alive, while something is asked of it.
_PULSE = 5.0
#: Seconds without a line after which it is taken for dead; at the start it imports PyTorch from a cold disk.
_SILENCE = 30.0
_SILENCE_AT_START = 120.0
#: Seconds that a request waits for the step of one that was cancelled; then the worker is replaced.
_PATIENCE = 10.0
#: Milliseconds that the end of the worker may take before it is killed.
_FAREWELL = 500

_LOG_LINES = 300


class Signal:
    """Calls what is connected, in that order."""

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
        self.ready: Ready | None = None
        self._owner = qt.QObject()  # a process may end inside one of its own signals: deleteLater frees it
        self._process: qt.QProcess | None = None
        self._session: Session | None = None
        self._pid: int | None = None
        self._reader = EventReader()
        self._wanted: dict[str, Request] = {}
        self._unsent: list[Request] = []
        self._unfinished: set[str] = set()  # cancelled ids whose step may still be computed
        self._number = 0
        self._leaving = self._replacing = False
        self._pulse = qt.QTimer()
        self._pulse.interval = int(1000 * _PULSE)
        self._pulse.timeout.connect(self._on_pulse)
        self._silence = qt.QElapsedTimer()
        self._waiting = qt.QTimer()
        self._waiting.setSingleShot(True)
        self._waiting.interval = int(1000 * _PATIENCE)
        self._waiting.timeout.connect(self._on_waited)

    # What the panel calls ----------------------------------------------------------------------------

    @property
    def running(self) -> bool:
        """Whether there is a worker."""
        return self._process is not None

    @property
    def busy(self) -> bool:
        """Whether something is asked of it that it has not answered."""
        return bool(self._wanted)

    def load(self, model: str) -> str:
        """Has the model called ``model`` loaded, so that the first request starts at once; returns the request's id."""
        return self._ask(Load(id=self._new_id(), model=model))

    def generate(self, labels: np.ndarray, **settings) -> str:
        """Asks for volumes for ``labels`` (k, j, i; uint8); the rest as in :class:`protocol.Generate`. Returns the id.

        Raises :class:`MedDPMError` if the mask cannot be written.
        """
        self._start()
        mask = self._session.write("mask", labels)
        return self._ask(Generate(id=self._new_id(), mask=mask, **settings))

    def cancel(self, id: str) -> None:
        """Ends a request. Nothing of it is received from now on."""
        if self._wanted.pop(id, None) is None:
            return
        if any(request.id == id for request in self._unsent):
            self._unsent = [request for request in self._unsent if request.id != id]
        else:
            self._unfinished.add(id)
            self._write(Cancel(id=id))
        self._on_wanted_changed()

    def read(self, files: dict[str, str]) -> dict[str, np.ndarray]:
        """The arrays of a preview or result by modality, copied; the files are removed."""
        arrays = {}
        for modality, name in files.items():
            try:
                arrays[modality] = np.array(self._session.read(name))
            finally:
                self._session.remove(name)
        return arrays

    def discard(self, files: dict[str, str]) -> None:
        """Removes files that nobody wants to read."""
        for name in files.values():
            self._session.remove(name)

    def stop(self) -> None:
        """Ends the worker, whatever it is doing, and leaves no process and no file. For the end of scene or module."""
        process = self._process
        if process is None:
            return
        self._leaving = True
        self._wanted.clear()
        self._unsent.clear()
        self._write(Shutdown(id=self._new_id()))
        if not process.waitForFinished(_FAREWELL):
            self._kill()
            process.waitForFinished(_FAREWELL)
        if self._process is process:  # else its signal was there first
            self._clean_up()

    # The process -------------------------------------------------------------------------------------

    def _start(self) -> None:
        if self._process is not None:
            return
        if self._session is None:
            try:
                folder = tempfile.mkdtemp(prefix="MedDPM-", dir=slicer.app.temporaryPath)
            except OSError as error:
                raise MedDPMError(
                    f"no folder can be made in {slicer.app.temporaryPath} ({error.strerror}): make space there"
                ) from error
            self._session = Session(folder)
        self._process = process = python_process(self._owner)
        process.readyReadStandardOutput.connect(self._on_output)
        process.readyReadStandardError.connect(self._on_log)
        process.finished.connect(self._on_finished)
        process.errorOccurred.connect(self._on_error)
        self._reader, self._pid, self.ready = EventReader(), None, None
        self._leaving = self._replacing = False
        self._silence.start()
        self.log.append(f"{python_program()} is started in {self._session.folder}")
        process.start(python_program(), worker_arguments(self._session.folder, self._idle))
        self._pulse.start()
        self.state_changed.emit()

    def _ask(self, request: Request) -> str:
        self._start()
        self._wanted[request.id] = request
        self._send(request)
        self._on_wanted_changed()
        return request.id

    def _send(self, request: Request) -> None:
        if self._pid is None:  # before its first line nobody listens
            self._unsent.append(request)
        else:
            self._write(request)

    def _write(self, request: Request) -> None:
        if self._process is not None and self._process.state() == qt.QProcess.Running:
            self._process.write(encode(request))

    def _new_id(self) -> str:
        self._number += 1
        return f"request-{self._number}"

    def _on_wanted_changed(self) -> None:
        if self._unfinished and any(isinstance(request, Generate) for request in self._wanted.values()):
            self._waiting.start()
        else:
            self._waiting.stop()
        self.state_changed.emit()

    # What it says ------------------------------------------------------------------------------------

    def _on_output(self) -> None:
        data, self_process = self._process.readAllStandardOutput().data(), self._process
        try:
            for event in self._reader.feed(data):
                self._receive(event)
                if self._process is not self_process:  # ended by what the event has set off
                    return
        except ProtocolError as error:
            self._fail(str(error))

    def _receive(self, event: Event) -> None:
        self._silence.restart()
        if isinstance(event, Hello):
            self._pid = event.pid
            self.log.append(", ".join(f"{name} {version}" for name, version in event.versions.items()))
            unsent, self._unsent = self._unsent, []
            for request in unsent:
                self._write(request)
        elif isinstance(event, Ready):
            self.ready = event
            self.log.append(f"ready {event.reason}")
        elif isinstance(event, Bye):
            self._leaving = True
        elif isinstance(event, Error) and event.id is None:
            if event.kind == "package" or self._wanted:
                self._fail(event.message)
        elif isinstance(event, State):
            pass
        else:
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

    def _on_log(self) -> None:
        text = self._process.readAllStandardError().data().decode("utf-8", "replace")
        self.log.extend(line for line in text.splitlines() if line.strip())

    # Its end -----------------------------------------------------------------------------------------

    def _on_pulse(self) -> None:
        if not self.busy:
            self._silence.restart()
            return
        limit = _SILENCE_AT_START if self.ready is None else _SILENCE
        if self._silence.elapsed() > 1000 * limit:
            self._fail(
                f"the worker has not answered for {limit:.0f} seconds and was ended: press Generate again;"
                " if it happens again, start 3D Slicer again"
            )
        elif self._pid is not None:
            self._write(Status(id=self._new_id()))

    def _on_waited(self) -> None:
        """A step that nobody wants any more holds up what is wanted: with another worker it begins sooner."""
        if self.ready is None:  # it is PyTorch that takes long
            self._waiting.start()
            return
        self.log.append("the worker is replaced: a cancelled step takes too long")
        self._replacing = True
        self._unsent = list(self._wanted.values())
        self._kill()

    def _on_finished(self, code: int) -> None:
        process = self._process
        if process is None:
            return
        self._on_output()
        if self._process is None:
            return
        self._on_log()
        if self._replacing:
            process.deleteLater()
            self._process = None
            self._unfinished.clear()
            self._start()
            return
        crashed = process.exitStatus() == qt.QProcess.CrashExit
        wanted, left = bool(self._wanted), self._leaving
        self.log.append(f"the worker ended with {'signal' if crashed else 'code'} {code}")
        self._clean_up()
        if wanted or not left:
            self.failed.emit(
                f"the worker ended unexpectedly ({'signal' if crashed else 'exit code'} {code}), most often because"
                " memory ran out: the scene is as it was; close other programs or choose a smaller model, then press"
                " Generate again (the log says more)"
            )

    def _on_error(self, error) -> None:
        if error == qt.QProcess.FailedToStart and self._process is not None:
            message = f"the worker cannot be started ({self._process.errorString()}): install 3D Slicer again"
            self._clean_up()
            self.failed.emit(message)

    def _fail(self, message: str) -> None:
        """Ends the worker now; the next request starts another."""
        self.log.append(message)
        self._kill()
        self._clean_up()
        self.failed.emit(message)

    def _kill(self) -> None:
        roots = {self._process.processId(), self._pid} - {0, None}
        _kill_tree(roots)
        self._process.kill()

    def _clean_up(self) -> None:
        process, self._process = self._process, None
        self._pulse.stop()
        self._waiting.stop()
        for signal_, slot in (
            (process.readyReadStandardOutput, self._on_output),
            (process.readyReadStandardError, self._on_log),
            (process.finished, self._on_finished),
            (process.errorOccurred, self._on_error),
        ):
            signal_.disconnect(slot)
        if process.state() != qt.QProcess.NotRunning:
            process.waitForFinished(_FAREWELL)  # killed: a matter of milliseconds, and it must not outlive its folder
        process.deleteLater()
        self._wanted.clear()
        self._unsent.clear()
        self._unfinished.clear()
        self.ready = self._pid = None
        session, self._session = self._session, None
        shutil.rmtree(session.folder, ignore_errors=True)
        self.state_changed.emit()


def python_program() -> str:
    """The application's Python, which lies on the PATH of 3D Slicer."""
    return shutil.which("PythonSlicer") or sys.executable


def python_process(owner: qt.QObject) -> qt.QProcess:
    """A process for :func:`python_program` that finds this library, not yet started."""
    process = qt.QProcess(owner)
    environment = qt.QProcessEnvironment.systemEnvironment()
    paths = [str(Path(MedDPMLib.__file__).parents[1]), environment.value("PYTHONPATH", "")]
    environment.insert("PYTHONPATH", os.pathsep.join(filter(None, paths)))
    environment.insert("PYTHONIOENCODING", "utf-8")
    process.setProcessEnvironment(environment)
    process.setWorkingDirectory(slicer.app.temporaryPath)  # where Python looks for modules first
    return process


def _kill_tree(roots: set[int]) -> None:
    """Kills the processes ``roots`` and all that they have started."""
    if sys.platform == "win32":
        for root in roots:
            subprocess.run(
                ["taskkill", "/T", "/F", "/PID", str(root)], capture_output=True, creationflags=0x08000000
            )  # without a window
        return
    listing = subprocess.run(
        ["ps", "-A", "-o", "pid=,ppid="], capture_output=True, text=True, env=slicer.util.startupEnvironment()
    ).stdout
    children: dict[int, list[int]] = {}
    for line in listing.splitlines():
        pid, parent = map(int, line.split())
        children.setdefault(parent, []).append(pid)
    pending, found = list(roots), set()
    while pending:
        pid = pending.pop()
        if pid not in found:
            found.add(pid)
            pending += children.get(pid, [])
    for pid in found:
        try:
            os.kill(pid, signal.SIGKILL)
        except OSError:  # it has ended meanwhile
            pass
