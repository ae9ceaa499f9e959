"""Mask fidelity: what the figures are, in cases where they are known."""

from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from MedDPMLib.errors import MedDPMError
from MedDPMLib.fidelity import mask_fidelity
from MedDPMLib.geometry import Geometry
from MedDPMLib.labels import load_scheme
from MedDPMLib.volume import Volume

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
    with pytest.raises(MedDPMError, match="real images are given of t1$"):
        mask_fidelity(images, {"t1": images["t1"]}, labels, SCHEME)
    elsewhere = Volume(images["t1"].array, Geometry(GEOMETRY.size, np.diag([1.0, 1.0, 1.0, 1.0])))
    with pytest.raises(MedDPMError, match="volumes of t1 do not lie on the grid"):
        mask_fidelity(images, images | {"t1": elsewhere}, labels, SCHEME)
    with pytest.raises(MedDPMError, match="empty"):
        mask_fidelity(images, images, Volume(np.zeros(GEOMETRY.shape, np.uint8), GEOMETRY), SCHEME)
