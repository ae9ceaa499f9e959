"""What the benchmark says: counted operations against closed forms, and a whole run on a tiny model."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
from conftest import small_card

from MedDPMLib.benchmark import inference, throughput, timed_process, training
from MedDPMLib.benchmark.inference import Benchmark, Measurement, NotMeasured, benchmark
from MedDPMLib.benchmark.report import HEADINGS, remarks, rows
from MedDPMLib.benchmark.throughput import PeakThroughput, step_flops
from MedDPMLib.benchmark.training import TrainingRow
from MedDPMLib.benchmark.workload import RANDOM, all_names, load_scaled_model, painted_ball, scaled_grid
from MedDPMLib.errors import MedDPMError, OutOfMemory
from MedDPMLib.imaging.geometry import Grid
from MedDPMLib.masks.fit import fit
from MedDPMLib.models.card import official_cards
from MedDPMLib.models.model import load_model
from MedDPMLib.recipes.recipe import load_recipe, recipe_names
from MedDPMLib.runtime.hardware import describe_machine, load, peak_memory
from MedDPMLib.train.iteration_cost import IterationCost

CPU = torch.device("cpu")


# What is measured ------------------------------------------------------------------------------------


def test_the_published_networks_need_the_operations_that_are_known():
    """5.5 T and 21.3 T multiplications and additions a step, as they are known of the published code."""
    for card, expected in zip(official_cards(), (21.3e12, 5.5e12), strict=True):
        assert step_flops(card.network_description, card.grid.shape, encoded=False) == pytest.approx(expected, rel=0.02)


def test_operations_grow_with_the_voxels(brats):
    description = small_card(brats).network_description
    small, large = (step_flops(description, (side, 16, 16), encoded=False) for side in (16, 32))
    # The timestep's layers do not grow, attention grows faster.
    assert 1.9 * small < large < 2.3 * small


def test_the_condition_s_share_is_left_out():
    """It is the first convolution's: 3 x 3 x 3 voxels, K channels in, 64 out, a multiplication and an addition each."""
    for card in official_cards():
        full, encoded = (
            step_flops(card.network_description, (16, 32, 48), encoded=without) for without in (False, True)
        )
        assert full - encoded == 2 * 27 * len(card.scheme.labels) * 64 * 16 * 32 * 48


def test_the_peak_throughput_is_what_the_products_did_in_their_time(monkeypatch):
    """Two operations for each of n^3 factors, by a clock on which every product takes 0.1 s, on two cores."""
    clock, multiply = [0.0], torch.mm

    def slow_product(a, b):
        clock[0] += 0.1
        return multiply(a, b)

    monkeypatch.setattr(throughput.torch, "mm", slow_product)
    monkeypatch.setattr(throughput.time, "perf_counter", lambda: clock[0])
    monkeypatch.setattr(throughput.time, "process_time", lambda: 2 * clock[0])
    measured = PeakThroughput(CPU, side=128).measure()
    assert measured == pytest.approx(
        {"bfloat16": 2 * 128**3 / 0.1, "float32": 2 * 64**3 / 0.1, "highest": 2 * 128**3 / 0.1,
         "per_cpu_second": 2 * 128**3 / 0.2}
    )  # fmt: skip


@pytest.mark.parametrize("size", [(192, 192, 144), (128, 128, 128), (48, 33, 17)])
@pytest.mark.parametrize("share", [0.01, 0.25, 0.5])
def test_a_scaled_grid_fits_the_network_and_covers_the_same(size, share):
    grid = Grid(size, (1.0, 1.5, 2.0), "LPS")
    scaled = scaled_grid(grid, share, 16)
    assert all(side % 16 == 0 and side >= 16 for side in scaled.size)
    np.testing.assert_allclose(np.multiply(scaled.size, scaled.spacing), np.multiply(grid.size, grid.spacing))
    for side, was in zip(scaled.size, grid.size, strict=True):
        assert abs(side - share * was) <= 8 or side == 16


def test_the_ball_has_every_label_of_every_scheme():
    for card in official_cards():
        card = replace(card, grid=scaled_grid(card.grid, 0.25, 16))
        mask = painted_ball(card)
        assert set(np.unique(mask.volume.array)) == {0, *card.scheme.values}
        np.testing.assert_array_equal(fit(mask, card.grid).labels, mask.volume.array)


def test_a_published_network_without_weights_gets_random_ones(meddpm):
    assert {card.name for card in official_cards()} < set(all_names())
    model = load_scaled_model("med-ddpm-whole-head", share=0.25)
    assert model.hash == RANDOM and model.card.grid.size == (32, 32, 32)
    assert all(parameter.any() for parameter in model.network.parameters())
    with pytest.raises(MedDPMError, match="no model"):
        load_scaled_model("nothing")
    with pytest.raises(MedDPMError, match="share of the grid"):
        load_scaled_model("med-ddpm-whole-head", share=2)


def test_the_machine_is_plain_data():
    machine = json.loads(json.dumps({**describe_machine(), "load": load()}))
    assert machine["logical_cores"] >= machine["cores"] >= 1 and machine["processor"]
    assert 0 <= machine["load"]["busy"] <= 1 and machine["load"]["free_bytes"] < machine["memory_bytes"]


def test_the_peak_is_a_peak():
    before = peak_memory(CPU)
    held = np.ones(300_000_000, np.uint8)
    during = peak_memory(CPU)
    del held
    # The kernel brings its count of a thread's pages up to date now and then.
    assert during > max(before, 300_000_000) - 2**20
    assert peak_memory(CPU) > during - 2**20


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere a process inherits no peak")
def test_the_peak_is_not_that_of_the_process_that_started_this_one():
    """What getrusage says of a child is the peak of its parent, if that was larger."""
    child = (
        "import resource, torch; from MedDPMLib.runtime.hardware import peak_memory;"
        " print(peak_memory(torch.device('cpu')), 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)"
    )
    parent = (
        f"import subprocess, sys; held = b'x' * 2**30; subprocess.run([sys.executable, '-c', {child!r}], check=True)"
    )
    result = subprocess.run([sys.executable, "-c", parent], capture_output=True, text=True, check=True)
    peak, inherited = map(int, result.stdout.split())
    assert 2**24 < peak < 2**30 <= inherited


# What is reported ----------------------------------------------------------------------------------------


def measurement(configuration: str, **figures) -> Measurement:
    known = {
        "model": "net", "grid": (16, 16, 16), "weights": "trained", "sampler": "ddpm", "steps": 250, "device": "cpu",
        "precision": "float32", "reason": "as is tested", "memory": None, "planned_bytes": None,
        "load_seconds": 1.0, "first_seconds": 2.0, "step_seconds": 4.0, "step_cpu_seconds": 8.0, "measured_steps": 3,
        "volume_seconds": 1000.0, "extrapolated": True, "peak_bytes": 4 * 2**30,
        "step_flops": 10**12, "of_peak": 0.25, "of_peak_cpu": 0.25,
    }  # fmt: skip
    return Measurement(configuration=configuration, **known | figures)


def result(*measurements: Measurement | NotMeasured, share: float = 1.0) -> Benchmark:
    quiet = {"busy": 0.0, "average": 0.0, "free_bytes": 2**34}
    return Benchmark(
        describe_machine(),
        quiet,
        quiet,
        share,
        {"cpu": {"bfloat16": 1e12, "float32": 2e11, "highest": 1e12, "per_cpu_second": 5e11}},
        measurements,
    )


def test_ratios_are_to_the_baseline_of_the_same_network_and_device():
    optimized = measurement(
        "standard", steps=20, step_seconds=1.0, step_cpu_seconds=1.6, volume_seconds=20.0, peak_bytes=2**30
    )
    elsewhere = replace(optimized, device="cuda")
    found = result(measurement("baseline"), optimized, elsewhere, replace(optimized, model="other"))
    assert found.ratios(optimized) == {
        "step_ratio": 4, "step_cpu_ratio": 5, "volume_ratio": 50, "volume_cpu_ratio": 62.5, "memory_ratio": 0.25,
    }  # fmt: skip
    assert set(found.ratios(elsewhere).values()) == set(found.ratios(found.measurements[3]).values()) == {None}
    row = dict(zip(HEADINGS[:11], rows(found)[1][:11], strict=True))
    assert row["speedup"] == "50x" and row["of baseline"] == "25%" and row["memory"] == "1.00 GiB"
    assert all(len(row) == len(HEADINGS) for row in rows(found))


def test_what_could_not_be_measured_is_reported():
    broken = NotMeasured(
        model="net", configuration="baseline", grid=(16, 16, 16), weights="random", sampler="ddpm", steps=250,
        device="cpu", problem="there is too little memory",
    )  # fmt: skip
    found = result(broken, measurement("standard"), share=0.5)
    reported = "\n".join(remarks(found))
    for part in (
        "net, baseline on cpu was not measured: there is too little memory",
        "random weights",
        "0.5 of each side",
    ):
        assert part in reported
    assert json.loads(json.dumps(found.to_dict()))["measurements"][1]["volume_ratio"] is None
    assert all(len(row) == len(HEADINGS) for row in rows(found))


# A whole run -----------------------------------------------------------------------------------------


def test_a_run_measures_every_configuration(small_model):
    reported = []
    found = benchmark([str(small_model)], ["cpu"], steps=2, report=reported.append)
    card = load_model(small_model).card
    baseline, standard, low = found.measurements
    assert [one.configuration for one in found.measurements] == ["baseline", "standard", "low memory"]
    assert (baseline.sampler, baseline.steps, baseline.precision) == ("ddpm", 50, "float32")
    assert {"sampler": standard.sampler, "steps": standard.steps} == card.qualities["standard"]
    assert (low.sampler, low.steps) == (standard.sampler, standard.steps)
    # Fifty steps of a tiny network are quicker than patience lasts: everything is run to its end.
    assert [one.extrapolated for one in found.measurements] == [False, False, False]
    assert baseline.measured_steps == 50 - 2 and standard.measured_steps == 1
    for one in found.measurements:
        assert isinstance(one, Measurement) and one.weights == "trained" and one.grid == (16, 16, 16)
        assert 0 < one.step_seconds < one.volume_seconds and one.peak_bytes > 50e6
        assert one.of_peak > 0 and "on cpu" in one.reason
        if one.configuration != "baseline":
            assert one.memory == ("in thin slabs" if one.configuration == "low memory" else "whole")
            assert one.peak_bytes < one.planned_bytes
    assert baseline.step_flops == step_flops(card.network_description, (16, 16, 16), encoded=False)
    assert standard.step_flops == step_flops(card.network_description, (16, 16, 16), encoded=True)
    assert len(reported) == inference.phases(2, "cpu")


def test_the_command_tells_and_writes(meddpm, small_model, tmp_path, monkeypatch):
    # The path to it is tested: another process for every configuration is not needed for that.
    found = result(measurement("baseline"), measurement("standard", volume_seconds=10.0))
    asked = {}

    def measured(names, devices, **options):
        asked.update(names=names, devices=devices, **options)
        return found

    monkeypatch.setattr(inference, "benchmark", measured)
    reported = meddpm(
        "benchmark", "generate", "--model", small_model, "--device", "cpu", "--quick", "--json", "out.json"
    )
    assert reported.returncode == 0, reported.stderr
    assert asked["names"] == [str(small_model)] and (asked["share"], asked["steps"]) == (0.25, 1)
    assert "100x" in reported.stdout and "compare ratios" in reported.stdout
    written = json.loads((tmp_path / "out.json").read_text())
    assert written["measurements"][1]["volume_ratio"] == 100


def test_training_is_reported_the_same_way(meddpm, tmp_path, monkeypatch):
    asked = {}

    def measured(recipe, **options):
        asked.update(recipe=recipe.name, **options)
        configurations = (("baseline", 0.5, 2**31, 1.0), ("optimized", 2.0, 2**30, 4.0))
        return [
            TrainingRow(recipe.name, configuration, "float32", options["grid"], rate, peak, ratio)
            for configuration, rate, peak, ratio in configurations
        ]

    monkeypatch.setattr(training, "measure_training", measured)
    reported = meddpm("benchmark", "train", "--recipe", "brats", "--quick", "--device", "cpu", "--json", "out.json")
    assert reported.returncode == 0, reported.stderr
    usual = load_recipe("brats").stages[-1].example_size
    assert asked["recipe"] == "brats" and asked["iterations"] == 1 and asked["device"] == "cpu"
    assert all(side % 16 == 0 and abs(side - whole / 4) <= 8 for side, whole in zip(asked["grid"], usual, strict=True))
    row = next(line for line in reported.stdout.splitlines() if "optimized" in line)
    assert "4x" in row and "1.00 GiB" in row and " 2 " in row
    assert json.loads((tmp_path / "out.json").read_text())["rows"][1]["speed_up"] == 4


def test_what_does_not_fit_is_a_row_that_says_so(meddpm, monkeypatch):
    """Every recipe has its rows, and what fits is measured though the baseline does not."""

    def measured(job):
        if job.baseline:
            raise OutOfMemory("too large")
        return [IterationCost(job.grids[0], 2.0, 2**30)]

    monkeypatch.setattr(training, "measure", measured)
    monkeypatch.setattr(training, "can_compile", lambda device: False)
    reported = meddpm("benchmark", "train", "--device", "cpu", "--quick")
    assert reported.returncode == 0, reported.stderr
    rows = [line for line in reported.stdout.splitlines() if " x " in line]
    trained = sum(len(load_recipe(name).levels) or 1 for name in recipe_names())
    assert len(rows) == 3 * trained and all(any(name in row for row in rows) for name in recipe_names())
    assert all(("does not fit" in row) == (" baseline " in row) for row in rows)
    assert all("0.5" in row and "1.00 GiB" in row for row in rows if " baseline " not in row)


def test_a_process_that_ends_early_is_a_problem_of_its_row_alone():
    with inference._Process(isinstance, object) as process:  # returns at once, and says nothing
        process.begin()
        assert process.go() is None
        process.end()
    assert process.result is None and "was killed" in process.problem


def test_a_process_that_is_killed_between_two_steps_is_a_problem_of_its_row_alone():
    with inference._Process(timed_process.measure_peak_throughput, "cpu") as process:
        process.begin()
        process.process.kill()
        process.process.join()
        assert process.go() is None and process.go() is None
        process.end()
    assert process.result is None and "was killed" in process.problem


def no_peak_throughput(connection, device):
    connection.send(("failed", "there is no product"))


def test_a_peak_throughput_that_cannot_be_measured_ends_it_with_the_reason(small_model, monkeypatch):
    with inference._Process(timed_process.measure_peak_throughput, "nowhere") as process:
        process.begin()
        assert process.go() is None and 'there is no device "nowhere"' in process.problem
    monkeypatch.setattr(inference, "measure_peak_throughput", no_peak_throughput)
    with pytest.raises(MedDPMError, match="^the peak throughput of cpu cannot be measured: there is no product$"):
        benchmark([str(small_model)], ["cpu"], steps=1)


def test_what_does_not_fit_is_not_tried(small_model, monkeypatch):
    model = load_model(small_model)
    timed_process._check_memory(model, CPU)
    monkeypatch.setattr(timed_process, "free_memory", lambda device: 10_000)
    with pytest.raises(OutOfMemory, match="scale the grid down"):
        timed_process._check_memory(model, CPU)
