"""Adding a model whose weights do not say what it is for: one dialog asks, shows what was read, and refuses nothing
silently."""

# ruff: noqa: F811 (fixtures are imported by their names)

from __future__ import annotations

import pytest
import torch
from bench import dialogs
from bench.driver import application, models, panel, session_folders, wait_until  # noqa: F401

import qt  # isort: skip

from MedDPMLib.diffusion.schedule import make_schedule
from MedDPMLib.models.store import ModelStore
from MedDPMLib.networks import build_network

NETWORK = {
    "kind": "unet", "image_channels": 2, "condition_channels": 4, "base": 32, "multipliers": [1, 1], "blocks": 1,
    "attention": [],
}  # fmt: skip

SCHEME = """\
name = "schwannoma"
[[labels]]
value = 1
name = "Brain"
role = "rest"
[[labels]]
value = 2
name = "Tumor, \\"VS\\""
role = "tumor"
[[labels]]
value = 3
name = "7"
"""


@pytest.fixture
def checkpoint(tmp_path):
    made = make_schedule("cosine", 100)
    state = {**build_network(NETWORK).state_dict(), "betas": made.betas}
    torch.save({"step": 1, "model": {}, "ema": state}, tmp_path / "Their Model.pt")
    (tmp_path / "labels.toml").write_text(SCHEME)
    return tmp_path / "Their Model.pt"


def form(panel):
    return panel.models._description


def is_acceptable(asked) -> bool:
    return asked.buttons.button(qt.QDialogButtonBox.Ok).isEnabled()


def fill(asked, size):
    """Answers everything, one question after the other; only the last answer makes it acceptable."""
    asked.scheme.currentIndex = asked.scheme.count - 1  # "File..."
    assert asked.channels.text == 'Brain, "Tumor, ""VS""", 7, 0'
    asked.channels.text = '"Tumor, ""VS""", Brain, 0.5, 7'
    asked.modalities.text = "t1ce, t2"
    for box, value in zip((*asked.size, *asked.spacing), (*size, 6, 8, 16), strict=True):
        box.value = value
    asked.orientation.currentIndex = asked.orientation.findText("RAS")
    for choice in (asked.axes, asked.encoding):
        choice.currentIndex = 1
    assert not is_acceptable(asked) and asked.message.text == "Still missing: intensities"
    asked.image_range.currentIndex = 0
    assert is_acceptable(asked) and asked.message.text == ""


def test_what_is_missing_is_asked_for_once(panel, checkpoint):
    ui, asked = panel.ui, []

    def first(_dialog):
        shown = form(panel)
        asked.append(shown.read.text)
        assert "2 image and 4 condition channels" in shown.read.text and "100 timesteps" in shown.read.text
        assert shown.name.text == "their-model" and not is_acceptable(shown)
        assert "modalities (0 of 2)" in shown.message.text and "labels" in shown.message.text
        fill(shown, size=(24, 16, 7))
        return qt.QDialog.Accepted

    def again(_dialog):
        shown = form(panel)
        asked.append(shown.message.text)
        assert "multiples of 2" in shown.message.text and "card.toml" not in shown.message.text
        assert shown.modalities.text == "t1ce, t2"  # what was answered is kept
        shown.size[2].value = 8
        return qt.QDialog.Accepted

    # The file of the label scheme is asked for from within the first dialog.
    dialogs.reply_with(str(checkpoint), first, str(checkpoint.parent / "labels.toml"), again)
    ui.addModelButton.click()
    wait_until(lambda: ui.addModelButton.enabled and panel.models._description is None)
    assert len(asked) == 2 and panel.models.entry.name == "their-model"
    assert "as you described it" in ui.modelSummary.text and "T1CE, T2" in ui.modelSummary.text
    card = panel.models.card
    assert (card.constants, card.axes, card.mask_encoding) == ((0.5,), "xyz", (-1, 1))
    assert [label.name for label in card.scheme.labels] == ["Brain", 'Tumor, "VS"', "7"]
    assert card.network_description == NETWORK | {"multipliers": [1, 1]}
    assert not [path for folder in session_folders() for path in folder.glob("card.*")]
    ModelStore().remove("their-model")


def test_nothing_is_added_when_it_is_cancelled(panel, checkpoint):
    before = [entry.name for entry in ModelStore().list()]
    dialogs.reply_with(str(checkpoint), lambda _dialog: qt.QDialog.Rejected)
    panel.ui.addModelButton.click()
    wait_until(lambda: panel.ui.addModelButton.enabled and panel.models._description is None)
    assert panel.ui.modelSummary.text.startswith("Nothing was added.")
    assert [entry.name for entry in ModelStore().list()] == before
