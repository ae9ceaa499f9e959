"""The trial of reduced precisions: silent on what is right, and it hears what is wrong."""

from __future__ import annotations

import time

import pytest
import torch
import torch.nn.functional as F

from MedDPMLib.runtime import device as device_module
from MedDPMLib.runtime.device import choose_execution
from MedDPMLib.runtime.numerics import find_fault, known_fault

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
    monkeypatch.setattr(device_module, "known_fault", lambda device, dtype: find_fault(device, dtype, broken))
    wrong = choose_execution("cpu")
    assert wrong.dtype == torch.float32
    assert "not in bfloat16, because the convolution of a volume is wrong by 100%" in wrong.reason
    asked = choose_execution("cpu", "bfloat16")
    assert asked.dtype == torch.bfloat16
    assert asked.reason.endswith("as asked, although the convolution of a volume is wrong by 100% in it on this device")


def test_a_gpu_that_computes_nothing_is_left_alone(monkeypatch):
    """As one that is older than what PyTorch was built for."""

    def faulty_gpu(device, dtype):
        return "the convolution of a volume fails (no kernel image)" if device.type == "cuda" else None

    monkeypatch.setattr(device_module, "_choose_device", lambda name: (torch.device("cuda"), "on a GPU"))
    monkeypatch.setattr(device_module, "_fast_dtypes", lambda device: [(torch.float16, "which is fast")])
    monkeypatch.setattr(device_module, "known_fault", faulty_gpu)
    chosen = choose_execution()
    assert chosen.device == CPU
    assert chosen.reason.startswith("on the CPU, because the convolution of a volume fails (no kernel image) on a GPU")
    assert choose_execution("cuda").device.type == "cuda"  # it was asked for


def test_it_costs_a_blink_and_that_once():
    find_fault(CPU, torch.bfloat16)  # what PyTorch does once for itself is not this test's
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        started = time.process_time()
        find_fault(CPU, torch.bfloat16)
        assert time.process_time() - started < 0.3
    finally:
        torch.set_num_threads(threads)
    known_fault(CPU, torch.bfloat16)
    started = time.process_time()
    known_fault(CPU, torch.bfloat16)
    assert time.process_time() - started < 0.001
