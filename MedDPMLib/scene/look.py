"""What is looked at, and how bright? From the mask to the image to the user's own scan, each in one click."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import slicer
from slicer.i18n import tr as _

from MedDPMLib.scene import volumes
from MedDPMLib.scene.views import (
    is_outlined,
    show_background,
    show_outline,
    shown_background,
    shown_foreground,
)

#: Every so many voxels along each axis are enough for a window.
_STEP = 4


class Preset(NamedTuple):
    """A window: black and white in percent of the voxels that are not background; None is the background itself."""

    title: str
    black: float | None
    white: float


_STANDARD, _FULL = Preset(_("Standard"), None, 99.5), Preset(_("Full range"), None, 100)

#: The windows that suit a modality, beside the standard and the full range.
_SUITED = {
    "t1": (Preset(_("Gray and white matter"), 20, 98),),
    "t1ce": (Preset(_("Enhancement"), 60, 100), Preset(_("Gray and white matter"), 20, 98)),
    "t2": (Preset(_("Edema and fluid"), 40, 99.9), Preset(_("Gray and white matter"), 10, 90)),
    "flair": (Preset(_("Edema"), 50, 99.9), Preset(_("Gray and white matter"), 10, 95)),
}


def presets_of(modality: str | None) -> tuple[Preset, ...]:
    """The windows to choose from for a generated volume of ``modality``, the standard one first."""
    return (_STANDARD, *_SUITED.get((modality or "").lower(), ()), _FULL)


def apply_preset(node: slicer.vtkMRMLScalarVolumeNode, preset: Preset) -> None:
    """Shows a generated volume in the window of ``preset``."""
    array = slicer.util.arrayFromVolume(node)[::_STEP, ::_STEP, ::_STEP]
    tissue = array[array > 0]
    if not tissue.size:
        return
    black = 0.0 if preset.black is None else float(np.percentile(tissue, preset.black))
    volumes.set_window(node, (black, max(float(np.percentile(tissue, preset.white)), black + 1)))


def show_mask(segmentation: slicer.vtkMRMLSegmentationNode) -> None:
    """The mask, filled, over whatever is shown."""
    show_outline(segmentation, False)


def show_image(segmentation: slicer.vtkMRMLSegmentationNode) -> bool:
    """The newest image of the mask, in the modality that is looked at; whether there is one."""
    node = shown_background()
    if not volumes.is_synthetic(node) or node.GetNodeReference(volumes.SEGMENTATION_ROLE) is not segmentation:
        node = volumes.result_to_show(segmentation, _looked_at.get(segmentation.GetID()))
    return _show(node, segmentation)


def show_scan(segmentation: slicer.vtkMRMLSegmentationNode) -> bool:
    """The user's own scan; whether there is one."""
    _looked_at[segmentation.GetID()] = volumes.modality_of(shown_background())
    return _show(users_scan(segmentation), segmentation)


#: The modality that was looked at before the scan, by the mask's ID.
_looked_at: dict[str, str | None] = {}


def users_scan(segmentation: slicer.vtkMRMLSegmentationNode) -> slicer.vtkMRMLScalarVolumeNode | None:
    """The volume of the user that belongs to the mask: shown now, laid over it, painted over, or the only one."""
    role = segmentation.GetReferenceImageGeometryReferenceRole()
    for node in (shown_background(), shown_foreground(), segmentation.GetNodeReference(role)):
        if _is_users(node):
            return node
    own = [node for node in slicer.util.getNodesByClass("vtkMRMLScalarVolumeNode") if _is_users(node)]
    return own[0] if len(own) == 1 else None


def swap_mask(segmentation: slicer.vtkMRMLSegmentationNode) -> None:
    """From the filled mask to the image under it, and back."""
    show_outline(segmentation, not is_outlined(segmentation))


def swap_scan(segmentation: slicer.vtkMRMLSegmentationNode) -> bool:
    """From the user's scan to the image, and back; False where there is nothing to change to."""
    if _is_users(shown_background()):
        return show_image(segmentation)
    return show_scan(segmentation)


def _is_users(node: slicer.vtkMRMLNode | None) -> bool:
    return (
        node is not None
        and node.IsA("vtkMRMLScalarVolumeNode")
        and not node.IsA("vtkMRMLLabelMapVolumeNode")
        and not volumes.is_synthetic(node)
        and not volumes.is_sheet(node)
        and not node.GetHideFromEditors()
    )


def _show(node: slicer.vtkMRMLScalarVolumeNode | None, segmentation: slicer.vtkMRMLSegmentationNode) -> bool:
    if node is None:
        return False
    show_background(node, fit=False)
    show_outline(segmentation, True)
    return True
