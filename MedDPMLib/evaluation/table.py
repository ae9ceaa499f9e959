"""What is one figure of an evaluation? A value that is never without its interval, its floor and its N."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from MedDPMLib.metrics.intervals import Mean


@dataclass(frozen=True)
class Figure:
    """``value`` of the figure ``name`` (None: not defined, ``note`` says why), in ``group`` of the table.

    ``ci`` is its 95 % interval by ``method``, ``floor`` what real against real has (with ``floor_ci``); ``n`` says of
    how many, ``range`` what can be, and ``better`` is "lower", "higher" or "like real".
    """

    group: str
    name: str
    subject: str
    value: float | None
    better: str
    range: str
    n: str
    ci: tuple[float, float] | None = None
    method: str = ""
    floor: float | None = None
    floor_ci: tuple[float, float] | None = None
    note: str = ""
    exploratory: bool = False

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def of_mean(mean: Mean | None, what: str, **fields: Any) -> Figure:
    """The figure of a mean over groups of cases, ``what`` they are; not defined for None."""
    if mean is None:
        return Figure(value=None, n=f"0 {what}", note=fields.pop("note", "") or f"there are no {what}", **fields)
    n = f"{mean.count} {what}" + (f" of {mean.groups} masks or patients" if mean.groups != mean.count else "")
    note = fields.pop("note", "")
    if mean.ci is None:
        note = "; ".join(filter(None, [note, "too few for an interval"]))
    return Figure(value=mean.value, ci=mean.ci, method="bootstrap (BCa)" if mean.ci else "", n=n, note=note, **fields)


def formatted(value: float | None, ci: Sequence[float] | None = None) -> str:
    """A value with three significant digits or so, and its interval."""
    if value is None:
        return "not defined"
    text = number(value)
    return f"{text} ({number(ci[0])} to {number(ci[1])})" if ci is not None else text


def number(value: float) -> str:
    if value == 0 or 0.01 <= abs(value) < 1000:
        return f"{value:.3f}"
    return f"{value:.2e}"
