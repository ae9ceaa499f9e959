"""Which values may a field of a recipe have? Each field carries its rule, so that a mistake is told in a sentence."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import MISSING, Field, dataclass, field, fields
from typing import Any, TypeVar

from MedDPMLib.errors import MedDPMError

T = TypeVar("T")

_RULE = "rule"


@dataclass(frozen=True)
class Rule:
    """``fits`` says whether a value may be taken, ``take`` brings it into the field's type, ``says`` is for people."""

    says: str
    fits: Callable[[Any], bool]
    take: Callable[[Any], Any] = lambda value: value


def whole(low: int, high: int = 2**53) -> Field:
    """A whole number from ``low`` to ``high``; 2^53 is the last that every reader of TOML keeps."""
    says = f"a whole number of at least {low}" if high == 2**53 else f"a whole number from {low} to {high}"
    return _ruled(Rule(says, lambda value: _is_whole(value) and low <= value <= high))


def number(low: float, high: float = math.inf, *, open_low: bool = False, open_high: bool = False) -> Field:
    """A finite number from ``low`` to ``high``, each included unless it is open."""
    says = f"a number {'above' if open_low else 'of at least'} {low:g}"
    if high < math.inf:
        says += f" and {'below' if open_high else 'at most'} {high:g}"

    def fits(value: Any) -> bool:
        if not _is_number(value):
            return False
        return (low < value if open_low else low <= value) and (value < high if open_high else value <= high)

    return _ruled(Rule(says, fits, float))


def one_of(*choices: str) -> Field:
    return _ruled(Rule(f"one of {', '.join(choices)}", lambda value: isinstance(value, str) and value in choices))


def text() -> Field:
    return _ruled(Rule("a text", lambda value: isinstance(value, str)))


def yes_or_no() -> Field:
    return _ruled(Rule("true or false", lambda value: isinstance(value, bool)))


def table() -> Field:
    return _ruled(Rule("a table", lambda value: isinstance(value, Mapping), dict))


def listed(says: str, count: int | None, entry: Callable[[Any], bool], take: Callable[[Any], Any], **more) -> Field:
    """A list of ``count`` values (None: any number from 1) of which each fits ``entry``; kept as a tuple."""

    def fits(value: Any) -> bool:
        return (
            isinstance(value, (list, tuple)) and len(value) == (count or max(1, len(value))) and all(map(entry, value))
        )

    return _ruled(Rule(says, fits, lambda value: tuple(map(take, value))), **more)


def sides(**more) -> Field:
    """Three sides of a box of voxels, in (i, j, k) order."""
    return listed("three whole numbers above 0, along i, j, k", 3, lambda n: _is_whole(n) and n > 0, int, **more)


def numbers(says: str, count: int) -> Field:
    return listed(
        says, count, lambda n: isinstance(n, (int, float)) and not isinstance(n, bool) and abs(n) < 1e30, float
    )


def texts() -> Field:
    return listed("a list of texts", None, lambda value: isinstance(value, str), str)


def checked(kind: type[T], values: Any, section: str) -> T:
    """``kind`` made of the table ``values``; :class:`MedDPMError` names section, field and what it may be.

    Fields without a rule are taken as they are: the caller has made them.
    """
    if not isinstance(values, Mapping):
        raise MedDPMError(f"{section} must be a table of fields, not {values!r:.50}")
    known = {entry.name: entry for entry in fields(kind)}
    for name in values:
        if name not in known:
            raise MedDPMError(f'{section} has no field "{name}": it has {", ".join(sorted(known))}')
    taken = {}
    for name, entry in known.items():
        if name not in values:
            if entry.default is MISSING:
                raise MedDPMError(f'{section} lacks the field "{name}"')
            continue
        rule = entry.metadata.get(_RULE)
        if rule is not None and not rule.fits(values[name]):
            raise MedDPMError(f'{section}: "{name}" must be {rule.says}, not {values[name]!r:.50}')
        taken[name] = values[name] if rule is None else rule.take(values[name])
    return kind(**taken)


def _ruled(rule: Rule, **more) -> Field:
    return field(metadata={_RULE: rule}, **more)


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) < 1e30


def _is_whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)
