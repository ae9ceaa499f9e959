"""How does a volume lie in the scene? A generated one with display, folder and mark, a blank one to paint over."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import slicer
from slicer.i18n import tr as _

from MedDPMLib.imaging.io import SYNTHETIC
from MedDPMLib.imaging.volume import Volume
from MedDPMLib.scene.images import volume_from_node
from MedDPMLib.scene.segmentation import reference_geometry

#: Attribute "1" of every generated volume.
SYNTHETIC_ATTRIBUTE = "MedDPM.synthetic"
#: Attribute with the record of how it was made, JSON.
RECORD_ATTRIBUTE = "MedDPM.record"
#: Node reference to the segmentation it was made from.
SEGMENTATION_ROLE = "MedDPM.segmentation"

#: Attribute "1" of the blank volumes that segmentations are painted over.
_SHEET_ATTRIBUTE = "MedDPM.sheet"

#: Attribute of the subject hierarchy's folders that hold results.
_FOLDER_ATTRIBUTE = "MedDPM.results"

#: Of the voxels that are not background, the part (percent) that is as bright as the display's white or brighter.
_WHITE = 0.5


def result_name(segmentation_name: str, modality: str, seed: int) -> str:
    """What a result is called: after the segmentation and the modality, synthetic for all to see."""
    text = _("{segmentation} {modality} (synthetic, seed {seed})")
    return text.format(segmentation=segmentation_name, modality=modality, seed=seed)


def add_volume(
    volume: Volume, name: str, segmentation: slicer.vtkMRMLSegmentationNode | None, *, window: tuple[float, float]
) -> slicer.vtkMRMLScalarVolumeNode:
    """A new volume node exactly where ``volume`` lies, marked as synthetic, in the folder beside ``segmentation``.

    ``window`` is what is shown as black and as white.
    """
    node = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLScalarVolumeNode", slicer.mrmlScene.GenerateUniqueName(name))
    node.SetAttribute(SYNTHETIC_ATTRIBUTE, "1")
    node.SetDescription(SYNTHETIC)
    # Before the voxels come: Slicer would look through all of them for a window of its own.
    node.CreateDefaultDisplayNodes()
    node.GetDisplayNode().SetAndObserveColorNodeID("vtkMRMLColorTableNodeGrey")
    set_window(node, window)
    update_volume(node, volume)
    if segmentation is not None:
        node.SetNodeReferenceID(SEGMENTATION_ROLE, segmentation.GetID())
        hierarchy = _hierarchy()
        hierarchy.SetItemParent(hierarchy.GetItemByDataNode(node), _results_folder(segmentation, node))
    return node


def update_volume(node: slicer.vtkMRMLScalarVolumeNode, volume: Volume) -> None:
    """Puts ``volume`` into ``node``: one event for the views, display and window left as they are."""
    with slicer.util.NodeModify(node):
        node.SetIJKToRASMatrix(slicer.util.vtkMatrixFromArray(volume.geometry.ijk_to_ras))
        image = node.GetImageData()
        fits = image is not None and image.GetDimensions() == volume.geometry.size
        if fits and slicer.util.arrayFromVolume(node).dtype == volume.array.dtype:
            slicer.util.arrayFromVolume(node)[:] = volume.array
            slicer.util.arrayFromVolumeModified(node)
        else:
            slicer.util.updateVolumeFromArray(node, volume.array)


def set_window(node: slicer.vtkMRMLScalarVolumeNode, window: tuple[float, float]) -> None:
    """Shows ``window`` (black, white), whatever comes into the volume later."""
    display = node.GetDisplayNode()
    display.SetAutoWindowLevel(False)
    display.SetWindowLevelMinMax(*map(float, window))


def fitting_window(volume: Volume, background: float) -> tuple[float, float]:
    """Black at ``background``, white where only the brightest voxels of the rest are."""
    foreground = volume.array[volume.array > background + 1e-3 * abs(float(volume.array.max()) - background)]
    white = float(np.percentile(foreground, 100 - _WHITE)) if foreground.size else background
    return background, max(white, background + 1e-6)


def set_record(node: slicer.vtkMRMLScalarVolumeNode, record: dict[str, Any]) -> None:
    """Keeps the ``record`` of how the volume was made in its node, and so in the saved scene."""
    node.SetAttribute(RECORD_ATTRIBUTE, json.dumps(record))


def record_of(node: slicer.vtkMRMLVolumeNode) -> dict[str, Any] | None:
    """The record of a generated volume; None for any other, and for one that is still forming."""
    text = node.GetAttribute(RECORD_ATTRIBUTE)
    return json.loads(text) if text else None


def is_synthetic(node: slicer.vtkMRMLNode | None) -> bool:
    return node is not None and node.GetAttribute(SYNTHETIC_ATTRIBUTE) == "1"


def results() -> list[slicer.vtkMRMLScalarVolumeNode]:
    """The generated volumes in the scene, in the order in which they were made."""
    return [node for node in slicer.util.getNodesByClass("vtkMRMLScalarVolumeNode") if is_synthetic(node)]


def result_volume(node: slicer.vtkMRMLScalarVolumeNode) -> Volume:
    """A copy of a result's voxels and its place: what is written to a file."""
    volume = volume_from_node(node)
    return Volume(volume.array.copy(), volume.geometry)


def add_sheet(segmentation: slicer.vtkMRMLSegmentationNode) -> slicer.vtkMRMLScalarVolumeNode:
    """A blank volume on the reference geometry of ``segmentation``, whose source volume it becomes.

    Slicer's Segment Editor paints over a volume only. Raises :class:`MedDPMError` without a reference geometry.
    """
    geometry = reference_geometry(segmentation)
    name = _("{segmentation} (blank)").format(segmentation=segmentation.GetName())
    node = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLScalarVolumeNode", slicer.mrmlScene.GenerateUniqueName(name))
    node.SetAttribute(_SHEET_ATTRIBUTE, "1")
    node.CreateDefaultDisplayNodes()
    node.GetDisplayNode().SetAndObserveColorNodeID("vtkMRMLColorTableNodeGrey")
    set_window(node, (0, 1))
    slicer.util.updateVolumeFromArray(node, np.zeros(geometry.shape, np.uint8))
    node.SetIJKToRASMatrix(slicer.util.vtkMatrixFromArray(geometry.ijk_to_ras))
    node.SetAndObserveTransformNodeID(segmentation.GetTransformNodeID())
    segmentation.SetReferenceImageGeometryParameterFromVolumeNode(node)
    hierarchy = _hierarchy()
    parent = hierarchy.GetItemParent(hierarchy.GetItemByDataNode(segmentation)) or hierarchy.GetSceneItemID()
    hierarchy.SetItemParent(hierarchy.GetItemByDataNode(node), parent)
    return node


def sheet_of(segmentation: slicer.vtkMRMLSegmentationNode) -> slicer.vtkMRMLScalarVolumeNode | None:
    """The blank volume that :func:`add_sheet` made for ``segmentation``, if it is still there."""
    node = segmentation.GetNodeReference(segmentation.GetReferenceImageGeometryReferenceRole())
    return node if node is not None and node.GetAttribute(_SHEET_ATTRIBUTE) == "1" else None


def results_of(segmentation: slicer.vtkMRMLSegmentationNode) -> list[slicer.vtkMRMLScalarVolumeNode]:
    """The finished volumes made from ``segmentation``, in the order in which they were made."""
    found = (node for node in results() if node.GetNodeReference(SEGMENTATION_ROLE) is segmentation)
    return [node for node in found if node.GetAttribute(RECORD_ATTRIBUTE)]


def remove_result(node: slicer.vtkMRMLScalarVolumeNode) -> None:
    """Takes a result out of the scene with everything that is its alone, and its folder with the last one."""
    hierarchy = _hierarchy()
    folder = hierarchy.GetItemParent(hierarchy.GetItemByDataNode(node))
    for owned in [*(node.GetNthDisplayNode(i) for i in range(node.GetNumberOfDisplayNodes())), node.GetStorageNode()]:
        if owned is not None:
            slicer.mrmlScene.RemoveNode(owned)
    slicer.mrmlScene.RemoveNode(node)
    if hierarchy.HasItemAttribute(folder, _FOLDER_ATTRIBUTE) and not hierarchy.GetNumberOfItemChildren(folder):
        hierarchy.RemoveItem(folder)


def _hierarchy() -> slicer.vtkMRMLSubjectHierarchyNode:
    return slicer.vtkMRMLSubjectHierarchyNode.GetSubjectHierarchyNode(slicer.mrmlScene)


def _results_folder(segmentation: slicer.vtkMRMLSegmentationNode, newcomer: slicer.vtkMRMLNode) -> int:
    """The folder where other results of ``segmentation`` lie, or a new one beside it."""
    hierarchy = _hierarchy()
    for node in results():
        if node is not newcomer and node.GetNodeReference(SEGMENTATION_ROLE) is segmentation:
            folder = hierarchy.GetItemParent(hierarchy.GetItemByDataNode(node))
            if hierarchy.HasItemAttribute(folder, _FOLDER_ATTRIBUTE):
                return folder
    parent = hierarchy.GetItemParent(hierarchy.GetItemByDataNode(segmentation)) or hierarchy.GetSceneItemID()
    name = _("{segmentation} (synthetic)").format(segmentation=segmentation.GetName())
    folder = hierarchy.CreateFolderItem(parent, name)
    hierarchy.SetItemAttribute(folder, _FOLDER_ATTRIBUTE, "1")
    return folder
