"""The design of a reader study: files say nothing, orders are balanced, the truth stays with the organizer."""

from __future__ import annotations

import gzip
import json
import zipfile
from collections import Counter

import numpy as np
import pytest
import SimpleITK
from hypothesis import given, settings
from hypothesis import strategies as st
from study_cases import (
    PASSPHRASE,
    brain,
    make_study,
    small_plan,
    write_real,
)

from MedDPMLib.errors import MedDPMError
from MedDPMLib.imaging.geometry import Grid
from MedDPMLib.imaging.io import read_volume
from MedDPMLib.study import blinding
from MedDPMLib.study.casefile import common_length, compress, write_case
from MedDPMLib.study.create import create
from MedDPMLib.study.definition import CASES, STUDY_FILE, Sessions, Tasks, check_readers, read_definition, slug
from MedDPMLib.study.order import PAIR, SINGLE, Material, orders
from MedDPMLib.study.pack import ORDER_FILE, pack, read_task, unpack
from MedDPMLib.study.sources import collect
from MedDPMLib.study.truth import TRUTH_FILE, read_truth

# Files -----------------------------------------------------------------------------------------------


@given(st.integers(0, 2**32 - 1), st.integers(0, 40))
@settings(max_examples=25, deadline=None)
def test_a_case_of_any_padding_is_read_back(tmp_path_factory, seed, extra):
    grid = Grid((7, 9, 8), (1.5, 2.0, 2.5), "LPS")
    array = np.random.default_rng(seed).integers(0, 256, grid.shape).astype(np.uint8)
    path = tmp_path_factory.mktemp("case") / "c.nrrd"
    data = compress(array)
    length = common_length([len(data)]) + extra
    write_case(path, data, array, grid, length)
    raw = path.read_bytes()
    start = raw.index(b"\n\n") + 2
    assert len(raw) - start == length and gzip.decompress(raw[start:]) == array.tobytes()
    back = read_volume(path)
    np.testing.assert_array_equal(back.array, array)
    assert back.geometry.orientation == "LPS" and np.allclose(back.geometry.center, 0)
    np.testing.assert_allclose(SimpleITK.ReadImage(str(path)).GetSpacing(), grid.spacing)


def test_folders_and_tables_give_the_same_cases(tmp_path):
    for case in ("a", "b"):
        for modality in ("t1", "t1ce"):
            write_real(tmp_path / "in" / case / f"{case}_{modality}.nii.gz", brain(1))
        write_real(tmp_path / "in" / case / f"{case}_seg.nii.gz", brain(1))
    found = collect(tmp_path / "in", ("t1", "t1ce"))
    assert {case: sorted(files) for case, files in found.items()} == {"a/a": ["t1", "t1ce"], "b/b": ["t1", "t1ce"]}
    table = tmp_path / "cases.csv"
    rows = "".join(f"{c},in/{c}/{c}_t1.nii.gz,in/{c}/{c}_t1ce.nii.gz\n" for c in "ab")
    table.write_text("case,t1,t1ce\n" + rows)
    assert list(collect(table, ("t1", "t1ce")).values()) == list(found.values())
    (tmp_path / "in" / "b" / "b_t1ce.nii.gz").unlink()
    with pytest.raises(MedDPMError, match="b/b has no volume of t1ce"):
        collect(tmp_path / "in", ("t1", "t1ce"))
    with pytest.raises(MedDPMError, match="both t1 of the case"):
        write_real(tmp_path / "in" / "a" / "a-T1.nii.gz", brain(1))
        collect(tmp_path / "in", ("t1",))
    assert len(collect(tmp_path / "in" / "b", ("flair",))) == 2  # no file says flair: each is a case
    with pytest.raises(MedDPMError, match="neither a folder"):
        collect(tmp_path / "nowhere", ("t1",))


def test_modalities_of_different_size_are_refused(tmp_path):
    first = write_real(tmp_path / "c_t1.nii.gz", brain(1))
    second = write_real(tmp_path / "c_t2.nii.gz", brain(1)[:-1])
    with pytest.raises(MedDPMError, match="differ in size"):
        blinding.common_form({"c": {"t1": first, "t2": second}}, levels=256, smoothing=0, spacing=None)


# The study -------------------------------------------------------------------------------------------


def test_a_study_file_that_was_edited_is_refused(tmp_path):
    study = make_study(tmp_path)
    definition = read_definition(study)
    assert definition.real == definition.synthetic == 6 and definition.readers == ("Ada", "Ben")
    text = (study / STUDY_FILE).read_text()
    for before, after in (
        ("auc = 0.1", "auc = 0.2"),
        ('"Ada"', '"Eve"'),
        ("length = 40", 'length = "a"'),
        ("real = 6", ""),
    ):
        assert before in text
        (study / STUDY_FILE).write_text(text.replace(before, after))
        with pytest.raises(MedDPMError, match="edited"):
            read_definition(study)
    (study / STUDY_FILE).write_text(text.replace("[seal]", "[seal"))
    with pytest.raises(MedDPMError, match="damaged"):
        read_definition(study)


def test_the_truth_opens_with_its_passphrase_beside_its_study_only(tmp_path):
    study = make_study(tmp_path)
    hash_ = read_definition(study).hash
    truth = read_truth(study, PASSPHRASE, hash_)
    assert sum(case["synthetic"] for case in truth["cases"].values()) == 6
    for passphrase, other in (("wrong passphrase", hash_), (PASSPHRASE, "0" * 64)):
        with pytest.raises(MedDPMError, match="does not open"):
            read_truth(study, passphrase, other)
    stored = (study / TRUTH_FILE).read_text()
    for secret in ("synthetic", "training", "model", PASSPHRASE):
        assert secret not in stored
    for damage in (stored[:-40], stored.replace('"n": 65536', '"n": 1073741824'), "{}"):
        (study / TRUTH_FILE).write_text(damage)
        with pytest.raises(MedDPMError, match="damaged"):
            read_truth(study, PASSPHRASE, hash_)
    with pytest.raises(MedDPMError, match="too short"):
        create(tmp_path / "other", small_plan(tmp_path), "short")
    assert not (tmp_path / "other").exists() and not list(tmp_path.glob(".study-*"))


def test_a_reader_gets_nothing_of_the_truth(tmp_path):
    study = make_study(tmp_path)
    archives = pack(study, tmp_path / "out")
    assert [path.name for path in archives] == ["ada.study.zip", "ben.study.zip"]
    with zipfile.ZipFile(archives[0]) as archive:
        names = archive.namelist()
        assert {STUDY_FILE, ORDER_FILE} < set(names) and len(names) == 2 + 12 and TRUTH_FILE not in names
        assert len({info.date_time for info in archive.infolist()}) == 1
        assert len({info.file_size for info in archive.infolist() if info.filename.startswith(CASES)}) == 1
        said = (archive.read(STUDY_FILE) + archive.read(ORDER_FILE)).decode()
    order = json.loads(said[said.index("{") :])
    known = [one for one in order["presentations"] if one["answer"] is not None]
    assert len(known) == 2 and all(one["training"] for one in known)  # shown as feedback
    for secret in ("r0", "s0", "seed", str(tmp_path)):
        assert secret not in said.replace("readers", "").replace("errors", ""), secret
    # Two archives of one study are the same but for the reader's own order.
    with zipfile.ZipFile(archives[1]) as other, zipfile.ZipFile(archives[0]) as first:
        differ = [name for name in names if other.read(name) != first.read(name)]
    assert differ == [ORDER_FILE]


def test_damaged_and_foreign_archives_are_refused(tmp_path):
    study = make_study(tmp_path)
    archive = pack(study, tmp_path / "out")[0]
    task = unpack(archive, tmp_path / "ada")
    assert task.reader == "Ada" and unpack(archive, tmp_path / "ada") == task
    order = tmp_path / "ada" / ORDER_FILE
    stored = order.read_text()
    order.write_text(stored.replace(task.definition.hash, "0" * 64))
    with pytest.raises(MedDPMError, match="another study"):
        read_task(tmp_path / "ada")
    order.write_text(stored)
    task.case_file(task.presentations[0].cases[0], "t1").unlink()
    with pytest.raises(MedDPMError, match="is missing"):
        read_task(tmp_path / "ada")
    archive.write_bytes(archive.read_bytes()[:-2000])
    with pytest.raises(MedDPMError, match="damaged"):
        unpack(archive, tmp_path / "again")
    with zipfile.ZipFile(tmp_path / "evil.zip", "w") as evil:
        evil.writestr("../evil.txt", "x")
    with pytest.raises(MedDPMError, match="no study"):
        unpack(tmp_path / "evil.zip", tmp_path / "evil")
    assert not (tmp_path / "evil.txt").exists() and not list(tmp_path.glob(".*unfinished"))


@pytest.mark.parametrize("name", ["Dr. A/B", "..\\x", "Zoë Müller", "脳", "a" * 90])
def test_names_of_readers_become_names_of_files(name):
    assert slug(name) and not set(slug(name)) & set("/\\.: ")
    with pytest.raises(MedDPMError, match="named like another"):
        check_readers((name, f" {name} "))


def test_names_without_a_letter_and_too_few_cases_are_refused(tmp_path):
    with pytest.raises(MedDPMError, match="no letter"):
        check_readers(("///",))
    with pytest.raises(MedDPMError, match="at least one reader"):
        check_readers(())
    with pytest.raises(MedDPMError, match="too few"):
        small_plan(tmp_path, real=2, synthetic=6)
    with pytest.raises(MedDPMError, match="no synthetic"):
        small_plan(tmp_path, synthetic=0)


# Orders ----------------------------------------------------------------------------------------------


def material(cases=40, training=4, pairs=True):
    truth = {f"{n:02x}": n % 2 for n in range(cases)}
    shown = sorted(truth)[training:]
    couples = (
        list(zip([c for c in shown if not truth[c]], [c for c in shown if truth[c]], strict=True)) if pairs else []
    )
    return Material(truth, sorted(truth)[:training], couples)


def test_each_reader_sees_every_case_once_and_a_tenth_again():
    given_material = material()
    sessions = Sessions(length=15, training=4, repeats=0.1)
    made = orders(given_material, 6, Tasks(forced_choice=True), sessions, np.random.default_rng(3))
    assert len({tuple(one.cases for one in order) for order in made}) == 6
    for order in made:
        assert [one.number for one in order] == list(range(len(order)))
        training = [one for one in order if one.training]
        assert order[:4] == training and all(one.answer == given_material.truth[one.cases[0]] for one in training)
        singles = [one.cases[0] for one in order if one.kind == SINGLE and not one.training]
        counts = Counter(singles)
        assert set(counts) == set(given_material.truth) - set(given_material.training)
        repeated = [case for case, count in counts.items() if count == 2]
        assert len(repeated) == 4 and max(counts.values()) == 2
        assert sum(given_material.truth[case] for case in repeated) == 2  # of both classes alike
        for case in repeated:
            first, second = (n for n, one in enumerate(singles) if one == case)
            assert second - first >= 10
        assert all(one.answer is None for one in order if not one.training)
        pairs = [one for one in order if one.kind == PAIR]
        left = sum(given_material.truth[one.cases[0]] for one in pairs)
        assert len(pairs) == 18 and left == 9  # sides balanced
        sizes = Counter(one.session for one in order if not one.training)
        assert all(size == 15 for session, size in sizes.items() if session < max(sizes))
        assert [one.session for one in order] == sorted(one.session for one in order)


def test_positions_are_balanced_over_readers_and_classes():
    given_material = material(cases=40, training=0, pairs=False)
    made = orders(given_material, 8, Tasks(), Sessions(training=0, repeats=0), np.random.default_rng(0))
    place = np.array(
        [[next(o.number for o in order if o.cases == (c,)) for c in given_material.truth] for order in made]
    )
    kinds = np.array(list(given_material.truth.values()), bool)
    for row in place:
        assert abs(row[kinds].mean() - row[~kinds].mean()) < 3
    rng = np.random.default_rng(1)
    drawn = np.array([rng.permutation(40) for _ in range(8)])
    assert place.mean(axis=0).std() < drawn.mean(axis=0).std()


def test_the_same_seed_gives_the_same_orders():
    made = [orders(material(), 3, Tasks(), Sessions(), np.random.default_rng(seed)) for seed in (1, 1, 2)]
    assert made[0] == made[1] != made[2]


def test_pairs_alone_have_training_pairs_with_an_answer():
    given_material = material()
    order = orders(given_material, 1, Tasks(False, True), Sessions(training=4), np.random.default_rng(0))[0]
    training = [one for one in order if one.training]
    assert len(training) == 2 and all(one.kind == PAIR for one in order)
    for one in training:
        assert given_material.truth[one.cases[one.answer]] == 1 and given_material.truth[one.cases[1 - one.answer]] == 0


def test_too_many_repeats_are_refused():
    with pytest.raises(MedDPMError, match="repeats"):
        orders(material(), 1, Tasks(), Sessions(repeats=0.9), np.random.default_rng(0))
