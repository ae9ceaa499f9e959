"""Who answered what, and was it right? One row for each reader and case, with the truth beside it."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from MedDPMLib.errors import MedDPMError
from MedDPMLib.study.answers import read_answers
from MedDPMLib.study.definition import CASES, CUT, READERS, Definition, read_definition, slug
from MedDPMLib.study.order import PAIR, Presentation
from MedDPMLib.study.truth import read_truth


@dataclass(frozen=True)
class Row:
    """One answer. ``truth`` is 1 for a synthetic case, for a pair the side of the synthetic one (0 left, 1 right);
    ``names`` are the organizer's own names of the cases; ``model`` is empty for a real case."""

    reader: str
    presentation: Presentation
    repeat: bool
    names: tuple[str, ...]
    model: str
    truth: int
    rating: int | None
    side: int | None
    scores: Mapping[str, int]
    reason: str
    point: tuple[float, float, float] | None
    seconds: float
    slices: Mapping[str, int]
    windows: int
    time: float

    @property
    def case(self) -> str:
        return self.presentation.cases[0]

    @property
    def right(self) -> bool | None:
        """None where the question was not asked."""
        if self.presentation.kind == PAIR:
            return self.side == self.truth
        return None if self.rating is None else (self.rating > CUT) == bool(self.truth)

    @property
    def counts(self) -> bool:
        """Whether the row is a first reading after training: repeats serve the agreement with oneself alone."""
        return not self.presentation.training and not self.repeat


@dataclass(frozen=True, eq=False)
class Readings:
    """All answers to a study, and what is missing or odd (``notes``)."""

    folder: Path
    definition: Definition
    rows: tuple[Row, ...]
    notes: tuple[str, ...]

    def case_file(self, case: str, modality: str) -> Path:
        return self.folder / CASES / case / f"{modality}.nrrd"


def read_readings(folder: Path, answers: Sequence[Path], passphrase: str) -> Readings:
    """Joins the answers that readers sent back with the truth of the study in ``folder``.

    ``answers`` are files, or folders that hold some. Raises :class:`MedDPMError` for a wrong passphrase, answers to
    another study, and two files of one reader.
    """
    definition = read_definition(folder)
    truth = read_truth(folder, passphrase, definition.hash)
    rows: list[Row] = []
    notes: list[str] = []
    seen: dict[str, Path] = {}
    for path in _files(answers):
        whose, given = read_answers(path)
        reader = whose.get("reader", "")
        if whose.get("study") != definition.hash or reader not in definition.readers:
            raise MedDPMError(f"{path} holds the answers to another study: leave it out")
        if reader in seen:
            raise MedDPMError(f"{path} and {seen[reader]} are both answers of {reader}: give one of them")
        seen[reader] = path
        shown = _shown(folder, reader)
        rows += _rows(reader, shown, given, truth["cases"])
        if len(given) < len(shown):
            notes.append(f"{reader} answered {len(given)} of {len(shown)}")
        times = [answer["time"] for answer in given]
        if times != sorted(times):
            notes.append(f"the clock of {reader}'s computer was set back during the study")
    missing = [reader for reader in definition.readers if reader not in seen]
    if missing:
        notes.append(f"no answers of {', '.join(missing)}")
    if not rows:
        raise MedDPMError("there are no answers: give the files that readers sent back (*.answers.sqlite)")
    return Readings(Path(folder), definition, tuple(rows), tuple(notes))


def _files(answers: Sequence[Path]) -> list[Path]:
    found = []
    for path in map(Path, answers):
        found += sorted(path.rglob("*.sqlite")) if path.is_dir() else [path]
    return found


def _shown(folder: Path, reader: str) -> dict[int, Presentation]:
    path = folder / READERS / f"{slug(reader)}.json"
    try:
        stored = json.loads(path.read_text(encoding="utf-8"))["presentations"]
        return {one["number"]: Presentation.from_dict(one) for one in stored}
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise MedDPMError(
            f"{path} cannot be read ({error!s:.80}): take it from a backup of the study folder"
        ) from error


def _rows(reader: str, shown: Mapping[int, Presentation], given: Sequence[Mapping], truth: Mapping) -> list[Row]:
    rows, before = [], set()
    for answer in sorted(given, key=lambda answer: answer["presentation"]):
        one = shown[answer["presentation"]]
        known = [truth[case] for case in one.cases]
        rows.append(
            Row(
                reader=reader,
                presentation=one,
                repeat=(one.kind, one.cases) in before,
                names=tuple(each["name"] for each in known),
                model=next((each["model"] for each in known if each["model"]), ""),
                truth=known[1]["synthetic"] if one.kind == PAIR else known[0]["synthetic"],
                rating=answer.get("rating"),
                side=answer.get("side"),
                scores=answer.get("scores") or {},
                reason=answer.get("reason") or "",
                point=tuple(answer["point"]) if answer.get("point") else None,
                seconds=answer["seconds"],
                slices=answer["slices"],
                windows=max(0, len(answer["windows"]) - 1),
                time=answer["time"],
            )
        )
        if not one.training:
            before.add((one.kind, one.cases))
    return rows


def to_csv(readings: Readings) -> str:
    """One row for each answer, in the order given."""
    domains = readings.definition.tasks.likert
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(
        ["reader", "order", "session", "task", "training", "repeat", "case", "name", "model", "truth", "rating", "side",
         "right", *domains, "reason", "R", "A", "S", "seconds", "slices", "window_changes", "time"]
    )  # fmt: skip
    for row in readings.rows:
        one = row.presentation
        writer.writerow(
            [
                row.reader,
                one.number + 1,
                one.session,
                one.kind,
                int(one.training),
                int(row.repeat),
                " | ".join(one.cases),
                " | ".join(row.names),
                row.model,
                row.truth,
                _or_empty(row.rating),
                _or_empty(row.side),
                _or_empty(None if row.right is None else int(row.right)),
                *(_or_empty(row.scores.get(domain)) for domain in domains),
                row.reason,
                *(row.point or ("", "", "")),
                row.seconds,
                sum(row.slices.values()),
                row.windows,
                row.time,
            ]
        )
    return out.getvalue()


def _or_empty(value) -> object:
    return "" if value is None else value
