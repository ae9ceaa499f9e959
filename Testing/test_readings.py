"""What values mean is never guessed: every numbering is read right or asked about, none is taken for another."""

from __future__ import annotations

import itertools
import pickle
from functools import lru_cache

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from MedDPMLib.errors import MedDPMError
from MedDPMLib.imaging.geometry import Geometry, Grid
from MedDPMLib.imaging.resample import resample_labels
from MedDPMLib.imaging.volume import Volume
from MedDPMLib.masks.fit import fit
from MedDPMLib.masks.mask import Mask, read_mask
from MedDPMLib.masks.nesting import Nesting, judge_nesting
from MedDPMLib.masks.numberings import find_numbering, label_named, numberings
from MedDPMLib.masks.readings import AmbiguousLabels
from MedDPMLib.masks.schemes import LabelScheme, load_scheme
from MedDPMLib.masks.templates import load_template
from MedDPMLib.masks.tumor import paint_tumor

BRATS, ANATOMY, HEAD = (load_scheme(name) for name in ("brats", "anatomy", "whole-head"))

#: Values of necrosis, edema and enhancing tumor in files, and a name that such files have.
CONVENTIONS = {
    "brats": ((1, 2, 4), "BraTS2021_00495_seg"),
    "brats-2023": ((1, 2, 3), "BraTS-GLI-00495-000-seg"),
    "nnunet": ((2, 1, 3), "BRATS_001"),
    "brats-ped": ((2, 4, 1), None),
    "brats-2013": ((1, 2, 4), "VSD.Brain_3more.XX.O.OT.54517"),
}


@lru_cache
def structures() -> Volume:
    """A brain without tumor, 4 mm, in the values of the scheme anatomy."""
    mask = load_template("ventricles-medium")
    return resample_labels(
        mask.volume, Grid((48, 48, 36), (4.0,) * 3, "LPS").centered_on(mask.volume.geometry.center), ANATOMY.priority
    )


@lru_cache
def glioma(seed: int = 1, radius: float = 20.0) -> Volume:
    """That brain with a painted tumor; in the values of the scheme anatomy."""
    brain = structures()
    generator = np.random.default_rng(seed)
    center = np.array([28.0, 22.0, 25.0]) + generator.uniform(-8, 8, 3)
    return Volume(paint_tumor(brain.array, brain.geometry, ANATOMY, center, radius, seed=seed), brain.geometry)


def in_brats(volume: Volume) -> np.ndarray:
    return find_numbering(BRATS, "anatomy").translate(volume.array)


def renumbered(array: np.ndarray, values: dict[int, int]) -> np.ndarray:
    table = np.zeros(256, np.uint8)
    table[list(values)] = list(values.values())
    return table[array]


def tumor_alone(values, seed=1, radius=20.0) -> tuple[Volume, Volume, np.ndarray]:
    """The file with the tumor's parts numbered as ``values``, an image of its brain, and the right labels."""
    volume = glioma(seed, radius)
    right = in_brats(volume)
    file = renumbered(right, dict(zip((1, 2, 3), values, strict=True)))
    return Volume(file, volume.geometry), Volume((right > 0).astype(np.uint8), volume.geometry), right


# Tumors ---------------------------------------------------------------------------------------------


@settings(max_examples=15, deadline=None)
@given(st.sampled_from(sorted(CONVENTIONS)), st.integers(0, 50), st.sampled_from([14.0, 20.0, 26.0]), st.booleans())
def test_a_tumor_in_any_convention_is_read_right_or_asked_about(name, seed, radius, named):
    values, stem = CONVENTIONS[name]
    file, image, right = tumor_alone(values, seed, radius)
    try:
        mask = Mask.from_volume(file, BRATS, name=stem if named and stem else "mask", brain_from=image)
    except AmbiguousLabels as error:
        right_parts = {"Necrosis": values[0], "Edema": values[1], "Enhancing tumor": values[2]}
        assert any({n: v[0] for n, v, _ in one.volumes} == right_parts for one in error.readings), str(error)
        assert not (named and stem)
        return
    np.testing.assert_array_equal(mask.volume.array, right)
    assert "necrosis (" in " ".join(mask.notes)


def test_a_glioma_with_a_rim_is_read_by_how_its_parts_lie():
    for name in ("brats", "brats-2023", "nnunet"):
        file, image, right = tumor_alone(CONVENTIONS[name][0])
        mask = Mask.from_volume(file, BRATS, brain_from=image)
        np.testing.assert_array_equal(mask.volume.array, right)
        assert f'read as "{name}", by how the parts of the tumor lie' in mask.notes[0]


@settings(max_examples=20, deadline=None)
@given(st.permutations([1, 2, 3, 4]), st.integers(0, 30))
def test_an_export_in_the_order_of_segments_is_never_taken_for_another(order, seed):
    """3D Slicer numbers segments as they come: 1 to 4, in any order."""
    volume = glioma(seed)
    right = in_brats(volume)
    file = Volume(renumbered(right, dict(zip((1, 2, 3, 4), order, strict=True))), volume.geometry)
    try:
        mask = Mask.from_volume(file, BRATS)
    except AmbiguousLabels as error:
        assert list(order) != [1, 2, 3, 4]
        ordered = error.readings[0].numbering
        if "=" in ordered.name:  # what it looks like is what it is
            np.testing.assert_array_equal(ordered.translate(file.array), right)
            again = Mask.from_volume(file, BRATS, numbering=ordered.name)
            np.testing.assert_array_equal(again.volume.array, right)
        return
    np.testing.assert_array_equal(mask.volume.array, right)


def test_an_order_that_no_convention_has_is_among_what_is_asked():
    """A tumor alone, exported as enhancing, necrosis, edema: looks like BraTS-PED's numbers by volumes only."""
    file, image, right = tumor_alone((2, 3, 1))
    with pytest.raises(AmbiguousLabels, match='"1=enhancing tumor,2=necrosis,3=edema"') as caught:
        Mask.from_volume(file, BRATS, brain_from=image)
    first = caught.value.readings[0].numbering.name
    np.testing.assert_array_equal(Mask.from_volume(file, BRATS, numbering=first, brain_from=image).volume.array, right)


def test_what_can_be_two_things_is_asked_with_volumes():
    right = in_brats(glioma())
    two = renumbered(right, {1: 2, 2: 1, 3: 2})  # HD-GLIO: what is not enhancing, and the core
    with pytest.raises(AmbiguousLabels, match="can mean different things") as caught:
        Mask.from_volume(Volume(two, glioma().geometry), BRATS, name="case")
    names = [reading.numbering.name for reading in caught.value.readings]
    assert {"hd-glio", "nnunet"} <= set(names) and "brats" not in names
    first = caught.value.readings[0]
    voxel = glioma().geometry.voxel_volume
    assert {n: v for n, _, v in first.volumes}["Edema"] == (two == 1).sum() * voxel
    assert caught.value.code == "ambiguous-labels" and names[0] in caught.value.values["choices"]
    assert str(caught.value).startswith("case: ") and "ml" in str(caught.value)
    again = pickle.loads(pickle.dumps(caught.value))
    assert str(again) == str(caught.value) and len(again.readings) == len(caught.value.readings)


def test_a_resection_cavity_is_no_brain():
    right = in_brats(glioma())
    cavity = right.copy()
    cavity[(right == 2) & (np.arange(right.shape[2]) < right.shape[2] / 2 - 7)] = 5
    file = Volume(renumbered(cavity, {1: 1, 2: 2, 3: 3, 5: 4}), glioma().geometry)
    image = Volume((right > 0).astype(np.uint8), glioma().geometry)
    with pytest.raises(AmbiguousLabels, match="resection cavity"):
        Mask.from_volume(file, BRATS, brain_from=image)
    with pytest.raises(MedDPMError, match=r"resection cavity \(4, .*has no label") as caught:
        Mask.from_volume(file, BRATS, name="BraTS-GLI-00005-100-seg", brain_from=image)
    said = caught.value.values["example"].replace("...", "necrosis")
    mask = Mask.from_volume(file, BRATS, numbering=said, brain_from=image)
    assert (mask.volume.array == 1).sum() == ((cavity == 1) | (cavity == 5)).sum()


def test_a_name_that_contradicts_the_tumor_is_asked_about():
    """nnU-Net's numbers in a file that is still called as in BraTS."""
    file, image, _ = tumor_alone(CONVENTIONS["nnunet"][0])
    with pytest.raises(AmbiguousLabels, match="brats-2023.*nnunet|nnunet.*brats-2023"):
        Mask.from_volume(file, BRATS, name="BraTS-GLI-00495-000-seg", brain_from=image)


@pytest.mark.parametrize("orientation_step", [1, -1])
def test_nesting_does_not_depend_on_the_grid(orientation_step):
    volume = glioma()
    roles = in_brats(volume)
    roles = np.where(roles == 4, 0, np.array([0, 1, 2, 3, 0], np.uint8)[roles]).astype(np.uint8)
    assert judge_nesting(roles[::orientation_step], volume.geometry) is Nesting.TYPICAL
    for order in itertools.permutations((1, 2, 3)):
        table = np.array([0, *order], np.uint8)
        expected = Nesting.TYPICAL if order == (1, 2, 3) else Nesting.WRONG
        assert judge_nesting(table[roles], volume.geometry) is expected, order
    fine = np.repeat(roles, 2, axis=0)
    half = Geometry(fine.shape[::-1], volume.geometry.ijk_to_ras @ np.diag([1, 1, 0.5, 1]))
    assert judge_nesting(fine, half) is Nesting.TYPICAL
    assert judge_nesting(np.zeros((3, 3, 3), np.uint8), half) is Nesting.POSSIBLE


def test_a_tumor_outside_the_brain_is_refused_unless_somebody_says_so():
    file, image, _ = tumor_alone(CONVENTIONS["brats-2023"][0])
    half = image.array.copy()
    half[:, :, : np.nonzero(file.array)[2].max() + 2] = 0  # the half without the tumor is left
    half = Volume(half, image.geometry)
    with pytest.raises(MedDPMError, match="of what would be its tumor lie outside the brain"):
        Mask.from_volume(file, BRATS, brain_from=half)
    mask = Mask.from_volume(file, BRATS, numbering="brats-2023", brain_from=half)
    assert any("of tumor lie outside the brain" in note for note in mask.notes)


# Anatomies -------------------------------------------------------------------------------------------

#: The scheme's values by FreeSurfer's, left and right.
FREESURFER = {
    1: (2, 41), 2: (3, 42), 3: (4, 43), 4: (5, 44), 5: (7, 46), 6: (8, 47), 7: (10, 49), 8: (11, 50), 9: (12, 51),
    10: (13, 52), 11: (14, 14), 12: (15, 15), 13: (16, 16), 14: (17, 53), 15: (18, 54), 16: (26, 58), 17: (28, 60),
    18: (24, 24),
}  # fmt: skip
#: And by the Harvard-Oxford atlas of subcortical structures, which has no cerebellum.
HARVARD_OXFORD = {
    1: (1, 12), 2: (2, 13), 3: (3, 14), 7: (4, 15), 8: (5, 16), 9: (6, 17), 10: (7, 18), 13: (8, 8), 14: (9, 19),
    15: (10, 20), 16: (11, 21),
}  # fmt: skip


def two_sided(table: dict[int, tuple[int, int]]) -> Volume:
    volume = structures()
    right_side = np.arange(volume.array.shape[2]) < volume.array.shape[2] / 2  # i runs to the left
    sides = [renumbered(volume.array, {value: pair[side] for value, pair in table.items()}) for side in (0, 1)]
    return Volume(np.where(right_side, sides[1], sides[0]).astype(np.int32), volume.geometry)


def test_freesurfer_is_read_into_structures_and_into_a_brain():
    file = two_sided(FREESURFER)
    mask = Mask.from_volume(file, ANATOMY)
    assert 'read as "freesurfer"' in mask.notes[0] and "thalamus (10, 49)" in mask.notes[0]
    np.testing.assert_array_equal(mask.volume.array, structures().array)
    assert set(np.unique(Mask.from_volume(file, BRATS).volume.array)) == {0, 4}


def test_parcellations_of_freesurfer_and_fastsurfer_are_the_same_structures():
    """Cortex by region, cerebellum by lobule, white matter by region, brain stem by part."""
    file = two_sided(FREESURFER)
    parcels = {
        2: (3001, 3035, 2), 41: (4002, 5002, 41), 3: (1002, 1035, 11_110), 42: (2005, 2035, 12_175), 8: (601, 608, 8),
        47: (610, 628, 632), 16: (173, 174, 175),
    }  # fmt: skip
    array = file.array.copy()
    rows = np.arange(array.shape[0])[:, None, None] % 3 + np.zeros(array.shape, int)
    for value, regions in parcels.items():
        array = np.where(file.array == value, np.array(regions)[rows], array)
    mask = Mask.from_volume(Volume(array, file.geometry), ANATOMY)
    assert 'read as "freesurfer"' in mask.notes[0]
    np.testing.assert_array_equal(mask.volume.array, structures().array)


def test_lobes_are_brain_and_no_structures():
    """TotalSegmentator's brain_structures: lobes hold cortex and white matter, so that only a brain can be read."""
    volume = structures()
    values = {3: 10, 4: 10, 5: 5, 6: 5, 7: 16, 8: 6, 9: 7, 10: 7, 11: 10, 12: 10, 13: 1, 14: 15, 15: 15, 18: 2}
    file = renumbered(volume.array, {1: 0, 2: 0, **values})
    k, j, _ = np.indices(file.shape)
    middle = [np.mean(np.nonzero(volume.array.any(axis=axes))) for axes in ((1, 2), (0, 2))]
    lobe = np.where(j < middle[1] - 3, 12, np.where(k < middle[0] - 2, 15, np.where(j < middle[1] + 9, 13, 14)))
    file = np.where(np.isin(volume.array, (1, 2)), lobe, file).astype(np.uint8)
    mask = Mask.from_volume(Volume(file, volume.geometry), BRATS)
    assert 'read as "totalsegmentator-brain"' in mask.notes[0]
    np.testing.assert_array_equal(mask.volume.array, np.where(file > 0, BRATS.rest.value, 0))
    with pytest.raises(MedDPMError, match="frontal lobe.*for which the scheme"):
        Mask.from_volume(Volume(file, volume.geometry), ANATOMY)


@pytest.mark.parametrize("scheme", [ANATOMY, BRATS], ids=["anatomy", "brats"])
@pytest.mark.parametrize("side", ["left", "right"])
def test_half_a_brain_is_not_drawn_as_a_brain(scheme, side):
    file = two_sided(FREESURFER)
    left_values = [pair[0] for pair in FREESURFER.values() if pair[0] != pair[1]]
    right_values = [pair[1] for pair in FREESURFER.values() if pair[0] != pair[1]]
    dropped = right_values if side == "left" else left_values
    half = np.where(np.isin(file.array, [*dropped, 24]), 0, file.array)
    with pytest.raises(AmbiguousLabels):
        Mask.from_volume(Volume(half, file.geometry), scheme)


@pytest.mark.parametrize("scheme", [ANATOMY, BRATS, HEAD], ids=["anatomy", "brats", "whole-head"])
def test_other_atlases_and_other_organs_are_refused(scheme):
    with pytest.raises(AmbiguousLabels):
        Mask.from_volume(two_sided(HARVARD_OXFORD), scheme)
    # Organs of a trunk, 40 cm of it at 5 mm: spleen, kidneys, gallbladder, liver, stomach, aorta.
    trunk = np.zeros((80, 50, 70), np.uint8)
    for value, box in {
        1: (50, 60, 30, 40, 50, 65), 2: (40, 55, 28, 36, 45, 55), 3: (40, 55, 28, 36, 10, 20),
        4: (50, 55, 20, 24, 15, 20), 5: (50, 70, 10, 40, 5, 35), 6: (50, 60, 10, 25, 40, 55),
        7: (5, 75, 30, 34, 32, 37),
    }.items():  # fmt: skip
        k0, k1, j0, j1, i0, i1 = box
        trunk[k0:k1, j0:j1, i0:i1] = value
    for values in ([1, 2, 3, 4, 5, 6, 7], [1, 2, 3], [1, 2], [5], [1, 2, 3, 4]):
        some = np.where(np.isin(trunk, values), trunk, 0).astype(np.uint8)
        with pytest.raises(MedDPMError):
            Mask.from_volume(Volume(some, Geometry((70, 50, 80), np.diag([-5.0, -5, 5, 1]))), scheme)


@settings(max_examples=25, deadline=None)
@given(st.permutations(range(1, 19)))
def test_structures_in_another_order_are_not_taken_for_the_schemes(order):
    volume = structures()
    moved = dict(zip(range(1, 19), order, strict=True))
    file = Volume(renumbered(volume.array, moved), volume.geometry)
    volumes = np.bincount(volume.array.ravel(), minlength=19)[1:] * volume.geometry.voxel_volume / 1000
    # The order is refused if it makes any structure larger than in anyone.
    too_large = any(
        volumes[value - 1] > ANATOMY.label_by_value(target).plausible_ml[1] for value, target in moved.items()
    )
    if too_large:
        with pytest.raises(AmbiguousLabels):
            Mask.from_volume(file, ANATOMY)


def test_the_anatomies_that_ship_are_read_as_they_are():
    for volume in (structures(), glioma()):
        np.testing.assert_array_equal(Mask.from_volume(volume, ANATOMY).volume.array, volume.array)
        np.testing.assert_array_equal(Mask.from_volume(volume, BRATS).volume.array, in_brats(volume))


def test_a_brain_in_the_mask_of_a_head_is_asked_about():
    right = in_brats(glioma())
    file = Volume(renumbered(right, {1: 2, 2: 2, 3: 2, 4: 1}), glioma().geometry)
    with pytest.raises(AmbiguousLabels, match="head of 1"):
        Mask.from_volume(file, HEAD)


# What is said ----------------------------------------------------------------------------------------


def test_numberings_by_name_and_written_out():
    array = np.array([[[0, 1, 2, 4]]], np.uint16)
    np.testing.assert_array_equal(find_numbering(BRATS, "brats").translate(array), [[[0, 1, 2, 3]]])
    np.testing.assert_array_equal(find_numbering(ANATOMY, "brats").translate(array), [[[0, 19, 20, 21]]])
    np.testing.assert_array_equal(find_numbering(BRATS, "freesurfer").translate(array), [[[0, 0, 4, 4]]])
    written = find_numbering(BRATS, "1 = Edema, 2=NCR ,4=none")
    np.testing.assert_array_equal(written.translate(array), [[[0, 2, 1, 0]]])
    assert written.explains({1, 2, 4}) and not written.explains({3})
    for text, match in (
        ("brats2023", "no label convention"),
        ("1=edema,1=necrosis", "does not define"), ("1=liver", "liver.*is no label"),
        ("x=edema", "does not define"), ("0=edema", "does not define"), ("1=", "does not define"),
    ):  # fmt: skip
        with pytest.raises(MedDPMError, match=match):
            find_numbering(BRATS, text)
    assert [find_numbering(one, one.own_numbering).values for one in (BRATS, ANATOMY, HEAD)] == [
        tuple((value, value) for value in one.values) for one in (BRATS, ANATOMY, HEAD)
    ]


def test_a_convention_means_the_same_in_every_scheme():
    """BraTS's 2 is edema, whatever scheme it is read into."""
    there = {numbering.name: dict(numbering.meanings) for numbering in numberings(ANATOMY)}
    for scheme in (BRATS, HEAD):
        for numbering in numberings(scheme):
            if numbering.name in there:
                assert dict(numbering.meanings) == there[numbering.name]
            for file_value, value in numbering.values:
                meaning = dict(numbering.meanings)[file_value]
                assert label_named(meaning, scheme).value == value
    assert {numbering.name for numbering in numberings(HEAD)} == {"whole-head"}


@pytest.mark.parametrize(
    "name, label",
    [
        ("Left-Cerebral-White-Matter", 1), ("ctx-rh-cortex", 2), ("Right-Inf-Lat-Vent", 4), ("3rd-Ventricle", 11),
        ("Left-VentralDC", 17), ("choroid_plexus (left)", 3), ("Brain-Stem", 13), ("the peritumoral edema (ED)", 20),
        ("NCR / NET", 19), ("GD-enhancing tumor (ET)", 21), ("non_enhancing_tumor", 19), ("Left Thalamus Proper", 7),
    ],
)  # fmt: skip
def test_names_of_other_programs(name, label):
    assert label_named(name, ANATOMY).value == label
    assert label_named("liver", ANATOMY) is None and label_named("left", ANATOMY) is None


def test_a_schemes_own_labels_need_no_convention():
    data = BRATS.to_dict() | {"name": "mine", "own_numbering": "mine"}
    for label, name in zip(data["labels"], ("one", "two", "three", "four"), strict=True):
        label["name"], label["aliases"] = name, []
        del label["plausible_ml"]
    scheme = LabelScheme.from_dict(data)
    assert [numbering.name for numbering in numberings(scheme)] == ["mine"]
    volume = Volume(in_brats(glioma()), glioma().geometry)
    np.testing.assert_array_equal(Mask.from_volume(volume, scheme).volume.array, volume.array)


def test_what_is_asked_for_is_done_and_what_is_not_plausible_is_said(tmp_path):
    right = in_brats(glioma())
    swapped = Volume(renumbered(right, {1: 4, 2: 2, 3: 3, 4: 1}), glioma().geometry)
    mask = Mask.from_volume(swapped, BRATS, numbering="med-ddpm")
    assert any("not plausible: necrosis of 1." in note for note in mask.notes)
    fit(mask, Grid((192, 192, 144), (1.0,) * 3, "LPS"))
    from MedDPMLib.imaging.io import write_nifti

    write_nifti(tmp_path / "a.nii.gz", swapped)
    (tmp_path / "names.ctbl").write_text("1 Brain 1 1 1 255\n2 edema 1 1 1 255\n3 ET 1 1 1 255\n4 NCR 1 1 1 255\n")
    read = read_mask(tmp_path / "a.nii.gz", BRATS, numbering=str(tmp_path / "names.ctbl"))
    np.testing.assert_array_equal(read.volume.array, right)


def test_a_numbering_that_turns_a_tumor_inside_out_is_done_and_said():
    """A table or an option counts more than what the tumor looks like, but may belong to other files."""
    right = in_brats(glioma())
    swapped = Volume(renumbered(right, {1: 2, 2: 1, 3: 3, 4: 4}), glioma().geometry)
    doubt = "this is not plausible: the parts of its tumor do not lie as those of a glioma do"
    for text, is_doubted in (
        ("1=necrosis,2=edema,3=enhancing tumor,4=rest of the brain", True),
        ("2=necrosis,1=edema,3=enhancing tumor,4=rest of the brain", False),
    ):
        assert (doubt in Mask.from_volume(swapped, BRATS, numbering=text).notes) == is_doubted
