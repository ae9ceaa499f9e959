"""How does a mask start from a scan? A volume of the scene is segmented in the worker; nothing here ever waits."""

from __future__ import annotations

import numpy as np
import slicer
from slicer.i18n import tr as _

from MedDPMLib.errors import MedDPMError
from MedDPMLib.imaging.geometry import Geometry
from MedDPMLib.imaging.volume import Volume
from MedDPMLib.models.store import BUNDLED_MODELS, SEGMENTER, ModelEntry, ModelStore
from MedDPMLib.scene import dependencies, painting, volumes
from MedDPMLib.scene.background_work import BackgroundWork, Work
from MedDPMLib.scene.images import volume_from_node
from MedDPMLib.scene.panel.messages import say
from MedDPMLib.scene.views import show_background
from MedDPMLib.scene.worker_client import Signal, WorkerClient
from MedDPMLib.worker.protocol import Cancelled, Error, Event, Progress, Segmented


class ScanSection:
    """One scan at a time. Signal: ``started`` (the segmentation made from a scan, the scheme of its labels)."""

    def __init__(self, ui, client: WorkerClient) -> None:
        self._ui, self._client = ui, client
        self.started = Signal()
        self._id: str | None = None
        self._work = BackgroundWork()
        self._scan: slicer.vtkMRMLScalarVolumeNode | None = None
        self._entry: ModelEntry | None = None
        ui.scanButton.clicked.connect(self._on_button)
        ui.scanSelector.currentNodeChanged.connect(self._on_volume)
        client.received.connect(self._on_event)
        client.failed.connect(self._on_failed)
        self.show()

    @property
    def busy(self) -> bool:
        """Whether a scan is being segmented."""
        return self._id is not None or self._work.busy

    def stop(self) -> None:
        """Ends what is under way, and lets go of scan and client."""
        self.cancel()
        self._client.received.disconnect(self._on_event)
        self._client.failed.disconnect(self._on_failed)

    def cancel(self) -> None:
        """Ends what is under way, at once."""
        if self.busy:
            id, self._id = self._id, None
            self._work.stop()
            if id is not None:
                self._client.cancel(id)
            self._end("")

    def show(self) -> None:
        """What can be clicked, and why."""
        ui = self._ui
        entry = self._entry or _installed()
        ui.scanButton.text = _("Cancel") if self.busy else _("Start from scan")
        ui.scanButton.enabled = self.busy or (entry is not None and ui.scanSelector.currentNode() is not None)
        ui.scanSelector.enabled = not self.busy
        ui.scanButton.toolTip = (
            _("No segmenter is installed: add one in the section Model")
            if entry is None
            else _("Create a segmentation of the brain in the chosen volume, ready to be painted on")
        )

    def _on_volume(self, _node=None) -> None:
        self.show()

    def _on_button(self, _checked=None) -> None:
        if self.busy:
            self.cancel()
            return
        node = self._ui.scanSelector.currentNode()
        try:
            dependencies.ensure()
            self._entry = _installed()
            if self._entry is None or node is None:
                return
            if node.GetImageData() is None:
                raise MedDPMError(_('"{volume}" has no voxels: choose another volume').format(volume=node.GetName()))
            if volumes.is_sheet(node):
                raise MedDPMError(_('"{volume}" is blank: choose a scan').format(volume=node.GetName()))
            scan = volume_from_node(node)
            self._id = self._client.segment(
                np.ascontiguousarray(scan.array),
                model=self._entry.name,
                ijk_to_ras=scan.geometry.ijk_to_ras.tolist(),
                name=node.GetName() or "scan",
            )
        except MedDPMError as error:
            self._end(error)
            return
        self._scan = node
        self.show()
        say(self._ui.maskMessage, _("The scan is being segmented ..."))

    def _on_event(self, event: Event) -> None:
        if self._id is None or getattr(event, "id", None) != self._id:
            return
        if isinstance(event, Progress) and event.steps:
            part = round(100 * event.step / event.steps)
            say(self._ui.maskMessage, _("The scan is being segmented: {part} %").format(part=part))
        elif isinstance(event, Segmented):
            self._id = None
            self._work.start(self._keeping(event), lambda _nothing: self._end("\n".join(event.notes)), self._on_fault)
        elif isinstance(event, Error):
            self._id = None
            self._end(event.error)
        elif isinstance(event, Cancelled):
            self._id = None
            self._end("")

    def _on_failed(self, message: str) -> None:
        if self._id is not None:
            self._id = None
            self._end(message)

    def _keeping(self, event: Segmented) -> Work:
        """The work of making the mask a segmentation; the scan stays what is seen under it and painted over."""
        node, scheme = self._scan, self._entry.card.scheme
        name = node.GetName() if _in_scene(node) else _("scan")
        labels = self._client.read(event.files)["labels"]
        volume = Volume(labels, Geometry(labels.shape[::-1], np.array(event.ijk_to_ras)))
        name = _("{scan} (segmented)").format(scan=name)
        segmentation = yield from painting.adding_segmentation(volume, scheme, name)
        yield
        if _in_scene(node):
            volumes.paint_over(segmentation, node)
        self.started.emit(segmentation, scheme)
        if _in_scene(node):
            show_background(node, fit=False)

    def _on_fault(self, error: Exception) -> None:
        self._end(error if isinstance(error, MedDPMError) else "")
        if not isinstance(error, MedDPMError):
            raise error

    def _end(self, message: str | MedDPMError) -> None:
        self._scan = self._entry = None
        self.show()
        say(self._ui.maskMessage, message)


def _in_scene(node: slicer.vtkMRMLNode | None) -> bool:
    return node is not None and slicer.mrmlScene.GetNodeByID(node.GetID() or "") is node


def _installed() -> ModelEntry | None:
    """The segmenter that is used: the user's own before the one that comes with MedDPM."""
    try:
        entries = ModelStore().list(SEGMENTER)
    except ModuleNotFoundError:  # a package that says where a user's data lies is not installed yet
        entries = ModelStore(BUNDLED_MODELS).list(SEGMENTER)
    return entries[-1] if entries else None
