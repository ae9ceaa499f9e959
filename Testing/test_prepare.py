"""From folders of cases, in any layout and orientation, sound or not, to a dataset."""

from __future__ import annotations

import csv
import itertools
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

from MedDPMLib.data import read_dataset
from MedDPMLib.errors import MedDPMError
from MedDPMLib.geometry import Geometry, Grid
from MedDPMLib.labels import load_scheme
from MedDPMLib.prepare import (
    NORMALISATIONS,
    STANDARDS,
    DatasetSettings,
    Standard,
    compose_anatomy,
    find_cases,
    normalise,
    write_dataset,
)
from MedDPMLib.prepare.cases import prepare_case, reoriented
from MedDPMLib.prepare.normalise import normalise_onto
from MedDPMLib.volume import Volume, read_volume, resample_image, resample_labels, write_nifti

SHARED = Path(__file__).parents[2] / "shared" / "data"
needs_data = pytest.mark.skipif(not SHARED.is_dir(), reason="real data (../shared/data) is not here")

CONTRASTS = ("t1", "t1ce", "t2", "flair")
BRATS, WHOLE_HEAD, ANATOMY = (load_scheme(name) for name in ("brats", "whole-head", "anatomy"))

#: A grid of thousands of voxels in place of millions, a little larger than the phantom.
SMALL = Grid((28, 24, 20), (6.0, 6.0, 6.0), "LPS")
SHAPE = (16, 20, 24)  # k, j, i
PLACE = Geometry(SHAPE[::-1], np.diag([-6.0, -6.0, 6.0, 1.0]) + np.eye(4)[3] * np.array([[70.0], [50], [-40], [0]]))


@pytest.fixture
def small(monkeypatch):
    """All datasets lie on a small grid, in this process."""
    for name, standard in list(STANDARDS.items()):
        monkeypatch.setitem(STANDARDS, name, replace(standard, grid=SMALL))


def phantom(seed=0) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """Four contrasts, 0 around the brain, and a mask in the values of the scheme brats, asymmetric in every axis."""
    rng = np.random.default_rng(seed)
    k, j, i = np.mgrid[: SHAPE[0], : SHAPE[1], : SHAPE[2]]
    brain = ((k - 7.5) / 7) ** 2 + ((j - 9.5) / 9) ** 2 + ((i - 11.5) / 11) ** 2 < 1
    labels = np.where(brain, 4, 0).astype(np.uint8)
    labels[6:11, 5:9, 13:18] = 2
    labels[7:10, 6:8, 14:17] = 1
    labels[8, 6, 13:15] = 3
    images = {}
    for number, contrast in enumerate(CONTRASTS):
        values = 100 * (number + 1) + 40 * labels.astype(int) + rng.integers(0, 30, SHAPE)
        images[contrast] = np.where(brain, values, 0).astype(np.int16)
    return images, labels


def renumbered(labels: np.ndarray, values: dict[int, int]) -> np.ndarray:
    table = np.zeros(5, np.uint8)
    table[list(values)] = list(values.values())
    return table[labels]


RAW_2021, RAW_2023 = {1: 1, 2: 2, 3: 4}, {1: 1, 2: 2, 3: 3}


def save(path: Path, array: np.ndarray, geometry: Geometry = PLACE) -> None:
    write_nifti(path, Volume(array, geometry))


def write_brats(root: Path, seeds, *, folder="{name}", naming="_", suffix=".nii.gz", values=RAW_2021) -> None:
    endings = CONTRASTS if naming == "_" else ("t1n", "t1c", "t2w", "t2f")
    for seed in seeds:
        images, labels = phantom(seed)
        name = f"case{seed}"
        where = root / folder.format(name=name)
        for ending, contrast in zip(endings, CONTRASTS, strict=True):
            save(where / f"{name}{naming}{ending}{suffix}", images[contrast])
        save(where / f"{name}{naming}seg{suffix}", renumbered(labels, values))


def write_nnunet(root: Path, seeds, channels: dict, labels_of: dict, values: dict[int, int], **more) -> None:
    order = ("t2", "t1", "flair", "t1ce")
    for seed in seeds:
        images, labels = phantom(seed)
        for index, contrast in enumerate(order):
            save(root / "imagesTr" / f"case{seed}_{index:04d}.nii.gz", images[contrast])
        save(root / "labelsTr" / f"case{seed}.nii.gz", renumbered(labels, values))
    description = {"labels": labels_of, "numTraining": len(seeds)} | channels | more
    (root / "dataset.json").write_text(json.dumps(description))


def nnunet_2(root, seeds):
    """nnU-Net's own BraTS: 1 is the oedema there, 2 the necrosis; regions lie in each other."""
    write_nnunet(
        root,
        seeds,
        {"channel_names": {"0": "T2", "1": "T1", "2": "Flair", "3": "T1ce"}, "file_ending": ".nii.gz"},
        {"background": 0, "whole tumor": [1, 2, 3], "tumor core": [2, 3], "enhancing tumor": [3]},
        {1: 2, 2: 1, 3: 3},
    )


def nnunet_1(root, seeds):
    """Version 1: names by value, in quotes."""
    write_nnunet(
        root,
        seeds,
        {"modality": {"0": "T2", "1": "T1", "2": "FLAIR", "3": "T1gd"}},
        {"0": "background", "1": "edema", "2": "necrosis", "3": "enhancing_tumor"},
        {1: 2, 2: 1, 3: 3},
    )


def med_ddpm(root, seeds):
    for seed in seeds:
        images, labels = phantom(seed)
        for contrast in CONTRASTS:
            save(root / "brats2021" / contrast / f"case{seed}_{contrast}.nii.gz", images[contrast])
        save(root / "brats2021" / "seg" / f"case{seed}_seg.nii.gz", labels)
    save(root / "whole_head" / "image" / "other.nii.gz", images["t1"])
    save(root / "whole_head" / "mask" / "other.nii.gz", (labels > 0).astype(np.uint8))


def pairs(root, seeds):
    for seed in seeds:
        images, labels = phantom(seed)
        for contrast in CONTRASTS:
            save(root / "Images" / f"case{seed}_{contrast}.nii.gz", images[contrast])
        save(root / "masks" / f"case{seed}_mask.nii.gz", labels)


LAYOUTS = {
    "2018": lambda root, seeds: write_brats(root, seeds, folder="HGG/{name}"),
    "2020": lambda root, seeds: write_brats(root, seeds, suffix=".nii"),
    "2021": write_brats,
    "2023": lambda root, seeds: write_brats(root, seeds, naming="-", values=RAW_2023),
    "2021 with 2023's labels": lambda root, seeds: write_brats(root, seeds, values=RAW_2023),
    "one folder": lambda root, seeds: write_brats(root, seeds, folder="."),
    "nnU-Net, regions": nnunet_2,
    "nnU-Net 1": nnunet_1,
    "Med-DDPM": med_ddpm,
    "pairs": pairs,
}


def make(sources, out: Path, scheme="brats", **more) -> dict[str, str | None]:
    """Prepares ``sources``; what is wrong with each case, by name."""
    chosen = DatasetSettings(scheme, STANDARDS[scheme].modalities, **more)
    cases = find_cases([Path(source) for source in sources], load_scheme(scheme), chosen.modalities)
    return {report.name: report.problem for report in write_dataset(cases, out, chosen)}


def contents(dataset: Path) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Array and matrix of every volume, by its path in the dataset."""
    found = {}
    for path in sorted(dataset.glob("*Tr/*.nii.gz")):
        volume = read_volume(path)
        found[path.relative_to(dataset).as_posix()] = volume.array, volume.geometry.ijk_to_ras
    return found


def assert_same(one: dict, other: dict) -> None:
    assert one.keys() == other.keys()
    for name, (array, matrix) in one.items():
        assert np.array_equal(array, other[name][0]), name
        np.testing.assert_allclose(matrix, other[name][1], atol=1e-4)


def table(dataset: Path) -> dict[str, dict[str, str]]:
    with (dataset / "cases.csv").open(newline="") as file:
        return {row["case"]: row for row in csv.DictReader(file)}


def nothing_left(dataset: Path) -> bool:
    return not [path for path in dataset.rglob("*") if path.name.startswith(".")]


# Layouts ---------------------------------------------------------------------------------------------


def test_every_layout_gives_the_same_dataset(tmp_path, small):
    datasets = {}
    for layout, write in LAYOUTS.items():
        source = tmp_path / layout / "source"
        write(source, [1, 2])
        out = tmp_path / layout / "out"
        assert make([source], out) == {"case1": None, "case2": None}, layout
        datasets[layout] = contents(out)
    first = datasets["2021"]
    assert len(first) == 2 * 5
    for dataset in datasets.values():
        assert_same(first, dataset)
    # And it is what was drawn: the grid leaves room for the phantom, so nothing of it is lost.
    for seed in (1, 2):
        labels = first[f"labelsTr/case{seed}.nii.gz"][0]
        assert np.array_equal(np.bincount(labels.ravel())[1:], np.bincount(phantom(seed)[1].ravel())[1:])


def test_a_dataset_says_what_it_is(tmp_path, small):
    write_brats(tmp_path / "source", [1, 2])
    make([tmp_path / "source"], tmp_path / "out")
    said = json.loads((tmp_path / "out" / "dataset.json").read_text())
    assert said["channel_names"] == {"0": "t1", "1": "t1ce", "2": "t2", "3": "flair"}
    assert said["labels"] == {"background": 0} | {label.name: label.value for label in BRATS.labels}
    assert said["numTraining"] == 2 and said["file_ending"] == ".nii.gz" and said["label_scheme"] == "brats"
    assert said["grid"] == {"size": [28, 24, 20], "spacing": [6, 6, 6], "orientation": "LPS"}
    read = read_dataset(tmp_path / "out", CONTRASTS, scheme="brats", grid=SMALL)
    assert [case.name for case in read] == ["case1", "case2"]
    rows = table(tmp_path / "out")
    counts = np.bincount(phantom(1)[1].ravel())
    for label in BRATS.labels:
        assert int(rows["case1"][f"{label.name} (voxels)"]) == counts[label.value]
    brain = phantom(1)[0]["t2"][phantom(1)[1] > 0]
    assert (float(rows["case1"]["t2 lowest"]), float(rows["case1"]["t2 highest"])) == (brain.min(), brain.max())
    assert rows["case1"]["size"] == "24 x 20 x 16" and rows["case1"]["orientation"] == "LPS"
    assert rows["case1"]["problem"] == "" and float(rows["case1"]["cut off (mm^3)"]) == 0


def test_a_prepared_dataset_can_be_prepared(tmp_path, small):
    write_brats(tmp_path / "source", [1])
    make([tmp_path / "source"], tmp_path / "one")
    assert make([tmp_path / "one"], tmp_path / "two", normalisation="per-volume") == {"case1": None}
    one, two = contents(tmp_path / "one"), contents(tmp_path / "two")
    assert one.keys() == two.keys()
    for name in one:  # what reaches from -1 to 1 is not scaled again
        np.testing.assert_allclose(one[name][0], two[name][0], atol=1e-6)


def test_whole_heads_are_pairs_of_one_image(tmp_path, small):
    images, labels = phantom()
    head = np.where(labels > 0, np.where(labels < 4, 2, 1), 0).astype(np.uint8)
    save(tmp_path / "image" / "a.nii.gz", images["t1"])
    save(tmp_path / "mask" / "a.nii.gz", head)
    assert make([tmp_path], tmp_path / "out", "whole-head") == {"a": None}
    assert np.array_equal(
        np.bincount(read_volume(tmp_path / "out/labelsTr/a.nii.gz").array.ravel())[1:], np.bincount(head.ravel())[1:]
    )


@pytest.mark.parametrize("anatomy_orientation", ["LPS", "RAS"])
def test_structures_come_from_the_folder_of_anatomies(tmp_path, small, anatomy_orientation):
    write_brats(tmp_path / "source", [1])
    labels = phantom(1)[1]
    structures = np.where(labels > 0, 2, 0).astype(np.uint8)
    structures[:, :, 12:] = np.where(structures[:, :, 12:] > 0, 7, 0)
    structures[4] = 0  # brain without a structure
    anatomy = reoriented(Volume(structures, PLACE), anatomy_orientation)
    write_nifti(tmp_path / "anatomy" / "case1_anatomy.nii.gz", anatomy)
    assert make([tmp_path / "source"], tmp_path / "out", "anatomy", anatomy=tmp_path / "anatomy") == {"case1": None}
    found = np.bincount(read_volume(tmp_path / "out/labelsTr/case1.nii.gz").array.ravel(), minlength=22)
    for value, twin in ((1, 19), (2, 20), (3, 21)):
        assert found[twin] == (labels == value).sum()
    rest = labels == 4
    assert found[18] == (rest & (structures == 0)).sum()
    assert found[2] == (rest & (structures == 2)).sum() and found[7] == (rest & (structures == 7)).sum()


def test_a_case_without_a_tumour_is_learnt_from_if_its_mask_says_so(tmp_path, small):
    write_brats(tmp_path / "source", [1, 2])
    save(tmp_path / "source" / "case1" / "case1_seg.nii.gz", np.zeros(SHAPE, np.uint8))
    (tmp_path / "source" / "case2" / "case2_seg.nii.gz").unlink()
    problems = make([tmp_path / "source"], tmp_path / "out")
    assert problems["case1"] is None
    assert "case2_t1.nii.gz is there, and its mask" in problems["case2"] and "case2_seg.nii.gz" in problems["case2"]
    labels = read_volume(tmp_path / "out" / "labelsTr" / "case1.nii.gz").array
    assert (labels == 4).sum() == (phantom(1)[1] > 0).sum() and set(np.unique(labels)) == {0, 4}


def test_fewer_modalities_can_be_taken(tmp_path, small):
    write_brats(tmp_path / "source", [1])
    (tmp_path / "source" / "case1" / "case1_flair.nii.gz").unlink()
    cases = find_cases([tmp_path / "source"], BRATS, ("t2", "t1"))
    [report] = write_dataset(cases, tmp_path / "out", DatasetSettings("brats", ("t2", "t1")))
    assert report.problem is None
    assert len(read_dataset(tmp_path / "out", ["t2", "t1"])) == 1


# Values ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("large", "value"), [(False, 3), (True, 4)])
def test_a_label_4_is_told_by_its_size_where_3_is_absent(tmp_path, monkeypatch, large, value):
    """4 is the rest of the brain in Med-DDPM's files and the enhancing tumour in BraTS's."""
    grid = replace(SMALL, spacing=(9.0,) * 3)
    monkeypatch.setitem(STANDARDS, "brats", Standard(grid, CONTRASTS, True))
    images, labels = phantom()
    labels[labels == 3] = 1
    seg = labels if large else renumbered(labels, RAW_2023)
    if not large:
        seg[3, 9, 9:12] = 4
    place = Geometry(SHAPE[::-1], np.diag([-9.0, -9.0, 9.0, 1.0]))  # so large that a brain is more than a tumour
    for contrast in CONTRASTS:
        save(tmp_path / "source" / contrast / f"a_{contrast}.nii.gz", images[contrast], place)
    save(tmp_path / "source" / "seg" / "a_seg.nii.gz", seg, place)
    assert make([tmp_path / "source"], tmp_path / "out") == {"a": None}
    found = read_volume(tmp_path / "out" / "labelsTr" / "a.nii.gz").array
    assert (found == value).sum() == (seg == 4).sum()


def test_a_numbering_can_be_named_where_values_do_not_tell(tmp_path, small):
    write_brats(tmp_path / "source", [1], values={1: 4, 2: 4, 3: 4})
    assert "say which numbering it is with --labels" in make([tmp_path / "source"], tmp_path / "out")["case1"]
    assert make([tmp_path / "source"], tmp_path / "out", numbering="brats") == {"case1": None}
    labels = read_volume(tmp_path / "out" / "labelsTr" / "case1.nii.gz").array
    assert (labels == 3).sum() == (phantom(1)[1] % 4 > 0).sum()


def test_ringing_below_the_background_is_not_brain_but_a_brain_scaled_to_mean_0_is(tmp_path):
    images, labels = phantom()
    ringing = images["t1"].copy()
    ringing[1, 1, 1:4] = -5
    standardised = np.where(labels > 0, images["t1"].astype(np.float32) - images["t1"][labels > 0].mean(), 0)
    for array in (ringing, standardised):
        composed = compose_anatomy(Volume(np.zeros(SHAPE, np.uint8), PLACE), [Volume(array, PLACE)], None)
        assert np.array_equal(composed.array > 0, labels > 0)
        assert set(np.unique(composed.array)) == {0, 18}


def test_composing_needs_one_grid_and_a_background():
    def volume(size):
        return Volume(np.ones((size,) * 3, np.uint8), Geometry((size,) * 3, np.eye(4)))

    with pytest.raises(MedDPMError, match="one grid"):
        compose_anatomy(volume(8), [volume(9)], None)
    noise = Volume(np.random.default_rng(0).normal(size=SHAPE), PLACE)
    with pytest.raises(MedDPMError, match="image 1 of 1 has no empty background"):
        compose_anatomy(Volume(np.ones(SHAPE, np.uint8), PLACE), [noise], None)


# Intensities -----------------------------------------------------------------------------------------


def test_normalising_maps_the_brains_percentiles():
    array = np.zeros((10, 10, 11), np.float32)
    brain = np.zeros(array.shape, bool)
    brain[:, :, 1:] = True
    array[brain] = np.arange(1000) + 5000
    scaled = normalise(Volume(array, Geometry((11, 10, 10), np.eye(4))), brain).array
    assert (scaled[~brain] == -1).all()
    assert abs(scaled[brain].mean()) < 1e-3 and scaled.max() == 1
    with pytest.raises(MedDPMError, match="constant"):
        normalise(Volume(np.ones_like(array), Geometry((11, 10, 10), np.eye(4))), brain)


@settings(max_examples=30, deadline=None)
@given(st.sampled_from(NORMALISATIONS), st.floats(0.01, 1e4), st.floats(-1e4, 1e4), st.integers(0, 9))
def test_intensities_do_not_depend_on_the_scanner_s_unit(method, factor, offset, seed):
    """Whatever the scale and offset, the result is the same, from -1 to 1."""
    images, labels = phantom(seed)
    image = images["t1"].astype(np.float64)
    one, other = (
        normalise_onto(Volume(array, PLACE), labels > 0, PLACE, method).array
        for array in (image, image * factor + offset)
    )
    np.testing.assert_allclose(one, other, atol=2e-3)
    assert one.dtype == np.float32 and one.min() == -1 and one.max() == 1


def test_per_slice_is_the_minimum_and_maximum_of_each_slice_along_z():
    images, labels = phantom()
    image = images["t2"].astype(np.float32) + 7
    found = normalise_onto(Volume(image, PLACE), labels > 0, PLACE, "per-slice").array
    for k, section in enumerate(image):
        span = section.max() - section.min()
        expected = 2 * (section - section.min()) / span - 1 if span else np.full_like(section, -1)
        np.testing.assert_allclose(found[k], expected, atol=1e-6)
    with pytest.raises(MedDPMError, match="constant"):
        normalise_onto(Volume(np.ones_like(image), PLACE), labels > 0, PLACE, "per-slice")


# Geometry --------------------------------------------------------------------------------------------

ORIENTATIONS = [
    "".join(letters) for axes in itertools.permutations(["RL", "AP", "SI"]) for letters in itertools.product(*axes)
]


def prepared(images: dict[str, Volume], labels: Volume, folder: Path, grid: Grid = SMALL):
    folder.mkdir(parents=True, exist_ok=True)
    for contrast, image in images.items():
        write_nifti(folder / f"a_{contrast}.nii", image)
    write_nifti(folder / "a_seg.nii", labels)
    modalities = tuple(images)
    [case] = find_cases([folder], BRATS, modalities)
    return prepare_case(
        case, Standard(grid, modalities, True), BRATS, anatomy=None, numbering=None, normalisation="percentiles"
    )


def test_every_orientation_gives_the_same_case(tmp_path):
    """A file stores its axes in any order and direction: the dataset is the same, bit by bit."""
    images, labels = phantom()
    volumes = {contrast: Volume(images[contrast], PLACE) for contrast in ("t1", "flair")}
    mask = Volume(labels, PLACE)
    first = prepared(volumes, mask, tmp_path)
    assert len(ORIENTATIONS) == 48
    for orientation in ORIENTATIONS:
        turned = {contrast: reoriented(volume, orientation) for contrast, volume in volumes.items()}
        assert turned["t1"].geometry.orientation == orientation
        found = prepared(turned, reoriented(mask, orientation), tmp_path)
        assert np.array_equal(found.labels.array, first.labels.array), orientation
        np.testing.assert_allclose(found.labels.geometry.ijk_to_ras, first.labels.geometry.ijk_to_ras, atol=1e-4)
        for contrast in volumes:
            assert np.array_equal(found.images[contrast].array, first.images[contrast].array), orientation


@pytest.mark.parametrize("orientation", ["LPS", "RAS", "ASL", "IPR"])
def test_turning_axes_leaves_every_voxel_in_its_place(orientation):
    """Against resampling at the turned geometry, which knows positions only."""
    rng = np.random.default_rng(0)
    matrix = PLACE.ijk_to_ras @ np.diag([1, 1, 1.5, 1])
    volume = Volume(rng.integers(0, 200, SHAPE).astype(np.uint8), Geometry(PLACE.size, matrix))
    turned = reoriented(volume, orientation)
    assert turned.geometry.orientation == orientation
    again = resample_labels(volume, turned.geometry, range(1, 200))
    assert np.array_equal(turned.array, again.array)
    assert np.array_equal(reoriented(turned, "LPS").array, volume.array)


@pytest.mark.parametrize(("spacing", "tilt"), [((3.0, 3.0, 3.0), 0.0), ((2.0, 4.0, 9.0), 0.0), ((6.0, 6.0, 6.0), 0.3)])
def test_nothing_is_stretched(tmp_path, spacing, tilt):
    """A ball stays a ball of its size, at its place, whatever the spacing and the tilt of the scan."""
    turn = np.array([[np.cos(tilt), -np.sin(tilt), 0], [np.sin(tilt), np.cos(tilt), 0], [0, 0, 1]])
    matrix = np.eye(4)
    matrix[:3, :3] = turn @ np.diag(spacing)
    size = tuple(int(round(170 / s)) for s in spacing)
    matrix[:3, 3] = [11, -7, 5] - matrix[:3, :3] @ ((np.array(size) - 1) / 2)
    geometry = Geometry(size, matrix)
    ijk = np.stack(np.meshgrid(*[np.arange(n) for n in size], indexing="ij"), -1)
    distance = np.linalg.norm(geometry.to_ras(ijk) - [11, -7, 5], axis=-1).T
    labels = np.where(distance < 55, 4, 0).astype(np.uint8)
    labels[distance < 20] = 3
    image = np.where(labels > 0, 100 + 10 * np.cos(distance / 7), 0).astype(np.float32)
    found = prepared(
        {"t1": Volume(image, geometry)}, Volume(labels, geometry), tmp_path, replace(SMALL, size=(30, 30, 30))
    )
    where = found.labels.geometry
    ras = where.to_ras(np.argwhere(found.labels.array > 0)[:, ::-1])
    np.testing.assert_allclose(ras.mean(axis=0), [11, -7, 5], atol=1.0)
    # The variance of a ball along each axis is a fifth of its radius squared.
    np.testing.assert_allclose(np.sqrt(5 * ras.var(axis=0)), 55, rtol=0.03)
    assert where.orientation == "LPS" and np.allclose(where.spacing, 6)
    expected = resample_image(Volume(image, geometry), where, fill=0).array
    inside = resample_image(Volume((distance < 48).astype(np.float32), geometry), where, fill=0).array == 1
    assert np.corrcoef(expected[inside], found.images["t1"].array[inside])[0, 1] > 0.98


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
    "truncated": (lambda folder: spoil(folder / "bad_t1.nii.gz"), "bad_t1.nii.gz cannot be read"),
    "no image": (lambda folder: (folder / "bad_t1.nii.gz").write_bytes(b"text"), "bad_t1.nii.gz cannot be read"),
    "missing": (
        lambda folder: (folder / "bad_t2.nii.gz").unlink(),
        "bad_t1.nii.gz is there, and .*bad_t2.nii.gz is missing",
    ),
    "elsewhere": (moved, "bad_t2.nii.gz and .*bad_t1.nii.gz do not lie on one grid"),
    "nan": (set_array("bad_t1.nii.gz", lambda a: np.where(a == a.max(), np.nan, a.astype(np.float32))), "not finite"),
    "constant": (
        set_array("bad_t1ce.nii.gz", lambda a: np.where(a > 0, 7, 0).astype(np.int16)),
        "bad_t1ce.nii.gz: it is constant inside the brain",
    ),
    "unknown label": (
        set_array("bad_seg.nii.gz", lambda a: np.where(a == 1, 9, a).astype(np.uint8)),
        "bad_seg.nii.gz has the value 9: BraTS's labels are 1 to 4",
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
def test_a_broken_case_is_told_and_the_rest_goes_on(tmp_path, small, fault):
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


def test_a_brain_that_the_grid_cuts_is_refused_or_told(tmp_path, monkeypatch):
    write_brats(tmp_path / "source", [1])
    for size, refused in (((28, 24, 8), True), ((28, 24, 13), False)):
        monkeypatch.setitem(STANDARDS, "brats", Standard(replace(SMALL, size=size), CONTRASTS, True))
        out = tmp_path / str(size)
        problem = make([tmp_path / "source"], out)["case1"]
        if refused:
            assert "lie outside the dataset's grid" in problem
        else:
            row = table(out)["case1"]
            labels = read_volume(out / "labelsTr" / "case1.nii.gz").array
            lost = np.count_nonzero(phantom(1)[1]) - np.count_nonzero(labels)
            assert problem is None and lost > 0
            assert float(row["cut off (mm^3)"]) == lost * 216 and "outside the model's grid" in row["notes"]


def test_an_empty_whole_head_mask_is_told(tmp_path, small):
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
    problems = make([tmp_path], tmp_path / "out", "whole-head")
    assert problems.pop("good") is None
    expected = {
        "lonely": ("image/lonely.nii.gz", "mask/lonely.nii.gz"),
        "mask_only": ("mask/mask_only.nii.gz", "image/mask_only.nii.gz"),
        "other": ("image/other.nii.gz", "mask/other.nii.gz"),
    }
    assert problems.keys() == expected.keys()
    for name, files in expected.items():
        assert all(str(tmp_path / file) in problems[name] for file in files), problems[name]


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
        (lambda root: save(root / "a.nii.gz", phantom()[0]["t1"] * 9.5), "in none of the layouts that are known"),
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
                root, [1], {"channel_names": dict(enumerate(CONTRASTS))}, {"liver": 1, "background": 0}, RAW_2023
            ),
            'names a label "liver", which is none of the scheme "brats"',
        ),
    ],
)
def test_a_source_of_no_known_layout_is_told(tmp_path, write, says):
    write(tmp_path / "source")
    with pytest.raises(MedDPMError, match=says):
        find_cases([tmp_path / "source"], BRATS, CONTRASTS)


def test_names_that_are_there_twice_are_refused_naming_both(tmp_path):
    write_brats(tmp_path / "a", [1])
    LAYOUTS["2018"](tmp_path / "b", [1])
    with pytest.raises(MedDPMError, match="case1 is there twice") as refused:
        find_cases([tmp_path / "a", tmp_path / "b"], BRATS, CONTRASTS)
    assert str(tmp_path / "a" / "case1") in str(refused.value)
    assert str(tmp_path / "b" / "HGG" / "case1") in str(refused.value)


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 10**6), which=st.sampled_from(["a_t1.nii", "a_seg.nii", "dataset.json"]))
def test_damaged_bytes_make_a_problem_and_never_anything_else(tmp_path_factory, seed, which):
    """Bytes are changed and the end is cut off: the case is prepared or told, in a sentence."""
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
                    normalisation="percentiles",
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
    chosen = DatasetSettings("brats", CONTRASTS)
    reports = list(write_dataset(find_cases([source], BRATS, CONTRASTS), out, chosen))
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
    with pytest.raises(MedDPMError, match="holds another dataset .normalisation differs"):
        make([tmp_path / "a"], tmp_path / "out", normalisation="per-volume")
    with pytest.raises(MedDPMError, match="holds another dataset .labels differs"):
        make([tmp_path / "a"], tmp_path / "out", "anatomy")


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("nonsense", ("t1",)), 'no label scheme "nonsense": use one of anatomy, brats, whole-head'),
        (("whole-head", ("t1", "t2")), '"t1,t2" are not modalities of the scheme "whole-head"'),
        (("brats", ()), "are not modalities"),
        (("brats", ("t1",), Path("x")), "has no structures: leave out --anatomy"),
        (("brats", ("t1",), None, "x"), 'no numbering "x"'),
        (("brats", ("t1",), None, None, "x"), 'no normalisation "x"'),
    ],
)
def test_settings_that_do_not_fit_are_told(arguments, says):
    with pytest.raises(MedDPMError, match=says):
        DatasetSettings(*arguments)


def write_heads(root: Path, number: int) -> None:
    images, labels = phantom()
    for case in range(number):
        save(root / "image" / f"head{case}.nii.gz", images["t1"] + case)
        save(root / "mask" / f"head{case}.nii.gz", (labels > 0).astype(np.uint8))


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


def test_a_process_that_dies_is_told(tmp_path):
    write_heads(tmp_path / "source", 3)
    cases = find_cases([tmp_path / "source"], WHOLE_HEAD, ("t1",))
    chosen, over = DatasetSettings("whole-head", ("t1",)), threading.Event()

    def kill_one() -> None:
        while not over.is_set():
            for child in psutil.Process().children():
                with suppress(psutil.Error):
                    if "spawn_main" in " ".join(child.cmdline()):
                        child.kill()
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
    assert "meddpm: case2 is left out: " in result.stderr and "case2_t2.nii.gz is missing" in result.stderr
    assert "preparing: 2 of 2" in result.stderr
    result = meddpm(*arguments, "--out", "other", "--modalities", "t1,flair", "--normalise", "per-volume")
    assert result.returncode == 0, result.stderr
    assert len(read_dataset(tmp_path / "other", ["t1", "flair"], scheme="brats")) == 2


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--scheme", "brats", "--anatomy", "nowhere"], "nowhere is not a folder: --anatomy needs"),
        (["--scheme", "Brats"], 'no label scheme "Brats"'),
        (["--scheme", "brats", "--normalise", "zscore"], 'no normalisation "zscore"'),
        (["--scheme", "brats"], "source is not a folder"),
    ],
)
def test_mistakes_of_the_command_are_told(meddpm, arguments, says):
    result = meddpm("prepare", "source", "--out", "set", *arguments)
    assert result.returncode == 2 and says in result.stderr


# Real data -------------------------------------------------------------------------------------------


@needs_data
def test_med_ddpm_s_own_files_come_out_as_they_are(tmp_path):
    """Their BraTS images were scaled from minimum to maximum, volume by volume, and lie on the grid already."""
    source = SHARED / "med_ddpm"
    cases = [case for case in find_cases([source], BRATS, CONTRASTS) if not case.problem]
    assert [case.name for case in cases] == ["BraTS2021_01306"]
    found = prepare_case(cases[0], STANDARDS["brats"], BRATS, anatomy=None, numbering=None, normalisation="per-volume")
    original = read_volume(cases[0].segmentation)
    assert np.array_equal(found.labels.array, original.array)
    assert found.labels.geometry.is_close(original.geometry)
    for contrast, path in cases[0].images.items():
        np.testing.assert_allclose(found.images[contrast].array, read_volume(path).array, atol=1e-6)


@needs_data
def test_the_rest_of_the_brain_is_found_as_med_ddpm_has_it(tmp_path):
    """Label 4 taken away and filled from the images again is what it was."""
    [case] = [case for case in find_cases([SHARED / "med_ddpm"], BRATS, CONTRASTS) if not case.problem]
    original = read_volume(case.segmentation)
    tumour = np.where(original.array == 4, 0, original.array).astype(np.uint8)
    write_nifti(tmp_path / "seg.nii.gz", Volume(tumour, original.geometry))
    found = prepare_case(
        replace(case, segmentation=tmp_path / "seg.nii.gz"),
        STANDARDS["brats"],
        BRATS,
        anatomy=None,
        numbering=None,
        normalisation="percentiles",
    )
    again = resample_labels(found.labels, original.geometry, BRATS.values)
    assert np.array_equal(again.array, original.array)


@needs_data
def test_masks_alone_are_no_source():
    with pytest.raises(MedDPMError, match="masks without images .anatomy_01.nii.gz is a map of labels"):
        find_cases([SHARED / "anatomies"], ANATOMY, CONTRASTS)
