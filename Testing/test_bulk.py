"""Bulk generation: shares of the work, ranks that are killed, and datasets for nnU-Net."""

from __future__ import annotations

import json
import signal
import time
from pathlib import Path

import numpy as np
import pytest
import SimpleITK
from conftest import small_card as card_of
from conftest import small_geometry, small_labels, write_small_mask, write_small_model
from hypothesis import given
from hypothesis import strategies as st

from MedDPMLib.cli.shards import Shard, find_shard
from MedDPMLib.errors import MedDPMError
from MedDPMLib.imaging.io import SYNTHETIC, read_volume
from MedDPMLib.inference.nnunet import NnunetDataset, label_numbers
from MedDPMLib.inference.record import read_result
from MedDPMLib.masks.schemes import LabelScheme


@given(st.integers(0, 60), st.integers(1, 17))
def test_shares_are_disjoint_complete_and_even(jobs, count):
    shares = [Shard(index, count).share_of(list(range(jobs))) for index in range(1, count + 1)]
    assert [job for share in shares for job in share] == list(range(jobs))
    assert max(map(len, shares)) - min(map(len, shares)) <= 1


def test_the_share_is_that_of_the_option_or_of_torchrun(monkeypatch):
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK"):
        monkeypatch.delenv(name, raising=False)
    assert find_shard(None) == Shard(1, 1)
    monkeypatch.setenv("RANK", "5")
    assert find_shard(None) == Shard(1, 1), "a rank alone is nothing that torchrun sets"
    monkeypatch.setenv("WORLD_SIZE", "8")
    monkeypatch.setenv("LOCAL_RANK", "1")
    assert find_shard(None) == Shard(6, 8, local_rank=1)
    assert find_shard("2/3") == Shard(2, 3)
    for option in ("0/3", "4/3", "1", "1/0", "a/b", "1/2/3", "-1/2"):
        with pytest.raises(MedDPMError, match="no share"):
            find_shard(option)
    monkeypatch.setenv("WORLD_SIZE", "5")
    with pytest.raises(MedDPMError, match="RANK=5 and WORLD_SIZE=5"):
        find_shard(None)


def write_masks(folder: Path, scheme: LabelScheme, count: int) -> Path:
    for number in range(count):
        write_small_mask(folder / f"case{number}.nii.gz", scheme, seed=number)
    return folder


def times(folder: Path) -> dict[str, int]:
    return {path.relative_to(folder).as_posix(): path.stat().st_mtime_ns for path in folder.rglob("*.nii.gz")}


def test_nothing_twice_and_nothing_lost_when_a_rank_is_killed(meddpm, meddpm_process, small_model, brats, tmp_path):
    masks = write_masks(tmp_path / "masks", brats, 4)
    arguments = ["generate", masks, "--model", small_model, "--out", "Dataset501_Small", "--as", "nnunet"]
    arguments += ["--samples", 6, "--precision", "float32"]
    out = tmp_path / "Dataset501_Small"
    ranks = [
        meddpm_process(*arguments, env={"RANK": str(rank), "WORLD_SIZE": "2", "LOCAL_RANK": str(rank)})
        for rank in range(2)
    ]
    try:
        deadline = time.monotonic() + 200
        while not list(out.glob("records/case[23]_*.json")):
            assert ranks[1].poll() is None, ranks[1].communicate()
            assert time.monotonic() < deadline
            time.sleep(0.002)
        ranks[1].send_signal(signal.SIGKILL)
        assert ranks[1].wait(60) == -signal.SIGKILL
        first, complaints = ranks[0].communicate(timeout=200)
    finally:
        for rank in ranks:
            rank.kill()
    assert ranks[0].returncode == 0, complaints
    assert "share 1/2: 12 generated" in first
    before = times(out)
    done = len(list(out.glob("records/case[23]_*.json")))
    assert 1 <= done < 12, "killed amid its work"
    assert len(list(out.glob("records/case[01]_*.json"))) == 12

    again = meddpm(*arguments, "--shard", "2/2")
    assert again.returncode == 0 and f"share 2/2: {12 - done} generated, {done} skipped" in again.stdout, again.stderr
    finished = {path.stem for path in out.glob("records/*.json")}
    assert finished == {f"case{mask}_seed{seed}" for mask in range(4) for seed in range(6)}
    verify_raw_dataset(out, cases=24)
    after = times(out)
    whole = {name for name in before if Path(name).name[: len("case0_seed0")] in finished_before(before)}
    assert {name: before[name] for name in whole} == {name: after[name] for name in whole}, "nothing is made twice"
    # All shares together are what one process makes.
    alone = meddpm("generate", masks / "case3.nii.gz", "--model", small_model, "--out", "one", "--precision", "float32")
    assert alone.returncode == 0
    np.testing.assert_array_equal(
        read_volume(out / "imagesTr/case3_seed0_0001.nii.gz").array,
        read_volume(tmp_path / "one/case3_seed0_t2.nii.gz").array,
    )


def finished_before(files: dict[str, int]) -> set[str]:
    """The cases of which images and labels were all there."""
    images = {Path(name).name.removesuffix("_0001.nii.gz") for name in files if name.startswith("imagesTr")}
    return images & {Path(name).name.removesuffix(".nii.gz") for name in files if name.startswith("labelsTr")}


def verify_raw_dataset(folder: Path, cases: int) -> None:
    """The rules of nnU-Net 2.8's ``verify_dataset_integrity``, written down anew: which files make a case, which
    fields and label values there must be, and that images and labels have one grid and finite values."""
    said = json.loads((folder / "dataset.json").read_text())
    assert {"labels", "channel_names", "numTraining", "file_ending"} <= said.keys()
    ending = said["file_ending"]
    # Every file counts, hidden ones too.
    images = [path.name for path in (folder / "imagesTr").iterdir() if path.name.endswith(ending)]
    labels = [path.name for path in (folder / "labelsTr").iterdir() if path.name.endswith(ending)]
    names = {name[: -len(ending) - 5] for name in images}
    assert len(names) == said["numTraining"] == cases
    assert {name + ending for name in names} == set(labels)
    values = sorted(said["labels"].values())
    assert values == list(range(len(values)))
    for name in names:
        channels = sorted(image for image in images if image[: -len(ending) - 5] == name)
        assert channels == [f"{name}_{index:04d}{ending}" for index in range(len(said["channel_names"]))]
        label = SimpleITK.ReadImage(str(folder / "labelsTr" / f"{name}{ending}"))
        assert set(np.unique(SimpleITK.GetArrayViewFromImage(label)).tolist()) <= set(values)
        for channel in channels:
            image = SimpleITK.ReadImage(str(folder / "imagesTr" / channel))
            assert image.GetSize() == label.GetSize()
            for one in ("GetSpacing", "GetOrigin", "GetDirection"):
                np.testing.assert_allclose(getattr(image, one)(), getattr(label, one)())
            assert np.isfinite(SimpleITK.GetArrayViewFromImage(image)).all()


def test_a_case_of_nnunet_is_the_volumes_and_the_mask_with_its_record(meddpm, small_model, small_mask, brats, tmp_path):
    arguments = ["generate", small_mask, "--model", small_model]
    told = meddpm(*arguments, "--out", "set", "--as", "nnunet")
    assert told.returncode == 0 and "Dataset501_Synthetic" in told.stderr, "the name is not one that nnU-Net finds"
    assert meddpm(*arguments, "--out", "plain").returncode == 0
    folder = tmp_path / "set"
    verify_raw_dataset(folder, cases=1)
    record = json.loads((folder / "records/case_seed0.json").read_text())
    assert record["description"] == SYNTHETIC and record["seed"] == 0
    for index, modality in enumerate(("t1", "t2")):
        ours = read_volume(folder / f"imagesTr/case_seed0_{index:04d}.nii.gz")
        plain = read_volume(tmp_path / f"plain/case_seed0_{modality}.nii.gz")
        np.testing.assert_array_equal(ours.array, plain.array)
        assert ours.geometry.is_close(plain.geometry)
        assert read_result(tmp_path / f"plain/case_seed0_{modality}.nii.gz").array.max() <= 1
    labels = read_volume(folder / "labelsTr/case_seed0.nii.gz")
    np.testing.assert_array_equal(labels.array, small_labels(brats))
    assert labels.geometry.is_close(small_geometry())
    said = json.loads((folder / "dataset.json").read_text())
    assert said["channel_names"] == {"0": "t1", "1": "t2"} and "Not images of patients" in said["description"]
    assert {value for name, value in said["labels"].items() if name != "background"} == set(brats.values)

    # A case that lost a file is made again, another model's is another dataset.
    (folder / "labelsTr/case_seed0.nii.gz").unlink()
    assert "1 generated" in meddpm(*arguments, "--out", "set", "--as", "nnunet").stdout
    assert "1 skipped" in meddpm(*arguments, "--out", "set", "--as", "nnunet").stdout
    verify_raw_dataset(folder, cases=1)
    description = json.loads((folder / "dataset.json").read_text())
    (folder / "dataset.json").write_text(json.dumps(description | {"channel_names": {"0": "ct"}}))
    refused = meddpm(*arguments, "--out", "set", "--as", "nnunet")
    assert refused.returncode == 2 and "channel_names differs" in refused.stderr
    assert meddpm(*arguments, "--out", "set", "--as", "dicom").returncode == 2


def test_labels_on_the_mask_s_grid_end_with_the_image(meddpm, small_model, small_mask, brats, tmp_path):
    # Moved by two voxels, one corner of the mask's grid lies outside of the model's, which stays on the brain.
    from MedDPMLib.imaging.geometry import Geometry
    from MedDPMLib.imaging.io import write_nifti
    from MedDPMLib.imaging.volume import Volume

    labels = np.pad(small_labels(brats), ((0, 4), (2, 0), (0, 0)))
    geometry = Geometry(labels.shape[::-1], small_geometry().ijk_to_ras)
    write_nifti(tmp_path / "wide.nii.gz", Volume(labels, geometry))
    result = meddpm(
        "generate", "wide.nii.gz", "--model", small_model, "--out", "set", "--as", "nnunet", "--space", "mask"
    )
    assert result.returncode == 0, result.stderr
    verify_raw_dataset(tmp_path / "set", cases=1)
    written = read_volume(tmp_path / "set/labelsTr/wide_seed0.nii.gz")
    assert written.geometry.is_close(geometry)
    np.testing.assert_array_equal(written.array, labels)


def test_labels_are_numbered_without_a_gap(brats, tmp_path):
    from dataclasses import replace

    gapped = replace(brats, labels=tuple(replace(label, value=3 * label.value) for label in brats.labels))
    assert label_numbers(gapped) == {3: 1, 6: 2, 9: 3, 12: 4}
    dataset = NnunetDataset(tmp_path / "Dataset502_Gaps", card_of(gapped))
    assert dataset.note is None
    said = json.loads((tmp_path / "Dataset502_Gaps/dataset.json").read_text())
    assert sorted(said["labels"].values()) == [0, 1, 2, 3, 4] and said["numTraining"] == 0


def test_a_bad_mask_does_not_end_the_other_ranks(meddpm, small_model, brats, tmp_path, monkeypatch):
    masks = write_masks(tmp_path / "masks", brats, 1)
    (masks / "damaged.nii.gz").write_bytes(b"nothing")
    arguments = ["generate", masks, "--model", write_small_model(tmp_path / "m.safetensors", card_of(brats))]
    assert meddpm(*arguments, "--out", "out").returncode == 2
    for name, value in (("RANK", "0"), ("WORLD_SIZE", "1"), ("LOCAL_RANK", "0")):
        monkeypatch.setenv(name, value)
    under_torchrun = meddpm(*arguments, "--out", "out")
    assert under_torchrun.returncode == 0 and "1 mask could not be used" in under_torchrun.stdout
