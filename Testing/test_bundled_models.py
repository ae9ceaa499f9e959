"""The models that ship with the package: small, described, and the tumor is where it was painted."""

from __future__ import annotations

import numpy as np
import pytest

from MedDPMLib import generate, load_model
from MedDPMLib.masks.fit import fit
from MedDPMLib.masks.templates import demo_mask
from MedDPMLib.models.store import BUNDLED_MODELS, ModelStore

PATHS = sorted(BUNDLED_MODELS.glob("*.safetensors"))
each_model = pytest.mark.parametrize("path", PATHS, ids=lambda path: path.stem)


@each_model
def test_it_is_small_and_says_what_it_is(path):
    card = ModelStore().find(path).card
    assert card.name == path.stem and path.stat().st_size <= 9_000_000
    assert all(data["license"] and data["cases"] for data in card.training_data)
    assert "Not for diagnosis" in card.intended_use


@each_model
def test_the_tumor_is_seen_where_it_was_painted(path):
    """Three steps are enough for what radiologists go by: edema is bright in FLAIR, the rim in T1 with contrast, and
    necrosis is dark there."""
    model = load_model(path)
    mask = demo_mask(model.card.scheme)
    made = generate(model, mask, seed=1, steps=3)
    labels = fit(mask, model.card.grid).labels
    inside = {label.name: labels == label.value for label in model.card.scheme.tumor}
    rest = (labels > 0) & ~np.logical_or.reduce(list(inside.values()))

    def mean(modality, where):
        return made[modality].array[where].mean()

    assert mean("flair", inside["Edema"]) > mean("flair", rest) + 0.2
    assert mean("t1ce", inside["Enhancing tumor"]) > mean("t1ce", rest) + 0.2
    assert mean("t1ce", inside["Enhancing tumor"]) > mean("t1ce", inside["Necrosis"]) + 0.2
    assert mean("t1", labels == 0) < -0.9, "nothing is drawn outside of the mask"
