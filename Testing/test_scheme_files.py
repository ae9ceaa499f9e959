"""Label schemes in files of one's own: read, written, drafted from others' files, and their mistakes by line."""

from __future__ import annotations

import json
import random
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

from MedDPMLib.cli.app import app
from MedDPMLib.errors import MedDPMError
from MedDPMLib.imaging.geometry import Geometry
from MedDPMLib.imaging.io import write_nifti
from MedDPMLib.imaging.volume import Volume
from MedDPMLib.masks.numberings import find_numbering, numberings
from MedDPMLib.masks.said import segment_labels
from MedDPMLib.masks.scheme_files import check_scheme, find_scheme, read_scheme, scheme_toml
from MedDPMLib.masks.scheme_sources import draft_scheme
from MedDPMLib.masks.schemes import Code, Convention, Label, LabelScheme, load_scheme, scheme_names
from MedDPMLib.masks.seg_nrrd import write_segments

ORGANS = """\
name = "organs"

[[labels]]
value = 1
name = "Liver"
aliases = ["hepar"]

[[labels]]
value = 2
name = "Left kidney"
color = [200, 60, 60]

[[labels]]
value = 5
name = "Spleen"

[[numberings]]
name = "other"
values = { 3 = "Spleen", 40 = "Liver", 41 = "none" }
file_names = ["other_.*"]
"""


def saved(folder: Path, text: str, name: str = "labels.toml") -> Path:
    path = folder / name
    path.write_text(text, encoding="utf-8")
    return path


def test_only_values_and_names_are_needed(tmp_path):
    scheme = find_scheme(saved(tmp_path, ORGANS))
    assert (scheme.name, scheme.values, scheme.own_numbering) == ("organs", (1, 2, 5), "organs")
    assert scheme.rest is None and scheme.tumor == () and {label.role for label in scheme.labels} == {None}
    assert scheme.label_by_name("HEPAR").value == 1 and scheme.label_by_value(2).color == (200, 60, 60)
    assert len({label.color for label in scheme.labels}) == 3 and scheme.priority == (1, 2, 5)
    assert all(label.type is None for label in scheme.labels) and scheme.label_by_code("SCT", "1") is None
    assert [one.name for one in numberings(scheme)] == ["organs", "other"]
    array = np.array([[[0, 3, 40, 41]]], np.uint8)
    assert find_numbering(scheme, "other").translate(array).tolist() == [[[0, 5, 1, 0]]]
    assert find_numbering(scheme, "other").fits_name("other_7")
    assert LabelScheme.from_dict(json.loads(json.dumps(scheme.to_dict()))) == scheme
    again = LabelScheme.from_dict(scheme.to_dict())
    assert again.conventions == scheme.conventions


def test_tumors_win_and_the_rest_loses_unless_priorities_are_given(tmp_path):
    text = '[[labels]]\nvalue = {}\nname = "{}"\nrole = "{}"\n'
    parts = [(1, "Body", "rest"), (2, "Organ", "structure"), (3, "Mass", "tumor")]
    scheme = read_scheme(saved(tmp_path, "".join(text.format(*part) for part in parts)))
    assert scheme.name == "labels" and scheme.priority == (3, 2, 1)


@pytest.mark.parametrize("name", scheme_names())
def test_the_schemes_that_ship_are_such_files(tmp_path, name):
    scheme = load_scheme(name)
    for path in (
        saved(tmp_path, json.dumps(scheme.to_dict(), indent=1), "a.json"),
        saved(tmp_path, scheme_toml(scheme, ["remark"]), "a.toml"),
    ):
        read, problems = check_scheme(path)
        assert read == scheme and problems == []
        assert [label.aliases for label in read.labels] == [label.aliases for label in scheme.labels]
    assert find_scheme(name) is scheme
    with pytest.raises(MedDPMError, match="labels new"):
        find_scheme("brain")


TEXTS = st.text(st.characters(blacklist_categories=("C", "Z")), min_size=1, max_size=12)
CODES = st.builds(Code, TEXTS, TEXTS, TEXTS)


@st.composite
def schemes(draw) -> LabelScheme:
    values = draw(st.lists(st.integers(1, 255), min_size=1, max_size=6, unique=True).map(sorted))
    names = draw(st.lists(TEXTS, min_size=len(values), max_size=len(values), unique_by=str.casefold))
    priorities = draw(st.permutations(range(len(values))))
    labels = []
    for value, name, priority in zip(values, names, priorities, strict=True):
        codes = draw(st.just((None, None)) | st.tuples(CODES, CODES))
        role, tissue = draw(st.sampled_from([None, "tumor", "structure"])), draw(st.sampled_from([None, "rim"]))
        color = tuple(draw(st.lists(st.integers(0, 255), min_size=3, max_size=3)))
        aliases = tuple(draw(st.lists(TEXTS, max_size=2)))
        plausible = draw(st.none() | st.tuples(st.floats(0, 5), st.floats(5, 9)))
        labels.append(Label(value, name, role, color, priority, *codes, aliases, tissue, plausible))
    meanings = draw(st.dictionaries(st.integers(1, 65_535), st.sampled_from([*names, "none"]), min_size=1, max_size=4))
    convention = Convention(
        "other", draw(TEXTS), tuple(sorted(meanings.items())), tuple(draw(st.lists(st.just("a.*"))))
    )
    return LabelScheme(draw(TEXTS), draw(TEXTS), tuple(labels), "own", draw(st.sampled_from([(), (convention,)])))


@settings(max_examples=60, deadline=None)
@given(schemes())
def test_every_scheme_survives_its_file(tmp_path_factory, scheme):
    path = saved(tmp_path_factory.mktemp("s"), scheme_toml(scheme))
    read = read_scheme(path)
    if not any(label.tissue for label in scheme.labels):  # names of old cards say their tissue
        assert {label.name: label.role for label in read.labels} == {x.name: x.role for x in scheme.labels}
    else:
        assert read == scheme and read.conventions == scheme.conventions
        assert [label.plausible_ml for label in read.labels] == [label.plausible_ml for label in scheme.labels]


@pytest.mark.parametrize(
    ("old", "new", "line", "message"),
    [
        ("value = 2", "value = 0", 9, "from 1 to 255"),
        ("value = 2", 'value = "2"', 9, "whole number"),
        ("value = 5", "value = 1", 14, "line 4"),
        ('name = "Spleen"', 'name = "liver"', 15, "line 5"),
        ('name = "Left kidney"', "", 8, 'lacks the field "name"'),
        ("[200, 60, 60]", "[200, 60]", 11, "red, green and blue"),
        ("[200, 60, 60]", "[200, 60, 256]", 11, "from 0 to 255"),
        ('aliases = ["hepar"]', 'role = "organ"', 6, "one of tumor"),
        ('aliases = ["hepar"]', 'alias = ["hepar"]', 6, '"alias"'),
        ('aliases = ["hepar"]', 'type = { scheme = "SCT" }', 6, "value"),
        ('3 = "Spleen"', '3 = "Milz"', 19, "Milz"),
        ('3 = "Spleen"', '0 = "Spleen"', 19, "1 to 65535"),
        ('["other_.*"]', '["other_(.*"]', 20, "pattern"),
        ('name = "organs"', 'nme = "organs"', 1, '"nme"'),
        ('3 = "Spleen"', '70000 = "Spleen"', 19, "1 to 65535"),
        ('["other_.*"]', '"other"', 20, "list"),
        ('name = "organs"', 'own_numbering = "other"', 18, "another numbering"),
        ('aliases = ["hepar"]', 'aliases = "hepar"', 6, "list"),
        ('aliases = ["hepar"]', "priority = 3", 10, "no priority: give one to all"),
        ("[[labels]]\nvalue = 5", "[[labels]\nvalue = 5", 13, "not TOML"),
        ('"Left kidney"', '"Left kidney', 10, "not TOML"),
    ],
)
def test_each_mistake_is_found_in_its_line(tmp_path, old, new, line, message):
    assert old in ORGANS
    path = saved(tmp_path, ORGANS.replace(old, new, 1))
    scheme, problems = check_scheme(path)
    assert scheme is None
    assert any(one.line == line and message in one.text for one in problems), problems
    assert not any("no label:" in one.text for one in problems) or message in ("Milz", 'no "name"', "line 5")
    with pytest.raises(MedDPMError, match="labels.toml") as caught:
        find_scheme(path)
    assert len(str(caught.value).splitlines()) == 1


def test_labels_in_braces_have_lines_too(tmp_path):
    text = 'name = "x"\nlabels = [\n  { value = 1, name = "A" },\n  { value = 1, name = "B" },\n]\n'
    _, problems = check_scheme(saved(tmp_path, text))
    assert [(one.line, "line 3" in one.text) for one in problems] == [(4, True)]


@pytest.mark.parametrize("entry", ['abc = "Spleen"', '"1-3" = "Spleen"', '70000 = "Spleen"', '4 = "Milz"', "4 = 1"])
def test_each_value_of_a_numbering_has_its_line(tmp_path, entry):
    table = f'[numberings.values]\n40 = "Liver"\n{entry}\n'
    path = saved(tmp_path, ORGANS[: ORGANS.index("values = {")] + table)
    _, problems = check_scheme(path)
    assert [path.read_text().splitlines()[one.line - 1] for one in problems] == [entry]


def test_a_name_of_a_scheme_that_ships_is_hardly_meant_for_other_labels(tmp_path):
    scheme, problems = check_scheme(saved(tmp_path, ORGANS.replace("organs", "brats")))
    assert scheme is not None and [(one.line, one.is_warning) for one in problems] == [(1, True)]
    assert check_scheme(saved(tmp_path, scheme_toml(load_scheme("brats"))))[1] == []


def test_all_mistakes_are_listed_with_their_lines_in_json_too(tmp_path):
    data = load_scheme("brats").to_dict()
    data["labels"][1]["value"], data["labels"][2]["color"] = 1, [1, 2, 300]
    text = json.dumps(data, indent=1)
    path = saved(tmp_path, text, "a.json")
    _, problems = check_scheme(path)
    lines = text.splitlines()
    assert len(problems) == 2
    assert '"value": 1' in lines[problems[0].line - 1] and "line 7" in problems[0].text
    assert '"color"' in lines[problems[1].line - 1]
    with pytest.raises(MedDPMError, match="and 1 more"):
        read_scheme(path)


def test_what_is_hardly_meant_is_a_warning(tmp_path):
    alike = ORGANS.replace('name = "Spleen"', 'name = "Spleen"\ncolor = [201, 61, 61]\naliases = ["Hepar"]')
    scheme, problems = check_scheme(saved(tmp_path, alike))
    assert scheme is not None and [one.line for one in problems] == [16, 17]
    assert all(one.is_warning for one in problems)


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_no_file_ends_in_a_traceback(tmp_path_factory, data):
    """Characters of a valid file changed, lines dropped, values of wrong types: one sentence each."""
    kind = data.draw(st.sampled_from(["toml", "json"]))
    seed = data.draw(st.integers(0, 10**6))
    text = ORGANS if kind == "toml" else json.dumps(load_scheme("brats").to_dict(), indent=1)
    rng = random.Random(seed)
    letters = list(text)
    for _ in range(rng.randint(1, 5)):
        place = rng.randrange(len(letters))
        junk = rng.choice(['"', "[", "}", "=", "9" * 400, "-", "é", "\x00", ""])
        letters[place : place + rng.choice([0, 1, 1, 9])] = junk
    path = saved(tmp_path_factory.mktemp("f"), "".join(letters), f"a.{kind}")
    try:
        scheme = read_scheme(path)
    except MedDPMError as error:
        assert len(str(error).splitlines()) == 1
    else:
        assert LabelScheme.from_dict(scheme.to_dict()) == scheme


# First versions --------------------------------------------------------------------------------------

PLACE = Geometry((4, 3, 2), np.eye(4))


def mask(path: Path, *values: int, dtype=np.int16) -> Path:
    array = np.zeros((2, 3, 4), dtype)
    array.ravel()[: len(values)] = values
    write_nifti(path, Volume(array, PLACE))
    return path


def test_a_folder_of_masks(tmp_path):
    mask(tmp_path / "in" / "deep" / "a.nii.gz", 1, 1, 7)
    mask(tmp_path / "in" / "b.nii.gz", 7, 9)
    saved(tmp_path / "in", "7 Spleen 10 20 30 255\n", "b.ctbl")
    (tmp_path / "in" / "broken.nii.gz").write_bytes(b"nothing")
    skipped = []
    scheme, remarks = draft_scheme(tmp_path / "in", report=skipped.append)
    assert scheme.describe_labels() == "1 label 1, 7 spleen, 9 label 9"
    assert "Value 7 is in 2 of 2 masks." in remarks and any("broken" in one for one in skipped)


def test_a_segmentation_keeps_names_colors_and_terminology(tmp_path):
    brats = load_scheme("brats")
    array = np.zeros((2, 3, 4), np.uint8)
    array.ravel()[:4] = brats.values
    write_segments(tmp_path / "a.seg.nrrd", Volume(array, PLACE), brats)
    scheme, _ = draft_scheme(tmp_path / "a.seg.nrrd")
    for label in brats.labels:
        twin = scheme.label_by_name(label.name)
        assert (twin.color, twin.type, twin.category, twin.role) == (
            label.color,
            label.type,
            label.category,
            label.role,
        )


@pytest.mark.parametrize(
    ("name", "text", "expected"),
    [
        ("dataset.json", '{"labels": {"background": 0, "liver": 1, "tumor": [1, 2]}}', "1 liver, 2 tumor"),
        (
            "snap.label",
            '    0     0    0    0        0  0  0    "Clear Label"\n    3   255   10    1        1  1  1    "Liver"\n',
            "3 liver",
        ),
        (
            "lut.txt",
            "#No. Label Name: R G B A\n17  Left-Hippocampus  220 216 20 0\n4 Left_Ventricle 1 2 3 0\n",
            "4 left ventricle, 17 left-hippocampus",
        ),
        ("t.csv", "LabelValue,Name,Color_R,Color_G,Color_B\n2,Liver,9,8,7\n", "2 liver"),
    ],
)  # fmt: skip
def test_tables_of_other_programs(tmp_path, name, text, expected):
    scheme, _ = draft_scheme(saved(tmp_path, text, name))
    assert scheme.describe_labels() == expected
    if name == "t.csv":
        assert scheme.labels[0].color == (9, 8, 7)


def test_values_beyond_255_are_numbered_anew(tmp_path):
    scheme, _ = draft_scheme(saved(tmp_path, "17 Left-Hippocampus 220 216 20 0\n1002 Cortex 1 2 3 0\n", "lut.txt"))
    assert scheme.values == (1, 2)
    assert dict(scheme.conventions[0].meanings) == {17: "Left-Hippocampus", 1002: "Cortex"}
    array = np.array([[[17, 1002, 0]]], np.uint16)
    assert find_numbering(scheme, "lut-files").translate(array).tolist() == [[[1, 2, 0]]]


def test_a_label_with_a_comma_can_be_said(tmp_path):
    scheme = find_scheme(saved(tmp_path, ORGANS.replace('"Left kidney"', '"Kidney, left"')))
    numbering = find_numbering(scheme, "30=Kidney, left, 40=spleen,50=none")
    assert dict(numbering.values) == {30: 2, 40: 5, 50: 0}
    assert segment_labels(scheme, "left one=kidney, left,x=none") == {
        "left one": scheme.label_by_name("Kidney, left"),
        "x": None,
    }
    for wrong in ("30=Kidney, right", "30=spleen,x=liver"):
        with pytest.raises(MedDPMError, match="no label|does not define"):
            find_numbering(scheme, wrong)


def test_from_a_source_to_a_valid_file(tmp_path):
    mask(tmp_path / "a.nii.gz", 1, 2)
    run = CliRunner().invoke
    out = tmp_path / "mine.toml"
    result = run(app, ["labels", "new", str(tmp_path / "a.nii.gz"), "--out", str(out), "--name", "Mine"])
    assert result.exit_code == 0, result.output
    assert read_scheme(out).name == "mine"
    result = run(app, ["labels", "check", str(out)])
    assert result.exit_code == 0 and "is valid" in result.output
    assert run(app, ["labels", "new", str(tmp_path / "a.nii.gz"), "--out", str(out)]).exit_code == 2
    before = out.read_text()
    out.write_text(before.replace("value = 2", "value = 1"))
    result = run(app, ["labels", "check", str(out)])
    number = max(n for n, line in enumerate(out.read_text().splitlines(), 1) if line == "value = 1")
    assert result.exit_code == 2 and f"line {number}: the value 1" in result.output


def test_what_has_no_labels_is_refused(tmp_path):
    image = np.random.default_rng(0).random((20, 20, 20)).astype(np.float32)
    write_nifti(tmp_path / "image.nii.gz", Volume(image, Geometry((20, 20, 20), np.eye(4))))
    for source, message in (
        (tmp_path / "image.nii.gz", "image, not a mask"),
        (tmp_path / "absent", "not there"),
        (mask(tmp_path / "empty.nii.gz"), "no labels"),
        (saved(tmp_path, "hello", "t.txt"), "names no labels"),
        (saved(tmp_path, "1 Liver 1 2 3 255\n2 Spleen 4 5\n", "s.ctbl"), "s.ctbl, line 2"),
        (mask(tmp_path / "below.nii.gz", 1, -1), "below.nii.gz: it holds values from -1"),
        (mask(tmp_path / "above.nii.gz", 65536, dtype=np.int32), "above.nii.gz: it holds values from 0 to 65536"),
    ):
        with pytest.raises(MedDPMError, match=message):
            draft_scheme(source)
