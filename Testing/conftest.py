"""What several tests share: a model, a mask and a command line small enough to run in milliseconds."""

from __future__ import annotations

import gc
import os
import signal
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest

from MedDPMLib.imaging.geometry import Geometry, Grid
from MedDPMLib.imaging.io import write_nifti
from MedDPMLib.imaging.volume import Volume
from MedDPMLib.masks.schemes import LabelScheme, load_scheme
from MedDPMLib.models.bundle import write_bundle
from MedDPMLib.models.card import Card

SIDE = 16
#: The small model's and its masks': 16 voxels of 8 mm span a small brain.
SMALL_GRID = Grid((SIDE,) * 3, (8.0,) * 3, "LPS")


@contextmanager
def without_old_garbage():
    """The collector leaves alone what is there already: to go through it takes tens of milliseconds in the end."""
    gc.collect()
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()


def small_card(scheme: LabelScheme, *, grid: Grid = SMALL_GRID, timesteps: int = 50) -> Card:
    """The card of a model of a few thousand weights, made for the masks of :func:`small_labels`."""
    return Card(
        name="small",
        title="A small model",
        summary="Random weights, for tests.",
        network={"kind": "wavelet-unet", "channels": [8, 16], "timesteps": timesteps},
        scheme=scheme,
        modalities=("t1", "t2"),
        grid=grid,
        mask_encoding=(0, 1),
        intensity_range=(-1, 1),
        schedule={"name": "cosine", "timesteps": timesteps},
        prediction="x0",
        training="Not trained.",
        training_data=({"name": "none", "license": "none", "cases": None},),
        license="Apache-2.0",
        intended_use="Tests.",
        limitations="Makes noise.",
        qualities={
            "draft": {"sampler": "ddim", "steps": 2},
            "standard": {"sampler": "dpm-solver++", "steps": 3},
            "reference": {"sampler": "ddpm", "steps": timesteps},
        },
    )


def write_small_model(path: Path, card: Card, seed: int = 0) -> Path:
    """A bundle of ``card`` with random weights, in which the output depends on image, condition and timestep."""
    import torch

    from MedDPMLib.networks import state_shapes

    generator = torch.Generator().manual_seed(seed)
    state = {
        name: 0.1 * torch.randn(shape, generator=generator)
        for name, shape in state_shapes(card.network_description).items()
    }
    write_bundle(path, card, state)
    return path


def small_labels(scheme: LabelScheme, seed: int = 0) -> np.ndarray:
    """A ball of the rest of the brain with a block of tumor whose place depends on ``seed``; (16, 16, 16), uint8."""
    positions = np.indices((SIDE,) * 3) - (SIDE - 1) / 2
    labels = np.where((positions**2).sum(axis=0) < 6.5**2, scheme.rest.value, 0).astype(np.uint8)
    corner = np.random.default_rng(seed).integers(5, 9, 3)
    block = tuple(slice(c, c + 3) for c in corner)
    labels[block] = scheme.label_by_name("edema").value
    labels[tuple(corner + 1)] = scheme.label_by_name("enhancing tumor").value
    return labels


def small_geometry() -> Geometry:
    return SMALL_GRID.centered_on([0.0, 0.0, 0.0])


def write_small_mask(path: Path, scheme: LabelScheme, seed: int = 0) -> Path:
    write_nifti(path, Volume(small_labels(scheme, seed), small_geometry()))
    return path


@pytest.fixture(scope="session")
def brats() -> LabelScheme:
    return load_scheme("brats")


@pytest.fixture(scope="session")
def small_model(tmp_path_factory, brats) -> Path:
    """A bundle for masks of the BraTS scheme."""
    return write_small_model(tmp_path_factory.mktemp("model") / "small.safetensors", small_card(brats))


@pytest.fixture
def small_mask(tmp_path, brats) -> Path:
    return write_small_mask(tmp_path / "masks" / "case.nii.gz", brats)


@pytest.fixture
def meddpm(tmp_path, monkeypatch):
    """``meddpm(*arguments)`` runs the command in this process: in ``tmp_path``, without imported models."""
    from typer.testing import CliRunner

    from MedDPMLib.cli.app import app

    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MEDDPM_MODELS", str(tmp_path / "imported"))
    monkeypatch.setenv("COLUMNS", "200")

    def run(*arguments) -> subprocess.CompletedProcess:
        result = CliRunner().invoke(app, [str(argument) for argument in arguments], prog_name="meddpm")
        if result.exception is not None and not isinstance(result.exception, SystemExit):
            raise result.exception
        return subprocess.CompletedProcess(arguments, result.exit_code, result.stdout, result.stderr)

    return run


@pytest.fixture
def meddpm_process(tmp_path):
    """``meddpm_process(*arguments)`` starts the command in a process of its own, for what only a process can show.

    Takes seconds, because everything is imported. Keywords go to :class:`subprocess.Popen`.
    """
    environment = os.environ | {"MEDDPM_MODELS": str(tmp_path / "imported"), "OMP_NUM_THREADS": "1"}
    # The package that is tested here is the one to run, whether or not it is installed.
    package = Path(sys.modules["MedDPMLib"].__file__).parents[1]
    environment["PYTHONPATH"] = os.pathsep.join(filter(None, [str(package), environment.get("PYTHONPATH")]))

    def start(*arguments, preexec_fn=lambda: None, **keywords) -> subprocess.Popen:
        def before() -> None:
            signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs ignore it
            preexec_fn()

        keywords["env"] = environment | keywords.pop("env", {})
        defaults = {
            "stdout": subprocess.PIPE,
            "stderr": subprocess.PIPE,
            "text": True,
            "cwd": tmp_path,
            "preexec_fn": before,
        }
        command = [sys.executable, "-m", "MedDPMLib", *map(str, arguments)]
        return subprocess.Popen(command, **defaults | keywords)

    return start


def finish(process: subprocess.Popen) -> subprocess.CompletedProcess:
    """What the ``process`` said and how it ended."""
    out, err = process.communicate(timeout=120)
    return subprocess.CompletedProcess(process.args, process.returncode, out, err)
