"""How is a program started beside the application, and ended with everything that it has started?"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import qt
import slicer
from slicer.i18n import tr as _

import MedDPMLib
from MedDPMLib.errors import MedDPMError

#: Seconds that the system's own tools may take.
_TOOLS = 5.0

#: Of a Windows program that is started: no window of a console.
_NO_WINDOW = 0x08000000


def python_program() -> str:
    """The application's Python, which lies on the PATH of 3D Slicer. Raises :class:`MedDPMError` if it does not."""
    program = shutil.which("PythonSlicer") or sys.executable
    if not program:
        raise MedDPMError(_("PythonSlicer, the Python of 3D Slicer, is not on the PATH: install 3D Slicer again"))
    return program


def python_process(owner: qt.QObject) -> qt.QProcess:
    """A process for :func:`python_program` that finds this library, not yet started.

    Its standard streams are UTF-8 on every system, and it looks for modules in no folder that happens to be the current
    one. On Windows Qt opens no console for what an application without one starts.
    """
    process = qt.QProcess(owner)
    environment = qt.QProcessEnvironment.systemEnvironment()
    paths = [str(Path(MedDPMLib.__file__).parents[1]), environment.value("PYTHONPATH", "")]
    environment.insert("PYTHONPATH", os.pathsep.join(filter(None, paths)))
    environment.insert("PYTHONUTF8", "1")
    environment.insert("PYTHONSAFEPATH", "1")
    process.setProcessEnvironment(environment)
    return process


def kill_tree(roots: set[int]) -> None:
    """Kills the processes ``roots`` and all that they have started: Slicer's launcher does not take its child along."""
    if sys.platform == "win32":
        for root in roots:
            _output([_taskkill(), "/T", "/F", "/PID", str(root)], creationflags=_NO_WINDOW)
        return
    # The clean environment: libraries of the application are none for the system's programs.
    listing = _output(["ps", "-A", "-o", "pid=,ppid="], env=slicer.util.startupEnvironment())
    for pid in descendants(listing, roots):
        try:
            os.kill(pid, signal.SIGKILL)
        except OSError:  # it has ended meanwhile
            pass


def descendants(listing: str, roots: set[int]) -> set[int]:
    """``roots`` and all that came from them, by a ``listing`` with process and parent in each line."""
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
    return found


def describe_end(crashed: bool, code: int, platform: str = sys.platform) -> str:
    """How a process ended, for a person; ``code`` as Qt gives it: of a crash the signal, on Windows the exception."""
    if platform == "win32" and crashed:
        return _("exit code {code}").format(code=f"0x{code & 0xFFFFFFFF:08X}")
    text = _("signal {code}") if crashed else _("exit code {code}")
    return text.format(code=code)


def _taskkill() -> str:
    """With its folder: what is called so elsewhere on the PATH is not asked for."""
    return os.path.join(os.environ.get("SystemRoot", r"C:\Windows"), "System32", "taskkill.exe")


def _output(command: list[str], **options) -> str:
    """What ``command`` prints; nothing where it is missing or takes too long."""
    try:
        ended = subprocess.run(command, capture_output=True, text=True, errors="replace", timeout=_TOOLS, **options)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return ended.stdout
