"""What do the views show? Which volume, the mask over it, and that a volume is synthetic."""

from __future__ import annotations

from collections.abc import Sequence

import slicer
import vtk
from slicer.i18n import tr as _

from MedDPMLib.scene.segmentation import tumor_segments
from MedDPMLib.scene.volumes import caption_of, is_synthetic, sheet_of

#: What stands at the upper edge of a slice view that shows a generated volume.
MARK = _("SYNTHETIC - not a patient")

#: The four corners belong to Slicer's Data Probe, which rewrites them; the edges are free.
_PLACE = vtk.vtkCornerAnnotation.UpperEdge

#: Layouts of 2 to 9 slice views, numbered from here: above what Slicer and its extensions use.
FIRST_LAYOUT = 73_000
#: So many views fit side by side.
MOST_COMPARED = 9
#: How the views of these layouts are called, before their number.
COMPARED = "Compare"

#: Which outlines lie over an image: of the tumor and the segment being painted, of all segments, of none.
OUTLINES = ("tumor", "all", "none")
#: Attribute of a segmentation: one of these; without it the first.
_OUTLINES_ATTRIBUTE = "MedDPM.outlines"
#: Width of an outline in pixels: Slicer's own, of 3, hide what they surround.
_LINE = 1


# Synthetic -------------------------------------------------------------------------------------------


class SyntheticMarks:
    """Keeps :data:`MARK` in every slice view that shows a generated volume, from :meth:`start` to :meth:`stop`.

    Above it stand modality and seed: Slicer shortens a volume's name in the middle where it shows it.
    """

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

    def update(self, *_arguments) -> None:
        """Looks again at what the views show."""
        if self._layout is None:
            return
        for widget in _slice_widgets():
            composite = widget.mrmlSliceCompositeNode()
            shown = [slicer.mrmlScene.GetNodeByID(id_) for id_ in _volume_ids(composite) if id_]
            synthetic = [node for node in shown if is_synthetic(node)]
            captions = " / ".join(filter(None, map(caption_of, synthetic)))
            lines = [captions, MARK] if synthetic else []
            _set_mark(widget.sliceView(), "\n".join(filter(None, lines)))

    def _follow(self, _layout=None) -> None:
        self._release()
        for composite in slicer.util.getNodesByClass("vtkMRMLSliceCompositeNode"):
            self._observed.append((composite, composite.AddObserver(vtk.vtkCommand.ModifiedEvent, self.update)))
        self.update()

    def _release(self) -> None:
        for composite, tag in self._observed:
            composite.RemoveObserver(tag)
        self._observed = []


# The background --------------------------------------------------------------------------------------


def show_background(node: slicer.vtkMRMLVolumeNode, *, fit: bool) -> None:
    """Makes ``node`` the background of the slice views; ``fit`` brings it into view.

    What the user has laid over it stays, and so do the views of a comparison. A mask is seen filled over its blank
    volume, and becomes an outline when an image takes the blank's place.
    """
    composites = _own_composites()
    before = {composite.GetBackgroundVolumeID() for composite in composites}
    for composite in composites:
        composite.SetBackgroundVolumeID(node.GetID())
        if composite.GetForegroundVolumeID() == node.GetID():
            composite.SetForegroundVolumeID(None)
    if fit:
        for widget in _slice_widgets():
            if widget.mrmlSliceCompositeNode() in composites:
                widget.sliceLogic().FitSliceToBackground()
    for segmentation in slicer.util.getNodesByClass("vtkMRMLSegmentationNode"):
        sheet = sheet_of(segmentation)
        if sheet is not None and (sheet is node or sheet.GetID() in before):
            show_outline(segmentation, sheet is not node)


def shown_background() -> slicer.vtkMRMLVolumeNode | None:
    """The background of the first slice view."""
    for composite in _own_composites():
        return slicer.mrmlScene.GetNodeByID(composite.GetBackgroundVolumeID() or "")
    return None


def shown_foreground() -> slicer.vtkMRMLVolumeNode | None:
    """What is laid over the background of the first slice view."""
    for composite in _own_composites():
        return slicer.mrmlScene.GetNodeByID(composite.GetForegroundVolumeID() or "")
    return None


def backgrounds() -> dict[str, str]:
    """The background of each slice view, for :func:`restore_backgrounds`: IDs of composite node and volume."""
    return {composite.GetID(): composite.GetBackgroundVolumeID() or "" for composite in _own_composites()}


def restore_backgrounds(before: dict[str, str]) -> None:
    """Shows again what :func:`backgrounds` found, as far as it is still there."""
    for composite_id, volume_id in before.items():
        composite = slicer.mrmlScene.GetNodeByID(composite_id)
        volume = slicer.mrmlScene.GetNodeByID(volume_id)
        if composite is not None:
            composite.SetBackgroundVolumeID(None if volume is None else volume.GetID())
    for segmentation in slicer.util.getNodesByClass("vtkMRMLSegmentationNode"):
        sheet = sheet_of(segmentation)
        if sheet is not None and sheet.GetID() in before.values():
            show_outline(segmentation, False)


def show_crosshair() -> None:
    """Makes the crosshair visible, which moves with Shift and the mouse: who does not know it sees where it is."""
    for node in slicer.util.getNodesByClass("vtkMRMLCrosshairNode"):
        if node.GetCrosshairMode() == node.NoCrosshair:
            node.SetCrosshairMode(node.ShowSmallBasic)


def show_place(ras: Sequence[float]) -> None:
    """Moves every slice view to the slice through the point ``ras`` (mm); what is in view stays in view."""
    for node in own_slice_nodes():
        node.JumpSliceByOffsetting(*map(float, ras))


# The mask --------------------------------------------------------------------------------------------


def show_only(segmentation: slicer.vtkMRMLSegmentationNode) -> None:
    """Hides every other segmentation: two masks on each other cannot be distinguished."""
    for node in slicer.util.getNodesByClass("vtkMRMLSegmentationNode"):
        display = node.GetDisplayNode()
        if display is not None and bool(display.GetVisibility()) != (node is segmentation):
            display.SetVisibility(node is segmentation)


def show_outline(segmentation: slicer.vtkMRMLSegmentationNode, outline: bool) -> None:
    """Shows the mask as an outline, so that the volume under it is seen, or as it is painted.

    Which outlines those are is the user's choice (:func:`set_outlines`).
    """
    if segmentation.GetDisplayNode() is None:
        segmentation.CreateDefaultDisplayNodes()
    display = segmentation.GetDisplayNode()
    style = outlines_of(segmentation)
    ids = list(segmentation.GetSegmentation().GetSegmentIDs())
    shown = set(ids)
    if outline and style == "tumor":
        shown = {*tumor_segments(segmentation), *_selected_segments(segmentation)} or shown
    with slicer.util.NodeModify(display):
        display.SetVisibility2DFill(not outline)
        display.SetVisibility2DOutline(not outline or style != "none")
        display.SetSliceIntersectionThickness(_LINE)
        for id_ in ids:
            if bool(display.GetSegmentVisibility2DOutline(id_)) != (id_ in shown):
                display.SetSegmentVisibility2DOutline(id_, id_ in shown)


def is_outlined(segmentation: slicer.vtkMRMLSegmentationNode) -> bool:
    """Whether the mask is shown as by ``show_outline(segmentation, True)``."""
    display = segmentation.GetDisplayNode()
    return display is not None and not display.GetVisibility2DFill()


def outlines_of(segmentation: slicer.vtkMRMLSegmentationNode) -> str:
    """Which outlines of the mask lie over an image: one of :data:`OUTLINES`."""
    style = segmentation.GetAttribute(_OUTLINES_ATTRIBUTE)
    return style if style in OUTLINES else OUTLINES[0]


def set_outlines(segmentation: slicer.vtkMRMLSegmentationNode, style: str) -> None:
    """Shows these outlines (one of :data:`OUTLINES`) from now on; a mask that is shown filled becomes an outline."""
    segmentation.SetAttribute(_OUTLINES_ATTRIBUTE, style)
    show_outline(segmentation, True)


def _selected_segments(segmentation: slicer.vtkMRMLSegmentationNode) -> set[str]:
    """The segments of ``segmentation`` that are being painted: chosen in a Segment Editor."""
    editors = slicer.util.getNodesByClass("vtkMRMLSegmentEditorNode")
    return {e.GetSelectedSegmentID() for e in editors if e.GetSegmentationNode() is segmentation} - {None, ""}


# Views -----------------------------------------------------------------------------------------------


def comparison_shown() -> bool:
    """Whether the layout is one of :mod:`MedDPMLib.scene.comparison`."""
    layout = slicer.app.layoutManager()
    return layout is not None and layout.layout in range(FIRST_LAYOUT + 2, FIRST_LAYOUT + MOST_COMPARED + 1)


def shown_slice_nodes() -> list[slicer.vtkMRMLSliceNode]:
    """The nodes of the slice views that the layout shows, in its order."""
    layout = slicer.app.layoutManager()
    if layout is None:
        return []
    shown = layout.layoutLogic().GetViewNodes()
    nodes = [shown.GetItemAsObject(index) for index in range(shown.GetNumberOfItems())]
    return [node for node in nodes if node.IsA("vtkMRMLSliceNode")]


def own_slice_nodes() -> list[slicer.vtkMRMLSliceNode]:
    """The nodes of all slice views but those of a comparison that is shown."""
    compared = comparison_shown()
    nodes = slicer.util.getNodesByClass("vtkMRMLSliceNode")
    return [node for node in nodes if not (compared and (node.GetLayoutName() or "").startswith(COMPARED))]


def _own_composites() -> list[slicer.vtkMRMLSliceCompositeNode]:
    """The composite nodes of all slice views but those of a comparison that is shown."""
    compared = comparison_shown()
    nodes = slicer.util.getNodesByClass("vtkMRMLSliceCompositeNode")
    return [node for node in nodes if not (compared and (node.GetLayoutName() or "").startswith(COMPARED))]


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
