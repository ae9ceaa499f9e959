"""Small brains of known labels, in every layout in which cases come."""

from __future__ import annotations

import csv
import json
from dataclasses import replace
from pathlib import Path

import numpy as np

from MedDPMLib.imaging.geometry import Geometry, Grid
from MedDPMLib.imaging.io import read_volume, write_nifti
from MedDPMLib.imaging.volume import Volume
from MedDPMLib.masks.schemes import load_scheme
from MedDPMLib.prepare import STANDARDS, DatasetSettings, find_cases, write_dataset

MODALITIES = ("t1", "t1ce", "t2", "flair")
BRATS, WHOLE_HEAD, ANATOMY = (load_scheme(name) for name in ("brats", "whole-head", "anatomy"))

#: A grid of thousands of voxels in place of millions, a little larger than the phantom.
SMALL = Grid((28, 24, 20), (6.0, 6.0, 6.0), "LPS")
SHAPE = (16, 20, 24)  # k, j, i
PLACE = Geometry(SHAPE[::-1], np.diag([-6.0, -6.0, 6.0, 1.0]) + np.eye(4)[3] * np.array([[70.0], [50], [-40], [0]]))


def shrink(monkeypatch) -> None:
    """Every dataset lies on the small grid, in this process."""
    for name, standard in list(STANDARDS.items()):
        monkeypatch.setitem(STANDARDS, name, replace(standard, grid=SMALL))


def phantom(seed=0) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """Four modalities, 0 around the brain, and a mask in the values of the scheme brats, asymmetric in every axis."""
    rng = np.random.default_rng(seed)
    k, j, i = np.mgrid[: SHAPE[0], : SHAPE[1], : SHAPE[2]]
    brain = ((k - 7.5) / 7) ** 2 + ((j - 9.5) / 9) ** 2 + ((i - 11.5) / 11) ** 2 < 1
    labels = np.where(brain, 4, 0).astype(np.uint8)
    labels[5:12, 4:11, 11:19] = 2
    labels[6:11, 5:10, 12:18] = 3
    labels[7:10, 6:9, 13:17] = 1
    images = {}
    for number, modality in enumerate(MODALITIES):
        values = 100 * (number + 1) + 40 * labels.astype(int) + rng.integers(0, 30, SHAPE)
        images[modality] = np.where(brain, values, 0).astype(np.int16)
    return images, labels


def renumbered(labels: np.ndarray, values: dict[int, int]) -> np.ndarray:
    table = np.zeros(5, np.uint8)
    table[list(values)] = list(values.values())
    return table[labels]


RAW_2021, RAW_2023 = {1: 1, 2: 2, 3: 4}, {1: 1, 2: 2, 3: 3}


def save(path: Path, array: np.ndarray, geometry: Geometry = PLACE) -> None:
    write_nifti(path, Volume(array, geometry))


def write_brats(root: Path, seeds, *, folder="{name}", naming="_", suffix=".nii.gz", values=RAW_2021) -> None:
    endings = MODALITIES if naming == "_" else ("t1n", "t1c", "t2w", "t2f")
    for seed in seeds:
        images, labels = phantom(seed)
        name = f"case{seed}"
        where = root / folder.format(name=name)
        for ending, modality in zip(endings, MODALITIES, strict=True):
            save(where / f"{name}{naming}{ending}{suffix}", images[modality])
        save(where / f"{name}{naming}seg{suffix}", renumbered(labels, values))


def write_nnunet(root: Path, seeds, channels: dict, labels_of: dict, values: dict[int, int], **more) -> None:
    order = ("t2", "t1", "flair", "t1ce")
    for seed in seeds:
        images, labels = phantom(seed)
        for index, modality in enumerate(order):
            save(root / "imagesTr" / f"case{seed}_{index:04d}.nii.gz", images[modality])
        save(root / "labelsTr" / f"case{seed}.nii.gz", renumbered(labels, values))
    description = {"labels": labels_of, "numTraining": len(seeds)} | channels | more
    (root / "dataset.json").write_text(json.dumps(description))


def nnunet_2(root, seeds):
    """nnU-Net's own BraTS: 1 is the edema there, 2 the necrosis; regions lie in each other."""
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
        for modality in MODALITIES:
            save(root / "brats2021" / modality / f"case{seed}_{modality}.nii.gz", images[modality])
        save(root / "brats2021" / "seg" / f"case{seed}_seg.nii.gz", labels)
    save(root / "whole_head" / "image" / "other.nii.gz", images["t1"])
    save(root / "whole_head" / "mask" / "other.nii.gz", (labels > 0).astype(np.uint8))


def pairs(root, seeds):
    for seed in seeds:
        images, labels = phantom(seed)
        for modality in MODALITIES:
            save(root / "Images" / f"case{seed}_{modality}.nii.gz", images[modality])
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
    return {report.name: report.problem and str(report.problem) for report in write_dataset(cases, out, chosen)}


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


def write_heads(root: Path, number: int) -> None:
    images, labels = phantom()
    place = Geometry(PLACE.size, PLACE.ijk_to_ras @ np.diag([1.45, 1.45, 1.45, 1]))  # as large as a head
    for case in range(number):
        save(root / "image" / f"head{case}.nii.gz", images["t1"] + case, place)
        save(root / "mask" / f"head{case}.nii.gz", (labels > 0).astype(np.uint8), place)
