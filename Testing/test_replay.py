"""Recorded and replayed steps, with a stand-in for CUDA graphs: it works on tensors of its own, as they do."""

from __future__ import annotations

import logging

import pytest
import torch

from MedDPMLib.networks.replay import Replay


class Recorder:
    """Records as a CUDA graph is recorded: from then on only what lies in its own tensors counts."""

    def __init__(self) -> None:
        self.recorded = self.replayed = 0

    def __call__(self, work, tensors):
        self.recorded += 1
        kept = [torch.zeros_like(tensor) for tensor in tensors]

        def replay(*tensors):
            self.replayed += 1
            for mine, given in zip(kept, tensors, strict=True):
                mine.copy_(given)
            return work(*kept)

        return replay


def work(x, t):
    return 2 * x + t


def given(seed: int, side: int = 3) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(2, side, generator=generator), torch.full((1,), float(seed))


def test_the_second_call_records_and_later_ones_replay():
    recorder = Recorder()
    replay = Replay(recorder)
    counts = []
    for seed in range(4):
        assert torch.equal(replay(work, *given(seed)), work(*given(seed)))
        counts.append((recorder.recorded, recorder.replayed))
    assert counts == [(0, 0), (1, 2), (1, 3), (1, 4)]  # the second one is tried first, and then made


def test_results_are_kept_apart():
    replay = Replay(Recorder())
    results = [replay(work, *given(seed)) for seed in range(5)]
    assert all(torch.equal(result, work(*given(seed))) for seed, result in enumerate(results))


def test_other_shapes_and_types_begin_anew():
    recorder = Recorder()
    replay = Replay(recorder)
    for number, side in enumerate([3, 3, 3, 4, 4, 4, 3, 3]):
        assert torch.equal(replay(work, *given(number, side)), work(*given(number, side)))
    assert recorder.recorded == 3
    x, t = given(9)
    assert replay(work, x.double(), t).dtype == torch.float64
    assert recorder.recorded == 3


@pytest.mark.parametrize(
    "wrong",
    [
        lambda work, tensors: lambda *_: work(*map(torch.zeros_like, tensors)),  # does not see its arguments
        lambda work, tensors: lambda *given: work(*given) * 1.01,
        lambda work, tensors: lambda *given: work(*given) * torch.nan,
    ],
    ids=["frozen", "too large", "nan"],
)
def test_a_wrong_recording_is_not_used_and_the_log_says_so(wrong, caplog):
    replay = Replay(wrong)
    with caplog.at_level(logging.WARNING):
        for seed in range(4):
            assert torch.equal(replay(work, *given(seed)), work(*given(seed)))
    assert [record.levelname for record in caplog.records] == ["WARNING"]  # once
    assert "is wrong by" in caplog.text


def test_what_cannot_be_recorded_is_worked_as_ever_and_tried_once(caplog):
    tried = []

    def refusing(work, tensors):
        tried.append(1)
        raise RuntimeError("operation not permitted when stream is capturing")

    replay = Replay(refusing)
    with caplog.at_level(logging.WARNING):
        for seed in range(5):
            assert torch.equal(replay(work, *given(seed)), work(*given(seed)))
    assert len(tried) == 1
    assert caplog.text.count("cannot be recorded (operation not permitted when stream is capturing)") == 1
