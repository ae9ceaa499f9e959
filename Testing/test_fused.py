"""Normalization and SiLU in one kernel against PyTorch's two. Without a GPU, Triton's interpreter runs it."""

from __future__ import annotations

import sys

import pytest
import torch
import torch.nn.functional as F
from exactness import arguments, error, exact

from MedDPMLib.networks import build_network, fused, slabs
from MedDPMLib.networks.fused import find_fusion_fault, fused_normalization
from MedDPMLib.networks.optimized import optimize

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
pytest.importorskip("triton", reason="Triton is for CUDA on Linux")
with pytest.MonkeyPatch.context() as environment:  # read when a kernel is defined
    if DEVICE.type == "cpu":
        environment.setenv("TRITON_INTERPRET", "1")
    from MedDPMLib.networks.triton_kernels import normalize_silu

DTYPES = [torch.float32, torch.bfloat16, torch.float16]


def numbers(channels: int) -> list[torch.Tensor]:
    """Mean, variance, weight and bias."""
    mean, variance, weight, bias = torch.randn(4, channels, device=DEVICE)
    return [3 * mean, variance.square() + 0.1, weight, bias]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("channels", [1, 24, 64, 300])
def test_it_is_normalization_and_silu(channels, dtype):
    volume = (3 + 2 * torch.randn(1, channels, 5, 6, 7, device=DEVICE)).to(dtype)
    volume = volume.contiguous(memory_format=torch.channels_last_3d)
    given = numbers(channels)
    for planes in (volume, volume[:, :, 1:4]):
        before = planes.clone()
        made = normalize_silu(planes, *given, 1e-5)
        expected = F.silu(F.batch_norm(planes.double(), *(each.double() for each in given), eps=1e-5))
        assert made.dtype == dtype and made.is_contiguous(memory_format=torch.channels_last_3d)
        # Rounding costs 0.21 epsilons, and twice that in the interpreter, which cuts bfloat16 off.
        assert error(made, expected) < (1e-6 if dtype == torch.float32 else 0.6 * torch.finfo(dtype).eps)
        assert torch.equal(planes, before)


def test_channels_that_lie_first_are_taken_too():
    volume = torch.randn(1, 8, 3, 4, 5, device=DEVICE)
    given = numbers(8)
    last = volume.contiguous(memory_format=torch.channels_last_3d)
    assert torch.equal(normalize_silu(volume, *given, 1e-5), normalize_silu(last, *given, 1e-5))


@pytest.mark.parametrize(
    "description",
    [
        {"kind": "unet", "base": 32, "multipliers": [1, 2], "blocks": 1, "attention": [2]},
        {"kind": "wavelet-unet", "channels": [16, 24]},
    ],
    ids=["published", "compact"],
)
def test_a_network_with_it_is_the_plain_network(description, monkeypatch):
    torch.manual_seed(1)
    network = build_network({"image_channels": 2, "condition_channels": 3, **description}).eval().requires_grad_(False)
    for parameter in network.parameters():
        parameter.add_(torch.randn_like(parameter) * 0.05)
    given = arguments(3, batch=1, sides=(8, 8, 12))
    expected = exact(network, *given)
    asked = []

    def counted(*arguments):
        asked.append(arguments)
        return normalize_silu(*arguments)

    monkeypatch.setattr(slabs, "fused_normalization", lambda *_: counted)
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)
    found = optimize(network, DEVICE, torch.float32)(*(tensor.to(DEVICE) for tensor in given))
    assert asked
    assert error(found.cpu(), expected) < 1e-5


# When it is used -------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_right_ones_pass_the_trial(dtype):
    assert find_fusion_fault(DEVICE, dtype, normalize_silu) is None
    assert find_fusion_fault(DEVICE, dtype, lambda x, *rest: F.silu(F.batch_norm(x, *rest[:4], eps=rest[4]))) is None


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(
    "damage",
    [
        lambda x, mean, variance, weight, bias, eps: normalize_silu(x, bias, variance, weight, mean, eps),
        lambda x, mean, variance, weight, bias, eps: normalize_silu(x, mean, weight, variance, bias, eps),
        lambda *given: normalize_silu(*given).roll(1, 1),
        lambda *given: normalize_silu(*given) * 1.05,
        lambda *given: torch.full_like(given[0], torch.nan),
    ],
    ids=["mean and bias", "variance and weight", "channels", "too large", "nan"],
)
def test_a_wrong_one_does_not(damage, dtype):
    assert "is wrong by" in find_fusion_fault(DEVICE, dtype, damage)


def test_one_that_cannot_be_compiled_does_not():
    def uncompiled(*_):
        raise FileNotFoundError("no C compiler")

    assert find_fusion_fault(DEVICE, torch.bfloat16, uncompiled) == "the one kernel fails (no C compiler)"


def test_lack_of_memory_is_no_fault():
    def crowded(*_):
        raise torch.OutOfMemoryError("the GPU is full")

    with pytest.raises(torch.OutOfMemoryError):
        find_fusion_fault(DEVICE, torch.bfloat16, crowded)


def test_the_cpu_does_without():
    assert fused_normalization(torch.device("cpu"), torch.bfloat16) is None


@pytest.fixture
def gpu(monkeypatch):
    """``gpu(capability, fault)`` says what CUDA's device is, and how the trial of the kernel ends there."""

    def there(capability: tuple[int, int], fault: str | None) -> torch.device:
        fused_normalization.cache_clear()
        monkeypatch.setattr(torch.version, "cuda", "12.8")
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
        monkeypatch.setattr(fused, "find_fusion_fault", lambda *_: fault)
        return torch.device("cuda")

    yield there
    fused_normalization.cache_clear()


def test_it_is_used_where_it_is_right(gpu, caplog):
    assert fused_normalization(gpu((8, 0), None), torch.bfloat16) is normalize_silu
    assert not caplog.records


def test_where_it_is_wrong_the_log_says_so_once(gpu, caplog):
    device = gpu((8, 0), "the one kernel is wrong by 20%")
    assert [fused_normalization(device, torch.bfloat16) for _ in range(2)] == [None, None]
    (reported,) = caplog.records
    assert (
        reported.levelname == "WARNING"
        and "two kernels, because the one kernel is wrong by 20% in torch" in reported.message
    )


def test_an_old_gpu_is_not_asked(gpu, caplog):
    with caplog.at_level("INFO"):
        assert fused_normalization(gpu((6, 1), None), torch.float16) is None
    assert "Triton does not support this GPU" in caplog.text


def test_without_triton_it_is_not_used(gpu, caplog, monkeypatch):
    monkeypatch.setitem(sys.modules, "MedDPMLib.networks.triton_kernels", None)
    with caplog.at_level("INFO"):
        assert fused_normalization(gpu((8, 0), None), torch.bfloat16) is None
    assert "Triton is not installed" in caplog.text
