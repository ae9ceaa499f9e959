"""The trial of reduced precisions: silent on what is right, and it hears what is wrong."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F

from MedDPMLib.runtime import device as device_module
from MedDPMLib.runtime import numerics, self_test_cache
from MedDPMLib.runtime.device import choose_execution
from MedDPMLib.runtime.numerics import find_fault
from MedDPMLib.runtime.self_test_cache import self_test_fault

CPU = torch.device("cpu")
HALF = [torch.bfloat16, torch.float16]


@pytest.mark.parametrize("dtype", [*HALF, torch.float32], ids=str)
def test_this_machine_computes_right(dtype):
    assert find_fault(CPU, dtype) is None


def faulty(damage):
    """A convolution that is right in float32 and ``damage(result)`` in reduced precision."""

    def convolve(x, *arguments):
        result = F.conv3d(x, *arguments)
        return result if x.dtype == torch.float32 else damage(result)

    return convolve


def forget_a_plane(y):
    y = y.clone()
    y[:, :, -1] = 0
    return y


@pytest.mark.parametrize("dtype", HALF, ids=str)
@pytest.mark.parametrize(
    "damage",
    [
        lambda y: y * 1.05,
        lambda y: y.roll(1, 4),
        lambda y: y.flip(1),
        forget_a_plane,
        torch.zeros_like,
        lambda y: y + 0.1,
        lambda y: torch.full_like(y, torch.nan),
        lambda y: y.float().mul(16).round().div(16).to(y.dtype),
    ],
    ids=["too large", "shifted", "mixed", "a plane less", "nothing", "offset", "nan", "coarse"],
)
def test_a_wrong_convolution_is_found(damage, dtype):
    fault = find_fault(CPU, dtype, faulty(damage))
    assert fault and "convolution" in fault and ("wrong by" in fault)


def test_a_convolution_that_is_wrong_for_a_single_class_is_found():
    def convolve(x, weight, *arguments):
        result = F.conv3d(x, weight, *arguments)
        return -result if x.dtype != torch.float32 and weight.shape[1] == 3 else result

    assert find_fault(CPU, torch.bfloat16, convolve) == "the convolution of few channels is wrong by 200%"


def test_an_operation_that_is_not_there_is_a_fault():
    def convolve(x, *arguments):
        if x.dtype == torch.float16:
            raise RuntimeError("not implemented for 'Half'")
        return F.conv3d(x, *arguments)

    assert find_fault(CPU, torch.float16, convolve).startswith("the convolution of a volume fails (not implemented")
    assert find_fault(CPU, torch.bfloat16, convolve) is None


def test_a_faulty_precision_is_not_chosen_and_the_reason_says_why(monkeypatch):
    monkeypatch.setattr(device_module, "_fast_dtypes", lambda device: [(torch.bfloat16, "which is fast")])
    right = choose_execution("cpu")
    assert right.dtype == torch.bfloat16 and "in bfloat16, which is fast" in right.reason
    broken = faulty(torch.zeros_like)
    monkeypatch.setattr(device_module, "self_test_fault", lambda device, dtype: find_fault(device, dtype, broken))
    wrong = choose_execution("cpu")
    assert wrong.dtype == torch.float32
    assert "not in bfloat16, because the convolution of a volume is wrong by 100%" in wrong.reason
    asked = choose_execution("cpu", "bfloat16")
    assert asked.dtype == torch.bfloat16
    assert asked.reason.endswith(
        "as requested, although the convolution of a volume is wrong by 100% in it on this device"
    )


def test_a_gpu_that_computes_nothing_is_left_alone(monkeypatch):
    """As one that is older than what PyTorch was built for."""

    def faulty_gpu(device, dtype):
        return "the convolution of a volume fails (no kernel image)" if device.type == "cuda" else None

    monkeypatch.setattr(device_module, "_choose_device", lambda name: (torch.device("cuda"), "on a GPU"))
    monkeypatch.setattr(device_module, "_fast_dtypes", lambda device: [(torch.float16, "which is fast")])
    monkeypatch.setattr(device_module, "self_test_fault", faulty_gpu)
    chosen = choose_execution()
    assert chosen.device == CPU
    assert chosen.reason.startswith("on the CPU, because the convolution of a volume fails (no kernel image) on a GPU")
    assert choose_execution("cuda").device.type == "cuda"  # it was asked for


def test_it_costs_a_blink():
    find_fault(CPU, torch.bfloat16)  # what PyTorch does once for itself is not this test's
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        started = time.process_time()
        find_fault(CPU, torch.bfloat16)
        assert time.process_time() - started < 0.3
    finally:
        torch.set_num_threads(threads)


# What is noted of it -----------------------------------------------------------------------------------


@pytest.fixture
def notes(tmp_path, monkeypatch):
    """The folder of the notes; and ``tried``, which grows with every trial, of which ``verdicts`` are the outcome."""
    tried, verdicts = [], {}

    def find_fault(device, dtype):
        tried.append((device, dtype))
        return verdicts.get(dtype)

    monkeypatch.setattr(self_test_cache, "_folder", lambda: tmp_path / "notes")
    monkeypatch.setattr(numerics, "find_fault", find_fault)

    def ask(dtype=torch.bfloat16):
        self_test_fault.cache_clear()  # as in a new process
        return self_test_fault(CPU, dtype)

    yield SimpleNamespace(ask=ask, tried=tried, verdicts=verdicts, folder=tmp_path / "notes")
    self_test_fault.cache_clear()


def test_what_passed_is_tried_once_and_in_each_precision(notes):
    assert [notes.ask(), notes.ask(), notes.ask(torch.float16), notes.ask(torch.float16)] == [None] * 4
    assert notes.tried == [(CPU, torch.bfloat16), (CPU, torch.float16)]
    assert notes.ask(torch.float32) is None and len(notes.tried) == 2, "what all is compared with is not tried"


def test_a_fault_is_found_again_and_never_noted(notes):
    notes.verdicts[torch.bfloat16] = "the convolution of a volume is wrong by 100%"
    assert [notes.ask(), notes.ask()] == ["the convolution of a volume is wrong by 100%"] * 2
    assert len(notes.tried) == 2 and not notes.folder.exists()
    notes.verdicts.clear()
    assert notes.ask() is None and len(notes.tried) == 3


def test_a_trial_that_ends_in_an_error_leaves_no_note(notes, monkeypatch):
    def out_of_memory(device, dtype):
        raise torch.OutOfMemoryError

    with monkeypatch.context() as patched:
        patched.setattr(numerics, "find_fault", out_of_memory)
        with pytest.raises(torch.OutOfMemoryError):
            notes.ask()
    assert not notes.folder.exists() and notes.ask() is None and len(notes.tried) == 1


@pytest.mark.parametrize(
    "damage",
    [
        lambda path: path.write_bytes(path.read_bytes()[:-5]),
        lambda path: path.write_bytes(b""),
        lambda path: path.write_bytes(b"\xff\xfe"),
        lambda path: path.write_text("[]"),
        lambda path: path.write_text('{"passed": true}'),
        lambda path: path.write_text(path.read_text().replace("true", "false")),
        lambda path: path.write_text(path.read_text().replace("bfloat16", "float16")),
        lambda path: (path.unlink(), path.mkdir()),
    ],
    ids=["truncated", "empty", "no text", "no table", "nothing else", "failed", "of another", "a folder"],
)
def test_a_damaged_note_is_as_none(notes, damage):
    notes.ask()
    (note,) = notes.folder.iterdir()
    damage(note)
    notes.verdicts[torch.bfloat16] = "a fault"
    assert notes.ask() == "a fault" and len(notes.tried) == 2


def test_where_nothing_can_be_noted_it_is_tried_each_time(notes):
    notes.folder.parent.joinpath("notes").write_text("a file is in the place of the folder")
    assert [notes.ask(), notes.ask()] == [None, None] and len(notes.tried) == 2


@pytest.mark.parametrize("change", ["torch", "switch", "features", "trials", "processor"])
def test_what_the_outcome_depends_on_makes_another_note(notes, change, monkeypatch, tmp_path):
    notes.ask()
    notes.verdicts[torch.bfloat16] = "a fault"
    if change == "torch":
        monkeypatch.setattr(torch, "__version__", "99.0")
    elif change == "switch":
        monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", "AVX2")
    elif change == "features":
        monkeypatch.setattr(self_test_cache, "cpu_features", lambda: ["none"])
    elif change == "processor":
        monkeypatch.setattr(self_test_cache, "processor", lambda: "another")
    else:
        (tmp_path / "numerics.py").write_text("more")
        monkeypatch.setattr(numerics, "__file__", str(tmp_path / "numerics.py"))
    assert notes.ask() == "a fault"


def test_a_second_process_is_spared_the_trial(tmp_path):
    code = """
import torch
from MedDPMLib.runtime import self_test_cache, numerics
tried, find_fault = [], numerics.find_fault
numerics.find_fault = lambda *order: tried.append(order) or find_fault(*order)
print(self_test_cache.self_test_fault(torch.device("cpu"), torch.bfloat16), len(tried))
"""
    home = {name: str(tmp_path) for name in ("XDG_CACHE_HOME", "HOME", "LOCALAPPDATA")}
    command = {"args": [sys.executable, "-c", code], "env": os.environ | home, "text": True, "capture_output": True}
    said = [subprocess.run(**command, check=True).stdout.split() for _ in range(2)]
    assert said == [["None", "1"], ["None", "0"]]
