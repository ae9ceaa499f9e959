"""What do client and worker say to each other? One JSON object a line; docs/worker-protocol.md is the reference.

Requests go to the worker, events come from it. Both are frozen dataclasses here, and each field says what it may hold.
"""

from __future__ import annotations

import dataclasses
import json
import math
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from MedDPMLib.errors import MedDPMError

#: Raised whenever an older client or worker would misunderstand the other.
PROTOCOL = 2

#: Bytes; no message comes near.
LONGEST_LINE = 1 << 20

#: What went wrong: something the user can mend, memory, a Python package, or a fault of the program.
ERROR_KINDS = ("input", "memory", "package", "internal")

#: Why a request ended without a result; "finished": it had ended before, or there never was one of that id.
CANCEL_REASONS = ("asked", "finished")

#: What a running request is busy with.
STAGES = ("model", "mask", "steps")


class ProtocolError(MedDPMError):
    """A line that is not what the protocol allows; ``id`` is that of the request, where it can be told."""

    def __init__(self, message: str, id: str | None = None) -> None:
        super().__init__(message)
        self.id = id


def worker_arguments(session: Path, idle: float | None = None) -> list[str]:
    """What to start Python with for a worker on the folder ``session``; ``idle`` in seconds, None: it stays."""
    arguments = ["-m", "MedDPMLib.worker", "--session", str(session)]
    return arguments if idle is None else [*arguments, "--idle", f"{idle:g}"]


# What a field may hold -------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Check:
    what: str
    holds: Callable[[Any], bool]


def _is_whole(value: Any, low: int, high: float = math.inf) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and low <= value <= high


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) < 1e12


def _is_matrix(value: Any) -> bool:
    return (
        isinstance(value, (list, tuple))
        and len(value) == 4
        and all(isinstance(row, (list, tuple)) and len(row) == 4 and all(map(_is_number, row)) for row in value)
    )


def _or_none(check: _Check) -> _Check:
    return _Check(f"{check.what} or null", lambda value: value is None or check.holds(value))


def _list_of(check: _Check, low: int, high: int) -> _Check:
    return _Check(
        f"a list of {low} to {high} entries, each {check.what}",
        lambda value: isinstance(value, (list, tuple)) and low <= len(value) <= high and all(map(check.holds, value)),
    )


def _one_of(names: tuple[str, ...]) -> _Check:
    return _Check(f"one of {', '.join(names)}", lambda value: value in names)


#: A name of :mod:`MedDPMLib.worker.session`: no path, nothing outside the session's folder.
_FILE_NAME = re.compile(r"(mask|preview|result)-[A-Za-z0-9_-]{1,64}\.npy")

_ID = _Check(
    "a printable text of 1 to 100 characters",
    lambda value: isinstance(value, str) and 0 < len(value) <= 100 and value.isprintable(),
)
_TEXT = _Check("a text", lambda value: isinstance(value, str) and 0 < len(value) <= 10_000 and "\0" not in value)
_ANY_TEXT = _Check("a text", lambda value: isinstance(value, str) and len(value) <= 10_000)
_FILE = _Check(
    "the name of a file of the session, such as mask-1.npy",
    lambda value: isinstance(value, str) and _FILE_NAME.fullmatch(value) is not None,
)
_FILES = _Check(
    "a table of file names by modality", lambda value: isinstance(value, dict) and all(map(_FILE.holds, value.values()))
)
_MATRIX = _Check("a 4 x 4 matrix of finite numbers", _is_matrix)
_SEED = _Check("a whole number from 0 to 2^63 - 1", lambda value: _is_whole(value, 0, 2**63 - 1))
_COUNT = _Check("a whole number from 0", lambda value: _is_whole(value, 0))
_POSITIVE = _Check("a whole number from 1", lambda value: _is_whole(value, 1))
_SECONDS = _Check("a number of seconds from 0", lambda value: _is_number(value) and value >= 0)
_TABLE = _Check("a table", lambda value: isinstance(value, dict))


def _field(check: _Check, **default: Any) -> Any:
    return field(metadata={"check": check}, **default)


# Requests --------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Request:
    """``id`` is the client's choice; every answer carries it."""

    id: str = _field(_ID)


@dataclass(frozen=True, kw_only=True)
class Load(Request):
    """Makes a model ready, by its name or path, so that the next :class:`Generate` starts at once: :class:`Loaded`."""

    model: str = _field(_TEXT)


@dataclass(frozen=True, kw_only=True)
class Generate(Request):
    """Volumes for a mask, a sample for each seed: :class:`Progress`, :class:`Preview`, and a :class:`Result` a sample.

    ``mask`` is a file of the session, uint8 (k, j, i) with the values of the label scheme called ``scheme``, placed by
    ``ijk_to_ras`` (4 x 4, mm); ``name`` is what the record calls it. The worker removes the file when the request has
    ended. ``settings`` are those of :class:`MedDPMLib.inference.settings.GenerationSettings`, as its ``to_dict`` gives
    them. ``modalities`` are those wanted, None for all. A preview is made every ``preview_every`` steps, 0 for none.
    """

    model: str = _field(_TEXT)
    mask: str = _field(_FILE)
    ijk_to_ras: list[list[float]] = _field(_MATRIX)
    scheme: str = _field(_TEXT)
    name: str = _field(_TEXT, default="mask")
    seeds: list[int] = _field(_list_of(_SEED, 1, 1000), default=(0,))
    settings: dict[str, Any] = _field(_TABLE, default_factory=dict)
    modalities: list[str] | None = _field(_or_none(_list_of(_TEXT, 1, 16)), default=None)
    preview_every: int = _field(_COUNT, default=0)


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

    protocol: int = _field(_POSITIVE, default=PROTOCOL)
    pid: int = _field(_POSITIVE)
    versions: dict[str, str] = _field(_TABLE)


@dataclass(frozen=True, kw_only=True)
class Ready(Event):
    """PyTorch is imported. ``device`` and ``precision`` are what "auto" stands for, ``reason`` says why."""

    device: str = _field(_TEXT)
    precision: str = _field(_TEXT)
    reason: str = _field(_TEXT)


@dataclass(frozen=True, kw_only=True)
class Loaded(Event):
    """The model called ``model`` is loaded, which took ``seconds``."""

    id: str = _field(_ID)
    model: str = _field(_TEXT)
    seconds: float = _field(_SECONDS)


@dataclass(frozen=True, kw_only=True)
class Unloaded(Event):
    """No model is loaded any more, after idle time."""


@dataclass(frozen=True, kw_only=True)
class Progress(Event):
    """``stage`` is one of :data:`STAGES`; ``step`` of ``steps`` are done (0 of 0 before the first stage of steps).

    ``sample`` of ``samples``, from 1. ``seconds_left`` is an estimate for the whole request, None before the first.
    """

    id: str = _field(_ID)
    stage: str = _field(_one_of(STAGES))
    sample: int = _field(_POSITIVE)
    samples: int = _field(_POSITIVE)
    step: int = _field(_COUNT, default=0)
    steps: int = _field(_COUNT, default=0)
    seconds_left: float | None = _field(_or_none(_SECONDS), default=None)


@dataclass(frozen=True, kw_only=True)
class Preview(Event):
    """What forms after ``step``: the first of the modalities wanted, a float32 (k, j, i) file under its name, on the
    model's grid, placed by ``ijk_to_ras``.

    The client removes the file when it has read it, and that is what lets the next preview come. When the request
    has ended it is gone.
    """

    id: str = _field(_ID)
    sample: int = _field(_POSITIVE)
    step: int = _field(_POSITIVE)
    steps: int = _field(_POSITIVE)
    files: dict[str, str] = _field(_FILES)
    ijk_to_ras: list[list[float]] = _field(_MATRIX)


@dataclass(frozen=True, kw_only=True)
class Result(Event):
    """A sample: float32 (k, j, i) files by modality, placed by ``ijk_to_ras``, and the ``record`` of how it was made.

    The client removes the files. The request has ended with the result whose ``sample`` is ``samples``.
    """

    id: str = _field(_ID)
    sample: int = _field(_POSITIVE)
    samples: int = _field(_POSITIVE)
    files: dict[str, str] = _field(_FILES)
    ijk_to_ras: list[list[float]] = _field(_MATRIX)
    record: dict[str, Any] = _field(_TABLE)


@dataclass(frozen=True, kw_only=True)
class Error(Event):
    """The request has ended with a fault: ``message`` is a sentence for the user, ``kind`` one of :data:`ERROR_KINDS`.

    ``id`` is None for a line in which no request could be recognised, and for a fault of the start. ``code`` and
    ``values`` are those of a :class:`MedDPMError` whose remedy each face words itself, ``fact`` what is wrong.
    """

    id: str | None = _field(_or_none(_ID))
    kind: str = _field(_one_of(ERROR_KINDS))
    message: str = _field(_TEXT)
    fact: str = _field(_ANY_TEXT, default="")
    code: str = _field(_ANY_TEXT, default="")
    values: dict[str, str] = _field(_TABLE, default_factory=dict)

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

    id: str = _field(_ID)
    reason: str = _field(_one_of(CANCEL_REASONS))


@dataclass(frozen=True, kw_only=True)
class State(Event):
    """The answer to :class:`Status`: ids of the requests that run and wait, name of the model that is loaded."""

    id: str = _field(_ID)
    running: str | None = _field(_or_none(_ID))
    waiting: list[str] = _field(_list_of(_ID, 0, 10_000))
    model: str | None = _field(_or_none(_TEXT))


@dataclass(frozen=True, kw_only=True)
class Bye(Event):
    """The last line: ``reason`` is "shutdown" or "idle"."""

    reason: str = _field(_one_of(("shutdown", "idle")))


def _by_type(*classes: type) -> dict[str, type]:
    return {cls.__name__.lower(): cls for cls in classes}


_REQUESTS = _by_type(Load, Generate, Cancel, Status, Shutdown)
_EVENTS = _by_type(Hello, Ready, Loaded, Unloaded, Progress, Preview, Result, Error, Cancelled, State, Bye)


# Lines -----------------------------------------------------------------------------------------------


def encode(message: Request | Event) -> bytes:
    """``message`` as its line, with the newline; plain ASCII, which is UTF-8."""
    data = {"type": type(message).__name__.lower()}
    if isinstance(message, Request):
        data["protocol"] = PROTOCOL
    data |= {entry.name: getattr(message, entry.name) for entry in dataclasses.fields(message)}
    return json.dumps(data, allow_nan=False).encode("ascii") + b"\n"


def decode_request(line: bytes) -> Request:
    """The request in ``line``. Raises :class:`ProtocolError` for anything else; unknown fields are mistakes."""
    data = _parse(line)
    id = data.get("id") if _ID.holds(data.get("id")) else None
    try:
        if data.get("protocol") != PROTOCOL:
            raise ProtocolError(
                f"the worker speaks protocol {PROTOCOL}, the request {data.get('protocol')!r:.50}:"
                " after an update of MedDPM, start 3D Slicer again"
            )
        cls = _class_of(data, _REQUESTS)
        known = {"type", "protocol", *(entry.name for entry in dataclasses.fields(cls))}
        unknown = sorted(data.keys() - known)
        if unknown:
            raise ProtocolError(f'"{data["type"]}" has the unknown field {unknown[0]!r:.50}')
        return _build(cls, data)
    except ProtocolError as error:
        raise ProtocolError(str(error), id) from None


def decode_event(line: bytes) -> Event:
    """The event in ``line``. Raises :class:`ProtocolError` for anything else, and for a worker of another protocol."""
    data = _parse(line)
    if data.get("type") == "hello" and data.get("protocol") != PROTOCOL:
        raise ProtocolError(
            f"the worker speaks protocol {data.get('protocol')!r:.50}, this client {PROTOCOL}:"
            " after an update of MedDPM, start 3D Slicer again"
        )
    return _build(_class_of(data, _EVENTS), data)


class EventReader:
    """Puts together events from bytes that arrive in pieces."""

    def __init__(self) -> None:
        self._rest = b""
        self._begun = False
        #: Lines that came before the first event and are none: what started the worker may print, too.
        self.passed_over: list[str] = []

    def feed(self, data: bytes) -> Iterator[Event]:
        """The events that are whole now. After a :class:`ProtocolError`, ``feed(b"")`` goes on with the next line."""
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
        data = json.loads(line.decode("utf-8"), parse_constant=_refuse_constant)
    except (ValueError, RecursionError) as error:
        raise ProtocolError(f"the line is not JSON in UTF-8 ({str(error):.80})") from None
    if not isinstance(data, dict):
        raise ProtocolError("the line is not a JSON object")
    return data


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is not a number of JSON")


def _class_of(data: dict[str, Any], classes: dict[str, type]) -> type:
    kind = data.get("type")
    if not isinstance(kind, str) or kind not in classes:
        raise ProtocolError(f'"type" must be one of {", ".join(classes)}, not {kind!r:.50}')
    return classes[kind]


def _build(cls: type, data: dict[str, Any]) -> Any:
    values = {}
    for entry in dataclasses.fields(cls):
        if entry.name not in data:
            if entry.default is dataclasses.MISSING:
                raise ProtocolError(f'"{data["type"]}" lacks "{entry.name}"')
            continue
        check = entry.metadata["check"]
        if not check.holds(data[entry.name]):
            raise ProtocolError(f'"{entry.name}" must be {check.what}, not {data[entry.name]!r:.50}')
        values[entry.name] = data[entry.name]
    return cls(**values)
