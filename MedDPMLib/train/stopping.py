"""How is a run stopped early?"""

from __future__ import annotations

import signal
from types import FrameType


class Stopped(Exception):
    """The run was stopped by ``signal``, and has written a checkpoint of ``iteration``."""

    def __init__(self, signal: int, iteration: int) -> None:
        super().__init__(signal, iteration)
        self.signal, self.iteration = signal, iteration


class StopRequest:
    """While it is entered, SIGTERM and Ctrl-C are noted in ``signal`` instead of ending the process.

    A cluster sends SIGTERM some time before it kills; the iteration at work is finished first. A second Ctrl-C ends at
    once.
    """

    def __init__(self) -> None:
        self.signal: int | None = None
        self._before: dict[int, object] = {}

    def __enter__(self) -> StopRequest:
        for number in (signal.SIGTERM, signal.SIGINT):
            self._before[number] = signal.signal(number, self._note)
        return self

    def __exit__(self, *_) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _note(self, number: int, frame: FrameType | None) -> None:
        if number == signal.SIGINT and self.signal == number:
            raise KeyboardInterrupt
        self.signal = number
