"""The study in Slicer as a reader drives it: on the headless bench, by clicks and keys alone."""

# ruff: noqa: F811 (fixtures are imported by their names)

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
from bench import dialogs, start_application
from bench.fixtures import application  # noqa: F401
from study_cases import PASSPHRASE, make_study, small_plan
from test_packaging import cmake_list, files

start_application()

import qt  # isort: skip
import slicer  # isort: skip
import vtk  # isort: skip

from MedDPMLib.scene.study.panel import END, PAUSE, READING, START
from MedDPMLib.study.answers import read_answers
from MedDPMLib.study.create import create
from MedDPMLib.study.definition import Sessions, Tasks, read_definition
from MedDPMLib.study.order import PAIR
from MedDPMLib.study.pack import pack
from MedDPMLib.study.truth import read_truth

MODULE = Path(__file__).parents[1] / "MedDPMStudy" / "MedDPMStudy.py"


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    tasks = Tasks(True, True, ("cortex", "vessels"))
    return make_study(tmp_path_factory.mktemp("study"), tasks=tasks, sessions=Sessions(length=40, training=2))


@pytest.fixture
def archive(study, tmp_path):
    return pack(study, tmp_path)[0]


@pytest.fixture
def module(application):
    """The module's panel on an empty scene, in a main window of 1280 x 800 with tool bars, a menu and a panel."""
    window = application.mainWindow()
    window.resize(1280, 800)
    bar = window.addToolBar("Modules")
    action = bar.addAction("Volumes")
    menu = window.menuBar().addMenu("File")
    menu.addAction("Recent: patient_synthetic.nii.gz")
    shortcut = qt.QShortcut(qt.QKeySequence("Ctrl+3"), window)  # another module's
    dock = qt.QDockWidget("Data", window)
    window.addDockWidget(qt.Qt.RightDockWidgetArea, dock)
    crosshair = slicer.mrmlScene.AddNode(slicer.vtkMRMLCrosshairNode())  # the application's own
    application.moduleManager().load(MODULE)
    slicer.util.selectModule("MedDPMStudy")
    widget = slicer.util.getModuleWidget("MedDPMStudy")
    widget.test_bar, widget.test_action, widget.test_dock, widget.test_shortcut = bar, action, dock, shortcut
    yield widget
    application.moduleManager().unload("MedDPMStudy")
    slicer.mrmlScene.RemoveNode(crosshair)
    window.removeToolBar(bar)
    bar.deleteLater()
    menu.deleteLater()
    dock.deleteLater()
    shortcut.deleteLater()
    window.resize(1420, 900)


def press(module, key: str) -> None:
    """A key: what its shortcut does while it is on."""
    keys = module.panel.keys
    shortcut = dict(zip(keys._actions, keys._shortcuts, strict=True))[key]
    if shortcut.enabled:
        shortcut.activated.emit()
    slicer.app.processEvents()


def begin(module, archive) -> None:
    module.panel.open(archive)
    assert module.ui.beginButton.enabled, module.ui.startMessage.text
    module.ui.beginButton.click()
    slicer.app.processEvents()


def answer_by_keys(module) -> None:
    presentation = module.panel.reading.current
    for key in ("Right",) if presentation.kind == PAIR else ("4", "2", "5"):
        press(module, key)
    press(module, "Space")
    if presentation.training:  # the truth is told over the case; keys change nothing any more
        assert module.ui.messageLabel.text.startswith("Training. ") and module.panel.views.nodes
        press(module, "1")
        press(module, "Space")


# The story -------------------------------------------------------------------------------------------


def test_a_study_from_start_to_end_with_the_keyboard_alone(module, archive, tmp_path):
    begin(module, archive)
    panel, ui = module.panel, module.ui
    total = len(panel.task.presentations)
    for number in range(total):
        assert ui.pages.currentIndex == READING and ui.progressLabel.text.startswith(f"{number + 1} of {total}")
        assert not ui.nextButton.enabled
        answer_by_keys(module)
        assert not ui.messageLabel.text
    assert ui.pages.currentIndex == END and not panel.views.nodes
    dialogs.reply_with(str(tmp_path / "back"))
    (tmp_path / "back").mkdir()
    ui.exportButton.click()
    whose, given = read_answers(tmp_path / "back" / "ada.answers.sqlite")
    assert whose["reader"] == "Ada" and len(given) == total
    singles = [one for one in given if "rating" in one]
    assert all(one["rating"] == 4 and one["scores"] == {"cortex": 2, "vessels": 5} for one in singles)
    assert all(one["seconds"] > 0 and one["windows"] == [[255, 127.5]] for one in given)
    ui.closeButton.click()
    assert ui.pages.currentIndex == START and panel.reading is None


def test_every_button_does_what_its_key_does(module, archive):
    begin(module, archive)
    panel, ui = module.panel, module.ui
    for value, button in panel.questions._rows[""]:
        button.click()
        assert panel.questions.given["rating"] == value and button.checked
    for domain in ("cortex", "vessels"):
        panel.questions._rows[domain][2][1].click()
    assert panel.questions.given["scores"] == {"cortex": 3, "vessels": 3} and ui.nextButton.enabled
    ui.whyButton.click()
    assert not ui.reasonBox.isHidden() and not panel.keys._shortcuts[0].enabled
    ui.reasonText.setPlainText("the vessel ends at 3 o'clock")
    crosshair = slicer.mrmlScene.GetFirstNodeByClass("vtkMRMLCrosshairNode")
    crosshair.SetCrosshairRAS(12.0, -8.0, 4.0)
    ui.markButton.click()
    ui.doneButton.click()
    assert ui.reasonBox.isHidden() and panel.keys._shortcuts[0].enabled
    ui.nextButton.click()
    assert "was synthetic" in ui.messageLabel.text or "was real" in ui.messageLabel.text
    ui.nextButton.click()
    given = panel.reading.answers.given[0]
    assert given["reason"].startswith("the vessel") and given["point"] == [12.0, -8.0, 4.0]
    press(module, "Up")  # without the mouse: where the slices meet
    press(module, "M")
    assert module.panel._point == (2.0, 2.0, 6.0) == tuple(crosshair.GetCrosshairRAS())  # voxels of 4 mm


def test_keys_write_while_a_reason_is_written(module, archive):
    begin(module, archive)
    press(module, "W")
    press(module, "3")
    assert module.panel.questions.given == {} and not module.ui.reasonBox.isHidden()
    press(module, "Esc")
    press(module, "3")
    assert module.panel.questions.given == {"rating": 3}


def test_slices_windows_and_views_are_recorded(module, archive):
    begin(module, archive)
    panel = module.panel
    for key in ("Up", "Up", "PgDown", "V", "Down"):
        press(module, key)
    node = panel.views.nodes[0]
    node.GetDisplayNode().SetWindowLevel(120, 70)
    assert panel.reading.watched.windows[-1] == (120, 70)
    press(module, "0")
    assert panel.reading.watched.windows[-1] == (255, 127.5)
    seen = panel.reading.watched.slices
    assert len(seen["Study1 Axial"]) >= 3 and len(seen["Study2 Coronal"]) >= 1
    answer_by_keys(module)
    assert panel.reading.answers.given[0]["slices"]["Study1 Axial"] >= 3


def test_a_pair_is_seen_side_by_side_at_one_height_through_one_window(module, archive):
    begin(module, archive)
    panel = module.panel
    while panel.reading.current.kind != PAIR:
        answer_by_keys(module)
    slicer.app.processEvents()
    assert [node.GetName() for node in panel.views.nodes] == ["Left", "Right"]
    press(module, "Up")
    left, right = (widget.mrmlSliceNode() for widget in panel.views._widgets())
    assert left.GetSliceOffset() == right.GetSliceOffset() == 6.0
    panel.views.nodes[0].GetDisplayNode().SetWindowLevel(90, 60)
    assert panel.views.nodes[1].GetDisplayNode().GetWindow() == 90
    press(module, "V")
    assert {left.GetOrientation(), right.GetOrientation()} == {"Coronal"}
    press(module, "Left")
    assert panel.questions.given == {"side": 0}


def test_contrasts_stand_side_by_side_at_one_height(module, tmp_path):
    plan = small_plan(tmp_path, real=3, synthetic=3, readers=("Ada",))
    for cases in (plan.real, plan.synthetic["model"]):
        for files_ in cases.values():
            files_["flair"] = files_["t1"]
    create(tmp_path / "two", dataclasses.replace(plan, contrasts=("t1", "flair")), PASSPHRASE)
    begin(module, pack(tmp_path / "two", tmp_path)[0])
    panel = module.panel
    assert [node.GetName() for node in panel.views.nodes] == ["Case t1", "Case flair"]
    press(module, "Down")
    offsets = [widget.mrmlSliceNode().GetSliceOffset() for widget in panel.views._widgets()]
    assert offsets == [-2.0, -2.0]
    press(module, "V")
    assert {widget.mrmlSliceNode().GetOrientation() for widget in panel.views._widgets()} == {"Coronal"}


def test_a_pause_covers_the_case_and_stops_the_clock(module, archive):
    begin(module, archive)
    panel, ui = module.panel, module.ui
    press(module, "P")
    assert ui.pages.currentIndex == PAUSE and panel.reading.paused
    composites = [widget.mrmlSliceCompositeNode() for widget in panel.views._widgets()]
    assert {composite.GetBackgroundVolumeID() for composite in composites} == {None}
    seconds = panel.reading.watch.seconds
    press(module, "4")
    assert panel.questions.given == {} and panel.reading.watch.seconds == seconds
    ui.resumeButton.click()
    assert ui.pages.currentIndex == READING
    assert {composite.GetBackgroundVolumeID() for composite in composites} == {panel.views.nodes[0].GetID()}
    press(module, "4")
    assert panel.questions.given == {"rating": 4}


def test_a_session_ends_and_the_next_one_waits_for_its_washout(module, tmp_path):
    sessions = Sessions(length=3, washout_days=2, training=0, repeats=0)
    study = make_study(tmp_path, real=3, synthetic=3, readers=("Ada",), sessions=sessions)
    begin(module, pack(study, tmp_path)[0])
    for _ in range(3):
        press(module, "4")
        press(module, "Space")
    assert module.ui.pages.currentIndex == START and "session is done" in module.ui.startMessage.text
    assert not module.panel.screen.entered
    module.ui.beginButton.click()
    assert module.panel.reading is None and "in 2.0 days" in module.ui.startMessage.text


def test_after_a_while_a_break_is_suggested(module, archive):
    begin(module, archive)
    module.panel._look()
    assert not module.ui.messageLabel.text
    module.panel.reading.work._gone = 21 * 60
    module.panel._look()
    assert "break" in module.ui.messageLabel.text
    press(module, "P")
    module.ui.resumeButton.click()
    assert not module.ui.messageLabel.text and not module.panel.reading.break_is_due()


def test_scripts_read_without_the_screen_and_the_self_test_passes(module, archive):
    import MedDPMStudy

    with MedDPMStudy.MedDPMStudyLogic().openStudy(archive) as reading:
        reading.show()
        reading.answer({"rating": 4, "scores": {"cortex": 1, "vessels": 2}})
        assert reading.progress[0] == 2
    slicer.modules.MedDPMStudyInstance.runTest()


# Nothing tells, nothing else is reached ---------------------------------------------------------------


def everything_that_is_readable() -> str:
    """All text of the application: scene, subject hierarchy, window, widgets, actions, settings, corners."""
    words = []
    scene = slicer.mrmlScene
    for index in range(scene.GetNumberOfNodes()):
        node = scene.GetNthNode(index)
        words += [node.GetName(), node.GetID(), node.GetDescription() or "", node.GetSingletonTag() or ""]
        words += [f"{name} {node.GetAttribute(name)}" for name in node.GetAttributeNames()]
        if node.IsA("vtkMRMLStorageNode"):
            words.append(node.GetFileName() or "")
        if node.IsA("vtkMRMLStorableNode") and node.GetStorageNode() is not None:
            words.append(node.GetStorageNode().GetFileName() or "")
    hierarchy = scene.GetSubjectHierarchyNode()
    if hierarchy is not None:
        items = vtk.vtkIdList()
        hierarchy.GetItemChildren(hierarchy.GetSceneItemID(), items, True)
        words += [hierarchy.GetItemName(items.GetId(n)) for n in range(items.GetNumberOfIds())]
    words.append(scene.GetURL() or "")
    window = slicer.util.mainWindow()
    for widget in [window, *window.findChildren(qt.QWidget)]:
        for name in ("windowTitle", "text", "toolTip", "statusTip", "accessibleName", "title"):
            value = getattr(widget, name, "")
            words.append(value if isinstance(value, str) else "")
    settings = qt.QSettings()
    words += [f"{key} {settings.value(key)}" for key in settings.allKeys()]
    layout = slicer.app.layoutManager()
    for name in layout.sliceViewNames():
        annotation = layout.sliceWidget(name).sliceView().cornerAnnotation()
        words += [annotation.GetText(corner) or "" for corner in range(8)]
    return "\n".join(words)


def test_nothing_that_can_be_read_gives_the_truth_away(module, archive, study):
    truth = read_truth(study, PASSPHRASE, read_definition(study).hash)["cases"]
    begin(module, archive)
    panel = module.panel
    told: dict[int, set[str]] = {0: set(), 1: set()}
    while panel.reading.current.kind != PAIR:
        presentation = panel.reading.current
        case = presentation.cases[0]
        shown = everything_that_is_readable()
        for secret in (case, truth[case]["name"], "SYNTHETIC", ".nii", str(panel.task.folder), "truth", "model"):
            assert secret not in shown.replace("Recent: patient_synthetic.nii.gz", ""), secret
        if (
            not module.ui.messageLabel.text and not presentation.training
        ):  # the feedback of training tells the answer, to the case before
            # Numbers go: the progress, and what VTK and the layout count on.
            plain = "".join(letter for letter in shown if not letter.isdigit())
            told[truth[case]["synthetic"]].add(frozenset(plain.splitlines()))
        answer_by_keys(module)
    assert told[0] and told[0] == told[1]  # the same words for both classes


def test_voxel_values_of_both_classes_lie_on_the_same_levels(module, archive, study):
    truth = read_truth(study, PASSPHRASE, read_definition(study).hash)["cases"]
    begin(module, archive)
    found = {0: set(), 1: set()}
    while module.panel.reading.current.kind != PAIR:
        case = module.panel.reading.current.cases[0]
        array = slicer.util.arrayFromVolume(module.panel.views.nodes[0])
        found[truth[case]["synthetic"]].add((array.dtype, array.shape, int(array.min()), int(array.max())))
        answer_by_keys(module)
    assert found[0] == found[1] and len(found[0]) == 1


def test_only_the_study_can_be_reached_and_leaving_asks(module, archive):
    window = slicer.util.mainWindow()
    begin(module, archive)
    assert module.test_bar.isHidden() and window.menuBar().isHidden() and module.test_dock.isHidden()
    assert not [action for action in window.findChildren(qt.QAction) if action.enabled and action.text == "Volumes"]
    assert not module.test_action.enabled and not module.test_shortcut.enabled
    nodes = slicer.util.getNodesByClass("vtkMRMLScalarVolumeNode")
    assert nodes and all(node.GetHideFromEditors() and not node.GetSaveWithScene() for node in nodes)
    press(module, "5")
    dialogs.reply_with(qt.QMessageBox.Cancel, qt.QMessageBox.Ok)
    module.ui.leaveButton.click()
    assert module.ui.pages.currentIndex == READING
    module.ui.leaveButton.click()
    assert module.ui.pages.currentIndex == START and "Leave the study" in dialogs.shown[-1].text
    assert not module.test_bar.isHidden() and not window.menuBar().isHidden() and module.test_action.enabled
    assert module.test_shortcut.enabled
    assert not slicer.util.getNodesByClass("vtkMRMLScalarVolumeNode") and not module.panel.keys._shortcuts
    begin(module, archive)  # the open case is asked again
    assert module.panel.reading.current.number == 0


def test_a_scene_with_data_is_closed_only_after_a_question(module, archive):
    volume = slicer.util.addVolumeFromArray(np.zeros((4, 4, 4), np.int16), name="Patient")
    module.panel.open(archive)
    dialogs.reply_with(qt.QMessageBox.Cancel)
    module.ui.beginButton.click()
    assert module.panel.reading is None and volume.GetScene() is slicer.mrmlScene
    dialogs.reply_with(qt.QMessageBox.Ok)
    module.ui.beginButton.click()
    slicer.app.processEvents()
    assert module.panel.reading is not None
    assert [node.GetName() for node in slicer.util.getNodesByClass("vtkMRMLScalarVolumeNode")] == ["Case"]


def test_leaving_in_other_ways_keeps_the_answers(module, archive, application):
    begin(module, archive)
    answer_by_keys(module)
    application.close_scene()
    assert module.panel.reading is None and module.ui.pages.currentIndex == START
    begin(module, archive)
    assert module.panel.reading.current.number == 1
    module.exit()
    assert module.panel.reading is None and not module.panel.screen.entered


@pytest.mark.parametrize("kind", ["missing", "damaged", "open elsewhere"])
def test_what_cannot_be_opened_is_said(module, archive, kind):
    if kind == "missing":
        archive = archive.with_name("nothing.study.zip")
    elif kind == "damaged":
        archive.write_bytes(b"PK" + bytes(100))
    else:
        from MedDPMLib.study.pack import unpack
        from MedDPMLib.study.reading import Reading

        other = Reading(unpack(archive, archive.with_name("ada")))
    module.panel.open(archive)
    if kind == "open elsewhere":
        module.ui.beginButton.click()
        other.close()
        assert "in another window" in module.ui.startMessage.text
    else:
        assert archive.name in module.ui.startMessage.text and not module.ui.beginButton.enabled


def test_everything_fits_a_screen_of_1280_by_800(module, archive):
    slicer.util.mainWindow().show()
    begin(module, archive)
    panel = slicer.util.mainWindow().panel()
    needed = module.ui.pages.minimumSizeHint
    assert needed.width() <= 420 and needed.height() <= 740
    assert panel.width <= 640


def test_the_module_is_packaged_whole_and_in_the_extension_s_category(module):
    folder = MODULE.parent
    listed = cmake_list(folder / "CMakeLists.txt", "MODULE_PYTHON_SCRIPTS")
    listed += cmake_list(folder / "CMakeLists.txt", "MODULE_PYTHON_RESOURCES")
    assert set(listed) == files(folder)
    assert slicer.modules.meddpmstudy.categories == ["Image Synthesis"]
    assert "add_subdirectory(MedDPMStudy)" in (folder.parent / "CMakeLists.txt").read_text(encoding="utf-8")
