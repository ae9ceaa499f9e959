"""Real-world inputs that were taken wrongly once: read right, or refused with the reason. From ../shared/cases."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from MedDPMLib.errors import MedDPMError
from MedDPMLib.imaging.geometry import Grid
from MedDPMLib.masks.fit import fit
from MedDPMLib.masks.mask import read_mask
from MedDPMLib.masks.readings import AmbiguousLabels
from MedDPMLib.masks.schemes import load_scheme
from MedDPMLib.models.store import load_card_and_state
from MedDPMLib.prepare import STANDARDS, DatasetSettings, find_cases, write_dataset

CASES = Path(__file__).parents[2] / "shared" / "cases"
pytestmark = pytest.mark.skipif(not CASES.is_dir(), reason="the cases (../shared/cases) are not here")

MASKS, IMAGE = CASES / "masks", CASES / "masks" / "brain_image.nii.gz"
BRATS, ANATOMY = load_scheme("brats"), load_scheme("anatomy")
GRID = Grid((192, 192, 144), (1.0,) * 3, "LPS")

#: The glioma that the cases are made of: ml of each label, and where the enhancing tumor's middle is (RAS).
VOLUMES = {"Necrosis": 4.94, "Edema": 44.1, "Enhancing tumor": 16.0, "Rest of the brain": 1197}
CENTER = np.array([26.7, 26.2, 23.9])

#: What is read right: the file, and where the tumor then is, if not there.
RIGHT = {
    "G2_units_metre.nii.gz": None,
    "G3_codes00.nii.gz": (-68.8, -69.3, 95.4),  # as 3D Slicer has it
    "G4_gantry_tilt20.nii.gz": (26.7, 34.9, 23.9),
    "G8_nii_with_gz_content.nii": None,
    "G8_niigz_not_gzipped.nii.gz": None,
    "L0_brats2021.nii.gz": None,
    "L0_brats2023.nii.gz": None,
    "L1_VSD.Brain_3more.XX.O.OT.mha": None,
    "L4_nnunet_msd.nii.gz": None,
    "L13_float_0.99999.nii.gz": None,
    "N4_no_space.nrrd": None,
    "S2_slicer410_four.seg.nrrd": None,
    "S4_layers_last.seg.nrrd": None,
    "S5_cropped_offset.seg.nrrd": None,
    "S7_gap.seg.nrrd": None,
    "X1_latin1_key.mha": None,
}

REFUSED = {
    "G1b_sform_aligned_mirrored.nii.gz": "gives two positions, which are up to 191 mm apart",
    "G5_spacing_10mm.nii.gz": "650 x 870 x 650 mm, which is not the size of a brain: .* about 2 x 2 x 2 mm",
    "L2_brats2024_post_RC4.nii.gz": r"different things: .*brats-2024 .*resection cavity \(4\) 11 ml.*brats-2013",
    "L5_hdglio.nii.gz": r"different things: .*hd-glio \(edema \(1\) 44.1 ml, enhancing tumor \(2\) 21 ml\)",
    "M1_slicer_export_order.nii.gz": r"look like rest of the brain \(1\) 1.2 l, edema \(2\) .* necrosis \(4\)",
    "M2_crc_wrong.nii.gz": "damaged: .*incorrect data check",
    "N6_onebyte.nii.gz": "damaged: .*incorrect data check",
    "X5_value0.seg.nrrd": 'the segment "Brain" has the value 0',
    "brain_image.nii.gz": "the values 105, 110, .* not in the scheme",
}


@pytest.mark.parametrize("name", RIGHT)
def test_what_can_be_read_is_read_right(name):
    alone = name.startswith(("L0", "L1_", "L4"))
    mask = read_mask(MASKS / name, BRATS, brain_from=IMAGE if alone else None)
    labels, geometry = mask.volume.array, mask.volume.geometry
    for label in BRATS.labels:
        volume = (labels == label.value).sum() * geometry.voxel_volume / 1000
        assert volume == pytest.approx(VOLUMES[label.name], rel=0.005), label.name
    k, j, i = np.nonzero(labels == 3)
    center = geometry.to_ras(np.stack([i, j, k], axis=1)).mean(axis=0)
    np.testing.assert_allclose(center, CENTER if RIGHT[name] is None else RIGHT[name], atol=0.06)
    assert fit(mask, GRID).labels.any() and any("values read as" in note for note in mask.notes)


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_is_refused_with_the_reason(name):
    alone = name.startswith(("L2", "L5"))
    with pytest.raises(MedDPMError, match=REFUSED[name]) as caught:
        read_mask(MASKS / name, BRATS, brain_from=IMAGE if alone else None)
    assert str(MASKS / name) in str(caught.value)
    assert isinstance(caught.value, AmbiguousLabels) == name.startswith(("L", "M1", "brain"))


def test_a_contradiction_is_resolved_by_who_looked():
    for geometry, side in (("sform", -1), ("qform", 1)):
        mask = read_mask(MASKS / "G1b_sform_aligned_mirrored.nii.gz", BRATS, geometry=geometry)
        i = np.nonzero(mask.volume.array == 3)[2].mean()
        assert mask.volume.geometry.to_ras(np.array([i, 0, 0]))[0] == pytest.approx(side * 26.7, abs=0.06)


def test_freesurfers_structures_come_from_numbers_and_from_names():
    by_number = read_mask(MASKS / "L10_freesurfer_aseg.nii.gz", ANATOMY)
    by_name = read_mask(MASKS / "S1c_freesurfer_names.seg.nrrd", ANATOMY)
    for name in ("Lateral ventricle", "Hippocampus", "Cerebral cortex"):
        value = ANATOMY.label_by_name(name).value
        assert (by_number.volume.array == value).sum() == (by_name.volume.array == value).sum() > 0
    assert set(np.unique(read_mask(MASKS / "S1c_freesurfer_names.seg.nrrd", BRATS).volume.array)) == {0, 4}


@pytest.mark.parametrize(
    "folder, problem",
    [("P3_upenn", None), ("P4_origin_0.01mm", None), ("P5_brats2024_gli", "resection cavity (4, 11 ml)")],
)
def test_folders_of_cases(tmp_path, folder, problem):
    chosen = DatasetSettings("brats", STANDARDS["brats"].modalities)
    cases = find_cases([CASES / "prepare" / folder], BRATS, chosen.modalities)
    (report,) = write_dataset(cases, tmp_path / "out", chosen)
    if problem is None:
        assert report.problem is None and abs(int(report.found["Enhancing tumor (voxels)"]) - 16_050) < 100
    else:
        assert problem in str(report.problem) and not list(tmp_path.glob("out/labelsTr/*"))


@pytest.mark.parametrize(
    "name, said",
    [
        ("drive_folder.zip", "archive of files: unpack it, and use model/model_brats.pt"),
        ("empty.pt", "an empty file"),
        ("google_drive_page.pt", "a web page, not the file itself"),
        ("keras.h5", "an HDF5 file"),
        ("legacy.pth", "PyTorch before 1.6"),
        ("lfs_pointer.pt", "a pointer of Git LFS"),
        ("lightning.ckpt", "not a Med-DDPM checkpoint"),
    ],
)
def test_checkpoints(name, said):
    with pytest.raises(MedDPMError, match=said):
        load_card_and_state(CASES / "checkpoints" / name)
