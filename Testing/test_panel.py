"""The panel as a user drives it: on the headless bench, with a real worker process and a tiny model."""

# ruff: noqa: F811 (fixtures are imported by their names)

from __future__ import annotations

import dataclasses
import os
import signal
import sys
import time

import numpy as np
import pytest
from bench import dialogs, packages
from bench.driver import (  # noqa: F401
    MODULE,
    SCHEME,
    application,
    generate,
    models,
    panel,
    process_lives,
    session_folders,
    start_from_template,
    wait_until,
    wait_until_painted,
    worker_pid,
)
from conftest import small_card, without_old_garbage, write_small_model
from test_packaging import cmake_list, files

import qt  # isort: skip
import slicer  # isort: skip

from MedDPMLib.diffusion.names import METHODS
from MedDPMLib.inference.settings import MAX_GUIDANCE, SPACES, GenerationSettings
from MedDPMLib.masks.templates import templates
from MedDPMLib.models.card import QUALITIES
from MedDPMLib.runtime.names import PRECISIONS
from MedDPMLib.scene import dependencies, volumes, worker_client
from MedDPMLib.scene.generator import spoken_time
from MedDPMLib.scene.painting import stamp_tumor
from MedDPMLib.scene.segmentation import painted_geometry, read_labels
from MedDPMLib.scene.worker_client import WorkerClient

# First use -------------------------------------------------------------------------------------------


def test_from_an_empty_scene_to_volumes_in_place(panel):
    assert "T1, T2" in panel.ui.modelSummary.text and "24 x 24 x 24" in panel.ui.modelSummary.text
    segmentation = start_from_template(panel)
    assert sorted(panel.mask.table.values()) == sorted(SCHEME.values)
    assert panel.mask.editor.segmentationNode() is segmentation
    panel.ui.qualityBox.currentIndex = 0
    previews = []
    panel.logic.client.received.connect(lambda event: previews.append(type(event).__name__))
    generate(panel)
    assert panel.ui.generateButton.text == "Generate" and "Preview" in previews
    # What is unusual about the mask is said: the tiny model's voxels are too large for thin structures.
    assert "Third ventricle: too small for the model's voxels" in panel.ui.messageLabel.text
    made = volumes.results()
    assert [node.GetName() for node in made] == [
        f"{modality} (synthetic, seed 0) {segmentation.GetName()}" for modality in ("T1", "T2")
    ]
    for node, modality in zip(made, ("t1", "t2"), strict=True):
        record = volumes.record_of(node)
        assert (record["modality"], record["steps"], record["sampler"]) == (modality, 2, "ddim")
        assert node.GetNodeReference(volumes.SEGMENTATION_ROLE) is segmentation
    bounds = np.zeros(6)
    made[0].GetRASBounds(bounds)
    labels = read_labels(segmentation, panel.mask.table, SCHEME)
    brain = labels.geometry.to_ras(np.argwhere(labels.array)[:, ::-1])
    brain_middle = (brain.min(axis=0) + brain.max(axis=0)) / 2
    assert np.abs(bounds.reshape(3, 2).mean(axis=1) - brain_middle).max() < 12  # the model's grid is placed on it
    red = slicer.app.layoutManager().sliceWidget("Red")
    assert red.mrmlSliceCompositeNode().GetBackgroundVolumeID() == made[0].GetID()
    assert panel.mask.editor.sourceVolumeNode() is made[0]
    assert panel.results.count == 1 and panel.results.chosen() == made
    # Again with the same seed: the same image, in the same volumes.
    before = slicer.util.arrayFromVolume(made[0]).copy()
    slicer.util.arrayFromVolume(made[0])[:] = 0
    generate(panel)
    assert volumes.results() == made and np.array_equal(slicer.util.arrayFromVolume(made[0]), before)


def test_cancel_answers_at_once_and_the_next_run_works(panel):
    start_from_template(panel)
    panel.ui.stepsBox.value = 50
    panel.ui.generateButton.click()
    wait_until(lambda: "Step" in panel.ui.statusLabel.text)
    pid = worker_pid(panel)
    clicked = time.monotonic()
    panel.ui.generateButton.click()
    assert time.monotonic() - clicked < 0.5
    assert panel.ui.generateButton.text == "Generate" and panel.ui.progressBar.isHidden()
    slicer.app.processEvents()
    assert volumes.results() == [] and panel.results.count == 0
    panel.ui.stepsBox.value = 2
    generate(panel)
    assert worker_pid(panel) == pid and len(volumes.results()) == 2


def test_second_samples_and_left_out_modalities(panel):
    start_from_template(panel)
    boxes = panel.run._boxes
    boxes["t1"].checked = False
    panel.ui.samplesBox.value, panel.ui.seedBox.value, panel.ui.stepsBox.value = 2, 7, 2
    generate(panel)
    assert [(volumes.record_of(n)["modality"], volumes.record_of(n)["seed"]) for n in volumes.results()] == [
        ("t2", 7), ("t2", 8),
    ]  # fmt: skip
    boxes["t2"].checked = False
    panel.ui.generateButton.click()
    assert "no modality" in panel.ui.messageLabel.text and panel.ui.generateButton.text == "Generate"


# What goes wrong -------------------------------------------------------------------------------------


def test_without_a_segmentation_it_says_so(panel):
    panel.ui.generateButton.click()
    assert "start from a template" in panel.ui.messageLabel.text
    assert not panel.logic.client.running


def test_an_empty_segmentation_is_refused(panel):
    node = panel.ui.segmentationSelector.addNode()
    panel.ui.generateButton.click()
    assert panel.ui.messageLabel.text and node.GetName() in panel.ui.messageLabel.text
    assert not panel.logic.client.running
    assert not panel.ui.addMissingButton.isHidden()
    panel.ui.addMissingButton.click()
    assert sorted(panel.mask.table.values()) == sorted(SCHEME.values) and panel.ui.addMissingButton.isHidden()
    panel.ui.generateButton.click()
    assert "reference geometry" in panel.ui.messageLabel.text


def test_a_killed_worker_is_reported_and_the_next_run_works(panel):
    start_from_template(panel)
    panel.ui.stepsBox.value = 50
    panel.ui.generateButton.click()
    wait_until(lambda: "Step" in panel.ui.statusLabel.text)
    os.kill(worker_pid(panel), signal.SIGKILL)
    wait_until(lambda: panel.ui.messageLabel.text != "", 10)
    assert "click Generate again" in panel.ui.messageLabel.text and panel.ui.generateButton.text == "Generate"
    assert session_folders() == [] and volumes.results() == []
    panel.ui.stepsBox.value = 2
    generate(panel)
    assert len(volumes.results()) == 2


def test_a_worker_that_hangs_is_ended(panel, monkeypatch):
    start_from_template(panel)
    panel.ui.stepsBox.value = 50
    panel.ui.generateButton.click()
    wait_until(lambda: "Step" in panel.ui.statusLabel.text)
    pid = worker_pid(panel)
    os.kill(pid, signal.SIGSTOP)
    monkeypatch.setattr(worker_client, "_SILENCE", 0.5)
    panel.logic.client._pulse.interval = 100
    wait_until(lambda: panel.ui.messageLabel.text != "", 10)
    assert "has not answered" in panel.ui.messageLabel.text
    assert not process_lives(pid) and session_folders() == []


def test_the_segmentation_is_deleted_while_it_runs(panel):
    segmentation = start_from_template(panel)
    panel.ui.stepsBox.value = 20
    panel.ui.generateButton.click()
    wait_until(lambda: "Step" in panel.ui.statusLabel.text)
    slicer.mrmlScene.RemoveNode(segmentation)
    wait_until(lambda: panel.logic.generator.order is None)
    assert len(volumes.results()) == 2 and panel.mask.table == {}


def test_missing_packages_are_asked_for_once(panel):
    start_from_template(panel)
    packages.hidden.update({"torch", "nibabel"})
    try:
        dialogs.reply_with(qt.QMessageBox.Cancel)
        panel.ui.generateButton.click()
        assert "nothing was installed" in panel.ui.messageLabel.text and not packages.installed
        dialogs.reply_with(qt.QMessageBox.Ok)
        panel.ui.installButton.click()
        assert packages.installed == ["torch>=2.5", "nibabel>=5.2"]
        assert len([shown for shown in dialogs.shown if shown.kind == "question"]) == 2
    finally:
        packages.hidden.clear()
        packages.installed.clear()


# Nothing is left behind ------------------------------------------------------------------------------


@pytest.mark.parametrize("end", ["scene", "module", "released"])
def test_no_process_and_no_file_outlives_its_use(panel, application, end):
    start_from_template(panel)
    panel.ui.stepsBox.value = 50
    panel.ui.generateButton.click()
    wait_until(lambda: "Step" in panel.ui.statusLabel.text)
    pid = worker_pid(panel)
    assert process_lives(pid) and len(session_folders()) == 1
    if end == "scene":
        application.close_scene()
    elif end == "module":
        slicer.util.reloadScriptedModule("MedDPM")
    else:
        panel.ui.releaseButton.click()
        assert panel.ui.generateButton.text == "Generate"
    assert not process_lives(pid) and session_folders() == []
    application.processEvents()


# Choices ---------------------------------------------------------------------------------------------


def test_choices_come_back_with_the_scene(panel, application, tmp_path):
    segmentation = start_from_template(panel)
    name, ui = segmentation.GetName(), panel.ui
    ui.qualityBox.currentIndex, ui.seedBox.value, ui.samplesBox.value = 0, 77, 3
    ui.autoBox.checked, ui.stampSlider.value = True, 9.0
    panel.run._boxes["t1"].checked = False
    first = ui.labelTable.cellWidget(0, 1)
    first.currentIndex = 0  # not used
    table = panel.mask.table
    assert len(table) == len(SCHEME.values) - 1
    assert slicer.util.saveScene(str(tmp_path / "scene.mrb"))
    application.close_scene()
    assert ui.seedBox.value == 0 and ui.segmentationSelector.currentNode() is None
    assert panel.run._boxes["t1"].checked
    slicer.util.loadScene(str(tmp_path / "scene.mrb"))
    application.processEvents()
    assert (ui.qualityBox.currentIndex, ui.seedBox.value, ui.samplesBox.value) == (0, 77, 3)
    assert ui.autoBox.checked and ui.stampSlider.value == 9.0 and not panel.run._boxes["t1"].checked
    assert ui.segmentationSelector.currentNode().GetName() == name
    assert panel.mask.table == table


def test_an_edit_makes_the_image_again_in_the_same_volume(panel):
    segmentation = start_from_template(panel)
    panel.ui.stepsBox.value = 2
    generate(panel)
    nodes = volumes.results()
    before = slicer.util.arrayFromVolume(nodes[0]).copy()
    panel.ui.autoBox.checked = True
    center = (28.0, 22.0, 25.0)
    stamp_tumor(segmentation, panel.mask.table, SCHEME, center, 20.0)
    wait_until(lambda: panel.logic.generator.order is not None, 5)
    wait_until(lambda: panel.logic.generator.order is None)
    assert volumes.results() == nodes
    assert not np.array_equal(before, slicer.util.arrayFromVolume(nodes[0]))
    assert volumes.record_of(nodes[0])["seed"] == 0
    # And back: what an edit has overwritten comes again, what a run has made goes.
    panel.ui.autoBox.checked = False
    panel.ui.undoButton.click()
    assert np.array_equal(before, slicer.util.arrayFromVolume(nodes[0])) and not panel.ui.undoButton.enabled
    panel.ui.seedBox.value = 5
    generate(panel)
    assert len(volumes.results()) == 4
    panel.ui.undoButton.click()
    assert volumes.results() == nodes and panel.results.count == 1
    red = slicer.app.layoutManager().sliceWidget("Red")
    assert red.mrmlSliceCompositeNode().GetBackgroundVolumeID() == nodes[0].GetID()


def test_results_are_exported_deleted_and_made_again(panel, tmp_path):
    start_from_template(panel)
    panel.ui.stepsBox.value = 2
    generate(panel)
    folder = tmp_path / "söme where"
    folder.mkdir()
    dialogs.reply_with(str(folder))
    panel.ui.exportButton.click()
    wait_until(lambda: not panel.results.busy)
    assert "Written" in panel.ui.resultMessage.text
    assert sorted(path.suffix for path in folder.iterdir()) == [".gz", ".gz", ".json", ".json"]
    views, former = slicer.app.layoutManager(), slicer.app.layoutManager().layout
    panel.ui.orientationBox.currentIndex = panel.ui.orientationBox.findData("Coronal")
    assert not panel.ui.endCompareButton.enabled
    panel.ui.compareButton.click()
    wait_until(lambda: not panel.results.busy)
    widgets = [views.sliceWidget(f"Compare{n}") for n in (1, 2)]
    composites = [widget.mrmlSliceCompositeNode() for widget in widgets]
    assert [c.GetBackgroundVolumeID() for c in composites] == [node.GetID() for node in volumes.results()]
    assert all(c.GetLinkedControl() for c in composites) and views.layout != former
    assert [widget.mrmlSliceNode().GetOrientation() for widget in widgets] == ["Coronal", "Coronal"]
    display = panel.ui.segmentationSelector.currentNode().GetDisplayNode()
    assert display.GetVisibility2DOutline() and not display.GetVisibility2DFill()
    panel.ui.orientationBox.currentIndex = panel.ui.orientationBox.findData("Sagittal")
    panel.ui.compareButton.click()
    wait_until(lambda: not panel.results.busy)
    assert [widget.mrmlSliceNode().GetOrientation() for widget in widgets] == ["Sagittal", "Sagittal"]
    panel.ui.endCompareButton.click()
    assert views.layout == former and not panel.ui.endCompareButton.enabled
    panel.ui.resultsTree.clearSelection()
    panel.ui.resultsTree.topLevelItem(0).child(1).setSelected(True)
    (node,) = panel.results.chosen()
    array = slicer.util.arrayFromVolume(node).copy()
    slicer.util.arrayFromVolume(node)[:] = 0
    panel.ui.regenerateButton.click()
    wait_until(lambda: panel.logic.generator.order is None)
    assert np.array_equal(slicer.util.arrayFromVolume(node), array)
    slicer.app.processEvents()
    panel.ui.resultsTree.clearSelection()
    panel.ui.resultsTree.topLevelItem(0).child(0).setSelected(True)
    panel.ui.deleteButton.click()
    wait_until(lambda: len(volumes.results()) == 1, 5)
    assert volumes.results() == [node] and panel.results.count == 1


def test_made_again_with_the_settings_that_it_was_made_with(panel, monkeypatch):
    """Whatever is chosen by now, and only by the model that made it."""
    start_from_template(panel)
    ui, module = panel.ui, sys.modules["MedDPM"]
    chosen = panel.logic.getParameterNode()
    chosen.steps, chosen.sampler, chosen.seed = 2, module.Sampler.Ddim, 3
    chosen.precision, chosen.device, chosen.memory = module.Precision.Float32, module.Device.Cpu, module.Memory.Low
    chosen.space = module.Space.Segmentation
    generate(panel)
    asked = GenerationSettings(sampler="ddim", steps=2, precision="float32", device="cpu", memory="low", space="mask")
    chosen.steps, chosen.sampler, chosen.seed = 3, module.Sampler.Recommended, 4
    chosen.precision, chosen.device = module.Precision.Automatic, module.Device.Automatic
    chosen.memory, chosen.space = module.Memory.Automatic, module.Space.Model
    node = volumes.results()[0]
    order = panel.logic.makeOrderAgain([node])
    assert order.settings == asked and order.seeds == [3] and order.into == {(3, "t1"): node}
    before = volumes.record_of(node)
    ui.regenerateButton.click()
    wait_until(lambda: panel.logic.generator.order is None)
    after = volumes.record_of(node)
    for key in ("settings", "seed", "device", "precision", "memory", "space", "model"):
        assert after[key] == before[key], key

    volumes.set_record(node, {**after, "model": {**after["model"], "hash": "of other weights"}})
    ui.regenerateButton.click()
    assert panel.logic.generator.order is None and "is not the one that generated this result" in ui.resultMessage.text


def test_the_event_loop_is_not_blocked(panel):
    """Of eight runs the best: what blocks by itself blocks every time, what the machine does beside it does not."""
    start_from_template(panel)
    panel.ui.stepsBox.value = 30
    gaps = []
    with without_old_garbage():
        while len(gaps) < 8 and min(gaps, default=50) >= 50:
            panel.ui.generateButton.click()
            gaps.append(wait_until(lambda: panel.logic.generator.order is None))
    print(f"longest gap of the event loop in each run: {', '.join(f'{gap:.1f}' for gap in gaps)} ms")
    assert min(gaps) < 50


def test_the_self_test_passes(panel):
    slicer.app.moduleManager().module("MedDPM").self().runTest()


# Models ----------------------------------------------------------------------------------------------


def test_models_are_added_checked_and_removed(panel, tmp_path):
    card = dataclasses.replace(small_card(SCHEME), name="another", title="Another model")
    good, bad = write_small_model(tmp_path / "file with spaces.safetensors", card), tmp_path / "bad.safetensors"
    bad.write_bytes(b"nothing of use")
    ui = panel.ui
    for path in (bad, good):
        dialogs.reply_with(str(path))
        ui.addModelButton.click()
        assert not ui.addModelButton.enabled and not ui.modelProgress.isHidden()
        wait_until(lambda: ui.addModelButton.enabled)
        if path is bad:
            assert "bad.safetensors" in ui.modelSummary.text and panel.models.entry.name == "small"
    assert ui.modelBox.currentText == "Another model" and panel.models.entry.name == "another"
    assert "recognized as a MedDPM bundle" in ui.modelSummary.text and ui.modelProgress.isHidden()
    shown = ui.modelBox.itemData(ui.modelBox.currentIndex, qt.Qt.ToolTipRole)
    assert "T1, T2" in shown and "16 x 16 x 16" in shown and shown in ui.modelSummary.text
    assert panel._parameterNode.model == "another"
    ui.aboutModelButton.click()
    windows = [w for w in qt.QApplication.topLevelWidgets() if w.windowTitle == "Another model"]
    assert "License" in windows[0].findChild(qt.QPlainTextEdit).toPlainText()
    windows[0].close()
    dialogs.reply_with(qt.QMessageBox.Ok)
    ui.removeModelButton.click()
    assert panel.models.entry.name != "another" and ui.modelBox.findText("Another model") == -1


def test_a_model_that_vanishes_is_reported(panel, models):
    start_from_template(panel)
    file = models / "small.safetensors"
    kept = file.rename(models / "small.away")
    try:
        panel.ui.generateButton.click()
        wait_until(lambda: panel.logic.generator.order is None)
        assert 'no model "small"' in panel.ui.messageLabel.text
    finally:
        kept.rename(file)


# Painting --------------------------------------------------------------------------------------------


def test_a_tumor_is_stamped_at_the_crosshair_and_can_be_undone(panel):
    start_from_template(panel)
    crosshair = slicer.mrmlScene.GetFirstNodeByClass("vtkMRMLCrosshairNode")
    if crosshair is None:
        crosshair = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLCrosshairNode")
    segmentation, table = panel.ui.segmentationSelector.currentNode(), panel.mask.table
    necrosis = SCHEME.label_by_name("Necrosis").value

    def count():
        return int((read_labels(segmentation, table, SCHEME).array == necrosis).sum())

    crosshair.SetCrosshairRAS(28, 22, 25)
    panel.ui.stampSlider.value = 15
    panel.ui.stampButton.click()
    assert not panel.ui.stampButton.enabled  # one at a time
    wait_until_painted(panel)
    assert panel.ui.stampButton.enabled and panel.ui.maskMessage.text == "" and count() > 1000
    panel.mask.editor.undo()
    assert count() == 0
    crosshair.SetCrosshairRAS(500, 0, 0)
    panel.ui.stampButton.click()
    wait_until_painted(panel)
    assert "inside the brain" in panel.ui.maskMessage.text


def test_the_brain_is_filled_from_a_volume(panel):
    segmentation = start_from_template(panel)
    geometry = painted_geometry(segmentation)
    image = np.zeros(geometry.shape, np.float32)
    image[20:-20, 20:-20, 20:-20] = 100
    volume = slicer.util.addVolumeFromArray(image, geometry.ijk_to_ras, "stripped")
    assert not panel.ui.brainButton.enabled
    panel.ui.brainSelector.setCurrentNode(volume)
    before = np.count_nonzero(read_labels(segmentation, panel.mask.table, SCHEME).array)
    panel.ui.brainButton.click()
    wait_until_painted(panel)
    assert "taken from" in panel.ui.maskMessage.text
    assert np.count_nonzero(read_labels(segmentation, panel.mask.table, SCHEME).array) > before


# Smaller things --------------------------------------------------------------------------------------


def test_packages_are_installed_without_slicer_packaging(application, monkeypatch):
    """3D Slicer 5.10."""
    monkeypatch.delattr(slicer, "packaging")
    monkeypatch.setitem(sys.modules, "slicer.packaging", None)
    asked = []

    def pip_install(requirements):
        asked.append(requirements)
        packages.hidden.clear()

    monkeypatch.setattr(slicer.util, "pip_install", pip_install)
    assert dependencies.missing() == []
    packages.hidden.update({"nibabel", "platformdirs"})
    assert dependencies.missing() == ["nibabel>=5.2", "platformdirs>=4"]
    assert "missing: nibabel>=5.2" in dependencies.describe()
    dialogs.reply_with(qt.QMessageBox.Ok)
    dependencies.ensure()
    assert asked == [["nibabel>=5.2", "platformdirs>=4"]]


def test_choices_name_what_there_is(panel):
    module = sys.modules["MedDPM"]
    assert {choice.value for choice in module.Sampler} == {None, *METHODS}
    assert {choice.value for choice in module.Precision} == set(PRECISIONS)
    assert {choice.value for choice in module.Space} == set(SPACES)
    assert (panel.ui.guidanceBox.minimum, panel.ui.guidanceBox.maximum) == (0, MAX_GUIDANCE)
    assert tuple(choice.value for choice in module.Quality) == QUALITIES
    for kind in (module.Sampler, module.Precision, module.Space, module.Quality, module.Device):
        assert all(kind.label(choice) for choice in kind)


def test_templates_are_sample_data(panel, application):
    application.emit("startupCompleted()")
    sources = {source["sampleName"]: source for source in sys.modules["SampleData"].SampleDataLogic.sources}
    assert {template.title for template in templates()} <= set(sources)
    title = templates()[1].title
    node = sources[title]["customDownloader"](sources[title])
    assert node.GetName() == title and node.GetSegmentation().GetNumberOfSegments() == len(SCHEME.labels)
    assert volumes.sheet_of(node) is not None


def test_nothing_of_the_panel_is_cut_off(panel, application):
    """With all sections open, in a column as narrow as 3D Slicer's."""
    start_from_template(panel)
    ui = panel.ui
    for section in (ui.modelSection, ui.labelsSection, ui.generateSection, ui.advancedSection, ui.resultsSection):
        section.collapsed = False
    window = application.mainWindow()
    window.resize(1280, 1700)
    window.show()
    wait_until(lambda: panel.ui.resultsTree.isVisible(), 5)
    application.processEvents()
    assert ui.modelProgress.isHidden() and ui.addMissingButton.isHidden()  # unfolding shows nothing that was hidden
    column = window.panel()
    assert column.widget().width == column.viewport().width <= 480
    for name, widget in vars(panel.ui).items():
        if isinstance(widget, (qt.QPushButton, qt.QComboBox, qt.QSpinBox, qt.QCheckBox)) and widget.isVisible():
            assert widget.width >= qt.QWidget.minimumSizeHint.fget(widget).width(), name


def test_time_is_spoken():
    assert [spoken_time(s) for s in (0.2, 59.4, 59.6, 150, 4000)] == [
        "0 s", "59 s", "about 1 min", "about 2 min", "about 1 h 7 min",
    ]  # fmt: skip


def test_a_program_that_cannot_be_started_is_reported(application, monkeypatch):
    monkeypatch.setattr(worker_client, "python_program", lambda: "/nowhere/PythonSlicer")
    client, messages = WorkerClient(), []
    client.failed.connect(messages.append)
    client.load("small")
    wait_until(lambda: messages, 5)
    assert "cannot be started" in messages[0] and not client.running and session_folders() == []


def test_cmake_installs_every_file_of_the_module():
    module = MODULE.parent
    cmake = module / "CMakeLists.txt"
    scripts, resources = (cmake_list(cmake, f"MODULE_PYTHON_{kind}") for kind in ("SCRIPTS", "RESOURCES"))
    assert sorted(files(module)) == sorted(scripts + resources)
