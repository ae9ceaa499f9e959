"""How does the application become a screen for one task? Everything else is hidden and disabled, and restored later."""

from __future__ import annotations

from collections.abc import Callable

import qt
import slicer

#: Parts of Slicer's module panel that are no use to a reader, by their object names.
_PARTS = ("DataProbeCollapsibleWidget", "LogoLabel", "HelpCollapsibleButton", "ReloadCollapsibleButton")

#: What no action of a view's menu is called: a list of allowed actions that is empty would allow all.
_NO_ACTION = ("MedDPMStudyNoAction",)


class _Guard(qt.QWidget):
    """Filters the main window's events: it closes only if ``ask()`` says so, takes no files that are dropped on it
    (Slicer would load them), and opens no menu of its panels and tool bars."""

    def __init__(self, ask: Callable[[], bool]) -> None:
        qt.QWidget.__init__(self)
        self._ask = ask

    def eventFilter(self, watched, event) -> bool:
        kind = event.type()
        if kind in (qt.QEvent.DragEnter, qt.QEvent.DragMove, qt.QEvent.Drop):
            event.ignore()
            return True
        if kind == qt.QEvent.ContextMenu:
            return True
        if kind == qt.QEvent.Close and not self._ask():
            event.ignore()
            return True
        return False


class StudyScreen:
    """From :meth:`enter` to :meth:`leave` the main window shows the module's panel and the views; its menus, those of
    the views, its tool bars, other panels, other windows and keyboard shortcuts do nothing. It closes only if
    ``may_leave()`` says so."""

    def __init__(self, may_leave: Callable[[], bool]) -> None:
        self._may_leave = may_leave
        self._guard: _Guard | None = None
        self._hidden: list = []
        self._titles: list[tuple] = []  # panels and what is in their title bars
        self._disabled: list = []
        self._windows: list = []
        self._actions: list[str] = []
        self._panel: qt.QWidget | None = None

    @property
    def entered(self) -> bool:
        return self._panel is not None

    def enter(self) -> None:
        window = slicer.util.mainWindow()
        if self.entered or window is None:
            return
        self._panel = window
        for widget in self._others(window):
            if not widget.isHidden():
                self._hidden.append(widget)
                widget.hide()
        for action in [*window.findChildren(qt.QAction), *window.findChildren(qt.QShortcut)]:
            if action.enabled:
                self._disabled.append(action)
                action.enabled = False
        # Dialogs that were left open, as for loading data or DICOM.
        self._windows = [other for other in slicer.app.topLevelWidgets() if other != window and other.visible]
        for other in self._windows:
            other.hide()
        menu = _view_menu()
        self._actions = list(menu.allowedViewContextMenuActionNames)
        menu.allowedViewContextMenuActionNames = list(_NO_ACTION)
        self._guard = _Guard(self._may_leave)
        window.installEventFilter(self._guard)
        for dock in window.findChildren(qt.QDockWidget):
            if dock not in self._hidden:
                # Without a title the module panel can be neither closed nor dragged away.
                self._titles.append((dock, dock.titleBarWidget()))
                dock.setTitleBarWidget(qt.QWidget(dock))

    def leave(self) -> None:
        if not self.entered:
            return
        for dock, title in self._titles:
            dock.titleBarWidget().deleteLater()
            dock.setTitleBarWidget(title)  # the application's logo, as a rule
            if title is not None:
                title.show()
        self._panel.removeEventFilter(self._guard)
        self._guard.deleteLater()
        _view_menu().allowedViewContextMenuActionNames = self._actions
        # What has gone meanwhile, as the actions of a menu that was closed, does not come back.
        there = {*self._panel.findChildren(qt.QWidget), *slicer.app.topLevelWidgets()}
        for widget in (*self._hidden, *self._windows):
            if widget in there:
                widget.show()
        actions = {*self._panel.findChildren(qt.QAction), *self._panel.findChildren(qt.QShortcut)}
        for action in self._disabled:
            if action in actions:
                action.enabled = True
        self._hidden, self._titles, self._disabled, self._windows = [], [], [], []
        self._panel, self._guard = None, None

    @staticmethod
    def _others(window) -> list:
        found = [window.menuBar(), window.statusBar(), *window.findChildren(qt.QToolBar)]
        found += [dock for dock in window.findChildren(qt.QDockWidget) if dock.objectName != "PanelDockWidget"]
        for name in _PARTS:
            found += slicer.util.findChildren(window, name=name)
        return found


def _view_menu():
    """What decides which actions the menu has that a right click in a view opens."""
    return slicer.qSlicerSubjectHierarchyPluginHandler.instance().pluginLogic()
