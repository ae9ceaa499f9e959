"""What does the 3-D view show? The tumor of a mask in its translucent brain: small surfaces that are computed quickly.

Slicer's own surfaces of a segmentation ("Show 3D") are all made again with every stroke, which takes seconds. These
follow when painting pauses.
"""

from __future__ import annotations

from functools import partial

import numpy as np
import slicer
import vtk
from slicer.i18n import tr as _
from vtk.util.numpy_support import numpy_to_vtk

from MedDPMLib.errors import MedDPMError
from MedDPMLib.imaging.geometry import Geometry
from MedDPMLib.imaging.volume import Volume
from MedDPMLib.scene.background_work import Work
from MedDPMLib.scene.images import image_array, image_geometry
from MedDPMLib.scene.segmentation import reference_geometry, tumor_segments

#: Attribute of a surface: the ID of the segmentation that it belongs to.
_SURFACE_ATTRIBUTE = "MedDPM.surface"
#: Attribute of a surface: the ID of the segment that it encloses, of the brain this.
_SEGMENT_ATTRIBUTE, _BRAIN = "MedDPM.surfaceSegment", "MedDPM.brain"

#: Millimeters between the points from which the surfaces of brain and tumor are made.
_BRAIN_SPACING, _TUMOR_SPACING = 3.0, 1.5

_BRAIN_COLOR, _BRAIN_OPACITY = (0.85, 0.8, 0.75), 0.2
_TUMOR_OPACITY = 0.6

_CLOSED_SURFACE = slicer.vtkSegmentationConverter.GetClosedSurfaceRepresentationName()


def showing(segmentation: slicer.vtkMRMLSegmentationNode, *, brain: bool = True) -> Work:
    """The work of showing the surfaces of ``segmentation``, step by step: of its tumor's segments, and of all that is
    painted (``brain``), which a stroke hardly changes."""
    new = not surfaces()
    for id_ in tumor_segments(segmentation):
        if not _in_scene(segmentation):
            return  # it was removed in the meantime
        segment = segmentation.GetSegmentation().GetSegment(id_)
        if segment is None:
            continue
        layers = _layers(segmentation, [id_])
        value, name, color = segment.GetLabelValue(), segment.GetName(), segment.GetColor()
        part = yield partial(_part, layers, value, _TUMOR_SPACING)
        if not _in_scene(segmentation):
            return
        _show(segmentation, id_, part, name, color, _TUMOR_OPACITY)
        yield
    if brain:
        try:
            whole = reference_geometry(segmentation)
        except MedDPMError:  # painted as surfaces
            whole = None
        if whole is not None:
            layers = _layers(segmentation, segmentation.GetSegmentation().GetSegmentIDs())
            part = yield partial(_union, layers, whole, _BRAIN_SPACING)
            if not _in_scene(segmentation):
                return
            _show(segmentation, _BRAIN, part, _("Brain"), _BRAIN_COLOR, _BRAIN_OPACITY)
    layout = slicer.app.layoutManager()
    if new and layout is not None and layout.threeDViewCount:
        layout.threeDWidget(0).threeDView().resetFocalPoint()


def has_brain(segmentation: slicer.vtkMRMLSegmentationNode) -> bool:
    """Whether the surface of the brain of ``segmentation`` has been made."""
    return bool(_found(segmentation, _BRAIN))


def replace_slow_surfaces(segmentation: slicer.vtkMRMLSegmentationNode) -> bool:
    """Removes Slicer's own surfaces from a ``segmentation`` that is painted in voxels; whether there were any."""
    core = segmentation.GetSegmentation()
    painted = core.GetSourceRepresentationName() != _CLOSED_SURFACE
    if not painted or not core.ContainsRepresentation(_CLOSED_SURFACE):
        return False
    core.RemoveRepresentation(_CLOSED_SURFACE)
    return True


def surfaces() -> list[slicer.vtkMRMLModelNode]:
    """All surfaces that were made here."""
    nodes = slicer.util.getNodesByClass("vtkMRMLModelNode")
    return [node for node in nodes if node.GetAttribute(_SURFACE_ATTRIBUTE)]


def show_surfaces_of(segmentation: slicer.vtkMRMLSegmentationNode | None) -> None:
    """Shows the surfaces of ``segmentation`` (None: of no segmentation) alone; removes those whose mask was removed."""
    for node in surfaces():
        owner = slicer.mrmlScene.GetNodeByID(node.GetAttribute(_SURFACE_ATTRIBUTE))
        if owner is None:
            slicer.mrmlScene.RemoveNode(node.GetDisplayNode())
            slicer.mrmlScene.RemoveNode(node)
        else:
            node.GetDisplayNode().SetVisibility(owner is segmentation)


def _in_scene(node: slicer.vtkMRMLNode) -> bool:
    return slicer.mrmlScene.GetNodeByID(node.GetID() or "") is node


def _layers(segmentation: slicer.vtkMRMLSegmentationNode, ids) -> list[Volume]:
    """Copies of the images that hold the segments ``ids``, each once, in the segmentation's own coordinates."""
    found = {}
    for id_ in ids:
        layer = segmentation.GetBinaryLabelmapInternalRepresentation(id_)
        if layer is not None and not layer.IsEmpty() and layer.GetPointData().GetScalars() is not None:
            found[layer] = id_
    return [Volume(image_array(layer).copy(), image_geometry(layer)) for layer in found]


def _part(layers: list[Volume], value: int, spacing: float) -> Volume | None:
    return _thinned(layers[0].array == value, layers[0].geometry, spacing) if layers else None


def _union(layers: list[Volume], whole: Geometry, spacing: float) -> Volume | None:
    """Where any of ``layers`` is painted, on the lattice ``whole``; what lies on another lattice is left out."""
    inside = np.zeros(whole.shape, bool)
    for layer in layers:
        matrix = whole.ras_to_ijk @ layer.geometry.ijk_to_ras
        if np.abs(matrix[:3, :3] - np.eye(3)).max() > 1e-3:
            continue
        first = np.round(matrix[:3, 3]).astype(int)[::-1]
        low, high = np.maximum(first, 0), np.minimum(first + layer.array.shape, inside.shape)
        if (low < high).all():
            inside[tuple(map(slice, low, high))] |= layer.array[tuple(map(slice, low - first, high - first))] != 0
    return _thinned(inside, whole, spacing)


def _thinned(inside: np.ndarray, geometry: Geometry, spacing: float) -> Volume | None:
    """How much of each block of voxels is ``inside``, from 0 to 1, with a margin of 0; None where nothing is."""
    found = np.nonzero(inside)
    if not len(found[0]):
        return None
    step = np.maximum(1, np.round(spacing / geometry.spacing).astype(int))[::-1]  # k, j, i
    first = np.array([axis.min() for axis in found]) - step
    size = np.array([axis.max() for axis in found]) + 1 + step - first
    blocks = -(-size // step)
    array = np.zeros(blocks * step, np.float32)
    here = tuple(slice(max(0, a), min(a + n, m)) for a, n, m in zip(first, size, inside.shape, strict=True))
    there = tuple(slice(h.start - a, h.stop - a) for h, a in zip(here, first, strict=True))
    array[there] = inside[here]
    parts = [length for pair in zip(blocks, step, strict=True) for length in pair]
    mean = array.reshape(parts).mean(axis=(1, 3, 5))
    # The middle of the first block, and steps of a block.
    matrix = geometry.ijk_to_ras.copy()
    matrix[:3, 3] += matrix[:3, :3] @ (first + (step - 1) / 2)[::-1]
    matrix[:3, :3] = matrix[:3, :3] * step[::-1]
    return Volume(mean, Geometry(mean.shape[::-1], matrix))


def _found(segmentation: slicer.vtkMRMLSegmentationNode, segment_id: str) -> list[slicer.vtkMRMLModelNode]:
    key = (segmentation.GetID(), segment_id)
    return [n for n in surfaces() if (n.GetAttribute(_SURFACE_ATTRIBUTE), n.GetAttribute(_SEGMENT_ATTRIBUTE)) == key]


def _show(
    segmentation: slicer.vtkMRMLSegmentationNode,
    segment_id: str,
    part: Volume | None,
    name: str,
    color: tuple[float, float, float],
    opacity: float,
) -> None:
    """Puts the surface of ``part`` into the node for it, which is made if it is not there yet."""
    found = _found(segmentation, segment_id)
    if found:
        found[0].SetAndObserveMesh(_surface(part))
        return
    if part is None:
        return
    node = slicer.mrmlScene.CreateNodeByClass("vtkMRMLModelNode")
    node.UnRegister(None)
    node.SetName(_("{name} surface").format(name=name))
    node.SetHideFromEditors(True)
    node.SetSaveWithScene(False)
    node.SetSelectable(False)
    node.SetAttribute(_SURFACE_ATTRIBUTE, segmentation.GetID())
    node.SetAttribute(_SEGMENT_ATTRIBUTE, segment_id)
    node = slicer.mrmlScene.AddNode(node)
    node.SetAndObserveMesh(_surface(part))
    node.SetAndObserveTransformNodeID(segmentation.GetTransformNodeID())
    node.CreateDefaultDisplayNodes()
    display = node.GetDisplayNode()
    display.SetSaveWithScene(False)
    display.SetVisibility2D(False)
    display.SetColor(*color)
    display.SetOpacity(opacity)


def _surface(part: Volume | None) -> vtk.vtkPolyData:
    """The surface where ``part`` is one half, where its geometry lies."""
    if part is None:
        return vtk.vtkPolyData()
    image = vtk.vtkImageData()
    image.SetDimensions(part.geometry.size)
    image.GetPointData().SetScalars(numpy_to_vtk(part.array.ravel(), deep=True))
    edges = vtk.vtkFlyingEdges3D()
    edges.SetInputData(image)
    edges.SetValue(0, 0.5)
    edges.ComputeNormalsOn()  # from the gradient: much cheaper than from the polygons
    edges.ComputeScalarsOff()
    transform = vtk.vtkTransform()
    transform.SetMatrix(slicer.util.vtkMatrixFromArray(part.geometry.ijk_to_ras))
    placed = vtk.vtkTransformPolyDataFilter()
    placed.SetTransform(transform)
    placed.SetInputConnection(edges.GetOutputPort())
    placed.Update()
    return placed.GetOutput()
