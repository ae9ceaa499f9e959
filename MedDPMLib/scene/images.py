"""How do VTK's matrices and images become arrays and geometries, and back?"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import slicer
import vtk
from vtk.util.numpy_support import numpy_to_vtk, vtk_to_numpy

from MedDPMLib.imaging.geometry import Geometry
from MedDPMLib.imaging.volume import Volume


def image_geometry(image: slicer.vtkOrientedImageData) -> Geometry:
    """Where the voxels of ``image`` lie. Its extent may start anywhere; a geometry's indices start at 0."""
    matrix = vtk.vtkMatrix4x4()
    image.GetImageToWorldMatrix(matrix)
    return extent_geometry(slicer.util.arrayFromVTKMatrix(matrix), image.GetExtent())


def extent_geometry(matrix: np.ndarray, extent: tuple[int, ...]) -> Geometry:
    """The geometry of the voxels ``extent`` (i, j, k: first and last) of the lattice ``matrix`` (4 x 4)."""
    first = np.array(extent[0::2])
    shifted = np.array(matrix, dtype=np.float64)
    shifted[:3, 3] += shifted[:3, :3] @ first
    return Geometry(tuple(int(n) for n in np.array(extent[1::2]) - first + 1), shifted)


def image_array(image: slicer.vtkOrientedImageData) -> np.ndarray:
    """The voxels (k, j, i) of ``image``, not copied."""
    return vtk_to_numpy(image.GetPointData().GetScalars()).reshape(image.GetDimensions()[::-1])


def empty_image(lattice: Geometry, first: Sequence[int] = (0, 0, 0), size: Sequence[int] | None = None):
    """A vtkOrientedImageData without voxels on ``lattice``: ``size`` (i, j, k) of them from index ``first``."""
    image = slicer.vtkOrientedImageData()
    size = lattice.size if size is None else size
    image.SetExtent([end for low, n in zip(first, size, strict=True) for end in (int(low), int(low) + int(n) - 1)])
    image.SetImageToWorldMatrix(slicer.util.vtkMatrixFromArray(lattice.ijk_to_ras))
    return image


def oriented_image(voxels: np.ndarray, lattice: Geometry, first: Sequence[int] = (0, 0, 0)):
    """A vtkOrientedImageData of ``voxels`` (k, j, i; copied), the first at index ``first`` (i, j, k) of ``lattice``."""
    image = empty_image(lattice, first, voxels.shape[::-1])
    image.GetPointData().SetScalars(numpy_to_vtk(np.ascontiguousarray(voxels).ravel(), deep=True))
    return image


def world_matrix(node: slicer.vtkMRMLTransformableNode) -> np.ndarray | None:
    """The 4 x 4 matrix from the node's own coordinates to RAS; None if its parent transform is not linear."""
    transform = node.GetParentTransformNode()
    if transform is None:
        return np.eye(4)
    if not transform.IsTransformToWorldLinear():
        return None
    matrix = vtk.vtkMatrix4x4()
    transform.GetMatrixTransformToWorld(matrix)
    return slicer.util.arrayFromVTKMatrix(matrix)


def volume_from_node(node: slicer.vtkMRMLScalarVolumeNode) -> Volume:
    """The voxels (not copied) of a volume node, in RAS. A parent transform that is not linear is ignored."""
    matrix = vtk.vtkMatrix4x4()
    node.GetIJKToRASMatrix(matrix)
    array = slicer.util.arrayFromVolume(node)
    to_world = world_matrix(node)
    if to_world is None:
        to_world = np.eye(4)
    return Volume(array, Geometry(array.shape[::-1], to_world @ slicer.util.arrayFromVTKMatrix(matrix)))
