"""Headers that say something odd are read, or refused in a sentence. ``fuzzed_files.py`` tries as many as one likes."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest
from fuzzed_files import Originals
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from study_cases import make_study

from MedDPMLib.study.pack import pack, unpack


@pytest.fixture(scope="module")
def originals(tmp_path_factory):
    folder = tmp_path_factory.mktemp("originals")
    archive = pack(make_study(folder / "made", real=3, synthetic=3, readers=("Ada",)), folder)[0]
    unpack(archive, folder / "study")
    logging.getLogger("nibabel.global").setLevel(logging.CRITICAL)
    return Originals(folder, folder / "study")


@settings(max_examples=150, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(st.data())
def test_whatever_a_header_says_is_read_or_refused_in_a_sentence(originals, tmp_path_factory, data):
    strategies = originals.strategies()
    name = data.draw(st.sampled_from(sorted(strategies)))
    path = Path(tmp_path_factory.getbasetemp()) / "drawn" / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data.draw(strategies[name]))
    originals.read(path)
