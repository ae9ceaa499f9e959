"""Mask in, volumes out: in place, repeatable, recorded."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys

import nibabel
import numpy as np
import pytest
import torch
from scipy import ndimage

import MedDPMLib
from MedDPMLib import generate, load_model
from MedDPMLib.diffusion.names import METHODS
from MedDPMLib.diffusion.samplers import sample
from MedDPMLib.errors import MedDPMError
from MedDPMLib.imaging.geometry import Geometry, Grid
from MedDPMLib.imaging.io import read_volume
from MedDPMLib.imaging.volume import Volume
from MedDPMLib.inference.record import is_finished, read_result, sidecar, write_result
from MedDPMLib.inference.stored import from_stored, stored_as, to_stored
from MedDPMLib.masks.condition import condition
from MedDPMLib.masks.mask import Mask
from MedDPMLib.masks.schemes import load_scheme
from MedDPMLib.models.bundle import write_bundle
from MedDPMLib.models.card import Card
from MedDPMLib.networks import build_network
from MedDPMLib.networks.denoiser import Denoiser
from MedDPMLib.runtime.device import choose_execution

GRID = Grid((24, 16, 16), (2.0, 2.0, 2.0), "LPS")


def small_card(prediction: str = "x0", modalities=("t1", "flair")) -> Card:
    return Card(
        name="small",
        title="Small",
        summary="For tests.",
        network={"kind": "wavelet-unet", "channels": [8, 16]},
        scheme=load_scheme("brats"),
        modalities=modalities,
        grid=GRID,
        mask_encoding=(0.0, 1.0),
        intensity_range=(-1.0, 1.0),
        schedule={"name": "cosine", "timesteps": 250},
        prediction=prediction,
        training="Not trained.",
        training_data=({"name": "none", "license": "none", "cases": None},),
        license="Apache-2.0",
        intended_use="Tests.",
        limitations="Everything.",
    )


@pytest.fixture(scope="module")
def bundle(tmp_path_factory):
    torch.manual_seed(1)
    network = build_network(small_card().network_description)
    for parameter in network.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    path = tmp_path_factory.mktemp("bundle") / "small.safetensors"
    write_bundle(path, small_card(), network.state_dict(), dtype=torch.float16)
    return path


def brats_mask(geometry: Geometry | None = None) -> Volume:
    geometry = geometry or GRID.centered_on(np.array([3.0, -7.0, 11.0]))
    labels = np.zeros(geometry.shape, np.uint8)
    labels[2:-2, 2:-2, 2:-2] = 4
    labels[5:9, 5:9, 5:9] = 2
    labels[6:8, 6:8, 6:8] = 3
    return Volume(labels, geometry)


def checked(volume: Volume) -> Mask:
    return Mask.from_volume(volume, load_scheme("brats"), numbering="med-ddpm")


def test_the_result_has_every_modality_in_place(bundle):
    mask = checked(brats_mask())
    result = generate(load_model(bundle), mask, seed=3, steps=2)
    assert list(result) == ["t1", "flair"]
    for volume in result.values():
        assert volume.array.dtype == np.float32 and np.abs(volume.array).max() <= 1
        assert volume.geometry.is_close(mask.volume.geometry)


def test_the_same_seed_gives_the_same_volume_and_another_another(bundle):
    model, mask = load_model(bundle), checked(brats_mask())
    first, again, other = (generate(model, mask, seed=seed, steps=2)["t1"].array for seed in (5, 5, 6))
    assert np.array_equal(first, again) and not np.array_equal(first, other)


def test_numbers_of_numpy_are_whole_numbers_and_others_are_reported(bundle, tmp_path):
    model, mask = load_model(bundle), checked(brats_mask())
    generated = generate(model, mask, seed=np.int64(5), steps=np.int32(2))
    assert np.array_equal(generated["t1"].array, generate(model, mask, seed=5, steps=2)["t1"].array)
    write_result(tmp_path, "case", generated)
    for wrong in ({"seed": 1.5}, {"seed": None}, {"steps": 2.0}, {"steps": "3"}):
        with pytest.raises(MedDPMError, match="must be a whole number from"):
            generate(model, mask, **wrong)


def test_generation_is_the_free_sampler_over_the_free_denoiser(tmp_path):
    """generate() in float32 equals sample() over model.denoiser: one way of doing it, two doors."""
    card = dataclasses.replace(
        small_card("noise"), network={"kind": "unet", "base": 32, "multipliers": [1, 1], "blocks": 1, "attention": [2]}
    )
    torch.manual_seed(2)
    network = build_network(card.network_description)
    for parameter in network.parameters():
        torch.nn.init.normal_(parameter, std=0.05)
    write_bundle(tmp_path / "unet.safetensors", card, network.state_dict())
    model, mask = load_model(tmp_path / "unet.safetensors"), checked(brats_mask())
    labels = torch.from_numpy(model.card.scheme.one_hot(mask.volume.array)).float()[None]
    expected = sample(
        model.denoiser,
        labels,
        model.schedule,
        shape=(1, 2, *mask.volume.array.shape),
        method="ddim",
        steps=10,
        generator=torch.Generator().manual_seed(7),
    )[0]
    result = generate(model, mask, seed=7, steps=10, sampler="ddim", precision="float32")
    np.testing.assert_allclose(result["t1"].array, expected[0], atol=2e-3)
    np.testing.assert_allclose(result["flair"].array, expected[1], atol=2e-3)


def random_bundle(path, **changes):
    """A bundle of a small plain U-Net with ``changes`` to its card; its random weights listen to all inputs."""
    network = {"kind": "unet", "base": 32, "multipliers": [1], "blocks": 1, "attention": [8]}
    card = dataclasses.replace(small_card("noise"), network=network, **changes)
    torch.manual_seed(3)
    network = build_network(card.network_description)
    for parameter in network.parameters():
        torch.nn.init.normal_(parameter, std=0.05)
    write_bundle(path, card, network.state_dict())
    return path


@pytest.mark.parametrize("positions", [False, True])
def test_guidance_is_the_difference_that_labels_make_made_larger(tmp_path, positions):
    """Against the formula over the free denoiser; without labels means their channels empty, places known."""
    model = load_model(random_bundle(tmp_path / "b.safetensors", positions=positions, label_dropout=0.1))
    mask = checked(brats_mask())
    full = torch.from_numpy(condition(mask.volume.array, mask.scheme, (0, 1), positions=positions))[None]
    empty = full.clone()
    empty[:, :4] = 0

    def guided(x, t, _):
        without, given = model.denoiser(x, t, empty), model.denoiser(x, t, full)
        return without + 2.5 * (given - without)

    expected = sample(
        guided, full, model.schedule, shape=(1, 2, 16, 16, 24), method="ddim", steps=4,
        generator=torch.Generator().manual_seed(7),
    )[0]  # fmt: skip
    settings = {"seed": 7, "steps": 4, "sampler": "ddim", "precision": "float32"}
    result = generate(model, mask, guidance=2.5, **settings)
    np.testing.assert_allclose(result["t1"].array, expected[0], atol=2e-3)
    assert result.record["guidance"] == 2.5
    plain = generate(model, mask, **settings)
    assert plain.record["guidance"] == 1 and not np.allclose(plain["t1"].array, result["t1"].array, atol=1e-2)


@pytest.mark.parametrize(
    ("guidance", "says"),
    [
        (2.0, "does not support guidance"),
        (-1, "at least 0 and at most 20"),
        (float("nan"), "at most 20"),
        ("much", "much"),
    ],
)
def test_guidance_that_cannot_be_is_reported(bundle, guidance, says):
    with pytest.raises(MedDPMError, match=says):
        generate(load_model(bundle), checked(brats_mask()), guidance=guidance, steps=2)


def test_one_hot_order_is_x_then_labels_in_the_published_layout(bundle):
    model = load_model(bundle)
    x, condition = torch.randn(2, 2, 16, 16, 24), torch.zeros(2, 4, 16, 16, 24)
    noise = model.denoiser(x, torch.tensor([0, 249]), condition)
    assert noise.shape == x.shape and noise.dtype == torch.float32


@pytest.mark.parametrize(
    ("x", "t", "labels", "says"),
    [
        ((2, 3, 16, 16, 16), [0, 1], (2, 4, 16, 16, 16), "x is"),
        ((2, 16, 16, 16), [0, 1], (2, 4, 16, 16, 16), "x is"),
        ((2, 2, 16, 16, 16), [0, 1], (2, 3, 16, 16, 16), "condition is"),
        ((2, 2, 16, 16, 16), [0, 1], (1, 4, 16, 16, 16), "condition is"),
        ((2, 2, 16, 16, 16), [0], (2, 4, 16, 16, 16), "t is 2 whole"),
        ((2, 2, 16, 16, 16), [0, -1], (2, 4, 16, 16, 16), "from 0 to 249"),
        ((2, 2, 16, 16, 16), [0, 250], (2, 4, 16, 16, 16), "from 0 to 249"),
        ((2, 2, 16, 16, 16), [0.5, 1.0], (2, 4, 16, 16, 16), "whole"),
    ],
)
def test_the_denoiser_checks_what_it_is_given(bundle, x, t, labels, says):
    with pytest.raises(MedDPMError, match=says):
        load_model(bundle).denoiser(torch.zeros(x), torch.tensor(t), torch.zeros(labels))


def test_what_is_neither_mask_nor_model_is_refused(bundle):
    for wrong in (np.zeros((4, 4, 4)), None, 3):
        with pytest.raises(MedDPMError, match="a mask is a file"):
            generate(load_model(bundle), wrong)
        with pytest.raises(MedDPMError, match="name or file"):
            load_model(wrong)


def test_space_mask_puts_the_volume_on_the_masks_grid(bundle):
    matrix = np.diag([1.0, -1.0, 1.5, 1.0])
    matrix[:3, 3] = [-20, 30, 5]
    mask = checked(brats_mask(Geometry((40, 30, 20), matrix)))
    result = generate(load_model(bundle), mask, steps=1, space="mask")
    assert result["t1"].geometry.is_close(mask.volume.geometry)
    assert result.record["space"] == "mask"


def test_progress_sees_every_step_and_can_cancel(bundle):
    seen = []

    class Cancelled(Exception):
        pass

    def progress(step, steps, x0):
        seen.append((step, steps, tuple(x0.shape)))
        if step == 2:
            raise Cancelled

    with pytest.raises(Cancelled):
        generate(load_model(bundle), checked(brats_mask()), steps=4, progress=progress)
    assert seen == [(1, 4, (1, 2, 16, 16, 24)), (2, 4, (1, 2, 16, 16, 24))]


def test_defaults_are_the_cards_standard(bundle):
    model = load_model(bundle)
    record = generate(model, checked(brats_mask())).record
    assert {"sampler": record["sampler"], "steps": record["steps"]} == model.card.qualities["standard"]


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"steps": 0}, "1 to 10000"),
        ({"steps": 251}, "1 to 250"),
        ({"sampler": "euler"}, "euler"),
        ({"space": "world"}, "model, mask"),
        ({"seed": -1}, "seed"),
        ({"device": "gpu"}, "gpu"),
        ({"device": "cuda:63"}, "cuda:63"),
        ({"precision": "float8"}, "float8"),
    ],
)
def test_wrong_settings_are_refused_in_a_sentence(bundle, settings, says):
    with pytest.raises(MedDPMError, match=says):
        generate(load_model(bundle), checked(brats_mask()), **settings)


def test_a_mask_of_another_scheme_is_refused(bundle):
    mask = brats_mask()
    scheme = load_scheme("whole-head")
    head = Volume((mask.array > 0).astype(np.uint8), mask.geometry)
    head = Mask.from_volume(head, scheme, numbering=scheme.own_numbering)
    with pytest.raises(MedDPMError, match='needs "brats"'):
        generate(load_model(bundle), head)


def test_memory_is_checked_before_and_explained(bundle, monkeypatch):
    monkeypatch.setattr("MedDPMLib.inference.memory_plan.free_memory", lambda device: 1_000)
    monkeypatch.setattr("MedDPMLib.inference.memory_plan.held_memory", lambda device: 0)
    with pytest.raises(MedDPMError, match="not enough memory on cpu for small .* in bfloat16, .* in float32"):
        generate(load_model(bundle), checked(brats_mask()))


def test_memory_that_runs_out_is_explained(bundle):
    model = load_model(bundle)

    class Greedy(Denoiser):
        def encode_condition(self, condition):
            return condition

        def denoise(self, x, t, encoded):
            return torch.empty(2**50)

    model.prepared = lambda execution, mode: Greedy()
    with pytest.raises(MedDPMError, match="it ran out"):
        generate(model, checked(brats_mask()))


# What is written -------------------------------------------------------------------------------------


def test_files_say_synthetic_and_carry_the_record(bundle, tmp_path):
    result = generate(load_model(bundle), checked(brats_mask()), seed=11, steps=2)
    paths = write_result(tmp_path, "case", result)
    assert [path.name for path in paths] == ["case_t1.nii.gz", "case_flair.nii.gz"]
    for path, modality in zip(paths, result, strict=True):
        header = nibabel.load(path).header
        assert bytes(header["descrip"]).rstrip(b"\0") == b"synthetic, MedDPM"
        # Integers from 0 on for viewers, which apply nothing to them; the intensities come back with the record.
        stored = nibabel.load(path)
        assert stored.get_data_dtype() == np.int16 and stored.dataobj.slope == 1 and stored.dataobj.inter == 0
        assert 0 <= read_volume(path).array.min() and read_volume(path).array.max() <= 1000
        read = read_result(path)
        inside = result.labels != 0
        assert np.abs(read.array - result[modality].array)[inside].max() <= 0.001 + 1e-6
        assert (read.array[~inside] == -1).all()
        assert read.geometry.is_close(result[modality].geometry)
        record = json.loads(sidecar(path).read_text())
        assert record["modality"] == modality and record["description"] == "synthetic, MedDPM"
        assert record["seed"] == 11 and record["steps"] == 2
        assert record["model"]["hash"] and record["mask"]["hash"] and record["versions"]["torch"]
    run = {key: result.record[key] for key in ("model", "mask", "seed", "sampler", "steps", "precision", "space")}
    assert is_finished(tmp_path, "case", ["t1", "flair"], run)
    assert not is_finished(tmp_path, "case", ["t1", "flair"], {**run, "seed": 12})
    assert not is_finished(tmp_path, "case", ["t1", "t2"], run)
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "case_flair.json",
        "case_flair.nii.gz",
        "case_t1.json",
        "case_t1.nii.gz",
    ]


@pytest.mark.parametrize("low, high", [(-1.0, 1.0), (0.0, 1.0), (-3.0, 5.0)])
def test_stored_intensities_come_back(low, high):
    line = stored_as((low, high))
    array = np.random.default_rng(0).uniform(low, high, (5, 6, 7)).astype(np.float32)
    array[0] = low
    everywhere = np.ones(array.shape, bool)
    stored = to_stored(Volume(array, Geometry((7, 6, 5), np.eye(4))), line, everywhere)
    assert stored.array.dtype == np.int16 and not stored.array[0].any() and stored.array.max() <= 1000
    back = from_stored(stored, {"intensities": line})
    assert np.abs(back.array - array).max() <= (high - low) / 2000 + 1e-5
    # Below the range there is nothing but background; volumes of before are as they were.
    below = Volume(array - (high - low), stored.geometry)
    assert not to_stored(below, line, everywhere).array.any()
    assert from_stored(below, {}) is below


@pytest.mark.parametrize("space", ["model", "mask"])
def test_outside_the_mask_exactly_nothing_is_stored(bundle, space):
    """Faint values that a network leaves there tint thresholds and volume renderings; its own are kept in Python."""
    volume = brats_mask()
    volume.array[8, 8, 8] = 0  # a gap that the brain encloses is no background
    # Rotated by 20 degrees, with finer voxels: nothing coincides with the model's grid.
    turn = np.eye(4)
    turn[:2, :2] = 0.9 * np.array([[np.cos(0.35), -np.sin(0.35)], [np.sin(0.35), np.cos(0.35)]])
    placed = Geometry(volume.geometry.size, volume.geometry.ijk_to_ras @ turn)
    made = generate(load_model(bundle), checked(Volume(volume.array, placed)), steps=2, space=space)
    enclosed = ndimage.binary_fill_holes(made.labels != 0)
    for modality, stored in made.stored().items():
        network = made[modality].array
        assert stored.array.shape == made.labels.shape and stored.geometry is made[modality].geometry
        assert np.ptp(network[~enclosed]) > 0 and not stored.array[~enclosed].any()
        expected = np.rint(500 * (network[enclosed].astype(np.float64) + 1)).clip(0, None)
        assert np.abs(stored.array[enclosed] - expected).max() <= 1  # half up or half to even
    assert made.record["intensities"]["outside_mask"] == 0
    if space == "mask":
        assert np.array_equal(made.labels, volume.array) and enclosed[8, 8, 8]


# The device ------------------------------------------------------------------------------------------


def test_auto_gives_a_reason():
    execution = choose_execution()
    assert execution.reason and execution.precision in ("float32", "bfloat16", "float16")


def test_names_of_precisions():
    for name, alias in (("float32", "fp32"), ("bfloat16", "bf16")):
        assert choose_execution("cpu", name).dtype == choose_execution("cpu", alias).dtype
    with pytest.raises(MedDPMError, match="float16 is not computed on the CPU"):
        choose_execution("cpu", "float16")


# The package -----------------------------------------------------------------------------------------


def test_the_package_is_light_and_its_names_stay_functions():
    code = (
        "import sys, MedDPMLib; assert 'torch' not in sys.modules;"
        "import MedDPMLib.masks.schemes, MedDPMLib.imaging.geometry, MedDPMLib.models.card, MedDPMLib.models.store;"
        "assert 'torch' not in sys.modules;"
        "from MedDPMLib import generate, load_model; import MedDPMLib.inference.generation;"
        "from MedDPMLib import generate as again; assert generate is again and callable(generate)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
    assert MedDPMLib.__version__


def test_a_network_for_other_timesteps_than_the_schedule_is_refused(tmp_path):
    card = dataclasses.replace(small_card(), schedule={"name": "cosine", "timesteps": 100}, qualities=None)
    path = tmp_path / "odd.safetensors"
    write_bundle(path, card, build_network(card.network_description).state_dict())
    with pytest.raises(MedDPMError, match="made for 250 timesteps, its schedule has 100"):
        load_model(path)


def test_unknown_names():
    with pytest.raises(AttributeError, match="nothing"):
        MedDPMLib.nothing  # noqa: B018
    with pytest.raises(MedDPMError, match="no-such-model"):
        load_model("no-such-model")


@pytest.mark.parametrize("method", METHODS)
def test_the_last_evaluation_is_the_careful_one_whatever_the_method(bundle, method, monkeypatch):
    """Of Heun's steps each but the last has two."""
    model = load_model(bundle)
    network = model.prepared(choose_execution("cpu", "float32"))
    asked: list[str] = []
    for name in ("denoise", "denoise_last"):
        usual = getattr(network, name)
        monkeypatch.setattr(network, name, lambda *a, name=name, usual=usual: asked.append(name) or usual(*a))
    generate(model, checked(brats_mask()), steps=3, sampler=method, device="cpu", precision="float32")
    inner = [name for name in asked if name == "denoise_last"]
    assert len(inner) == 1
    # Of the plain network the careful answer is made of others.
    before = asked[: asked.index("denoise_last")]
    assert before == ["denoise"] * (4 if method == "heun" else 2)
