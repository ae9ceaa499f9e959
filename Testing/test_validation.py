"""Rules for data from outside: what fits is read, everything else is one sentence that names the field."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from dataclasses import asdict, dataclass

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from MedDPMLib.errors import MedDPMError
from MedDPMLib.validation import (
    Rule,
    as_python,
    build,
    check_fields,
    converted,
    either,
    field,
    flag,
    increasing_pair,
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
    table_with,
    text,
    whole,
)

ANYTHING = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=8,
)

RULES = {
    "whole": whole(0, 9), "number": number(0, 1, open_high=True), "flag": flag(), "text": text(5),
    "printable": printable(5), "matching": matching("[a-z]+", "letters"), "one of": one_of("a", "b"),
    "optional": optional(whole(0)), "either": either(whole(0), list_of(whole(0), 0, 3)),
    "list": list_of(list_of(number(), 0, 2), 1, 3), "pair": increasing_pair(), "table": table(2),
    "as Python": as_python(number(0, 9)), "converted": converted(str, one_of("1", "True")),
    "table of": table_of(printable(3), flag()), "table with": table_with({"a": optional(whole(0)), "b": text()}),
}  # fmt: skip


@pytest.mark.parametrize("rule", RULES.values(), ids=RULES)
@given(value=ANYTHING)
def test_whatever_comes_is_read_once_and_for_all_or_refused_by_name(rule: Rule, value):
    try:
        taken = rule.read(value, "the value")
    except MedDPMError as error:
        assert "the value" in str(error) and len(str(error)) < 400 and not rule.fits(value)
    else:
        assert rule.fits(value) and rule.read(taken, "the value") == taken, "what was read once is read again"
        if rule is not RULES["table"]:  # whose values nothing is said of
            json.dumps(taken, allow_nan=False)


@pytest.mark.parametrize(
    ("rule", "good", "bad"),
    [
        (whole(1), [1, 2**53], [0, True, 1.0, "1", None, 2**53 + 1]),
        (whole(2, 3), [2, 3], [1, 4]),
        (number(), [0, -1.5, 999_999_999_999], [math.nan, math.inf, 1e12, 10**400, False, "1"]),
        (number(0, 1), [0, 1], [-1e-9, 1.001]),
        (number(0, 1, open_low=True, open_high=True), [0.5], [0, 1]),
        (flag(), [True, False], [0, 1, None]),
        (text(3), ["a", "abc", "\n", "\udc80"], ["", "abcd", "a\0", b"a", 3]),
        (printable(3), ["a b"], ["", " ", "a\n", "\x1b[2", "abcd"]),
        (printable(3, lines=True), ["a\nb"], ["\n", "a\r"]),
        (matching("[ab]+", "of a and b"), ["ab"], ["abc", "ab\n", "", 1]),
        (one_of("x", "y"), ["x"], ["z", "", None, ["x"]]),
        (list_of(flag(), 1, 2), [[True], (True, False)], [[], [True] * 3, "a", [1], {}]),
        (list_of(text(), 0, 3, unique=True), [[], ["a", "b"]], [["a", "a"]]),
        (increasing_pair(), [[0, 1]], [[1, 1], [2, 1], [1], [0, math.nan]]),
        (table(1), [{}, {"a": 1}], [{"a": 1, "b": 2}, [], None]),
        (table_of(matching("[0-9]", "a digit"), flag()), [{"1": True}], [{"a": True}, {"1": 1}, {1: True}]),
        (table_with({"a": flag(), "b": optional(flag())}), [{"a": True}], [{}, {"a": True, "c": 1}, {"b": True}, []]),
        (table_with({"a": flag()}, more=True), [{"a": True, "c": 1}], [{"c": 1}]),
        (table_with({"a": optional(flag())}, complete=True), [{"a": None}], [{}]),
    ],
)  # fmt: skip
def test_bounds_are_where_they_are_said_to_be(rule, good, bad):
    assert all(map(rule.fits, good))
    assert not any(map(rule.fits, bad))


@pytest.mark.parametrize("value", [3, np.int64(3), np.uint8(3), np.array(3), torch.tensor(3)])
def test_numbers_of_other_libraries_become_those_of_python(value):
    assert type(as_python(whole(1, 3)).read(value, "it")) is int
    assert type(as_python(number()).read(value, "it")) is float
    for wrong in (value + 1, np.array([3]), np.bool_(True), "3"):
        with pytest.raises(MedDPMError, match="^it must be a whole number from 1 to 3"):
            as_python(whole(1, 3)).read(wrong, "it")


def test_values_come_in_the_type_that_was_asked_for():
    taken = table_with({"n": number(), "more": list_of(number(), 0, 2, kind=list), "least": optional(flag())}).read(
        {"n": 1, "more": (1, 2)}, "it"
    )
    assert taken == {"n": 1.0, "more": [1.0, 2.0], "least": None} and isinstance(taken["n"], float)


@dataclass(frozen=True)
class Example:
    sides: tuple[int, int, int] = field(list_of(whole(1), 3, 3))
    share: float = field(number(0, 1), default=0.5)
    anything: object = None

    def __post_init__(self) -> None:
        check_fields(self)


@pytest.mark.parametrize(
    ("values", "sentence"),
    [
        ({}, 'the example lacks the field "sides"'),
        ({"sides": [1, 1, 1], "sites": 1}, 'the example has no field "sites": it has anything, share, sides'),
        ({"sides": [1, 0, 1]}, 'value 2 of the example: "sides" must be a whole number of at least 1, not 0'),
        ({"sides": [1, 1, 1], "share": "half"}, 'the example: "share" must be a number of at least 0 and at most 1'),
        ([1, 2, 3], "the example must be a table with sides, share, anything, not [1, 2, 3]"),
    ],
)  # fmt: skip
def test_a_mistake_in_a_table_is_one_sentence(values, sentence):
    with pytest.raises(MedDPMError) as raised:
        build(Example, values, "the example")
    assert str(raised.value).startswith(sentence)


def test_a_dataclass_is_checked_however_it_is_made():
    made = build(Example, {"sides": [1, 2, 3], "anything": {}}, "the example")
    assert made == Example((1, 2, 3), 0.5, {}) and build(Example, asdict(made), "the example") == made
    with pytest.raises(MedDPMError, match='^"share" must be'):
        Example((1, 2, 3), 2)


@pytest.mark.parametrize("content", ["", "{", "[1]", '{"a": NaN}', "[" * 100_000, b"\xff{}", '{"a": 1' + "0" * 5000])
def test_what_is_no_table_of_json_is_refused(content):
    with pytest.raises(MedDPMError, match="^the file is not"):
        read_json(content, "the file")


@given(st.dictionaries(st.text(), ANYTHING.filter(lambda value: "nan" not in repr(value) and "inf" not in repr(value))))
def test_tables_of_json_are_read(values):
    assert read_json(json.dumps(values), "the file") == read_json(json.dumps(values).encode(), "the file") == values


@given(ANYTHING | st.text(max_size=200) | st.just(10**5000) | st.just([10**5000]), st.integers(10, 100))
def test_what_is_quoted_is_short_and_printable(value, most):
    shown = quoted(value, most)
    assert len(shown) <= most + 2 and shown.isprintable()
    if isinstance(value, str) and value.isprintable() and len(value) <= most:
        assert shown == f'"{value}"'


def test_nothing_but_python_is_needed():
    code = "import sys, MedDPMLib.validation; sys.exit(bool({'numpy', 'torch'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
