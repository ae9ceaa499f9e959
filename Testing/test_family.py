"""Networks of Med-DDPM's family by whomever: recognized by their shapes, described by a card, used as what they are."""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file
from typer.testing import CliRunner

from MedDPMLib.cli.app import app
from MedDPMLib.diffusion.schedule import make_schedule
from MedDPMLib.errors import MedDPMError
from MedDPMLib.imaging.geometry import Geometry
from MedDPMLib.imaging.io import write_nifti
from MedDPMLib.imaging.volume import Volume
from MedDPMLib.inference.generation import generate
from MedDPMLib.masks.mask import Mask, read_mask
from MedDPMLib.masks.scheme_files import read_scheme
from MedDPMLib.models.card import Card, known_cards, official_cards
from MedDPMLib.models.card_file import card_template, read_card_file
from MedDPMLib.models.model import load_model
from MedDPMLib.models.official_checkpoint import open_checkpoint, read_checkpoint
from MedDPMLib.models.store import ModelStore
from MedDPMLib.networks import build_network, state_shapes
from MedDPMLib.networks.recognition import describe_network
from MedDPMLib.runtime.device import choose_execution

GLIOMAGEN = next(card for card in known_cards() if card.name == "gliomagen")


# Recognition -----------------------------------------------------------------------------------------


@st.composite
def networks(draw) -> dict:
    multipliers = draw(st.lists(st.integers(1, 4), min_size=1, max_size=5))
    levels = [2**level for level in range(len(multipliers))]
    return {
        "kind": "unet",
        "image_channels": draw(st.integers(1, 5)),
        "condition_channels": draw(st.integers(1, 24)),
        "base": draw(st.sampled_from([32, 64, 96])),
        "multipliers": multipliers,
        "blocks": draw(st.integers(1, 4)),
        "attention": draw(st.lists(st.sampled_from(levels), unique=True).map(sorted)),
    }


@settings(max_examples=20, deadline=None)
@given(networks())
def test_shapes_tell_every_number_of_a_network(description):
    """Recognition is the inverse of construction."""
    assert describe_network(state_shapes(description)) == description


@settings(max_examples=20, deadline=None)
@given(networks(), st.data())
def test_whatever_is_changed_is_no_network_or_another(description, data):
    """A tensor that is dropped, added or of another shape never leaves the same network, and never a crash."""
    shapes = state_shapes(description)
    name = data.draw(st.sampled_from(sorted(shapes)))
    kind = data.draw(st.sampled_from(["drop", "add", "axis", "size"]))
    if kind == "drop":
        del shapes[name]
    elif kind == "add":
        shapes[name + "x"] = (3,)
    elif kind == "axis":
        shapes[name] = shapes[name][:-1]
    else:
        axis = data.draw(st.integers(0, len(shapes[name]) - 1))
        shapes[name] = tuple(n + 7 if at == axis else n for at, n in enumerate(shapes[name]))
    try:
        found = describe_network(shapes)
    except MedDPMError as error:
        assert len(str(error).splitlines()) == 1
    else:  # more channels of the mask: another network indeed
        assert found != description and state_shapes(found) == shapes


@pytest.mark.parametrize("card", known_cards(), ids=lambda card: card.name)
def test_the_published_networks_are_described_by_their_shapes(card):
    described = card.network_description
    assert describe_network(state_shapes(described)) == {**described, "attention": list(described["attention"])}


@pytest.mark.parametrize("shapes", [{}, {"input_blocks.0.0.weight": (64, 8, 3, 3)}, {"out.2.weight": (4,)}])
def test_other_weights_are_none_of_the_family(shapes):
    with pytest.raises(MedDPMError, match="family"):
        describe_network(shapes)


# Checkpoints in the wild -----------------------------------------------------------------------------


def weights(network: dict, seed: int = 0) -> dict[str, torch.Tensor]:
    """Random weights of ``network``, so scaled that the output depends on all of its inputs."""
    torch.manual_seed(seed)
    state = build_network(network).state_dict()
    for tensor in state.values():
        if not tensor.any() and tensor.ndim > 1:  # the branches that begin as nothing
            tensor.normal_(std=0.02)
    return state


def saved(path: Path, state: dict, timesteps: int | None, schedule: str = "cosine") -> Path:
    tables = {}
    if timesteps:
        made = make_schedule(schedule, timesteps)
        tables = {"betas": made.betas, "alphas_cumprod": made.alpha_bar}
    ema = {**tables, **{f"denoise_fn.{name}": tensor for name, tensor in state.items()}}
    torch.save({"step": 1, "model": {"denoise_fn.out.2.bias": torch.zeros(1)}, "ema": ema}, path)
    return path


def unet(image: int, condition: int, **numbers) -> dict:
    """A network of the family as small as they come."""
    small = {"base": 32, "multipliers": [1, 2], "blocks": 1, "attention": []}
    return {"kind": "unet", "image_channels": image, "condition_channels": condition, **small, **numbers}


SCHWANNOMA = """\
name = "schwannoma"
[[labels]]
value = 1
name = "Brain"
role = "rest"
[[labels]]
value = 2
name = "Schwannoma"
role = "tumor"
[[labels]]
value = 3
name = "Cochlea"
"""

#: By whose it is: the network, the fields of its card, and the scheme of its masks.
WILD = {
    # ADNI: the whole brain, diagnosis and age as channels of constant value.
    "adni": (
        unet(1, 4),
        {
            "modalities": ["t1"], "scheme": "whole-head", "channels": ["Head", 0.5, "Tumor", -0.25],
            "mask_encoding": [-1, 1],
        },
    ),
    # Longitudinal: four channels of an earlier image, here without one.
    "longitudinal": (
        unet(4, 8, blocks=2),
        {
            "modalities": ["t1", "t1ce", "t2", "flair"], "scheme": "brats",
            "channels": ["Necrosis", "Edema", "Enhancing tumor", "Rest of the brain", -1, -1, -1, -1],
            "mask_encoding": [0, 1],
        },
    ),
    # GliomaGen's own card, on a smaller network: a sixth channel of zeros, axes x, y, z, images from 0 to 1.
    "after-treatment": (
        unet(4, 6, blocks=2),
        {
            "modalities": ["t1", "t1ce", "t2", "flair"], "scheme": GLIOMAGEN.scheme.to_dict(), "axes": "xyz",
            "channels": [*(label.name for label in GLIOMAGEN.scheme.labels), 0], "mask_encoding": [0, 1],
            "image_range": [0, 1],
        },
    ),
    # Vestibular schwannoma: other modalities, labels and sizes, channels in an order of their own.
    "schwannoma": (
        unet(2, 3, attention=[2]),
        {
            "modalities": ["t1ce", "t2"], "scheme": "labels.toml", "channels": ["Schwannoma", "Cochlea", "Brain"],
            "mask_encoding": [0, 1], "axes": "xyz", "image_range": [0, 1],
        },
    ),
}  # fmt: skip


def described(folder: Path, who: str) -> tuple[Path, Path]:
    """The checkpoint and the filled-in card of ``who``."""
    network, fields = WILD[who]
    checkpoint = saved(folder / f"{who}.pt", weights(network), 100)
    (folder / "labels.toml").write_text(SCHWANNOMA)
    values = {
        "axes": "zyx", "image_range": [-1, 1], **fields,
        "grid": {"size": [24, 16, 8], "spacing": [6.0, 8.0, 16.0], "orientation": "LPS"},
    }  # fmt: skip
    card = folder / "card.toml"
    card.write_text(card_template(open_checkpoint(checkpoint), values))
    return checkpoint, card


def mask_for(card: Card) -> Mask:
    """A brain of a box with every label in it, on the model's own grid."""
    labels = np.zeros(card.grid.shape, np.uint8)
    rest = card.scheme.rest
    labels[1:-1, 2:-2, 3:-3] = rest.value
    inner = [label.value for label in card.scheme.labels if label is not rest]
    for place, value in enumerate(inner):
        labels[2:5, 4 + 2 * place : 6 + 2 * place, 6:12] = value
    volume = Volume(labels, card.grid.centered_on(np.zeros(3)))
    return Mask.from_volume(volume, card.scheme, numbering=card.scheme.own_numbering)


@pytest.mark.parametrize("who", WILD)
def test_each_variant_imports_generates_and_is_as_fast_as_plain(tmp_path, monkeypatch, who):
    monkeypatch.setenv("MEDDPM_MODELS", str(tmp_path / "models"))
    checkpoint, card_file = described(tmp_path, who)
    run = CliRunner().invoke(app, ["models", "import", str(checkpoint), "--card", str(card_file)])
    assert run.exit_code == 0, run.output
    model = load_model(who)
    card, network = model.card, WILD[who][0]
    assert card.network_description == network and card.schedule == {"name": "cosine", "timesteps": 100}
    mask = mask_for(card)
    steps = []
    made = generate(
        model, mask, seed=3, steps=2, device="cpu", precision="float32", progress=lambda *s: steps.append(s)
    )
    assert list(made) == list(WILD[who][1]["modalities"])
    for volume in made.values():
        assert volume.array.shape == card.grid.shape and np.isfinite(volume.array).all()
        low, high = card.intensity_range
        assert low <= volume.array.min() < volume.array.max() <= high
    assert [tuple(x0.shape[2:]) for _, _, x0 in steps] == [card.grid.shape] * 2
    fast = model.prepared(choose_execution("cpu", "float32"))
    generator = torch.Generator().manual_seed(1)
    x = torch.randn((1, network["image_channels"], *card.array_shape), generator=generator)
    condition = torch.randn((1, network["condition_channels"], *card.array_shape), generator=generator)
    t = torch.tensor([40])
    with torch.no_grad():
        plain = model.network(x, t, condition)
        quick = fast.denoise(x, t, fast.encode_condition(condition))
    torch.testing.assert_close(quick.float().reshape(plain.shape), plain, rtol=1e-3, atol=1e-4)


def flat(**numbers) -> dict:
    """A checkpoint's entry: the smallest network's weights with a schedule's tables."""
    made = make_schedule("cosine", 100)
    state = {f"denoise_fn.{name}": tensor for name, tensor in weights(unet(1, 2)).items()}
    return {"betas": made.betas, "alphas_cumprod": made.alpha_bar, **state, **numbers}


def renamed(prefix: str, state: dict) -> dict:
    return {prefix + name: tensor for name, tensor in state.items()}


@pytest.mark.parametrize(
    "content",
    [
        lambda: {"step": 3, "model": flat(), "ema": flat(), "opt": {"state": {0: {"step": torch.ones(1)}}}, "lr": 0.1},
        lambda: {"model": flat(), "ema": {}},
        lambda: {"ema": renamed("module.", flat())},
        lambda: {"state_dict": renamed("model.", flat())},
        lambda: {"ema": renamed("_orig_mod.module.", flat())},
        lambda: {
            "ema": {
                "initted": torch.tensor(True), "step": torch.tensor(7),
                **renamed("online_model.", {name: tensor * 0 for name, tensor in flat().items()}),
                **renamed("ema_model.", flat()),
            }
        },
        lambda: {"ema": {name: torch.nn.Parameter(tensor) for name, tensor in flat().items()}},
    ],
    ids=["training state", "no average yet", "data parallel", "lightning", "compiled", "average module", "parameters"],
)  # fmt: skip
def test_a_training_state_gives_its_weights(tmp_path, content):
    torch.save(content(), tmp_path / "a.pt")
    opened = open_checkpoint(tmp_path / "a.pt")
    assert opened.network == unet(1, 2) and opened.schedule == {"name": "cosine", "timesteps": 100}
    expected = weights(unet(1, 2))
    assert opened.weights.keys() == expected.keys()
    for name, tensor in opened.weights.items():
        torch.testing.assert_close(tensor, expected[name], rtol=0, atol=0)


@pytest.mark.parametrize("name", ["cosine", "linear", "sigmoid", "exponential"])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_schedules_are_recognized_in_the_precision_that_they_are_stored_in(tmp_path, name, dtype):
    made = make_schedule(name, 250)
    state = flat(betas=made.betas, alphas_cumprod=made.alpha_bar)
    torch.save({key: tensor.to(dtype) for key, tensor in state.items()}, tmp_path / "a.pt")
    opened = open_checkpoint(tmp_path / "a.pt")
    assert opened.schedule == {"name": name, "timesteps": 250}
    assert all(tensor.dtype == torch.float32 for tensor in opened.weights.values())


def test_weights_without_a_card_in_a_safetensors_file_are_a_checkpoint(tmp_path, monkeypatch):
    monkeypatch.setenv("MEDDPM_MODELS", str(tmp_path / "models"))
    checkpoint, card_file = described(tmp_path, "schwannoma")
    opened = open_checkpoint(checkpoint)
    bare = tmp_path / "weights.safetensors"
    save_file(dict(opened.weights), bare)
    assert open_checkpoint(bare).network == opened.network
    with pytest.raises(MedDPMError, match="network of Med-DDPM's family"):
        ModelStore().add(bare)
    assert ModelStore().add(bare, None, card_file).card.modalities == ("t1ce", "t2")
    bare.write_bytes(bare.read_bytes()[:-5])
    with pytest.raises(MedDPMError, match="weights.safetensors: the file is damaged"):
        open_checkpoint(bare)


def test_what_else_a_training_state_holds_is_refused_with_a_way_out(tmp_path):
    torch.save({"ema": flat(), "args": argparse.Namespace(lr=1)}, tmp_path / "a.pt")
    with pytest.raises(MedDPMError, match=r"argparse.Namespace.*alone with torch.save"):
        open_checkpoint(tmp_path / "a.pt")


def test_a_damaged_network_of_its_own_is_not_compared_with_a_published_one(tmp_path):
    state = flat()
    del state["denoise_fn.middle_block.0.in_layers.0.weight"]
    torch.save(state, tmp_path / "a.pt")
    with pytest.raises(MedDPMError, match='1 of .* tensors are missing, first "middle_block.0.in_layers.0.weight"'):
        read_checkpoint(tmp_path / "a.pt")


def test_channels_reach_the_weights_of_their_labels(tmp_path):
    """A card that names the channels in another order gives the same prediction for the same mask."""
    checkpoint, card_file = described(tmp_path, "schwannoma")
    opened = open_checkpoint(checkpoint)
    card, state = read_card_file(card_file, opened)
    scheme = read_scheme(tmp_path / "labels.toml")
    assert card.scheme == scheme
    original = build_network(opened.network)
    original.load_state_dict(dict(opened.weights))
    turned = build_network(card.network_description)
    turned.load_state_dict(state)
    x, t = torch.randn(1, 2, 8, 8, 8), torch.tensor([3])
    one_hot = torch.randn(1, 3, 8, 8, 8)  # Brain, Schwannoma, Cochlea
    with torch.no_grad():
        expected = original.eval()(x, t, one_hot[:, [1, 2, 0]])
        torch.testing.assert_close(turned.eval()(x, t, one_hot), expected, rtol=1e-4, atol=1e-5)


def test_axes_only_turn_the_arrays(tmp_path):
    """A network with the axes x, y, z, asked with labels that are turned, makes the volume that is turned back."""
    from MedDPMLib.inference.timesteps import as_network, as_volumes

    card = GLIOMAGEN
    labels = np.random.default_rng(0).integers(0, 6, (3, 4, 5))
    turned = as_network(card, labels)
    for k, j, i in np.ndindex(labels.shape):
        assert turned[i, j, k] == labels[k, j, i]
    images = torch.from_numpy(turned.copy()).float()[None, None] / 5
    back = as_volumes(card, images)[0, 0].numpy()
    np.testing.assert_allclose(back, labels / 5 * 2 - 1, atol=1e-6)  # from [0, 1] to [-1, 1]
    assert as_volumes(card, images - 9).min() == -1 and as_volumes(official_cards()[0], images) is images


@pytest.mark.parametrize("attention", [[], [8]])
def test_gliomagen_is_recognized_without_a_card(tmp_path, attention):
    network = {**GLIOMAGEN.network_description, "attention": attention}
    state = {name: torch.tensor(0.001).expand(shape) for name, shape in state_shapes(network).items()}
    path = saved(tmp_path / "a.pt", state, 1000)
    card, read = read_checkpoint(path)
    assert card.name == "gliomagen" and card.network_description == network and read.keys() == state.keys()
    assert (card.axes, card.array_shape, card.constants) == ("xyz", (192, 192, 144), (0.0,))
    assert [label.name for label in card.scheme.labels][-1] == "Resection cavity"
    # The same shapes trained with another schedule are somebody else's.
    with pytest.raises(MedDPMError, match="4 image and 6 condition channels") as caught:
        read_checkpoint(saved(tmp_path / "b.pt", state, 250))
    assert caught.value.code == "card-needed"
    with pytest.raises(MedDPMError, match="family"):
        read_checkpoint(saved(tmp_path / "c.pt", state, None))


def test_a_file_of_brats_2024_lacks_only_the_brain(tmp_path):
    """Its cavity is no brain around the tumor; with the brain from an image each value gets the channel of its part."""
    place = Geometry((60, 60, 50), np.diag([3.0, 3, 3, 1]))
    k, j, i = np.indices(place.shape)
    far = np.sqrt((k - 25) ** 2 + (j - 30) ** 2 + (i - 35) ** 2)
    file = np.select([far < 2, far < 4, far < 5, far < 8], [4, 1, 3, 2], 0).astype(np.uint8)
    brain = (k - 25) ** 2 + (j - 30) ** 2 + (i - 30) ** 2 < 21**2
    path = tmp_path / "BraTS-GLI-02073-100-seg.nii.gz"
    write_nifti(path, Volume(file, place))
    with pytest.raises(MedDPMError, match='no brain area.*values read as "brats-2024"'):
        read_mask(path, GLIOMAGEN.scheme)
    mask = read_mask(path, GLIOMAGEN.scheme, brain_from=Volume(brain * np.float32(100), place))
    assert 'read as "brats-2024", by names' in mask.notes[0]
    np.testing.assert_array_equal(mask.volume.array, np.array([0, 2, 3, 4, 5])[file] + (brain & (file == 0)))


# Cards -----------------------------------------------------------------------------------------------


def test_a_template_holds_what_was_read_and_asks_for_the_rest(tmp_path, monkeypatch):
    monkeypatch.setenv("MEDDPM_MODELS", str(tmp_path / "models"))
    checkpoint = saved(tmp_path / "Their Model.pt", weights(unet(2, 3)), 50, "linear")
    run = CliRunner().invoke
    out = tmp_path / "card.toml"
    result = run(app, ["models", "card", str(checkpoint), "--out", str(out)])
    assert result.exit_code == 0, result.output
    text = out.read_text()
    assert 'modalities = ["?", "?"]' in text and 'channels = ["?", "?", "?"]' in text and "timesteps = 50" in text
    assert "2 image and 3 condition channels" in text and 'name = "their-model"' in text
    result = run(app, ["models", "import", str(checkpoint), "--card", str(out)])
    assert result.exit_code == 2 and '"modalities" is not filled in' in result.output
    number = text.splitlines().index('modalities = ["?", "?"]') + 1
    assert f"card.toml, line {number}" in result.output
    result = run(app, ["models", "import", str(checkpoint)])
    assert result.exit_code == 2 and "meddpm models card" in result.output
    assert not (tmp_path / "models").exists() or not list((tmp_path / "models").iterdir())
    assert run(app, ["models", "card", str(checkpoint), "--out", str(out)]).exit_code == 2  # nothing is overwritten


@pytest.mark.parametrize(
    ("old", "new", "field", "message"),
    [
        ('modalities = ["t1ce", "t2"]', 'modalities = ["t1ce"]', "modalities", "makes 2 images, 1 modalities"),
        ('modalities = ["t1ce", "t2"]', 'modalities = ["T1 ce", "t2"]', "modalities", "lower-case"),
        ('"Schwannoma", "Cochlea", "Brain"', '"Schwannoma", "Cochlea"', "channels", "3 condition channels, 2"),
        ('"Schwannoma", "Cochlea", "Brain"', '"Schwannoma", "Liver", "Brain"', "channels", "Liver"),
        ('"Schwannoma", "Cochlea", "Brain"', '"Brain", "Cochlea", "Brain"', "channels", "twice"),
        ('"Schwannoma", "Cochlea", "Brain"', '"Schwannoma", 1, "Brain"', "channels", '"Cochlea".*no channel'),
        ('scheme = "labels.toml"', 'scheme = "absent.toml"', "scheme", "cannot be read"),
        ('scheme = "labels.toml"', 'scheme = "brats"', "channels", "no label of the scheme"),
        ('axes = "xyz"', 'axes = "yxz"', "axes", "one of zyx, xyz"),
        ("size = [24, 16, 8]", "size = [24, 16, 7]", "size", "multiples of 2"),
        ("size = [24, 16, 8]", "size = [24, 16]", "size", "3"),
        ('orientation = "LPS"', 'orientation = "LPX"', "orientation", "LPX"),
        ("spacing = [6.0, 8.0, 16.0]", "spacing = [6.0, 0, 16.0]", "spacing", "above zero"),
        ("image_range = [0, 1]", "image_range = [1, 1]", "image_range", "lower and a higher"),
        ("timesteps = 100", "timesteps = 99", "schedule", "another one"),
        ('prediction = "noise"', 'predicts = "noise"', "predicts", "no field"),
        ("mask_encoding = [0, 1]", "mask_encoding = [1, 0]", "mask_encoding", "lower and a higher"),
        ('axes = "xyz"\n', "", None, 'lacks the field "axes"'),
        ('axes = "xyz"', "axes = xyz", None, "no card in TOML"),
    ],
)  # fmt: skip
def test_each_mistake_in_a_card_is_found_in_its_line(tmp_path, old, new, field, message):
    checkpoint, path = described(tmp_path, "schwannoma")
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))
    with pytest.raises(MedDPMError, match=message) as caught:
        read_card_file(path, open_checkpoint(checkpoint))
    assert str(caught.value).startswith(str(path)) and len(str(caught.value).splitlines()) == 1
    if field:
        lines = path.read_text().splitlines()
        number = next(n for n, line in enumerate(lines, 1) if line.startswith((f"{field} =", f"[{field}]")))
        assert f"card.toml, line {number}:" in str(caught.value)


@pytest.mark.parametrize("card", known_cards(), ids=lambda card: card.name)
def test_the_card_of_a_published_network_is_filled_in(tmp_path, card):
    network = card.network_description
    state = {name: torch.tensor(0.001).expand(shape) for name, shape in state_shapes(network).items()}
    checkpoint = saved(tmp_path / "theirs.pt", state, card.schedule["timesteps"])
    out = tmp_path / "card.toml"
    result = CliRunner().invoke(app, ["models", "card", str(checkpoint), "--out", str(out)])
    assert result.exit_code == 0 and f"recognized as {card.name}" in result.output
    read, _ = read_card_file(out, open_checkpoint(checkpoint))
    assert read == card and read.array_shape == card.array_shape


def test_cards_of_ours_say_nothing_new():
    """What older versions read has not changed; and what is new survives."""
    for card in official_cards():
        assert not {"constants", "axes", "image_range"} & set(__import__("json").loads(card.to_json()))
    assert Card.from_json(GLIOMAGEN.to_json()) == GLIOMAGEN


def test_a_card_that_was_given_goes_before_recognition(tmp_path, monkeypatch):
    monkeypatch.setenv("MEDDPM_MODELS", str(tmp_path / "models"))
    checkpoint, card = described(tmp_path, "longitudinal")
    entry = ModelStore().add(checkpoint, "mine", card)
    assert entry.name == "mine" and entry.card.constants == (-1.0,) * 4
    with pytest.raises(MedDPMError, match="carries its own card"):
        ModelStore().add(entry.path, None, card)


def test_geometry_of_the_grid_is_that_of_the_card():
    place = GLIOMAGEN.grid.centered_on(np.zeros(3))
    assert isinstance(place, Geometry) and place.orientation == "RAS" and place.size == (192, 192, 144)
