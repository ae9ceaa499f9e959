"""What the tests of the reader study share: small brains in files of either class, a study, readers who answer."""

from __future__ import annotations

from pathlib import Path

import nibabel
import numpy as np
from scipy import ndimage

from MedDPMLib.study.create import Plan, create
from MedDPMLib.study.definition import Margin, Sessions, Tasks
from MedDPMLib.study.order import PAIR
from MedDPMLib.study.pack import Task, pack, unpack
from MedDPMLib.study.reading import Reading

PASSPHRASE = "correct horse battery"
SHAPE = (30, 36, 32)
SPACING = 4.0


def brain(seed: int, fine: bool = False) -> np.ndarray:
    """A brain of ``SHAPE`` (k, j, i) with its own outline and texture, background 0: whole numbers up to 400, or
    ``fine``, as no scanner stores them."""
    rng = np.random.default_rng(seed)
    kji = np.indices(SHAPE) - (np.array(SHAPE)[:, None, None, None] - 1) / 2
    radii = np.array((11, 13, 10.5)) * rng.uniform(0.9, 1.05, 3)
    wobble = 0.4 * ndimage.gaussian_filter(rng.standard_normal(SHAPE), 4) / 0.02
    inside = np.sqrt(((kji / radii[:, None, None, None]) ** 2).sum(axis=0)) < 1 + 0.02 * wobble
    texture = ndimage.gaussian_filter(rng.standard_normal(SHAPE), 1.0)
    gray = 220 + 50 * texture / texture.std() + 40 * np.sin(kji[1] / 3)
    gray = np.where(inside, np.clip(gray, 60, 400), 0)
    return gray if fine else np.rint(gray).astype(np.int16)


def affine(axes: str = "RAS", origin=(0.0, 0.0, 0.0), spacing: float = SPACING) -> np.ndarray:
    matrix = np.diag([spacing] * 3 + [1.0])
    matrix[:3, 3] = origin
    flips = np.diag([1.0 if letter in "RAS" else -1.0 for letter in axes] + [1.0])
    return flips @ matrix


def write_real(path: Path, image: np.ndarray) -> Path:
    """As scanners' archives hold them: int16 with a slope, LPS, an origin of its own, a description."""
    path.parent.mkdir(parents=True, exist_ok=True)
    file = nibabel.Nifti1Image(image.T, affine("LPS", (-90.0, 120.0, -71.5)))
    file.header["descrip"] = b"scanner 3T, 2019"
    file.header.set_slope_inter(2.0, -7.0)
    nibabel.save(file, path)
    return path


def write_synthetic(path: Path, image: np.ndarray) -> Path:
    """As a model makes them: float32 in [-1, 1], RAS, the middle at the origin, marked as synthetic."""
    path.parent.mkdir(parents=True, exist_ok=True)
    scaled = (image / image.max() * 2 - 1).astype(np.float32)
    turned = scaled[:, ::-1, ::-1]  # the same brain: LPS is RAS read from the other end of i and j
    file = nibabel.Nifti1Image(turned.T, affine("RAS", (-60.0, -70.0, -58.0)))
    file.header["descrip"] = b"synthetic, MedDPM"
    nibabel.save(file, path)
    return path


def write_pool(folder: Path, real: int, synthetic: int, seed: int = 0) -> tuple[dict, dict]:
    """Cases of one modality, t1: (real, synthetic), each case -> modality -> file."""
    reals = {f"r{n}": {"t1": write_real(folder / "real" / f"r{n}.nii.gz", brain(seed + n))} for n in range(real)}
    made = {
        f"s{n}": {"t1": write_synthetic(folder / "synthetic" / f"s{n}.nii.gz", brain(seed + 1000 + n))}
        for n in range(synthetic)
    }
    return reals, made


def small_plan(folder: Path, *, real=6, synthetic=6, readers=("Ada", "Ben"), tasks=None, sessions=None, **more) -> Plan:
    reals, made = write_pool(folder, real, synthetic)
    return Plan(
        title="A small study",
        modalities=("t1",),
        real=reals,
        synthetic={"model": made},
        readers=readers,
        margin=Margin(0.1, 0.1),
        tasks=tasks or Tasks(),
        sessions=sessions or Sessions(training=2),
        **more,
    )


def make_study(folder: Path, **changes) -> Path:
    create(folder / "study", small_plan(folder, **changes), PASSPHRASE)
    return folder / "study"


def hand_out(study: Path, out: Path) -> list[Task]:
    """What each reader has on the own computer."""
    return [unpack(archive, out / archive.name.partition(".")[0]) for archive in pack(study, out)]


def answer_all(task: Task, rate, number: int | None = None) -> None:
    """Reads the study to its end (or ``number`` answers); ``rate(presentation)`` gives the answer."""
    with Reading(task) as reading:
        while not reading.finished and number != 0:
            reading.answer(rate(reading.show()))
            number = None if number is None else number - 1


def coin(seed: int, task: Task):
    """A reader who cannot tell."""
    rng = np.random.default_rng(seed)

    def rate(presentation):
        if presentation.kind == PAIR:
            return {"side": int(rng.integers(2))}
        scores = {domain: int(rng.integers(1, 6)) for domain in task.definition.tasks.likert}
        return {"rating": int(rng.integers(1, 7)), "scores": scores}

    return rate
