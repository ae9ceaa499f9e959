"""The table of realism: what it says of brains whose faults are known."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from test_cascade import GRID as CASCADE_GRID
from test_cascade import _card as cascade_card
from test_cascade import _cascade as small_cascade
from test_cascade import _labels as cascade_labels

from MedDPMLib.data import Case
from MedDPMLib.evaluation.realism import (
    FIGURES,
    BrainFigures,
    Kept,
    Realism,
    Synthetic,
    brain_figures,
    compared,
    rows,
    summarize,
)
from MedDPMLib.imaging.io import write_nifti
from MedDPMLib.imaging.volume import Volume
from MedDPMLib.models.bundle import write_bundle

SHAPE = (32, 40, 40)
VALUES = (1, 2, 3, 18)


def brain(seed: int, blur: float = 0.0) -> tuple[np.ndarray, np.ndarray]:
    """Two images of four tissues as an onion with fine grain, blurred with a Gaussian of ``blur`` voxels."""
    from scipy.ndimage import gaussian_filter

    random = np.random.default_rng(seed)
    k, j, i = np.mgrid[: SHAPE[0], : SHAPE[1], : SHAPE[2]]
    shift = random.uniform(-1, 1, 3)
    radius = np.sqrt(
        ((k - 16 - shift[0]) / 14) ** 2 + ((j - 20 - shift[1]) / 17) ** 2 + ((i - 20 - shift[2]) / 18) ** 2
    )
    labels = np.zeros(SHAPE, np.uint8)
    for value, most in ((18, 1.0), (2, 0.9), (1, 0.7), (3, 0.3)):
        labels[radius < most] = value
    images = np.full((2, *SHAPE), -1.0, np.float32)
    for image, levels in zip(images, ((0.5, 0.1, -0.8, -0.5), (-0.2, 0.1, 0.9, 0.6)), strict=True):
        for value, level in zip(VALUES, levels, strict=True):
            image[labels == value] = level + random.uniform(-0.05, 0.05)
        image += 0.1 * random.standard_normal(SHAPE)
        image[:] = gaussian_filter(image, blur)
        image[labels == 0] = -1
    return images.clip(-1, 1), labels


def case(name: str, seed: int) -> Case:
    images, labels = brain(seed)
    return Case(name, torch.from_numpy(images), torch.from_numpy(labels), (1.0, 1.0, 1.0))


TRAINING = [case(f"training{n}", n) for n in range(3)]
HELD_OUT = [case(f"held-out{n}", 50 + n) for n in range(2)]


def table_of(make, tmp_path, **options):
    synthetic = [
        Synthetic(one.name, seed, f"{one.name} {seed}", lambda one=one, seed=seed: make(one, seed))
        for one in HELD_OUT for seed in (0, 1)
    ]  # fmt: skip
    measured = Realism(TRAINING, HELD_OUT, synthetic, VALUES, ("t1", "t2"), Kept(tmp_path / "figures.json"))
    return measured.table(**options)


def test_real_brains_of_other_grain_pass(tmp_path):
    """Synthetic brains that are real ones with fresh grain: every figure says so."""

    def fresh(one, seed):
        labels = one.labels.numpy()
        grain = 0.1 * np.random.default_rng(1000 + seed).standard_normal((2, *SHAPE))
        means = np.stack(
            [sum((labels == v) * image[labels == v].mean() for v in VALUES) for image in one.image.numpy()]
        )
        return np.where(labels > 0, means + grain, -1).clip(-1, 1).astype(np.float32)

    table = table_of(fresh, tmp_path)
    for modality in ("t1", "t2"):
        assert table["correlation"][modality]["synthetic"].middle > 0.99
        for figure in ("gradient", "sd", "band2", "band3"):
            assert table[figure][modality]["synthetic"].middle == pytest.approx(1, abs=0.15), figure
        assert table["ms_ssim"][modality]["synthetic"].count == 2 and table["ms_ssim"][modality]["floor"].count == 2
    assert table["nearest"]["synthetic"].middle > 0.5 * table["nearest"]["floor"].middle
    lines = list(rows(table, ("t1", "t2")))
    assert all(len(line) == 3 for line in lines) and lines[0][0] == FIGURES["correlation"]
    assert lines[2][0].strip() == "colored mask" and "(" in lines[0][1]


def test_blurred_brains_and_copies_do_not(tmp_path):
    table = table_of(lambda one, seed: brain(50 + int(one.name[-1]), 1.5)[0], tmp_path / "blurred")
    assert table["band3"]["t1"]["synthetic"].middle < 0.2 and table["gradient"]["t1"]["synthetic"].middle < 0.6
    assert table["band3"]["t1"]["floor"].middle == pytest.approx(1, abs=0.2)
    table = table_of(lambda one, seed: TRAINING[seed].image.numpy(), tmp_path / "copied")
    assert table["nearest"]["synthetic"].high == 0 < table["nearest"]["floor"].low


def test_figures_are_kept_and_damage_costs_nothing_but_time(tmp_path):
    calls = []

    def make(one, seed):
        calls.append(1)
        return one.image.numpy()

    first = table_of(make, tmp_path)
    count = len(calls)
    assert count and table_of(make, tmp_path) == first and len(calls) == count
    (tmp_path / "figures.json").write_text("{")
    assert table_of(make, tmp_path) == first and len(calls) == 2 * count
    assert json.loads((tmp_path / "figures.json").read_text())


def test_a_missing_label_is_missing_in_all_that_follows():
    images, labels = brain(1)
    labels[labels == 3] = 1
    figures = brain_figures(images, labels, VALUES)
    assert np.isnan(figures.mean[:, 2]).all() and np.isfinite(figures.mean[:, [0, 1, 3]]).all()
    again = BrainFigures.from_dict(json.loads(json.dumps(figures.to_dict())))
    for name, values in vars(figures).items():
        np.testing.assert_array_equal(getattr(again, name), values)
    found = compared(figures, figures, figures.mean[None])
    assert found["correlation"] == pytest.approx([1, 1]) and found["in_range"] == [1, 1] and found["sd"] == [1, 1]


def test_summaries_leave_out_what_is_undefined():
    assert summarize([], ratio=True) is None and summarize([float("nan")], ratio=False) is None
    found = summarize([1.0, 2.0, 6.0, float("nan")], ratio=False)
    assert (found.middle, found.count) == (3.0, 3) and summarize([1.0, 2.0, 6.0], ratio=True).middle == 2.0


def test_the_command_measures_a_dataset_and_computes_nothing_twice(tmp_path, meddpm):
    for folder in ("imagesTr", "labelsTr"):
        (tmp_path / "data" / folder).mkdir(parents=True)
    place = CASCADE_GRID.centered_on(np.zeros(3))
    for seed, name in enumerate(("a", "b", "c", "x", "y_2")):
        random = np.random.default_rng(seed)
        labels = np.roll(cascade_labels(), random.integers(-2, 3, 3), (0, 1, 2))
        write_nifti(tmp_path / "data" / "labelsTr" / f"{name}.nii.gz", Volume(labels, place))
        for channel in (0, 1):
            image = np.where(labels > 0, np.clip(labels / 11 - 1 + random.normal(0, 0.1, labels.shape), -1, 1), -1)
            path = tmp_path / "data" / "imagesTr" / f"{name}_{channel:04d}.nii.gz"
            write_nifti(path, Volume(image.astype(np.float32), place))
    description = {"channel_names": {"0": "t1", "1": "t2"}, "label_scheme": "anatomy"}
    (tmp_path / "data" / "dataset.json").write_text(json.dumps(description))
    write_bundle(tmp_path / "small.safetensors", cascade_card(), small_cascade().state_dict())
    exact = ["--device", "cpu", "--precision", "float32"]
    model, out, held_out = tmp_path / "small.safetensors", tmp_path / "out", ["--held-out", "x,y"]
    common = ["realism", tmp_path / "data", "--model", model, "--out", out, "--samples", "2", *exact]
    command = [*common, *held_out, "--own-appearance", "--json", tmp_path / "table.json"]
    first = meddpm(*command)
    assert first.returncode == 0, first.stderr
    assert "2 held-out brains, 2 seeds, 3 training brains" in first.stdout and "real against real" in first.stdout
    table = json.loads((tmp_path / "table.json").read_text())
    assert table["held_out"] == ["x", "y_2"] and table["figures"]["sd"]["t2"]["synthetic"]["count"] == 4
    assert table["figures"]["sd"]["t2"]["floor"]["count"] == 6
    written = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").rglob("*") if path.is_file()}
    assert sum(path.name.endswith(".nii.gz") for path in written) == 8
    assert meddpm(*command).stdout == first.stdout
    assert {path: path.stat().st_mtime_ns for path in written} == written
    refused = meddpm(*common, "--held-out", "none")
    assert refused.returncode == 2 and "0 held-out brains" in refused.stderr
