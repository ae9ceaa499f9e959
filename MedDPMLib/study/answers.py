"""How are answers kept, so that none is lost and none is changed?

SQLite with a write-ahead log that is flushed with every answer: whoever is killed loses at most the answer that is not
given yet. Rows can only be added. Each carries a hash of itself and the row before, so that what was changed with
another program shows.
"""

from __future__ import annotations

import hashlib
import json
import platform
import sqlite3
import time
from collections.abc import Mapping
from contextlib import closing, suppress
from pathlib import Path
from typing import Any

from MedDPMLib.errors import MedDPMError

ANSWERS_FILE = "answers.sqlite"
#: Locked for as long as a reader reads; the system frees it when the process ends, however it ends.
_LOCK_FILE = "reading.lock"

_SCHEMA = """
CREATE TABLE IF NOT EXISTS study (key TEXT PRIMARY KEY, value TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS answers (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    presentation INTEGER NOT NULL UNIQUE,
    given TEXT NOT NULL,
    seal TEXT NOT NULL
);
CREATE TABLE IF NOT EXISTS events (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    time REAL NOT NULL,
    kind TEXT NOT NULL,
    detail TEXT NOT NULL
);
CREATE TRIGGER IF NOT EXISTS answers_stay BEFORE UPDATE ON answers BEGIN SELECT RAISE(ABORT, 'answers are locked'); END;
CREATE TRIGGER IF NOT EXISTS answers_last BEFORE DELETE ON answers BEGIN SELECT RAISE(ABORT, 'answers are locked'); END;
CREATE TRIGGER IF NOT EXISTS events_stay BEFORE UPDATE ON events BEGIN SELECT RAISE(ABORT, 'events are locked'); END;
CREATE TRIGGER IF NOT EXISTS events_last BEFORE DELETE ON events BEGIN SELECT RAISE(ABORT, 'events are locked'); END;
CREATE TRIGGER IF NOT EXISTS study_stay BEFORE UPDATE ON study BEGIN SELECT RAISE(ABORT, 'the study is fixed'); END;
"""


class Answers:
    """The answers of one reader of one study, in ``folder``. Close it, or use it in a ``with`` statement.

    Raises :class:`MedDPMError` if another program reads the study, or if the answers are those of another reader or
    study, damaged or changed.
    """

    def __init__(self, folder: Path, study: str, reader: str) -> None:
        self.path = Path(folder) / ANSWERS_FILE
        self._lock = _lock(Path(folder) / _LOCK_FILE)
        try:
            self._connection = sqlite3.connect(self.path, isolation_level=None)
            self._connection.execute("PRAGMA journal_mode = WAL")
            self._connection.execute("PRAGMA synchronous = FULL")
            self._connection.executescript(_SCHEMA)
            self._check_whose(study, reader)
            self._given = {row["presentation"]: row for row in _read(self._connection, self.path)[1]}
        except sqlite3.Error as error:
            self.close()
            raise _explained(error, self.path) from error
        except MedDPMError:
            self.close()
            raise

    def __enter__(self) -> Answers:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        for connection in (getattr(self, "_connection", None), self._lock):
            if connection is not None:
                with suppress(sqlite3.Error):
                    connection.close()

    @property
    def given(self) -> Mapping[int, Mapping[str, Any]]:
        """Presentation number -> answer."""
        return self._given

    def give(self, presentation: int, answer: Mapping[str, Any]) -> None:
        """Keeps the answer to a presentation for good. Whatever fails, it was not given, and can be given again."""
        if presentation in self._given:
            raise MedDPMError("this case is answered already: answers are locked once given")
        answer = {"presentation": presentation, **answer}
        text = json.dumps(answer, sort_keys=True)
        try:
            self._connection.execute("BEGIN IMMEDIATE")
            try:
                last = self._connection.execute("SELECT seal FROM answers ORDER BY id DESC LIMIT 1").fetchone()
                self._connection.execute(
                    "INSERT INTO answers (presentation, given, seal) VALUES (?, ?, ?)",
                    (presentation, text, _seal(last[0] if last else "", text)),
                )
                self._connection.execute("COMMIT")
            except sqlite3.Error:
                with suppress(sqlite3.Error):  # a full disk has ended it already
                    self._connection.execute("ROLLBACK")
                raise
        except sqlite3.Error as error:
            raise _explained(error, self.path) from error
        self._given[presentation] = answer

    def note(self, kind: str, **detail: Any) -> None:
        """Records an event: start, pause, resume, end, clock."""
        try:
            self._connection.execute(
                "INSERT INTO events (time, kind, detail) VALUES (?, ?, ?)", (time.time(), kind, json.dumps(detail))
            )
        except sqlite3.Error as error:
            raise _explained(error, self.path) from error

    def events(self) -> list[tuple[float, str, dict]]:
        rows = self._connection.execute("SELECT time, kind, detail FROM events ORDER BY id")
        return [(when, kind, json.loads(detail)) for when, kind, detail in rows]

    def export(self, path: Path) -> None:
        """A copy of everything in one file, for the organizer."""
        try:
            with closing(sqlite3.connect(path)) as target:
                self._connection.backup(target)
                target.execute("PRAGMA journal_mode = DELETE")
        except sqlite3.Error as error:
            raise _explained(error, path) from error

    def _check_whose(self, study: str, reader: str) -> None:
        whose = dict(self._connection.execute("SELECT key, value FROM study"))
        if not whose:
            rows = [("study", study), ("reader", reader), ("format", "meddpm-study-answers/1")]
            self._connection.executemany("INSERT INTO study VALUES (?, ?)", rows)
        elif (whose.get("study"), whose.get("reader")) != (study, reader):
            raise MedDPMError(f"{self.path} holds the answers to another study, or of another reader: move it away")


def read_answers(path: Path) -> tuple[dict[str, str], list[dict]]:
    """(whose answers they are, the answers in the order given). Raises :class:`MedDPMError` if a row was changed."""
    path = Path(path)
    if not path.is_file():
        raise MedDPMError(f"{path} does not exist: give the files that readers sent back")
    try:
        with closing(sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True)) as connection:
            return _read(connection, path)
    except sqlite3.Error as error:
        raise _explained(error, path) from error


def _read(connection: sqlite3.Connection, path: Path) -> tuple[dict[str, str], list[dict]]:
    found, seal = [], ""
    try:
        whose = dict(connection.execute("SELECT key, value FROM study"))
        rows = connection.execute("SELECT presentation, given, seal FROM answers ORDER BY id")
        for presentation, text, stored in rows:
            seal = _seal(seal, text)
            answer = json.loads(text)
            if seal != stored or answer["presentation"] != presentation:
                raise MedDPMError(f"{path}: the answer to presentation {presentation} was changed with another program")
            found.append(answer)
    except (UnicodeDecodeError, TypeError, KeyError, json.JSONDecodeError, RecursionError) as error:
        raise MedDPMError(f"{path}: an answer was changed with another program ({error})") from error
    return whose, found


def machine() -> str:
    """The computer, as the record of a session names it: no more than its system."""
    return hashlib.sha256(platform.node().encode()).hexdigest()[:12] + f" ({platform.system()})"


def _seal(before: str, text: str) -> str:
    return hashlib.sha256(f"{before}{text}".encode()).hexdigest()


def _lock(path: Path) -> sqlite3.Connection:
    connection = None
    try:
        connection = sqlite3.connect(path, isolation_level=None, timeout=0.2)
        connection.execute("BEGIN EXCLUSIVE")
        return connection
    except sqlite3.Error as error:
        if connection is not None:
            connection.close()
        if "locked" in str(error):
            raise MedDPMError(f"{path.parent} is being read in another window: close the study there first") from error
        raise _explained(error, path) from error


def _explained(error: sqlite3.Error, path: Path) -> MedDPMError:
    if "full" in str(error) or "disk I/O" in str(error):
        return MedDPMError(f"{path} cannot be written (the disk is full): free some space and give the answer again")
    if "malformed" in str(error) or "not a database" in str(error):
        return MedDPMError(f"{path} is damaged ({error}): move it away and tell the organizer of the study")
    return MedDPMError(f"{path} cannot be used ({error}): check the folder and its permissions")
