"""What can a study with so many readers and cases show? Computed before it begins."""

from __future__ import annotations

from dataclasses import dataclass

from MedDPMLib.errors import MedDPMError
from MedDPMLib.study.equivalence import expected_power

_WANTED = 0.8
_MOST_CASES, _MOST_READERS = 2000, 100


@dataclass(frozen=True)
class Variance:
    """Variance components of Obuchowski and Rockette for one treatment.

    ``reader_sd`` is the standard deviation of readers' true AUC, ``correlation`` that of two readers' errors on the
    same cases (cov2 / error variance). The defaults are typical of published reader studies.
    """

    reader_sd: float = 0.04
    correlation: float = 0.3

    def __post_init__(self) -> None:
        if self.reader_sd < 0 or not 0 <= self.correlation <= 1:
            raise MedDPMError("the readers' standard deviation is 0 or more, the correlation between 0 and 1")

    def errors(self, synthetic: int, real: int) -> tuple[float, float]:
        """(error variance, cov2) for so many cases where the AUC is 0.5 (Hanley, McNeil, Radiology 143 (1982) 29)."""
        error = (synthetic + real + 1) / (12 * synthetic * real)
        return error, self.correlation * error


@dataclass(frozen=True)
class Expectation:
    """For readers who cannot tell: the ``power`` to show equivalence, the half width of the 95 % interval, and how many
    cases of each kind, or readers instead, would give a power of 80 % (None: no number would do)."""

    power: float
    half_width: float
    cases_needed: int | None
    readers_needed: int | None


def expect(readers: int, synthetic: int, real: int, margin: float, variance: Variance = Variance()) -> Expectation:
    if readers < 2:
        raise MedDPMError("one reader says nothing about readers in general: plan with at least two")

    def power(readers: int, synthetic: int, real: int) -> tuple[float, float]:
        return expected_power(readers, *variance.errors(synthetic, real), variance.reader_sd**2, margin)

    cases = next((n for n in range(2, _MOST_CASES) if power(readers, n, n)[0] >= _WANTED), None)
    more = next((n for n in range(2, _MOST_READERS) if power(n, synthetic, real)[0] >= _WANTED), None)
    return Expectation(*power(readers, synthetic, real), cases, more)


def describe(found: Expectation, readers: int, synthetic: int, real: int, margin: float) -> list[str]:
    """In words, for the organizer."""
    lines = [
        f"{readers} readers on {synthetic} synthetic and {real} real cases: if readers cannot tell, the 95 % interval"
        f" of the AUC is expected to be 0.5 plus or minus {found.half_width:.3f}, and equivalence within {margin:g} is"
        f" shown with a probability of {100 * found.power:.0f} %",
    ]
    if found.power < _WANTED:
        options = []
        if found.cases_needed:
            options.append(f"{found.cases_needed} cases of each kind")
        if found.readers_needed:
            options.append(f"{found.readers_needed} readers")
        if options:
            lines.append(f"for 80 % it takes {' or '.join(options)}, or a wider margin")
        else:
            lines.append("for 80 % it takes more readers and more cases together, or a wider margin")
    return lines
