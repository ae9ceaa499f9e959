"""How are measurements reported? As the rows of a table, and remarks below it."""

from __future__ import annotations

from MedDPMLib.benchmark.inference import Benchmark, Measurement, NotMeasured
from MedDPMLib.runtime.names import PRECISIONS

HEADINGS = (
    "network", "device", "configuration", "precision", "steps", "s/step", "CPU s/step", "s/volume", "speedup", "memory",
    "of baseline", "of peak",
)  # fmt: skip
#: Share of the cores that other work may take before wall-clock times are unreliable.
_QUIET = 0.1
NUMERIC = tuple(range(4, len(HEADINGS)))


def rows(result: Benchmark) -> list[list[str]]:
    """A row for each measurement, under :data:`HEADINGS`."""
    return [_row(one, result.ratios(one)) for one in result.measurements]


def _row(one: Measurement | NotMeasured, ratios: dict[str, float | None]) -> list[str]:
    about = [one.model, one.device, one.configuration]
    if isinstance(one, NotMeasured):
        about += ["", str(one.steps)]
        return [*about, *[""] * (len(HEADINGS) - len(about))]
    return [
        *about,
        one.precision,
        str(one.steps),
        f"{one.step_seconds:.3g}",
        f"{one.step_cpu_seconds:.3g}" if one.step_cpu_seconds else "",
        ("~" if one.extrapolated else "") + _seconds(one.volume_seconds),
        "" if one.configuration == "baseline" else f"{ratios['volume_ratio']:.3g}x" if ratios["volume_ratio"] else "?",
        f"{one.peak_bytes / 2**30:.2f} GiB",
        "" if one.configuration == "baseline" else f"{ratios['memory_ratio']:.0%}" if ratios["memory_ratio"] else "?",
        f"{one.of_peak:.0%}" if one.of_peak else "",
    ]


def remarks(result: Benchmark) -> list[str]:
    """What a reader of the table needs to know."""
    found = [
        f"{device}: the peak throughput is {rates['highest'] / 1e12:.3g} TFLOP/s, measured between the steps"
        f" ({', '.join(f'{name} {rates[name] / 1e12:.3g}' for name in PRECISIONS if name in rates)})."
        for device, rates in result.peak_throughput.items()
    ]
    measured = [one for one in result.measurements if isinstance(one, Measurement)]
    reasons = {one.device: one.reason for one in measured if one.configuration == "standard"}
    found += [f"{device}: the optimized configurations run {reason}." for device, reason in reasons.items()]
    found += [
        f"{one.model}, {one.configuration} on {one.device}: {one.memory}, {one.planned_bytes / 1e9:.1f} GB predicted,"
        f" {one.peak_bytes / 1e9:.1f} GB used."
        for one in measured
        if one.memory and one.planned_bytes
    ]
    found.append(
        "baseline: float32, channels first, every step of the schedule by ancestral sampling, of a cascade those of its"
        " reference. speedup: for a volume."
    )
    if any(one.extrapolated for one in measured):
        found.append("~: extrapolated from the measured steps.")
    if result.share != 1:
        found.append(f"Grids are scaled down: {result.share:g} of each side.")
    random = [one.model for one in result.measurements if one.weights == "random"]
    if random:
        names = ", ".join(dict.fromkeys(random))
        found.append(f"{names}: random weights, because none are installed; times do not depend on them.")
    found.append("of peak: share of the peak throughput.")
    found += [
        f"{one.model}, {one.configuration} on {one.device} was not measured: {one.problem}"
        for one in result.measurements
        if isinstance(one, NotMeasured)
    ]
    loaded = ", ".join(f"{one.model} {one.load_seconds:.2g} s" for one in measured if one.configuration == "standard")
    if loaded:
        found.append(f"Loading a model is done once and not included: {loaded}.")
    machine, before, after = result.machine, result.before, result.after
    found.append(
        f"{machine['processor']}, {machine['threads']} threads ({', '.join(machine['features']) or 'no fast bfloat16'})"
        f", PyTorch {machine['versions']['torch']}. Other work kept {before['busy']:.0%} of the cores busy before and"
        f" {after['busy']:.0%} after: compare ratios, not seconds."
    )
    by_cpu = [
        _by_cpu(one, ratios)
        for one in measured
        if (ratios := result.ratios(one))["step_cpu_ratio"] and (one.of_peak_cpu or one.configuration != "baseline")
    ]
    if by_cpu and max(before["busy"], after["busy"]) > _QUIET:
        found.append(f"By processor time, which other work hardly changes: {'; '.join(by_cpu)}.")
    return found


def _by_cpu(one: Measurement, ratios: dict[str, float | None]) -> str:
    share = f"{one.of_peak_cpu:.0%} of the peak throughput" if one.of_peak_cpu else ""
    if one.configuration != "baseline":
        faster = f"a step {ratios['step_cpu_ratio']:.3g}x and a volume {ratios['volume_cpu_ratio']:.3g}x faster"
        share = ", ".join(filter(None, [share, faster]))
    return f"{one.model}, {one.configuration}: {share}"


def _seconds(seconds: float) -> str:
    return f"{seconds:.3g}" if seconds < 100 else f"{seconds:,.0f}"
