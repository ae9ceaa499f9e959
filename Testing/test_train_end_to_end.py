"""Through the command line, in processes of their own: prepare, train, kill, resume, export, generate; and torchrun."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time

import pytest
import torch
from conftest import finish
from phantoms import write_brats

from MedDPMLib.train.checkpoints import Checkpoints

#: A network of a few thousand weights for one contrast, on the dataset's box in a few hundred voxels.
SMALL = [
    "--recipe", "brats", "--precision", "float32", "--device", "cpu",
    "--set", 'modalities=["t1"]',
    "--set", 'network={kind="wavelet-unet", channels=[8, 8]}',
    "--set", "stages=[{size=[24, 24, 16], iterations=14, batch=1}]",
    "--set", "training.learning_rate=1e-3",
    "--set", "training.ema_start=0",
    "--set", "monitor.montage_every=0",
    "--set", "card.qualities={draft={sampler='ddim', steps=2}, standard={sampler='ddim', steps=2},"
    " reference={sampler='ddpm', steps=250}}",
]  # fmt: skip


@pytest.fixture(autouse=True)
def one_thread():
    """As in the processes: sums in another order are other sums."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def weights(run) -> dict:
    return Checkpoints(run / "checkpoints").load(lambda sentence: None)["ema"]


def wait_for(condition, process, seconds=240):
    """Until ``condition()``; polled often, so that what follows comes in the middle of something."""
    end = time.monotonic() + seconds
    while not condition():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < end, "it takes too long"
        time.sleep(0.005)


def test_from_folders_to_a_volume_through_a_kill(meddpm, meddpm_process, tmp_path):
    write_brats(tmp_path / "source", [1, 2])
    dataset = tmp_path / "dataset"
    done = meddpm("prepare", tmp_path / "source", "--out", dataset, "--scheme", "brats", "--modalities", "t1")
    assert done.returncode == 0, done.stderr

    # Without an interruption, in this process.
    plain = [*SMALL, "--set", "monitor.checkpoint_every=100"]
    done = meddpm("train", dataset, *plain, "--run", tmp_path / "whole")
    assert done.returncode == 0, done.stderr
    assert "14 iterations done" in done.stdout

    # Killed at whatever it does after its second checkpoint; then asked to end; then to the end.
    run, checkpoints = tmp_path / "run", Checkpoints(tmp_path / "run" / "checkpoints")
    often = [*SMALL, "--set", "monitor.checkpoint_every=1", "--run", run]
    process = meddpm_process("train", dataset, *often)
    wait_for(lambda: len(checkpoints.paths()) >= 2, process)
    process.kill()
    assert finish(process).returncode == -signal.SIGKILL
    reached = checkpoints.load(lambda sentence: None)["iteration"]
    assert 2 <= reached < 14

    process = meddpm_process("train", dataset, *often)
    wait_for(lambda: checkpoints.paths()[0].name > f"iteration-{reached:09d}.pt", process)
    process.send_signal(signal.SIGTERM)
    ended = finish(process)
    assert ended.returncode == 143, ended.stderr
    assert f"resuming after iteration {reached}" in ended.stderr and "stopped by SIGTERM" in ended.stderr
    done = meddpm("train", dataset, "--run", run, "--precision", "float32", "--device", "cpu")
    assert done.returncode == 0, done.stderr
    whole, resumed = weights(tmp_path / "whole"), weights(run)
    assert all(torch.equal(tensor, resumed[name]) for name, tensor in whole.items())

    # A model of it, and a volume of that.
    model = tmp_path / "mine.safetensors"
    done = meddpm("models", "export", run, model)
    assert done.returncode == 0, done.stderr
    done = meddpm("models", "show", model)
    assert "14 iterations" in done.stdout and "2 cases" in done.stdout.replace("\n", " ")
    mask = dataset / "labelsTr" / "case1.nii.gz"
    done = meddpm("generate", mask, "--model", model, "--out", tmp_path / "made")
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "made" / "case1_seed0_t1.nii.gz").is_file()
    done = meddpm("models", "export", run, model)
    assert done.returncode == 2 and "exists already" in done.stderr


def torchrun(*arguments, cwd):
    """``meddpm`` with ``arguments`` in two processes."""
    package = os.path.dirname(os.path.dirname(sys.modules["MedDPMLib"].__file__))
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": package}
    command = [
        sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "--", "MedDPMLib",
    ]  # fmt: skip
    done = subprocess.run(
        [*command, *map(str, arguments)], cwd=cwd, env=environment, capture_output=True, text=True, timeout=600
    )
    assert done.returncode == 0, done.stderr
    return done


def test_two_processes_train_as_one_does_with_shards_and_without(meddpm, tmp_path):
    write_brats(tmp_path / "source", [1, 2])
    dataset = tmp_path / "dataset"
    done = meddpm("prepare", tmp_path / "source", "--out", dataset, "--scheme", "brats", "--modalities", "t1")
    assert done.returncode == 0, done.stderr
    options = [
        dataset,
        *SMALL,
        "--set",
        "training.gradient_accumulation_steps=2",
        "--set",
        "training.learning_rate=5e-4",
        "--set",
        "monitor.checkpoint_every=1",
    ]
    done = meddpm("train", *options, "--set", "stages.0.iterations=6", "--run", tmp_path / "one")
    assert done.returncode == 0, done.stderr
    two = [*options, "--run", tmp_path / "two"]
    reported = torchrun("train", *two, "--set", "stages.0.iterations=3", cwd=tmp_path)
    assert reported.stdout.count("3 iterations done") == 1  # one of them speaks
    torchrun("train", *two, "--set", "stages.0.iterations=6", "--shard", cwd=tmp_path)
    rows = [json.loads((tmp_path / name / "run.json").read_text())["losses"] for name in ("one", "two")]
    assert len(rows[0]) == len(rows[1]) == 6
    for one, other in zip(*rows, strict=True):
        assert one["loss"] == pytest.approx(other["loss"], abs=1e-5)
    alone, shared = weights(tmp_path / "one"), weights(tmp_path / "two")
    for name, tensor in alone.items():
        # Six steps of 5e-4 each: where a gradient is all rounding, Adam makes a step of it.
        torch.testing.assert_close(tensor, shared[name], atol=1e-4, rtol=0)
    for name in ("one", "two"):  # which one process ends alone
        done = meddpm("train", *options, "--set", "stages.0.iterations=12", "--run", tmp_path / name)
        assert done.returncode == 0, done.stderr
    alone, shared = weights(tmp_path / "one"), weights(tmp_path / "two")
    for name, tensor in alone.items():
        torch.testing.assert_close(tensor, shared[name], atol=5e-4, rtol=0)


def test_mistakes_are_reported_before_anything_heavy(meddpm, tmp_path):
    for arguments, says in [
        (["train", "--recipe", "brats"], "needs a dataset and a folder"),
        (["train", "x", "--run", tmp_path / "run"], "--recipe is missing"),
        (["train", tmp_path, "--recipe", "brats", "--run", tmp_path / "run"], "is not a prepared dataset"),
        (["train", "x", "--recipe", "brats", "--run", "r", "--set", "training.loss=l3"], "l1, l2, huber"),
    ]:
        done = meddpm(*arguments)
        assert done.returncode == 2 and says in done.stderr, done.stderr


@pytest.mark.timeout(900)  # half a minute, in which four processes import everything: long where others compute, too
def test_what_would_fit_is_measured_and_printed_without_a_dataset(meddpm):
    """Less in bfloat16 and with recomputed activations, more for larger patches: each is measured, none replaced."""
    # Of fewer channels recomputing saves no more than a measurement is off.
    small = ["--set", "network.channels=[32, 48]", "--set", "stages.0.patch=[64, 64, 48]"]
    done = meddpm("train", "--recipe", "brain-anatomy", *small, "--estimate-memory")
    assert done.returncode == 0, done.stderr
    found = re.findall(r"(\d+ x \d+ x \d+).*(float32|bfloat16) +(yes|no) +([0-9.]+) GB", done.stdout)
    sizes = {(grid, precision, recomputed): float(size) for grid, precision, recomputed, size in found}
    grids = list(dict.fromkeys(grid for grid, _, _ in sizes))
    assert grids[0] == "64 x 64 x 48" and len(sizes) == 4 * len(grids) > 4
    whole = grids[-1]
    assert sizes[whole, "float32", "yes"] < sizes[whole, "float32", "no"]
    assert sizes[whole, "bfloat16", "no"] < sizes[whole, "float32", "no"]
    assert sizes[grids[0], "float32", "no"] < sizes[whole, "float32", "no"]
