"""How does long work leave the application responsive? In steps, with what only computes in another thread.

A piece of work is a generator. It yields a function without arguments, which is called in another thread and whose
result is what the ``yield`` gives back, or None, to let the event loop run. Slicer, VTK and Qt are touched only between
the yields, in the main thread. What the generator returns is the result::

    def work():
        area = yield partial(brain_area, volume, geometry)  # numbers
        paint(segmentation, segment_id, area)  # the scene
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Generator
from typing import Any

import qt
import slicer

Work = Generator[Callable[[], Any] | None, Any, Any]

#: Seconds that one wait for the thread may take. The application's event loop keeps Python's lock to itself: the thread
#: runs only while the main thread waits for it.
_LOOK = 0.01


def run_now(work: Work, wait: Callable[[Callable[[], Any]], Any] = lambda aside: aside()) -> Any:
    """Does all of ``work`` now, for a script; returns its result. ``wait`` calls what may be computed in a thread."""
    answer, fault = None, None
    while True:
        try:
            aside = work.throw(fault) if fault is not None else work.send(answer)
        except StopIteration as end:
            return end.value
        answer, fault = None, None
        try:
            answer = wait(aside if aside is not None else _nothing)
        except Exception as error:
            fault = error


def run_responsive(work: Work) -> Any:
    """As :func:`run_now`, while the application goes on drawing; input of the user waits."""
    return run_now(work, _wait_responsive)


def _wait_responsive(aside: Callable[[], Any]) -> Any:
    found: dict[str, Any] = {}

    def compute() -> None:
        try:
            found["answer"] = aside()
        except Exception as error:
            found["fault"] = error

    thread = threading.Thread(target=compute, name="MedDPM", daemon=True)
    thread.start()
    while True:
        thread.join(_LOOK)
        slicer.app.processEvents(qt.QEventLoop.ExcludeUserInputEvents)
        if not thread.is_alive():
            break
    if "fault" in found:
        raise found["fault"]
    return found["answer"]


def _nothing() -> None:
    pass


class BackgroundWork:
    """Does one piece of work at a time, a step in each pass of the event loop."""

    def __init__(self) -> None:
        self._work: Work | None = None
        self._thread: threading.Thread | None = None
        self._answer: Any = None
        self._fault: Exception | None = None
        self._done: Callable[[Any], None] | None = None
        self._failed: Callable[[Exception], None] | None = None
        self._timer = qt.QTimer()
        self._timer.setSingleShot(True)
        self._timer.interval = 0
        self._timer.timeout.connect(self._step)

    @property
    def busy(self) -> bool:
        return self._work is not None

    def start(self, work: Work, done: Callable[[Any], None], failed: Callable[[Exception], None]) -> None:
        """Begins ``work``: ``done(result)`` or ``failed(error)`` ends it. Work in progress is dropped."""
        self.stop()
        self._work, self._done, self._failed = work, done, failed
        self._answer = self._fault = None
        self._timer.start()

    def stop(self) -> None:
        """Drops the work in progress; it reports nothing more."""
        self._timer.stop()
        if self._work is not None:
            self._work.close()
        self._work = self._thread = self._done = self._failed = None

    def _step(self) -> None:
        if self._thread is not None:
            self._thread.join(_LOOK)
            if self._thread.is_alive():
                self._timer.start()
                return
            self._thread = None
        answer, fault, done, failed = self._answer, self._fault, self._done, self._failed
        self._answer = self._fault = None
        try:
            aside = self._work.throw(fault) if fault is not None else self._work.send(answer)
        except StopIteration as end:
            self._work = None
            done(end.value)
        except Exception as error:
            self._work = None
            failed(error)
        else:
            if aside is not None:
                self._compute(aside)
            self._timer.start()

    def _compute(self, aside: Callable[[], Any]) -> None:
        work = self._work

        def compute() -> None:
            answer, fault = None, None
            try:
                answer = aside()
            except Exception as error:
                fault = error
            if self._work is work:  # else it was dropped in the meantime
                self._answer, self._fault = answer, fault

        self._thread = threading.Thread(target=compute, name="MedDPM", daemon=True)
        self._thread.start()
