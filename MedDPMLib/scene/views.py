"""What do the views show? Which volume, results side by side, and that a volume is synthetic."""

from __future__ import annotations

from collections.abc import Sequence

import slicer
import vtk

from MedDPMLib.scene.volumes import is_synthetic

#: What stands at the upper edge of a slice view that shows a generated volume.
MARK = "SYNTHETIC - not a patient"

#: The four corners belong to Slicer's Data Probe, which rewrites them; the edges are free.
_PLACE = vtk.vtkCornerAnnotation.UpperEdge

#: Layouts of 2 to 9 axial views, numbered from here: above what Slicer and its extensions use.
_FIRST_LAYOUT = 73_000


class SyntheticMarks:
    """Keeps :data:`MARK` in every slice view that shows a generated volume, from :meth:`start` to :meth:`stop`."""

    def __init__(self) -> None:
        self._observed: list[tuple[vtk.vtkObject, int]] = []

    def start(self) -> None:
        """Follows the slice views, also those that another layout brings."""
        self.stop()
        slicer.app.layoutManager().layoutChanged.connect(self._follow)
        self._follow()

    def stop(self) -> None:
        """Takes all marks away."""
        slicer.app.layoutManager().layoutChanged.disconnect(self._follow)
        self._release()
        for view in _slice_views():
            _set_mark(view, "")

    def _follow(self) -> None:
        self._release()
        for composite in slicer.util.getNodesByClass("vtkMRMLSliceCompositeNode"):
            self._observed.append((composite, composite.AddObserver(vtk.vtkCommand.ModifiedEvent, self._update)))
        self._update()

    def _release(self) -> None:
        for composite, tag in self._observed:
            composite.RemoveObserver(tag)
        self._observed = []

    def _update(self, *_) -> None:
        layout = slicer.app.layoutManager()
        for name in layout.sliceViewNames():
            widget = layout.sliceWidget(name)
            composite = widget.mrmlSliceCompositeNode()
            shown = [slicer.mrmlScene.GetNodeByID(id_) for id_ in _volume_ids(composite) if id_]
            _set_mark(widget.sliceView(), MARK if any(map(is_synthetic, shown)) else "")


def show_background(node: slicer.vtkMRMLVolumeNode, *, fit: bool) -> None:
    """Makes ``node`` the background of the slice views, without what lay over it; ``fit`` brings it into view."""
    slicer.util.setSliceViewerLayers(background=node, foreground=None, label=None, fit=fit)


def show_outline(segmentation: slicer.vtkMRMLSegmentationNode, outline: bool) -> None:
    """Shows the mask as an outline, so that the volume under it is seen, or as it is painted."""
    display = segmentation.GetDisplayNode()
    display.SetVisibility2DFill(not outline)
    display.SetVisibility2DOutline(True)


def compare(nodes: Sequence[slicer.vtkMRMLVolumeNode]) -> None:
    """Shows two to nine volumes in linked axial views side by side."""
    layout = slicer.app.layoutManager()
    names = [f"Compare{number}" for number in range(1, len(nodes) + 1)]
    layout_node = layout.layoutLogic().GetLayoutNode()
    identifier = _FIRST_LAYOUT + len(names)
    if not layout_node.IsLayoutDescription(identifier):
        layout_node.AddLayoutDescription(identifier, _side_by_side(names))
    layout.setLayout(identifier)
    for name, node in zip(names, nodes, strict=True):
        widget = layout.sliceWidget(name)
        widget.mrmlSliceNode().SetOrientation("Axial")
        composite = widget.mrmlSliceCompositeNode()
        # One at a time: with linked control a new background would go to all of them.
        composite.SetLinkedControl(False)
        composite.SetBackgroundVolumeID(node.GetID())
        widget.sliceLogic().FitSliceToBackground()
    for name in names:
        layout.sliceWidget(name).mrmlSliceCompositeNode().SetLinkedControl(True)


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


def _slice_views() -> list:
    layout = slicer.app.layoutManager()
    return [layout.sliceWidget(name).sliceView() for name in layout.sliceViewNames()]


def _volume_ids(composite: slicer.vtkMRMLSliceCompositeNode) -> tuple[str | None, str | None]:
    return composite.GetBackgroundVolumeID(), composite.GetForegroundVolumeID()


def _set_mark(view, text: str) -> None:
    annotation = view.cornerAnnotation()
    if (annotation.GetText(_PLACE) or "") != text:
        annotation.SetText(_PLACE, text)
        view.scheduleRender()
