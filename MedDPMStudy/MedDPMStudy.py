"""MedDPM Study: a reader tells real from synthetic. The module's classes; what they do lies in MedDPMLib."""

from __future__ import annotations

import os
import sys

import slicer
from slicer.i18n import tr as _
from slicer.i18n import translate
from slicer.ScriptedLoadableModule import (
    ScriptedLoadableModule,
    ScriptedLoadableModuleLogic,
    ScriptedLoadableModuleTest,
    ScriptedLoadableModuleWidget,
)
from slicer.util import VTKObservationMixin

try:
    import MedDPMLib
except ModuleNotFoundError:  # run from the source tree: the library lies beside this module's folder
    sys.path.append(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
    import MedDPMLib


class MedDPMStudy(ScriptedLoadableModule):
    def __init__(self, parent):
        ScriptedLoadableModule.__init__(self, parent)
        parent.title = _("MedDPM Study")
        parent.categories = [translate("qSlicerAbstractCoreModule", "Image Synthesis")]
        parent.dependencies = []
        parent.contributors = ["The MedDPM developers"]
        parent.helpText = _(
            "Reads a blinded study: case by case, is it real or synthetic? The organizer of the study makes it with"
            " meddpm study and gives each reader an archive. Version {version}."
        ).format(version=MedDPMLib.__version__)
        parent.acknowledgementText = _("Answers are kept on this computer until you send them.")


class MedDPMStudyWidget(ScriptedLoadableModuleWidget, VTKObservationMixin):
    def __init__(self, parent=None):
        ScriptedLoadableModuleWidget.__init__(self, parent)
        VTKObservationMixin.__init__(self)

    def setup(self):
        from MedDPMLib.scene.study.panel import StudyPanel

        ScriptedLoadableModuleWidget.setup(self)
        uiWidget = slicer.util.loadUI(self.resourcePath("UI/MedDPMStudy.ui"))
        self.layout.addWidget(uiWidget)
        self.ui = slicer.util.childWidgetVariables(uiWidget)
        uiWidget.setMRMLScene(slicer.mrmlScene)
        self.panel = StudyPanel(self.ui)
        self.addObserver(slicer.mrmlScene, slicer.mrmlScene.StartCloseEvent, self.onSceneStartClose)
        slicer.app.connect("aboutToQuit()", self.panel.stop)

    def cleanup(self):
        slicer.app.disconnect("aboutToQuit()", self.panel.stop)
        self.panel.stop()
        self.removeObservers()

    def exit(self):
        """Another module was chosen, which only a program can do while a case is shown."""
        if self.panel.reading is not None:
            self.panel.leave()

    def onSceneStartClose(self, caller, event):
        if self.panel.reading is not None:
            self.panel.leave()


class MedDPMStudyLogic(ScriptedLoadableModuleLogic):
    """Reads a study without the screen, for scripts::

    reading = MedDPMStudyLogic().openStudy("ada.study.zip")
    reading.show()
    reading.answer({"rating": 4})
    """

    def openStudy(self, archive):
        from pathlib import Path

        from MedDPMLib.study.pack import SUFFIX, unpack
        from MedDPMLib.study.reading import Reading

        archive = Path(archive)
        return Reading(unpack(archive, archive.with_name(archive.name.removesuffix(SUFFIX))))


class MedDPMStudyTest(ScriptedLoadableModuleTest):
    """Inside 3D Slicer: the form is whole, and opening what is no study says so."""

    def setUp(self):
        slicer.mrmlScene.Clear()

    def runTest(self):
        self.setUp()
        self.test_WhatIsNoStudyIsSaid()

    def test_WhatIsNoStudyIsSaid(self):
        slicer.util.selectModule("MedDPMStudy")
        widget = slicer.util.getModuleWidget("MedDPMStudy")
        widget.panel.open(os.path.join(slicer.app.temporaryPath, "nothing.study.zip"))
        self.assertIn("nothing.study.zip", widget.ui.startMessage.text)
        self.assertFalse(widget.ui.beginButton.enabled)
        self.delayDisplay("Test passed")
