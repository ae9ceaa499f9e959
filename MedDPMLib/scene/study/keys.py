"""Which key does what? Shortcuts of the main window while a case is shown, and none while the reader writes."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import qt
import slicer


class Keys:
    """``actions`` is key (as Qt names it) -> what it does; active from :meth:`start` to :meth:`stop`."""

    def __init__(self, actions: Mapping[str, Callable[[], None]]) -> None:
        self._actions = actions
        self._shortcuts: list = []

    def start(self) -> None:
        window = slicer.util.mainWindow()
        if self._shortcuts or window is None:
            return
        for key, do in self._actions.items():
            shortcut = qt.QShortcut(qt.QKeySequence(key), window)
            shortcut.activated.connect(do)
            self._shortcuts.append(shortcut)

    def stop(self) -> None:
        for shortcut in self._shortcuts:
            shortcut.enabled = False
            shortcut.setParent(None)
            shortcut.deleteLater()
        self._shortcuts = []

    @property
    def enabled(self) -> bool:
        return any(shortcut.enabled for shortcut in self._shortcuts)

    def set_enabled(self, enabled: bool, but: tuple[str, ...] = ()) -> None:
        """Switches all keys but those in ``but``."""
        for key, shortcut in zip(self._actions, self._shortcuts, strict=True):
            if key not in but:
                shortcut.enabled = enabled
