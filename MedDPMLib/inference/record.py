"""How was a volume generated? In JSON, with the statement that it is not an image of a patient."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from datetime import datetime, timezone
from pathlib import Path
from typing import TYPE_CHECKING, Any

from MedDPMLib.errors import MedDPMError
from MedDPMLib.imaging.io import SYNTHETIC, read_volume, write_nifti
from MedDPMLib.imaging.volume import Volume
from MedDPMLib.inference.settings import APPEARANCES, GenerationSettings
from MedDPMLib.inference.stored import from_stored, stored_as
from MedDPMLib.runtime.files import atomic_write
from MedDPMLib.runtime.versions import versions

#: More characters than any record has.
_LONGEST_RECORD = 1_000_000

if TYPE_CHECKING:
    from MedDPMLib.inference.result import Generated
    from MedDPMLib.masks.fit import Fitted
    from MedDPMLib.masks.mask import Mask
    from MedDPMLib.models.card import Card
    from MedDPMLib.models.model import Model
    from MedDPMLib.runtime.device import Execution


def describe_run(
    *, card: Card, model_hash: str, mask: Mask, execution: Execution, settings: GenerationSettings, seed: int
) -> dict[str, Any]:
    """The part of a record that decides what a volume looks like: where it is equal, the volumes are, but for what
    the record's "memory" changes: rounding, to that of bfloat16 where volumes are kept in it.

    ``settings`` are those for the card (:meth:`GenerationSettings.for_card`); "device" and "precision" are what was
    chosen by them.
    """
    return {
        "model": {"name": card.name, "hash": model_hash},
        "mask": {"name": mask.name, "source": mask.source and Path(mask.source).name, "hash": mask.hash},
        "seed": seed,
        "sampler": settings.sampler,
        "steps": settings.steps,
        "guidance": settings.guidance,
        **({"appearance": _appearance(settings.appearance)} if card.draws_by_levels else {}),
        "precision": execution.precision,
        "device": execution.device.type,
        "space": settings.space,
    }


def make_record(
    *, model: Model, mask: Mask, fitted: Fitted, execution: Execution, settings: GenerationSettings, seed: int,
    memory: str, seconds: float,
) -> dict[str, Any]:  # fmt: skip
    """The record of one run, plain data for JSON; "settings" are those that were asked for."""
    run = describe_run(
        card=model.card, model_hash=model.hash, mask=mask, execution=execution, settings=settings, seed=seed
    )
    return {
        "description": SYNTHETIC,
        "notice": "Made by a generative model from a label map. Not an image of a patient, not for diagnosis.",
        **run,
        "settings": settings.to_dict(),
        "scheme": mask.scheme.name,
        "modalities": list(model.card.modalities),
        "intensities": stored_as(model.card.intensity_range),
        "notes": [*mask.notes, *fitted.notes],
        "outside_mm3": fitted.outside,
        "memory": memory,
        "seconds": round(seconds, 3),
        "created": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "versions": versions(),
    }


def _appearance(chosen: str) -> str | dict[str, str]:
    """The appearance ``chosen`` or, for a file, its name and hash: another one may take its place."""
    if chosen in APPEARANCES:
        return chosen
    path = Path(chosen)
    try:
        return {"file": path.name, "hash": hashlib.sha256(path.read_bytes()).hexdigest()}
    except OSError as error:
        raise MedDPMError(f"{path} cannot be read ({error.strerror}): check the path") from error


def settings_of(record: Mapping[str, Any]) -> GenerationSettings:
    """The settings that a record's volume was made with; of a record before version 0.2 what it says of them.

    Raises :class:`MedDPMError` for a record that says something else than this version knows.
    """
    if "settings" in record:
        return GenerationSettings.from_dict(record["settings"])
    names = ("sampler", "steps", "guidance", "device", "precision", "space")
    return GenerationSettings.from_dict({name: record[name] for name in names if name in record})


def write_result(folder: str | os.PathLike, stem: str, generated: Generated) -> list[Path]:
    """Writes ``<stem>_<modality>.nii.gz`` for every volume, and beside each its record, ``<stem>_<modality>.json``.

    Intensities are written as the record's "intensities" say (:mod:`MedDPMLib.inference.stored`). Returns the volumes'
    paths.
    """
    return write_stored(folder, stem, generated.stored(), generated.record)


def write_stored(
    folder: str | os.PathLike, stem: str, volumes: Mapping[str, Volume], record: Mapping[str, Any]
) -> list[Path]:
    """As :func:`write_result`, for ``volumes`` by modality that hold already what is to be written.

    A record is written after its volume: where there is a record, the volume is whole.
    """
    paths = []
    for modality, volume in volumes.items():
        path = volume_path(folder, stem, modality)
        # An old record must not speak for a new volume if what follows is interrupted.
        sidecar(path).unlink(missing_ok=True)
        write_nifti(path, volume, description=SYNTHETIC)
        with atomic_write(sidecar(path)) as temporary:
            temporary.write_text(json.dumps({"modality": modality, **record}, indent=2) + "\n")
        paths.append(path)
    return paths


def read_result(path: str | os.PathLike) -> Volume:
    """The intensities, float32 in the card's range, of a volume that :func:`write_result` wrote; raises as it does."""
    path = Path(path)
    volume = read_volume(path)
    try:
        return from_stored(volume, read_record(path) or {})
    except MedDPMError as error:
        raise error.at(str(path)) from error


def read_record(path: str | os.PathLike) -> dict[str, Any] | None:
    """The record beside the volume ``path``, if there is one that was written for a generated volume."""
    try:
        with sidecar(Path(path)).open(encoding="utf-8") as file:
            record = json.loads(file.read(_LONGEST_RECORD))
    except (OSError, ValueError, RecursionError):
        return None
    return record if isinstance(record, dict) and record.get("description") == SYNTHETIC else None


def volume_path(folder: str | os.PathLike, stem: str, modality: str) -> Path:
    return Path(folder) / f"{stem}_{modality}.nii.gz"


def is_finished(folder: str | os.PathLike, stem: str, modalities: Sequence[str], run: dict[str, Any]) -> bool:
    """Whether :func:`write_result` wrote the volumes of this ``run`` (:func:`describe_run`), all of them."""
    paths = [volume_path(folder, stem, modality) for modality in modalities]
    return all(same_run(sidecar(path), run) and path.is_file() for path in paths)


def same_run(record: Path, run: dict[str, Any]) -> bool:
    """Whether the file ``record`` is the whole record of this ``run`` (:func:`describe_run`)."""
    try:
        found = json.loads(record.read_text())
    except (OSError, ValueError, RecursionError):
        return False
    return isinstance(found, dict) and all(found.get(key) == value for key, value in run.items())


def sidecar(path: Path) -> Path:
    """Where the record of the volume ``path`` lies."""
    return path.with_name(path.name.removesuffix(".nii.gz") + ".json")
