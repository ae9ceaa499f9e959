"""How is a case shown? Linked slice views, one window for all, and a record of what was looked at."""

from __future__ import annotations

from collections.abc import Sequence

import qt
import slicer
import vtk
from slicer.i18n import tr as _

from MedDPMLib.imaging.io import read_volume
from MedDPMLib.study.order import PAIR, Presentation
from MedDPMLib.study.pack import Task
from MedDPMLib.study.reading import Watched

#: The first number of a layout: above what Slicer, its extensions and the panel's comparisons use.
_FIRST_LAYOUT = 73_100
_ORIENTATIONS = ("Axial", "Coronal", "Sagittal")

_INTERACTION = slicer.vtkMRMLInteractionNode


class StudyViews:
    """The views of a study, from :meth:`begin` to :meth:`end`, which leaves layout and scene as they were."""

    def __init__(self) -> None:
        self._former: int | None = None
        self._nodes: list[slicer.vtkMRMLScalarVolumeNode] = []
        self._names: list[str] = []
        self._shown: list[slicer.vtkMRMLScalarVolumeNode] = []  # for each view of _names
        self._observed: list[tuple[vtk.vtkObject, int]] = []
        self._watched = Watched()
        self._levels = 256
        self._orientation = 0
        self._active = 0
        self._moved_crosshair: tuple[float, float, float] | None = None
        self._former_crosshair: int | None = None
        self._former_mode: int | None = None

    @property
    def nodes(self) -> Sequence[slicer.vtkMRMLScalarVolumeNode]:
        return tuple(self._nodes)

    def begin(self) -> None:
        layout = slicer.app.layoutManager()
        if layout is not None:
            self._former = layout.layout
        crosshair = _crosshair()
        if crosshair is not None:
            self._former_crosshair = crosshair.GetCrosshairMode()
        mouse = slicer.app.applicationLogic().GetInteractionNode()
        self._former_mode = mouse.GetCurrentInteractionMode()
        mouse.SetCurrentInteractionMode(_INTERACTION.AdjustWindowLevel)  # the tool bar that switches it is hidden

    def show(self, task: Task, presentation: Presentation, watched: Watched) -> None:
        """Shows the case, or both cases of a pair side by side; slices and windows are recorded in ``watched``."""
        self.clear()
        self._levels = task.definition.preparation.levels
        modalities = task.definition.modalities
        sides = (_("Left"), _("Right")) if presentation.kind == PAIR else (_("Case"),)
        shown = []
        for side, case in zip(sides, presentation.cases, strict=True):
            for modality in modalities:
                name = side if len(modalities) == 1 else f"{side} {modality}"
                shown.append(self._add(name, task.case_file(case, modality)))
        # One case of one modality is seen from three sides; of several, each has a view, all of one orientation.
        views = shown * 3 if len(shown) == 1 else shown
        self._arrange(views, len(shown) == 1, columns=len(sides))
        self._watch(watched)

    def clear(self) -> None:
        """Takes the case out of views and scene."""
        for observed, tag in self._observed:
            observed.RemoveObserver(tag)
        self._observed = []
        for node in self._nodes:
            for owned in (node.GetDisplayNode(), node):
                slicer.mrmlScene.RemoveNode(owned)
        self._nodes = []
        crosshair = _crosshair()
        if crosshair is not None:
            crosshair.SetCrosshairMode(crosshair.NoCrosshair)

    def end(self) -> None:
        self.clear()
        crosshair = _crosshair()
        if crosshair is not None and self._former_crosshair is not None:
            crosshair.SetCrosshairMode(self._former_crosshair)
        layout = slicer.app.layoutManager()
        if layout is not None and self._former is not None:
            layout.setLayout(self._former)
        if self._former_mode is not None:
            slicer.app.applicationLogic().GetInteractionNode().SetCurrentInteractionMode(self._former_mode)
        self._former = self._former_mode = None

    def cover(self, covered: bool) -> None:
        """Takes the case out of the views for as long as a pause lasts."""
        self._link(False)
        for widget, node in zip(self._widgets(), self._shown, strict=True):
            widget.mrmlSliceCompositeNode().SetBackgroundVolumeID(None if covered else node.GetID())
        self._link(True)

    # What the reader does ----------------------------------------------------------------------------

    def step(self, slices: int) -> None:
        """Moves the active view by so many slices."""
        widget = self._widgets()[self._active]
        node = widget.mrmlSliceNode()
        offset = node.GetSliceOffset() + slices * self._nodes[0].GetSpacing()[0]
        low, high = self._bounds(node.GetOrientation())
        logic = widget.sliceLogic()
        logic.StartSliceNodeInteraction(slicer.vtkMRMLSliceNode.SliceToRASFlag)
        logic.SetSliceOffset(min(max(offset, low), high))
        logic.EndSliceNodeInteraction()
        self._keep_together(node)

    def next_view(self) -> None:
        """The arrows move another view, or where all have one orientation, that changes."""
        widgets = self._widgets()
        if len({widget.mrmlSliceNode().GetOrientation() for widget in widgets}) > 1:
            self._active = (self._active + 1) % len(widgets)
            self._show_active()
            return
        self._orientation = (self._orientation + 1) % len(_ORIENTATIONS)
        self._orient([_ORIENTATIONS[self._orientation]] * len(widgets))

    def standard_window(self) -> None:
        """All gray levels, for all that is shown."""
        for node in self._nodes:
            display = node.GetDisplayNode()
            display.SetAutoWindowLevel(False)
            display.SetWindowLevel(self._levels - 1, (self._levels - 1) / 2)

    def mark(self) -> tuple[float, float, float]:
        """The place of the finding (R, A, S in mm), shown by the crosshair from now on: where Shift and the mouse have
        put the crosshair, or else where the slices meet."""
        node = _crosshair()
        place = self._meeting_point()
        if node is None:
            return place
        if self._moved_crosshair is not None and tuple(node.GetCrosshairRAS()) != self._moved_crosshair:
            place = tuple(node.GetCrosshairRAS())
        node.SetCrosshairRAS(place)
        node.SetCrosshairMode(node.ShowSmallBasic)
        return place

    # Implementation ----------------------------------------------------------------------------------

    def _add(self, name: str, path) -> slicer.vtkMRMLScalarVolumeNode:
        """A volume that no list of the application shows, and that has no file."""
        volume = read_volume(path)
        node = slicer.vtkMRMLScalarVolumeNode()
        node.SetName(name)
        node.SetHideFromEditors(True)
        node.SetSaveWithScene(False)
        node.SetUndoEnabled(False)
        slicer.mrmlScene.AddNode(node)
        slicer.util.updateVolumeFromArray(node, volume.array)
        node.SetIJKToRASMatrix(slicer.util.vtkMatrixFromArray(volume.geometry.ijk_to_ras))
        node.CreateDefaultDisplayNodes()
        node.GetDisplayNode().SetSaveWithScene(False)
        node.GetDisplayNode().SetInterpolate(True)
        self._nodes.append(node)
        self.standard_window()
        return node

    def _arrange(self, volumes: Sequence, three_sides: bool, columns: int) -> None:
        layout = slicer.app.layoutManager()
        if layout is None:
            return
        self._names = [f"Study{number}" for number in range(1, len(volumes) + 1)]
        node = layout.layoutLogic().GetLayoutNode()
        identifier = _FIRST_LAYOUT + (0 if three_sides else 10 * columns + len(volumes))
        if not node.IsLayoutDescription(identifier):
            node.AddLayoutDescription(identifier, _description(self._names, three_sides, columns))
        other = layout.layout != identifier
        node.RemoveAllMaximizedViewNodes()  # a double click has one view fill the screen: for the case before
        layout.setLayout(identifier)
        self._active = 0
        self._link(False)
        for widget, volume in zip(self._widgets(), volumes, strict=True):
            _allow_looking_only(widget)
            composite = widget.mrmlSliceCompositeNode()
            for clear in (composite.SetForegroundVolumeID, composite.SetLabelVolumeID):
                clear(None)
            composite.SetBackgroundVolumeID(volume.GetID())
            widget.sliceController().setVisible(False)
        self._shown = list(volumes)
        self._orient(_ORIENTATIONS if three_sides else [_ORIENTATIONS[self._orientation]] * len(volumes))
        self._link(True)
        if other:
            qt.QTimer.singleShot(0, self._fit)  # the layout gives the views their sizes first

    def _link(self, linked: bool) -> None:
        """Linked, what is done to one view goes to all: not wanted while each gets its own volume."""
        for widget in self._widgets():
            widget.mrmlSliceCompositeNode().SetLinkedControl(linked)
            widget.mrmlSliceCompositeNode().SetHotLinkedControl(linked)

    def _orient(self, orientations: Sequence[str]) -> None:
        for widget, orientation in zip(self._widgets(), orientations, strict=True):
            widget.mrmlSliceNode().SetOrientation(orientation)
        self._fit()

    def _fit(self) -> None:
        for widget in self._widgets():
            if self._nodes:
                widget.sliceLogic().FitSliceToBackground()
                # Every brain lies around the origin, which is a corner of voxels: slices go through their middles.
                widget.mrmlSliceNode().SetSliceOffset(self._nodes[0].GetSpacing()[0] / 2)
        self._show_active()

    def _widgets(self) -> list:
        layout = slicer.app.layoutManager()
        return [layout.sliceWidget(name) for name in self._names] if layout is not None else []

    def _show_active(self) -> None:
        """Where views differ, an edge shows which one the arrows move."""
        widgets = self._widgets()
        alike = len({widget.mrmlSliceNode().GetOrientation() for widget in widgets}) < 2
        for number, widget in enumerate(widgets):
            annotation = widget.sliceView().cornerAnnotation()
            text = "" if alike or number != self._active else _("arrow keys")
            annotation.SetText(vtk.vtkCornerAnnotation.LowerEdge, text)
            widget.sliceView().scheduleRender()

    def _keep_together(self, moved: slicer.vtkMRMLSliceNode) -> None:
        """Views of one orientation show one height, also where the application does not link them."""
        for widget in self._widgets():
            node = widget.mrmlSliceNode()
            if node is not moved and node.GetOrientation() == moved.GetOrientation():
                node.SetSliceOffset(moved.GetSliceOffset())

    def _bounds(self, orientation: str) -> tuple[float, float]:
        bounds = [0.0] * 6
        self._nodes[0].GetRASBounds(bounds)
        axis = {"Axial": 2, "Coronal": 1, "Sagittal": 0}[orientation]
        return bounds[2 * axis], bounds[2 * axis + 1]

    def _meeting_point(self) -> tuple[float, float, float]:
        place = [0.0, 0.0, 0.0]
        for widget in self._widgets():
            node = widget.mrmlSliceNode()
            place[{"Axial": 2, "Coronal": 1, "Sagittal": 0}[node.GetOrientation()]] = node.GetSliceOffset()
        return place[0], place[1], place[2]

    def _watch(self, watched: Watched) -> None:
        self._watched = watched
        node = _crosshair()
        self._moved_crosshair = tuple(node.GetCrosshairRAS()) if node is not None else None
        for widget in self._widgets():
            self._observe(widget.mrmlSliceNode(), self._on_slice)
        for node in self._nodes:
            self._observe(node.GetDisplayNode(), self._on_window)
            self._on_window(node.GetDisplayNode())

    def _observe(self, node: vtk.vtkObject, do) -> None:
        self._observed.append((node, node.AddObserver(vtk.vtkCommand.ModifiedEvent, do)))

    def _on_slice(self, node, event=None) -> None:
        number = round(node.GetSliceOffset() / self._nodes[0].GetSpacing()[0] - 0.5)
        self._watched.saw(f"{node.GetLayoutName()} {node.GetOrientation()}", number)
        self._keep_together(node)

    def _on_window(self, display, event=None) -> None:
        self._watched.windowed(display.GetWindow(), display.GetLevel())
        for node in self._nodes:  # both of a pair, and all modalities, have one window and level
            other = node.GetDisplayNode()
            if (other.GetWindow(), other.GetLevel()) != (display.GetWindow(), display.GetLevel()):
                other.SetWindowLevel(display.GetWindow(), display.GetLevel())


def _allow_looking_only(widget) -> None:
    """Mouse and keys of a slice view move, zoom and window; they neither exchange volumes nor tilt the plane."""
    actions = slicer.vtkMRMLSliceIntersectionWidget
    allowed = (
        actions.ActionTranslate | actions.ActionZoom | actions.ActionBrowseSlice
        | actions.ActionSetCursorPosition | actions.ActionSetCrosshairPosition
    )  # fmt: skip
    manager = widget.sliceView().displayableManagerByClassName("vtkMRMLCrosshairDisplayableManager")
    manager.SetActionsEnabled(allowed)


def _crosshair():
    return slicer.mrmlScene.GetFirstNodeByClass("vtkMRMLCrosshairNode")


def _description(names: Sequence[str], three_sides: bool, columns: int) -> str:
    """The layout in Slicer's XML: the axial view large beside the others, or rows of ``columns``."""
    views = [
        f'<item><view class="vtkMRMLSliceNode" singletontag="{name}"><property name="orientation" action="default">'
        f'Axial</property><property name="viewlabel" action="default">{name[-1]}</property></view></item>'
        for name in names
    ]
    if three_sides:
        beside = f'<item><layout type="vertical">{views[1]}{views[2]}</layout></item>'
        return f'<layout type="horizontal" split="false">{views[0]}{beside}</layout>'
    if columns == 2:  # a pair: each modality is a row
        half = len(views) // 2
        rows = [views[row] + views[half + row] for row in range(half)]
    else:
        wide = 2 if len(views) > 2 else len(views)
        rows = ["".join(views[start : start + wide]) for start in range(0, len(views), wide)]
    body = "".join(f'<item><layout type="horizontal">{row}</layout></item>' for row in rows)
    return f'<layout type="vertical">{body}</layout>'
