"""What the views show while a mask is painted and images come, and whether one finds what was generated."""

# ruff: noqa: F811 (fixtures are imported by their names)

from __future__ import annotations

import numpy as np
import pytest
from bench import dialogs
from bench.driver import (  # noqa: F401
    MODULE,
    SCHEME,
    application,
    click_effect,
    generate,
    models,
    panel,
    small_segmentation,
    start_from_template,
    wait_until,
)
from conftest import small_geometry, small_labels

import qt  # isort: skip
import slicer  # isort: skip
import vtk  # isort: skip

from MedDPMLib.imaging.volume import Volume
from MedDPMLib.inference.record import write_stored
from MedDPMLib.masks.templates import find_template
from MedDPMLib.scene import comparison, painting, surface, views, volumes
from MedDPMLib.scene.background_work import run_now
from MedDPMLib.scene.recognition import recognize
from MedDPMLib.scene.segmentation import read_labels
from MedDPMLib.scene.watch import watch

REST = SCHEME.rest.value
RECORD = {
    "model": {"name": "small", "hash": "0"}, "mask": {"name": "Small", "hash": "0"}, "seed": 0, "sampler": "ddim",
    "steps": 2, "description": "synthetic, MedDPM", "created": "2026-11-30T12:00:00+00:00", "seconds": 1.0,
}  # fmt: skip


def composites():
    layout = slicer.app.layoutManager()
    return [layout.sliceWidget(name).mrmlSliceCompositeNode() for name in layout.sliceViewNames()]


def backgrounds():
    return {slicer.mrmlScene.GetNodeByID(c.GetBackgroundVolumeID() or "") for c in composites()}


def a_run(segmentation, seed=0, mask="0", created="2026-11-30T12:00:00+00:00", modalities=("t1", "flair")):
    """Volumes as a run of the generator leaves them."""
    nodes = []
    for modality in modalities:
        array = np.random.default_rng(seed).integers(0, 900, (16, 16, 16)).astype(np.int16)
        name = volumes.result_name(segmentation.GetName(), modality, seed)
        node = volumes.add_volume(Volume(array, small_geometry()), name, segmentation, window=(0, 900))
        mask_of = {"name": segmentation.GetName(), "hash": mask}
        volumes.set_record(
            node, {**RECORD, "mask": mask_of, "seed": seed, "created": created, "modality": modality, "notes": []}
        )
        nodes.append(node)
    slicer.app.processEvents()
    return nodes


def a_scan(name="scan"):
    geometry = small_geometry()
    return slicer.util.addVolumeFromArray(np.full(geometry.shape, 100, np.int16), geometry.ijk_to_ras, name)


def outlined(segmentation):
    """The segments whose outlines are seen."""
    display = segmentation.GetDisplayNode()
    if not display.GetVisibility() or not display.GetVisibility2DOutline():
        return set()
    ids = segmentation.GetSegmentation().GetSegmentIDs()
    return {id_ for id_ in ids if display.GetSegmentVisibility2DOutline(id_)}


# The mask --------------------------------------------------------------------------------------------


def test_a_loaded_scene_can_be_painted_on_at_once(panel, application, tmp_path):
    """3D Slicer's segment editor loses its segmentation at the end of the batch, after the end of the import."""
    small_segmentation(panel)
    application.processEvents()
    assert slicer.util.saveScene(str(tmp_path / "scene.mrb"))
    application.close_scene()
    slicer.util.loadScene(str(tmp_path / "scene.mrb"))
    application.processEvents()
    chosen = panel.ui.segmentationSelector.currentNode()
    assert chosen is not None and panel.mask.editor.segmentationNode() is chosen
    click_effect(panel, "Paint")
    # Any other batch of nodes takes it away, too.
    slicer.mrmlScene.StartState(slicer.mrmlScene.BatchProcessState)
    slicer.mrmlScene.EndState(slicer.mrmlScene.BatchProcessState)
    assert panel.mask.editor.segmentationNode() is None
    application.processEvents()
    assert panel.mask.editor.segmentationNode() is chosen


def test_only_the_chosen_mask_is_seen(panel):
    one, other = small_segmentation(panel, name="One"), small_segmentation(panel, name="Other")
    assert not one.GetDisplayNode().GetVisibility() and other.GetDisplayNode().GetVisibility()
    panel.ui.segmentationSelector.setCurrentNode(one)
    assert one.GetDisplayNode().GetVisibility() and not other.GetDisplayNode().GetVisibility()


def test_the_only_segmentation_is_chosen_on_entering(panel, application):
    slicer.util.selectModule("MedDPM")
    application.mainWindow().moduleSelector().leave("MedDPM")
    node = painting.add_segmentation(Volume(small_labels(SCHEME), small_geometry()), SCHEME, "From elsewhere")
    slicer.util.selectModule("MedDPM")
    assert panel.ui.segmentationSelector.currentNode() is node and panel.mask.editor.segmentationNode() is node
    # Where there are two, the user has to choose.
    application.close_scene()
    application.mainWindow().moduleSelector().leave("MedDPM")
    for name in ("A", "B"):
        painting.add_segmentation(Volume(small_labels(SCHEME), small_geometry()), SCHEME, name)
    slicer.util.selectModule("MedDPM")
    assert panel.ui.segmentationSelector.currentNode() is None


def test_the_outlines_are_those_of_the_tumor_of_all_or_of_none(panel):
    node = small_segmentation(panel)
    tumor = {label.name for label in SCHEME.tumor}
    everything = set(node.GetSegmentation().GetSegmentIDs())
    views.show_outline(node, True)
    panel.mask.editor.setCurrentSegmentID("Necrosis")
    assert outlined(node) == tumor and node.GetDisplayNode().GetSliceIntersectionThickness() == 1
    panel.mask.editor.setCurrentSegmentID("Thalamus")  # what is being painted has to be seen
    assert outlined(node) == {*tumor, "Thalamus"}
    panel.ui.outlinesAll.click()
    assert outlined(node) == everything
    panel.ui.outlinesNone.click()
    assert outlined(node) == set() and not node.GetDisplayNode().GetVisibility2DFill()
    panel.display.next_outlines()  # the key
    assert outlined(node) == {*tumor, "Thalamus"} and panel.ui.outlinesTumor.checked
    panel.ui.outlinesNone.click()
    small_segmentation(panel, name="Other")
    assert panel.ui.outlinesTumor.checked
    panel.ui.segmentationSelector.setCurrentNode(node)
    assert panel.ui.outlinesNone.checked
    panel.display.swap_mask()
    assert node.GetDisplayNode().GetVisibility2DFill() and outlined(node) == everything


def test_mask_image_and_scan_are_one_click_apart(panel):
    ui, scan = panel.ui, a_scan()
    node = small_segmentation(panel)
    slicer.app.processEvents()
    ui.showImageButton.click()
    assert "no image" in ui.messageLabel.text
    _t1, flair = a_run(node)
    older = a_run(small_segmentation(panel, name="Other"))
    ui.segmentationSelector.setCurrentNode(node)
    slicer.app.processEvents()
    views.show_background(flair, fit=False)
    views.show_outline(node, True)
    panel.display.swap_mask()
    assert not views.is_outlined(node) and backgrounds() == {flair}
    ui.showScanButton.click()
    assert backgrounds() == {scan} and views.is_outlined(node)
    panel.display.swap_scan()  # back to the modality that was looked at, of this mask
    assert backgrounds() == {flair} and not backgrounds() & set(older)
    panel.display.swap_scan()
    assert backgrounds() == {scan}
    ui.showMaskButton.click()
    assert backgrounds() == {scan} and not views.is_outlined(node)
    ui.showImageButton.click()
    assert backgrounds() == {flair} and views.is_outlined(node)
    # Of two scans it is the one that is laid over the image; which of two that are not shown, nobody knows.
    other = a_scan("other")
    panel.display.swap_scan()
    assert backgrounds() == {flair} and "several" in ui.messageLabel.text
    slicer.util.setSliceViewerLayers(foreground=other, foregroundOpacity=0.3)
    panel.display.swap_scan()
    assert backgrounds() == {other}


def test_windows_suit_the_modality_and_stay_with_it(panel):
    node = small_segmentation(panel)
    t1, flair = a_run(node)
    views.show_background(flair, fit=False)
    menu = panel.ui.windowButton.menu()
    menu.aboutToShow.emit()
    titles = [action.text for action in menu.actions()]
    assert titles == ["FLAIR: Standard", "FLAIR: Edema", "FLAIR: Gray and white matter", "FLAIR: Full range"]
    before = t1.GetDisplayNode().GetWindowLevelMin(), t1.GetDisplayNode().GetWindowLevelMax()
    menu.actions()[1].trigger()
    display, array = flair.GetDisplayNode(), slicer.util.arrayFromVolume(flair)
    # The brighter half of what is no background spans the window.
    shown = [np.mean(array[array > 0] < bound) for bound in (display.GetWindowLevelMin(), display.GetWindowLevelMax())]
    assert shown == pytest.approx([0.5, 1.0], abs=0.15)
    assert (t1.GetDisplayNode().GetWindowLevelMin(), t1.GetDisplayNode().GetWindowLevelMax()) == before
    later = a_run(node, seed=5)[1]
    panel.display.dress([later])
    assert later.GetDisplayNode().GetWindowLevelMin() > 0
    menu.aboutToShow.emit()
    menu.actions()[0].trigger()
    assert display.GetWindowLevelMin() == 0


def test_a_template_opens_at_its_tumor(panel):
    segmentation = start_from_template(panel, "glioma")
    ids = list(segmentation.GetSegmentation().GetSegmentIDs())
    assert set(ids[:3]) == {label.name for label in SCHEME.tumor}
    assert panel.mask.editor.currentSegmentID() == "Enhancing tumor"
    _on, center, radius, _seed = find_template("glioma").tumor
    for composite, axis in zip(composites()[:3], (2, 1, 0), strict=True):
        node = slicer.app.layoutManager().sliceWidget(composite.GetLayoutName()).mrmlSliceNode()
        assert abs(node.GetSliceToRAS().GetElement(axis, 3) - center[axis]) < radius, composite.GetLayoutName()


def test_what_the_user_laid_over_the_image_stays(panel):
    node, scan = small_segmentation(panel), a_scan()
    slicer.util.setSliceViewerLayers(foreground=scan, foregroundOpacity=0.3)
    result, other = a_run(node)
    views.show_background(result, fit=True)
    panel.mask.paint_over(other)
    slicer.app.processEvents()
    assert all(c.GetForegroundVolumeID() == scan.GetID() for c in composites())
    assert backgrounds() == {result}


# Images ----------------------------------------------------------------------------------------------


def test_the_views_stay_on_the_modality_that_is_looked_at(panel):
    """With an image over the user's own scan, in two runs, with previews; and the list that comes of them."""
    scan, other_scan = a_scan(), a_scan("other scan")
    slicer.util.setSliceViewerLayers(background=scan, foreground=other_scan, foregroundOpacity=0.2)
    node = small_segmentation(panel)
    slicer.app.processEvents()
    assert backgrounds() == {scan} and panel.mask.editor.sourceVolumeNode() is scan
    generate(panel)
    t1, t2 = volumes.results()
    assert backgrounds() == {t1} and views.is_outlined(node)  # else the image lies under the filled mask
    wait_until(lambda: any(model.GetDisplayNode().GetVisibility() for model in surface.surfaces()), 5)
    assert panel.ui.hintLabel.isHidden() and not panel.ui.resultsSection.collapsed

    panel.results.next_modality()
    assert backgrounds() == {t2}
    panel.ui.seedBox.value, panel.ui.stepsBox.value = 7, 12
    panel.ui.generateButton.click()
    wait_until(lambda: any(volumes.record_of(n) is None for n in volumes.results()) or not panel.logic.generator.order)
    forming = [n for n in volumes.results() if volumes.record_of(n) is None]
    assert {volumes.modality_of(n) for n in forming} <= {"t2"}
    assert all(n.GetName() == "T2 (synthetic, forming) Small" for n in forming)
    wait_until(lambda: panel.logic.generator.order is None)
    slicer.app.processEvents()
    newest = panel.results.chosen()
    assert [volumes.modality_of(n) for n in newest] == ["t1", "t2"]
    assert [volumes.record_of(n)["seed"] for n in newest] == [7, 7]
    assert backgrounds() == {newest[1]} and panel.mask.editor.sourceVolumeNode() is newest[1]
    assert all(c.GetForegroundVolumeID() == other_scan.GetID() for c in composites())
    assert panel.ui.showButton.enabled and panel.ui.exportButton.enabled and panel.results.count == 2

    small_segmentation(panel, name="Other")
    slicer.app.processEvents()
    panel.ui.segmentationSelector.setCurrentNode(node)
    slicer.app.processEvents()
    assert backgrounds() == {newest[1]}

    # Integers from 0 on, as viewers expect them; the record says what they stand for.
    array = slicer.util.arrayFromVolume(t1)
    line = volumes.record_of(t1)["intensities"]
    assert array.dtype == np.int16 and array.min() >= 0 and array.max() <= 1000
    assert line["slope"] * 1000 + line["intercept"] == 1


def test_a_run_that_is_cancelled_leaves_the_views_as_they_were(panel, application):
    scan = a_scan()
    slicer.util.setSliceViewerLayers(background=scan)
    small_segmentation(panel)
    panel.ui.stepsBox.value = 50
    for _end in ("cancel", "reload"):
        panel = slicer.util.getModuleWidget("MedDPM")
        panel.ui.generateButton.click()
        wait_until(lambda: [n for n in volumes.results() if volumes.record_of(n) is None])
        if _end == "cancel":
            panel.ui.generateButton.click()
        else:
            slicer.util.reloadScriptedModule("MedDPM")
        assert volumes.results() == [] and backgrounds() == {scan}


def test_names_and_views_begin_with_the_modality(panel):
    """3D Slicer shortens what is long in the middle: compared volumes have to be distinguished."""
    node = small_segmentation(panel, name="Ventricles of medium width")
    nodes = a_run(node, seed=12) + a_run(node, seed=13, mask="1", modalities=("t1", "t2"))
    former = slicer.app.layoutManager().layout
    run_now(comparison.comparing(nodes))
    widgets = [slicer.app.layoutManager().sliceWidget(f"Compare{n}") for n in range(1, 5)]
    for widget in widgets:
        widget.sliceLogic().Modified()
    corners = [widget.sliceView().cornerAnnotation() for widget in widgets]
    assert all("..." in corner.GetText(0) for corner in corners)
    assert [corner.GetText(0).split()[1] for corner in corners] == ["T1", "FLAIR", "T1", "T2"]
    edges = [corner.GetText(vtk.vtkCornerAnnotation.UpperEdge) for corner in corners]
    captions = ["T1, seed 12", "FLAIR, seed 12", "T1, seed 13", "T2, seed 13"]
    assert edges == [f"{caption}\n{views.MARK}" for caption in captions]
    slicer.app.layoutManager().setLayout(former)


def test_a_forming_image_is_not_numbered_beside_older_results(panel):
    node = small_segmentation(panel)
    name = volumes.forming_name("Small", "t1")
    for _ in range(3):
        forming = volumes.add_volume(Volume(small_labels(SCHEME), small_geometry()), name, node, window=(0, 1))
        assert forming.GetName() == name
        volumes.remove_result(forming)
    a_run(node)
    assert volumes.free_number("Small", ["t2", "flair"], 0) == 2 and volumes.free_number("Small", ["t2"], 0) == 1
    assert volumes.result_name("Small", "t1", 0, 2) == "T1 (synthetic, seed 0) Small (2)"


@pytest.mark.parametrize("beside", [True, False], ids=["with its record", "alone"])
def test_an_exported_volume_is_known_when_it_is_loaded_again(panel, tmp_path, beside):
    node = small_segmentation(panel)
    (result,) = a_run(node, modalities=("flair",))
    record = volumes.record_of(result)
    write_stored(tmp_path, "case", {"flair": volumes.result_volume(result)}, record)
    volumes.remove_result(result)
    if not beside:
        (tmp_path / "case_flair.json").unlink()
    file = (tmp_path / "case_flair.nii.gz").rename(tmp_path / "case_flair.nii.gz" if beside else tmp_path / "x.nii.gz")
    loaded = slicer.util.loadVolume(str(file))
    wait_until(lambda: volumes.is_synthetic(loaded), 5)
    slicer.app.processEvents()
    assert panel.results.count == int(beside)
    views.show_background(loaded, fit=True)
    annotation = slicer.app.layoutManager().sliceWidget("Red").sliceView().cornerAnnotation()
    said = annotation.GetText(vtk.vtkCornerAnnotation.UpperEdge)
    assert said == (f"FLAIR, seed 0\n{views.MARK}" if beside else views.MARK)
    scan = a_scan()
    slicer.util.saveNode(scan, str(tmp_path / "scan.nii.gz"))
    plain = slicer.util.loadVolume(str(tmp_path / "scan.nii.gz"))
    slicer.app.processEvents()
    assert not volumes.is_synthetic(plain) and not recognize(plain)


def test_an_exported_volume_is_marked_before_the_panel_is_opened(application, tmp_path):
    application.moduleManager().load(MODULE)
    application.emit("startupCompleted()")
    write_stored(tmp_path, "case", {"t2": Volume(np.ones((16, 16, 16), np.int16), small_geometry())}, RECORD)
    loaded = slicer.util.loadVolume(str(tmp_path / "case_t2.nii.gz"))
    views.show_background(loaded, fit=True)
    annotation = slicer.app.layoutManager().sliceWidget("Red").sliceView().cornerAnnotation()
    wait_until(lambda: annotation.GetText(vtk.vtkCornerAnnotation.UpperEdge) == f"T2, seed 0\n{views.MARK}", 5)
    application.close_scene()
    slicer.app.processEvents()
    assert not annotation.GetText(vtk.vtkCornerAnnotation.UpperEdge)
    application.moduleManager().unload("MedDPM")
    watch.stop()


# Side by side ----------------------------------------------------------------------------------------


def offset(name):
    return slicer.app.layoutManager().sliceWidget(name).sliceLogic().GetSliceOffset()


def test_a_comparison_keeps_the_place(panel, application):
    ui, layout = panel.ui, slicer.app.layoutManager()
    nodes = a_run(small_segmentation(panel))
    views.show_background(nodes[0], fit=True)
    former = layout.layout
    layout.sliceWidget("Red").sliceLogic().SetSliceOffset(13)
    layout.sliceWidget("Green").sliceLogic().SetSliceOffset(-9)
    panel.results.select_newest()
    ui.compareButton.click()
    wait_until(lambda: not panel.results.busy)
    application.processEvents()
    assert [offset("Compare1"), offset("Compare2")] == pytest.approx([13, 13])
    # One click turns it; the place in the other orientation is the one that was looked at there.
    ui.orientationBox.currentIndex = ui.orientationBox.findData("Coronal")
    application.processEvents()
    assert layout.sliceWidget("Compare2").mrmlSliceNode().GetOrientation() == "Coronal"
    ui.orientationBox.currentIndex = ui.orientationBox.findData("Axial")
    application.processEvents()
    for name in ("Compare1", "Compare2"):
        layout.sliceWidget(name).sliceLogic().SetSliceOffset(21)
    # What is generated meanwhile does not replace what is compared.
    before = [layout.sliceWidget(f"Compare{n}").mrmlSliceCompositeNode().GetBackgroundVolumeID() for n in (1, 2)]
    views.show_background(nodes[1], fit=False)
    after = [layout.sliceWidget(f"Compare{n}").mrmlSliceCompositeNode().GetBackgroundVolumeID() for n in (1, 2)]
    assert before == after == [node.GetID() for node in nodes]
    ui.endCompareButton.click()
    assert layout.layout == former and offset("Red") == pytest.approx(21) and offset("Green") == pytest.approx(-9)
    red = layout.sliceWidget("Red").mrmlSliceCompositeNode()
    assert red.GetBackgroundVolumeID() == nodes[1].GetID()


def test_a_comparison_ends_with_another_layout_and_with_the_scene(panel, application):
    ui, layout = panel.ui, slicer.app.layoutManager()
    former = layout.layout
    a_run(small_segmentation(panel))
    panel.results.select_newest()
    ui.compareButton.click()
    wait_until(lambda: not panel.results.busy)
    assert ui.endCompareButton.enabled
    layout.setLayout(slicer.vtkMRMLLayoutNode.SlicerLayoutOneUpRedSliceView)
    assert not ui.endCompareButton.enabled
    layout.setLayout(former)
    ui.compareButton.click()
    wait_until(lambda: not panel.results.busy)
    application.close_scene()
    assert layout.layout == former and not ui.endCompareButton.enabled


# The list --------------------------------------------------------------------------------------------


def test_runs_are_listed_newest_first_and_deleted_in_any_order(panel):
    node = small_segmentation(panel)
    old = a_run(node, created="2026-11-30T12:00:00+00:00")
    new = a_run(node, seed=3, mask="1", created="2026-11-30T12:00:05+00:00")
    tree = panel.ui.resultsTree
    panel.results.fill()
    assert panel.results.count == 2 and tree.topLevelItem(0).childCount() == 2
    assert "seed 3" in tree.topLevelItem(0).text(0) and "Small" in tree.topLevelItem(0).text(0)
    assert [tree.topLevelItem(0).child(row).text(0) for row in (0, 1)] == ["T1", "FLAIR"]
    tree.topLevelItem(1).setSelected(True)
    assert panel.results.chosen() == old
    # A second Delete while the first is carried out.
    panel.ui.deleteButton.click()
    tree.clearSelection()
    tree.topLevelItem(0).child(1).setSelected(True)
    panel.ui.deleteButton.click()
    wait_until(lambda: volumes.results() == [new[0]], 5)


def test_the_segment_editor_module_shows_the_image_and_not_the_blank(panel):
    node = small_segmentation(panel)
    slicer.app.processEvents()
    sheet, role = volumes.sheet_of(node), node.GetReferenceImageGeometryReferenceRole()
    assert sheet is not None and node.GetNodeReference(role) is sheet
    result, _ = a_run(node)
    panel.mask.check_source()
    slicer.app.processEvents()
    assert node.GetNodeReference(role) is result and volumes.sheet_of(node) is sheet
    volumes.remove_result(result)
    volumes.remove_result(_)
    slicer.app.processEvents()
    assert node.GetNodeReference(role) is sheet and panel.mask.editor.sourceVolumeNode() is sheet


# The panel -------------------------------------------------------------------------------------------


def test_after_a_template_the_editor_is_in_sight(panel, application):
    window = application.mainWindow()
    window.resize(1366, 700)
    window.show()
    start_from_template(panel)
    application.processEvents()
    sections, editor = panel.ui.sections, panel.mask.editor
    top = editor.mapTo(sections.viewport(), qt.QPoint(0, 0)).y()
    assert 0 <= top <= 20 and sections.verticalScrollBar().value > 0


@pytest.mark.parametrize("size", [(1366, 700), (1366, 768), (1920, 1080)], ids="{0[0]} x {0[1]}".format)
def test_generate_is_in_sight_at_any_scroll_position(panel, application, size):
    """3D Slicer scrolls the whole module where it is as high as its text wants, and widens the dock to its content."""
    ui, window = panel.ui, application.mainWindow()
    window.resize(*size)
    window.show()
    application.processEvents()
    outer = window.panel()
    assert size[1] != 700 or outer.viewport().height == 380  # as measured in 3D Slicer
    width = window.panel().width
    small_segmentation(panel)
    for section in (ui.modelSection, ui.labelsSection, ui.generateSection, ui.advancedSection, ui.resultsSection):
        section.collapsed = False
    ui.messageLabel.text = "a long message " * 20
    ui.messageLabel.visible = True
    ui.resultMessage.text = "Written: " + "a_very_long_file_name_without_any_space_" * 12
    ui.resultMessage.visible = True
    for _ in range(3):
        application.processEvents()
    assert outer.verticalScrollBar().maximum == 0 and outer.width == width
    bar = ui.sections.verticalScrollBar()
    assert bar.maximum > 0  # else there is nothing to scroll
    for position in (0, bar.maximum // 2, bar.maximum):
        bar.value = position
        application.processEvents()
        for widget in (ui.generateButton, ui.messageLabel):
            corner = widget.mapTo(outer.viewport(), qt.QPoint(0, widget.height))
            assert widget.isVisible() and 0 < corner.y() <= outer.viewport().height
    assert ui.sections.horizontalScrollBar().maximum == 0
    assert panel.mask.editor.width >= 413  # what it needs


def test_messages_go_with_the_mask_that_they_are_about(panel):
    one = small_segmentation(panel, np.zeros_like(small_labels(SCHEME)), "Blank")
    panel.ui.generateButton.click()
    assert 'nothing is painted in "Blank"' in panel.ui.messageLabel.text
    small_segmentation(panel, name="Other")
    assert panel.ui.messageLabel.text == "" and panel.ui.messageLabel.isHidden()
    assert one is not panel.ui.segmentationSelector.currentNode()


def test_the_next_step_is_said_until_it_is_known(panel, application):
    qt.QSettings().remove("MedDPM/knowsTheSteps")
    panel.showGuide()
    assert "Step 1" in panel.ui.hintLabel.text
    node = small_segmentation(panel)
    assert "Step 2" in panel.ui.hintLabel.text
    painting.paint(node, "Necrosis", np.ones((2, 2, 2), bool))
    wait_until(lambda: "Step 3" in panel.ui.hintLabel.text, 5)
    a_run(node)
    panel.results.fill()
    panel.showGuide()
    assert panel.ui.hintLabel.isHidden()


# Labels ----------------------------------------------------------------------------------------------


def own_segment(panel, name):
    """A brain, and in it a painted segment of the user's own."""
    node = small_segmentation(panel)
    id_ = node.GetSegmentation().AddEmptySegment("", name)
    painting.paint(node, id_, np.ones((3, 3, 3), bool), first=(6, 6, 6))
    slicer.app.processEvents()
    return node, id_


@pytest.mark.parametrize("name", ["tumor", "GTV", "lesion 2", "mass", "Segment_1"])
def test_a_painted_segment_without_a_label_is_asked_about(panel, name):
    _node, id_ = own_segment(panel, name)
    dialogs.reply_with(qt.QDialog.Rejected)
    panel.ui.generateButton.click()
    assert panel.ui.generateButton.text == "Generate" and id_ not in panel.mask.table
    proposed = []

    def answer(dialog):
        box = dialog.findChild(qt.QComboBox, id_)
        proposed.append(box.currentText)
        box.currentIndex = box.findText("Necrosis")
        return qt.QDialog.Accepted

    dialogs.reply_with(answer)
    panel.ui.generateButton.click()
    assert panel.ui.generateButton.text == "Cancel", panel.ui.messageLabel.text
    panel.ui.generateButton.click()
    assert proposed == ["(not used)" if name == "Segment_1" else "Enhancing tumor"]
    assert panel.mask.table[id_] == SCHEME.label_by_name("Necrosis").value
    # What is answered is not asked again, be it that the segment is not used.
    panel.ui.generateButton.click()
    panel.ui.generateButton.click()
    assert [shown.kind for shown in dialogs.shown] == ["dialog", "dialog"]


def test_an_edit_that_generates_again_asks_nothing_and_says_what_is_not_used(panel):
    node, id_ = own_segment(panel, "tumor")
    panel.ui.autoBox.checked = True
    painting.paint(node, id_, np.ones((2, 2, 2), bool), first=(4, 6, 6))
    wait_until(lambda: panel.ui.messageLabel.text != "", 10)
    assert '"tumor"' in panel.ui.messageLabel.text and dialogs.shown == []
    assert panel.logic.generator.order is None


# 3-D -------------------------------------------------------------------------------------------------


def bounds_of(surface):
    return np.array(surface.GetMesh().GetBounds()).reshape(3, 2)


def test_the_3d_view_shows_the_tumor_in_its_brain(panel):
    node = small_segmentation(panel)
    labels = read_labels(node, panel.mask.table, SCHEME)
    run_now(surface.showing(node))
    shown = {model.GetName(): model for model in surface.surfaces()}
    assert set(shown) == {"Brain surface", "Edema surface", "Enhancing tumor surface"}
    geometry = labels.geometry
    for name, inside in (("Brain", labels.array > 0), ("Edema", labels.array == SCHEME.label_by_name("Edema").value)):
        voxels = geometry.to_ras(np.argwhere(inside)[:, ::-1])
        box = np.stack([voxels.min(axis=0), voxels.max(axis=0)], axis=1)
        drift = np.abs(bounds_of(shown[f"{name} surface"]) - box)
        assert drift.max() <= 0.5 * geometry.spacing.max() + 1e-3, name
    assert shown["Brain surface"].GetDisplayNode().GetOpacity() < 0.5
    # Again: the same nodes, and nothing of a part that is gone.
    before = {model.GetID() for model in surface.surfaces()}
    edema = node.GetSegmentation().GetSegmentIdBySegmentName("Edema")
    rest = node.GetSegmentation().GetSegmentIdBySegmentName(SCHEME.rest.name)
    painting.paint(node, rest, np.ones(geometry.shape, bool), over=[edema])
    run_now(surface.showing(node, brain=False))
    assert {model.GetID() for model in surface.surfaces()} == before
    assert shown["Edema surface"].GetMesh().GetNumberOfPoints() == 0
    # They go with the mask: another is chosen, it is deleted.
    small_segmentation(panel, name="Other")
    slicer.app.processEvents()
    visible = [model for model in surface.surfaces() if model.GetDisplayNode().GetVisibility()]
    assert not set(visible) & set(shown.values())
    slicer.mrmlScene.RemoveNode(node)
    wait_until(lambda: not set(surface.surfaces()) & set(shown.values()), 5)


def test_a_stroke_makes_no_surface_again_and_those_of_the_tumor_follow(panel):
    """3D Slicer's own surfaces of a segmentation are all made again with each stroke, which takes seconds."""
    node = small_segmentation(panel)
    core = node.GetSegmentation()
    node.CreateClosedSurfaceRepresentation()  # "Show 3D" in the Segment Editor
    converted = []
    core.AddObserver(slicer.vtkSegmentation.RepresentationModified, lambda *_: converted.append(1))
    wait_until(lambda: not panel._surfaces.busy and surface.surfaces(), 10)
    assert not core.ContainsRepresentation("Closed surface") and panel.ui.surfaceBox.checked
    assert "Show 3D" in panel.ui.maskMessage.text
    enhancing = core.GetSegmentIdBySegmentName("Enhancing tumor")
    (model,) = (model for model in surface.surfaces() if model.GetName() == "Enhancing tumor surface")
    before = bounds_of(model)
    voxels = np.zeros(small_geometry().shape, bool)
    voxels[3:13, 3:13, 3:13] = True
    painting.paint(node, enhancing, voxels, over=list(core.GetSegmentIDs()))
    assert not core.ContainsRepresentation("Closed surface")
    wait_until(lambda: np.ptp(bounds_of(model), axis=1).min() > np.ptp(before, axis=1).max(), 10)


# Completion ------------------------------------------------------------------------------------------


def test_a_mask_of_a_tumor_alone_is_completed_to_be_looked_at(panel, monkeypatch):
    monkeypatch.delenv("MEDDPM_MODELS")
    panel.models.fill("brain-brats")
    assert panel.models.entry.name == "brain-brats" and not panel.ui.completeButton.isHidden()
    before = start_from_template(panel, "glioma")
    brats = panel.models.card.scheme
    given = read_labels(before, panel.mask.table, brats)
    panel.ui.seedBox.value = 3
    panel.ui.completeButton.click()
    assert not panel.ui.completeButton.enabled
    wait_until(lambda: not panel.completion.busy)
    node = panel.ui.segmentationSelector.currentNode()
    assert node is not before and node.GetName() == f"{before.GetName()} (completed, seed 3)"
    assert panel.models.entry.name == "brain-anatomy" and "invented" in panel.ui.maskMessage.text
    made = read_labels(node, panel.mask.table, SCHEME)
    anatomy = {label.value for label in SCHEME.labels if label.role == "structure"}
    assert len(anatomy & set(np.unique(made.array).tolist())) > 10
    for name in ("Necrosis", "Enhancing tumor"):  # on the model's grid, in the same place
        one, other = (
            volume.geometry.to_ras(np.argwhere(volume.array == scheme.label_by_name(name).value)[:, ::-1]).mean(axis=0)
            for volume, scheme in ((given, brats), (made, SCHEME))
        )
        assert np.abs(one - other).max() < 1
