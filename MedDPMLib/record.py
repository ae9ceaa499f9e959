"""What was done, in JSON: every volume carries how it was made, and that nobody was scanned."""

from __future__ import annotations

import json
import os
import platform
from datetime import datetime, timezone
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from MedDPMLib import __version__
from MedDPMLib.volume import SYNTHETIC, write_nifti, written_whole

if TYPE_CHECKING:
    from MedDPMLib.device import Execution
    from MedDPMLib.generation import Generated
    from MedDPMLib.masks import Fitted, Mask
    from MedDPMLib.model import Model

_PACKAGES = ("torch", "numpy", "SimpleITK", "nibabel", "safetensors")

#: The fields that decide what a volume looks like: two records that agree in them describe the same volume.
DECISIVE = ("model", "mask", "seed", "sampler", "steps", "precision", "device", "space")


def make_record(
    *, model: Model, mask: Mask, fitted: Fitted, execution: Execution, seed: int, steps: int, sampler: str,
    space: str, seconds: float,
) -> dict[str, Any]:  # fmt: skip
    """The record of one run, plain data for JSON."""
    return {
        "description": SYNTHETIC,
        "notice": "Made by a generative model from a label map. Not an image of a patient, not for diagnosis.",
        "model": {"name": model.card.name, "hash": model.hash},
        "mask": {"name": mask.name, "source": mask.source and Path(mask.source).name, "hash": mask.hash},
        "scheme": mask.scheme.name,
        "modalities": list(model.card.modalities),
        "seed": seed,
        "sampler": sampler,
        "steps": steps,
        "precision": execution.precision,
        "device": execution.device.type,
        "space": space,
        "notes": [*mask.notes, *fitted.notes],
        "outside_mm3": fitted.outside,
        "seconds": round(seconds, 3),
        "created": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "versions": versions(),
    }


def versions() -> dict[str, str]:
    """Versions of this package, of Python and of what a result depends on."""
    found = {"MedDPM": __version__, "python": platform.python_version(), "platform": platform.platform()}
    for package in _PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:  # Slicer brings some without metadata
            found[package] = "unknown"
    return found


def write_result(folder: str | os.PathLike, stem: str, generated: Generated) -> list[Path]:
    """Writes ``<stem>_<modality>.nii.gz`` for every volume, and beside each its record, ``<stem>_<modality>.json``.

    A record is written after its volume: where there is a record, the volume is whole. Returns the volumes' paths.
    """
    paths = []
    for modality, volume in generated.items():
        path = Path(folder) / f"{stem}_{modality}.nii.gz"
        write_nifti(path, volume, description=SYNTHETIC)
        with written_whole(sidecar(path)) as temporary:
            temporary.write_text(json.dumps({"modality": modality, **generated.record}, indent=2) + "\n")
        paths.append(path)
    return paths


def sidecar(path: Path) -> Path:
    """Where the record of the volume ``path`` lies."""
    return path.with_name(path.name.removesuffix(".nii.gz") + ".json")
