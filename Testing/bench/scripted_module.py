"""``slicer.ScriptedLoadableModule``: a scripted module's base classes, and the module as the application holds it."""

from __future__ import annotations

import importlib.util
import sys
import types
import unittest
from pathlib import Path

import shiboken6
import slicer

from bench.mrml_widgets import qMRMLWidget
from bench.pythonqt import qt_module, standin

qt = qt_module()


class ScriptedLoadableModule:
    def __init__(self, parent):
        self.parent = parent
        self.moduleName = type(self).__name__
        for suffix in (".svg", ".png"):
            icon = Path(parent.path).parent / "Resources" / "Icons" / f"{self.moduleName}{suffix}"
            if icon.is_file():
                parent.icon = qt.QIcon(str(icon))
                break

    def resourcePath(self, filename):
        return str(Path(self.parent.path).parent / "Resources" / filename)

    def getDefaultModuleDocumentationLink(self, docPage=None):
        return ""

    def runTest(self, msec=100, **kwargs):
        test = getattr(sys.modules[type(self).__module__], f"{self.moduleName}Test")()
        test.messageDelay = msec
        test.runTest(**kwargs)


class ScriptedLoadableModuleWidget:
    def __init__(self, parent=None):
        self.moduleName = type(self).__name__.removesuffix("Widget")
        self.developerMode = False
        self.parent = parent
        self.layout = parent.layout()
        slicer.app.moduleManager().connect("moduleAboutToBeUnloaded(QString)", self._onModuleAboutToBeUnloaded)

    def resourcePath(self, filename):
        return str(Path(slicer.util.modulePath(self.moduleName)).parent / "Resources" / filename)

    def setup(self):
        pass

    def cleanup(self):
        pass

    def onReload(self):
        slicer.util.reloadScriptedModule(self.moduleName)

    def _onModuleAboutToBeUnloaded(self, moduleName):
        if moduleName == self.moduleName:
            self.cleanup()
            slicer.app.moduleManager().disconnect("moduleAboutToBeUnloaded(QString)", self._onModuleAboutToBeUnloaded)


class ScriptedLoadableModuleLogic:
    def __init__(self, parent=None):
        self.moduleName = type(self).__name__.removesuffix("Logic")
        self.isSingletonParameterNode = True

    def getParameterNode(self):
        scene = slicer.mrmlScene
        if self.isSingletonParameterNode:
            node = scene.GetSingletonNode(self.moduleName, "vtkMRMLScriptedModuleNode")
            if node is not None:
                # The end of a scene clears a singleton node's attributes.
                node.SetAttribute("ModuleName", self.moduleName)
                return node
        else:
            for node in slicer.util.getNodesByClass("vtkMRMLScriptedModuleNode"):
                if node.GetAttribute("ModuleName") == self.moduleName:
                    return node
        return scene.AddNode(self.createParameterNode())

    def createParameterNode(self):
        node = slicer.vtkMRMLScriptedModuleNode()
        if self.isSingletonParameterNode:
            node.SetSingletonTag(self.moduleName)
        node.SetAttribute("ModuleName", self.moduleName)
        node.SetName(slicer.mrmlScene.GenerateUniqueName(self.moduleName))
        return node


class ScriptedLoadableModuleTest(unittest.TestCase):
    def delayDisplay(self, message, requestedDelay=None, msec=None):
        slicer.util.delayDisplay(message, 0)

    def runTest(self):
        for name in (name for name in dir(self) if name.startswith("test_")):
            self.setUp()
            getattr(self, name)()
            self.tearDown()


def base_classes() -> types.ModuleType:
    module = types.ModuleType("slicer.ScriptedLoadableModule")
    classes = (
        ScriptedLoadableModule,
        ScriptedLoadableModuleWidget,
        ScriptedLoadableModuleLogic,
        ScriptedLoadableModuleTest,
    )
    module.__all__ = [cls.__name__ for cls in classes]
    for cls in classes:
        setattr(module, cls.__name__, cls)
    return module


# What the application holds --------------------------------------------------------------------------


@standin
class qSlicerScriptedLoadableModuleWidget(qMRMLWidget):
    """The panel's place in the application: makes the Python widget, enters, leaves and reloads it."""

    def __init__(self, module, parent=None):
        super().__init__(parent)
        self._module = module
        self._python = None
        self._entered = False
        qt.QVBoxLayout(self)
        self.objectName = f"{module.name}ModuleWidget"
        self.setMRMLScene(slicer.mrmlScene)
        self._make()

    isEntered = property(lambda self: self._entered)

    def self(self):
        return self._python

    def enter(self):
        self._entered = True
        getattr(self._python, "enter", lambda: None)()

    def exit(self):
        self._entered = False
        getattr(self._python, "exit", lambda: None)()

    def reload(self):
        self._make()

    def _make(self):
        self._python = getattr(sys.modules[self._module.name], f"{self._module.name}Widget")(self)
        setattr(slicer.modules, f"{self._module.name}Widget", self._python)
        self._python.setup()


class qSlicerScriptedLoadableModule:
    """A scripted module read from ``path``, as ``slicer.modules.<name in lower case>``."""

    def __init__(self, path: Path):
        self.path = str(path)
        self.name = Path(path).stem
        self.title, self.categories, self.dependencies, self.contributors = "", [], [], []
        self.helpText = self.acknowledgementText = ""
        self.icon = None
        self.hidden = False
        self._widget = None
        if str(Path(path).parent) not in sys.path:
            sys.path.insert(0, str(Path(path).parent))
        spec = importlib.util.spec_from_file_location(self.name, self.path)
        source = importlib.util.module_from_spec(spec)
        sys.modules[self.name] = source
        spec.loader.exec_module(source)
        self._python = getattr(source, self.name)(self)
        setattr(slicer.modules, self.name.lower(), self)
        setattr(slicer.modules, f"{self.name}Instance", self._python)

    def self(self):
        return self._python

    def widgetRepresentation(self):
        if self._widget is None:
            self._widget = qSlicerScriptedLoadableModuleWidget(self)
        return self._widget

    def discard(self):
        """Unloads the module: its widget is asked to clean up and goes."""
        slicer.app.moduleManager().emit("moduleAboutToBeUnloaded(QString)", self.name)
        for name in (self.name.lower(), f"{self.name}Instance", f"{self.name}Widget"):
            if hasattr(slicer.modules, name):
                delattr(slicer.modules, name)
        if self._widget is not None:
            # At once: what is left to the event loop would go on observing the scene, one panel more with each test.
            shiboken6.delete(self._widget)
            self._widget = None
