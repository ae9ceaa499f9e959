"""Which files hold a mask that was made from a scan?

STEM.seg.nrrd (or STEM_seg.nii.gz) with the mask, STEM_volumes.csv, STEM_confidence.nii.gz if it is wanted, STEM_qc.png,
and last STEM_segment.json, the record: where it is, the others are whole.
"""

from __future__ import annotations

import csv
import hashlib
import io
import json
import os
from collections.abc import Mapping
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import numpy as np

from MedDPMLib.errors import MedDPMError
from MedDPMLib.imaging.geometry import Geometry
from MedDPMLib.imaging.io import write_nifti
from MedDPMLib.imaging.volume import Volume
from MedDPMLib.masks.schemes import LabelScheme
from MedDPMLib.masks.seg_nrrd import write_segments
from MedDPMLib.runtime.files import atomic_write
from MedDPMLib.runtime.versions import versions
from MedDPMLib.segmentation.segmenter import Segmented, Segmenter

#: In which a mask can be written.
FORMATS = ("seg.nrrd", "nifti")

#: What the header of a mask says.
_DESCRIPTION = "segmented by MedDPM"


def describe(segmenter: Segmenter, sources: Mapping[str | None, Path], scans: Mapping[str | None, Volume],
             precision: str, form: str, confidence: bool) -> dict[str, Any]:  # fmt: skip
    """The part of a record that decides what the files hold: where it is equal, they are."""
    return {
        "segmenter": {"name": segmenter.card.name, "hash": segmenter.hash},
        "scans": [
            {"file": sources[modality].name, "modality": modality, "hash": _hash(volume)}
            for modality, volume in scans.items()
        ],
        "precision": precision,
        "format": form,
        "confidence": confidence,
    }


def check_format(form: str, geometry: Geometry, name: str) -> None:
    """Raises :class:`MedDPMError` if a mask on ``geometry`` cannot be written in the format ``form``."""
    directions = geometry.ijk_to_ras[:3, :3] / geometry.spacing
    if form == "seg.nrrd" and np.abs(directions.T @ directions - np.eye(3)).max() > 1e-3:
        raise MedDPMError(
            f"the voxels of {name} are no right-angled boxes, which a .seg.nrrd cannot hold: use --format nifti"
        )


def write_segmented(
    folder: Path, stem: str, made: Segmented, scheme: LabelScheme, run: Mapping[str, Any]
) -> list[Path]:
    """Writes the files of a mask, the record excepted (:func:`write_record`); returns their paths."""
    _record(folder, stem).unlink(missing_ok=True)  # an old record must not speak for new files
    paths = [_mask_path(folder, stem, run["format"])]
    if run["format"] == "seg.nrrd":
        write_segments(paths[0], made.labels, scheme, description=_DESCRIPTION)
    else:
        write_nifti(paths[0], made.labels, description=_DESCRIPTION)
    paths.append(folder / f"{stem}_volumes.csv")
    with atomic_write(paths[-1]) as temporary:
        temporary.write_text(volumes_table(made, scheme), encoding="utf-8")
    if run["confidence"]:
        paths.append(folder / f"{stem}_confidence.nii.gz")
        write_nifti(paths[-1], made.confidence, description=f"confidence, {_DESCRIPTION}")
    return paths


def write_record(folder: Path, stem: str, made: Segmented, run: Mapping[str, Any], seconds: float) -> None:
    """Writes the record, which says that all files are whole."""
    record = {
        **run,
        "notes": list(made.notes),
        "seconds": round(seconds, 3),
        "created": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "versions": versions(),
    }
    with atomic_write(_record(folder, stem)) as temporary:
        temporary.write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")


def is_finished(folder: Path, stem: str, run: Mapping[str, Any]) -> bool:
    """Whether all files of this ``run`` (:func:`describe`) are there."""
    try:
        record = json.loads(_record(folder, stem).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    same = isinstance(record, dict) and all(record.get(key) == value for key, value in run.items())
    return same and _mask_path(folder, stem, run["format"]).is_file()


def volumes_table(made: Segmented, scheme: LabelScheme) -> str:
    """The volumes as CSV: a row for each label that the segmenter knows, with its mean confidence where it is found."""
    text = io.StringIO()
    table = csv.writer(text, lineterminator="\n")
    table.writerow(["label", "name", "volume_mm3", "mean_confidence"])
    for value, volume in made.volumes.items():
        where = made.labels.array == value
        sure = f"{made.confidence.array[where].mean():.3f}" if where.any() else ""
        table.writerow([value, scheme.label_by_value(value).name, f"{volume:.1f}", sure])
    return text.getvalue()


def _mask_path(folder: Path, stem: str, form: str) -> Path:
    return folder / (f"{stem}.seg.nrrd" if form == "seg.nrrd" else f"{stem}_seg.nii.gz")


def _record(folder: str | os.PathLike, stem: str) -> Path:
    return Path(folder) / f"{stem}_segment.json"


def _hash(volume: Volume) -> str:
    digest = hashlib.sha256(np.ascontiguousarray(volume.array).tobytes())
    digest.update(np.round(volume.geometry.ijk_to_ras, 6).tobytes())
    return digest.hexdigest()
