"""One worker from its start to its end: the process, the folder of its arrays, what it has reported."""

from __future__ import annotations

import os
import shutil
import tempfile
import time
from contextlib import suppress
from pathlib import Path

import qt
import slicer
from slicer.i18n import tr as _

from MedDPMLib.errors import MedDPMError
from MedDPMLib.runtime.paths import reachable
from MedDPMLib.scene.processes import kill_tree, python_process
from MedDPMLib.worker.protocol import EventReader, Ready, Request, encode, worker_arguments
from MedDPMLib.worker.session import Session

#: Milliseconds that the end of the worker may take before it is killed, and a kill before it is left alone.
_FAREWELL = 500

#: How the folders of arrays are called among the application's temporary files.
_PREFIX = "MedDPM-"
#: Seconds after which such a folder is abandoned: application and worker were killed at once, or power failed.
_STALE = 7 * 24 * 3600


class WorkerProcess:
    """A worker for ``session``, not yet started, that ``program`` (a Python) runs."""

    def __init__(self, owner: qt.QObject, program: str, session: Session) -> None:
        self.program, self.session = program, session
        self.process = python_process(owner)
        self.reader = EventReader()
        #: The process id of the worker itself, which a launcher may have started; known from its first line on.
        self.pid: int | None = None
        #: Where and how it computes, once PyTorch is imported.
        self.ready: Ready | None = None
        #: It ends on request, or because it had nothing to do.
        self.leaving = False
        #: Another one replaces it and takes over session and requests.
        self.replaced = False
        #: How often it did not answer whether it is alive.
        self.unheard = 0
        #: The last line on standard error.
        self.last_words = ""

    def start(self, idle: float) -> None:
        self.process.start(self.program, worker_arguments(self.session.folder, idle))

    def output(self) -> bytes:
        """What it has written to standard output since the last time."""
        return self.process.readAllStandardOutput().data()

    def log(self) -> list[str]:
        """The lines that it has written to standard error since the last time."""
        text = self.process.readAllStandardError().data().decode("utf-8", "replace")
        lines = [line for line in text.splitlines() if line.strip()]
        self.last_words = lines[-1] if lines else self.last_words
        return lines

    def write(self, request: Request) -> None:
        if self.process.state() == qt.QProcess.Running:
            self.process.write(encode(request))

    def wait(self) -> bool:
        """Whether it ends now."""
        return self.process.state() == qt.QProcess.NotRunning or self.process.waitForFinished(_FAREWELL)

    def kill(self) -> None:
        """Kills it with everything that it has started, whatever it is doing."""
        kill_tree({self.process.processId(), self.pid} - {0, None})
        self.process.kill()

    def remove(self) -> None:
        """Drops the process, which has ended, and removes its files."""
        self.wait()  # a killed process lives for milliseconds still, and must not outlive its folder
        self.process.deleteLater()
        _remove_folder(self.session.folder)


def new_session() -> Session:
    """A folder for a worker's arrays among the application's temporary files.

    Raises :class:`MedDPMError` if it cannot be made.
    """
    place = reachable(slicer.app.temporaryPath)
    try:
        os.makedirs(place, exist_ok=True)
        _remove_stale(place)
        return Session(tempfile.mkdtemp(prefix=_PREFIX, dir=place))
    except OSError as error:
        text = _(
            "no folder can be created in {folder} ({reason}): free some space there, or choose another temporary"
            " directory in the application's settings, section Modules"
        )
        raise MedDPMError(text.format(folder=place, reason=error.strerror)) from error


def _remove_stale(place: Path) -> None:
    for folder in place.glob(f"{_PREFIX}*"):
        with suppress(OSError):  # another application may remove it, too
            if folder.stat().st_mtime < time.time() - _STALE:
                shutil.rmtree(folder)


def _remove_folder(folder: Path) -> None:
    """Removes it with all its files; on Windows a process that was killed holds them for a moment still."""
    for _attempt in range(10):
        shutil.rmtree(folder, ignore_errors=True)
        if not folder.exists():
            return
        time.sleep(0.05)
