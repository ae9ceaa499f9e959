"""Templates: anatomies that fit the model's grid; a tumor painted the same way everywhere."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import ndimage
from test_geometry import oriented
from test_masks import painted

from MedDPMLib.errors import MedDPMError
from MedDPMLib.imaging.geometry import Geometry, Grid
from MedDPMLib.imaging.resample import resample_labels
from MedDPMLib.imaging.volume import Volume
from MedDPMLib.masks.fit import fit
from MedDPMLib.masks.schemes import load_scheme
from MedDPMLib.masks.templates import (
    demo_mask,
    find_template,
    load_template,
    repaint_template,
    template_names,
    templates,
)
from MedDPMLib.masks.tumor import paint_tumor

ANATOMY, BRATS = load_scheme("anatomy"), load_scheme("brats")


def amount(labels, scheme, name):
    return np.count_nonzero(labels == scheme.label_by_name(name).value)


@pytest.fixture(scope="module")
def demo():
    return demo_mask()


@pytest.mark.parametrize("name", template_names())
def test_every_template_is_a_whole_brain_on_the_models_grid(name):
    template, mask = find_template(name), load_template(name)
    assert template.title and template.notes and template.path.stat().st_size < 250_000
    assert mask.scheme == ANATOMY and mask.name == name
    anatomy = {label.name for label in ANATOMY.labels if label.role != "tumor"}
    assert all(amount(mask.volume.array, ANATOMY, label) for label in anatomy)
    assert bool(template.tumor) == any(amount(mask.volume.array, ANATOMY, label.name) for label in ANATOMY.tumor)
    faces = [mask.volume.array.take(end, axis) for axis in range(3) for end in (0, -1)]
    assert not any(face.any() for face in faces)  # nothing is cut
    assert len(mask.notes) == 1  # nothing odd about it
    fitted = fit(mask, Grid((192, 192, 144), (1.0, 1.0, 1.0), "LPS"))
    np.testing.assert_array_equal(fitted.labels, mask.volume.array)
    np.testing.assert_allclose(fitted.geometry.center, 0, atol=1e-4)


def test_the_anatomies_differ_as_their_notes_say():
    fluid = {name: amount(load_template(name).volume.array, ANATOMY, "Lateral ventricle") for name in template_names()}
    assert fluid["ventricles-narrow"] < 0.5 * fluid["ventricles-medium"] < 0.25 * fluid["ventricles-wide"] * 1.2
    assert round(fluid["ventricles-narrow"] / 1000) == 9 and round(fluid["ventricles-wide"] / 1000) == 63
    along = np.flatnonzero(load_template("long").volume.array.any(axis=(0, 2)))
    assert along[-1] - along[0] + 1 == 181


def test_templates_serve_models_of_the_brats_scheme(demo):
    mask = demo_mask(BRATS)
    for label in BRATS.tumor:
        assert amount(mask.volume.array, BRATS, label.name) == amount(demo.volume.array, ANATOMY, label.name)
    np.testing.assert_array_equal(mask.volume.array > 0, demo.volume.array > 0)
    with pytest.raises(MedDPMError, match='no label convention "anatomy"'):
        load_template("long", load_scheme("whole-head"))


def test_an_unknown_template_is_refused():
    with pytest.raises(MedDPMError, match="ventricles-wide"):
        load_template("../glioma")
    with pytest.raises(MedDPMError, match="no painted tumor"):
        repaint_template("long")


# The painted tumor ----------------------------------------------------------------------------------


def test_the_demo_is_painted_as_its_recipe_says(demo):
    assert find_template(demo.name).tumor and demo.name == next(t.name for t in templates() if t.tumor)
    again = repaint_template(demo.name)
    assert again.geometry.is_close(demo.volume.geometry)
    assert np.count_nonzero(again.array != demo.volume.array) < 20  # rounding differs between processors


def test_the_demos_glioma_is_built_like_one(demo):
    labels, geometry = demo.volume.array, demo.volume.geometry
    before = load_template("ventricles-medium").volume.array
    necrosis, edema, enhancing = (labels == label.value for label in ANATOMY.tumor)
    core = necrosis | enhancing
    extent = np.ptp(np.argwhere(core), axis=0) + 1
    assert 25 < extent.min() and extent.max() < 55 and 30 < (core.sum() * 6 / np.pi) ** (1 / 3) < 40
    assert 1.0 < edema.sum() / core.sum() < 4
    # The rim encloses the necrosis, and edema the rim.
    around = ndimage.binary_dilation(necrosis) & ~necrosis
    assert (enhancing & around).sum() / around.sum() > 0.95
    assert ndimage.label(core)[1] == 1
    # In one hemisphere, the right one (R > 0).
    ras = geometry.to_ras(np.argwhere(core)[:, ::-1])
    assert ras[:, 0].min() > 0
    assert (geometry.to_ras(np.argwhere(edema)[:, ::-1])[:, 0] > -3).mean() > 0.99
    # Edema spreads in the white matter, nothing grows into a ventricle or out of the brain.
    white_matter = ANATOMY.label_by_name("Cerebral white matter").value
    assert (before[edema] == white_matter).mean() > 0.9
    assert not (before[edema] == ANATOMY.rest.value).any()
    ventricle = ANATOMY.label_by_name("Lateral ventricle").value
    np.testing.assert_array_equal(labels == ventricle, before == ventricle)
    np.testing.assert_array_equal(labels > 0, before > 0)
    np.testing.assert_array_equal(labels[labels < 19], before[labels < 19])


CENTER = np.array([5.0, -7.0, 9.0])


def brain(geometry):
    """A brain without a tumor, in the BraTS scheme."""
    labels = painted(geometry, CENTER).array
    labels[labels > 0] = 4
    return labels


def test_a_tumor_does_not_depend_on_the_voxels():
    fine = oriented("LPS", (60, 70, 60), (1.0, 1.0, 1.0), CENTER)
    turned = oriented("SAR", (50, 60, 50), (1.3, 1.2, 1.4), CENTER)
    at = CENTER + [6, 4, -3]
    one = Volume(paint_tumor(brain(fine), fine, BRATS, at, 10.0, seed=3), fine)
    other = Volume(paint_tumor(brain(turned), turned, BRATS, at, 10.0, seed=3), turned)
    moved = resample_labels(one, turned, BRATS.priority).array
    for label in BRATS.tumor:
        a, b = moved == label.value, other.array == label.value
        assert 2 * (a & b).sum() / (a.sum() + b.sum()) > 0.85, label.name
    for volume in (one, other):
        core = np.argwhere(np.isin(volume.array, [1, 3]))[:, ::-1]
        assert np.abs(volume.geometry.to_ras(core).mean(axis=0) - at).max() < 3


def test_size_and_seed_say_what_they_mean():
    geometry = oriented("RAS", (60, 70, 60), (1.0, 1.0, 1.0), CENTER)
    labels = brain(geometry)
    kept = labels.copy()
    volumes = []
    for radius in (5.0, 8.0, 12.0):
        cores = [np.isin(paint_tumor(labels, geometry, BRATS, CENTER, radius, seed=seed), [1, 3]) for seed in range(6)]
        assert len({core.tobytes() for core in cores}) == 6
        volumes.append(np.mean([core.sum() for core in cores]) / (4 / 3 * np.pi * radius**3))
    assert all(0.75 < volume < 1.35 for volume in volumes)
    np.testing.assert_array_equal(labels, kept)  # a copy is painted
    twice = [paint_tumor(labels, geometry, BRATS, CENTER, 8.0, seed=1) for _ in range(2)]
    np.testing.assert_array_equal(*twice)


def test_a_scheme_with_one_tumor_label_gets_the_core():
    geometry = oriented("RAS", (60, 70, 60), (1.0, 1.0, 1.0), CENTER)
    head = (brain(geometry) > 0).astype(np.uint8)
    plain = paint_tumor(head, geometry, load_scheme("whole-head"), CENTER, 9.0, seed=2)
    layered = paint_tumor(brain(geometry), geometry, BRATS, CENTER, 9.0, seed=2)
    np.testing.assert_array_equal(plain == 2, np.isin(layered, [1, 3]))


def test_places_without_brain_are_refused():
    geometry = oriented("RAS", (60, 70, 60), (1.0, 1.0, 1.0), CENTER)
    for center, radius in ((CENTER + 500, 8), (CENTER + 29, 0.5), (CENTER, 0), (CENTER, np.nan), (CENTER * np.nan, 8)):
        with pytest.raises(MedDPMError):
            paint_tumor(brain(geometry), geometry, BRATS, center, radius)
    assert isinstance(geometry, Geometry)
