"""How the panel gets from an empty scene to a painted mask, and from a stroke to an image; on the headless bench."""

# ruff: noqa: F811 (fixtures are imported by their names)

from __future__ import annotations

import dataclasses
import os
import subprocess
import sys
import textwrap
import threading
import time
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from bench import packages
from bench.driver import (  # noqa: F401
    GRID,
    SCHEME,
    application,
    click_effect,
    generate,
    models,
    panel,
    small_segmentation,
    start_from_template,
    stroke,
    wait_until,
    wait_until_painted,
)
from conftest import small_card, without_old_garbage, write_small_model

import qt  # isort: skip
import slicer  # isort: skip

from MedDPMLib.cli.remedies import worded
from MedDPMLib.errors import MedDPMError
from MedDPMLib.imaging.geometry import Geometry
from MedDPMLib.imaging.volume import Volume
from MedDPMLib.masks.mask import Mask
from MedDPMLib.masks.schemes import load_scheme
from MedDPMLib.scene import painting, volumes
from MedDPMLib.scene.background_work import BackgroundWork, run_now, run_responsive
from MedDPMLib.scene.panel.messages import say
from MedDPMLib.scene.segmentation import read_labels, set_label

#: In the white matter of the template, RAS in mm.
INSIDE = (28.0, 22.0, 25.0)

#: Milliseconds for which the event loop may stand still.
LONGEST = 50


def background():
    id_ = slicer.app.layoutManager().sliceWidget("Red").mrmlSliceCompositeNode().GetBackgroundVolumeID()
    return slicer.mrmlScene.GetNodeByID(id_ or "")


def put_crosshair(position):
    node = slicer.mrmlScene.GetFirstNodeByClass("vtkMRMLCrosshairNode")
    node = node or slicer.mrmlScene.AddNewNodeByClass("vtkMRMLCrosshairNode")
    node.SetCrosshairRAS(position)


# From nothing to an image ----------------------------------------------------------------------------


def test_five_clicks_and_a_stroke_make_a_volume(panel):
    """A model is chosen already; every click is a press of a button or on a row of a list."""
    clicks = 0
    panel.ui.templateButton.click()
    clicks += 1
    wait_until_painted(panel)
    assert panel.mask.editor.currentSegmentID() == "Enhancing tumor"  # else another click
    click_effect(panel, "Paint")
    clicks += 1
    stroke(panel, INSIDE, 9.0)
    panel.ui.generateButton.click()
    clicks += 1
    wait_until(lambda: panel.logic.generator.order is None)
    assert clicks <= 5
    made = volumes.results()
    assert [volumes.record_of(node)["modality"] for node in made] == ["t1", "t2"], panel.ui.messageLabel.text
    segmentation = panel.ui.segmentationSelector.currentNode()
    labels = read_labels(segmentation, panel.mask.table, SCHEME)
    assert (labels.array == SCHEME.label_by_name("Enhancing tumor").value).sum() > 1000
    painted = Mask.from_volume(labels, SCHEME, numbering=SCHEME.own_numbering)
    assert volumes.record_of(made[0])["mask"]["hash"] == painted.hash
    assert background() is made[0]


def test_a_template_can_be_painted_on_at_once(panel):
    """Slicer's Segment Editor disables its effects without a source volume: there is a blank one."""
    segmentation = start_from_template(panel)
    sheet = volumes.sheet_of(segmentation)
    assert panel.mask.editor.sourceVolumeNode() is sheet and background() is sheet
    assert not np.any(slicer.util.arrayFromVolume(sheet))
    before = read_labels(segmentation, panel.mask.table, SCHEME)
    placed = slicer.util.arrayFromVolume(sheet).shape
    assert placed == before.array.shape and segmentation.GetDisplayNode().GetVisibility2DFill()
    click_effect(panel, "Paint")
    stroke(panel, INSIDE, 6.0)
    after = read_labels(segmentation, panel.mask.table, SCHEME)
    assert np.array_equal(after.geometry.ijk_to_ras, before.geometry.ijk_to_ras)
    assert not np.array_equal(after.array, before.array)


def test_the_sheet_makes_way_for_the_image_and_comes_back(panel):
    segmentation = start_from_template(panel)
    sheet, display = volumes.sheet_of(segmentation), segmentation.GetDisplayNode()
    panel.ui.stepsBox.value = 2
    generate(panel)
    made = volumes.results()
    assert background() is made[0] and panel.mask.editor.sourceVolumeNode() is made[0]
    assert not display.GetVisibility2DFill() and display.GetVisibility2DOutline()
    panel.ui.deleteButton.click()  # what was generated last is chosen
    wait_until(lambda: panel.mask.editor.sourceVolumeNode() is sheet, 5)
    assert background() is sheet and display.GetVisibility2DFill()
    click_effect(panel, "Paint")


def test_a_sheet_lies_where_a_moved_segmentation_lies(application):
    moved = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLLinearTransformNode")
    moved.SetMatrixTransformToParent(slicer.util.vtkMatrixFromArray(np.array(
        [[0, -1, 0, 10], [1, 0, 0, -4], [0, 0, 1, 7], [0, 0, 0, 1]], float)))  # fmt: skip
    labels = np.zeros((6, 5, 4), np.uint8)
    labels[2:4, 1:3, 1:3] = SCHEME.rest.value
    node = painting.add_segmentation(Volume(labels, Geometry((4, 5, 6), np.diag([2.0, 2, 3, 1]))), SCHEME, "Brain")
    node.SetAndObserveTransformNodeID(moved.GetID())
    before = read_labels(node, {SCHEME.rest.name: SCHEME.rest.value}, SCHEME)
    sheet = volumes.add_sheet(node)
    after = read_labels(node, {SCHEME.rest.name: SCHEME.rest.value}, SCHEME)
    assert np.array_equal(after.array, before.array)
    assert np.allclose(after.geometry.ijk_to_ras, before.geometry.ijk_to_ras)
    bounds, mask_bounds = np.zeros(6), np.zeros(6)
    sheet.GetRASBounds(bounds)
    corners = before.geometry.to_ras(np.array([[-0.5] * 3, np.array(before.geometry.size) - 0.5]))
    mask_bounds[0::2], mask_bounds[1::2] = corners.min(axis=0), corners.max(axis=0)
    assert np.allclose(bounds, mask_bounds)


def test_a_segmentation_of_the_user_s_own_is_painted_over_the_image_in_the_views(panel):
    geometry = Geometry((20, 20, 20), np.diag([8.0, 8, 8, 1]))
    scan = slicer.util.addVolumeFromArray(np.ones(geometry.shape, np.float32), geometry.ijk_to_ras, "scan")
    slicer.util.setSliceViewerLayers(background=scan)
    labels = np.zeros(geometry.shape, np.uint8)
    labels[5:15, 5:15, 5:15] = SCHEME.rest.value
    node = painting.add_segmentation(Volume(labels, geometry), SCHEME, "Own")
    panel.ui.segmentationSelector.setCurrentNode(node)
    wait_until(lambda: panel.mask.editor.sourceVolumeNode() is scan, 5)
    assert background() is scan and volumes.sheet_of(node) is None


def test_without_any_volume_a_chosen_segmentation_gets_a_sheet(panel):
    labels = np.full((10, 10, 10), SCHEME.rest.value, np.uint8)
    node = painting.add_segmentation(Volume(labels, Geometry((10, 10, 10), np.eye(4))), SCHEME, "Own")
    panel.ui.segmentationSelector.setCurrentNode(node)
    wait_until(lambda: panel.mask.editor.sourceVolumeNode() is not None, 5)
    assert panel.mask.editor.sourceVolumeNode() is volumes.sheet_of(node) is background()


def test_effects_that_come_later_are_listed(panel, monkeypatch):
    listed = []
    monkeypatch.setattr(type(panel.mask.editor), "updateEffectList", lambda editor: listed.append(editor))
    slicer.qSlicerSegmentEditorEffectFactory.instance().registerEffect("Draw")
    assert listed == [panel.mask.editor]


def test_a_volume_that_no_brain_has_is_not_filled_without_a_word(panel):
    geometry = Geometry((40, 40, 40), np.diag([5.0, 5, 5, 1]))
    image = np.zeros(geometry.shape, np.float32)
    image[1:-1, 1:-1, 1:-1] = np.random.default_rng(0).uniform(1, 9, (38, 38, 38))
    node = painting.add_segmentation(Volume(np.zeros(geometry.shape, np.uint8), geometry), SCHEME, "Own")
    panel.ui.segmentationSelector.setCurrentNode(node)
    noise = slicer.util.addVolumeFromArray(image, geometry.ijk_to_ras, "noise")
    panel.ui.brainSelector.setCurrentNode(noise)
    panel.ui.brainButton.click()
    wait_until_painted(panel)
    assert "6.9 l is not the volume of a brain" in panel.ui.maskMessage.text


# The event loop --------------------------------------------------------------------------------------


def test_painting_does_not_block_the_event_loop(panel):
    """Of three times the best: what blocks by itself blocks every time, what the machine does beside it does not."""
    put_crosshair(INSIDE)
    gaps = {"template": [], "stamp": []}
    with without_old_garbage():
        for _ in range(3):
            panel.ui.templateButton.click()
            gaps["template"].append(wait_until_painted(panel))
            panel.ui.stampButton.click()
            gaps["stamp"].append(wait_until_painted(panel))
            assert panel.ui.maskMessage.text == ""
    print(f"longest gaps of the event loop in ms: {gaps}")
    assert all(min(times) < LONGEST for times in gaps.values())


def test_work_in_turns_is_the_same_work(application):
    def work(log):
        log.append((yield lambda: 2))
        log.append((yield))
        try:
            yield lambda: int("no number")
        except ValueError:
            log.append("reported")
        return sum((yield lambda: [1, 2, 3]) or ())

    logs, turns, results, faults = ([], []), BackgroundWork(), [], []
    assert run_now(work(logs[0])) == 6
    turns.start(work(logs[1]), results.append, faults.append)
    wait_until(lambda: not turns.busy, 5)
    assert results == [6] and not faults and logs[0] == logs[1] == [2, None, "reported"]

    def bad():
        yield lambda: slicer.util.getNode("nothing of this name")

    with pytest.raises(slicer.util.MRMLNodeNotFoundException):
        run_now(bad())
    turns.start(bad(), results.append, faults.append)
    wait_until(lambda: not turns.busy, 5)
    assert isinstance(faults[0], slicer.util.MRMLNodeNotFoundException) and results == [6]


def test_work_that_has_to_end_at_once_lets_the_application_draw(application):
    rounds, threads = [], set()
    timer = qt.QTimer()
    timer.interval = 1
    timer.timeout.connect(lambda: rounds.append(1))
    timer.start()

    def aside():
        threads.add(threading.current_thread())
        time.sleep(0.2)
        return 7

    def work():
        found = yield aside
        yield
        with pytest.raises(ValueError, match="of the thread"):
            yield partial(_raise, ValueError("of the thread"))
        return found + 1

    assert run_responsive(work()) == 8
    timer.stop()
    assert len(rounds) > 5 and threading.main_thread() not in threads


def _raise(error):
    raise error


def test_dropped_work_is_heard_of_no_more(application):
    heard, turns = [], BackgroundWork()

    def slow():
        heard.append((yield lambda: time.sleep(0.2)))

    def quick():
        return (yield lambda: "quick")

    turns.start(slow(), heard.append, heard.append)
    slicer.app.processEvents()
    turns.start(quick(), heard.append, heard.append)
    wait_until(lambda: not turns.busy, 5)
    end = time.monotonic() + 0.4
    wait_until(lambda: time.monotonic() > end, 5)
    assert heard == ["quick"]


def test_undo_and_redo_are_edits_and_a_new_name_is_none(panel):
    """They send another event than a stroke does."""
    node, edits = small_segmentation(panel), []
    panel.mask._rest.interval = 50
    panel.mask.edited.connect(lambda: edits.append(1))
    slicer.app.processEvents()

    def edits_after(action):
        edits.clear()
        action()
        end = time.monotonic() + 0.5
        wait_until(lambda: time.monotonic() > end, 5)
        return len(edits)

    def paint():
        panel.mask.editor.saveStateForUndo()
        painting.paint(node, "Necrosis", np.ones((2, 2, 2), bool))

    assert [edits_after(action) for action in (paint, panel.mask.editor.undo, panel.mask.editor.redo)] == [1, 1, 1]
    segment = node.GetSegmentation().GetSegment("Necrosis")
    assert edits_after(lambda: segment.SetName("Dead tissue")) == edits_after(lambda: segment.SetColor(1, 0, 1)) == 0
    assert edits_after(lambda: panel.ui.labelTable.cellWidget(0, 1).setCurrentIndex(2)) == 1


# Labels ----------------------------------------------------------------------------------------------


def test_the_table_of_labels_opens_where_something_is_missing(panel):
    segmentation = start_from_template(panel)
    section, count = panel.ui.labelsSection, len(SCHEME.labels)
    assert section.collapsed and section.text == f"Labels: {count} of {count} found"
    first = segmentation.GetSegmentation().GetNthSegmentID(0)
    set_label(segmentation, first, SCHEME, 0)
    panel.ui.segmentationSelector.setCurrentNode(None)
    assert section.collapsed
    panel.ui.segmentationSelector.setCurrentNode(segmentation)
    assert not section.collapsed and section.text == f"Labels: {count - 1} of {count} found, 1 segment not used"
    assert not panel.ui.missingLabel.isHidden() and not panel.ui.addMissingButton.isHidden()


def test_structures_that_are_one_label_of_the_model_share_a_row(panel):
    node, table = small_segmentation(panel), panel.ui.labelTable
    assert table.rowCount == len(SCHEME.labels)  # each is a label of this model
    brats = load_scheme("brats")
    panel.mask.set_scheme(brats)
    values = panel.mask.table
    parts = [id_ for id_ in node.GetSegmentation().GetSegmentIDs() if values.get(id_) == brats.rest.value]
    assert len(parts) > 10 and table.rowCount == len(SCHEME.labels) - len(parts) + 1
    assert [table.item(row, 0).text() for row in range(table.rowCount)][-1] == f"{len(parts)} segments"
    table.cellWidget(table.rowCount - 1, 1).click()
    slicer.app.processEvents()
    assert table.rowCount == len(SCHEME.labels) and panel.mask.table == values
    names = [table.item(row, 0).text() for row in range(table.rowCount)]
    box = table.cellWidget(names.index("Thalamus"), 1)
    box.currentIndex = box.findData(0)
    assert node.GetSegmentation().GetSegmentIdBySegmentName("Thalamus") not in panel.mask.table


def test_messages_name_what_is_in_the_panel():
    """No option of the command line in what a mask from the panel can meet, and each face words what to do itself."""
    scheme = load_scheme("brats")
    geometry = Geometry((20, 20, 20), np.diag([8.0, 8, 8, 1]))
    errors = []
    for name in ("edema", "necrosis"):
        labels = np.zeros(geometry.shape, np.uint8)
        labels[8:12, 8:12, 8:12] = scheme.label_by_name(name).value
        with pytest.raises(MedDPMError) as caught:
            Mask.from_volume(Volume(labels, geometry), scheme, numbering=scheme.own_numbering)
        errors.append(caught.value)
    labels = np.zeros(geometry.shape, np.uint8)
    labels[2:18, 2:18, 2:18] = SCHEME.label_by_name("Cerebral white matter").value
    notes = Mask.from_volume(Volume(labels, geometry), SCHEME, numbering=SCHEME.own_numbering).notes
    line = qt.QLabel()
    for error in errors:
        say(line, error)
        assert "Brain from volume" in line.text and "--" not in line.text and str(error).split(":")[0] in line.text
        assert "--brain-from IMAGE" in worded(error) and "--" not in str(error)
    assert notes and not any("--" in note for note in notes)


# Guidance --------------------------------------------------------------------------------------------


def test_only_a_model_that_was_trained_for_it_is_guided(panel, models):
    box, chosen = panel.ui.guidanceBox, panel.logic.getParameterNode()
    assert not box.enabled and "does not support guidance" in box.toolTip
    chosen.guidance = 3.0
    segmentation = start_from_template(panel)
    order = panel.makeOrder()
    assert order.settings.guidance == 1.0 and order.segmentation is segmentation
    card = dataclasses.replace(small_card(SCHEME, grid=GRID), name="guided", title="A guided model", label_dropout=0.1)
    file = write_small_model(models / "guided.safetensors", card)
    try:
        panel.models.fill("guided")
        assert box.enabled and "follows the mask more closely" in box.toolTip and box.value == 3.0
        panel.ui.stepsBox.value = 2
        generate(panel)
        assert volumes.results(), panel.ui.messageLabel.text
        assert volumes.record_of(volumes.results()[0])["guidance"] == 3.0
    finally:
        file.unlink()


def test_memory_is_taken_as_chosen(panel):
    start_from_template(panel)
    assert panel.makeOrder().settings.memory == "auto"
    box = panel.ui.memoryBox
    assert [box.itemText(i) for i in range(box.count)] == ["Automatic", "Low (slower)"]
    box.currentIndex = 1
    panel.ui.stepsBox.value = 2
    generate(panel)
    assert volumes.record_of(volumes.results()[0])["memory"] == "in thin slabs", panel.ui.messageLabel.text
    assert any("in thin slabs" in line for line in panel.logic.client.log)


# The worker ------------------------------------------------------------------------------------------


def test_the_worker_is_ready_before_the_first_click(panel):
    loaded = []
    panel.logic.client.received.connect(lambda event: loaded.append(type(event).__name__))
    wait_until(lambda: loaded)
    assert loaded == ["Loaded"] and panel.logic.generator.order is None
    assert panel.ui.messageLabel.text == "" and panel.ui.generateButton.text == "Generate"
    pid = panel.logic.client.pid
    # It gives way: a lower priority, and threads that do not keep a processor busy while they wait.
    own = os.getpriority(os.PRIO_PROCESS, 0)
    assert min(own + 5, 19) == os.getpriority(os.PRIO_PROCESS, pid) > own
    environment = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
    assert b"OMP_WAIT_POLICY=PASSIVE" in environment and b"KMP_BLOCKTIME=0" in environment
    start_from_template(panel)
    panel.ui.stepsBox.value = 2
    generate(panel)
    assert panel.logic.client.pid == pid and len(volumes.results()) == 2


def test_no_worker_starts_by_itself_where_packages_are_missing(panel):
    packages.hidden.add("torch")
    try:
        end = time.monotonic() + 1
        wait_until(lambda: time.monotonic() > end, 5)
        assert not panel.logic.client.running and panel.ui.messageLabel.text == ""
    finally:
        packages.hidden.clear()


def test_the_newest_stroke_wins(panel):
    """Strokes while an outdated image is generated: it is cancelled, the last stroke is what is seen."""
    segmentation = start_from_template(panel)
    panel.ui.seedBox.value, panel.ui.stepsBox.value, panel.ui.autoBox.checked = 5, 50, True
    panel.ui.generateButton.click()
    wait_until(lambda: "Step" in panel.ui.statusLabel.text)
    first = panel.logic.generator.order
    click_effect(panel, "Paint")
    panel.mask.editor.setCurrentSegmentID("Necrosis")
    stroke(panel, INSIDE, 12.0)
    wait_until(lambda: panel.logic.generator.order not in (None, first), 10)
    second = panel.logic.generator.order
    panel.ui.stepsBox.value = 2
    panel.mask.editor.setCurrentSegmentID("Enhancing tumor")
    stroke(panel, (INSIDE[0], INSIDE[1] - 6, INSIDE[2]), 9.0)
    wait_until(lambda: panel.logic.generator.order not in (None, second), 10)
    wait_until(lambda: panel.logic.generator.order is None)
    made = volumes.results()
    labels = read_labels(segmentation, panel.mask.table, SCHEME)
    newest = Mask.from_volume(labels, SCHEME, numbering=SCHEME.own_numbering)
    assert [volumes.record_of(node)["mask"]["hash"] for node in made] == [newest.hash] * 2
    assert {(volumes.record_of(node)["seed"], volumes.record_of(node)["steps"]) for node in made} == {(5, 2)}


# Without what Slicer has not -------------------------------------------------------------------------


def test_the_panel_opens_without_the_packages_that_it_installs():
    """In a Slicer that has nothing but its own packages: the panel is there, and asks when something needs them."""
    code = """
        import sys
        for name in ("torch", "nibabel", "safetensors", "platformdirs", "psutil", "typer", "rich", "PIL"):
            sys.modules[name] = None
        from pathlib import Path
        from bench import dialogs, packages, start_application
        app = start_application()
        import qt, slicer
        packages.hidden.update({"torch", "nibabel", "safetensors", "platformdirs", "psutil"})
        app.moduleManager().load(Path("../MedDPM/MedDPM.py"))
        app.emit("startupCompleted()")  # the application's start waits for nothing heavy
        assert "SimpleITK" not in sys.modules
        slicer.util.selectModule("MedDPM")
        ui = slicer.util.getModuleWidget("MedDPM").ui
        assert ui.modelBox.count == 4 and "T1" in ui.modelSummary.text, ui.modelSummary.text
        for button, line in ((ui.templateButton, ui.maskMessage), (ui.generateButton, ui.messageLabel)):
            dialogs.reply_with(qt.QMessageBox.Cancel)
            ui.segmentationSelector.addNode()
            button.click()
            assert "torch" in dialogs.shown[-1].text and "nothing was installed" in line.text, line.text
        ui.logButton.click()
        assert not app.errors, app.errors
        app.moduleManager().unload("MedDPM")
        app.quit()
    """
    environment = {name: value for name, value in os.environ.items() if name != "MEDDPM_MODELS"}
    result = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)], capture_output=True, text=True, timeout=300,
        cwd=Path(__file__).parent, env=environment,
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
