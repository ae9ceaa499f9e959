"""The application's main window: the module panel in its dock on the left, the views in the middle, bars around them.

Laid out as in 3D Slicer 5.13 (qSlicerMainWindow.ui, qSlicerModulePanel): a module gets what the bars, the logo and the
data probe leave of the height, 380 pixels of a window of 1366 x 700; the dock is never narrower than the module's
smallest width, grows with it, and does not shrink by itself.
"""

from __future__ import annotations

import slicer

from bench.ctk_widgets import ctkCollapsibleButton
from bench.pythonqt import qt_module, standin

qt = qt_module()

#: Heights in pixels of what surrounds the module panel: menu, two rows of tool bars, logo, data probe, status bar.
_MENU, _TOOL_BARS, _LOGO, _DATA_PROBE, _STATUS = 24, 76, 46, 148, 22


@standin
class qSlicerModulePanel(qt.QWidget):
    """The column that scrolls the chosen module up and down, below its folded help."""

    def __init__(self, parent=None):
        super().__init__(parent)
        self.setSizePolicy(qt.QSizePolicy.Minimum, qt.QSizePolicy.Preferred)
        outer = qt.QGridLayout(self)
        outer.setContentsMargins(0, 0, 0, 0)
        outer.setSizeConstraint(qt.QLayout.SetMinimumSize)
        self._scrolled = qt.QScrollArea(self)
        self._scrolled.setSizePolicy(qt.QSizePolicy.Minimum, qt.QSizePolicy.Expanding)
        self._scrolled.setFrameShape(qt.QFrame.NoFrame)
        self._scrolled.setHorizontalScrollBarPolicy(qt.Qt.ScrollBarAlwaysOff)
        self._scrolled.setWidgetResizable(True)
        outer.addWidget(self._scrolled)
        contents = qt.QWidget()
        contents.setSizePolicy(qt.QSizePolicy.Minimum, qt.QSizePolicy.Preferred)
        self._column = qt.QVBoxLayout(contents)
        self._column.setContentsMargins(0, 0, 0, 0)
        self._column.setSizeConstraint(qt.QLayout.SetMinAndMaxSize)
        help_ = ctkCollapsibleButton("Help && Acknowledgement")
        help_.setSizePolicy(qt.QSizePolicy.Ignored, qt.QSizePolicy.Fixed)
        help_.collapsed = True
        self._column.addWidget(help_)
        self._column.addItem(qt.QSpacerItem(0, 0, qt.QSizePolicy.Minimum, qt.QSizePolicy.MinimumExpanding))
        self._scrolled.setWidget(contents)
        self._module = None

    def setModule(self, widget):
        """Takes the widget of another module, or None, in place of the one that is shown."""
        if self._module is not None:
            self._module.removeEventFilter(self)
            self._column.removeWidget(self._module)
            self._module.hide()
            self._module.setParent(None)
        self._module = widget
        if widget is not None:
            widget.layout().setContentsMargins(0, 0, 0, 0)
            self._column.insertWidget(1, widget, 1)
            widget.setSizePolicy(qt.QSizePolicy.Minimum, widget.sizePolicy.verticalPolicy())
            widget.show()
            widget.installEventFilter(self)
        self.updateGeometry()

    def eventFilter(self, watched, event):
        if event.type() == qt.QEvent.Resize:
            self.updateGeometry()
        return False

    def minimumSizeHint(self):
        bar = self._scrolled.horizontalScrollBar()
        width = self._scrolled.widget().layout().totalMinimumSize().width() + bar.sizeHint().width()
        return qt.QSize(width, 100)


class _ModuleSelector:
    """Which module's panel is shown; a change leaves one and enters the other."""

    def __init__(self, panel):
        self._panel = panel
        self.selectedModule = ""

    def selectModule(self, name):
        if name == self.selectedModule:
            return
        self.leave(self.selectedModule)
        module = slicer.app.moduleManager().module(name)
        widget = module.widgetRepresentation()
        self._panel.setModule(widget)
        self.selectedModule = name
        widget.enter()

    def leave(self, name):
        if name and name == self.selectedModule:
            self.selectedModule = ""
            slicer.app.moduleManager().module(name).widgetRepresentation().exit()
            self._panel.setModule(None)


class MainWindow(qt.QMainWindow):
    """Hidden until ``show`` is called: drawing takes time."""

    def __init__(self):
        super().__init__()
        self.objectName = "qSlicerMainWindow"
        self.menuBar().setFixedHeight(_MENU)
        bars = qt.QToolBar(self)
        bars.setMovable(False)
        bars.setFixedHeight(_TOOL_BARS)
        self.addToolBar(bars)
        self.statusBar().setFixedHeight(_STATUS)
        self.statusBar().setSizeGripEnabled(False)
        dock = qt.QDockWidget(self)
        dock.objectName = "PanelDockWidget"
        logo = qt.QLabel("3D Slicer", dock)
        logo.objectName = "LogoLabel"
        logo.setFixedHeight(_LOGO)
        dock.setTitleBarWidget(logo)
        contents = qt.QWidget(dock)
        contents.setSizePolicy(qt.QSizePolicy.Minimum, qt.QSizePolicy.Preferred)
        column = qt.QVBoxLayout(contents)
        column.setContentsMargins(0, 2, 0, 0)
        column.setSpacing(2)
        self._panel = qSlicerModulePanel(contents)
        column.addWidget(self._panel, 1)
        probe = qt.QLabel("Data Probe", contents)
        probe.setFixedHeight(_DATA_PROBE)
        probe.setAlignment(qt.Qt.AlignTop)
        column.addWidget(probe)
        dock.setWidget(contents)
        self.addDockWidget(qt.Qt.LeftDockWidgetArea, dock)
        self.viewport = qt.QWidget(self)
        grid = qt.QGridLayout(self.viewport)
        grid.setContentsMargins(0, 0, 0, 0)
        grid.setSpacing(2)
        self.setCentralWidget(self.viewport)
        self.resize(1420, 900)
        self._selector = _ModuleSelector(self._panel)
        #: Files that were dropped on the window: the application offers to load them.
        self.dropped = []
        self.setAcceptDrops(True)

    def moduleSelector(self):
        return self._selector

    def panel(self):
        """The area that scrolls the module."""
        return self._panel.findChild(qt.QScrollArea)

    def dragEnterEvent(self, event):
        event.accept()

    def dropEvent(self, event):
        self.dropped += [url.toLocalFile() for url in event.mimeData().urls()]
