"""Does an image show what its mask asked for? A segmenter that is not trained any more is the judge."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from MedDPMLib.data.cases import is_one_of
from MedDPMLib.evaluation.cases import LoadedCase
from MedDPMLib.imaging.geometry import Grid
from MedDPMLib.imaging.volume import Volume
from MedDPMLib.masks.schemes import LabelScheme
from MedDPMLib.metrics.overlap import dice_by_label
from MedDPMLib.models.segmenter_card import ALL
from MedDPMLib.segmentation.segmenter import Segmenter


class Judge:
    """The judgment of ``segmenter`` in the labels of ``scheme``; ``about`` names it with the SHA-256 of its file.

    Labels are identified by their names. Structures that ``scheme`` does not have are its rest.
    """

    def __init__(self, segmenter: Segmenter, scheme: LabelScheme) -> None:
        card = segmenter.card
        self._segmenter, self._scheme = segmenter, scheme
        self._translation = np.zeros(256, np.uint8)
        for label in card.scheme.labels:
            same = scheme.label_by_name(label.name) or (scheme.rest if label.role != "tumor" else None)
            self._translation[label.value] = same.value if same else 0
        measured = card.dice.get(ALL) or next(iter(card.dice.values()), {})
        known = f"mean Dice on its card {np.mean(list(measured.values())):.2f}" if measured else "no Dice on its card"
        self.about = f"{card.name}, SHA-256 {segmenter.hash}; {known}"

    def knows(self, case: LoadedCase) -> bool:
        """Whether the segmenter was trained on this patient, whose mask it may remember."""
        return any(is_one_of(name, self._segmenter.card.training_cases) for name in (case.name, case.group))

    def dice(self, case: LoadedCase, modalities: Sequence[str], grid: Grid) -> dict[str, float]:
        """The Dice coefficient of what the segmenter finds in the images of ``case`` with its mask, by label's name.

        Only of labels that the mask has and the segmenter can give: those of a tumor if it knows enough of the
        ``modalities`` by name. Where the mask shows a tumor, other labels are not counted: what is under it is not
        known. Raises :class:`MedDPMError` for images in which the segmenter sees no brain.
        """
        assert case.labels is not None
        card = self._segmenter.card
        geometry = grid.centered_on(np.zeros(3))
        volumes = {name: Volume(image, geometry) for name, image in zip(modalities, case.images, strict=True)}
        named: dict[str | None, Volume] = {name: one for name, one in volumes.items() if name in card.modalities}
        scans = named or {None: volumes[modalities[0]]}
        found = self._translation[self._segmenter.segment(scans, name=case.name).labels.array]
        given = {int(self._translation[value]) for value in card.structures}
        if len(named) >= card.tumor_modalities:
            given |= {int(self._translation[value]) for value in card.tumor}
        tumor = [label.value for label in self._scheme.tumor]
        there = given & set(np.unique(case.labels).tolist()) - {0}
        outside = ~np.isin(case.labels, tumor)
        dice = dice_by_label(found, case.labels, there - {*tumor}, outside) | dice_by_label(
            found, case.labels, there & {*tumor}
        )
        return {label.name: dice[label.value] for label in self._scheme.labels if label.value in dice}
