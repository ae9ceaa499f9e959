"""The published networks for inference: the function of :class:`MedDPMLib.networks.unet.UNet3d`, fast and small.

Every volume is made slab by slab: a slab is a run of planes along D, and a 3 x 3 x 3 kernel needs one plane more on
each side of it. Normalisation and activation happen in the slab just before its convolution, where they are still in
the cache, and are never stored. A concatenation is never made: each part has a convolution of its own. So
nothing but the skips, the input of a block and the volume between its convolutions is alive, beside one slab.

GroupNorm needs mean and variance of the whole volume; they are taken in float32 from each slab when it is made, and
merged exactly. The timestep's share is constant over the volume, so it goes into a convolution's bias.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from MedDPMLib.networks.denoiser import Denoiser, Economy
from MedDPMLib.networks.unet import Attention, Downsample, ResidualBlock, UNet3d, Upsample, timestep_embedding

#: Bytes of a slab. On the CPU it stays in the last cache beside what a convolution makes of it; a GPU wants more to do.
_CPU_SLAB, _GPU_SLAB = 4 << 20, 128 << 20
#: The same where memory counts more.
_LEAN_CPU_SLAB, _LEAN_GPU_SLAB = 2 << 20, 32 << 20
#: With fewer the neighbouring planes, which are normalised twice, would count.
_LEAST_PLANES = 4

#: Voxels whose values are summed in one run on the CPU, which adds them one by one: more would cost digits.
_VOXELS_SUMMED = 8192


@dataclass(frozen=True)
class _Frame:
    """Where and in which pieces volumes are made."""

    device: torch.device
    dtype: torch.dtype
    #: The type of volumes that are kept.
    storage: torch.dtype
    #: About the size of a slab of one volume in ``dtype``; it has at least :data:`_LEAST_PLANES`.
    slab_bytes: int
    #: Whether the two volumes of full size that a single convolution makes of small ones, the first and the last
    #: that is upsampled, are kept; else they are made anew where they are needed.
    keeps_all: bool

    @classmethod
    def of(cls, device: torch.device, dtype: torch.dtype, economy: Economy) -> _Frame:
        fast = economy is Economy.FAST
        if device.type == "cpu":
            slab_bytes = _CPU_SLAB if fast else _LEAN_CPU_SLAB
        else:
            slab_bytes = _GPU_SLAB if fast else _LEAN_GPU_SLAB
        storage = torch.bfloat16 if economy is Economy.LEANEST and dtype.itemsize > 2 else dtype
        return cls(device, dtype, storage, slab_bytes, keeps_all=fast)

    def slabs(self, channels: int, sides: Sequence[int]) -> list[tuple[int, int]]:
        """The planes [a, b) of each slab of a volume."""
        depth, height, width = sides
        planes = max(_LEAST_PLANES, self.slab_bytes // (channels * height * width * self.dtype.itemsize))
        count = -(-depth // planes)
        return [(depth * i // count, depth * (i + 1) // count) for i in range(count)]

    def weight(self, tensor: Tensor) -> Tensor:
        """A convolution's weight for this device, in the layout of the volumes."""
        return tensor.detach().to(self.device, self.dtype).contiguous(memory_format=torch.channels_last_3d)

    def exact(self, tensor: Tensor) -> Tensor:
        """Numbers for each channel; there are so few that they stay float32."""
        return tensor.detach().to(self.device, torch.float32)


class FastUNet3d(Denoiser):
    """``network`` (float32, on the CPU) on ``device`` in ``dtype``; what it predicts differs by rounding alone."""

    def __init__(
        self, network: UNet3d, device: torch.device, dtype: torch.dtype, economy: Economy = Economy.FAST
    ) -> None:
        super().__init__()
        self.side_multiple = network.side_multiple
        self._check_input = network.check_input
        self._frame = frame = _Frame.of(device, dtype, economy)
        self._base = network.base
        self._time_embed = copy.deepcopy(network.time_embed).to(device, torch.float32)
        stem, *down = network.input_blocks
        self._stem = _Convolution(stem[0], frame)
        widths = [network.base]
        self._down = []
        for step in down:
            self._down.append(_Layers(step, frame, [widths[-1]]))
            widths.append(self._down[-1].width)
        self._middle = _Layers(network.middle_block, frame, [widths[-1]])
        width = self._middle.width
        self._up = []
        for step in network.output_blocks:
            self._up.append(_Layers(step, frame, [width, widths.pop()]))
            width = self._up[-1].width
        if not frame.keeps_all:
            upsamples = [layer for layers in self._up for layer in layers.layers if isinstance(layer, _FastUpsample)]
            for layer in upsamples[-1:]:
                layer.keeps = False
        self._out = _NormedConvolution(network.out[0], network.out[2], frame, [width])

    def encode_condition(self, condition: Tensor) -> Tensor:
        """``condition`` itself: with so few channels in, what a convolution costs is its output, shared or not."""
        return condition.to(self._frame.device, self._frame.dtype)

    @torch.no_grad()
    def denoise(self, x: Tensor, t: Tensor, encoded: Tensor) -> Tensor:
        self._check_input(x, t, encoded)
        # Volumes of this size keep any device busy one at a time.
        return torch.cat([self._one(x[i : i + 1], t[i : i + 1], encoded[i : i + 1]) for i in range(len(x))])

    def _one(self, x: Tensor, t: Tensor, condition: Tensor) -> Tensor:
        frame = self._frame
        time = F.silu(self._time_embed(timestep_embedding(t, self._base)))[0]
        inputs = torch.cat([x.to(frame.device, frame.dtype), condition], dim=1)
        h = self._first(_channels_last(inputs))
        skips = [h]
        for layers in self._down:
            h = layers(frame, [h], time, reuse=False)
            skips.append(h)
        h = self._middle(frame, [h], time, reuse=False)
        for layers in self._up:
            parts = [h, skips.pop()]
            del h  # the list is emptied where its volumes are needed no more
            h = layers(frame, parts, time, reuse=True)
        piece = self._out([h])
        sides = h.sides
        return torch.cat([piece(a, b) for a, b in frame.slabs(h.channels, sides)], dim=2)

    def _first(self, inputs: Tensor) -> _Volume:
        """The output of the first convolution, of ``inputs`` (1, C + K, D, H, W)."""
        sides = tuple(inputs.shape[2:])

        def piece(a: int, b: int) -> Tensor:
            slab = _with_neighbours(lambda low, high: inputs[:, :, low:high], sides[0], a, b)
            return self._stem([slab], _padding(sides[0], a, b))

        make = _made if self._frame.keeps_all else _remade
        return make(self._frame, self._stem.width, sides, piece)


def working_bytes(
    network: UNet3d, sides: Sequence[int], device: torch.device, dtype: torch.dtype, economy: Economy
) -> int:
    """Bytes that :class:`FastUNet3d` has alive at its peak, beside weights and arguments, for a grid of ``sides``."""
    frame = _Frame.of(device, dtype, economy)
    voxels = math.prod(sides)

    def volume(channels: int, level: int) -> int:
        return channels * voxels // 8**level * frame.storage.itemsize

    def run(step: nn.Sequential, channels: int, level: int, own: list[int], others: int) -> tuple[int, int, int, int]:
        """Channels, level and bytes of what ``step`` makes, and its peak; ``own`` bytes of its input may be reused."""
        peak = 0
        for layer in step:
            if isinstance(layer, Upsample) and level == 1 and not frame.keeps_all:
                level = 0  # made anew of what it is made of, which stays
                continue
            if isinstance(layer, ResidualBlock):
                channels = layer.in_layers[2].out_channels
                made = volume(channels, level)
                beside = made if made in own else 2 * made
            elif isinstance(layer, Attention):
                made = volume(channels, level)
                # Normalised voxels, queries, keys, values and what is attended to.
                beside = made + 6 * made // frame.storage.itemsize * dtype.itemsize
            else:
                level += 1 if isinstance(layer, Downsample) else -1
                beside = made = volume(channels, level)
            peak = max(peak, others + sum(own) + beside)
            own = [made]
        return channels, level, own[0], peak

    stem, *down = network.input_blocks
    channels, level = network.base, 0
    skips = [volume(channels, 0) if frame.keeps_all else 0]
    peaks = []
    for step in [*down, network.middle_block]:
        channels, level, made, peak = run(step, channels, level, [], sum(skips))
        skips.append(made)
        peaks.append(peak)
    made = skips.pop()
    for step in network.output_blocks:
        skip = skips.pop()
        channels, level, made, peak = run(step, channels, level, [made, skip], sum(skips))
        peaks.append(peak)
    inputs = (2 * network.image_channels + network.condition_channels) * voxels * dtype.itemsize
    planes = network.base * sides[1] * sides[2] * dtype.itemsize * (_LEAST_PLANES + 2)
    # A slab and its neighbours, normalised and padded, for each of two parts, and what a convolution makes of them.
    slabs = min(10 * max(frame.slab_bytes, planes), 20 * volume(network.base, 0))
    return max(peaks) + inputs + slabs


class _Volume:
    """A volume (1, ``channels``, *``sides``): ``planes(a, b)`` are its planes [a, b), to be read only.

    ``mean`` and ``variance`` (channels,) are those of each channel; ``values`` the whole volume, if it is kept.
    """

    def __init__(
        self,
        channels: int,
        sides: tuple[int, ...],
        planes: Callable[[int, int], Tensor],
        mean: Tensor,
        variance: Tensor,
        values: Tensor | None = None,
    ) -> None:
        self.channels, self.sides, self.planes = channels, sides, planes
        self.mean, self.variance, self.values = mean, variance, values


def _kept(frame: _Frame, values: Tensor, mean: Tensor, variance: Tensor) -> _Volume:
    return _Volume(
        values.shape[1],
        tuple(values.shape[2:]),
        lambda a, b: values[:, :, a:b].to(frame.dtype),
        mean,
        variance,
        values,
    )


def _made(
    frame: _Frame,
    channels: int,
    sides: tuple[int, ...],
    piece: Callable[[int, int], Tensor],
    into: Tensor | None = None,
) -> _Volume:
    """The volume whose planes [a, b) are ``piece(a, b)``, in the memory ``into`` if that is given."""
    moments = _Moments()
    for a, b in frame.slabs(channels, sides):
        slab = piece(a, b).to(frame.storage)
        moments.add(slab)
        if into is None and b - a == sides[0]:
            into = slab
            break
        if into is None:
            into = torch.empty(
                (1, channels, *sides),
                dtype=frame.storage,
                device=frame.device,
                memory_format=torch.channels_last_3d,
            )
        into[:, :, a:b] = slab
    return _kept(frame, into, *moments.merged())


def _remade(frame: _Frame, channels: int, sides: tuple[int, ...], piece: Callable[[int, int], Tensor]) -> _Volume:
    """The same without its memory: the planes are made whenever they are asked for."""
    moments = _Moments()
    for a, b in frame.slabs(channels, sides):
        moments.add(piece(a, b))
    return _Volume(channels, sides, piece, *moments.merged())


class _Moments:
    """Mean and variance of each channel of a volume, gathered piece by piece."""

    def __init__(self) -> None:
        self._pieces: list[tuple[int, Tensor, Tensor]] = []

    def add(self, slab: Tensor) -> None:
        plane = slab.shape[3] * slab.shape[4]
        run = max(1, _VOXELS_SUMMED // plane) if slab.device.type == "cpu" else slab.shape[2]
        for piece in slab.split(run, dim=2):
            self._pieces.append((piece.shape[2], *_moments(piece)))

    def merged(self) -> tuple[Tensor, Tensor]:
        """(C,) float32 each; by the law of total variance, exact (Chan, Golub and LeVeque 1983)."""
        sizes, means, variances = zip(*self._pieces, strict=True)
        means, variances = torch.stack(means), torch.stack(variances)
        share = torch.tensor(sizes, dtype=torch.float32).to(means.device, non_blocking=True)[:, None] / sum(sizes)
        mean = (share * means).sum(0)
        return mean, (share * (variances + (means - mean).square())).sum(0)


def _moments(piece: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and (biased) variance of each channel, (C,) float32."""
    if piece.device.type not in ("cpu", "cuda"):
        variance, mean = torch.var_mean(piece.float(), dim=(0, 2, 3, 4), correction=0)
        return mean, variance
    # Reads the piece as it is; running statistics in float32 are what makes it answer in float32.
    running = torch.zeros(2, piece.shape[1], device=piece.device)
    return torch.batch_norm_update_stats(piece, running[0], running[1], 0.0)


class _Convolution:
    """A convolution of a concatenation as the sum of one for each of its ``parts`` (their numbers of channels)."""

    def __init__(self, conv: nn.Conv3d, frame: _Frame, parts: Sequence[int] | None = None) -> None:
        self.weights = [frame.weight(weight) for weight in conv.weight.split(parts or [conv.in_channels], dim=1)]
        self.bias = frame.exact(conv.bias)
        self.stride = conv.stride
        self.width = conv.out_channels

    def __call__(
        self, parts: Iterable[Tensor], padding: int, shift: Tensor | None = None, onto: Tensor | None = None
    ) -> Tensor:
        """With ``padding`` planes of zeros at both ends of D; ``shift`` (width,) is added to the output, and all of
        it to ``onto`` if that is given. Parts that are only made when it is their turn are gone after it.
        """
        bias = self.bias if shift is None else self.bias + shift
        bias = bias.to(self.weights[0].dtype)
        around = self.weights[0].shape[-1] // 2
        for part, weight in zip(parts, self.weights, strict=True):
            share = F.conv3d(part, weight, bias, self.stride, (padding, around, around))
            del part
            onto, bias = share if onto is None else onto.add_(share), None
        return onto


class _Norm:
    """GroupNorm over the concatenation of ``parts`` (their numbers of channels), from their channels' moments."""

    def __init__(self, norm: nn.GroupNorm, frame: _Frame, parts: Sequence[int]) -> None:
        self.weights = frame.exact(norm.weight).split(parts)
        self.biases = frame.exact(norm.bias).split(parts)
        self.groups, self.eps = norm.num_groups, norm.eps

    def __call__(self, parts: Sequence[_Volume]) -> list[Callable[[Tensor], Tensor]]:
        """For each part what normalises planes of it; the result is the caller's own."""
        means = torch.cat([part.mean for part in parts]).view(self.groups, -1)
        variances = torch.cat([part.variance for part in parts]).view(self.groups, -1)
        mean = means.mean(1, keepdim=True)
        variance = (variances + (means - mean).square()).mean(1, keepdim=True).expand_as(means).flatten()
        mean = mean.expand_as(means).flatten()
        sizes = [part.channels for part in parts]

        def normaliser(mean: Tensor, variance: Tensor, weight: Tensor, bias: Tensor) -> Callable[[Tensor], Tensor]:
            # With given moments this is one multiply-add for each value, in float32 inside.
            return lambda planes: F.batch_norm(planes, mean, variance, weight, bias, False, 0.0, self.eps)

        return [
            normaliser(*each)
            for each in zip(mean.split(sizes), variance.split(sizes), self.weights, self.biases, strict=True)
        ]


class _NormedConvolution:
    """GroupNorm, SiLU and a 3 x 3 x 3 convolution."""

    def __init__(self, norm: nn.GroupNorm, conv: nn.Conv3d, frame: _Frame, parts: Sequence[int]) -> None:
        self.norm = _Norm(norm, frame, parts)
        self.convolution = _Convolution(conv, frame, parts)
        self.width = conv.out_channels

    def __call__(self, parts: Sequence[_Volume], shift: Tensor | None = None) -> Callable[[int, int], Tensor]:
        """What makes planes [a, b) of the output."""
        normalisers = self.norm(parts)
        depth = parts[0].sides[0]

        def normalised(part: _Volume, normalise: Callable[[Tensor], Tensor]) -> Callable[[int, int], Tensor]:
            return lambda low, high: F.silu(normalise(part.planes(low, high)), inplace=True)

        makers = [normalised(*each) for each in zip(parts, normalisers, strict=True)]

        def piece(a: int, b: int) -> Tensor:
            slabs = (_with_neighbours(make, depth, a, b) for make in makers)
            return self.convolution(slabs, _padding(depth, a, b), shift)

        return piece


class _Layers:
    """The layers of one step of the network; the first takes the concatenation of ``parts``."""

    def __init__(self, step: nn.Sequential, frame: _Frame, parts: Sequence[int]) -> None:
        self.layers = []
        for layer in step:
            self.layers.append(_FAST[type(layer)](layer, frame, parts))
            parts = [self.layers[-1].width]
        self.width = parts[0]

    def __call__(self, frame: _Frame, parts: list[_Volume], time: Tensor, reuse: bool) -> _Volume:
        """``reuse`` says that the memory of the parts may be overwritten. Empties ``parts``."""
        for layer in self.layers:
            h = layer(frame, parts, time, reuse)
            parts[:] = [h]
            reuse = True
        parts.clear()
        return h


class _FastResidualBlock:
    def __init__(self, block: ResidualBlock, frame: _Frame, parts: Sequence[int]) -> None:
        self.first = _NormedConvolution(block.in_layers[0], block.in_layers[2], frame, parts)
        self.width = self.first.width
        self.second = _NormedConvolution(block.out_layers[0], block.out_layers[3], frame, [self.width])
        self.shift = copy.deepcopy(block.emb_layers[1]).to(frame.device, torch.float32)
        is_identity = isinstance(block.skip_connection, nn.Identity)
        self.shortcut = None if is_identity else _Convolution(block.skip_connection, frame, parts)

    def __call__(self, frame: _Frame, parts: list[_Volume], time: Tensor, reuse: bool) -> _Volume:
        sides = parts[0].sides
        between = _made(frame, self.width, sides, self.first(parts, self.shift(time)))
        second = self.second([between])

        def piece(a: int, b: int) -> Tensor:
            made = second(a, b)
            if self.shortcut is None:
                return made.add_(parts[0].planes(a, b))
            return self.shortcut((part.planes(a, b) for part in parts), 0, onto=made)

        # The second pass reads of the parts only the planes that it is making: these may take the place of a part.
        fitting = [part.values for part in parts if reuse and part.values is not None and part.channels == self.width]
        return _made(frame, self.width, sides, piece, fitting[0] if fitting else None)


class _FastAttention:
    """Attention over so few voxels that nothing is cut into slabs."""

    def __init__(self, attention: Attention, frame: _Frame, parts: Sequence[int]) -> None:
        (self.width,) = parts
        self.norm = _Norm(attention.norm, frame, parts)
        cast = lambda tensor: tensor.detach().to(frame.device, frame.dtype)  # noqa: E731
        weight, bias = cast(attention.qkv.weight)[:, :, 0], cast(attention.qkv.bias)
        # Three products, so that queries, keys and values are contiguous: attention is several times faster then.
        self.qkv = list(zip(weight.chunk(3), bias.chunk(3), strict=True))
        self.out = cast(attention.proj_out.weight)[:, :, 0], cast(attention.proj_out.bias)

    def __call__(self, frame: _Frame, parts: list[_Volume], time: Tensor, reuse: bool) -> _Volume:
        (h,) = parts
        planes = h.planes(0, h.sides[0])
        (normalise,) = self.norm(parts)
        voxels = normalise(planes).permute(0, 2, 3, 4, 1).reshape(1, 1, -1, self.width)
        q, k, v = (F.linear(voxels, weight, bias) for weight, bias in self.qkv)
        attended = F.linear(F.scaled_dot_product_attention(q, k, v), *self.out)
        attended = attended.view(1, *h.sides, self.width).permute(0, 4, 1, 2, 3)
        values = attended.add_(planes).to(frame.storage)
        moments = _Moments()
        moments.add(values)
        return _kept(frame, values, *moments.merged())


class _FastDownsample:
    def __init__(self, layer: Downsample, frame: _Frame, parts: Sequence[int]) -> None:
        self.convolution = _Convolution(layer.op, frame)
        self.width = self.convolution.width

    def __call__(self, frame: _Frame, parts: list[_Volume], time: Tensor, reuse: bool) -> _Volume:
        (h,) = parts
        depth = h.sides[0]

        def piece(a: int, b: int) -> Tensor:
            # Of a stride of two only the first plane has a neighbour outside.
            if 2 * (b - a) == depth:
                return self.convolution([h.planes(0, depth)], 1)
            low = max(0, 2 * a - 1)
            slab = h.planes(low, 2 * b)
            return self.convolution([slab if a else F.pad(slab, (0, 0, 0, 0, 1, 0))], 0)

        return _made(frame, self.width, tuple(side // 2 for side in h.sides), piece)


class _FastUpsample:
    def __init__(self, layer: Upsample, frame: _Frame, parts: Sequence[int]) -> None:
        self.convolution = _Convolution(layer.conv, frame)
        self.width = self.convolution.width
        self.keeps = True

    def __call__(self, frame: _Frame, parts: list[_Volume], time: Tensor, reuse: bool) -> _Volume:
        (h,) = parts
        depth = h.sides[0]

        def upsampled(low: int, high: int) -> Tensor:
            """Planes [low, high) of the volume of twice the size: each blends two planes of ``h``."""
            first, last = max(0, (low - 1) // 2), min(depth, high // 2 + 1)
            planes = F.interpolate(h.planes(first, last), scale_factor=2, mode="trilinear")
            return planes[:, :, low - 2 * first : high - 2 * first]

        def piece(a: int, b: int) -> Tensor:
            return self.convolution([_with_neighbours(upsampled, 2 * depth, a, b)], _padding(2 * depth, a, b))

        make = _made if self.keeps else _remade
        return make(frame, self.width, tuple(2 * side for side in h.sides), piece)


_FAST = {
    ResidualBlock: _FastResidualBlock,
    Attention: _FastAttention,
    Downsample: _FastDownsample,
    Upsample: _FastUpsample,
}


def _with_neighbours(planes: Callable[[int, int], Tensor], depth: int, a: int, b: int) -> Tensor:
    """Planes [a - 1, b + 1) of a volume of ``depth`` planes; what lies beyond it is zero, or left to the padding."""
    below, above = int(a == 0), int(b == depth)
    slab = planes(a - 1 + below, b + 1 - above)
    return F.pad(slab, (0, 0, 0, 0, below, above)) if below != above else slab


def _padding(depth: int, a: int, b: int) -> int:
    """The planes of zeros that :func:`_with_neighbours` leaves to a convolution: of a whole volume, all of them."""
    return int(a == 0 and b == depth)


def _channels_last(x: Tensor) -> Tensor:
    return x.contiguous(memory_format=torch.channels_last_3d)
