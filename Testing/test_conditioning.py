"""The forms of conditioning of the U-Net on labels: each depends on them, trains, and is stored and loaded again."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from MedDPMLib.errors import MedDPMError
from MedDPMLib.models.bundle import read_card, write_bundle
from MedDPMLib.models.card import Card, official_cards
from MedDPMLib.models.model import load_model
from MedDPMLib.networks import build_network, state_shapes
from MedDPMLib.networks.conditioning import place_waves
from MedDPMLib.networks.optimized import optimize

VARIANTS = ("cross-attention", "spade")
NUMBERS = {"kind": "unet", "base": 32, "multipliers": [1, 2], "attention": [2]}
CHANNELS = {"image_channels": 2, "condition_channels": 3}


@pytest.fixture(params=VARIANTS)
def network(request):
    torch.manual_seed(7)
    network = build_network({**NUMBERS, **CHANNELS, "conditioning": request.param})
    with torch.no_grad():
        for parameter in network.parameters():  # what starts at zero would hide what lies before it
            parameter.add_(0.1 * torch.randn_like(parameter))
    return network.eval()


def arguments(sides=(8, 12, 16)) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(3)
    x = torch.randn(2, 2, *sides, generator=generator)
    return x, torch.tensor([3, 150]), torch.randint(0, 2, (2, 3, *sides), generator=generator).float()


def test_a_prediction_depends_on_the_labels_and_on_where_they_are(network):
    x, t, condition = arguments()
    moved = torch.zeros_like(condition)
    there = torch.zeros_like(condition)
    moved[:, 0, :4, :4, :4], there[:, 0, 4:, 8:, 8:] = 1, 1
    with torch.no_grad():
        predicted = [network(x, t, labels) for labels in (condition, moved, there, torch.zeros_like(condition))]
    for i, first in enumerate(predicted):
        for second in predicted[:i]:
            assert (first - second).norm() > 1e-3 * first.norm()  # a thousand roundings


def test_a_label_at_one_place_is_felt_most_at_that_place():
    torch.manual_seed(1)
    network = build_network({**NUMBERS, "multipliers": [1], **CHANNELS, "conditioning": "spade", "attention": [64]})
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            if "attention" not in name and "proj_out" not in name:
                parameter.add_(0.1 * torch.randn_like(parameter))
        x, t, condition = arguments((4, 4, 32))
        other = condition.clone()
        other[..., 0] = 1 - other[..., 0]
        change = (network(x, t, other) - network(x, t, condition)).square().mean((0, 1, 2, 3))
    assert change[:8].sum() > 10 * change[-8:].sum() > 0


def test_labels_in_another_order_with_their_weights_are_the_same_labels(network):
    x, t, condition = arguments()
    order = [2, 0, 1]
    with torch.no_grad():
        expected = network(x, t, condition)
        for name, parameter in network.named_parameters():
            if name.endswith(("label_embed.weight", "shared.weight")):
                parameter.copy_(parameter[:, order])
        reordered = network(x, t, condition[:, order])
    torch.testing.assert_close(reordered, expected, rtol=0, atol=1e-4 * float(expected.std()))


def test_tokens_say_themselves_where_they_lie():
    """Attention knows no order: whatever a voxel learns of a place, it has from the token."""
    torch.manual_seed(7)
    network = build_network({**NUMBERS, **CHANNELS, "conditioning": "cross-attention"}).eval()
    x, t, condition = arguments()
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
        tokens = network.encode_condition(condition)
        assert tokens.shape == (2, 4 * 6 * 8, 128)
        shuffled = tokens[:, torch.randperm(tokens.shape[1])]
        expected, found = network.denoise(x, t, tokens), network.denoise(x, t, shuffled)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-4 * float(expected.std()))


def test_every_place_has_waves_of_its_own_whatever_the_resolution():
    waves = place_waves((8, 8, 8), torch.device("cpu"))
    assert waves.shape == (512, 30)
    distances = torch.cdist(waves, waves) + 10 * torch.eye(512)
    assert distances.min() > 0.1
    coarse = place_waves((1, 1, 1), torch.device("cpu"))
    torch.testing.assert_close(coarse[0, :15], torch.zeros(15))  # the middle of the volume


def test_encoding_first_changes_nothing_and_a_batch_equals_its_elements(network):
    x, t, condition = arguments()
    with torch.no_grad():
        together = network(x, t, condition)
        assert torch.equal(network.denoise(x, t, network.encode_condition(condition)), together)
        for i in range(2):
            alone = network(x[i : i + 1], t[i : i + 1], condition[i : i + 1])
            torch.testing.assert_close(alone, together[i : i + 1], rtol=0, atol=1e-4 * float(together.std()))


def test_gradients_reach_every_parameter(network):
    network(*arguments()).square().mean().backward()
    still = [name for name, p in network.named_parameters() if p.grad is None or not p.grad.abs().max() > 0]
    # Over all voxels or tokens, softmax ignores what is added to every key alike.
    assert all("qkv.bias" in name or "kv.bias" in name for name in still), still


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_fresh_network_predicts_nothing(variant):
    torch.manual_seed(0)
    network = build_network({**NUMBERS, **CHANNELS, "conditioning": variant})
    assert network(*arguments()).abs().max() == 0


def test_inference_in_bfloat16_is_close(network):
    x, t, condition = arguments()
    with torch.no_grad():
        expected = network(x, t, condition)
        fast = optimize(network, torch.device("cpu"), torch.bfloat16)
        found = fast(x.bfloat16(), t, condition.bfloat16()).float()
    assert (found - expected).norm() < 0.05 * expected.norm()


def test_arguments_that_do_not_fit_are_refused(network):
    x, t, condition = arguments()
    with pytest.raises(MedDPMError, match="needs a condition"):
        network(x, t, condition[:, :2])
    with pytest.raises(MedDPMError, match="multiple of 2"):
        network(x[..., :-1], t, condition[..., :-1])


@pytest.mark.parametrize("variant", VARIANTS)
def test_card_and_bundle_keep_it(variant, tmp_path):
    official = next(card for card in official_cards() if card.name == "med-ddpm-whole-head")
    card = dataclasses.replace(official, name="other", network={**NUMBERS, "conditioning": variant})
    assert Card.from_json(card.to_json()).network == card.network
    assert variant in card.describe()
    network = build_network(card.network_description)
    write_bundle(tmp_path / "other.safetensors", card, network.state_dict())
    assert read_card(tmp_path / "other.safetensors").network["conditioning"] == variant
    loaded = load_model(tmp_path / "other.safetensors").network
    assert type(loaded) is type(network)
    for name, tensor in network.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], tensor)


def test_concatenation_is_what_a_description_means_that_does_not_say():
    plain = {**NUMBERS, **CHANNELS}
    assert state_shapes(plain) == state_shapes({**plain, "conditioning": "concatenation"})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"conditioning": "film"}, "use concatenation, cross-attention, spade"),
        ({"conditioning": 3}, "conditioning 3 is not"),
        ({"conditioning": ["spade"]}, "is not one of"),
        ({"kind": "wavelet-unet", "conditioning": "spade"}, 'not one of a "wavelet-unet" network'),
    ],
)
def test_a_conditioning_that_does_not_exist_is_refused(change, message):
    with pytest.raises(MedDPMError, match=message):
        build_network({**NUMBERS, **CHANNELS, **change})
