"""The segments of a label map have numbers, no names: the panel reads them as a file's, or shows what they can mean."""

# ruff: noqa: F811 (fixtures are imported by their names)

from __future__ import annotations

import nibabel
import numpy as np
import pytest
from bench import dialogs
from bench.driver import SCHEME, application, generate, models, panel  # noqa: F401
from test_readings import ANATOMY, glioma, renumbered

import qt  # isort: skip
import slicer  # isort: skip

from MedDPMLib.imaging.volume import Volume
from MedDPMLib.masks.numberings import find_numbering
from MedDPMLib.masks.readings import AmbiguousLabels, compare_readings
from MedDPMLib.scene import volumes
from MedDPMLib.scene.images import oriented_image
from MedDPMLib.scene.numbered_segments import numbered_segments, read_numbers

#: The labels of the scheme brats in the scheme of the panel's model.
NAMED = {1: "core", 2: "edema", 3: "rim", 4: None}
VALUES = {
    number: next(label.value for label in SCHEME.labels if label.tissue == tissue) if tissue else SCHEME.rest.value
    for number, tissue in NAMED.items()
}


def label_map(panel, array: np.ndarray, geometry, name="case_7"):
    """As 3D Slicer loads a label map without a color table as a segmentation, chosen in the panel."""
    node = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLSegmentationNode", name)
    image = oriented_image(array.astype(np.uint8), geometry)
    logic = slicer.modules.segmentations.logic()
    assert logic.ImportLabelmapToSegmentationNode(image, node, "Segment")
    core = node.GetSegmentation()
    converter = slicer.vtkSegmentationConverter
    core.SetConversionParameter(
        converter.GetReferenceImageGeometryParameterName(), converter.SerializeImageGeometry(image)
    )
    for id_ in core.GetSegmentIDs():
        segment = core.GetSegment(id_)
        segment.SetName(f"Segment_{segment.GetLabelValue()}")
    panel.ui.segmentationSelector.setCurrentNode(node)
    panel.ui.stepsBox.value = 2
    return node


def four_labels() -> Volume:
    """A glioma in the scheme brats: 1 necrosis, 2 edema, 3 enhancing tumor, 4 rest of the brain."""
    volume = glioma()
    table = np.zeros(256, np.uint8)
    for label in ANATOMY.labels:
        table[label.value] = next((n for n, tissue in NAMED.items() if tissue and tissue == label.tissue), 4)
    return Volume(table[volume.array], volume.geometry)


def ml(array, value, geometry):
    return (array == value).sum() * geometry.voxel_volume / 1000


def exported(panel):
    """Numbered in the order of segments, which no convention has, and what each number is right."""
    right = four_labels()
    order = {4: 1, 2: 2, 3: 3, 1: 4}
    return label_map(panel, renumbered(right.array, order), right.geometry), right, order


def labels_of(panel, node):
    core = node.GetSegmentation()
    return {core.GetSegment(id_).GetLabelValue(): value for id_, value in panel.mask.table.items()}


def test_the_table_shows_what_the_numbers_can_mean_and_the_choice_is_taken_and_recorded(panel):
    node, right, order = exported(panel)
    seen = {}

    def choose(dialog):
        table = dialog.findChild(qt.QTableWidget, "readings")
        ok = dialog.findChild(qt.QDialogButtonBox).button(qt.QDialogButtonBox.Ok)
        seen["ok before"] = ok.enabled
        seen["rows"] = [table.item(row, 0).text() for row in range(1, table.rowCount)]
        seen["columns"] = [table.horizontalHeaderItem(column).text() for column in range(1, table.columnCount)]
        seen["cells"] = [table.item(row, 1).text() for row in range(1, table.rowCount)]
        table.cellWidget(0, 1).click()
        seen["ok after"] = ok.enabled
        return qt.QDialog.Accepted

    dialogs.reply_with(choose)
    generate(panel)
    assert [shown.kind for shown in dialogs.shown] == ["dialog"] and not seen["ok before"] and seen["ok after"]
    for number, tissue in NAMED.items():
        label = SCHEME.label_by_value(VALUES[number])
        cell = seen["cells"][seen["rows"].index(label.name)]
        volume, unit = cell.split()[:2]
        expected = ml(right.array, number, right.geometry)
        assert float(volume.replace(",", "")) == pytest.approx(expected, rel=0.01) and unit == "ml", (
            label.name,
            tissue,
        )
        assert f"({order[number]})" in cell
    assert labels_of(panel, node) == {order[number]: VALUES[number] for number in NAMED}
    for made in panel.logic.generator.made.values():
        notes = volumes.record_of(made)["notes"]
        assert "as chosen in the panel" in notes[0] and SCHEME.rest.name.lower() in notes[0].lower()
    assert "as chosen in the panel" in panel.ui.messageLabel.text
    assert panel.mask.labels.ask() and len(dialogs.shown) == 1  # what was chosen is not asked again
    panel.mask.labels._ui.labelTable.cellWidget(0, 1).currentIndex = 0
    assert all("as chosen" not in note for note in read_notes(panel, node))


def read_notes(panel, node):
    from MedDPMLib.scene.segmentation import read_labels

    return read_labels(node, panel.mask.table, SCHEME).notes


def test_without_a_choice_nothing_is_generated_and_none_of_these_asks_for_each(panel):
    node, *_ = exported(panel)
    dialogs.reply_with(qt.QDialog.Rejected)
    panel.ui.generateButton.click()
    assert panel.ui.generateButton.text == "Generate" and panel.mask.table == {}

    def none(dialog):
        dialog.findChild(qt.QRadioButton, "none").click()
        return qt.QDialog.Accepted

    asked = []

    def each(dialog):
        asked.extend(box.objectName for box in dialog.findChildren(qt.QComboBox))
        return qt.QDialog.Rejected

    dialogs.reply_with(none, each)
    panel.ui.generateButton.click()
    assert sorted(asked) == sorted(node.GetSegmentation().GetSegmentIDs()) and panel.mask.table == {}


def test_what_can_mean_one_thing_alone_is_read_as_a_file_is_and_said(panel):
    right = four_labels()
    node = label_map(panel, right.array, right.geometry)
    assert panel.mask.labels.ask()
    assert dialogs.shown == [] and labels_of(panel, node) == VALUES
    assert 'segments read as "med-ddpm", by ' in read_notes(panel, node)[0]


def test_the_panel_and_the_files_reader_read_the_same_numbers_alike(panel):
    from MedDPMLib.masks.mask import Mask

    node, right, order = exported(panel)
    values = numbered_segments(node, {}, SCHEME)
    assert set(values.values()) == set(order.values())
    with pytest.raises(AmbiguousLabels) as in_panel:
        read_numbers(node, values, SCHEME)
    with pytest.raises(AmbiguousLabels) as in_file:
        Mask.from_volume(Volume(renumbered(right.array, order), right.geometry), SCHEME, name="case_7")
    names = [[reading.numbering.name for reading in error.value.readings] for error in (in_panel, in_file)]
    assert names[0] == names[1] and len(names[0]) >= 1


def test_a_table_of_readings_has_a_row_for_each_label_of_any():
    one = find_numbering(ANATOMY, "brats-2024")
    from MedDPMLib.masks.readings import read_as

    readings = [read_as(find_numbering(ANATOMY, name), {1: 5e3, 2: 40e3, 4: 15e3}, ANATOMY) for name in ("brats",)]
    readings.append(read_as(one, {1: 5e3, 2: 40e3, 4: 15e3}, ANATOMY))
    rows = dict(compare_readings(readings, ANATOMY))
    assert rows["Resection cavity"] == ["", "15 ml (4)"] and list(rows)[-1] == "Resection cavity"
    tissue = {label.tissue: label.name for label in ANATOMY.tumor}
    assert rows[tissue["edema"]] == ["40 ml (2)", "40 ml (2)"] and rows[tissue["rim"]] == ["15 ml (4)", ""]


def test_named_segments_and_those_that_share_a_number_are_no_label_map(panel):
    node, *_ = exported(panel)
    core = node.GetSegmentation()
    first = core.GetSegment(core.GetNthSegmentID(0))
    first.SetName("vessel")
    assert numbered_segments(node, {}, SCHEME) == {}
    first.SetName("Segment_1")
    assert numbered_segments(node, {core.GetNthSegmentID(1): 1}, SCHEME) == {}
    assert len(numbered_segments(node, {}, SCHEME)) == 4


@pytest.mark.parametrize("name", ["Tumor core", "Whole tumour"])
def test_a_region_of_a_tumor_that_stands_alone_is_asked_about(panel, name):
    right = four_labels()
    node = label_map(panel, np.where(right.array == 4, 1, np.where(right.array > 0, 2, 0)), right.geometry)
    core = node.GetSegmentation()
    ids = list(core.GetSegmentIDs())
    for id_, called in zip(ids, ("Brain", name), strict=True):
        core.GetSegment(id_).SetName(called)
    slicer.app.processEvents()
    assert set(panel.mask.table) == {ids[0]}
    dialogs.reply_with(qt.QDialog.Rejected)
    panel.ui.generateButton.click()
    assert [shown.kind for shown in dialogs.shown] == ["dialog"] and panel.ui.generateButton.text == "Generate"
    empty = core.AddEmptySegment("", "Enhancing tumor" if name == "Tumor core" else "Necrosis")
    assert ids[1] in panel.mask.table and empty in panel.mask.table  # with what lies inside it, it is what remains


def test_a_file_that_says_in_two_ways_where_it_lies_is_refused_until_it_is_saved_again(panel, tmp_path):
    right = four_labels()
    node = label_map(panel, right.array, right.geometry)
    image = nibabel.Nifti1Image(right.array.transpose(2, 1, 0), right.geometry.ijk_to_ras)
    mirrored = np.diag([-1.0, 1, 1, 1]) @ right.geometry.ijk_to_ras
    image.set_sform(right.geometry.ijk_to_ras, 1)
    image.set_qform(mirrored, 1)
    nibabel.save(image, tmp_path / "case_7.nii.gz")
    node.CreateDefaultStorageNode()
    node.AddDefaultStorageNode()
    node.GetStorageNode().SetFileName(str(tmp_path / "case_7.nii.gz"))
    panel.ui.generateButton.click()
    said = panel.ui.messageLabel.text
    assert "gives two positions" in said and "save it as .seg.nrrd" in said and "--geometry" not in said
    assert panel.ui.generateButton.text == "Generate"
    node.GetStorageNode().SetFileName(str(tmp_path / "case_7.seg.nrrd"))
    panel.ui.generateButton.click()
    assert panel.ui.generateButton.text == "Cancel", panel.ui.messageLabel.text
    panel.ui.generateButton.click()
