"""How do arrays get from client to worker and back? As .npy files in a shared folder.

The client creates the folder, for one worker only, and removes it when the worker has ended. Files are called
``mask-*.npy``, ``scan-*.npy``, ``preview-*.npy`` and ``result-*.npy``; all files with such names in the folder
belong to the session.
"""

from __future__ import annotations

import os
import secrets
import threading
from contextlib import suppress

import numpy as np

from MedDPMLib.errors import MedDPMError
from MedDPMLib.runtime.files import atomic_write
from MedDPMLib.runtime.paths import reachable

#: The session's files, and what is left of one whose writing was interrupted.
_PATTERNS = ("mask-*.npy", "scan-*.npy", "preview-*.npy", "result-*.npy", ".*.npy")

#: Seconds that the removal of everything waits for the array that is being written.
_PATIENCE = 2.0


class Session:
    """The files in ``folder``."""

    def __init__(self, folder: str | os.PathLike) -> None:
        self.folder = reachable(folder)
        self._writing = threading.Lock()

    def write(self, kind: str, array: np.ndarray) -> str:
        """Writes ``array``, whole or not at all; returns its name. ``kind``: "mask", "scan", "preview" or "result".

        Raises :class:`MedDPMError` if there is no space or no permission.
        """
        name = f"{kind}-{secrets.token_hex(8)}.npy"
        try:
            with self._writing, atomic_write(self.folder / name) as temporary:
                np.save(temporary, array, allow_pickle=False)
        except MedDPMError as error:
            # numpy says how many numbers it could not write, and not why.
            reason = getattr(error.__cause__, "strerror", None) or "no space left"
            raise MedDPMError(
                f"the temporary folder {self.folder.parent} cannot be written to ({reason}): free some space there, or"
                " choose another in the application's settings (in 3D Slicer: Modules, Temporary directory)"
            ) from error
        return name

    def read(self, name: str) -> np.ndarray:
        """The array in the file called ``name``, mapped into memory, read-only: copy what has to outlast the file.

        Raises :class:`MedDPMError` if there is no such file or it is damaged.
        """
        try:
            return np.load(self.folder / name, mmap_mode="r", allow_pickle=False)
        except Exception as error:  # a damaged header may raise anything
            reason = getattr(error, "strerror", None) or f"{error!s:.100}"
            raise MedDPMError(f"{self.folder / name} cannot be read ({reason}): try again") from error

    def holds(self, name: str) -> bool:
        return (self.folder / name).exists()

    def remove(self, name: str) -> None:
        """Removes a file, if it is there; where the system refuses while it is mapped, it goes with the rest."""
        with suppress(OSError):
            (self.folder / name).unlink()

    def close(self) -> None:
        """Removes all files of the session, and the folder if nothing else is in it. Nothing can be written after."""
        self._writing.acquire(timeout=_PATIENCE)
        for pattern in _PATTERNS:
            for path in self.folder.glob(pattern):
                self.remove(path.name)
        with suppress(OSError):
            self.folder.rmdir()
