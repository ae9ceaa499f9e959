"""A cascade is trained level by level: what each sees, what it resumes from, and the model that comes of it."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace

import numpy as np
import phantoms
import pytest
import torch
from torch.nn import functional as F
from typer.testing import CliRunner

from MedDPMLib import generate
from MedDPMLib.cli.app import app
from MedDPMLib.data import Case
from MedDPMLib.errors import MedDPMError
from MedDPMLib.imaging.geometry import Grid
from MedDPMLib.masks.mask import read_mask
from MedDPMLib.masks.schemes import load_scheme
from MedDPMLib.models.bundle import read_bundle
from MedDPMLib.models.model import load_model
from MedDPMLib.networks.cascade import known_colors
from MedDPMLib.prepare import STANDARDS
from MedDPMLib.recipes.recipe import load_recipe, recipe_toml
from MedDPMLib.runtime.device import choose_execution
from MedDPMLib.train.cascade_level import LevelTask
from MedDPMLib.train.checkpoints import Checkpoints
from MedDPMLib.train.engine import Engine
from MedDPMLib.train.export import export_run
from MedDPMLib.train.run import train
from MedDPMLib.train.stored_tables import TABLES, cascade_tables, for_brains, read_tables

ANATOMY = load_scheme("anatomy")
EXACT = choose_execution("cpu", "float32")
GRID = Grid((48, 32, 32), (4.0, 6.0, 4.5), "LPS")
SMALL = [
    'modalities=["t1", "t2"]', "network.widths=[8, 8, 12, 8, 8, 8, 8]", "network.depths=[1, 1, 1, 1, 1, 1, 1]",
    "network.given=[8, 8, 8]", "network.heads=2", "levels.0.patch=[48, 32, 32]", "levels.1.patch=[32, 16, 16]",
    "levels.2.patch=[16, 16, 16]",
    "levels.0.iterations=4", "levels.1.iterations=3", "levels.2.iterations=3", "training.warm_up=0",
    "monitor={checkpoint_every=2, keep=2, montage_every=0}", 'validation=["kept"]',
]  # fmt: skip
LEVELS = ("coarse", "middle", "fine")


@pytest.fixture(autouse=True)
def small_grid(monkeypatch):
    for name, standard in list(STANDARDS.items()):
        monkeypatch.setitem(STANDARDS, name, replace(standard, grid=GRID))


def small_recipe(level: str | None = None, *changes: str):
    recipe = load_recipe("brain-cascade", [*SMALL, *changes])
    return recipe.at_level(level) if level else recipe


def brain(name: str, seed: int) -> Case:
    """A brain off the middle whose contrast is its own."""
    random = np.random.default_rng(seed)
    k, j, i = np.mgrid[:32, :32, :48]
    radius = np.sqrt(((k - 15) / 12) ** 2 + ((j - 17) / 13) ** 2 + ((i - 21 - seed % 3) / 18) ** 2)
    labels = np.zeros(k.shape, np.uint8)
    for value, most in ((18, 1.0), (2, 0.9), (1, 0.7), (3, 0.3)):
        labels[radius < most] = value
    labels[14:20, 8:13, 26:33] = 21
    images = np.full((2, *labels.shape), -1.0, np.float32)
    for image in images:
        contrast = random.uniform(-0.5, 0.5)
        for place, value in enumerate((1, 2, 3, 18, 21)):
            where = labels == value
            image[where] = contrast * (place - 2) / 2 + 0.1 * random.standard_normal(where.sum())
    return Case(name, torch.from_numpy(images.clip(-1, 1)), torch.from_numpy(labels), GRID.spacing)


CASES = [brain(f"case{n}", n) for n in range(12)] + [brain("kept", 99)]


@pytest.fixture(scope="module")
def tables(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        for name, standard in list(STANDARDS.items()):
            patch.setitem(STANDARDS, name, replace(standard, grid=GRID))
        recipe = for_brains(small_recipe("coarse"), 12)
        return cascade_tables(recipe, CASES[:12], tmp_path_factory.mktemp("tables") / TABLES)


def task_of(level: str, tables, *changes: str) -> LevelTask:
    recipe = for_brains(small_recipe(level, *changes), 12)
    return LevelTask(recipe, torch.device("cpu"), torch.float32, tables)


def examples_of(level: str, tables, *changes: str):
    task = task_of(level, tables, *changes)
    return task, task.examples(task.recipe.stages[0], CASES[:12])


@pytest.mark.parametrize("level", LEVELS)
def test_what_is_drawn_and_painted_makes_the_brain_again(tables, level):
    """Bands, paint and spread as generation puts them together give the cells of the very brain."""
    task, made = examples_of(level, tables, "augmentation.flip=0", "levels.0.varied=false")
    one = replace(made.batch([3]), added=torch.zeros(1))
    bands, _, inside, _ = task.see(one)
    network = task.network
    labels = one.labels[0]
    fractions = torch.stack(
        [F.avg_pool3d((labels == n).float()[None], network.cell // 2)[0] for n in range(1, network.labels + 1)]
    )
    paint = network.painted_share[:, None, None, None] * network.painted(fractions, one.colors[0])
    whole = bands * network.spread(fractions, one.appearance[0]) + paint * inside
    means = None if network.first else F.avg_pool3d(one.image[0], network.cell)
    drawn = network.image_of(whole, means)
    full = F.avg_pool3d((labels > 0).float()[None], network.cell)[0] == 1
    if not network.first:
        full = full.repeat_interleave(2, 0).repeat_interleave(2, 1).repeat_interleave(2, 2)
    assert full.sum() > 20
    cells = F.avg_pool3d(one.image[0], network.drawn_cell)
    torch.testing.assert_close(drawn[:, full], cells[:, full], atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("level", LEVELS)
def test_a_mirrored_brain_has_mirrored_bands(tables, level):
    """To mirror the brain is to mirror the cells and to change the sign of the details along i."""
    patch = f"levels.{LEVELS.index(level)}.patch=[48, 32, 32]"
    still = [patch, "levels.0.varied=false"]
    task, straight = examples_of(level, tables, *still, "augmentation.flip=0")
    _, mirrored = examples_of(level, tables, *still, "augmentation.flip=1")
    (one, other) = (replace(made.batch([5]), added=torch.zeros(1)) for made in (straight, mirrored))
    assert one.cases == other.cases and torch.equal(one.labels.flip(-1), other.labels)
    assert not torch.equal(one.labels, other.labels)
    bands, given, inside, weight = task.see(one)
    expected, its_given, its_inside, its_weight = task.see(other)
    channels = task.network.channels
    bands_of = [0] if task.network.first else range(1, 8)
    signs = torch.tensor([(-1.0) ** (band % 2) for band in bands_of for _ in range(channels)])
    torch.testing.assert_close(bands.flip(-1) * signs[:, None, None, None], expected, atol=1e-4, rtol=1e-4)
    assert torch.equal(inside.flip(-1), its_inside) and torch.equal(weight.flip(-1), its_weight)
    place = 8 * task.network.labels
    depth, position = slice(place, place + 2), slice(place + 2, place + 5)
    torch.testing.assert_close(given[depth].flip(-1), its_given[depth], atol=2e-3, rtol=0)
    torch.testing.assert_close(
        given[position].flip(-1) * torch.tensor([1.0, 1, -1])[:, None, None, None], its_given[position]
    )


def test_a_training_brain_is_painted_by_others(tables):
    _, made = examples_of("coarse", tables)
    for number in range(12):
        one = made.batch([number])
        index = tables.cases.index(one.cases[0])
        colors = known_colors(tables.color_weights[index], one.appearance[0])
        assert torch.equal(one.colors[0], colors)
        assert not torch.equal(colors, known_colors(tables.known["color_weights"], one.appearance[0]))
    far = (one.appearance[0] - tables.appearances[index]).square().mean().sqrt()
    assert 0.05 < far < 0.3  # and never met exactly
    task = task_of("coarse", tables)
    kept = task.examples(task.recipe.stages[0], CASES[12:])
    batches = list(kept.held_out())
    assert [batch.cases for batch in batches] == [("kept",)] * 4
    assert torch.equal(batches[0].colors[0], known_colors(tables.known["color_weights"], batches[0].appearance[0]))
    assert [float(batch.sigma) for batch in batches] == sorted(float(batch.sigma) for batch in batches)


def test_interpolation_takes_nothing_from_outside(tables):
    """Rotated and scaled, a brain of one intensity is still of one intensity, up to its surface."""
    even = [replace(CASES[0], image=torch.where(CASES[0].labels > 0, 0.6, -1.0).expand(2, -1, -1, -1))]
    task = task_of("coarse", tables, "augmentation.rotation=20", "augmentation.scaling=0.1")
    one = task.examples(task.recipe.stages[0], even).batch([1])
    inside = one.labels[0] > 0
    assert not torch.equal(inside, CASES[0].labels > 0)
    torch.testing.assert_close(one.image[0][:, inside], torch.full((2, int(inside.sum())), 0.6), atol=2e-3, rtol=0)


def test_a_batch_is_the_mean_of_its_examples(tables):
    for level in LEVELS:
        task, made = examples_of(level, tables)
        both = made.batch([0, 1])
        with torch.no_grad():
            parts = [task.loss(task.network, replace(both, **_part(both, n))) for n in (0, 1)]
            whole = task.loss(task.network, both)
            weights = [task.see(replace(both, **_part(both, n)))[3].sum() for n in (0, 1)]
        expected = sum(part * weight for part, weight in zip(parts, weights, strict=True)) / sum(weights)
        torch.testing.assert_close(whole, expected)


def _part(batch, index: int) -> dict:
    return {name: value[index : index + 1] for name, value in vars(batch).items() if name != "cases"}


def test_training_lowers_the_loss(tables):
    recipe = for_brains(small_recipe("fine", "levels.2.learning_rate=1e-2"), 12)
    engine = Engine(recipe, EXACT, tables=tables)
    made = engine.task.examples(recipe.stages[0], CASES[:12])
    losses = [engine.step([made.batch([number % 8])])[0] for number in range(48)]
    assert np.mean(losses[-8:]) < 0.9 * np.mean(losses[:8])
    norms = [p.square().mean(dim=tuple(range(1, p.ndim))) for p in engine.network.parameters() if p.ndim > 1]
    assert all(torch.allclose(norm, torch.ones_like(norm), atol=1e-4) for norm in norms)


class Broken(Exception):
    pass


def test_a_level_that_breaks_ends_with_the_same_weights(tmp_path):
    def break_at_three(iteration, loss):
        if iteration == 3:
            raise Broken

    recipe = small_recipe("coarse")
    train(recipe, CASES, tmp_path / "whole", execution=EXACT)
    (tmp_path / "broken").mkdir()
    shutil.copy(tmp_path / "whole" / TABLES, tmp_path / "broken")
    with pytest.raises(Broken):
        train(recipe, CASES, tmp_path / "broken", execution=EXACT, report=break_at_three)
    train(recipe, CASES, tmp_path / "broken", execution=EXACT)
    states = [Checkpoints(tmp_path / what / "coarse" / "checkpoints").load(print) for what in ("whole", "broken")]
    assert states[0]["iteration"] == 4
    for part in ("network", "ema"):
        assert all(torch.equal(tensor, states[1][part][name]) for name, tensor in states[0][part].items()), part
    moments = [state["optimiser"]["state"] for state in states]
    assert all(torch.equal(m["exp_avg"], moments[1][n]["exp_avg"]) for n, m in moments[0].items())


def test_validation_brains_are_never_trained_on(tmp_path):
    history = train(small_recipe("coarse"), CASES, tmp_path, execution=EXACT)
    assert "kept" not in history.data["cases"] and history.data["held_out"] == ["kept"]
    assert all(row["held_out"] is not None for row in history.losses)
    assert "kept" not in read_tables(tmp_path / TABLES).cases
    with pytest.raises(MedDPMError, match="kept is for validation"):
        cascade_tables(for_brains(small_recipe("coarse"), 13), CASES, tmp_path / "other" / TABLES)
    later = [*CASES[:12], replace(CASES[12], name="kept_0001"), replace(CASES[12], name="kept2")]
    with pytest.raises(MedDPMError, match="computed from other cases"):  # kept2 is another name
        train(small_recipe("middle"), later, tmp_path, execution=EXACT)
    with pytest.raises(MedDPMError, match="every case is for validation"):
        train(small_recipe("middle"), CASES[12:], tmp_path / "none", execution=EXACT)
    # A run that was made before a name was added must not become a model.
    (tmp_path / "recipe.toml").write_text(recipe_toml(small_recipe(None, 'validation=["case3"]')))
    with pytest.raises(MedDPMError, match="case3 is for validation"):
        export_run(tmp_path, tmp_path / "out.safetensors")


def test_tables_that_are_damaged_or_of_others_are_refused(tmp_path, tables):
    recipe = for_brains(small_recipe("coarse"), 12)
    path = tmp_path / TABLES
    path.write_bytes(b"nothing")
    with pytest.raises(MedDPMError, match="is damaged"):
        cascade_tables(recipe, CASES[:12], path)
    path.unlink()
    made = cascade_tables(recipe, CASES[:12], path)
    for name, tensor in tables.known.items():
        torch.testing.assert_close(made.known[name], tensor)
    with pytest.raises(MedDPMError, match="other cases"):
        cascade_tables(recipe, CASES[1:12], path)


def test_prepared_trained_exported_and_generated(tmp_path):
    """From folders of cases to a brain, by commands."""
    invoke = CliRunner().invoke
    phantoms.write_brats(tmp_path / "source", range(6))
    k, j, i = np.indices(phantoms.SHAPE)
    radius = np.sqrt(((k - 7.5) / 7) ** 2 + ((j - 9.5) / 9) ** 2 + ((i - 11.5) / 11) ** 2)
    structures = np.select([radius < 0.3, radius < 0.6, radius < 0.9], [3, 1, 2], 0).astype(np.uint8)
    for n in range(6):
        phantoms.save(tmp_path / "anatomies" / f"case{n}_anatomy.nii.gz", structures)
    prepare = ["prepare", tmp_path / "source", "--scheme", "anatomy", "--anatomy", tmp_path / "anatomies"]
    done = invoke(app, list(map(str, [*prepare, "--workers", "1", "--out", tmp_path / "data"])))
    assert done.exit_code == 0, done.output
    about = tmp_path / "data" / "dataset.json"
    about.write_text(json.dumps({**json.loads(about.read_text()), "name": "balls", "license": "CC0"}))
    recipe = small_recipe(None, 'modalities=["t1", "t1ce", "t2", "flair"]', 'validation=["case5"]')
    (tmp_path / "small.toml").write_text(recipe_toml(recipe))
    run, out = tmp_path / "run", tmp_path / "small.safetensors"
    common = ["train", str(tmp_path / "data"), "--recipe", str(tmp_path / "small.toml"), "--run", str(run)]
    exact = ["--device", "cpu", "--precision", "float32"]
    assert invoke(app, [*common, "--level", "coarse", *exact]).exit_code == 0
    refused = invoke(app, ["models", "export", str(run), str(out)])
    assert refused.exit_code == 2 and "level middle" in refused.output and "--level middle" in refused.output
    done = invoke(app, [*common, *exact])
    assert done.exit_code == 0, done.output
    exported = invoke(app, ["models", "export", str(run), str(out)])
    assert exported.exit_code == 0, exported.output
    card, state = read_bundle(out)
    assert card.training_data[0] == {
        "name": "balls: case0, case1, case2, case3, case4", "license": "CC0", "cases": 5,
    }  # fmt: skip
    assert (
        "Level middle: trained by the recipe brain-cascade for 3 iterations, on 5 cases (1 more held out)"
        in card.training
    )
    known = read_tables(run / TABLES).known
    assert all(torch.allclose(state[name].float(), tensor, atol=2e-2) for name, tensor in known.items())
    mask = read_mask(tmp_path / "data" / "labelsTr" / "case5.nii.gz", ANATOMY, numbering=ANATOMY.own_numbering)
    made = generate(load_model(out), mask, seed=1, device="cpu", precision="float32", steps=2)
    assert set(made) == {"t1", "t1ce", "t2", "flair"}
    for volume in made.values():
        brain = volume.array[volume.array > volume.array.min()]
        assert np.isfinite(volume.array).all() and brain.size > 1000 and brain.std() > 0.01
    other = [*common[:-1], str(tmp_path / "other"), "--level", "fine", "--init", str(out), *exact]
    again = invoke(app, other)
    assert again.exit_code == 0, again.output
    assert json.loads((tmp_path / "other" / "fine" / "run.json").read_text())["init"]["fresh"] == 0
    whole = invoke(app, [*common, "--level", "none"])
    assert whole.exit_code == 2 and "use one of coarse, middle, fine" in whole.output
