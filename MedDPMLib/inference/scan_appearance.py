"""How does a patient's scan look, in numbers that a model can draw by? Measured and kept in a file, without PyTorch."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from MedDPMLib.errors import MedDPMError
from MedDPMLib.imaging.appearance import FEATURES, appearance
from MedDPMLib.imaging.normalize import normalize
from MedDPMLib.imaging.resample import resample_image
from MedDPMLib.imaging.volume import Volume
from MedDPMLib.inference.atlas import network_labels
from MedDPMLib.masks.fit import fit
from MedDPMLib.masks.mask import Mask
from MedDPMLib.models.card import Card
from MedDPMLib.runtime.files import atomic_write


def measure(card: Card, scans: Mapping[str, Volume], mask: Mask) -> dict[str, np.ndarray]:
    """By modality the :data:`FEATURES` of ``scans``, skull-stripped images of the brain whose structures are ``mask``.

    ``mask`` is of the scheme of the masks of the model with ``card``, whose structures are then those that the model
    invents for seed 0, or of its condition's scheme. The scans may lie on any grid that overlaps it. Raises
    :class:`MedDPMError` for a modality that the model does not draw, for none at all, and for a scan that is constant
    where the mask is.
    """
    strange = [modality for modality in scans if modality not in card.modalities]
    if strange or not scans:
        known = ", ".join(card.modalities)
        raise MedDPMError(f"an appearance is taken from scans of {known}, not of {', '.join(strange) or 'nothing'}")
    fitted = fit(mask, card.grid) if mask.scheme == card.condition_scheme else network_labels(mask, card, seed=0)
    measured = {}
    for modality, scan in scans.items():
        placed = resample_image(scan, fitted.geometry, fill=float(scan.array.min()))
        if np.ptp(placed.array[fitted.labels > 0]) == 0:
            raise MedDPMError(
                f"the {modality} scan shows nothing where the mask is", remedy="give a mask that was made on the scan"
            )
        image = normalize(placed, fitted.labels > 0).array
        measured[modality] = appearance(image, fitted.labels, card.condition_scheme)
    return measured


def write_appearance(path: Path, measured: Mapping[str, np.ndarray]) -> None:
    """Writes what :func:`measure` gives as JSON, whole or not at all."""
    features = {
        modality: {name: round(float(value), 5) for name, value in zip(FEATURES, values, strict=True)}
        for modality, values in measured.items()
    }
    with atomic_write(path) as temporary:
        temporary.write_text(json.dumps({"appearance": features}, indent=1) + "\n", encoding="utf-8")
