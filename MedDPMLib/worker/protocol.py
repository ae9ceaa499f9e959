"""Which messages do client and worker exchange? One JSON object a line; docs/worker-protocol.md is the reference.

Requests go to the worker, events come from it. Both are frozen dataclasses here whose fields define their valid values.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from MedDPMLib.errors import MedDPMError
from MedDPMLib.validation import (
    build,
    field,
    list_of,
    matching,
    number,
    one_of,
    optional,
    printable,
    quoted,
    read_json,
    table,
    table_of,
    text,
    whole,
)

#: Raised whenever an older client or worker would misunderstand the other.
PROTOCOL = 3

#: Bytes; no message comes near.
LONGEST_LINE = 1 << 20

#: What went wrong: an error that the user can fix, lack of memory, a Python package, or an error in MedDPM.
ERROR_KINDS = ("input", "memory", "package", "internal")

#: Why a request ended without a result; "finished": it had ended before, or there never was one of that id.
CANCEL_REASONS = ("asked", "finished")

#: What a running request is busy with.
STAGES = ("model", "mask", "steps")


class ProtocolError(MedDPMError):
    """A line that violates the protocol; ``id`` is that of the request, if it is known."""

    def __init__(self, message: str, id: str | None = None) -> None:
        super().__init__(message)
        self.id = id


def worker_arguments(session: Path, idle: float | None = None) -> list[str]:
    """What to start Python with for a worker on the folder ``session``; ``idle`` in seconds, None: it stays."""
    arguments = ["-m", "MedDPMLib.worker", "--session", str(session)]
    return arguments if idle is None else [*arguments, "--idle", f"{idle:g}"]


# What a field may hold -------------------------------------------------------------------------------

_ID = printable(100)
_TEXT = text()
_ANY_TEXT = text(least=0)
#: A name of :mod:`MedDPMLib.worker.session`: no path, nothing outside the session's folder.
_FILE = matching(
    r"(mask|scan|preview|result)-[A-Za-z0-9_-]{1,64}\.npy", "the name of a file of the session, such as mask-1.npy"
)
_FILES = table_of(printable(100), _FILE)
_MATRIX = list_of(list_of(number(), 4, 4, kind=list), 4, 4, kind=list)
_SEED = whole(0, 2**63 - 1)
_COUNT = whole(0)
_POSITIVE = whole(1)
_NOT_NEGATIVE = number(0)


# Requests --------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Request:
    """``id`` is the client's choice; every answer carries it."""

    id: str = field(_ID)


@dataclass(frozen=True, kw_only=True)
class Load(Request):
    """Makes a model ready, by its name or path, so that the next :class:`Generate` starts at once: :class:`Loaded`."""

    model: str = field(_TEXT)


@dataclass(frozen=True, kw_only=True)
class Generate(Request):
    """Volumes for a mask, a sample for each seed: :class:`Progress`, :class:`Preview`, and a :class:`Result` a sample.

    ``mask`` is a file of the session, uint8 (k, j, i) with the values of the label scheme called ``scheme``, placed by
    ``ijk_to_ras`` (4 x 4, mm); ``name`` is what the record calls it. The worker removes the file when the request has
    ended. ``settings`` are those of :class:`MedDPMLib.inference.settings.GenerationSettings`, as its ``to_dict`` gives
    them. ``modalities`` are those wanted, None for all. A preview is made every ``preview_every`` steps, 0 for none.
    """

    model: str = field(_TEXT)
    mask: str = field(_FILE)
    ijk_to_ras: list[list[float]] = field(_MATRIX)
    scheme: str = field(_TEXT)
    name: str = field(_TEXT, default="mask")
    seeds: list[int] = field(list_of(_SEED, 1, 1000, kind=list), default=(0,))
    settings: dict[str, Any] = field(table(), default_factory=dict)
    modalities: list[str] | None = field(optional(list_of(_TEXT, 1, 16, kind=list)), default=None)
    preview_every: int = field(_COUNT, default=0)


@dataclass(frozen=True, kw_only=True)
class Segment(Request):
    """A mask of a scan: :class:`Progress`, then :class:`Segmented`.

    ``scan`` is a file of the session, numbers of any kind (k, j, i), placed by ``ijk_to_ras`` (4 x 4, mm); ``name`` is
    what messages call it, ``model`` the segmenter. The worker removes the file when the request has ended.
    """

    model: str = field(_TEXT)
    scan: str = field(_FILE)
    ijk_to_ras: list[list[float]] = field(_MATRIX)
    name: str = field(_TEXT, default="the scan")


@dataclass(frozen=True, kw_only=True)
class Cancel(Request):
    """Ends the request whose id this is: :class:`Cancelled`, at once, and nothing more of that id."""


@dataclass(frozen=True, kw_only=True)
class Status(Request):
    """Asks what the worker is doing: :class:`State`, at once."""


@dataclass(frozen=True, kw_only=True)
class Shutdown(Request):
    """Ends the worker at once, whatever it is doing: :class:`Bye`."""


# Events ----------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Event:
    pass


@dataclass(frozen=True, kw_only=True)
class Hello(Event):
    """The first line, before PyTorch is imported. ``versions``: of MedDPM, Python and packages."""

    protocol: int = field(_POSITIVE, default=PROTOCOL)
    pid: int = field(_POSITIVE)
    versions: dict[str, str] = field(table())


@dataclass(frozen=True, kw_only=True)
class Ready(Event):
    """PyTorch is imported. ``device`` and ``precision`` are what "auto" stands for, ``reason`` says why."""

    device: str = field(_TEXT)
    precision: str = field(_TEXT)
    reason: str = field(_TEXT)


@dataclass(frozen=True, kw_only=True)
class Loaded(Event):
    """The model called ``model`` is loaded, which took ``seconds``."""

    id: str = field(_ID)
    model: str = field(_TEXT)
    seconds: float = field(_NOT_NEGATIVE)


@dataclass(frozen=True, kw_only=True)
class Unloaded(Event):
    """No model is loaded any more, after idle time."""


@dataclass(frozen=True, kw_only=True)
class Progress(Event):
    """``stage`` is one of :data:`STAGES`; ``step`` of ``steps`` are done (0 of 0 before the first stage of steps).

    ``sample`` of ``samples``, from 1. ``seconds_left`` is an estimate for the whole request, None before the first.
    """

    id: str = field(_ID)
    stage: str = field(one_of(*STAGES))
    sample: int = field(_POSITIVE)
    samples: int = field(_POSITIVE)
    step: int = field(_COUNT, default=0)
    steps: int = field(_COUNT, default=0)
    seconds_left: float | None = field(optional(_NOT_NEGATIVE), default=None)


@dataclass(frozen=True, kw_only=True)
class Preview(Event):
    """What forms after ``step`` (0: a coarse image before the first): the first of the modalities wanted, a file
    (k, j, i) under its name, on the model's grid, placed by ``ijk_to_ras``.

    The client removes the file when it has read it, and that is what lets the next preview come. When the request
    has ended it is gone.
    """

    id: str = field(_ID)
    sample: int = field(_POSITIVE)
    step: int = field(_COUNT)
    steps: int = field(_POSITIVE)
    files: dict[str, str] = field(_FILES)
    ijk_to_ras: list[list[float]] = field(_MATRIX)


@dataclass(frozen=True, kw_only=True)
class Result(Event):
    """A sample: float32 (k, j, i) files by modality, placed by ``ijk_to_ras``, and the ``record`` of how it was made.

    The client removes the files. The request has ended with the result whose ``sample`` is ``samples``.
    """

    id: str = field(_ID)
    sample: int = field(_POSITIVE)
    samples: int = field(_POSITIVE)
    files: dict[str, str] = field(_FILES)
    ijk_to_ras: list[list[float]] = field(_MATRIX)
    record: dict[str, Any] = field(table())


@dataclass(frozen=True, kw_only=True)
class Segmented(Event):
    """The mask of a scan, with which the request has ended: ``files`` has "labels", uint8 (k, j, i) with the values of
    the segmenter's scheme, placed by ``ijk_to_ras``; ``notes`` say what the user should know.

    The client removes the file.
    """

    id: str = field(_ID)
    files: dict[str, str] = field(_FILES)
    ijk_to_ras: list[list[float]] = field(_MATRIX)
    notes: list[str] = field(list_of(_TEXT, 0, 1000, kind=list))


@dataclass(frozen=True, kw_only=True)
class Error(Event):
    """The request has ended with a fault: ``message`` is a sentence for the user, ``kind`` one of :data:`ERROR_KINDS`.

    ``id`` is None for a line without a recognizable request, and for an error at startup. ``code`` and
    ``values`` are those of a :class:`MedDPMError` whose remedy each face words itself, ``fact`` what is wrong.
    """

    id: str | None = field(optional(_ID))
    kind: str = field(one_of(*ERROR_KINDS))
    message: str = field(_TEXT)
    fact: str = field(_ANY_TEXT, default="")
    code: str = field(_ANY_TEXT, default="")
    values: dict[str, str] = field(table(), default_factory=dict)

    @property
    def error(self) -> MedDPMError:
        """The mistake, as it was raised in the worker."""
        if not self.code:
            return MedDPMError(self.message)
        remedy = self.message.removeprefix(self.fact).removeprefix(": ")
        return MedDPMError(self.fact, remedy=remedy, code=self.code, **self.values)


@dataclass(frozen=True, kw_only=True)
class Cancelled(Event):
    """The request has ended without a result; ``reason`` is one of :data:`CANCEL_REASONS`."""

    id: str = field(_ID)
    reason: str = field(one_of(*CANCEL_REASONS))


@dataclass(frozen=True, kw_only=True)
class State(Event):
    """The answer to :class:`Status`: ids of the requests that run and wait, name of the model that is loaded."""

    id: str = field(_ID)
    running: str | None = field(optional(_ID))
    waiting: list[str] = field(list_of(_ID, 0, 10_000, kind=list))
    model: str | None = field(optional(_TEXT))


@dataclass(frozen=True, kw_only=True)
class Bye(Event):
    """The last line: ``reason`` is "shutdown" or "idle"."""

    reason: str = field(one_of("shutdown", "idle"))


def _by_type(*classes: type) -> dict[str, type]:
    return {cls.__name__.lower(): cls for cls in classes}


_REQUESTS = _by_type(Load, Generate, Segment, Cancel, Status, Shutdown)
_EVENTS = _by_type(Hello, Ready, Loaded, Unloaded, Progress, Preview, Result, Segmented, Error, Cancelled, State, Bye)


# Lines -----------------------------------------------------------------------------------------------


def encode(message: Request | Event) -> bytes:
    """``message`` as its line, with the newline; plain ASCII, which is UTF-8."""
    data: dict[str, Any] = {"type": type(message).__name__.lower()}
    if isinstance(message, Request):
        data["protocol"] = PROTOCOL
    data |= {entry.name: getattr(message, entry.name) for entry in dataclasses.fields(message)}
    return json.dumps(data, allow_nan=False).encode("ascii") + b"\n"


def decode_request(line: bytes) -> Request:
    """The request in ``line``. Raises :class:`ProtocolError` for anything else; unknown fields are mistakes."""
    data = _parse(line)
    id = data.get("id") if _ID.fits(data.get("id")) else None
    try:
        spoken = data.pop("protocol", None)
        if spoken != PROTOCOL:
            raise MedDPMError(
                f"the worker speaks protocol {PROTOCOL}, the request {quoted(spoken)}:"
                " after an update of MedDPM, restart 3D Slicer"
            )
        return _build(data, _REQUESTS, more=False)
    except MedDPMError as error:
        raise ProtocolError(str(error), id) from None


def decode_event(line: bytes) -> Event:
    """The event in ``line``. Raises :class:`ProtocolError` for anything else, and for a worker of another protocol."""
    data = _parse(line)
    if data.get("type") == "hello" and data.get("protocol") != PROTOCOL:
        raise ProtocolError(
            f"the worker speaks protocol {quoted(data.get('protocol'))}, this client {PROTOCOL}:"
            " after an update of MedDPM, restart 3D Slicer"
        )
    try:
        return _build(data, _EVENTS, more=True)  # a newer worker may add some
    except MedDPMError as error:
        raise ProtocolError(str(error)) from None


class EventReader:
    """Puts together events from bytes that arrive in pieces."""

    def __init__(self) -> None:
        self._rest = b""
        self._begun = False
        #: Lines that came before the first event and are none: what started the worker may print, too.
        self.passed_over: list[str] = []

    def feed(self, data: bytes) -> Iterator[Event]:
        """The events that are complete now. After a :class:`ProtocolError`, ``feed(b"")`` resumes at the next line."""
        self._rest += data
        while b"\n" in self._rest:
            line, self._rest = self._rest.split(b"\n", 1)
            if self._begun or line.startswith(b"{"):
                self._begun = True
                yield decode_event(line)
            elif line.strip():
                self.passed_over.append(line.decode("utf-8", "replace").strip())
        if len(self._rest) > LONGEST_LINE:
            self._rest = b""
            raise ProtocolError(f"the line is longer than {LONGEST_LINE:,} bytes")


def _parse(line: bytes) -> dict[str, Any]:
    if len(line) > LONGEST_LINE:
        raise ProtocolError(f"the line is longer than {LONGEST_LINE:,} bytes")
    try:
        return read_json(line, "the line")
    except MedDPMError as error:
        raise ProtocolError(str(error)) from None


def _build(data: dict[str, Any], classes: dict[str, type], *, more: bool) -> Any:
    kind = one_of(*classes).read(data.pop("type", None), '"type"')
    return build(classes[kind], data, f'"{kind}"', more=more)
