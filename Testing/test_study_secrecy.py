"""What a reader can find in the application: nothing that gives the truth away, and nothing but the study."""

# ruff: noqa: F811 (fixtures are imported by their names)

from __future__ import annotations

from bench import dialogs
from bench.study_driver import MODULE, answer_by_keys, application, archive, begin, module, press, study  # noqa: F401
from study_cases import PASSPHRASE

import qt  # isort: skip
import slicer  # isort: skip
import vtk  # isort: skip

from MedDPMLib.scene.study.panel import READING, START
from MedDPMLib.study.definition import read_definition
from MedDPMLib.study.order import PAIR
from MedDPMLib.study.truth import read_truth

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
    for dialog in slicer.util.mainWindow().findChildren(qt.QDialog):
        dialog.setParent(None)  # of tests before this one
    begin(module, archive)
    panel = module.panel
    said: dict[int, set[str]] = {0: set(), 1: set()}
    while panel.reading.current.kind != PAIR:
        presentation = panel.reading.current
        case = presentation.cases[0]
        shown = everything_that_is_readable()
        for secret in (case, truth[case]["name"], "SYNTHETIC", ".nii", str(panel.task.folder), "truth", "model"):
            rest = shown.replace("Recent: patient_synthetic.nii.gz", "")
            assert secret not in rest, (secret, [line for line in rest.splitlines() if secret in line])
        if (
            not module.ui.messageLabel.text and not presentation.training
        ):  # the feedback of training tells the answer, to the case before
            # Numbers go: the progress, and what VTK and the layout count on.
            plain = "".join(letter for letter in shown if not letter.isdigit())
            said[truth[case]["synthetic"]].add(frozenset(plain.splitlines()))
        answer_by_keys(module)
    assert said[0] and said[0] == said[1]  # the same words for both classes


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
    window.show()
    dialogs.reply_with(qt.QMessageBox.Cancel, qt.QMessageBox.Ok)
    window.close()
    assert not window.isHidden()
    window.close()
    assert window.isHidden() and module.ui.pages.currentIndex == READING
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
