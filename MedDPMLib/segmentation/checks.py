"""Can a mask made by a segmenter be believed? What looks odd about it, in sentences."""

from __future__ import annotations

import numpy as np

from MedDPMLib.errors import MedDPMError
from MedDPMLib.imaging.volume import Volume
from MedDPMLib.masks.schemes import LabelScheme
from MedDPMLib.segmentation.scan import Scan

#: Liters of a brain: less or more is no human one; outside of the narrower limits it is said.
_NO_BRAIN, _UNUSUAL = (0.25, 2.6), (0.75, 2.1)

#: Mean probability in the brain, and in a label, below which the result is doubted.
_UNSURE, _UNSURE_LABEL = 0.75, 0.55
#: Part of the labels that are implausible beyond which nothing is believed.
_MOST_ODD = 0.5

#: What helps where the scan shows more than a brain.
_HEAD = "; if the scan shows the whole head, extract the brain first"

#: A border of the scan through so much brain (mm^2) cuts it off.
_CUT = 400.0
#: It goes on into the neck: where a scan ends in it, nothing is missing.
_STEM = "Brain stem"


def doubts(name: str, labels: Volume, confidence: np.ndarray, scan: Scan, scheme: LabelScheme) -> list[str]:
    """What is odd about ``labels`` of the scan called ``name``.

    Raises :class:`MedDPMError` if they are no brain at all.
    """
    brain = labels.array > 0
    voxel = labels.geometry.voxel_volume / 1e3
    liters = np.count_nonzero(brain) * voxel / 1e3
    counts = np.bincount(labels.array.ravel(), minlength=256) * voxel
    odd = [
        label
        for label in scheme.labels
        if label.role == "structure" and label.plausible_ml and not _within(counts[label.value], label.plausible_ml)
    ]
    structures = [label for label in scheme.labels if label.role == "structure"]
    if not _within(liters, _NO_BRAIN) or len(odd) > _MOST_ODD * len(structures):
        raise MedDPMError(
            f"no brain is found in {name} ({liters:.2g} l in all, {len(odd)} of {len(structures)} structures have no"
            f" plausible volume): a scan of a whole brain is needed{_HEAD}"
        )
    found = []
    if not _within(liters, _UNUSUAL):
        found.append(f"the brain in {name} has {liters:.2g} l, unusual for an adult: look at every border{_HEAD}")
    if odd:
        names = ", ".join(f"{label.name.lower()} ({counts[label.value]:.2g} ml)" for label in odd)
        found.append(f"volumes in {name} that are not plausible: {names}")
    sure = float(confidence[brain].mean())
    if sure < _UNSURE:
        found.append(f"the confidence in {name} is low ({sure:.2f} on average): look at every border{_HEAD}")
    unsure = [label for label in structures if _mean(confidence, labels.array == label.value) < _UNSURE_LABEL]
    if unsure:
        found.append(f"least certain in {name}: {', '.join(label.name.lower() for label in unsure)}")
    stem = scheme.label_by_name(_STEM)
    if cut := _cut_off(labels, scan, stem.value if stem else 0):
        found.append(f"the brain in {name} is cut off at the {' and '.join(cut)} end of the scan")
    return found


def _within(value: float, limits: tuple[float, float]) -> bool:
    return limits[0] <= value <= limits[1]


def _mean(confidence: np.ndarray, where: np.ndarray) -> float:
    return float(confidence[where].mean()) if where.any() else 1.0


def _cut_off(labels: Volume, scan: Scan, stem: int) -> list[str]:
    """At which ends, in the patient's directions, the scan ends within the brain."""
    ends = []
    geometry = scan.volume.geometry
    low = geometry.to_ras(np.array([[-0.5] * 3])).ravel()
    corners = np.array(np.meshgrid(*[[-0.5, n - 0.5] for n in geometry.size], indexing="ij")).reshape(3, -1).T
    ras = geometry.to_ras(corners)
    low, high = ras.min(axis=0), ras.max(axis=0)
    step = labels.geometry.spacing[0]
    area = step * step
    for axis, names in enumerate((("left", "right"), ("posterior", "anterior"), ("inferior", "superior"))):
        for end, limit in zip(names, (low[axis], high[axis]), strict=True):
            # The last whole layer of voxels inside the scan.
            inward = 1.5 * step if end == names[0] else -1.5 * step
            place = labels.geometry.center.copy()
            place[axis] = limit + inward
            index = int(round(labels.geometry.to_ijk(place)[_ijk_axis(labels, axis)]))
            if not 0 <= index < labels.geometry.size[_ijk_axis(labels, axis)]:
                continue
            layer = labels.array.take(index, axis=2 - _ijk_axis(labels, axis))
            if np.count_nonzero((layer > 0) & (layer != stem)) * area > _CUT:
                ends.append(end)
    return ends


def _ijk_axis(labels: Volume, ras: int) -> int:
    return int(np.argmax(np.abs(labels.geometry.ijk_to_ras[ras, :3])))
