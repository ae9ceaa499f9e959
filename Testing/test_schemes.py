"""Label schemes: data that holds together."""

from __future__ import annotations

import copy
import itertools
import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from MedDPMLib.errors import MedDPMError
from MedDPMLib.imaging.geometry import Geometry
from MedDPMLib.masks.numberings import find_numbering
from MedDPMLib.masks.schemes import LabelScheme, load_scheme, scheme_names
from MedDPMLib.masks.tumor import paint_tumor

SCHEMES = ["anatomy", "brats", "whole-head"]


def test_the_schemes_that_ship():
    assert scheme_names() == SCHEMES
    assert load_scheme("whole-head").values == (1, 2)
    assert load_scheme("brats").values == (1, 2, 3, 4)
    assert load_scheme("anatomy").values == tuple(range(1, 22))
    for unknown in ("Brats", "../schemes/brats", ""):
        with pytest.raises(MedDPMError, match="anatomy, brats, whole-head"):
            load_scheme(unknown)


def test_roles():
    def names(labels):
        return [label.name for label in labels]

    assert names(load_scheme("whole-head").tumor) == ["Tumor"]
    assert load_scheme("whole-head").rest.name == "Head"
    for name in ("brats", "anatomy"):
        scheme = load_scheme(name)
        assert names(scheme.tumor) == ["Necrosis", "Edema", "Enhancing tumor"]
        assert scheme.rest.name == "Rest of the brain"


@pytest.mark.parametrize("name", SCHEMES)
def test_labels_can_be_distinguished(name):
    labels = load_scheme(name).labels
    for one, other in itertools.combinations(labels, 2):
        assert np.linalg.norm(np.subtract(one.color, other.color)) > 40, (one.name, other.name)
        assert (one.type.scheme, one.type.value) != (other.type.scheme, other.type.value)
        assert not {one.name.casefold(), *map(str.casefold, one.aliases)} & {
            other.name.casefold(),
            *map(str.casefold, other.aliases),
        }


def test_a_label_is_the_same_thing_in_every_scheme():
    """Same name: same color, role and terminology, so that masks look alike whatever the model."""
    brats, anatomy = load_scheme("brats"), load_scheme("anatomy")
    for label in brats.tumor:
        twin = anatomy.label_by_name(label.name)
        assert (twin.color, twin.type, twin.category, twin.role) == (
            label.color,
            label.type,
            label.category,
            label.role,
        )


def test_priority_puts_tumor_first_small_structures_next_and_the_rest_last():
    brats, anatomy = load_scheme("brats"), load_scheme("anatomy")
    assert brats.priority == (3, 1, 2, 4)
    assert load_scheme("whole-head").priority == (2, 1)
    order = [anatomy.label_by_value(value).name for value in anatomy.priority]
    assert order[:3] == ["Enhancing tumor", "Necrosis", "Edema"] and order[-1] == "Rest of the brain"
    for small, large in [
        ("Accumbens", "Caudate"), ("Amygdala", "Hippocampus"), ("Pallidum", "Putamen"), ("Third ventricle", "Thalamus"),
        ("Caudate", "Lateral ventricle"), ("Hippocampus", "Cerebral cortex"), ("Brain stem", "Cerebellar cortex"),
        ("Lateral ventricle", "Cerebral white matter"), ("Cerebral cortex", "Cerebral white matter"),
    ]:  # fmt: skip
        assert order.index(small) < order.index(large)


def test_labels_are_found_by_value_name_and_terminology():
    scheme = load_scheme("anatomy")
    assert scheme.label_by_value(7).name == "Thalamus"
    with pytest.raises(MedDPMError, match="22"):
        scheme.label_by_value(22)
    for spelling in ("Edema", "EDEMA", " peritumoral edema ", "Oedema", "peritumoural oedema"):
        assert scheme.label_by_name(spelling).value == 20
    assert scheme.label_by_name("Brainstem").value == 13 and scheme.label_by_name("liver") is None
    assert scheme.label_by_code("SCT", "6574001").name == "Necrosis"
    assert scheme.label_by_code("DCM", "110700").name == "Ventral diencephalon"
    assert scheme.label_by_code("SCT", "0") is None
    for label in scheme.labels:
        assert scheme.label_by_name(label.name) is label
        assert scheme.label_by_code(label.type.scheme, label.type.value) is label


# Arrays ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", SCHEMES)
@pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.int64])
def test_one_hot_and_back(name, dtype):
    scheme = load_scheme(name)
    labels = np.random.default_rng(0).choice([0, *scheme.values], (4, 5, 6)).astype(dtype)
    channels = scheme.one_hot(labels)
    assert channels.shape == (len(scheme.values), 4, 5, 6) and channels.dtype == np.uint8
    assert channels.sum(axis=0).max() == 1
    np.testing.assert_array_equal(np.tensordot(scheme.values, channels, 1), labels)
    np.testing.assert_array_equal(scheme.merge(channels), labels)


def test_one_hot_refuses_values_of_another_scheme():
    with pytest.raises(MedDPMError, match="5, 9"):
        load_scheme("brats").one_hot(np.array([[[0, 1, 9, 5]]]))


@settings(max_examples=30, deadline=None)
@given(st.sampled_from(SCHEMES), st.integers(0, 10**6))
def test_overlaps_go_to_the_label_of_highest_priority(name, seed):
    scheme = load_scheme(name)
    channels = np.random.default_rng(seed).random((len(scheme.values), 3, 4, 5)) < 0.2
    merged = scheme.merge(channels)
    for voxel in np.ndindex(merged.shape):
        present = [label for label, on in zip(scheme.labels, channels[(slice(None), *voxel)], strict=True) if on]
        expected = min(present, key=lambda label: label.priority).value if present else 0
        assert merged[voxel] == expected


def test_merge_refuses_the_wrong_number_of_channels():
    with pytest.raises(MedDPMError, match="4 labels"):
        load_scheme("brats").merge(np.zeros((3, 2, 2, 2), bool))


# As plain data ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", SCHEMES)
def test_a_scheme_survives_json(name):
    scheme = load_scheme(name)
    assert LabelScheme.from_dict(json.loads(json.dumps(scheme.to_dict()))) == scheme
    assert hash(scheme) == hash(LabelScheme.from_dict(scheme.to_dict()))


def test_the_name_of_its_own_values_comes_from_the_scheme_or_from_an_earlier_card():
    data = load_scheme("brats").to_dict()
    assert LabelScheme.from_dict(data).own_numbering == "med-ddpm"
    del data["own_numbering"]
    assert LabelScheme.from_dict(data).own_numbering == "brats"
    earlier = {"name": "med-ddpm", "title": "Med-DDPM", "values": {"1": 1, "2": 2, "3": 3, "4": 4}}
    other = {"name": "brats", "title": "BraTS", "values": {"1": 1, "2": 2, "4": 3}}
    assert LabelScheme.from_dict(data | {"numberings": [other, earlier]}) == load_scheme("brats")


def damage(path, value):
    data = load_scheme("brats").to_dict()
    target = data
    for key in path[:-1]:
        target = target[key]
    if value is KeyError:
        del target[path[-1]]
    else:
        target[path[-1]] = value
    return data


@pytest.mark.parametrize(
    "path, value",
    [
        (["name"], KeyError), (["name"], ""), (["name"], 5), (["name"], "x" * 500), (["name"], "a\x1b[31m"),
        (["title"], None), (["labels"], {}), (["labels"], []), (["labels"], KeyError), (["labels", 0], "Necrosis"),
        (["labels", 0, "value"], 2), (["labels", 0, "value"], 0), (["labels", 0, "value"], 256),
        (["labels", 0, "value"], 1.0), (["labels", 0, "value"], True), (["labels", 0, "value"], "1"),
        (["labels", 0, "name"], "EDEMA"), (["labels", 0, "role"], "rest"),
        (["labels", 0, "role"], "king"), (["labels", 0, "role"], ["rest"]), (["labels", 0, "priority"], 4),
        (["labels", 0, "priority"], float("nan")), (["labels", 0, "color"], [1, 2]),
        (["labels", 0, "color"], [1, 2, 256]),
        (["labels", 0, "color"], "red"), (["labels", 0, "type"], {}), (["labels", 0, "category", "value"], 1),
        (["labels", 0, "aliases"], "ab"), (["labels", 0, "aliases"], [3]), (["own_numbering"], ""),
        (["own_numbering"], 4), (["labels", 0, "plausible_ml"], [1]), (["labels", 0, "plausible_ml"], [5, 2]),
        (["labels", 0, "plausible_ml"], "all"), (["labels", 0, "plausible_ml"], [0, float("inf")]),
        (["labels"], [{}] * 100_000),
    ],
)  # fmt: skip
def test_schemes_that_do_not_hold_together_are_refused(path, value):
    data = damage(path, value)
    with pytest.raises(MedDPMError) as caught:
        LabelScheme.from_dict(data)
    assert len(str(caught.value)) < 1000 and str(caught.value).isprintable()


json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-300, 70_000) | st.floats() | st.text(max_size=8),
    lambda children: st.lists(children, max_size=4) | st.dictionaries(st.text(max_size=8), children, max_size=4),
    max_leaves=8,
)


def places(data, path=()):
    yield path
    items = data.items() if isinstance(data, dict) else enumerate(data) if isinstance(data, list) else ()
    for key, value in items:
        yield from places(value, (*path, key))


@settings(max_examples=60, deadline=None)
@given(st.sampled_from(SCHEMES), st.data())
def test_a_scheme_with_anything_anywhere_is_valid_or_refused(name, data):
    scheme = copy.deepcopy(load_scheme(name).to_dict())
    path = data.draw(st.sampled_from(list(places(scheme))))
    value = data.draw(json_values)
    if path:
        target = scheme
        for key in path[:-1]:
            target = target[key]
        target[path[-1]] = value
    else:
        scheme = value
    try:
        read = LabelScheme.from_dict(scheme)
    except MedDPMError:
        return
    assert LabelScheme.from_dict(json.loads(json.dumps(read.to_dict()))) == read
    assert sorted(read.priority) == list(read.values)
    assert find_numbering(read, read.own_numbering).explains(set(read.values))


# Tissues ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", scheme_names())
def test_schemes_from_before_labels_had_tissues_get_them_by_name(name):
    scheme = load_scheme(name)
    data = scheme.to_dict()
    for label in data["labels"]:
        label.pop("tissue", None)
    assert LabelScheme.from_dict(data) == scheme
    renamed = {**data, "name": "mine", "labels": [{**label, "name": f"my {label['name']}"} for label in data["labels"]]}
    assert not any(label.tissue for label in LabelScheme.from_dict(renamed).labels)


def test_an_unknown_tissue_is_refused():
    data = load_scheme("brats").to_dict()
    data["labels"][0]["tissue"] = "bone"
    with pytest.raises(MedDPMError, match='label "Necrosis": "tissue" must be one of core'):
        LabelScheme.from_dict(data)


def test_a_tumor_is_painted_by_tissue_whatever_its_labels_are_called():
    scheme = load_scheme("brats")
    data = scheme.to_dict()
    for label in data["labels"]:
        label["name"], label["aliases"] = f"label {label['value']}", []
    renamed = LabelScheme.from_dict(data)
    geometry = Geometry((48, 48, 48), np.diag([3.0, 3.0, 3.0, 1.0]))
    brain = np.full(geometry.shape, scheme.rest.value, np.uint8)
    center = geometry.to_ras(np.array([24.0, 24.0, 24.0]))
    expected = paint_tumor(brain, geometry, scheme, center, 15.0)
    assert set(np.unique(expected)) == {1, 2, 3, 4}
    np.testing.assert_array_equal(paint_tumor(brain, geometry, renamed, center, 15.0), expected)
