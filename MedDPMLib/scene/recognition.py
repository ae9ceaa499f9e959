"""Is a volume that was loaded from a file a generated one? Its header says so, the record beside it, or its name."""

from __future__ import annotations

import gzip
import zlib
from pathlib import Path

import qt
import slicer
import vtk

from MedDPMLib.imaging.io import NIFTI_SUFFIXES, SYNTHETIC, volume_suffix
from MedDPMLib.inference.record import read_record
from MedDPMLib.scene import volumes
from MedDPMLib.scene.worker_client import Signal

#: Where the description stands in the header of NIfTI-1, and the size of that header.
_DESCRIPTION = slice(148, 228)
_HEADER = 348

#: What the panel reads in a record; one that lacks some of it is not shown there.
_NEEDED = ("model", "mask", "seed", "sampler", "steps", "modality", "created", "seconds")


class Recognition:
    """Examines each volume that is added to the scene, from :meth:`start` to :meth:`stop`.

    Signal: ``recognized`` (one is marked as synthetic now).
    """

    def __init__(self) -> None:
        self.recognized = Signal()
        self._tag: int | None = None
        self._new: list[str] = []
        self._soon = qt.QTimer()  # a volume is added before its file is known
        self._soon.setSingleShot(True)
        self._soon.interval = 0
        self._soon.timeout.connect(self._look)

    def start(self) -> None:
        self._tag = slicer.mrmlScene.AddObserver(slicer.vtkMRMLScene.NodeAddedEvent, self._on_node)
        self._new = [node.GetID() for node in slicer.util.getNodesByClass("vtkMRMLScalarVolumeNode")]
        self._soon.start()

    def stop(self) -> None:
        self._soon.stop()
        if self._tag is not None:
            slicer.mrmlScene.RemoveObserver(self._tag)
            self._tag = None

    @vtk.calldata_type(vtk.VTK_OBJECT)
    def _on_node(self, scene, event, node) -> None:
        if node.IsA("vtkMRMLScalarVolumeNode"):
            self._new.append(node.GetID())
            self._soon.start()

    def _look(self) -> None:
        nodes, self._new = map(slicer.mrmlScene.GetNodeByID, self._new), []
        if sum(node is not None and recognize(node) for node in nodes):
            self.recognized.emit()


def recognize(node: slicer.vtkMRMLScalarVolumeNode) -> bool:
    """Marks ``node`` as synthetic if its file says so; returns whether it has been marked just now."""
    storage = node.GetStorageNode()
    path = storage.GetFileName() if storage is not None else None
    if not path or volumes.is_synthetic(node):
        return False
    exported = volume_suffix(Path(path)) in NIFTI_SUFFIXES
    record = read_record(path) if exported else None
    said = exported and _description(Path(path)) == SYNTHETIC
    if record is None and not said and not volumes.is_result_name(Path(path).name):
        return False
    node.SetAttribute(volumes.SYNTHETIC_ATTRIBUTE, "1")
    node.SetDescription(SYNTHETIC)
    if record is not None and not set(_NEEDED) - record.keys():
        volumes.set_record(node, record)
    return True


def _description(path: Path) -> str:
    """The description in the header of a NIfTI file; empty if it cannot be read."""
    try:
        with gzip.open(path) if path.name.lower().endswith(".gz") else path.open("rb") as file:
            header = file.read(_HEADER)
    except (OSError, EOFError, zlib.error):
        return ""
    return header[_DESCRIPTION].rstrip(b"\0 ").decode("ascii", "replace")
