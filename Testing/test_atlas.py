"""Structures for a brain of which only outline and tumor are known: nothing that is known moves, the rest fits."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import small_card, small_geometry, small_labels, write_small_model
from hypothesis import given, settings
from hypothesis import strategies as st
from test_geometry import oriented

from MedDPMLib import generate, load_model
from MedDPMLib.errors import MedDPMError
from MedDPMLib.imaging.geometry import Grid
from MedDPMLib.imaging.io import read_volume
from MedDPMLib.imaging.resample import resample_labels
from MedDPMLib.imaging.volume import Volume
from MedDPMLib.inference import atlas, timesteps
from MedDPMLib.inference.atlas import complete, network_labels
from MedDPMLib.masks.condition import condition
from MedDPMLib.masks.fit import fit
from MedDPMLib.masks.mask import Mask, read_mask
from MedDPMLib.masks.schemes import load_scheme
from MedDPMLib.masks.templates import demo_mask, load_template
from MedDPMLib.models.card import Card
from MedDPMLib.models.model import Model

ANATOMY, BRATS = load_scheme("anatomy"), load_scheme("brats")
SHARED = Path(__file__).parents[2] / "shared" / "data"
#: Of 2 mm, for speed.
GRID = Grid((96, 96, 72), (2.0, 2.0, 2.0), "LPS")
NO_CORE = np.zeros(GRID.shape, bool)
STRUCTURES = [label.value for label in ANATOMY.labels if label.role == "structure"]


@pytest.fixture(scope="module")
def glioma():
    return fit(demo_mask(BRATS), GRID)


def overlap(one, other, values=STRUCTURES) -> list[float]:
    """Dice's coefficient of each of ``values``."""
    pairs = [(one == value, other == value) for value in values]
    return [2 * np.count_nonzero(a & b) / (np.count_nonzero(a) + np.count_nonzero(b)) for a, b in pairs]


def test_what_is_known_stays_to_the_voxel(glioma):
    made = complete(glioma, BRATS, ANATOMY, seed=1)
    assert np.array_equal(made.labels > 0, glioma.labels > 0)
    for label in BRATS.tumor:
        same = ANATOMY.label_by_name(label.name).value
        assert np.array_equal(made.labels == same, glioma.labels == label.value)
    assert set(np.unique(made.labels)) == {0, *ANATOMY.values}
    assert made.geometry is glioma.geometry and made.outside == glioma.outside
    assert any("invented" in note for note in made.notes)


def test_a_seed_gives_the_same_brain_and_another_seed_another(glioma):
    one, same, other = (complete(glioma, BRATS, ANATOMY, seed).labels for seed in (1, 1, 2))
    assert np.array_equal(one, same)
    assert np.mean(overlap(one, other)) < 0.95


@pytest.mark.parametrize("name", ["ventricles-wide", "long"])
@pytest.mark.parametrize("tilt", [0.0, 10.0])
def test_a_template_is_found_in_its_own_outline(name, tilt, monkeypatch):
    """Turned, scaled and shifted; the others' structures lie elsewhere."""
    template = load_template(name)
    angle = np.deg2rad(tilt)
    moved = np.eye(4)
    moved[:3, :3] = np.diag([0.95, 1.0, 1.04]) @ np.array(
        [[1, 0, 0], [0, np.cos(angle), -np.sin(angle)], [0, np.sin(angle), np.cos(angle)]]
    )
    moved[:3, 3] = 5, -8, 3
    geometry = replace(template.volume.geometry, ijk_to_ras=moved @ template.volume.geometry.ijk_to_ras)
    place = GRID.centered_on(geometry.center)
    truth = resample_labels(Volume(template.volume.array, geometry), place, ANATOMY.priority).array
    monkeypatch.setattr(atlas, "_BENDING", 0.0)
    found = atlas._warped(template.volume, Volume(truth > 0, place), NO_CORE, np.random.default_rng(0))
    assert np.mean(overlap(found, truth)) > 0.8
    assert np.count_nonzero((found > 0) != (truth > 0)) < 0.05 * np.count_nonzero(truth)
    another = load_template("ventricles-narrow").volume
    others = atlas._warped(another, Volume(truth > 0, place), NO_CORE, np.random.default_rng(0))
    assert np.mean(overlap(others, truth)) < 0.7


def test_a_tumor_pushes_its_surroundings_away_from_it(monkeypatch):
    """Shells around balls in the left frontal lobe lie farther out then, by as much as patients' midlines shift: the
    more, the larger the ball."""
    monkeypatch.setattr(atlas, "_BENDING", 0.0)
    brain = load_template("ventricles-medium").volume
    k, j, i = np.indices(brain.geometry.shape)
    ras = brain.geometry.to_ras(np.stack([i, j, k], axis=-1))
    distance = np.linalg.norm(ras - [-28.0, 20.0, 25.0], axis=-1)
    shells = np.where(brain.array > 0, 1 + distance // 5, 0).astype(np.uint8)
    deep = (np.abs(ras[..., 0]) < 40) & (np.abs(ras[..., 2] - 20) < 20)  # where the outline holds nothing back
    for radius in (22, 30):
        ball = distance < radius
        moved = atlas._warped(
            Volume(shells, brain.geometry), Volume(brain.array > 0, brain.geometry), ball, np.random.default_rng(0)
        )
        shell = 2 + radius // 5
        near = distance[deep & (moved == shell)].mean() - distance[deep & (shells == shell)].mean()
        expected = 0.0275 * 4 / 3 * np.pi * radius**3 / 1000
        assert 0.6 * expected < near < 1.3 * expected


def test_left_stays_left(monkeypatch, glioma):
    """A mirrored outline and a mirrored template make the mirrored brain."""
    monkeypatch.setattr(atlas, "_BENDING", 0.0)
    template = load_template("long").volume
    mirrored = Volume(np.ascontiguousarray(template.array[:, :, ::-1]), template.geometry)
    outline, core = glioma.labels > 0, np.isin(glioma.labels, [1, 3])
    outline[:, :40, :30] = False  # not symmetric
    one = atlas._warped(template, Volume(outline, glioma.geometry), core, np.random.default_rng(0))
    flipped = Volume(np.ascontiguousarray(outline[:, :, ::-1]), glioma.geometry)
    other = atlas._warped(mirrored, flipped, core[:, :, ::-1], np.random.default_rng(0))
    assert np.mean(one != other[:, :, ::-1]) < 0.005


def test_it_does_not_matter_how_the_mask_is_stored():
    mask = demo_mask(BRATS)
    card = small_card(BRATS, grid=GRID)
    card = replace(card, completion=ANATOMY)
    expected = network_labels(mask, card, seed=3)
    geometry = oriented("SAR", mask.volume.geometry.size[::-1], center=mask.volume.geometry.center)
    volume = resample_labels(mask.volume, geometry, BRATS.priority)
    turned = Mask.from_volume(volume, BRATS, numbering=BRATS.own_numbering)
    found = network_labels(turned, card, seed=3)
    assert found.geometry.is_close(expected.geometry)
    assert np.mean(found.labels != expected.labels) < 1e-4


@settings(max_examples=8, deadline=None)
@given(st.data())
def test_whatever_is_called_a_brain_is_filled_or_refused(data):
    """Blocks, slabs, pieces with holes: the outline is kept, or a sentence says why not."""
    numbers = st.integers(0, 23)
    labels = np.zeros((24, 24, 24), np.uint8)
    for _ in range(data.draw(st.integers(1, 4))):
        corners = [sorted((data.draw(numbers), data.draw(numbers))) for _ in range(3)]
        box = tuple(slice(low, high + 1) for low, high in corners)
        labels[box] = data.draw(st.sampled_from([4, 4, 4, 0, 2]))
    if not (labels == 4).any():
        labels[12, 12, 12] = 4
    grid = Grid((24, 24, 24), (6.0, 6.0, 6.0), "LPS")
    mask = Mask.from_volume(Volume(labels, grid.centered_on([0.0, 0, 0])), BRATS, numbering=BRATS.own_numbering)
    fitted = fit(mask, grid)
    try:
        made = complete(fitted, BRATS, ANATOMY, seed=0)
    except MedDPMError as error:
        assert "measures" in str(error)
    else:
        assert np.array_equal(made.labels > 0, fitted.labels > 0)


@pytest.mark.skipif(not SHARED.is_dir(), reason="needs the shared data")
@pytest.mark.parametrize("case", ["BraTS2021_00495", "TCGA-DU-7294"])
def test_a_real_brain_gets_its_structures_about_where_they_are(case):
    files = SHARED / "brats" / case
    flair = next(path for path in files.glob("*.nii*") if "flair" in path.name.lower() or "t2f" in path.name.lower())
    mask = read_mask(next(files.glob("*seg*.nii*")), BRATS, brain_from=flair)
    made = complete(fit(mask, GRID), BRATS, ANATOMY, seed=0)
    truth = resample_labels(
        read_volume(SHARED / "anatomy" / f"{case}_anatomy.nii.gz"), made.geometry, ANATOMY.priority
    ).array
    names = ("Cerebral white matter", "Cerebellar cortex", "Brain stem", "Thalamus", "Lateral ventricle")
    found = overlap(made.labels, truth, [ANATOMY.label_by_name(name).value for name in names])
    assert min(found) > 0.3 and np.mean(found) > 0.5


# In a model ------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def completing(tmp_path_factory):
    card = replace(small_card(BRATS), completion=ANATOMY)
    return write_small_model(tmp_path_factory.mktemp("model") / "completing.safetensors", card)


def test_the_card_says_what_the_network_sees(completing):
    card = load_model(completing).card
    assert card == Card.from_json(card.to_json()) and card.completion == ANATOMY
    assert card.network_description["condition_channels"] == len(ANATOMY.labels)
    assert "Completion" in card.describe() and "Completion" not in small_card(BRATS).describe()
    assert "completion" not in small_card(BRATS).to_json()
    with pytest.raises(MedDPMError, match='"completion" lacks'):
        replace(card, completion=load_scheme("whole-head"))


def test_the_network_sees_the_completed_labels(completing, monkeypatch):
    model = load_model(completing)
    mask = Mask.from_volume(Volume(small_labels(BRATS), small_geometry()), BRATS, numbering=BRATS.own_numbering)
    seen, make = [], timesteps.condition_tensor
    monkeypatch.setattr(timesteps, "condition_tensor", lambda *a, **k: seen.append(make(*a, **k)) or seen[-1])
    made = generate(model, mask, seed=4, precision="float32")
    labels = network_labels(mask, model.card, seed=4)
    assert np.array_equal(seen[0][0].numpy(), condition(labels.labels, ANATOMY, (0, 1)))
    assert made.record["scheme"] == "brats" and any("invented" in note for note in made.record["notes"])
    generate(model, mask, seed=5, precision="float32")
    assert not torch.equal(seen[0], seen[1])


@pytest.mark.parametrize("name", ["whole.nii.gz", "whole.seg.nrrd"])
def test_the_completed_mask_is_what_the_model_draws(name, completing, small_mask, meddpm, tmp_path):
    """Given to a model of the same weights that knows the structures, it makes the same volumes."""
    done = meddpm("complete", small_mask, "--out", name, "--seed", 7, "--model", completing)
    assert done.returncode == 0 and "invented" in done.stdout
    model = load_model(completing)
    knowing = Model(replace(model.card, scheme=ANATOMY, completion=None), model.network, model.hash)
    one = generate(model, small_mask, seed=7, precision="float32")
    other = generate(knowing, read_mask(tmp_path / name, ANATOMY), seed=7, precision="float32")
    for modality, volume in one.items():
        assert volume.geometry.is_close(other[modality].geometry)
        assert np.array_equal(volume.array, other[modality].array)


def test_a_model_that_sees_masks_as_they_are_completes_none(small_model, small_mask, meddpm):
    done = meddpm("complete", small_mask, "--out", "whole.nii.gz", "--model", small_model)
    assert done.returncode == 2 and "adds no structures to a mask" in done.stderr


def test_a_completed_mask_of_another_kind_is_refused_before_anything_is_done(completing, small_mask, meddpm, tmp_path):
    done = meddpm("complete", small_mask, "--out", "whole.mha", "--model", completing)
    assert done.returncode == 2 and "ends with .seg.nrrd, .nii or .nii.gz" in done.stderr
    assert not (tmp_path / "whole.mha").exists()
