"""What a command needs is asked for before it works for minutes: packages, places to write, names, images."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from conftest import small_geometry, write_small_mask

import MedDPMLib
from MedDPMLib.cli.checks import check_writable_file
from MedDPMLib.errors import MedDPMError
from MedDPMLib.imaging.io import write_nifti
from MedDPMLib.imaging.volume import Volume
from MedDPMLib.runtime.packages import OPTIONAL, require

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(MedDPMLib.__file__).parents[1]


def reported(result: subprocess.CompletedProcess) -> str:
    """The one sentence of a command that failed before it did anything."""
    assert result.returncode == 2 and result.stdout == ""
    (line,) = result.stderr.strip().splitlines()
    return line


@pytest.fixture
def hidden(monkeypatch):
    """``hidden(module)`` is as if it were not installed."""
    return lambda module: monkeypatch.setitem(sys.modules, module, None)


@pytest.fixture
def nothing_is_computed(monkeypatch):
    """Whoever asks a network, measures or trains fails."""

    def computed(*_, **__):
        raise AssertionError("work was begun")

    import MedDPMLib.benchmark.inference
    import MedDPMLib.benchmark.training
    import MedDPMLib.models.model
    import MedDPMLib.train.iteration_cost
    import MedDPMLib.train.run

    monkeypatch.setattr(MedDPMLib, "load_model", computed)
    monkeypatch.setattr(MedDPMLib, "generate", computed)
    monkeypatch.setattr(MedDPMLib.benchmark.inference, "measure_peak_throughput", computed)
    monkeypatch.setattr(MedDPMLib.train.iteration_cost.subprocess, "run", computed)
    monkeypatch.setattr(MedDPMLib.train.run, "train", computed)


@pytest.fixture
def real(tmp_path):
    """Options for the real images of the small model's modalities."""
    rng = np.random.default_rng(0)
    for modality in ("t1", "t2"):
        image = rng.uniform(0, 100, small_geometry().shape).astype(np.float32)
        write_nifti(tmp_path / f"{modality}.nii.gz", Volume(image, small_geometry()))
    return ["--real", f"t1={tmp_path / 't1.nii.gz'}", "--real", f"t2={tmp_path / 't2.nii.gz'}"]


# Packages --------------------------------------------------------------------------------------------


def test_the_optional_packages_are_those_of_the_extra():
    with open(Path(__file__).parents[1] / "pyproject.toml", "rb") as file:
        extra = tomllib.load(file)["project"]["optional-dependencies"]["train"]
    assert sorted(OPTIONAL.values()) == sorted(re.match(r"[\w-]+", requirement)[0] for requirement in extra)


def test_a_package_that_is_there_is_not_imported_to_see_that():
    code = (
        "import sys; from MedDPMLib.runtime.packages import OPTIONAL, require; require('this', *OPTIONAL);"
        " assert not sys.modules.keys() & OPTIONAL.keys()"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)


def test_what_is_missing_is_named_as_pip_calls_it(hidden):
    hidden("tomli_w")
    hidden("monai")
    with pytest.raises(MedDPMError, match=r'^training needs monai, tomli-w: .* pip install "meddpm\[train\]"$'):
        require("training", *OPTIONAL)
    require("training", "scipy")


@pytest.mark.parametrize(
    ("arguments", "modules"),
    [
        (["benchmark", "steps", "MASK", "--model", "MODEL", "--out", "out"], ["monai"]),
        (["fidelity", "MASK", "--model", "MODEL", "REAL", "--pairs", "--json", "out/figures.json"], ["monai"]),
        (["benchmark", "train", "--recipe", "brats-compact", "--quick", "--json", "out/x"], ["accelerate", "monai"]),
        (["train", "--recipe", "brats-compact", "--estimate-memory"], ["accelerate", "monai"]),
        (["train", "data", "--recipe", "brats-compact", "--run", "out"], list(OPTIONAL)),
    ],
    ids=lambda value: " ".join(value[:2]),
)
def test_a_missing_package_is_reported_at_once(
    meddpm, hidden, nothing_is_computed, small_model, small_mask, real, tmp_path, arguments, modules
):
    named = {"MASK": [small_mask], "MODEL": [small_model], "REAL": real}
    line = [part for argument in arguments for part in named.get(argument, [argument])]
    for module in modules:
        with pytest.MonkeyPatch.context() as patch:
            patch.setitem(sys.modules, module, None)
            sentence = reported(meddpm(*line))
        assert f"needs {OPTIONAL[module]}: install it with" in sentence
        assert not (tmp_path / "out").exists()


def test_without_the_optional_packages_volumes_are_made_and_compared(
    meddpm_process, small_model, small_mask, real, tmp_path
):
    """In a process, where nothing of them has been imported before; there they are really missing."""
    (tmp_path / "sitecustomize.py").write_text(f"import sys; sys.modules.update(dict.fromkeys({list(OPTIONAL)}))")
    mine = {"PYTHONPATH": os.pathsep.join(map(str, (tmp_path, ROOT)))}
    line = ["fidelity", small_mask, "--model", small_model, *real]
    for options, code in (([], 0), (["--pairs"], 2)):
        process = meddpm_process(*line, *options, env=mine)
        _, error = process.communicate(timeout=120)
        assert process.returncode == code, error


def test_a_missing_compiler_is_reported_at_once(meddpm, nothing_is_computed, monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CXX", raising=False)
    line = ["train", "data", "--recipe", "brats-compact", "--run", "out", "--device", "cpu", "--compile"]
    assert "--compile needs a C++ compiler" in reported(meddpm(*line))


# Places ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "option"),
    [
        (["fidelity", "MASK", "--model", "MODEL", "REAL"], "--json"),
        (["benchmark", "generate", "--model", "MODEL", "--quick"], "--json"),
        (["benchmark", "train", "--recipe", "brats-compact", "--quick"], "--json"),
        (["benchmark", "steps", "MASK", "--model", "MODEL"], "--out"),
        (["complete", "MASK"], "--out"),
    ],
    ids=lambda value: value if isinstance(value, str) else " ".join(value[:2]),
)
def test_a_place_that_cannot_be_written_to_is_reported_at_once(
    meddpm, nothing_is_computed, small_model, small_mask, real, tmp_path, arguments, option
):
    named = {"MASK": [small_mask], "MODEL": [small_model], "REAL": real}
    line = [part for argument in arguments for part in named.get(argument, [argument])]
    (tmp_path / "file").write_text("in the way")
    (tmp_path / "folder.nii.gz").mkdir()
    places = ["file/inside.nii.gz"] + (["folder.nii.gz"] if option == "--json" or arguments[0] == "complete" else [])
    for place in places:
        sentence = reported(meddpm(*line, option, place))
        assert re.search(rf"{Path(place).parts[0]}(/.*)? (cannot be written to|is a folder)", sentence)
    assert (tmp_path / "file").read_text() == "in the way"


def test_a_file_that_is_there_may_be_replaced(tmp_path):
    there = tmp_path / "new" / "figures.json"
    check_writable_file(there)
    assert list(there.parent.iterdir()) == []
    there.write_text("old")
    there.chmod(0o400)
    check_writable_file(there)
    assert there.read_text() == "old"


# Names and images ------------------------------------------------------------------------------------


def test_an_unknown_numbering_is_reported_once_and_not_for_each_mask(
    meddpm, nothing_is_computed, small_model, small_mask, brats
):
    write_small_mask(small_mask.with_name("other.nii.gz"), brats, seed=1)
    line = ["generate", small_mask.parent, "--model", small_model, "--out", "out"]
    assert '"nonsense"' in reported(meddpm(*line, "--labels", "nonsense"))
    assert "nowhere.nii.gz" in reported(meddpm(*line, "--brain-from", "nowhere.nii.gz"))


def test_real_images_that_cannot_be_compared_are_reported_before_anything_is_generated(
    meddpm, nothing_is_computed, small_model, small_mask, real, tmp_path
):
    write_nifti(tmp_path / "t2.nii.gz", Volume(np.full(small_geometry().shape, 3, np.float32), small_geometry()))
    sentence = reported(meddpm("fidelity", small_mask, "--model", small_model, *real))
    assert "t2" in sentence and "constant" in sentence


@pytest.mark.parametrize("command", ["generate", "train"])
def test_an_unknown_name_among_several_is_reported_before_the_first_is_measured(meddpm, nothing_is_computed, command):
    option = {"generate": ("--model", "brain-anatomy"), "train": ("--recipe", "brats-compact")}[command]
    assert '"nonsense"' in reported(meddpm("benchmark", command, *option, option[0], "nonsense", "--quick"))
