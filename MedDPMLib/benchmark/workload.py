"""Which model is measured, on which grid, with which mask?"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch

from MedDPMLib.errors import MedDPMError
from MedDPMLib.imaging.geometry import Grid
from MedDPMLib.imaging.volume import Volume
from MedDPMLib.masks.mask import Mask
from MedDPMLib.models.card import Card, official_cards
from MedDPMLib.models.model import Model, load_model
from MedDPMLib.models.store import ModelStore
from MedDPMLib.networks import build_network

#: Stands for the hash of a model whose weights are random.
RANDOM = "random weights"


def all_names() -> list[str]:
    """The published networks, even if their weights are not installed, and every installed model."""
    installed = [entry.name for entry in ModelStore().list()]
    return list(dict.fromkeys([*(card.name for card in official_cards()), *installed]))


def load_scaled_model(name: str, share: float = 1.0) -> Model:
    """The model of that name or file, its grid's sides scaled by ``share``.

    A published network whose weights are not installed has random ones (its ``hash`` is :data:`RANDOM`): times do not
    depend on them. Raises :class:`MedDPMError` for an unknown name and an invalid share.
    """
    published = {card.name: card for card in official_cards()}
    installed = {entry.name for entry in ModelStore().list()}
    if name in published and name not in installed:
        model = Model(published[name], _random_network(published[name]), RANDOM)
    else:
        model = load_model(name)
    if share == 1:
        return model
    card = replace(model.card, grid=scaled_grid(model.card.grid, share, model.network.side_multiple))
    return Model(card, model.network, model.hash)


def scaled_grid(grid: Grid, share: float, multiple: int) -> Grid:
    """``grid`` with ``share`` of its voxels along each axis, in multiples of ``multiple``, over the same extent."""
    size = scaled_size(grid.size, share, multiple)
    spacing = tuple(mm * old / new for mm, old, new in zip(grid.spacing, grid.size, size, strict=True))
    return Grid(size, spacing, grid.orientation)


def scaled_size(size: tuple[int, int, int], share: float, multiple: int) -> tuple[int, int, int]:
    """``share`` of each side of ``size``, in multiples of ``multiple``; :class:`MedDPMError` for an invalid share."""
    if not 0 < share <= 1:
        raise MedDPMError(f"the share of the grid's sides is a number above 0 and at most 1, not {share:g}")
    i, j, k = (max(multiple, round(side * share / multiple) * multiple) for side in size)
    return i, j, k


def painted_ball(card: Card) -> Mask:
    """A mask on the model's grid: a ball in which every label is a slice, so that no channel is empty."""
    geometry = card.grid.centered_on([0.0, 0.0, 0.0])
    positions = np.stack(
        np.meshgrid(*[np.linspace(-1, 1, side) for side in geometry.shape], indexing="ij")
    )  # (3, D, H, W)
    values = np.array(card.scheme.values, np.uint8)
    slices = np.minimum((positions[0] + 1) / 2 * len(values), len(values) - 1).astype(int)
    labels = np.where((positions**2).sum(axis=0) < 0.8, values[slices], 0).astype(np.uint8)
    return Mask.from_volume(Volume(labels, geometry), card.scheme, name="ball", numbering=card.scheme.own_numbering)


def _random_network(card: Card) -> torch.nn.Module:
    """The card's network with random weights, also where they are zero at initialization."""
    network = build_network(card.network_description)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in network.parameters():
            if not parameter.any():
                parameter.normal_(std=0.01, generator=generator)
    return network
