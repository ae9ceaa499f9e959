"""How do generated volumes become a dataset to train a segmenter with? nnU-Net's raw layout, written by many processes.

``imagesTr/CASE_0000.nii.gz`` (a file for each modality), ``labelsTr/CASE.nii.gz`` and ``dataset.json``, as nnU-Net
version 2 reads and verifies them; and ``records/CASE.json``, how each case was generated. A case's record is written
last: where there is a record, the case is whole.
"""

from __future__ import annotations

import json
import os
import re
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np

from MedDPMLib.errors import MedDPMError
from MedDPMLib.imaging.io import SYNTHETIC, write_nifti
from MedDPMLib.imaging.resample import resample_image
from MedDPMLib.imaging.volume import Volume
from MedDPMLib.inference.record import same_run
from MedDPMLib.inference.result import Generated
from MedDPMLib.masks.fit import fit
from MedDPMLib.masks.mask import Mask
from MedDPMLib.masks.schemes import LabelScheme
from MedDPMLib.models.card import Card
from MedDPMLib.runtime.files import atomic_write

#: Files are written here and then moved: nnU-Net takes every file in the folders of images and labels for a case, also
#: one that a killed process has left half written.
_WRITING = ".writing"

#: Seconds after which nobody is writing a file any more.
_ABANDONED = 24 * 3600

#: What nnU-Net calls the folder of a raw dataset.
_NAME = re.compile(r"Dataset\d{3}_\w+")


class NnunetDataset:
    """The raw dataset in ``folder`` for the volumes of a model with this ``card``; created if missing.

    Several processes may write different cases into it at the same time. Raises :class:`MedDPMError` if ``folder``
    holds a dataset of other modalities or labels.
    """

    def __init__(self, folder: Path, card: Card) -> None:
        self.folder, self.card = folder, card
        self._numbers = label_numbers(card.scheme)
        self._check()
        self._clear()
        self.close()

    @property
    def note(self) -> str | None:
        """What nnU-Net will not like about the folder's name, if anything."""
        if _NAME.fullmatch(self.folder.resolve().name):
            return None
        return (
            f"nnU-Net finds a dataset only in a folder of its nnUNet_raw named like Dataset501_Synthetic: {self.folder}"
        )

    def is_finished(self, stem: str, run: dict[str, Any]) -> bool:
        """Whether :meth:`write` wrote the case ``stem`` of this ``run`` (``describe_run``), all of it."""
        return same_run(self._record(stem), run) and all(
            path.is_file() for path in (*self._images(stem), self._labels(stem))
        )

    def write(self, stem: str, generated: Generated, mask: Mask) -> list[Path]:
        """Writes the case ``stem``; returns the paths of its images."""
        self._record(stem).unlink(missing_ok=True)
        labels = self._on(next(iter(generated.values())), mask)
        parts = list(zip(self._images(stem), generated.stored().values(), strict=True))
        staged = []
        for path, volume in (*parts, (self._labels(stem), labels)):
            temporary = self.folder / _WRITING / path.name
            write_nifti(temporary, volume, description=SYNTHETIC)
            staged.append((temporary, path))
        for temporary, path in staged:
            _move(temporary, path)
        with atomic_write(self._record(stem)) as temporary:
            temporary.write_text(json.dumps(generated.record, indent=2) + "\n")
        return [path for path, _ in parts]

    def close(self) -> None:
        """Writes ``dataset.json`` with the number of cases that are there now.

        Another process may have counted earlier and written later: the number is written until it is right.
        """
        path, written = self.folder / "dataset.json", None
        while (count := len(list((self.folder / "labelsTr").glob("*.nii.gz")))) != written:
            with atomic_write(path) as temporary:
                temporary.write_text(json.dumps(self._description() | {"numTraining": count}, indent=2) + "\n")
            written = count

    def _description(self) -> dict[str, Any]:
        scheme = self.card.scheme
        return {
            "channel_names": {str(index): modality for index, modality in enumerate(self.card.modalities)},
            "labels": {"background": 0} | {label.name: self._numbers[label.value] for label in scheme.labels},
            "file_ending": ".nii.gz",
            "description": f"{SYNTHETIC}: made from label maps by the model {self.card.name}. Not images of patients.",
        }

    def _check(self) -> None:
        path = self.folder / "dataset.json"
        if not path.exists():
            return
        try:
            found = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            found = None
        for key in ("channel_names", "labels", "file_ending"):
            if not isinstance(found, dict) or found.get(key) != self._description()[key]:
                raise MedDPMError(f"{path} describes another dataset ({key} differs): choose another folder")

    def _clear(self) -> None:
        """Creates the folders, and removes what a process left half written that was ended long ago."""
        for name in ("imagesTr", "labelsTr", "records", _WRITING):
            (self.folder / name).mkdir(parents=True, exist_ok=True)
        for left in (self.folder / _WRITING).iterdir():
            with suppress(OSError):  # which another process has just moved
                if time.time() - left.stat().st_mtime > _ABANDONED:
                    left.unlink()

    def _on(self, volume: Volume, mask: Mask) -> Volume:
        """The labels of ``mask`` where ``volume`` has its voxels, 0 where the model's grid does not reach."""
        fitted = fit(mask, self.card.grid)
        if volume.geometry.is_close(fitted.geometry):
            labels = fitted.labels
        else:
            covered = Volume(np.ones(fitted.labels.shape, np.float32), fitted.geometry)
            reached = resample_image(covered, volume.geometry, fill=0.0).array > 0.5
            labels = np.where(reached, mask.volume.array, 0)
        table = np.zeros(256, np.uint8)
        table[list(self._numbers)] = list(self._numbers.values())
        return Volume(table[labels], volume.geometry)

    def _images(self, stem: str) -> list[Path]:
        count = len(self.card.modalities)
        return [self.folder / "imagesTr" / f"{stem}_{index:04d}.nii.gz" for index in range(count)]

    def _labels(self, stem: str) -> Path:
        return self.folder / "labelsTr" / f"{stem}.nii.gz"

    def _record(self, stem: str) -> Path:
        return self.folder / "records" / f"{stem}.json"


def label_numbers(scheme: LabelScheme) -> dict[int, int]:
    """The scheme's values, each with its number in the dataset: nnU-Net wants them from 1 on, without a gap."""
    return {value: number for number, value in enumerate(scheme.values, start=1)}


def _move(source: Path, target: Path) -> None:
    try:
        os.replace(source, target)
    except OSError as error:
        raise MedDPMError(f"{target} cannot be written ({error.strerror}): choose another folder") from error
