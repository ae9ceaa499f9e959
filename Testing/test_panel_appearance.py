"""The panel's rows for whose look a brain gets: on the headless bench, with a tiny cascade."""

# ruff: noqa: F811 (fixtures are imported by their names)

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from bench.driver import SCHEME, application, generate, models, panel, start_from_template, wait_until  # noqa: F401
from test_cascade import _card, _cascade

import slicer  # isort: skip

from MedDPMLib.imaging.geometry import Grid
from MedDPMLib.masks.schemes import load_scheme
from MedDPMLib.models.bundle import write_bundle, write_sharing
from MedDPMLib.scene import volumes
from MedDPMLib.scene.panel.appearance import modality_in
from MedDPMLib.scene.segmentation import read_labels


@pytest.mark.parametrize(
    ("name", "modality"),
    [
        ("Brats18_AXN_1_t1ce", "t1ce"), ("T1-Gd", "t1ce"), ("t1 post contrast", "t1ce"), ("FLAIR tra", "flair"),
        ("AX T2", "t2"), ("mprage T1", "t1"), ("Volume", None),
    ],
)  # fmt: skip
def test_a_volume_is_taken_for_what_its_name_says(name, modality):
    assert modality_in(name) == modality


def test_a_brain_looks_like_a_volume(panel, models, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    ui = panel.ui
    rows = (ui.appearanceBox, ui.likeLabel, ui.likeSelector, ui.likeModalityBox)
    assert all(widget.isHidden() for widget in rows)  # the tiny network of timesteps knows none
    grid = Grid((32, 32, 32), (6.0, 6.0, 6.0), "LPS")
    write_bundle(models / "small-cascade.safetensors", _card(grid=grid), _cascade().state_dict())
    panel.models.fill()
    panel.models.choose("small-cascade")
    assert not any(widget.isHidden() for widget in rows)
    segmentation = start_from_template(panel)
    labels = read_labels(segmentation, panel.mask.table, SCHEME)
    random = np.random.default_rng(0)
    scan = np.where(labels.array == 1, 900, 400) * (labels.array > 0) + random.integers(0, 50, labels.array.shape)
    scan = np.where(labels.array > 0, scan, 0).astype(np.float32)
    node = slicer.util.addVolumeFromArray(scan, labels.geometry.ijk_to_ras, "scan")
    ui.likeSelector.setCurrentNode(node)
    ui.stepsBox.value = 2
    ui.generateButton.click()
    assert "choose which one in the row Like volume" in ui.messageLabel.text
    ui.likeModalityBox.currentIndex = ui.likeModalityBox.findData("t2")
    generate(panel)
    record = volumes.record_of(volumes.results()[0])
    assert set(record["appearance"]) == {"file", "hash"}
    (path,) = (tmp_path / "cache").rglob("appearances/*.json")
    assert path.name == record["appearance"]["file"] and path == Path(record["settings"]["appearance"])
    assert set(json.loads(path.read_text())["appearance"]) == {"t2"}
    ui.likeSelector.setCurrentNode(None)
    assert panel.makeOrder().settings.appearance == "random"
    panel.models.choose("small")
    assert all(widget.isHidden() for widget in rows)


def test_a_cascade_forms_in_view_is_cancelled_and_completes_a_tumor(panel, models):
    """With the labels of BraTS, by the weights of the file beside it: previews, Cancel, and a typical look."""
    card = _card(grid=Grid((32, 32, 32), (6.0, 6.0, 6.0), "LPS"))
    write_bundle(models / "small-cascade.safetensors", card, _cascade().state_dict())
    brats = replace(card, name="small-brats", scheme=load_scheme("brats"), completion=card.scheme)
    write_sharing(models / "small-brats.safetensors", brats, models / "small-cascade.safetensors")
    panel.models.fill()
    panel.models.choose("small-brats")
    start_from_template(panel, "glioma")
    ui, events = panel.ui, []
    panel.logic.client.received.connect(lambda event: events.append(type(event).__name__))
    ui.stepsBox.value = 50
    ui.generateButton.click()
    wait_until(lambda: "Preview" in events)
    ui.generateButton.click()
    wait_until(lambda: panel.logic.generator.order is None)
    assert ui.generateButton.text == "Generate" and not volumes.results()
    ui.stepsBox.value = 2
    ui.appearanceBox.currentIndex = 1
    generate(panel)
    made = volumes.results()
    record = volumes.record_of(made[0])
    assert len(made) == 2 and record["model"]["name"] == "small-brats" and record["appearance"] == "typical"
    inside = [slicer.util.arrayFromVolume(node) for node in made]
    assert all(np.unique(image).size > 100 for image in inside)
