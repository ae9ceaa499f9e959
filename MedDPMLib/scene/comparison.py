"""How are results compared? Side by side in linked views, from the slice that is looked at and back to it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import qt
import slicer
import vtk

from MedDPMLib.scene.background_work import Work, run_now
from MedDPMLib.scene.views import COMPARED, FIRST_LAYOUT, comparison_shown, own_slice_nodes, shown_slice_nodes

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
        return self._former is not None and comparison_shown()

    def showing(self, nodes: Sequence[slicer.vtkMRMLVolumeNode], orientation: str = ORIENTATIONS[0]) -> Work:
        """The work of showing ``nodes``, one view after the other; ``orientation`` is one of :data:`ORIENTATIONS`."""
        if not comparison_shown():
            self._former = slicer.app.layoutManager().layout
            self._poses = [_Pose.of(node) for node in shown_slice_nodes()]
        elif self._former is None:  # a scene was saved in a comparison
            self._former = slicer.vtkMRMLLayoutNode.SlicerLayoutFourUpView
        yield from comparing(nodes, orientation)

    def turn(self, orientation: str) -> None:
        """Shows the compared volumes in another ``orientation``, through the same point."""
        if self.shown:
            names = [node.GetLayoutName() for node in shown_slice_nodes()]
            _orient(names, orientation, _looked_at(orientation))

    def end(self) -> None:
        if self.shown:
            compared = shown_slice_nodes()[0]
            orientation, place = compared.GetOrientation(), _center(compared)
            slicer.app.layoutManager().setLayout(self._former)
            for pose in self._poses:
                node = pose.restore()
                if node is not None and node.GetOrientation() == orientation:
                    node.JumpSliceByOffsetting(*place)
        self._former, self._poses = None, []


def compare(nodes: Sequence[slicer.vtkMRMLVolumeNode], orientation: str = ORIENTATIONS[0]) -> None:
    """Shows two to nine volumes in linked views of one ``orientation`` side by side, where the views are now."""
    run_now(comparing(nodes, orientation))


def comparing(nodes: Sequence[slicer.vtkMRMLVolumeNode], orientation: str = ORIENTATIONS[0]) -> Work:
    """The work of :func:`compare`, step by step: a view that is not there yet takes a tenth of a second to make."""
    layout = slicer.app.layoutManager()
    names = [f"{COMPARED}{number}" for number in range(1, len(nodes) + 1)]
    ids = [node.GetID() for node in nodes]
    place = _looked_at(orientation)
    for count in range(2, len(names) + 1):
        if count == len(names) or layout.sliceWidget(names[count - 1]) is None:
            _set_layout(names[:count])
            for name, id_ in zip(names[:count], ids, strict=False):
                composite = layout.sliceWidget(name).mrmlSliceCompositeNode()
                # One at a time: with linked control what is done to one view would go to all of them.
                composite.SetLinkedControl(False)
                composite.SetBackgroundVolumeID(id_ if slicer.mrmlScene.GetNodeByID(id_) is not None else None)
                composite.SetForegroundVolumeID(None)
            yield
            if not comparison_shown():  # another layout was chosen meanwhile
                return
    _orient(names, orientation, place)
    # The layout gives the views their sizes first.
    qt.QTimer.singleShot(0, lambda: _fit(names, place))


def _set_layout(names: Sequence[str]) -> None:
    layout = slicer.app.layoutManager()
    layout_node = layout.layoutLogic().GetLayoutNode()
    identifier = FIRST_LAYOUT + len(names)
    if not layout_node.IsLayoutDescription(identifier):
        layout_node.AddLayoutDescription(identifier, _side_by_side(names))
    layout.setLayout(identifier)


def _orient(names: Sequence[str], orientation: str, place: Sequence[float]) -> None:
    widgets = [slicer.app.layoutManager().sliceWidget(name) for name in names]
    for widget in widgets:
        widget.mrmlSliceCompositeNode().SetLinkedControl(False)
        widget.mrmlSliceNode().SetOrientation(orientation)
    _fit(names, place)
    for widget in widgets:
        widget.mrmlSliceCompositeNode().SetLinkedControl(True)


def _fit(names: Sequence[str], place: Sequence[float]) -> None:
    """Brings the compared volumes into view, at the slice through ``place``."""
    if not comparison_shown():  # ended in the meantime
        return
    layout = slicer.app.layoutManager()
    for name in names:
        widget = layout.sliceWidget(name)
        widget.sliceLogic().FitSliceToBackground()
        widget.mrmlSliceNode().JumpSliceByOffsetting(*place)


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
