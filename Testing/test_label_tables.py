"""Tables of labels beside a mask: what they call a value is what it means, or it is refused."""

from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from test_damaged_files import BRATS, glioma

from MedDPMLib.errors import MedDPMError
from MedDPMLib.imaging.io import write_nifti
from MedDPMLib.imaging.volume import Volume
from MedDPMLib.masks.label_tables import read_table
from MedDPMLib.masks.mask import read_mask

NAMES = {1: "Necrosis", 2: "Edema", 3: "Enhancing tumor", 4: "Rest of the brain"}


def ctbl(names):
    return "# Color table file\n# 3 values\n" + "".join(
        f"{value} {name.replace(' ', '_')} 255 0 {value} 255\n" for value, name in names.items()
    )


def slicer_csv(names):
    return "LabelValue,Name,Color_R,Color_G,Color_B,Color_A\n" + "".join(
        f"{value},{name},255,0,{value},255\n" for value, name in names.items()
    )


def itk_snap(names):
    return (
        '################\n# ITK-SnAP Label Description File\n    0     0    0    0        0  0  0    "Clear Label"\n'
        + "".join(f'    {value}   255    0    {value}        1  1  1    "{name}"\n' for value, name in names.items())
    )


def freesurfer(names):
    return "#No. Label Name:                            R   G   B   A\n0   Unknown      0   0   0   0\n" + "".join(
        f"{value}   {name.replace(' ', '-')}    245 245 {value}   0\n" for value, name in names.items()
    )


def dataset(names):
    return json.dumps({"labels": {"background": 0} | {name: value for value, name in names.items()}})


def dataset_1(names):
    return json.dumps({"labels": {"0": "background"} | {str(value): name for value, name in names.items()}})


FORMS = {
    "case_ColorTable.ctbl": ctbl, "case.txt": ctbl, "case-label_ColorTable.csv": slicer_csv, "case.label": itk_snap,
    "labels.txt": itk_snap, "FreeSurferColorLUT.txt": freesurfer, "dataset.json": dataset, "../dataset.json": dataset_1,
}  # fmt: skip


@pytest.mark.parametrize("form", FORMS)
@settings(max_examples=6, deadline=None)
@given(order=st.permutations([1, 2, 3, 4]))
def test_a_table_beside_a_mask_says_what_its_values_are(tmp_path_factory, form, order):
    folder = tmp_path_factory.mktemp("case") / "labelsTr"
    volume = glioma()
    table = np.array([0, *order], np.uint8)
    stem = "case-label" if form.startswith("case-label") else "case"
    write_nifti(folder / f"{stem}.nii.gz", Volume(table[volume.array], volume.geometry))
    names = {order[value - 1]: name for value, name in NAMES.items()}
    (folder / form).write_text(FORMS[form](dict(sorted(names.items()))), encoding="utf-8")
    mask = read_mask(folder / f"{stem}.nii.gz", BRATS)
    np.testing.assert_array_equal(mask.volume.array, volume.array)
    assert f"by {form.removeprefix('../')}" in mask.notes[0]


def test_a_table_of_its_own_that_cannot_be_true_is_refused_and_one_of_the_folder_passed_over(tmp_path):
    volume = glioma()
    path = tmp_path / "case.nii.gz"
    write_nifti(path, volume)
    for names, match in (
        ({1: "Necrosis", 2: "Edema"}, "does not name the values 3, 4"),
        (NAMES | {3: "Liver"}, 'calls the value 3 of .* "Liver", which is no label'),
        ({1: "Brain", 2: "Edema", 3: "ET", 4: "Necrosis"}, r"would make .* necrosis of 1\.\d+ l"),
    ):
        (tmp_path / "case.ctbl").write_text(ctbl(names))
        with pytest.raises(MedDPMError, match=match):
            read_mask(path, BRATS)
        np.testing.assert_array_equal(read_mask(path, BRATS, numbering="med-ddpm").volume.array, volume.array)
        (tmp_path / "case.ctbl").rename(tmp_path / "labels.ctbl")
        np.testing.assert_array_equal(read_mask(path, BRATS).volume.array, volume.array)
        (tmp_path / "labels.ctbl").unlink()


def test_what_is_no_table_says_nothing(tmp_path):
    volume = glioma()
    write_nifti(tmp_path / "case.nii.gz", volume)
    for name, text in (
        ("case.txt", "Patient notes: 3 lesions"), ("labels.csv", "case,age\n1,30\n"), ("dataset.json", "{"),
        ("case.ctbl", itk_snap({1: "Label 1", 2: "Label 2"})), ("case.label", ""),
    ):  # fmt: skip
        (tmp_path / name).write_text(text)
        assert 'read as "med-ddpm", by the volumes' in read_mask(tmp_path / "case.nii.gz", BRATS).notes[0]
        with pytest.raises(MedDPMError, match="names no labels|does not name its labels"):
            read_table(tmp_path / name)
    with pytest.raises(MedDPMError, match="cannot be read"):
        read_table(tmp_path / "absent.ctbl")
    (tmp_path / "latin.ctbl").write_bytes("1 Ödem 1 2 3 255\n".encode("latin-1"))
    assert read_table(tmp_path / "latin.ctbl") == {1: "Ödem"}
