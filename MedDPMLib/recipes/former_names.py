"""What were the fields of a recipe called before? Old recipe files, and the recipes of old runs, are still read."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from MedDPMLib.validation import with_current_names

#: For each table of a recipe the former names of its fields, until version 0.1, with the current ones.
_CURRENT = {
    "training": {
        "accumulate": "gradient_accumulation_steps",
        "final_share": "min_lr_ratio",
        "gradient_norm": "max_grad_norm",
        "optimiser": "optimizer",
        "tumour_weight": "tumor_weight",
    },
    "card": {"licence": "license"},
}


def current_tables(values: Mapping[str, Any]) -> dict[str, Any]:
    """The tables ``values`` of a recipe with the current name of every field.

    Raises :class:`MedDPMError` for a field that is there under both names.
    """
    tables = {
        section: with_current_names(values[section], names, f"[{section}]")
        for section, names in _CURRENT.items()
        if section in values
    }
    return {**values, **tables}


def current_path(path: str) -> str:
    """The dotted ``path`` of a field, such as "training.accumulate", with its current name."""
    section, dot, name = path.partition(".")
    return section + dot + _CURRENT.get(section, {}).get(name, name)
