"""Can the results be written? Checked before a command works for minutes or hours, as are the packages that it needs
(:mod:`MedDPMLib.runtime.packages`)."""

from __future__ import annotations

import tempfile
from pathlib import Path

from MedDPMLib.errors import MedDPMError


def check_writable(folder: Path) -> None:
    """Creates ``folder`` if missing; raises :class:`MedDPMError` if no file can be written there."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise MedDPMError(f"{folder} cannot be written to ({error.strerror}): choose another folder") from error


def check_writable_file(path: Path) -> None:
    """Raises :class:`MedDPMError` unless a file can be written, or replaced, at ``path``."""
    if path.is_dir():
        raise MedDPMError(f"{path} is a folder: give the name of a file in it")
    check_writable(path.parent)
