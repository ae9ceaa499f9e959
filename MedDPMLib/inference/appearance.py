"""Which patient's look does a brain get? One of a training brain's by the seed, the typical one, or that of a scan."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from MedDPMLib.errors import MedDPMError
from MedDPMLib.imaging.appearance import FEATURES
from MedDPMLib.models.card import Card
from MedDPMLib.networks.cascade import APPEARANCE_JITTER, Cascade


def chosen_appearance(cascade: Cascade, card: Card, chosen: str, seed: int) -> Tensor:
    """The appearance (A,), standardized, that the setting ``chosen`` names: "random", "typical", or a file that
    :func:`MedDPMLib.inference.scan_appearance.write_appearance` made. ``card`` is that of the model whose network
    ``cascade`` is."""
    if chosen == "random":
        return random_appearance(cascade, seed)
    if chosen == "typical":
        return typical_appearance(cascade)
    return read_appearance(Path(chosen), cascade, card.modalities)


def random_appearance(cascade: Cascade, seed: int) -> Tensor:
    """That of one of the training brains, varied a little so that none is met exactly; the same for the same
    ``seed``."""
    # Another stream than the noise of the images, which the same seed starts.
    random = np.random.default_rng((seed, 1))
    table = cascade.appearances.cpu()
    values = table[int(random.integers(len(table)))]
    jitter = torch.from_numpy(random.standard_normal(len(values)).astype(np.float32))
    return (values + APPEARANCE_JITTER * jitter).clamp(-3, 3)


def typical_appearance(cascade: Cascade) -> Tensor:
    """The median of the training brains'."""
    return cascade.appearances.cpu().median(dim=0).values


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
