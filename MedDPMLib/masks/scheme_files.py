"""How is a label scheme read from a file of one's own, and what is wrong with the file, line by line?

A file is TOML, or the JSON of the schemes that ship with the package. Only values and names of labels have to be
given: colors, priorities and titles that are left out are filled in. See docs/labels.md.
"""

from __future__ import annotations

import colorsys
import json
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from json.decoder import JSONObject  # type: ignore[attr-defined]
from json.scanner import py_make_scanner  # type: ignore[attr-defined]
from pathlib import Path
from typing import Any

import numpy as np

from MedDPMLib.errors import MedDPMError
from MedDPMLib.masks.scheme_fields import LABEL_FIELDS, NUMBERING_FIELDS
from MedDPMLib.masks.schemes import LabelScheme, load_scheme, read_convention, read_label, scheme_names
from MedDPMLib.validation import Rule, quoted

try:
    import tomllib
except ModuleNotFoundError:  # Python 3.10
    import tomli as tomllib  # type: ignore[no-redef]

SUFFIXES = (".toml", ".json")

#: A scheme has at most 255 labels.
_LONGEST = 2_000_000

#: Fields of a scheme. A misspelled one, as of a label or a numbering, would be passed over.
_FIELDS = ("name", "title", "own_numbering", "labels", "numberings")

#: Labels whose priorities are left out win over each other in the order of these roles, then of the file.
_ORDER = {"tumor": 0, "rest": 2}

#: Colors (red, green, blue) that differ less are taken for one another on a screen.
_LEAST_DIFFERENCE = 40


@dataclass(frozen=True)
class Problem:
    """What is wrong with a file, and in which ``line`` (from 1; None: in no one). A ``warning`` does not keep it from
    being used."""

    line: int | None
    text: str
    is_warning: bool = False

    def __str__(self) -> str:
        return f"line {self.line}: {self.text}" if self.line else self.text


def find_scheme(name_or_path: str | os.PathLike) -> LabelScheme:
    """The scheme of that name (:func:`scheme_names`), or the one in that file, see :func:`read_scheme`."""
    if Path(name_or_path).suffix.lower() in SUFFIXES:
        return read_scheme(name_or_path)
    if str(name_or_path) in scheme_names():
        return load_scheme(str(name_or_path))
    raise MedDPMError(
        f"there is no label scheme {quoted(name_or_path, 200)}: use one of {', '.join(scheme_names())}, or"
        " the path of a file"
        " (.toml or .json; meddpm labels new writes one)"
    )


def read_scheme(path: str | os.PathLike) -> LabelScheme:
    """The scheme in the file ``path``. :class:`MedDPMError` names the first mistake, its line and how many follow."""
    scheme, problems = check_scheme(path)
    errors = [problem for problem in problems if not problem.is_warning]
    if errors:
        more = f" (and {len(errors) - 1} more: meddpm labels check lists them)" if len(errors) > 1 else ""
        raise MedDPMError(f"{path}, {errors[0]}{more}" if errors[0].line else f"{path}: {errors[0]}{more}")
    assert scheme is not None
    return scheme


def check_scheme(path: str | os.PathLike) -> tuple[LabelScheme | None, list[Problem]]:
    """The scheme in the file ``path``, None if it cannot be used, and everything that is wrong with it, by line.

    Raises :class:`MedDPMError` for a file that cannot be read at all.
    """
    path = Path(path)
    try:
        if path.stat().st_size > _LONGEST:
            raise MedDPMError(f"{path} is too large for a label scheme")
        text = path.read_bytes().decode("utf-8-sig")
    except OSError as error:
        raise MedDPMError(f"{path} cannot be read ({error.strerror}): check the path") from error
    except UnicodeDecodeError as error:
        raise MedDPMError(f"{path} is not text in UTF-8: it is no label scheme") from error
    try:
        data, lines = _parsed(text, path)
    except tomllib.TOMLDecodeError as error:
        at = re.search(r"\(at line (\d+), column \d+\)", str(error))
        what = re.sub(r" \(at .*", "", str(error))
        return None, [Problem(int(at[1]) if at else len(text.splitlines()), f"this is not TOML: {what}")]
    except json.JSONDecodeError as error:
        return None, [Problem(error.lineno, f"this is not JSON: {error.msg}")]
    except (ValueError, RecursionError) as error:
        return None, [Problem(None, f"it is neither TOML nor JSON ({quoted(error, 80)})")]
    return _checked(data, path.stem, lines)


def completed(data: dict[str, Any], stem: str) -> dict[str, Any]:
    """``data`` of a scheme, with what may be left out filled in: names after ``stem``, colors, priorities."""
    labels = [dict(label) if isinstance(label, dict) else label for label in data.get("labels", [])]
    tables = [label for label in labels if isinstance(label, dict)]
    if not any("priority" in label for label in tables):
        ranked = sorted(tables, key=lambda label: _ORDER.get(str(label.get("role")), 1))
        for priority, label in enumerate(ranked, 1):
            label["priority"] = priority
    for number, label in enumerate(tables):
        label.setdefault("color", list(_color(number)))
    name = data.get("name", stem)
    own = {"name": name, "title": data.get("title", name), "own_numbering": data.get("own_numbering", name)}
    return {**data, **own, "labels": labels}


# Checking --------------------------------------------------------------------------------------------


class _Lines:
    """In which line something of a file stands."""

    def __init__(self, text: str, starts: dict[str, list[int]]) -> None:
        self._text = text.splitlines()
        self._starts = starts  # lines, from 1, by the name of a list, of its tables

    def of(self, where: str, index: int, key: str | None = None) -> int | None:
        """The line of the ``key`` of table ``index`` in the list ``where``, or else of the table itself."""
        starts = self._starts.get(where, [])
        if index >= len(starts):
            return self.top(where)
        every = sorted(line for lines in self._starts.values() for line in lines)
        start = starts[index]
        end = next((line for line in every if line > start), len(self._text) + 1)
        for line in range(start, end):
            if key is not None and _names(self._text[line - 1], key):
                return line
        return start

    def top(self, key: str) -> int | None:
        return next((number for number, line in enumerate(self._text, 1) if _names(line, key)), None)


def _names(line: str, key: str) -> bool:
    return re.search(rf'(^|[{{,\[])\s*"?{re.escape(key)}"?\s*[=:\].]', line) is not None


def _checked(data: Any, stem: str, lines: _Lines) -> tuple[LabelScheme | None, list[Problem]]:
    if not isinstance(data, dict) or not isinstance(data.get("labels"), list) or not data["labels"]:
        return None, [Problem(None, "it has no labels: a scheme has a table [[labels]] with value and name for each")]
    problems = [
        Problem(lines.top(key), f'there is no field "{key:.50}": a scheme has {", ".join(_FIELDS)}')
        for key in data
        if key not in _FIELDS
    ]
    whole = completed(data, stem)
    labels = {}
    for index, entry in enumerate(whole["labels"]):
        label, found = _checked_label(entry, index, lines)
        problems += found
        if label is not None:
            labels[index] = label
    problems += _twice(labels, lines)
    problems += _checked_numberings(whole, _names_in(whole["labels"]), lines)
    scheme = None
    if not problems:
        try:
            scheme = LabelScheme.from_dict(whole)
        except MedDPMError as error:
            problems.append(Problem(_line_of(str(error), lines), str(error)))
    problems += _odd(labels, lines)
    if scheme is not None and scheme.name in scheme_names() and scheme != load_scheme(scheme.name):
        text = f'"{scheme.name}" is the name of a scheme with other labels that comes with MedDPM: choose another one'
        problems.append(Problem(lines.top("name"), text, is_warning=True))
    return scheme, sorted(problems, key=lambda problem: (problem.line or 0, problem.is_warning))


def _names_in(entries: list) -> set[str]:
    """Names and aliases in the tables of labels, in small letters; of labels with another mistake, too."""
    tables = [entry for entry in entries if isinstance(entry, dict)]
    aliases = [entry["aliases"] for entry in tables if isinstance(entry.get("aliases"), list)]
    texts = [*(entry.get("name") for entry in tables), *(alias for one in aliases for alias in one)]
    return {text.casefold() for text in texts if isinstance(text, str)}


def _checked_label(entry: Any, index: int, lines: _Lines) -> tuple[Any, list[Problem]]:
    if not isinstance(entry, dict):
        return None, [Problem(lines.of("labels", index), f"a label is a table, not {quoted(entry)}")]
    known = ", ".join(LABEL_FIELDS)
    problems = [
        Problem(lines.of("labels", index, key), f'a label has no field "{key:.50}": it has {known}')
        for key in entry
        if key not in LABEL_FIELDS
    ]
    try:
        return read_label(entry, "the scheme"), problems
    except MedDPMError as error:
        return None, [
            *problems,
            Problem(lines.of("labels", index, _wrong_field(entry, LABEL_FIELDS) or "name"), str(error)),
        ]


def _checked_numberings(data: dict[str, Any], names: set[str], lines: _Lines) -> list[Problem]:
    listed = data.get("numberings", [])
    if not isinstance(listed, list):
        return [Problem(lines.top("numberings"), "numberings are a list of tables: [[numberings]]")]
    problems: list[Problem] = []
    known = {data["own_numbering"]} if isinstance(data["own_numbering"], str) else set()
    for index, entry in enumerate(listed):
        if isinstance(entry, dict):
            problems += [
                Problem(
                    lines.of("numberings", index, key),
                    f'a numbering has no field "{key:.50}": it has {", ".join(NUMBERING_FIELDS)}',
                )
                for key in entry
                if key not in NUMBERING_FIELDS
            ]
        try:
            name = read_convention(entry, names, "the scheme").name
        except MedDPMError as error:
            at = re.search(
                r"the value (\d+) is called|\"values\": \"(\d+)\" must|each name in .*, not ['\"](.+)['\"]$", str(error)
            )
            key = next(filter(None, at.groups())) if at else _wrong_field(entry, NUMBERING_FIELDS)
            problems.append(Problem(lines.of("numberings", index, key), str(error)))
            continue
        if name in known:
            text = f'there is another numbering "{name}": each, and the scheme\'s own, needs its own name'
            problems.append(Problem(lines.of("numberings", index, "name"), text))
        known.add(name)
    return problems


def _twice(labels: dict[int, Any], lines: _Lines) -> list[Problem]:
    """Labels that cannot be distinguished: two of one value, name or priority, two rests."""
    problems = []
    for what in ("value", "name", "priority"):
        seen: dict[Any, int] = {}
        for index, label in labels.items():
            key = getattr(label, what)
            key = key.casefold() if what == "name" else key
            if key in seen:
                first = lines.of("labels", seen[key], what)
                text = f'the {what} {getattr(label, what)} of "{label.name}" is also that of the label in line {first}'
                problems.append(Problem(lines.of("labels", index, what), text))
            seen.setdefault(key, index)
    rests = [(index, label) for index, label in labels.items() if label.role == "rest"]
    for index, label in rests[1:]:
        text = f'only one label can have the role "rest": "{label.name}" and "{rests[0][1].name}" have it'
        problems.append(Problem(lines.of("labels", index, "role"), text))
    return problems


def _odd(labels: dict[int, Any], lines: _Lines) -> list[Problem]:
    """What can be used, but is hardly meant: names that mean two labels, colors that look alike."""
    problems: list[Problem] = []
    names: dict[str, int] = {}
    for index, label in labels.items():
        for name in (label.name, *label.aliases):
            other = names.setdefault(name.strip().casefold(), index)
            if labels[other].name.casefold() != label.name.casefold():
                text = f'"{name}" can mean "{labels[other].name}" and "{label.name}": the one listed first is taken'
                problems.append(Problem(lines.of("labels", index, "aliases"), text, is_warning=True))
    entries = list(labels.items())
    for number, (index, label) in enumerate(entries):
        for _, other in entries[:number]:
            if np.linalg.norm(np.subtract(label.color, other.color)) < _LEAST_DIFFERENCE:
                text = f'the colors of "{label.name}" and "{other.name}" can hardly be distinguished'
                problems.append(Problem(lines.of("labels", index, "color"), text, is_warning=True))
                break
    return problems


def _wrong_field(entry: Any, fields: Mapping[str, Rule]) -> str | None:
    """The first of the ``fields`` whose value in the table ``entry`` is invalid; None if one is missing."""
    there = [key for key in fields if isinstance(entry, dict) and key in entry]
    return next((key for key in there if not fields[key].fits(entry[key])), None)


def _line_of(message: str, lines: _Lines) -> int | None:
    return next((lines.top(key) for key in _FIELDS if key in message), None)


# Reading ---------------------------------------------------------------------------------------------


class _Located(dict):
    """A table of JSON that knows where in the text it begins."""

    start: int


class _LocatingDecoder(json.JSONDecoder):
    def __init__(self) -> None:
        super().__init__(parse_constant=_refuse_constant)
        self.parse_object = self._object
        self.scan_once = py_make_scanner(self)

    def _object(self, place: tuple[str, int], *args: Any) -> tuple[_Located, int]:
        table, end = JSONObject(place, *args)
        located = _Located(table)
        located.start = place[1]
        return located, end


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is not a number of JSON")


def _parsed(text: str, path: Path) -> tuple[Any, _Lines]:
    starts: dict[str, list[int]] = {}
    if path.suffix.lower() == ".json":
        data = _LocatingDecoder().decode(text)
        for where in ("labels", "numberings"):
            tables = data.get(where, []) if isinstance(data, dict) else []
            if isinstance(tables, list):
                starts[where] = [text.count("\n", 0, t.start) + 1 if isinstance(t, _Located) else 1 for t in tables]
        return data, _Lines(text, starts)
    inside = None  # the list whose tables are written in braces, one a line
    for number, line in enumerate(text.splitlines(), 1):
        if header := re.match(r"\s*\[\[\s*\"?(\w+)\"?\s*\]\]", line):
            starts.setdefault(header[1], []).append(number)
        elif opened := re.match(r"\s*(labels|numberings)\s*=\s*\[", line):
            inside = opened[1]
        elif line.lstrip().startswith("["):
            inside = None
        if inside and re.match(r"(.*=\s*\[)?\s*\{", line):
            starts.setdefault(inside, []).append(number)
    return tomllib.loads(text), _Lines(text, starts)


def _color(number: int) -> tuple[int, int, int]:
    """The color of label ``number``, from 0: hues by the golden ratio, in three rounds of brightness."""
    hue = (0.02 + number * 0.618034) % 1
    saturation, value = ((0.75, 0.95), (0.55, 0.7), (0.95, 0.6))[number // 8 % 3]
    red, green, blue = (round(255 * part) for part in colorsys.hsv_to_rgb(hue, saturation, value))
    return red, green, blue


# Writing ---------------------------------------------------------------------------------------------


def scheme_toml(scheme: LabelScheme, remarks: Sequence[str] = ()) -> str:
    """``scheme`` as the text of a TOML file that :func:`read_scheme` reads; ``remarks`` become comments."""
    lines = [*(f"# {remark}" for remark in remarks), ""] if remarks else []
    lines += [_line("name", scheme.name), _line("title", scheme.title), _line("own_numbering", scheme.own_numbering)]
    for data in scheme.to_dict()["labels"]:
        lines += ["", "[[labels]]"]
        lines += [_line(key, data[key]) for key in LABEL_FIELDS if key in data and data[key] != []]
    for convention in scheme.conventions:
        lines += ["", "[[numberings]]", _line("name", convention.name), _line("title", convention.title)]
        if convention.file_names:
            lines.append(_line("file_names", list(convention.file_names)))
        lines += ["[numberings.values]", *(_line(str(value), name) for value, name in convention.meanings)]
    return "\n".join(lines) + "\n"


def _line(key: str, value: Any) -> str:
    return f"{key} = {toml_value(value)}"


def toml_value(value: Any) -> str:
    """``value`` (texts, numbers, lists and tables of such) as TOML writes it in one line."""
    if isinstance(value, dict):
        return "{ " + ", ".join(_line(key, inner) for key, inner in value.items()) + " }"
    if isinstance(value, (list, tuple)):
        return "[" + ", ".join(map(toml_value, value)) + "]"
    # A text of JSON is one of TOML: what may be shown holds no control characters.
    return json.dumps(value, ensure_ascii=False)
