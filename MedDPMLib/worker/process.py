"""How does the worker stay responsive while the model computes? The process: its threads, its queue, and its end.

One thread reads the requests and answers those that cannot wait (cancel, status, shutdown), one writes the events; the
main thread carries out the other requests one after the other. A step of the network cannot be interrupted, but the
other threads run meanwhile: the client is answered at once, and the main thread stops when the step is over.
"""

from __future__ import annotations

import os
import queue
import signal
import sys
import threading
import time
import traceback
from collections import deque
from collections.abc import Iterator
from typing import BinaryIO, NoReturn

from MedDPMLib.validation import quoted
from MedDPMLib.worker.engine import Engine
from MedDPMLib.worker.faults import describe_fault
from MedDPMLib.worker.protocol import (
    LONGEST_LINE,
    Bye,
    Cancel,
    Cancelled,
    Error,
    Event,
    Generate,
    Hello,
    Load,
    ProtocolError,
    Request,
    Result,
    Segment,
    Segmented,
    Shutdown,
    State,
    Status,
    Unloaded,
    decode_request,
    encode,
)
from MedDPMLib.worker.session import Session

#: Seconds that the last line may take to leave: a client that has stopped reading does not keep the worker.
_LAST_LINE = 1.0


class _Stopped(BaseException):
    """Ends the request that the client has cancelled; it must not be handled as an error in between."""


class _Job:
    """A request that takes time; ``stopped`` when the client has cancelled it."""

    def __init__(self, request: Request) -> None:
        self.request = request
        self.stopped = False


def take_channels() -> tuple[BinaryIO, BinaryIO]:
    """Standard input and output for the protocol alone.

    From then on what any library or child process prints goes to standard error, and nothing reads requests away.
    On Windows this is also what lets libraries be imported at all: many look at the standard handles when they are
    loaded, and would wait there for the thread that waits for a request on the same pipe.
    """
    sys.stdout.flush()
    requests, events = os.fdopen(os.dup(0), "rb"), os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    nothing = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, 0)
    os.close(nothing)
    if sys.platform == "win32":
        _name_standard_handles()
    return requests, events


def _name_standard_handles() -> None:
    """Has Windows itself, beside the C runtime of this Python, take what lies at 0 and 1 for the standard handles."""
    import ctypes
    import msvcrt

    set_handle = ctypes.windll.kernel32.SetStdHandle  # type: ignore[attr-defined]
    set_handle.argtypes = [ctypes.c_uint32, ctypes.c_void_p]
    for descriptor, name in ((0, -10), (1, -11)):  # STD_INPUT_HANDLE, STD_OUTPUT_HANDLE
        set_handle(name & 0xFFFFFFFF, msvcrt.get_osfhandle(descriptor))  # type: ignore[attr-defined]


class Worker:
    """Answers the lines of ``requests`` on ``events``, with arrays in ``session``.

    After ``idle`` seconds without work the model is released, after as many more the worker ends; None: never.
    """

    def __init__(self, requests: BinaryIO, events: BinaryIO, session: Session, idle: float | None) -> None:
        self._requests, self._events, self._session, self._idle = requests, events, session, idle
        self._engine = Engine(session)
        self._lines: queue.Queue[bytes] = queue.Queue()
        # Guards what follows and the order of the lines: after "cancelled" there is no line of that request.
        self._changed = threading.Condition()
        self._waiting: deque[_Job] = deque()
        self._running: _Job | None = None
        self._last_active = time.monotonic()

    def run(self) -> NoReturn:
        """Serves until the client goes or says so, or nothing happens for too long."""
        from MedDPMLib.runtime.versions import versions

        self._end_with_signals()
        threading.Thread(target=self._write, name="events", daemon=True).start()
        self._send(Hello(pid=os.getpid(), versions=versions()))
        threading.Thread(target=self._read, name="requests", daemon=True).start()
        try:
            self._send(self._engine.start())
        except Exception as error:
            self._send(self._fault(None, error))
        self._last_active = time.monotonic()
        while True:
            self._carry_out(self._next())

    # The main thread ---------------------------------------------------------------------------------

    def _next(self) -> _Job:
        """Waits for the next job and makes it the running one."""
        with self._changed:
            while not self._waiting:
                left = None if self._idle is None else self._last_active + self._idle - time.monotonic()
                if left is not None and left <= 0:
                    self._rest()
                else:
                    self._changed.wait(left)
            self._running = self._waiting.popleft()
            return self._running

    def _rest(self) -> None:
        if self._engine.model_name is None:
            self._say_goodbye("idle")
        self._engine.release()
        self._send(Unloaded())
        self._last_active = time.monotonic()

    def _carry_out(self, job: _Job) -> None:
        request = job.request

        def send(event: Event) -> None:
            with self._changed:
                if job.stopped:
                    raise _Stopped
                self._send(event)

        last: Event | None = None
        try:
            if isinstance(request, Generate):
                last = self._engine.generate(request, send)
            elif isinstance(request, Segment):
                last = self._engine.segment(request, send)
            elif isinstance(request, Load):
                last = self._engine.load(request)
        except _Stopped:
            pass
        except Exception as error:
            last = self._fault(request.id, error)
        if isinstance(last, Error) and last.kind == "memory":  # what is left has to do for the next request
            self._engine.release()
        self._forget(request)
        with self._changed:  # with its last line a request is over in every respect
            if last and not job.stopped:
                self._send(last)
            elif isinstance(last, (Result, Segmented)):
                self._engine.discard(last)
            self._running = None
            self._last_active = time.monotonic()

    # The thread that reads ---------------------------------------------------------------------------

    def _read(self) -> None:
        for line in _lines(self._requests):
            try:
                self._receive(line)
            except Exception as error:
                self._send(self._fault(None, error))
        self._end()  # the client has gone

    def _receive(self, line: bytes) -> None:
        try:
            request = decode_request(line)
        except ProtocolError as error:
            self._send(Error(id=error.id, kind="input", message=str(error)))
            return
        with self._changed:
            self._last_active = time.monotonic()
            if isinstance(request, Cancel):
                self._cancel(request.id)
            elif isinstance(request, Status):
                self._send(self._state(request.id))
            elif isinstance(request, Shutdown):
                self._say_goodbye("shutdown")
            elif any(job.request.id == request.id for job in self._jobs()):
                message = f"there is a request {quoted(request.id)} already: give each its own id"
                self._send(Error(id=None, kind="input", message=message))
            else:
                self._enqueue(request)

    def _jobs(self) -> list[_Job]:
        """Those that the client waits for."""
        return [job for job in (self._running, *self._waiting) if job is not None and not job.stopped]

    def _enqueue(self, request: Request) -> None:
        self._waiting.append(_Job(request))
        self._changed.notify()

    def _cancel(self, id: str) -> None:
        for job in self._jobs():
            if job.request.id == id:
                job.stopped = True
                if job is not self._running:
                    self._waiting.remove(job)
                    self._forget(job.request)
                self._send(Cancelled(id=id, reason="asked"))
                return
        self._send(Cancelled(id=id, reason="finished"))

    def _state(self, id: str) -> State:
        running, *waiting = (self._running, *self._waiting)
        return State(
            id=id,
            running=None if running is None or running.stopped else running.request.id,
            waiting=[job.request.id for job in waiting],
            model=self._engine.model_name,
        )

    # Both --------------------------------------------------------------------------------------------

    def _send(self, event: Event) -> None:
        """Queues the event's line for the thread that writes: nothing waits for a client that does not read."""
        with self._changed:
            self._lines.put(encode(event))

    def _write(self) -> None:
        """The thread that writes. It alone stands still while the pipe is full."""
        try:
            while True:
                self._events.write(self._lines.get())
                self._events.flush()
                self._lines.task_done()
        except OSError:
            self._end()  # the client is gone

    def _fault(self, id: str | None, error: Exception) -> Error:
        fault = describe_fault(id, error)
        if fault.kind != "input":
            traceback.print_exception(type(error), error, error.__traceback__)
        return fault

    def _forget(self, request: Request) -> None:
        if isinstance(request, Generate):
            self._session.remove(request.mask)
        elif isinstance(request, Segment):
            self._session.remove(request.scan)

    def _say_goodbye(self, reason: str) -> NoReturn:
        """Ends after the last line, if the client reads it in time."""
        self._send(Bye(reason=reason))
        patience = time.monotonic() + _LAST_LINE
        while self._lines.unfinished_tasks and time.monotonic() < patience:
            time.sleep(0.005)
        self._end()

    def _end(self) -> NoReturn:
        """Ends the process now, in the middle of whatever it does, and leaves no file."""
        try:
            self._session.close()
            sys.stderr.flush()
        finally:
            os._exit(0)

    def _end_with_signals(self) -> None:
        """Lets a thread wait for the signals that end a process: Python's own handlers wait for the step to end.

        Handlers rather than a mask: libraries have threads by now that no mask of this one reaches, and a signal with
        its default action, delivered to one of them, would end the process with its files left behind.
        """
        if sys.platform == "win32":  # where there are none: the client closes standard input
            return
        signaled, signaling = os.pipe()
        os.set_blocking(signaling, False)
        signal.set_wakeup_fd(signaling)
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            signal.signal(number, lambda *_: None)

        def wait() -> None:
            os.read(signaled, 1)
            self._end()

        threading.Thread(target=wait, name="signals", daemon=True).start()


def _lines(requests: BinaryIO) -> Iterator[bytes]:
    """The lines until the end of the stream. Of one that is too long the beginning, which is no message."""
    try:
        while line := requests.readline(LONGEST_LINE + 1):
            rest = line
            while rest and not rest.endswith(b"\n"):
                rest = requests.readline(LONGEST_LINE + 1)
            if line.strip():
                yield line
    except OSError:
        return
