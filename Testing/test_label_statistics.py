"""Mask fidelity and likeness: what the figures are, in cases where they are known."""

from __future__ import annotations

import itertools
import json

import numpy as np
import pytest
from conftest import small_card, small_geometry, small_labels, write_small_model
from hypothesis import example, given, settings
from hypothesis import strategies as st
from scipy.ndimage import gaussian_filter, uniform_filter

from MedDPMLib import generate, load_model
from MedDPMLib.errors import MedDPMError
from MedDPMLib.imaging.geometry import Geometry
from MedDPMLib.imaging.io import write_nifti
from MedDPMLib.imaging.volume import Volume
from MedDPMLib.masks.schemes import load_scheme
from MedDPMLib.metrics.label_statistics import average, compare_labels, mask_fidelity, paired_likeness
from MedDPMLib.metrics.similarity import bounding_box, gradient_energy, likeness, ms_ssim, scales, spread

SCHEME = load_scheme("anatomy")
GEOMETRY = Geometry((12, 11, 10), np.diag([1.0, 2.0, 3.0, 1.0]))


def case(seed: int) -> tuple[Volume, dict[str, Volume]]:
    """Labels, and images whose intensity each label decides but for noise."""
    rng = np.random.default_rng(seed)
    labels = rng.choice([0, 1, 2, 3, 18, 19], size=GEOMETRY.shape, p=[0.5, 0.15, 0.15, 0.1, 0.08, 0.02]).astype(
        np.uint8
    )
    images = {
        name: Volume((rng.uniform(0, 1000, 22)[labels] + rng.normal(0, 5, labels.shape)).astype(np.float32), GEOMETRY)
        for name in ("t1", "flair")
    }
    return Volume(labels, GEOMETRY), images


def test_an_image_is_faithful_to_itself():
    labels, images = case(0)
    result = mask_fidelity(images, images, labels, SCHEME)
    assert {(mean.modality, mean.label) for mean in result.means} == {
        (modality, SCHEME.label_by_value(value).name) for modality in images for value in (1, 2, 3, 18, 19)
    }
    assert all(mean.difference == 0 for mean in result.means)
    assert result.correlation == pytest.approx({"t1": 1.0, "flair": 1.0})
    for mean in result.means:
        assert mean.voxels == (labels.array == SCHEME.label_by_name(mean.label).value).sum()


@given(seed=st.integers(0, 10**6), gain=st.floats(0.01, 100), offset=st.floats(-1000, 1000))
@settings(max_examples=25, deadline=None)
def test_the_unit_of_a_scanner_does_not_matter(seed, gain, offset):
    labels, images = case(seed)
    scaled = {
        name: Volume(image.array * np.float32(gain) + np.float32(offset), GEOMETRY) for name, image in images.items()
    }
    for mean in mask_fidelity(scaled, images, labels, SCHEME).means:
        assert abs(mean.difference) < 2e-3


def test_means_and_correlation_by_hand():
    # A slab each, so that the percentiles fall on the outer labels' constant intensities.
    labels = np.zeros(GEOMETRY.shape, np.uint8)
    real, synthetic = np.zeros(GEOMETRY.shape, np.float32), np.full(GEOMETRY.shape, 77.0, np.float32)
    for value, a, b in ((1, 0.0, 10.0), (2, 25.0, 30.0), (3, 100.0, 50.0)):
        labels[value] = value
        real[value], synthetic[value] = a, b
    volumes = [{"t1": Volume(image, GEOMETRY)} for image in (synthetic, real)]
    result = mask_fidelity(*volumes, Volume(labels, GEOMETRY), SCHEME)
    assert [(mean.synthetic, mean.real) for mean in result.means] == [
        pytest.approx(pair) for pair in ((-1, -1), (0, -0.5), (1, 1))
    ]
    assert [mean.difference for mean in result.means] == pytest.approx([0, 0.5, 0])
    # Pearson of (-1, 0, 1) and (-1, -0.5, 1): covariance 2, variances 2 and 13/6.
    assert result.correlation["t1"] == pytest.approx(2 / np.sqrt(2 * 13 / 6))


def test_a_bright_voxel_moves_no_mean():
    """Vessels and noise reach far above tissue: an image is scaled by its percentiles, and what is beyond is cut."""
    labels, images = case(6)
    spoiled = {name: Volume(image.array.copy(), GEOMETRY) for name, image in images.items()}
    for image in spoiled.values():
        image.array[tuple(np.argwhere(labels.array == 1)[0])] = 1e6
    for mean in mask_fidelity(spoiled, images, labels, SCHEME).means:
        assert abs(mean.difference) < 0.05


def test_shuffled_labels_are_found_out():
    labels, images = case(3)
    rng = np.random.default_rng(0)
    inside = np.flatnonzero(labels.array)
    shuffled = {}
    for name, image in images.items():
        array = image.array.copy()
        array.flat[inside] = image.array.flat[rng.permutation(inside)]
        shuffled[name] = Volume(array, GEOMETRY)
    assert max(abs(mean.difference) for mean in mask_fidelity(shuffled, images, labels, SCHEME).means) > 0.3


def test_too_few_labels_have_no_correlation():
    labels, images = case(4)
    few = Volume(np.where(labels.array > 2, 0, labels.array), GEOMETRY)
    assert mask_fidelity(images, images, few, SCHEME).correlation == {"t1": None, "flair": None}


def test_the_result_is_plain_data():
    labels, images = case(5)
    result = mask_fidelity(images, images, labels, SCHEME)
    again = json.loads(json.dumps(result.to_dict()))
    assert len(again["means"]) == len(result.means) and set(again["correlation"]) == {"t1", "flair"}
    assert again["means"][0]["label"] == result.means[0].label


def test_what_does_not_match_is_refused():
    labels, images = case(6)
    with pytest.raises(MedDPMError, match="but the real images are t1$"):
        mask_fidelity(images, {"t1": images["t1"]}, labels, SCHEME)
    elsewhere = Volume(images["t1"].array, Geometry(GEOMETRY.size, np.diag([1.0, 1.0, 1.0, 1.0])))
    with pytest.raises(MedDPMError, match="volumes of t1 are not on the grid"):
        mask_fidelity(images, images | {"t1": elsewhere}, labels, SCHEME)
    with pytest.raises(MedDPMError, match="empty"):
        mask_fidelity(images, images, Volume(np.zeros(GEOMETRY.shape, np.uint8), GEOMETRY), SCHEME)


def test_deviations_by_hand_and_images_as_they_are():
    labels, images = case(7)
    image = images["t1"].array
    result = compare_labels({"t1": (2 * image + 5, image)}, labels, SCHEME)
    for mean in result.means:
        where = labels.array == SCHEME.label_by_name(mean.label).value
        assert mean.real == pytest.approx(image[where].mean(), rel=1e-4)
        assert mean.synthetic == pytest.approx(2 * mean.real + 5, rel=1e-4)
        assert mean.real_sd == pytest.approx(image[where].std(), rel=1e-4)
        assert mean.synthetic_sd == pytest.approx(2 * mean.real_sd, rel=1e-4)
    assert result.mean_difference("t1") == pytest.approx(np.mean([abs(mean.real + 5) for mean in result.means]))
    assert result.correlation["t1"] == pytest.approx(1)


def test_an_average_of_one_is_itself_and_of_several_lies_between():
    labels, images = case(8)
    others = [case(seed)[1] for seed in (9, 10)]
    results = [mask_fidelity(other, images, labels, SCHEME) for other in others]
    assert average(results[:1]) == results[0]
    both = average(results)
    for mean, *pair in zip(both.means, *(result.means for result in results), strict=True):
        assert mean.synthetic == pytest.approx((pair[0].synthetic + pair[1].synthetic) / 2)
        assert (mean.modality, mean.label, mean.real) == (pair[0].modality, pair[0].label, pytest.approx(pair[0].real))
    for modality, correlation in both.correlation.items():
        assert correlation == pytest.approx(np.mean([result.correlation[modality] for result in results]))


# Likeness --------------------------------------------------------------------------------------------


def smooth(seed: int, shape=(32, 30, 28)) -> np.ndarray:
    """Blobs between -1 and 1."""
    k, j, i = np.indices(shape) / 10
    phase = np.random.default_rng(seed).uniform(0, 6, 3)
    return np.float32(np.sin(k + phase[0]) * np.sin(j + phase[1]) * np.sin(i + phase[2]))


def test_likeness_of_an_image_with_itself_and_with_others():
    image, inside = smooth(0), smooth(0) > -0.5
    same = likeness(image, image, inside)
    assert (same.mae, same.mse) == (0, 0) and same.ms_ssim == pytest.approx(1, abs=1e-5)
    noise = np.random.default_rng(0).standard_normal(image.shape).astype(np.float32)
    noisy = [likeness(image, image + scale * noise, inside) for scale in (0.03, 0.1, 0.3)]
    assert all(a.ms_ssim > b.ms_ssim and a.mae < b.mae for a, b in zip(noisy, noisy[1:], strict=False))
    assert noisy[1].mse == pytest.approx(0.01, rel=0.1)
    assert ms_ssim(image, smooth(1)) < noisy[1].ms_ssim
    shifted = likeness(image, image - 0.25, inside)
    assert (shifted.mae, shifted.mse) == (pytest.approx(0.25), pytest.approx(0.0625))


@given(seed=st.integers(0, 10**6), at=st.floats(-0.6, 0.3), offset=st.floats(0, 0.3), contrast=st.floats(0.05, 0.3))
@example(seed=0, at=0.0, offset=0.3, contrast=0.1)
@example(seed=0, at=-0.15, offset=0.3, contrast=0.1)
@settings(max_examples=25, deadline=None)
def test_the_same_structure_is_alike_at_another_brightness(seed, at, offset, contrast):
    """Brightness counts for little, whichever side of zero it lies on."""
    image = np.float32(at) + np.float32(contrast) * smooth(seed)
    assert 0.9 < ms_ssim(image, image + np.float32(offset)) <= 1 + 1e-5


@given(seeds=st.tuples(st.integers(0, 10**6), st.integers(0, 10**6)), shape=st.tuples(*[st.integers(7, 36)] * 3))
@settings(max_examples=25, deadline=None)
def test_ms_ssim_is_symmetric_and_between_0_and_1(seeds, shape):
    first, second = (smooth(seed, shape) for seed in seeds)
    assert ms_ssim(first, first) == pytest.approx(1, abs=1e-5)
    assert ms_ssim(first, second) == pytest.approx(ms_ssim(second, first), abs=1e-5)
    assert 0 <= ms_ssim(first, second) <= 1 + 1e-5


@given(seed=st.integers(0, 10**6), at=st.floats(-0.5, 0.5))
@settings(max_examples=15, deadline=None)
def test_more_noise_is_less_alike(seed, at):
    image = np.float32(at) + smooth(seed) / 2
    noise = np.random.default_rng(seed).standard_normal(image.shape).astype(np.float32)
    found = [ms_ssim(image, image + np.float32(scale) * noise) for scale in (0, 0.02, 0.05, 0.1, 0.2, 0.5)]
    assert all(less < more for more, less in itertools.pairwise(found))


@given(seed=st.integers(0, 10**6))
@settings(max_examples=10, deadline=None)
def test_the_sign_of_an_intensity_means_nothing(seed):
    """Black and white exchanged in both images: as alike in structure, and in brightness but for its share of it."""
    first, second = smooth(seed) / 2, smooth(seed) / 2 + smooth(seed + 1) / 4
    assert ms_ssim(-first, -second) == pytest.approx(ms_ssim(first, second), abs=0.1)


def ssim_and_contrast(first: np.ndarray, second: np.ndarray) -> tuple[float, float]:
    """SSIM and its factor of contrast and structure (Wang et al. 2004), of images from 0 to 1, by SciPy's filters."""

    def mean(image):
        filtered = gaussian_filter(image.astype(np.float64), 1.5, radius=3)
        return filtered[(slice(3, -3),) * 3]

    a, b = mean(first), mean(second)
    var_a, var_b = mean(first**2) - a**2, mean(second**2) - b**2
    cov = mean(first * second) - a * b
    luminance = (2 * a * b + 0.01**2) / (a**2 + b**2 + 0.01**2)
    contrast = (2 * cov + 0.03**2) / (var_a + var_b + 0.03**2)
    return float((luminance * contrast).mean()), float(contrast.mean())


@given(seed=st.integers(0, 10**6), size=st.floats(0.1, 1), offset=st.floats(-0.3, 0.3))
@settings(max_examples=20, deadline=None)
def test_one_scale_is_ssim_by_another_library(seed, size, offset):
    first = np.float32(size) * smooth(seed, (8, 11, 13))
    second = first + smooth(seed + 1, first.shape) / 4 + np.float32(offset)
    assert scales(first.shape) == 1
    expected, _ = ssim_and_contrast(*((image.astype(np.float64) + 1) / 2 for image in (first, second)))
    # In float32 a variance is the difference of two numbers up to 1, beside a constant of 0.0009.
    assert ms_ssim(first, second) == pytest.approx(max(0, expected), abs=1e-3)


def test_several_scales_are_their_product():
    """Wang, Simoncelli and Bovik 2003: contrast and structure of each scale, brightness of the coarsest."""
    first = smooth(2)
    second = first / 2 + smooth(3) / 4 + np.float32(0.2)
    pair = [(image.astype(np.float64) + 1) / 2 for image in (first, second)]
    exponents = np.array([0.0448, 0.2856, 0.3001])[: scales(first.shape)]
    assert len(exponents) == 3
    factors = []
    for _ in exponents:
        factors.append(ssim_and_contrast(*pair))
        # Of an odd side the last plane has no partner.
        pair = [zoomed(image) for image in pair]
    values = np.array([contrast for _, contrast in factors[:-1]] + [factors[-1][0]])
    assert (values > 0).all()
    assert ms_ssim(first, second) == pytest.approx(np.prod(values ** (exponents / exponents.sum())), abs=1e-4)


def zoomed(image: np.ndarray) -> np.ndarray:
    """Half as many voxels along each axis, each the mean of eight."""
    even = image[tuple(slice(0, side // 2 * 2) for side in image.shape)]
    return uniform_filter(even, 2, origin=-1)[::2, ::2, ::2]


@pytest.mark.parametrize(
    ("shortest", "expected"), [(7, 1), (13, 1), (14, 2), (27, 2), (28, 3), (62, 3), (63, 4), (111, 4), (112, 5)]
)
def test_as_many_scales_as_there_is_room_for(shortest, expected):
    assert scales((200, shortest, 150)) == expected


@pytest.mark.parametrize("shortest", [7, 14, 28, 63])
def test_every_number_of_scales_is_accepted_by_the_library(shortest):
    image = smooth(4, (shortest, shortest + 3, shortest))
    assert ms_ssim(image, image) == pytest.approx(1, abs=1e-4)


def test_too_small_for_ms_ssim_is_refused():
    with pytest.raises(MedDPMError, match="at least 7 voxels, not 6"):
        ms_ssim(np.zeros((20, 6, 20), np.float32), np.zeros((20, 6, 20), np.float32))


@given(st.tuples(*[st.integers(1, 20)] * 3), st.integers(0, 10**6))
@settings(max_examples=50, deadline=None)
def test_the_box_holds_what_is_inside_and_room_for_a_window(shape, seed):
    rng = np.random.default_rng(seed)
    inside = np.zeros(shape, bool)
    inside[tuple(rng.integers(0, side) for side in shape)] = True
    inside[tuple(rng.integers(0, side) for side in shape)] = True
    box = bounding_box(inside)
    assert inside[box].sum() == inside.sum()
    where = np.argwhere(inside)
    for part, side, low, high in zip(box, shape, where.min(axis=0), where.max(axis=0), strict=True):
        assert part.stop - part.start == max(high + 1 - low, min(7, side))


def test_an_empty_mask_has_no_box():
    with pytest.raises(MedDPMError, match="empty"):
        bounding_box(np.zeros((9, 9, 9), bool))


def test_gradient_energy_of_a_ramp_and_of_what_is_blurred():
    k, j, i = np.indices((9, 10, 11)).astype(np.float32)
    inside = np.ones(k.shape, bool)
    assert gradient_energy(0.5 * k - 2 * j + i, inside) == pytest.approx(0.25 + 4 + 1)
    noise = np.random.default_rng(0).standard_normal(k.shape)
    blurred = (noise + np.roll(noise, 1, 0)) / 2
    assert gradient_energy(blurred, inside) < gradient_energy(noise, inside)


def test_the_spread_is_the_deviation_of_a_sample():
    rng = np.random.default_rng(0)
    where = rng.random((20, 20, 20)) < 0.5
    images = [rng.normal(3, 2, where.shape) for _ in range(5)]
    # The mean of the sample deviation of five normal numbers is 0.94 of the true one.
    assert spread(images, where) == pytest.approx(0.94 * 2, rel=0.03)
    assert spread(images[:1] * 3, where) < 1e-12
    assert spread(images, np.zeros_like(where)) is None


def test_pairs_are_normalized_alike():
    labels, images = case(11)
    scaled = {name: Volume(3 * image.array + 7, GEOMETRY) for name, image in images.items()}
    for pair in paired_likeness(scaled, images, labels).values():
        assert pair.mae < 1e-3 and pair.ms_ssim > 0.999
    assert all(pair.mae > 0.05 for pair in paired_likeness(case(12)[1], images, labels).values())


# The command -----------------------------------------------------------------------------------------


@pytest.fixture
def real_images(small_model, small_mask, tmp_path):
    """Options for a "real" brain that is exactly what the model makes from seed 0."""
    generated = generate(load_model(small_model), small_mask)
    for modality, volume in generated.items():
        write_nifti(tmp_path / f"real_{modality}.nii.gz", volume)
    return [part for modality in generated for part in ("--real", f"{modality}=real_{modality}.nii.gz")]


def test_the_command_prints_a_table_and_writes_the_same_figures(
    meddpm, small_model, small_mask, real_images, tmp_path, brats
):
    result = meddpm("fidelity", small_mask, "--model", small_model, *real_images, "--json", "figures.json")
    assert result.returncode == 0, result.stderr
    (figures,) = json.loads((tmp_path / "figures.json").read_text())["models"]
    present = [label.name for label in brats.labels if (small_labels(brats) == label.value).any()]
    assert len(present) == 3
    assert [(mean["modality"], mean["label"]) for mean in figures["means"]] == [
        (modality, label) for modality in ("t1", "t2") for label in present
    ]
    assert all(mean["difference"] == 0 for mean in figures["means"])
    assert figures["correlation"] == pytest.approx({"t1": 1, "t2": 1})
    (seed,) = figures["seeds"]
    assert seed["seed"] == 0 and seed["record"]["steps"] == 3 and "pairs" not in seed
    for mean in figures["means"]:
        assert any(
            mean["label"] in line and f"{mean['synthetic']:.3f}" in line and str(mean["voxels"]) in line
            for line in result.stdout.splitlines()
        )


def test_seeds_are_averaged_and_models_stand_side_by_side(
    meddpm, small_model, small_mask, real_images, tmp_path, brats
):
    other = write_small_model(tmp_path / "other.safetensors", small_card(brats), seed=4)
    result = meddpm(
        "fidelity", small_mask, "--model", small_model, "--model", other, *real_images,
        "--samples", 2, "--pairs", "--json", "figures.json",
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    first, second = json.loads((tmp_path / "figures.json").read_text())["models"]
    assert first["model"] == str(small_model) and second["model"] == str(other)
    for figures in (first, second):
        assert [seed["seed"] for seed in figures["seeds"]] == [0, 1]
        for mean, *of_seeds in zip(figures["means"], *(seed["means"] for seed in figures["seeds"]), strict=True):
            assert mean["synthetic"] == pytest.approx(np.mean([one["synthetic"] for one in of_seeds]))
        assert all(0 <= pair["ms_ssim"] <= 1.0001 for seed in figures["seeds"] for pair in seed["pairs"].values())
    assert first["seeds"][0]["pairs"]["t1"]["mse"] == 0 < second["seeds"][0]["pairs"]["t1"]["mse"]
    headings = next(line for line in result.stdout.splitlines() if "voxels" in line)
    assert headings.count("difference") == 2 and str(other) in headings
    assert "the more varied one scores worse" in result.stdout


def test_real_images_that_are_missing_or_unknown_are_reported(meddpm, small_model, small_mask, real_images):
    result = meddpm("fidelity", small_mask, "--model", small_model, *real_images[:2])
    assert result.returncode == 2 and "--real is missing for t2" in result.stderr
    result = meddpm("fidelity", small_mask, "--model", small_model, "--real", "t9=x.nii")
    assert result.returncode == 2 and "give each of t1, t2 once" in result.stderr


def test_the_command_composes_anatomy_tumor_and_brain(meddpm, tmp_path, brats):
    anatomy = load_scheme("anatomy")
    model = write_small_model(tmp_path / "anatomy.safetensors", small_card(anatomy))
    tumor = small_labels(brats)
    structures = np.where((tumor > 0) & (np.indices(tumor.shape)[0] < 8), 1, 0).astype(np.uint8)
    write_nifti(tmp_path / "structures.nii.gz", Volume(structures, small_geometry()))
    write_nifti(tmp_path / "seg.nii.gz", Volume(tumor, small_geometry()))
    image = np.where(tumor > 0, np.random.default_rng(0).uniform(0, 1, tumor.shape), -1).astype(np.float32)
    write_nifti(tmp_path / "image.nii.gz", Volume(image, small_geometry()))
    result = meddpm(
        "fidelity", "structures.nii.gz", "--tumor", "seg.nii.gz", "--model", model,
        "--real", "t1=image.nii.gz", "--real", "t2=image.nii.gz", "--json", "figures.json",
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    (figures,) = json.loads((tmp_path / "figures.json").read_text())["models"]
    counts = {mean["label"]: mean["voxels"] for mean in figures["means"] if mean["modality"] == "t1"}
    expected = {}
    for label in brats.tumor:
        if (tumor == label.value).any():
            expected[label.name] = int((tumor == label.value).sum())
    brain = tumor == brats.rest.value
    expected[anatomy.label_by_value(1).name] = int((brain & (structures == 1)).sum())
    expected[anatomy.rest.name] = int((brain & (structures == 0)).sum())
    assert {name.casefold(): n for name, n in counts.items()} == {name.casefold(): n for name, n in expected.items()}
