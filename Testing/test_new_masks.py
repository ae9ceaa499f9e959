"""New masks: the tumor stays where it may be, its parts in each other, and the same seed gives the same mask."""

from __future__ import annotations

import json

import numpy as np
import pytest
import SimpleITK
from scipy import ndimage

from MedDPMLib.errors import MedDPMError
from MedDPMLib.imaging.geometry import Geometry
from MedDPMLib.imaging.io import write_nifti
from MedDPMLib.imaging.volume import Volume
from MedDPMLib.masks.mask import Mask, read_mask
from MedDPMLib.masks.midline import find_midline
from MedDPMLib.masks.nesting import Nesting, judge_nesting
from MedDPMLib.masks.new_masks import CHANGES, _spline, new_mask
from MedDPMLib.masks.schemes import load_scheme

ANATOMY = load_scheme("anatomy")
WHITE, CORTEX, VENTRICLE, REST, CORE, EDEMA, RIM = 1, 2, 3, 18, 19, 20, 21
SHAPE = (30, 44, 36)  # k, j, i
SPACING = 4.0


def brain(tilt: float = 0.0, shift: float = 0.0) -> Volume:
    """Ellipsoids of white matter, cortex and rest with two ventricles, turned by ``tilt`` degrees about S and moved by
    ``shift`` mm to the right; LPS voxels of 4 mm."""
    matrix = np.diag([-SPACING, -SPACING, SPACING, 1.0])
    matrix[:3, 3] = -matrix[:3, :3] @ ((np.array(SHAPE[::-1]) - 1) / 2)
    geometry = Geometry(SHAPE[::-1], matrix)
    k, j, i = np.meshgrid(*map(np.arange, SHAPE), indexing="ij")
    ras = geometry.to_ras(np.stack([i, j, k], axis=-1)) - [shift, 0, 0]
    angle = np.deg2rad(tilt)
    x, y = (
        ras[..., 0] * np.cos(angle) + ras[..., 1] * np.sin(angle),
        ras[..., 1] * np.cos(angle) - ras[..., 0] * np.sin(angle),
    )
    z = ras[..., 2]
    radius = np.sqrt((x / 62) ** 2 + (y / 80) ** 2 + (z / 54) ** 2)
    labels = np.select([radius < 0.8, radius < 0.93, radius < 1], [WHITE, CORTEX, REST], 0).astype(np.uint8)
    labels[(np.abs(np.abs(x) - 12) < 7) & (np.abs(y) < 24) & (np.abs(z) < 10)] = VENTRICLE
    return Volume(labels, geometry)


def with_tumor(volume: Volume, center=(34.0, 10.0, 6.0), radii=(9.0, 13.0, 20.0)) -> Volume:
    k, j, i = np.meshgrid(*map(np.arange, volume.array.shape), indexing="ij")
    ras = volume.geometry.to_ras(np.stack([i, j, k], axis=-1))
    distance = np.linalg.norm(ras - np.array(center), axis=-1)
    labels = volume.array.copy()
    for radius, value in zip(radii[::-1], (EDEMA, RIM, CORE), strict=True):
        labels[(distance < radius) & (labels > 0)] = value
    return Volume(labels, volume.geometry)


def mask(volume: Volume, name: str) -> Mask:
    return Mask(volume, ANATOMY, name)


@pytest.fixture(scope="module")
def given() -> list[Mask]:
    return [
        mask(with_tumor(brain()), "right"),
        mask(with_tumor(brain(5), (-30.0, -14.0, 10.0), (6.0, 12.0, 17.0)), "left"),
        mask(brain(), "healthy"),
    ]


@pytest.fixture(scope="module")
def made(given):
    return [new_mask(given, seed) for seed in range(8)]


def tumor_of(labels: np.ndarray) -> np.ndarray:
    return np.isin(labels, (CORE, EDEMA, RIM))


def test_a_tumor_is_inside_the_brain_out_of_fluid_and_on_one_side(made):
    for new in made:
        labels, anatomy = new.labels.array, new.anatomy.array
        tumor = tumor_of(labels)
        assert tumor.any() and new.record["kept"] >= 0.85
        assert (anatomy[tumor] > 0).all(), "a tumor replaces brain, and never adds to it"
        assert not (anatomy[tumor] == VENTRICLE).any() and not tumor_of(anatomy).any()
        np.testing.assert_array_equal(labels[~tumor], anatomy[~tumor])
        sides = side_of(new, tumor)
        assert sides.min() >= -0.01 or sides.max() <= 0.01


def side_of(new, where: np.ndarray) -> np.ndarray:
    """How far to the right of the midline the voxels lie, mm."""
    plane = new.record["midline"]
    return positions(new.labels, where) @ plane["normal_ras"] - plane["offset_mm"]


def positions(volume: Volume, where: np.ndarray) -> np.ndarray:
    return volume.geometry.to_ras(np.argwhere(where)[:, ::-1])


def test_across_the_midline_only_when_asked(given):
    # A tumor that reaches the midline in a brain whose left has no room for it either.
    large = [mask(with_tumor(brain(), (6.0, 45.0, 0.0), (8.0, 14.0, 22.0)), "frontal")]
    crossing = new_mask(large, 0, changes=["scale"], across_midline=True)
    sides = side_of(crossing, tumor_of(crossing.labels.array))
    assert sides.min() < -4 and sides.max() > 4
    with pytest.raises(MedDPMError, match="frontal has no room in the brain of frontal: at best"):
        new_mask(large, 0, changes=["scale"])


def test_the_parts_lie_in_each_other_and_have_the_volumes_that_were_recorded(made):
    for new in made:
        labels, record = new.labels.array, new.record
        roles = np.select([labels == CORE, labels == EDEMA, labels == RIM], [1, 2, 3], 0).astype(np.uint8)
        assert judge_nesting(roles, new.labels.geometry) is not Nesting.WRONG
        # Necrosis does not touch what is no tumor unless that was cut off there.
        core = labels == CORE
        around = ndimage.binary_dilation(core) & ~core & ~tumor_of(labels) & (new.anatomy.array > 0)
        free = around & (new.anatomy.array != VENTRICLE)
        assert free.sum() <= 0.1 * max(1, core.sum())
        for label in ANATOMY.labels:
            ml = np.count_nonzero(labels == label.value) * SPACING**3 / 1000
            assert record["ml"].get(label.name, 0) == pytest.approx(ml, abs=1e-3)


def test_without_changes_the_mask_is_what_it_was():
    one = mask(with_tumor(brain()), "right")
    new = new_mask([one], 3, changes=[])
    np.testing.assert_array_equal(new.labels.array, one.volume.array)
    assert new.record["kept"] == 1


def test_scale_growth_and_mirror_do_what_they_say():
    one = mask(with_tumor(brain()), "right")
    before = np.count_nonzero(tumor_of(one.volume.array))
    for seed in range(2):
        for change in ("scale", "grow"):
            new = new_mask([one], seed, changes=[change])
            drawn = new.record["drawn"]
            after = np.count_nonzero(tumor_of(new.labels.array)) / new.record["kept"]
            # A ball of radius 20 mm on voxels of 4 mm: by up to half of one distances are not resolved.
            assert 20 * (after / before) ** (1 / 3) == pytest.approx(20 * drawn["scale"] + drawn["growth_mm"], abs=2.6)
    mirrored = [new_mask([one], seed, changes=["mirror"]) for seed in range(5)]
    for new in mirrored:
        side = positions(new.labels, tumor_of(new.labels.array))[:, 0].mean()
        assert np.sign(side) == (-1 if new.record["drawn"]["mirrored"] else 1)
    assert {new.record["drawn"]["mirrored"] for new in mirrored} == {True, False}


def test_a_deformed_anatomy_keeps_its_structures_and_folds_nothing(given):
    plain, bent = (
        new_mask(given[2:] + given[:1], 5, changes=c)
        for c in (["move", "transplant"], ["move", "transplant", "anatomy"])
    )
    assert plain.record["host"] == bent.record["host"]
    assert (plain.anatomy.array != bent.anatomy.array).mean() > 0.01
    for value in (WHITE, CORTEX, VENTRICLE, REST):
        assert np.count_nonzero(bent.anatomy.array == value) == pytest.approx(
            np.count_nonzero(plain.anatomy.array == value), rel=0.3
        )
    # What was in one piece is not torn, but for voxels at corners.
    sizes = np.bincount(ndimage.label(bent.anatomy.array > 0)[0].ravel())[1:]
    assert sizes.max() > 0.999 * sizes.sum()


def test_the_strongest_deformation_folds_nothing():
    image = SimpleITK.GetImageFromArray(np.zeros((40, 50, 60), np.uint8))
    image.SetSpacing((2.0, 2.0, 3.0))
    bend = _spline(image, 30.0, 1000.0, np.random.default_rng(0))  # every coefficient at its limit
    field = SimpleITK.TransformToDisplacementField(
        bend, SimpleITK.sitkVectorFloat64, image.GetSize(), image.GetOrigin(), image.GetSpacing(), image.GetDirection()
    )
    jacobian = SimpleITK.GetArrayFromImage(SimpleITK.DisplacementFieldJacobianDeterminant(field))
    assert jacobian[1:-1, 1:-1, 1:-1].min() > 0
    assert SimpleITK.GetArrayFromImage(field).std() > 4


def test_a_seed_is_a_mask_and_says_where_it_is_from(given, made):
    for seed in (0, 7):
        again = new_mask(given, seed)
        np.testing.assert_array_equal(again.labels.array, made[seed].labels.array)
        assert json.loads(json.dumps(again.record)) == made[seed].record
        alone = new_mask(given, seed, changes=["transplant", "scale", "move"]).record
        assert alone["drawn"]["scale"] == made[seed].record["drawn"]["scale"], (
            "one change draws what it draws among all"
        )
        assert (alone["host"], alone["donor"]) == (made[seed].record["host"], made[seed].record["donor"])
    hosts = {new.record["host"]["name"] for new in made}
    assert hosts == {"right", "left", "healthy"}
    for new in made:
        assert new.record["donor"]["name"] != new.record["host"]["name"], "of another brain"
        assert new.record["donor"]["name"] != "healthy"
    assert len({new.labels.array.tobytes() for new in made}) == len(made)


@pytest.mark.parametrize(("tilt", "shift"), [(0, 0), (6, 0), (-4, 7), (0, -5)])
def test_the_midline_is_found_in_a_turned_and_moved_brain(tilt, shift):
    plane = find_midline(brain(tilt, shift))
    expected = np.array([np.cos(np.deg2rad(tilt)), np.sin(np.deg2rad(tilt)), 0])
    assert np.rad2deg(np.arccos(np.clip(plane.normal @ expected, -1, 1))) < np.rad2deg(
        2 / 62
    )  # half a voxel at the side
    assert abs(plane.side(np.array([float(shift), 0, 0]))) < 2
    point = np.array([20.0, 5.0, -3.0])
    np.testing.assert_allclose(plane.side(plane.reflected(point)), -plane.side(point), atol=1e-9)
    np.testing.assert_allclose(plane.reflected(plane.reflected(point)), point, atol=1e-9)


def test_bad_input_is_one_sentence(given):
    with pytest.raises(MedDPMError, match="no change"):
        new_mask(given, 0, changes=["explode"])
    with pytest.raises(MedDPMError, match="has a tumor"):
        new_mask(given[2:], 0)
    with pytest.raises(MedDPMError, match="start from"):
        new_mask([], 0)
    whole = load_scheme("whole-head")
    with pytest.raises(MedDPMError, match="one scheme"):
        new_mask([*given, Mask(brain(), whole, "head")], 0)
    nothing_else = Volume(np.full((4, 4, 4), CORE, np.uint8), Geometry((4, 4, 4), np.eye(4)))
    with pytest.raises(MedDPMError, match="nothing but tumor"):
        new_mask([mask(nothing_else, "all")], 0)


def test_a_scheme_with_one_tumor_label_and_any_orientation():
    whole = load_scheme("whole-head")
    source = with_tumor(brain())
    labels = np.where(tumor_of(source.array), 2, source.array > 0).astype(np.uint8)
    turned = Geometry(SHAPE, source.geometry.ijk_to_ras @ np.eye(4)[[2, 1, 0, 3]])
    new = new_mask([Mask(Volume(np.ascontiguousarray(labels.transpose(2, 1, 0)), turned), whole, "head")], 1)
    assert set(np.unique(new.labels.array)) == {0, 1, 2}
    assert (new.anatomy.array[new.labels.array == 2] == 1).all()


def test_the_command_writes_what_generate_reads_and_only_what_is_missing(meddpm, tmp_path):
    for name, center in (("a", (34.0, 10.0, 6.0)), ("b", (-30.0, -14.0, 10.0))):
        write_nifti(tmp_path / "given" / f"{name}.nii.gz", with_tumor(brain(), center))
    arguments = ["masks", "given", "--out", "new", "--labels", "anatomy", "--changes", "move,scale"]
    first = meddpm(*arguments, "--number", 3, "--seed", 4)
    assert first.returncode == 0 and "3 made; masks in new" in first.stdout, first.stderr
    assert sorted(path.name for path in (tmp_path / "new").glob("*.seg.nrrd")) == [
        f"mask_seed{seed}.seg.nrrd" for seed in (4, 5, 6)
    ]
    read = read_mask(tmp_path / "new" / "mask_seed5.seg.nrrd", ANATOMY)
    record = json.loads((tmp_path / "new" / "mask_seed5.json").read_text())
    assert record["changes"] == ["scale", "move"] and "synthetic" in record["description"]
    for name, ml in record["ml"].items():
        count = np.count_nonzero(read.volume.array == ANATOMY.label_by_name(name).value)
        assert count * SPACING**3 / 1000 == pytest.approx(ml, abs=1e-3)
    before = (tmp_path / "new" / "mask_seed4.seg.nrrd").stat().st_mtime_ns
    second = meddpm(*arguments, "--number", 4, "--seed", 4, "--shard", "2/2")
    assert second.returncode == 0 and "1 made, 1 skipped" in second.stdout
    assert (tmp_path / "new" / "mask_seed4.seg.nrrd").stat().st_mtime_ns == before
    assert meddpm(*arguments, "--changes", "melt").returncode == 2
    assert set(CHANGES) > {"move", "scale"}
