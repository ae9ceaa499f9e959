"""What was generated? The fourth section: the runs and their volumes, with thumbnails, to be shown and exported."""

from __future__ import annotations

from collections import deque
from datetime import datetime
from functools import partial
from pathlib import Path

import numpy as np
import qt
import slicer
import vtk
from slicer.i18n import tr as _
from vtk.util.numpy_support import numpy_to_vtk

from MedDPMLib.errors import MedDPMError
from MedDPMLib.inference.record import volume_path, write_stored
from MedDPMLib.runtime.paths import reachable
from MedDPMLib.scene import volumes
from MedDPMLib.scene.background_work import BackgroundWork, Work
from MedDPMLib.scene.comparison import ORIENTATIONS, Comparison
from MedDPMLib.scene.panel.messages import say
from MedDPMLib.scene.views import MOST_COMPARED, show_background, show_only, show_outline, shown_background
from MedDPMLib.scene.worker_client import Signal

#: Pixels along a side of a thumbnail.
_SIDE = 48


class ResultsSection:
    """Signal: ``again`` (the nodes of one run that are to be generated again)."""

    def __init__(self, ui) -> None:
        self._ui = ui
        self.again = Signal()
        self._comparison = Comparison()
        self._work, self._export, self._opening = BackgroundWork(), BackgroundWork(), BackgroundWork()
        self._doomed: deque[str] = deque()
        #: Thumbnails by node ID, with the time when the voxels that they show were changed.
        self._thumbnails: dict[str, tuple[int, qt.QIcon]] = {}
        self._refresh = qt.QTimer()
        self._refresh.setSingleShot(True)
        self._refresh.interval = 0
        self._refresh.timeout.connect(self.fill)
        titles = {"Axial": _("Axial"), "Sagittal": _("Sagittal"), "Coronal": _("Coronal")}
        for orientation in ORIENTATIONS:
            ui.orientationBox.addItem(titles[orientation], orientation)
        ui.orientationBox.currentIndexChanged.connect(self._on_orientation)
        tree = ui.resultsTree
        tree.setColumnCount(1)
        tree.header().hide()
        tree.itemSelectionChanged.connect(self._on_selection)
        tree.itemDoubleClicked.connect(self._on_double_click)
        ui.showButton.clicked.connect(self._on_show)
        ui.compareButton.clicked.connect(self._on_compare)
        ui.endCompareButton.clicked.connect(self._on_end_compare)
        ui.regenerateButton.clicked.connect(self._on_again)
        ui.deleteButton.clicked.connect(self._on_delete)
        ui.exportButton.clicked.connect(self._on_export)
        self._layout = slicer.app.layoutManager()
        if self._layout is not None:
            self._layout.layoutChanged.connect(self._on_layout)
        say(ui.resultMessage, "")
        self.fill()

    def refresh(self) -> None:
        """Updates the list of what is in the scene, in the next pass of the event loop."""
        self._refresh.start()

    def stop(self) -> None:
        self._refresh.stop()
        self._stop_work()
        self._comparison.end()
        if self._layout is not None:
            self._layout.layoutChanged.disconnect(self._on_layout)
            self._layout = None

    @property
    def busy(self) -> bool:
        """Whether volumes are being deleted or written, or the views of a comparison made."""
        return any(work.busy for work in (self._work, self._export, self._opening))

    def _stop_work(self) -> None:
        for work in (self._work, self._export, self._opening):
            work.stop()
        self._doomed.clear()

    def close_scene(self) -> None:
        """The volumes are about to be removed, and the views of a comparison would be empty."""
        self._stop_work()
        self._comparison.end()
        self._thumbnails.clear()
        say(self._ui.resultMessage, "")

    # The list ----------------------------------------------------------------------------------------

    def fill(self) -> None:
        """One entry for each run, the newest first, with its volumes below it."""
        tree, runs = self._ui.resultsTree, volumes.runs()
        chosen = {node.GetID() for node in self.chosen()}
        folded = {self._ids(item)[0] for item in self._runs() if not item.isExpanded()}
        known = {id_ for item in self._runs() for id_ in self._ids(item)}
        blocked = tree.blockSignals(True)
        tree.clear()
        for index, nodes in enumerate(runs):
            ids = [node.GetID() for node in nodes]
            run = qt.QTreeWidgetItem()
            run.setText(0, _describe(nodes))
            run.setData(0, qt.Qt.UserRole, ids)
            run.setToolTip(0, _tool_tip(nodes[0]))
            tree.addTopLevelItem(run)
            for node in nodes:
                item = qt.QTreeWidgetItem()
                item.setText(0, (volumes.modality_of(node) or node.GetName()).upper())
                item.setIcon(0, self._thumbnail(node))
                item.setData(0, qt.Qt.UserRole, [node.GetID()])
                item.setToolTip(0, node.GetName())
                run.addChild(item)
                item.setSelected(len(ids) > 1 and node.GetID() in chosen and not chosen.issuperset(ids))
            run.setSelected(bool(ids) and chosen.issuperset(ids))
            run.setExpanded(index == 0 if not known & set(ids) else not folded & set(ids))
        tree.blockSignals(blocked)
        present = {node.GetID() for nodes in runs for node in nodes}
        self._thumbnails = {id_: kept for id_, kept in self._thumbnails.items() if id_ in present}
        self._on_selection()

    def select_newest(self) -> None:
        """Chooses the newest run, so that it can be shown, exported or generated again at once."""
        self.fill()
        for index, item in enumerate(self._runs()):
            item.setSelected(index == 0)
            item.setExpanded(index == 0)
            for child in range(item.childCount()):
                item.child(child).setSelected(False)

    @property
    def count(self) -> int:
        """How many runs there are."""
        return len(self._runs())

    def chosen(self) -> list[slicer.vtkMRMLScalarVolumeNode]:
        """The nodes of the selected entries that are still in the scene; a run stands for its volumes."""
        items = [(run, run.child(row)) for run in self._runs() for row in range(run.childCount())]
        ids = [self._ids(item)[0] for run, item in items if run.isSelected() or item.isSelected()]
        return [node for node in map(slicer.mrmlScene.GetNodeByID, ids) if node is not None]

    def _runs(self) -> list[qt.QTreeWidgetItem]:
        tree = self._ui.resultsTree
        return [tree.topLevelItem(index) for index in range(tree.topLevelItemCount)]

    @staticmethod
    def _ids(item: qt.QTreeWidgetItem) -> list[str]:
        return list(item.data(0, qt.Qt.UserRole))

    def _chosen_run(self) -> list[slicer.vtkMRMLScalarVolumeNode]:
        """The chosen volumes if they are of one run, else none."""
        ids = {node.GetID() for node in self.chosen()}
        return self.chosen() if any(ids and ids.issubset(self._ids(run)) for run in self._runs()) else []

    def _on_selection(self) -> None:
        ui, count = self._ui, len(self.chosen())
        ui.showButton.enabled = ui.regenerateButton.enabled = bool(self._chosen_run())
        ui.compareButton.enabled = 2 <= count <= MOST_COMPARED
        ui.deleteButton.enabled = count > 0
        ui.exportButton.enabled = count > 0 and not self._export.busy
        ui.endCompareButton.enabled = self._comparison.shown

    def _on_layout(self, _layout=None) -> None:
        self._ui.endCompareButton.enabled = self._comparison.shown

    def _thumbnail(self, node: slicer.vtkMRMLScalarVolumeNode) -> qt.QIcon:
        changed = node.GetImageData().GetMTime()
        kept = self._thumbnails.get(node.GetID())
        if kept is None or kept[0] != changed:
            kept = self._thumbnails[node.GetID()] = changed, qt.QIcon(_thumbnail(node))
        return kept[1]

    # Views -------------------------------------------------------------------------------------------

    def _on_double_click(self, item, _column=0) -> None:
        self._on_show()

    def _on_show(self) -> None:
        nodes = self._chosen_run()
        if not nodes:
            return
        looked_at = volumes.modality_of(shown_background())
        node = next((node for node in nodes if volumes.modality_of(node) == looked_at), nodes[0])
        segmentation = node.GetNodeReference(volumes.SEGMENTATION_ROLE)
        if segmentation is not None:
            self._ui.segmentationSelector.setCurrentNode(segmentation)  # what is seen is what is painted
            show_only(segmentation)
            show_outline(segmentation, True)
        show_background(node, fit=False)

    def next_modality(self) -> None:
        """Shows the next volume of the run that is in the views."""
        shown = shown_background()
        for nodes in volumes.runs():
            if shown in nodes:
                show_background(nodes[(nodes.index(shown) + 1) % len(nodes)], fit=False)
                return
        self._on_show()

    def _on_compare(self) -> None:
        nodes = self.chosen()
        for segmentation in {node.GetNodeReference(volumes.SEGMENTATION_ROLE) for node in nodes}:
            if segmentation is not None:
                show_outline(segmentation, True)
        work = self._comparison.showing(nodes, self._ui.orientationBox.currentData)
        self._opening.start(work, lambda _nothing: self._on_selection(), self._on_not_opened)

    def _on_not_opened(self, error: Exception) -> None:
        raise error

    def _on_orientation(self, _index=None) -> None:
        self._comparison.turn(self._ui.orientationBox.currentData)

    def _on_end_compare(self) -> None:
        self._opening.stop()
        self._comparison.end()
        self._on_selection()

    # Volumes -----------------------------------------------------------------------------------------

    def _on_again(self) -> None:
        nodes = self._chosen_run()
        if nodes:
            self.again.emit(nodes)

    def _on_delete(self) -> None:
        self._doomed.extend(node.GetID() for node in self.chosen())
        if not self._work.busy:  # else the deletion in progress continues with these
            self._work.start(self._delete(), self._on_deleted, self._on_not_deleted)

    def _delete(self) -> Work:
        while self._doomed:
            node = slicer.mrmlScene.GetNodeByID(self._doomed.popleft())
            if node is not None:
                volumes.remove_result(node)
            yield

    def _on_deleted(self, _nothing) -> None:
        self.fill()

    def _on_not_deleted(self, error: Exception) -> None:
        self.fill()
        raise error

    def _on_export(self) -> None:
        folder = qt.QFileDialog.getExistingDirectory(slicer.util.mainWindow(), _("Export to"))
        if not folder:
            return
        self._ui.exportButton.enabled = False
        say(self._ui.resultMessage, _("The volumes are being written ..."))
        ids = [node.GetID() for node in self.chosen()]
        self._export.start(_writing(folder, ids), self._on_exported, partial(self._on_not_exported, folder))

    def _on_exported(self, written: list[Path]) -> None:
        self._on_selection()
        names = ", ".join(path.name for path in written)
        say(self._ui.resultMessage, _("Written: {files}").format(files=names))

    def _on_not_exported(self, folder: str, error: Exception) -> None:
        self._on_selection()
        if isinstance(error, MedDPMError):
            say(self._ui.resultMessage, error)
        elif isinstance(error, OSError):
            text = _("{folder} cannot be written to ({reason}): choose another folder")
            say(self._ui.resultMessage, text.format(folder=folder, reason=error.strerror))
        else:
            raise error


def _writing(folder: str, ids: list[str]) -> Work:
    """The work of writing the results ``ids`` into ``folder``, one file at a time; returns the volumes' paths."""
    written = []
    for id_ in ids:
        node = slicer.mrmlScene.GetNodeByID(id_)
        if node is None:  # deleted meanwhile
            continue
        record = dict(volumes.record_of(node))
        modality = record.pop("modality")
        stem = _free_stem(folder, f"{_file_stem(record['mask']['name'])}_seed{record['seed']}", modality)
        written += yield partial(write_stored, folder, stem, {modality: volumes.result_volume(node)}, record)
    return written


def _describe(nodes: list[slicer.vtkMRMLScalarVolumeNode]) -> str:
    """A run in two lines."""
    record, segmentation = volumes.record_of(nodes[0]), nodes[0].GetNodeReference(volumes.SEGMENTATION_ROLE)
    return _("{time}, seed {seed}, {sampler} in {steps} steps\n{name}").format(
        name=segmentation.GetName() if segmentation is not None else record["mask"]["name"],
        time=_time_of_day(record["created"]), seed=record["seed"], sampler=record["sampler"], steps=record["steps"],
    )  # fmt: skip


def _tool_tip(node: slicer.vtkMRMLScalarVolumeNode) -> str:
    record = volumes.record_of(node)
    return _("Generated by {model} in {seconds:.1f} s. Synthetic: not an image of a patient.").format(
        model=record["model"]["name"], seconds=record["seconds"]
    )


def _time_of_day(created: str) -> str:
    """In local time, with the day if it was not today."""
    moment = datetime.fromisoformat(created).astimezone()
    today = moment.date() == datetime.now().astimezone().date()
    return moment.strftime("%H:%M" if today else "%Y-%m-%d %H:%M")


def _file_stem(text: str) -> str:
    """``text`` as the beginning of a file name on every system: systems count bytes, or letters."""
    plain = "".join(letter if letter.isalnum() or letter in "-_." else "_" for letter in text).strip(".")
    return plain.encode()[:100].decode(errors="ignore")


def _free_stem(folder: str, stem: str, modality: str) -> str:
    """``stem``, numbered if there is a volume of that name: two results may have mask, seed and modality in common."""
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
    gray = (255 * np.clip((image[::step, ::step] - low) / max(high - low, 1e-6), 0, 1)).astype(np.uint8)
    picture = vtk.vtkImageData()
    picture.SetDimensions(gray.shape[1], gray.shape[0], 1)
    pixels = np.repeat(np.ascontiguousarray(gray).reshape(-1, 1), 3, axis=1)
    picture.GetPointData().SetScalars(numpy_to_vtk(pixels, deep=True))
    converted = qt.QImage()
    slicer.qMRMLUtils().vtkImageDataToQImage(picture, converted)
    return qt.QPixmap.fromImage(converted).scaled(_SIDE, _SIDE, qt.Qt.KeepAspectRatio, qt.Qt.SmoothTransformation)
