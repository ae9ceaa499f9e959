"""How do the volumes of a segmentation come into the scene? From a mask to nodes, with progress, preview and cancel."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import qt
import slicer
from slicer.i18n import tr as _

from MedDPMLib.errors import MedDPMError
from MedDPMLib.imaging.geometry import Geometry
from MedDPMLib.imaging.volume import Volume
from MedDPMLib.inference.settings import GenerationSettings
from MedDPMLib.inference.stored import HIGHEST
from MedDPMLib.models.card import Card
from MedDPMLib.scene import volumes
from MedDPMLib.scene.segmentation import read_labels
from MedDPMLib.scene.views import backgrounds, restore_backgrounds, show_background, show_outline, shown_background
from MedDPMLib.scene.worker_client import Signal, WorkerClient
from MedDPMLib.worker.protocol import Cancelled, Error, Event, Preview, Progress, Result


@dataclass(frozen=True)
class Order:
    """What is to be made from ``segmentation``, whose ``table`` is segment ID to label value of the model's scheme.

    A sample for each of ``seeds``. Results go into the nodes ``into`` (by seed and modality) where there is one, into
    those that hold the same result already, and else into new ones.
    """

    segmentation: slicer.vtkMRMLSegmentationNode
    card: Card
    table: dict[str, int]
    modalities: Sequence[str]
    seeds: Sequence[int]
    settings: GenerationSettings = field(default_factory=GenerationSettings)
    preview: bool = True
    into: dict[tuple[int, str], slicer.vtkMRMLScalarVolumeNode] = field(default_factory=dict)


class Generator:
    """Generates for one order at a time.

    Signals: ``progressed`` (text, part done from 0 to 1), ``ended`` (an error or a sentence if it failed, else None).
    The nodes may be removed or renamed while it runs; finished volumes stay. The views stay on the modality that they
    show.
    """

    def __init__(self, client: WorkerClient) -> None:
        self.client = client
        self.progressed, self.ended = Signal(), Signal()
        #: The order in progress, None if there is none, and the latest.
        self.order: Order | None = None
        self.latest: Order | None = None
        #: The labels of the latest order, as they were when it began.
        self.labels: Volume | None = None
        #: The nodes made by the latest order, by seed and modality.
        self.made: dict[tuple[int, str], slicer.vtkMRMLScalarVolumeNode] = {}
        #: The segmentation that is looked at, None for any: the views do not show what is made of another.
        self.looked_at: slicer.vtkMRMLSegmentationNode | None = None
        #: Notes on the mask of the latest order.
        self.notes: list[str] = []
        self._id: str | None = None
        self._preview: slicer.vtkMRMLScalarVolumeNode | None = None
        #: What the views showed before the first preview.
        self._before: dict[str, str] | None = None
        self._outlined = False
        #: What was in the volumes that the latest order has overwritten, and what the views showed before it.
        self._overwritten: dict[tuple[int, str], tuple[Volume, dict[str, Any]]] = {}
        self._shown_before: dict[str, str] = {}
        #: The numbers that the new results of a sample have in their names, by seed.
        self._numbers: dict[int, int] = {}
        #: What is to be added to the scene: a modality of a result, then None for its end.
        self._arrived: deque[tuple[Result, str | None]] = deque()
        self._next = qt.QTimer()
        self._next.setSingleShot(True)
        self._next.interval = 0
        self._next.timeout.connect(self._keep_next)
        client.received.connect(self._on_event)
        client.failed.connect(self._on_failed)

    def start(self, order: Order) -> None:
        """Starts; an order in progress is cancelled.

        Raises :class:`MedDPMError` for a mask that cannot be used or kept, and if no worker can be started; then
        the scene is unchanged.
        """
        if order.segmentation is None:
            raise MedDPMError(_("no segmentation is chosen: choose one, or start from a template"))
        if not order.modalities:
            raise MedDPMError(_("no modality is chosen: choose at least one"))
        labels = read_labels(order.segmentation, order.table, order.card.scheme)
        request: dict[str, Any] = {
            "model": order.card.name,
            "ijk_to_ras": labels.geometry.ijk_to_ras.tolist(),
            "scheme": order.card.scheme.name,
            "name": order.segmentation.GetName() or "segmentation",
            "seeds": list(order.seeds),
            "settings": order.settings.to_dict(),
            "modalities": _first(order.modalities, volumes.modality_of(shown_background())),
            "preview_every": int(order.preview),  # the next one waits until this one was read
        }
        cold = not self.client.running
        id = self.client.generate(np.ascontiguousarray(labels.array), **request)
        if self.order is not None:
            self._drop()
        self._id = id
        self.order = self.latest = order
        self.labels = labels
        self.made, self.notes = {}, list(labels.notes)
        self._numbers, self._outlined = {}, False
        self._overwritten, self._shown_before = {}, self._before or backgrounds()
        self.progressed.emit(_("Starting PyTorch") if cold else _("Waiting for the worker"), 0.0)

    def cancel(self) -> None:
        """Ends the order in progress, at once."""
        if self.order is not None:
            self._drop()
            self._end(None)

    @property
    def nodes(self) -> dict[tuple[int, str], slicer.vtkMRMLScalarVolumeNode]:
        """The results of the latest order, by seed and modality: what the next one may be written into."""
        return {} if self.latest is None else {**self.latest.into, **self.made}

    def forget(self) -> None:
        """Ends the order in progress and drops all references to the scene, which may be about to be closed."""
        self.cancel()
        self.latest = self.labels = None
        self.looked_at = None
        self.made, self.notes = {}, []
        self._overwritten, self._shown_before = {}, {}

    def undo(self) -> None:
        """Undoes the latest order: volumes that it overwrote are restored, those that it created are removed."""
        self.cancel()
        shown = shown_background() in self.made.values()
        for key, node in self.made.items():
            if not _in_scene(node):
                continue
            if key in self._overwritten:
                volume, record = self._overwritten[key]
                volumes.update_volume(node, volume)
                volumes.set_record(node, record)
            else:
                volumes.remove_result(node)
        self.made, self._overwritten = {}, {}
        if shown:
            restore_backgrounds(self._shown_before)

    def _drop(self) -> None:
        """Drops the order in progress."""
        self.client.cancel(self._id)
        for event, _modality in self._arrived:
            self.client.discard(event.files)
        self._arrived.clear()
        self._next.stop()

    # Events of the worker ----------------------------------------------------------------------

    def _on_event(self, event: Event) -> None:
        if self.order is None or getattr(event, "id", None) != self._id:
            return
        if isinstance(event, Progress):
            self.progressed.emit(_in_words(event), _part(event))
        elif isinstance(event, Preview):
            self._show_preview(event)
        elif isinstance(event, Result):
            self._arrived.extend((event, modality) for modality in (*self.order.modalities, None))
            self._next.start()
        elif isinstance(event, Error):
            self._end(event.error)
        elif isinstance(event, Cancelled):
            self._end(None)

    def _on_failed(self, message: str) -> None:
        if self.order is not None:
            self._end(message)

    def _show_preview(self, event: Preview) -> None:
        modality = next(iter(event.files))
        try:
            arrays = self.client.read({modality: event.files[modality]})
        except MedDPMError:  # the request has ended in the meantime, and with it its previews
            return
        finally:
            self.client.discard(event.files)
        volume = self._volume(event, arrays[modality])
        node = self._preview
        if _in_scene(node) and volumes.modality_of(node) == modality:
            volumes.update_volume(node, volume)
            return
        self._remove_preview()
        if self._before is None:
            self._before = backgrounds()
        self._preview = volumes.add_volume(
            volume, volumes.forming_name(self._name(), modality), self._segmentation(),
            window=self._preview_window(modality), modality=modality, caption=volumes.caption(modality),
        )  # fmt: skip
        for owned in (self._preview, self._preview.GetDisplayNode()):
            owned.SetSaveWithScene(False)
        self._show(self._preview)

    def _preview_window(self, modality: str) -> tuple[float, float]:
        """That of the latest result in this modality, so that nothing flashes when the image is done."""
        shown = shown_background()
        if volumes.modality_of(shown) == modality and shown.GetDisplayNode() is not None:
            return shown.GetDisplayNode().GetWindowLevelMin(), shown.GetDisplayNode().GetWindowLevelMax()
        return 0, HIGHEST

    def _keep_next(self) -> None:
        """Adds one volume of a result to the scene, or shows it; the event loop runs before the next."""
        event, modality = self._arrived.popleft()
        try:
            if modality is None:
                self._on_sample(event)
            else:
                self._keep(event, modality)
        except Exception as error:
            self._drop()
            if isinstance(error, MedDPMError):
                self._end(error)
                return
            self._end(_("the volume could not be added to the scene: see the Python console for the reason"))
            raise
        if self._arrived:
            self._next.start()

    def _keep(self, event: Result, modality: str) -> None:
        order, seed = self.order, self.order.seeds[event.sample - 1]
        volume = self._volume(event, self.client.read({modality: event.files[modality]})[modality])
        node = order.into.get((seed, modality))
        if not _in_scene(node):
            node = volumes.same_result(self._segmentation(), modality, event.record)
        if node is not None:
            self._overwritten[seed, modality] = volumes.result_volume(node), volumes.record_of(node)
            volumes.update_volume(node, volume)
        else:
            window = volumes.fitting_window(_thinned(volume), 0)
            if seed not in self._numbers:
                self._numbers[seed] = volumes.free_number(self._name(), order.modalities, seed)
            name = volumes.result_name(self._name(), modality, seed, self._numbers[seed])
            node = volumes.add_volume(volume, name, self._segmentation(), window=window)
        # What was decided here is part of how the volume came about.
        notes = list(dict.fromkeys((*self.labels.notes, *event.record["notes"])))
        volumes.set_record(node, {"modality": modality, **event.record, "notes": notes})
        self.made[seed, modality] = node

    def _on_sample(self, event: Result) -> None:
        """All volumes of a sample are in the scene, if they have not been deleted since."""
        # The first note says how the values were read, which the panel has decided itself.
        self.notes += [note for note in event.record["notes"][1:] if note not in self.notes]
        seed = self.order.seeds[event.sample - 1]
        looked_at = volumes.modality_of(shown_background())
        if self._before is None:
            self._before = backgrounds()
        made = {modality: self.made[seed, modality] for modality in self.order.modalities}
        made = {modality: node for modality, node in made.items() if _in_scene(node)}
        if made:  # else they were deleted while the rest of the sample arrived
            self._show(made.get(looked_at) or next(iter(made.values())))
            self._before = backgrounds()
        self._remove_preview()
        if event.sample == event.samples:
            self._end(None)

    # The scene ---------------------------------------------------------------------------------------

    def _end(self, message: str | MedDPMError | None) -> None:
        self.order = self._id = None
        self.made = {key: node for key, node in self.made.items() if _in_scene(node)}
        self._arrived.clear()
        self._next.stop()
        if self._preview is not None:
            shown = shown_background() is self._preview
            self._remove_preview()
            if shown:
                restore_backgrounds(self._before or {})
        self._before = None
        self.ended.emit(message)

    def _show(self, node: slicer.vtkMRMLScalarVolumeNode) -> None:
        """Shows ``node``, brought into view if nothing was shown; over an image the mask becomes an outline."""
        if self.looked_at not in (None, self.order.segmentation):
            return
        show_background(node, fit=not any((self._before or {}).values()))
        segmentation = self._segmentation()
        if segmentation is not None and not self._outlined:
            show_outline(segmentation, True)
        self._outlined = True  # later changes by the user are kept

    def _remove_preview(self) -> None:
        node, self._preview = self._preview, None
        if _in_scene(node):
            volumes.remove_result(node)

    def _segmentation(self) -> slicer.vtkMRMLSegmentationNode | None:
        """The segmentation of the order, if it has not been deleted in the meantime."""
        node = self.order.segmentation
        return node if _in_scene(node) else None

    def _volume(self, event: Preview | Result, array: np.ndarray) -> Volume:
        """``array`` where it lies."""
        return Volume(array, Geometry(array.shape[::-1], np.array(event.ijk_to_ras)))

    def _name(self) -> str:
        return self.order.segmentation.GetName() or "segmentation"


def _in_scene(node: slicer.vtkMRMLNode | None) -> bool:
    return node is not None and slicer.mrmlScene.GetNodeByID(node.GetID() or "") is node


def _thinned(volume: Volume) -> Volume:
    """Every fourth voxel along each axis: enough for the brightness, in a sixty-fourth of the time."""
    array = volume.array[::4, ::4, ::4]
    return Volume(array, Geometry(array.shape[::-1], volume.geometry.ijk_to_ras))


def _first(modalities: Sequence[str], wanted: str | None) -> list[str]:
    """The ``modalities``, the ``wanted`` one first if it is among them: previews show the first."""
    return sorted(modalities, key=lambda modality: modality != wanted)


def _part(event: Progress) -> float:
    done = event.sample - 1 + (event.step / event.steps if event.steps else 0)
    return done / event.samples


def _in_words(event: Progress) -> str:
    if event.stage == "model":
        return _("Loading the model")
    if event.stage == "mask":
        return _("Fitting the mask to the model's grid")
    text = _("Step {step} of {steps}").format(step=event.step, steps=event.steps)
    if event.samples > 1:
        text = _("Sample {sample} of {samples}: ").format(sample=event.sample, samples=event.samples) + text
    if event.seconds_left is not None:
        text += _(", {time} left").format(time=spoken_time(event.seconds_left))
    return text


def spoken_time(seconds: float) -> str:
    """For a person: "8 s", "about 2 min", "about 1 h 20 min"."""
    if seconds < 59.5:
        return _("{seconds} s").format(seconds=round(seconds))
    minutes = round(seconds / 60)
    if minutes < 60:
        return _("about {minutes} min").format(minutes=minutes)
    return _("about {hours} h {minutes} min").format(hours=minutes // 60, minutes=minutes % 60)
