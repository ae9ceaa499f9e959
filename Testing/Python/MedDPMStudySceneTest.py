"""What only 3D Slicer itself can show of the reader study: its views, its window, its Qt.

Needs no package that Slicer lacks. ``ctest -R MedDPMStudySceneTest`` runs it in a build with BUILD_TESTING; in the
Python console of a Slicer with the module: ``slicer.testing.runUnitTest("<this folder>", "MedDPMStudySceneTest")``.
"""

import shutil
import tempfile
import unittest
from pathlib import Path

import numpy as np
import qt
import slicer

import MedDPMStudy  # noqa: F401  finds the library, in the source tree too
from MedDPMLib.imaging.geometry import Grid
from MedDPMLib.scene.study.panel import END, PAUSE, READING, START
from MedDPMLib.study.casefile import common_length, compress, write_case
from MedDPMLib.study.definition import Definition, Margin, Preparation, Sessions, Tasks
from MedDPMLib.study.order import PAIR, SINGLE, Presentation
from MedDPMLib.study.pack import Task

GRID = Grid((40, 48, 44), (4.0, 4.0, 4.0), "LPS")


def aTask(folder):
    """Three presentations, a training case, a case and a pair, of two balls of noise."""
    folder = Path(folder)
    k, j, i = np.indices(GRID.shape) - (np.array(GRID.shape)[:, None, None, None] - 1) / 2
    ball = (k**2 + j**2 + i**2) < 18**2
    images = {
        case: np.where(ball, np.random.default_rng(seed).integers(60, 256, GRID.shape), 0).astype(np.uint8)
        for seed, case in enumerate(("0a1b", "2c3d"))
    }
    compressed = {case: compress(image) for case, image in images.items()}
    length = common_length(map(len, compressed.values()))
    for case, image in images.items():
        write_case(folder / "cases" / case / "t1.nrrd", compressed[case], image, GRID, length)
    definition = Definition(
        title="A study <small>", identifier="0", created="2026-01-01", modalities=("t1",), models=("m",),
        readers=("Ada",), real=1, synthetic=1, margin=Margin(0.1, 0.1),
        preparation=Preparation(GRID.size, GRID.spacing[0], GRID.orientation, 256, 0.0),
        tasks=Tasks(True, True, ("vessels",)), sessions=Sessions(length=10),
    )  # fmt: skip
    shown = (
        Presentation(0, 1, SINGLE, ("0a1b",), True, 1),
        Presentation(1, 1, SINGLE, ("2c3d",)),
        Presentation(2, 1, PAIR, ("0a1b", "2c3d")),
    )
    return Task(folder, definition, "Ada", shown)


@unittest.skipIf(slicer.util.mainWindow() is None, "a study is read in the main window")
class MedDPMStudySceneTest(unittest.TestCase):
    def setUp(self):
        slicer.mrmlScene.Clear()
        self.folder = tempfile.mkdtemp()
        slicer.util.selectModule("MedDPMStudy")
        self.widget = slicer.util.getModuleWidget("MedDPMStudy")
        self.panel, self.ui = self.widget.panel, self.widget.ui
        self.panel.task = aTask(self.folder)
        self.ui.beginButton.enabled = True
        self.ui.beginButton.click()
        slicer.app.processEvents()

    def tearDown(self):
        self.panel.leave()
        slicer.mrmlScene.Clear()
        shutil.rmtree(self.folder, ignore_errors=True)

    def answer(self):
        for number in (5, 2):
            self.panel.questions.press(number)
        self.panel.questions.choose_side(1)
        self.ui.nextButton.click()
        slicer.app.processEvents()

    def test_ACaseIsSeenFromThreeSides(self):
        self.assertEqual(self.ui.pages.currentIndex, READING)
        widgets = self.panel.views._widgets()
        self.assertEqual([w.mrmlSliceNode().GetOrientation() for w in widgets], ["Axial", "Coronal", "Sagittal"])
        node = self.panel.views.nodes[0]
        for widget in widgets:
            self.assertEqual(widget.mrmlSliceCompositeNode().GetBackgroundVolumeID(), node.GetID())
            self.assertAlmostEqual(widget.mrmlSliceNode().GetSliceOffset(), 2.0)
        self.assertEqual(slicer.util.arrayFromVolume(node).dtype, np.uint8)
        self.assertEqual((node.GetDisplayNode().GetWindow(), node.GetDisplayNode().GetLevel()), (255, 127.5))
        self.panel.views.step(1)
        self.assertAlmostEqual(widgets[0].mrmlSliceNode().GetSliceOffset(), 6.0)
        self.assertIn("Study1 Axial", self.panel.reading.watched.slices)

    def test_NothingNamesTheCase(self):
        nodes = slicer.util.getNodesByClass("vtkMRMLScalarVolumeNode")
        self.assertEqual([node.GetName() for node in nodes], ["Case"])
        self.assertTrue(nodes[0].GetHideFromEditors())
        self.assertIsNone(nodes[0].GetStorageNode())
        hierarchy = slicer.vtkMRMLSubjectHierarchyNode.GetSubjectHierarchyNode(slicer.mrmlScene)
        self.assertEqual(hierarchy.GetItemByDataNode(nodes[0]), hierarchy.GetInvalidItemID())
        self.assertNotIn("0a1b", slicer.util.mainWindow().windowTitle)

    def test_TheScreenIsTheStudysAndIsGivenBack(self):
        window = slicer.util.mainWindow()
        self.assertTrue(window.menuBar().isHidden() and window.statusBar().isHidden())
        self.assertTrue(all(bar.isHidden() for bar in window.findChildren(qt.QToolBar)))
        self.assertGreater(len(self.panel.keys._shortcuts), 15)
        menu = slicer.qSlicerSubjectHierarchyPluginHandler.instance().pluginLogic()
        known = set(menu.registeredViewContextMenuActionNames)
        allowed = list(menu.allowedViewContextMenuActionNames)  # an empty list would allow all of them
        self.assertTrue(known and allowed and not known & set(allowed))
        self.panel.leave()
        self.assertFalse(set(allowed) & set(menu.allowedViewContextMenuActionNames))
        self.assertFalse(window.menuBar().isHidden() or window.statusBar().isHidden())
        self.assertEqual(self.ui.pages.currentIndex, START)
        self.assertEqual(slicer.util.getNodesByClass("vtkMRMLScalarVolumeNode"), [])
        self.assertFalse(self.panel.keys._shortcuts)

    def test_AnswersLockAndTheTruthOfTrainingIsTold(self):
        self.assertFalse(self.ui.nextButton.enabled)
        self.answer()
        self.assertIn("the case was synthetic", self.ui.messageLabel.text)
        self.ui.nextButton.click()
        self.assertTrue(self.ui.progressLabel.text.startswith("2 of 3"))
        self.panel.leave()
        self.panel._on_begin()
        self.assertEqual(self.panel.reading.current.number, 1)

    def test_APairIsLinkedAndSeenThroughOneWindow(self):
        self.answer()
        self.ui.nextButton.click()
        self.answer()
        left, right = self.panel.views._widgets()
        self.assertEqual([node.GetName() for node in self.panel.views.nodes], ["Left", "Right"])
        self.panel.views.step(2)
        self.assertAlmostEqual(left.mrmlSliceNode().GetSliceOffset(), right.mrmlSliceNode().GetSliceOffset())
        self.panel.views.nodes[0].GetDisplayNode().SetWindowLevel(90, 60)
        self.assertEqual(self.panel.views.nodes[1].GetDisplayNode().GetWindow(), 90)
        self.answer()
        self.assertEqual(self.ui.pages.currentIndex, END)

    def test_APauseCoversTheCase(self):
        self.ui.pauseButton.click()
        self.assertEqual(self.ui.pages.currentIndex, PAUSE)
        for widget in self.panel.views._widgets():
            self.assertFalse(widget.mrmlSliceCompositeNode().GetBackgroundVolumeID())
        self.ui.resumeButton.click()
        for widget in self.panel.views._widgets():
            self.assertTrue(widget.mrmlSliceCompositeNode().GetBackgroundVolumeID())

    def test_TheMarkIsWhereTheSlicesMeet(self):
        self.panel._on_mark()
        self.assertEqual(self.panel._point, (2.0, 2.0, 2.0))
        node = slicer.mrmlScene.GetFirstNodeByClass("vtkMRMLCrosshairNode")
        if node is not None:  # the application's own
            self.assertEqual(tuple(node.GetCrosshairRAS()), (2.0, 2.0, 2.0))
        self.assertFalse(self.ui.reasonBox.isHidden())
