"""Which patient's look does a brain get? One of a training brain's by the seed, the typical one, or that of a scan."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from MedDPMLib.errors import MedDPMError
from MedDPMLib.imaging.appearance import FEATURES, appearance
from MedDPMLib.imaging.normalize import normalize
from MedDPMLib.imaging.resample import resample_image
from MedDPMLib.imaging.volume import Volume
from MedDPMLib.masks.fit import fit
from MedDPMLib.masks.mask import Mask
from MedDPMLib.models.card import Card
from MedDPMLib.networks.cascade import Cascade
from MedDPMLib.runtime.files import atomic_write

#: A random appearance is that of a training brain with so much of the brains' deviation on top, so that none of them
#: is met exactly.
_JITTER = 0.15


def chosen_appearance(cascade: Cascade, card: Card, chosen: str, seed: int) -> Tensor:
    """The appearance (A,), standardized, that the setting ``chosen`` names: "random", "typical", or a file that
    :func:`write_appearance` made. ``card`` is that of the model whose network ``cascade`` is."""
    if chosen == "random":
        return random_appearance(cascade, seed)
    if chosen == "typical":
        return typical_appearance(cascade)
    return read_appearance(Path(chosen), cascade, card.modalities)


def random_appearance(cascade: Cascade, seed: int) -> Tensor:
    """That of one of the training brains, varied a little; the same for the same ``seed``."""
    # Another stream than the noise of the images, which the same seed starts.
    random = np.random.default_rng((seed, 1))
    table = cascade.appearances.cpu()
    values = table[int(random.integers(len(table)))]
    jitter = torch.from_numpy(random.standard_normal(len(values)).astype(np.float32))
    return (values + _JITTER * jitter).clamp(-3, 3)


def typical_appearance(cascade: Cascade) -> Tensor:
    """The median of the training brains'."""
    return cascade.appearances.cpu().median(dim=0).values


def write_appearance(path: Path, measured: Mapping[str, np.ndarray]) -> None:
    """Writes what :func:`measure` gives as JSON, whole or not at all."""
    features = {
        modality: {name: round(float(value), 5) for name, value in zip(FEATURES, values, strict=True)}
        for modality, values in measured.items()
    }
    with atomic_write(path) as temporary:
        temporary.write_text(json.dumps({"appearance": features}, indent=1) + "\n", encoding="utf-8")


def read_appearance(path: Path, cascade: Cascade, modalities: Sequence[str]) -> Tensor:
    """The appearance (A,) in the file ``path``, standardized; ``modalities`` are those that ``cascade`` draws.

    A modality that it lacks takes the look of the training brain that is most like the others. Raises
    :class:`MedDPMError` for a file that is missing, damaged or of something else.
    """
    try:
        features = json.loads(path.read_text(encoding="utf-8"))["appearance"]
        rows = {modality: [float(values[name]) for name in FEATURES] for modality, values in features.items()}
        if not all(np.isfinite(values).all() for values in rows.values()):
            raise ValueError("a number is not finite")
    except OSError as error:
        raise MedDPMError(f"{path} cannot be read ({error.strerror}): check the path") from error
    except (AttributeError, KeyError, TypeError, ValueError, RecursionError) as error:
        raise MedDPMError(
            f"{path} is not the appearance of a scan ({str(error):.80})", remedy="make one with meddpm appearance"
        ) from error
    table = torch.full((len(modalities), len(FEATURES)), torch.nan)
    for index, modality in enumerate(modalities):
        if modality in rows:
            table[index] = torch.tensor(rows[modality])
    if table.isnan().all():
        raise MedDPMError(f"{path} is the appearance of none of the modalities {', '.join(modalities)}")
    values = cascade.standardize(table.flatten().to(cascade.appearance_mean.device)).cpu()
    known = ~values.isnan()
    brains = cascade.appearances.cpu()
    nearest = (brains[:, known] - values[known]).square().sum(dim=1).argmin()
    return torch.where(known, values, brains[int(nearest)])


def measure(card: Card, scans: Mapping[str, Volume], mask: Mask) -> dict[str, np.ndarray]:
    """By modality the :data:`FEATURES` of ``scans``, skull-stripped images of the brain whose structures are ``mask``.

    ``mask`` is of the scheme of the condition of the model with ``card``. The scans may lie on any grid that overlaps
    it. Raises :class:`MedDPMError` for a modality that the model does not draw, for none at all, and for a scan that is
    constant where the mask is.
    """
    strange = [modality for modality in scans if modality not in card.modalities]
    if strange or not scans:
        known = ", ".join(card.modalities)
        raise MedDPMError(f"an appearance is taken from scans of {known}, not of {', '.join(strange) or 'nothing'}")
    fitted = fit(mask, card.grid)
    measured = {}
    for modality, scan in scans.items():
        placed = resample_image(scan, fitted.geometry, fill=float(scan.array.min()))
        if np.ptp(placed.array[fitted.labels > 0]) == 0:
            raise MedDPMError(
                f"the {modality} scan shows nothing where the mask is", remedy="give a mask that was made on the scan"
            )
        image = normalize(placed, fitted.labels > 0).array
        measured[modality] = appearance(image, fitted.labels, mask.scheme)
    return measured
