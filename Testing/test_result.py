"""Images become volumes in the card's range, all of them or those that are wanted."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from conftest import small_card

from MedDPMLib.inference.result import volumes_of


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_those_that_are_wanted_are_the_same_as_of_all(brats, dtype):
    card = dataclasses.replace(small_card(brats), intensity_range=(0.0, 10.0))
    geometry = card.grid.centered_on([0.0, 0.0, 0.0])
    images = torch.rand(2, *geometry.shape, generator=torch.Generator().manual_seed(0)).mul(2).sub(1).to(dtype)
    made = volumes_of(card, images, geometry, geometry)
    assert list(made) == ["t1", "t2"]
    for modality, image in zip(made, images, strict=True):
        np.testing.assert_allclose(made[modality].array, (image.float().numpy() + 1) * 5, rtol=1e-6)
        assert made[modality].array.dtype == np.float32
    alone = volumes_of(card, images, geometry, geometry, ["t2"])
    assert list(alone) == ["t2"] and np.array_equal(alone["t2"].array, made["t2"].array)
