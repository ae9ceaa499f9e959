"""The store: what is installed, what goes in and out of it, and what must not."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from test_bundle import CARD, random_state
from typer.testing import CliRunner

from MedDPMLib.cli.app import app
from MedDPMLib.errors import MedDPMError
from MedDPMLib.models import store as store_module
from MedDPMLib.models.bundle import bundle_hash, read_bundle, read_card, write_bundle, write_sharing
from MedDPMLib.models.card import official_cards
from MedDPMLib.models.store import ModelStore, load_card_and_state
from MedDPMLib.networks import state_shapes

BUNDLED_CARD = replace(CARD, name="shipped", title="Shipped")


@pytest.fixture
def store(tmp_path, monkeypatch) -> ModelStore:
    """A store with one bundled model and an empty user folder that does not exist yet."""
    monkeypatch.setattr(store_module, "BUNDLED_MODELS", tmp_path / "bundled")
    write_bundle(tmp_path / "bundled" / "shipped.safetensors", BUNDLED_CARD, random_state(), dtype=torch.float16)
    return ModelStore(tmp_path / "user")


@pytest.fixture
def tiny(tmp_path) -> Path:
    write_bundle(tmp_path / "some file.bin", CARD, random_state())
    return tmp_path / "some file.bin"


def test_a_bundle_is_added_listed_found_exported_and_removed(store, tiny, tmp_path):
    added = store.add(tiny)
    assert (added.name, added.path, added.bundled) == ("tiny", store.folder / "tiny.safetensors", False)
    assert added.path.read_bytes() == tiny.read_bytes()
    assert (added.size, added.hash, added.card, added.problem) == (tiny.stat().st_size, bundle_hash(tiny), CARD, None)
    assert [(entry.name, entry.bundled) for entry in store.list()] == [("shipped", True), ("tiny", False)]
    assert store.find("tiny") == added
    copy = store.export("tiny", tmp_path / "out" / "copy.safetensors")
    assert copy.read_bytes() == tiny.read_bytes()
    store.remove("tiny")
    assert [entry.name for entry in store.list()] == ["shipped"]
    assert store.add(copy) == added


def test_a_model_may_be_added_under_another_name_and_twice(store, tiny):
    first, second = store.add(tiny, "other-1.5"), store.add(tiny, "other-1.5")
    assert first == second == store.find("other-1.5")
    assert [path.name for path in store.folder.iterdir()] == ["other-1.5.safetensors"]


def test_a_different_model_of_the_same_name_is_kept(store, tiny, tmp_path):
    store.add(tiny)
    write_bundle(tmp_path / "new", CARD, {name: tensor + 1 for name, tensor in random_state().items()})
    with pytest.raises(MedDPMError, match='another model called "tiny"'):
        store.add(tmp_path / "new")
    with pytest.raises(MedDPMError, match="comes with MedDPM"):
        store.add(tmp_path / "new", "shipped")
    assert store.find("tiny").path.read_bytes() == tiny.read_bytes()
    assert [path.name for path in store.folder.iterdir()] == ["tiny.safetensors"]


@pytest.mark.parametrize(
    "name",
    [
        "../evil",
        "a/b",
        "a\\b",
        "/tmp/evil",
        "",
        ".",
        "..",
        ".hidden",
        "UPPER",
        "nul",
        "com1.x",
        "end.",
        "x" * 65,
        "a\n",
        "é",
    ],
)
def test_names_cannot_leave_the_folder(store, tiny, tmp_path, name):
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(MedDPMError):
        store.add(tiny, name)
    with pytest.raises(MedDPMError):
        store.remove(name)
    assert sorted(tmp_path.rglob("*")) == before


def test_only_what_is_in_the_folder_is_removed(store, tiny):
    for name in (str(tiny), f"../{tiny.name}", tiny.name, "absent"):
        with pytest.raises(MedDPMError, match="no model"):
            store.remove(name)
    assert tiny.exists()


def test_bundled_models_stay(store):
    with pytest.raises(MedDPMError, match="comes with MedDPM"):
        store.remove("shipped")
    assert store.find("shipped").path.exists()


def test_a_broken_file_is_listed_with_its_reason_and_not_added(store, tiny):
    store.add(tiny)
    broken = store.folder / "broken.safetensors"
    broken.write_bytes(tiny.read_bytes()[:-1])
    entries = {entry.name: entry for entry in store.list()}
    assert "truncated" in entries["broken"].problem and entries["tiny"].problem is None
    with pytest.raises(MedDPMError, match="truncated"):
        entries["broken"].card  # noqa: B018
    with pytest.raises(MedDPMError, match="truncated"):
        store.add(broken, "again")
    store.remove("broken")
    assert not broken.exists()


def test_a_bundle_whose_weights_are_not_finite_is_not_added(store, tiny):
    content = bytearray(tiny.read_bytes())
    content[-4:] = b"\0\0\x80\x7f"  # infinity
    tiny.write_bytes(content)
    with pytest.raises(MedDPMError, match="not finite"):
        store.add(tiny)
    assert not store.folder.exists()


def test_files_that_are_no_bundles_are_not_listed(store, tiny):
    store.add(tiny)
    (store.folder / "notes.txt").write_text("hello")
    (store.folder / ".abcd.safetensors").write_text("half written")
    (store.folder / "folder.safetensors").mkdir()
    assert [entry.name for entry in store.list()] == ["shipped", "tiny"]


def test_models_are_found_by_path_and_the_users_own_first(store, tiny, tmp_path):
    entry = store.find(tiny)
    assert (entry.path, entry.bundled, entry.card) == (tiny, False, CARD)
    (store.folder).mkdir()
    (store.folder / "shipped.safetensors").write_bytes(tiny.read_bytes())
    assert not store.find("shipped").bundled
    with pytest.raises(MedDPMError, match='no model "absent".*shipped'):
        store.find("absent")
    with pytest.raises(MedDPMError, match="no model"):
        store.find(tmp_path)


def test_an_export_overwrites_nothing(store, tiny, tmp_path):
    (tmp_path / "mine").write_text("precious")
    with pytest.raises(MedDPMError, match="exists already"):
        store.export("shipped", tmp_path / "mine")
    assert (tmp_path / "mine").read_text() == "precious"
    assert store.export("shipped", tmp_path) == tmp_path / "shipped.safetensors"
    assert store.export("shipped", tmp_path) == tmp_path / "shipped.safetensors"


def test_models_may_share_weights(store, tmp_path):
    """One file with the weights, one with a card alone; a copy of the latter is a model of its own."""
    state, folder = random_state(), tmp_path / "shared"
    folder.mkdir()
    lender, sharing = folder / "lender.safetensors", folder / "sharing.safetensors"
    write_bundle(lender, CARD, state, dtype=torch.float16)
    other = replace(CARD, name="other", title="Other masks")
    write_sharing(sharing, other, lender)
    assert sharing.stat().st_size < 10_000 < lender.stat().st_size
    card, shared = read_bundle(sharing)
    assert replace(card, weights=None) == other and "Weights       those of lender" in card.describe()
    assert all(torch.equal(tensor, shared[name]) for name, tensor in read_bundle(lender)[1].items())
    entry = store.add(sharing)
    whole, own = read_bundle(entry.path)
    assert whole == other and all(torch.equal(tensor, shared[name]) for name, tensor in own.items())
    assert store.add(entry.path, "other").hash == entry.hash  # and is added as it is
    with pytest.raises(MedDPMError, match="must lie in the folder of"):
        write_sharing(tmp_path / "elsewhere.safetensors", other, lender)
    with pytest.raises(MedDPMError, match="is not written: the weights are not those of the card's network"):
        write_sharing(folder / "wrong.safetensors", replace(other, network={**CARD.network, "base": 64}), lender)
    content = lender.read_bytes()
    lender.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    with pytest.raises(MedDPMError, match="is not the file whose weights it uses"):
        read_bundle(sharing)
    lender.unlink()
    found = ModelStore(folder).find("sharing")
    assert "uses the weights of lender.safetensors, which is missing" in found.problem
    stolen = content.replace(
        b'\\"title\\"',
        b'\\"weights\\":{\\"file\\":\\"a.safetensors\\",\\"sha256\\":\\"' + b"0" * 64 + b'\\"},\\"title\\"',
        1,
    )
    length = int.from_bytes(content[:8], "little") + len(stolen) - len(content)
    sharing.write_bytes(length.to_bytes(8, "little") + stolen[8:])
    with pytest.raises(MedDPMError, match="its card names the weights of another file"):
        read_card(sharing)


def test_the_users_folder_is_chosen_by_argument_then_environment(tmp_path, monkeypatch):
    monkeypatch.setenv("MEDDPM_MODELS", str(tmp_path / "a"))
    assert ModelStore().folder == tmp_path / "a"
    assert ModelStore(tmp_path / "b").folder == tmp_path / "b"
    monkeypatch.delenv("MEDDPM_MODELS")
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "c"))
    assert ModelStore().folder.parts[-2:] == ("MedDPM", "models")


def test_an_official_checkpoint_becomes_a_bundle_with_the_same_weights(store, tmp_path, monkeypatch):
    card = official_cards()[1]
    shapes = state_shapes(card.network_description)
    state = {name: torch.tensor(i / 512).expand(shape) for i, (name, shape) in enumerate(shapes.items())}
    path = tmp_path / "model.safetensors"  # the suffix does not decide
    torch.save({"step": 1, "ema": {f"denoise_fn.{name}": tensor for name, tensor in state.items()}}, path)
    entry = store.add(path)
    assert (entry.name, entry.card) == (card.name, card)
    read_card, read = load_card_and_state(entry.path)
    assert read_card == card and all(torch.equal(read[name], state[name]) for name in state)
    assert store.find(path).card == card
    assert store.add(path) == entry
    # The command says for which network it takes it; a bundle says so itself.
    monkeypatch.setenv("MEDDPM_MODELS", str(store.folder))
    for file, said in ((path, True), (entry.path, False)):
        result = CliRunner().invoke(app, ["models", "import", str(file)])
        assert result.exit_code == 0 and (f"recognized as {card.title}" in result.output) is said


@pytest.mark.parametrize("content", [b"", b"text", b"\x1f\x8b" + b"\0" * 20, b"PK\x03\x04", b"\x80\x02.", b"\0" * 400])
def test_files_of_another_kind_are_refused(store, tmp_path, content):
    (tmp_path / "x.safetensors").write_bytes(content)
    with pytest.raises(MedDPMError, match="x.safetensors"):
        load_card_and_state(tmp_path / "x.safetensors")
    with pytest.raises(MedDPMError, match="x.safetensors"):
        store.add(tmp_path / "x.safetensors")
    with pytest.raises(MedDPMError, match="cannot be read"):
        load_card_and_state(tmp_path / "absent")
