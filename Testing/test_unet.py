"""The published networks: names, shapes and outputs; descriptions that build them, and those that do not."""

from __future__ import annotations

import subprocess
import sys
import time
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
from golden.procedural_weights import procedural_tensor

from MedDPMLib.diffusion.schedule import make_schedule, posterior_coefficients
from MedDPMLib.errors import MedDPMError
from MedDPMLib.models.card import official_cards
from MedDPMLib.networks import MAX_PARAMETERS, build_network, shape_mismatch, state_shapes
from MedDPMLib.networks.unet import UNet3d, timestep_embedding

GOLDEN = Path(__file__).parent / "golden"
CARDS = {card.name: card for card in official_cards()}
OFFICIAL = {"brats": CARDS["med-ddpm-brats"], "whole_head": CARDS["med-ddpm-whole-head"]}
TINY = {
    "kind": "unet",
    "image_channels": 2,
    "condition_channels": 3,
    "base": 32,
    "multipliers": [1, 2],
    "attention": [2],
}


def procedural(network: torch.nn.Module) -> torch.nn.Module:
    """``network`` with the golden tensors' weights, whose names are those of a whole checkpoint."""
    shapes = {name: tensor.shape for name, tensor in network.state_dict().items()}
    network.load_state_dict({name: procedural_tensor(f"denoise_fn.{name}", shape) for name, shape in shapes.items()})
    return network.eval().requires_grad_(False)


def inputs(description: dict, batch: int = 1, side: int = 8) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(5)
    x = torch.randn(batch, description["image_channels"], side, side, 2 * side, generator=generator)
    condition = torch.randint(
        0, 2, (batch, description["condition_channels"], side, side, 2 * side), generator=generator
    )
    return x, torch.arange(batch) * 40 + 3, condition.float()


@pytest.fixture(scope="module", params=sorted(OFFICIAL))
def official(request):
    """The network's prediction for the golden input by timestep, and the golden tensors."""
    network = procedural(build_network(OFFICIAL[request.param].network_description))
    golden = np.load(GOLDEN / f"official_{request.param}.npz")
    golden = {name: torch.from_numpy(golden[name]) for name in golden.files}

    @cache
    def predicted(t: int) -> torch.Tensor:
        return network(golden["x"], torch.tensor([t]), golden["condition"])

    return predicted, golden


@pytest.mark.parametrize("which", sorted(OFFICIAL))
def test_names_and_shapes_are_the_published_ones(which):
    lines = (GOLDEN / f"{which}.txt").read_text().splitlines()
    published = [line.split("\t")[:2] for line in lines if line.startswith("denoise_fn.")]
    shapes = state_shapes(OFFICIAL[which].network_description)
    assert [[f"denoise_fn.{name}", str(shape)] for name, shape in shapes.items()] == published


def test_parameter_counts_are_the_published_ones():
    counts = {
        which: sum(map(np.prod, state_shapes(card.network_description).values())) for which, card in OFFICIAL.items()
    }
    assert counts == {"brats": 57_562_564, "whole_head": 40_226_433}


@pytest.mark.parametrize("t", [0, 125, 249])
def test_the_predicted_noise_is_the_published_networks(official, t):
    predicted, golden = official
    torch.testing.assert_close(predicted(t), golden[f"eps_t{t}"], atol=1e-4, rtol=0)


@pytest.mark.parametrize("t", [0, 1, 125])
def test_the_posterior_is_the_published_ones(official, t):
    predicted, golden = official
    schedule, step = make_schedule("cosine", 250), torch.tensor([t])
    x0 = schedule.x0_from(predicted(t), golden["x"], step, "noise").clamp(-1, 1)
    alpha_bar = torch.cat([torch.ones(1, dtype=torch.float64), schedule.exact_alpha_bar])
    weight_x0, weight_x, _ = posterior_coefficients(alpha_bar[t + 1], alpha_bar[t])
    mean = weight_x0.item() * x0 + weight_x.item() * golden["x"]
    torch.testing.assert_close(mean, golden[f"mean_t{t}"], atol=1e-4, rtol=0)


def test_the_schedule_is_the_published_one(official):
    schedule, golden = make_schedule("cosine", 250), official[1]
    torch.testing.assert_close(schedule.betas, golden["betas"], atol=1e-6, rtol=0)
    torch.testing.assert_close(schedule.alpha_bar, golden["alphas_cumprod"], atol=1e-6, rtol=0)


def test_a_batch_equals_its_elements():
    network = procedural(build_network(TINY))
    x, t, condition = inputs(TINY, batch=3)
    together = network(x, t, condition)
    for i in range(3):
        alone = network(x[i : i + 1], t[i : i + 1], condition[i : i + 1])
        torch.testing.assert_close(together[i : i + 1], alone, atol=1e-5, rtol=0)
    assert (together[0] - together[1]).abs().max() > 0.1


def test_the_memory_layout_does_not_matter():
    network = procedural(build_network(TINY))
    x, t, condition = inputs(TINY)
    plain = network(x, t, condition)
    channels_last = network.to(memory_format=torch.channels_last_3d)(
        x.to(memory_format=torch.channels_last_3d), t, condition
    )
    torch.testing.assert_close(channels_last, plain, atol=1e-5, rtol=0)


def test_bfloat16_is_close_to_float32():
    network = procedural(build_network(TINY))
    x, t, condition = inputs(TINY)
    exact = network(x, t, condition)
    half = network.to(torch.bfloat16, memory_format=torch.channels_last_3d)(x, t, condition)
    assert half.dtype == torch.bfloat16
    # bfloat16 rounds to 1 part in 256; a dozen layers deep the error is still a few of those.
    assert (half.float() - exact).square().mean().sqrt() < 8 / 256 * exact.std()


def test_bfloat16_still_tells_long_timesteps_apart():
    network = procedural(build_network(TINY)).to(torch.bfloat16)
    x, _, condition = inputs(TINY)
    outputs = [network(x, torch.tensor([t]), condition) for t in (998, 999)]
    assert not torch.equal(*outputs)


def test_the_timestep_embedding_is_its_formula():
    embedded = timestep_embedding(torch.tensor([0, 1, 249]), 6).double().numpy()
    angles = np.array([0, 1, 249])[:, None] * 1000.0 ** (-np.arange(3) / 3)
    np.testing.assert_allclose(embedded, np.hstack([np.cos(angles), np.sin(angles)]), atol=2e-5)


def test_every_parameter_learns():
    network = build_network(TINY)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(0.02)  # residual branches start at zero, which would hold back what lies before them
    network(*inputs(TINY)).square().mean().backward()
    still = [name for name, p in network.named_parameters() if p.grad is None or not p.grad.abs().max() > 0]
    # Over all voxels, softmax ignores what is added to every key alike.
    assert all("qkv.bias" in name for name in still), still


def test_a_fresh_network_predicts_nothing():
    assert build_network(TINY)(*inputs(TINY)).abs().max() == 0


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda x, t, c: (x[..., :-1], t, c[..., :-1]), "multiple of 2"),
        (lambda x, t, c: (x[:, :1], t, c), "needs an image"),
        (lambda x, t, c: (x[0], t, c), "needs an image"),
        (lambda x, t, c: (x, t, c[:, :2]), "needs a condition"),
        (lambda x, t, c: (x, t, c[..., :4]), "needs a condition"),
        (lambda x, t, c: (x, t[0], c), "timestep for each"),
    ],
)
def test_inputs_that_do_not_fit_are_refused(change, message):
    with pytest.raises(MedDPMError, match=message):
        build_network(TINY)(*change(*inputs(TINY)))


def test_sides_must_be_multiples_of_sixteen():
    with torch.device("meta"):
        network = UNet3d(1, 2)
        x, condition = torch.zeros(1, 1, 32, 32, 40), torch.zeros(1, 2, 32, 32, 40)
    with pytest.raises(MedDPMError, match="multiple of 16"):
        network(x, torch.zeros(1, dtype=torch.long, device="meta"), condition)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"kind": "transformer"}, 'kind "transformer"'),
        ({"kind": None}, "kind None"),
        ({"kind": ["unet"]}, "no network of the kind"),
        ({"base": 48}, "multiple of 32"),
        ({"base": 0}, '"base"'),
        ({"base": 64.0}, '"base"'),
        ({"base": True}, '"base"'),
        ({"base": 10**12}, '"base"'),
        ({"multipliers": []}, "1 to 8 levels"),
        ({"multipliers": [1] * 9}, "1 to 8 levels"),
        ({"multipliers": [0]}, '"multipliers"'),
        ({"multipliers": 2}, "do not|no network"),
        ({"multipliers": "11234"}, '"multipliers"'),
        ({"blocks": 9}, "at most 8 blocks"),
        ({"image_channels": -1}, '"image_channels"'),
        ({"depth": 3}, "depth"),
        ({"self": 3}, "self|argument"),
        ({"base": 1024, "multipliers": [64] * 8}, "parameters is refused"),
    ],
)
def test_descriptions_that_make_no_network_are_refused(change, message):
    for function in (build_network, state_shapes):
        with pytest.raises(MedDPMError, match=message):
            function({**TINY, **change})


def test_an_absurd_description_is_refused_at_once():
    start = time.process_time()
    with pytest.raises(MedDPMError, match="parameters is refused"):
        build_network({**TINY, "base": 4096, "multipliers": [128] * 8, "blocks": 8, "attention": [1, 2, 4]})
    assert time.process_time() - start < 5


def test_a_description_without_channels_is_refused():
    with pytest.raises(MedDPMError, match="image_channels"):
        build_network({"kind": "unet"})


def test_the_limit_leaves_room_for_every_network_in_use():
    assert MAX_PARAMETERS > 5 * 57_562_564


def test_the_compact_network_is_built_from_its_description():
    description = {"kind": "wavelet-unet", "image_channels": 2, "condition_channels": 3, "channels": [8, 16]}
    network = build_network(description)
    assert {name: tuple(t.shape) for name, t in network.state_dict().items()} == state_shapes(description)
    assert network(*inputs(TINY)).shape == inputs(TINY)[0].shape
    with pytest.raises(MedDPMError):
        build_network({**description, "channels": []})


def test_a_mismatch_is_reported_by_its_first_names():
    expected = {"a": (1,), "b": (2,), "c": (3,)}
    assert shape_mismatch(expected, dict(expected)) is None
    reported = shape_mismatch(expected, {"b": (2,), "c": (4,), "d": (5,)})
    assert '1 of 3 tensors are missing, first "a"' in reported
    assert '"c" with (4,) instead of (3,)' in reported
    assert '1 do not belong to it, first "d"' in reported


def test_asking_for_shapes_does_not_load_the_compiler():
    """It takes seconds, and every model that is loaded asks."""
    code = """if True:
        import sys
        from MedDPMLib.networks import state_shapes
        for kind in ("unet", "wavelet-unet"):
            state_shapes({"kind": kind, "image_channels": 1, "condition_channels": 2})
        assert "torch._dynamo" not in sys.modules
    """
    subprocess.run([sys.executable, "-c", code], check=True)
