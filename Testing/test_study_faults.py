"""Damaged files of a reader study: whatever is read is what was written, or a sentence says that it is not."""

from __future__ import annotations

import os
import shutil
import zipfile

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from study_cases import PASSPHRASE, answer_all, coin, hand_out, make_study, small_plan

from MedDPMLib.errors import MedDPMError
from MedDPMLib.study.answers import read_answers
from MedDPMLib.study.create import create
from MedDPMLib.study.definition import STUDY_FILE, read_definition
from MedDPMLib.study.pack import ORDER_FILE, pack, read_task, unpack
from MedDPMLib.study.reading import Reading
from MedDPMLib.study.table import read_table
from MedDPMLib.study.truth import TRUTH_FILE, read_truth


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A study with one reader's answers: (study folder, task, archive)."""
    folder = tmp_path_factory.mktemp("faults")
    study = make_study(folder, readers=("Ada",))
    task = hand_out(study, folder / "out")[0]
    answer_all(task, coin(0, task))
    with Reading(task) as reading:
        reading.export(folder)
    return study, task, folder / "out" / "ada.study.zip"


@st.composite
def damage(draw):
    """Flipped bytes, a cut, or bytes in between: bytes -> bytes."""
    kind = draw(st.sampled_from(["flip", "cut", "insert"]))
    where, what = draw(st.floats(0, 1)), draw(st.binary(min_size=1, max_size=6))

    def apply(data: bytes) -> bytes:
        at = int(where * (len(data) - 1))
        if kind == "cut":
            return data[:at]
        return data[:at] + what + data[at + (len(what) if kind == "flip" else 0) :]

    return apply


def fuzz(examples: int):
    return settings(max_examples=examples, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


def damaged(path, change, read, expected):
    """``read()`` of the damaged file gives what it gave before or raises a sentence; then the file is restored."""
    whole = path.read_bytes()
    path.write_bytes(change(whole))
    try:
        assert read() == expected
    except MedDPMError as error:
        assert str(error)
    finally:
        path.write_bytes(whole)


@given(damage())
@fuzz(150)
def test_study_files(place, change):
    study = place[0]
    damaged(study / STUDY_FILE, change, lambda: read_definition(study), read_definition(study))


@given(damage())
@fuzz(100)
def test_orders(place, change):
    task = place[1]
    damaged(task.folder / ORDER_FILE, change, lambda: read_task(task.folder).reader, "Ada")


@given(damage())
@fuzz(12)  # each opens with scrypt
def test_truths(place, change):
    study = place[0]
    hash_ = read_definition(study).hash
    damaged(study / TRUTH_FILE, change, lambda: len(read_truth(study, PASSPHRASE, hash_)["cases"]), 12)


@given(damage())
@fuzz(100)
def test_answers(place, change):
    study, task, _ = place
    path = study.parent / "ada.answers.sqlite"
    damaged(path, change, lambda: read_answers(path)[1], read_answers(path)[1])


@given(damage())
@fuzz(40)
def test_archives(place, tmp_path, change):
    archive = place[2]
    out = tmp_path / "again"
    shutil.rmtree(out, ignore_errors=True)
    damaged(archive, change, lambda: unpack(archive, out).reader, "Ada")


@given(st.text(max_size=200), st.booleans())
@fuzz(150)
def test_tables(tmp_path, text, heading):
    path = tmp_path / "t.csv"
    path.write_text(("reader,treatment,case,truth,rating\n" if heading else "") + text, encoding="utf-8", newline="")
    try:
        read_table(path)
    except MedDPMError as error:
        assert str(path) in str(error) or "both kinds" in str(error)


def test_cases_that_were_swapped_or_damaged_are_refused(place, tmp_path):
    """Within an archive, a case that is not whole does not open: the reader never sees half a brain."""
    with zipfile.ZipFile(place[2]) as archive:
        archive.extractall(tmp_path / "u")
    task = read_task(tmp_path / "u")
    path = task.case_file(task.presentations[0].cases[0], "t1")
    path.write_bytes(path.read_bytes()[:3000])
    from MedDPMLib.imaging.io import read_volume

    with pytest.raises(MedDPMError, match="is damaged"):
        read_volume(path)


@pytest.mark.skipif(os.name == "nt", reason="file sizes cannot be limited on Windows")
def test_a_full_disk_leaves_no_half_study(tmp_path):
    """A limit on the size of files stands for the disk: writing fails in the same place."""
    import resource
    import signal

    plan = small_plan(tmp_path)
    former = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, former[1]))
        with pytest.raises(MedDPMError, match="free some space"):
            create(tmp_path / "study", plan, PASSPHRASE)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, former)
        signal.signal(signal.SIGXFSZ, handler)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["real", "synthetic"]
    create(tmp_path / "study", plan, PASSPHRASE)
    assert pack(tmp_path / "study", tmp_path / "out")
