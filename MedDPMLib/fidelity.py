"""Does each label look like itself? Mean intensity of each contrast inside each label, synthetic against real."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from MedDPMLib.errors import MedDPMError
from MedDPMLib.labels import LabelScheme
from MedDPMLib.prepare import normalise
from MedDPMLib.volume import Volume


@dataclass(frozen=True)
class LabelMean:
    """The mean intensity, in [-1, 1], of one ``modality`` over the ``voxels`` of one ``label``."""

    modality: str
    label: str
    voxels: int
    synthetic: float
    real: float

    @property
    def difference(self) -> float:
        return self.synthetic - self.real


@dataclass(frozen=True)
class Fidelity:
    """``means`` of every modality and label; ``correlation`` of synthetic and real means over the labels, by modality.

    A correlation is None where fewer than three labels are present, or all have one mean.
    """

    means: tuple[LabelMean, ...]
    correlation: dict[str, float | None]

    def to_dict(self) -> dict:
        """As plain data for JSON."""
        means = [{**vars(mean), "difference": mean.difference} for mean in self.means]
        return {"means": means, "correlation": self.correlation}


def mask_fidelity(
    synthetic: Mapping[str, Volume], real: Mapping[str, Volume], labels: Volume, scheme: LabelScheme
) -> Fidelity:
    """Compares ``synthetic`` and ``real`` volumes of the same modalities, label by label.

    All lie on the geometry of ``labels`` (the values of ``scheme``). Both are normalised alike before they are
    compared (:func:`MedDPMLib.prepare.normalise` inside all labels together): scanners have no common unit. Raises
    :class:`MedDPMError` when the modalities or the geometries differ, or nothing is labelled.
    """
    if synthetic.keys() != real.keys():
        raise MedDPMError(f"{', '.join(synthetic)} were made, but real images are given of {', '.join(real) or 'none'}")
    inside = labels.array > 0
    if not inside.any():
        raise MedDPMError("the mask is empty: there is nothing to compare")
    means, correlation = [], {}
    for modality in synthetic:
        pair = []
        for volume in (synthetic[modality], real[modality]):
            if not volume.geometry.is_close(labels.geometry):
                raise MedDPMError(
                    f"the volumes of {modality} do not lie on the grid of the labels: resample them first"
                )
            pair.append(normalise(volume, inside).array)
        of_modality = [
            LabelMean(modality, label.name, int(where.sum()), *(float(image[where].mean()) for image in pair))
            for label in scheme.labels
            if (where := labels.array == label.value).any()
        ]
        means += of_modality
        correlation[modality] = _correlation(of_modality)
    return Fidelity(tuple(means), correlation)


def _correlation(means: list[LabelMean]) -> float | None:
    """Pearson's coefficient over labels, each counted once whatever its size."""
    pairs = np.array([(mean.synthetic, mean.real) for mean in means])
    if len(pairs) < 3 or (np.ptp(pairs, axis=0) < 1e-6).any():
        return None
    return float(np.corrcoef(pairs.T)[0, 1])
