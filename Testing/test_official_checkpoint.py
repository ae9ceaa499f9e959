"""Official checkpoints: recognized in every wrapping, and whatever else is in such a file refused."""

from __future__ import annotations

import os
import pickle
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from golden.procedural_weights import procedural_tensor
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from MedDPMLib.diffusion.schedule import make_schedule
from MedDPMLib.errors import MedDPMError
from MedDPMLib.models import official_checkpoint as checkpoint
from MedDPMLib.models.card import Card, official_cards
from MedDPMLib.models.official_checkpoint import read_checkpoint
from MedDPMLib.networks import build_network, state_shapes

GOLDEN = Path(__file__).parent / "golden"
BRATS, WHOLE_HEAD = official_cards()


def flat_state(card: Card, offset: float = 0.0) -> dict[str, torch.Tensor]:
    """A state dict of the card's network, each tensor one number of its own seen many times: small on disk."""
    shapes = state_shapes(card.network_description)
    return {name: torch.tensor(offset + i / 512).expand(shape) for i, (name, shape) in enumerate(shapes.items())}


def tables(name: str = "cosine", timesteps: int = 250) -> dict[str, torch.Tensor]:
    """The diffusion's tables as official checkpoints hold them; those that are not read are zero."""
    schedule = make_schedule(name, timesteps)
    known = {"betas": schedule.betas, "alphas_cumprod": schedule.alpha_bar}
    return {table: known.get(table, torch.zeros(timesteps)) for table in checkpoint._TABLES}


def saved(path: Path, content: object, **options) -> Path:
    torch.save(content, path, **options)
    return path


def assert_is(path: Path, card: Card, state: dict[str, torch.Tensor]) -> None:
    read_card, read_state = read_checkpoint(path)
    assert read_card == card
    assert read_state.keys() == state.keys()
    assert all(read_state[name].dtype == torch.float32 and torch.equal(read_state[name], state[name]) for name in state)


@pytest.fixture(scope="session")
def real(tmp_path_factory) -> Path:
    """A whole-head checkpoint as the official training writes it, with the golden tensors' weights."""
    shapes = state_shapes(WHOLE_HEAD.network_description)
    ema = {
        f"denoise_fn.{name}": procedural_tensor(f"denoise_fn.{name}", torch.Size(shape))
        for name, shape in shapes.items()
    }
    model = {f"denoise_fn.{name}": tensor for name, tensor in flat_state(WHOLE_HEAD).items()}
    content = {"step": 100_000, "model": {**tables(), **model}, "ema": {**tables(), **ema}}
    return saved(tmp_path_factory.mktemp("real") / "model-100.pt", content)


def test_an_official_checkpoint_gives_the_published_outputs(real):
    card, state = read_checkpoint(real)
    assert card == WHOLE_HEAD
    network = build_network(card.network_description).eval().requires_grad_(False)
    network.load_state_dict(state)
    golden = np.load(GOLDEN / "official_whole_head.npz")
    predicted = network(torch.from_numpy(golden["x"]), torch.tensor([125]), torch.from_numpy(golden["condition"]))
    np.testing.assert_allclose(predicted.numpy(), golden["eps_t125"], atol=1e-4, rtol=0)


def test_the_tables_are_those_of_the_published_files():
    for which in ("brats", "whole_head"):
        names = [line.split("\t")[0] for line in (GOLDEN / f"{which}.txt").read_text().splitlines() if line[0] != "#"]
        assert [name for name in names if not name.startswith("denoise_fn.")] == list(checkpoint._TABLES)


@pytest.mark.parametrize(
    ("card", "wrapped"), [(BRATS, True), (WHOLE_HEAD, False)], ids=["brats-ema", "whole-head-bare"]
)
@pytest.mark.parametrize(
    ("outer", "inner"),
    [
        ("", ""),
        ("", "denoise_fn."),
        ("module.", "denoise_fn."),
        ("", "denoise_fn.module."),
        ("module.", "denoise_fn.module."),
    ],
)
def test_every_wrapping_gives_the_same_weights(tmp_path, card, wrapped, outer, inner):
    state = flat_state(card)
    content = {f"{outer}{inner}{name}": tensor for name, tensor in state.items()}
    content |= {f"{outer}{name}": table for name, table in tables().items()}
    if wrapped:
        other = {name: tensor + 1 for name, tensor in list(content.items())[:1]}
        content = {"step": 7, "model": other, "ema": content}
    assert_is(saved(tmp_path / "a.pt", content), card, state)


def test_tables_may_be_absent_and_the_average_too(tmp_path):
    state = flat_state(WHOLE_HEAD)
    assert_is(saved(tmp_path / "a.pt", {"step": 1, "model": state}), WHOLE_HEAD, state)


def test_half_precision_weights_become_float32(tmp_path):
    state = {
        name: torch.tensor(i / 512).half().expand(t.shape) for i, (name, t) in enumerate(flat_state(WHOLE_HEAD).items())
    }
    assert_is(saved(tmp_path / "a.pt", state), WHOLE_HEAD, {name: t.float() for name, t in state.items()})


@pytest.mark.parametrize(("name", "timesteps"), [("cosine", 100), ("linear", 250)])
def test_the_files_noise_schedule_decides(tmp_path, name, timesteps):
    path = saved(tmp_path / "a.pt", {**tables(name, timesteps), **flat_state(WHOLE_HEAD)})
    card = read_checkpoint(path)[0]
    assert card.schedule == {"name": name, "timesteps": timesteps}
    assert card.qualities["reference"]["steps"] == timesteps


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"betas": torch.linspace(0.1, 0.2, 250)}, "unknown noise schedule.*250 values from 0.1 to 0.2"),
        ({"betas": torch.full((250,), float("nan"))}, "unknown noise schedule"),
        ({"alphas_cumprod": torch.linspace(0.9, 0.1, 250)}, "unknown noise schedule"),
        ({"alphas_cumprod": torch.full((249,), 0.5)}, "unknown noise schedule"),
        ({"betas": torch.zeros(5, 5)}, "one value a timestep"),
        ({"betas": torch.zeros(0)}, "one value a timestep"),
        ({"betas": torch.zeros(1).expand(10**9)}, "one value a timestep"),
    ],
)
def test_an_unknown_noise_schedule_is_refused(tmp_path, change, message):
    with pytest.raises(MedDPMError, match=message):
        read_checkpoint(saved(tmp_path / "a.pt", {**tables(), **flat_state(WHOLE_HEAD), **change}))


@pytest.mark.parametrize("value", [0.0, 1.0, -3.0, 7.0])
def test_tables_that_hold_no_schedule_count_as_absent(tmp_path, value):
    placeholders = {name: torch.full((250,), value) for name in checkpoint._TABLES}
    state = flat_state(WHOLE_HEAD)
    assert_is(saved(tmp_path / "a.pt", {**placeholders, **state}), WHOLE_HEAD, state)


def changed(**change) -> dict:
    state = {f"denoise_fn.{name}": tensor for name, tensor in flat_state(WHOLE_HEAD).items()}
    state |= {f"denoise_fn.{name.replace('__', '.')}": tensor for name, tensor in change.items()}
    return {name: tensor for name, tensor in state.items() if tensor is not None}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (lambda: changed(out__2__bias=None), 'med-ddpm-whole-head.*1 of 246 tensors are missing, first "out.2.bias"'),
        (lambda: changed(out__2__bias=torch.zeros(2)), r'"out.2.bias" with \(2,\) instead of \(1,\)'),
        (lambda: changed(extra=torch.zeros(2)), '1 do not belong to it, first "extra"'),
        (lambda: changed(input_blocks__0__0__weight=torch.zeros(64, 4, 3, 3, 3)), "(64, 4, 3, 3, 3)"),
        (lambda: changed(out__2__bias=torch.zeros(1) / 0), "out.2.bias.*not finite"),
        (lambda: changed(out__2__bias=torch.zeros(1, dtype=torch.int32)), "int32"),
        (lambda: changed(out__2__bias=torch.zeros(1).to_sparse()), "not a plain tensor"),
        (lambda: changed(out__2__bias=torch.zeros(1, device="meta")), "not a plain tensor"),
        (lambda: changed(out__2__bias=3.0), "not a plain tensor"),
        (lambda: changed(module__out__2__bias=torch.zeros(1)), "twice"),
        (lambda: changed(out__2__bias=torch.zeros(1).expand(10**15)), "instead of"),
        (lambda: {"conv1.weight": torch.zeros(64, 3, 7, 7)}, "expected are 338 .*246.*found were 1 .*conv1.weight"),
        (lambda: tables(), "not a Med-DDPM checkpoint"),
        (lambda: {}, "found were 0 tensors"),
        (lambda: [1, 2], "holds list"),
        (lambda: torch.zeros(3), "holds Tensor"),
        (lambda: {3: torch.zeros(3)}, "without a name"),
        (lambda: {"ema": {"a": {"b": 1}}}, "not a plain tensor"),
        (lambda: {"step": 3}, "not a plain tensor"),
    ],
)  # fmt: skip
def test_what_is_neither_network_is_refused_with_what_was_expected(tmp_path, content, message):
    path = saved(tmp_path / "a.pt", content())
    with pytest.raises(MedDPMError, match=message) as caught:
        read_checkpoint(path)
    assert str(path) in str(caught.value) and len(str(caught.value).splitlines()) == 1


class Attack:
    """Unpickled by an unwary reader, it runs a command."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self):
        return os.system, (f"touch {self.marker}",)


@pytest.mark.parametrize("zipped", [True, False])
def test_a_file_that_would_run_code_is_not_opened(tmp_path, zipped):
    marker = tmp_path / "ran"
    content = {"ema": {"denoise_fn.out.2.bias": Attack(marker)}}
    path = saved(tmp_path / "a.pt", content, _use_new_zipfile_serialization=zipped)
    with pytest.raises(MedDPMError, match="system|cannot be read safely"):
        read_checkpoint(path)
    assert not marker.exists()
    torch.load(path, weights_only=False)
    assert marker.exists(), "the attack itself does not work, so nothing was shown"


def test_bare_pickles_are_not_opened(tmp_path):
    (tmp_path / "a.pt").write_bytes(pickle.dumps({"step": 1}))
    with pytest.raises(MedDPMError, match="a.pt is a bare pickle"):
        read_checkpoint(tmp_path / "a.pt")


def test_an_archive_that_unpacks_to_more_than_it_is_is_not_opened(tmp_path):
    whole = saved(tmp_path / "a.pt", {"betas": torch.zeros(10_000_000)})
    with zipfile.ZipFile(whole) as source, zipfile.ZipFile(tmp_path / "bomb.pt", "w", zipfile.ZIP_DEFLATED) as bomb:
        for part in source.namelist():
            bomb.writestr(part, source.read(part))
    assert (tmp_path / "bomb.pt").stat().st_size < whole.stat().st_size / 100
    with pytest.raises(MedDPMError, match="not written by PyTorch"):
        read_checkpoint(tmp_path / "bomb.pt")


def test_other_archives_are_reported(tmp_path):
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.writestr("readme.txt", "hello")
    with pytest.raises(MedDPMError, match="archive but not a PyTorch checkpoint"):
        read_checkpoint(tmp_path / "a.zip")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "not a PyTorch checkpoint"),
        (b"labels: 1 head, 2 tumor\n", "not a PyTorch checkpoint"),
        (b"\x1f\x8b\x08\x00" + b"\0" * 500, "not a PyTorch checkpoint"),
        (b"\x5c\x01\x00\x00" + b"\0" * 348, "not a PyTorch checkpoint"),
        (b"PK\x03\x04" + b"\0" * 100, "truncated or damaged"),
    ],
    ids=["empty", "text", "gzip", "nifti", "zip"],
)
def test_other_files_are_reported(tmp_path, content, message):
    (tmp_path / "a.pt").write_bytes(content)
    with pytest.raises(MedDPMError, match=message):
        read_checkpoint(tmp_path / "a.pt")


def test_missing_files_and_folders_are_reported(tmp_path):
    with pytest.raises(MedDPMError, match="cannot be read"):
        read_checkpoint(tmp_path / "absent.pt")
    with pytest.raises(MedDPMError, match="folder"):
        read_checkpoint(tmp_path)


@pytest.fixture(scope="module")
def small(tmp_path_factory) -> bytes:
    path = tmp_path_factory.mktemp("small") / "a.pt"
    return saved(path, {"ema": {"denoise_fn.out.2.bias": torch.ones(3), "betas": torch.zeros(9)}}).read_bytes()


FUZZ = settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@FUZZ
@given(data=st.data())
def test_damaged_archives_are_refused(tmp_path, small, data):
    content = bytearray(small)
    for _ in range(data.draw(st.integers(0, 4))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    (tmp_path / "a.pt").write_bytes(content[: data.draw(st.just(None) | st.integers(0, len(content)))])
    with pytest.raises(MedDPMError):
        read_checkpoint(tmp_path / "a.pt")


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
@FUZZ
@given(instructions=st.binary(max_size=60))
def test_random_pickles_are_refused(tmp_path, small, instructions):
    with zipfile.ZipFile(tmp_path / "a.pt", "w") as archive:
        archive.writestr("a/data.pkl", b"\x80\x02" + instructions + b".")
        archive.writestr("a/version", "3\n")
        archive.writestr("a/data/0", b"\0" * 64)
    with pytest.raises(MedDPMError):
        read_checkpoint(tmp_path / "a.pt")
