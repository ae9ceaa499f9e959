"""What people do between the lines: two masks, another module, a scene that comes or goes at the wrong moment."""

# ruff: noqa: F811 (fixtures are imported by their names)

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace

import numpy as np
from bench import dialogs, packages
from bench.driver import (  # noqa: F401
    MODULE,
    SCHEME,
    application,
    generate,
    models,
    panel,
    small_segmentation,
    wait_until,
)
from conftest import small_geometry, small_labels

import qt  # isort: skip
import slicer  # isort: skip

from MedDPMLib.imaging.volume import Volume
from MedDPMLib.scene import painting, views, volumes
from MedDPMLib.scene.recognition import recognize
from MedDPMLib.scene.segmentation import read_labels, reference_geometry, table_of

REST = SCHEME.rest.value


def shown():
    """What each slice view has as its background."""
    layout = slicer.app.layoutManager()
    composites = [layout.sliceWidget(name).mrmlSliceCompositeNode() for name in layout.sliceViewNames()]
    return {slicer.mrmlScene.GetNodeByID(c.GetBackgroundVolumeID() or "") for c in composites}


def a_scan(name="scan", shape=(20, 24, 28)):
    """A skull-stripped image on a lattice of its own."""
    array = np.zeros(shape, np.int16)
    array[4:-4, 4:-4, 4:-4] = np.random.default_rng(0).integers(400, 900, np.array(shape) - 8)
    matrix = np.diag([-6.0, -6.0, 7.0, 1.0])
    matrix[:3, 3] = [80, 70, -60]
    return slicer.util.addVolumeFromArray(array, matrix, name)


def a_result(segmentation):
    """A volume as a run of the generator leaves it."""
    array = np.random.default_rng(0).integers(1, 900, (16, 16, 16)).astype(np.int16)
    name = volumes.result_name(segmentation.GetName(), "t1", 0)
    node = volumes.add_volume(Volume(array, small_geometry()), name, segmentation, window=(0, 900))
    record = {"model": {"name": "small", "hash": "0"}, "mask": {"name": "Small", "hash": "0"}, "sampler": "ddim"}
    record |= {"seed": 0, "steps": 2, "modality": "t1", "created": "2026-11-30T12:00:00+00:00", "seconds": 1.0}
    volumes.set_record(node, record)
    return node


def begin(panel, steps):
    panel.ui.stepsBox.value = steps
    panel.ui.generateButton.click()
    assert panel.ui.generateButton.text == "Cancel", panel.ui.messageLabel.text


def finished(panel):
    return panel.logic.generator.order is None and not volumes.results() == []


# Two masks -------------------------------------------------------------------------------------------


def test_what_is_made_of_one_mask_does_not_come_under_another(panel, application):
    one, other = small_segmentation(panel, name="One"), small_segmentation(panel, name="Other")
    panel.ui.segmentationSelector.setCurrentNode(one)
    application.processEvents()
    panel.ui.previewBox.checked = False  # where one goes, the views are looked after
    begin(panel, 20)
    panel.ui.segmentationSelector.setCurrentNode(other)
    application.processEvents()
    sheet = volumes.sheet_of(other)
    assert shown() == {sheet}
    wait_until(lambda: finished(panel))
    application.processEvents()
    assert shown() == {sheet} and views.is_outlined(other) is False
    made = volumes.results()
    assert made and all(node.GetNodeReference(volumes.SEGMENTATION_ROLE) is one for node in made)
    # It is there when its mask is chosen again, and its undo leaves the views of another mask alone.
    panel.ui.segmentationSelector.setCurrentNode(one)
    application.processEvents()
    assert shown() <= set(made)
    panel.ui.segmentationSelector.setCurrentNode(other)
    application.processEvents()
    panel.ui.undoButton.click()
    application.processEvents()
    assert volumes.results() == [] and shown() == {sheet}


def test_a_run_that_is_cancelled_leaves_what_is_looked_at_meanwhile(panel, application):
    small_segmentation(panel)
    application.processEvents()
    begin(panel, 50)
    wait_until(lambda: any(map(volumes.is_synthetic, shown())))
    scan = a_scan()
    views.show_background(scan, fit=False)
    panel.ui.generateButton.click()
    application.processEvents()
    assert shown() == {scan} and volumes.results() == []


def test_the_chosen_mask_is_seen_again_after_another_module(panel, application):
    chosen = small_segmentation(panel, name="Chosen")
    application.processEvents()
    application.mainWindow().moduleSelector().leave("MedDPM")
    other = painting.add_segmentation(Volume(small_labels(SCHEME), small_geometry()), SCHEME, "From Sample Data")
    views.show_only(other)
    slicer.util.selectModule("MedDPM")
    application.processEvents()
    assert panel.ui.segmentationSelector.currentNode() is chosen
    assert chosen.GetDisplayNode().GetVisibility() and not other.GetDisplayNode().GetVisibility()


def test_another_model_overwrites_no_image_when_the_mask_changes(panel):
    node = small_segmentation(panel)
    generate(panel)
    before = {n.GetID(): slicer.util.arrayFromVolume(n).copy() for n in volumes.results()}
    latest = panel.logic.generator.latest
    panel.logic.generator.latest = replace(latest, card=replace(latest.card, name="another"))
    panel.ui.autoBox.checked = True
    voxels = np.zeros((16, 16, 16), bool)
    voxels[7:9, 7:9, 7:9] = True
    painting.paint(node, SCHEME.tumor[0].name, voxels, over=list(node.GetSegmentation().GetSegmentIDs()))
    wait_until(lambda: len(volumes.results()) == 2 * len(before) and panel.logic.generator.order is None)
    panel.ui.autoBox.checked = False
    for id_, array in before.items():
        assert np.array_equal(slicer.util.arrayFromVolume(slicer.mrmlScene.GetNodeByID(id_)), array)


def test_the_result_that_is_shown_brings_its_mask(panel, application):
    one = small_segmentation(panel, name="One")
    made = a_result(one)
    other = small_segmentation(panel, name="Other")
    application.processEvents()
    panel.results.select_newest()
    panel.ui.showButton.click()
    application.processEvents()
    assert panel.ui.segmentationSelector.currentNode() is one and panel.mask.editor.segmentationNode() is one
    assert shown() == {made}
    assert one.GetDisplayNode().GetVisibility() and not other.GetDisplayNode().GetVisibility()


# Scenes ----------------------------------------------------------------------------------------------


def test_a_scene_saved_during_a_run_has_nothing_unfinished(panel, application, tmp_path):
    small_segmentation(panel)
    application.processEvents()
    begin(panel, 50)
    wait_until(lambda: any(map(volumes.is_synthetic, shown())))
    assert slicer.util.saveScene(str(tmp_path / "scene.mrb"))
    application.close_scene()
    slicer.util.loadScene(str(tmp_path / "scene.mrb"))
    application.processEvents()
    assert volumes.results() == [] and panel.logic.generator.order is None
    seen = {node.GetDisplayNode() for node in slicer.util.getNodesByClass("vtkMRMLScalarVolumeNode")}
    assert set(slicer.util.getNodesByClass("vtkMRMLScalarVolumeDisplayNode")) <= seen
    segmentation = panel.ui.segmentationSelector.currentNode()
    wait_until(lambda: shown() == {volumes.sheet_of(segmentation)}, 5)


def test_a_scene_closed_while_a_template_is_made_stays_empty(panel, application):
    panel.ui.templateButton.click()
    assert panel.mask.busy
    application.close_scene()
    assert not panel.mask.busy and panel.ui.templateButton.enabled
    application.processEvents()
    assert not slicer.util.getNodesByClass("vtkMRMLSegmentationNode")


def test_a_scene_closed_while_a_mask_is_completed_can_be_followed_by_another(panel, application):
    panel.ui.completeButton.enabled = False
    panel.completion._process = process = qt.QProcess()
    process.start(sys.executable, ["-c", "import time; time.sleep(60)"])
    process.waitForStarted()
    application.close_scene()
    assert panel.ui.completeButton.enabled and not panel.completion.busy


def test_a_scene_saved_in_a_comparison_opens_in_it_and_the_comparison_can_be_ended(tmp_path):
    """In an application that has not compared anything yet, and whose user has not opened the panel."""
    script = tmp_path / "open.py"
    script.write_text(_OPENS.format(folder=str(MODULE.parents[1]), module=str(MODULE)))
    done = subprocess.run([sys.executable, str(script)], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.split()[-2:] == ["3", "True"]


_OPENS = """
import sys
sys.path[:0] = [{folder!r}, {folder!r} + "/Testing"]
from bench import start_application
app = start_application()
import slicer
app.moduleManager().load({module!r})
app.emit("startupCompleted()")
from MedDPMLib.scene.views import FIRST_LAYOUT
node = app.layoutManager().layoutLogic().GetLayoutNode()
node.SetViewArrangement(FIRST_LAYOUT + 3)  # as the scene's own node says when it is loaded
app.processEvents()
shown = app.layoutManager().layoutLogic().GetViewNodes().GetNumberOfItems()
slicer.util.selectModule("MedDPM")
ui = slicer.util.getModuleWidget("MedDPM").ui
ended = ui.endCompareButton.enabled
ui.endCompareButton.click()
print(shown, ended and app.layoutManager().layout == slicer.vtkMRMLLayoutNode.SlicerLayoutFourUpView)
app.quit()
"""


def test_a_model_that_a_scene_names_and_nobody_has_is_reported_in_sight(panel):
    assert panel.ui.modelSection.collapsed
    panel.models.choose("somebody-else-s")
    assert "somebody-else-s" in panel.ui.modelSummary.text and not panel.ui.modelSection.collapsed


# Volumes that come from elsewhere --------------------------------------------------------------------


def test_an_empty_segmentation_is_filled_from_the_scan_that_is_shown(panel, application):
    """As "Create new segmentation" makes it: 3D Slicer gives it voxels at the first stroke, and there was none."""
    scan = a_scan()
    views.show_background(scan, fit=True)
    node = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLSegmentationNode", "Segmentation")
    panel.ui.segmentationSelector.setCurrentNode(node)
    application.processEvents()
    assert panel.mask.editor.sourceVolumeNode() is scan
    panel.ui.addMissingButton.click()
    panel.ui.brainSelector.setCurrentNode(scan)
    panel.ui.brainButton.click()
    wait_until(lambda: not panel.mask.busy)
    assert reference_geometry(node).shape == (20, 24, 28), panel.ui.maskMessage.text
    assert (read_labels(node, table_of(node, SCHEME), SCHEME).array == REST).sum() > 1000, panel.ui.maskMessage.text


def test_an_image_that_was_loaded_again_stays_in_the_views(panel, application, tmp_path):
    """The mask and the image that was exported with it are loaded: the image is not covered with a blank."""
    made = a_result(small_segmentation(panel))
    path = tmp_path / "T1 (synthetic seed 0) Small.nii.gz"  # as 3D Slicer's own dialog for saving calls it
    assert slicer.util.saveNode(made, str(path))
    application.close_scene()
    loaded = slicer.util.loadVolume(str(path))
    application.processEvents()
    assert volumes.is_synthetic(loaded)
    views.show_background(loaded, fit=True)
    node = small_segmentation(panel)
    application.processEvents()
    assert shown() == {loaded} and node is panel.ui.segmentationSelector.currentNode()


def test_a_file_is_not_synthetic_because_its_name_says_so_in_passing(application, tmp_path):
    for name in ("synthetic seed.nii.gz", "T1 (synthesis, seed 3).nii.gz"):
        scan = a_scan()
        assert slicer.util.saveNode(scan, str(tmp_path / name))
        assert not recognize(slicer.util.loadVolume(str(tmp_path / name)))


# Questions -------------------------------------------------------------------------------------------


def an_own_segment(node, name="blob"):
    """A painted segment of which nobody knows what it is."""
    id_ = node.GetSegmentation().AddEmptySegment(name, name)
    voxels = np.zeros((16, 16, 16), bool)
    voxels[9:11, 9:11, 9:11] = True
    painting.paint(node, id_, voxels)
    return id_


def test_nothing_is_asked_about_the_mask_where_nothing_can_be_generated(panel, monkeypatch):
    an_own_segment(small_segmentation(panel))
    monkeypatch.setitem(sys.modules, "PyTorchUtils", None)
    packages.hidden.add("torch")
    try:
        panel.ui.generateButton.click()
    finally:
        packages.hidden.discard("torch")
    assert "extension PyTorch" in panel.ui.messageLabel.text and dialogs.shown == []


def test_generating_again_asks_about_what_was_painted_since(panel):
    node, other = small_segmentation(panel, name="One"), small_segmentation(panel, name="Other")
    panel.ui.segmentationSelector.setCurrentNode(node)
    generate(panel)
    an_own_segment(node)
    panel.ui.segmentationSelector.setCurrentNode(other)
    panel.results.select_newest()
    dialogs.reply_with(qt.QDialog.Rejected)
    panel.ui.regenerateButton.click()
    assert dialogs.shown[-1].title == "Which label is this?"
    assert panel.ui.segmentationSelector.currentNode() is node and panel.logic.generator.order is None


def test_an_edit_that_cannot_be_generated_is_reported_in_the_panel(panel, monkeypatch):
    from MedDPMLib.errors import MedDPMError

    node = small_segmentation(panel)

    def refuse(_order, _volume):
        raise MedDPMError("the volume shows nothing")

    monkeypatch.setattr(panel.appearance, "applied", refuse)
    panel.ui.autoBox.checked = True
    panel.mask.edited.emit()
    panel.ui.autoBox.checked = False
    assert "the volume shows nothing" in panel.ui.messageLabel.text and node is not None


def test_the_memory_can_be_given_back_while_a_scan_is_segmented(panel):
    panel.logic.client.stop()
    panel.scan._id = "request-0"
    panel.scan.show()
    assert panel.ui.scanButton.text == "Cancel"
    panel.ui.releaseButton.enabled = True
    panel.ui.releaseButton.click()
    assert not panel.scan.busy and panel.ui.scanButton.text == "Start from scan"
