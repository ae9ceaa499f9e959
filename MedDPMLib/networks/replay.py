"""Work on tensors of the same shapes, recorded once as a CUDA graph and replayed from then on.

A small network's kernels are over before Python has started the next ones; replayed, all are started at once. A network
whose kernels take longer gains nothing by it, and its memory would lie idle between the steps.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from MedDPMLib.runtime.numerics import FLOAT32_TOLERANCE, relative_error

_log = logging.getLogger(__name__)

Work = Callable[..., Tensor]


class Replay:
    """``replay(work, *tensors)`` is ``work(*tensors)``, a tensor.

    ``work`` is the same at every call, and reads nothing of the tensors on the host. The first call for tensors of some
    shapes works as ever, so that kernels are chosen and compiled; the second one records; later ones replay. What
    cannot be recorded, or gives another result than ``work`` (beyond rounding), is not replayed, and the log says so.
    ``record`` is :func:`record_graph`.
    """

    def __init__(self, record: Callable[[Work, Sequence[Tensor]], Work] | None = None) -> None:
        self._record = record or record_graph
        self._shapes: list[tuple] | None = None
        self._is_recorded, self._recorded = False, None

    def __call__(self, work: Work, *tensors: Tensor) -> Tensor:
        shapes = [(tensor.shape, tensor.dtype) for tensor in tensors]
        if shapes != self._shapes:
            self._shapes, self._is_recorded, self._recorded = shapes, False, None
            return work(*tensors)
        if not self._is_recorded:
            self._is_recorded, self._recorded = True, self._checked_record(work, tensors)
        return (self._recorded or work)(*tensors)

    def _checked_record(self, work: Work, tensors: Sequence[Tensor]) -> Work | None:
        expected = work(*tensors)
        try:
            recorded = self._record(work, tensors)
            found = recorded(*tensors)
        except RuntimeError as error:  # to run out of memory is one
            _log.warning("no CUDA graph is used, because a step cannot be recorded (%s)", error)
            return None
        difference = relative_error(found, expected)
        if difference < max(torch.finfo(expected.dtype).eps, FLOAT32_TOLERANCE):  # NaN is not
            return recorded
        _log.warning("no CUDA graph is used, because a replayed step is wrong by %.0e", difference)
        return None


def record_graph(work: Work, tensors: Sequence[Tensor]) -> Work:
    """``work`` as a CUDA graph for tensors of these shapes. What it works in stays taken while the graph lives."""
    device = tensors[0].device
    # Zeros, so that a graph that misses its arguments is found out.
    kept = [torch.zeros_like(tensor) for tensor in tensors]
    graph = torch.cuda.CUDAGraph()
    recording = torch.cuda.graph(
        graph,
        stream=torch.cuda.Stream(device),
        capture_error_mode="thread_local",  # other threads, which bring data to the device, may continue meanwhile
    )
    # A recording that fails leaves its stream in place; the outer one puts back what was there.
    with torch.cuda.device(device), torch.cuda.stream(torch.cuda.current_stream(device)), recording:
        made = work(*kept)

    def replay(*tensors: Tensor) -> Tensor:
        for mine, given in zip(kept, tensors, strict=True):
            mine.copy_(given)
        graph.replay()
        return made.clone()  # the next replay overwrites it

    return replay
