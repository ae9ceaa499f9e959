"""What do experiments of all kinds have in common? Arms that differ in one thing, compared on the same patients."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, ClassVar

from MedDPMLib.errors import MedDPMError
from MedDPMLib.masks.schemes import LabelScheme
from MedDPMLib.validation import either, field, list_of, number, optional, printable, text, whole

#: What an arm is trained on.
REAL, SYNTHETIC = "real", "synthetic"

#: In place of a folder: brains that are drawn by :mod:`MedDPMLib.experiment.phantoms`.
PHANTOMS = "phantoms"

#: Patients by name, or a share of them that is drawn.
_PATIENTS = either(number(0, 1, open_high=True), list_of(text(200), 1, 10_000, unique=True))


@dataclass(frozen=True)
class Figure:
    """How a figure is called, which values are ``better`` ("higher" or "lower"), with how many ``decimals``."""

    title: str
    better: str
    decimals: int


@dataclass(frozen=True, kw_only=True)
class Arm:
    """One way to train, on ``data``."""

    name: str = field(printable(60))
    data: tuple[str, ...] = (REAL,)


@dataclass(frozen=True, kw_only=True)
class Design:
    """What every experiment says. ``figures`` are measured of each of the ``subjects`` of a test case."""

    name: str
    #: Patients who are never trained on.
    test: Any = field(_PATIENTS)
    #: Patients by whom weights are chosen, where they are.
    validation: Any = field(_PATIENTS, default=0.0)
    #: By which the shares of patients are drawn, the same for all seeds.
    split_seed: int = field(whole(0))
    #: With so many real training patients, for a learning curve; 0 is all of them. Smaller sets are parts of larger.
    real_cases: tuple[int, ...] = field(list_of(whole(0), 1, 20, unique=True), default=(0,))
    seeds: tuple[int, ...] = field(list_of(whole(0), 1, 100, unique=True))
    #: The name of the arm with which the others are compared.
    reference: str = field(printable(60))
    #: Datasets as meddpm prepare writes them, or "phantoms".
    real: str | None = field(optional(text()), default=None)
    synthetic: str | None = field(optional(text()), default=None)
    #: A regular expression whose first group is the patient in the name of a case, where the name itself is not.
    patient: str | None = field(optional(text(1000)), default=None)
    arms: tuple[Any, ...]

    figures: ClassVar[Mapping[str, Figure]]
    #: What a subject is: "region".
    subject: ClassVar[str]
    #: What the report says above all.
    sentence: ClassVar[str]

    @property
    def subjects(self) -> tuple[str, ...]:
        raise NotImplementedError

    @property
    def label_scheme(self) -> LabelScheme:
        raise NotImplementedError

    @property
    def iterations(self) -> int:
        """Of one job."""
        raise NotImplementedError

    def described(self) -> dict[str, str]:
        """How the arms are trained, by what it is."""
        raise NotImplementedError

    def arm(self, name: str) -> Any:
        return next(arm for arm in self.arms if arm.name == name)

    def to_dict(self) -> dict[str, Any]:
        """As plain data for JSON."""
        return {name: value for name, value in asdict(self).items() if value is not None}


def check_arms(reference: str, names: Sequence[str]) -> None:
    """Raises :class:`MedDPMError` for arms of one name, and for a ``reference`` that is none of them."""
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise MedDPMError(f'[[arms]]: two are called "{twice[0]}": give each a name of its own')
    if reference not in names:
        raise MedDPMError(f'"reference" must be the name of an arm, one of {", ".join(names)}, not "{reference}"')
