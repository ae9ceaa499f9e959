"""How are results compared? Side by side in linked views, from the slice that is looked at and back to it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import slicer
import vtk

from MedDPMLib.scene.background_work import Work
from MedDPMLib.scene.views import (
    COMPARED,
    FIRST_LAYOUT,
    MOST_COMPARED,
    comparison_shown,
    own_slice_nodes,
    shown_slice_nodes,
)

#: Orientations in which results can be compared, as Slicer calls them.
ORIENTATIONS = ("Axial", "Sagittal", "Coronal")


@dataclass(frozen=True)
class _Pose:
    """Where a slice view was."""

    node_id: str
    slice_to_ras: vtk.vtkMatrix4x4
    field_of_view: tuple[float, float, float]
    origin: tuple[float, float, float]

    @classmethod
    def of(cls, node: slicer.vtkMRMLSliceNode) -> _Pose:
        matrix = vtk.vtkMatrix4x4()
        matrix.DeepCopy(node.GetSliceToRAS())
        return cls(node.GetID(), matrix, tuple(node.GetFieldOfView()), tuple(node.GetXYZOrigin()))

    def restore(self) -> slicer.vtkMRMLSliceNode | None:
        node = slicer.mrmlScene.GetNodeByID(self.node_id)
        if node is not None:
            node.GetSliceToRAS().DeepCopy(self.slice_to_ras)
            node.SetFieldOfView(*self.field_of_view)
            node.SetXYZOrigin(*self.origin)
            node.UpdateMatrices()
        return node


class Comparison:
    """Two to nine volumes side by side in linked slice views, until :meth:`end` brings the former layout back.

    It opens at the slice that is looked at, and the former views come back at the slice that was looked at in it.
    """

    def __init__(self) -> None:
        self._former: int | None = None
        self._poses: list[_Pose] = []

    @property
    def shown(self) -> bool:
        """Whether the views are those of a comparison; another layout chosen in the application ends it, too."""
        return comparison_shown()

    def showing(self, nodes: Sequence[slicer.vtkMRMLVolumeNode], orientation: str = ORIENTATIONS[0]) -> Work:
        """The work of showing ``nodes``, one view after the other; ``orientation`` is one of :data:`ORIENTATIONS`."""
        if not comparison_shown():
            self._former = slicer.app.layoutManager().layout
            self._poses = [_Pose.of(node) for node in shown_slice_nodes()]
        yield from comparing(nodes, orientation)

    def turn(self, orientation: str) -> None:
        """Shows the compared volumes in another ``orientation``, through the same point."""
        if self.shown:
            names = [node.GetLayoutName() for node in shown_slice_nodes()]
            place = _looked_at(orientation)
            for name in names:
                _orient(name, orientation, place)
            _link(names)

    def end(self) -> None:
        if self.shown:
            compared = shown_slice_nodes()[0]
            orientation, place = compared.GetOrientation(), _center(compared)
            # None where a scene was saved in a comparison.
            slicer.app.layoutManager().setLayout(self._former or slicer.vtkMRMLLayoutNode.SlicerLayoutFourUpView)
            for pose in self._poses:
                node = pose.restore()
                if node is not None and node.GetOrientation() == orientation:
                    node.JumpSliceByOffsetting(*place)
        self._former, self._poses = None, []


def register_layouts() -> None:
    """Makes the layouts known to the application: a scene that was saved in a comparison opens in it."""
    layout = slicer.app.layoutManager()
    if layout is not None:  # else the application has no window
        for count in range(2, MOST_COMPARED + 1):
            names = [f"{COMPARED}{number}" for number in range(1, count + 1)]
            layout.layoutLogic().GetLayoutNode().AddLayoutDescription(FIRST_LAYOUT + count, _side_by_side(names))


def comparing(nodes: Sequence[slicer.vtkMRMLVolumeNode], orientation: str = ORIENTATIONS[0]) -> Work:
    """The work of showing two to nine volumes in linked views of one ``orientation`` side by side, where the views are
    now: first the views, empty, then the volumes one by one.

    A view that is not there yet takes a tenth of a second to make, and each view that comes gives those before it
    another size: with volumes in them all of these would be drawn again.
    """
    layout = slicer.app.layoutManager()
    register_layouts()
    names = [f"{COMPARED}{number}" for number in range(1, len(nodes) + 1)]
    ids = [node.GetID() for node in nodes]
    place = _looked_at(orientation)
    for name in filter(layout.sliceWidget, names):  # from an earlier comparison
        _put(name, None)
    for count in range(2, len(names) + 1):
        if count == len(names) or layout.sliceWidget(names[count - 1]) is None:
            layout.setLayout(FIRST_LAYOUT + count)
            yield
            if not comparison_shown():  # another layout was chosen meanwhile
                return
    for name, id_ in zip(names, ids, strict=True):
        _put(name, id_)
        _orient(name, orientation, place)
        yield
        if not comparison_shown():
            return
    _link(names)


def _put(name: str, volume_id: str | None) -> None:
    """Shows the volume, if it is still there, alone in the view called ``name``."""
    composite = slicer.app.layoutManager().sliceWidget(name).mrmlSliceCompositeNode()
    # One at a time: with linked control what is done to one view would go to all of them.
    composite.SetLinkedControl(False)
    composite.SetBackgroundVolumeID(volume_id if slicer.mrmlScene.GetNodeByID(volume_id or "") is not None else None)
    composite.SetForegroundVolumeID(None)


def _orient(name: str, orientation: str, place: Sequence[float]) -> None:
    """Shows the view called ``name`` in ``orientation``, at the slice through ``place``; it is not linked then."""
    widget = slicer.app.layoutManager().sliceWidget(name)
    widget.mrmlSliceCompositeNode().SetLinkedControl(False)
    widget.mrmlSliceNode().SetOrientation(orientation)
    widget.sliceLogic().FitSliceToBackground()
    widget.mrmlSliceNode().JumpSliceByOffsetting(*place)


def _link(names: Sequence[str]) -> None:
    for name in names:
        slicer.app.layoutManager().sliceWidget(name).mrmlSliceCompositeNode().SetLinkedControl(True)


def _looked_at(orientation: str) -> tuple[float, float, float]:
    """A point (RAS, mm) of the slice of ``orientation`` that is looked at, or of any if none has it."""
    nodes = shown_slice_nodes() or own_slice_nodes()
    nodes.sort(key=lambda node: node.GetOrientation() != orientation)
    return _center(nodes[0]) if nodes else (0.0, 0.0, 0.0)


def _center(node: slicer.vtkMRMLSliceNode) -> tuple[float, float, float]:
    return tuple(node.GetSliceToRAS().GetElement(row, 3) for row in range(3))


def _side_by_side(names: Sequence[str]) -> str:
    views = "".join(
        f'<item><view class="vtkMRMLSliceNode" singletontag="{name}"><property name="orientation" action="default">'
        f'Axial</property><property name="viewlabel" action="default">{name[-1]}</property></view></item>'
        for name in names
    )
    columns = 3 if len(names) > 4 else 2
    rows = [views.split("<item>")[1:][start : start + columns] for start in range(0, len(names), columns)]
    lines = ("".join(f"<item>{view}" for view in row) for row in rows)
    body = "".join(f'<item><layout type="horizontal">{line}</layout></item>' for line in lines)
    return f'<layout type="vertical">{body}</layout>'
