"""A cascade: what its levels see, what it draws, and how it gets its look."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from MedDPMLib import generate
from MedDPMLib.errors import MedDPMError
from MedDPMLib.imaging.appearance import FEATURES, appearance
from MedDPMLib.imaging.geometry import Geometry, Grid
from MedDPMLib.imaging.haar import halve_mask
from MedDPMLib.imaging.io import read_volume, write_nifti
from MedDPMLib.imaging.volume import Volume
from MedDPMLib.inference.appearance import random_appearance, read_appearance, typical_appearance
from MedDPMLib.inference.cascade import draw
from MedDPMLib.inference.scan_appearance import measure, write_appearance
from MedDPMLib.masks.distances import depths
from MedDPMLib.masks.mask import Mask
from MedDPMLib.masks.schemes import load_scheme
from MedDPMLib.models.bundle import read_bundle, write_bundle
from MedDPMLib.models.card import Card
from MedDPMLib.models.model import Model
from MedDPMLib.networks import build_network
from MedDPMLib.networks.cascade import Cascade, cell_positions, label_fractions

ANATOMY = load_scheme("anatomy")
GRID = Grid((64, 48, 48), (3.0, 3.0, 3.0), "LPS")
NETWORK = {
    "kind": "cascade", "widths": [8, 8, 12, 8, 8, 8, 8], "depths": [1, 1, 1, 1, 1, 1, 1], "given": [8, 8, 8],
    "heads": 2, "brains": 5,
}  # fmt: skip
LEVELS = tuple(
    {"steps": steps, "lowest_noise": lowest, "highest_noise": highest, "coarser_noise": coarser}
    for steps, lowest, highest, coarser in ((3, 0.1, 40, 0), (1.5, 1, 10, 0.05), (1, 0.8, 10, 0.05))
)


def _card(**changes) -> Card:
    card = Card(
        name="small-cascade", title="Small", summary="For tests.", network=NETWORK, scheme=ANATOMY,
        modalities=("t1", "t2"), grid=GRID, mask_encoding=(0, 1), intensity_range=(-1, 1),
        schedule={"name": "noise-levels", "timesteps": 50}, prediction="x0", training="None.",
        training_data=({"name": "none", "license": "none", "cases": 1},), license="None.", intended_use="Tests.",
        limitations="All.",
        qualities={name: {"sampler": "dpm-solver++", "steps": 2} for name in ("draft", "standard", "reference")},
        levels=LEVELS,
    )  # fmt: skip
    return replace(card, **changes)


def _cascade() -> Cascade:
    torch.manual_seed(0)
    network = build_network(_card().network_description)
    for name, buffer in network.named_buffers():
        if "network" in name:
            continue
        buffer.copy_(torch.rand(buffer.shape) * 0.3 + (0.7 if "deviation" in name else -0.15))
    return network.eval()


def _labels() -> np.ndarray:
    """White matter, cortex, a ventricle, fluid and a tumor, as an onion off the middle."""
    k, j, i = np.mgrid[: GRID.size[2], : GRID.size[1], : GRID.size[0]]
    radius = np.sqrt(((k - 23) / 17) ** 2 + ((j - 22) / 18) ** 2 + ((i - 30) / 25) ** 2)
    labels = np.zeros(k.shape, np.uint8)
    for value, most in ((18, 1.0), (2, 0.9), (1, 0.7), (3, 0.3)):
        labels[radius < most] = value
    labels[20:26, 10:16, 34:42] = 21
    return labels


def _mask() -> Mask:
    labels = _labels()
    return Mask.from_volume(Volume(labels, Geometry(labels.shape[::-1], np.diag([-3.0, -3, 3, 1]))), ANATOMY)


def test_fractions_are_shares_of_blocks():
    labels = torch.from_numpy(np.random.default_rng(0).integers(0, 4, (8, 4, 8)))
    shares = label_fractions(labels, 3, 4)
    assert shares.shape == (3, 2, 1, 2)
    assert shares[1, 1, 0, 0] == pytest.approx((labels[4:8, :4, :4] == 2).float().mean())
    assert set(label_fractions(labels, 3, 1).unique().tolist()) == {0.0, 1.0}


def test_positions_are_those_of_cells_in_the_box():
    whole = cell_positions(4, (0, 0, 0), (4, 6, 8), (16, 24, 32))
    assert whole[0, 0, 0, 0] == -6 and whole[2, 0, 0, -1] == 14 and whole.mean().abs() < 1e-6
    torch.testing.assert_close(cell_positions(4, (1, 2, 3), (2, 2, 2), (16, 24, 32)), whole[:, 1:3, 2:4, 3:5])


def test_depths_are_distances_from_the_surfaces():
    labels = np.zeros((9, 9, 9), np.uint8)
    labels[1:8, 1:8, 1:8] = 18
    labels[3:6, 3:6, 3:6] = 1
    surface, tissue = depths(labels, ANATOMY)
    assert surface[4, 4, 1:8].tolist() == [0, 1, 2, 3, 2, 1, 0] and surface[4, 4, 0] == -1
    assert tissue[4, 4, 1:8].tolist() == [-2, -1, 0, 1, 0, -1, -2]


def test_the_painted_mask_is_that_of_colored_labels():
    cascade = _cascade()
    level = cascade.levels[0]
    labels = torch.from_numpy(_labels())
    colors = torch.rand(21, 2)
    painted = level.image_of(level.painted(label_fractions(labels, 21, 2), colors), None)
    inside = halve_mask(halve_mask(labels > 0))
    pure = torch.nn.functional.max_pool3d((labels == 1).float()[None], 4)[0] > 0
    pure &= torch.nn.functional.avg_pool3d((labels == 1).float()[None], 4)[0] == 1
    assert pure.sum() > 10 and (inside & ~pure).any()
    torch.testing.assert_close(painted[:, pure], colors[0][:, None].expand(2, int(pure.sum())))


def test_a_brain_is_drawn_inside_its_mask_and_the_same_again():
    cascade, labels = _cascade(), _labels()
    cascade.freeze(torch.float32)
    look = typical_appearance(cascade)
    steps = []
    first, again, other = (
        draw(
            cascade, labels, ANATOMY, look, levels=LEVELS, seed=seed, steps=4, dtype=torch.float32,
            progress=lambda step, of, x0: steps.append((step, of, tuple(x0.shape))),
        )
        for seed in (1, 1, 2)
    )  # fmt: skip
    assert torch.equal(first, again) and not torch.equal(first, other)
    assert first.shape == (2, *labels.shape) and first.abs().max() <= 1
    assert (first[:, torch.from_numpy(labels == 0)] == -1).all() and first[:, torch.from_numpy(labels > 0)].std() > 0
    assert steps == [(step, 4, (1, 2, *labels.shape)) for step in (1, 2, 3, 4)] * 3


def test_the_coarser_image_is_kept():
    """The finer levels add details: the means of blocks of four voxels are those of the first level's image."""
    from MedDPMLib.inference.cascade import _Drawing

    cascade, labels = _cascade(), _labels()
    look = typical_appearance(cascade)
    drawing = _Drawing(cascade, labels, ANATOMY, look, torch.Generator().manual_seed(0), torch.float32)
    image = None
    images = []
    for level, sampling in zip(cascade.levels, LEVELS, strict=True):
        image = drawing.level(level, sampling, 2, image, lambda step, drawn: None)
        images.append(image)
    full = torch.nn.functional.avg_pool3d((torch.from_numpy(labels) > 0).float()[None], 4)[0] == 1
    assert full.sum() > 100
    means = torch.nn.functional.avg_pool3d(images[2], 4)
    torch.testing.assert_close(means[:, full], images[0][:, full], atol=1e-5, rtol=1e-4)
    assert (images[2] - torch.nn.functional.interpolate(images[1][None], scale_factor=2.0)[0]).abs().max() > 0.01


def test_what_a_network_without_knowledge_estimates_is_the_mean_of_a_normal_distribution():
    """The best guess of x0 of unit variance from x = x0 + sigma noise, and nothing else, is x / (1 + sigma^2)."""
    for level in _cascade().levels:
        with torch.no_grad():
            level.network.out.gain.zero_()
            x, sigma = torch.randn(2, level.bands, 4, 4, 4), torch.tensor([0.1, 7.0])
            encoded = torch.zeros(2, 8, 4, 4, 4)
            clean, answer = level.estimate(x, sigma, sigma, torch.zeros(2, 22), encoded, torch.float32)
        torch.testing.assert_close(clean, x / (1 + sigma**2)[:, None, None, None, None])
        assert not answer.any()


@pytest.mark.parametrize("index", [1, 2])
def test_details_of_a_patch_are_those_of_the_whole(index):
    """Beyond the reach of the convolutions nothing of the volume enters: patches meet without a seam."""
    level = _cascade().levels[index]
    generator = torch.Generator().manual_seed(3)
    x = torch.randn(1, level.bands, 8, 8, 64, generator=generator)
    given = torch.randn(1, level.network.given_first.weight.shape[1] - 1, 8, 8, 64, generator=generator)
    one, look = torch.ones(1), torch.randn(1, 22, generator=generator)
    with torch.no_grad():
        whole = level(x, one, one, look, given)
        left, right = (level(x[..., part], one, one, look, given[..., part]) for part in (slice(40), slice(24, 64)))
    assert whole.std() > 0.1
    torch.testing.assert_close(left[..., :28], whole[..., :28], atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(right[..., 12:], whole[..., 36:], atol=1e-5, rtol=1e-4)
    assert not torch.allclose(left[..., 32:], whole[..., 32:40], atol=1e-3)  # the edge itself does reach


def test_looks_differ_by_the_seed_and_typical_is_the_median():
    cascade = _cascade()
    looks = [random_appearance(cascade, seed) for seed in (1, 1, 2)]
    assert torch.equal(looks[0], looks[1]) and not torch.equal(looks[0], looks[2])
    nearest = (cascade.appearances - looks[0]).square().mean(dim=1).min().sqrt()
    assert 0.05 < nearest < 0.3  # one of them, and not exactly
    torch.testing.assert_close(typical_appearance(cascade), cascade.appearances.median(dim=0).values)


def test_appearance_measures_contrast_noise_and_sharpness():
    labels, random = _labels(), np.random.default_rng(0)
    clean = np.full(labels.shape, -1.0, np.float32)
    for value, level in ((18, -0.6), (2, 0.1), (1, 0.5), (3, -0.8), (21, 0.9)):
        clean[labels == value] = level
    noisy = clean + 0.05 * random.standard_normal(labels.shape).astype(np.float32)
    features = dict(zip(FEATURES, appearance(noisy, labels, ANATOMY), strict=True))
    for name, level in (("white matter", 0.5), ("cortex", 0.1), ("rest", -0.6), ("ventricle", -0.8)):
        assert features[f"{name} mean"] == pytest.approx(level, abs=0.01)
    assert features["white matter sd"] == pytest.approx(0.05, rel=0.05)
    assert 10 ** features["log10 noise"] == pytest.approx(0.05, rel=0.1)
    grain = 0.3 * random.standard_normal(labels.shape).astype(np.float32)
    thick = np.repeat(grain[::4], 4, axis=0)  # slices of four voxels: a quarter of the neighbors differ, half two away
    features = dict(zip(FEATURES, appearance(thick, labels, ANATOMY), strict=True))
    assert features["sharpness along k"] == pytest.approx(np.log(0.5) / 2, abs=0.03)
    assert features["sharpness along j"] == pytest.approx(0, abs=0.03)
    assert features["sharpness along i"] == pytest.approx(0, abs=0.03)


def test_a_scan_gives_its_look_and_what_it_lacks_comes_from_the_brain_most_like_it(tmp_path):
    cascade, mask, card = _cascade(), _mask(), _card()
    image = np.where(_labels() == 1, 100.0, 40.0) * (_labels() > 0)
    image += np.random.default_rng(0).uniform(0, 5, image.shape) * (_labels() > 0)
    scan = Volume(image.astype(np.float32), mask.volume.geometry)
    measured = measure(card, {"t2": scan}, mask)
    again = measure(card, {"t2": Volume(scan.array * 7 + 3, scan.geometry)}, mask)
    assert again["t2"] == pytest.approx(measured["t2"], abs=0.01)  # whatever the scanner's unit is
    write_appearance(tmp_path / "look.json", measured)
    values = read_appearance(tmp_path / "look.json", cascade, card.modalities)
    count = len(FEATURES)
    expected = (torch.from_numpy(measured["t2"]) - cascade.appearance_mean[count:]) / cascade.appearance_deviation[
        count:
    ]
    torch.testing.assert_close(values[count:], expected.clamp(-3, 3), atol=1e-3, rtol=0)
    nearest = (cascade.appearances[:, count:] - values[count:]).square().sum(dim=1).argmin()
    assert torch.equal(values[:count], cascade.appearances[nearest, :count])
    with pytest.raises(MedDPMError, match="taken from scans of t1, t2, not of flair"):
        measure(card, {"flair": scan}, mask)
    elsewhere = Volume(scan.array, Geometry(scan.array.shape[::-1], np.diag([1.0, 1, 1, 1]) + np.eye(4, k=3) * 900))
    with pytest.raises(MedDPMError, match="t1 scan shows nothing where the mask is"):
        measure(card, {"t1": elsewhere}, mask)
    with pytest.raises(MedDPMError, match="not of nothing"):
        measure(card, {}, mask)


@pytest.mark.parametrize(
    "text", ["", "[]", "{}", '{"appearance": {}}', '{"appearance": {"t1": {"noise": 1}}}', "[" * 9999]
)
def test_a_damaged_appearance_is_one_sentence(tmp_path, text):
    path = tmp_path / "look.json"
    path.write_text(text)
    with pytest.raises(MedDPMError, match="look.json is"):
        read_appearance(path, _cascade(), ("t1", "t2"))
    with pytest.raises(MedDPMError, match="cannot be read"):
        read_appearance(tmp_path / "none.json", _cascade(), ("t1", "t2"))


def test_a_bundle_keeps_a_cascade_and_generates_with_it(tmp_path):
    card, cascade = _card(), _cascade()
    path = tmp_path / "small.safetensors"
    write_bundle(path, card, cascade.state_dict())
    read, state = read_bundle(path)
    network = build_network(read.network_description)
    network.load_state_dict(state)
    model = Model(read, network, "0" * 64)
    made = generate(model, _mask(), seed=3, device="cpu", precision="float32")
    assert set(made) == {"t1", "t2"} and made.record["appearance"] == "random"
    write_appearance(tmp_path / "look.json", measure(card, made, _mask()))
    like = generate(model, _mask(), seed=3, device="cpu", precision="float32", appearance=str(tmp_path / "look.json"))
    assert not np.array_equal(like["t1"].array, made["t1"].array)
    same = generate(Model(card, cascade, "0" * 64), _mask(), seed=3, device="cpu", precision="float32")
    assert np.array_equal(made["t1"].array, same["t1"].array)
    typical = generate(model, _mask(), seed=3, device="cpu", precision="float32", appearance="typical")
    assert typical.record["appearance"] == "typical" and not np.array_equal(typical["t1"].array, made["t1"].array)


def test_wrong_settings_are_refused(tmp_path):
    model = Model(_card(), _cascade(), "0" * 64)
    for wrong, message in (
        ({"sampler": "ddpm"}, "sampled by dpm-solver"),
        ({"steps": 51}, "1 to 50"),
        ({"appearance": "old"}, '"appearance" must be random, typical or'),
        ({"guidance": 2.0}, "does not support guidance"),
    ):
        with pytest.raises(MedDPMError, match=message):
            generate(model, _mask(), device="cpu", **wrong)
    with pytest.raises(MedDPMError, match="no timesteps and so no denoiser"):
        model.denoiser  # noqa: B018
    with pytest.raises(MedDPMError, match="seven widths"):
        build_network({**NETWORK, "widths": [8, 8], "image_channels": 2, "condition_channels": 21})
    cosine = {"name": "cosine", "timesteps": 50}
    with pytest.raises(MedDPMError, match="not for its network"):
        Model(_card(schedule=cosine, levels=()), _cascade(), "0" * 64)
    for card, message in (
        ({"levels": LEVELS[:2]}, "3 tables for the schedule noise-levels, not 2"),
        ({"schedule": cosine}, "0 tables for the schedule cosine, not 3"),
        ({"levels": (LEVELS[0], LEVELS[1] | {"lowest_noise": 10}, LEVELS[2])}, "level middle must be below"),
        ({"levels": (LEVELS[0] | {"steps": 0}, *LEVELS[1:])}, '"steps" must be a number above 0'),
    ):
        with pytest.raises(MedDPMError, match=message):
            _card(**card)


def test_generate_looks_like_a_scan(tmp_path, meddpm):
    """By one option as by the command that measures a look first; and another scan in its place is no finished one."""

    def run(*arguments):
        done = meddpm(*arguments)
        return done.returncode, done.stdout + done.stderr

    card, mask = _card(), _mask()
    write_bundle(tmp_path / "small.safetensors", card, _cascade().state_dict())
    write_nifti(tmp_path / "mask.nii.gz", mask.volume)
    random = np.random.default_rng(0)
    for name, most in (("a", 100.0), ("b", 30.0)):
        image = np.where(_labels() == 1, most, 40.0) * (_labels() > 0)
        image += random.uniform(0, 5, image.shape) * (_labels() > 0)
        write_nifti(tmp_path / f"{name}.nii.gz", Volume(image.astype(np.float32), mask.volume.geometry))
    common = ["generate", tmp_path / "mask.nii.gz", "--model", tmp_path / "small.safetensors", "--steps", "2"]
    common += ["--device", "cpu", "--precision", "float32", "--labels", ANATOMY.own_numbering]
    like = ["--look-like", f"t2={tmp_path / 'a.nii.gz'}"]
    code, said = run(*common, "--out", tmp_path / "one", *like)
    assert code == 0, said
    code, said = run(
        "appearance", tmp_path / "mask.nii.gz", "--scan", f"t2={tmp_path / 'a.nii.gz'}", "--labels",
        ANATOMY.own_numbering,
        "--model", tmp_path / "small.safetensors", "--out", tmp_path / "look.json",
    )  # fmt: skip
    assert code == 0, said
    code, said = run(*common, "--out", tmp_path / "two", "--appearance", tmp_path / "look.json")
    assert code == 0, said
    one, two = (read_volume(tmp_path / where / "mask_seed0_t1.nii.gz").array for where in ("one", "two"))
    assert np.array_equal(one, two)
    code, said = run(*common, "--out", tmp_path / "one", *like)
    assert code == 0 and "1 skipped" in said
    code, said = run(*common, "--out", tmp_path / "one", "--look-like", f"t2={tmp_path / 'b.nii.gz'}")
    assert code == 0 and "1 generated" in said
    for wrong, message in (
        (["--look-like", "t2"], "not one modality and its file"),
        (["--look-like-mask", tmp_path / "mask.nii.gz"], "give them with --look-like"),
        ([*like, "--appearance", "typical"], "contradict each other"),
        (["--look-like", f"flair={tmp_path / 'a.nii.gz'}"], "taken from scans of t1, t2, not of flair"),
    ):
        code, said = run(*common, "--out", tmp_path / "none", *wrong)
        assert code == 2 and message in said


def test_a_cascade_is_benchmarked(tmp_path, meddpm):
    """Its baseline is its reference, unfrozen in float32; and numbers of steps are compared as of any model."""
    from MedDPMLib.benchmark.timed_process import _sample_baseline, baseline_settings
    from MedDPMLib.benchmark.workload import load_scaled_model, painted_ball
    from MedDPMLib.runtime.device import choose_execution

    write_bundle(tmp_path / "small.safetensors", _card(), _cascade().state_dict())
    model = load_scaled_model(str(tmp_path / "small.safetensors"), 0.5)
    assert model.card.grid.size == (32, 32, 32) and baseline_settings(model.card)["steps"] == 2
    told = []
    exact = choose_execution("cpu", "float32")
    images = _sample_baseline(model, exact, lambda step, steps, x0: told.append((step, steps)))
    assert told == [(1, 2), (2, 2)] and images.shape == (2, 32, 32, 32)
    expected = generate(model, painted_ball(model.card), seed=0, device="cpu", precision="float32", quality="reference")
    assert np.allclose(expected["t1"].array, images[0].numpy(), atol=1e-5)
    write_nifti(tmp_path / "mask.nii.gz", _mask().volume)
    done = meddpm(
        "benchmark", "steps", tmp_path / "mask.nii.gz", "--model", tmp_path / "small.safetensors", "--steps", "1,2",
        "--samples", "1", "--labels", ANATOMY.own_numbering, "--device", "cpu", "--precision", "float32", "--out",
        tmp_path / "steps",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "the reference is 2 dpm-solver++" in done.stdout
