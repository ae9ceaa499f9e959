"""Which fields does a label have in the data of a scheme, and a numbering, and which values are valid?"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from MedDPMLib.errors import MedDPMError
from MedDPMLib.validation import (
    Rule,
    converted,
    list_of,
    number,
    one_of,
    optional,
    printable,
    rule,
    table_of,
    table_with,
    whole,
)

#: What a label is to a model: part of a tumor, a structure of its own, or what is left inside brain or head.
ROLES = ("tumor", "structure", "rest")

#: What a label shows, where that decides what is done with it: a tumor's necrotic core, its enhancing rim, the edema
#: around it; fluid, which a tumor does not grow into; white matter, in which edema spreads.
TISSUES = ("core", "rim", "edema", "fluid", "white matter")

_FORMER_ROLES = {"tumour": "tumor"}

#: Names, titles and all other texts of a scheme.
TEXT = printable(200)


def _current_role(role: Any) -> Any:
    return _FORMER_ROLES.get(role, role) if isinstance(role, str) else role


def _pattern(value: Any, what: str) -> str:
    pattern = TEXT.read(value, what)
    try:
        re.compile(pattern)
    except (re.error, RecursionError, OverflowError) as error:
        raise MedDPMError(f"{what} must be a pattern of file names, not {pattern!r:.50} ({error})") from None
    return pattern


_CODE = table_with({"scheme": TEXT, "value": TEXT, "meaning": TEXT}, more=True)
_CHANNELS = list_of(whole(0, 255), 3, 3)
_VOLUMES = list_of(number(0), 2, 2)
_VALUE_IN_FILES = rule(
    "a whole number from 1 to 65535",
    lambda key: re.fullmatch(r"[1-9]\d{0,4}", str(key)) is not None and int(key) <= 65_535,
    int,
)

#: The fields of a label, in the order in which files are written.
LABEL_FIELDS: Mapping[str, Rule] = {
    "value": whole(1, 255),
    "name": TEXT,
    "role": optional(converted(_current_role, one_of(*ROLES))),
    "tissue": optional(one_of(*TISSUES)),
    "color": rule("red, green and blue, each a whole number from 0 to 255", _CHANNELS.fits, tuple),
    "priority": whole(0, 10_000),
    "aliases": optional(list_of(TEXT, 0, 1000)),
    "plausible_ml": optional(
        rule(
            "the least and the most volume in ml",
            lambda value: _VOLUMES.fits(value) and value[0] <= value[1],
            lambda value: tuple(map(float, value)),
        )
    ),
    "category": optional(_CODE),
    "type": optional(_CODE),
}

#: Those of a numbering.
NUMBERING_FIELDS: Mapping[str, Rule] = {
    "name": TEXT,
    "title": optional(TEXT),
    "values": table_of(_VALUE_IN_FILES, TEXT),
    "file_names": optional(list_of(Rule("a pattern of file names", _pattern), 0, 1000)),
}
