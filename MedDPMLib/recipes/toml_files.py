"""What do a TOML file and the command line say about a recipe?"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from MedDPMLib.errors import MedDPMError
from MedDPMLib.validation import quoted

try:
    import tomllib
except ModuleNotFoundError:  # Python 3.10
    import tomli as tomllib  # type: ignore[no-redef]


def read_toml(path: Path) -> dict[str, Any]:
    """The tables of the recipe in the file ``path``; :class:`MedDPMError` if it cannot be read as TOML."""
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise MedDPMError(f"the recipe {path} cannot be read ({error.strerror}): check the path") from error
    except (ValueError, RecursionError) as error:
        raise MedDPMError(f"the recipe {path} is not TOML: {error!s:.200}") from error


def set_field(values: dict[str, Any], name: str, written: str) -> None:
    """Changes the field with the dotted ``name`` in the tables ``values``, in place, to the TOML value ``written``.

    Text needs no quotes where it is unambiguous. Whether the result is valid is checked with the rest; a table that is
    not there raises :class:`MedDPMError`.
    """
    try:
        value = tomllib.loads(f"value = {written}")["value"]
    except (ValueError, RecursionError):
        value = written.strip()  # text; where none is wanted, the rule of the field says what is
    place: Any = values
    path = name.split(".")
    for depth, key in enumerate(path):
        if isinstance(place, list):
            found = key.isdecimal() and int(key) < len(place)
            known, key = f"0 to {len(place) - 1}", int(key) if found else key  # type: ignore[assignment]
        else:
            # A field that is missing may be an optional one; unknown ones are refused with the rest.
            found = isinstance(place, dict) and (key in place or depth == len(path) - 1)
            known = ", ".join(map(str, place)) if isinstance(place, dict) else "a single value"
        if not found:
            where = ".".join(path[:depth]) or "the recipe"
            raise MedDPMError(f"{name}={written:.80}: there is no {quoted(key)} in {where}, but {known}")
        if depth < len(path) - 1:
            place = place[key]
    place[key] = value


def split_override(override: str) -> tuple[str, str]:
    """Name and value of an override, ``field=value``; :class:`MedDPMError` for anything else."""
    name, equals, written = override.partition("=")
    if not equals or not name.strip():
        raise MedDPMError(f"{quoted(override)} sets nothing: write field=value, as in training.learning_rate=1e-4")
    return name.strip(), written
