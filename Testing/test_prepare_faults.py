"""Broken cases, odd sources, interruptions: what is reported, what continues, and that nothing is lost."""

from __future__ import annotations

import json
import random
import shutil
import signal
import threading
import time
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import numpy as np
import psutil
import pytest
from conftest import finish
from hypothesis import given, settings
from hypothesis import strategies as st
from phantoms import (
    BRATS,
    LAYOUTS,
    MODALITIES,
    PLACE,
    RAW_2021,
    RAW_2023,
    SHAPE,
    SMALL,
    WHOLE_HEAD,
    assert_same,
    contents,
    make,
    nnunet_2,
    nothing_left,
    pairs,
    phantom,
    renumbered,
    save,
    shrink,
    table,
    write_brats,
    write_heads,
    write_nnunet,
)

from MedDPMLib.data import read_dataset
from MedDPMLib.errors import MedDPMError
from MedDPMLib.imaging.geometry import Geometry
from MedDPMLib.imaging.io import read_volume, write_nifti
from MedDPMLib.imaging.volume import Volume
from MedDPMLib.prepare import STANDARDS, DatasetSettings, Standard, find_cases, write_dataset
from MedDPMLib.prepare.cases import prepare_case


@pytest.fixture
def small(monkeypatch):
    shrink(monkeypatch)


# Faults ----------------------------------------------------------------------------------------------


def spoil(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-200])


def set_array(name: str, change):
    def apply(folder: Path) -> None:
        path = folder / name
        volume = read_volume(path)
        save(path, change(volume.array), volume.geometry)

    return apply


def moved(folder: Path) -> None:
    volume = read_volume(folder / "bad_t2.nii.gz")
    matrix = volume.geometry.ijk_to_ras.copy()
    matrix[0, 3] += 3
    write_nifti(folder / "bad_t2.nii.gz", Volume(volume.array, Geometry(volume.geometry.size, matrix)))


FAULTS = {
    "truncated": (lambda folder: spoil(folder / "bad_t1.nii.gz"), "bad_t1.nii.gz is damaged: .* cut off"),
    "no image": (lambda folder: (folder / "bad_t1.nii.gz").write_bytes(b"text"), "bad_t1.nii.gz cannot be read"),
    "missing": (
        lambda folder: (folder / "bad_t2.nii.gz").unlink(),
        "bad_t1.nii.gz exists, but .*bad_t2.nii.gz is missing",
    ),
    "elsewhere": (moved, "bad_t2.nii.gz and .*bad_t1.nii.gz do not lie on one grid"),
    "nan": (set_array("bad_t1.nii.gz", lambda a: np.where(a == a.max(), np.nan, a.astype(np.float32))), "not finite"),
    "constant": (
        set_array("bad_t1ce.nii.gz", lambda a: np.where(a > 0, 7, 0).astype(np.int16)),
        "bad_t1ce.nii.gz: it is constant where the labels are",
    ),
    "unknown label": (
        set_array("bad_seg.nii.gz", lambda a: np.where(a == 1, 9, a).astype(np.uint8)),
        "bad_seg.nii.gz: the values 2, 4, 9 are in no known label convention: .* look like .* necrosis .9",
    ),
    "soft labels": (set_array("bad_seg.nii.gz", lambda a: a.astype(np.float32) / 4), "bad_seg.nii.gz: .*not whole"),
    "not skull-stripped": (
        set_array("bad_t1.nii.gz", lambda a: np.random.default_rng(0).integers(1, 900, a.shape).astype(np.int16)),
        "no empty background",
    ),
    "two volumes": (
        lambda folder: save(
            folder / "bad_t1.nii.gz", np.zeros((1, 20, 24), np.int16), Geometry((24, 20, 1), np.eye(4))
        ),
        "not one 3-D volume",
    ),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_broken_case_is_reported_and_the_rest_continues(tmp_path, small, fault):
    write_brats(tmp_path / "source", [1, 2])
    folder = tmp_path / "source" / "bad"
    shutil.copytree(tmp_path / "source" / "case2", folder)
    for path in folder.iterdir():
        path.rename(folder / path.name.replace("case2", "bad"))
    damage, says = FAULTS[fault]
    damage(folder)
    problems = make([tmp_path / "source"], tmp_path / "out")
    bad = problems.pop("bad")
    assert problems == {"case1": None, "case2": None}
    with pytest.raises(MedDPMError, match=says):
        raise MedDPMError(bad)
    assert table(tmp_path / "out")["bad"]["problem"] == bad
    assert sorted(path.name for path in (tmp_path / "out" / "labelsTr").iterdir()) == ["case1.nii.gz", "case2.nii.gz"]
    assert json.loads((tmp_path / "out" / "dataset.json").read_text())["numTraining"] == 2
    assert nothing_left(tmp_path / "out")


def test_a_brain_that_the_grid_cuts_is_refused_or_reported(tmp_path, monkeypatch):
    write_brats(tmp_path / "source", [1])
    for size, refused in (((28, 24, 8), True), ((28, 24, 13), False)):
        monkeypatch.setitem(STANDARDS, "brats", Standard(replace(SMALL, size=size), MODALITIES, True))
        out = tmp_path / str(size)
        problem = make([tmp_path / "source"], out)["case1"]
        if refused:
            assert "lie outside the model's grid" in problem
        else:
            row = table(out)["case1"]
            labels = read_volume(out / "labelsTr" / "case1.nii.gz").array
            lost = np.count_nonzero(phantom(1)[1]) - np.count_nonzero(labels)
            assert problem is None and lost > 0
            assert float(row["cut off (mm^3)"]) == lost * 216 and "outside the model's grid" in row["notes"]


def test_an_empty_whole_head_mask_is_reported(tmp_path, small):
    images, labels = phantom()
    save(tmp_path / "image" / "a.nii.gz", images["t1"])
    save(tmp_path / "mask" / "a.nii.gz", np.zeros(SHAPE, np.uint8))
    assert "a.nii.gz is empty" in make([tmp_path], tmp_path / "out", "whole-head")["a"]


def test_a_pair_that_does_not_match_names_both_files(tmp_path, small):
    images, labels = phantom()
    head = (labels > 0).astype(np.uint8)
    for name in ("good", "lonely", "other"):
        save(tmp_path / "image" / f"{name}.nii.gz", images["t1"])
    for name in ("good", "mask_only"):
        save(tmp_path / "mask" / f"{name}.nii.gz", head)
    save(tmp_path / "mask" / "other.nii.gz", head, Geometry(PLACE.size, np.diag([-6.0, -6, 5, 1])))
    problems = make([tmp_path], tmp_path / "out", "whole-head", numbering="whole-head")
    assert problems.pop("good") is None
    expected = {
        "lonely": ("image/lonely.nii.gz", "mask/lonely.nii.gz"),
        "mask_only": ("mask/mask_only.nii.gz", "image/mask_only.nii.gz"),
        "other": ("image/other.nii.gz", "mask/other.nii.gz"),
    }
    assert problems.keys() == expected.keys()
    for name, files in expected.items():
        assert all(str(tmp_path / file) in problems[name] for file in files), problems[name]


def test_a_file_that_is_there_twice_is_reported(tmp_path, small):
    write_brats(tmp_path / "source", [1])
    save(tmp_path / "source" / "case1" / "case1_t2.nii", phantom(1)[0]["t2"])
    problem = make([tmp_path / "source"], tmp_path / "out")["case1"]
    assert "case1_t2.nii and" in problem and "case1_t2.nii.gz both exist" in problem


def test_a_tumor_alone_is_not_taken_for_a_head(tmp_path, small):
    """Values 1 and 2 are head and tumor in one scheme, necrosis and edema in another."""
    write_brats(tmp_path / "source", [1], values={1: 1, 2: 2, 3: 2})
    problem = make([tmp_path / "source"], tmp_path / "out", "whole-head")["case1"]
    assert "case1_seg.nii.gz: the values 1, 2 are in no known label convention" in problem
    assert "head of 7.78 ml, where 1800 ml are the least" in problem
    problem = make([tmp_path / "source"], tmp_path / "other", "whole-head", numbering="whole-head")["case1"]
    assert "case1_seg.nii.gz has a head (value 1) of only" in problem


def test_anatomy_needs_structures(tmp_path, small):
    write_brats(tmp_path / "source", [1, 2])
    save(tmp_path / "source" / "case2" / "case2_seg.nii.gz", np.zeros(SHAPE, np.uint8))
    problems = make([tmp_path / "source"], tmp_path / "out", "anatomy")
    assert all("--anatomy" in problem for problem in problems.values())
    problems = make([tmp_path / "source"], tmp_path / "out", "anatomy", anatomy=tmp_path)
    assert all("case" in problem and "_anatomy.nii.gz" in problem for problem in problems.values())


@pytest.mark.parametrize(
    ("write", "says"),
    [
        (lambda root: root.mkdir(), "holds no volumes: expected are BraTS cases"),
        (lambda root: root.write_text(""), "is not a folder: expected are"),
        (lambda root: save(root / "a.nii.gz", phantom()[1]), r"masks without images \(a.nii.gz is a map of labels\)"),
        (lambda root: save(root / "a.nii.gz", phantom()[0]["t1"] * 9.5), "has none of the known layouts"),
        (
            lambda root: (nnunet_2(root, [1]), (root / "dataset.json").write_text('{"labels": {}}')),
            "is not nnU-Net's description",
        ),
        (
            lambda root: write_nnunet(
                root, [1], {"channel_names": {"0": "T1", "1": "CT"}}, {"background": 0}, RAW_2023
            ),
            "names the channels T1, CT: t1ce, t2, flair is missing",
        ),
        (
            lambda root: write_nnunet(
                root, [1], {"channel_names": dict(enumerate(MODALITIES))}, {"liver": 1, "background": 0}, RAW_2023
            ),
            'names a label "liver", which is none of the scheme "brats"',
        ),
    ],
)
def test_a_source_of_no_known_layout_is_reported(tmp_path, write, says):
    write(tmp_path / "source")
    with pytest.raises(MedDPMError, match=says):
        find_cases([tmp_path / "source"], BRATS, MODALITIES)


def test_names_that_are_there_twice_are_refused_naming_both(tmp_path):
    write_brats(tmp_path / "a", [1])
    LAYOUTS["2018"](tmp_path / "b", [1])
    with pytest.raises(MedDPMError, match="case1 occurs twice") as refused:
        find_cases([tmp_path / "a", tmp_path / "b"], BRATS, MODALITIES)
    assert str(tmp_path / "a" / "case1") in str(refused.value)
    assert str(tmp_path / "b" / "HGG" / "case1") in str(refused.value)


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 10**6), which=st.sampled_from(["a_t1.nii", "a_seg.nii", "dataset.json"]))
def test_damaged_bytes_make_a_problem_and_never_anything_else(tmp_path_factory, seed, which):
    """Bytes are changed and the end is cut off: the case is prepared or reported, in a sentence."""
    root = tmp_path_factory.getbasetemp() / "damaged"
    shutil.rmtree(root, ignore_errors=True)
    images, labels = phantom()
    chance = random.Random(seed)
    if which == "dataset.json":
        nnunet_2(root, [1])
    else:
        save(root / "a_t1.nii", images["t1"])
        save(root / "a_seg.nii", renumbered(labels, RAW_2021))
    data = bytearray((root / which).read_bytes())
    for _ in range(chance.randrange(1, 5)):
        data[chance.randrange(min(len(data), 360))] = chance.randrange(256)
    if chance.random() < 0.3:
        del data[chance.randrange(len(data)) :]
    (root / which).write_bytes(data)
    with np.errstate(all="ignore"):
        try:
            for case in find_cases([root], BRATS, ("t1",)):
                prepare_case(
                    case,
                    Standard(SMALL, ("t1",), True),
                    BRATS,
                    anatomy=None,
                    numbering=None,
                    normalization="percentiles",
                )
        except MedDPMError as error:
            assert "\n" not in str(error)


@settings(max_examples=60, deadline=None)
@given(
    st.lists(
        st.sampled_from(
            ["t1", "seg", "image", "mask", "a_t1", "a-t1n", "a_seg", "imagesTr", "b", "_t1", "-seg", "a_0000"]
        ),
        min_size=1,
        max_size=8,
    ),
    st.integers(0, 999),
)
def test_any_tree_of_files_is_read_or_refused_in_a_sentence(tmp_path_factory, names, seed):
    root = tmp_path_factory.getbasetemp() / "tree"
    shutil.rmtree(root, ignore_errors=True)
    root.mkdir()
    chance, folders = random.Random(seed), [root]
    for name in names:
        parent = chance.choice(folders)
        if chance.random() < 0.5:
            (parent / name).mkdir(exist_ok=True)
            folders.append(parent / name)
        else:
            (parent / f"{name}{chance.choice(['.nii.gz', '.nii', '.txt'])}").write_bytes(b"")
    try:
        cases = find_cases([root], BRATS, ("t1",))
    except MedDPMError:
        return
    assert all(case.problem or case.images for case in cases)


# Resuming --------------------------------------------------------------------------------------------


def stamps(dataset: Path) -> dict[str, int]:
    return {path.name: path.stat().st_mtime_ns for path in dataset.glob("*Tr/*.nii.gz")}


def test_what_is_done_is_not_done_again_and_what_changed_is(tmp_path, small):
    source, out = tmp_path / "source", tmp_path / "out"
    write_brats(source, [1, 2, 3])
    make([source], out)
    before, rows = stamps(out), table(out)
    chosen = DatasetSettings("brats", MODALITIES)
    reports = list(write_dataset(find_cases([source], BRATS, MODALITIES), out, chosen))
    assert all(report.was_done for report in reports) and stamps(out) == before and table(out) == rows

    save(source / "case2" / "case2_t1.nii.gz", phantom(9)[0]["t1"])
    (source / "case3" / "case3_t2.nii.gz").unlink()
    (out / "labelsTr" / "case1.nii.gz").unlink()  # as if interrupted before its last file
    problems = make([source], out)
    assert problems["case1"] is problems["case2"] is None and "case3_t2.nii.gz is missing" in problems["case3"]
    after = stamps(out)
    assert {name for name in before if after.get(name) == before[name]} == set(), "all three are of other files now"
    assert not [name for name in after if name.startswith("case3")], "nothing is left of what has lost its source"
    make([source / "case1", source / "case2"], tmp_path / "fresh")
    assert_same(contents(out), contents(tmp_path / "fresh"))


def test_a_dataset_grows_by_further_sources_and_keeps_to_its_settings(tmp_path, small):
    write_brats(tmp_path / "a", [1])
    pairs(tmp_path / "b", [2])
    make([tmp_path / "a"], tmp_path / "out")
    make([tmp_path / "b"], tmp_path / "out")
    assert list(table(tmp_path / "out")) == ["case1", "case2"]
    assert json.loads((tmp_path / "out" / "dataset.json").read_text())["numTraining"] == 2
    with pytest.raises(MedDPMError, match="holds another dataset .normalization differs"):
        make([tmp_path / "a"], tmp_path / "out", normalization="per-volume")
    with pytest.raises(MedDPMError, match="holds another dataset .labels differs"):
        make([tmp_path / "a"], tmp_path / "out", "anatomy")


def test_a_dataset_is_not_prepared_onto_itself(tmp_path, small):
    write_brats(tmp_path / "source", [1])
    make([tmp_path / "source"], tmp_path / "out")
    before = contents(tmp_path / "out")
    with pytest.raises(MedDPMError, match="lies in .*out itself: choose another folder"):
        make([tmp_path / "out"], tmp_path / "out")
    assert_same(contents(tmp_path / "out"), before)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("nonsense", ("t1",)), 'no label scheme "nonsense": use one of anatomy, brats, whole-head'),
        (("whole-head", ("t1", "t2")), '"t1,t2" are not modalities of the scheme "whole-head"'),
        (("brats", ()), "are not modalities"),
        (("brats", ("t1",), Path("x")), "has no structures: leave out --anatomy"),
        (("brats", ("t1",), None, "x"), 'no label convention "x"'),
        (("brats", ("t1",), None, None, "x"), 'no normalization "x"'),
    ],
)
def test_settings_that_do_not_fit_are_reported(arguments, says):
    with pytest.raises(MedDPMError, match=says):
        DatasetSettings(*arguments)


def test_a_killed_preparation_goes_on_where_it_was(tmp_path, meddpm_process):
    """With processes of its own: none outlives the command, no half-written file counts, nothing is done twice."""
    write_heads(tmp_path / "source", 5)
    command = ["prepare", "source", "--scheme", "whole-head", "--workers", "2", "--out"]
    process = meddpm_process(*command, "out")
    out = tmp_path / "out"
    deadline = time.monotonic() + 120
    while len(list((out / "labelsTr").glob("head*.nii.gz"))) < 2 and time.monotonic() < deadline:
        time.sleep(0.01)
    children = psutil.Process(process.pid).children(recursive=True)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert len(children) >= 2
    _, alive = psutil.wait_procs(children, timeout=30)
    assert not alive, "a process outlives the command"
    done = {path.name: path.stat().st_mtime_ns for path in (out / "labelsTr").glob("head*.nii.gz")}
    assert 2 <= len(done) <= 5
    for name in done:  # the label file comes last, so its image is whole
        read_volume(out / "labelsTr" / name)
        read_volume(out / "imagesTr" / name.replace(".nii.gz", "_0000.nii.gz"))

    result = finish(meddpm_process(*command, "out"))
    assert result.returncode == 0, result.stderr
    assert f"5 of 5 cases are in out; {len(done)} of them had been prepared before" in result.stdout
    assert all((out / "labelsTr" / name).stat().st_mtime_ns == stamp for name, stamp in done.items())
    assert nothing_left(out)
    assert make([tmp_path / "source"], tmp_path / "whole", "whole-head") == {f"head{n}": None for n in range(5)}
    assert_same(contents(out), contents(tmp_path / "whole"))
    assert table(out) == {
        name: row | {"source": str(Path("source"))} for name, row in table(tmp_path / "whole").items()
    }


def test_a_process_that_dies_is_reported(tmp_path):
    write_heads(tmp_path / "source", 3)
    cases = find_cases([tmp_path / "source"], WHOLE_HEAD, ("t1",))
    chosen, over = DatasetSettings("whole-head", ("t1",)), threading.Event()

    def kill_one() -> None:
        while not over.is_set():
            with suppress(psutil.Error):
                children = [one for one in psutil.Process().children() if "spawn_main" in " ".join(one.cmdline())]
                if len(children) == 2:  # Python 3.11's pool may hang if it breaks while it starts another process
                    children[0].kill()
                    return
            time.sleep(0.01)

    killer = threading.Thread(target=kill_one)
    killer.start()
    try:
        with pytest.raises(MedDPMError, match="a process ended .* use fewer --workers"):
            list(write_dataset(cases, tmp_path / "out", chosen, workers=2))
    finally:
        over.set()
        killer.join()


# The command -----------------------------------------------------------------------------------------


def test_the_command_tells_layout_cases_and_what_it_leaves_out(meddpm, tmp_path, small):
    write_brats(tmp_path / "source", [1, 2])
    (tmp_path / "source" / "case2" / "case2_t2.nii.gz").unlink()
    arguments = ["prepare", "source", "--scheme", "brats", "--workers", 1]
    result = meddpm(*arguments, "--out", "set")
    assert result.returncode == 2
    assert "BraTS: 2 cases" in result.stdout and "case1 prepared" in result.stdout
    assert "1 of 2 cases are in set" in result.stdout
    assert "meddpm: case2 is skipped: " in result.stderr and "case2_t2.nii.gz is missing" in result.stderr
    assert "preparing: 2 of 2" in result.stderr
    result = meddpm(*arguments, "--out", "other", "--modalities", "t1,flair", "--normalize", "per-volume")
    assert result.returncode == 0, result.stderr
    assert len(read_dataset(tmp_path / "other", ["t1", "flair"], scheme="brats")) == 2


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--scheme", "brats", "--anatomy", "nowhere"], "nowhere is not a folder: --anatomy needs"),
        (["--scheme", "Brats"], 'no label scheme "Brats"'),
        (["--scheme", "brats", "--normalize", "zscore"], 'no normalization "zscore"'),
        (["--scheme", "brats"], "source is not a folder"),
    ],
)
def test_mistakes_of_the_command_are_reported(meddpm, arguments, says):
    result = meddpm("prepare", "source", "--out", "set", *arguments)
    assert result.returncode == 2 and says in result.stderr
