"""From a scan to a mask: geometry, intensities, what is refused, the files."""

from __future__ import annotations

import csv
import itertools
import json

import numpy as np
import pytest
from conftest import COARSE, LEVELS, head_phantom, plain_scheme, small_segmenter_card, write_small_segmenter

from MedDPMLib.errors import MedDPMError
from MedDPMLib.imaging.geometry import Geometry
from MedDPMLib.imaging.io import read_volume, write_nifti
from MedDPMLib.imaging.resample import resample_classes, resample_labels
from MedDPMLib.imaging.volume import Volume
from MedDPMLib.masks.seg_nrrd import read_segments
from MedDPMLib.metrics.overlap import dice_by_label
from MedDPMLib.runtime.device import choose_execution
from MedDPMLib.segmentation.segmenter import Segmenter, load_segmenter

CPU = choose_execution("cpu", "float32")
PRESENT = [value for value in LEVELS if value]


@pytest.fixture(scope="module")
def segmenter(small_segmenter):
    return load_segmenter(small_segmenter)


@pytest.fixture(scope="module")
def phantom():
    return head_phantom()


def segment(segmenter, scan, **options):
    return segmenter.segment({None: scan}, execution=CPU, **options)


def reoriented(volume, axes, flips):
    """The same volume with its array axes permuted and flipped, and a matrix that says so."""
    array = volume.array.transpose(axes)
    matrix = np.eye(4)
    columns = volume.geometry.ijk_to_ras
    order = [2 - axes[2 - n] for n in range(3)]  # for each new i, j, k the old one
    matrix[:3, :3] = columns[:3, order]
    matrix[:3, 3] = columns[:3, 3]
    for n, flip in enumerate(flips):
        if flip:
            array = np.flip(array, axis=2 - n)
            matrix[:3, 3] += matrix[:3, n] * (array.shape[2 - n] - 1)
            matrix[:3, n] *= -1
    return Volume(np.ascontiguousarray(array), Geometry(array.shape[::-1], matrix))


# Geometry --------------------------------------------------------------------------------------------


def test_every_voxel_gets_the_label_of_its_intensity(segmenter, phantom):
    scan, truth = phantom
    assert np.array_equal(segment(segmenter, scan).labels.array, truth.array)


def test_all_48_orientations_give_the_same_mask(tmp_path):
    scan, truth = head_phantom((8.0, 8.0, 8.0))
    segmenter = load_segmenter(write_small_segmenter(tmp_path / "s.safetensors", small_segmenter_card(spacing=8.0)))
    for axes in itertools.permutations(range(3)):
        for flips in itertools.product((False, True), repeat=3):
            turned, expected = reoriented(scan, axes, flips), reoriented(truth, axes, flips)
            found = segment(segmenter, turned).labels
            assert np.array_equal(found.array, expected.array), (axes, flips)
            assert found.geometry.is_close(turned.geometry)


@pytest.mark.parametrize("spacing", [(2.0, 2.0, 6.0), (4.0, 4.0, 4.0), (3.0, 7.0, 3.0), (6.5, 5.0, 4.0)])
def test_other_voxels_and_oblique_axes(segmenter, spacing):
    scan, truth = head_phantom(spacing)
    for degrees in (0.0, 17.0):
        turn = np.eye(4)
        a = np.deg2rad(degrees)
        turn[:3, :3] = [[np.cos(a), -np.sin(a), 0], [np.sin(a), np.cos(a), 0], [0, 0, 1]]
        geometry = Geometry(scan.geometry.size, turn @ scan.geometry.ijk_to_ras)
        found = segment(segmenter, Volume(scan.array, geometry)).labels
        assert found.geometry is geometry
        # Voxels on a border mix intensities, which are another label's in between.
        assert dice_by_label(found.array > 0, truth.array > 0, [True])[True] > 0.9
        assert dice_by_label(found.array, truth.array, [1])[1] > 0.85


def test_a_mirrored_scan_gives_the_mirrored_mask(phantom):
    """Whatever the network does: it sees each scan and its mirror image."""
    import torch

    from MedDPMLib.networks import build_network

    card = small_segmenter_card(network={"kind": "segmentation-unet", "channels": [16, 16, 8]})
    torch.manual_seed(1)
    segmenter = Segmenter(card, build_network(card.network_description), "")
    x = torch.rand(3, 16, 24, 32).numpy()
    shares = segmenter._classify([x], True, CPU, lambda done, total: None)
    others = segmenter._classify([x[..., ::-1].copy()], True, CPU, lambda done, total: None)
    assert len(np.unique(shares[0].argmax(axis=0))) > 3
    for share, other in zip(shares, others, strict=True):
        assert np.allclose(share[..., ::-1], other, atol=2e-3)


def test_classes_are_resampled_by_their_shares():
    """On the same voxels nothing changes; between two voxels the shares are their means; outside is background."""
    rng = np.random.default_rng(0)
    shares = (0.05 + 0.85 * rng.dirichlet([1, 1, 1], (6, 5, 4))).transpose(3, 0, 1, 2).astype(np.float32)
    source = Geometry((4, 5, 6), np.diag([2.0, 2.0, 2.0, 1.0]))
    labels, best = resample_classes(shares, [0, 7, 9], source, source)
    assert np.array_equal(labels, np.array([0, 7, 9])[shares.argmax(axis=0)]) and np.allclose(best, shares.max(axis=0))
    between = source.ijk_to_ras.copy()
    between[:3, 3] = [1.0, 0.0, 0.0]
    labels, best = resample_classes(shares, [0, 7, 9], source, Geometry((3, 5, 6), between))
    means = (shares[..., :-1] + shares[..., 1:]) / 2
    assert np.array_equal(labels, np.array([0, 7, 9])[means.argmax(axis=0)]) and np.allclose(best, means.max(axis=0))
    far = source.ijk_to_ras.copy()
    far[:3, 3] = [100.5, 0.0, 0.0]
    labels, best = resample_classes(shares, [0, 7, 9], source, Geometry((4, 5, 6), far))
    assert not labels.any() and (best == 1).all()


# Intensities -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "change",
    [lambda x: 7 * x + 40, lambda x: x.astype(np.int16), lambda x: x / 5000 - 1, lambda x: x.max() - x],
    ids=["scaled", "integers", "negative", "inverted"],
)
def test_scale_and_background_of_the_intensities_do_not_matter(segmenter, phantom, change):
    scan, truth = phantom
    found = segment(segmenter, Volume(change(scan.array), scan.geometry))
    assert np.array_equal(found.labels.array, truth.array)


def test_confidence_is_that_of_the_label_and_zero_outside(segmenter, phantom):
    scan, truth = phantom
    confidence = segment(segmenter, scan).confidence.array
    assert not confidence[truth.array == 0].any()
    assert 0.9 < confidence[truth.array > 0].min() <= confidence.max() <= 1.0001


def test_several_scans_of_a_patient_are_seen_together(segmenter, phantom):
    scan, truth = phantom
    found = segmenter.segment({"t1": scan, "t2": scan}, execution=CPU)
    assert np.array_equal(found.labels.array, truth.array)
    assert not any("no tumor" in note for note in found.notes)
    assert any("no tumor was looked for" in note for note in segment(segmenter, scan).notes)


# What is refused, and what is said -------------------------------------------------------------------


def _moved(scan, by):
    matrix = scan.geometry.ijk_to_ras.copy()
    matrix[:3, 3] += by
    return Volume(scan.array, Geometry(scan.geometry.size, matrix))


@pytest.mark.parametrize(
    "change, sentence",
    [
        (lambda scan: Volume(np.where(scan.array, scan.array, -1000), scan.geometry), "looks like a CT"),
        (lambda scan: Volume(np.zeros_like(scan.array), scan.geometry), "is empty"),
        (
            lambda scan: Volume(scan.array[18:22], scan.geometry.cut([0, 0, 18], [*scan.geometry.size[:2], 22])),
            "not a vol",
        ),
        (lambda scan: Volume(np.where(scan.array > 990, scan.array, 0), scan.geometry), "less than 100 ml"),
    ],
    ids=["CT", "stack of few slices", "empty", "hardly anything"],
)
def test_what_is_no_scan_of_a_brain_gets_a_sentence(segmenter, phantom, change, sentence):
    with pytest.raises(MedDPMError, match=sentence):
        segment(segmenter, change(phantom[0]), name="this scan")


def test_a_phantom_is_no_brain(phantom):
    """With the volumes that are plausible for each structure, as the real scheme has them."""
    from MedDPMLib.masks.schemes import load_scheme
    from MedDPMLib.segmentation.checks import doubts
    from MedDPMLib.segmentation.scan import examine

    scan, truth = phantom
    with pytest.raises(MedDPMError, match="no brain is found in it"):
        doubts("it", truth, np.ones(truth.array.shape), examine(scan, "it"), load_scheme("anatomy"))


def test_scans_of_different_spaces_are_refused(segmenter, phantom):
    scan = phantom[0]
    with pytest.raises(MedDPMError, match="does not lie where"):
        segmenter.segment({"t1": scan, "t2": _moved(scan, [90, 0, 0])}, execution=CPU)


def test_a_head_that_is_cut_off_is_segmented_with_a_warning(segmenter, phantom):
    scan, truth = phantom
    low, high = np.array([0, 0, 8]), np.array([*scan.geometry.size[:2], 30])
    part = Volume(scan.array[8:30].copy(), scan.geometry.cut(low, high))
    found = segment(segmenter, part, name="it")
    assert "the brain in it is cut off at the inferior and superior end of the scan" in found.notes
    assert np.mean(found.labels.array == truth.array[8:30]) > 0.99


def test_low_confidence_and_an_odd_size_are_said(segmenter):
    scan, truth = head_phantom()
    undecided = np.where(
        truth.array == 3, 100, np.where(truth.array == 8, 1000, 100 + 900 * (LEVELS[18] + LEVELS[1]) / 2)
    )
    gray = Volume(np.where(scan.array, undecided, 0).astype(np.float32), scan.geometry)
    assert any("the confidence in it is low" in note for note in segment(segmenter, gray, name="it").notes)
    small = Geometry(scan.geometry.size, scan.geometry.ijk_to_ras @ np.diag([0.8, 0.8, 0.8, 1]))
    assert any("unusual for an adult" in note for note in segment(segmenter, Volume(scan.array, small)).notes)


# Files -----------------------------------------------------------------------------------------------


def test_the_command_writes_a_mask_that_reads_back_and_resumes(meddpm, small_segmenter, phantom, tmp_path):
    scan, truth = phantom
    (tmp_path / "scans").mkdir()
    write_nifti(tmp_path / "scans" / "one.nii.gz", scan)
    write_nifti(tmp_path / "scans" / "two.nii.gz", _moved(scan, [0.5, 0, 0]))
    write_nifti(tmp_path / "scans" / "zero.nii.gz", Volume(np.zeros_like(scan.array), scan.geometry))
    command = ("segment", "scans", "--model", small_segmenter, "--out", "out", "--precision", "float32", "--confidence")
    done = meddpm(*command)
    assert done.returncode == 2 and "zero is empty" in done.stderr and "2 segmented, 1 scan could not" in done.stdout
    scheme = plain_scheme()
    found = read_segments(tmp_path / "out" / "one.seg.nrrd", scheme)
    assert np.array_equal(found.array, truth.array) and found.geometry.is_close(scan.geometry)
    rows = list(csv.DictReader((tmp_path / "out" / "one_volumes.csv").open()))
    assert [row["name"] for row in rows] == [label.name for label in scheme.labels]
    for row in rows:
        assert float(row["volume_mm3"]) == np.count_nonzero(truth.array == int(row["label"])) * COARSE**3
    sure = read_volume(tmp_path / "out" / "one_confidence.nii.gz")
    assert (sure.array[truth.array > 0] > 0.9).all()
    from PIL import Image

    assert Image.open(tmp_path / "out" / "one_qc.png").size[0] > 500
    again = meddpm(*command)
    assert "2 skipped, because finished before" in again.stdout
    (tmp_path / "out" / "one_segment.json").write_text("{")
    assert "1 segmented, 1 skipped" in meddpm(*command).stdout
    assert json.loads((tmp_path / "out" / "one_segment.json").read_text())["segmenter"]["name"] == "small-segmenter"


def test_nifti_and_named_modalities(meddpm, small_segmenter, phantom, tmp_path):
    scan, truth = phantom
    write_nifti(tmp_path / "a_t1.nii.gz", scan)
    write_nifti(tmp_path / "a_t2.nii.gz", scan)
    common = ("--model", small_segmenter, "--out", "out", "--format", "nifti", "--precision", "float32")
    done = meddpm("segment", "t1=a_t1.nii.gz", "t2=a_t2.nii.gz", *common)
    assert done.returncode == 0, done.stderr
    found = read_volume(tmp_path / "out" / "a_t1_seg.nii.gz")
    assert np.array_equal(resample_labels(found, scan.geometry, PRESENT).array, truth.array)
    assert meddpm("segment", "t1=a_t1.nii.gz", "t1=a_t2.nii.gz", *common).returncode == 2
    refused = meddpm("segment", "pd=a_t1.nii.gz", *common)
    assert refused.returncode == 2 and "names no modality" in refused.stderr


def test_voxels_that_are_no_boxes_are_written_as_nifti(meddpm, small_segmenter, phantom, tmp_path):
    scan = phantom[0]
    matrix = scan.geometry.ijk_to_ras.copy()
    matrix[:3, 1] += 0.3 * matrix[:3, 0]
    write_nifti(tmp_path / "sheared.nii.gz", Volume(scan.array, Geometry(scan.geometry.size, matrix)))
    command = ("segment", "sheared.nii.gz", "--model", small_segmenter, "--out", "out")
    refused = meddpm(*command)
    assert refused.returncode == 2 and "--format nifti" in refused.stderr
    assert meddpm(*command, "--format", "nifti").returncode == 0


# The model -------------------------------------------------------------------------------------------


def test_a_segmenter_is_no_generator(meddpm, small_segmenter, small_model, small_mask):
    from MedDPMLib.models.store import SEGMENTER, ModelStore

    assert meddpm("models", "import", small_segmenter).returncode == 0
    store = ModelStore()
    assert "small-segmenter" not in [entry.name for entry in store.list()]
    assert "small-segmenter" in [entry.name for entry in store.list(SEGMENTER)]
    assert "small-segmenter" in meddpm("models", "list").stdout
    assert "Sees no shapes" in meddpm("models", "show", "small-segmenter").stdout
    refused = meddpm("generate", small_mask, "--model", "small-segmenter", "--out", "out")
    assert refused.returncode == 2 and "is a segmenter" in refused.stderr
    other = meddpm("segment", small_mask, "--model", small_model, "--out", "out")
    assert other.returncode == 2 and "makes volumes from masks" in other.stderr
    assert meddpm("models", "remove", "small-segmenter").returncode == 0


def test_a_card_is_read_as_it_is_written():
    from MedDPMLib.models.segmenter_card import card_from_json

    card = small_segmenter_card(dice={"t1": {"Thalamus": 0.5}}, dice_cases=("another",))
    assert card_from_json(card.to_json()) == card
    newer = json.loads(card.to_json()) | {"kind": "painter"}
    with pytest.raises(MedDPMError, match="newer version"):
        card_from_json(json.dumps(newer))
    with pytest.raises(MedDPMError, match="was trained on"):
        small_segmenter_card(dice_cases=("known",))


# Accuracy --------------------------------------------------------------------------------------------


def test_dice_is_that_of_the_sets():
    rng = np.random.default_rng(0)
    first, second = rng.integers(0, 4, (2, 5, 6, 7))
    counted = rng.random((5, 6, 7)) < 0.7
    found = dice_by_label(first, second, range(5), counted)
    for value in range(4):
        a, b = (set(map(tuple, np.argwhere((one == value) & counted))) for one in (first, second))
        assert found[value] == pytest.approx(2 * len(a & b) / (len(a) + len(b)))
    assert np.isnan(found[4])


def test_accuracy_on_a_known_case(segmenter, phantom):
    from MedDPMLib.segmentation.accuracy import Known, means, measure, summary

    scan, truth = phantom
    case = Known("new", {"t1": scan, "t2": scan}, truth)
    found = means(measure(segmenter, [case], execution=CPU))
    assert set(found) == {"t1", "t2", "all"} and found["t1"] == found["all"]
    assert set(found["t1"].values()) == {1.0} and len(found["t1"]) == 3
    assert summary(found["t1"]) == (1.0, 1.0)
    moved = Known("new", {"t1": scan}, _moved(truth, [1, 0, 0]))
    with pytest.raises(MedDPMError, match="do not lie on the same voxels"):
        measure(segmenter, [moved], execution=CPU)
    with pytest.raises(MedDPMError, match="was trained on known"):
        measure(segmenter, [Known("known", {}, truth)], execution=CPU)
