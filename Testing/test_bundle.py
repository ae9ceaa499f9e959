"""Bundles and their cards: round trips, and files of unknown origin."""

from __future__ import annotations

import copy
import json
import struct
import subprocess
import sys
import tracemalloc
from dataclasses import replace

import numpy as np
import pytest
import safetensors.torch
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from MedDPMLib.diffusion import samplers
from MedDPMLib.errors import MedDPMError
from MedDPMLib.models import card as card_module
from MedDPMLib.models.bundle import bundle_hash, read_bundle, read_card, write_bundle
from MedDPMLib.models.card import Card, default_qualities, official_cards
from MedDPMLib.networks import state_shapes

FUZZ = settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
CARD = replace(
    official_cards()[0],
    name="tiny",
    title="Tiny",
    network={"kind": "unet", "base": 32, "multipliers": [1], "attention": []},
)


def random_state(card: Card = CARD, dtype: torch.dtype = torch.float32) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    shapes = state_shapes(card.network_description)
    return {name: torch.randn(shape, generator=generator).to(dtype) for name, shape in shapes.items()}


@pytest.fixture(scope="module")
def bundle(tmp_path_factory):
    """The bytes of a valid bundle and of its header (without the length)."""
    path = tmp_path_factory.mktemp("bundle") / "tiny.safetensors"
    write_bundle(path, CARD, random_state(), dtype=torch.float16)
    content = path.read_bytes()
    return content, content[8 : 8 + struct.unpack("<Q", content[:8])[0]]


def with_header(table: object, data: bytes) -> bytes:
    header = json.dumps(table).encode()
    return struct.pack("<Q", len(header)) + header + data


# Cards -----------------------------------------------------------------------------------------------


def test_cards_survive_json():
    for card in (*official_cards(), CARD):
        assert Card.from_json(card.to_json()) == card


def test_the_official_cards_say_what_was_published():
    brats, head = official_cards()
    assert (brats.name, brats.grid.size, set(brats.grid.spacing), brats.grid.orientation) == (
        "med-ddpm-brats", (192, 192, 144), {1.0}, "LPS",
    )  # fmt: skip
    assert (head.name, head.grid.size, set(head.grid.spacing), head.grid.orientation) == (
        "med-ddpm-whole-head", (128, 128, 128), {1.5}, "RAS",
    )  # fmt: skip
    assert (brats.modalities, brats.scheme.values, brats.mask_encoding) == (
        ("t1", "t1ce", "t2", "flair"),
        (1, 2, 3, 4),
        (0, 1),
    )
    assert (head.modalities, head.scheme.values, head.mask_encoding) == (("t1",), (1, 2), (-1, 1))
    for card in official_cards():
        assert card.schedule == {"name": "cosine", "timesteps": 250}
        assert card.prediction == "noise"
        assert card.intensity_range == (-1, 1)


def test_cards_agree_with_schedules_and_samplers():
    for timesteps in (1, 10, 250):
        qualities = default_qualities(timesteps)
        assert all(quality["sampler"] in samplers.METHODS for quality in qualities.values())
        assert all(1 <= quality["steps"] <= timesteps for quality in qualities.values())
        assert qualities["reference"] == {"sampler": "ddpm", "steps": timesteps}


def test_cards_need_no_torch():
    code = (
        "import sys, MedDPMLib.models.card as c, MedDPMLib.models.bundle; c.official_cards();"
        " sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_a_card_is_reported_in_plain_lines():
    text = replace(CARD, limitations="None of it.", network={"kind": "unet", "blocks": 3, "attention": []}).describe()
    expected = ["Tiny (tiny)", "t1, t1ce, t2, flair", "192 x 192 x 144 voxels of 1 x 1 x 1 mm, LPS", "None of it."]
    expected += [
        "4 rest of the brain",
        "unet (blocks 3, attention none), predicts noise",
        "193 cases; license: CC BY 4.0",
    ]
    for part in expected:
        assert part in " ".join(text.split()), text
    assert all(len(line) <= 100 for line in text.splitlines())


def test_the_channels_come_from_labels_and_modalities():
    assert CARD.network_description == {**CARD.network, "image_channels": 4, "condition_channels": 4}


BAD_FIELDS = [
    ("format", 0), ("format", "1"), ("format", None), ("name", "../up"), ("name", "Big"), ("name", "nul"),
    ("name", ""), ("title", ""), ("title", "\x1b[2J"), ("summary", 3), ("training", None), ("license", " "),
    ("intended_use", "x" * 10_001), ("limitations", ["many"]), ("network", {}), ("network", {"base": 64}),
    ("network", {"kind": "unet", "base": 1.5}), ("network", {"kind": "unet", "image_channels": 4}),
    ("network", {"kind": "unet", "a": {}}), ("scheme", "brats"), ("modalities", []), ("modalities", ["t1", "t1"]),
    ("modalities", ["../t1"]), ("modalities", "t1"), ("grid", None),
    ("grid", {"size": [1, 1], "spacing": [1, 1, 1], "orientation": "RAS"}),
    ("grid", {"size": [10**9, 1, 1], "spacing": [1, 1, 1], "orientation": "RAS"}), ("mask_encoding", [1, 0]),
    ("mask_encoding", [0]), ("mask_encoding", [0, float("inf")]), ("mask_encoding", [-float("inf"), 1]),
    ("intensity_range", [1, 1]), ("intensity_range", "wide"), ("schedule", {"name": "cosine"}), ("schedule", None),
    ("schedule", {"name": "cosine", "timesteps": 0}), ("schedule", {"name": "cosine", "timesteps": 10**8}),
    ("positions", 1), ("label_dropout", 1.0), ("label_dropout", -0.1), ("label_dropout", "some"),
    ("prediction", "future"), ("prediction", ["x0"]), ("training_data", []), ("training_data", [{"name": "a"}]),
    ("training_data", [{"name": "a", "license": "b", "cases": -1}]), ("qualities", {"draft": {}}), ("qualities", []),
    ("qualities", {name: {"sampler": "ddpm", "steps": 251} for name in card_module.QUALITIES}),
]  # fmt: skip


@pytest.mark.parametrize(("field", "value"), BAD_FIELDS)
def test_a_bad_field_is_named(field, value):
    data = json.loads(CARD.to_json())
    data[field] = value
    with pytest.raises(MedDPMError, match="label scheme" if field == "scheme" else field):
        Card.from_json(json.dumps(data).replace("Infinity", "1e999"))  # which is JSON


#: What may be left out, and what it stands for then.
OPTIONAL = {"qualities": CARD.qualities, "positions": False, "label_dropout": 0.0}


def test_missing_and_unknown_fields_are_named():
    data = json.loads(CARD.to_json())
    for field in data:
        if field not in OPTIONAL:
            with pytest.raises(MedDPMError, match=field):
                Card.from_json(json.dumps({key: value for key, value in data.items() if key != field}))
    with pytest.raises(MedDPMError, match="colour"):
        Card.from_json(json.dumps({**data, "colour": "red"}))


@pytest.mark.parametrize("field", OPTIONAL)
def test_what_may_be_left_out_has_a_default(field):
    data = json.loads(CARD.to_json())
    del data[field]
    assert getattr(Card.from_json(json.dumps(data)), field) == OPTIONAL[field]


def test_a_newer_card_asks_for_an_update():
    with pytest.raises(MedDPMError, match="newer version"):
        Card.from_json(json.dumps({"format": card_module.FORMAT + 1, "news": True}))


@pytest.mark.parametrize(
    "text", ["", "[]", "3", "{", "[" * 100_000, '{"format": NaN}', '{"format": 1' + "0" * 5000 + "}", " " * 1_000_001]
)
def test_what_is_no_card_is_refused(text):
    with pytest.raises(MedDPMError):
        Card.from_json(text)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=6,
)


def mutated(data, table):
    """``table`` (JSON) with the value at a drawn place replaced, its key removed, or a new one beside it."""
    table = copy.deepcopy(table)
    place = table
    while True:
        key = data.draw(st.sampled_from(sorted(place) if isinstance(place, dict) else range(len(place))))
        if isinstance(place[key], (dict, list)) and place[key] and data.draw(st.integers(0, 3)):
            place = place[key]
            continue
        action = data.draw(st.sampled_from(["replace", "remove", "neighbor"]))
        if action == "replace":
            place[key] = data.draw(JSON)
        elif action == "remove":
            del place[key]
        elif isinstance(place, dict):
            place[data.draw(st.text(max_size=8))] = data.draw(JSON)
        else:
            place.append(data.draw(JSON))
        return table


@FUZZ
@given(st.data())
def test_a_mutated_card_is_refused_or_sound(data):
    table = mutated(data, json.loads(CARD.to_json()))
    try:
        card = Card.from_json(json.dumps(table))
    except MedDPMError as error:
        assert len(str(error).splitlines()) == 1 and len(str(error)) < 1000
    else:
        assert Card.from_json(card.to_json()) == card
        assert card.describe()


# Bundles ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_weights_and_card_come_back_bit_for_bit(tmp_path, dtype):
    state = random_state(dtype=dtype)
    write_bundle(tmp_path / "a.safetensors", CARD, state)
    card, read = read_bundle(tmp_path / "a.safetensors")
    assert card == read_card(tmp_path / "a.safetensors") == CARD
    assert read.keys() == state.keys()
    assert all(read[name].dtype == dtype and torch.equal(read[name], state[name]) for name in state)


def test_half_precision_on_disk_is_rounding(tmp_path):
    state = random_state()
    write_bundle(tmp_path / "a.safetensors", CARD, state, dtype=torch.float16)
    read = read_bundle(tmp_path / "a.safetensors")[1]
    assert all(torch.equal(read[name], state[name].half()) for name in state)
    write_bundle(tmp_path / "b.safetensors", CARD, read)
    assert (tmp_path / "a.safetensors").read_bytes() == (tmp_path / "b.safetensors").read_bytes()


def test_any_memory_layout_is_stored(tmp_path):
    state = {
        name: t.to(memory_format=torch.channels_last_3d).requires_grad_() if t.ndim == 5 else t
        for name, t in random_state().items()
    }
    write_bundle(tmp_path / "a.safetensors", CARD, state)
    assert all(torch.equal(t, state[name]) for name, t in read_bundle(tmp_path / "a.safetensors")[1].items())


def test_the_hash_is_the_files(tmp_path):
    import hashlib

    content = np.random.default_rng(0).bytes(3_000_000)
    (tmp_path / "x").write_bytes(content)
    assert bundle_hash(tmp_path / "x") == hashlib.sha256(content).hexdigest()
    with pytest.raises(MedDPMError, match="absent"):
        bundle_hash(tmp_path / "absent")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"out.2.bias": torch.zeros(4) / 0}, "out.2.bias.*not finite"),
        ({"out.2.bias": torch.full((4,), 1e5)}, "out.2.bias.*not finite"),
        ({"out.2.bias": torch.zeros(5)}, r"out.2.bias.*\(5,\) instead of \(4,\)"),
        ({"out.9.bias": torch.zeros(5)}, "out.9.bias"),
        ({"out.2.bias": None}, "missing.*out.2.bias"),
    ],
)
def test_unsound_weights_are_not_written(tmp_path, change, message):
    state = {name: t for name, t in {**random_state(), **change}.items() if t is not None}
    with pytest.raises(MedDPMError, match=message):
        write_bundle(tmp_path / "a.safetensors", CARD, state, dtype=torch.float16)
    assert not list(tmp_path.iterdir())


def test_integers_are_not_weights(tmp_path):
    with pytest.raises(MedDPMError, match="int64"):
        write_bundle(
            tmp_path / "a.safetensors", CARD, {**random_state(), "out.2.bias": torch.zeros(4, dtype=torch.long)}
        )


def test_a_place_that_cannot_be_written_is_reported(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(MedDPMError, match="cannot be written"):
        write_bundle(tmp_path / "file" / "a.safetensors", CARD, random_state())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"out.2.bias": torch.zeros(4) / 0}, "out.2.bias.*not finite"),
        ({"out.2.bias": torch.zeros(5)}, r"out.2.bias.*\(5,\)"),
        ({"out.2.bias": torch.zeros(4, dtype=torch.float64)}, "F64"),
    ],
)
def test_unsound_weights_are_not_read(tmp_path, change, message):
    path = tmp_path / "a.safetensors"
    safetensors.torch.save_file({**random_state(), **change}, path, {"meddpm.card": CARD.to_json()})
    with pytest.raises(MedDPMError, match=message):
        read_bundle(path)


def test_a_safetensors_file_without_a_card_is_reported(tmp_path):
    safetensors.torch.save_file(random_state(), tmp_path / "a.safetensors")
    with pytest.raises(MedDPMError, match="carries no model card"):
        read_card(tmp_path / "a.safetensors")


@pytest.mark.parametrize("reader", [read_card, read_bundle])
def test_missing_files_and_folders_are_reported(tmp_path, reader):
    with pytest.raises(MedDPMError, match="cannot be read"):
        reader(tmp_path / "absent.safetensors")
    with pytest.raises(MedDPMError, match="folder"):
        reader(tmp_path)


def test_a_card_that_asks_for_a_monster_is_refused(bundle, tmp_path):
    content, header = bundle
    table, data = json.loads(header), content[8 + len(header) :]
    card = json.loads(table["__metadata__"]["meddpm.card"])
    card["network"] = {"kind": "unet", "base": 4096, "multipliers": [128] * 8}
    table["__metadata__"]["meddpm.card"] = json.dumps(card)
    (tmp_path / "a").write_bytes(with_header(table, data))
    with pytest.raises(MedDPMError, match="parameters is refused"):
        read_bundle(tmp_path / "a")


# Files of unknown origin ------------------------------------------------------------------------------


def refused_or_valid(path, content: bytes) -> bool:
    """Whether ``content`` is refused with one sentence that names the file; else it must be whole."""
    path.write_bytes(content)
    try:
        card = read_card(path)
    except MedDPMError:
        card = None
    try:
        read, state = read_bundle(path)
    except MedDPMError as error:
        assert str(path) in str(error) and len(str(error).splitlines()) == 1
        return True
    assert read == card
    assert all(torch.isfinite(tensor).all() for tensor in state.values())
    return False


@FUZZ
@given(content=st.binary(max_size=400), prefix=st.sampled_from([b"", b"\2\0\0\0\0\0\0\0{}", b"\x40\0\0\0\0\0\0\0{"]))
def test_random_bytes_are_refused(tmp_path, content, prefix):
    assert refused_or_valid(tmp_path / "x", prefix + content)


@FUZZ
@given(data=st.data())
def test_every_truncation_is_refused(tmp_path, bundle, data):
    content, header = bundle
    length = data.draw(st.integers(0, len(header) + 100) | st.integers(0, len(content) - 1))
    assert refused_or_valid(tmp_path / "x", content[:length])


@FUZZ
@given(extra=st.binary(min_size=1, max_size=100))
def test_what_follows_the_weights_is_refused(tmp_path, bundle, extra):
    assert refused_or_valid(tmp_path / "x", bundle[0] + extra)


@FUZZ
@given(length=st.integers(0, 2**64 - 1) | st.integers(0, 100_000))
def test_a_header_that_lies_about_its_length_is_refused(tmp_path, bundle, length):
    content, header = bundle
    if length != len(header):
        tracemalloc.start()
        assert refused_or_valid(tmp_path / "x", struct.pack("<Q", length) + content[8:])
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert peak < 20_000_000


@FUZZ
@given(data=st.data())
def test_flipped_header_bytes_do_no_harm(tmp_path, bundle, data):
    content, header = bundle
    content = bytearray(content)
    for _ in range(data.draw(st.integers(1, 3))):
        content[data.draw(st.integers(0, 7 + len(header)))] = data.draw(st.integers(0, 255))
    refused_or_valid(tmp_path / "x", bytes(content))


@FUZZ
@given(data=st.data())
def test_a_mutated_header_does_no_harm(tmp_path, bundle, data):
    content, header = bundle
    table = mutated(data, json.loads(header))
    refused_or_valid(tmp_path / "x", with_header(table, content[8 + len(header) :]))


def test_the_sound_bundle_passes_the_same_check(tmp_path, bundle):
    assert not refused_or_valid(tmp_path / "x", bundle[0])
