"""Reading a study: answers lock, nothing is lost when the reader is killed, time is counted without pauses."""

from __future__ import annotations

import os
import random
import signal
import sqlite3
import subprocess
import sys
import time
from pathlib import Path

import pytest
from study_cases import answer_all, coin, hand_out, make_study

from MedDPMLib.errors import MedDPMError
from MedDPMLib.study.answers import ANSWERS_FILE, Answers, read_answers
from MedDPMLib.study.definition import Sessions, Tasks
from MedDPMLib.study.reading import Reading

#: Where the package lies that is tested, whether or not it is installed.
ROOT = Path(sys.modules["MedDPMLib"].__file__).parents[1]


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    """A study with every question."""
    tasks = Tasks(True, True, ("cortex", "vessels"))
    sessions = Sessions(length=6, washout_days=7, break_minutes=10, training=2, repeats=0.2)
    return make_study(tmp_path_factory.mktemp("study"), tasks=tasks, sessions=sessions)


@pytest.fixture
def task(study, tmp_path):
    return hand_out(study, tmp_path)[0]


class Clock:
    """Seconds, and the time of day, that a test sets."""

    def __init__(self) -> None:
        self.seconds, self.day = 1000.0, 1_800_000_000.0

    def forward(self, seconds: float) -> None:
        self.seconds += seconds
        self.day += seconds

    def reading(self, task) -> Reading:
        return Reading(task, clock=lambda: self.seconds, now=lambda: self.day)


ANSWER = {"rating": 4, "scores": {"cortex": 3, "vessels": 2}}


def test_answers_lock_and_the_next_case_follows(task):
    clock = Clock()
    with clock.reading(task) as reading:
        assert reading.progress == (1, len(task.presentations))
        first = reading.show()
        assert first.training and reading.answer(ANSWER) == (first.answer == 1)
        assert reading.current.number == 1 and reading.progress[0] == 2
        with pytest.raises(MedDPMError, match="locked"):
            reading.answers.give(0, {"rating": 1, "time": 0})
        with pytest.raises(sqlite3.IntegrityError, match="locked"):
            reading.answers._connection.execute("UPDATE answers SET given = '{}'")
        with pytest.raises(sqlite3.IntegrityError, match="locked"):
            reading.answers._connection.execute("DELETE FROM answers")
    with clock.reading(task) as again:  # resumed: the next case, not the first
        assert again.current.number == 1
        again.show()
        assert again.answer(ANSWER) is not None
        again.show()
        assert again.answer(ANSWER) is None  # no feedback after training


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({}, "real or synthetic, cortex, vessels"),
        ({"rating": 7, "scores": {}}, "not on the scale of 1 to 6"),
        ({"rating": 3, "scores": {"cortex": 0, "vessels": 1}}, "not on the scale of 1 to 5"),
        ({"rating": 3, "scores": {"cortex": 5}}, "not answered yet: vessels"),
    ],
)
def test_incomplete_answers_are_not_taken(task, given, said):
    with Reading(task) as reading:
        reading.show()
        with pytest.raises(MedDPMError, match=said):
            reading.answer(given)
        assert not reading.answers.given


def test_time_is_counted_without_pauses_and_breaks_are_due(task):
    clock = Clock()
    with clock.reading(task) as reading:
        reading.show()
        clock.forward(20)
        reading.pause()
        clock.forward(3600)
        reading.pause()
        reading.resume()
        clock.forward(5)
        reading.watched.saw("Red", 10)
        reading.watched.saw("Red", 11)
        reading.watched.saw("Red", 10)
        reading.watched.windowed(255, 127)
        reading.watched.windowed(255, 127)
        reading.watched.windowed(100, 60)
        reading.answer({**ANSWER, "reason": "vessel ends", "point": (1.0, -2.5, 3.0)})
        given = reading.answers.given[0]
        assert given["seconds"] == 25 and given["slices"] == {"Red": 2}
        assert given["windows"] == [[255, 127], [100, 60]] and given["point"] == (1.0, -2.5, 3.0)
        assert not reading.break_is_due()
        reading.show()
        clock.forward(601)
        assert reading.break_is_due()
        reading.pause()
        reading.resume()
        assert not reading.break_is_due()
        kinds = [kind for _, kind, _ in reading.answers.events()]
        assert kinds == ["start", "pause", "resume", "pause", "resume"]


def finish_session(reading):
    session = reading.current.session
    while reading.current is not None and reading.current.session == session:
        reading.show()
        reading.answer({**ANSWER, "side": 0})


def test_sessions_end_and_washout_is_kept_even_if_the_clock_is_set(task):
    clock = Clock()
    with clock.reading(task) as reading:
        finish_session(reading)
        assert reading.session_is_over and reading.wait_days() == pytest.approx(7)
        with pytest.raises(MedDPMError, match=r"in 7\.0 days"):
            reading.show()
    clock.forward(6 * 86_400)
    with clock.reading(task) as reading:
        assert reading.wait_days() == pytest.approx(1) and not reading.session_is_over
    clock.day -= 30 * 86_400  # set back: the washout does not become shorter, or longer than it is
    with clock.reading(task) as reading:
        assert reading.wait_days() == pytest.approx(7)
        assert reading.answers.events()[-1][1] == "clock"
    clock.day += 32 * 86_400
    with clock.reading(task) as reading:
        assert reading.wait_days() == 0
        finish_session(reading)


def test_a_study_is_open_in_one_window_only(task):
    with Reading(task):
        with pytest.raises(MedDPMError, match="in another window"):
            Reading(task)
    Reading(task).close()


def test_answers_belong_to_one_reader_and_study(task):
    Reading(task).close()
    with pytest.raises(MedDPMError, match="another study, or of another reader"):
        Answers(task.folder, task.definition.hash, "Eve")
    with pytest.raises(MedDPMError, match="another study"):
        Answers(task.folder, "0" * 64, task.reader)


def test_the_whole_study_goes_home_in_one_file(study, task, tmp_path):
    clock = Clock()
    rate = coin(1, task)
    with clock.reading(task) as reading:
        while not reading.finished:
            if reading.wait_days():
                clock.forward(7 * 86_400)
            reading.show()
            clock.forward(10)
            reading.answer(rate(reading.current))
        for beyond_the_last in (reading.show, lambda: reading.answer(ANSWER)):
            with pytest.raises(MedDPMError, match="every case has been answered"):
                beyond_the_last()
        sent = reading.export(tmp_path)
    assert sent.name == "ada.answers.sqlite" and not list(tmp_path.glob("*-wal"))
    whose, given = read_answers(sent)
    assert whose["reader"] == "Ada" and [one["presentation"] for one in given] == list(range(len(task.presentations)))
    # On another machine, from the copied folder: everything is there, and the move is recorded.
    moved = tmp_path / "usb stick"
    task.folder.rename(moved)
    from MedDPMLib.study import reading as module
    from MedDPMLib.study.pack import read_task

    original, module.machine = module.machine, lambda: "elsewhere"
    try:
        with Reading(read_task(moved)) as resumed:
            started = [detail for _, kind, detail in resumed.answers.events() if kind == "start"]
            assert resumed.finished and started[-1] == {"machine": "elsewhere", "moved": True}
    finally:
        module.machine = original


def test_rows_changed_with_another_program_show(task):
    answer_all(task, lambda presentation: ANSWER, 2)
    with sqlite3.connect(task.folder / ANSWERS_FILE) as other:
        other.execute("DROP TRIGGER answers_stay")
        other.execute("UPDATE answers SET given = replace(given, '\"rating\": 4', '\"rating\": 1')")
    other.close()
    with pytest.raises(MedDPMError, match="changed with another program"):
        read_answers(task.folder / ANSWERS_FILE)
    with pytest.raises(MedDPMError, match="changed with another program"):
        Reading(task)
    (task.folder / ANSWERS_FILE).write_bytes(b"not a database" * 100)
    with pytest.raises(MedDPMError, match="is damaged"):
        Reading(task)


def test_a_full_disk_costs_no_answer(task):
    with Reading(task) as reading:
        reading.show()
        reading.answer(ANSWER)
        pages = reading.answers._connection.execute("PRAGMA page_count").fetchone()[0]
        reading.answers._connection.execute(f"PRAGMA max_page_count = {pages}")
        reading.show()
        long = {**ANSWER, "reason": "x" * 200_000}
        with pytest.raises(MedDPMError, match="free some space and give the answer again"):
            reading.answer(long)
        assert list(reading.answers.given) == [0] and reading.current.number == 1
        reading.answers._connection.execute("PRAGMA max_page_count = 1000000")
        reading.answer(long)
        assert list(reading.answers.given) == [0, 1]


def test_reading_needs_no_package_that_slicer_lacks():
    """Nor does it load one that is there: designing and analyzing do."""
    code = (
        "import sys, MedDPMLib.study.reading, MedDPMLib.study.pack;"
        "print({n.partition('.')[0] for n in sys.modules}"
        " & {'cryptography', 'pandas', 'scipy', 'sklearn', 'statsmodels', 'torch', 'tomli_w', 'nibabel'})"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True)
    assert run.stdout.strip() == "set()"


# Killed ----------------------------------------------------------------------------------------------

_READER = """
import sys
from pathlib import Path
from MedDPMLib.study.answers import Answers
answers = Answers(Path(sys.argv[1]), "hash", "Ada")
print("ready", flush=True)
number = max(answers.given, default=-1) + 1
while True:
    answers.give(number, {"rating": 3, "reason": "r" * 300, "time": float(number)})
    sys.stdout.write(f"{number}\\n")
    sys.stdout.flush()
    number += 1
"""


def kill_readers(folder: Path, times: int, seed: int) -> int:
    """Kills a reader at work at random moments, ``times``; the answers given in all. Run with 200 as a program."""
    rng = random.Random(seed)
    confirmed = -1
    for _ in range(times):
        process = subprocess.Popen(
            [sys.executable, "-c", _READER, str(folder)],
            stdout=subprocess.PIPE,
            text=True,
            env=os.environ | {"PYTHONPATH": str(ROOT)},
        )
        assert process.stdout.readline() == "ready\n"
        time.sleep(rng.uniform(0, 0.05))
        process.send_signal(signal.SIGKILL)
        said = [line for line in process.communicate()[0].splitlines(keepends=True) if line.endswith("\n")]
        confirmed = max([confirmed, *map(int, said)])
        _, given = read_answers(folder / ANSWERS_FILE)
        numbers = [one["presentation"] for one in given]
        # All that were confirmed are there, in order, and at most the open one beside them.
        assert numbers == list(range(len(numbers))) and len(numbers) - 1 in (confirmed, confirmed + 1)
        confirmed = len(numbers) - 1
    return confirmed + 1


@pytest.mark.skipif(os.name == "nt", reason="there is no SIGKILL on Windows")
def test_killed_at_any_moment_at_most_the_open_answer_is_lost(tmp_path):
    assert kill_readers(tmp_path, 8, seed=0) > 8


if __name__ == "__main__":
    import tempfile

    with tempfile.TemporaryDirectory() as place:
        print(kill_readers(Path(place), int(sys.argv[1]), seed=1), "answers, none lost")
