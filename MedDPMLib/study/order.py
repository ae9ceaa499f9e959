"""In which order does each reader see the cases? Seeded, balanced over positions, with repeats and sides."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass

import numpy as np

from MedDPMLib.errors import MedDPMError
from MedDPMLib.study.definition import Sessions, Tasks

SINGLE, PAIR = "single", "pair"

#: Random orders of which the best balanced one is taken.
_CANDIDATES = 200


@dataclass(frozen=True)
class Presentation:
    """One screen: ``cases`` are one case, or for a pair the left and the right one.

    ``answer`` is known for training alone, where it is shown after the reader's: 1 (synthetic) or 0 for a single case,
    and for a pair the side (0 left, 1 right) of the synthetic one.
    """

    number: int
    session: int
    kind: str
    cases: tuple[str, ...]
    training: bool = False
    answer: int | None = None

    def to_dict(self) -> dict:
        return asdict(self)

    @classmethod
    def from_dict(cls, stored: Mapping) -> Presentation:
        """Raises ValueError or TypeError for what :meth:`to_dict` does not give."""
        one = cls(**{**stored, "cases": tuple(stored["cases"])})
        numbers = (one.number, one.session, 0 if one.answer is None else one.answer)
        if not all(isinstance(number, int) and number >= 0 for number in numbers) or one.kind not in (SINGLE, PAIR):
            raise ValueError("a presentation is damaged")
        if len(one.cases) != (2 if one.kind == PAIR else 1) or not all(map(_names_case, one.cases)):
            raise ValueError("a case is damaged")
        return one


def _names_case(case: object) -> bool:
    """Whether ``case`` is the name of a folder of cases, and no path to another place."""
    return isinstance(case, str) and case.isalnum() and len(case) < 100


@dataclass(frozen=True)
class Material:
    """What is shown: ``truth`` case -> 1 for synthetic, ``training`` the cases for training alone, ``pairs`` (real,
    synthetic)."""

    truth: Mapping[str, int]
    training: Sequence[str]
    pairs: Sequence[tuple[str, str]]


def orders(
    material: Material, readers: int, tasks: Tasks, sessions: Sessions, rng: np.random.Generator
) -> list[list[Presentation]]:
    """The presentations of each reader.

    Training comes first, then single cases, then pairs. Every case comes once, and the share of repeats a second time,
    in a later session if there is one and else as far apart as can be. Over readers a case comes early as often as
    late, and in each order the classes lie alike.
    """
    singles = [case for case in material.truth if case not in set(material.training)]
    asked_singles = singles if tasks.real_or_synthetic or tasks.likert else []
    pairs = list(material.pairs) if tasks.forced_choice else []
    positions = np.zeros(len(asked_singles))
    result = []
    for reader in range(readers):
        order = _balanced(asked_singles, material.truth, positions, reader, rng)
        for position, case in enumerate(order):
            positions[asked_singles.index(case)] += position
        shown = _with_repeats(order, material.truth, sessions, rng)
        sides = rng.permutation(np.arange(len(pairs)) % 2)
        pair_order = [pairs[index] if sides[index] else pairs[index][::-1] for index in rng.permutation(len(pairs))]
        result.append(_presentations(material, shown, pair_order, tasks, sessions, rng))
    return result


def _balanced(cases, truth, positions, earlier: int, rng: np.random.Generator) -> list[str]:
    """Of many random orders the one after which the mean position is most alike for all cases and both classes."""
    if not cases:
        return []
    kinds = np.array([truth[case] for case in cases], bool)
    middle = (len(cases) - 1) / 2
    best, least = None, np.inf
    for _ in range(_CANDIDATES):
        place = rng.permutation(len(cases))
        of_cases = (((positions + place) / (earlier + 1) - middle) ** 2).mean()
        of_classes = (place[kinds].mean() - place[~kinds].mean()) ** 2 if kinds.any() and not kinds.all() else 0.0
        if of_cases + of_classes < least:
            best, least = place, of_cases + of_classes
    return [cases[index] for index in np.argsort(best)]


def _with_repeats(order: list[str], truth, sessions: Sessions, rng: np.random.Generator) -> list[str]:
    """``order`` with repeats of early cases put into its later half, as many of either class."""
    number = round(sessions.repeats * len(order))
    if not number:
        return list(order)
    early = order[: max(1, len(order) // 2)]
    if number > len(early):
        raise MedDPMError(
            f"{number} repeats of {len(order)} cases are too many: at most half can be shown twice with others between"
        )
    chosen: list[str] = []
    queues = [list(rng.permutation([case for case in early if truth[case] == kind])) for kind in (0, 1)]
    turn = int(rng.integers(2))
    while len(chosen) < number:
        queue = queues[turn % 2] or queues[(turn + 1) % 2]
        chosen.append(str(queue.pop()))
        turn += 1
    result = list(order)
    for case in chosen:
        # Half of all cases lie between, in a later session if there are several.
        earliest = min(result.index(case) + max(2, len(order) // 2), len(result))
        result.insert(int(rng.integers(earliest, len(result) + 1)), case)
    return result


def _presentations(material, singles, pairs, tasks: Tasks, sessions: Sessions, rng) -> list[Presentation]:
    result: list[Presentation] = []

    def add(session: int, kind: str, cases: tuple[str, ...], training: bool = False, answer: int | None = None) -> None:
        result.append(Presentation(len(result), session, kind, cases, training, answer))

    training = [str(case) for case in rng.permutation(list(material.training))]
    if tasks.real_or_synthetic or tasks.likert:
        for case in training:
            add(1, SINGLE, (case,), True, material.truth[case])
    else:
        known = [[c for c in training if material.truth[c] == kind] for kind in (0, 1)]
        for real, synthetic in zip(*known, strict=False):
            side = int(rng.integers(2))
            add(1, PAIR, (real, synthetic) if side else (synthetic, real), True, side)
    shown = [(SINGLE, (case,)) for case in singles] + [(PAIR, tuple(pair)) for pair in pairs]
    for index, (kind, cases) in enumerate(shown):
        add(1 + index // sessions.length, kind, cases)
    return result
