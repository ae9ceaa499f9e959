"""Segmentations saved by 3D Slicer: the header says what a segment is, not its number."""

from __future__ import annotations

import resource

import numpy as np
import pytest
import SimpleITK
from hypothesis import given, settings
from hypothesis import strategies as st
from test_geometry import ALL_ORIENTATIONS, oriented
from test_masks import BRATS, brain

from MedDPMLib.errors import MedDPMError
from MedDPMLib.imaging.volume import Volume
from MedDPMLib.masks.mask import read_mask
from MedDPMLib.masks.schemes import load_scheme
from MedDPMLib.masks.seg_nrrd import holds_segments, write_segments

NAMES = {1: "Necrosis", 2: "Edema", 3: "Enhancing tumor", 4: "Rest of the brain"}


def terminology(label):
    def entry(code):
        return f"{code.scheme}^{code.value}^{code.meaning}"

    return (
        "Segmentation.Status:inprogress|TerminologyEntry:Segmentation category and type - DICOM master list"
        f"~{entry(label.category)}~{entry(label.type)}~^^~Anatomic codes - DICOM master list~^^~^^|"
    )


def save(path, layers, segments, geometry):
    """As 3D Slicer writes it: one component for each layer, a block of header lines for each segment.

    ``segments`` are in the order of their numbers, or by number.
    """
    array = np.stack(layers, axis=-1) if len(layers) > 1 else layers[0]
    image = SimpleITK.GetImageFromArray(array.astype(np.uint8), isVector=len(layers) > 1)
    lps = np.diag([-1, -1, 1, 1]) @ geometry.ijk_to_ras
    image.SetSpacing(geometry.spacing.tolist())
    image.SetDirection((lps[:3, :3] / geometry.spacing).ravel().tolist())
    image.SetOrigin(lps[:3, 3].tolist())
    for number, fields in segments.items() if isinstance(segments, dict) else enumerate(segments):
        for key, value in {"ID": f"Segment_{number + 1}", "Layer": "0", **fields}.items():
            image.SetMetaData(f"Segment{number}_{key}", str(value))
    SimpleITK.WriteImage(image, str(path), True)
    return path


#: What version 0.1 called its segments.
FORMER = {"Edema": "Oedema", "Enhancing tumor": "Enhancing tumour"}


@pytest.mark.parametrize("by", ["Name", "former name", "Tags"])
def test_segments_in_any_order_become_the_right_labels(tmp_path, by):
    volume = brain(orientation="RAS")
    numbers = {3: 1, 4: 2, 1: 3, 2: 4}  # the label's value: the number that Slicer gave the segment
    renumbered = np.zeros_like(volume.array)
    segments = []
    for value, number in numbers.items():
        renumbered[volume.array == value] = number
        label = BRATS.label_by_value(value)
        named = {
            "Name": {"Name": label.name.upper()},
            "former name": {"Name": FORMER.get(label.name, label.name)},
            "Tags": {"Name": "Segment", "Tags": terminology(label)},
        }[by]
        segments.append({"LabelValue": number, **named})
    path = save(tmp_path / "case 7.seg.nrrd", [renumbered], segments, volume.geometry)
    assert holds_segments(path)
    mask = read_mask(path, BRATS)
    np.testing.assert_array_equal(mask.volume.array, volume.array)
    assert mask.volume.geometry.is_close(volume.geometry) and mask.name == "case 7"
    assert any("is taken for edema" in note for note in mask.notes)


def test_overlapping_segments_are_merged_by_priority(tmp_path):
    volume = brain()
    whole, core = (volume.array > 0).astype(np.uint8), np.isin(volume.array, [1, 3]).astype(np.uint8)
    tumor = np.isin(volume.array, [1, 2, 3]).astype(np.uint8)
    segments = [
        {"Name": "Brain", "LabelValue": 1, "Layer": 0},
        {"Name": "enhancing", "LabelValue": 1, "Layer": 1},
        {"Name": "edema", "LabelValue": 1, "Layer": 2},
    ]
    path = save(tmp_path / "a.seg.nrrd", [whole, core, tumor], segments, volume.geometry)
    labels = read_mask(path, BRATS).volume.array
    np.testing.assert_array_equal(labels, np.where(core, 3, np.where(tumor, 2, np.where(whole, 4, 0))))


def test_segments_without_one_label_are_refused(tmp_path):
    volume = brain()
    path = tmp_path / "a.seg.nrrd"
    named = [{"Name": name, "LabelValue": value} for value, name in NAMES.items()]
    for segments, match in (
        ([*named[:3], {"Name": "Segment_4", "LabelValue": 4}], "Segment_4.*rename"),
        ([*named[:3], {"Name": "edema", "LabelValue": 4}], '"Edema" and "edema" are both'),
        ([{**named[0], "Layer": 3}, *named[1:]], "layer"),
        ([{**named[0], "LabelValue": "one"}, *named[1:]], "damaged"),
    ):
        with pytest.raises(MedDPMError, match=match):
            read_mask(save(path, [volume.array], segments, volume.geometry), BRATS)
    # An empty segment is ignored: it may be called anything.
    empty = {"Name": "Segment_5", "LabelValue": 9}
    assert read_mask(save(path, [volume.array], [*named, empty], volume.geometry), BRATS).volume.array.any()


def test_with_a_numbering_the_values_count(tmp_path):
    volume = brain()
    wrong = [{"Name": "Segment", "LabelValue": value} for value in NAMES]
    path = save(tmp_path / "a.seg.nrrd", [volume.array], wrong, volume.geometry)
    np.testing.assert_array_equal(read_mask(path, BRATS, numbering="med-ddpm").volume.array, volume.array)


def test_plain_nrrd_has_no_segments(tmp_path):
    volume = brain()
    path = save(tmp_path / "a.nrrd", [volume.array], [], volume.geometry)
    assert not holds_segments(path)
    np.testing.assert_array_equal(read_mask(path, BRATS).volume.array, volume.array)


def test_the_anatomys_terminology_survives_a_file(tmp_path):
    scheme = load_scheme("anatomy")
    array = np.arange(8 * 8 * 8, dtype=np.uint8).reshape(8, 8, 8) % 22
    segments = [
        {"Name": f"Segment_{v}", "LabelValue": v, "Tags": terminology(scheme.label_by_value(v))} for v in scheme.values
    ]
    path = save(tmp_path / "a.seg.nrrd", [array], segments, brain(8).geometry)
    np.testing.assert_array_equal(read_mask(path, scheme).volume.array, array)


@settings(max_examples=20, deadline=None)
@given(
    numbers=st.lists(st.integers(0, 40), min_size=4, max_size=4, unique=True),
    order=st.permutations([1, 2, 3, 4]),
    layered=st.booleans(),
)
def test_every_segment_is_read_whatever_its_number_is(tmp_path_factory, numbers, order, layered):
    """3D Slicer leaves gaps where segments were removed; other programs begin where they like."""
    volume = brain()
    named = [{"Name": NAMES[value], "LabelValue": 1 if layered else value} for value in order]
    layers = [(volume.array == value).astype(np.uint8) for value in order] if layered else [volume.array]
    path = tmp_path_factory.getbasetemp() / "gap.seg.nrrd"
    fields = {number: {**named[n], "Layer": n if layered else 0} for n, number in enumerate(sorted(numbers))}
    save(path, layers, fields, volume.geometry)
    np.testing.assert_array_equal(read_mask(path, BRATS).volume.array, volume.array)
    del fields[sorted(numbers)[order[0] - 1]]  # whose voxels belong to no segment then
    save(path, layers, fields, volume.geometry)
    with pytest.raises(MedDPMError, match="holds the value .* none of its segments'"):
        read_mask(path, BRATS)


def test_files_of_slicer_4_10_have_a_layer_for_each_segment(tmp_path):
    volume = brain()
    order = [3, 1, 4, 2]
    layers = [(volume.array == value).astype(np.uint8) for value in order]
    path = save(tmp_path / "a.seg.nrrd", layers, [{"Name": NAMES[value]} for value in order], volume.geometry)
    header, data = path.read_bytes().split(b"\n\n", 1)
    lines = [line for line in header.split(b"\n") if b"_Layer:=" not in line]
    path.write_bytes(b"\n".join(lines) + b"\n\n" + data)
    np.testing.assert_array_equal(read_mask(path, BRATS).volume.array, volume.array)


def test_left_and_right_are_one_structure_and_two_tumors_are_asked_about(tmp_path):
    volume = brain()
    left = np.arange(volume.array.shape[2]) < 8
    halves = np.where(volume.array == 4, np.where(left, 4, 5), volume.array).astype(np.uint8)
    anatomy = load_scheme("anatomy")
    segments = [{"Name": NAMES[value], "LabelValue": value} for value in (1, 2, 3)]
    sides = [{"Name": "Left-Thalamus", "LabelValue": 4}, {"Name": "Right Thalamus", "LabelValue": 5}]
    path = save(tmp_path / "a.seg.nrrd", [halves], segments + sides, volume.geometry)
    mask = read_mask(path, anatomy)
    np.testing.assert_array_equal(mask.volume.array == 7, volume.array == 4)
    assert any('"Left-Thalamus", "Right Thalamus" are combined' in note for note in mask.notes)
    sides[1]["Name"] = "Left-Thalamus"
    with pytest.raises(MedDPMError, match="are both the label"):
        read_mask(save(path, [halves], segments + sides, volume.geometry), anatomy)


def test_a_header_that_is_not_utf_8(tmp_path):
    volume = brain()
    path = save(
        tmp_path / "a.seg.nrrd", [volume.array], [{"Name": NAMES[v], "LabelValue": v} for v in NAMES], volume.geometry
    )
    content = path.read_bytes().replace(b"Segment0_Name:=Necrosis", b"Segment0_Gr\xf6\xdfe:=5\nSegment0_Name:=Necrosis")
    path.write_bytes(content)
    np.testing.assert_array_equal(read_mask(path, BRATS).volume.array, volume.array)
    path = save(tmp_path / "b.mha", [volume.array], [], volume.geometry)
    path.write_bytes(path.read_bytes().replace(b"ElementSpacing", b"Gr\xf6\xdfe = 5\nElementSpacing", 1))
    np.testing.assert_array_equal(read_mask(path, BRATS).volume.array, volume.array)


# Writing ---------------------------------------------------------------------------------------------

ANATOMY = load_scheme("anatomy")


def some_structures(geometry) -> Volume:
    array = np.random.default_rng(0).choice([0, *ANATOMY.values], geometry.shape).astype(np.uint8)
    return Volume(array, geometry)


@pytest.mark.parametrize("orientation", ALL_ORIENTATIONS)
def test_what_is_written_is_read_back(tmp_path, orientation):
    labels = some_structures(oriented(orientation, (7, 8, 9), (0.9, 1.1, 2.0)))
    path = tmp_path / "brain.seg.nrrd"
    write_segments(path, labels, ANATOMY, description="invented")
    assert [file.name for file in tmp_path.iterdir()] == ["brain.seg.nrrd"]
    mask = read_mask(path, ANATOMY)
    np.testing.assert_array_equal(mask.volume.array, labels.array)
    assert mask.volume.geometry.is_close(labels.geometry, tolerance=1e-5)
    assert SimpleITK.ReadImage(str(path)).GetMetaData("Description") == "invented"


def test_only_labels_that_are_there_become_segments(tmp_path):
    geometry = brain(8).geometry
    array = np.zeros(geometry.shape, np.uint8)
    path = tmp_path / "brain.seg.nrrd"
    write_segments(path, Volume(array, geometry), ANATOMY)
    assert not holds_segments(path)
    array[2], array[3] = 9, 21
    write_segments(path, Volume(array, geometry), ANATOMY)
    image = SimpleITK.ReadImage(str(path))
    assert [image.GetMetaData(f"Segment{n}_Name") for n in range(2)] == [
        ANATOMY.label_by_value(v).name for v in (9, 21)
    ]
    assert "Segment2_Name" not in image.GetMetaDataKeys()
    array[4] = 99
    before = path.read_bytes()
    with pytest.raises(MedDPMError, match="has no label 99"):
        write_segments(path, Volume(array, geometry), ANATOMY)
    assert path.read_bytes() == before


def test_another_name_is_refused(tmp_path):
    with pytest.raises(MedDPMError, match="has to end with .seg.nrrd"):
        write_segments(tmp_path / "brain.nrrd", some_structures(brain(8).geometry), ANATOMY)


@pytest.mark.parametrize("size", [0, 100, 6000, 12_000])
def test_a_full_disk_leaves_what_was_there(tmp_path, size):
    path = tmp_path / "brain.seg.nrrd"
    path.write_text("before")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, limits[1]))
    try:
        with pytest.raises(MedDPMError, match="cannot be written .*free some space"):
            write_segments(path, some_structures(brain(32).geometry), ANATOMY)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert path.read_text() == "before" and list(tmp_path.iterdir()) == [path]
