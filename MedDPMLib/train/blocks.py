"""Of which parts does a network consist? Activations are recomputed, and weights sharded, part by part."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

from torch import nn
from torch.utils.checkpoint import checkpoint


def parts(network: nn.Module) -> Iterator[nn.Module]:
    """The network's children, of lists their entries, that have at least two layers with weights."""
    for child in network.children():
        if isinstance(child, nn.ModuleList):
            yield from parts(child)
        elif sum(1 for module in child.modules() if next(module.parameters(recurse=False), None) is not None) > 1:
            yield child


def recompute_activations(network: nn.Module) -> None:
    """Lets each part keep its input alone for the backward pass, and compute the rest again: less memory, a third
    more time, the same gradients.

    Changes ``network`` in place; a copy of it would still compute with the weights of this one.
    """
    for part in parts(network):
        part.forward = partial(checkpoint, part.forward, use_reentrant=False)
