"""The panel where things go wrong: what the user sees, that the scene is as it was, that the next run works.

With a real worker process and a tiny model. Where the worker has to misbehave, its network is made to, or it is stopped
and killed by the system.
"""

from __future__ import annotations

import os
import resource
import signal
import subprocess
import sys
import textwrap
import time
import unittest
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from bench import dialogs, packages
from bench.driver import small_segmentation
from bench.fixtures import application  # noqa: F401
from conftest import small_card, small_labels, write_small_model
from test_panel import (  # noqa: F401
    MODULE,
    SCHEME,
    generate,
    models,
    panel,
    process_lives,
    session_folders,
    wait_until,
    worker_pid,
)

import qt  # isort: skip  # the bench offers it
import slicer  # isort: skip
import vtk  # isort: skip

from MedDPMLib.scene import dependencies, painting, processes, volumes, worker_client, worker_process
from MedDPMLib.scene.worker_client import WorkerClient
from MedDPMLib.worker.protocol import worker_arguments

REST = SCHEME.rest.value
NECROSIS, EDEMA, ENHANCING = (SCHEME.label_by_name(name).value for name in ("Necrosis", "Edema", "ET"))

#: Numbers of steps at which a step takes long, memory runs out, the network has a fault, the worker crashes, says what
#: is no line of the protocol, and starts a child of its own before it takes long.
SLOW, GREEDY, FAULTY, CRASH, BABBLE, PARENT = 40, 7, 9, 11, 13, 15

MISBEHAVING = f"""
import os, signal, subprocess, time
print("the launcher greets")
import MedDPMLib.inference.timesteps as timesteps
import MedDPMLib.worker.process as process

free_sample, free_encode, babbling = timesteps.sample, process.encode, False

def encode(event):
    return b"{{babble\\n" if babbling else free_encode(event)

def sample(denoiser, condition, schedule, **settings):
    import torch
    global babbling
    steps = settings["steps"]
    babbling = steps == {BABBLE}
    if steps == {GREEDY}:
        torch.empty(2**50)
    if steps == {FAULTY}:
        {{}}["the fault"]
    if steps == {CRASH}:
        os.kill(os.getpid(), signal.SIGSEGV)
    if steps == {PARENT}:
        child = subprocess.Popen(["sleep", "1000"])
        open(os.environ["CHILD_FILE"], "w").write(str(child.pid))

    def denoise(x, t, condition):
        time.sleep(1.0 if steps in ({SLOW}, {PARENT}) else 0)
        return denoiser(x, t, condition)

    return free_sample(denoise, condition, schedule, **settings)

timesteps.sample, process.encode = sample, encode
from MedDPMLib.worker.__main__ import main
main()
"""


@pytest.fixture
def misbehaving(monkeypatch, tmp_path):
    """Workers do what the number of steps says."""
    monkeypatch.setenv("CHILD_FILE", str(tmp_path / "child"))
    run_instead(monkeypatch, MISBEHAVING)


def run_instead(monkeypatch, code: str) -> None:
    monkeypatch.setattr(
        worker_process, "worker_arguments", lambda *arguments: ["-c", code, *worker_arguments(*arguments)[2:]]
    )


def started(panel, steps=SLOW):  # noqa: F811
    """Begins to generate and waits for the first step."""
    panel.ui.stepsBox.value = steps
    panel.ui.generateButton.click()
    assert panel.ui.generateButton.text == "Cancel", panel.ui.messageLabel.text
    wait_until(lambda: "Step" in panel.ui.statusLabel.text)


def scene_now() -> tuple[set[str], list[str]]:
    """The nodes of the scene, and those that hold what was generated or forms."""
    nodes = {node.GetID() for node in slicer.util.getNodesByClass("vtkMRMLNode")}
    return nodes, [node.GetID() for node in volumes.results()]


def check_as_it_was(panel, before: tuple[set[str], list[str]]) -> None:  # noqa: F811
    """Nothing has gone, nothing was generated, the views show what there is, and the panel is ready for the next run.

    The panel may have added a blank volume to paint on.
    """
    nodes, results = scene_now()
    assert before[0] <= nodes and results == before[1]
    shown = [node.GetBackgroundVolumeID() for node in slicer.util.getNodesByClass("vtkMRMLSliceCompositeNode")]
    assert all(id_ is None or id_ in nodes for id_ in shown)
    assert panel.logic.generator.order is None and panel.ui.generateButton.text == "Generate"
    assert panel.ui.progressBar.isHidden() and not panel.ui.messageLabel.isHidden()


def refused(panel) -> str:  # noqa: F811
    """What the panel says to a click on Generate, which begins nothing."""
    before = scene_now()
    panel.ui.generateButton.click()
    check_as_it_was(panel, before)
    return panel.ui.messageLabel.text


def failed(panel, steps) -> str:  # noqa: F811
    """What the panel says to a run of so many steps, which fails."""
    before = scene_now()
    panel.ui.stepsBox.value = steps
    panel.ui.generateButton.click()
    wait_until(lambda: panel.logic.generator.order is None)
    slicer.app.processEvents()
    check_as_it_was(panel, before)
    assert len(session_folders()) <= 1
    return panel.ui.messageLabel.text


def array_of(panel, modality="t1") -> np.ndarray:  # noqa: F811
    """The newest result of that modality, made now."""
    generate(panel)
    (*_, node) = [node for node in volumes.results() if volumes.record_of(node)["modality"] == modality]
    return slicer.util.arrayFromVolume(node).copy()


# The mask --------------------------------------------------------------------------------------------


def test_masks_that_cannot_be_used_are_reported_and_the_next_one_works(panel):  # noqa: F811
    assert "no segmentation is chosen" in refused(panel)

    node = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLSegmentationNode", "Nothing yet")
    panel.ui.segmentationSelector.setCurrentNode(node)
    assert '"Nothing yet"' in refused(panel) and "table" in panel.ui.messageLabel.text

    sphere = vtk.vtkSphereSource()
    sphere.Update()
    node.AddSegmentFromClosedSurfaceRepresentation(sphere.GetOutput(), "brain")
    assert '"Nothing yet" has no reference geometry' in refused(panel)

    node = small_segmentation(panel, np.zeros_like(small_labels(SCHEME)), "Blank")
    assert 'nothing is painted in "Blank"' in refused(panel)

    tumor = np.where(small_labels(SCHEME) == REST, 0, small_labels(SCHEME))
    small_segmentation(panel, tumor, "Tumor alone")
    assert "no brain area" in failed(panel, 2)

    small_segmentation(panel)
    generate(panel)
    assert len(volumes.results()) == 2 and panel.ui.messageLabel.text.count("cannot") == 0


def test_odd_masks_are_made_into_what_they_mean(panel):  # noqa: F811
    """Overlaps, segments of one label, transforms: each result is that of the plain mask, where it has to be."""
    labels = small_labels(SCHEME)
    small_segmentation(panel, name="Plain")
    plain = array_of(panel)

    # Segments inside one another, in either order: the scheme's priority decides.
    for name, order in (("Forth", (REST, EDEMA, ENHANCING)), ("Back", (ENHANCING, EDEMA, REST))):
        node = small_segmentation(panel, np.zeros_like(labels), name)
        node.GetSegmentation().RemoveAllSegments()
        covers = {ENHANCING: labels == ENHANCING, EDEMA: np.isin(labels, (EDEMA, ENHANCING)), REST: labels > 0}
        for value in order:
            (id_,) = painting.add_segments(node, [SCHEME.label_by_value(value)])
            painting.paint(node, id_, covers[value])
        assert node.GetSegmentation().GetNumberOfLayers() > 1
        np.testing.assert_array_equal(array_of(panel), plain)

    # Two segments for one label.
    left = np.zeros_like(labels, bool)
    left[:, :, :8] = True
    node = small_segmentation(panel, np.where((labels == REST) & left, 0, labels), "Halves")
    ((id_, _),) = painting.add_segments(node, [SCHEME.rest]).items()
    painting.paint(node, id_, (labels == REST) & left)
    slicer.app.processEvents()
    np.testing.assert_array_equal(array_of(panel), plain)
    assert "are combined" in panel.ui.messageLabel.text

    # A rigid transform moves the result with the mask and changes no voxel.
    node = small_segmentation(panel, name="Moved")
    matrix = np.eye(4)
    matrix[:3, 3] = 11, -7, 3
    transform = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLLinearTransformNode")
    transform.SetMatrixTransformToParent(slicer.util.vtkMatrixFromArray(matrix))
    node.SetAndObserveTransformNodeID(transform.GetID())
    np.testing.assert_array_equal(array_of(panel), plain)
    geometries = [volumes.result_volume(node).geometry for node in (volumes.results()[0], volumes.results()[-1])]
    np.testing.assert_allclose(geometries[1].ijk_to_ras, matrix @ geometries[0].ijk_to_ras, atol=1e-6)

    # One that bends: made for what the user sees.
    bend = vtk.vtkThinPlateSplineTransform()
    source, target = vtk.vtkPoints(), vtk.vtkPoints()
    for point in ((-60, 0, 0), (60, 0, 0), (0, -60, 0), (0, 60, 0), (0, 0, -60), (0, 0, 60), (0, 0, 0)):
        source.InsertNextPoint(point)
        target.InsertNextPoint(point[0], point[1], point[2] + (16 if point == (0, 0, 0) else 0))
    bend.SetSourceLandmarks(source)
    bend.SetTargetLandmarks(target)
    bend.SetBasisToR()
    bent = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLTransformNode")
    bent.SetAndObserveTransformToParent(bend)
    node.SetAndObserveTransformNodeID(bent.GetID())
    assert not np.array_equal(array_of(panel), plain)

    # Tumor outside the brain is reported, and generated.
    outside = labels.copy()
    outside[:3, :3, :3] = EDEMA
    small_segmentation(panel, outside, "Outside")
    array_of(panel)
    assert "of tumor lie outside the brain" in panel.ui.messageLabel.text


# The scene while it works ----------------------------------------------------------------------------


def test_nodes_may_be_renamed_and_deleted_while_it_works(panel, misbehaving):  # noqa: F811
    node = small_segmentation(panel)
    panel.ui.samplesBox.value = 2
    started(panel, steps=2)
    node.SetName("Gehirn 脳")
    wait_until(lambda: panel.logic.generator.order is None)
    first, *rest = volumes.results()
    assert len(rest) == 3 and rest[-1].GetName() == "T2 (synthetic, seed 1) Gehirn 脳"
    # Results that the next run would go into are deleted while it works, and so is what forms.
    panel.ui.samplesBox.value = 1
    panel.ui.autoBox.checked = True
    painting.paint(node, next(iter(panel.mask.table)), np.ones((2, 2, 2), bool))
    wait_until(lambda: panel.logic.generator.order is not None, 10)
    for result in volumes.results():
        volumes.remove_result(result)
    wait_until(lambda: panel.logic.generator.order is None)
    assert panel.ui.messageLabel.text.count("fault") == 0 and len(volumes.results()) == 4
    panel.ui.autoBox.checked = False
    started(panel)
    wait_until(lambda: [n for n in volumes.results() if volumes.record_of(n) is None])
    (forming,) = [n for n in volumes.results() if volumes.record_of(n) is None]
    slicer.mrmlScene.RemoveNode(forming)
    wait_until(lambda: [n for n in volumes.results() if volumes.record_of(n) is None])
    slicer.mrmlScene.RemoveNode(node)
    slicer.app.processEvents()
    panel.ui.generateButton.click()
    assert panel.ui.generateButton.text == "Generate" and len(volumes.results()) == 4


def test_the_scene_is_closed_and_the_next_run_works(panel, application, misbehaving, monkeypatch):  # noqa: F811
    def close():
        application.close_scene()
        assert panel.ui.generateButton.text == "Generate" and panel.ui.progressBar.isHidden()
        assert panel.ui.messageLabel.text == "" and volumes.results() == []
        assert session_folders() == [] and not panel.logic.client.running

    # While the worker starts.
    small_segmentation(panel)
    panel.logic.client.stop()
    panel.ui.generateButton.click()
    assert panel.logic.client.running and panel.logic.client.pid is None
    close()

    # While it works, after the application has slept in the main thread, over a dialog of the system or a closed lid.
    small_segmentation(panel)
    started(panel)
    pid = worker_pid(panel)
    with monkeypatch.context() as patch:
        patch.setattr(worker_client, "_SILENCE", 0.5)
        panel.logic.client._pulse.interval = 250
        time.sleep(2)
        for _ in range(20):
            slicer.app.processEvents()
            time.sleep(0.05)
    assert panel.logic.client.pid == pid and panel.logic.generator.order is not None
    close()
    assert not process_lives(pid)

    small_segmentation(panel)
    generate(panel)
    assert len(volumes.results()) == 2


def test_clicks_one_after_the_other_begin_and_cancel(panel, misbehaving):  # noqa: F811
    small_segmentation(panel)
    panel.ui.stepsBox.value = SLOW
    for text in ("Cancel", "Generate") * 4:
        panel.ui.generateButton.click()
        assert panel.ui.generateButton.text == text
    panel.ui.stepsBox.value = 2
    generate(panel)
    assert len(volumes.results()) == 2
    assert [path.name for path in session_folders()[0].iterdir()] == []


# No space --------------------------------------------------------------------------------------------


@contextmanager
def file_size_limit(size: int):
    """No file of this process, or of those that it starts, can become larger: as on a full disk."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_no_space_is_reported_and_the_next_run_works(panel, application, misbehaving, monkeypatch, tmp_path):  # noqa: F811
    # For the mask; what is running continues.
    small_segmentation(panel)
    started(panel, steps=2)
    with file_size_limit(2000):
        panel.run.start(panel.makeOrder())
    said = panel.ui.messageLabel.text
    assert "temporary folder" in said and "Temporary directory" in said
    wait_until(lambda: panel.logic.generator.order is None)
    assert len(volumes.results()) == 2
    with file_size_limit(2000):
        assert "cannot be written to" in refused(panel)

    # For the result, in the worker.
    panel.ui.previewBox.checked = False
    panel.logic.client.stop()
    with file_size_limit(8000):  # enough for the mask of 4 KB, not for a volume of 16
        panel.logic.client.load("small")
        wait_until(lambda: not panel.logic.client.busy)
    assert "temporary folder" in failed(panel, 2)
    panel.ui.releaseButton.click()

    # For the folder itself; one that was cleaned away is made again.
    (tmp_path / "file").touch()
    monkeypatch.setattr(application, "temporaryPath", str(tmp_path / "file" / "below"))
    assert "no folder can be created in" in refused(panel)
    panel.onWarmUp()  # before a click nothing has to be reported
    monkeypatch.setattr(application, "temporaryPath", str(tmp_path / "gone" / "since"))
    generate(panel)
    panel.ui.releaseButton.click()
    assert session_folders() == [] and len(volumes.results()) == 2  # the same mask and seed: the same volumes


def test_what_was_left_when_everything_was_killed_is_removed_a_week_later(application, monkeypatch, tmp_path):  # noqa: F811
    monkeypatch.setattr(application, "temporaryPath", str(tmp_path))
    old, young, other = (tmp_path / name for name in ("MedDPM-old", "MedDPM-young", "other"))
    for folder, days in ((old, 8), (young, 6), (other, 8)):
        folder.mkdir()
        (folder / "result-1.npy").touch()
        os.utime(folder, (time.time() - days * 24 * 3600,) * 2)
    session = worker_process.new_session()
    assert set(tmp_path.iterdir()) == {young, other, session.folder}


# Names and places ------------------------------------------------------------------------------------


def test_long_paths_with_spaces_and_letters_of_all_scripts(
    panel, application, models, monkeypatch, tmp_path  # noqa: F811
):  # fmt: skip
    deep = tmp_path / "Jürgen Öztürk 脳 user"
    while len(str(deep)) < 300:
        deep = deep / "a folder with spaces and ü"
    for name in ("temp", "models", "export"):
        (deep / name).mkdir(parents=True)
    panel.logic.client.stop()
    write_small_model(deep / "models" / "small.safetensors", small_card(SCHEME))
    monkeypatch.setenv("MEDDPM_MODELS", str(deep / "models"))
    monkeypatch.setenv("HOME", str(deep))
    monkeypatch.setattr(application, "temporaryPath", str(deep / "temp"))
    panel.models.fill()
    small_segmentation(panel, name="Größe 頭/部: <Öl> " + "脳" * 200)
    generate(panel)
    assert len(volumes.results()) == 2, panel.ui.messageLabel.text
    # Another seed, and the first one once more: nothing is written over.
    panel.ui.seedBox.value = 1
    generate(panel)
    panel.ui.resultsTree.selectAll()
    for count in (8, 16):
        dialogs.reply_with(str(deep / "export"))
        panel.ui.exportButton.click()
        wait_until(lambda: not panel.results.busy)
        assert "Written" in panel.ui.resultMessage.text, panel.ui.resultMessage.text
        written = sorted((deep / "export").iterdir())
        assert len(written) == count and {path.suffix for path in written} == {".gz", ".json"}
    assert sum("_seed0_t1.nii" in path.name or "_seed1_2_t2.nii" in path.name for path in written) == 2
    panel.ui.releaseButton.click()
    assert list((deep / "temp").glob("MedDPM-*")) == []


# Packages --------------------------------------------------------------------------------------------


@pytest.fixture
def without_packages(panel):  # noqa: F811
    small_segmentation(panel)
    packages.hidden.update({"torch", "safetensors"})
    yield panel
    packages.hidden.clear()
    packages.installed.clear()


def test_a_declined_installation_is_reported_and_asked_again(without_packages):
    panel = without_packages  # noqa: F811
    for _ in range(2):
        dialogs.reply_with(qt.QMessageBox.Cancel)
        assert "nothing was installed" in refused(panel)
    assert [shown.kind for shown in dialogs.shown] == ["question"] * 2 and not packages.installed
    assert "torch>=2.5, safetensors>=0.4.3" in dialogs.shown[0].text


def test_in_testing_mode_nothing_is_installed(without_packages, application, monkeypatch):  # noqa: F811
    """There the application answers every question with yes."""
    panel = without_packages  # noqa: F811
    monkeypatch.setattr(application, "testingEnabled", lambda: True)
    assert "nothing is installed in testing mode" in refused(panel)
    result = unittest.TestResult()
    unittest.TestLoader().loadTestsFromTestCase(sys.modules["MedDPM"].MedDPMTest).run(result)
    assert [reason for _, reason in result.skipped] == ["missing: torch>=2.5, safetensors>=0.4.3"]
    assert result.wasSuccessful() and not packages.installed


def pip_fails(*_arguments, **_options):
    raise subprocess.CalledProcessError(1, "pip install")


@pytest.mark.parametrize("old", [False, True], ids=["packaging", "before 5.11"])
def test_an_installation_that_fails_is_reported(without_packages, monkeypatch, old):
    panel = without_packages  # noqa: F811
    packages.hidden.discard("torch")
    if old:
        monkeypatch.delattr(slicer, "packaging")
        monkeypatch.setitem(sys.modules, "slicer.packaging", None)
        monkeypatch.setattr(slicer.util, "pip_install", pip_fails)
    else:
        monkeypatch.setattr(slicer.packaging, "pip_ensure", pip_fails)
    dialogs.reply_with(qt.QMessageBox.Ok)
    assert "pip ended with exit code 1" in refused(panel)
    # Said to be done, and not done.
    for owner, name in ((slicer.util, "pip_install"),) if old else ((slicer.packaging, "pip_ensure"),):
        monkeypatch.setattr(owner, name, lambda *_arguments, **_options: None)
    dialogs.reply_with(qt.QMessageBox.Ok)
    assert "safetensors>=0.4.3 was not installed" in refused(panel)


@pytest.mark.parametrize(
    ("install", "says"),
    [
        (pip_fails, "pip ended with exit code 1"),
        (lambda *_arguments, **_options: None, "PyTorch was not installed"),
        (None, "the extension PyTorch is not installed"),
    ],
    ids=["fails", "does nothing", "is not there"],
)
def test_an_installation_of_pytorch_that_fails_is_reported(without_packages, monkeypatch, install, says):
    panel = without_packages  # noqa: F811
    extension = sys.modules["PyTorchUtils"]
    if install is None:
        monkeypatch.setitem(sys.modules, "PyTorchUtils", None)
    else:
        monkeypatch.setattr(extension.PyTorchUtilsLogic, "installTorch", install)
        dialogs.reply_with(qt.QMessageBox.Ok)
    assert says in refused(panel)


def test_without_the_pytorch_extension_nothing_is_asked_in_vain(without_packages, monkeypatch):
    """Masks need the other packages alone; what needs PyTorch says where it comes from, at once and every time."""
    panel, module = without_packages, sys.modules["MedDPM"]  # noqa: F811
    monkeypatch.setitem(sys.modules, "PyTorchUtils", None)
    for _ in range(2):
        assert "the extension PyTorch is not installed" in refused(panel)
    assert dialogs.shown == []
    dialogs.reply_with(qt.QMessageBox.Cancel)
    assert module.addTemplate("glioma") is None  # Sample Data: a message, no exception
    assert [shown.kind for shown in dialogs.shown] == ["question", "message"]
    dialogs.reply_with(qt.QMessageBox.Ok)
    panel.ui.templateButton.click()
    assert packages.installed == ["safetensors>=0.4.3"] and panel.mask.busy
    panel.ui.installButton.click()
    assert "the extension PyTorch is not installed" in panel.ui.messageLabel.text
    assert [shown.kind for shown in dialogs.shown] == ["question", "message", "question"]


def test_a_click_while_packages_are_installed_begins_no_second_installation(without_packages, monkeypatch):
    """Installers let the event loop run."""
    panel, said = without_packages, []  # noqa: F811
    free_ensure = slicer.packaging.pip_ensure

    def pip_ensure(*arguments, **options):
        said.append(refused(panel))
        free_ensure(*arguments, **options)

    monkeypatch.setattr(slicer.packaging, "pip_ensure", pip_ensure)
    dialogs.reply_with(qt.QMessageBox.Ok)
    generate(panel)
    assert len(said) == 1 and "are being installed" in said[0]
    assert packages.installed == ["torch>=2.5", "safetensors>=0.4.3"] and len(volumes.results()) == 2


def test_versions_are_compared_as_pip_does(monkeypatch):
    found = {"torch": "2.14.0.dev20260801+cu130"}
    monkeypatch.setattr("importlib.metadata.version", found.__getitem__)
    assert dependencies._met("torch>=2.5") and dependencies._met("torch")
    found["torch"] = "2.4.1+cpu"
    assert not dependencies._met("torch>=2.5")


# The worker ------------------------------------------------------------------------------------------


def test_a_worker_that_misbehaves_is_reported_and_the_next_run_works(panel, misbehaving):  # noqa: F811
    small_segmentation(panel)
    panel.logic.client.stop()
    said = {steps: failed(panel, steps) for steps in (GREEDY, FAULTY, CRASH, BABBLE)}
    assert "not enough memory" in said[GREEDY]
    assert "KeyError" in said[FAULTY] and "log" in said[FAULTY]
    assert "ended unexpectedly (signal 11)" in said[CRASH] and "click Generate again" in said[CRASH]
    assert "sent an invalid message" in said[BABBLE] and "click Generate again" in said[BABBLE]
    # When idle it ends by itself, and nothing is reported.
    panel.logic.client._idle = 0.5
    panel.ui.stepsBox.value = 2
    generate(panel)
    wait_until(lambda: not panel.logic.client.running, 30)
    assert session_folders() == [] and panel.ui.messageLabel.text == ""
    assert not panel.ui.releaseButton.enabled and len(volumes.results()) == 2
    log = list(panel.logic.client.log)
    assert "the launcher greets" in log and any("the fault" in line for line in log)


def test_a_worker_that_does_not_come_back_is_replaced_and_killed_with_its_children(
    panel, misbehaving, monkeypatch, tmp_path  # noqa: F811
):  # fmt: skip
    # A step that was cancelled and takes too long costs the worker.
    small_segmentation(panel)
    started(panel)
    wait_until(lambda: panel.ui.statusLabel.text.startswith("Step 1 "))  # before it, cancelling takes no time
    pid = worker_pid(panel)
    panel.logic.client._waiting.interval = 100
    panel.ui.generateButton.click()
    panel.ui.stepsBox.value = 2
    generate(panel)
    assert len(volumes.results()) == 2 and panel.logic.client.pid != pid and not process_lives(pid)
    assert panel.ui.messageLabel.text == ""

    # So does silence.
    panel.ui.stepsBox.value = PARENT
    panel.ui.generateButton.click()
    file = tmp_path / "child"
    wait_until(lambda: file.exists() and file.read_text())
    pid, child = worker_pid(panel), int(file.read_text())
    assert process_lives(pid) and process_lives(child)
    os.kill(pid, signal.SIGSTOP)
    monkeypatch.setattr(worker_client, "_SILENCE", 0.5)
    panel.logic.client._pulse.interval = 100
    wait_until(lambda: panel.ui.messageLabel.text != "", 30)
    assert "has not answered" in panel.ui.messageLabel.text and len(volumes.results()) == 2
    assert not process_lives(pid) and not process_lives(child) and session_folders() == []


def test_a_worker_that_cannot_begin_says_why(panel, monkeypatch):  # noqa: F811
    small_segmentation(panel)
    panel.logic.client.stop()
    for code, says in (
        ('import sys; sys.modules["torch"] = None; from MedDPMLib.worker.__main__ import main; main()', "PyTorch"),
        ('import sys; sys.exit("no library of that name")', "could not start (exit code 1; no library of that name)"),
    ):
        with monkeypatch.context() as patch:
            run_instead(patch, code)
            assert says in failed(panel, 2)
        assert not panel.logic.client.running and session_folders() == []
    generate(panel)
    assert len(volumes.results()) == 2


# The application's end -------------------------------------------------------------------------------

APPLICATION = """
    import sys, time
    sys.path[:0] = {path!r}
    from bench import start_application
    app = start_application()
    import slicer
    from test_panel_faults import MISBEHAVING, MODULE, SLOW, run_instead, small_segmentation, started
    import pytest
    run_instead(pytest.MonkeyPatch(), MISBEHAVING)
    app.moduleManager().load(MODULE)
    slicer.util.selectModule("MedDPM")
    panel = slicer.util.getModuleWidget("MedDPM")
    panel.models.choose("small")
    small_segmentation(panel)
    started(panel, SLOW)
    print(panel.logic.client.pid, app.temporaryPath, flush=True)
    if sys.argv[1] == "quit":
        app.quit()
    else:
        time.sleep(1000)
"""


@pytest.mark.parametrize("end", ["quit", "killed"])
def test_no_worker_outlives_the_application(models, tmp_path, end):  # noqa: F811
    code = textwrap.dedent(APPLICATION.format(path=[str(Path(__file__).parent), str(MODULE.parents[1])]))
    application = subprocess.Popen(  # noqa: F811
        [sys.executable, "-c", code, end], stdout=subprocess.PIPE, text=True, env=os.environ | {"TMPDIR": str(tmp_path)}
    )
    try:
        pid, folder = application.stdout.readline().split(maxsplit=1)
        pid, folder = int(pid), Path(folder.strip())
        if end == "killed":
            assert process_lives(pid) and list(folder.glob("MedDPM-*"))
            application.kill()
        application.wait(60)
        limit = time.monotonic() + 20
        while (process_lives(pid) or list(folder.glob("MedDPM-*"))) and time.monotonic() < limit:
            time.sleep(0.05)
        assert not process_lives(pid) and list(folder.glob("MedDPM-*")) == []
        assert end == "killed" or not folder.exists()
    finally:
        application.kill()
        application.stdout.close()


# Systems ---------------------------------------------------------------------------------------------


def test_a_process_is_killed_with_all_that_came_from_it():
    sleep = "import time; time.sleep(1000)"
    code = f"""
import subprocess, sys
inner = subprocess.Popen([sys.executable, "-c", {sleep!r}])
print(inner.pid, flush=True)
{sleep}
"""
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) as outer:
        inner = int(outer.stdout.readline())
        bystander = subprocess.Popen([sys.executable, "-c", sleep])
        try:
            assert process_lives(inner)
            processes.kill_tree({outer.pid, 2**22 + 1})  # and one that is not there
            assert outer.wait(10) == -signal.SIGKILL
            deadline = time.monotonic() + 10
            while process_lives(inner) and time.monotonic() < deadline:
                time.sleep(0.01)
            assert not process_lives(inner) and bystander.poll() is None
        finally:
            for process in (outer, bystander):
                process.kill()
                process.wait()


def test_the_end_of_a_process_is_reported_as_the_system_counts():
    assert processes.describe_end(True, 9, "linux") == "signal 9"
    assert processes.describe_end(False, 3, "linux") == "exit code 3"
    assert processes.describe_end(True, -1073741819, "win32") == "exit code 0xC0000005"
    assert processes.describe_end(False, 1, "win32") == "exit code 1"


def test_a_program_that_is_not_there_is_reported_by_a_system_that_says_so_at_once(application, monkeypatch):  # noqa: F811
    """As Windows does, where the start of a process fails in the call and not in a signal."""
    client, failures = WorkerClient(), []
    client.failed.connect(failures.append)

    def start(worker, idle):
        client._on_error(worker, qt.QProcess.FailedToStart)

    monkeypatch.setattr(worker_process.WorkerProcess, "start", start)
    with pytest.raises(ValueError, match="cannot be started"):
        client.generate(np.zeros((2, 2, 2), np.uint8), model="small")
    assert len(failures) == 1 and not client.running and session_folders() == []
