"""The menu that a right click in a view opens: ``slicer.qSlicerSubjectHierarchyPluginHandler`` and its logic.

A click goes Slicer's own way, from the interactor through the displayable managers to the application logic's event;
only the last step, from the event to a menu, is Qt's and stands here.
"""

from __future__ import annotations

import slicer
import vtk

from bench.pythonqt import qt_module

qt = qt_module()

#: Some of the actions that Slicer registers for this menu: object name and text.
_ACTIONS = (
    ("EditPropertiesAction", "Edit properties..."),
    ("MouseModeViewTransformAction", "View transform"),
    ("MouseModeAdjustWindowLevelAction", "Adjust window/level"),
    ("MaximizeViewAction", "Maximize view"),
    ("ConfigureSliceViewAnnotationsAction", "Configure slice view annotations..."),
    ("CopyImageAction", "Copy image"),
)


class _PluginLogic:
    """qSlicerSubjectHierarchyPluginLogic: an empty list of allowed actions allows all, another one only its own."""

    def __init__(self, application) -> None:
        self._menu = qt.QMenu()
        self._plugin = qt.QObject()  # owns the actions: a menu deletes its own when it is cleared
        self._actions = []
        self._allowed: tuple[str, ...] = ()
        for name, text in _ACTIONS:
            action = qt.QAction(text, self._plugin)
            action.objectName = name
            self._actions.append(action)
        self._build()
        event = slicer.vtkMRMLApplicationLogic.ShowViewContextMenuEvent
        application.applicationLogic().AddObserver(event, self._on_display_menu)

    registeredViewContextMenuActionNames = property(lambda self: tuple(action.objectName for action in self._actions))

    @property
    def allowedViewContextMenuActionNames(self):
        return self._allowed

    @allowedViewContextMenuActionNames.setter
    def allowedViewContextMenuActionNames(self, names):
        self._allowed = tuple(names)
        self._build()

    def _build(self):
        self._menu.clear()
        for action in self._actions:
            if not self._allowed or action.objectName in self._allowed:
                self._menu.addAction(action)

    @vtk.calldata_type(vtk.VTK_OBJECT)
    def _on_display_menu(self, logic, event, data):
        assert data.IsA("vtkMRMLInteractionEventData")
        if not self._menu.isEmpty():
            self._menu.exec_()


class qSlicerSubjectHierarchyPluginHandler:
    """The one handler of the application; as in PythonQt, ``instance`` is called on the class."""

    _instance: qSlicerSubjectHierarchyPluginHandler | None = None

    def __init__(self, application) -> None:
        self._logic = _PluginLogic(application)
        qSlicerSubjectHierarchyPluginHandler._instance = self

    @staticmethod
    def instance():
        return qSlicerSubjectHierarchyPluginHandler._instance

    def pluginLogic(self):
        return self._logic
