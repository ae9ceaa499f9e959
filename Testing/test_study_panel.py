"""The study in Slicer as a reader drives it: on the headless bench, by clicks and keys alone."""

# ruff: noqa: F811 (fixtures are imported by their names)

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from bench import dialogs
from bench.study_driver import MODULE, answer_by_keys, application, archive, begin, module, press, study  # noqa: F401
from study_cases import PASSPHRASE, make_study, small_plan
from test_packaging import cmake_list, files

import qt  # isort: skip
import slicer  # isort: skip

from MedDPMLib.scene.study.panel import END, PAUSE, READING, START
from MedDPMLib.study.answers import read_answers
from MedDPMLib.study.create import create
from MedDPMLib.study.definition import Sessions
from MedDPMLib.study.order import PAIR
from MedDPMLib.study.pack import pack

# First use -------------------------------------------------------------------------------------------


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


def test_modalities_stand_side_by_side_at_one_height(module, tmp_path):
    plan = small_plan(tmp_path, real=3, synthetic=3, readers=("Ada",))
    for cases in (plan.real, plan.synthetic["model"]):
        for files_ in cases.values():
            files_["flair"] = files_["t1"]
    create(tmp_path / "two", dataclasses.replace(plan, modalities=("t1", "flair")), PASSPHRASE)
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


# Other input ---------------------------------------------------------------------------------------------


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
