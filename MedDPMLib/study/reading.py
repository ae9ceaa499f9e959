"""What does the reader see next? The course of a reading: cases, sessions, pauses, times, answers."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from MedDPMLib.errors import MedDPMError
from MedDPMLib.study.answers import Answers, machine
from MedDPMLib.study.definition import CUT, RATINGS, SCORES
from MedDPMLib.study.order import PAIR, SINGLE, Presentation
from MedDPMLib.study.pack import Task

_DAY = 86_400.0


@dataclass
class Watched:
    """What happened while a case was shown: per view the slices seen, and the changes of the window."""

    slices: dict[str, set[int]] = field(default_factory=dict)
    windows: list[tuple[float, float]] = field(default_factory=list)

    def saw(self, view: str, number: int) -> None:
        self.slices.setdefault(view, set()).add(number)

    def windowed(self, window: float, level: float) -> None:
        if not self.windows or self.windows[-1] != (window, level):
            self.windows.append((window, level))


class Stopwatch:
    """Seconds net of pauses, on a clock that cannot be set."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self.reset()

    def reset(self) -> None:
        self._gone = 0.0
        self._since: float | None = self._clock()

    def pause(self) -> None:
        if self._since is not None:
            self._gone += self._clock() - self._since
            self._since = None

    def resume(self) -> None:
        if self._since is None:
            self._since = self._clock()

    @property
    def seconds(self) -> float:
        return self._gone + (self._clock() - self._since if self._since is not None else 0.0)


class Reading:
    """One reader at work on a :class:`Task`. Close it, or use it in a ``with`` statement.

    ``clock`` counts seconds, ``now`` is the time of day (seconds since 1970).
    """

    def __init__(
        self, task: Task, *, clock: Callable[[], float] = time.monotonic, now: Callable[[], float] = time.time
    ) -> None:
        self.task = task
        self._now = now
        self.answers = Answers(task.folder, task.definition.hash, task.reader)
        self.watch, self.work = Stopwatch(clock), Stopwatch(clock)
        self.watched = Watched()
        self.paused = False
        #: Of the case shown last, in this sitting.
        self._session: int | None = None
        self._begin()

    def __enter__(self) -> Reading:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        self.answers.close()

    # Where are we?

    @property
    def current(self) -> Presentation | None:
        """What is to be answered next, None after the last."""
        return next((one for one in self.task.presentations if one.number not in self.answers.given), None)

    @property
    def progress(self) -> tuple[int, int]:
        """(number of the current presentation, counted from 1, number of all)."""
        total = len(self.task.presentations)
        return min(len(self.answers.given) + 1, total), total

    @property
    def finished(self) -> bool:
        return self.current is None

    @property
    def session_is_over(self) -> bool:
        """Whether the next case belongs to a later session than the last answer of this sitting."""
        current = self.current
        return current is not None and self._session is not None and current.session > self._session

    def wait_days(self) -> float:
        """Days until the next session may begin: what is left of the washout."""
        current, last = self.current, self._last_answer()
        if current is None or last is None or current.session == self._presentation(last["presentation"]).session:
            return 0.0
        return max(0.0, self.task.definition.sessions.washout_days - max(0.0, self._now() - last["time"]) / _DAY)

    def break_is_due(self) -> bool:
        minutes = self.task.definition.sessions.break_minutes
        return minutes > 0 and self.work.seconds > 60 * minutes

    # What happens

    def show(self) -> Presentation:
        """The current presentation begins: the time runs from now on."""
        if self.wait_days() > 0:
            raise MedDPMError(
                f"the next session can begin in {self.wait_days():.1f} days: washout is part of the study"
            )
        current = self._due()
        self._session = current.session
        self.watched = Watched()
        self.watch.reset()
        return current

    def pause(self) -> None:
        if not self.paused:
            self.paused = True
            self.watch.pause()
            self.work.pause()
            self.answers.note("pause")

    def resume(self) -> None:
        """Ends a pause, after which a break has been taken."""
        if self.paused:
            self.paused = False
            self.work.reset()
            self.watch.resume()
            self.answers.note("resume")

    def answer(self, given: Mapping[str, Any]) -> bool | None:
        """Locks the answer to the current presentation and goes to the next.

        ``given`` has ``rating`` (1 to 6), ``side`` (0 left, 1 right) of a pair, ``scores`` (domain -> 1 to 5), and may
        have ``reason`` and ``point`` (R, A, S in mm). Returns whether a training answer was right, else None. Raises
        :class:`MedDPMError` for one that is incomplete.
        """
        current = self._due()
        missing = missing_answers(self.task, current, given)
        if missing:
            raise MedDPMError(f"not answered yet: {', '.join(missing)}")
        last = self._last_answer()
        now = self._now()
        if last is not None and now < last["time"]:
            self.answers.note("clock", set_back_by=last["time"] - now)
        self.answers.give(
            current.number,
            {
                **given,
                "time": now,
                "seconds": round(self.watch.seconds, 3),
                "slices": {view: len(seen) for view, seen in self.watched.slices.items()},
                "windows": [list(window) for window in self.watched.windows],
            },
        )
        if current.answer is None or ("rating" not in given and "side" not in given):
            return None
        said = given["side"] if current.kind == PAIR else int(given["rating"] > CUT)
        return said == current.answer

    def export(self, folder: Path) -> Path:
        """Writes the file that goes back to the organizer, and returns its path."""
        from MedDPMLib.study.definition import slug

        path = Path(folder) / f"{slug(self.task.reader)}.answers.sqlite"
        self.answers.export(path)
        return path

    def _begin(self) -> None:
        last = self._last_answer()
        here = machine()
        before = next(
            (detail.get("machine") for _, kind, detail in reversed(self.answers.events()) if kind == "start"), here
        )
        self.answers.note("start", machine=here, moved=before != here)
        if last is not None and self._now() < last["time"]:
            self.answers.note("clock", set_back_by=last["time"] - self._now())

    def _due(self) -> Presentation:
        """The current presentation; :class:`MedDPMError` after the last."""
        current = self.current
        if current is None:
            raise MedDPMError("every case has been answered: export the answers")
        return current

    def _last_answer(self) -> Mapping[str, Any] | None:
        return self.answers.given[max(self.answers.given)] if self.answers.given else None

    def _presentation(self, number: int) -> Presentation:
        return next(one for one in self.task.presentations if one.number == number)


def missing_answers(task: Task, presentation: Presentation, given: Mapping[str, Any]) -> list[str]:
    """What ``given`` still lacks to be a whole answer; :class:`MedDPMError` for a value that is none."""
    tasks = task.definition.tasks
    missing = []
    if presentation.kind == PAIR:
        if given.get("side") is None:
            missing.append("left or right")
        elif given["side"] not in (0, 1):
            raise MedDPMError(f"{given['side']} is neither left (0) nor right (1)")
        return missing
    if tasks.real_or_synthetic and presentation.kind == SINGLE:
        if given.get("rating") is None:
            missing.append("real or synthetic")
        elif given["rating"] not in dict(RATINGS):
            raise MedDPMError(f"{given['rating']} is not on the scale of 1 to {len(RATINGS)}")
    scores = given.get("scores") or {}
    for domain in tasks.likert:
        if scores.get(domain) is None:
            missing.append(domain)
        elif scores[domain] not in dict(SCORES):
            raise MedDPMError(f"{scores[domain]} is not on the scale of 1 to {len(SCORES)}")
    return missing
