"""What only 3D Slicer itself can show: its scene, its Qt and its Python, as the module uses them.

Needs neither PyTorch nor a model. ``ctest -R MedDPMSceneTest`` runs it in a build with BUILD_TESTING; in the Python
console of a Slicer with the module: ``slicer.testing.runUnitTest("<this folder>", "MedDPMSceneTest")``.
"""

import os
import time
import unittest
from unittest import mock

import numpy as np
import qt
import slicer
import vtk

import MedDPM  # noqa: F401  finds the library, in the source tree too
from MedDPMLib.imaging.geometry import Geometry
from MedDPMLib.imaging.volume import Volume
from MedDPMLib.masks.schemes import load_scheme
from MedDPMLib.scene import dependencies, painting, processes, segmentation, views, volumes
from MedDPMLib.scene.worker_client import WorkerClient
from MedDPMLib.worker.protocol import Error

#: A tilted head whose origin no short decimal writes.
IJK_TO_RAS = np.array(
    [[-0.96, 0.364, 0, 81.123456789], [-0.28, -1.248, 0, 33.3333333333], [0, 0, 2.1, -2 / 7], [0, 0, 0, 1]]
)


def someLabels(scheme):
    array = np.zeros((12, 14, 16), np.uint8)
    array[1:11, 1:13, 1:15] = scheme.rest.value
    for number, label in enumerate(scheme.tumor):
        array[3 + number : 9 - number, 3 + number : 9, 4 : 12 - number] = label.value
    return Volume(array, Geometry(array.shape[::-1], IJK_TO_RAS))


class MedDPMSceneTest(unittest.TestCase):
    def setUp(self):
        slicer.mrmlScene.Clear()
        self.scheme = load_scheme("brats")
        self.labels = someLabels(self.scheme)

    def tearDown(self):
        slicer.mrmlScene.Clear()

    def waitUntil(self, condition, seconds=180):
        end = time.monotonic() + seconds
        while not condition() and time.monotonic() < end:
            slicer.app.processEvents()
            time.sleep(0.01)
        self.assertTrue(condition(), "nothing came in time")

    # The scene

    def test_SegmentsAreReadWhereSlicerShowsThem(self):
        node = painting.add_segmentation(self.labels, self.scheme, "Gehirn 脳")
        table = segmentation.table_of(node, self.scheme)
        self.assertEqual(sorted(table.values()), sorted(self.scheme.values))
        matrix = vtk.vtkMatrix4x4()
        matrix.SetElement(0, 3, 12.5)
        transform = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLLinearTransformNode")
        transform.SetMatrixTransformToParent(matrix)
        node.SetAndObserveTransformNodeID(transform.GetID())
        read = segmentation.read_labels(node, table, self.scheme)
        np.testing.assert_array_equal(read.array, self.labels.array)
        np.testing.assert_allclose(read.geometry.ijk_to_ras[:3, 3] - IJK_TO_RAS[:3, 3], (12.5, 0, 0), atol=1e-6)
        reference = slicer.util.addVolumeFromArray(np.zeros_like(read.array), read.geometry.ijk_to_ras, "reference")
        for segmentId, value in table.items():
            shown = slicer.util.arrayFromSegmentBinaryLabelmap(node, segmentId, reference)
            np.testing.assert_array_equal(shown > 0, read.array == value)

    def test_ResultsLieInPlaceAndSayWhatTheyAre(self):
        node = painting.add_segmentation(self.labels, self.scheme, "Brain")
        before = slicer.mrmlScene.GetNumberOfNodes()
        volume = Volume(self.labels.array.astype(np.float32), self.labels.geometry)
        result = volumes.add_volume(volume, volumes.result_name("Brain", "t1", 7), node, window=(0, 4))
        volumes.set_record(result, {"seed": 7, "notes": ['a "quoted" note', "Ödem"]})
        self.assertEqual(result.GetName(), "T1 (synthetic, seed 7) Brain")
        self.assertTrue(volumes.is_synthetic(result))
        self.assertEqual(volumes.record_of(result)["notes"][1], "Ödem")
        back = volumes.result_volume(result)
        np.testing.assert_array_equal(back.array, volume.array)
        np.testing.assert_allclose(back.geometry.ijk_to_ras, IJK_TO_RAS, atol=1e-6)
        hierarchy = slicer.vtkMRMLSubjectHierarchyNode.GetSubjectHierarchyNode(slicer.mrmlScene)
        folder = hierarchy.GetItemParent(hierarchy.GetItemByDataNode(result))
        self.assertEqual(hierarchy.GetItemName(folder), "Brain (synthetic)")
        volumes.remove_result(result)
        self.assertEqual(slicer.mrmlScene.GetNumberOfNodes(), before)

    @unittest.skipIf(slicer.app.layoutManager() is None, "there are no views without a main window")
    def test_ViewsSayThatAVolumeIsSynthetic(self):
        layout = slicer.app.layoutManager()
        place = vtk.vtkCornerAnnotation.UpperEdge

        def said():
            views_ = map(layout.sliceWidget, layout.sliceViewNames())
            return {view.sliceView().cornerAnnotation().GetText(place) or "" for view in views_}

        node = painting.add_segmentation(self.labels, self.scheme, "Brain")
        result = volumes.add_volume(self.labels, "result", node, window=(0, 4))
        scan = slicer.util.addVolumeFromArray(self.labels.array, name="scan")
        marks = views.SyntheticMarks()
        marks.start()
        views.show_background(result, fit=True)
        slicer.app.processEvents()
        self.assertEqual(said(), {views.MARK})
        views.show_background(scan, fit=True)
        slicer.app.processEvents()
        self.assertEqual(said(), {""})
        marks.stop()

    # Qt and Python

    def test_ThePythonOfTheApplicationFindsTheLibrary(self):
        ended = []
        owner = qt.QObject()
        process = processes.python_process(owner)
        process.finished.connect(lambda code: ended.append(code))
        code = "import sys, MedDPMLib.worker.protocol as p; print(p.PROTOCOL, sys.argv[1]); sys.exit(3)"
        process.start(processes.python_program(), ["-c", code, "ü 脳 and spaces"])
        self.waitUntil(lambda: ended)
        self.assertEqual(ended, [3], process.readAllStandardError().data())
        self.assertEqual(process.readAllStandardOutput().data().decode("utf-8").split(maxsplit=1)[1].strip(),
                         "ü 脳 and spaces")  # fmt: skip
        self.assertEqual(process.exitStatus(), qt.QProcess.NormalExit)

    def test_TheWorkerAnswersAndLeavesNothing(self):
        client, events, failures = WorkerClient(), [], []
        client.received.connect(events.append)
        client.failed.connect(failures.append)
        client.load("no model is called so")
        folder = client._worker.session.folder
        self.waitUntil(lambda: events or failures)
        if events:  # PyTorch is there
            self.assertIsInstance(events[0], Error)
            self.assertIn("no model is called so", events[0].message)
        else:
            self.assertIn("PyTorch", failures[0])
        client.stop()
        self.assertFalse(client.running)
        self.assertFalse(os.path.exists(folder))

    def test_AWorkerThatIsKilledIsTold(self):
        client, failures = WorkerClient(), []
        client.failed.connect(failures.append)
        client.load("any")
        folder = client._worker.session.folder
        self.waitUntil(lambda: client.pid is not None or failures)
        if client.pid is not None:
            processes.kill_tree({client.pid})
            self.waitUntil(lambda: failures)
            self.assertIn("click Generate again", failures[0])
        self.assertFalse(client.running)
        self.assertFalse(os.path.exists(folder))

    def test_AProgramThatIsNotThereIsTold(self):
        client, failures = WorkerClient(), []
        client.failed.connect(failures.append)
        with mock.patch("MedDPMLib.scene.worker_client.python_program", return_value="/nowhere/PythonSlicer"):
            try:
                client.load("any")
            except ValueError as error:  # a system that says so at once
                self.assertIn("cannot be started", str(error))
        self.waitUntil(lambda: failures)
        self.assertIn("cannot be started", failures[0])
        self.assertFalse(client.running)

    def test_VersionsAreDescribed(self):
        described = dependencies.describe()
        for words in ("MedDPM ", "python ", slicer.app.applicationVersion, slicer.app.temporaryPath):
            self.assertIn(words, described)
