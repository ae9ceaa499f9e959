"""What may be said of a result? Sentences that follow from intervals and the margin that was stated, and no others.

That a test is not significant is never taken for a result: without equivalence shown within the margin, the study says
that it cannot decide.
"""

from __future__ import annotations

from dataclasses import dataclass

from MedDPMLib.study.equivalence import Equivalence
from MedDPMLib.study.mrmc import Estimate


@dataclass(frozen=True)
class Conclusion:
    """``verdict`` is equivalent, small difference, difference or undecided; ``words`` are for people."""

    verdict: str
    words: str


def conclude(what: str, mean: Estimate, found: Equivalence | None) -> Conclusion:
    """``what`` is "AUC" or "accuracy"; ``found`` is None with one reader."""
    low, high = within_scale(mean.ci)
    interval = f"{what} {mean.value:.3f}, 95 % interval {low:.3f} to {high:.3f}"
    if found is None:
        return Conclusion(
            "undecided",
            f"One reader alone ({interval} for this reader on other cases): nothing follows for other readers.",
        )
    margin = f"the margin of {found.margin:g} that was stated before the study"
    if found.shown and not found.differs:
        return Conclusion(
            "equivalent",
            f"Readers' {what} is equivalent to chance within {margin} ({interval}; equivalence p = {p(found.p)})."
            " A difference smaller than the margin may exist.",
        )
    if found.shown:
        side = "better" if mean.value > found.chance else "worse"
        return Conclusion(
            "small difference",
            f"Readers do {side} than chance, but by less than {margin} ({interval}; equivalence p = {p(found.p)}).",
        )
    if found.differs and mean.value > found.chance:
        return Conclusion("difference", f"Readers tell synthetic from real better than chance ({interval}).")
    if found.differs:
        return Conclusion(
            "difference",
            f"Readers take synthetic for real, and real for synthetic, more often than chance ({interval}): the classes"
            " differ visibly, in a way that readers misread.",
        )
    return Conclusion(
        "undecided",
        f"The study cannot decide ({interval}): it shows neither that readers tell the classes apart nor that they do"
        f" no better than chance within {margin} (equivalence p = {p(found.p)}). More readers or cases are needed.",
    )


def within_scale(ci: tuple[float, float]) -> tuple[float, float]:
    """An interval as it is shown: AUC and accuracy lie between 0 and 1."""
    return max(0.0, ci[0]), min(1.0, ci[1])


def p(value: float) -> str:
    return "< 0.001" if value < 0.001 else f"{value:.3f}"
