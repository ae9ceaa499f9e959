"""What was made? The fourth section: the generated volumes in the scene, with thumbnails, to be shown and exported."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Any

import numpy as np
import qt
import slicer
import vtk
from slicer.i18n import tr as _
from vtk.util.numpy_support import numpy_to_vtk

from MedDPMLib.errors import MedDPMError
from MedDPMLib.imaging.volume import Volume
from MedDPMLib.inference.record import volume_path, write_result
from MedDPMLib.runtime.paths import reachable
from MedDPMLib.scene import volumes
from MedDPMLib.scene.background_work import Turns, Work
from MedDPMLib.scene.panel.messages import say
from MedDPMLib.scene.views import ORIENTATIONS, Comparison, show_background, show_outline
from MedDPMLib.scene.worker_client import Signal

#: Pixels along a side of a thumbnail.
_SIDE = 64

#: How many views beside each other can still be looked at.
_MOST_COMPARED = 9


@dataclass(frozen=True)
class _Export:
    """What :func:`MedDPMLib.inference.record.write_result` writes: the volume of one modality with its record."""

    modality: str
    volume: Volume
    record: dict[str, Any]

    def items(self):
        return [(self.modality, self.volume)]


class ResultsSection:
    """Signal: ``again`` (node to be made again)."""

    def __init__(self, ui) -> None:
        self._ui = ui
        self.again = Signal()
        self._comparison = Comparison()
        self._turns = Turns()
        self._refresh = qt.QTimer()
        self._refresh.setSingleShot(True)
        self._refresh.interval = 0
        self._refresh.timeout.connect(self.fill)
        titles = {"Axial": _("axial"), "Sagittal": _("sagittal"), "Coronal": _("coronal")}
        for orientation in ORIENTATIONS:
            ui.orientationBox.addItem(titles[orientation], orientation)
        ui.resultsList.itemSelectionChanged.connect(self._on_selection)
        ui.resultsList.itemDoubleClicked.connect(self._on_double_click)
        ui.showButton.clicked.connect(self._on_show)
        ui.compareButton.clicked.connect(self._on_compare)
        ui.endCompareButton.clicked.connect(self._on_end_compare)
        ui.regenerateButton.clicked.connect(self._on_again)
        ui.deleteButton.clicked.connect(self._on_delete)
        ui.exportButton.clicked.connect(self._on_export)
        say(ui.resultMessage, "")
        self.fill()

    def refresh(self) -> None:
        """Lists anew what is in the scene, once the event loop comes round."""
        self._refresh.start()

    def stop(self) -> None:
        self._refresh.stop()
        self._turns.stop()
        self._comparison.end()

    def fill(self) -> None:
        list_ = self._ui.resultsList
        chosen = {node.GetID() for node in self.chosen()}
        blocked = list_.blockSignals(True)
        list_.clear()
        for node in volumes.results():
            record = volumes.record_of(node)
            if record is None or node.GetImageData() is None:
                continue
            item = qt.QListWidgetItem(_describe(node, record))
            item.setIcon(qt.QIcon(_thumbnail(node)))
            item.setData(qt.Qt.UserRole, node.GetID())
            item.setToolTip(_("Made by {model} in {seconds:.1f} s. Synthetic: not an image of a patient.").format(
                model=record["model"]["name"], seconds=record["seconds"]))  # fmt: skip
            list_.addItem(item)
            item.setSelected(node.GetID() in chosen)
        list_.blockSignals(blocked)
        self._on_selection()

    def chosen(self) -> list[slicer.vtkMRMLScalarVolumeNode]:
        """The nodes of the selected entries that are still in the scene."""
        ids = [item.data(qt.Qt.UserRole) for item in self._ui.resultsList.selectedItems()]
        return [node for node in map(slicer.mrmlScene.GetNodeByID, ids) if node is not None]

    def _on_selection(self) -> None:
        ui, count = self._ui, len(self.chosen())
        ui.showButton.enabled = ui.regenerateButton.enabled = count == 1
        ui.compareButton.enabled = 2 <= count <= _MOST_COMPARED
        ui.deleteButton.enabled = ui.exportButton.enabled = count > 0
        ui.endCompareButton.enabled = self._comparison.shown

    def _on_double_click(self, item) -> None:
        self._on_show()

    def _on_show(self) -> None:
        for node in self.chosen()[:1]:
            show_background(node, fit=False)

    def _on_compare(self) -> None:
        nodes = self.chosen()
        for segmentation in {node.GetNodeReference(volumes.SEGMENTATION_ROLE) for node in nodes}:
            if segmentation is not None:
                show_outline(segmentation, True)
        self._comparison.show(nodes, self._ui.orientationBox.currentData)
        self._on_selection()

    def _on_end_compare(self) -> None:
        self._comparison.end()
        self._on_selection()

    def _on_again(self) -> None:
        for node in self.chosen()[:1]:
            self.again.emit(node)

    def _on_delete(self) -> None:
        self._turns.start(_delete(self.chosen()), self._on_deleted, self._on_not_deleted)

    def _on_deleted(self, _nothing) -> None:
        self.fill()

    def _on_not_deleted(self, error: Exception) -> None:
        self.fill()
        raise error

    def _on_export(self) -> None:
        folder = qt.QFileDialog.getExistingDirectory(slicer.util.mainWindow(), _("Export to"))
        if not folder:
            return
        written = []
        try:
            for node in self.chosen():
                record = dict(volumes.record_of(node))
                modality = record.pop("modality")
                stem = _free_stem(folder, f"{_file_stem(record['mask']['name'])}_seed{record['seed']}", modality)
                written += write_result(folder, stem, _Export(modality, volumes.result_volume(node), record))
        except MedDPMError as error:
            say(self._ui.resultMessage, error)
        except OSError as error:
            text = _("{folder} cannot be written to ({reason}): choose another folder")
            say(self._ui.resultMessage, text.format(folder=folder, reason=error.strerror))
        else:
            names = ", ".join(path.name for path in written)
            say(self._ui.resultMessage, _("Written: {files}").format(files=names))


def _delete(nodes: list[slicer.vtkMRMLScalarVolumeNode]) -> Work:
    for node in nodes:
        if slicer.mrmlScene.IsNodePresent(node):
            volumes.remove_result(node)
        yield


def _describe(node: slicer.vtkMRMLScalarVolumeNode, record: dict[str, Any]) -> str:
    return _("{name}\n{time}, seed {seed}, {sampler} in {steps} steps").format(
        name=node.GetName(), time=_time_of_day(record["created"]), seed=record["seed"], sampler=record["sampler"],
        steps=record["steps"],
    )  # fmt: skip


def _time_of_day(created: str) -> str:
    """When, on the clock here: the time, with the day if that was another."""
    moment = datetime.fromisoformat(created).astimezone()
    today = moment.date() == datetime.now().astimezone().date()
    return moment.strftime("%H:%M" if today else "%Y-%m-%d %H:%M")


def _file_stem(text: str) -> str:
    """``text`` as the beginning of a file name on every system: systems count bytes, or letters."""
    plain = "".join(letter if letter.isalnum() or letter in "-_." else "_" for letter in text).strip(".")
    return plain.encode()[:100].decode(errors="ignore")


def _free_stem(folder: str, stem: str, modality: str) -> str:
    """``stem``, numbered if there is a volume of that name: two results may have mask, seed and contrast in common."""
    number, free = 1, stem
    while reachable(volume_path(folder, free, modality)).exists():
        number += 1
        free = f"{stem}_{number}"
    return free


def _thumbnail(node: slicer.vtkMRMLScalarVolumeNode) -> qt.QPixmap:
    """The middle axial slice, upright."""
    array, display = slicer.util.arrayFromVolume(node), node.GetDisplayNode()
    matrix = vtk.vtkMatrix4x4()
    node.GetIJKToRASMatrix(matrix)
    directions = slicer.util.arrayFromVTKMatrix(matrix)[:3, :3]
    axis = int(np.abs(directions[2]).argmax())  # of i, j, k the one that runs up and down
    across = [a for a in range(3) if a != axis]
    image = array.take(array.shape[2 - axis] // 2, 2 - axis)  # rows: the later of the two axes
    # Columns run to the patient's left, rows, from the bottom as VTK counts them, to the front.
    if abs(directions[0, across[1]]) > abs(directions[0, across[0]]):
        image, across = image.T, across[::-1]
    if directions[0, across[0]] > 0:
        image = image[:, ::-1]
    if directions[1, across[1]] < 0:
        image = image[::-1]
    step = max(1, max(image.shape) // (2 * _SIDE))
    low, high = display.GetWindowLevelMin(), display.GetWindowLevelMax()
    grey = (255 * np.clip((image[::step, ::step] - low) / max(high - low, 1e-6), 0, 1)).astype(np.uint8)
    picture = vtk.vtkImageData()
    picture.SetDimensions(grey.shape[1], grey.shape[0], 1)
    pixels = np.repeat(np.ascontiguousarray(grey).reshape(-1, 1), 3, axis=1)
    picture.GetPointData().SetScalars(numpy_to_vtk(pixels, deep=True))
    converted = qt.QImage()
    slicer.qMRMLUtils().vtkImageDataToQImage(picture, converted)
    return qt.QPixmap.fromImage(converted).scaled(_SIDE, _SIDE, qt.Qt.KeepAspectRatio, qt.Qt.SmoothTransformation)
