"""From a scan to a mask in the panel: on the headless bench, with a real worker and a small segmenter."""

# ruff: noqa: F811 (fixtures are imported by their names)

from __future__ import annotations

import shutil

import numpy as np
import pytest
from bench.driver import (  # noqa: F401
    SCHEME,
    application,
    click_effect,
    models,
    panel,
    stroke,
    wait_until,
)
from conftest import head_phantom

import slicer  # isort: skip

from MedDPMLib.imaging.volume import Volume
from MedDPMLib.scene import volumes
from MedDPMLib.scene.segmentation import read_labels

#: Milliseconds for which the event loop may stand still.
LONGEST = 50


def add_scan(scan: Volume, name: str = "Scan"):
    node = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLScalarVolumeNode", name)
    slicer.util.updateVolumeFromArray(node, scan.array)
    node.SetIJKToRASMatrix(slicer.util.vtkMatrixFromArray(scan.geometry.ijk_to_ras))
    return node


@pytest.fixture
def segmenter(models, small_segmenter, panel):
    installed = models / "small-segmenter.safetensors"
    shutil.copyfile(small_segmenter, installed)
    panel.scan.show()
    yield installed
    panel.scan.cancel()
    installed.unlink()


def test_a_scan_becomes_a_mask_to_paint_on(panel, segmenter):
    assert panel.models.card.name == "small"  # a segmenter is not among the models to choose from
    assert panel.ui.modelBox.findText("A small segmenter") < 0
    scan, truth = head_phantom()
    node = add_scan(scan)
    assert not panel.ui.scanButton.enabled
    panel.ui.scanSelector.setCurrentNode(node)
    assert panel.ui.scanButton.enabled and panel.ui.scanButton.text == "Start from scan"
    panel.ui.scanButton.click()
    assert panel.ui.scanButton.text == "Cancel" and "segmented" in panel.ui.maskMessage.text
    longest = wait_until(lambda: not panel.scan.busy)
    print(f"longest gap of the event loop: {longest:.0f} ms")
    segmentation = panel.ui.segmentationSelector.currentNode()
    assert segmentation is not None, panel.ui.maskMessage.text
    assert segmentation.GetName() == "Scan (segmented)"
    core = segmentation.GetSegmentation()
    names = {core.GetSegment(id_).GetName() for id_ in core.GetSegmentIDs()}
    assert names == {label.name for label in SCHEME.labels}
    labels = read_labels(segmentation, panel.mask.table, SCHEME)
    assert np.array_equal(labels.array, truth.array)
    assert np.allclose(labels.geometry.ijk_to_ras, scan.geometry.ijk_to_ras)
    # The scan is what is seen and painted over, and a tumor can be painted at once.
    shown = slicer.app.layoutManager().sliceWidget("Red").mrmlSliceCompositeNode().GetBackgroundVolumeID()
    assert shown == node.GetID() and panel.mask.editor.sourceVolumeNode() is node
    assert "no tumor was looked for" in panel.ui.maskMessage.text
    click_effect(panel, "Paint")
    stroke(panel, (3.0, 20.0, 10.0), 8.0)
    painted = read_labels(segmentation, panel.mask.table, SCHEME).array
    assert np.isin(painted, [label.value for label in SCHEME.tumor]).any()


def test_cancelled_it_leaves_nothing(panel, segmenter):
    panel.ui.scanSelector.setCurrentNode(add_scan(head_phantom()[0]))
    panel.ui.scanButton.click()
    panel.ui.scanButton.click()
    assert not panel.scan.busy and panel.ui.scanButton.text == "Start from scan"
    assert panel.ui.maskMessage.text == "" and not panel.ui.maskMessage.visible
    wait_until(lambda: panel.logic.client.ready is not None)
    assert not slicer.util.getNodesByClass("vtkMRMLSegmentationNode")
    assert not list(panel.logic.client._worker.session.folder.glob("scan-*"))


def test_what_cannot_be_segmented_is_said_and_the_scan_may_go(panel, segmenter):
    scan, _ = head_phantom()
    panel.ui.scanSelector.setCurrentNode(add_scan(Volume(np.zeros_like(scan.array), scan.geometry), "Nothing"))
    panel.ui.scanButton.click()
    wait_until(lambda: not panel.scan.busy)
    assert panel.ui.maskMessage.text.startswith("Nothing is empty")
    node = add_scan(scan, "Gone")
    panel.ui.scanSelector.setCurrentNode(node)
    panel.ui.scanButton.click()
    slicer.mrmlScene.RemoveNode(node)
    wait_until(lambda: not panel.scan.busy)
    segmentation = panel.ui.segmentationSelector.currentNode()
    assert segmentation is not None
    wait_until(lambda: volumes.sheet_of(segmentation) is not None)  # else there were nothing to paint over
    slicer.mrmlScene.Clear(0)
    assert not panel.scan.busy


def test_without_a_segmenter_the_button_says_so(panel, monkeypatch):
    monkeypatch.setattr("MedDPMLib.scene.panel.scan._installed", lambda: None)
    panel.ui.scanSelector.setCurrentNode(add_scan(head_phantom()[0]))
    assert not panel.ui.scanButton.enabled and "No segmenter is installed" in panel.ui.scanButton.toolTip
