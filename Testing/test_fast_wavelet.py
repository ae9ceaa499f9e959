"""The fast path of the compact network against the plain one, on random inputs and weights."""

from __future__ import annotations

from functools import partial

import exactness
import pytest
import torch
from alive import Alive
from exactness import error, exact
from test_replay import Recorder

from MedDPMLib.networks import slabs
from MedDPMLib.networks.fast_wavelet import FastWaveletUNet3d, blocks_of, voxels_of
from MedDPMLib.networks.memory_mode import MemoryMode
from MedDPMLib.networks.optimized import memory_modes, optimize, working_bytes
from MedDPMLib.networks.replay import Replay
from MedDPMLib.networks.slabs import Frame, Repeated, keep
from MedDPMLib.networks.wavelet import WaveletUNet3d, haar_of_blocks, haar_split

CPU = torch.device("cpu")


@pytest.fixture(scope="module", params=[0, 2], ids=["labels", "labels and places"])
def network(request):
    torch.manual_seed(5)
    network = WaveletUNet3d(2, 5, channels=(16, 24, 32), place_octaves=request.param).eval().requires_grad_(False)
    for parameter in network.parameters():
        parameter.add_(torch.randn_like(parameter) * 0.05)
    return network


arguments = partial(exactness.arguments, 5, batch=1, sides=(24, 16, 8))


@pytest.mark.parametrize("slab_bytes", [1, 40_000, 1 << 30])
@pytest.mark.parametrize("mode", [MemoryMode.FAST, MemoryMode.LOW])
def test_in_float32_it_is_the_plain_network(network, mode, slab_bytes, monkeypatch):
    for name in ("_CPU_SLAB", "_LEAN_CPU_SLAB"):
        monkeypatch.setattr(slabs, name, slab_bytes)
    fast, given = optimize(network, CPU, torch.float32, mode), arguments(batch=2)
    assert isinstance(fast, FastWaveletUNet3d)
    expected = exact(network, *given)
    assert error(fast(*given), expected) < 1e-5
    # An order of magnitude closer than a mistake at one voxel's border would be.
    assert (fast(*given).double() - expected).abs().max() < 1e-4 * expected.std()


def test_the_last_step_is_that_of_the_plain_network(network):
    fast, (x, t, condition) = optimize(network, CPU, torch.float32), arguments()
    expected = network.denoise_last(x, t, condition, network.encode_condition(condition))
    found = fast.denoise_last(x, t, condition, fast.encode_condition(condition))
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5 * float(expected.std()))


def test_every_timestep_blends_as_the_plain_network(network):
    """The share of x is part of the last convolution, anew for each timestep."""
    fast, (x, _, condition) = optimize(network, CPU, torch.float32), arguments(sides=(16, 8, 8))
    for t in (0, 1, 249, 0):
        found, expected = (each(x, torch.tensor([t]), condition) for each in (fast, network))
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-5 * float(expected.std()))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_in_16_bits_it_is_as_close_as_the_plain_network(network, dtype):
    x, t, condition = given = arguments(sides=(40, 16, 24))
    expected = exact(network, *given)
    fast = optimize(network, CPU, dtype)(x.to(dtype), t, condition)
    assert fast.dtype == dtype
    try:
        plain = network.to(dtype)(x.to(dtype), t, condition.to(dtype))
    finally:
        network.float()
    assert error(fast, expected) < 1.1 * error(plain, expected) < 0.03


def test_a_batch_is_its_elements(network):
    fast, (x, t, condition) = optimize(network, CPU, torch.float32), arguments(batch=2)
    together = fast(x, t, condition)
    for i in range(2):
        alone = fast(x[i : i + 1], t[i : i + 1], condition[i : i + 1])
        torch.testing.assert_close(alone, together[i : i + 1], rtol=0, atol=1e-5 * float(together.std()))


def test_arguments_are_left_as_they_are(network):
    given = arguments()
    kept = [tensor.clone() for tensor in given]
    fast = optimize(network, CPU, torch.float32)
    encoded = fast.encode_condition(given[2])
    share = encoded.clone()
    fast.denoise(given[0], given[1], encoded)
    assert all(torch.equal(tensor, before) for tensor, before in zip((*given, encoded), (*kept, share), strict=True))


def test_replayed_steps_are_the_worked_ones(network):
    """With a stand-in for CUDA's graphs; in a batch and in the last step, too."""
    worked, replayed = (optimize(network, CPU, torch.float32) for _ in range(2))
    recorder = Recorder()
    replayed._replay = Replay(recorder)
    x, _, condition = arguments(batch=2)
    encoded = worked.encode_condition(condition)
    for t in ([201, 3], [100, 100], [7, 0]):
        given = x + t[0], torch.tensor(t), encoded
        assert torch.equal(replayed.denoise(*given), worked.denoise(*given))
    given = x, torch.tensor([0, 0]), condition, encoded
    assert torch.equal(replayed.denoise_last(*given), worked.denoise_last(*given))
    assert recorder.recorded == 1 and recorder.replayed > 8


def test_one_timestep_and_one_condition_do_for_a_batch(network):
    fast, (x, t, condition) = optimize(network, CPU, torch.float32), arguments(batch=2)
    found, expected = (each.denoise(x, t[:1], each.encode_condition(condition[:1])) for each in (fast, network))
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5 * float(expected.std()))


def test_blocks_of_voxels_are_the_haar_transform_undone():
    x = torch.randn(2, 3, 4, 6, 8)
    blocks = blocks_of(x)
    assert torch.equal(voxels_of(blocks), x)
    bands = torch.einsum("nvcdhw,vb->nbcdhw", blocks.unflatten(1, (8, 3)), haar_of_blocks()).flatten(1, 2)
    torch.testing.assert_close(bands, haar_split(x))


def test_a_repeated_volume_is_each_voxel_twice():
    values = torch.randn(1, 4, 3, 2, 5)
    frame = Frame(CPU, torch.float32, torch.float32, 1 << 20, keeps_all=True)
    repeated = Repeated(keep(frame, values, values.mean((0, 2, 3, 4)), values.var((0, 2, 3, 4), correction=0)))
    whole = values.repeat_interleave(2, 2).repeat_interleave(2, 3).repeat_interleave(2, 4)
    assert repeated.sides == (6, 4, 10)
    for a, b in [(0, 6), (0, 1), (1, 4), (2, 5), (3, 6), (5, 6)]:
        assert torch.equal(repeated.planes(a, b), whole[:, :, a:b])
        assert torch.equal(repeated.mapped(torch.exp, a, b), whole[:, :, a:b].exp())
    torch.testing.assert_close(repeated.mean, whole.mean((0, 2, 3, 4)))


@pytest.mark.parametrize("octaves", [0, 5])
def test_the_memory_predicted_is_enough(octaves, monkeypatch):
    monkeypatch.setattr(slabs, "_CPU_SLAB", 1)  # of a small grid a slab is a small part, as it is of a large one
    sides, dtype = (48, 48, 48), torch.bfloat16
    network = WaveletUNet3d(4, 24, channels=(48, 72, 96, 120), place_octaves=octaves).requires_grad_(False)
    fast = optimize(network, CPU, dtype)
    x, t = torch.randn(1, 4, *sides), torch.tensor([3])
    condition = torch.randn(1, 24, *sides).to(torch.float32 if network.exact_condition else dtype)
    with Alive() as alive:  # a guided run has two shares of the condition, and one answer while it makes the other
        shares = [fast.encode_condition(condition) for _ in range(2)]
        answers = [fast.denoise_last(x, t, condition, share) for share in shares]
    assert len(answers) == 2
    taken = alive.peak - condition.nbytes - x.nbytes  # views of arguments are counted too
    predicted = working_bytes(network, sides, CPU, dtype)
    assert taken < predicted < 2 * taken
    # On CUDA a recorded step keeps its memory, where there is enough of it.
    cuda = torch.device("cuda")
    fast, lean = (working_bytes(network, sides, cuda, dtype, mode) for mode in memory_modes(network))
    assert fast > 1.9 * taken and lean == predicted
