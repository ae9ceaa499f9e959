"""What is a study? Its questions, readers, margins and sessions, in a readable file that says when it was changed."""

from __future__ import annotations

import hashlib
import json
import re
import sys
import unicodedata
from dataclasses import asdict, dataclass, field
from pathlib import Path

from MedDPMLib.errors import MedDPMError
from MedDPMLib.runtime.files import atomic_write
from MedDPMLib.validation import quoted, with_current_names

FORMAT = "meddpm-study/1"
STUDY_FILE = "study.toml"
#: Folders of a study: prepared cases, and the order of each reader.
CASES, READERS = "cases", "readers"

DOMAINS = ("gray-white contrast", "cortex", "ventricles", "tumor", "mass effect", "vessels", "artifacts")

#: The six answers to "real or synthetic": the rating and what stands on its button.
RATINGS = (
    (1, "definitely real"),
    (2, "probably real"),
    (3, "possibly real"),
    (4, "possibly synthetic"),
    (5, "probably synthetic"),
    (6, "definitely synthetic"),
)
#: A rating above it is the answer "synthetic".
CUT = 3.5
SCORES = ((1, "very poor"), (2, "poor"), (3, "fair"), (4, "good"), (5, "excellent"))


@dataclass(frozen=True)
class Tasks:
    """What is asked: ``real_or_synthetic`` on :data:`RATINGS`, ``forced_choice`` (which of two is synthetic?), a score
    of 1 to 5 for each domain in ``likert``, and a free ``reason`` with a point."""

    real_or_synthetic: bool = True
    forced_choice: bool = False
    likert: tuple[str, ...] = ()
    reason: bool = True


@dataclass(frozen=True)
class Margin:
    """The differences from chance (0.5) that would not matter, stated before the study: of AUC and of accuracy."""

    auc: float
    accuracy: float


@dataclass(frozen=True)
class Sessions:
    """``length`` presentations a session, ``washout_days`` between two, a break offered after ``break_minutes``;
    ``training`` cases with feedback come first; the share ``repeats`` of cases is shown twice."""

    length: int = 40
    washout_days: float = 0.0
    break_minutes: float = 20.0
    training: int = 4
    repeats: float = 0.1


@dataclass(frozen=True)
class Preparation:
    """The one form of all cases: ``size`` (i, j, k) and ``spacing`` (mm) in the orientation ``orientation``, values
    0 (background) to ``levels`` - 1, and a Gaussian of ``smoothing`` mm (FWHM) over all, or 0."""

    size: tuple[int, int, int]
    spacing: float
    orientation: str
    levels: int
    smoothing: float


@dataclass(frozen=True)
class Definition:
    """A study as its file says. ``real`` and ``synthetic`` are the numbers of cases; ``models`` name the sources of the
    synthetic ones."""

    title: str
    identifier: str
    created: str
    modalities: tuple[str, ...]
    models: tuple[str, ...]
    readers: tuple[str, ...]
    real: int
    synthetic: int
    margin: Margin
    preparation: Preparation
    tasks: Tasks = field(default_factory=Tasks)
    sessions: Sessions = field(default_factory=Sessions)

    def __post_init__(self) -> None:
        check_readers(self.readers)
        if not (self.tasks.real_or_synthetic or self.tasks.forced_choice or self.tasks.likert):
            raise MedDPMError("the study asks nothing: choose real or synthetic, forced choice or domains to score")
        if len(set(self.tasks.likert)) != len(self.tasks.likert):
            raise MedDPMError("a domain is named twice: each can be scored once")
        for name, value in asdict(self.margin).items():
            if not 0 < value < 0.5:
                raise MedDPMError(f"the margin of {name} is {value}: it has to lie between 0 and 0.5")
        if self.sessions.length < 1 or self.sessions.washout_days < 0 or not 0 <= self.sessions.repeats <= 1:
            raise MedDPMError("sessions need at least one case, washout 0 days or more, and repeats between 0 and 1")

    @property
    def hash(self) -> str:
        """SHA-256 of everything that the file says, in the names of version 0.1: studies of that version continue."""
        said = asdict(self)
        said["contrasts"] = said.pop("modalities")
        return hashlib.sha256(json.dumps(said, sort_keys=True, ensure_ascii=False).encode()).hexdigest()


def check_readers(readers: tuple[str, ...]) -> None:
    """Raises :class:`MedDPMError` unless each name, as a file's, is there and unlike the others."""
    if not readers:
        raise MedDPMError("a study needs at least one reader: name one")
    slugs = [slug(reader) for reader in readers]
    for reader, short in zip(readers, slugs, strict=True):
        if not short:
            raise MedDPMError(f"the reader {quoted(reader)} has no letter or digit in the name: choose another")
        if slugs.count(short) > 1:
            raise MedDPMError(
                f"the reader {quoted(reader)} is named like another one: their files would both be {short}"
            )


def slug(name: str) -> str:
    """A reader's name as part of a file's: letters and digits, joined by hyphens. "Dr. A/B" becomes "dr-a-b"."""
    plain = unicodedata.normalize("NFKD", name).encode("ascii", "ignore").decode().lower()
    short = "-".join(re.findall(r"[a-z0-9]+", plain))
    if not short and name.strip():  # written in another script
        short = "reader-" + hashlib.sha256(name.strip().encode()).hexdigest()[:8] if name.strip().isalnum() else ""
    return short


def write_definition(folder: Path, definition: Definition) -> None:
    import tomli_w

    table = {"format": FORMAT} | _plain(asdict(definition))
    text = (
        "# A reader study of MedDPM. Do not edit: the last line is a hash of the rest, and readers and the analysis\n"
        "# refuse a file that was changed. Who wants another study makes another one with meddpm study new.\n"
        + tomli_w.dumps(table)
        + f'\n[seal]\nhash = "{definition.hash}"\n'
    )
    with atomic_write(folder / STUDY_FILE) as temporary:
        temporary.write_text(text, encoding="utf-8")


def read_definition(folder: Path) -> Definition:
    """The study in ``folder``. Raises :class:`MedDPMError` for a file that is missing, damaged or edited by hand."""
    path = Path(folder) / STUDY_FILE
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise MedDPMError(f"{path} cannot be read ({error}): choose the folder of a study") from error
    return parse_definition(text, str(path))


def parse_definition(text: str, source: str) -> Definition:
    if sys.version_info >= (3, 11):
        import tomllib
    else:
        import tomli as tomllib

    try:
        table = tomllib.loads(text)
    except (ValueError, RecursionError) as error:
        raise MedDPMError(f"{source} is damaged ({error!s:.200}): get the study again from its organizer") from error
    if table.get("format") != FORMAT:
        raise MedDPMError(
            f"{source} has the format {quoted(table.get('format'))}, not {FORMAT}: use the version of MedDPM that made"
            " it"
        )
    seal = table.pop("seal", None)
    del table["format"]
    table = with_current_names(table, {"contrasts": "modalities"}, source)
    edited = f"{source} was edited after the study was made: get the study again from its organizer"
    try:
        definition = Definition(
            **_tuples(table)
            | {
                "margin": Margin(**table["margin"]),
                "preparation": Preparation(**_tuples(table["preparation"])),
                "tasks": Tasks(**_tuples(table["tasks"])),
                "sessions": Sessions(**table["sessions"]),
            }
        )
        is_as_made = seal["hash"] == definition.hash
    except (TypeError, KeyError, AttributeError, ValueError) as error:
        raise MedDPMError(edited) from error
    if not is_as_made:
        raise MedDPMError(edited)
    return definition


def _plain(value):
    """With lists for tuples, as TOML has it."""
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    return list(value) if isinstance(value, tuple) else value


def _tuples(table: dict) -> dict:
    return {key: tuple(value) if isinstance(value, list) else value for key, value in table.items()}
