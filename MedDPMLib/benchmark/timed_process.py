"""What is timed? One configuration, generating a volume in a process of its own, step by step on command.

A measuring process answers every command with one message. It runs to the first pause, after the first step, without a
command; then "go" runs one more step, "finish" the rest without a pause, and "stop" ends the run; a step under
PyTorch's profiler follows. The messages are ("step", {...}), ("done", {...}) at the end, and ("failed", sentence).
"""

from __future__ import annotations

import os
import re
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection

import torch
from torch import Tensor
from torch.autograd import DeviceType

from MedDPMLib.benchmark.throughput import PeakThroughput, synchronize
from MedDPMLib.benchmark.workload import load_scaled_model, painted_ball
from MedDPMLib.diffusion.samplers import sample
from MedDPMLib.errors import MedDPMError, OutOfMemory
from MedDPMLib.inference.atlas import network_labels
from MedDPMLib.inference.generation import Progress, plan_run
from MedDPMLib.inference.settings import GenerationSettings
from MedDPMLib.masks.condition import condition
from MedDPMLib.models.model import Model
from MedDPMLib.runtime.allocator import keep_freed_memory
from MedDPMLib.runtime.device import choose_execution, free_memory
from MedDPMLib.runtime.hardware import peak_memory

#: The baseline; MedDPM's inference in the card's quality "standard"; and the same with as little memory as possible.
#: Those in one group take their steps in turn. The last is alone, because it is about memory, which the others occupy.
CONFIGURATIONS = (("baseline", "standard"), ("low memory",))

#: The profiler's names for convolutions, matrix products and attention; "upsample_trilinear3d" is none of them.
_PRODUCTS = re.compile(r"aten::(\w*conv(olution|\d)\w*|(add|b|badd)?(mm|bmm)|(mkldnn_)?linear|_?scaled_dot_product\w*)")


@dataclass(frozen=True)
class TimedJob:
    """What a process measures: one of :data:`CONFIGURATIONS` for a model, its grid's sides scaled by ``share``."""

    model: str
    configuration: str
    device: str
    share: float = 1.0


class Pace:
    """Progress of a run that takes its steps on command, and the time of each: wall-clock and processor time."""

    def __init__(self, connection: Connection, device: torch.device) -> None:
        self.connection, self.device = connection, device
        self.seconds: list[float] = []
        self.cpu_seconds: list[float] = []
        self._finishing = False
        self._start()

    def __call__(self, step: int, steps: int, x0: Tensor) -> None:
        synchronize(self.device)
        self.seconds.append(time.perf_counter() - self._started)
        self.cpu_seconds.append(time.process_time() - self._cpu_started)
        if step < steps and not self._finishing:
            self._await_command(step, steps)
        self._start()

    def _start(self) -> None:
        self._started, self._cpu_started = time.perf_counter(), time.process_time()

    def _await_command(self, step: int, steps: int) -> None:
        self.connection.send(("step", {"step": step, "steps": steps, "seconds": self.seconds[-1]}))
        command = self.connection.recv()
        if command == "stop":
            raise _Stopped
        self._finishing = command == "finish"

    def since_last_step(self) -> float:
        synchronize(self.device)
        return time.perf_counter() - self._started


class Profile:
    """Progress of a run that ends with its step number ``step``, which is profiled: ``products`` is the result of
    :func:`share_of_products`. The first step is profiled including the preparations."""

    def __init__(self, device: torch.device, step: int) -> None:
        self.device, self.step = device, step
        self.products: float | None = None
        activities = [torch.profiler.ProfilerActivity.CPU]
        if device.type == "cuda":
            activities.append(torch.profiler.ProfilerActivity.CUDA)
        self._profiler = torch.profiler.profile(activities=activities)
        if step == 1:
            self._start()

    def __call__(self, step: int, steps: int, x0: Tensor) -> None:
        synchronize(self.device)
        if step == self.step - 1:
            self._start()
        if step == self.step:
            with _silence():
                self._profiler.stop()
            if self.device.type != "mps":  # the profiler does not see its time
                self.products = share_of_products(self._profiler)
            raise _Stopped

    def _start(self) -> None:
        with _silence():
            self._profiler.start()


class _Stopped(Exception):
    """Ends a run when enough was measured."""


@contextmanager
def _silence() -> Iterator[None]:
    """Suppresses what the profiler's C++ code writes to the terminal."""
    kept = os.dup(2)
    with open(os.devnull, "w") as nothing:
        os.dup2(nothing.fileno(), 2)
    try:
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)


def share_of_products(profiler: torch.profiler.profile) -> float | None:
    """The share of the profiled time that convolutions, matrix products and attention took.

    None where the profiler saw none by name, as in a captured graph.
    """
    # A GPU's kernels are listed beside the operations that they belong to, and would count twice.
    operations = [event for event in profiler.key_averages() if event.device_type == DeviceType.CPU]
    times = {event.key: event.self_device_time_total for event in operations}
    if not any(times.values()):
        times = {event.key: event.self_cpu_time_total for event in operations}
    products = sum(time for key, time in times.items() if _PRODUCTS.fullmatch(key))
    return products / sum(times.values()) if products else None


def measure_configuration(connection: Connection, job: TimedJob) -> None:
    """Runs ``job`` in its process; see the module."""
    try:
        baseline = job.configuration == "baseline"
        if not baseline:
            keep_freed_memory()  # as the command line and the worker do
        started = time.perf_counter()
        model = load_scaled_model(job.model, job.share)
        execution = choose_execution(job.device, "float32" if baseline else "auto")
        device, plan = execution.device, None
        if baseline:
            _check_memory(model, device)
            model.network.to(device)
        else:
            memory = "low" if job.configuration == "low memory" else "auto"
            planned = plan_run(model, GenerationSettings(memory=memory), execution)
            plan = planned.plan
        loaded = time.perf_counter() - started

        def run(progress: Progress) -> bool:
            """Whether the run was completed."""
            try:
                if baseline:
                    _sample_baseline(model, device, progress)
                else:
                    planned.generate(painted_ball(model.card), progress=progress)
            except _Stopped:
                return False
            return True

        pace = Pace(connection, device)
        finished = run(pace)
        result = {
            "precision": execution.precision,
            "reason": execution.reason,
            "memory": plan and plan.computation,
            "planned_bytes": plan and plan.needs,
            "load_seconds": loaded,
            "step_seconds": pace.seconds,
            "step_cpu_seconds": pace.cpu_seconds,
            "last_seconds": pace.since_last_step() if finished else None,
            "finished": finished,
            "peak_bytes": peak_memory(device),  # before the profiler, which takes half a gigabyte itself
        }
        # Except in the baseline, the first step includes work that is done once.
        profile = Profile(device, 1 if baseline else 2)
        with suppress(MedDPMError, MemoryError, RuntimeError):  # the other results do not depend on it
            run(profile)
        connection.send(("done", {**result, "products": profile.products}))
    except EOFError:  # the parent process is gone
        return
    except (MedDPMError, MemoryError, RuntimeError) as error:  # a failure on one device must not end the others
        connection.send(("failed", str(error) or "it ran out of memory"))


def measure_peak_throughput(connection: Connection, device: str) -> None:
    """The process that measures the peak throughput of the device at every "go", until "stop"."""
    try:
        peak_throughput = PeakThroughput(choose_execution(device).device)
        while True:
            connection.send(("step", peak_throughput.measure()))
            if connection.recv() == "stop":
                connection.send(("done", {}))
                return
    except EOFError:
        return
    except (MedDPMError, MemoryError, RuntimeError) as error:
        connection.send(("failed", str(error) or "it ran out of memory"))


def _sample_baseline(model: Model, device: torch.device, progress: Progress) -> Tensor:
    """Samples like the published code: every step of the schedule, the whole network in float32, channels first."""
    card = model.card
    fitted = network_labels(painted_ball(card), card, seed=0)
    labels = condition(fitted.labels, card.condition_scheme, card.mask_encoding, positions=card.positions)
    return sample(
        model.network,
        torch.from_numpy(labels)[None].to(device),
        model.schedule,
        shape=(1, len(card.modalities), *fitted.labels.shape),
        method="ddpm",
        steps=model.schedule.timesteps,
        generator=torch.Generator().manual_seed(0),
        prediction=card.prediction,
        progress=progress,
    )


def _check_memory(model: Model, device: torch.device) -> None:
    """Refuses the baseline where it cannot fit: on a machine that swaps or kills processes nothing can be measured."""
    needed, free = model.memory_needed(torch.float32), free_memory(device)
    if needed > free:
        raise OutOfMemory(
            f"it needs about {needed / 1e9:.0f} GB of memory and {free / 1e9:.0f} GB are free: scale the grid down"
        )
