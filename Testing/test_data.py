"""Datasets, their variation, and the samples that are learned from."""

from __future__ import annotations

import json
import os
import pickle
import subprocess
import sys
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from MedDPMLib.data import Case, VariedCases, draw_variation, read_dataset, smoothed_for
from MedDPMLib.data.cases import SmoothedCases
from MedDPMLib.errors import MedDPMError
from MedDPMLib.imaging.geometry import Grid
from MedDPMLib.imaging.io import write_nifti
from MedDPMLib.imaging.volume import Volume
from MedDPMLib.masks.condition import voxel_positions
from MedDPMLib.masks.schemes import load_scheme
from MedDPMLib.recipes.recipe import Augmentation

STILL = Augmentation(
    flip=0, rotation=0, scaling=0, translation=0, elastic=0, elastic_points=3, gamma=0, bias=0, bias_points=2
)
LIVELY = Augmentation(
    flip=0.5,
    rotation=8.0,
    scaling=0.06,
    translation=2.0,
    elastic=1.0,
    elastic_points=5,
    gamma=0.2,
    bias=0.2,
    bias_points=4,
)
SHAPE = (16, 24, 32)
ANATOMY = load_scheme("anatomy")


def phantom(shape=SHAPE, channels=2, seed=0, name="phantom") -> Case:
    """A random label map whose labels decide the intensities."""
    rng = np.random.default_rng(seed)
    labels = np.zeros(shape, np.uint8)
    labels[2:-2, 2:-2, 2:-2] = rng.integers(1, 22, [n - 4 for n in shape])
    levels = rng.uniform(-0.8, 1, (channels, 22)).astype(np.float32)
    levels[:, 0] = -1
    return Case(name, torch.from_numpy(levels[:, labels]), torch.from_numpy(labels), (1.0, 1.0, 1.0))


def drawn(case: Case, augmentation: Augmentation, seed: int = 0):
    return draw_variation(case, augmentation, torch.Generator().manual_seed(seed))


def same(one, other) -> bool:
    tensors = ("image", "labels", "positions")
    return one.case == other.case and all(torch.equal(getattr(one, t), getattr(other, t)) for t in tensors)


# Variation -------------------------------------------------------------------------------------------


def test_no_variation_is_the_identity():
    case = phantom()
    still = drawn(case, STILL)
    image, labels = still.apply(case, case.labels.shape)
    assert still.is_identity and torch.equal(image, case.image) and torch.equal(labels, case.labels)
    # It is also what interpolation gives that moves nothing.
    image, labels = replace(still, displacement=still.displacement + 1e-12).apply(case, case.labels.shape)
    torch.testing.assert_close(image, case.image, atol=1e-5, rtol=0)
    assert torch.equal(labels, case.labels)
    for name in ("flip", "rotation", "scaling", "translation", "elastic", "gamma", "bias"):
        assert not drawn(case, replace(STILL, **{name: 1.0})).is_identity, name


def test_a_flip_mirrors_left_and_right_only():
    case = phantom()
    image, labels = drawn(case, replace(STILL, flip=1)).apply(case, case.labels.shape)
    torch.testing.assert_close(image, case.image.flip(3), atol=1e-5, rtol=0)
    assert torch.equal(labels, case.labels.flip(2))


def test_image_and_labels_move_together():
    """A bright cube that is also a label: after any variation both are in the same place."""
    labels = torch.zeros((48, 48, 48), dtype=torch.uint8)
    labels[14:28, 20:34, 22:36] = 19
    case = Case("cube", (labels[None] > 0).float() * 2 - 1, labels, (2.0, 2.0, 2.0))
    for seed in range(5):
        image, varied = drawn(case, replace(LIVELY, gamma=0, bias=0), seed).apply(case, (48, 48, 48))
        bright, labeled = image[0] > 0, varied > 0
        overlap = 2 * (bright & labeled).sum() / (bright.sum() + labeled.sum())
        assert overlap > 0.9, seed


def test_rotation_is_about_millimeters_not_about_the_box():
    """In a box of unequal sides a rotated ball stays a ball: its volume is kept and its axes stay equal."""
    k, j, i = np.mgrid[:40, :60, :80]
    ball = ((k - 19.5) ** 2 + (j - 29.5) ** 2 + (i - 39.5) ** 2 < 12**2).astype(np.uint8)
    case = Case("ball", torch.from_numpy(ball[None].astype(np.float32) * 2 - 1), torch.from_numpy(ball), (1.0,) * 3)
    for seed in range(4):
        _, labels = drawn(case, replace(STILL, rotation=40.0), seed).apply(case, ball.shape)
        spread = torch.nonzero(labels).float().std(dim=0)
        assert abs(int(labels.sum()) / ball.sum() - 1) < 0.03
        assert spread.max() / spread.min() < 1.03


@pytest.mark.parametrize("seed", range(4))
def test_everything_is_interpolated_once(seed):
    """Linear interpolation is exact on a ramp, and the nearest of indices is the rounded index: once each.

    A second interpolation would round the ramp at the borders, and the labels twice.
    """
    side = 40
    k, j, i = torch.meshgrid(*[torch.arange(side)] * 3, indexing="ij")
    # Three channels tell the coordinates of where a voxel comes from, the last whether that is inside.
    ramps = torch.stack([i, j, k, torch.full_like(i, side)]).float() / side * 2 - 1
    case = Case("ramps", ramps, i.to(torch.uint8) + 1, (1.0, 1.0, 1.0))
    image, labels = drawn(case, replace(LIVELY, gamma=0, bias=0), seed).apply(case, ramps.shape[1:])
    source, inside = (image[:3].double() + 1) / 2 * side, image[3] > 1 - 1e-6
    assert inside.float().mean() > 0.4
    unambiguous = inside & ((source[0] - source[0].floor() - 0.5).abs() > 1e-3)
    assert torch.equal(labels[unambiguous].long(), source[0][unambiguous].round().long() + 1)
    # Recovered to rounding, the ramps are straight wherever the displacement is: between its control points.
    bent = torch.diff(source, n=2, dim=3)[:, inside[:, :, 1:-1] & inside[:, :, 2:] & inside[:, :, :-2]]
    assert (bent.abs() < 1e-4).float().mean() > 0.8


def test_no_label_appears_that_was_not_there():
    rng = np.random.default_rng(1)
    labels = torch.from_numpy(rng.choice(np.array([0, 3, 200], np.uint8), (20, 20, 20)))
    case = Case("three", torch.zeros((1, 20, 20, 20)), labels, (1.0,) * 3)
    for seed in range(5):
        assert set(drawn(case, LIVELY, seed).apply(case, (30, 30, 30))[1].unique().tolist()) <= {0, 3, 200}


@settings(max_examples=25, deadline=None)
@given(st.data())
def test_a_patch_is_part_of_the_varied_volume(data):
    case = phantom(seed=data.draw(st.integers(0, 3)))
    shape = data.draw(st.sampled_from([SHAPE, (12, 20, 28), (24, 24, 40)]))
    part = []
    for side in shape:
        start = data.draw(st.integers(0, side - 1))
        part.append(slice(start, data.draw(st.integers(start + 1, side))))
    variation = drawn(case, LIVELY, data.draw(st.integers(0, 99)))
    image, labels = variation.apply(case, shape)
    patch, patch_labels = variation.apply(case, shape, tuple(part))
    # Powers of numbers at the end of an array are not rounded as those that fill a vector register.
    torch.testing.assert_close(patch, image[(slice(None), *part)], atol=1e-6, rtol=0)
    assert torch.equal(patch_labels, labels[tuple(part)])


def test_half_precision_and_single_give_the_same_where_half_can_hold_it():
    case = phantom()
    half = replace(case, image=case.image.half())
    single = replace(case, image=half.image.float())
    for one, other in zip(*(drawn(c, LIVELY, 3).apply(c, SHAPE) for c in (half, single)), strict=True):
        assert torch.equal(one, other)
    assert torch.equal(half.image, case.image.half()), "the case itself is not changed"


@pytest.mark.parametrize("seed", range(6))
def test_a_point_is_found_where_the_variation_puts_it(seed):
    """One voxel of a label, grown to a cube that survives the variation, lies around the place it is said to."""
    labels = torch.zeros((60, 70, 80), dtype=torch.uint8)
    rng = np.random.default_rng(seed)
    k, j, i = (int(rng.integers(20, side - 20)) for side in labels.shape)
    labels[k - 2 : k + 3, j - 2 : j + 3, i - 2 : i + 3] = 19
    case = Case("point", labels[None].float(), labels, (1.0, 1.2, 0.9))
    variation = drawn(case, replace(LIVELY, elastic=3.0), seed)
    point = (2 * torch.tensor([i, j, k]) + 1) / torch.tensor([80, 70, 60]) - 1
    place = (variation.place_of(point.float()) + 1) / 2 * torch.tensor([80, 70, 60]) - 0.5
    found = torch.nonzero(variation.apply(case, labels.shape)[1]).float().mean(dim=0).flip(0)
    assert (place - found).abs().max() < 0.75


def test_smoothing_keeps_the_mean_and_only_coarser_axes():
    case = phantom()
    assert smoothed_for(case, case.labels.shape).image is case.image
    smooth = smoothed_for(case, (16, 24, 16)).image
    torch.testing.assert_close(smooth.mean(dim=3), case.image.mean(dim=3), atol=0.08, rtol=0)
    assert smooth.std() < case.image.std()


def test_a_smoothed_sample_is_the_same_with_any_number_of_threads():
    """Threads of a run have different numbers of threads of their own, and a run that resumes must not differ."""
    before = torch.get_num_threads()
    samples = []
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            varied = VariedCases(three_cases(), LIVELY, (8, 12, 12), None, ANATOMY, 7)
            samples.append([varied[index] for index in range(3)])
    finally:
        torch.set_num_threads(before)
    assert all(same(*pair) for other in samples[1:] for pair in zip(samples[0], other, strict=True))


# Samples ---------------------------------------------------------------------------------------------


def three_cases() -> list[Case]:
    return [phantom(seed=seed, name=f"case {seed}") for seed in range(3)]


def test_a_sample_is_the_same_in_whatever_order_and_process():
    make = [three_cases(), LIVELY, SHAPE, (8, 12, 16), ANATOMY, 7]
    first, again = VariedCases(*make), VariedCases(*make)
    samples = [first[index] for index in range(6)]
    assert all(same(again[index], samples[index]) for index in (5, 0, 3, 0))
    loader = torch.utils.data.DataLoader(first, batch_size=None, sampler=range(6), num_workers=2)
    assert all(same(one, other) for one, other in zip(loader, samples, strict=True))
    other_seed = VariedCases(*make[:-1], 8)
    assert not any(same(other_seed[index], samples[index]) for index in range(6))
    assert not any(same(samples[a], samples[b]) for a in range(6) for b in range(a))


def test_every_epoch_has_each_case_once_in_an_order_of_its_own():
    cases = [phantom((8, 8, 8), seed=seed, name=str(seed)) for seed in range(5)]
    varied = VariedCases(cases, STILL, (8, 8, 8), None, ANATOMY, 1)
    assert len(varied) == 5
    epochs = [[varied[5 * epoch + place].case for place in range(5)] for epoch in range(8)]
    assert all(sorted(epoch) == ["0", "1", "2", "3", "4"] for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) > 1
    with pytest.raises(IndexError):
        varied[-1]


@pytest.mark.parametrize("patch", [None, (8, 12, 16), SHAPE])
def test_a_patch_knows_where_it_lies_in_the_whole(patch):
    """Cut out of the whole volume where its positions say, it is the same patch."""
    whole = VariedCases(three_cases(), LIVELY, SHAPE, None, ANATOMY, 3)
    parts = VariedCases(three_cases(), LIVELY, SHAPE, patch, ANATOMY, 3)
    everywhere = torch.from_numpy(voxel_positions(SHAPE))
    for index in range(5):
        sample, full = parts[index], whole[index]
        assert sample.labels.shape == (patch or SHAPE)
        assert torch.equal(full.positions, everywhere)
        i, j, k = (
            int(((sample.positions[axis].min() + 1) / 2 * side).floor()) for axis, side in enumerate(reversed(SHAPE))
        )
        depth, height, width = sample.labels.shape
        box = (slice(k, k + depth), slice(j, j + height), slice(i, i + width))
        assert torch.equal(sample.positions, everywhere[(slice(None), *box)])
        assert torch.equal(sample.image, full.image[(slice(None), *box)])
        assert torch.equal(sample.labels, full.labels[box])


def one_tumor(size=5) -> Case:
    labels = torch.zeros((48, 48, 48), dtype=torch.uint8)
    labels[6:42, 6:42, 6:42] = 1
    labels[20 : 20 + size, 12 : 12 + size, 28 : 28 + size] = 20
    return Case("tumor", labels[None].float() / 10 - 1, labels, (1.0,) * 3)


@pytest.mark.parametrize("share", [0.0, 0.3, 0.8])
def test_patches_are_balanced_over_tumor_and_background(share):
    """How often the patch's middle is in the tumor is what was asked for, though the tumor is small."""
    balance = (share, 1 - share, 0)
    varied = VariedCases([one_tumor()], LIVELY, (48,) * 3, (9, 9, 9), ANATOMY, 5, balance=balance)
    number = 150
    hits = sum(bool((varied[index].labels[3:6, 3:6, 3:6] == 20).any()) for index in range(number))
    assert abs(hits / number - share) < 4 * (0.25 / number) ** 0.5


def test_a_case_without_a_tumor_gives_patches_of_the_brain():
    case = replace(one_tumor(), labels=(one_tumor().labels > 0).to(torch.uint8))
    varied = VariedCases([case], STILL, (48,) * 3, (5, 5, 5), ANATOMY, 5, balance=(0.9, 0.1, 0))
    assert all(varied[index].labels[2, 2, 2] == 1 for index in range(40))
    empty = replace(case, labels=torch.zeros_like(case.labels))
    everywhere = VariedCases([empty], STILL, (48,) * 3, (5, 5, 5), ANATOMY, 5)
    assert everywhere[0].labels.shape == (5, 5, 5)


def test_coarser_grids_see_smoothed_cases():
    cases = three_cases()
    coarse = VariedCases(cases, STILL, (8, 12, 16), None, ANATOMY, 0)
    by_name = {case.name: case for case in cases}
    for index in range(3):
        sample = coarse[index]
        expected = smoothed_for(by_name[sample.case], (8, 12, 16))
        image, labels = drawn(expected, STILL).apply(expected, (8, 12, 16))
        assert torch.equal(sample.image, image) and torch.equal(sample.labels, labels)


def test_what_is_smoothed_of_a_decoded_case_is_kept_beside_it(tmp_path, monkeypatch):
    folder = write_set(tmp_path / "set", three_cases())
    read = read_dataset(folder, ["t1", "t2"])
    expected = [smoothed_for(case, (8, 12, 16)).image for case in read]
    smoothed = SmoothedCases(read, (8, 12, 16))
    assert not list(folder.rglob("*.smoothed-*")), "not before they are asked for"
    assert all(torch.equal(smoothed[index].image, image) for index, image in enumerate(expected))
    assert len(list(folder.rglob("*.smoothed-16x12x8.npy"))) == 3
    monkeypatch.setattr("MedDPMLib.data.cases.smoothed_for", None)  # not computed again
    again = SmoothedCases(read, (8, 12, 16))
    assert all(torch.equal(again[index].image, image) for index, image in enumerate(expected))
    next(folder.rglob("case 1/*.smoothed-*")).write_bytes(b"nothing")
    with pytest.raises(MedDPMError, match="case 1 is damaged .* delete this folder"):
        again[1]
    read_dataset(write_set(folder, [phantom(seed=9, name="case 2")]), ["t1", "t2"])
    assert not list(folder.rglob("case 2/*.smoothed-*")), "of an image that is there no more"


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"patch": (8, 12, 64)}, "a patch of 64 x 12 x 8 voxels does not fit into the grid of 32 x 24 x 16"),
        ({"cases": []}, "no case to train on"),
        ({"balance": (1, 0, 0)}, "needs three shares"),
        ({"balance": (-1, 1, 1)}, "needs three shares"),
    ],
)
def test_what_cannot_be_sampled_is_reported(changes, says):
    arguments = {"cases": three_cases(), "patch": (8, 8, 8)} | changes
    with pytest.raises(MedDPMError, match=says):
        VariedCases(augmentation=STILL, shape=SHAPE, scheme=ANATOMY, seed=0, **arguments)


# Datasets --------------------------------------------------------------------------------------------

GRID = Grid((32, 24, 16), (2.0, 2.0, 3.0), "LPS")


def write_set(folder: Path, cases: list[Case], grid: Grid = GRID, **description) -> Path:
    for number, case in enumerate(cases):
        geometry = grid.centered_on([number, 2.0 * number, 0.0])  # every brain lies elsewhere
        for index, channel in enumerate(case.image.float().numpy()):
            write_nifti(folder / "imagesTr" / f"{case.name}_{index:04d}.nii.gz", Volume(channel, geometry))
        write_nifti(folder / "labelsTr" / f"{case.name}.nii.gz", Volume(case.labels.numpy(), geometry))
    (folder / "dataset.json").write_text(json.dumps({"channel_names": {"0": "t1", "1": "t2"}} | description))
    return folder


def test_a_dataset_is_read_as_it_was_written(tmp_path):
    cases = three_cases()
    read = read_dataset(write_set(tmp_path / "set", cases), ["t1", "t2"], scheme="anatomy", grid=GRID)
    assert len(read) == 3
    for case, written in zip(read, cases, strict=True):
        assert case.name == written.name and case.spacing == (2.0, 2.0, 3.0)
        assert torch.equal(case.image, written.image.half()) and torch.equal(case.labels, written.labels)


def test_a_dataset_is_decoded_once_and_again_when_it_changes(tmp_path):
    folder = write_set(tmp_path / "set", three_cases())
    read_dataset(folder, ["t1", "t2"])
    first = {path: path.stat().st_mtime_ns for path in (folder / "decoded").rglob("*.*")}
    assert len(first) == 9
    changed = phantom(seed=9, name="case 1")
    write_set(folder, [changed])
    read = read_dataset(folder, ["t1", "t2"])
    assert torch.equal(read[1].image, changed.image.half())
    second = {path: path.stat().st_mtime_ns for path in (folder / "decoded").rglob("*.*")}
    assert len(second) == 9, "what is of no use any more is removed"
    assert {path for path in first if second.get(path) == first[path]} == {
        path for path in first if path.parent.name != "case 1"
    }


def test_what_is_mapped_is_cheap_to_send_and_cannot_be_written_through(tmp_path):
    read = read_dataset(write_set(tmp_path / "set", three_cases()), ["t1", "t2"])
    sent = pickle.dumps(read)
    assert len(sent) < 5000
    before = read[0].image.clone()
    read[0].image.zero_()
    assert torch.equal(pickle.loads(sent)[0].image, before)


def test_what_a_killed_process_left_is_removed_once_it_is_old(tmp_path):
    folder = write_set(tmp_path / "set", three_cases())
    read_dataset(folder, ["t1", "t2"])
    fresh, old = (folder / "decoded" / "case 1" / name for name in (".aaaaaaaa.npy", ".bbbbbbbb.npy"))
    for path in (fresh, old):
        path.write_bytes(b"half")
    os.utime(old, (0, 0))
    read_dataset(folder, ["t1", "t2"])
    assert fresh.is_file() and not old.is_file(), "it may still be being written"


def test_what_cannot_be_kept_is_smoothed_anew(tmp_path, monkeypatch):
    read = read_dataset(write_set(tmp_path / "set", three_cases()), ["t1", "t2"])

    @contextmanager
    def full(path):
        raise MedDPMError("no space")
        yield

    monkeypatch.setattr("MedDPMLib.data.cases.atomic_write", full)
    smoothed = SmoothedCases(read, (8, 12, 16))
    assert torch.equal(smoothed[1].image, smoothed_for(read[1], (8, 12, 16)).image)
    assert not smoothed._in_memory, "a dataset may be larger than the memory"


def test_a_dataset_that_cannot_be_written_is_decoded_in_the_user_s_cache(tmp_path, monkeypatch):
    folder = write_set(tmp_path / "set", three_cases())
    (folder / "decoded").write_text("in the way")
    monkeypatch.setattr("platformdirs.user_cache_dir", lambda *_, **__: str(tmp_path / "cache"))
    read = read_dataset(folder, ["t1", "t2"])
    assert len(list((tmp_path / "cache").rglob("*.npy"))) == 6
    assert torch.equal(read[0].labels, three_cases()[0].labels)


def test_damaged_decoded_files_are_reported(tmp_path):
    folder = write_set(tmp_path / "set", three_cases())
    read = read_dataset(folder, ["t1", "t2"])
    for content in (b"nothing", b""):
        next((folder / "decoded" / "case 2").glob("*.image.npy")).write_bytes(content)
        with pytest.raises(MedDPMError, match="case 2 is damaged .* delete this folder"):
            read[2]


@pytest.mark.parametrize(
    "content", [b"", b"{", b"[1]", b"\xff\xfe", b'{"size": [1, 2, 3], "spacing": [1, 1, 1]}', b"null"]
)
def test_a_damaged_cache_is_made_anew(tmp_path, content):
    folder = write_set(tmp_path / "set", three_cases())
    read_dataset(folder, ["t1", "t2"])
    expected = three_cases()[2].labels
    for pattern in ("*.json", "*.labels.npy"):
        path = next((folder / "decoded" / "case 2").glob(pattern))
        path.write_bytes(content)
        assert torch.equal(read_dataset(folder, ["t1", "t2"])[2].labels, expected)
        assert path.read_bytes() != content


def damage_range(folder):
    geometry = GRID.centered_on([0, 0, 0])
    write_nifti(folder / "imagesTr" / "case 0_0001.nii.gz", Volume(np.full(GRID.shape, 300, np.int16), geometry))


def damage_place(folder):
    geometry = GRID.centered_on([9, 0, 0])
    write_nifti(folder / "imagesTr" / "case 0_0001.nii.gz", Volume(np.zeros(GRID.shape, np.float32), geometry))


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (damage_range, "case 0_0001.nii.gz has intensities from 300 to 300, not -1 to 1"),
        (damage_place, "case 0_0001.nii.gz does not lie on the grid of its labels"),
        (lambda folder: (folder / "imagesTr" / "case 1_0000.nii.gz").unlink(), "case 1_0000.nii.gz cannot be read"),
        (lambda folder: (folder / "labelsTr" / "case 2.nii.gz").write_bytes(b"no"), "case 2.nii.gz cannot be read"),
        (lambda folder: (folder / "dataset.json").unlink(), "is not a prepared dataset"),
        (lambda folder: [path.unlink() for path in (folder / "labelsTr").iterdir()], "has no case in labelsTr"),
        (
            lambda folder: write_set(folder, [phantom(name="odd")], replace(GRID, spacing=(2.0, 2.0, 2.0))),
            "odd has 32 x 24 x 16 voxels of 2 x 2 x 2 mm in LPS, case 0 32 x 24 x 16 voxels of 2 x 2 x 3 mm",
        ),
    ],
)
def test_a_damaged_dataset_is_reported(tmp_path, damage, says):
    damage(write_set(tmp_path / "set", three_cases()))
    with pytest.raises(MedDPMError, match=says):
        read_dataset(tmp_path / "set", ["t1", "t2"])


def test_a_dataset_of_another_recipe_is_reported(tmp_path):
    folder = write_set(tmp_path / "set", three_cases(), label_scheme="anatomy")
    with pytest.raises(MedDPMError, match="holds t1, t2, the recipe asks for t2"):
        read_dataset(folder, ["t2"])
    with pytest.raises(MedDPMError, match='the scheme "anatomy", the recipe asks for "brats"'):
        read_dataset(folder, ["t1", "t2"], scheme="brats")
    with pytest.raises(MedDPMError, match="in LPS, the recipe .* in RAS"):
        read_dataset(folder, ["t1", "t2"], grid=replace(GRID, orientation="RAS"))


@settings(max_examples=60, deadline=None)
@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.text(max_size=4),
        lambda inner: (
            st.lists(inner, max_size=3)
            | st.dictionaries(st.sampled_from(["channel_names", "label_scheme", "0", "1"]), inner, max_size=3)
        ),
        max_leaves=6,
    )
)
def test_any_description_is_read_or_refused_in_a_sentence(tmp_path_factory, description):
    folder = tmp_path_factory.getbasetemp() / "described"
    (folder / "labelsTr").mkdir(parents=True, exist_ok=True)
    (folder / "dataset.json").write_text(json.dumps(description))
    with pytest.raises(MedDPMError):
        read_dataset(folder, ["t1", "t2"])


def test_monai_is_imported_for_training_only():
    code = """
import sys
import MedDPMLib.prepare
assert "torch" not in sys.modules
import MedDPMLib.data, MedDPMLib.inference.generation
assert "monai" not in sys.modules
"""
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)
