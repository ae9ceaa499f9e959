"""How is a program started next to the application, and ended with everything that it has started?"""

from __future__ import annotations

import os
import shutil
import sys
from contextlib import suppress
from pathlib import Path

import qt
from slicer.i18n import tr as _

import MedDPMLib
from MedDPMLib.errors import MedDPMError
from MedDPMLib.runtime.priority import PASSIVE_WAITING


def python_program() -> str:
    """The application's Python, which lies on the PATH of 3D Slicer. Raises :class:`MedDPMError` if it does not."""
    program = shutil.which("PythonSlicer") or sys.executable
    if not program:
        raise MedDPMError(_("PythonSlicer, the Python of 3D Slicer, is not on the PATH: install 3D Slicer again"))
    return program


def python_process(owner: qt.QObject) -> qt.QProcess:
    """A process for :func:`python_program` that finds this library, not yet started.

    Its threads wait passively (:data:`MedDPMLib.runtime.priority.PASSIVE_WAITING`) unless the environment says how.
    Its standard streams are UTF-8 on every system, and it looks for modules in no folder that happens to be the current
    one. On Windows Qt opens no console for what an application without one starts.
    """
    process = qt.QProcess(owner)
    environment = qt.QProcessEnvironment.systemEnvironment()
    paths = [str(Path(MedDPMLib.__file__).parents[1]), environment.value("PYTHONPATH", "")]
    environment.insert("PYTHONPATH", os.pathsep.join(filter(None, paths)))
    environment.insert("PYTHONUTF8", "1")
    environment.insert("PYTHONSAFEPATH", "1")
    for name, value in PASSIVE_WAITING.items():
        if not environment.contains(name):
            environment.insert(name, value)
    process.setProcessEnvironment(environment)
    return process


def kill_tree(roots: set[int]) -> None:
    """Kills the processes ``roots`` and all that they have started: Slicer's launcher does not end its child."""
    import psutil  # installed with the rest, before anything is started

    processes = []
    for pid in roots:
        with suppress(psutil.Error):  # it has ended in the meantime
            root = psutil.Process(pid)
            processes += [root, *root.children(recursive=True)]
    for process in processes:
        with suppress(psutil.Error):
            process.kill()


def describe_end(crashed: bool, code: int, platform: str = sys.platform) -> str:
    """How a process ended, for a person; ``code`` as Qt gives it: of a crash the signal, on Windows the exception."""
    if platform == "win32" and crashed:
        return _("exit code {code}").format(code=f"0x{code & 0xFFFFFFFF:08X}")
    text = _("signal {code}") if crashed else _("exit code {code}")
    return text.format(code=code)
