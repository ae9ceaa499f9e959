"""How does the application become a screen for one task? Everything else is hidden and disabled, and restored later."""

from __future__ import annotations

from collections.abc import Callable

import qt
import slicer

#: Parts of Slicer's module panel that are no use to a reader, by their object names.
_PARTS = ("DataProbeCollapsibleWidget", "LogoLabel", "HelpCollapsibleButton", "ReloadCollapsibleButton")


class _CloseGuard(qt.QWidget):
    """Filters the main window's events: it closes only if ``ask()`` returns True."""

    def __init__(self, ask: Callable[[], bool]) -> None:
        qt.QWidget.__init__(self)
        self._ask = ask

    def eventFilter(self, watched, event) -> bool:
        if event.type() == qt.QEvent.Close and not self._ask():
            event.ignore()
            return True
        return False


class StudyScreen:
    """From :meth:`enter` to :meth:`leave` the main window shows the module's panel and the views, and its menus,
    tool bars, other panels and keyboard shortcuts do nothing. It closes only if ``may_leave()`` says so."""

    def __init__(self, may_leave: Callable[[], bool]) -> None:
        self._may_leave = may_leave
        self._guard: _CloseGuard | None = None
        self._hidden: list = []
        self._disabled: list = []
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
        self._guard = _CloseGuard(self._may_leave)
        window.installEventFilter(self._guard)
        for dock in window.findChildren(qt.QDockWidget):
            if dock not in self._hidden:
                # Without a title the module panel can be neither closed nor dragged away.
                dock.setTitleBarWidget(qt.QWidget(dock))

    def leave(self) -> None:
        if not self.entered:
            return
        for dock in self._panel.findChildren(qt.QDockWidget):
            if dock not in self._hidden:
                dock.setTitleBarWidget(None)
        self._panel.removeEventFilter(self._guard)
        self._guard.deleteLater()
        for widget in self._hidden:
            widget.show()
        for action in self._disabled:
            action.enabled = True
        self._hidden, self._disabled, self._panel, self._guard = [], [], None, None

    @staticmethod
    def _others(window) -> list:
        found = [window.menuBar(), window.statusBar(), *window.findChildren(qt.QToolBar)]
        found += [dock for dock in window.findChildren(qt.QDockWidget) if dock.objectName != "PanelDockWidget"]
        for name in _PARTS:
            found += slicer.util.findChildren(window, name=name)
        return found
