"""What a reader can find in the application: nothing that gives the truth away, and nothing but the study."""

# ruff: noqa: F811 (fixtures are imported by their names)

from __future__ import annotations

import pytest
from bench import dialogs
from bench.study_driver import (  # noqa: F401
    answer_by_keys,
    application,
    archive,
    begin,
    click,
    drag,
    module,
    mouse,
    press,
    study,
)
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
    logo = slicer.util.findChild(window, "LogoLabel")  # in the title bar of the module panel
    begin(module, archive)
    assert logo.isHidden()
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
    assert slicer.util.findChild(window, "PanelDockWidget").titleBarWidget() == logo and not logo.isHidden()
    assert not slicer.util.getNodesByClass("vtkMRMLScalarVolumeNode") and not module.panel.keys._shortcuts
    begin(module, archive)  # the open case is asked again
    assert module.panel.reading.current.number == 0


# The mouse, keys of the views, files ------------------------------------------------------------------


def views_of(module):
    return [widget.sliceView() for widget in module.panel.views._widgets()]


def test_a_right_click_in_a_view_opens_its_menu_before_and_after_a_study_but_not_in_it(module, archive):
    red = slicer.app.layoutManager().sliceWidget("Red").sliceView()
    dialogs.reply_with(None, None)
    click(red)
    assert [shown.kind for shown in dialogs.shown] == ["menu"] and "Copy image" in dialogs.shown[0].text
    begin(module, archive)
    for view in views_of(module):
        click(view)
    assert len(dialogs.shown) == 1
    module.panel.leave()
    click(red)
    assert dialogs.shown[1].text == dialogs.shown[0].text


def test_the_actions_that_another_module_allows_in_that_menu_come_back(module, archive):
    menu = slicer.qSlicerSubjectHierarchyPluginHandler.instance().pluginLogic()
    menu.allowedViewContextMenuActionNames = ["CopyImageAction"]
    begin(module, archive)
    assert "CopyImageAction" not in menu.allowedViewContextMenuActionNames
    module.panel.leave()
    assert tuple(menu.allowedViewContextMenuActionNames) == ("CopyImageAction",)
    menu.allowedViewContextMenuActionNames = []


def test_the_mouse_changes_the_window_and_that_is_recorded(module, archive):
    mode = slicer.app.applicationLogic().GetInteractionNode()
    former = mode.GetCurrentInteractionMode()
    begin(module, archive)
    windows = module.panel.reading.watched.windows
    assert windows[-1] == (255, 127.5)
    drag(views_of(module)[0])
    assert windows[-1] != (255, 127.5)
    module.panel.leave()
    assert mode.GetCurrentInteractionMode() == former


def test_no_key_of_a_view_exchanges_the_volumes_of_a_pair_and_no_drag_tilts_the_plane(module, archive):
    begin(module, archive)
    while module.panel.reading.current.kind != PAIR:
        answer_by_keys(module)
    widgets = module.panel.views._widgets()
    shown = [widget.mrmlSliceCompositeNode().GetBackgroundVolumeID() for widget in widgets]
    for widget in widgets:
        for key in ("bracketleft", "bracketright", "braceleft", "braceright", "v", "t", "g"):
            mouse(widget.sliceView(), "KeyPressEvent", 40, 40, key=key)
        drag(widget.sliceView(), ctrl=True, alt=True)
        assert widget.mrmlSliceNode().GetOrientation() == "Axial"
    assert [widget.mrmlSliceCompositeNode().GetBackgroundVolumeID() for widget in widgets] == shown
    press(module, "Up")  # where views have an orientation, keys know what to do


def test_a_view_that_fills_the_screen_does_so_for_one_case(module, archive):
    begin(module, archive)
    layout = slicer.app.layoutManager().layoutLogic().GetLayoutNode()
    layout.AddMaximizedViewNode(module.panel.views._widgets()[1].mrmlSliceNode())
    answer_by_keys(module)
    assert layout.GetNumberOfMaximizedViewNodes() == 0


@pytest.fixture
def dropped():
    """Drops a file on a widget as a file manager does; the files that the application would load."""
    window = slicer.util.mainWindow()

    def drop():
        data = qt.QMimeData()
        data.setUrls([qt.QUrl.fromLocalFile("/somewhere/patient.nii.gz")])
        place, action, button = qt.QPoint(5, 5), qt.Qt.CopyAction, qt.Qt.LeftButton
        entering = qt.QDragEnterEvent(place, action, data, button, qt.Qt.NoModifier)
        qt.QApplication.sendEvent(window, entering)
        qt.QApplication.sendEvent(window, qt.QDropEvent(place, action, data, button, qt.Qt.NoModifier))
        return list(window.dropped)

    yield drop
    window.dropped.clear()


def test_files_that_are_dropped_on_the_window_are_not_loaded(module, archive, dropped):
    assert len(dropped()) == 1  # the application takes them
    begin(module, archive)
    assert len(dropped()) == 1
    module.panel.leave()
    assert len(dropped()) == 2


def test_the_list_of_panels_and_tool_bars_does_not_open(module, archive):
    window = slicer.util.mainWindow()
    window.show()

    def open_list():
        place = qt.QPoint(2, 2)
        qt.QApplication.sendEvent(window, qt.QContextMenuEvent(qt.QContextMenuEvent.Mouse, place, place))
        popup = qt.QApplication.activePopupWidget()
        if popup is not None:
            popup.close()
        return popup is not None

    assert open_list()
    begin(module, archive)
    assert not open_list()
    module.panel.leave()
    assert open_list()


def test_other_windows_are_gone_while_cases_are_read(module, archive):
    browser, closed = qt.QDialog(), qt.QDialog()
    browser.setWindowTitle("DICOM database: patient A, synthetic")
    browser.show()
    begin(module, archive)
    assert browser.isHidden() and closed.isHidden()
    module.panel.leave()
    assert not browser.isHidden() and closed.isHidden()
    browser.close()
