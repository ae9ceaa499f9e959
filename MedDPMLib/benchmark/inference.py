"""How long does a volume take here, the plain way and ours, side by side?

Every way has a process of its own: its peak memory is its own, and nothing that one has warmed helps another. The
processes take their steps in turn, a large matrix product among them, so that whatever else the machine does slows
all of them alike. What is quoted are ratios.
"""

from __future__ import annotations

import multiprocessing
import statistics
from collections.abc import Callable, Sequence
from contextlib import ExitStack, suppress
from dataclasses import asdict, dataclass
from typing import NamedTuple

from MedDPMLib.benchmark.throughput import step_flops
from MedDPMLib.benchmark.timed_process import WAYS, Order, measure_ceiling, measure_way
from MedDPMLib.benchmark.workload import RANDOM, load_subject
from MedDPMLib.errors import MedDPMError
from MedDPMLib.models.card import Card
from MedDPMLib.runtime.device import choose_execution
from MedDPMLib.runtime.hardware import describe_machine, load

#: A run whose rest would take longer is stopped, and its time extrapolated.
_PATIENCE = 60.0

_RATIOS = ("step_ratio", "step_cpu_ratio", "volume_ratio", "volume_cpu_ratio", "memory_ratio")


@dataclass(frozen=True)
class Measurement:
    """One way of making a volume with one network on one device. Times in seconds, memory in bytes.

    A ``problem`` is a sentence about why nothing was measured; the figures are None then.
    """

    model: str
    way: str
    #: Size of the grid in (i, j, k) and whether the weights are trained or random.
    grid: tuple[int, int, int]
    weights: str
    sampler: str
    steps: int
    device: str
    precision: str | None = None
    problem: str | None = None
    #: Why it ran so, how its memory was used, and about how many bytes that was going to take; None of the plain way.
    reason: str | None = None
    memory: str | None = None
    planned_bytes: int | None = None
    #: Loading the model.
    load_seconds: float | None = None
    #: The first step with all that goes before it; the median of the others.
    first_seconds: float | None = None
    step_seconds: float | None = None
    #: Processor time of a step, all cores together: other work on the machine hardly changes it. None on a GPU.
    step_cpu_seconds: float | None = None
    #: How many steps the median is of.
    measured_steps: int | None = None
    #: A volume, without loading; whether it was worked out from the measured steps.
    volume_seconds: float | None = None
    extrapolated: bool | None = None
    peak_bytes: int | None = None
    #: Floating-point operations of a step, and their rate as a share of the ceiling.
    step_flops: int | None = None
    of_ceiling: float | None = None
    #: The same by processor time; an idle core, which costs none, does not show here.
    of_ceiling_cpu: float | None = None


@dataclass(frozen=True)
class Benchmark:
    """All that one run measured: ``ceiling`` is by device what
    :meth:`MedDPMLib.benchmark.throughput.Ceiling.measure` found, the medians."""

    machine: dict
    before: dict
    after: dict
    share: float
    ceiling: dict[str, dict[str, float]]
    measurements: tuple[Measurement, ...]

    def to_dict(self) -> dict:
        """As plain data for JSON, with the ratios to the plain way."""
        data = {name: getattr(self, name) for name in ("machine", "before", "after", "share", "ceiling")}
        data["measurements"] = [{**asdict(one), **self.ratios(one)} for one in self.measurements]
        return data

    def ratios(self, one: Measurement) -> dict[str, float | None]:
        """How many times faster ``one`` is than the plain way, for a step and a volume, and its share of the memory.

        By the clock, and ("..._cpu_ratio", None on a GPU) by the processor time of the steps alone.
        """
        plain = next(
            (m for m in self.measurements if (m.model, m.device, m.way) == (one.model, one.device, "plain")), None
        )
        if plain is None or plain.problem or one.problem:
            return dict.fromkeys(_RATIOS)
        by_cpu = None
        if plain.step_cpu_seconds and one.step_cpu_seconds:
            by_cpu = plain.step_cpu_seconds / one.step_cpu_seconds
        return {
            "step_ratio": plain.step_seconds / one.step_seconds,
            "step_cpu_ratio": by_cpu,
            "volume_ratio": plain.volume_seconds / one.volume_seconds,
            "volume_cpu_ratio": by_cpu and by_cpu * plain.steps / one.steps,
            "memory_ratio": one.peak_bytes / plain.peak_bytes,
        }


def phases(steps: int, device: str) -> int:
    """How often :func:`benchmark` reports for each model on ``device``."""
    return sum(len(together) for together in WAYS) * (_first_steps(device) + steps + 1)


def _first_steps(device: str) -> int:
    """How many steps of a process are not measured: the first one has all that goes before it, and on CUDA the second
    one may be recorded (:mod:`MedDPMLib.networks.replay`)."""
    return 2 if device.startswith("cuda") else 1


def benchmark(
    names: Sequence[str],
    devices: Sequence[str],
    *,
    share: float = 1.0,
    steps: int = 3,
    report: Callable[[str], None] = lambda doing: None,
) -> Benchmark:
    """Measures the models called ``names`` on ``devices``; ``report`` is told what is being done.

    ``share`` scales the sides of every grid, for machines that are too small; ``steps`` are measured of each way beside
    the first ones, more only where the whole volume takes less than a minute. Raises :class:`MedDPMError` for unknown
    names and devices before anything is measured, and where the ceiling cannot be.
    """
    subjects = {}
    for name in names:
        model = load_subject(name, share)
        subjects[name] = _Subject(name, model.card, "random" if model.hash == RANDOM else "trained")
        del model  # its memory is not to be missed by those who measure
    devices = list(dict.fromkeys(str(choose_execution(device).device) for device in devices))
    before = load()
    measurements, ceilings = [], {}
    for device in devices:
        rates = []
        with _Process(measure_ceiling, device) as ceiling:
            ceiling.begin()
            for subject in subjects.values():
                measurements += _measure(subject, device, share, steps, ceiling, rates, report)
        ceilings[device] = _medians(rates)
    return Benchmark(describe_machine(), before, load(), share, ceilings, tuple(measurements))


class _Subject(NamedTuple):
    """A model to measure, the grid on its card scaled; its weights are "trained" or "random"."""

    name: str
    card: Card
    weights: str


def _measure(
    subject: _Subject,
    device: str,
    share: float,
    steps: int,
    ceiling: _Process,
    all_rates: list[dict[str, float]],
    report: Callable[[str], None],
) -> list[Measurement]:
    """All ways of one model on one device, their steps in turn; what the ceiling is meanwhile joins ``all_rates``."""
    name, measured = subject.name, {}
    for together in WAYS:
        rates = []
        with ExitStack() as stack:
            ways = {}
            for way in together:
                report(f"{name}, {way}: loading and first step")
                ways[way] = stack.enter_context(_Process(measure_way, Order(name, way, device, share)))
                ways[way].begin()
            for number in range(2, _first_steps(device) + steps + 1):
                for way, process in ways.items():
                    report(f"{name}, {way}: step {number} of {_first_steps(device) + steps}")
                    rate = ceiling.go()
                    if rate is not None:  # its process may have ended
                        rates.append(rate)
                    process.go()
            for way, process in ways.items():
                report(f"{name}, {way}: the rest")
                process.end()
        all_rates += rates
        if not all_rates:
            raise MedDPMError(f"the ceiling of {device} cannot be measured: {ceiling.problem}")
        for way, process in ways.items():
            measured[way] = _summary(subject, way, device, process, _medians(rates or all_rates))
    return list(measured.values())


def _medians(rates: Sequence[dict[str, float]]) -> dict[str, float]:
    return {name: statistics.median(rate[name] for rate in rates) for name in rates[0]}


class _Process:
    """A process that measures on command; :mod:`MedDPMLib.benchmark.timed_process` says what it hears and answers."""

    def __init__(self, target: Callable, order: object) -> None:
        context = multiprocessing.get_context("spawn")  # a forked one would inherit memory and threads
        self.connection, theirs = context.Pipe()
        self.process = context.Process(target=target, args=(theirs, order), daemon=True)
        self.process.start()
        theirs.close()
        #: What it measured, at its end; or why it measured nothing.
        self.result: dict | None = None
        self.problem: str | None = None
        self._paused: dict | None = None

    def __enter__(self) -> _Process:
        return self

    def __exit__(self, *_) -> None:
        self.connection.close()
        self.process.kill()
        self.process.join()

    def begin(self) -> None:
        """Waits for the first pause."""
        self._await()

    def go(self, command: str = "go") -> dict | None:
        """Has it do a step more, if it is not at its end; returns what it says at the pause that follows."""
        if self._paused is not None:
            with suppress(OSError):  # if it has ended meanwhile, that is noticed when it does not answer
                self.connection.send(command)
            self._await()
        return self._paused

    def end(self) -> None:
        """Lets it finish its volume if that takes less than a minute, otherwise stops it."""
        if self._paused is not None:
            rest = (self._paused["steps"] - self._paused["step"]) * self._paused["seconds"]
            self.go("finish" if rest < _PATIENCE else "stop")

    def _await(self) -> None:
        try:
            kind, message = self.connection.recv()
        except (EOFError, OSError):
            kind, message = "failed", "its process was ended from outside, most likely for lack of memory"
        self._paused = message if kind == "step" else None
        if kind == "done":
            self.result = message
        if kind == "failed":
            self.problem = message


def _summary(subject: _Subject, way: str, device: str, process: _Process, ceiling: dict[str, float]) -> Measurement:
    card = subject.card
    all_steps = {"sampler": "ddpm", "steps": card.schedule["timesteps"]}
    settings = all_steps if way == "plain" else card.qualities["standard"]
    about = {
        "model": subject.name,
        "way": way,
        "grid": card.grid.size,
        "weights": subject.weights,
        "device": device,
        **settings,
    }
    if process.problem:
        return Measurement(**about, problem=process.problem)
    found = process.result
    first = found["step_seconds"][0]
    # The last step may do more than the others.
    others = slice(_first_steps(device), -1 if found["finished"] else None)
    measured = found["step_seconds"][others] or found["step_seconds"][-1:]
    step = statistics.median(measured)
    cpu = statistics.median(found["step_cpu_seconds"][others] or found["step_cpu_seconds"][-1:])
    if found["finished"]:
        volume = sum(found["step_seconds"]) + found["last_seconds"]
    else:
        # What comes before the first step is nothing beside hundreds of them, but something beside twenty.
        volume = (step if way == "plain" else first) + (settings["steps"] - 1) * step
    flops = step_flops(card.network_description, card.grid.shape, encoded=way != "plain")
    on_cpu = device == "cpu"
    return Measurement(
        **about,
        precision=found["precision"],
        reason=found["reason"],
        memory=found["memory"],
        planned_bytes=found["planned_bytes"],
        load_seconds=found["load_seconds"],
        first_seconds=first,
        step_seconds=step,
        step_cpu_seconds=cpu if on_cpu else None,
        measured_steps=len(measured),
        volume_seconds=volume,
        extrapolated=not found["finished"],
        peak_bytes=found["peak_bytes"],
        step_flops=flops,
        of_ceiling=flops / step / ceiling["highest"],
        of_ceiling_cpu=flops / cpu / ceiling["per_cpu_second"] if on_cpu else None,
    )
