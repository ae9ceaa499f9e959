"""Is this value valid? The one way in which data from files, pipes and users are checked.

A :class:`Rule` describes the valid values in words, and reads a value. The fields of a dataclass carry rules
(:func:`field`); :func:`build` creates one from a table, :func:`check_fields` validates one that was created directly.
An invalid value raises :class:`MedDPMError` with a sentence that names the field and its valid values. Needs only the
standard library: label schemes and model cards are read before any package is installed.
"""

from __future__ import annotations

import dataclasses
import json
import math
import os
import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any, TypeVar

from MedDPMLib.errors import MedDPMError

T = TypeVar("T")

#: No number in use comes near: the square of a larger one would overflow float32.
_MAX_NUMBER = 1e12

#: The last whole number that every reader of JSON and TOML keeps.
_MAX_WHOLE = 2**53

_RULE = "rule"


@dataclasses.dataclass(frozen=True)
class Rule:
    """``says`` completes "must be"; ``read(value, what)`` gives the value to use, and calls it ``what`` if it is wrong.

    ``read`` raises :class:`MedDPMError` for a value that does not fit.
    """

    says: str
    read: Callable[[Any, str], Any]

    def fits(self, value: object) -> bool:
        try:
            self.read(value, "")
        except MedDPMError:
            return False
        return True


def rule(says: str, fits: Callable[[Any], bool], take: Callable[[Any], Any] = lambda value: value) -> Rule:
    """The rule that ``fits`` decides; ``take`` brings a value that fits into the wanted type."""

    def read(value: Any, what: str) -> Any:
        if not fits(value):
            raise _wrong(what, says, value)
        return take(value)

    return Rule(says, read)


# Single values ---------------------------------------------------------------------------------------


def whole(low: int, high: int = _MAX_WHOLE) -> Rule:
    """A whole number from ``low`` to ``high``, both included."""
    says = f"a whole number of at least {low}" if high == _MAX_WHOLE else f"a whole number from {low} to {high}"
    return rule(says, lambda value: isinstance(value, int) and not isinstance(value, bool) and low <= value <= high)


def number(low: float = -math.inf, high: float = math.inf, *, open_low: bool = False, open_high: bool = False) -> Rule:
    """A finite number from ``low`` to ``high``, each included unless it is open; read as a float."""
    limits = []
    if low > -math.inf:
        limits.append(f"{'above' if open_low else 'of at least'} {low:g}")
    if high < math.inf:
        limits.append(f"{'below' if open_high else 'at most'} {high:g}")

    def fits(value: Any) -> bool:
        # NaN is smaller than nothing.
        if not isinstance(value, (int, float)) or isinstance(value, bool) or not abs(value) < _MAX_NUMBER:
            return False
        return (low < value if open_low else low <= value) and (value < high if open_high else value <= high)

    return rule(f"a number {' and '.join(limits)}" if limits else "a finite number", fits, float)


def flag() -> Rule:
    return rule("true or false", lambda value: isinstance(value, bool))


def text(longest: int = 10_000, *, least: int = 1) -> Rule:
    """Any text of ``least`` to ``longest`` characters without NUL, as paths and messages are."""
    return rule(
        f"a text of {least} to {longest:,} characters",
        lambda value: isinstance(value, str) and least <= len(value) <= longest and "\0" not in value,
    )


def printable(longest: int, *, lines: bool = False) -> Rule:
    """A text that may be shown: no control characters, which would reach a terminal, but line breaks if ``lines``."""

    def fits(value: Any) -> bool:
        if not isinstance(value, str) or not value.strip() or len(value) > longest:
            return False
        return (value.replace("\n", " ") if lines else value).isprintable()

    return rule(f"a printable text of 1 to {longest:,} characters", fits)


def matching(pattern: str, says: str) -> Rule:
    """A text that ``pattern`` matches from end to end."""
    compiled = re.compile(pattern)
    return rule(says, lambda value: isinstance(value, str) and compiled.fullmatch(value) is not None)


def one_of(*choices: str) -> Rule:
    return rule(f"one of {', '.join(choices)}", lambda value: isinstance(value, str) and value in choices)


def optional(inner: Rule) -> Rule:
    """None, or what ``inner`` says."""
    return Rule(f"{inner.says} or null", lambda value, what: None if value is None else inner.read(value, what))


def either(first: Rule, second: Rule) -> Rule:
    """What ``first`` says or, if it does not fit, what ``second`` says."""
    says = f"{first.says} or {second.says}"

    def read(value: Any, what: str) -> Any:
        for inner in (first, second):
            if inner.fits(value):
                return inner.read(value, what)
        raise _wrong(what, says, value)

    return Rule(says, read)


def converted(convert: Callable[[Any], Any], inner: Rule) -> Rule:
    """What ``inner`` says of what ``convert`` makes of a value."""
    return Rule(inner.says, lambda value, what: inner.read(convert(value), what))


def as_python(inner: Rule) -> Rule:
    """What ``inner`` says of a Python number, also where NumPy or PyTorch made it."""
    return converted(lambda value: value.item() if getattr(value, "shape", None) == () else value, inner)


# Lists and tables ------------------------------------------------------------------------------------


def list_of(entry: Rule, low: int, high: int, *, kind: Callable[[Iterable], Any] = tuple, unique: bool = False) -> Rule:
    """A list (or tuple) of ``low`` to ``high`` values of which each fits ``entry``; read as ``kind``."""
    count = f"{low}" if low == high else f"{low} to {high}"
    says = f"a list of {count} {'different ' if unique else ''}values, each {entry.says}"

    def read(value: Any, what: str) -> Any:
        if not isinstance(value, (list, tuple)) or not low <= len(value) <= high:
            raise _wrong(what, says, value)
        taken = [entry.read(each, f"value {number} of {what}") for number, each in enumerate(value, 1)]
        if unique and any(each in taken[:index] for index, each in enumerate(taken)):
            raise _wrong(what, says, value)
        return kind(taken)

    return Rule(says, read)


def increasing_pair() -> Rule:
    """Two finite numbers, the second above the first; read as a tuple of floats."""
    pair = list_of(number(), 2, 2)
    says = "a lower and a higher number"

    def read(value: Any, what: str) -> tuple[float, float]:
        low, high = pair.read(value, what)
        if low >= high:
            raise _wrong(what, says, value)
        return low, high

    return Rule(says, read)


def table(longest: int = 10_000) -> Rule:
    """Any table of at most ``longest`` entries; read as a dict."""
    return rule("a table", lambda value: isinstance(value, Mapping) and len(value) <= longest, dict)


def table_of(key: Rule, value: Rule, longest: int = 1000) -> Rule:
    """A table of at most ``longest`` entries, whose keys fit ``key`` and whose values fit ``value``; read as a dict."""
    any_table = table(longest)

    def read(entries: Any, what: str) -> dict:
        return {
            key.read(name, f"each name in {what}"): value.read(entry, f"{what}: {quoted(name)}")
            for name, entry in any_table.read(entries, what).items()
        }

    return Rule("a table", read)


def table_with(rules: Mapping[str, Rule], *, more: bool = False, complete: bool = False) -> Rule:
    """A table with exactly the fields of ``rules``, each fitting its own, or with others if ``more``; a dict of them.

    A field whose rule takes None may be missing, and is None then, unless the table has to be ``complete``.
    """
    required = {name for name, inner in rules.items() if complete or not inner.fits(None)}

    def read(values: Any, what: str) -> dict[str, Any]:
        return read_fields(values, what, rules, required, more)

    return Rule(f"a table with {', '.join(rules)}", lambda values, what: dict.fromkeys(rules) | read(values, what))


def read_fields(
    values: object, where: str, rules: Mapping[str, Rule | None], required: Iterable[str], more: bool = False
) -> dict[str, Any]:
    """The ``values`` of a table as their ``rules`` read them (None: as they are); ``where`` names the table.

    Fields that are missing, though ``required``, and unknown ones, unless ``more`` of them are passed over, raise
    :class:`MedDPMError`.
    """
    if not isinstance(values, Mapping):
        raise _wrong(where, f"a table with {', '.join(rules)}", values)
    for name in values:
        if name not in rules and not more:
            raise MedDPMError(f"{where} has no field {quoted(name)}: it has {', '.join(sorted(rules))}")
    taken = {}
    for name, inner in rules.items():
        if name in values:
            value = values[name]
            taken[name] = value if inner is None else inner.read(value, f'{where}: "{name}"')
        elif name in required:
            raise MedDPMError(f'{where} lacks the field "{name}"')
    return taken


def with_current_names(values: object, current: Mapping[str, str], where: str) -> Any:
    """The ``values`` of a table, which ``where`` names, with the current name of each field that has its former name.

    ``current`` pairs former names with current ones. What is no table comes back as it is, for a rule to report.
    Raises :class:`MedDPMError` for a field that is there under both names.
    """
    if not isinstance(values, Mapping):
        return values
    for former, name in current.items():
        if former in values and name in values:
            raise MedDPMError(f'{where}: {quoted(former)} is the former name of "{name}": remove one of them')
    return {current.get(name, name): value for name, value in values.items()}


# Dataclasses -----------------------------------------------------------------------------------------


def field(rule: Rule, *, metadata: Mapping[str, Any] | None = None, **options: Any) -> Any:
    """The field of a dataclass that holds what ``rule`` says; all else is as for :func:`dataclasses.field`."""
    return dataclasses.field(metadata={**(metadata or {}), _RULE: rule}, **options)


def build(cls: type[T], values: object, where: str, *, more: bool = False) -> T:
    """The dataclass ``cls`` made of the table ``values``, which ``where`` names; :class:`MedDPMError` for a mistake.

    Fields without a rule are taken as they are: the caller has made them. With ``more``, unknown ones are passed over.
    """
    entries = dataclasses.fields(cls)  # type: ignore[arg-type]
    missing = dataclasses.MISSING
    required = {entry.name for entry in entries if entry.default is missing and entry.default_factory is missing}
    rules = {entry.name: entry.metadata.get(_RULE) for entry in entries}
    return cls(**read_fields(values, where, rules, required, more))


def check_fields(made: Any) -> None:
    """Reads each field of the dataclass ``made`` by its rule, in place: for the ``__post_init__`` of a frozen one."""
    for entry in dataclasses.fields(made):
        inner = entry.metadata.get(_RULE)
        if inner is not None:
            object.__setattr__(made, entry.name, inner.read(getattr(made, entry.name), f'"{entry.name}"'))


# JSON ------------------------------------------------------------------------------------------------


def read_json(content: str | bytes, what: str) -> dict[str, Any]:
    """The table in a JSON text or its UTF-8 bytes; :class:`MedDPMError`, which calls it ``what``, for anything else."""
    try:
        decoded = content if isinstance(content, str) else content.decode("utf-8")
        values = json.loads(decoded, parse_constant=_refuse_constant)
    except (ValueError, RecursionError) as error:
        raise MedDPMError(f"{what} is not JSON in UTF-8 ({str(error):.80}): it is damaged") from None
    if not isinstance(values, dict):
        raise MedDPMError(f"{what} is not a JSON object, but {quoted(values)}: it is damaged")
    return values


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is not a number of JSON")


def _wrong(what: str, says: str, value: object) -> MedDPMError:
    return MedDPMError(f"{what} must be {says}, not {quoted(value)}")


def quoted(value: object, most: int = 50) -> str:
    """``value``, which comes from outside, as a message may quote it: at most ``most`` characters, all printable."""
    value = str(value) if isinstance(value, os.PathLike) else value
    if isinstance(value, str) and value.isprintable():
        return f'"{_shortened(value, most)}"'
    try:
        return _shortened(repr(value), most)
    except (ValueError, RecursionError):  # an integer of thousands of digits, or what holds one, or itself
        return _shortened(f"a very long {type(value).__name__}", most)


def _shortened(shown: str, most: int) -> str:
    return shown if len(shown) <= most else f"{shown[: most - 3]}..."
