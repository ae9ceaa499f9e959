"""How a study blinds its cases: nothing but what they show is left."""

from __future__ import annotations

import os
import secrets

import nibabel
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from study_cases import (
    PASSPHRASE,
    SPACING,
    affine,
    brain,
    hand_out,
    small_plan,
    write_real,
    write_synthetic,
)

from MedDPMLib.errors import MedDPMError
from MedDPMLib.imaging.io import read_volume
from MedDPMLib.study import blinding
from MedDPMLib.study.create import create
from MedDPMLib.study.definition import CASES, Sessions, read_definition
from MedDPMLib.study.order import SINGLE
from MedDPMLib.study.truth import read_truth

# Nothing tells the answer ----------------------------------------------------------------------------


def prepared(*paths, **changes):
    cases = {str(number): {"t1": path} for number, path in enumerate(paths)}
    form = blinding.common_form(cases, **({"levels": 256, "smoothing": 0.0, "spacing": None} | changes))
    return [blinding.prepare(name, files, form)["t1"] for name, files in cases.items()], form


@given(
    seed=st.integers(0, 1000),
    axes=st.sampled_from(["RAS", "LPS", "LAS", "RPI", "LPI"]),
    kind=st.sampled_from([np.int16, np.uint16, np.int32, np.float32, np.float64]),
    slope=st.sampled_from([0.5, 1.0, 0.0173, 3.7]),
    intercept=st.sampled_from([0.0, -1024.0, 11.25]),
    spacing=st.sampled_from([None, 4.5]),
)
@settings(max_examples=10, deadline=None)
def test_the_same_image_as_real_and_as_synthetic_leaves_as_the_same_bytes(
    tmp_path_factory, seed, axes, kind, slope, intercept, spacing
):
    folder = tmp_path_factory.mktemp("same")
    image = brain(seed)
    turned = image[tuple(slice(None, None, -1 if a != b else 1) for a, b in zip(axes[::-1], "SPL", strict=True))]
    file = nibabel.Nifti1Image(turned.astype(kind).T, affine(axes, (13.0, -40.5, 7.0)))
    if np.issubdtype(kind, np.integer):
        file.header.set_slope_inter(slope, intercept)
    else:
        file = nibabel.Nifti1Image((turned * slope + intercept).astype(kind).T, file.affine)
    file.header["descrip"] = b"scanner 7"
    nibabel.save(file, folder / "real.nii.gz")
    (real, synthetic), _ = prepared(
        folder / "real.nii.gz", write_synthetic(folder / "s.nii.gz", image), smoothing=0.0, spacing=spacing
    )
    assert real.tobytes() == synthetic.tobytes() and len(np.unique(real)) > 100


def test_one_image_of_either_class_makes_two_files_of_the_same_bytes_in_a_study(tmp_path):
    plan = small_plan(tmp_path)
    image = brain(77)
    write_real(plan.real["r3"]["t1"], image)
    write_synthetic(plan.synthetic["model"]["s2"]["t1"], image)
    create(tmp_path / "study", plan, PASSPHRASE)
    truth = read_truth(tmp_path / "study", PASSPHRASE, read_definition(tmp_path / "study").hash)["cases"]
    twins = [case for case, known in truth.items() if known["name"] in ("r3", "s2")]
    assert sorted(truth[case]["synthetic"] for case in twins) == [0, 1]
    first, second = ((tmp_path / "study" / CASES / case / "t1.nrrd").read_bytes() for case in twins)
    assert first == second
    files = list((tmp_path / "study" / CASES).rglob("*.nrrd"))
    assert len(files) == 12 and len({path.stat().st_size for path in files}) == 1
    assert len({path.stat().st_mtime for path in files}) == 1
    assert len({path.read_bytes() for path in files}) == 11


def ripple(histogram: np.ndarray, width: int) -> float:
    """How much counts differ from the mean of their neighbors."""
    smooth = np.convolve(histogram, np.ones(width) / width, "same")
    return float(np.median(np.abs(histogram - smooth)[10:-10] / np.maximum(smooth, 1)[10:-10]))


def features(task, number: int) -> np.ndarray:
    """Everything about a case that a reader's computer could find without looking at the anatomy."""
    definition = task.definition
    shown = [one for one in task.presentations if not one.training and one.kind == SINGLE]
    case = sorted({one.cases[0] for one in shown})[number]
    path = task.case_file(case, "t1")
    raw, array = path.read_bytes(), read_volume(path).array
    histogram = np.bincount(array.ravel(), minlength=definition.preparation.levels)[1:]
    faces = np.concatenate([array.take(end, axis).ravel() for axis in range(3) for end in (0, -1)])
    return np.concatenate(
        [
            [len(raw), path.stat().st_mtime, len(np.unique(array)), (histogram == 0).sum()],
            list(raw[:300]),
            [histogram[0::2].sum() / histogram.sum(), histogram[0::3].sum() / histogram.sum()],  # combs
            [ripple(histogram, width) for width in (3, 5, 9)],
            histogram[[0, 1, 2, -3, -2, -1]] / histogram.sum(),
            [faces.max(), faces.mean(), (array == 0).mean()],
            [next(one.number for one in shown if one.cases == (case,)), int(case[0], 16), int(case[-1], 16)],
        ]
    )


def guessed_right(table: np.ndarray, truth: np.ndarray) -> int:
    """Cases that a classifier guesses right that has not seen them."""
    from sklearn.ensemble import RandomForestClassifier
    from sklearn.model_selection import StratifiedKFold, cross_val_predict

    forest = RandomForestClassifier(100, random_state=0)
    folds = StratifiedKFold(5, shuffle=True, random_state=0)
    return int((cross_val_predict(forest, table, truth, cv=folds) == truth).sum())


def test_a_classifier_learns_nothing_from_what_is_not_anatomy(tmp_path, monkeypatch):
    from scipy.stats import binomtest

    names = np.random.default_rng(8)
    monkeypatch.setattr(secrets, "token_hex", lambda n: names.bytes(n).hex())
    monkeypatch.setattr(secrets.SystemRandom, "shuffle", lambda self, items: names.shuffle(items))
    plan = small_plan(tmp_path, real=24, synthetic=24, readers=("Ada",), sessions=Sessions(training=0, repeats=0))
    for seed, files in enumerate(plan.real.values()):  # in few levels, and rescaled between whole numbers
        write_real(files["t1"], np.rint(np.rint(brain(seed, fine=True) / 2.3) * 1.37).astype(np.int16))
    for seed, files in enumerate(plan.synthetic["model"].values()):
        write_synthetic(files["t1"], brain(100 + seed, fine=True))
    create(tmp_path / "study", plan, PASSPHRASE)
    study = tmp_path / "study"
    task = hand_out(study, tmp_path / "out")[0]
    truth_of = read_truth(study, PASSPHRASE, task.definition.hash)["cases"]
    cases = sorted(truth_of)
    truth = np.array([truth_of[case]["synthetic"] for case in cases])
    right = guessed_right(np.array([features(task, number) for number in range(48)]), truth)
    assert binomtest(right, 48, 0.5).pvalue > 0.05, right
    # The same classifier on the files as they came.
    paths = [truth_of[case]["files"]["t1"] for case in cases]
    raw = []
    for path in paths:
        image = nibabel.load(path)
        levels, size = np.unique(np.asarray(image.dataobj)), os.path.getsize(path)
        raw.append([size, len(levels), levels[0], levels[-1], *image.affine.ravel(), image.get_data_dtype().itemsize])
    assert guessed_right(np.array(raw), truth) == 48


def test_coarse_gray_levels_leave_no_gaps(tmp_path):
    """An image of 85 levels beside one of floats: the histogram has no comb."""
    write_real(tmp_path / "a.nii.gz", (brain(1) // 3).astype(np.int16))
    write_synthetic(tmp_path / "b.nii.gz", brain(2, fine=True))
    (first, second), _ = prepared(tmp_path / "a.nii.gz", tmp_path / "b.nii.gz")
    ripples = [ripple(np.bincount(one[one > 0], minlength=256), 5) for one in (first, second)]
    assert max(ripples) < 0.05
    gaps = [np.count_nonzero(np.bincount(one.ravel(), minlength=256)[20:200] == 0) for one in (first, second)]
    assert gaps == [0, 0]
    coarser = write_real(tmp_path / "c.nii.gz", (brain(1) // 60).astype(np.int16))
    with pytest.raises(MedDPMError, match="gray levels"):
        prepared(coarser, tmp_path / "b.nii.gz")


def test_noise_in_a_synthetic_background_becomes_exactly_nothing(tmp_path):
    image = brain(5)
    noisy = image / 400 * 2 - 1 + 0.004 * np.random.default_rng(0).standard_normal(image.shape)
    nibabel.save(nibabel.Nifti1Image(noisy.astype(np.float32).T, affine("LPS")), tmp_path / "n.nii.gz")
    (found, clean), _ = prepared(tmp_path / "n.nii.gz", write_real(tmp_path / "c.nii.gz", image))
    differ = (found > 0) != (clean > 0)
    assert differ.mean() < 0.002 and (found == 0).mean() > 0.5
    assert found.min() == 0 and found.max() == 255


def test_the_brain_lies_in_the_middle_and_keeps_its_size(tmp_path):
    image = np.roll(brain(3), (2, -1, 1), (0, 1, 2))
    (found,), form = prepared(write_real(tmp_path / "a.nii.gz", image))
    np.testing.assert_allclose(form.grid.spacing, SPACING)
    first, last = np.array([[np.flatnonzero(found.any(axis=a))[[0, -1]]] for a in ((1, 2), (0, 2), (0, 1))])[:, 0].T
    np.testing.assert_array_less(np.abs(first + last + 1 - np.array(found.shape)), 2)
    assert abs(np.count_nonzero(found) - np.count_nonzero(image)) < 0.05 * np.count_nonzero(image)
    # Up is up, left is left: the same voxels, moved by whole voxels only.
    assert np.corrcoef(found[found > 0][:500], _shifted_like(image, found)[found > 0][:500])[0, 1] > 0.99


def _shifted_like(image, found):
    (k, j, i), (k2, j2, i2) = (np.array([np.flatnonzero(a.any(axis=x))[0] for x in ((1, 2), (0, 2), (0, 1))])
                               for a in (found, blinding._brain(image.astype(np.int32), "")))  # fmt: skip
    result = np.zeros(found.shape)
    part = image[k2:, j2:, i2:][: found.shape[0] - k, : found.shape[1] - j, : found.shape[2] - i]
    result[k : k + part.shape[0], j : j + part.shape[1], i : i + part.shape[2]] = part
    return result


def test_smoothing_makes_sharp_and_soft_alike(tmp_path):
    from scipy import ndimage

    rng = np.random.default_rng(0)
    inside = brain(1) > 0
    sharp = np.where(inside, 200 + 50 * rng.standard_normal(inside.shape), 0)
    soft = ndimage.gaussian_filter(rng.standard_normal(inside.shape), 0.6)
    soft = np.where(inside, 200 + 50 * soft / soft.std(), 0)
    for name, image in (("sharp", sharp), ("soft", soft)):
        nibabel.save(nibabel.Nifti1Image(image.astype(np.float32).T, affine()), tmp_path / f"{name}.nii.gz")
    widths = []
    for smoothing in (0.0, 2.5 * SPACING):
        images, _ = prepared(tmp_path / "sharp.nii.gz", tmp_path / "soft.nii.gz", smoothing=smoothing)
        widths.append([blinding.smoothness(image, SPACING) for image in images])
    assert widths[0][1] > 1.3 * widths[0][0] and widths[1][1] < 1.2 * widths[1][0]


@pytest.mark.parametrize(
    ("image", "said"),
    [
        (np.zeros((20, 20, 20), np.int16), "is empty"),
        (np.random.default_rng(0).integers(0, 400, (20, 20, 20)).astype(np.int16), "shows no brain"),
    ],
)
def test_what_shows_no_brain_is_refused_by_name(tmp_path, image, said):
    with pytest.raises(MedDPMError, match=said) as caught:
        prepared(write_real(tmp_path / "odd.nii.gz", image))
    assert "odd.nii.gz" in str(caught.value)
