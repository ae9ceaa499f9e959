"""``slicer.app``: scene, logics, layout, main window; and the start of it all."""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
import types
from collections.abc import Callable
from pathlib import Path

import slicer
import vtk

from bench import (
    ctk_widgets,
    dialogs,
    main_window,
    mrml_widgets,
    packages,
    parameter_node,
    scripted_module,
    segment_editor,
    view_menu,
    views,
)  # fmt: skip
from bench.pythonqt import qt_module

qt = qt_module()

_application: Application | None = None


class Signals:
    """``connect("name(types)", f)`` of application objects that are no widgets, with ``emit`` in the same words."""

    def __init__(self) -> None:
        self._slots: dict[str, list[Callable]] = {}

    def connect(self, signal: str, slot: Callable) -> bool:
        self._slots.setdefault(signal, []).append(slot)
        return True

    def disconnect(self, signal: str, slot: Callable) -> bool:
        if slot not in self._slots.get(signal, []):
            return False
        self._slots[signal].remove(slot)
        return True

    def emit(self, signal: str, *arguments) -> None:
        for slot in list(self._slots.get(signal, [])):
            slot(*arguments)


class ModuleManager(Signals):
    def __init__(self) -> None:
        super().__init__()
        self._modules = {}

    def module(self, name):
        return self._modules.get(name)

    def modulesNames(self):
        return list(self._modules)

    def load(self, path) -> scripted_module.qSlicerScriptedLoadableModule:
        """Loads the scripted module in the file ``path``, in place of one of the same name."""
        name = Path(path).stem
        if name in self._modules:
            self.unload(name)
        self._modules[name] = scripted_module.qSlicerScriptedLoadableModule(Path(path))
        return self._modules[name]

    def unload(self, name):
        slicer.app.mainWindow().moduleSelector().leave(name)
        self._modules.pop(name).discard()


class Application(Signals):
    """qSlicerApplication: one for the process, see :func:`start_application`."""

    applicationName = "Slicer"
    applicationVersion = "5.13.0"
    majorVersion, minorVersion = 5, 13
    revision = "bench"
    os, arch = "linux", "amd64"
    documentationBaseUrl = "https://slicer.readthedocs.io/en/latest/"

    def __init__(self) -> None:
        super().__init__()
        qt.QCoreApplication.setOrganizationName("MedDPM")
        qt.QCoreApplication.setApplicationName("bench")
        self.qt = qt.QApplication.instance() or qt.QApplication(["bench"])
        self.temporaryPath = tempfile.mkdtemp(prefix="bench-")
        self.slicerHome = self.temporaryPath
        qt.QSettings.setDefaultFormat(qt.QSettings.IniFormat)
        qt.QSettings.setPath(qt.QSettings.IniFormat, qt.QSettings.UserScope, self.temporaryPath)
        #: Exceptions that escaped from a slot or an observer, and VTK's errors and warnings (text): in the application
        #: lines in the log, here a failure.
        self.errors: list[BaseException | str] = []
        self._hook = sys.excepthook
        sys.excepthook = self._on_exception
        for event in ("ErrorEvent", "WarningEvent"):
            vtk.vtkOutputWindow.GetInstance().AddObserver(event, self._on_vtk_message)
        self._environment = qt.QProcessEnvironment.systemEnvironment()
        self._scene = slicer.vtkMRMLScene()
        slicer.mrmlScene = self._scene
        self._logic = slicer.vtkSlicerApplicationLogic()
        self._manager = ModuleManager()
        slicer.app = self
        self._offer_modules()
        self._set_up_logics()
        self._window = main_window.MainWindow()
        self._layout = views.LayoutManager(self._scene, self._logic, self._window.viewport)
        self._follow_nodes()
        view_menu.qSlicerSubjectHierarchyPluginHandler(self)

    # What modules call

    def mrmlScene(self):
        return self._scene

    def applicationLogic(self):
        return self._logic

    def layoutManager(self):
        return self._layout

    def mainWindow(self):
        return self._window

    def moduleManager(self):
        return self._manager

    def topLevelWidgets(self):
        return qt.QApplication.topLevelWidgets()

    def processEvents(self, *arguments):
        qt.QApplication.processEvents(*arguments)

    def testingEnabled(self):
        return False

    def userSettings(self):
        return qt.QSettings()

    settings = userSettings

    def startupEnvironment(self):
        return self._environment

    def translate(self, context, text):
        return text

    def pauseRender(self):
        self._layout.pauseRender()

    def resumeRender(self):
        self._layout.resumeRender()

    def setRenderPaused(self, pause):
        self.pauseRender() if pause else self.resumeRender()

    def setOverrideCursor(self, cursor):
        qt.QApplication.setOverrideCursor(cursor)

    def restoreOverrideCursor(self):
        qt.QApplication.restoreOverrideCursor()

    def clipboard(self):
        return qt.QApplication.clipboard()

    def primaryScreen(self):
        return qt.QApplication.primaryScreen()

    def coreIOManager(self):
        return _CoreIOManager(self)

    # What tests call

    def quit(self):
        """As the user's exit: modules clean up, then ``aboutToQuit()``, then nothing is left on disk."""
        for name in self._manager.modulesNames():
            self._manager.unload(name)
        self.emit("aboutToQuit()")
        sys.excepthook = self._hook
        shutil.rmtree(self.temporaryPath, ignore_errors=True)

    def close_scene(self):
        """File > Close scene."""
        self._scene.Clear(False)
        self.processEvents()

    def _on_exception(self, kind, value, traceback):
        self.errors.append(value)
        self._hook(kind, value, traceback)

    @vtk.calldata_type(vtk.VTK_STRING)
    def _on_vtk_message(self, window, event, text):
        self.errors.append(text)

    # The start

    def _offer_modules(self):
        offered = {
            "qt": qt,
            "ctk": ctk_widgets.ctk_module(),
            "slicer.ScriptedLoadableModule": scripted_module.base_classes(),
            "slicer.parameterNodeWrapper": parameter_node,
            "slicer.packaging": packages.packaging_module(),
            "slicer.i18n": packages.i18n_module(),
            "SampleData": packages.sample_data_module(),
            "PyTorchUtils": packages.pytorch_utils_module(),
        }
        for name, module in offered.items():
            sys.modules[name] = module
            if name.startswith("slicer."):
                setattr(slicer, name.partition(".")[2], module)
        for source in (mrml_widgets, segment_editor, view_menu, views, scripted_module):
            for name, value in vars(source).items():
                if name.startswith(("qMRML", "qSlicer")):
                    setattr(slicer, name, value)
        slicer.qMRMLUtils = _Utils

    def _set_up_logics(self):
        self._logic.SetMRMLScene(self._scene)
        self._logic.SetTemporaryPath(self.temporaryPath)
        self._logic.SetHomeDirectory(self.slicerHome)
        self._logic.SetShareDirectory("share")
        os.makedirs(os.path.join(self.slicerHome, "share", "ColorFiles"))  # color tables are looked for there
        self._logic.GetColorLogic().SetMRMLScene(self._scene)
        self._logic.GetColorLogic().AddDefaultColorNodes()
        slicer.modules = types.SimpleNamespace()
        # The order of Slicer: segmentations before any segmentation node, or none gets a closed surface.
        for name, cls in (
            ("subjecthierarchy", slicer.vtkSlicerSubjectHierarchyModuleLogic),
            ("colors", slicer.vtkSlicerColorLogic),
            ("volumes", slicer.vtkSlicerVolumesLogic),
            ("segmentations", slicer.vtkSlicerSegmentationsModuleLogic),
        ):
            logic = cls()
            logic.SetMRMLApplicationLogic(self._logic)
            logic.SetMRMLScene(self._scene)
            self._logic.SetModuleLogic(name.capitalize(), logic)
            setattr(slicer.modules, name, types.SimpleNamespace(name=name, logic=lambda logic=logic: logic))

    def _follow_nodes(self):
        """Gives each node that users see its item in the subject hierarchy, and takes it away with the node."""
        scene = slicer.vtkMRMLScene
        self._scene.AddObserver(scene.NodeAddedEvent, self._on_node_added)
        self._scene.AddObserver(scene.NodeAboutToBeRemovedEvent, self._on_node_removed)
        for event in (scene.EndImportEvent, scene.EndBatchProcessEvent, scene.EndCloseEvent):
            self._scene.AddObserver(event, lambda *_: self._add_missing_items())

    @vtk.calldata_type(vtk.VTK_OBJECT)
    def _on_node_added(self, scene, event, node):
        if node.IsA("vtkMRMLSubjectHierarchyNode"):
            slicer.vtkMRMLSubjectHierarchyNode.ResolveSubjectHierarchy(scene)
        elif not scene.IsImporting():
            self._add_item(node)

    @vtk.calldata_type(vtk.VTK_OBJECT)
    def _on_node_removed(self, scene, event, node):
        hierarchy = scene.GetSubjectHierarchyNode()
        if hierarchy is not None and not scene.IsClosing():
            item = hierarchy.GetItemByDataNode(node)
            if item:
                hierarchy.RemoveItem(item, False, False)

    def _add_item(self, node):
        shown = (
            "vtkMRMLVolumeNode",
            "vtkMRMLSegmentationNode",
            "vtkMRMLTransformNode",
            "vtkMRMLMarkupsNode",
            "vtkMRMLTableNode",
        )
        if node.GetHideFromEditors() or not any(map(node.IsA, shown)):
            return
        hierarchy = slicer.vtkMRMLSubjectHierarchyNode.GetSubjectHierarchyNode(self._scene)
        if not hierarchy.GetItemByDataNode(node):
            hierarchy.CreateItem(hierarchy.GetSceneItemID(), node)

    def _add_missing_items(self):
        slicer.vtkMRMLSubjectHierarchyNode.ResolveSubjectHierarchy(self._scene)
        for node in slicer.util.getNodesByClass("vtkMRMLNode", self._scene):
            self._add_item(node)


class _CoreIOManager:
    """Loads and saves what ``slicer.util`` asks for: scenes and volumes."""

    def __init__(self, application: Application) -> None:
        self._application = application

    def fileWriterFileType(self, node):
        return node.GetClassName()

    def saveNodes(self, filetype, properties, messages=None):
        scene = self._application.mrmlScene()
        if filetype == "SceneFile":
            if not properties["fileName"].endswith(".mrb"):
                raise NotImplementedError("the bench saves scenes as .mrb")
            return scene.WriteToMRB(properties["fileName"])
        node = scene.GetNodeByID(properties["nodeID"])
        storage = node.GetStorageNode() or node.CreateDefaultStorageNode()
        storage.SetFileName(properties["fileName"])
        return bool(storage.WriteData(node))

    def loadNodes(self, filetype, properties, loaded, messages=None):
        if filetype == "SceneFile":
            logic = self._application.applicationLogic()
            folder = tempfile.mkdtemp(dir=self._application.temporaryPath)
            if properties.get("clear", False):
                self._application.mrmlScene().Clear(False)
            return logic.OpenSlicerDataBundle(properties["fileName"], folder)
        if filetype != "VolumeFile":
            raise NotImplementedError(f"the bench loads no {filetype}")
        name = properties.get("name") or os.path.basename(properties["fileName"]).partition(".")[0]
        node = slicer.modules.volumes.logic().AddArchetypeVolume(properties["fileName"], name)
        if node is not None:
            loaded.AddItem(node)
        return node is not None


class _Utils:
    """``slicer.qMRMLUtils``: pictures between VTK and Qt."""

    def vtkImageDataToQImage(self, imageData, qImage):
        from vtk.util.numpy_support import vtk_to_numpy

        columns, rows, _ = imageData.GetDimensions()
        pixels = vtk_to_numpy(imageData.GetPointData().GetScalars()).reshape(rows, columns, -1)[::-1, :, :3].copy()
        qImage.swap(qt.QImage(pixels.data, columns, rows, 3 * columns, qt.QImage.Format_RGB888).copy())
        return True


def start_application() -> Application:
    """The application, with everything a module can import in place; made on the first call."""
    global _application
    if _application is None:
        dialogs.install()
        _application = Application()
        _application.emit("startupCompleted()")
    return _application
