"""Drives the reader study's module as a reader would: opens a study, presses keys and buttons.

``from bench.study_driver import archive, module, study`` in a test file gives the fixtures.
"""

from __future__ import annotations

from pathlib import Path

import pytest
from study_cases import make_study

from bench import start_application
from bench.fixtures import application  # noqa: F401

start_application()

import qt
import slicer

from MedDPMLib.study.definition import Sessions, Tasks
from MedDPMLib.study.order import PAIR
from MedDPMLib.study.pack import pack

MODULE = Path(__file__).parents[2] / "MedDPMStudy" / "MedDPMStudy.py"


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    tasks = Tasks(True, True, ("cortex", "vessels"))
    return make_study(tmp_path_factory.mktemp("study"), tasks=tasks, sessions=Sessions(length=40, training=2))


@pytest.fixture
def archive(study, tmp_path):
    return pack(study, tmp_path)[0]


@pytest.fixture
def module(application):  # noqa: F811
    """The module's panel on an empty scene, in a main window of 1280 x 800 with tool bars, a menu and a panel."""
    window = application.mainWindow()
    window.resize(1280, 800)
    bar = window.addToolBar("Modules")
    action = bar.addAction("Volumes")
    menu = window.menuBar().addMenu("File")
    menu.addAction("Recent: patient_synthetic.nii.gz")
    shortcut = qt.QShortcut(qt.QKeySequence("Ctrl+3"), window)  # another module's
    dock = qt.QDockWidget("Data", window)
    window.addDockWidget(qt.Qt.RightDockWidgetArea, dock)
    crosshair = slicer.mrmlScene.AddNode(slicer.vtkMRMLCrosshairNode())  # the application's own
    application.moduleManager().load(MODULE)
    slicer.util.selectModule("MedDPMStudy")
    widget = slicer.util.getModuleWidget("MedDPMStudy")
    widget.test_bar, widget.test_action, widget.test_dock, widget.test_shortcut = bar, action, dock, shortcut
    yield widget
    application.moduleManager().unload("MedDPMStudy")
    slicer.mrmlScene.RemoveNode(crosshair)
    window.removeToolBar(bar)
    window.removeDockWidget(dock)
    window.menuBar().removeAction(menu.menuAction())
    # Without an event loop nothing is deleted later, so each is taken from the window that the next test gets.
    for widget in (bar, dock, menu, shortcut):
        widget.setParent(None)
        widget.deleteLater()
    window.resize(1420, 900)


def press(module, key: str) -> None:
    """A key: what its shortcut does while it is on."""
    keys = module.panel.keys
    shortcut = dict(zip(keys._actions, keys._shortcuts, strict=True))[key]
    if shortcut.enabled:
        shortcut.activated.emit()
    slicer.app.processEvents()


def mouse(view, event: str, x: int, y: int, *, ctrl=False, shift=False, alt=False, key: str = "") -> None:
    """An event of VTK's at a pixel of a slice view, such as "RightButtonPressEvent"; ``key`` is VTK's name of a key."""
    interactor = view.interactor()
    interactor.SetEventInformation(x, y, int(ctrl), int(shift), "\0", 0, key or None)
    interactor.SetAltKey(int(alt))
    interactor.InvokeEvent(event)
    slicer.app.processEvents()


def click(view, button: str = "Right") -> None:
    view.forceRender()
    mouse(view, "MouseMoveEvent", 40, 40)
    mouse(view, f"{button}ButtonPressEvent", 40, 40)
    mouse(view, f"{button}ButtonReleaseEvent", 40, 40)


def drag(view, **modifiers) -> None:
    """With the left button, to the upper right."""
    view.forceRender()
    mouse(view, "MouseMoveEvent", 40, 40, **modifiers)
    mouse(view, "LeftButtonPressEvent", 40, 40, **modifiers)
    for step in (50, 65, 90):
        mouse(view, "MouseMoveEvent", step, step, **modifiers)
    mouse(view, "LeftButtonReleaseEvent", 90, 90, **modifiers)


def begin(module, archive) -> None:
    module.panel.open(archive)
    assert module.ui.beginButton.enabled, module.ui.startMessage.text
    module.ui.beginButton.click()
    slicer.app.processEvents()


def answer_by_keys(module) -> None:
    presentation = module.panel.reading.current
    for key in ("Right",) if presentation.kind == PAIR else ("4", "2", "5"):
        press(module, key)
    press(module, "Space")
    if presentation.training:  # the truth is shown over the case; keys change nothing any more
        assert module.ui.messageLabel.text.startswith("Training. ") and module.panel.views.nodes
        press(module, "1")
        press(module, "Space")
