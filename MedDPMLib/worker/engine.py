"""How is a request carried out? With the one model that stays loaded.

PyTorch is imported when it is first needed: without it the worker still starts, and reports what is missing.
"""

from __future__ import annotations

import gc
import importlib
import sys
import time
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from MedDPMLib.errors import MedDPMError
from MedDPMLib.imaging.geometry import Geometry
from MedDPMLib.imaging.volume import Volume
from MedDPMLib.inference.settings import GenerationSettings
from MedDPMLib.inference.stored import stored_as, to_stored
from MedDPMLib.masks.brain_area import labeled_area
from MedDPMLib.runtime.allocator import hand_back_freed_memory
from MedDPMLib.validation import quoted
from MedDPMLib.worker.protocol import (
    Event,
    Generate,
    Load,
    Loaded,
    Preview,
    Progress,
    Ready,
    Result,
    Segment,
    Segmented,
)
from MedDPMLib.worker.session import Session

if TYPE_CHECKING:
    from torch import Tensor

    from MedDPMLib.masks.fit import Fitted
    from MedDPMLib.masks.mask import Mask
    from MedDPMLib.models.model import Model
    from MedDPMLib.segmentation.segmenter import Segmenter

#: Sends an event; what it raises ends the request.
Send = Callable[[Event], None]

#: What a request imports: done at the start, while the user paints.
_NEEDED = ("MedDPMLib.inference.generation", "MedDPMLib.models.store", "platformdirs", "safetensors.torch", "SimpleITK")

#: So many of the latest steps say how long the next will take.
_RECENT_STEPS = 5


class Engine:
    """``session`` holds the arrays. Everything here is called from one thread."""

    def __init__(self, session: Session) -> None:
        self.session = session
        self._model: Model | None = None
        self._file: tuple | None = None
        self._segmenter: Segmenter | None = None
        self._segmenter_file: tuple | None = None

    @property
    def model_name(self) -> str | None:
        """The name of the model that is loaded."""
        model = self._model
        return None if model is None else model.card.name

    def start(self) -> Ready:
        """Imports what the first request needs. Raises ImportError for a package that is missing."""
        for module in _NEEDED:
            try:
                importlib.import_module(module)
            except OSError as error:  # PyTorch loads its libraries itself, and raises this where one is missing
                raise ImportError(str(error), name="torch") from error
        from MedDPMLib.runtime.device import choose_execution

        execution = choose_execution()
        return Ready(device=str(execution.device), precision=execution.precision, reason=execution.reason)

    def load(self, request: Load) -> Loaded:
        from MedDPMLib.inference.generation import plan_run

        started = time.perf_counter()
        model = self._ready_model(request.model)
        with suppress(MedDPMError):  # what keeps it from running is reported when it is asked to
            run = plan_run(model, GenerationSettings())
            model.prepared(run.execution, run.plan.mode)
        return Loaded(id=request.id, model=model.card.name, seconds=round(time.perf_counter() - started, 3))

    def release(self) -> None:
        """Gives the model's memory back."""
        self._model = self._file = self._segmenter = None
        gc.collect()
        hand_back_freed_memory()
        try:
            import torch
        except ImportError:
            return
        if torch.cuda.is_available():
            try:
                torch.cuda.empty_cache()
            except RuntimeError as error:  # a recording that failed in an older PyTorch keeps it from doing so
                print(f"the memory of the GPU is not released ({error})", file=sys.stderr, flush=True)

    def generate(self, request: Generate, send: Send) -> Result:  # type: ignore[return]
        """Sends everything but the last result, which it returns."""
        from MedDPMLib.inference.generation import plan_run
        from MedDPMLib.masks.fit import fit

        samples = len(request.seeds)
        asked = GenerationSettings.from_dict(request.settings)
        send(Progress(id=request.id, stage="model", sample=1, samples=samples))
        model = self._ready_model(request.model)
        card = model.card
        wanted = _wanted(request.modalities, model)
        settings = asked.for_card(card)
        send(Progress(id=request.id, stage="mask", sample=1, samples=samples))
        mask = self._mask(request, model)
        report = _Report(request, model, fit(mask, card.grid), wanted, settings.steps, self.session, send)
        send(Progress(id=request.id, stage="steps", sample=1, samples=samples, steps=settings.steps))
        try:
            run = plan_run(model, settings)
            print(run.description, file=sys.stderr, flush=True)
            for sample, seed in enumerate(request.seeds, start=1):
                report.begin(sample)
                # While something forms already, a glance of the next sample says nothing new.
                glance = report.glance if request.preview_every and sample == 1 else None
                generated = run.generate(mask, seed=seed, progress=report.step, glance=glance)
                volumes = generated.stored(wanted)
                result = Result(
                    id=request.id, sample=sample, samples=samples, files=_write(self.session, "result", volumes),
                    ijk_to_ras=volumes[wanted[0]].geometry.ijk_to_ras.tolist(), record=generated.record,
                )  # fmt: skip
                if sample == samples:
                    return result
                self._deliver(result, send)
        finally:
            report.end()

    def segment(self, request: Segment, send: Send) -> Segmented:
        """The mask of a scan; it ends between two passes of the network when it is cancelled."""
        send(Progress(id=request.id, stage="model", sample=1, samples=1))
        segmenter = self._ready_segmenter(request.model)
        array = self.session.read(request.scan)
        if array.dtype.kind not in "buif" or array.ndim != 3 or array.size == 0:
            raise MedDPMError(f"{request.name} holds {array.dtype} of shape {array.shape}: a scan has three axes")
        scan = Volume(np.array(array, order="C"), Geometry(array.shape[::-1], request.ijk_to_ras))

        def report(done: int, total: int) -> None:
            send(Progress(id=request.id, stage="steps", sample=1, samples=1, step=done, steps=total))

        made = segmenter.segment({None: scan}, name=request.name, progress=report)
        return Segmented(
            id=request.id, files={"labels": self.session.write("result", made.labels.array)},
            ijk_to_ras=made.labels.geometry.ijk_to_ras.tolist(), notes=list(made.notes),
        )  # fmt: skip

    def discard(self, result: Result | Segmented) -> None:
        """Removes the files of a result that is not reported."""
        _remove(self.session, result.files)

    def _ready_model(self, name: str) -> Model:
        """The model of that name or path; the one that is loaded if its file is the same."""
        from MedDPMLib.models.model import load_model
        from MedDPMLib.models.store import ModelStore

        path = ModelStore().find(name).path
        file = _identity(path)
        if self._model is None or file != self._file:
            self.release()  # the old one goes before the new one comes
            self._model, self._file = load_model(path), file
        return self._model

    def _ready_segmenter(self, name: str) -> Segmenter:
        """The segmenter of that name or path, kept as the model is, and beside it: it takes some megabytes."""
        from MedDPMLib.models.store import SEGMENTER, ModelStore
        from MedDPMLib.segmentation.segmenter import load_segmenter

        path = ModelStore().find(name, SEGMENTER).path
        file = _identity(path)
        if self._segmenter is None or file != self._segmenter_file:
            self._segmenter, self._segmenter_file = load_segmenter(path), file
        return self._segmenter

    def _mask(self, request: Generate, model: Model) -> Mask:
        from MedDPMLib.masks.mask import Mask

        scheme = model.card.scheme
        if request.scheme != scheme.name:
            raise MedDPMError(
                f"the mask has labels of the scheme {quoted(request.scheme)}, the model {model.card.name} needs"
                f' "{scheme.name}": assign the segments to the labels of this model'
            )
        array = self.session.read(request.mask)
        if array.dtype != np.uint8 or array.ndim != 3 or array.size == 0:
            raise MedDPMError(
                f"{request.mask} holds {array.dtype} of shape {array.shape}: a mask is uint8 of three axes (k, j, i)"
            )
        volume = Volume(np.array(array, order="C"), Geometry(array.shape[::-1], request.ijk_to_ras))
        return Mask.from_volume(volume, scheme, name=request.name, numbering=scheme.own_numbering)

    def _deliver(self, result: Result, send: Send) -> None:
        try:
            send(result)
        except BaseException:
            self.discard(result)
            raise


class _Report:
    """The events while a request is carried out."""

    def __init__(
        self,
        request: Generate,
        model: Model,
        fitted: Fitted,
        wanted: list[str],
        steps: int,
        session: Session,
        send: Send,
    ) -> None:
        self._request, self._card, self._geometry, self._wanted = request, model.card, fitted.geometry, wanted
        self._brain = labeled_area(fitted.labels) if request.preview_every else None
        self._steps, self._session, self._send = steps, session, send
        self._sample = 0
        self._files: dict[str, str] = {}
        self._times: deque[float] = deque(maxlen=_RECENT_STEPS + 1)

    def begin(self, sample: int) -> None:
        self._sample = sample
        self._times.clear()
        self._times.append(time.perf_counter())

    def glance(self, x0: Tensor) -> None:
        """The coarse image (1, C, D, H, W) that is there before the first step."""
        self._preview(0, x0)
        self._times[-1] = time.perf_counter()  # it is no part of a step

    def step(self, step: int, steps: int, x0: Tensor) -> None:
        """For the sampler: after each of its steps, with the estimate x0 (1, C, D, H, W)."""
        self._times.append(time.perf_counter())
        if step == 2:
            self._times.popleft()  # the first step also prepares the network
        samples = len(self._request.seeds)
        left = steps - step + (samples - self._sample) * steps
        each = (self._times[-1] - self._times[0]) / (len(self._times) - 1)
        self._send(
            Progress(
                id=self._request.id, stage="steps", sample=self._sample, samples=samples, step=step, steps=steps,
                seconds_left=round(left * each, 1),
            )
        )  # fmt: skip
        every = self._request.preview_every
        if every and (step - 1) % every == 0 and step < steps:
            self._preview(step, x0)

    def _preview(self, step: int, x0: Tensor) -> None:
        if any(map(self._session.holds, self._files.values())):
            return  # the client is still busy with the one before
        from MedDPMLib.inference.result import volumes_of

        # Only what is shown is converted and written: the sampling waits meanwhile.
        made = volumes_of(self._card, x0[0], self._geometry, self._geometry, self._wanted[:1])
        line = stored_as(self._card.intensity_range)
        stored = {name: to_stored(volume, line, self._brain) for name, volume in made.items()}
        self._files = _write(self._session, "preview", stored)
        self._send(
            Preview(
                id=self._request.id, sample=self._sample, step=step, steps=self._steps, files=self._files,
                ijk_to_ras=self._geometry.ijk_to_ras.tolist(),
            )
        )  # fmt: skip

    def end(self) -> None:
        """Removes what the client has not fetched."""
        _remove(self._session, self._files)


def _identity(path: Path) -> tuple:
    """Equal for the same file as long as nobody has changed it."""
    status = path.stat()
    return path.resolve(), status.st_size, status.st_mtime_ns


def _wanted(modalities: list[str] | None, model: Model) -> list[str]:
    card = model.card
    unknown = [name for name in modalities or () if name not in card.modalities]
    if unknown:
        raise MedDPMError(f"{card.name} does not generate {quoted(unknown[0])}, only {', '.join(card.modalities)}")
    return list(card.modalities) if modalities is None else list(dict.fromkeys(modalities))


def _write(session: Session, kind: str, volumes: dict[str, Volume]) -> dict[str, str]:
    """Writes all ``volumes`` or none; the files' names by modality."""
    files: dict[str, str] = {}
    try:
        for modality, volume in volumes.items():
            files[modality] = session.write(kind, volume.array)
    except BaseException:
        _remove(session, files)
        raise
    return files


def _remove(session: Session, files: dict[str, str]) -> None:
    for name in files.values():
        session.remove(name)
