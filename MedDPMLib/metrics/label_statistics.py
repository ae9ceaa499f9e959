"""Does each label have its own intensities? Those of each modality inside each label, synthetic against real."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from MedDPMLib.errors import MedDPMError
from MedDPMLib.imaging.normalize import normalize
from MedDPMLib.imaging.volume import Volume
from MedDPMLib.masks.schemes import LabelScheme
from MedDPMLib.metrics.similarity import Likeness, likeness


@dataclass(frozen=True)
class LabelMean:
    """Intensities, in [-1, 1], of one ``modality`` over the ``voxels`` of one ``label``: means and deviations."""

    modality: str
    label: str
    voxels: int
    synthetic: float
    real: float
    synthetic_sd: float
    real_sd: float

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

    def mean_difference(self, modality: str) -> float:
        """The absolute difference of the means, averaged over labels, each counted once."""
        return float(np.mean([abs(mean.difference) for mean in self.means if mean.modality == modality]))

    def sd_difference(self, modality: str) -> float:
        """The same for the standard deviations inside labels: a difference in texture."""
        return float(
            np.mean([abs(mean.synthetic_sd - mean.real_sd) for mean in self.means if mean.modality == modality])
        )

    def to_dict(self) -> dict:
        """As plain data for JSON."""
        means = [{**vars(mean), "difference": mean.difference} for mean in self.means]
        return {"means": means, "correlation": self.correlation}


def mask_fidelity(
    synthetic: Mapping[str, Volume], real: Mapping[str, Volume], labels: Volume, scheme: LabelScheme
) -> Fidelity:
    """Compares ``synthetic`` and ``real`` volumes of the same modalities, label by label.

    All have the geometry of ``labels`` (the values of ``scheme``). Both are normalized in the same way before they are
    compared (:func:`MedDPMLib.imaging.normalize` inside all labels together): scanners have no common unit. Raises
    :class:`MedDPMError` if the modalities or the geometries differ, or the mask is empty.
    """
    return compare_labels(dict(_normalized(synthetic, real, labels)), labels, scheme)


def paired_likeness(synthetic: Mapping[str, Volume], real: Mapping[str, Volume], labels: Volume) -> dict[str, Likeness]:
    """By modality, the voxel-wise similarity of the volumes; arguments and normalization of :func:`mask_fidelity`.

    Another brain of the same mask is not worse than the real one, only different: these figures penalize variety.
    """
    inside = labels.array > 0
    return {modality: likeness(*pair, inside) for modality, pair in _normalized(synthetic, real, labels)}


def compare_labels(pairs: Mapping[str, tuple[np.ndarray, np.ndarray]], labels: Volume, scheme: LabelScheme) -> Fidelity:
    """By modality a synthetic and a real image (or another reference), compared label by label as they are."""
    means, correlation = [], {}
    for modality, pair in pairs.items():
        of_modality = [
            LabelMean(
                modality, label.name, int(where.sum()), *(float(image[where].mean()) for image in pair),
                *(float(image[where].std()) for image in pair),
            )
            for label in scheme.labels
            if (where := labels.array == label.value).any()
        ]  # fmt: skip
        means += of_modality
        correlation[modality] = _correlation([(mean.synthetic, mean.real) for mean in of_modality])
    return Fidelity(tuple(means), correlation)


def average(results: Sequence[Fidelity]) -> Fidelity:
    """What to expect of one of several images of the same labels: every figure averaged over ``results``.

    A correlation is averaged too, not recomputed from averaged means: so it does not rise with their number.
    """
    means = []
    for same in zip(*(result.means for result in results), strict=True):
        figures = {
            name: float(np.mean([getattr(mean, name) for mean in same]))
            for name in ("synthetic", "real", "synthetic_sd", "real_sd")
        }
        means.append(replace(same[0], **figures))
    correlation = {}
    for modality in results[0].correlation:
        known = [result.correlation[modality] for result in results if result.correlation[modality] is not None]
        correlation[modality] = float(np.mean(known)) if known else None
    return Fidelity(tuple(means), correlation)


def _normalized(
    synthetic: Mapping[str, Volume], real: Mapping[str, Volume], labels: Volume
) -> Iterator[tuple[str, tuple[np.ndarray, np.ndarray]]]:
    if synthetic.keys() != real.keys():
        raise MedDPMError(
            f"{', '.join(synthetic)} were generated, but the real images are {', '.join(real) or 'missing'}"
        )
    inside = labels.array > 0
    if not inside.any():
        raise MedDPMError("the mask is empty: there is nothing to compare")
    for modality in synthetic:
        pair = (synthetic[modality], real[modality])
        if not all(volume.geometry.is_close(labels.geometry) for volume in pair):
            raise MedDPMError(f"the volumes of {modality} are not on the grid of the labels: resample them first")
        try:
            normalized = tuple(normalize(volume, inside).array for volume in pair)
        except MedDPMError as error:
            raise MedDPMError(f"the images of {modality} cannot be compared: {error}") from error
        yield modality, normalized


def _correlation(means: Sequence[tuple[float, float]]) -> float | None:
    """Pearson's coefficient over labels, each counted once whatever its size."""
    pairs = np.array(means)
    if len(pairs) < 3 or (np.ptp(pairs, axis=0) < 1e-6).any():
        return None
    return float(np.corrcoef(pairs.T)[0, 1])
