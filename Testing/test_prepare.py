"""From folders of cases, in any layout and orientation, to a dataset."""

from __future__ import annotations

import itertools
import json
from dataclasses import replace
from pathlib import Path

import nibabel
import numpy as np
import pytest
import SimpleITK
from hypothesis import given, settings
from hypothesis import strategies as st
from phantoms import (
    ANATOMY,
    BRATS,
    LAYOUTS,
    MODALITIES,
    PLACE,
    RAW_2021,
    RAW_2023,
    SHAPE,
    SMALL,
    assert_same,
    contents,
    make,
    phantom,
    renumbered,
    save,
    shrink,
    table,
    write_brats,
    write_nnunet,
)

from MedDPMLib.data import read_dataset
from MedDPMLib.errors import MedDPMError
from MedDPMLib.imaging.geometry import Geometry, Grid
from MedDPMLib.imaging.io import itk_image, read_volume, write_nifti
from MedDPMLib.imaging.normalize import normalize_onto
from MedDPMLib.imaging.resample import resample_image, resample_labels
from MedDPMLib.imaging.volume import Volume
from MedDPMLib.prepare import (
    NORMALIZATIONS,
    STANDARDS,
    DatasetSettings,
    Standard,
    compose_anatomy,
    find_cases,
    normalize,
    write_dataset,
)
from MedDPMLib.prepare.cases import prepare_case, reoriented

SHARED = Path(__file__).parents[2] / "shared" / "data"
needs_data = pytest.mark.skipif(not SHARED.is_dir(), reason="real data (../shared/data) is not here")


@pytest.fixture
def small(monkeypatch):
    shrink(monkeypatch)


# Layouts ---------------------------------------------------------------------------------------------


def test_every_layout_gives_the_same_dataset(tmp_path, small):
    datasets = {}
    for layout, write in LAYOUTS.items():
        source = tmp_path / layout / "source"
        write(source, [1, 2])
        out = tmp_path / layout / "out"
        assert make([source], out) == {"case1": None, "case2": None}, layout
        datasets[layout] = contents(out)
    first = datasets["2021"]
    assert len(first) == 2 * 5
    for dataset in datasets.values():
        assert_same(first, dataset)
    # And it is what was drawn: the grid leaves room for the phantom, so nothing of it is lost.
    for seed in (1, 2):
        labels = first[f"labelsTr/case{seed}.nii.gz"][0]
        assert np.array_equal(np.bincount(labels.ravel())[1:], np.bincount(phantom(seed)[1].ravel())[1:])


def test_a_dataset_says_what_it_is(tmp_path, small):
    write_brats(tmp_path / "source", [1, 2])
    make([tmp_path / "source"], tmp_path / "out")
    said = json.loads((tmp_path / "out" / "dataset.json").read_text())
    assert said["channel_names"] == {"0": "t1", "1": "t1ce", "2": "t2", "3": "flair"}
    assert said["labels"] == {"background": 0} | {label.name: label.value for label in BRATS.labels}
    assert said["numTraining"] == 2 and said["file_ending"] == ".nii.gz" and said["label_scheme"] == "brats"
    assert said["grid"] == {"size": [28, 24, 20], "spacing": [6, 6, 6], "orientation": "LPS"}
    read = read_dataset(tmp_path / "out", MODALITIES, scheme="brats", grid=SMALL)
    assert [case.name for case in read] == ["case1", "case2"]
    rows = table(tmp_path / "out")
    counts = np.bincount(phantom(1)[1].ravel())
    for label in BRATS.labels:
        assert int(rows["case1"][f"{label.name} (voxels)"]) == counts[label.value]
    brain = phantom(1)[0]["t2"][phantom(1)[1] > 0]
    assert (float(rows["case1"]["t2 lowest"]), float(rows["case1"]["t2 highest"])) == (brain.min(), brain.max())
    assert rows["case1"]["size"] == "24 x 20 x 16" and rows["case1"]["orientation"] == "LPS"
    assert rows["case1"]["problem"] == "" and float(rows["case1"]["cut off (mm^3)"]) == 0


def test_what_somebody_adds_to_the_description_stays(tmp_path, small):
    write_brats(tmp_path / "source", [1, 2])
    make([tmp_path / "source"], tmp_path / "out")
    path = tmp_path / "out" / "dataset.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"name": "Gehirne, größere", "license": "CC BY 4.0"}))
    make([tmp_path / "source"], tmp_path / "out")
    said = json.loads(path.read_text(encoding="utf-8"))
    assert (said["name"], said["license"], said["numTraining"]) == ("Gehirne, größere", "CC BY 4.0", 2)


@pytest.mark.parametrize(
    "names",
    [
        ("edema", "non-enhancing tumor", "enhancing tumour"),  # Medical Segmentation Decathlon
        ("ED", "NCR/NET", "GD-enhancing tumor"),
        ("Peritumoral_edema", "necrotic and non-enhancing tumor core", "ET"),
        ("the peritumoral edema (ED)", "necrotic tumor core (NCR)", "GD-enhancing tumor (ET)"),
        ("SNFH", "NCR / NET", "Enhancing"),
    ],
)
def test_labels_are_known_by_what_public_data_sets_call_them(tmp_path, small, names):
    channels = {"channel_names": {"0": "T2", "1": "T1", "2": "Flair", "3": "T1ce"}}
    labels = {"background": 0} | {name: value for value, name in enumerate(names, start=1)}
    write_nnunet(tmp_path / "source", [1], channels, labels, {1: 2, 2: 1, 3: 3})
    write_brats(tmp_path / "same", [1])
    for source, out in (("source", "one"), ("same", "two")):
        assert make([tmp_path / source], tmp_path / out) == {"case1": None}
    assert_same(contents(tmp_path / "one"), contents(tmp_path / "two"))


def test_a_numbering_that_is_named_makes_the_labels_names_indifferent(tmp_path, small):
    channels = {"channel_names": {"0": "T2", "1": "T1", "2": "Flair", "3": "T1ce"}}
    write_nnunet(tmp_path / "source", [1], channels, {"background": 0, "a": 1, "b": 2, "c": 3}, RAW_2023)
    with pytest.raises(MedDPMError, match='names a label "a".* or choose the label convention with --labels'):
        make([tmp_path / "source"], tmp_path / "out")
    write_brats(tmp_path / "same", [1])
    make([tmp_path / "same"], tmp_path / "two")
    numbering = "brats-2023"
    settings = DatasetSettings("brats", MODALITIES, numbering=numbering)
    cases = find_cases([tmp_path / "source"], BRATS, MODALITIES, numbering=numbering)
    assert [report.problem for report in write_dataset(cases, tmp_path / "out", settings)] == [None]
    assert_same(contents(tmp_path / "out"), contents(tmp_path / "two"))


def test_a_prepared_dataset_can_be_prepared(tmp_path, small):
    write_brats(tmp_path / "source", [1])
    make([tmp_path / "source"], tmp_path / "one")
    assert make([tmp_path / "one"], tmp_path / "two", normalization="per-volume") == {"case1": None}
    one, two = contents(tmp_path / "one"), contents(tmp_path / "two")
    assert one.keys() == two.keys()
    for name in one:  # what reaches from -1 to 1 is not scaled again
        np.testing.assert_allclose(one[name][0], two[name][0], atol=1e-6)


def test_whole_heads_are_pairs_of_one_image(tmp_path, small):
    images, labels = phantom()
    head = np.where(labels > 0, np.where(labels < 4, 2, 1), 0).astype(np.uint8)
    save(tmp_path / "image" / "a.nii.gz", images["t1"])
    save(tmp_path / "mask" / "a.nii.gz", head)
    # A head as small as a brain is asked about: a mask of the brain would make a head without a face.
    assert "ml, where 1800 ml are the least" in make([tmp_path], tmp_path / "out", "whole-head")["a"]
    assert make([tmp_path], tmp_path / "out", "whole-head", numbering="whole-head") == {"a": None}
    assert np.array_equal(
        np.bincount(read_volume(tmp_path / "out/labelsTr/a.nii.gz").array.ravel())[1:], np.bincount(head.ravel())[1:]
    )


@pytest.mark.parametrize("anatomy_orientation", ["LPS", "RAS"])
def test_structures_come_from_the_folder_of_anatomies(tmp_path, small, anatomy_orientation):
    write_brats(tmp_path / "source", [1])
    labels = phantom(1)[1]
    structures = np.where(labels > 0, 2, 0).astype(np.uint8)
    structures[:, :, 12:] = np.where(structures[:, :, 12:] > 0, 7, 0)
    structures[4] = 0  # brain without a structure
    anatomy = reoriented(Volume(structures, PLACE), anatomy_orientation)
    write_nifti(tmp_path / "anatomy" / "case1_anatomy.nii.gz", anatomy)
    assert make([tmp_path / "source"], tmp_path / "out", "anatomy", anatomy=tmp_path / "anatomy") == {"case1": None}
    found = np.bincount(read_volume(tmp_path / "out/labelsTr/case1.nii.gz").array.ravel(), minlength=22)
    for value, twin in ((1, 19), (2, 20), (3, 21)):
        assert found[twin] == (labels == value).sum()
    rest = labels == 4
    assert found[18] == (rest & (structures == 0)).sum()
    assert found[2] == (rest & (structures == 2)).sum() and found[7] == (rest & (structures == 7)).sum()


def test_a_case_without_a_tumor_is_learned_from_if_its_mask_says_so(tmp_path, small):
    write_brats(tmp_path / "source", [1, 2])
    save(tmp_path / "source" / "case1" / "case1_seg.nii.gz", np.zeros(SHAPE, np.uint8))
    (tmp_path / "source" / "case2" / "case2_seg.nii.gz").unlink()
    problems = make([tmp_path / "source"], tmp_path / "out")
    assert problems["case1"] is None
    assert "case2_t1.nii.gz exists, but its mask" in problems["case2"] and "case2_seg.nii.gz" in problems["case2"]
    labels = read_volume(tmp_path / "out" / "labelsTr" / "case1.nii.gz").array
    assert (labels == 4).sum() == (phantom(1)[1] > 0).sum() and set(np.unique(labels)) == {0, 4}


def test_fewer_modalities_can_be_taken(tmp_path, small):
    write_brats(tmp_path / "source", [1])
    (tmp_path / "source" / "case1" / "case1_flair.nii.gz").unlink()
    cases = find_cases([tmp_path / "source"], BRATS, ("t2", "t1"))
    [report] = write_dataset(cases, tmp_path / "out", DatasetSettings("brats", ("t2", "t1")))
    assert report.problem is None
    assert len(read_dataset(tmp_path / "out", ["t2", "t1"])) == 1


def in_the_wild(root: Path, layout: str) -> None:
    """The case 1 of the phantoms as public data sets name and store it."""
    images, labels = phantom(1)
    seg = renumbered(labels, RAW_2023 if layout == "GLI" else {1: 2, 2: 1, 3: 3} if layout == "MSD" else RAW_2021)
    if layout == "UPENN":
        folder, stem = root / "case1", "UPENN-GBM-00001_11"
        names = {"t1": "T1", "t1ce": "T1GD", "t2": "T2", "flair": "FLAIR"}
        for modality, name in names.items():
            save(folder / f"{stem}_{name}.nii.gz", images[modality])
            save(folder / f"{stem}_{name}_unstripped.nii.gz", images[modality] + 1)
        save(folder / f"{stem}_automated_approx_segm.nii.gz", seg)
    elif layout == "UPENN, by folders":
        stem = "UPENN-GBM-00001_11"
        for modality, name in {"t1": "T1", "t1ce": "T1GD", "t2": "T2", "flair": "FLAIR"}.items():
            save(root / "images_structural" / stem / f"{stem}_{name}.nii.gz", images[modality])
            unstripped = root / "images_structural_unstripped" / stem / f"{stem}_{name}_unstripped.nii.gz"
            save(unstripped, images[modality] + 1)
        save(root / "images_segm" / f"{stem}_segm.nii.gz", seg)
        save(root / "automated_segm" / f"{stem}_automated_approx_segm.nii.gz", np.where(seg, 2, 0).astype(seg.dtype))
    elif layout == "UCSF":
        for modality, name in {"t1": "T1", "t1ce": "T1c", "t2": "T2", "flair": "FLAIR"}.items():
            save(root / "UCSF-PDGM-0004_nifti" / f"UCSF-PDGM-0004_{name}_bias.nii.gz", images[modality])
        save(root / "UCSF-PDGM-0004_nifti" / "UCSF-PDGM-0004_tumor_segmentation.nii.gz", seg)
    elif layout == "TCGA":
        for modality, name in {"t1": "t1", "t1ce": "t1Gd", "t2": "t2", "flair": "flair"}.items():
            save(root / "TCGA-02-0006" / f"TCGA-02-0006_1996.08.23_{name}.nii.gz", images[modality])
        save(root / "TCGA-02-0006" / "TCGA-02-0006_1996.08.23_GlistrBoost_ManuallyCorrected.nii.gz", seg)
        automatic = np.where(seg, 2, 0).astype(seg.dtype)
        save(root / "TCGA-02-0006" / "TCGA-02-0006_1996.08.23_GlistrBoost.nii.gz", automatic)
    elif layout == "Kaggle":
        for modality in (*MODALITIES, "seg"):
            inner = root / "BraTS20_Training_001" / f"BraTS20_Training_001_{modality}.nii" / f"0000005_{modality}_x.nii"
            save(inner, seg if modality == "seg" else images[modality])
    elif layout == "BraTS 2015":
        folder = root / "BRATS2015_Training" / "HGG" / "brats_2013_pat0001_1"
        names = {"t1": "MR_T1", "t1ce": "MR_T1c", "t2": "MR_T2", "flair": "MR_Flair"}
        for number, (modality, name) in enumerate([*names.items(), ("seg", "OT")]):
            stem = f"VSD.Brain{'_3more' if name == 'OT' else ''}.XX.O.{name}.{54512 + number}"
            (folder / stem).mkdir(parents=True)
            image = itk_image(seg if modality == "seg" else images[modality], PLACE)
            SimpleITK.WriteImage(image, str(folder / stem / f"{stem}.mha"), True)
    else:
        four = np.stack([images[name] for name in ("flair", "t1", "t1ce", "t2")], axis=-1)
        (root / "imagesTr").mkdir(parents=True)
        array = four.transpose(2, 1, 0, 3)
        nibabel.save(nibabel.Nifti1Image(array, PLACE.ijk_to_ras), root / "imagesTr" / "BRATS_001.nii.gz")
        save(root / "labelsTr" / "BRATS_001.nii.gz", seg)
        modality = {"0": "FLAIR", "1": "T1w", "2": "t1gd", "3": "T2w"}
        labels = {"0": "background", "1": "edema", "2": "non-enhancing tumor", "3": "enhancing tumour"}
        (root / "dataset.json").write_text(json.dumps({"modality": modality, "labels": labels}))


@pytest.mark.parametrize("layout", ["UPENN", "UPENN, by folders", "UCSF", "TCGA", "Kaggle", "BraTS 2015", "MSD"])
def test_public_data_sets_are_read_as_they_are_unpacked(tmp_path, small, layout):
    in_the_wild(tmp_path / "source", layout)
    write_brats(tmp_path / "same", [1])
    (problem,) = make([tmp_path / "source"], tmp_path / "one").values()
    assert problem is None
    make([tmp_path / "same"], tmp_path / "two")
    read, expected = contents(tmp_path / "one"), contents(tmp_path / "two")
    assert len(read) == len(expected) == 5
    for (_, one), (_, two) in zip(sorted(read.items()), sorted(expected.items()), strict=True):
        np.testing.assert_allclose(one[0], two[0], atol=1e-3)
        np.testing.assert_allclose(one[1], two[1], atol=1e-3)


@pytest.mark.parametrize("apart, problem", [(0.02, None), (0.09, None), (0.2, "do not lie on one grid")])
def test_headers_that_were_rounded_are_of_one_grid(tmp_path, small, apart, problem):
    write_brats(tmp_path / "source", [1])
    path = tmp_path / "source" / "case1" / "case1_seg.nii.gz"
    moved = Geometry(PLACE.size, PLACE.ijk_to_ras + np.outer([1, 0, 0, 0], [0, 0, 0, 6 * apart]))
    save(path, read_volume(path).array, moved)
    (found,) = make([tmp_path / "source"], tmp_path / "out").values()
    assert found is None if problem is None else problem in str(found)


def test_a_resection_cavity_does_not_become_brain(tmp_path, small):
    """BraTS 2024: 4 is what the surgeon left."""
    write_brats(tmp_path / "source", [1], values=RAW_2023)
    folder = tmp_path / "source" / "case1"
    path = folder / "case1_seg.nii.gz"
    array = read_volume(path).array
    array[7:9, 7:9, 4:6] = 4
    save(path, array)
    assert "resection cavity" in str(make([tmp_path / "source"], tmp_path / "out")["case1"])
    for file in list(folder.iterdir()):
        file.rename(folder / file.name.replace("case1_", "BraTS-GLI-00005-100_"))
    (problem,) = make([tmp_path / "source"], tmp_path / "named").values()
    assert "holds resection cavity (4, 1.73 ml), for which" in str(problem)


# Values ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("large", "value"), [(False, 3), (True, 4)])
def test_a_label_4_is_recognized_by_its_size_where_3_is_absent(tmp_path, monkeypatch, large, value):
    """4 is the rest of the brain in Med-DDPM's files and the enhancing tumor in BraTS's."""
    grid = replace(SMALL, spacing=(9.0,) * 3)
    monkeypatch.setitem(STANDARDS, "brats", Standard(grid, MODALITIES, True))
    images, labels = phantom()
    if large:
        labels[labels == 3] = 1
    seg = labels if large else renumbered(labels, RAW_2021)
    place = Geometry(SHAPE[::-1], np.diag([-9.0, -9.0, 9.0, 1.0]))  # so large that a brain is more than a tumor
    for modality in MODALITIES:
        save(tmp_path / "source" / modality / f"a_{modality}.nii.gz", images[modality], place)
    save(tmp_path / "source" / "seg" / "a_seg.nii.gz", seg, place)
    assert make([tmp_path / "source"], tmp_path / "out") == {"a": None}
    found = read_volume(tmp_path / "out" / "labelsTr" / "a.nii.gz").array
    assert (found == value).sum() == (seg == 4).sum()


def test_a_numbering_can_be_named_where_values_do_not_tell(tmp_path, small):
    write_brats(tmp_path / "source", [1], values={1: 4, 2: 4, 3: 4})
    assert "choose the label convention" in make([tmp_path / "source"], tmp_path / "out")["case1"]
    assert make([tmp_path / "source"], tmp_path / "out", numbering="brats") == {"case1": None}
    labels = read_volume(tmp_path / "out" / "labelsTr" / "case1.nii.gz").array
    assert (labels == 3).sum() == (phantom(1)[1] % 4 > 0).sum()


def test_ringing_below_the_background_is_not_brain_but_a_brain_scaled_to_mean_0_is(tmp_path):
    images, labels = phantom()
    ringing = images["t1"].copy()
    ringing[1, 1, 1:4] = -5
    standardized = np.where(labels > 0, images["t1"].astype(np.float32) - images["t1"][labels > 0].mean(), 0)
    for array in (ringing, standardized):
        composed = compose_anatomy(Volume(np.zeros(SHAPE, np.uint8), PLACE), [Volume(array, PLACE)], None)
        assert np.array_equal(composed.array > 0, labels > 0)
        assert set(np.unique(composed.array)) == {0, 18}


def test_composing_needs_one_grid_and_a_background():
    def volume(size):
        return Volume(np.ones((size,) * 3, np.uint8), Geometry((size,) * 3, np.eye(4)))

    with pytest.raises(MedDPMError, match="not on the same grid"):
        compose_anatomy(volume(8), [volume(9)], None)
    noise = Volume(np.random.default_rng(0).normal(size=SHAPE), PLACE)
    with pytest.raises(MedDPMError, match="image 1 of 1 has no empty background"):
        compose_anatomy(Volume(np.ones(SHAPE, np.uint8), PLACE), [noise], None)


# Intensities -----------------------------------------------------------------------------------------


def test_normalizing_maps_the_brains_percentiles():
    array = np.zeros((10, 10, 11), np.float32)
    brain = np.zeros(array.shape, bool)
    brain[:, :, 1:] = True
    array[brain] = np.arange(1000) + 5000
    scaled = normalize(Volume(array, Geometry((11, 10, 10), np.eye(4))), brain).array
    assert (scaled[~brain] == -1).all()
    assert abs(scaled[brain].mean()) < 1e-3 and scaled.max() == 1
    with pytest.raises(MedDPMError, match="constant"):
        normalize(Volume(np.ones_like(array), Geometry((11, 10, 10), np.eye(4))), brain)


@settings(max_examples=30, deadline=None)
@given(st.sampled_from(NORMALIZATIONS), st.floats(0.01, 1e4), st.floats(-1e4, 1e4), st.integers(0, 9))
def test_intensities_do_not_depend_on_the_scanner_s_unit(method, factor, offset, seed):
    """Whatever the scale and offset, the result is the same, from -1 to 1."""
    images, labels = phantom(seed)
    image = images["t1"].astype(np.float64)
    one, other = (
        normalize_onto(Volume(array, PLACE), labels > 0, PLACE, method).array
        for array in (image, image * factor + offset)
    )
    np.testing.assert_allclose(one, other, atol=2e-3)
    assert one.dtype == np.float32 and one.min() == -1 and one.max() == 1


def test_per_slice_is_the_minimum_and_maximum_of_each_slice_along_z():
    images, labels = phantom()
    image = images["t2"].astype(np.float32) + 7
    found = normalize_onto(Volume(image, PLACE), labels > 0, PLACE, "per-slice").array
    for k, section in enumerate(image):
        span = section.max() - section.min()
        expected = 2 * (section - section.min()) / span - 1 if span else np.full_like(section, -1)
        np.testing.assert_allclose(found[k], expected, atol=1e-6)
    with pytest.raises(MedDPMError, match="constant"):
        normalize_onto(Volume(np.ones_like(image), PLACE), labels > 0, PLACE, "per-slice")


# Geometry --------------------------------------------------------------------------------------------

ORIENTATIONS = [
    "".join(letters) for axes in itertools.permutations(["RL", "AP", "SI"]) for letters in itertools.product(*axes)
]


def prepared(images: dict[str, Volume], labels: Volume, folder: Path, grid: Grid = SMALL):
    folder.mkdir(parents=True, exist_ok=True)
    for modality, image in images.items():
        write_nifti(folder / f"a_{modality}.nii", image)
    write_nifti(folder / "a_seg.nii", labels)
    modalities = tuple(images)
    [case] = find_cases([folder], BRATS, modalities)
    return prepare_case(
        case, Standard(grid, modalities, True), BRATS, anatomy=None, numbering=None, normalization="percentiles"
    )


def test_every_orientation_gives_the_same_case(tmp_path):
    """A file stores its axes in any order and direction: the dataset is the same, bit by bit."""
    images, labels = phantom()
    volumes = {modality: Volume(images[modality], PLACE) for modality in ("t1", "flair")}
    mask = Volume(labels, PLACE)
    first = prepared(volumes, mask, tmp_path)
    assert len(ORIENTATIONS) == 48
    for orientation in ORIENTATIONS:
        turned = {modality: reoriented(volume, orientation) for modality, volume in volumes.items()}
        assert turned["t1"].geometry.orientation == orientation
        found = prepared(turned, reoriented(mask, orientation), tmp_path)
        assert np.array_equal(found.labels.array, first.labels.array), orientation
        np.testing.assert_allclose(found.labels.geometry.ijk_to_ras, first.labels.geometry.ijk_to_ras, atol=1e-4)
        for modality in volumes:
            assert np.array_equal(found.images[modality].array, first.images[modality].array), orientation


@pytest.mark.parametrize("orientation", ORIENTATIONS)
def test_turning_axes_leaves_every_voxel_in_its_place(orientation):
    """Against resampling at the turned geometry, which knows positions only."""
    rng = np.random.default_rng(0)
    matrix = PLACE.ijk_to_ras @ np.diag([1, 1, 1.5, 1])
    volume = Volume(rng.integers(0, 200, SHAPE).astype(np.uint8), Geometry(PLACE.size, matrix))
    turned = reoriented(volume, orientation)
    assert turned.geometry.orientation == orientation
    again = resample_labels(volume, turned.geometry, range(1, 200))
    assert np.array_equal(turned.array, again.array)
    assert np.array_equal(reoriented(turned, "LPS").array, volume.array)


@pytest.mark.parametrize(("spacing", "tilt"), [((3.0, 3.0, 3.0), 0.0), ((2.0, 4.0, 9.0), 0.0), ((6.0, 6.0, 6.0), 0.3)])
def test_nothing_is_stretched(tmp_path, spacing, tilt):
    """A ball stays a ball of its size, at its place, whatever the spacing and the tilt of the scan."""
    turn = np.array([[np.cos(tilt), -np.sin(tilt), 0], [np.sin(tilt), np.cos(tilt), 0], [0, 0, 1]])
    matrix = np.eye(4)
    matrix[:3, :3] = turn @ np.diag(spacing)
    size = tuple(int(round(170 / s)) for s in spacing)
    matrix[:3, 3] = [11, -7, 5] - matrix[:3, :3] @ ((np.array(size) - 1) / 2)
    geometry = Geometry(size, matrix)
    ijk = np.stack(np.meshgrid(*[np.arange(n) for n in size], indexing="ij"), -1)
    distance = np.linalg.norm(geometry.to_ras(ijk) - [11, -7, 5], axis=-1).T
    labels = np.where(distance < 55, 4, 0).astype(np.uint8)
    labels[distance < 20] = 3
    image = np.where(labels > 0, 100 + 10 * np.cos(distance / 7), 0).astype(np.float32)
    found = prepared(
        {"t1": Volume(image, geometry)}, Volume(labels, geometry), tmp_path, replace(SMALL, size=(30, 30, 30))
    )
    where = found.labels.geometry
    ras = where.to_ras(np.argwhere(found.labels.array > 0)[:, ::-1])
    np.testing.assert_allclose(ras.mean(axis=0), [11, -7, 5], atol=1.0)
    # The variance of a ball along each axis is a fifth of its radius squared.
    np.testing.assert_allclose(np.sqrt(5 * ras.var(axis=0)), 55, rtol=0.03)
    assert where.orientation == "LPS" and np.allclose(where.spacing, 6)
    expected = resample_image(Volume(image, geometry), where, fill=0).array
    inside = resample_image(Volume((distance < 48).astype(np.float32), geometry), where, fill=0).array == 1
    assert np.corrcoef(expected[inside], found.images["t1"].array[inside])[0, 1] > 0.98


# Real data -------------------------------------------------------------------------------------------


@needs_data
def test_med_ddpm_s_own_files_come_out_as_they_are(tmp_path):
    """Their BraTS images were scaled from minimum to maximum, volume by volume, and lie on the grid already."""
    source = SHARED / "med_ddpm"
    cases = [case for case in find_cases([source], BRATS, MODALITIES) if not case.problem]
    assert [case.name for case in cases] == ["BraTS2021_01306"]
    found = prepare_case(cases[0], STANDARDS["brats"], BRATS, anatomy=None, numbering=None, normalization="per-volume")
    original = read_volume(cases[0].segmentation)
    assert np.array_equal(found.labels.array, original.array)
    assert found.labels.geometry.is_close(original.geometry)
    for modality, path in cases[0].images.items():
        np.testing.assert_allclose(found.images[modality].array, read_volume(path).array, atol=1e-6)


@needs_data
def test_the_rest_of_the_brain_is_found_as_med_ddpm_has_it(tmp_path):
    """Label 4 taken away and filled from the images again is what it was."""
    [case] = [case for case in find_cases([SHARED / "med_ddpm"], BRATS, MODALITIES) if not case.problem]
    original = read_volume(case.segmentation)
    tumor = np.where(original.array == 4, 0, original.array).astype(np.uint8)
    write_nifti(tmp_path / case.segmentation.name, Volume(tumor, original.geometry))
    found = prepare_case(
        replace(case, segmentation=tmp_path / case.segmentation.name),
        STANDARDS["brats"],
        BRATS,
        anatomy=None,
        numbering=None,
        normalization="percentiles",
    )
    again = resample_labels(found.labels, original.geometry, BRATS.values)
    assert np.array_equal(again.array, original.array)


@needs_data
def test_masks_alone_are_no_source():
    with pytest.raises(MedDPMError, match="masks without images .anatomy_01.nii.gz is a map of labels"):
        find_cases([SHARED / "anatomies"], ANATOMY, MODALITIES)
