"""Files, scenes and programs from before the American names still mean the same."""

from __future__ import annotations

import json
import re
import struct
import subprocess
import sys
from pathlib import Path

import pytest
from phantoms import BRATS, MODALITIES, make, shrink, table, write_brats
from study_cases import make_study

from MedDPMLib.errors import MedDPMError
from MedDPMLib.masks.numberings import find_numbering, label_named
from MedDPMLib.masks.schemes import LabelScheme, load_scheme, scheme_names
from MedDPMLib.models.bundle import read_card
from MedDPMLib.models.card import Card
from MedDPMLib.models.segmenter_card import GENERATOR
from MedDPMLib.prepare import DatasetSettings, find_cases, write_dataset
from MedDPMLib.recipes.recipe import load_recipe, recipe_from, recipe_names, recipe_values
from MedDPMLib.study.definition import STUDY_FILE, read_definition
from MedDPMLib.train.folder import history_fields

_MODELS = Path(__file__).parents[1] / "MedDPMLib" / "resources" / "models"
#: Written with the names of version 0.1.
BUNDLED = [_MODELS / f"{name}.safetensors" for name in ("brain-anatomy", "brain-brats")]

#: Current names of labels, with those of version 0.1.
LABELS = {"Edema": "Oedema", "Enhancing tumor": "Enhancing tumour", "Tumor": "Tumour"}


@pytest.fixture
def small(monkeypatch):
    shrink(monkeypatch)


def former(scheme: LabelScheme) -> dict:
    """``scheme`` as version 0.1 wrote it."""
    data = scheme.to_dict()
    data["title"] = data["title"].replace("tumor", "tumour")
    for label in data["labels"]:
        label["role"] = label["role"].replace("tumor", "tumour")
        label["aliases"] = [
            label["name"] if alias == LABELS.get(label["name"]) else alias for alias in label["aliases"]
        ]
        label["name"] = LABELS.get(label["name"], label["name"])
    return data


def stored_card(path: Path) -> str:
    """The text of the card in the bundle at ``path``."""
    with path.open("rb") as file:
        header = json.loads(file.read(struct.unpack("<Q", file.read(8))[0]))
    return header["__metadata__"]["meddpm.card"]


# Labels ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", scheme_names())
def test_a_scheme_of_a_former_version_is_the_current_one(name):
    scheme = load_scheme(name)
    data = former(scheme)
    assert data != scheme.to_dict()
    read = LabelScheme.from_dict(data)
    assert read == scheme and LabelScheme.from_dict(read.to_dict()) == scheme
    for label in read.tumor:
        spellings = {label.name, LABELS.get(label.name, label.name)}
        assert {read.label_by_name(spelling) for spelling in spellings} == {label}
        assert len({alias.casefold() for alias in (*label.aliases, label.name)}) == len(label.aliases) + 1


def test_a_scheme_that_has_both_names_keeps_both():
    data = former(BRATS)
    data["labels"][0]["name"] = "Edema"
    assert [label.name for label in LabelScheme.from_dict(data).labels][:2] == ["Edema", "Oedema"]


@pytest.mark.parametrize("scheme", list(map(load_scheme, scheme_names())), ids=scheme_names())
def test_both_spellings_of_a_label_are_understood(scheme):
    for current, spelling in LABELS.items():
        for name in (spelling, spelling.upper(), spelling.replace(" ", "_"), f"the {spelling} (A)"):
            assert label_named(name, scheme) is label_named(current, scheme)
    if scheme.label_by_name("Edema"):
        written = [find_numbering(scheme, f"3=necrosis,5={name}").values for name in ("edema", "oedema")]
        assert written[0] == written[1]


# Models ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", BUNDLED, ids=lambda path: path.stem)
def test_the_cards_of_bundles_written_before_are_read(path):
    text = stored_card(path)
    assert '"Oedema"' in text and '"tumour"' in text and '"licence"' in text, "the bundle was written again"
    card = read_card(path)
    assert card.scheme == load_scheme(card.scheme.name) and card.license == json.loads(text)["licence"]
    assert [data["license"] for data in card.training_data] == [
        data["licence"] for data in json.loads(text)["training_data"]
    ]
    written = card.to_json()
    assert Card.from_json(written) == card and not re.search('Oedema(?!")|licence|"role":"tumour', written)


def test_a_card_with_both_names_of_a_field_is_refused():
    data = json.loads(stored_card(BUNDLED[0]))
    with pytest.raises(MedDPMError, match='"licence" is the former name of "license": remove one'):
        Card.from_json(json.dumps({**data, "license": "MIT"}))
    data["training_data"][0]["license"] = "MIT"
    with pytest.raises(MedDPMError, match='"licence" is the former name of "license": remove one'):
        Card.from_json(json.dumps(data))


# Recipes, datasets, runs -----------------------------------------------------------------------------


@pytest.mark.parametrize("name", recipe_names(GENERATOR))
def test_a_recipe_may_call_the_license_as_before(name):
    values = recipe_values(load_recipe(name))
    values["card"]["licence"] = values["card"].pop("license")
    values["card"]["training_data"] = [{"name": "a", "licence": "b"}]
    assert recipe_from(values).card["license"] == load_recipe(name).card["license"]
    changed = load_recipe(name, ["card.licence=MIT"])
    assert changed == load_recipe(name, ["card.license=MIT"]) and changed.card["license"] == "MIT"


def test_a_dataset_prepared_before_is_continued(tmp_path, small):
    write_brats(tmp_path / "source", [1, 2])
    out = tmp_path / "out"
    make([tmp_path / "source"], out)
    current, rows = json.loads((out / "dataset.json").read_text()), table(out)

    before = {**current, "labels": {LABELS.get(name, name): value for name, value in current["labels"].items()}}
    before["normalisation"] = before.pop("normalization")
    (out / "dataset.json").write_text(json.dumps({**before, "licence": "CC BY 4.0"}))
    for record in (out / "prepared").glob("*.json"):
        text = record.read_text()
        assert "Edema (voxels)" in text
        for name, spelling in LABELS.items():
            text = text.replace(f"{name} (voxels)", f"{spelling} (voxels)")
        record.write_text(text)

    cases = find_cases([tmp_path / "source"], BRATS, MODALITIES)
    reports = list(write_dataset(cases, out, DatasetSettings("brats", MODALITIES)))
    assert [report.was_done for report in reports] == [True, True]
    assert json.loads((out / "dataset.json").read_text()) == {**current, "licence": "CC BY 4.0"}
    assert table(out) == rows

    with pytest.raises(MedDPMError, match=r"holds another dataset \(normalization differs\)"):
        make([tmp_path / "source"], out, normalization="per-volume")


@pytest.mark.parametrize("name", ["license", "licence"])
def test_the_license_of_a_dataset_is_read_in_both_spellings(tmp_path, name):
    from MedDPMLib.cli.training import _data

    (tmp_path / "dataset.json").write_text(json.dumps({"name": "N", name: "CC0"}))
    assert _data(tmp_path) == {"name": "N", "license": "CC0"}


def test_the_history_of_a_run_keeps_its_license():
    reported: list[str] = []
    data = {"name": "N", "licence": None, "cases": ["a"], "held_out": []}
    found = history_fields({"data": data}, reported.append)
    assert found == {"data": {"name": "N", "license": None, "cases": ["a"], "held_out": []}} and not reported


# Studies ---------------------------------------------------------------------------------------------


def test_a_study_made_before_has_the_same_hash(tmp_path):
    study = make_study(tmp_path)
    definition = read_definition(study)
    text = (study / STUDY_FILE).read_text()
    assert text.count("\nmodalities = ") == 1
    (study / STUDY_FILE).write_text(text.replace("\nmodalities = ", "\ncontrasts = "))
    assert read_definition(study) == definition
    (study / STUDY_FILE).write_text(text.replace("\nmodalities = [", '\nmodalities = ["t2",'))
    with pytest.raises(MedDPMError, match="edited"):
        read_definition(study)


def test_former_options_and_commands_of_a_study_are_accepted_and_not_advertised(meddpm, tmp_path):
    shown = meddpm("study", "--help").stdout + meddpm("study", "new", "--help").stdout
    assert "analyze" in shown and "analyse" not in shown
    assert "--modality" in shown and "--contrast" not in shown
    wrong = meddpm("study", "analyse", "--table", tmp_path / "none.csv", "--json", tmp_path / "out.json")
    assert "none.csv cannot be read" in wrong.stderr
    wrong = meddpm(
        "study", "new", tmp_path / "s", "--real", tmp_path, "--synthetic", tmp_path, "--reader", "a", "--margin", "0.1",
        "--contrast", "t2",
    )  # fmt: skip
    assert "no volume of t2" in wrong.stderr


# Python ----------------------------------------------------------------------------------------------


def test_former_names_of_the_library_work_with_a_deprecation():
    code = """
import warnings
with warnings.catch_warnings(record=True) as found:
    warnings.simplefilter("always")
    from MedDPMLib.imaging.normalize import NORMALISATIONS, normalise, normalise_onto
    from MedDPMLib.masks.tumor import paint_tumour
    from MedDPMLib.prepare import normalise as prepared
    from MedDPMLib.masks.schemes import load_scheme
    from MedDPMLib.masks.templates import find_template
    from MedDPMLib.models.card import official_cards
    from MedDPMLib.prepare import DatasetSettings
    scheme, template, card = load_scheme("brats"), find_template("glioma"), official_cards()[0]
    settings = DatasetSettings("brats", ("t1",))
    old = scheme.tumour, template.tumour, card.licence, settings.normalisation
assert old == (scheme.tumor, template.tumor, card.license, settings.normalization)
texts = [str(one.message) for one in found if one.category is DeprecationWarning and one.filename == "<string>"]
for name in ("NORMALISATIONS", "normalise", "normalise_onto", "paint_tumour", "tumour", "licence", "normalisation"):
    assert any(name + " is now " in text for text in texts), (name, texts)
from MedDPMLib.imaging import normalize as module
assert normalise is prepared is module.normalize and NORMALISATIONS is module.NORMALIZATIONS
assert normalise_onto is module.normalize_onto
try:
    module.nothing_of_that_name
except AttributeError:
    pass
else:
    raise AssertionError
"""
    subprocess.run([sys.executable, "-c", code], check=True)
