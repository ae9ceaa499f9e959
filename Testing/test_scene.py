"""Segments to labels and back, painting, result volumes and views: on the headless bench, with real MRML."""

from __future__ import annotations

import itertools
import re
import unittest
from pathlib import Path

import numpy as np
import pytest
from bench import start_application
from bench.fixtures import application  # noqa: F401

start_application()

import slicer  # noqa: E402
import vtk  # noqa: E402

from MedDPMLib.errors import MedDPMError  # noqa: E402
from MedDPMLib.geometry import Geometry  # noqa: E402
from MedDPMLib.labels import load_scheme  # noqa: E402
from MedDPMLib.masks import Mask  # noqa: E402
from MedDPMLib.scene import painting, segmentation, views, volumes  # noqa: E402
from MedDPMLib.tumour import paint_tumour  # noqa: E402
from MedDPMLib.volume import Volume  # noqa: E402

pytestmark = pytest.mark.usefixtures("application")

SCHEME = load_scheme("brats")
NECROSIS, OEDEMA, ENHANCING, REST = (SCHEME.label_by_name(name).value for name in ("Necrosis", "Oedema", "ET", "Brain"))


def oblique(spacing=(1.0, 1.3, 2.1), seed=3) -> np.ndarray:
    """An IJK-to-RAS matrix of a tilted, flipped head, with an origin that no short decimal writes."""
    turn = np.linalg.qr(np.random.default_rng(seed).normal(size=(3, 3)))[0]
    matrix = np.eye(4)
    matrix[:3, :3] = turn * spacing
    matrix[:3, 3] = [-81.123456789, 33.3333333333, 2 / 7]
    return matrix


def some_labels(scheme=SCHEME, shape=(12, 14, 16), matrix=None, seed=0) -> Volume:
    """Labels of ``scheme`` in blobs, background around them."""
    rng = np.random.default_rng(seed)
    coarse = rng.choice([0, *scheme.values], size=[(n + 3) // 4 for n in shape])
    array = coarse.repeat(4, 0).repeat(4, 1).repeat(4, 2)[: shape[0], : shape[1], : shape[2]].astype(np.uint8)
    return Volume(array, Geometry(shape[::-1], oblique() if matrix is None else matrix))


def put_under(node, matrix: np.ndarray):
    transform = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLLinearTransformNode")
    transform.SetMatrixTransformToParent(slicer.util.vtkMatrixFromArray(matrix))
    node.SetAndObserveTransformNodeID(transform.GetID())
    return transform


def empty_segmentation(geometry: Geometry, name="Painted"):
    """A segmentation without segments, whose reference geometry comes from a volume, as the Segment Editor does it."""
    reference = slicer.util.addVolumeFromArray(np.zeros(geometry.shape, np.uint8), geometry.ijk_to_ras, "reference")
    node = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLSegmentationNode", name)
    node.CreateDefaultDisplayNodes()
    node.SetReferenceImageGeometryParameterFromVolumeNode(reference)
    return node


def one_by_one(node, table, scheme) -> np.ndarray:
    """The labels by Slicer's own export of one segment after the other: the slow way, independent of ours."""
    reference = node.GetNodeReference(slicer.vtkMRMLSegmentationNode.GetReferenceImageGeometryReferenceRole())
    channels = np.zeros((len(scheme.values), *slicer.util.arrayFromVolume(reference).shape), np.uint8)
    for id_, value in table.items():
        channels[scheme.values.index(value)] |= slicer.util.arrayFromSegmentBinaryLabelmap(node, id_, reference) > 0
    return scheme.merge(channels)


# There and back --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "scheme", [load_scheme(name) for name in ("anatomy", "brats", "whole-head")], ids=lambda scheme: scheme.name
)
def test_template_becomes_segments_and_the_same_labels_again(scheme):
    labels = some_labels(scheme)
    node = painting.add_segmentation(labels, scheme, "Brain")
    table = segmentation.guess_table(node, scheme)
    assert sorted(table.values()) == sorted(scheme.values)
    assert segmentation.missing_labels(table, scheme) == ()
    read = segmentation.read_labels(node, table, scheme)
    assert np.array_equal(read.array, labels.array)
    assert np.abs(read.geometry.ijk_to_ras - labels.geometry.ijk_to_ras).max() < 1e-6
    assert read.notes == ()


def test_segments_carry_names_colours_and_terminology_of_the_scheme():
    scheme = load_scheme("anatomy")
    node = painting.add_segmentation(some_labels(scheme), scheme, "Brain")
    core = node.GetSegmentation()
    assert core.GetNumberOfLayers() == 1
    for label, id_ in zip(scheme.labels, core.GetSegmentIDs(), strict=True):
        segment = core.GetSegment(id_)
        assert segment.GetName() == label.name
        assert np.allclose(segment.GetColor(), np.array(label.color) / 255)
        entry = slicer.vtkSlicerTerminologyEntry()
        assert slicer.vtkSlicerTerminologiesModuleLogic.DeserializeTerminologyEntry(segment.GetTerminology(), entry)
        for code, found in ((label.category, entry.GetCategoryObject()), (label.type, entry.GetTypeObject())):
            assert (found.GetCodingSchemeDesignator(), found.GetCodeValue(), found.GetCodeMeaning()) == (
                code.scheme, code.value, code.meaning,
            )  # fmt: skip


def test_labels_make_a_mask():
    node = painting.add_segmentation(some_labels(matrix=np.diag([8.0, 8, 8, 1])), SCHEME, "Brain")
    read = segmentation.read_labels(node, segmentation.guess_table(node, SCHEME), SCHEME)
    mask = Mask.from_volume(read, SCHEME, name="Brain", numbering=SCHEME.own_numbering)
    assert np.array_equal(mask.volume.array, read.array)


@pytest.mark.parametrize("axes", list(itertools.permutations(range(3))))
def test_every_axis_order_and_flip_keeps_its_place(axes):
    for signs in itertools.product((1, -1), repeat=3):
        matrix = np.eye(4)
        matrix[:3, :3] = np.eye(3)[:, list(axes)] * signs * [1.1, 0.9, 2.0]
        matrix[:3, 3] = [5.5, -7.25, 11]
        labels = some_labels(matrix=matrix)
        node = painting.add_segmentation(labels, SCHEME, "Brain")
        read = segmentation.read_labels(node, segmentation.guess_table(node, SCHEME), SCHEME)
        assert np.array_equal(read.array, labels.array)
        assert np.abs(read.geometry.ijk_to_ras - matrix).max() < 1e-6
        slicer.mrmlScene.RemoveNode(node)


def test_scene_file_keeps_segments_and_results(application, tmp_path):  # noqa: F811
    labels = some_labels()
    node = painting.add_segmentation(labels, SCHEME, "Gehirn äöü")
    record = {
        "seed": 7,
        "notes": ['a "quoted" note; with: separators', "Ödem, 脳"],
        "model": {"name": "m", "hash": "%41"},
    }
    result = volumes.add_volume(Volume(labels.array.astype(np.float32), labels.geometry), "result", node, window=(0, 1))
    volumes.set_record(result, record)
    path = str(tmp_path / "a scene with spaces.mrb")
    assert slicer.util.saveScene(path)
    application.close_scene()
    assert not volumes.results()
    slicer.util.loadScene(path)
    (node,) = slicer.util.getNodesByClass("vtkMRMLSegmentationNode")
    read = segmentation.read_labels(node, segmentation.guess_table(node, SCHEME), SCHEME)
    assert np.array_equal(read.array, labels.array)
    assert np.abs(read.geometry.ijk_to_ras - labels.geometry.ijk_to_ras).max() < 1e-6
    (result,) = volumes.results()
    assert volumes.record_of(result) == record
    assert result.GetNodeReference(volumes.SEGMENTATION_ROLE) is node
    assert np.array_equal(slicer.util.arrayFromVolume(result), labels.array)
    assert np.abs(volumes.result_volume(result).geometry.ijk_to_ras - labels.geometry.ijk_to_ras).max() < 1e-6
    hierarchy = slicer.mrmlScene.GetSubjectHierarchyNode()
    folder = hierarchy.GetItemParent(hierarchy.GetItemByDataNode(result))
    assert hierarchy.GetItemName(folder) == "Gehirn äöü (synthetic)"
    # The next result finds the folder of the loaded ones.
    second = volumes.add_volume(labels, "second", node, window=(0, 1))
    assert hierarchy.GetItemParent(hierarchy.GetItemByDataNode(second)) == folder


# What is painted -------------------------------------------------------------------------------------


def overlapping(order) -> tuple:
    """Segments that lie inside one another, added in ``order``."""
    geometry = Geometry((20, 18, 16), oblique())
    node = empty_segmentation(geometry)
    blocks = {REST: slice(1, 15), OEDEMA: slice(3, 13), ENHANCING: slice(5, 11), NECROSIS: slice(7, 9)}
    table = {}
    for value in order:
        table.update(painting.add_segments(node, [SCHEME.label_by_value(value)]))
    for id_, value in table.items():
        voxels = np.zeros(geometry.shape, bool)
        voxels[blocks[value], blocks[value], blocks[value]] = True
        painting.paint(node, id_, voxels)
    return node, table, blocks


@pytest.mark.parametrize("order", list(itertools.permutations((NECROSIS, OEDEMA, ENHANCING, REST))))
def test_overlaps_go_by_the_priority_of_the_scheme_and_not_by_order(order):
    node, table, blocks = overlapping(order)
    read = segmentation.read_labels(node, table, SCHEME)
    expected = np.zeros(read.array.shape, np.uint8)
    for value in reversed(SCHEME.priority):
        expected[blocks[value], blocks[value], blocks[value]] = value
    assert np.array_equal(read.array, expected)
    assert set(np.unique(expected)) != {0, *SCHEME.values}, (
        "the priority has to hide something for this to mean anything"
    )


def test_labels_are_those_of_slicers_own_export_segment_by_segment():
    rng = np.random.default_rng(5)
    geometry = Geometry((22, 19, 17), oblique(seed=8))
    node = empty_segmentation(geometry)
    table = painting.add_segments(node, SCHEME.labels)
    table.update(painting.add_segments(node, [SCHEME.labels[0]]))  # a second segment of one label
    for id_ in table:
        voxels = rng.random(geometry.shape) < 0.2
        voxels[: rng.integers(8)] = False
        painting.paint(node, id_, voxels)
    read = segmentation.read_labels(node, table, SCHEME)
    assert np.array_equal(read.array, one_by_one(node, table, SCHEME))
    assert len(read.notes) == 1 and SCHEME.labels[0].name in read.notes[0]


def test_reading_leaves_no_node_behind():
    node, table, _ = overlapping((OEDEMA, REST, NECROSIS, ENHANCING))
    before = slicer.mrmlScene.GetNumberOfNodes()
    segmentation.read_labels(node, table, SCHEME)
    assert slicer.mrmlScene.GetNumberOfNodes() == before


def test_segments_on_another_lattice_are_brought_to_the_reference_geometry():
    """As after the reference geometry was changed: half the spacing, another origin."""
    coarse = some_labels(shape=(8, 8, 8), matrix=np.diag([2.0, 2, 2, 1]))
    node = painting.add_segmentation(coarse, SCHEME, "Brain")
    table = segmentation.guess_table(node, SCHEME)
    fine = np.eye(4)
    fine[:3, 3] = -0.5
    reference = slicer.util.addVolumeFromArray(np.zeros((16, 16, 16), np.uint8), fine, "fine")
    node.SetReferenceImageGeometryParameterFromVolumeNode(reference)
    read = segmentation.read_labels(node, table, SCHEME)
    assert np.array_equal(read.array, coarse.array.repeat(2, 0).repeat(2, 1).repeat(2, 2))
    assert np.array_equal(read.array, one_by_one(node, table, SCHEME))


def test_what_lies_outside_the_reference_geometry_is_told():
    labels = some_labels()
    node = painting.add_segmentation(labels, SCHEME, "Brain")
    table = segmentation.guess_table(node, SCHEME)
    smaller = Geometry((16, 14, 6), labels.geometry.ijk_to_ras)
    reference = slicer.util.addVolumeFromArray(np.zeros(smaller.shape, np.uint8), smaller.ijk_to_ras, "smaller")
    node.SetReferenceImageGeometryParameterFromVolumeNode(reference)
    read = segmentation.read_labels(node, table, SCHEME)
    assert np.array_equal(read.array, labels.array[:6])
    lost = np.count_nonzero(labels.array[6:]) * labels.geometry.voxel_volume
    assert len(read.notes) == 1 and f"{lost / 1e3:.3g} ml" in read.notes[0]


# Transforms ------------------------------------------------------------------------------------------


def test_rigid_transform_moves_the_geometry_and_no_voxel():
    labels = some_labels()
    node = painting.add_segmentation(labels, SCHEME, "Brain")
    transform = oblique(spacing=(1, 1, 1), seed=11)
    put_under(node, transform)
    read = segmentation.read_labels(node, segmentation.guess_table(node, SCHEME), SCHEME)
    assert np.array_equal(read.array, labels.array)
    assert np.abs(read.geometry.ijk_to_ras - transform @ labels.geometry.ijk_to_ras).max() < 1e-6


def test_shearing_transform_resamples_where_slicer_shows_the_segments():
    labels = some_labels(shape=(24, 24, 24), matrix=np.diag([1.0, 1, 1, 1]))
    node = painting.add_segmentation(labels, SCHEME, "Brain")
    table = segmentation.guess_table(node, SCHEME)
    shear = np.eye(4)
    shear[0, 1], shear[2, 0] = 0.37, -0.21
    put_under(node, shear)
    read = segmentation.read_labels(node, table, SCHEME)
    directions = read.geometry.ijk_to_ras[:3, :3]
    assert np.allclose(directions.T @ directions, np.diag(read.geometry.spacing**2))
    check_voxel_by_voxel(read, labels, lambda ras: (ras - shear[:3, 3]) @ np.linalg.inv(shear[:3, :3]).T)
    assert np.isclose(np.count_nonzero(read.array), np.count_nonzero(labels.array), rtol=0.02)


def check_voxel_by_voxel(read: Volume, labels: Volume, to_source) -> None:
    """Every voxel of ``read`` has the label at its place, looked up in ``labels`` (on the unit lattice) by hand."""
    kji = np.indices(read.geometry.shape).reshape(3, -1).T
    source = to_source(read.geometry.to_ras(kji[:, ::-1]))
    nearest = np.round(source).astype(int)
    inside = ((nearest >= 0) & (nearest < labels.geometry.size)).all(axis=1)
    safe = np.abs(source - nearest).max(axis=1) < 0.49  # not where rounding decides
    expected = np.zeros(len(kji), np.uint8)
    expected[inside] = labels.array[tuple(nearest[inside][:, ::-1].T)]
    assert np.array_equal(read.array.ravel()[safe], expected[safe])


def test_bending_transform_is_honoured():
    labels = some_labels(shape=(20, 20, 20), matrix=np.eye(4))
    node = painting.add_segmentation(labels, SCHEME, "Brain")
    table = segmentation.guess_table(node, SCHEME)
    transform = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLTransformNode")
    bend = vtk.vtkThinPlateSplineTransform()
    bend.SetBasisToR()
    source, target = vtk.vtkPoints(), vtk.vtkPoints()
    for corner in itertools.product((-5, 25), repeat=3):
        source.InsertNextPoint(corner)
        target.InsertNextPoint(corner[0] + 6, corner[1], corner[2])
    source.InsertNextPoint(10, 10, 10)
    target.InsertNextPoint(19, 10, 10)
    bend.SetSourceLandmarks(source)
    bend.SetTargetLandmarks(target)
    transform.SetAndObserveTransformToParent(bend)
    node.SetAndObserveTransformNodeID(transform.GetID())
    read = segmentation.read_labels(node, table, SCHEME)
    back = bend.GetInverse()
    check_voxel_by_voxel(read, labels, lambda ras: np.array([back.TransformPoint(point) for point in ras]))
    # All of it is there: nothing that was moved to the right is cut off.
    moved = [bend.TransformPoint(point) for point in np.argwhere(labels.array)[:, ::-1].astype(float)]
    assert (
        np.abs(read.geometry.to_ijk(np.array(moved)) - (np.array(read.geometry.size) - 1) / 2)
        <= np.array(read.geometry.size) / 2
    ).all()
    with pytest.raises(MedDPMError, match="harden"):
        painting.stamp_tumour(node, table, SCHEME, (10, 10, 10), 3)


# The table -------------------------------------------------------------------------------------------


def named_segments(*names: str):
    node = empty_segmentation(Geometry((4, 4, 4), np.eye(4)))
    return node, [node.GetSegmentation().AddEmptySegment("", name) for name in names]


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("oedema", OEDEMA), ("EDEMA", OEDEMA), ("Peritumoral_Edema", OEDEMA), (" et ", ENHANCING), ("NCR", NECROSIS),
        ("enhancing-tumor", ENHANCING), ("Necrotic  core", NECROSIS), ("brain", REST), ("Rest of the brain", REST),
    ],
)  # fmt: skip
def test_names_are_recognised(name, value):
    node, (id_,) = named_segments(name)
    assert segmentation.guess_table(node, SCHEME) == {id_: value}


@pytest.mark.parametrize("name", ["Segment_1", "", "tissue", "lesion of unknown kind"])
def test_strange_names_are_left_to_the_user(name):
    node, _ = named_segments(name)
    assert segmentation.guess_table(node, SCHEME) == {}


def test_a_structure_belongs_to_the_label_that_holds_it():
    """What was painted for a model of all structures serves one that knows a tumour and the rest of the brain."""
    anatomy = load_scheme("anatomy")
    labels = some_labels(anatomy)
    node = painting.add_segmentation(labels, anatomy, "Brain")
    read = segmentation.read_labels(node, segmentation.guess_table(node, SCHEME), SCHEME)
    assert np.array_equal(read.array, SCHEME.numbering("anatomy").translate(labels.array))
    assert segmentation.guess_table(node, load_scheme("whole-head")).keys() < set(
        node.GetSegmentation().GetSegmentIDs()
    )


def test_terminology_counts_more_than_the_name():
    node, (first, second) = named_segments("oedema", "whatever")
    table = painting.add_segments(node, [SCHEME.label_by_value(NECROSIS)])
    (necrosis,) = table
    for id_ in (first, second):
        node.GetSegmentation().GetSegment(id_).SetTerminology(
            node.GetSegmentation().GetSegment(necrosis).GetTerminology()
        )
    assert segmentation.guess_table(node, SCHEME) == {first: NECROSIS, second: NECROSIS, necrosis: NECROSIS}


def test_damaged_terminology_leaves_the_name():
    node, ids = named_segments("oedema", "oedema", "oedema")
    for id_, text in zip(ids, ("~~~", "no separators", "a~SCT^1~SCT^2~b"), strict=True):
        node.GetSegmentation().GetSegment(id_).SetTerminology(text)
    assert segmentation.guess_table(node, SCHEME) == dict.fromkeys(ids, OEDEMA)


def test_missing_labels_are_named_and_added():
    node, _ = named_segments("necrosis", "my notes")
    table = segmentation.guess_table(node, SCHEME)
    missing = segmentation.missing_labels(table, SCHEME)
    assert [label.value for label in missing] == [OEDEMA, ENHANCING, REST]
    added = painting.add_segments(node, missing)
    assert list(added.values()) == [OEDEMA, ENHANCING, REST]
    assert segmentation.guess_table(node, SCHEME) == {**table, **added}


# Bad input -------------------------------------------------------------------------------------------


def test_no_reference_geometry_is_said():
    node = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLSegmentationNode", "From a surface")
    sphere = vtk.vtkSphereSource()
    sphere.Update()
    id_ = node.AddSegmentFromClosedSurfaceRepresentation(sphere.GetOutput(), "brain")
    with pytest.raises(MedDPMError, match='"From a surface" has no reference geometry'):
        segmentation.read_labels(node, {id_: REST}, SCHEME)


def test_surfaces_are_read_on_the_reference_geometry():
    geometry = Geometry((30, 30, 30), np.diag([1.0, 1, 1, 1]))
    node = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLSegmentationNode", "Surfaces")
    sphere = vtk.vtkSphereSource()
    sphere.SetCenter(14, 15, 16)
    sphere.SetRadius(9)
    sphere.SetThetaResolution(60)
    sphere.SetPhiResolution(60)
    sphere.Update()
    node.SetSourceRepresentationToClosedSurface()
    id_ = node.AddSegmentFromClosedSurfaceRepresentation(sphere.GetOutput(), "brain")
    reference = slicer.util.addVolumeFromArray(np.zeros(geometry.shape, np.uint8), geometry.ijk_to_ras, "reference")
    node.SetReferenceImageGeometryParameterFromVolumeNode(reference)
    read = segmentation.read_labels(node, {id_: REST}, SCHEME)
    assert np.allclose(np.argwhere(read.array == REST).mean(axis=0)[::-1], (14, 15, 16), atol=0.1)
    assert np.isclose(np.count_nonzero(read.array), 4 / 3 * np.pi * 9**3, rtol=0.03)
    assert not node.GetSegmentation().ContainsRepresentation("Binary labelmap")


def test_bad_tables_are_refused():
    node = painting.add_segmentation(some_labels(), SCHEME, "Brain")
    table = segmentation.guess_table(node, SCHEME)
    with pytest.raises(MedDPMError, match="no segment .* is assigned"):
        segmentation.read_labels(node, {}, SCHEME)
    with pytest.raises(MedDPMError, match='no segment "gone"'):
        segmentation.read_labels(node, {**table, "gone": REST}, SCHEME)
    with pytest.raises(MedDPMError, match="no label 99"):
        segmentation.read_labels(node, {next(iter(table)): 99}, SCHEME)


def test_empty_segments_are_refused_only_if_all_are():
    geometry = Geometry((6, 6, 6), np.eye(4))
    node = empty_segmentation(geometry)
    table = painting.add_segments(node, SCHEME.labels)
    with pytest.raises(MedDPMError, match='nothing is painted in "Painted"'):
        segmentation.read_labels(node, table, SCHEME)
    voxels = np.zeros(geometry.shape, bool)
    voxels[2:4, 2:4, 2:4] = True
    painting.paint(node, next(id_ for id_, value in table.items() if value == REST), voxels)
    assert np.array_equal(segmentation.read_labels(node, table, SCHEME).array != 0, voxels)


# Painting --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("transformed", [False, True])
def test_stamp_paints_the_tumour_at_the_crosshair(transformed):
    matrix = np.diag([1.5, 1.0, 2.0, 1.0])
    brain = Volume(np.full((40, 60, 44), REST, np.uint8), Geometry((44, 60, 40), matrix))
    node = painting.add_segmentation(brain, SCHEME, "Brain")
    if transformed:
        put_under(node, oblique(spacing=(1, 1, 1), seed=2))
    table = segmentation.guess_table(node, SCHEME)
    geometry = segmentation.painted_geometry(node)
    center = geometry.to_ras(np.array([20.3, 31.2, 18.6]))
    painting.stamp_tumour(node, table, SCHEME, center, 8, seed=3)
    read = segmentation.read_labels(node, table, SCHEME)
    assert np.array_equal(read.array, paint_tumour(brain.array, geometry, SCHEME, center, 8, seed=3))
    assert set(np.unique(read.array)) == set(SCHEME.values)
    # What is under the tumour is gone, as with the brush: the segments do not overlap.
    reference = slicer.util.addVolumeFromArray(np.zeros(geometry.shape, np.uint8), geometry.ijk_to_ras, "reference")
    total = sum(np.sum(slicer.util.arrayFromSegmentBinaryLabelmap(node, id_, reference)) for id_ in table)
    assert total == read.array.size


def test_second_stamp_covers_the_first():
    brain = Volume(np.full((40, 40, 40), REST, np.uint8), Geometry((40, 40, 40), np.eye(4)))
    node = painting.add_segmentation(brain, SCHEME, "Brain")
    table = segmentation.guess_table(node, SCHEME)
    painting.stamp_tumour(node, table, SCHEME, (15, 20, 20), 6, seed=1)
    once = segmentation.read_labels(node, table, SCHEME).array
    painting.stamp_tumour(node, table, SCHEME, (23, 20, 20), 6, seed=2)
    twice = segmentation.read_labels(node, table, SCHEME).array
    assert np.array_equal(twice, paint_tumour(once, brain.geometry, SCHEME, np.array([23, 20, 20]), 6, seed=2))


def test_stamp_outside_the_brain_or_without_segments_is_refused():
    node = painting.add_segmentation(some_labels(matrix=np.eye(4)), SCHEME, "Brain")
    table = segmentation.guess_table(node, SCHEME)
    before = segmentation.read_labels(node, table, SCHEME).array
    with pytest.raises(MedDPMError, match="no brain to paint a tumour on"):
        painting.stamp_tumour(node, table, SCHEME, (-50, 0, 0), 3)
    without = {id_: value for id_, value in table.items() if value != ENHANCING}
    with pytest.raises(MedDPMError, match='no segment stands for "Enhancing tumour"'):
        painting.stamp_tumour(node, without, SCHEME, (8, 7, 6), 3)
    assert np.array_equal(segmentation.read_labels(node, table, SCHEME).array, before)


def test_stamp_takes_the_tumour_labels_that_the_scheme_has():
    scheme = load_scheme("whole-head")
    head = next(label.value for label in scheme.labels if label.role == "rest")
    labels = Volume(np.full((16, 16, 16), head, np.uint8), Geometry((16, 16, 16), np.eye(4)))
    node = painting.add_segmentation(labels, scheme, "Head")
    table = segmentation.guess_table(node, scheme)
    painting.stamp_tumour(node, table, scheme, (8, 7, 6), 4)
    assert segmentation.read_labels(node, table, scheme).array[6, 7, 8] == scheme.tumour[0].value


def test_brain_is_filled_from_a_stripped_image_around_what_is_painted():
    geometry = Geometry((30, 32, 28), np.diag([2.0, 2, 2, 1]))
    node = empty_segmentation(geometry)
    table = painting.add_segments(node, SCHEME.labels)
    tumour = np.zeros(geometry.shape, bool)
    tumour[10:16, 10:16, 10:16] = True
    painting.paint(node, next(id_ for id_, value in table.items() if value == OEDEMA), tumour)
    image = np.zeros((56, 64, 60), np.float32)
    image[8:48, 8:56, 8:52] = np.random.default_rng(0).uniform(50, 100, (40, 48, 44))
    stripped = slicer.util.addVolumeFromArray(image, np.diag([1.0, 1, 1, 1]), "t1 stripped")
    note = painting.fill_brain(node, table, SCHEME, stripped)
    assert "brain area" in note
    read = segmentation.read_labels(node, table, SCHEME).array
    assert np.array_equal(read == OEDEMA, tumour)
    brain = np.argwhere(read != 0)
    assert np.abs(brain.min(axis=0) - 4).max() <= 1 and np.abs(brain.max(axis=0) - [23, 27, 25]).max() <= 1
    with pytest.raises(MedDPMError, match='no segment stands for "Rest of the brain"'):
        painting.fill_brain(node, {id_: value for id_, value in table.items() if value != REST}, SCHEME, stripped)


# Results ---------------------------------------------------------------------------------------------


def a_result(node, name="Brain T1", seed=0) -> tuple:
    rng = np.random.default_rng(seed)
    volume = Volume(rng.uniform(0, 1, (9, 10, 11)).astype(np.float32), Geometry((11, 10, 9), oblique(seed=seed)))
    return volumes.add_volume(volume, name, node, window=(0, 1)), volume


def test_result_lies_exactly_in_place_and_says_what_it_is():
    node = painting.add_segmentation(some_labels(), SCHEME, "Brain")
    result, volume = a_result(node, volumes.result_name("Brain", "T1", 42))
    assert result.GetName() == "Brain T1 (synthetic, seed 42)"
    back = volumes.result_volume(result)
    assert np.array_equal(back.array, volume.array)
    assert np.abs(back.geometry.ijk_to_ras - volume.geometry.ijk_to_ras).max() < 1e-6
    assert volumes.is_synthetic(result) and not volumes.is_synthetic(node) and not volumes.is_synthetic(None)
    assert result.GetDescription() == "synthetic, MedDPM"
    assert volumes.record_of(result) is None
    volumes.set_record(result, {"seed": 42})
    assert volumes.record_of(result) == {"seed": 42}
    display = result.GetDisplayNode()
    assert (display.GetWindowLevelMin(), display.GetWindowLevelMax()) == (0, 1)


def test_results_share_a_folder_beside_their_segmentation():
    hierarchy = slicer.vtkMRMLSubjectHierarchyNode.GetSubjectHierarchyNode(slicer.mrmlScene)
    study = hierarchy.CreateFolderItem(hierarchy.GetSceneItemID(), "study")
    one = painting.add_segmentation(some_labels(), SCHEME, "One")
    other = painting.add_segmentation(some_labels(), SCHEME, "Other")
    hierarchy.SetItemParent(hierarchy.GetItemByDataNode(one), study)
    results = [a_result(one)[0], a_result(one)[0], a_result(other)[0]]
    folders = [hierarchy.GetItemParent(hierarchy.GetItemByDataNode(result)) for result in results]
    assert folders[0] == folders[1] != folders[2]
    assert hierarchy.GetItemParent(folders[0]) == study
    assert hierarchy.GetItemParent(folders[2]) == hierarchy.GetSceneItemID()
    assert volumes.results() == results
    assert len({result.GetName() for result in results}) == 3


def test_removed_result_leaves_nothing():
    node = painting.add_segmentation(some_labels(), SCHEME, "Brain")
    hierarchy = slicer.vtkMRMLSubjectHierarchyNode.GetSubjectHierarchyNode(slicer.mrmlScene)
    before = slicer.mrmlScene.GetNumberOfNodes()
    results = [a_result(node)[0], a_result(node)[0]]
    folder = hierarchy.GetItemParent(hierarchy.GetItemByDataNode(results[0]))
    volumes.remove_result(results[0])
    assert hierarchy.GetItemName(folder)
    volumes.remove_result(results[1])
    assert slicer.mrmlScene.GetNumberOfNodes() == before
    assert folder not in slicer.util.getSubjectHierarchyItemChildren(recursive=True)


def test_preview_is_updated_in_place(application):  # noqa: F811
    node = painting.add_segmentation(some_labels(), SCHEME, "Brain")
    result, volume = a_result(node)
    views.show_background(result, fit=True)
    application.mainWindow().show()
    application.processEvents()
    image, nodes = result.GetImageData(), slicer.mrmlScene.GetNumberOfNodes()
    view = application.layoutManager().sliceWidget("Red").sliceView()
    events = []
    result.AddObserver(vtk.vtkCommand.ModifiedEvent, lambda *_: events.append(1))
    renders = view.renderCount()
    before = view.picture()
    volumes.update_volume(result, Volume(1 - volume.array, volume.geometry))
    application.processEvents()
    assert result.GetImageData() is image
    assert np.array_equal(slicer.util.arrayFromVolume(result), 1 - volume.array)
    assert len(events) == 1 and view.renderCount() <= renders + 3
    assert not np.array_equal(view.picture(), before)
    display = result.GetDisplayNode()
    assert (display.GetWindowLevelMin(), display.GetWindowLevelMax()) == (0, 1)
    assert slicer.mrmlScene.GetNumberOfNodes() == nodes
    # Another grid: new voxels, the same node.
    other = Volume(np.zeros((3, 4, 5), np.float32), Geometry((5, 4, 3), np.eye(4)))
    volumes.update_volume(result, other)
    assert volumes.result_volume(result).geometry.is_close(other.geometry)


def test_window_fits_the_brain_and_not_the_background():
    array = np.full((20, 20, 20), -1, np.float32)
    array[5:15, 5:15, 5:15] = np.random.default_rng(0).uniform(-0.5, 0.5, (10, 10, 10))
    array[5, 5, 5] = 40  # one wild voxel
    low, high = volumes.fitting_window(Volume(array, Geometry((20, 20, 20), np.eye(4))), -1)
    assert low == -1 and 0.45 < high < 0.51
    empty = Volume(np.full((2, 2, 2), -1, np.float32), Geometry((2, 2, 2), np.eye(4)))
    low, high = volumes.fitting_window(empty, -1)
    assert low == -1 < high


# Views -----------------------------------------------------------------------------------------------


def marks(application) -> list[str]:  # noqa: F811
    layout = application.layoutManager()
    edge = vtk.vtkCornerAnnotation.UpperEdge
    return [
        layout.sliceWidget(name).sliceView().cornerAnnotation().GetText(edge) or "" for name in layout.sliceViewNames()
    ]


def test_views_say_that_a_volume_is_synthetic(application):  # noqa: F811
    node = painting.add_segmentation(some_labels(), SCHEME, "Brain")
    result, _ = a_result(node)
    scan = slicer.util.addVolumeFromArray(np.ones((5, 5, 5), np.float32), name="scan")
    mark = views.SyntheticMarks()
    views.show_background(scan, fit=True)
    mark.start()
    assert set(marks(application)) == {""}
    views.show_background(result, fit=True)
    application.processEvents()
    assert set(marks(application)) == {views.MARK}
    # Scrolling: the corners are rewritten, the mark stays.
    for widget in map(application.layoutManager().sliceWidget, application.layoutManager().sliceViewNames()):
        widget.sliceLogic().SetSliceOffset(3)
    assert set(marks(application)) == {views.MARK}
    slicer.util.setSliceViewerLayers(background=scan, foreground=result)
    assert set(marks(application)) == {views.MARK}
    views.show_background(scan, fit=False)
    assert set(marks(application)) == {""}
    views.show_background(result, fit=False)
    mark.stop()
    assert set(marks(application)) == {""}
    views.show_background(scan, fit=False)
    views.show_background(result, fit=False)
    assert set(marks(application)) == {""}


def test_results_are_compared_in_linked_views(application):  # noqa: F811
    node = painting.add_segmentation(some_labels(), SCHEME, "Brain")
    results = [a_result(node, seed=seed)[0] for seed in range(3)]
    before = application.layoutManager().layout
    mark = views.SyntheticMarks()
    mark.start()
    views.compare(results)
    assert set(marks(application)[-3:]) == {views.MARK}
    mark.stop()
    layout = application.layoutManager()
    shown = layout.layoutLogic().GetViewNodes()
    composites = [
        layout.viewWidget(shown.GetItemAsObject(i)).mrmlSliceCompositeNode() for i in range(shown.GetNumberOfItems())
    ]
    assert [composite.GetBackgroundVolumeID() for composite in composites] == [result.GetID() for result in results]
    assert all(composite.GetLinkedControl() for composite in composites)
    assert {shown.GetItemAsObject(i).GetOrientation() for i in range(3)} == {"Axial"}
    layout.setLayout(before)


def test_mask_outline_leaves_the_volume_visible(application):  # noqa: F811
    brain = np.zeros((30, 30, 30), np.uint8)
    brain[5:25, 5:25, 5:25] = REST
    node = painting.add_segmentation(Volume(brain, Geometry((30, 30, 30), np.eye(4))), SCHEME, "Brain")
    scan = slicer.util.addVolumeFromArray(np.full((30, 30, 30), 100, np.float32), name="scan")
    views.show_background(scan, fit=True)
    view = application.layoutManager().sliceWidget("Red").sliceView()
    node.GetDisplayNode().SetVisibility(False)
    bare = view.picture()
    node.GetDisplayNode().SetVisibility(True)
    views.show_outline(node, False)
    filled = np.mean(view.picture() != bare)
    views.show_outline(node, True)
    outlined = np.mean(view.picture() != bare)
    assert filled > 0.2 and 0.0005 < outlined < 0.1 * filled


# Inside 3D Slicer --------------------------------------------------------------------------------------


def test_the_self_tests_for_slicer_pass_here_too(application, monkeypatch):  # noqa: F811
    """As ``slicer.testing.runUnitTest`` runs them."""
    folder = Path(__file__).parent
    cmake = (folder / "Python" / "CMakeLists.txt").read_text(encoding="utf-8")
    scripts = sorted(path.name for path in (folder / "Python").glob("*.py"))
    assert re.findall(r"slicer_add_python_unittest\(SCRIPT (\S+)\)", cmake) == scripts
    application.moduleManager().load(folder.parent / "MedDPM" / "MedDPM.py")
    monkeypatch.syspath_prepend(str(folder / "Python"))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    for script in scripts:
        suite = unittest.TestLoader().loadTestsFromName(script.removesuffix(".py"))
        assert suite.countTestCases() > 5
        result = unittest.TestResult()
        suite.run(result)
        assert result.wasSuccessful(), [trace for _, trace in result.errors + result.failures]
    application.moduleManager().unload("MedDPM")
