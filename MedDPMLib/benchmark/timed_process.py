"""What is timed? One configuration, generating a volume in a process of its own, step by step on command.

A measuring process answers every command with one message. It runs to the first pause, after the first step, without a
command; then "go" runs one more step, "finish" the rest without a pause, and "stop" ends the run. The messages are
("step", {...}), ("done", {...}) at the end, and ("failed", sentence).
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from multiprocessing.connection import Connection
from typing import Any

import torch
from torch import Tensor

from MedDPMLib.benchmark.throughput import PeakThroughput, synchronize
from MedDPMLib.benchmark.workload import load_scaled_model, painted_ball
from MedDPMLib.diffusion.samplers import sample
from MedDPMLib.errors import MedDPMError, OutOfMemory
from MedDPMLib.inference.atlas import network_labels
from MedDPMLib.inference.generation import plan_run
from MedDPMLib.inference.sampling import sample_images
from MedDPMLib.inference.settings import GenerationSettings
from MedDPMLib.inference.timesteps import Progress, as_network, condition_tensor
from MedDPMLib.models.card import Card
from MedDPMLib.models.model import Model
from MedDPMLib.runtime.allocator import keep_freed_memory
from MedDPMLib.runtime.device import Execution, choose_execution, free_memory
from MedDPMLib.runtime.hardware import peak_memory

#: The baseline; MedDPM's inference in the card's quality "standard"; and the same with as little memory as possible.
#: Those in one group take their steps in turn. The last is alone, because it is about memory, which the others occupy.
CONFIGURATIONS = (("baseline", "standard"), ("low memory",))


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


class _Stopped(Exception):
    """Ends a run when enough was measured."""


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
                    _sample_baseline(model, execution, progress)
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
            "peak_bytes": peak_memory(device),
        }
        connection.send(("done", result))
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


def baseline_settings(card: Card) -> dict[str, Any]:
    """Sampler and steps of the baseline: every step of the schedule or, without one, the card's reference."""
    if card.draws_by_levels:
        return card.qualities["reference"]
    return {"sampler": "ddpm", "steps": card.schedule["timesteps"]}


def _sample_baseline(model: Model, execution: Execution, progress: Progress) -> Tensor:
    """Samples like the published code: every step of the schedule, the whole network in float32, channels first."""
    card, schedule = model.card, model.schedule
    fitted = network_labels(painted_ball(card), card, seed=0)
    if card.draws_by_levels:
        settings = GenerationSettings(**baseline_settings(card)).for_card(card)
        return sample_images(model, model.network, fitted.labels, execution, settings, 0, progress)
    return sample(
        model.network,
        condition_tensor(card, as_network(card, fitted.labels), execution),
        schedule,
        shape=(1, len(card.modalities), *card.array_shape),
        method="ddpm",
        steps=baseline_settings(card)["steps"],
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
