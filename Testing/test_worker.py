"""The worker: the same volumes as without it, an answer whatever it is doing, and nothing left behind.

All but the last part drives the real process. Its network is delayed or made to fail where the number of steps says
so, and prints as libraries do, so that every line that is read here also proves that only the protocol comes through.
"""

from __future__ import annotations

import dataclasses
import json
import os
import queue
import re
import signal
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from conftest import head_phantom, small_card, small_geometry, small_labels, write_small_model
from hypothesis import given
from hypothesis import strategies as st

import MedDPMLib
from MedDPMLib.errors import MedDPMError
from MedDPMLib.imaging.geometry import Geometry, Grid
from MedDPMLib.imaging.volume import Volume
from MedDPMLib.inference.generation import plan_run
from MedDPMLib.inference.settings import SETTINGS, GenerationSettings
from MedDPMLib.masks.mask import Mask
from MedDPMLib.runtime.device import choose_execution
from MedDPMLib.worker import protocol
from MedDPMLib.worker.engine import Engine
from MedDPMLib.worker.faults import describe_fault
from MedDPMLib.worker.protocol import (
    Bye,
    Cancel,
    Cancelled,
    Error,
    EventReader,
    Generate,
    Hello,
    Load,
    Loaded,
    Preview,
    Progress,
    ProtocolError,
    Ready,
    Result,
    Segment,
    Segmented,
    Shutdown,
    State,
    Status,
    Unloaded,
    decode_event,
    decode_request,
    encode,
    worker_arguments,
)
from MedDPMLib.worker.session import Session

#: Numbers of steps at which the network takes long, never ends its second step, asks for more memory than there is,
#: and has a fault.
SLOW, STUCK, GREEDY, FAULTY = 40, 45, 7, 9
#: Seconds of a slow step.
LONG = 1.5

STAND_INS = f"""
import os, time
import MedDPMLib.inference.timesteps as timesteps

free_sample = timesteps.sample

def sample(denoiser, condition, schedule, **settings):
    import torch
    steps = settings["steps"]
    os.system("echo a child process talks")

    def denoise(x, t, condition):
        print("a library talks", flush=True)
        os.write(1, b"a compiled library talks\\n")
        if steps == {SLOW}:
            time.sleep({LONG})
        if steps == {STUCK} and int(t[0]) < schedule.timesteps - 1:
            time.sleep(1000)
        if steps == {GREEDY}:
            torch.empty(2**50)
        if steps == {FAULTY}:
            {{}}["the fault"]
        return denoiser(x, t, condition)

    return free_sample(denoise, condition, schedule, **settings)

timesteps.sample = sample
from MedDPMLib.worker.__main__ import main
main()
"""

WITHOUT_TORCH = """
import sys
sys.modules["torch"] = None
from MedDPMLib.worker.__main__ import main
main()
"""


class Client:
    """Starts a worker on ``folder`` and talks to it; ``code`` runs in place of the module."""

    def __init__(
        self, folder: Path, *, code: str = STAND_INS, idle: float | None = None, listening: bool = True
    ) -> None:
        folder.mkdir()
        self.session = Session(folder)
        arguments = worker_arguments(folder, idle)
        assert arguments[:2] == ["-m", "MedDPMLib.worker"]
        package = Path(MedDPMLib.__file__).parents[1]
        torch = sys.modules.get("torch")
        threads = str(torch.get_num_threads()) if torch else "1"  # as many as here: sums depend on it
        self.log = folder.with_suffix(".log").open("w+b")
        self.process = subprocess.Popen(
            [sys.executable, "-c", code, *arguments[2:]],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self.log,
            cwd=folder.parent,
            env=os.environ | {"PYTHONPATH": str(package), "OMP_NUM_THREADS": threads, "MEDDPM_MODELS": str(folder)},
        )
        self._arrived: queue.Queue = queue.Queue()
        if listening:
            threading.Thread(target=self._listen, daemon=True).start()
        self._number = 0

    def _listen(self) -> None:
        reader = EventReader()
        while data := self.process.stdout.read1():
            try:
                for event in reader.feed(data):
                    self._arrived.put(event)
            except ProtocolError as error:
                self._arrived.put(error)
        self._arrived.put(None)

    def send(self, *messages: protocol.Request | bytes) -> None:
        for message in messages:
            self.process.stdin.write(message if isinstance(message, bytes) else encode(message))
        self.process.stdin.flush()

    def next(self, timeout: float = 120) -> protocol.Event | None:
        """The next event; None at the end."""
        event = self._arrived.get(timeout=timeout)
        if isinstance(event, ProtocolError):
            raise event
        return event

    def until(self, *kinds: type, **values) -> list[protocol.Event]:
        """The events up to the first of one of ``kinds`` with these ``values``; an error must be asked for."""
        events = []
        while True:
            event = self.next()
            assert event is not None, f"the worker ended after {events}: {self.logged()}"
            events.append(event)
            assert not isinstance(event, Error) or Error in kinds, event
            if isinstance(event, kinds) and all(getattr(event, name) == value for name, value in values.items()):
                return events

    def id(self) -> str:
        self._number += 1
        return f"request {self._number}"

    def generate(self, model: Path, labels: np.ndarray, **choices) -> Generate:
        """The request, with its mask written; ``choices`` are settings, and fields of the request."""
        settings = {name: choices.pop(name) for name in SETTINGS if name in choices}
        return Generate(
            id=self.id(),
            model=str(model),
            mask=self.session.write("mask", labels),
            ijk_to_ras=small_geometry().ijk_to_ras.tolist(),
            scheme="brats",
            settings=settings,
            **choices,
        )

    def state(self) -> State:
        self.send(Status(id=self.id()))
        return self.until(State)[-1]

    def files(self) -> list[str]:
        return sorted(path.name for path in self.session.folder.iterdir())

    def logged(self) -> str:
        self.log.seek(0)
        return self.log.read().decode(errors="replace")

    def end(self) -> int:
        """Closes standard input, as a client that dies does; the exit code."""
        self.process.stdin.close()
        return self.process.wait(60)

    def close(self) -> None:
        self.process.kill()
        self.process.wait()
        for stream in (self.process.stdin, self.process.stdout, self.log):
            stream.close()


@pytest.fixture
def start(tmp_path):
    clients = []

    def start(**settings) -> Client:
        clients.append(Client(tmp_path / f"session {len(clients)} ü", **settings))
        return clients[-1]

    yield start
    for client in clients:
        client.close()


@pytest.fixture(scope="module")
def shared(tmp_path_factory):
    client = Client(tmp_path_factory.mktemp("worker") / "session")
    client.until(Ready)
    yield client
    client.close()


@pytest.fixture
def worker(shared):
    """The worker that most tests share; each leaves it idle, alive and without files."""
    yield shared
    state = shared.state()
    assert (state.running, state.waiting) == (None, [])
    assert shared.files() == []


@pytest.fixture(scope="module")
def labels(brats):
    return small_labels(brats)


def fetched(client: Client, event: Result | Preview) -> dict[str, np.ndarray]:
    """The arrays of ``event``; its files are gone then."""
    arrays = {modality: np.array(client.session.read(name)) for modality, name in event.files.items()}
    for name in event.files.values():
        client.session.remove(name)
    return arrays


def answered(client: Client, request: Generate) -> list[Result]:
    """The results of ``request``, sent now; the files stay."""
    client.send(request)
    events = client.until(Result, Error, id=request.id)
    while isinstance(events[-1], Result) and events[-1].sample < events[-1].samples:
        events += client.until(Result, Error, id=request.id)
    assert isinstance(events[-1], Result), events[-1]
    return [event for event in events if isinstance(event, Result)]


# What is made ----------------------------------------------------------------------------------------


def test_volumes_are_those_of_generate_bit_for_bit(worker, small_model, brats, labels):
    model = MedDPMLib.load_model(small_model)
    mask = Mask.from_volume(Volume(labels, small_geometry()), brats, name="ball", numbering=brats.own_numbering)
    request = worker.generate(small_model, labels, name="ball", seeds=[5, 2**63 - 1], steps=4, precision="float32")
    results = answered(worker, request)
    assert [(result.sample, result.samples) for result in results] == [(1, 2), (2, 2)]
    for result, seed in zip(results, request.seeds, strict=True):
        expected = MedDPMLib.generate(model, mask, seed=seed, steps=4, precision="float32")
        arrays = fetched(worker, result)
        assert list(arrays) == list(expected) == ["t1", "t2"]
        for modality, volume in expected.items():
            assert arrays[modality].dtype == np.int16
            np.testing.assert_array_equal(arrays[modality], expected.stored()[modality].array)
            assert np.array_equal(result.ijk_to_ras, volume.geometry.ijk_to_ras)
        changing = ("seconds", "created")
        assert {k: v for k, v in result.record.items() if k not in changing} == json.loads(
            json.dumps({k: v for k, v in expected.record.items() if k not in changing})
        )


def test_settings_reach_the_generation(worker, small_model, brats, labels):
    wide = np.pad(labels, 3)  # another lattice than the model's
    matrix = small_geometry().cut([-3] * 3, [19] * 3).ijk_to_ras
    request = worker.generate(
        small_model, wide, seeds=[3], steps=2, sampler="ddim", precision="bfloat16", device="cpu", space="mask",
        modalities=["t2"],
    )  # fmt: skip
    request = dataclasses.replace(request, ijk_to_ras=matrix.tolist())
    [result] = answered(worker, request)
    [(modality, array)] = fetched(worker, result).items()
    assert modality == "t2" and array.shape == wide.shape and np.array_equal(result.ijk_to_ras, matrix)
    record = result.record
    assert (record["seed"], record["steps"], record["sampler"]) == (3, 2, "ddim")
    assert (record["precision"], record["device"], record["space"]) == ("bfloat16", "cpu", "mask")


@pytest.mark.parametrize("memory, way", [("auto", "whole"), ("64 GB", "whole"), ("low", "in thin slabs")])
def test_memory_is_planned_as_asked_and_the_log_says_how(worker, small_model, labels, memory, way):
    [result] = answered(worker, worker.generate(small_model, labels, steps=2, memory=memory))
    fetched(worker, result)
    assert result.record["memory"] == way
    worker.log.flush()
    reported = [line for line in Path(worker.log.name).read_text().splitlines() if "at the peak" in line][-1]
    assert re.fullmatch(rf"small on .* GB at the peak, {way} \(.*\)", reported), reported


def test_guidance_reaches_the_generation(worker, tmp_path, brats, labels):
    card = dataclasses.replace(small_card(brats), label_dropout=0.1)
    path = write_small_model(tmp_path / "guided.safetensors", card)
    mask = Mask.from_volume(Volume(labels, small_geometry()), brats, numbering=brats.own_numbering)
    model = MedDPMLib.load_model(path)
    found = {}
    for guidance in (1.0, 2.5):
        request = worker.generate(path, labels, steps=2, precision="float32", guidance=guidance)
        [result] = answered(worker, request)
        assert result.record["guidance"] == guidance
        found[guidance] = fetched(worker, result)["t1"]
        expected = MedDPMLib.generate(model, mask, steps=2, precision="float32", guidance=guidance)
        np.testing.assert_array_equal(found[guidance], expected.stored()["t1"].array)
    assert not np.array_equal(found[1.0], found[2.5])


def test_previews_are_the_forming_volume(worker, small_model, brats, labels):
    model = MedDPMLib.load_model(small_model)
    mask = Mask.from_volume(Volume(labels, small_geometry()), brats, numbering=brats.own_numbering)
    estimates = {}
    run = plan_run(model, GenerationSettings(steps=SLOW + 1, precision="float32"))
    expected = run.generate(
        mask, seed=1, glance=lambda x0: estimates.update({0: x0[0].numpy().copy()}),
        progress=lambda step, steps, x0: estimates.update({step: x0[0].numpy().copy()}),
    )  # fmt: skip
    request = worker.generate(
        small_model, labels, seeds=[1], steps=SLOW + 1, precision="float32", preview_every=5, modalities=["t2"]
    )
    worker.send(request)
    previews = []
    while not isinstance(event := worker.next(), Result):
        if isinstance(event, Preview):
            assert (event.steps, event.sample, list(event.files)) == (SLOW + 1, 1, ["t2"])
            array = fetched(worker, event)["t2"]
            # The card's range is the network's; one of 1000 integers is the nearest, and outside the mask it is 0.
            assert array.dtype == np.int16 and not array[labels == 0].any()
            estimate = np.clip(500 * (estimates[event.step][1] + 1.0), 0, None)[labels != 0]
            assert np.abs(array[labels != 0] - estimate).max() <= 0.5 + 1e-3
            assert np.array_equal(event.ijk_to_ras, small_geometry().ijk_to_ras)
            previews.append(event.step)
    assert np.array_equal(fetched(worker, event)["t2"], expected.stored()["t2"].array)
    assert previews[0] == 0 and len(previews) > 2  # a coarse one comes before the first step
    assert all(step % 5 == 1 and step < SLOW + 1 for step in previews[1:])


def test_the_coarse_image_before_the_first_step_is_that_of_half_the_grid(brats, labels):
    """The network's first answer to every second voxel, on a grid of half the sides, interpolated along each axis."""
    card = small_card(brats)
    half = dataclasses.replace(card, grid=Grid((8, 8, 8), (16.0, 16.0, 16.0), "LPS"))
    found = {}
    with tempfile.TemporaryDirectory() as folder:
        for name, grid in (("whole", card), ("half", half)):
            model = MedDPMLib.load_model(write_small_model(Path(folder) / f"{name}.safetensors", grid))
            step = 1 if name == "whole" else 2
            seen = labels[::step, ::step, ::step]
            geometry = Geometry(seen.shape[::-1], small_geometry().ijk_to_ras @ np.diag([step, step, step, 1.0]))
            mask = Mask.from_volume(Volume(seen, geometry), brats, numbering=brats.own_numbering)
            plan_run(model, GenerationSettings(steps=2, precision="float32")).generate(
                mask,
                glance=lambda x0, name=name: found.update({name: x0[0].numpy()}),
                progress=lambda n, _steps, x0, name=name: found.setdefault(f"{name}, step {n}", x0[0].numpy().copy()),
            )
    expected = found["half, step 1"]
    for axis in (1, 2, 3):
        places = (np.arange(16) + 0.5) / 2 - 0.5
        expected = np.apply_along_axis(lambda row, at=places: np.interp(at, np.arange(8), row), axis, expected)
    assert found["whole"].shape == (2, 16, 16, 16) and found["half"].shape == (2, 8, 8, 8)
    np.testing.assert_allclose(found["whole"], expected, atol=1e-5)


def test_a_preview_waits_until_the_one_before_is_fetched(worker, small_model, labels):
    request = worker.generate(small_model, labels, steps=20, preview_every=1)
    worker.send(request)
    events = worker.until(Result)
    assert [event.step for event in events if isinstance(event, Preview)] == [0]
    fetched(worker, events[-1])  # the preview's files are gone without the client, as the worker fixture sees


def test_progress_counts_every_step_of_every_sample(worker, small_model, labels):
    request = worker.generate(small_model, labels, seeds=[1, 2], steps=3)
    worker.send(request)
    events = worker.until(Result) + worker.until(Result)
    progress = [event for event in events if isinstance(event, Progress)]
    assert all(event.id == request.id and event.samples == 2 for event in progress)
    assert [event.stage for event in progress[:3]] == ["model", "mask", "steps"]
    counted = [(event.sample, event.step, event.steps) for event in progress[2:]]
    assert counted == [(1, 0, 3), (1, 1, 3), (1, 2, 3), (1, 3, 3), (2, 1, 3), (2, 2, 3), (2, 3, 3)]
    assert [event.seconds_left is None for event in progress] == [True] * 3 + [False] * 6
    assert progress[-1].seconds_left == 0
    for event in events:
        if isinstance(event, Result):
            fetched(worker, event)


def test_time_left_is_what_remains(worker, small_model, labels):
    request = worker.generate(small_model, labels, steps=SLOW)
    worker.send(request)
    second = worker.until(Progress, step=2)[-1]
    worker.send(Cancel(id=request.id))
    worker.until(Cancelled, id=request.id)
    assert LONG * (SLOW - 2) <= second.seconds_left < 2 * LONG * (SLOW - 2)
    wait_until_idle(worker)


def test_load(worker, small_model):
    worker.send(Load(id="load", model=str(small_model)))
    loaded = worker.until(Loaded)[-1]
    assert (loaded.id, loaded.model) == ("load", "small")
    assert worker.state().model == "small"


def test_a_loaded_model_is_ready_to_run(tmp_path, small_model, monkeypatch):
    """The first step of the first request does not wait until the network has been converted."""
    engine = Engine(Session(tmp_path))
    engine.load(Load(id="load", model=str(small_model)))
    monkeypatch.setattr("MedDPMLib.models.model.optimize", lambda *_: pytest.fail("converted again"))
    engine._model.prepared(choose_execution())


def test_a_model_that_was_replaced_is_read_again(worker, tmp_path, brats, labels):
    path = tmp_path / "changing.safetensors"
    found = []
    for seed in (1, 2):
        write_small_model(path, small_card(brats), seed=seed)
        os.utime(path, ns=(seed * 10**9, seed * 10**9))
        [result] = answered(worker, worker.generate(path, labels, steps=1))
        found.append((fetched(worker, result)["t1"], result.record["model"]["hash"]))
    assert not np.array_equal(found[0][0], found[1][0]) and found[0][1] != found[1][1]


# While it works --------------------------------------------------------------------------------------


def wait_until_idle(client: Client) -> None:
    """Until the step in progress is over: the next request is only then carried out."""
    client.send(Load(id="rest", model="no model of that name"))
    client.until(Error, id="rest")


def test_cancel_is_answered_in_the_middle_of_a_step_and_the_next_request_is_served(worker, small_model, labels):
    request = worker.generate(small_model, labels, steps=SLOW, preview_every=1)
    worker.send(request)
    worker.until(Progress, stage="steps")
    assert worker.state().running == request.id
    time.sleep(0.3)  # now the first step is in progress
    asked = time.perf_counter()
    worker.send(Cancel(id=request.id))
    assert worker.until(Cancelled)[-1] == Cancelled(id=request.id, reason="asked")
    assert time.perf_counter() - asked < 0.5
    after = worker.generate(small_model, labels, steps=2)
    worker.send(after)
    events = worker.until(Result)
    assert {event.id for event in events} == {after.id}
    fetched(worker, events[-1])


def test_cancel_between_quick_steps(worker, small_model, labels):
    request = worker.generate(small_model, labels, seeds=[0] * 1000, steps=30, sampler="ddpm", preview_every=1)
    worker.send(request)
    worker.until(Progress, stage="steps")
    worker.send(Cancel(id=request.id))
    events = worker.until(Cancelled)
    for event in events:
        if isinstance(event, Result):
            fetched(worker, event)
    wait_until_idle(worker)


def test_a_client_that_does_not_read_is_still_heard(start, small_model, labels):
    """The pipe is full: the worker has more to say than fits, and hears all the same that it has to end."""
    client = start(listening=False)
    for number in range(3000):
        client.send(Status(id=f"{'s' * 90}{number}"))  # answers of 150 bytes fill any pipe
    client.send(Shutdown(id="end"))
    assert client.process.wait(60) == 0 and not client.session.folder.exists()


def segmentation(client: Client, small_segmenter: Path, scan: Volume) -> Segment:
    """The request, with its scan written."""
    return Segment(
        id=client.id(), model=str(small_segmenter), scan=client.session.write("scan", scan.array),
        ijk_to_ras=scan.geometry.ijk_to_ras.tolist(), name="this scan",
    )  # fmt: skip


def test_a_scan_becomes_the_mask_that_the_library_makes(worker, small_segmenter):
    scan, truth = head_phantom()
    request = segmentation(worker, small_segmenter, scan)
    worker.send(request)
    *progress, done = worker.until(Segmented, id=request.id)
    assert [event.step for event in progress if event.steps] == [1, 2, 3]
    labels = np.array(worker.session.read(done.files["labels"]))
    worker.session.remove(done.files["labels"])
    assert np.array_equal(labels, truth.array) and np.allclose(done.ijk_to_ras, scan.geometry.ijk_to_ras)
    assert any("no tumor" in note for note in done.notes)


def test_a_scan_that_cannot_be_used_is_reported_and_a_cancelled_one_leaves_nothing(worker, small_segmenter):
    scan, _ = head_phantom()
    empty = segmentation(worker, small_segmenter, Volume(np.zeros_like(scan.array), scan.geometry))
    worker.send(empty)
    error = worker.until(Error, id=empty.id)[-1]
    assert error.kind == "input" and error.message.startswith("this scan is empty")
    request = segmentation(worker, small_segmenter, scan)
    worker.send(request, Cancel(id=request.id))
    assert worker.until(Cancelled)[-1] == Cancelled(id=request.id, reason="asked")
    wait_until_idle(worker)


def test_cancelling_what_is_over_is_no_fault(worker):
    worker.send(Cancel(id="long ago"))
    assert worker.next() == Cancelled(id="long ago", reason="finished")


def test_an_id_can_be_in_use_only_once(worker, small_model, labels):
    request = worker.generate(small_model, labels, steps=SLOW)
    worker.send(request)
    worker.until(Progress, stage="steps")
    worker.send(Load(id=request.id, model="any"), Cancel(id=request.id))
    error = worker.until(Error)[-1]
    assert error.id is None and request.id in error.message
    worker.until(Cancelled, id=request.id)
    wait_until_idle(worker)


# What is wrong ---------------------------------------------------------------------------------------


def line(**fields) -> bytes:
    return json.dumps({"protocol": protocol.PROTOCOL, "id": "x", **fields}).encode() + b"\n"


def test_lines_that_are_no_request_are_answered(worker):
    mask = {"mask": "mask-1.npy", "ijk_to_ras": np.eye(4).tolist(), "scheme": "brats", "model": "m"}
    cases = [
        (b"hello\n", None, "not JSON"),
        (b"\xff\xfe\n", None, "not JSON in UTF-8"),
        (b"[1]\n", None, "not a JSON object"),
        (b"[" * 100_000 + b"\n", None, "not JSON"),
        (b'{"id": NaN}\n', None, "NaN"),
        (b'{"id": "' + b"a" * 2_000_000 + b'"}\n', None, "longer"),
        (b'{"type": "status", "id": "x"}\n', "x", "protocol 3"),
        (line(type="status", protocol=99), "x", "99"),
        (line(type="status", id=""), None, '"id"'),
        (line(type="status", id=7), None, '"id"'),
        (line(type="dance"), "x", "dance"),
        (line(type=["load"]), "x", "load"),
        (line(), "x", '"type"'),
        (line(type="load"), "x", '"model"'),
        (line(type="load", model=3), "x", '"model"'),
        (line(type="load", model="m", speed=3), "x", "speed"),
        (line(type="generate", **mask | {"mask": "../mask-1.npy"}), "x", '"mask"'),
        (line(type="generate", **mask | {"mask": "/etc/passwd"}), "x", '"mask"'),
        (line(type="generate", **mask | {"ijk_to_ras": [[1, 2], [3, 4]]}), "x", "a list of 4 values"),
        (line(type="generate", **mask, seeds=[]), "x", "seeds"),
        (line(type="generate", **mask, seeds=[2**63]), "x", "seeds"),
        (line(type="generate", **mask, seeds=[True]), "x", "seeds"),
        (line(type="generate", **mask, settings={"steps": 0}), "x", '"steps" must be a whole number'),
        (line(type="generate", **mask, preview_every=-1), "x", "preview_every"),
        (line(type="generate", **mask, settings={"guidance": -1}), "x", '"guidance" must be a number of at least 0'),
        (
            line(type="generate", **mask, settings={"guidance": "much"}),
            "x",
            '"guidance" must be a number of at least 0',
        ),
    ]
    for sent, id, says in cases:
        worker.send(sent)
        error = worker.next()
        assert isinstance(error, Error) and (error.id, error.kind) == (id, "input"), (sent[:80], error)
        assert says in error.message, (sent[:80], error)
    worker.send(b"\n", b"\r\n", b'{"type": "status", "id": "\xc3\xbc", "protocol": 3}\r\n')
    assert worker.next().id == "ü"


def test_arrays_and_settings_that_cannot_be_used_are_reported_in_a_sentence(worker, small_model, brats, labels):
    def request(labels=labels, **changes):
        settings = {name: changes.pop(name) for name in SETTINGS if name in changes}
        return dataclasses.replace(worker.generate(small_model, labels, **{"steps": 2, **settings}), **changes)

    truncated, pickled, missing = request(), request(), request()
    path = worker.session.folder / truncated.mask
    path.write_bytes(path.read_bytes()[:-100])
    np.save(worker.session.folder / pickled.mask, np.array([[[{}]]], dtype=object))
    worker.session.remove(missing.mask)
    rest = brats.rest.value
    cases = [
        (missing, "cannot be read"),
        (truncated, "cannot be read"),
        (pickled, "cannot be read"),
        (request(labels.astype(np.int16)), "int16"),
        (request(labels[0]), "three axes"),
        (request(np.zeros_like(labels)), "empty"),
        (request(np.where(labels, labels + 100, 0).astype(np.uint8)), "have no meaning"),
        (request(np.where(labels == rest, 0, labels)), "no brain area"),
        (request(ijk_to_ras=np.zeros((4, 4)).tolist()), "matrix"),
        (request(scheme="whole-head"), '"whole-head"'),
        (request(model="no such model"), "no such model"),
        (request(model=str(worker.session.folder)), "there is no model"),
        (request(modalities=["t1", "pet"]), '"pet"'),
        (request(steps=51), "1 to 50"),
        (request(sampler="euler"), "euler"),
        (request(device="cuda:63"), "cuda:63"),
        (request(precision="float8"), "float8"),
        (request(space="world"), "world"),
        (request(guidance=2), "does not support guidance"),
        (request(memory="much"), '"auto", "low" or a number of gigabytes'),
    ]
    for sent, says in cases:
        worker.send(sent)
        error = worker.until(Error)[-1]
        assert (error.id, error.kind) == (sent.id, "input") and says in error.message, error
    [result] = answered(worker, request())
    fetched(worker, result)


def test_memory_that_runs_out_is_reported_and_the_worker_lives(worker, small_model, labels):
    request = worker.generate(small_model, labels, steps=GREEDY)
    worker.send(request)
    error = worker.until(Error)[-1]
    assert (error.id, error.kind) == (request.id, "memory") and "not enough memory" in error.message
    assert worker.state().model is None
    [result] = answered(worker, worker.generate(small_model, labels, steps=1))
    fetched(worker, result)


def test_a_fault_is_reported_and_its_traceback_logged(worker, small_model, labels):
    request = worker.generate(small_model, labels, steps=FAULTY)
    worker.send(request)
    error = worker.until(Error)[-1]
    assert (error.id, error.kind) == (request.id, "internal") and "KeyError" in error.message
    log = worker.logged()
    assert "Traceback" in log and "the fault" in log
    for words in ("a library talks", "a compiled library talks", "a child process talks"):
        assert words in log
    [result] = answered(worker, worker.generate(small_model, labels, steps=1))
    fetched(worker, result)


def test_without_pytorch_the_worker_says_so(start, small_model, labels):
    client = start(code=WITHOUT_TORCH)
    hello = client.next()  # it does not need PyTorch, so nothing that takes seconds comes before it
    assert isinstance(hello, Hello) and hello.pid == client.process.pid and hello.protocol == protocol.PROTOCOL
    assert hello.versions["MedDPM"] == MedDPMLib.__version__
    for request in (None, Load(id="a", model=str(small_model)), client.generate(small_model, labels)):
        if request:
            client.send(request)
        error = client.until(Error)[-1]
        assert error.id == (request and request.id) and error.kind == "package"
        assert "PyTorch" in error.message and "install" in error.message
    assert client.state().running is None
    client.send(Shutdown(id="end"))
    assert client.next() == Bye(reason="shutdown") and client.next() is None
    assert client.process.wait(60) == 0 and not client.session.folder.exists()


def test_a_library_of_pytorch_that_cannot_be_loaded_is_reported(tmp_path, monkeypatch):
    """As on Windows, where PyTorch raises OSError for what it lacks."""

    def fail(name):
        raise OSError("[WinError 126] The specified module could not be found: c10.dll")

    monkeypatch.setattr("MedDPMLib.worker.engine.importlib.import_module", fail)
    with pytest.raises(ImportError) as caught:
        Engine(Session(tmp_path)).start()
    fault = describe_fault(None, caught.value)
    assert fault.kind == "package" and "c10.dll" in fault.message
    assert "PyTorch (torch) cannot be imported" in fault.message


# The end ---------------------------------------------------------------------------------------------


def ends_during_a_step(client: Client, small_model, labels, end) -> None:
    waiting = client.generate(small_model, labels)
    client.send(client.generate(small_model, labels, steps=STUCK, preview_every=1), waiting)
    client.until(Preview)
    time.sleep(0.3)  # now the second step is in progress
    assert len(client.files()) == 3  # two masks, and a preview of the first modality
    (client.session.folder / ".0123.npy").touch()  # of an array whose writing is interrupted
    began = time.perf_counter()
    end()
    assert client.process.wait(60) == 0
    assert time.perf_counter() - began < 10
    assert not client.session.folder.exists()


def test_a_client_that_dies_takes_the_worker_with_it(start, small_model, labels):
    client = start()
    ends_during_a_step(client, small_model, labels, client.process.stdin.close)


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no signals of this kind")
def test_terminated_the_worker_leaves_nothing(start, small_model, labels):
    client = start()
    ends_during_a_step(client, small_model, labels, lambda: client.process.send_signal(signal.SIGTERM))


def test_idle_the_model_is_released_and_then_the_worker_ends(start, small_model):
    client = start(idle=1)
    client.send(Load(id="load", model=str(small_model)))
    client.until(Loaded)
    loaded = time.perf_counter()
    assert client.next() == Unloaded()
    assert time.perf_counter() - loaded >= 0.9
    assert client.next() == Bye(reason="idle") and client.next() is None
    assert time.perf_counter() - loaded >= 1.9
    assert client.process.wait(60) == 0 and not client.session.folder.exists()


def test_a_worker_without_a_folder_does_not_start(tmp_path):
    command = [sys.executable, *worker_arguments(tmp_path / "missing", 5)]
    package = str(Path(MedDPMLib.__file__).parents[1])
    ended = subprocess.run(command, capture_output=True, text=True, env=os.environ | {"PYTHONPATH": package})
    assert ended.returncode == 2 and "is not a folder" in ended.stderr and not ended.stdout


# The client's part, without a process ----------------------------------------------------------------

EXAMPLES = [
    Load(id="1", model="ü \udc80.safetensors"),
    Generate(id="2", model="m", mask="mask-1.npy", ijk_to_ras=np.eye(4).tolist(), scheme="brats", seeds=[0, 2**63 - 1]),
    Segment(id="4", model="m", scan="scan-1.npy", ijk_to_ras=np.eye(4).tolist(), name="ü"),
    Cancel(id="3"),
    Status(id="5"),
    Shutdown(id="6"),
    Hello(pid=1, versions={"python": "3"}),
    Ready(device="cpu", precision="float32", reason="because"),
    Loaded(id="1", model="m", seconds=0.5),
    Unloaded(),
    Progress(id="2", stage="steps", sample=1, samples=2, step=3, steps=4, seconds_left=1.5),
    Preview(id="2", sample=1, step=1, steps=2, files={"t1": "preview-a.npy"}, ijk_to_ras=np.eye(4).tolist()),
    Result(id="2", sample=1, samples=1, files={}, ijk_to_ras=np.eye(4).tolist(), record={"a": [1, None]}),
    Segmented(id="4", files={"labels": "result-b.npy"}, ijk_to_ras=np.eye(4).tolist(), notes=["a note"]),
    Error(id=None, kind="memory", message="a line\nand another"),
    Cancelled(id="3", reason="asked"),
    State(id="5", running=None, waiting=["2"], model=None),
    Bye(reason="idle"),
]


@pytest.mark.parametrize("message", EXAMPLES, ids=lambda message: type(message).__name__)
def test_messages_survive_the_line(message):
    decode = decode_request if isinstance(message, protocol.Request) else decode_event
    encoded = encode(message)
    assert encoded.endswith(b"\n") and encoded.count(b"\n") == 1
    assert decode(encoded) == message


@given(st.lists(st.integers(0, 400), max_size=20))
def test_events_are_put_together_from_pieces(cuts):
    events = [message for message in EXAMPLES if isinstance(message, protocol.Event)]
    data = b"".join(map(encode, events))
    reader, found, last = EventReader(), [], 0
    for cut in [*sorted(min(7 * cut, len(data)) for cut in cuts), len(data)]:
        found += reader.feed(data[last:cut])
        last = cut
    assert found == events


def test_a_broken_line_does_not_take_the_next_with_it():
    reader = EventReader()
    with pytest.raises(ProtocolError):
        list(reader.feed(b"{broken\n" + encode(Bye(reason="idle"))))
    assert list(reader.feed(b"")) == [Bye(reason="idle")]


def test_what_a_launcher_prints_before_the_first_event_is_passed_over():
    reader = EventReader()
    hello = Hello(pid=1, versions={})
    assert list(reader.feed("Slicer läuft\n\r\n[1] starting\n".encode() + encode(hello))) == [hello]
    assert reader.passed_over == ["Slicer läuft", "[1] starting"]
    with pytest.raises(ProtocolError, match="not JSON"):
        list(reader.feed(b"a library talks\n"))


def test_output_without_end_of_line_is_not_collected_for_ever():
    reader = EventReader()
    with pytest.raises(ProtocolError, match="longer than"):
        for _ in range(40):
            list(reader.feed(b"x" * 100_000))
    assert list(reader.feed(b"\n" + encode(Bye(reason="idle")))) == [Bye(reason="idle")]


def test_a_worker_of_another_protocol_is_recognized_by_its_hello():
    with pytest.raises(ProtocolError, match="speaks protocol 4"):
        decode_event(b'{"type": "hello", "protocol": 4, "greeting": "hi"}')


def test_what_a_newer_worker_adds_is_passed_over():
    assert decode_event(b'{"type": "bye", "reason": "idle", "mood": "good"}') == Bye(reason="idle")


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=8,
)


@given(st.sampled_from(EXAMPLES), st.data())
def test_whatever_stands_in_a_field_the_line_is_a_message_or_refused(message, data):
    is_request = isinstance(message, protocol.Request)
    fields = json.loads(encode(message))
    fields[data.draw(st.sampled_from(sorted(fields)))] = data.draw(JSON)
    try:
        decoded = (decode_request if is_request else decode_event)(json.dumps(fields).encode())
    except ProtocolError as error:
        assert "\n" not in str(error) or not is_request
    else:
        assert isinstance(decoded, protocol.Request if is_request else protocol.Event)
        encode(decoded)


@given(st.binary(max_size=60))
def test_bytes_that_are_no_line_are_refused(data):
    for decode in (decode_request, decode_event):
        with pytest.raises(ProtocolError):
            decode(data)


def test_a_session_removes_its_own_files_and_no_others(tmp_path):
    session = Session(tmp_path)
    names = [session.write(kind, np.arange(3)) for kind in ("mask", "preview", "result")]
    assert all(np.array_equal(session.read(name), [0, 1, 2]) for name in names)
    (tmp_path / ".1234.npy").touch()
    (tmp_path / "mine.npy").touch()
    session.close()
    assert [path.name for path in tmp_path.iterdir()] == ["mine.npy"]


def test_an_array_that_cannot_be_written_leaves_nothing(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(MedDPMError, match="temporary folder .* cannot be written to"):
        Session(tmp_path / "file").write("mask", np.arange(3))
    with pytest.raises(ValueError):
        Session(tmp_path).write("mask", np.array([{}], dtype=object))
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_the_clients_part_is_light():
    code = "import sys, MedDPMLib.worker.protocol, MedDPMLib.worker.session; assert 'torch' not in sys.modules"
    package = str(Path(MedDPMLib.__file__).parents[1])
    subprocess.run([sys.executable, "-c", code], check=True, env=os.environ | {"PYTHONPATH": package})
