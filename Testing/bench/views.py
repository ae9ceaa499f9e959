"""Slice and 3-D views off screen, drawn by Slicer's own displayable managers, and the layout that holds them."""

from __future__ import annotations

import numpy as np
import slicer
import vtk
from PySide6.QtCore import Signal
from vtk.util.numpy_support import vtk_to_numpy

from bench.pythonqt import qt_module, standin

qt = qt_module()

#: What the application registers at start beside what each view registers for itself.
_SLICE_MANAGERS = (
    "vtkMRMLVolumeGlyphSliceDisplayableManager",
    "vtkMRMLModelSliceDisplayableManager",
    "vtkMRMLCrosshairDisplayableManager",
    "vtkMRMLOrientationMarkerDisplayableManager",
    "vtkMRMLRulerDisplayableManager",
    "vtkMRMLScalarBarDisplayableManager",
    "vtkMRMLSegmentationsDisplayableManager2D",
)
_THREED_MANAGERS = (
    "vtkMRMLCameraDisplayableManager",
    "vtkMRMLViewDisplayableManager",
    "vtkMRMLModelDisplayableManager",
    "vtkMRMLSegmentationsDisplayableManager3D",
)


@standin
class VTKView(qt.QWidget):
    """ctkVTKAbstractView: a render window whose last picture is what the widget paints.

    ``scheduleRender`` renders once when the event loop comes round, however often it is called, and only what
    is on the screen: a test that counts renders shows the main window first.
    """

    def __init__(self, parent=None):
        super().__init__(parent)
        self._window = vtk.vtkRenderWindow()
        self._window.SetOffScreenRendering(1)
        self._window.SetMultiSamples(0)
        self._renderer = vtk.vtkRenderer()
        self._window.AddRenderer(self._renderer)
        self._interactor = vtk.vtkRenderWindowInteractor()
        self._interactor.SetRenderWindow(self._window)
        self._corner = vtk.vtkCornerAnnotation()
        self._corner.SetMaximumFontSize(14)
        self._corner.GetTextProperty().SetShadow(True)
        self._renderer.AddViewProp(self._corner)
        self._image = None
        self._pauses = 0
        self._renders = 0
        self._timer = qt.QTimer(self)
        self._timer.setSingleShot(True)
        self._timer.timeout.connect(self.forceRender)
        self.setMinimumSize(160, 160)

    def renderWindow(self):
        return self._window

    def renderer(self):
        return self._renderer

    def interactor(self):
        return self._interactor

    def cornerAnnotation(self):
        return self._corner

    def scheduleRender(self):
        if self.visible and not self._timer.isActive():
            self._timer.start(0)

    def forceRender(self):
        if self._pauses:
            return
        self._timer.stop()
        self._window.SetSize(max(self.width, 16), max(self.height, 16))
        self._prepare()
        self._window.Render()
        self._renders += 1
        self._image = None
        self.update()

    def pauseRender(self):
        self._pauses += 1

    def resumeRender(self):
        self._pauses -= 1
        if not self._pauses:
            self.scheduleRender()

    def picture(self) -> np.ndarray:
        """What is shown, rendered now: (rows, columns, 3) uint8, top row first."""
        self.forceRender()
        return self._pixels()

    def renderCount(self) -> int:
        """How often this view has been rendered: what a flicker test counts."""
        return self._renders

    def _manage(self, factoryClass, names, viewNode, appLogic):
        factory = factoryClass.GetInstance()
        factory.SetMRMLApplicationLogic(appLogic)
        for name in names:
            if not factory.IsDisplayableManagerRegistered(name):
                factory.RegisterDisplayableManager(name)
        self._group = factory.InstantiateDisplayableManagers(self._renderer)
        self._group.SetMRMLDisplayableNode(viewNode)
        self._group.AddObserver("UpdateEvent", lambda *_: self.scheduleRender())

    def _prepare(self):
        """What has to be right before each render."""

    def _pixels(self) -> np.ndarray:
        grab = vtk.vtkWindowToImageFilter()
        grab.SetInput(self._window)
        grab.ReadFrontBufferOff()
        grab.Update()
        image = grab.GetOutput()
        columns, rows, _ = image.GetDimensions()
        return vtk_to_numpy(image.GetPointData().GetScalars()).reshape(rows, columns, 3)[::-1].copy()

    def paintEvent(self, event):
        if self._image is None and self._renders:
            pixels = self._pixels()
            rows, columns, _ = pixels.shape
            self._image = qt.QImage(pixels.data, columns, rows, 3 * columns, qt.QImage.Format_RGB888).copy()
        painter = qt.QPainter(self)
        if self._image is not None:
            painter.drawImage(self.rect, self._image)
        painter.end()

    def resizeEvent(self, event):
        self.scheduleRender()

    def showEvent(self, event):
        self.scheduleRender()


@standin
class qMRMLSliceView(VTKView):
    def __init__(self, sliceLogic, appLogic, parent=None):
        super().__init__(parent)
        self._logic = sliceLogic
        self._mapper = vtk.vtkImageMapper()
        self._mapper.SetColorWindow(255)
        self._mapper.SetColorLevel(127.5)
        self._actor = vtk.vtkActor2D()
        self._actor.SetMapper(self._mapper)
        self._actor.GetProperty().SetDisplayLocationToBackground()
        self._renderer.AddViewProp(self._actor)
        self._manage(
            slicer.vtkMRMLSliceViewDisplayableManagerFactory, _SLICE_MANAGERS, sliceLogic.GetSliceNode(), appLogic
        )
        sliceLogic.AddObserver("ModifiedEvent", lambda *_: self._on_logic_modified())
        # Mouse and keys of the view go to the displayable managers, as in the application.
        self._style = slicer.vtkMRMLSliceViewInteractorStyle()
        self._style.SetSliceLogic(sliceLogic)
        self._style.SetDisplayableManagers(self._group)
        self._style.SetInteractor(self._interactor)
        self._interactor.SetInteractorStyle(vtk.vtkInteractorStyleUser())  # VTK's own would take the events first
        self._fit_node()

    def _on_logic_modified(self):
        # As Slicer's Data Probe: it owns the four corners, rewrites them on every change, and shortens long names in
        # the middle.
        volume = self._logic.GetBackgroundLayer().GetVolumeNode()
        name = volume.GetName() if volume is not None else ""
        shown = name if len(name) <= 19 else f"{name[:8]}...{name[-8:]}"
        for corner in range(4):
            self._corner.SetText(corner, f"B: {shown}" if volume is not None and corner == 0 else "")
        self.scheduleRender()

    def mrmlSliceNode(self):
        return self._logic.GetSliceNode()

    def interactorObserver(self):
        return self._style

    def displayableManagerByClassName(self, name):
        return self._group.GetDisplayableManagerByClassName(name)

    def _prepare(self):
        self._fit_node()
        layers = (self._logic.GetBackgroundLayer(), self._logic.GetForegroundLayer(), self._logic.GetLabelLayer())
        shown = any(layer is not None and layer.GetVolumeNode() is not None for layer in layers)
        self._actor.SetVisibility(shown)
        if shown:
            self._mapper.SetInputConnection(self._logic.GetImageDataConnection())

    def resizeEvent(self, event):
        self._fit_node()
        super().resizeEvent(event)

    def _fit_node(self):
        self._logic.ResizeSliceNode(max(self.width, 16), max(self.height, 16))


@standin
class qMRMLThreeDView(VTKView):
    def __init__(self, viewNode, appLogic, parent=None):
        super().__init__(parent)
        self._manage(slicer.vtkMRMLThreeDViewDisplayableManagerFactory, _THREED_MANAGERS, viewNode, appLogic)

    def resetFocalPoint(self):
        self._renderer.ResetCamera()
        self.scheduleRender()


@standin
class qMRMLSliceWidget(qt.QWidget):
    """A slice view with its logic, under a bar in the view's color."""

    def __init__(self, sliceNode, appLogic, parent=None):
        super().__init__(parent)
        self.objectName = f"qMRMLSliceWidget{sliceNode.GetLayoutName()}"
        self._logic = slicer.vtkMRMLSliceLogic()
        self._logic.SetMRMLApplicationLogic(appLogic)
        self._logic.SetMRMLScene(sliceNode.GetScene())
        self._logic.SetSliceNode(sliceNode)
        appLogic.GetSliceLogics().AddItem(self._logic)
        self._view = qMRMLSliceView(self._logic, appLogic, self)
        _stack(self, sliceNode, self._view)

    def sliceLogic(self):
        return self._logic

    def sliceView(self):
        return self._view

    def mrmlSliceNode(self):
        return self._logic.GetSliceNode()

    def mrmlSliceCompositeNode(self):
        return self._logic.GetSliceCompositeNode()

    def sliceController(self):
        return self._controller

    def fitSliceToBackground(self):
        self._logic.FitSliceToBackground()


@standin
class qMRMLThreeDWidget(qt.QWidget):
    def __init__(self, viewNode, appLogic, parent=None):
        super().__init__(parent)
        self._node = viewNode
        self._view = qMRMLThreeDView(viewNode, appLogic, self)
        _stack(self, viewNode, self._view)

    def threeDView(self):
        return self._view

    def mrmlViewNode(self):
        return self._node


def _stack(widget, viewNode, view):
    layout = qt.QVBoxLayout(widget)
    layout.setContentsMargins(0, 0, 0, 0)
    layout.setSpacing(0)
    bar = qt.QLabel(f" {viewNode.GetLayoutLabel() or viewNode.GetLayoutName()}", widget)
    red, green, blue = (round(255 * part) for part in viewNode.GetLayoutColor())
    bar.setStyleSheet(f"background: rgb({red}, {green}, {blue}); color: black; font-size: 11px")
    bar.setFixedHeight(16)
    layout.addWidget(bar)
    layout.addWidget(view, 1)
    widget._controller = bar


@standin
class LayoutManager(qt.QObject):
    """qSlicerLayoutManager: which views exist is decided by Slicer's own layout logic."""

    layoutChanged = Signal(int)

    def __init__(self, scene, appLogic, viewport):
        super().__init__(viewport)
        self._appLogic = appLogic
        appLogic.SetSliceLogics(vtk.vtkCollection())
        self._viewport = viewport
        self._widgets = {}  # view node's ID: its widget
        self._pauses = 0
        self._logic = slicer.vtkMRMLLayoutLogic()
        self._logic.SetMRMLApplicationLogic(appLogic)
        self._logic.SetMRMLScene(scene)
        self._logic.AddObserver("ModifiedEvent", lambda *_: self._arrange())
        self._arranging = False
        self.setLayout(slicer.vtkMRMLLayoutNode.SlicerLayoutFourUpView)

    layout = property(
        lambda self: self._logic.GetLayoutNode().GetViewArrangement(), lambda self, layout: self.setLayout(layout)
    )
    threeDViewCount = property(lambda self: len(self._of_class("vtkMRMLViewNode")))
    tableViewCount = property(lambda self: 0)
    plotViewCount = property(lambda self: 0)

    def setLayout(self, layout):
        if layout != self.layout:
            self._logic.GetLayoutNode().SetViewArrangement(layout)
            self._arrange()
            self.layoutChanged.emit(layout)

    def layoutLogic(self):
        return self._logic

    def mrmlSliceLogics(self):
        return self._appLogic.GetSliceLogics()

    def sliceViewNames(self):
        return [widget.mrmlSliceNode().GetLayoutName() for widget in self._of_class("vtkMRMLSliceNode")]

    def sliceWidget(self, name):
        return next(
            (widget for widget in self._of_class("vtkMRMLSliceNode") if widget.mrmlSliceNode().GetLayoutName() == name),
            None,
        )

    def threeDWidget(self, index):
        return self._of_class("vtkMRMLViewNode")[index]

    def viewWidget(self, node):
        return self._widgets.get(node.GetID())

    def viewport(self):
        return self._viewport

    def resetSliceViews(self):
        for widget in self._of_class("vtkMRMLSliceNode"):
            widget.fitSliceToBackground()

    def resetThreeDViews(self):
        for widget in self._of_class("vtkMRMLViewNode"):
            widget.threeDView().resetFocalPoint()

    def pauseRender(self):
        self._pauses += 1
        for view in self._views():
            view.pauseRender()

    def resumeRender(self):
        self._pauses -= 1
        for view in self._views():
            view.resumeRender()

    def _views(self):
        return [w.sliceView() if hasattr(w, "sliceView") else w.threeDView() for w in self._widgets.values()]

    def _of_class(self, name):
        return [
            self._widgets[node.GetID()] for node in self._nodes() if node.IsA(name) and node.GetID() in self._widgets
        ]

    def _nodes(self):
        scene = self._logic.GetMRMLScene()
        return slicer.util.getNodesByClass("vtkMRMLSliceNode", scene) + slicer.util.getNodesByClass(
            "vtkMRMLViewNode", scene
        )

    def _arrange(self):
        """Makes the missing widgets and puts those of the current layout side by side, in a square."""
        if self._arranging:
            return
        self._arranging = True
        try:
            for node in self._nodes():
                if node.GetID() not in self._widgets:
                    cls = qMRMLSliceWidget if node.IsA("vtkMRMLSliceNode") else qMRMLThreeDWidget
                    widget = self._widgets[node.GetID()] = cls(node, self._appLogic, self._viewport)
                    for _ in range(self._pauses):
                        (widget.sliceView() if hasattr(widget, "sliceView") else widget.threeDView()).pauseRender()
            self._fill_viewport()
        finally:
            self._arranging = False

    def _fill_viewport(self):
        shown = self._logic.GetViewNodes()
        widgets = [self._widgets.get(shown.GetItemAsObject(i).GetID()) for i in range(shown.GetNumberOfItems())]
        widgets = [widget for widget in widgets if widget is not None]
        grid = self._viewport.layout()
        while grid.count():
            grid.takeAt(0).widget().hide()
        columns = int(np.ceil(np.sqrt(len(widgets))))
        for index, widget in enumerate(widgets):
            grid.addWidget(widget, index // columns, index % columns)
            widget.show()
