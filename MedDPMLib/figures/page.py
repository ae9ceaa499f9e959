"""How does a report become one HTML page that opens anywhere, without a network?"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from MedDPMLib.runtime.paths import RESOURCES


def render(template: str, filters: Mapping[str, Callable], **values: Any) -> str:
    """The page of ``template`` (a path below resources), which has the style of all reports as ``style``.

    Everything is escaped but what the template declares safe: names and reasons come from people.
    """
    from jinja2 import Environment, StrictUndefined

    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    environment.filters |= filters
    style = (RESOURCES / "report" / "style.css").read_text(encoding="utf-8")
    source = (RESOURCES / template).read_text(encoding="utf-8")
    return environment.from_string(source).render(style=style, **values)
