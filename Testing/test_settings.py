"""One value holds all settings: it checks itself, survives JSON, and is what options and controls are made from."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import FrozenInstanceError, fields, replace

import pytest
from conftest import small_card
from hypothesis import given
from hypothesis import strategies as st
from typer.main import get_command

from MedDPMLib.cli.app import app
from MedDPMLib.diffusion.names import METHODS
from MedDPMLib.errors import MedDPMError
from MedDPMLib.inference.record import settings_of
from MedDPMLib.inference.settings import (
    APPEARANCES,
    MAX_GUIDANCE,
    SETTINGS,
    SPACES,
    GenerationSettings,
    memory_limit,
)
from MedDPMLib.models.card import QUALITIES
from MedDPMLib.runtime.names import DEVICES, PRECISIONS

VALID = {
    "quality": st.sampled_from(QUALITIES),
    "sampler": st.none() | st.sampled_from(METHODS),
    "steps": st.none() | st.integers(1, 10_000),
    "guidance": st.floats(0, MAX_GUIDANCE),
    "appearance": st.sampled_from([*APPEARANCES, "looks/one.json"]),
    "device": st.sampled_from(DEVICES) | st.integers(0, 63).map("cuda:{}".format),
    "precision": st.sampled_from(PRECISIONS),
    "memory": st.sampled_from(["auto", "low"]) | st.integers(1, 999).map("{} GB".format),
    "space": st.sampled_from(SPACES),
}


def test_importing_them_needs_no_torch():
    code = "import sys, MedDPMLib.inference.settings; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@given(st.fixed_dictionaries(VALID))
def test_they_survive_json(values):
    settings = GenerationSettings(**values)
    assert GenerationSettings.from_dict(json.loads(json.dumps(settings.to_dict()))) == settings
    assert settings.to_dict() == values
    assert GenerationSettings().changed(**values) == settings


@given(
    st.sampled_from(sorted(VALID)),
    st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.lists(st.text()),
)
def test_what_is_accepted_is_among_the_choices_and_all_else_is_one_sentence(name, value):
    try:
        accepted = getattr(GenerationSettings(**{name: value}), name)
    except MedDPMError as error:
        assert "\n" not in str(error) and str(error).startswith(f'"{name}" must be ')
        return
    setting = SETTINGS[name]
    if setting.choices and name not in ("appearance", "device", "memory"):
        assert accepted in [choice.value for choice in setting.choices]
    if setting.high is not None and accepted is not None:
        assert setting.low <= accepted <= setting.high


def test_unknown_settings_are_refused():
    with pytest.raises(MedDPMError, match='no field "colour": it has appearance, device, '):
        GenerationSettings.from_dict({"colour": 1})
    with pytest.raises(MedDPMError, match='no field "colour"'):
        GenerationSettings().changed(colour=1)
    with pytest.raises(MedDPMError, match="a table"):
        GenerationSettings.from_dict([1])
    with pytest.raises(FrozenInstanceError):
        GenerationSettings().steps = 3


def test_short_names_of_precisions_are_understood():
    assert GenerationSettings(precision="bf16") == GenerationSettings(precision="bfloat16")


@pytest.mark.parametrize(
    ("memory", "limit"), [("auto", None), ("low", None), ("4 GB", 4 * 10**9), ("0.5gb", 5 * 10**8)]
)
def test_memory_limits(memory, limit):
    assert memory_limit(memory) == limit


def test_a_card_fills_in_what_the_quality_leaves_open(brats):
    card = small_card(brats)
    for quality in QUALITIES:
        settings = GenerationSettings(quality=quality).for_card(card)
        assert {"sampler": settings.sampler, "steps": settings.steps} == card.qualities[quality]
        assert settings.for_card(card) == settings
    chosen = GenerationSettings(quality="draft", steps=7).for_card(card)
    assert (chosen.steps, chosen.sampler) == (7, card.qualities["draft"]["sampler"])
    with pytest.raises(MedDPMError, match="1 to 50 for the model small, not 51"):
        GenerationSettings(steps=51).for_card(card)
    with pytest.raises(MedDPMError, match="does not support guidance"):
        GenerationSettings(guidance=2).for_card(card)
    assert GenerationSettings(guidance=2).for_card(replace(card, label_dropout=0.1)).guidance == 2


def test_the_command_line_has_an_option_for_every_setting():
    options = {option.name: option for option in get_command(app).commands["generate"].params}
    assert "settings" not in options
    for name, setting in SETTINGS.items():
        option = options[name]
        assert option.opts == [f"--{name}"] and option.default == setting.default and setting.help in option.help
        for choice in setting.choices:
            assert choice.value is None or choice.value in option.help
    assert [entry.name for entry in fields(GenerationSettings)] == list(SETTINGS)


def test_records_of_before_are_understood():
    record = {
        "sampler": "ddim", "steps": 3, "guidance": 1.5, "precision": "bfloat16", "device": "cpu", "space": "mask",
        "seed": 4, "memory": "in thin slabs",
    }  # fmt: skip
    settings = settings_of(record)
    assert settings == GenerationSettings(
        sampler="ddim", steps=3, guidance=1.5, precision="bfloat16", device="cpu", space="mask"
    )
    asked = GenerationSettings(sampler="ddpm", steps=50, memory="low")
    assert settings_of({**record, "settings": asked.to_dict()}) == asked
