"""How well does a segmenter do on brains that it was not trained on? The Dice coefficient by structure and by scan."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from MedDPMLib.errors import MedDPMError
from MedDPMLib.imaging.volume import Volume
from MedDPMLib.masks.schemes import LabelScheme
from MedDPMLib.metrics.overlap import dice, dice_by_label
from MedDPMLib.models.segmenter_card import ALL, SegmenterCard
from MedDPMLib.runtime.device import Execution
from MedDPMLib.segmentation.segmenter import Segmenter

#: Structures that a radiologist delineates at a glance; their mean is a target of its own.
LARGE = (
    "Cerebral white matter", "Cerebral cortex", "Lateral ventricle", "Cerebellar white matter", "Cerebellar cortex",
    "Brain stem",
)  # fmt: skip

#: The regions in which tumor segmentation is judged, by the tissues that they hold (all tumor labels for the first).
WHOLE, CORE, ENHANCING = "Whole tumor", "Tumor core", "Enhancing tumor"


@dataclass(frozen=True)
class Known:
    """A case whose ``labels`` are known: ``scans`` on the same geometry, by modality."""

    name: str
    scans: dict[str, Volume]
    labels: Volume


def measure(
    segmenter: Segmenter,
    cases: Iterable[Known],
    *,
    execution: Execution,
    report: Callable[[str], None] = lambda doing: None,
) -> dict[str, dict[str, list[float]]]:
    """The Dice coefficients of the ``cases``, in their order: by scan (each modality, and :data:`ALL` together), then
    by structure, and for all together by tumor region. NaN where a case does not have it.

    Where the labels show a tumor, structures are not counted: what is under it is not known. Raises
    :class:`MedDPMError` for a case that the segmenter was trained on.
    """
    card, scheme = segmenter.card, segmenter.card.scheme
    results: dict[str, dict[str, list[float]]] = {}
    for case in cases:
        check_unseen(card, case.name)
        if any(not scan.geometry.is_close(case.labels.geometry) for scan in case.scans.values()):
            raise MedDPMError(f"{case.name}: scans and labels do not lie on the same voxels, and cannot be compared")
        asked: dict[str, dict[str | None, Volume]] = {name: {None: scan} for name, scan in case.scans.items()}
        named: dict[str | None, Volume] = {name: case.scans[name] for name in case.scans if name in card.modalities}
        if len(named) > 1:
            asked[ALL] = named
        for scan, given in asked.items():
            report(f"{case.name}, {scan}")
            found = segmenter.segment(given, name=case.name, execution=execution).labels.array
            figures = _structures(found, case.labels.array, scheme)
            if scan == ALL and card.tumor:
                figures |= _regions(found, case.labels.array, scheme)
            for label, value in figures.items():
                results.setdefault(scan, {}).setdefault(label, []).append(value)
    return results


def means(results: dict[str, dict[str, list[float]]]) -> dict[str, dict[str, float]]:
    """The mean over the cases that have a label, rounded for a card."""
    averaged = {}
    for scan, by_label in results.items():
        kept = {label: [one for one in values if not math.isnan(one)] for label, values in by_label.items()}
        averaged[scan] = {label: round(sum(v) / len(v), 3) for label, v in kept.items() if v}
    return averaged


def summary(by_label: dict[str, float]) -> tuple[float, float]:
    """Mean Dice over the :data:`LARGE` structures and over all structures of one scan."""
    structures = {label: value for label, value in by_label.items() if label not in (WHOLE, CORE, ENHANCING)}
    large = [structures[label] for label in LARGE if label in structures]
    return _mean(large), _mean(list(structures.values()))


def tumor_regions(scheme: LabelScheme) -> dict[str, list[int]]:
    """The values of the labels in each region in which tumor segmentation is judged."""
    edema = [label.value for label in scheme.of_tissue("edema")]
    return {
        WHOLE: _tumor(scheme),
        CORE: [value for value in _tumor(scheme) if value not in edema],
        ENHANCING: [label.value for label in scheme.of_tissue("rim")],
    }


def check_unseen(card: SegmenterCard, case: str) -> None:
    """Raises :class:`MedDPMError` if the segmenter was trained on the ``case``."""
    if case in card.training_cases:
        raise MedDPMError(f"{card.name} was trained on {case}: measure it on other cases (--case)")


def _structures(found: np.ndarray, truth: np.ndarray, scheme: LabelScheme) -> dict[str, float]:
    structures = [label for label in scheme.labels if label.role == "structure"]
    known = ~np.isin(truth, _tumor(scheme))
    found_by = dice_by_label(found, truth, [label.value for label in structures], known)
    return {label.name: found_by[label.value] for label in structures}


def _regions(found: np.ndarray, truth: np.ndarray, scheme: LabelScheme) -> dict[str, float]:
    regions = tumor_regions(scheme)
    return {name: dice(np.isin(found, values), np.isin(truth, values)) for name, values in regions.items()}


def _tumor(scheme: LabelScheme) -> list[int]:
    return [label.value for label in scheme.tumor]


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values) if values else math.nan
