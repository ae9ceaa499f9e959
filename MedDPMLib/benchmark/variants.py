"""What is timed? One way of making a volume, in a process of its own, step by step as it is told.

A process that measures answers every command with one message. It runs to the first pause, after the first step, on
its own; then "go" is one step more, "finish" the rest without a pause, and "stop" ends it; a step under PyTorch's
profiler follows. The messages are ("step", {...}), ("done", {...}) at the end, and ("failed", sentence).
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

from MedDPMLib.benchmark.throughput import Ceiling, synchronize
from MedDPMLib.benchmark.workload import load_subject, painted_ball
from MedDPMLib.diffusion.samplers import sample
from MedDPMLib.errors import MedDPMError, OutOfMemory
from MedDPMLib.inference.atlas import network_labels
from MedDPMLib.inference.generation import Progress, generate
from MedDPMLib.inference.memory_plan import plan_memory
from MedDPMLib.masks.condition import condition
from MedDPMLib.models.model import Model
from MedDPMLib.runtime.allocator import keep_freed_memory
from MedDPMLib.runtime.device import choose_execution, free_memory
from MedDPMLib.runtime.hardware import peak_memory

#: The plain way; ours in the card's quality "standard"; and the same with as little memory as possible. What stands
#: together takes its steps in turn. The last is alone, because its point is memory: beside the others it may find none.
WAYS = (("plain", "standard"), ("low memory",))

#: What the profiler calls convolutions, matrix products and attention; "upsample_trilinear3d" is none.
_PRODUCTS = re.compile(r"aten::(\w*conv(olution|\d)\w*|(add|b|badd)?(mm|bmm)|(mkldnn_)?linear|_?scaled_dot_product\w*)")


@dataclass(frozen=True)
class Order:
    """What a process is to measure: one way of :data:`WAYS` for a model, its grid's sides scaled by ``share``."""

    model: str
    way: str
    device: str
    share: float = 1.0


class Pace:
    """Progress of a run that takes its steps on command, and how long each took: by the clock, and of all cores."""

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
    """Progress of a run that ends with its step number ``step``, which is profiled: ``products`` as found by
    :func:`share_of_products`. The first step is profiled with all that goes before it."""

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
            if self.device.type != "mps":  # whose time the profiler does not see
                self.products = share_of_products(self._profiler)
            raise _Stopped

    def _start(self) -> None:
        with _silence():
            self._profiler.start()


class _Stopped(Exception):
    """Ends a run from within, when enough was measured."""


@contextmanager
def _silence() -> Iterator[None]:
    """Keeps off the terminal what the profiler writes there past Python."""
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


def measure_way(connection: Connection, order: Order) -> None:
    """What the process of ``order`` does; see the module."""
    try:
        plain = order.way == "plain"
        if not plain:
            keep_freed_memory()  # as the command line and the worker do
        started = time.perf_counter()
        model = load_subject(order.model, order.share)
        execution = choose_execution(order.device, "float32" if plain else "auto")
        device, plan = execution.device, None
        if plain:
            _check_memory(model, device)
            model.network.to(device)
        else:
            plan = plan_memory(model, execution, memory="low" if order.way == "low memory" else "auto")
        loaded = time.perf_counter() - started

        def run(progress: Progress) -> bool:
            """Whether it came to its end."""
            try:
                if plain:
                    _plain(model, device, progress)
                else:
                    generate(
                        model, painted_ball(model.card), device=device, precision=execution.precision, memory=plan,
                        progress=progress, **model.card.qualities["standard"],
                    )  # fmt: skip
            except _Stopped:
                return False
            return True

        pace = Pace(connection, device)
        finished = run(pace)
        result = {
            "precision": execution.precision,
            "reason": execution.reason,
            "memory": plan and plan.way,
            "planned_bytes": plan and plan.needs,
            "load_seconds": loaded,
            "step_seconds": pace.seconds,
            "step_cpu_seconds": pace.cpu_seconds,
            "last_seconds": pace.since_last_step() if finished else None,
            "finished": finished,
            "peak_bytes": peak_memory(device),  # before the profiler, which takes half a gigabyte itself
        }
        # Of ours the first step begins with what is done once.
        profile = Profile(device, 1 if plain else 2)
        with suppress(MedDPMError, MemoryError, RuntimeError):  # all the rest is known without
            run(profile)
        connection.send(("done", {**result, "products": profile.products}))
    except EOFError:  # whoever asked is gone
        return
    except (MedDPMError, MemoryError, RuntimeError) as error:  # what a device cannot do must not end the others
        connection.send(("failed", str(error) or "it ran out of memory"))


def measure_ceiling(connection: Connection, device: str) -> None:
    """The process that measures the device's ceiling at every "go", until "stop"."""
    try:
        ceiling = Ceiling(choose_execution(device).device)
        while True:
            connection.send(("step", ceiling.measure()))
            if connection.recv() == "stop":
                connection.send(("done", {}))
                return
    except EOFError:
        return
    except (MedDPMError, MemoryError, RuntimeError) as error:
        connection.send(("failed", str(error) or "it ran out of memory"))


def _plain(model: Model, device: torch.device, progress: Progress) -> Tensor:
    """How the published code samples: every step of the schedule, the whole network in float32, channels first."""
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
    """Refuses the plain way where it cannot fit: a machine that swaps, or ends processes, measures nothing."""
    needed, free = model.memory_needed(torch.float32), free_memory(device)
    if needed > free:
        raise OutOfMemory(
            f"it takes about {needed / 1e9:.0f} GB of memory and {free / 1e9:.0f} GB are free: scale the grid down"
        )
