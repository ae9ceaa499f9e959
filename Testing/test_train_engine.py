"""One step: the same in every way of computing it."""

from __future__ import annotations

import copy
from dataclasses import replace

import numpy as np
import pytest
import torch

from MedDPMLib.benchmark.training import can_compile
from MedDPMLib.data import Case
from MedDPMLib.errors import MedDPMError
from MedDPMLib.recipes.recipe import load_recipe
from MedDPMLib.runtime.device import Execution, choose_execution
from MedDPMLib.train import convolution_check
from MedDPMLib.train.engine import Engine
from MedDPMLib.train.examples import Example, Examples, batch_numbers, made_ahead, remaining_stages, split_cases

EXACT = choose_execution("cpu", "float32")
SHORT = choose_execution("cpu", "bfloat16")
UNET = [
    'network={kind="unet", base=32, multipliers=[1, 2], blocks=1, attention=[2]}',
    "prediction=v",
    "training.loss_space=v",
    "stages=[{size=[16, 16, 8], iterations=8, batch=1}]",
]
STILL = [
    f"augmentation.{name}=0" for name in ("flip", "rotation", "scaling", "translation", "elastic", "gamma", "bias")
]


def small_recipe(*changes: str):
    return load_recipe(
        "brain-anatomy",
        [
            'modalities=["t1", "t2"]',
            "network.channels=[8, 16]",
            "stages=[{size=[32, 24, 16], iterations=8, batch=1}]",
            "training.warm_up=0",
            *changes,
        ],
    )


def phantom(name="phantom", shape=(16, 24, 32), seed=0) -> Case:
    """A random label map whose labels decide the intensities."""
    rng = np.random.default_rng(seed)
    labels = np.zeros(shape, np.uint8)
    labels[2:-2, 2:-2, 2:-2] = rng.integers(1, 22, [n - 4 for n in shape])
    levels = rng.uniform(-0.8, 1, (2, 22)).astype(np.float32)
    levels[:, 0] = -1
    spacing = tuple(length / n for length, n in zip((192, 192, 144), reversed(shape), strict=True))
    return Case(name, torch.from_numpy(levels[:, labels]), torch.from_numpy(labels), spacing)


CASES = [phantom("one", seed=1), phantom("two", seed=2), phantom("three", seed=3)]


def examples(recipe) -> Examples:
    return Examples(recipe, recipe.stages[0], CASES)


def trained(recipe, execution=EXACT, steps=3, **options) -> tuple[list[float], dict]:
    engine, made = Engine(recipe, execution, **options), examples(recipe)
    losses = [engine.step(map(made.batch, batch_numbers(recipe, n)))[0] for n in range(steps)]
    return losses, engine.network.state_dict()


def close(one: dict, other: dict, tolerance: float) -> None:
    for name, tensor in one.items():
        torch.testing.assert_close(tensor, other[name], atol=tolerance, rtol=0, msg=lambda text: f"{name}: {text}")  # noqa: B023


# What is learned from ---------------------------------------------------------------------------------


def test_an_example_is_the_same_every_time_and_each_its_own():
    made = examples(small_recipe())
    first, again, second = made.batch([4]), made.batch([4]), made.batch([5])
    for name, value in vars(first).items():
        other = getattr(again, name)
        assert torch.equal(value, other) if isinstance(value, torch.Tensor) else value == other, name
    assert not torch.equal(first.noise, second.noise)


def test_a_batch_is_its_examples():
    made = examples(small_recipe())
    both, single = made.batch([4, 5]), [made.batch([4]), made.batch([5])]
    for name in ("x0", "noise", "condition", "t", "weight"):
        assert torch.equal(getattr(both, name), torch.cat([getattr(one, name) for one in single]))
    assert both.cases == single[0].cases + single[1].cases


def test_weights_follow_the_labels():
    recipe = small_recipe(*STILL)
    example = examples(recipe).batch([0])
    labels = next(case.labels for case in CASES if (case.name,) == example.cases)
    weight = example.weight[0, 0]
    assert (weight[labels == 0] == recipe.training.background_weight).all()
    assert (weight[labels >= 19] == recipe.training.tumor_weight).all()
    assert (weight[(labels > 0) & (labels < 19)] == 1).all()
    assert torch.equal(example.condition[0, :21].sum(0), (labels > 0).float())


def test_labels_are_dropped_in_their_share_and_positions_stay():
    recipe = replace(small_recipe("positions=true", "label_dropout=0.3"), mask_encoding=(-1.0, 1.0))
    made = examples(recipe)
    dropped = 0
    for number in range(60):
        example = made.batch([number])
        assert example.condition.shape[1] == 24
        dropped += bool((example.condition[:, :21] == -1).all())
        assert example.condition[0, 21, 0, 0].diff().unique().numel() == 1
        assert example.condition[0, 21].min() == -example.condition[0, 21].max() == pytest.approx(1 / 32 - 1)
    assert 8 <= dropped <= 30


def test_high_noise_is_drawn_more_often():
    recipe = small_recipe(*STILL, "stages=[{size=[8, 8, 8], iterations=8, batch=1}]")
    made = examples(recipe)
    drawn = torch.cat([made.batch([number]).t for number in range(300)]).float()
    assert 0 <= drawn.min() and drawn.max() == 249
    # E[1 - r^p] = p / (p + 1), with a standard deviation of about 70 each.
    expected = 250 * recipe.training.high_noise / (recipe.training.high_noise + 1)
    assert abs(drawn.mean() - expected) < 14


@pytest.mark.parametrize("processes", [1, 2, 3, 6])
def test_processes_share_the_examples_of_one(processes):
    recipe = load_recipe(
        "brats",
        [
            "training.gradient_accumulation_steps=6",
            "stages=[{size=[32, 32, 32], iterations=3, batch=2}, {size=[64, 64, 48], iterations=2, batch=1}]",
        ],
    )
    for iteration in range(recipe.iterations):
        alone = batch_numbers(recipe, iteration)
        shared = [batch_numbers(recipe, iteration, process, processes) for process in range(processes)]
        assert sorted(n for batches in shared for batch in batches for n in batch) == [n for b in alone for n in b]
        assert len({len(batches) for batches in shared}) == 1
    everything = [n for iteration in range(recipe.iterations) for b in batch_numbers(recipe, iteration) for n in b]
    assert everything == list(range(3 * 6 * 2 + 2 * 6))
    left = [(stage.size[0], list(iterations)) for stage, iterations in remaining_stages(recipe, 2)]
    assert left == [(32, [2]), (64, [3, 4])]


def test_examples_made_ahead_come_in_order_and_their_faults_too():
    assert list(made_ahead(lambda n: n * n, range(20), 3)) == [n * n for n in range(20)]

    def fails(n):
        if n == 3:
            raise MedDPMError("three")
        return n

    ahead = made_ahead(fails, range(20), 2)
    assert [next(ahead) for _ in range(3)] == [0, 1, 2]
    with pytest.raises(MedDPMError, match="three"):
        next(ahead)


def test_held_out_cases_are_the_same_each_time_and_never_learned_from():
    learned, held_out = split_cases(list(range(10)), 0.3, seed=1)
    assert sorted([*learned, *held_out]) == list(range(10)) and len(held_out) == 3
    assert list(split_cases(list(range(10)), 0.3, seed=1)[1]) == list(held_out)
    assert len(split_cases(list(range(10)), 0.0, seed=1)[1]) == 0
    assert len(split_cases([1, 2], 0.01, seed=1)[1]) == len(split_cases([1, 2], 0.99, seed=1)[1]) == 1


# A step ----------------------------------------------------------------------------------------------


def test_a_step_is_that_of_plain_pytorch():
    """Working copies, channels last and the fused optimizer against an independent loop of a few lines."""
    recipe = small_recipe("training.optimizer=adam", "training.weight_decay=0", "training.max_grad_norm=0")
    made = examples(recipe)
    torch.manual_seed(recipe.training.seed)
    engine = Engine(recipe, EXACT)
    network = copy.deepcopy(engine.network).to(memory_format=torch.contiguous_format)
    optimizer = torch.optim.Adam(network.parameters(), lr=recipe.training.learning_rate)
    for n in range(3):
        batch = made.batch([n])
        for group in optimizer.param_groups:
            group["lr"] = recipe.training.learning_rate * (0.03 + 0.97 * 0.5 * (1 + np.cos(np.pi * n / 8)))
        engine.task.loss(network, batch).backward()
        optimizer.step()
        optimizer.zero_grad()
        engine.step([batch])
    # Adam divides by a gradient's size: where that is rounding alone, so is the step, which is 1e-3 for each of three.
    close(engine.network.state_dict(), network.state_dict(), 1e-4)


@pytest.mark.parametrize("network", [[], UNET], ids=["wavelet", "unet"])
def test_recomputing_activations_changes_nothing(network):
    recipe = small_recipe(*network)
    plain, recomputed = trained(recipe), trained(recipe, checkpointing=True)
    assert plain[0] == recomputed[0]
    for name, tensor in plain[1].items():
        assert torch.equal(tensor, recomputed[1][name]), name


@pytest.mark.skipif(not can_compile(torch.device("cpu")), reason="there is no C++ compiler")
def test_fused_kernels_change_rounding_alone():
    """The losses: those after the first depend on the gradients before them."""
    recipe = small_recipe()
    assert trained(recipe, compile=True)[0] == pytest.approx(trained(recipe)[0], rel=1e-5)


def test_recomputing_saves_memory():
    """The bytes that autograd keeps for the backward pass."""
    recipe = small_recipe(*UNET)
    batch = examples(recipe).batch([0])
    kept = {}
    for checkpointing in (False, True):
        engine = Engine(recipe, EXACT, checkpointing=checkpointing)
        storages = {}

        def note(tensor, storages=storages):
            storages[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
            loss = engine.task.loss(engine.predict, batch)
        kept[checkpointing] = sum(storages.values())
        del loss
    assert kept[True] < 0.5 * kept[False]


def test_accumulated_batches_are_one_large_batch():
    """The first moments, which are a tenth of the gradient: Adam's steps would magnify the rounding of small ones."""
    moments = []
    for changes in (
        ("stages.0.batch=4", "training.gradient_accumulation_steps=1"),
        ("stages.0.batch=1", "training.gradient_accumulation_steps=4"),
    ):
        recipe = small_recipe(*changes)
        engine = Engine(recipe, EXACT)
        loss, _ = engine.step(map(examples(recipe).batch, batch_numbers(recipe, 0)))
        moments.append((loss, [state["exp_avg"] for state in engine.optimizer.state.values()]))
    assert moments[0][0] == pytest.approx(moments[1][0], rel=1e-5)
    for one, other in zip(moments[0][1], moments[1][1], strict=True):
        assert (one - other).norm() <= 1e-4 * one.norm()


def test_bfloat16_follows_float32():
    recipe = small_recipe()
    exact, short = trained(recipe, steps=5), trained(recipe, SHORT, steps=5)
    np.testing.assert_allclose(exact[0], short[0], rtol=0.02)
    assert exact[0] != short[0] and all(tensor.dtype == torch.float32 for tensor in short[1].values())


def test_float16_scales_the_loss_and_leaves_out_steps_that_overflow():
    recipe = small_recipe()
    engine, made = Engine(recipe, Execution(torch.device("cpu"), torch.float16, "for the test")), examples(recipe)
    try:
        torch.nn.functional.conv3d(torch.ones((1, 1, 3, 3, 3)).half(), torch.ones((1, 1, 3, 3, 3)).half())
    except RuntimeError:
        pytest.skip("this PyTorch computes no float16 convolutions on the CPU")
    assert engine.scaler.is_enabled()
    before = {name: tensor.clone() for name, tensor in engine.network.state_dict().items()}
    engine.scaler.load_state_dict({**engine.scaler.state_dict(), "scale": 2.0**60})
    loss, _ = engine.step([made.batch([0])])
    assert engine.scaler.get_scale() < 2.0**60
    for name, tensor in engine.network.state_dict().items():
        assert torch.equal(tensor, before[name]), name
    engine.scaler.load_state_dict({**engine.scaler.state_dict(), "scale": 1024.0})
    engine.step([made.batch([0])])
    assert any(not torch.equal(tensor, before[name]) for name, tensor in engine.network.state_dict().items())
    exact = Engine(recipe, EXACT).step([made.batch([0])])[0]
    assert loss == pytest.approx(exact, rel=0.01)


def test_the_gradient_is_clipped_to_its_norm():
    """Without momentum's memory Adam forgets the size of a gradient, its first moment does not."""
    norms = []
    for limit in (0, 1e-3):
        recipe = small_recipe(f"training.max_grad_norm={limit}")
        engine = Engine(recipe, EXACT)
        engine.step([examples(recipe).batch([0])])
        moments = [state["exp_avg"] for state in engine.optimizer.state.values()]
        norms.append(float(torch.stack([moment.norm() for moment in moments]).norm()))
        assert engine.gradient_norm > 1e-3
    assert norms[1] == pytest.approx(0.1 * 1e-3, rel=1e-3) and norms[0] == pytest.approx(0.1 * engine.gradient_norm)


@pytest.mark.parametrize("execution", [EXACT, SHORT], ids=["float32", "bfloat16"])
def test_a_state_goes_on_bit_by_bit(execution, tmp_path):
    recipe = small_recipe()
    made, engine = examples(recipe), Engine(recipe, execution)
    for n in range(2):
        engine.step([made.batch([n])])
    torch.save(engine.state(), tmp_path / "state.pt")
    other = Engine(recipe, execution)
    other.load_state(torch.load(tmp_path / "state.pt", weights_only=True))
    for n in range(2, 4):
        assert engine.step([made.batch([n])]) == other.step([made.batch([n])])
    for mine, its in zip(engine.state().values(), other.state().values(), strict=True):
        if isinstance(mine, dict) and "trust" in mine:
            assert all(torch.equal(tensor, its[name]) for name, tensor in mine.items())


def test_a_state_of_another_network_is_refused():
    state = Engine(small_recipe(), EXACT).state()
    other = Engine(small_recipe("network.channels=[16, 16]"), EXACT)
    with pytest.raises(MedDPMError, match="another recipe"):
        other.load_state(state)


def test_the_average_starts_late_where_the_recipe_says_so():
    recipe = small_recipe("training.ema_start=2", "training.ema=0.5")
    engine, made = Engine(recipe, EXACT), examples(recipe)
    history = []
    for n in range(3):
        engine.step([made.batch([n])])
        history.append((engine.network.out.bias.detach().clone(), engine.ema.out.bias.clone()))
    assert torch.equal(*history[0])
    # (1 + 2) / (10 + 2) and (1 + 3) / (10 + 3) are below 0.5
    torch.testing.assert_close(history[1][1], torch.lerp(history[0][1], history[1][0], 1 - 3 / 12))
    torch.testing.assert_close(history[2][1], torch.lerp(history[1][1], history[2][0], 1 - 4 / 13))


def test_a_loss_that_is_not_finite_names_iteration_and_case():
    recipe = small_recipe(*STILL)
    case = phantom("broken")
    case.image[0, 5, 5, 5] = float("nan")
    made = Examples(recipe, recipe.stages[0], [case])
    with pytest.raises(MedDPMError, match=r"iteration 1 .*broken"):
        Engine(recipe, EXACT).step([made.batch([0])])


def test_what_processes_cannot_do_is_reported():
    with pytest.raises(MedDPMError, match="sharding needs several processes"):
        Engine(small_recipe(), EXACT, shard=True)


# Arithmetic of 16 bits -------------------------------------------------------------------------------


def test_convolutions_are_tried_before_they_are_trusted(monkeypatch):
    convolution_check.check_convolution(torch.device("cpu"), torch.bfloat16, (8, 8, 8))
    right = convolution_check._convolved

    def spoilt(x, weight, bias, gradient, dtype):
        found = right(x, weight, bias, gradient, dtype)
        if dtype == torch.bfloat16:
            found[2][0, 0, 0, 0, 0] = float("nan")
        return found

    monkeypatch.setattr(convolution_check, "_convolved", spoilt)
    with pytest.raises(MedDPMError, match="6 x 4 x 2 voxels.*--precision float32"):
        convolution_check.check_convolution(torch.device("cpu"), torch.bfloat16, (2, 4, 6))
    convolution_check.check_convolution(torch.device("cpu"), torch.float32, (2, 4, 6))


def test_an_example_moves_whole():
    made = Example(*[torch.zeros(1)] * 5, ("case",))
    moved = made.to(torch.device("meta"))
    assert moved.cases == ("case",) and moved.weight.device.type == "meta"


def test_moments_of_any_memory_layout_are_taken_up():
    """As a sharded run leaves them; PyTorch's fused optimizer goes by the weights' layout, whatever the moments' is."""
    recipe = small_recipe(*STILL)
    made, engine = examples(recipe), Engine(recipe, EXACT)
    batches = [made.batch([number]) for number in range(4)]
    for batch in batches[:2]:
        engine.step([batch])
    state = copy.deepcopy(engine.state())
    other = copy.deepcopy(state)
    for moments in other["optimiser"]["state"].values():
        moments.update({name: value.contiguous() for name, value in moments.items()})
    ended = []
    for begun in (state, other):
        going_on = Engine(recipe, EXACT)
        going_on.load_state(begun)
        for batch in batches[2:]:
            going_on.step([batch])
        ended.append(going_on.network.state_dict())
    close(*ended, tolerance=0)
