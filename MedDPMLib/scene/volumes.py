"""How is a volume kept in the scene? A generated one with display, folder and mark, a blank one to paint over."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
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

#: Attribute of a generated volume: its modality and seed in a few words.
_CAPTION_ATTRIBUTE = "MedDPM.caption"
#: Attribute of a generated volume: its modality.
MODALITY_ATTRIBUTE = "MedDPM.modality"

#: Attribute "1" of the blank volumes that segmentations are painted over.
_SHEET_ATTRIBUTE = "MedDPM.sheet"
#: Node reference of a segmentation to its blank volume.
_SHEET_ROLE = "MedDPM.sheet"

_REFERENCE_GEOMETRY = slicer.vtkSegmentationConverter.GetReferenceImageGeometryParameterName()

#: Attribute of the subject hierarchy's folders that hold results.
_FOLDER_ATTRIBUTE = "MedDPM.results"

#: The part of a record that determines what a volume looks like (:func:`MedDPMLib.inference.record.describe_run`).
_DECISIVE = (
    "model", "mask", "seed", "sampler", "steps", "guidance", "precision", "device", "space", "memory",
)  # fmt: skip

#: Of the voxels that are not background, the percentage that is as bright as the display's white or brighter.
_WHITE = 0.5


def result_name(segmentation_name: str, modality: str, seed: int, number: int = 1) -> str:
    """What a result is called: modality and seed first, because Slicer shortens names in the middle, synthetic for all
    to see, and the segmentation last. ``number`` counts the runs that have segmentation and seed in common."""
    text = _("{modality} (synthetic, seed {seed}) {segmentation}")
    name = text.format(segmentation=segmentation_name, modality=modality.upper(), seed=seed)
    return name if number == 1 else f"{name} ({number})"


def is_result_name(name: str) -> bool:
    """Whether a file is called as 3D Slicer calls the file of a result that it saves itself, without a mark in it."""
    return re.search(r"\(synthetic,? (seed|forming)", name) is not None


def free_number(segmentation_name: str, modalities: Iterable[str], seed: int) -> int:
    """The first number of a run for which no node is called :func:`result_name`, in any of its ``modalities``."""
    number, names = 1, list(modalities)
    while any(_is_taken(result_name(segmentation_name, modality, seed, number)) for modality in names):
        number += 1
    return number


def forming_name(segmentation_name: str, modality: str) -> str:
    """What the volume is called in which an image forms."""
    return _("{modality} (synthetic, forming) {segmentation}").format(
        segmentation=segmentation_name, modality=modality.upper()
    )


def _is_taken(name: str) -> bool:
    return slicer.mrmlScene.GetFirstNodeByName(name) is not None


def _unique(name: str) -> str:
    """``name`` if no node is called so; the scene's own counter also counts removed nodes."""
    return slicer.mrmlScene.GenerateUniqueName(name) if _is_taken(name) else name


def add_volume(
    volume: Volume,
    name: str,
    segmentation: slicer.vtkMRMLSegmentationNode | None,
    *,
    window: tuple[float, float],
    modality: str = "",
    caption: str = "",
) -> slicer.vtkMRMLScalarVolumeNode:
    """A new volume node exactly where ``volume`` lies, marked as synthetic, in the folder beside ``segmentation``.

    ``window`` is what is shown as black and as white, ``caption`` what the views say beside the mark.
    """
    node = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLScalarVolumeNode", _unique(name))
    node.SetAttribute(SYNTHETIC_ATTRIBUTE, "1")
    node.SetAttribute(MODALITY_ATTRIBUTE, modality)
    node.SetAttribute(_CAPTION_ATTRIBUTE, caption)
    node.SetDescription(SYNTHETIC)
    # Before the voxels are set: Slicer would search all of them for a window of its own.
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
    """Shows ``window`` (black, white), whatever voxels follow."""
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
    if "modality" in record:
        node.SetAttribute(MODALITY_ATTRIBUTE, record["modality"])
        node.SetAttribute(_CAPTION_ATTRIBUTE, caption(record["modality"], record.get("seed")))


def caption(modality: str, seed: int | None = None) -> str:
    """The text of a view on a generated volume, next to the mark: "FLAIR, seed 12", "FLAIR, forming"."""
    if seed is None:
        return _("{modality}, forming").format(modality=modality.upper())
    return _("{modality}, seed {seed}").format(modality=modality.upper(), seed=seed)


def caption_of(node: slicer.vtkMRMLVolumeNode) -> str:
    """The :func:`caption` of a generated volume; empty if nothing is known about it."""
    said = node.GetAttribute(_CAPTION_ATTRIBUTE)
    record = record_of(node) if not said else None
    return caption(record["modality"], record.get("seed")) if record and "modality" in record else said or ""


def modality_of(node: slicer.vtkMRMLNode | None) -> str | None:
    """The modality of a generated volume, finished or forming; None for any other node."""
    if not is_synthetic(node):
        return None
    return node.GetAttribute(MODALITY_ATTRIBUTE) or (record_of(node) or {}).get("modality")


def record_of(node: slicer.vtkMRMLVolumeNode) -> dict[str, Any] | None:
    """The record of a generated volume; None for any other, and for one that is still forming."""
    text = node.GetAttribute(RECORD_ATTRIBUTE)
    return json.loads(text) if text else None


def is_synthetic(node: slicer.vtkMRMLNode | None) -> bool:
    return node is not None and node.GetAttribute(SYNTHETIC_ATTRIBUTE) == "1"


def results() -> list[slicer.vtkMRMLScalarVolumeNode]:
    """The generated volumes in the scene, in the order in which they were made."""
    return [node for node in slicer.util.getNodesByClass("vtkMRMLScalarVolumeNode") if is_synthetic(node)]


def runs() -> list[list[slicer.vtkMRMLScalarVolumeNode]]:
    """The finished volumes of the scene, those of one mask and seed together, the newest first."""
    found: dict[tuple, list[slicer.vtkMRMLScalarVolumeNode]] = {}
    for node in results():
        record = record_of(node)
        if record is not None and node.GetImageData() is not None:
            decisive = json.dumps([record.get(name) for name in _DECISIVE], sort_keys=True)
            found.setdefault((node.GetNodeReferenceID(SEGMENTATION_ROLE), decisive), []).append(node)
    # Of two created in the same second, the later one.
    newest = sorted(enumerate(found.values()), key=lambda pair: (_created(pair[1]), pair[0]), reverse=True)
    return [nodes for _number, nodes in newest]


def _created(nodes: list[slicer.vtkMRMLScalarVolumeNode]) -> str:
    return max(str(record_of(node).get("created", "")) for node in nodes)


def same_result(
    segmentation: slicer.vtkMRMLSegmentationNode | None, modality: str, record: Mapping[str, Any]
) -> slicer.vtkMRMLScalarVolumeNode | None:
    """The result of that mask, seed and settings that is in the scene already: it looks the same to the voxel."""
    for node in results():
        before = record_of(node)
        if (
            before is not None
            and node.GetNodeReference(SEGMENTATION_ROLE) is segmentation
            and before.get("modality") == modality
            and all(before.get(name) == record.get(name) for name in _DECISIVE)
        ):
            return node
    return None


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
    segmentation.SetNodeReferenceID(_SHEET_ROLE, node.GetID())
    hierarchy = _hierarchy()
    parent = hierarchy.GetItemParent(hierarchy.GetItemByDataNode(segmentation)) or hierarchy.GetSceneItemID()
    hierarchy.SetItemParent(hierarchy.GetItemByDataNode(node), parent)
    return node


def sheet_of(segmentation: slicer.vtkMRMLSegmentationNode) -> slicer.vtkMRMLScalarVolumeNode | None:
    """The blank volume that :func:`add_sheet` made for ``segmentation``, if it is still there."""
    for role in (_SHEET_ROLE, segmentation.GetReferenceImageGeometryReferenceRole()):
        node = segmentation.GetNodeReference(role)
        if is_sheet(node):
            return node
    return None


def is_sheet(node: slicer.vtkMRMLNode | None) -> bool:
    """Whether ``node`` is a blank volume to paint over."""
    return node is not None and node.GetAttribute(_SHEET_ATTRIBUTE) == "1"


def paint_over(segmentation: slicer.vtkMRMLSegmentationNode, node: slicer.vtkMRMLVolumeNode) -> None:
    """Makes ``node`` what the Segment Editor module paints ``segmentation`` over; its voxels stay where they are.

    An empty segmentation gets its voxels from ``node``, as by the editor's first stroke.
    """
    core = segmentation.GetSegmentation()
    if not core.GetConversionParameter(_REFERENCE_GEOMETRY) and not core.DetermineCommonLabelmapGeometry(0, None):
        segmentation.SetReferenceImageGeometryParameterFromVolumeNode(node)
    segmentation.SetNodeReferenceID(segmentation.GetReferenceImageGeometryReferenceRole(), node.GetID())


def results_of(segmentation: slicer.vtkMRMLSegmentationNode) -> list[slicer.vtkMRMLScalarVolumeNode]:
    """The finished volumes made from ``segmentation``, the newest run first."""
    return [node for run in runs() for node in run if node.GetNodeReference(SEGMENTATION_ROLE) is segmentation]


def result_to_show(
    segmentation: slicer.vtkMRMLSegmentationNode, modality: str | None
) -> slicer.vtkMRMLScalarVolumeNode | None:
    """The newest result of ``segmentation``, in ``modality`` if its run has that."""
    for run in runs():
        own = [node for node in run if node.GetNodeReference(SEGMENTATION_ROLE) is segmentation]
        if own:
            return next((node for node in own if modality_of(node) == modality), own[0])
    return None


def remove_result(node: slicer.vtkMRMLScalarVolumeNode) -> None:
    """Removes a result with everything that belongs to it alone, and its folder with the last one."""
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
