"""Drives the panel as a user would: opens it, presses its buttons, waits for what comes.

``from bench.driver import models, panel`` in a test file gives the fixtures.
"""

from __future__ import annotations

import os
import time
from pathlib import Path

import numpy as np
import pytest
from conftest import small_card, small_geometry, small_labels, write_small_model

from bench import start_application
from bench.fixtures import application  # noqa: F401

start_application()

import qt
import slicer

from MedDPMLib.imaging.geometry import Grid
from MedDPMLib.imaging.volume import Volume
from MedDPMLib.masks.schemes import load_scheme
from MedDPMLib.scene import painting
from MedDPMLib.scene.segmentation import painted_geometry
from MedDPMLib.scene.watch import watch

MODULE = Path(__file__).parents[2] / "MedDPM" / "MedDPM.py"
SCHEME = load_scheme("anatomy")
#: Of the tiny model: large enough for the templates.
GRID = Grid((24, 24, 24), (8.0, 8.0, 8.0), "LPS")


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """A model folder with one tiny model, for the panel and its workers, and one thread for each of them."""
    folder = tmp_path_factory.mktemp("models")
    write_small_model(folder / "small.safetensors", small_card(SCHEME, grid=GRID))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MEDDPM_MODELS", str(folder))
        patch.setenv("OMP_NUM_THREADS", "1")
        yield folder


@pytest.fixture
def panel(application, models):  # noqa: F811
    """The panel, opened on an empty scene with the tiny model chosen. Afterwards nothing of it may be left."""
    application.moduleManager().load(MODULE)
    slicer.util.selectModule("MedDPM")
    widget = slicer.util.getModuleWidget("MedDPM")
    widget.models.choose("small")
    yield widget
    application.moduleManager().unload("MedDPM")
    watch.stop()
    assert not widget.logic.client.running
    assert session_folders() == []


def session_folders():
    return sorted(Path(slicer.app.temporaryPath).glob("MedDPM-*"))


def wait_until(condition, seconds=90.0):
    """Runs the event loop until ``condition``; the longest time in milliseconds that one round took.

    Time in which the system gave the processor to others is not the panel's, and left out.
    """

    def clock():
        return time.monotonic() - int(Path("/proc/thread-self/schedstat").read_text().split()[1]) / 1e9

    end, longest = time.monotonic() + seconds, 0.0
    while not condition() and time.monotonic() < end:
        started = clock()
        slicer.app.processEvents(qt.QEventLoop.AllEvents)
        longest = max(longest, clock() - started)
        time.sleep(0.001)
    assert condition()
    return 1000 * longest


def start_from_template(panel, name="ventricles-medium"):
    panel.ui.templateBox.currentIndex = panel.ui.templateBox.findData(name)
    panel.ui.templateButton.click()
    wait_until_painted(panel)
    return panel.ui.segmentationSelector.currentNode()


def wait_until_painted(panel):
    return wait_until(lambda: not panel.mask.busy)


def small_segmentation(panel, array=None, name="Small"):
    """A small brain with a tumor, chosen in the panel, where two steps are enough."""
    array = small_labels(SCHEME) if array is None else array
    node = painting.add_segmentation(Volume(array, small_geometry()), SCHEME, name)
    panel.ui.segmentationSelector.setCurrentNode(node)
    panel.ui.stepsBox.value = 2
    return node


def generate(panel):
    panel.ui.generateButton.click()
    assert panel.ui.generateButton.text == "Cancel", panel.ui.messageLabel.text
    wait_until(lambda: panel.logic.generator.order is None)
    slicer.app.processEvents()


def process_lives(pid):
    try:
        os.kill(pid, 0)
    except OSError:
        return False
    return Path(f"/proc/{pid}/stat").read_text().split(")")[1].split()[0] != "Z"


def worker_pid(panel):
    wait_until(lambda: panel.logic.client.pid is not None)
    return panel.logic.client.pid


def click_effect(panel, name):
    """Presses the button of an effect of the embedded Segment Editor."""
    button = next(b for b in panel.mask.editor.findChildren(qt.QToolButton) if b.text == name)
    assert button.isEnabled(), f"{name} cannot be pressed"
    button.click()


def stroke(panel, center, radius):
    """One stroke with a round brush (mm) into the segment that is chosen in the Segment Editor; the others give way."""
    editor = panel.mask.editor
    assert editor.activeEffect() == "Paint" and editor.sourceVolumeNode() is not None
    segmentation = editor.segmentationNode()
    geometry = painted_geometry(segmentation)
    positions = np.stack(np.meshgrid(*map(np.arange, geometry.size), indexing="ij"), axis=-1)
    near = np.linalg.norm(geometry.to_ras(positions) - np.array(center), axis=-1) < radius
    ids = list(segmentation.GetSegmentation().GetSegmentIDs())
    painting.paint(segmentation, editor.currentSegmentID(), near.transpose(2, 1, 0), over=ids)
