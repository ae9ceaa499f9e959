"""A name that can be any part of a tumor is asked about where it stands alone, and read where its parts are named."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
from test_label_tables import ctbl
from test_masks import BRATS, brain
from test_seg_nrrd import save, terminology

from MedDPMLib.cli.remedies import worded
from MedDPMLib.errors import MedDPMError
from MedDPMLib.imaging.geometry import Grid
from MedDPMLib.imaging.io import write_nifti
from MedDPMLib.imaging.volume import Volume
from MedDPMLib.masks.mask import read_mask
from MedDPMLib.masks.schemes import load_scheme
from MedDPMLib.prepare.cases import prepare_case
from MedDPMLib.prepare.sources import CaseFiles
from MedDPMLib.recipes.standard import STANDARDS

PARTS = {label.tissue: label for label in BRATS.tumor}
CORE, EDEMA, RIM = (PARTS[tissue].value for tissue in ("core", "edema", "rim"))
REST = BRATS.rest.value


def tumor_alone(tmp_path, name, **more):
    """A segmentation of a brain and one segment called ``name``, which is all of the tumor; its voxels."""
    volume = brain()
    tumor = np.isin(volume.array, (CORE, EDEMA, RIM))
    segments = [{"Name": "Brain", "LabelValue": 1}, {"Name": name, "LabelValue": 2, **more}]
    layer = np.where(tumor, 2, np.where(volume.array > 0, 1, 0)).astype(np.uint8)
    return save(tmp_path / "case.seg.nrrd", [layer], segments, volume.geometry), tumor


NAMES = ["Tumor core", "tumour_core", "Tumour core (TC)", "Whole tumour", "the whole-tumor"]


@pytest.mark.parametrize("name", NAMES)
def test_a_region_alone_is_refused_and_every_answer_is_taken(tmp_path, name):
    path, tumor = tumor_alone(tmp_path, name)
    with pytest.raises(MedDPMError, match="inside which no part of the tumor is named") as caught:
        read_mask(path, BRATS)
    said = worded(caught.value)
    assert str(path) in said and f'"{name}"' in said and f'--labels "{name}=' in said
    for label in BRATS.tumor:
        assert label.name.lower() in said
        mask = read_mask(path, BRATS, numbering=f"{name.upper()}={label.name}")
        np.testing.assert_array_equal(mask.volume.array == label.value, tumor)
        assert any("as requested" in note for note in mask.notes)
    assert not (read_mask(path, BRATS, numbering=f"{name}=none").volume.array[tumor]).any()


@pytest.mark.parametrize("empty", [False, True])
def test_regions_that_lie_in_each_other_are_what_the_inner_ones_leave(tmp_path, empty):
    """As BraTS and nnU-Net have them: a tumor without an enhancing part has an empty segment for it."""
    volume = brain()
    array = np.where((volume.array == RIM) & empty, CORE, volume.array).astype(np.uint8)
    within = {"Enhancing tumor": [RIM], "Tumor core": [RIM, CORE], "Whole tumor": [RIM, CORE, EDEMA]}
    layers = [np.isin(array, values).astype(np.uint8) for values in within.values()] + [(array > 0).astype(np.uint8)]
    segments = [{"Name": name, "LabelValue": 1, "Layer": n} for n, name in enumerate((*within, "Brain"))]
    mask = read_mask(save(tmp_path / "a.seg.nrrd", layers, segments, volume.geometry), BRATS)
    np.testing.assert_array_equal(mask.volume.array, array)


def test_a_whole_tumor_and_its_rim_leave_open_what_is_between_them(tmp_path):
    volume = brain()
    layers = [np.isin(volume.array, (CORE, EDEMA, RIM)).astype(np.uint8), (volume.array == RIM).astype(np.uint8)]
    layers.append((volume.array > 0).astype(np.uint8))
    names = ["Whole tumor", "Enhancing tumor", "Brain"]
    segments = [{"Name": name, "LabelValue": 1, "Layer": n} for n, name in enumerate(names)]
    with pytest.raises(MedDPMError, match='"Whole tumor" is a region'):
        read_mask(save(tmp_path / "a.seg.nrrd", layers, segments, volume.geometry), BRATS)


def test_terminology_says_what_a_name_leaves_open(tmp_path):
    path, tumor = tumor_alone(tmp_path, "Tumor core", Tags=terminology(PARTS["rim"]))
    np.testing.assert_array_equal(read_mask(path, BRATS).volume.array == RIM, tumor)


@pytest.mark.parametrize("table, text", [("case.ctbl", ctbl), ("dataset.json", None)])
def test_a_region_alone_in_a_table_is_refused_and_answered_by_values(tmp_path, table, text):
    volume = brain()
    array = np.where(np.isin(volume.array, (CORE, EDEMA, RIM)), 1, np.where(volume.array > 0, 4, 0)).astype(np.uint8)
    path = tmp_path / "case.nii.gz"
    write_nifti(path, Volume(array, volume.geometry))
    names = {1: "tumor core", 4: "rest of the brain"}
    labels = {"labels": {"background": 0, **{name: value for value, name in names.items()}}}
    (tmp_path / table).write_text(text(names) if text else json.dumps(labels))
    with pytest.raises(MedDPMError, match="names no part of the tumor") as caught:
        read_mask(path, BRATS)
    assert table in worded(caught.value) and "--labels" in worded(caught.value)
    answer = caught.value.values["example"]
    assert answer.startswith("1=") and answer.endswith("4=rest of the brain")
    assert (read_mask(path, BRATS, numbering=answer).volume.array == REST).sum() == (array == 4).sum()


def test_what_is_said_has_to_be_clear(tmp_path):
    path, _ = tumor_alone(tmp_path, "Tumor core")
    for said, match in (
        ("tumor core=liver", "does not say which label a segment is"),
        ("tumor core=necrosis,Tumor  core=edema", "does not say which label a segment is"),
        ("lesion=necrosis", 'no segment called "lesion": its segments are "Brain", "Tumor core"'),
        ("1=rest of the brain,2=tumor core", "can be any part of a tumor"),
    ):
        with pytest.raises(MedDPMError, match=match):
            read_mask(path, BRATS, numbering=said)
    write_nifti(tmp_path / "plain.nii.gz", brain())
    with pytest.raises(MedDPMError, match="does not define a value"):
        read_mask(tmp_path / "plain.nii.gz", BRATS, numbering="tumor core=necrosis")


def test_a_segment_that_no_label_is_called_after_can_be_named_or_left_out(tmp_path):
    path, tumor = tumor_alone(tmp_path, "GTV 1")
    with pytest.raises(MedDPMError) as caught:
        read_mask(path, BRATS)
    assert '--labels "GTV 1=' in worded(caught.value)
    assert (read_mask(path, BRATS, numbering="gtv 1=enhancing tumor").volume.array[tumor] == RIM).all()
    mask = read_mask(path, BRATS, numbering="GTV 1=none")
    assert "left out, as requested" in " ".join(mask.notes)


def test_the_command_line_ends_with_2_and_says_how_to_answer(tmp_path, meddpm, small_model):
    path, _ = tumor_alone(tmp_path, "Whole tumor")
    arguments = ("generate", path, "--model", small_model, "--out", tmp_path / "out", "--steps", "2", "--device", "cpu")
    refused = meddpm(*arguments)
    assert refused.returncode == 2 and '--labels "Whole tumor=' in refused.stderr and not list(tmp_path.glob("out/*"))
    read = meddpm(*arguments, "--labels", "whole tumor=edema")
    assert read.returncode == 0, read.stderr
    record = json.loads(next((tmp_path / "out").glob("*.json")).read_text())
    assert "by the names of its segments and as requested" in " ".join(record["notes"])
    assert meddpm(*arguments, "--labels", "whole tumor=liver").returncode == 2


def test_preparing_reads_segments_as_generating_does(tmp_path):
    """3D Slicer numbers segments as they come: a reader that goes by values makes a rim of edema."""
    volume = brain()
    order = {EDEMA: 1, CORE: 2, REST: 3, RIM: 4}
    array = np.zeros_like(volume.array)
    for value, number in order.items():
        array[volume.array == value] = number
    segments = [{"Name": BRATS.label_by_value(v).name, "LabelValue": n} for v, n in order.items()]
    path = save(tmp_path / "case_seg.seg.nrrd", [array], segments, volume.geometry)
    image = tmp_path / "case_t1.nii.gz"
    noise = np.random.default_rng(0).uniform(50, 100, array.shape) * (array > 0)
    write_nifti(image, Volume(noise.astype(np.float32), volume.geometry))
    standard = replace(STANDARDS["brats"], grid=Grid((24, 24, 24), (6.0, 6.0, 6.0), "LPS"))
    case = CaseFiles("case", "pairs", tmp_path, {"t1": image}, path)
    options = {"anatomy": None, "normalization": "percentiles"}
    made = prepare_case(case, standard, load_scheme("brats"), numbering=None, **options)
    right = read_mask(path, BRATS).volume
    for label in BRATS.tumor:
        size = (made.labels.array == label.value).sum() * made.labels.geometry.voxel_volume
        assert size == pytest.approx((right.array == label.value).sum() * right.geometry.voxel_volume, rel=0.1)
    assert "by the names of its segments" in made.found["notes"]
    lone, _ = tumor_alone(tmp_path, "Tumor core")
    case = CaseFiles("case", "pairs", tmp_path, {"t1": image}, lone)
    with pytest.raises(MedDPMError, match="is a region"):
        prepare_case(case, standard, BRATS, numbering=None, **options)
    made = prepare_case(case, standard, BRATS, numbering="tumor core=necrosis", **options)
    assert (made.labels.array == CORE).any() and not (made.labels.array == RIM).any()
