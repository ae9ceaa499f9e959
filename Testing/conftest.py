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


#: Of the small segmenter: the intensity, from 0 to 1, that it takes for a label of the anatomy scheme.
LEVELS = {0: 0.0, 18: 0.35, 1: 0.6, 3: 0.8, 8: 1.0}
#: Its voxels, in mm.
COARSE = 4.0
#: Thresholds on which its answers are built.
_THRESHOLDS = 7


def plain_scheme(name: str = "anatomy") -> LabelScheme:
    """A scheme without plausible volumes, for phantoms that have a few of its labels."""
    values = load_scheme(name).to_dict()
    for label in values["labels"]:
        label.pop("plausible_ml", None)
    return LabelScheme.from_dict(values)


def small_segmenter_card(**changes):
    from MedDPMLib.models.segmenter_card import SegmenterCard

    fields = {
        "name": "small-segmenter",
        "title": "A small segmenter",
        "summary": "Takes the intensity of each voxel for its label, for tests.",
        "network": {"kind": "segmentation-unet", "channels": [8 * _THRESHOLDS, 8]},
        "scheme": plain_scheme(),
        "modalities": ("t1", "t2"),
        "tumor_modalities": 2,
        "spacing": COARSE,
        "training": "Not trained: its weights are computed.",
        "training_data": ({"name": "none", "license": "none", "cases": None},),
        "training_cases": ("known",),
        "license": "Apache-2.0",
        "intended_use": "Tests.",
        "limitations": "Sees no shapes.",
    }
    return SegmenterCard(**{**fields, **changes})


def write_small_segmenter(path: Path, card=None) -> Path:
    """A segmenter that gives each voxel of its unnamed scan the label whose level in :data:`LEVELS` is nearest.

    Each of the eight voxels of a block has features of its own: SiLU of how far its intensity is above each threshold.
    Of these the outputs are the combination that is nearest to minus the squared distance from the label's level.
    """
    import torch
    import torch.nn.functional as F

    from MedDPMLib.networks import state_shapes

    card = card or small_segmenter_card()
    state = {name: torch.zeros(shape) for name, shape in state_shapes(card.network_description).items()}
    thresholds = torch.linspace(-0.1, 1.2, _THRESHOLDS)
    for voxel in range(8):
        place = (voxel >> 2 & 1, voxel >> 1 & 1, voxel & 1)
        for number, threshold in enumerate(thresholds):
            state["stem.weight"][(8 * number + voxel, 0, *place)] = 6.0
            state["stem.bias"][8 * number + voxel] = -6.0 * threshold
    shades = torch.linspace(-0.05, 1.3, 500)[:, None]
    features = F.silu(F.silu(6.0 * (shades - thresholds)))
    features = torch.cat([features, torch.ones_like(shades)], dim=1)
    classes = [0, *card.structures]
    for number, value in enumerate(classes):
        wanted = -300 * (shades - LEVELS[value]) ** 2 if value in LEVELS else torch.full_like(shades, -1000.0)
        fitted = torch.linalg.lstsq(features.double(), wanted.double()).solution[:, 0].float()
        for voxel in range(8):
            output = voxel * len(classes) + number
            state["heads.0.weight"][output, voxel : 8 * _THRESHOLDS : 8, 0, 0, 0] = fitted[:-1]
            state["heads.0.bias"][output] = fitted[-1]
    write_bundle(path, card, state)
    return path


def head_phantom(spacing=(COARSE,) * 3, size=None) -> tuple[Volume, Volume]:
    """The scan of a brain of 0.8 l and its labels: four labels on ``spacing`` (i, j, k) in mm, one of them on the left
    side alone; in the middle some that are dark and no label."""
    size = size or tuple(round(mm / step) for mm, step in zip((144, 168, 144), spacing, strict=True))
    geometry = Grid(size, spacing, "LPS").centered_on([3.0, -2.0, 5.0])
    k, j, i = np.indices(geometry.shape)
    ras = geometry.to_ras(np.stack([i, j, k], axis=-1)) - np.array([3.0, -2.0, 5.0])

    def ball(center, radii):
        return (((ras - np.array(center)) / np.array(radii)) ** 2).sum(axis=-1) < 1

    labels = np.zeros(geometry.shape, np.uint8)
    brain = ball((0, 0, 0), (56, 66, 54))
    labels[brain] = 18
    labels[ball((0, 0, 0), (44, 54, 42))] = 1
    labels[ball((0, 12, 8), (14, 24, 10))] = 3
    labels[ball((-26, 20, 0), (14, 16, 14))] = 8
    labels[ball((0, -30, -4), (16, 14, 12))] = 0
    shades = np.zeros(256, np.float32)
    for value, level in LEVELS.items():
        shades[value] = 100 + 900 * level
    scan = np.where(brain, shades[labels], 0).astype(np.float32)
    return Volume(scan, geometry), Volume(labels, geometry)


@pytest.fixture(scope="session")
def small_segmenter(tmp_path_factory) -> Path:
    """A bundle of a segmenter that is right about :func:`head_phantom`."""
    return write_small_segmenter(tmp_path_factory.mktemp("segmenter") / "small-segmenter.safetensors")
