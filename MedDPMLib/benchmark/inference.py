"""How long does a volume take here, baseline and optimized, side by side?

Every configuration has a process of its own, so that its peak memory is its own and no caches are shared. The processes
take their steps in turn, with a large matrix product in between, so that other work on the machine slows all of them
alike. Quote the ratios.
"""

from __future__ import annotations

import multiprocessing
import statistics
from collections.abc import Callable, Sequence
from contextlib import ExitStack, suppress
from dataclasses import asdict, dataclass
from typing import NamedTuple

from MedDPMLib.benchmark.throughput import step_flops
from MedDPMLib.benchmark.timed_process import (
    CONFIGURATIONS,
    TimedJob,
    baseline_settings,
    measure_configuration,
    measure_peak_throughput,
)
from MedDPMLib.benchmark.workload import RANDOM, load_scaled_model
from MedDPMLib.errors import MedDPMError
from MedDPMLib.models.card import Card
from MedDPMLib.runtime.device import choose_execution
from MedDPMLib.runtime.hardware import describe_machine, load

#: A run whose rest would take longer is stopped, and its time extrapolated.
_PATIENCE = 60.0

_RATIOS = ("step_ratio", "step_cpu_ratio", "volume_ratio", "volume_cpu_ratio", "memory_ratio")


@dataclass(frozen=True)
class _Measured:
    """What is measured: one configuration of one network on one device."""

    model: str
    configuration: str
    #: Size of the grid in (i, j, k) and whether the weights are trained or random.
    grid: tuple[int, int, int]
    weights: str
    sampler: str
    steps: int
    device: str


@dataclass(frozen=True)
class NotMeasured(_Measured):
    """``problem`` is a sentence that says why."""

    problem: str


@dataclass(frozen=True)
class Measurement(_Measured):
    """Times in seconds, memory in bytes."""

    #: Why this device and precision.
    precision: str
    reason: str
    #: How the network was computed, and the predicted bytes; None for the baseline.
    memory: str | None
    planned_bytes: int | None
    #: Loading the model.
    load_seconds: float
    #: The first step, including the preparations; the median of the others.
    first_seconds: float
    step_seconds: float
    #: Processor time of a step, all cores together: other work on the machine hardly changes it. None on a GPU.
    step_cpu_seconds: float | None
    #: How many steps the median is of.
    measured_steps: int
    #: A volume, without loading; whether it was extrapolated from the measured steps.
    volume_seconds: float
    extrapolated: bool
    peak_bytes: int
    #: Floating-point operations of a step, and their rate as a share of the peak throughput; None for a cascade.
    step_flops: int | None
    of_peak: float | None
    #: The same by processor time; an idle core, which costs none, does not show here.
    of_peak_cpu: float | None


@dataclass(frozen=True)
class Benchmark:
    """The results of one run: ``peak_throughput`` holds for each device the medians of
    :meth:`MedDPMLib.benchmark.throughput.PeakThroughput.measure`."""

    machine: dict
    before: dict
    after: dict
    share: float
    peak_throughput: dict[str, dict[str, float]]
    measurements: tuple[Measurement | NotMeasured, ...]

    def to_dict(self) -> dict:
        """As baseline data for JSON, with the ratios to the baseline."""
        data = {name: getattr(self, name) for name in ("machine", "before", "after", "share", "peak_throughput")}
        data["measurements"] = [{"problem": None, **asdict(one), **self.ratios(one)} for one in self.measurements]
        return data

    def ratios(self, one: Measurement | NotMeasured) -> dict[str, float | None]:
        """How many times faster ``one`` is than the baseline, for a step and a volume, and its share of the memory.

        By wall-clock time, and ("..._cpu_ratio", None on a GPU) by the processor time of the steps alone.
        """
        baseline = next(
            (
                m
                for m in self.measurements
                if (m.model, m.device, m.configuration) == (one.model, one.device, "baseline")
            ),
            None,
        )
        if not isinstance(baseline, Measurement) or isinstance(one, NotMeasured):
            return dict.fromkeys(_RATIOS)
        by_cpu = None
        if baseline.step_cpu_seconds and one.step_cpu_seconds:
            by_cpu = baseline.step_cpu_seconds / one.step_cpu_seconds
        return {
            "step_ratio": baseline.step_seconds / one.step_seconds,
            "step_cpu_ratio": by_cpu,
            "volume_ratio": baseline.volume_seconds / one.volume_seconds,
            "volume_cpu_ratio": by_cpu and by_cpu * baseline.steps / one.steps,
            "memory_ratio": one.peak_bytes / baseline.peak_bytes,
        }


def phases(steps: int, device: str) -> int:
    """How often :func:`benchmark` reports for each model on ``device``."""
    return sum(len(together) for together in CONFIGURATIONS) * (_first_steps(device) + steps + 1)


def _first_steps(device: str) -> int:
    """How many steps of a process are not measured: the first one includes the preparations, and on CUDA the second one
    may be recorded (:mod:`MedDPMLib.networks.replay`)."""
    return 2 if device.startswith("cuda") else 1


def benchmark(
    names: Sequence[str],
    devices: Sequence[str],
    *,
    share: float = 1.0,
    steps: int = 3,
    report: Callable[[str], None] = lambda doing: None,
) -> Benchmark:
    """Measures the models called ``names`` on ``devices``; ``report`` receives a description of the current work.

    ``share`` scales the sides of every grid, for machines that are too small; ``steps`` are measured of each
    configuration in addition to the first ones, more only if the whole volume takes less than a minute. Raises
    :class:`MedDPMError` for unknown names and devices before anything is measured, and if the peak throughput cannot be
    measured.
    """
    benchmarked = {}
    for name in names:
        model = load_scaled_model(name, share)
        benchmarked[name] = _BenchmarkedModel(name, model.card, "random" if model.hash == RANDOM else "trained")
        del model  # the measuring processes may need its memory
    devices = list(dict.fromkeys(str(choose_execution(device).device) for device in devices))
    before = load()
    measurements, peak_throughputs = [], {}
    for device in devices:
        rates: list[dict[str, float]] = []
        with _Process(measure_peak_throughput, device) as peak_throughput:
            peak_throughput.begin()
            for one in benchmarked.values():
                measurements += _measure(one, device, share, steps, peak_throughput, rates, report)
        peak_throughputs[device] = _medians(rates)
    return Benchmark(describe_machine(), before, load(), share, peak_throughputs, tuple(measurements))


class _BenchmarkedModel(NamedTuple):
    """A model to measure, the grid on its card scaled; its weights are "trained" or "random"."""

    name: str
    card: Card
    weights: str


def _measure(
    model: _BenchmarkedModel,
    device: str,
    share: float,
    steps: int,
    peak_throughput: _Process,
    all_rates: list[dict[str, float]],
    report: Callable[[str], None],
) -> list[Measurement | NotMeasured]:
    """All configurations of one model on one device, their steps in turn; the measured peak throughput is appended to
    ``all_rates``."""
    name, measured = model.name, {}
    for together in CONFIGURATIONS:
        rates = []
        with ExitStack() as stack:
            processes = {}
            for configuration in together:
                report(f"{name}, {configuration}: loading and first step")
                processes[configuration] = stack.enter_context(
                    _Process(measure_configuration, TimedJob(name, configuration, device, share))
                )
                processes[configuration].begin()
            for number in range(2, _first_steps(device) + steps + 1):
                for configuration, process in processes.items():
                    report(f"{name}, {configuration}: step {number} of {_first_steps(device) + steps}")
                    rate = peak_throughput.go()
                    if rate is not None:  # its process may have ended
                        rates.append(rate)
                    process.go()
            for configuration, process in processes.items():
                report(f"{name}, {configuration}: the rest")
                process.end()
        all_rates += rates
        if not all_rates:
            raise MedDPMError(f"the peak throughput of {device} cannot be measured: {peak_throughput.problem}")
        for configuration, process in processes.items():
            measured[configuration] = _summary(model, configuration, device, process, _medians(rates or all_rates))
    return list(measured.values())


def _medians(rates: Sequence[dict[str, float]]) -> dict[str, float]:
    return {name: statistics.median(rate[name] for rate in rates) for name in rates[0]}


class _Process:
    """A process that measures on command; :mod:`MedDPMLib.benchmark.timed_process` defines commands and answers."""

    def __init__(self, target: Callable, job: object) -> None:
        context = multiprocessing.get_context("spawn")  # a forked one would inherit memory and threads
        self.connection, theirs = context.Pipe()
        self.process = context.Process(target=target, args=(theirs, job), daemon=True)
        self.process.start()
        theirs.close()
        #: The final result, or why there is none.
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
        """Runs one more step, unless it has ended; returns its message at the next pause."""
        if self._paused is not None:
            with suppress(OSError):  # if it has ended meanwhile, this shows when it does not answer
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
            kind, message = "failed", "its process was killed, most likely for lack of memory"
        self._paused = message if kind == "step" else None
        if kind == "done":
            self.result = message
        if kind == "failed":
            self.problem = message


def _summary(
    model: _BenchmarkedModel, configuration: str, device: str, process: _Process, peak_throughput: dict[str, float]
) -> Measurement | NotMeasured:
    card = model.card
    settings = baseline_settings(card) if configuration == "baseline" else card.qualities["standard"]
    about = {
        "model": model.name,
        "configuration": configuration,
        "grid": card.grid.size,
        "weights": model.weights,
        "device": device,
        **settings,
    }
    if process.problem is not None:
        return NotMeasured(**about, problem=process.problem)
    found = process.result
    assert found is not None, "it has ended without a problem"
    first = found["step_seconds"][0]
    # The last step may do more than the others.
    others = slice(_first_steps(device), -1 if found["finished"] else None)
    measured = found["step_seconds"][others] or found["step_seconds"][-1:]
    step = statistics.median(measured)
    cpu = statistics.median(found["step_cpu_seconds"][others] or found["step_cpu_seconds"][-1:])
    if found["finished"]:
        volume = sum(found["step_seconds"]) + found["last_seconds"]
    else:
        # The preparations are negligible compared with hundreds of steps, but not with twenty.
        volume = (step if configuration == "baseline" else first) + (settings["steps"] - 1) * step
    flops = None
    if not card.draws_by_levels:  # whose steps are of several networks
        flops = step_flops(card.network_description, card.grid.shape, encoded=configuration != "baseline")
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
        of_peak=flops and flops / step / peak_throughput["highest"],
        of_peak_cpu=flops / cpu / peak_throughput["per_cpu_second"] if flops and on_cpu else None,
    )
