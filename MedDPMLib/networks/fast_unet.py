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
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from MedDPMLib.networks.denoiser import Denoiser
from MedDPMLib.networks.unet import Attention, Downsample, ResidualBlock, UNet3d, Upsample, timestep_embedding

#: Voxels whose values are summed in one run on the CPU, which adds them one by one: more would cost digits.
_VOXELS_SUMMED = 8192


@dataclass(frozen=True)
class _Frame:
    """Where and in which pieces volumes are made."""

    device: torch.device
    dtype: torch.dtype
    #: The type of volumes that are kept.
    storage: torch.dtype
    slab_bytes: int

    def slabs(self, channels: int, sides: Sequence[int]) -> list[tuple[int, int]]:
        """The planes [a, b) of each slab of a volume."""
        depth, height, width = sides
        planes = max(2, self.slab_bytes // (channels * height * width * self.dtype.itemsize))
        count = -(-depth // planes)
        return [(depth * i // count, depth * (i + 1) // count) for i in range(count)]

    def weight(self, tensor: Tensor) -> Tensor:
        """A convolution's weight for this device, in the layout of the volumes."""
        return tensor.detach().to(self.device, self.dtype).contiguous(memory_format=torch.channels_last_3d)

    def exact(self, tensor: Tensor) -> Tensor:
        """Numbers for each channel; there are so few that they stay float32."""
        return tensor.detach().to(self.device, torch.float32)


class FastUNet3d(Denoiser):
    """``network`` (float32, on the CPU) on ``device`` in ``dtype``; what it predicts differs by rounding alone.

    Args:
        slab_bytes: about the size of a slab of one volume in ``dtype``; it has at least two planes.
        storage: the type of the volumes that are kept, ``dtype`` unless given; bfloat16 halves those of float32.
        keep_stem: False makes the output of the first convolution, which is cheap and needed at both ends of the
            network, anew each time.
    """

    def __init__(
        self,
        network: UNet3d,
        device: torch.device,
        dtype: torch.dtype,
        *,
        slab_bytes: int,
        storage: torch.dtype | None = None,
        keep_stem: bool = True,
    ) -> None:
        super().__init__()
        self.side_multiple = network.side_multiple
        self._check_input = network.check_input
        self._frame = frame = _Frame(device, dtype, storage or dtype, slab_bytes)
        self._keep_stem = keep_stem
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
            slab, padding = _with_neighbours(lambda low, high: inputs[:, :, low:high], sides[0], a, b)
            return self._stem([slab], padding)

        if self._keep_stem:
            return _made(self._frame, self._stem.width, sides, piece)
        moments = _Moments()
        for a, b in self._frame.slabs(self._stem.width, sides):
            moments.add(piece(a, b))
        return _Volume(self._stem.width, sides, piece, *moments.merged())


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

    def __call__(self, parts: Sequence[Tensor], padding: int, shift: Tensor | None = None) -> Tensor:
        """With ``padding`` planes of zeros at both ends of D; ``shift`` (width,) is added to the output."""
        bias = self.bias if shift is None else self.bias + shift
        bias, made = bias.to(parts[0].dtype), None
        around = self.weights[0].shape[-1] // 2
        for part, weight in zip(parts, self.weights, strict=True):
            share = F.conv3d(part, weight, bias, self.stride, (padding, around, around))
            made, bias = share if made is None else made.add_(share), None
        return made


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

        def piece(a: int, b: int) -> Tensor:
            slabs = []
            for part, normalise in zip(parts, normalisers, strict=True):
                slab, padding = _with_neighbours(
                    lambda low, high, part=part, normalise=normalise: F.silu(
                        normalise(part.planes(low, high)), inplace=True
                    ),
                    depth,
                    a,
                    b,
                )
                slabs.append(slab)
            return self.convolution(slabs, padding, shift)

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
        """``reuse`` says that the memory of the first part may be overwritten. Empties ``parts``."""
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
            planes = [part.planes(a, b) for part in parts]
            shortcut = planes[0] if self.shortcut is None else self.shortcut(planes, 0)
            return second(a, b).add_(shortcut)

        # The second pass reads of the parts only the planes that it is making: they may take the place of the first.
        into = parts[0].values if reuse and parts[0].channels == self.width else None
        return _made(frame, self.width, sides, piece, into)


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

    def __call__(self, frame: _Frame, parts: list[_Volume], time: Tensor, reuse: bool) -> _Volume:
        (h,) = parts
        depth = h.sides[0]

        def upsampled(low: int, high: int) -> Tensor:
            """Planes [low, high) of the volume of twice the size: each blends two planes of ``h``."""
            first, last = max(0, (low - 1) // 2), min(depth, high // 2 + 1)
            planes = F.interpolate(h.planes(first, last), scale_factor=2, mode="trilinear")
            return planes[:, :, low - 2 * first : high - 2 * first]

        def piece(a: int, b: int) -> Tensor:
            slab, padding = _with_neighbours(upsampled, 2 * depth, a, b)
            return self.convolution([slab], padding)

        return _made(frame, self.width, tuple(2 * side for side in h.sides), piece)


_FAST = {
    ResidualBlock: _FastResidualBlock,
    Attention: _FastAttention,
    Downsample: _FastDownsample,
    Upsample: _FastUpsample,
}


def _with_neighbours(planes: Callable[[int, int], Tensor], depth: int, a: int, b: int) -> tuple[Tensor, int]:
    """Planes [a - 1, b + 1) of a volume of ``depth`` planes, zeros beyond it, and the padding that is left to do."""
    below, above = int(a == 0), int(b == depth)
    slab = planes(a - 1 + below, b + 1 - above)
    if below and above:
        return slab, 1
    return (F.pad(slab, (0, 0, 0, 0, below, above)) if below or above else slab), 0


def _channels_last(x: Tensor) -> Tensor:
    return x.contiguous(memory_format=torch.channels_last_3d)
