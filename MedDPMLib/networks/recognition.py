"""Which network of Med-DDPM's family has these weights? Its numbers follow from names and shapes alone."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from MedDPMLib.errors import MedDPMError
from MedDPMLib.networks import shape_mismatch, state_shapes

Shapes = Mapping[str, tuple[int, ...]]

#: The convolution of image and condition, and that which makes the image.
FIRST, LAST = "input_blocks.0.0.weight", "out.2.weight"


def describe_network(shapes: Shapes) -> dict[str, Any]:
    """The description (:func:`MedDPMLib.networks.build_network`) of the U-Net whose state dict has these ``shapes``.

    Raises :class:`MedDPMError` if it is none of the family, with what does not fit.
    """
    first, last = shapes.get(FIRST, ()), shapes.get(LAST, ())
    if len(first) != 5 or len(last) != 5:
        raise MedDPMError(f'no 3-D network of Med-DDPM\'s family: it has no "{FIRST}" or no "{LAST}" of five axes')
    base, inputs, image = first[0], first[1], last[0]
    if inputs <= image:
        raise MedDPMError(f"a network that makes {image} images of {inputs} channels has no mask: it cannot be used")
    levels = _levels(shapes)
    widths = [width for width, _, _ in levels]
    counts = {blocks for _, blocks, _ in levels}
    if len(counts) != 1 or not base or any(width % base for width in widths):
        raise MedDPMError(
            f"no network of Med-DDPM's family: its levels have {', '.join(map(str, widths))} channels, in"
            f" {', '.join(str(blocks) for _, blocks, _ in levels)} blocks, where the first has {base}"
        )
    description: dict[str, Any] = {
        "kind": "unet",
        "image_channels": image,
        "condition_channels": inputs - image,
        "base": base,
        "multipliers": [width // base for width in widths],
        "blocks": counts.pop(),
        "attention": [2**level for level, (_, _, attends) in enumerate(levels) if attends],
    }
    if mismatch := shape_mismatch(state_shapes(description), shapes):
        raise MedDPMError(f"no network of Med-DDPM's family: {mismatch}")
    return description


def _levels(shapes: Shapes) -> list[tuple[int, int, bool]]:
    """Channels, residual blocks and whether there is attention, of each level on the way down."""
    numbers = {int(match[1]) for name in shapes if (match := re.match(r"input_blocks\.(\d{1,4})\.", name))}
    levels, width, blocks, attends = [], 0, 0, False
    for number in sorted(numbers - {0}):
        shape = shapes.get(f"input_blocks.{number}.0.in_layers.2.weight")
        if shape:
            width, blocks = shape[0], blocks + 1
            attends = attends or f"input_blocks.{number}.1.qkv.weight" in shapes
        else:  # the next level begins
            levels.append((width, blocks, attends))
            blocks, attends = 0, False
    return [*levels, (width, blocks, attends)]
