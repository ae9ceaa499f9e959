"""What does the 3-D view show? The tumor of a mask in its translucent brain: small surfaces that are computed quickly.

Slicer's own surfaces of a segmentation are all made again with every stroke, which takes seconds.
"""

from __future__ import annotations

from functools import partial

import numpy as np
import slicer
import vtk
from slicer.i18n import tr as _
from vtk.util.numpy_support import numpy_to_vtk

from MedDPMLib.imaging.geometry import Geometry
from MedDPMLib.imaging.volume import Volume
from MedDPMLib.masks.numberings import shows_brain
from MedDPMLib.masks.schemes import LabelScheme
from MedDPMLib.scene.background_work import Work

#: Attribute of a surface: the ID of the segmentation that it belongs to.
_SURFACE_ATTRIBUTE = "MedDPM.surface"
#: Attribute of a surface: the value of the label that it encloses, 0 for the brain.
_LABEL_ATTRIBUTE = "MedDPM.surfaceLabel"

#: Millimeters between the points from which the surfaces of brain and tumor are made.
_BRAIN_SPACING, _TUMOR_SPACING = 3.0, 1.5

_BRAIN_COLOR, _BRAIN_OPACITY = (0.85, 0.8, 0.75), 0.2
_TUMOR_OPACITY = 0.6


def showing(segmentation: slicer.vtkMRMLSegmentationNode, labels: Volume, scheme: LabelScheme) -> Work:
    """The work of showing the surfaces of ``labels`` (values of ``scheme``, RAS), as those of ``segmentation``."""
    shown = {}
    masks = {0: (labels.array > 0, _BRAIN_SPACING)}
    masks |= {label.value: (labels.array == label.value, _TUMOR_SPACING) for label in scheme.tumor}
    for value, (inside, spacing) in masks.items():
        shown[value] = yield partial(_thinned, inside, labels.geometry, spacing)
    new = not surfaces()
    for value, part in shown.items():
        if slicer.mrmlScene.GetNodeByID(segmentation.GetID() or "") is not segmentation:
            return  # it was removed in the meantime
        _show(segmentation, value, part, scheme)
        yield
    show_surfaces_of(segmentation)
    layout = slicer.app.layoutManager()
    if new and layout is not None and layout.threeDViewCount:
        layout.threeDWidget(0).threeDView().resetFocalPoint()


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


def _show(segmentation: slicer.vtkMRMLSegmentationNode, value: int, part: Volume | None, scheme: LabelScheme) -> None:
    """Puts the surface of ``part`` into the node for it, which is made if it is not there yet."""
    owner = segmentation.GetID()
    found = [
        node
        for node in surfaces()
        if (node.GetAttribute(_SURFACE_ATTRIBUTE), node.GetAttribute(_LABEL_ATTRIBUTE)) == (owner, str(value))
    ]
    if found:
        found[0].SetAndObserveMesh(_surface(part))
        return
    if part is None:
        return
    label = scheme.label_by_value(value) if value else None
    name = _("{name} surface").format(name=label.name if label else _("Brain") if shows_brain(scheme) else _("Mask"))
    node = slicer.mrmlScene.CreateNodeByClass("vtkMRMLModelNode")
    node.UnRegister(None)
    node.SetName(name)
    node.SetHideFromEditors(True)
    node.SetSaveWithScene(False)
    node.SetSelectable(False)
    node.SetAttribute(_SURFACE_ATTRIBUTE, owner)
    node.SetAttribute(_LABEL_ATTRIBUTE, str(value))
    node = slicer.mrmlScene.AddNode(node)
    node.SetAndObserveMesh(_surface(part))
    node.CreateDefaultDisplayNodes()
    display = node.GetDisplayNode()
    display.SetSaveWithScene(False)
    display.SetVisibility2D(False)
    display.SetColor(*(tuple(part / 255 for part in label.color) if label else _BRAIN_COLOR))
    display.SetOpacity(_TUMOR_OPACITY if label else _BRAIN_OPACITY)


def _surface(part: Volume | None) -> vtk.vtkPolyData:
    """The surface where ``part`` is one half, in RAS."""
    if part is None:
        return vtk.vtkPolyData()
    image = vtk.vtkImageData()
    image.SetDimensions(part.geometry.size)
    image.GetPointData().SetScalars(numpy_to_vtk(part.array.ravel(), deep=True))
    edges = vtk.vtkFlyingEdges3D()
    edges.SetInputData(image)
    edges.SetValue(0, 0.5)
    edges.ComputeNormalsOff()
    edges.ComputeScalarsOff()
    transform = vtk.vtkTransform()
    transform.SetMatrix(slicer.util.vtkMatrixFromArray(part.geometry.ijk_to_ras))
    placed = vtk.vtkTransformPolyDataFilter()
    placed.SetTransform(transform)
    placed.SetInputConnection(edges.GetOutputPort())
    normals = vtk.vtkPolyDataNormals()
    normals.SetInputConnection(placed.GetOutputPort())
    normals.SplittingOff()
    normals.AutoOrientNormalsOn()
    normals.Update()
    return normals.GetOutput()
