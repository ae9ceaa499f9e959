"""From two folders to a report, as an organizer does it on the command line."""

from __future__ import annotations

import csv
import json
import re
import shutil
import subprocess
from html.parser import HTMLParser

import numpy as np
import pytest
from study_cases import PASSPHRASE, answer_all, coin, hand_out, make_study, write_pool

from MedDPMLib.errors import MedDPMError
from MedDPMLib.study.analysis import analyze
from MedDPMLib.study.definition import Sessions, Tasks, read_definition
from MedDPMLib.study.order import PAIR
from MedDPMLib.study.pack import unpack
from MedDPMLib.study.reading import Reading
from MedDPMLib.study.report.page import render
from MedDPMLib.study.rows import read_readings
from MedDPMLib.study.truth import read_truth


def expert(task, truth, skill: float, seed: int):
    """A reader who is right with the probability ``skill``, points at something, and says why in odd characters."""
    rng = np.random.default_rng(seed)

    def rate(presentation):
        if presentation.kind == PAIR:
            right = int(truth[presentation.cases[1]]["synthetic"])
            return {"side": right if rng.random() < skill else 1 - right}
        synthetic = truth[presentation.cases[0]]["synthetic"]
        said = synthetic if rng.random() < skill else 1 - synthetic
        scores = {domain: int(rng.integers(2, 6) - said) for domain in task.definition.tasks.likert}
        point = (float(rng.normal(10, 8)), float(rng.normal(-5, 8)), float(rng.normal(5, 8)))
        return {
            "rating": int(3 * said + rng.integers(1, 4)),
            "scores": scores,
            "reason": "<script>alert('vessel & rim')</script>",
            "point": point,
        }

    return rate


@pytest.fixture(scope="module")
def answered(tmp_path_factory):
    """A study of three readers, all of whom answered everything: (study folder, answers folder)."""
    folder = tmp_path_factory.mktemp("answered")
    study = make_study(
        folder,
        real=8,
        synthetic=8,
        readers=("Dr. A/B", "Ben", "Zoë <b>"),
        tasks=Tasks(True, True, ("cortex", "vessels")),
        sessions=Sessions(training=2, repeats=0.2),
    )
    truth = read_truth(study, PASSPHRASE, read_definition(study).hash)["cases"]
    (folder / "back").mkdir()
    for seed, task in enumerate(hand_out(study, folder / "readers")):
        answer_all(task, expert(task, truth, 0.9, seed))
        with Reading(task) as reading:
            reading.export(folder / "back")
    return study, folder / "back"


def test_from_two_folders_to_a_report_on_the_command_line(tmp_path, meddpm):
    write_pool(tmp_path, 5, 5)
    env = ("--passphrase", PASSPHRASE)
    made = meddpm(
        "study", "new", "mine", "--real", "real", "--synthetic", "net=synthetic", "--reader", "Ada", "--reader", "Ben",
        "--margin", 0.1, "--training", 2, "--ask", "rating", "--ask", "pair", "--title", "Mine", *env,
    )  # fmt: skip
    assert made.returncode == 0, made.stderr
    assert "5 real and 5 synthetic cases" in made.stdout and "probability of" in made.stdout
    again = meddpm(
        "study", "new", "mine", "--real", "real", "--synthetic", "synthetic", "--reader", "A", "--margin", 0.1, *env
    )
    assert again.returncode == 2 and "exists already" in again.stderr
    packed = meddpm("study", "pack", "mine", "--out", "out")
    assert packed.stdout.split() == ["out/ada.study.zip", "out/ben.study.zip"]
    for name in ("ada", "ben"):
        task = unpack(tmp_path / "out" / f"{name}.study.zip", tmp_path / name)
        answer_all(task, coin(1, task))
        with Reading(task) as reading:
            reading.export(tmp_path)
    wrong = meddpm("study", "analyze", "mine", "ada.answers.sqlite", "--out", "result", "--passphrase", "wrong wrong")
    assert wrong.returncode == 2 and "does not open" in wrong.stderr and not (tmp_path / "result").exists()
    done = meddpm(
        "study",
        "analyze",
        "mine",
        "ada.answers.sqlite",
        "ben.answers.sqlite",
        "--out",
        "result",
        "--json",
        "r.json",
        *env,
    )
    assert done.returncode == 0, done.stderr
    names = {path.name for path in (tmp_path / "result").iterdir()}
    assert names == {"report.html", "answers.csv", "ratings.imrmc", "ratings-rjafroc.xlsx", "numbering.csv"}
    found = json.loads((tmp_path / "r.json").read_text())
    assert found["models"]["net"]["readers"]["Ada"]["accuracy"]["number"] == 8
    assert found["forced_choice"]["readers"]["Ben"]["number"] == 4
    with (tmp_path / "result" / "answers.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 2 * (2 + 8 + 1 + 4) and {row["name"] for row in rows if row["task"] == "single"} == {
        *(f"r{n}" for n in range(5)), *(f"s{n}" for n in range(5))
    }  # fmt: skip


def test_the_analysis_is_that_of_the_answers(answered):
    study, back = answered
    analysis = analyze(read_readings(study, [back], PASSPHRASE))
    assert not [note for note in analysis.notes if "answered" in note]
    detected = analysis.detected
    assert detected.ratings.values.shape == (1, 3, 14) and set(analysis.repeats) == set(detected.ratings.readers)
    for reader, found in detected.readers["model"].items():
        counted = [r for r in analysis.readings.rows if r.reader == reader and r.counts and r.rating]
        assert found.accuracy.hits == sum(row.right for row in counted) and found.accuracy.number == 14
    assert detected.means["model"][0].value > 0.75 and not detected.equivalence["model"][0].shown
    assert all(choice.number == 7 for choice in analysis.choice.readers.values())
    assert [domain.name for domain in analysis.domains] == ["cortex", "vessels"]
    assert analysis.fooling[0].wrong >= analysis.fooling[-1].wrong


class Page(HTMLParser):
    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict]] = []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))


def test_the_report_needs_nothing_else_and_runs_nothing(answered):
    study, back = answered
    text = render(analyze(read_readings(study, [back], PASSPHRASE)))
    page = Page(text)
    assert not [tag for tag, _ in page.tags if tag in ("script", "link", "iframe", "object")]
    sources = [a[name] for _, a in page.tags for name in ("src", "href", "xlink:href") if a.get(name)]
    assert sources and all(source.startswith(("data:image/png;base64,", "#")) for source in sources)
    assert not re.findall(r"url\((?!#)", text)
    assert "<script>alert" not in text and "&lt;script&gt;alert" in text and "Zoë &lt;b&gt;" in text
    assert "chance plus or minus 0.1" in text and "indistinguishable" not in text
    assert len([1 for tag, _ in page.tags if tag == "svg"]) == 4


@pytest.mark.skipif(shutil.which("chromium") is None, reason="there is no Chromium to open the report in")
@pytest.mark.parametrize("width", [1280, 390])
def test_the_report_fits_a_browser_s_window(answered, tmp_path, width):
    study, back = answered
    text = render(analyze(read_readings(study, [back], PASSPHRASE)))
    measure = "<script>document.title = document.documentElement.scrollWidth + ' of ' + window.innerWidth</script>"
    (tmp_path / "report.html").write_text(text.replace("</body>", measure + "</body>"), encoding="utf-8")
    shown = subprocess.run(
        ["chromium", "--headless", "--no-sandbox", "--disable-gpu", f"--window-size={width},900", "--dump-dom",
         f"--user-data-dir={tmp_path / 'profile'}", (tmp_path / "report.html").as_uri()],
        capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    needed, there = map(int, re.search(r"<title>(\d+) of (\d+)", shown.stdout).groups())
    assert needed <= there


# Bad input -------------------------------------------------------------------------------------------


def test_missing_answers_are_said_and_the_rest_is_analyzed(answered, tmp_path):
    study, back = answered
    some = tmp_path / "some"
    some.mkdir()
    for name in ("ben", "dr-a-b"):
        shutil.copy(back / f"{name}.answers.sqlite", some)
    analysis = analyze(read_readings(study, [some], PASSPHRASE))
    assert "no answers of Zoë <b>" in analysis.notes and analysis.detected.ratings.values.shape[1] == 2
    shutil.copy(some / "ben.answers.sqlite", some / "again.sqlite")
    with pytest.raises(MedDPMError, match="are both answers of Ben"):
        read_readings(study, [some], PASSPHRASE)
    with pytest.raises(MedDPMError, match="there are no answers"):
        read_readings(study, [], PASSPHRASE)
    one = analyze(read_readings(study, [back / "ben.answers.sqlite"], PASSPHRASE))
    assert one.detected.equivalence["model"] is None and "says nothing about other readers" in render(one)


def test_a_study_half_read_and_a_reader_who_always_says_real(tmp_path):
    study = make_study(tmp_path, readers=("Ada", "Ben", "Cy"))
    tasks = hand_out(study, tmp_path / "readers")
    for seed, task in enumerate(tasks[:2]):
        answer_all(task, coin(seed, task), None if seed else len(task.presentations) - 3)
    answer_all(tasks[2], lambda presentation: {"rating": 1})
    files = [task.folder / "answers.sqlite" for task in tasks]
    analysis = analyze(read_readings(study, files, PASSPHRASE))
    said = " | ".join(analysis.notes)
    assert (
        "Ada answered" in said and "left out, because not every reader" in said and "Cy called every case real" in said
    )
    text = render(analysis)
    assert "not defined" in text
    assert analysis.detected.readers["model"]["Cy"].auc == 0.5


def test_answers_to_another_study_are_refused(answered, tmp_path):
    _, back = answered
    other = make_study(tmp_path, readers=("Ben", "Eve"))
    with pytest.raises(MedDPMError, match="answers to another study"):
        read_readings(other, [back / "ben.answers.sqlite"], PASSPHRASE)


def test_two_models_are_compared_on_the_same_masks(tmp_path, meddpm):
    write_pool(tmp_path, 6, 6)
    (tmp_path / "other").mkdir()
    for path in (tmp_path / "synthetic").iterdir():
        shutil.copy(path, tmp_path / "other")
    made = meddpm(
        "study", "new", "s", "--real", "real", "--synthetic", "A=synthetic", "--synthetic", "B=other", "--reader", "x",
        "--reader", "y", "--reader", "z", "--margin", 0.1, "--training", 0, "--passphrase", PASSPHRASE,
    )  # fmt: skip
    assert made.returncode == 0, made.stderr
    for seed, task in enumerate(hand_out(tmp_path / "s", tmp_path / "readers")):
        answer_all(task, coin(seed, task))
    files = sorted((tmp_path / "readers").rglob("answers.sqlite"))
    analysis = analyze(read_readings(tmp_path / "s", files, PASSPHRASE))
    assert analysis.detected.ratings.values.shape == (2, 3, 12)
    assert 0 <= analysis.detected.auc["p"] <= 1 and "Between the models" in render(analysis)


def test_an_edited_study_is_refused_by_every_command(answered, tmp_path, meddpm):
    study, back = answered
    copy = tmp_path / "copy"
    shutil.copytree(study, copy)
    text = (copy / "study.toml").read_text(encoding="utf-8")
    (copy / "study.toml").write_text(text.replace("auc = 0.1", "auc = 0.3"), encoding="utf-8")
    for arguments in (("pack", copy, "--out", "o"), ("analyze", copy, back, "--out", "o", "--passphrase", PASSPHRASE)):
        run = meddpm("study", *arguments)
        assert run.returncode == 2 and "was edited" in run.stderr
