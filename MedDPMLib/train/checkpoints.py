"""From where does a run resume?

Checkpoints are written under a temporary name and moved, so that there is always a complete one: the last few, and the
best averaged weights. A damaged one is reported, and the one before it is used.
"""

from __future__ import annotations

import zipfile
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any

import torch

from MedDPMLib.errors import MedDPMError
from MedDPMLib.runtime.files import atomic_write

_PATTERN = "iteration-*.pt"


class Checkpoints:
    """The checkpoints in ``folder``, of which the last ``keep`` stay."""

    def __init__(self, folder: Path, keep: int = 1) -> None:
        self.folder, self.keep = folder, keep

    @property
    def best(self) -> Path:
        """The averaged weights ("ema") with their "iteration" and "score"."""
        return self.folder / "best.pt"

    def paths(self) -> list[Path]:
        """The newest first."""
        return sorted(self.folder.glob(_PATTERN), reverse=True)

    def save(self, state: dict[str, Any]) -> None:
        _write(self.folder / f"iteration-{state['iteration']:09d}.pt", state)
        for old in self.paths()[self.keep :]:
            old.unlink()

    def save_best(self, ema: dict[str, Any], iteration: int, score: float) -> None:
        _write(self.best, {"ema": ema, "iteration": iteration, "score": score})

    def load(
        self, tell: Callable[[str], None], needed: Collection[str] = ("iteration", "ema")
    ) -> dict[str, Any] | None:
        """The newest valid checkpoint, on the CPU; None if there is none yet. Damaged ones are reported to ``tell``.

        Raises :class:`MedDPMError` if there are some, and all are damaged or lack one of the fields ``needed``.
        """
        paths = self.paths()
        for path in paths:
            try:
                return read(path, needed)
            except MedDPMError as error:
                tell(f"{error}; the one before it is used")
        if paths:
            raise MedDPMError(
                f"every checkpoint in {self.folder} is damaged or of another version: choose another run folder"
            )
        return None

    def clean(self) -> None:
        """Removes what a killed process has left half-written."""
        for path in self.folder.glob(".*.pt"):
            path.unlink(missing_ok=True)


def _write(path: Path, state: dict[str, Any]) -> None:
    with atomic_write(path) as temporary:
        try:
            torch.save(state, temporary)
        except RuntimeError as error:
            if "PytorchStreamWriter" not in str(error) and "inline_container" not in str(error):
                raise
            raise OSError(str(error)) from error  # what torch makes of a full disk


def read(path: Path, needed: Collection[str] = ("iteration", "ema")) -> dict[str, Any]:
    """The checkpoint at ``path``, on the CPU; :class:`MedDPMError` for a damaged one and one without all ``needed``."""
    try:
        # torch does not look at the archive's checksums.
        with zipfile.ZipFile(path) as archive:
            damaged = archive.testzip()
        if damaged is not None:
            raise ValueError(f"the checksum of {damaged} is wrong")
        state = torch.load(path, map_location="cpu", weights_only=True)
        missing = [name for name in needed if not isinstance(state, dict) or name not in state]
        if missing:
            raise ValueError(f"it has no {', '.join(missing)}")
        if not isinstance(state["iteration"], int) or not isinstance(state.get("ema", {}), dict):
            raise ValueError("it holds something else")
        return state
    except Exception as error:  # a damaged archive or pickle may raise anything
        raise MedDPMError(f"the checkpoint {path} is damaged ({str(error):.80})") from error
