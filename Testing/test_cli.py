"""The command line, run as a user runs it: a process, its files, its words and its exit code."""

from __future__ import annotations

import json
import os
import re
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

import nibabel
import numpy as np
import pytest
from conftest import (
    SIDE,
    finish,
    small_card,
    small_geometry,
    small_labels,
    write_small_mask,
    write_small_model,
)
from phantoms import PLACE, phantom, save
from PIL import Image

from MedDPMLib import __version__, generate, load_model
from MedDPMLib.cli.output import duration
from MedDPMLib.diffusion.names import METHODS
from MedDPMLib.imaging.geometry import Geometry, Grid
from MedDPMLib.imaging.io import SYNTHETIC, read_volume, write_nifti
from MedDPMLib.imaging.volume import Volume
from MedDPMLib.inference.record import read_result
from MedDPMLib.inference.settings import SPACES
from MedDPMLib.masks.mask import Mask, read_mask
from MedDPMLib.masks.schemes import load_scheme
from MedDPMLib.models.card import QUALITIES
from MedDPMLib.models.store import BUNDLED_MODELS
from MedDPMLib.runtime.names import PRECISIONS


def one_sentence(result: subprocess.CompletedProcess) -> str:
    """What a failed command said: one line that is no traceback."""
    assert "Traceback" not in result.stderr
    lines = [line for line in result.stderr.splitlines() if line.startswith("meddpm: ")]
    assert len(lines) == 1, result.stderr
    return lines[0].removeprefix("meddpm: ")


def contents(folder: Path) -> dict[str, tuple[bytes, int]]:
    """Every file in ``folder``, hidden ones too: its bytes and when it was written."""
    return {
        str(path.relative_to(folder)): (path.read_bytes(), path.stat().st_mtime_ns)
        for path in folder.rglob("*")
        if path.is_file()
    }


def assert_whole(folder: Path) -> None:
    """No temporary file is left, every volume can be read, and every record has its volume."""
    for path in folder.rglob("*"):
        assert not path.name.startswith("."), f"{path} is left over"
        if path.name.endswith(".nii.gz"):
            read_volume(path)
        if path.suffix == ".json":
            json.loads(path.read_text())
            assert path.with_name(path.stem + ".nii.gz").is_file()


# Help and mistakes -----------------------------------------------------------------------------------


def test_version_and_help(meddpm):
    assert meddpm("--version").stdout.strip() == f"meddpm {__version__}"
    result = meddpm("--help")
    assert result.returncode == 0
    for command in ("demo", "generate", "models", "prepare", "train", "fidelity", "benchmark"):
        assert re.search(rf"\b{command}\b", result.stdout)
    assert meddpm("models").returncode == 2, "a group alone shows its help, as an error"


def test_torch_is_not_imported_before_it_is_needed(small_mask):
    code = """
import sys
from typer.testing import CliRunner
from MedDPMLib.cli.app import app
for line in sys.argv[1:]:
    CliRunner().invoke(app, line.split())
    if "torch" in sys.modules:
        sys.exit(line)
"""
    lines = [
        "--help",
        "generate --help",
        "models list",
        f"generate {small_mask} --model nothing --out x",
        "train no run --run x --export y",
    ]
    result = subprocess.run([sys.executable, "-c", code, *lines], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr


def test_help_names_every_choice(meddpm):
    words = meddpm("generate", "--help").stdout
    for choice in (*METHODS, *PRECISIONS, *SPACES, *QUALITIES):
        assert re.search(rf"(?<![\w+-]){re.escape(choice)}(?![\w+-])", words), choice


@pytest.mark.parametrize(
    ("words", "offered"), [("models show sm", "small"), ("train --recipe brain-a", "brain-anatomy")]
)
def test_completion_offers_what_is_there(small_model, meddpm, meddpm_process, words, offered):
    meddpm("models", "import", small_model)
    asked = {
        "_MEDDPM_COMPLETE": "complete_bash",
        "COMP_WORDS": f"meddpm {words}",
        "COMP_CWORD": str(len(words.split())),
    }
    assert offered in finish(meddpm_process(env=asked)).stdout.split()


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        (["--sampler", "euler"], r'"sampler" must be one of .*ddpm, not .euler.'),
        (["--steps", "0"], r"whole number from 1 to 10000, not 0"),
        (["--steps", "51"], r"steps is 1 to 50 for the model small, not 51"),
        (["--quality", "best"], r'"quality" must be one of draft, standard, reference, not .best.'),
        (["--device", "tpu"], r'"device" must be one of auto, cpu, cuda, mps or cuda:1, not .tpu.'),
        (["--precision", "int8"], r'"precision" must be one of auto, float32, .*not .int8.'),
        (["--space", "mni"], r'"space" must be one of model, mask, not .mni.'),
        (["--labels", "mine"], r'no label convention "mine"'),
        (["--brain-from", "missing.nii"], r"missing.nii does not exist"),
    ],
)
def test_wrong_settings_are_one_sentence_and_exit_2(meddpm, small_model, small_mask, tmp_path, options, complaint):
    result = meddpm("generate", small_mask, "--model", small_model, "--out", "out", *options)
    assert result.returncode == 2
    assert re.search(complaint, one_sentence(result))
    assert not list(tmp_path.glob("out/*"))


def test_wrong_usage_exits_2(meddpm, small_mask):
    for arguments in (
        ["generate", small_mask],
        ["generate", small_mask, "--model", "m", "--out", "o", "--seed", "-1"],
        ["generate", small_mask, "--model", "m", "--out", "o", "--samples", "0"],
        ["generate", small_mask, "--model", "m", "--out", "o", "--nonsense"],
        ["no such command"],
    ):
        result = meddpm(*arguments)
        assert result.returncode == 2 and "Traceback" not in result.stderr


def test_tracebacks_only_with_debug(meddpm, small_mask):
    arguments = ["generate", small_mask, "--model", "no such", "--out", "out"]
    result = meddpm(*arguments)
    assert result.returncode == 2
    assert 'there is no model "no such"' in one_sentence(result)
    for debugged in (["--debug", *arguments], [*arguments, "--debug"]):
        result = meddpm(*debugged)
        assert (
            result.returncode == 2 and "Traceback" in result.stderr and 'there is no model "no such"' in result.stderr
        )


def test_an_error_in_the_program_is_a_sentence_too(meddpm_process, small_model, small_mask, tmp_path):
    # A library that cannot be imported is no mistake of the user's.
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "nibabel.py").write_text("raise RuntimeError('broken on purpose')")
    path = os.pathsep.join([str(tmp_path / "broken"), *sys.path])
    result = finish(
        meddpm_process("generate", small_mask, "--model", small_model, "--out", "out", env={"PYTHONPATH": path})
    )
    assert result.returncode == 1
    assert "error in MedDPM itself (RuntimeError: broken on purpose)" in one_sentence(result)


# Generating ------------------------------------------------------------------------------------------


def assert_stored(written, generated, labels):
    """What a file gives back: in the mask the generated intensities up to half of a stored step, outside the lowest."""
    close = np.isclose(written, generated, rtol=0, atol=1.001e-3)
    assert close[labels > 0].all() and (close | (written == -1)).all()
    assert (written[0] == -1).all() and (labels[0] == 0).all()


def test_a_volume_is_the_api_s_with_record_and_mark(meddpm, small_model, small_mask, tmp_path):
    result = meddpm(
        "generate", small_mask, "--model", small_model, "--out", "out", "--seed", 7, "--precision", "float32"
    )
    assert result.returncode == 0, result.stderr
    out = tmp_path / "out"
    assert sorted(path.name for path in out.iterdir()) == [
        f"case_seed7_{modality}.{suffix}" for modality in ("t1", "t2") for suffix in ("json", "nii.gz")
    ]
    expected = generate(load_model(small_model), small_mask, seed=7, precision="float32")
    for modality, volume in expected.items():
        path = out / f"case_seed7_{modality}.nii.gz"
        written = read_volume(path)
        # Stored in a thousand steps, of which the lowest intensity is 0.
        assert written.array.dtype == np.int16 and written.array.min() >= 0
        assert_stored(read_result(path).array, volume.array, expected.labels)
        assert written.geometry.is_close(volume.geometry)
        assert nibabel.load(path).header["descrip"].item().decode() == SYNTHETIC
        record = json.loads((out / f"case_seed7_{modality}.json").read_text())
        assert record["modality"] == modality and "not for diagnosis" in record["notice"]
        for field in ("model", "mask", "seed", "sampler", "steps", "precision", "device", "space", "versions"):
            assert record[field] == expected.record[field], field
        assert str(Path("out") / path.name) in result.stdout


@pytest.mark.parametrize("memory, way", [("auto", "whole"), ("low", "in thin slabs"), ("32GB", "whole")])
def test_the_memory_that_is_planned_is_reported_and_taken(meddpm, small_model, small_mask, tmp_path, memory, way):
    result = meddpm("generate", small_mask, "--model", small_model, "--out", "out", "--memory", memory)
    assert result.returncode == 0, result.stderr
    reported = [line for line in result.stderr.splitlines() if "at the peak" in line]
    assert len(reported) == 1 and f"GB at the peak, {way} (" in reported[0]
    assert json.loads((tmp_path / "out" / "case_seed0_t1.json").read_text())["memory"] == way


def test_samples_are_seeds_in_a_row(meddpm, small_model, small_mask, tmp_path):
    assert (
        meddpm("generate", small_mask, "--model", small_model, "--out", "many", "--samples", 3, "--seed", 5).returncode
        == 0
    )
    assert meddpm("generate", small_mask, "--model", small_model, "--out", "one", "--seed", 6).returncode == 0
    arrays = [read_volume(tmp_path / "many" / f"case_seed{seed}_t1.nii.gz").array for seed in (5, 6, 7)]
    np.testing.assert_array_equal(arrays[1], read_volume(tmp_path / "one" / "case_seed6_t1.nii.gz").array)
    assert not np.array_equal(arrays[0], arrays[1]) and not np.array_equal(arrays[1], arrays[2])


@pytest.mark.parametrize("space", SPACES)
def test_the_space_is_the_one_asked_for(meddpm, small_model, brats, tmp_path, space):
    # Twice the voxels along every axis, in another orientation.
    fine = small_geometry().ijk_to_ras @ np.array(
        [[0, 0, 0.5, 0], [0.5, 0, 0, 0], [0, -0.5, 0, SIDE - 1], [0, 0, 0, 1]]
    )
    labels = small_labels(brats).repeat(2, 0).repeat(2, 1).repeat(2, 2)
    mask = Volume(labels, Geometry((2 * SIDE,) * 3, fine))
    write_nifti(tmp_path / "fine.nii.gz", mask)
    result = meddpm("generate", "fine.nii.gz", "--model", small_model, "--out", "out", "--space", space)
    assert result.returncode == 0, result.stderr
    geometry = read_volume(tmp_path / "out" / "fine_seed0_t1.nii.gz").geometry
    assert geometry.is_close(mask.geometry) == (space == "mask")
    assert space == "mask" or geometry.size == (SIDE,) * 3


@pytest.mark.parametrize("quality", QUALITIES)
def test_the_quality_is_the_model_s(meddpm, small_model, small_mask, tmp_path, brats, quality):
    result = meddpm("generate", small_mask, "--model", small_model, "--out", "out", "--quality", quality)
    assert result.returncode == 0, result.stderr
    record = json.loads((tmp_path / "out" / "case_seed0_t1.json").read_text())
    assert {name: record[name] for name in ("sampler", "steps")} == small_card(brats).qualities[quality]


def test_a_brain_area_from_an_image_and_a_numbering(meddpm, small_model, brats, tmp_path):
    labels = small_labels(brats)
    tumor = np.where(labels == brats.rest.value, 0, labels)
    write_nifti(tmp_path / "tumor.nii.gz", Volume(tumor, small_geometry()))
    image = np.where(labels > 0, np.float32(300), np.float32(0))
    write_nifti(tmp_path / "brain.nii.gz", Volume(image, small_geometry()))
    arguments = ["generate", "tumor.nii.gz", "--model", small_model, "--out", "out", "--labels", brats.own_numbering]
    result = meddpm(*arguments)
    assert result.returncode == 2 and "--brain-from" in one_sentence(result)
    assert meddpm(*arguments, "--brain-from", "brain.nii.gz").returncode == 0
    # It is the whole mask that is generated from.
    write_nifti(tmp_path / "whole.nii.gz", Volume(labels, small_geometry()))
    whole = generate(
        load_model(small_model), read_mask(tmp_path / "whole.nii.gz", brats, numbering=brats.own_numbering)
    )
    written = read_result(tmp_path / "out" / "tumor_seed0_t1.nii.gz")
    assert_stored(written.array, whole["t1"].array, whole.labels)


def test_a_second_run_makes_only_what_is_missing(meddpm, small_model, small_mask, tmp_path, brats):
    write_small_mask(small_mask.with_name("other.nii.gz"), brats, seed=1)
    out = tmp_path / "out"
    arguments = ["generate", small_mask.parent, "--model", small_model, "--out", "out", "--samples", 2]
    first = meddpm(*arguments)
    assert first.returncode == 0 and "4 generated" in first.stdout
    before = contents(out)
    assert len(before) == 2 * 2 * 2 * 2
    second = meddpm(*arguments)
    assert second.returncode == 0 and "0 generated, 4 skipped" in second.stdout
    assert contents(out) == before

    # What is damaged or gone is made again, and is what it was; the rest is not touched.
    (out / "case_seed0_t1.nii.gz").unlink()
    (out / "other_seed1_t2.json").write_text('{"seed": ')
    third = meddpm(*arguments)
    assert third.returncode == 0 and "2 generated, 2 skipped" in third.stdout
    after = contents(out)
    changed = {name for name in before if before[name][1] != after[name][1]}
    assert {name.partition("_t")[0] for name in changed} == {"case_seed0", "other_seed1"}
    for name in before:
        if name.endswith(".nii.gz"):
            np.testing.assert_array_equal(read_volume(out / name).array, _array(before[name][0], tmp_path))


def _array(content: bytes, folder: Path) -> np.ndarray:
    path = folder / "was.nii.gz"
    path.write_bytes(content)
    return read_volume(path).array


def test_other_settings_another_mask_or_model_are_not_taken_for_finished(
    meddpm, small_model, small_mask, tmp_path, brats
):
    arguments = ["generate", small_mask, "--out", "out"]

    def made(*options, model=small_model) -> bool:
        result = meddpm(*arguments, "--model", model, *options)
        assert result.returncode == 0, result.stderr
        return "1 generated" in result.stdout

    assert made() and not made()
    assert made("--steps", 2) and not made("--steps", 2)
    assert made("--steps", 2, "--sampler", "ddim")
    assert made(
        "--steps",
        2,
        "--sampler",
        "ddim",
        "--precision",
        "float32" if "bfloat16" in _precision(tmp_path) else "bfloat16",
    )
    assert made() and not made()
    assert made("--space", "mask") and made()
    write_small_mask(small_mask, brats, seed=3)
    assert made() and not made()
    other = write_small_model(tmp_path / "other.safetensors", small_card(brats), seed=9)
    assert made(model=other) and made()
    assert_whole(tmp_path / "out")


def _precision(folder: Path) -> str:
    return json.loads((folder / "out" / "case_seed0_t1.json").read_text())["precision"]


# Bad masks -------------------------------------------------------------------------------------------


def test_one_bad_mask_is_reported_and_the_rest_is_made(meddpm, small_model, small_mask, tmp_path, brats):
    folder = small_mask.parent
    write_small_mask(folder / "zlast.nii.gz", brats, seed=2)
    (folder / "damaged.nii.gz").write_bytes(small_mask.read_bytes()[:100])
    write_nifti(folder / "empty.nii.gz", Volume(np.zeros((SIDE,) * 3, np.uint8), small_geometry()))
    (folder / "notes.txt").write_text("no volume, and not asked about")
    result = meddpm("generate", folder, "--model", small_model, "--out", "out")
    assert result.returncode == 2
    complaints = [line for line in result.stderr.splitlines() if line.startswith("meddpm: ")]
    assert len(complaints) == 2 and "Traceback" not in result.stderr
    assert "damaged.nii.gz" in complaints[0] and re.search("empty.nii.gz.* is empty", complaints[1])
    assert "2 generated" in result.stdout and "2 masks could not be used" in result.stdout
    assert sorted(path.name for path in (tmp_path / "out").glob("*.nii.gz")) == [
        f"{stem}_seed0_{modality}.nii.gz" for stem in ("case", "zlast") for modality in ("t1", "t2")
    ]


def test_folders_without_masks_and_names_that_clash(meddpm, small_model, small_mask, tmp_path, brats):
    dicom = tmp_path / "series"
    dicom.mkdir()
    (dicom / "IM0001").write_bytes(b"\0" * 128 + b"DICM")
    result = meddpm("generate", dicom, "--model", small_model, "--out", "out")
    assert result.returncode == 2 and "convert a DICOM series to NIfTI first" in one_sentence(result)

    result = meddpm("generate", small_mask.parent, "--model", small_model, "--out", small_mask.parent)
    assert result.returncode == 2 and "choose another folder for the results" in one_sentence(result)

    again = write_small_mask(tmp_path / "more" / "case.nii", brats)
    result = meddpm("generate", small_mask, again, "--model", small_model, "--out", "out")
    assert result.returncode == 2 and 'several masks are called "case"' in one_sentence(result)
    # The same file twice is one mask.
    result = meddpm("generate", small_mask, small_mask.parent, "--model", small_model, "--out", "out")
    assert result.returncode == 0 and "1 generated" in result.stdout


# Faults ----------------------------------------------------------------------------------------------


def test_a_folder_that_cannot_be_written_to_is_reported_before_the_work(meddpm, small_model, small_mask, tmp_path):
    (tmp_path / "file").write_text("in the way")
    result = meddpm("generate", small_mask, "--model", small_model, "--out", "file")
    assert result.returncode == 2 and re.search(
        r"file cannot be written to .*choose another folder", one_sentence(result)
    )
    assert "left" not in result.stderr, "nothing was generated"
    if os.geteuid() != 0:  # the superuser may write everywhere
        (tmp_path / "locked").mkdir(mode=0o500)
        result = meddpm("generate", small_mask, "--model", small_model, "--out", "locked")
        assert result.returncode == 2 and "locked cannot be written to" in one_sentence(result)


@pytest.mark.parametrize("limit", [500, 2_000])
def test_a_full_disk_ends_the_run_with_a_sentence_and_leaves_nothing_broken(
    meddpm, small_model, small_mask, tmp_path, brats, limit
):
    write_small_mask(small_mask.with_name("other.nii.gz"), brats, seed=1)
    arguments = ["generate", small_mask.parent, "--model", small_model, "--out", "out"]
    # A limit on the size of files is what a full disk is to the program that writes.
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, hard))
    try:
        result = meddpm(*arguments)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert result.returncode == 2
    assert re.search(r"cannot be written .*(free some space|choose another folder)", one_sentence(result))
    assert contents(tmp_path / "out") == {}
    assert meddpm(*arguments).returncode == 0


def test_ctrl_c_leaves_only_whole_files_and_the_next_run_goes_on(
    meddpm, meddpm_process, small_model, small_mask, tmp_path
):
    arguments = ["generate", small_mask, "--model", small_model, "--out", "out", "--quality", "reference"]
    out = tmp_path / "out"
    process = meddpm_process(*arguments, "--samples", 1000)
    try:
        deadline = time.monotonic() + 100
        while len(list(out.glob("*_t2.json"))) < 2:
            assert process.poll() is None, process.communicate()
            assert time.monotonic() < deadline
            time.sleep(0.01)
        process.send_signal(signal.SIGINT)
        printed, complained = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == 130
    assert "Traceback" not in complained and "stopped" in complained.splitlines()[-1]
    assert_whole(out)
    finished = len(list(out.glob("*_t2.json")))
    assert finished >= 2
    result = meddpm(*arguments, "--samples", finished + 1)
    assert result.returncode == 0 and f"1 generated, {finished} skipped" in result.stdout


# Progress --------------------------------------------------------------------------------------------


def test_progress_is_plain_lines_in_a_log_and_a_bar_in_a_terminal(
    meddpm, meddpm_process, small_model, small_mask, tmp_path
):
    arguments = ["generate", small_mask, "--model", small_model, "--out", "out", "--samples", 2]
    result = meddpm(*arguments)
    assert "case, seed 1: 6 of 6, 0 s left" in result.stderr
    assert "\x1b" not in result.stderr + result.stdout

    ours, theirs = os.openpty()
    process = meddpm_process(*arguments, "--seed", 10, stderr=theirs)
    os.close(theirs)
    drawn = b""
    while True:
        try:
            part = os.read(ours, 65536)
        except OSError:  # the other end was closed
            break
        if not part:
            break
        drawn += part
    printed, _ = process.communicate(timeout=60)
    os.close(ours)
    assert process.returncode == 0
    assert b"\x1b[" in drawn and b"case, seed 11" in drawn and b"6/6" in drawn
    assert "out/case_seed10_t1.nii.gz" in printed and "2 generated" in printed


def test_durations_are_said_as_people_say_them():
    assert [duration(s) for s in (0.4, 89, 100, 3600, 5400, 12_000)] == [
        "0 s",
        "89 s",
        "2 min",
        "60 min",
        "1 h 30 min",
        "3 h 20 min",
    ]


# Models ----------------------------------------------------------------------------------------------


def test_models_are_imported_listed_shown_exported_and_removed(meddpm, small_model, tmp_path, monkeypatch):
    monkeypatch.setenv("COLUMNS", "40")  # a table in a pipe is not broken to the terminal's width
    result = meddpm("models", "import", small_model, "--name", "mine")
    assert result.returncode == 0 and "mine installed" in result.stdout
    assert (tmp_path / "imported" / "mine.safetensors").read_bytes() == small_model.read_bytes()
    row = next(line for line in meddpm("models", "list").stdout.splitlines() if "mine" in line)
    for word in ("t1, t2", "16 x 16 x 16 of 8 x 8 x 8 mm", "brats", "imported"):
        assert word in row
    shown = meddpm("models", "show", "mine").stdout
    assert "A small model (small)" in shown and "Intended use" in shown and "SHA-256" in shown
    assert meddpm("models", "export", "mine", "copy.safetensors").returncode == 0
    assert (tmp_path / "copy.safetensors").read_bytes() == small_model.read_bytes()
    assert meddpm("models", "remove", "mine").returncode == 0
    result = meddpm("models", "remove", "mine")
    assert result.returncode == 2 and 'no model "mine"' in one_sentence(result)
    (tmp_path / "hostile.safetensors").write_bytes(b"\xff" * 64)
    result = meddpm("models", "import", "hostile.safetensors")
    assert result.returncode == 2 and "hostile.safetensors" in one_sentence(result)


def test_a_broken_model_is_listed_with_what_is_wrong(meddpm, small_model, tmp_path):
    (tmp_path / "imported").mkdir()
    (tmp_path / "imported" / "cut.safetensors").write_bytes(small_model.read_bytes()[:-10])
    result = meddpm("models", "list")
    assert result.returncode == 0 and "truncated" in result.stdout


# Demo and fidelity -----------------------------------------------------------------------------------


def test_the_demo_writes_volumes_mask_montage_and_record(meddpm, tmp_path):
    anatomy = load_scheme("anatomy")
    card = small_card(anatomy, grid=Grid((48, 48, 36), (4.0, 4.0, 4.0), "LPS"))
    model = write_small_model(tmp_path / "anatomy.safetensors", card)
    result = meddpm("demo", "--out", "demo", "--model", model, "--seed", 3)
    assert result.returncode == 0, result.stderr
    out = tmp_path / "demo"
    names = {path.name for path in out.iterdir()}
    assert names == {"demo_mask.nii.gz", "montage.png", "record.json"} | {
        f"demo_{modality}.{suffix}" for modality in ("t1", "t2") for suffix in ("nii.gz", "json")
    }
    mask = read_mask(out / "demo_mask.nii.gz", anatomy, numbering=anatomy.own_numbering)
    assert all((mask.volume.array == label.value).any() for label in anatomy.tumor)
    record = json.loads((out / "record.json").read_text())
    assert record["seed"] == 3 and record["mask"]["hash"] == mask.hash
    pixels = np.asarray(Image.open(out / "montage.png").convert("RGB"), int)
    for label in anatomy.tumor:
        assert (np.abs(pixels - label.color).max(axis=2) < 40).sum() > 20, f"the outline of {label.name} is drawn"
    assert all(str(Path("demo") / name) in result.stdout for name in names if not re.fullmatch(r"demo_.*\.json", name))


def test_the_bundled_demo_fits_a_small_machine(meddpm, tmp_path):
    assert (BUNDLED_MODELS / "brain-anatomy.safetensors").is_file()
    measured = tmp_path / "peak"
    code = (
        "import pathlib, sys, torch; from MedDPMLib.cli.app import app\n"
        "from MedDPMLib.runtime.hardware import peak_memory\n"
        "app(sys.argv[2:], standalone_mode=False)\n"
        "pathlib.Path(sys.argv[1]).write_text(str(peak_memory(torch.device('cpu'))))"
    )
    # The peak does not depend on the number of steps.
    started = time.monotonic()
    result = subprocess.run(
        [sys.executable, "-c", code, measured, "demo", "--out", tmp_path / "demo", "--steps", "2"],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    assert int(measured.read_text()) < 3e9
    assert time.monotonic() - started < 90
    assert {path.name for path in (tmp_path / "demo").glob("*.nii.gz")} == {
        "demo_mask.nii.gz", "demo_t1.nii.gz", "demo_t1ce.nii.gz", "demo_t2.nii.gz", "demo_flair.nii.gz",
    }  # fmt: skip


def test_fidelity_reads_the_tumor_in_the_label_convention_that_is_given(meddpm, tmp_path):
    """1 and 2 are necrosis and edema in one convention, the other way around in another."""
    anatomy = load_scheme("anatomy")
    model = write_small_model(
        tmp_path / "m.safetensors", small_card(anatomy, grid=Grid((32, 32, 32), (6.0,) * 3, "LPS"))
    )
    images, tumor = phantom()
    structures = np.where(tumor > 0, 1 + np.indices(tumor.shape)[0] % 2, 0).astype(np.uint8)
    save(tmp_path / "structures.nii.gz", structures)
    save(tmp_path / "seg.nii.gz", tumor)
    for modality in ("t1", "t2"):
        save(tmp_path / f"{modality}.nii.gz", images[modality])
    line = ["fidelity", "structures.nii.gz", "--tumor", "seg.nii.gz", "--model", model, "--json", "figures.json"]
    line += ["--real", "t1=t1.nii.gz", "--real", "t2=t2.nii.gz"]
    for convention, (necrosis, edema) in {
        "med-ddpm": (1, 2),
        "1=edema,2=necrosis,3=enhancing tumor,4=rest of the brain": (2, 1),
    }.items():
        result = meddpm(*line, "--labels", convention)
        assert result.returncode == 0, result.stderr
        expected = structures.copy()
        for value, name in ((necrosis, "Necrosis"), (edema, "Edema"), (3, "Enhancing tumor")):
            expected[tumor == value] = anatomy.require_label(name).value
        mask = Mask.from_volume(Volume(expected, PLACE), anatomy, numbering=anatomy.own_numbering)
        found = json.loads((tmp_path / "figures.json").read_text())
        assert found["models"][0]["seeds"][0]["record"]["mask"]["hash"] == mask.hash


# Training: see test_train_end_to_end.py ----------------------------------------------------------------


def test_unknown_recipes_and_datasets_are_reported(meddpm):
    rest = ["dataset", "--run", "run"]
    result = meddpm("train", "--recipe", "no-such", *rest)
    assert result.returncode == 2 and 'no recipe "no-such": use one of brain-anatomy' in one_sentence(result)
    result = meddpm("train", "--recipe", "brain-anatomy", *rest)
    assert result.returncode == 2 and "dataset is not a prepared dataset" in one_sentence(result)
