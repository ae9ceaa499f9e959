"""What do the views show? Which volume, results side by side, and that a volume is synthetic."""

from __future__ import annotations

from collections.abc import Sequence

import qt
import slicer
import vtk
from slicer.i18n import tr as _

from MedDPMLib.scene.volumes import is_synthetic, sheet_of

#: What stands at the upper edge of a slice view that shows a generated volume.
MARK = _("SYNTHETIC - not a patient")

#: The four corners belong to Slicer's Data Probe, which rewrites them; the edges are free.
_PLACE = vtk.vtkCornerAnnotation.UpperEdge

#: Layouts of 2 to 9 slice views, numbered from here: above what Slicer and its extensions use.
_FIRST_LAYOUT = 73_000


#: Orientations in which results can be compared, as Slicer calls them.
ORIENTATIONS = ("Axial", "Sagittal", "Coronal")


class SyntheticMarks:
    """Keeps :data:`MARK` in every slice view that shows a generated volume, from :meth:`start` to :meth:`stop`."""

    def __init__(self) -> None:
        self._observed: list[tuple[vtk.vtkObject, int]] = []
        self._layout = None

    def start(self) -> None:
        """Follows the slice views, also those that another layout brings."""
        self.stop()
        self._layout = slicer.app.layoutManager()
        if self._layout is not None:  # else the application has no window
            self._layout.layoutChanged.connect(self._follow)
            self._follow()

    def stop(self) -> None:
        """Takes all marks away."""
        self._release()
        if self._layout is None:
            return
        self._layout.layoutChanged.disconnect(self._follow)
        self._layout = None
        for widget in _slice_widgets():
            _set_mark(widget.sliceView(), "")

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
        for widget in _slice_widgets():
            composite = widget.mrmlSliceCompositeNode()
            shown = [slicer.mrmlScene.GetNodeByID(id_) for id_ in _volume_ids(composite) if id_]
            _set_mark(widget.sliceView(), MARK if any(map(is_synthetic, shown)) else "")


def show_background(node: slicer.vtkMRMLVolumeNode, *, fit: bool) -> None:
    """Makes ``node`` the background of the slice views, without what lay over it; ``fit`` brings it into view.

    A mask is seen filled over its blank sheet, and becomes an outline when an image takes the sheet's place.
    """
    composites = slicer.util.getNodesByClass("vtkMRMLSliceCompositeNode")
    before = {composite.GetBackgroundVolumeID() for composite in composites}
    slicer.util.setSliceViewerLayers(background=node, foreground=None, label=None, fit=fit)
    for segmentation in slicer.util.getNodesByClass("vtkMRMLSegmentationNode"):
        sheet = sheet_of(segmentation)
        if sheet is not None and (sheet is node or sheet.GetID() in before):
            show_outline(segmentation, sheet is not node)


def shown_background() -> slicer.vtkMRMLVolumeNode | None:
    """The background of the first slice view."""
    for composite in slicer.util.getNodesByClass("vtkMRMLSliceCompositeNode"):
        return slicer.mrmlScene.GetNodeByID(composite.GetBackgroundVolumeID() or "")
    return None


def show_crosshair() -> None:
    """Makes the crosshair visible, which moves with Shift and the mouse: who does not know it sees where it is."""
    for node in slicer.util.getNodesByClass("vtkMRMLCrosshairNode"):
        if node.GetCrosshairMode() == node.NoCrosshair:
            node.SetCrosshairMode(node.ShowSmallBasic)


def show_outline(segmentation: slicer.vtkMRMLSegmentationNode, outline: bool) -> None:
    """Shows the mask as an outline, so that the volume under it is seen, or as it is painted."""
    display = segmentation.GetDisplayNode()
    display.SetVisibility2DFill(not outline)
    display.SetVisibility2DOutline(True)


class Comparison:
    """Two to nine volumes side by side in linked slice views, until :meth:`end` brings the former layout back."""

    def __init__(self) -> None:
        self._former: int | None = None

    @property
    def shown(self) -> bool:
        """Whether the views are those of a comparison; another layout chosen in the application ends it, too."""
        layout = slicer.app.layoutManager()
        return self._former is not None and layout is not None and layout.layout in _comparison_layouts()

    def show(self, nodes: Sequence[slicer.vtkMRMLVolumeNode], orientation: str = ORIENTATIONS[0]) -> None:
        """``orientation`` is one of :data:`ORIENTATIONS`."""
        layout = slicer.app.layoutManager()
        if layout.layout not in _comparison_layouts():
            self._former = layout.layout
        compare(nodes, orientation)

    def end(self) -> None:
        if self.shown:
            slicer.app.layoutManager().setLayout(self._former)
        self._former = None


def compare(nodes: Sequence[slicer.vtkMRMLVolumeNode], orientation: str = ORIENTATIONS[0]) -> None:
    """Shows two to nine volumes in linked views of one ``orientation`` side by side."""
    layout = slicer.app.layoutManager()
    names = [f"Compare{number}" for number in range(1, len(nodes) + 1)]
    layout_node = layout.layoutLogic().GetLayoutNode()
    identifier = _FIRST_LAYOUT + len(names)
    if not layout_node.IsLayoutDescription(identifier):
        layout_node.AddLayoutDescription(identifier, _side_by_side(names))
    layout.setLayout(identifier)
    widgets = [layout.sliceWidget(name) for name in names]
    # One at a time: with linked control what is done to one view would go to all of them.
    for widget in widgets:
        widget.mrmlSliceCompositeNode().SetLinkedControl(False)
    for widget, node in zip(widgets, nodes, strict=True):
        widget.mrmlSliceNode().SetOrientation(orientation)
        widget.mrmlSliceCompositeNode().SetBackgroundVolumeID(node.GetID())
    for widget in widgets:
        widget.mrmlSliceCompositeNode().SetLinkedControl(True)
    qt.QTimer.singleShot(0, lambda: _fit(names))  # the layout gives the views their sizes first


def _fit(names: Sequence[str]) -> None:
    layout = slicer.app.layoutManager()
    for name in names:
        layout.sliceWidget(name).sliceLogic().FitSliceToBackground()


def _comparison_layouts() -> range:
    return range(_FIRST_LAYOUT + 2, _FIRST_LAYOUT + 10)


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


def _slice_widgets() -> list:
    layout = slicer.app.layoutManager()
    widgets = map(layout.sliceWidget, layout.sliceViewNames()) if layout is not None else ()
    return [widget for widget in widgets if widget is not None]


def _volume_ids(composite: slicer.vtkMRMLSliceCompositeNode) -> tuple[str | None, str | None]:
    return composite.GetBackgroundVolumeID(), composite.GetForegroundVolumeID()


def _set_mark(view, text: str) -> None:
    annotation = view.cornerAnnotation()
    if (annotation.GetText(_PLACE) or "") != text:
        annotation.SetText(_PLACE, text)
        view.scheduleRender()
