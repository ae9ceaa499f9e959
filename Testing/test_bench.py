"""Does the bench behave as 3D Slicer does where modules would notice?

What is asserted here was seen in a running 3D Slicer 5.13 (PythonQt on Qt 5.15).
"""

from __future__ import annotations

import enum
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Annotated

import numpy as np
import pytest
import shiboken6
from bench import dialogs, packages, start_application, system
from bench.fixtures import application  # noqa: F401

start_application()

import ctk
import qt
import slicer
import vtk
from slicer.parameterNodeWrapper import Choice, Default, WithinRange, parameterNodeWrapper

pytestmark = pytest.mark.usefixtures("application")


def wait_until(application, condition, seconds=10.0):  # noqa: F811
    timer = qt.QElapsedTimer()
    timer.start()
    while not condition() and timer.elapsed() < 1000 * seconds:
        application.processEvents(qt.QEventLoop.AllEvents, 20)
    assert condition()


# PythonQt --------------------------------------------------------------------------------------------


def test_properties_are_attributes_and_have_setters():
    button = qt.QPushButton("one")
    assert (button.text, button.enabled, button.checkable) == ("one", True, False)
    button.text = "two"
    button.setText(button.text + "!")
    button.enabled = False
    assert button.text == "two!" and not button.enabled and not button.isEnabled()
    button.name = "goButton"
    assert button.objectName == button.name == "goButton"
    assert button.className() == "QPushButton"
    combo = qt.QComboBox()
    combo.addItem("a", {"x": 1})
    combo.addItem("b", [2])
    combo.currentIndex = 1
    assert (combo.count, combo.currentText, combo.currentData, combo.itemData(0)) == (2, "b", [2], {"x": 1})
    table = qt.QTableWidget(2, 3)
    assert (table.rowCount, table.columnCount) == (2, 3)
    label = qt.QLabel("text")
    label.toolTip = "tip"
    assert label.text == "text" and label.toolTip == "tip"


def test_new_attributes_are_refused_on_qts_objects_and_allowed_on_pythons():
    button = qt.QPushButton()
    for name in ("enabld", "clicked", "setText"):
        with pytest.raises(AttributeError):
            setattr(button, name, None)
    with pytest.raises(AttributeError):
        slicer.qMRMLNodeComboBox().colour = 1
    timer = qt.QTimer()
    with pytest.raises(AttributeError):
        timer.singleShot = True  # a static slot hides the property
    timer.setSingleShot(True)

    class Mine(qt.QWidget):
        pass

    mine = Mine()
    mine.anything = 3
    mine.enabled = False
    assert mine.anything == 3 and not mine.isEnabled()


def test_slots_get_as_many_arguments_as_they_take():
    button, got = qt.QPushButton(), []
    button.clicked.connect(lambda *arguments: got.append(arguments))
    button.clicked.connect(lambda checked=None: got.append(checked))
    button.clicked.connect(lambda: got.append("none"))
    # The trap of a loop variable kept in a default: the signal's value lands in it.
    button.clicked.connect(lambda kept="kept": got.append(kept))
    button.click()
    assert got == [(False,), False, "none", False]
    spin, got = qt.QSpinBox(), []
    spin.valueChanged.connect(got.append)
    spin.value = 7
    assert got == [7]


def test_slots_are_disconnected():
    class Counter:
        count = 0

        def add(self):
            self.count += 1

    button, counter = qt.QPushButton(), Counter()
    button.clicked.connect(counter.add)
    button.click()
    assert button.clicked.disconnect(counter.add)
    assert not button.clicked.disconnect(counter.add)
    button.click()
    assert counter.count == 1


def test_exceptions_in_slots_are_found(application):  # noqa: F811
    button = qt.QPushButton()
    button.clicked.connect(lambda: 1 / 0)
    button.click()
    assert isinstance(application.errors.pop(), ZeroDivisionError)
    node = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLScriptedModuleNode")
    node.AddObserver(vtk.vtkCommand.ModifiedEvent, lambda *_: [][1])
    node.Modified()
    assert isinstance(application.errors.pop(), IndexError)
    slicer.vtkSlicerSegmentationsModuleLogic.SetBinaryLabelmapToSegment(None, None, "x")
    assert "Invalid input" in application.errors.pop()


def test_process_talks_in_bytes_and_finishes_with_its_code(application):  # noqa: F811
    process, out, codes = qt.QProcess(), [], []
    process.readyReadStandardOutput.connect(lambda: out.append(process.readAllStandardOutput().data()))
    process.finished.connect(lambda *arguments: codes.append(arguments))
    process.start(sys.executable, ["-c", "print(input() + '!'); raise SystemExit(3)"])
    process.write("über\n")
    wait_until(application, lambda: codes)
    assert b"".join(out).decode().strip() == "über!"
    assert codes == [(3,)]
    assert process.state() == qt.QProcess.NotRunning and process.exitStatus() == qt.QProcess.NormalExit


def test_settings_keep_types():
    settings = qt.QSettings()
    settings.setValue("bench/number", 3)
    settings.setValue("bench/flag", "true")
    assert settings.value("bench/number") == 3
    assert slicer.util.settingsValue("bench/flag", False, converter=slicer.util.toBool) is True


def test_nothing_that_pythonqt_lacks_is_offered():
    for name in ("Signal", "Slot", "Property"):
        assert not hasattr(qt, name)


# Widgets ---------------------------------------------------------------------------------------------

FORM = """
<ui version="4.0"><class>Panel</class>
 <widget class="qMRMLWidget" name="Panel"><layout class="QVBoxLayout" name="layout">
  <item><widget class="ctkCollapsibleButton" name="section"><property name="text"><string>Section</string></property>
   <layout class="QFormLayout" name="form">
    <item row="0" column="1"><widget class="qMRMLNodeComboBox" name="volumeSelector">
     <property name="nodeTypes"><stringlist><string>vtkMRMLScalarVolumeNode</string></stringlist></property>
     <property name="noneEnabled"><bool>true</bool></property>
     <property name="SlicerParameterName" stdset="0"><string>volume</string></property></widget></item>
    <item row="1" column="1"><widget class="QSpinBox" name="seedBox">
     <property name="SlicerParameterName" stdset="0"><string>seed</string></property></widget></item>
    <item row="2" column="1"><widget class="ctkSliderWidget" name="guidanceSlider">
     <property name="SlicerParameterName" stdset="0"><string>guidance</string></property></widget></item>
    <item row="3" column="1"><widget class="QComboBox" name="qualityBox">
     <property name="SlicerParameterName" stdset="0"><string>quality</string></property></widget></item>
    <item row="4" column="1"><widget class="QCheckBox" name="liveBox">
     <property name="SlicerParameterName" stdset="0"><string>live</string></property></widget></item>
    <item row="5" column="1"><widget class="QLineEdit" name="noteEdit">
     <property name="SlicerParameterName" stdset="0"><string>note</string></property></widget></item>
   </layout></widget></item>
  <item><widget class="qMRMLNodeComboBox" name="lonely">
   <property name="nodeTypes"><stringlist><string>vtkMRMLScalarVolumeNode</string></stringlist></property>
   </widget></item>
  <item><widget class="QPushButton" name="goButton"><property name="text"><string>Go</string></property></widget></item>
 </layout></widget>
 <connections><connection><sender>Panel</sender><signal>mrmlSceneChanged(vtkMRMLScene*)</signal>
  <receiver>volumeSelector</receiver><slot>setMRMLScene(vtkMRMLScene*)</slot></connection></connections>
</ui>
"""


def form(tmp_path, text=FORM):
    path = tmp_path / "Panel.ui"
    path.write_text(text)
    return slicer.util.loadUI(str(path))


def a_volume(name="scan", value=1):
    return slicer.util.addVolumeFromArray(np.full((4, 5, 6), value, np.float32), name=name)


def test_form_is_loaded_with_stand_ins_and_hands_on_the_scene(tmp_path):
    widget = form(tmp_path)
    ui = slicer.util.childWidgetVariables(widget)
    assert type(ui.section) is ctk.ctkCollapsibleButton
    assert type(ui.volumeSelector) is slicer.qMRMLNodeComboBox
    assert ui.volumeSelector.nodeTypes == ["vtkMRMLScalarVolumeNode"]
    assert not ui.volumeSelector.enabled
    widget.setMRMLScene(slicer.mrmlScene)
    assert ui.volumeSelector.mrmlScene() is slicer.mrmlScene and ui.volumeSelector.enabled
    # A selector that the form does not connect stays without a scene, as in Slicer.
    assert ui.lonely.mrmlScene() is None and not ui.lonely.enabled


def test_form_with_an_unknown_widget_is_an_error(tmp_path):
    with pytest.raises(RuntimeError, match="qMRMLUnheardOf"):
        form(tmp_path, FORM.replace("ctkSliderWidget", "qMRMLUnheardOf"))


def test_node_selector_follows_the_scene():
    selector, seen = slicer.qMRMLNodeComboBox(), []
    selector.nodeTypes = ["vtkMRMLVolumeNode"]
    selector.setMRMLScene(slicer.mrmlScene)
    selector.currentNodeChanged.connect(seen.append)
    assert selector.currentNode() is None
    first = a_volume("b")
    assert selector.currentNode() is first  # without "None" the first node is taken
    second = a_volume("a")
    hidden = slicer.mrmlScene.CreateNodeByClass("vtkMRMLScalarVolumeNode")
    hidden.SetHideFromEditors(1)
    slicer.mrmlScene.AddNode(hidden)
    assert [selector.nodeFromIndex(i) for i in range(selector.nodeCount())] == [second, first]
    selector.setCurrentNode(second)
    slicer.mrmlScene.RemoveNode(second)
    assert selector.currentNode() is first
    selector.noneEnabled = True
    slicer.mrmlScene.RemoveNode(first)
    assert selector.currentNode() is None and selector.currentNodeID == ""
    a_volume("c")
    assert selector.currentNode() is None  # with "None" nothing is taken by itself
    assert seen == [first, second, first, None]


def test_node_selector_hears_nothing_once_its_panel_is_gone(application):  # noqa: F811
    panel = qt.QWidget()
    selector, seen = slicer.qMRMLNodeComboBox(panel), []
    selector.nodeTypes = ["vtkMRMLVolumeNode"]
    selector.setMRMLScene(slicer.mrmlScene)
    selector.currentNodeChanged.connect(seen.append)
    shiboken6.delete(panel)
    a_volume("a")
    assert not seen and not application.errors


def test_collapsible_section_hides_what_it_showed():
    section = ctk.ctkCollapsibleButton("Advanced")
    layout = qt.QVBoxLayout(section)
    shown, hidden, gone, folded = qt.QLabel("shown"), qt.QLabel("hidden"), qt.QLabel("gone"), []
    for label in (shown, hidden, gone):
        layout.addWidget(label)
    hidden.visible = False
    section.contentsCollapsed.connect(folded.append)
    section.collapsed = True
    assert shown.isHidden() and hidden.isHidden() and gone.isHidden() and folded == [True]
    gone.visible = False
    section.collapsed = False
    assert not shown.isHidden() and hidden.isHidden() and gone.isHidden() and folded == [True, False]


def test_slider_and_box_show_one_value():
    slider, seen = ctk.ctkSliderWidget(), []
    slider.minimum, slider.maximum, slider.singleStep, slider.decimals = -1, 3, 0.25, 2
    slider.valueChanged.connect(seen.append)
    slider.value = 1.5
    slider.setValue(9)
    assert seen == [1.5, 3.0] and slider.value == 3.0


def test_segment_editor_wants_its_node_first():
    editor = slicer.qMRMLSegmentEditorWidget()
    node = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLSegmentationNode")
    id_ = node.GetSegmentation().AddEmptySegment("", "one")
    with pytest.raises(RuntimeError, match="setMRMLSegmentEditorNode"):
        editor.setSegmentationNode(node)
    editor.setMRMLSegmentEditorNode(slicer.mrmlScene.AddNewNodeByClass("vtkMRMLSegmentEditorNode"))
    editor.setMRMLScene(slicer.mrmlScene)
    editor.setSegmentationNode(node)
    scan = a_volume()
    editor.setSourceVolumeNode(scan)
    assert editor.segmentationNode() is node and editor.sourceVolumeNode() is scan and editor.currentSegmentID() == id_
    editor.setEffectNameOrder(["Paint", "Erase"])
    editor.unorderedEffectsVisible = False
    assert editor.effectCount() == 2
    editor.saveStateForUndo()
    node.GetSegmentation().RemoveSegment(id_)
    assert node.GetSegmentation().GetNumberOfSegments() == 0
    editor.undo()
    assert list(node.GetSegmentation().GetSegmentIDs()) == [id_]
    editor.setSegmentationNode(None)
    assert editor.segmentationNode() is None


# Dialogs ---------------------------------------------------------------------------------------------


def test_messages_are_recorded_and_questions_need_an_answer(tmp_path):
    slicer.util.errorDisplay("it broke", detailedText="because")
    slicer.util.warningDisplay("it creaks")
    assert dialogs.messages == ["it broke", "it creaks"]
    assert dialogs.shown[0].details == "because"
    dialogs.reply_with(qt.QMessageBox.Ok, qt.QMessageBox.No, str(tmp_path / "file"))
    assert slicer.util.confirmOkCancelDisplay("go?") is True
    assert slicer.util.confirmYesNoDisplay("really?") is False
    assert qt.QFileDialog.getOpenFileName(None, "Open", "", "*.txt") == str(tmp_path / "file")
    with pytest.raises(AssertionError, match="nobody answers"):
        slicer.util.confirmYesNoDisplay("unexpected?")


def test_failures_are_displayed_and_raised():
    with pytest.raises(ValueError), slicer.util.tryWithErrorDisplay("Could not."):
        raise ValueError("reason")
    assert dialogs.messages == ["Could not.\n\nreason"]


# Parameters ------------------------------------------------------------------------------------------


class Quality(enum.Enum):
    DRAFT = "draft"
    STANDARD = "standard"


@parameterNodeWrapper
class Parameters:
    volume: slicer.vtkMRMLScalarVolumeNode
    seed: Annotated[int, WithinRange(0, 1000)] = 7
    guidance: Annotated[float, WithinRange(0, 5)] = 1.0
    quality: Quality = Quality.STANDARD
    live: bool = True
    note: str
    model: Annotated[str, Choice(["a", "b"])] = "a"
    modalities: list[str]
    table: dict[str, int]
    sizes: Annotated[list[int], Default(generator=lambda: [1, 2])]


def a_parameter_node():
    node = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLScriptedModuleNode", "parameters")
    return node, Parameters(node)


def test_parameters_have_defaults_types_and_rules():
    _, parameters = a_parameter_node()
    assert (parameters.volume, parameters.seed, parameters.guidance, parameters.quality) == (
        None,
        7,
        1.0,
        Quality.STANDARD,
    )
    assert (parameters.live, parameters.note, parameters.model) == (True, "", "a")
    assert (list(parameters.modalities), dict(parameters.table), list(parameters.sizes)) == ([], {}, [1, 2])
    segmentation = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLSegmentationNode")
    for name, value, error in (
        ("seed", 1001, ValueError), ("seed", "7", TypeError), ("seed", None, ValueError),
        ("quality", "DRAFT", TypeError), ("volume", segmentation, TypeError), ("model", "c", ValueError),
    ):  # fmt: skip
        with pytest.raises(error):
            setattr(parameters, name, value)
    assert parameters.seed == 7


def test_parameters_are_written_to_the_node_and_read_by_the_next_wrapper():
    node, parameters = a_parameter_node()
    scan, events = a_volume(), []
    node.AddObserver(vtk.vtkCommand.ModifiedEvent, lambda *_: events.append(1))
    parameters.volume, parameters.seed, parameters.quality, parameters.live = scan, 42, Quality.DRAFT, False
    parameters.modalities = ["T1", "T2"]
    parameters.modalities.append("FLAIR")
    parameters.table = {"Segment_1": 3}
    parameters.table["Segment_2"] = 4
    assert events
    again = Parameters(node)
    assert (again.volume, again.seed, again.quality, again.live) == (scan, 42, Quality.DRAFT, False)
    assert list(again.modalities) == ["T1", "T2", "FLAIR"]
    assert dict(again.table) == {"Segment_1": 3, "Segment_2": 4}
    assert again.table.get("nothing") is None
    # The names and texts that Slicer stores.
    stored = {name: node.GetParameter(name) for name in node.GetParameterNames()}
    assert stored["seed"] == "42" and stored["quality"] == "DRAFT" and stored["live"] == "False"
    assert stored["modalities.len"] == "3" and stored["modalities.2"] == "FLAIR"
    assert stored["table.len"] == "2" and stored["table.1.0"] == "Segment_2" and stored["table.1.1"] == "4"
    again.modalities = ["T1"]
    assert "modalities.1" not in node.GetParameterNames()


def test_parameters_survive_the_scene_file(application, tmp_path):  # noqa: F811
    _, parameters = a_parameter_node()
    parameters.volume, parameters.note, parameters.table = a_volume(), 'Größe: 3; "x" & <y>', {"S_äö": 21}
    assert slicer.util.saveScene(str(tmp_path / "scene.mrb"))
    application.close_scene()
    slicer.util.loadScene(str(tmp_path / "scene.mrb"))
    loaded = Parameters(slicer.util.getNode("parameters"))
    assert loaded.volume is slicer.util.getNode("scan")
    assert loaded.note == 'Größe: 3; "x" & <y>' and dict(loaded.table) == {"S_äö": 21}


def test_parameters_and_widgets_follow_each_other(tmp_path):
    widget = form(tmp_path)
    widget.setMRMLScene(slicer.mrmlScene)
    ui = slicer.util.childWidgetVariables(widget)
    _, parameters = a_parameter_node()
    tag = parameters.connectGui(ui)
    assert [ui.qualityBox.itemText(i) for i in range(ui.qualityBox.count)] == ["DRAFT", "STANDARD"]
    assert (ui.seedBox.value, ui.seedBox.maximum, ui.qualityBox.currentText, ui.liveBox.checked) == (
        7,
        1000,
        "STANDARD",
        True,
    )
    scan = a_volume()
    ui.volumeSelector.setCurrentNode(scan)
    ui.seedBox.value = 11
    ui.guidanceSlider.value = 2.5
    ui.qualityBox.currentIndex = 0
    ui.liveBox.checked = False
    ui.noteEdit.text = "hello"
    assert (parameters.volume, parameters.seed, parameters.guidance) == (scan, 11, 2.5)
    assert (parameters.quality, parameters.live, parameters.note) == (Quality.DRAFT, False, "hello")
    parameters.seed = 12
    parameters.quality = Quality.STANDARD
    assert ui.seedBox.value == 12 and ui.qualityBox.currentText == "STANDARD"
    slicer.mrmlScene.RemoveNode(scan)
    assert parameters.volume is None
    parameters.disconnectGui(tag)
    ui.seedBox.value = 13
    parameters.live = True
    assert parameters.seed == 12 and ui.liveBox.checked is False


# A module's life -------------------------------------------------------------------------------------

MODULE = """
import qt, slicer, vtk
from slicer.i18n import tr as _
from slicer.parameterNodeWrapper import parameterNodeWrapper
from slicer.ScriptedLoadableModule import *
from slicer.util import VTKObservationMixin

calls = []

class Sample(ScriptedLoadableModule):
    def __init__(self, parent):
        ScriptedLoadableModule.__init__(self, parent)
        parent.title = _("Sample")

@parameterNodeWrapper
class SampleParameterNode:
    volume: slicer.vtkMRMLScalarVolumeNode
    seed: int = 3

class SampleWidget(ScriptedLoadableModuleWidget, VTKObservationMixin):
    def __init__(self, parent=None):
        ScriptedLoadableModuleWidget.__init__(self, parent)
        VTKObservationMixin.__init__(self)
        self._parameterNode = None
    def setup(self):
        calls.append("setup")
        ScriptedLoadableModuleWidget.setup(self)
        ui = slicer.util.loadUI(self.resourcePath("UI/Panel.ui"))
        self.layout.addWidget(ui)
        self.ui = slicer.util.childWidgetVariables(ui)
        ui.setMRMLScene(slicer.mrmlScene)
        self.logic = SampleLogic()
        self.addObserver(slicer.mrmlScene, slicer.mrmlScene.StartCloseEvent, self.onStartClose)
        self.addObserver(slicer.mrmlScene, slicer.mrmlScene.EndCloseEvent, self.onEndClose)
        self.setParameterNode(self.logic.getParameterNode())
    def cleanup(self):
        calls.append("cleanup")
        self.setParameterNode(None)
        self.removeObservers()
    def enter(self):
        calls.append("enter")
        self.setParameterNode(self.logic.getParameterNode())
    def exit(self):
        calls.append("exit")
        self.setParameterNode(None)
    def onStartClose(self, caller, event):
        calls.append("start close")
        self.setParameterNode(None)
    def onEndClose(self, caller, event):
        calls.append("end close")
        if self.parent.isEntered:
            self.setParameterNode(self.logic.getParameterNode())
    def setParameterNode(self, node):
        if self._parameterNode:
            self._parameterNode.disconnectGui(self._tag)
        self._parameterNode = node
        if node:
            self._tag = node.connectGui(self.ui)

class SampleLogic(ScriptedLoadableModuleLogic):
    def getParameterNode(self):
        return SampleParameterNode(super().getParameterNode())

class SampleTest(ScriptedLoadableModuleTest):
    def test_something(self):
        self.delayDisplay("testing")
        self.assertEqual(SampleLogic().getParameterNode().seed, 3)
"""


@pytest.fixture
def sample(application, tmp_path):  # noqa: F811
    (tmp_path / "Resources" / "UI").mkdir(parents=True)
    keep = ("volume", "seed")
    text = FORM
    for name in ("guidance", "quality", "live", "note"):
        assert name not in keep
        text = text.replace(f'<property name="SlicerParameterName" stdset="0"><string>{name}</string></property>', "")
    (tmp_path / "Resources" / "UI" / "Panel.ui").write_text(text)
    (tmp_path / "Sample.py").write_text(MODULE)
    yield application.moduleManager().load(tmp_path / "Sample.py")
    if application.moduleManager().module("Sample"):
        application.moduleManager().unload("Sample")


def test_module_is_entered_left_reloaded_and_unloaded(application, sample, tmp_path):  # noqa: F811
    calls = sys.modules["Sample"].calls
    assert slicer.modules.sample is sample and sample.title == "Sample" and not hasattr(slicer.modules, "SampleWidget")
    slicer.util.selectModule("Sample")
    assert calls == ["setup", "enter"] and slicer.util.selectedModule() == "Sample"
    widget = slicer.modules.SampleWidget
    assert slicer.util.getModuleWidget("Sample") is widget and widget.parent.isEntered
    widget.ui.seedBox.value = 9
    assert widget.logic.getParameterNode().seed == 9
    application.close_scene()
    assert calls[2:] == ["start close", "end close"] and widget.ui.seedBox.value == 3
    slicer.util.reloadScriptedModule("Sample")
    assert calls[4:] == ["cleanup"] and slicer.modules.SampleWidget is not widget
    sample.self().runTest()
    calls = sys.modules["Sample"].calls
    place = slicer.modules.SampleWidget.parent
    application.moduleManager().unload("Sample")
    assert calls == ["setup", "exit", "cleanup"] and not hasattr(slicer.modules, "sample")
    assert not shiboken6.isValid(place)


def test_choices_come_back_with_the_scene(application, sample, tmp_path):  # noqa: F811
    slicer.util.selectModule("Sample")
    widget = slicer.modules.SampleWidget
    widget.ui.volumeSelector.setCurrentNode(a_volume())
    widget.ui.seedBox.value = 77
    assert slicer.util.saveScene(str(tmp_path / "scene.mrb"))
    application.close_scene()
    assert widget.ui.seedBox.value == 3 and widget.ui.volumeSelector.currentNode() is None
    slicer.util.loadScene(str(tmp_path / "scene.mrb"))
    widget.enter()
    assert widget.ui.seedBox.value == 77 and widget.ui.volumeSelector.currentNode() is slicer.util.getNode("scan")


# Packages --------------------------------------------------------------------------------------------


def test_missing_packages_are_asked_for_and_recorded(tmp_path):
    (tmp_path / "requirements.txt").write_text("numpy>=1.20  # here\n\nnibabel>=3\n")
    requirements = slicer.packaging.load_requirements(tmp_path / "requirements.txt")
    assert slicer.packaging.pip_check(requirements)
    packages.hidden.add("nibabel")
    try:
        assert not slicer.packaging.pip_check(requirements)
        dialogs.reply_with(qt.QMessageBox.Cancel)
        with pytest.raises(RuntimeError, match="declined"):
            slicer.packaging.pip_ensure(requirements, requester="Sample")
        dialogs.reply_with(qt.QMessageBox.Ok)
        slicer.packaging.pip_ensure(requirements, requester="Sample")
        assert packages.installed.pop() == "nibabel>=3"
        assert slicer.packaging.pip_check(requirements)
    finally:
        packages.hidden.clear()


# Views -----------------------------------------------------------------------------------------------


def test_slice_views_draw_the_volume_and_layouts_bring_views():
    layout = slicer.app.layoutManager()
    assert layout.sliceViewNames()[:3] == ["Red", "Green", "Yellow"] and layout.threeDViewCount == 1
    scan = a_volume(value=100)
    scan.GetDisplayNode().SetAutoWindowLevel(False)
    scan.GetDisplayNode().SetWindowLevelMinMax(0, 100)
    view = layout.sliceWidget("Red").sliceView()
    assert view.picture().max() == 0
    slicer.util.setSliceViewerLayers(background=scan, fit=True)
    picture = view.picture()
    rows, columns, _ = picture.shape
    # 6 x 5 voxels: of a wide view the sides stay empty, of a tall one top and bottom.
    assert (picture[rows // 2, columns // 2] == 255).all() and (picture[0, 0] == 0).all()
    before = layout.layout
    layout.setLayout(slicer.vtkMRMLLayoutNode.SlicerLayoutOneUpRedSliceView)
    shown = layout.layoutLogic().GetViewNodes()
    assert [shown.GetItemAsObject(i).GetLayoutName() for i in range(shown.GetNumberOfItems())] == ["Red"]
    layout.layout = before


def test_paused_views_do_not_render(application):  # noqa: F811
    view = application.layoutManager().sliceWidget("Red").sliceView()
    scan = a_volume()
    application.mainWindow().show()
    application.processEvents()
    renders = view.renderCount()
    with slicer.util.RenderBlocker():
        slicer.util.setSliceViewerLayers(background=scan, fit=True)
        application.processEvents()
        assert view.renderCount() == renders
    application.processEvents()
    assert view.renderCount() > renders


def test_the_window_is_photographed(application, tmp_path):  # noqa: F811
    slicer.util.setSliceViewerLayers(background=a_volume(), fit=True)
    application.mainWindow().show()
    application.processEvents()
    picture = application.mainWindow().grab()
    assert picture.save(str(tmp_path / "window.png")) and picture.width() > 1000


# The system ------------------------------------------------------------------------------------------


def test_missing_libraries_are_named_as_debian_packages(monkeypatch):
    monkeypatch.setitem(system._LIBRARIES, "libnowhere.so.9", "libnowhere9")
    with pytest.raises(system.MissingPackages, match=r"apt-get install .*libnowhere9"):
        system.prepare()
    assert system.missing_packages() == ["libnowhere9"]


def test_the_end_leaves_nothing_behind():
    code = """
        from bench import start_application
        app = start_application()
        print(app.temporaryPath)
        app.quit()
    """
    result = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)],
        capture_output=True,
        text=True,
        cwd=Path(__file__).parent,
        timeout=120,
    )
    assert result.returncode == 0, result.stderr
    assert not Path(result.stdout.strip()).exists()
