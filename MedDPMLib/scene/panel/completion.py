"""What does a model invent for a mask? The completed mask as a segmentation of its own, to be checked and corrected.

It is computed in a process of its own: a registration takes seconds in which nothing else could run.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np
import qt
import slicer
from slicer.i18n import tr as _

from MedDPMLib.errors import MedDPMError
from MedDPMLib.imaging.geometry import Geometry
from MedDPMLib.imaging.volume import Volume
from MedDPMLib.masks.schemes import LabelScheme
from MedDPMLib.models.card import Card
from MedDPMLib.scene import painting, volumes
from MedDPMLib.scene.processes import python_process, python_program
from MedDPMLib.scene.segmentation import read_labels
from MedDPMLib.scene.worker_client import Signal

_COMPLETE = """
import sys
import numpy as np
from MedDPMLib.errors import MedDPMError
from MedDPMLib.imaging.geometry import Geometry
from MedDPMLib.imaging.volume import Volume
from MedDPMLib.inference.atlas import network_labels
from MedDPMLib.masks.mask import Mask
from MedDPMLib.models.store import ModelStore
try:
    folder, model, seed = sys.argv[1:]
    card, given = ModelStore().find(model).card, np.load(folder + "/mask.npz")
    volume = Volume(given["labels"], Geometry(given["labels"].shape[::-1], given["ijk_to_ras"]))
    mask = Mask.from_volume(volume, card.scheme, numbering=card.scheme.own_numbering)
    seen = network_labels(mask, card, int(seed))
    np.savez(folder + "/completed.npz", labels=seen.labels, ijk_to_ras=seen.geometry.ijk_to_ras)
    print(seen.notes[-1])
except MedDPMError as error:
    sys.exit(str(error))
"""


class Completion:
    """One mask at a time. Signal: ``ended`` (the new segmentation or None, a sentence)."""

    def __init__(self) -> None:
        self.ended = Signal()
        self._owner = qt.QObject()
        self._process: qt.QProcess | None = None
        self._folder: tempfile.TemporaryDirectory | None = None
        self._scheme: LabelScheme | None = None
        self._name = ""

    @property
    def busy(self) -> bool:
        return self._process is not None

    def start(self, segmentation: slicer.vtkMRMLSegmentationNode, table: dict[str, int], card: Card, seed: int) -> None:
        """Completes the mask as the model with ``card`` sees it with ``seed``.

        Raises :class:`MedDPMError` for a mask that cannot be read.
        """
        self.stop()
        labels = read_labels(segmentation, table, card.scheme)
        self._folder = tempfile.TemporaryDirectory(dir=slicer.app.temporaryPath, ignore_cleanup_errors=True)
        np.savez(Path(self._folder.name) / "mask.npz", labels=labels.array, ijk_to_ras=labels.geometry.ijk_to_ras)
        self._scheme = card.completion
        self._name = _("{name} (completed, seed {seed})").format(name=segmentation.GetName(), seed=seed)
        self._process = process = python_process(self._owner)
        process.finished.connect(lambda code: self._on_finished(process, code))
        process.start(python_program(), ["-c", _COMPLETE, self._folder.name, card.name, str(seed)])

    def cancel(self) -> None:
        """Ends what is still running, with nothing made."""
        if self.busy:
            self.stop()
            self.ended.emit(None, "")

    def stop(self) -> None:
        """Ends what is still running, and leaves no file."""
        process, self._process = self._process, None
        if process is not None:
            process.kill()
            process.waitForFinished(500)
            process.deleteLater()
        if self._folder is not None:
            self._folder.cleanup()
            self._folder = None

    def _on_finished(self, process: qt.QProcess, code: int) -> None:
        if process is not self._process:
            return
        said = process.readAllStandardOutput().data().decode("utf-8", "replace").strip()
        fault = process.readAllStandardError().data().decode("utf-8", "replace").strip().splitlines()
        try:
            if code:
                reason = fault[-1] if fault else _("the process ended with code {code}").format(code=code)
                raise MedDPMError(reason)
            with np.load(Path(self._folder.name) / "completed.npz") as file:
                labels, matrix = file["labels"], file["ijk_to_ras"]
            volume = Volume(labels, Geometry(labels.shape[::-1], matrix))
            node = painting.add_segmentation(volume, self._scheme, self._name)
            volumes.add_sheet(node)
        except MedDPMError as error:
            node, said = None, str(error)
        self.stop()
        self.ended.emit(node, said)
