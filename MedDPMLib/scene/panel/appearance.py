"""Whose look does a brain get? The rows of the settings that only models that know appearances have."""

from __future__ import annotations

import hashlib
import re
from dataclasses import replace
from pathlib import Path

import slicer
from slicer.i18n import tr as _

from MedDPMLib.errors import MedDPMError
from MedDPMLib.models.card import Card
from MedDPMLib.scene.generator import Order

#: Signs of modalities in the names of volumes, the specific ones first.
_SIGNS = (("t1ce", r"t1\W?(ce|c|gd|post)|contrast"), ("flair", "flair"), ("t2", "t2"), ("t1", "t1"))


class AppearanceRows:
    """The rows Appearance and Like volume in ``ui``."""

    def __init__(self, ui) -> None:
        self._ui = ui
        #: Files by model, modality and segmentation, of the volume that is chosen: measured once, not at every stroke.
        self._measured: dict[tuple[str, str, str], Path] = {}
        ui.likeSelector.currentNodeChanged.connect(self._on_volume)

    def show(self, card: Card | None) -> None:
        """The rows are there for a model that knows appearances."""
        ui = self._ui
        known = card is not None and card.draws_by_levels
        label = ui.advancedSection.layout().labelForField(ui.appearanceBox)
        for widget in (label, ui.appearanceBox, ui.likeLabel, ui.likeSelector, ui.likeModalityBox):
            widget.visible = known
        ui.likeModalityBox.clear()
        for modality in card.modalities if known else ():
            ui.likeModalityBox.addItem(modality.upper(), modality)
        self._on_volume(ui.likeSelector.currentNode())

    def applied(self, order: Order, volume: slicer.vtkMRMLScalarVolumeNode | None) -> Order:
        """``order`` with the appearance of ``volume``, if there is one and the model knows appearances."""
        if volume is None or not order.card.draws_by_levels or order.segmentation is None:
            return order
        modality = self._ui.likeModalityBox.currentData
        if modality is None:
            raise MedDPMError(
                _("{name} may be of several modalities: choose which one in the row Like volume").format(
                    name=volume.GetName()
                )
            )
        key = order.card.name, modality, order.segmentation.GetID()
        if key not in self._measured:
            self._measured[key] = _measured(order, volume, modality)
        path = self._measured[key]
        return replace(order, settings=order.settings.changed(appearance=str(path)))

    def _on_volume(self, node: slicer.vtkMRMLScalarVolumeNode | None) -> None:
        """The modality that the volume's name says, if it says one."""
        self._measured = {}
        box = self._ui.likeModalityBox
        box.enabled = node is not None
        said = modality_in(node.GetName()) if node is not None else None
        box.currentIndex = box.findData(said) if said is not None else -1


def modality_in(name: str) -> str | None:
    """The modality that ``name`` names, such as "t1ce" of "Brats18_AXN_1_t1ce"; None where it names none."""
    return next((modality for modality, sign in _SIGNS if re.search(sign, name, re.IGNORECASE)), None)


def _measured(order: Order, volume: slicer.vtkMRMLScalarVolumeNode, modality: str) -> Path:
    """The file with the appearance of ``volume``, which shows the brain of the order's segmentation. Files stay, for
    results that are generated again."""
    import platformdirs

    from MedDPMLib.inference.scan_appearance import measure, write_appearance
    from MedDPMLib.inference.settings import APPEARANCE_SUFFIX
    from MedDPMLib.masks.mask import Mask
    from MedDPMLib.scene.images import volume_from_node
    from MedDPMLib.scene.segmentation import read_labels

    scheme = order.card.scheme
    labels = read_labels(order.segmentation, order.table, scheme)
    mask = Mask.from_volume(labels, scheme, name=order.segmentation.GetName(), numbering=scheme.own_numbering)
    measured = measure(order.card, {modality: volume_from_node(volume)}, mask)
    name = hashlib.sha256(b"".join(values.tobytes() for values in measured.values()) + modality.encode()).hexdigest()
    folder = Path(platformdirs.user_cache_dir("meddpm", appauthor=False)) / "appearances"
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{name[:16]}{APPEARANCE_SUFFIX}"
    if not path.is_file():
        write_appearance(path, measured)
    return path
