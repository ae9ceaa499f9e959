"""A run from its first iteration to its last, in one process: its folder, its faults, and what becomes of it."""

from __future__ import annotations

import copy
import json
import os
import shutil
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import tomli_w
import torch

from MedDPMLib.benchmark import training as benchmark
from MedDPMLib.benchmark.training import measure_training
from MedDPMLib.data import Case
from MedDPMLib.errors import MedDPMError, OutOfMemory
from MedDPMLib.models.bundle import read_bundle
from MedDPMLib.recipes.recipe import load_recipe, recipe_changes, recipe_values
from MedDPMLib.runtime.device import choose_execution
from MedDPMLib.train import memory_estimate
from MedDPMLib.train import run as run_module
from MedDPMLib.train import task as task_module
from MedDPMLib.train.checkpoints import Checkpoints
from MedDPMLib.train.examples import Examples
from MedDPMLib.train.export import export_run, run_card
from MedDPMLib.train.folder import RunFolder, RunHistory, history_fields, run_page
from MedDPMLib.train.memory_estimate import check_memory, needs
from MedDPMLib.train.run import train
from MedDPMLib.train.stopping import Stopped, StopRequest

EXACT = choose_execution("cpu", "float32")
STILL = [f"augmentation.{name}=0" for name in "flip rotation scaling translation elastic gamma bias".split()]


def small_recipe(*changes: str):
    return load_recipe(
        "brats-compact",
        [
            'modalities=["t1", "t2"]',
            "network.channels=[8, 16]",
            "stages=[{size=[16, 16, 8], iterations=3, batch=1},"
            " {size=[16, 16, 16], patch=[16, 8, 8], iterations=4, batch=1}]",
            "training.warm_up=2",
            "monitor={checkpoint_every=2, keep=2, montage_every=0}",
            *STILL,
            *changes,
        ],
    )


def ball(name: str, shift: int = 0) -> Case:
    """A brain with a tumor: the labels decide the intensities."""
    k, j, i = np.mgrid[:16, :16, :16] - 7.5
    labels = np.where(i**2 + j**2 + k**2 < 49, 4, 0).astype(np.uint8)
    labels[6:11, 4 + shift : 8 + shift, 6:10] = 2
    labels[7:9, 5 + shift : 7 + shift, 7:9] = 3
    levels = np.array([[-1, 0, 0.8, 0.3, -0.3], [-1, 0.5, -0.5, 1, 0.1]], np.float32)
    return Case(name, torch.from_numpy(levels[:, labels]), torch.from_numpy(labels), (12.0, 12.0, 9.0))


CASES = [ball("one"), ball("two", 1), ball("three", 3)]


def run(recipe, folder, cases=CASES, **options):
    losses, reported = {}, []
    history = train(recipe, cases, folder, execution=EXACT, report=losses.__setitem__, tell=reported.append, **options)
    return history, losses, reported


def newest(folder) -> dict:
    return newest_in(Checkpoints(folder / "checkpoints"))


def newest_in(checkpoints: Checkpoints) -> dict:
    return checkpoints.load(lambda sentence: None)


def same(one, other) -> bool:
    if isinstance(one, torch.Tensor):
        return torch.equal(one, other)
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same(value, other[name]) for name, value in one.items())
    return one == other


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """An uninterrupted run."""
    folder = tmp_path_factory.mktemp("whole")
    return folder, *run(small_recipe(), folder)


class Broken(Exception):
    pass


def test_a_run_that_breaks_anywhere_ends_with_the_same_weights(whole, tmp_path):
    def break_at(last):
        def report(iteration, loss):
            if iteration == last:
                raise Broken

        return report

    for last in (3, 5):
        with pytest.raises(Broken):
            train(small_recipe(), CASES, tmp_path, execution=EXACT, report=break_at(last))
    history, losses, reported = run(small_recipe(), tmp_path)
    assert list(losses) == [5, 6, 7]  # from the checkpoint of iteration 4
    assert any("after iteration 4" in sentence for sentence in reported)
    mine, its = newest(tmp_path), newest(whole[0])
    for part in ("network", "ema", "optimiser", "random"):
        assert same(mine[part], its[part]), part
    assert history.losses == whole[1].losses and history.best == whole[1].best


def test_the_folder_says_what_the_run_is(whole):
    folder, history, losses, _ = whole
    assert list(losses) == list(range(1, 8))
    assert sorted(path.name for path in folder.iterdir()) == [
        "README.md", "checkpoints", "recipe.toml", "run.json", "tensorboard",
    ]  # fmt: skip
    names = sorted(path.name for path in (folder / "checkpoints").iterdir())
    assert names == ["best.pt", "iteration-000000006.pt", "iteration-000000007.pt"]
    assert load_recipe(folder / "recipe.toml") == small_recipe()
    said = json.loads((folder / "run.json").read_text())
    assert said["iteration"] == 7 and said["data"]["cases"] == ["one", "two", "three"] and said["seconds"] > 0
    rows = [(row["iteration"], row["loss"]) for row in said["losses"]]
    values = list(losses.values())
    expected = [np.mean(part) for part in (values[0:2], values[2:4], values[4:6], values[6:7])]
    assert [n for n, _ in rows] == [2, 4, 6, 7] and np.allclose([loss for _, loss in rows], expected)
    readme = (folder / "README.md").read_text()
    for words in ("brats-compact", "Iteration 7 of 7", "finished", "3 training cases", "float32", "torch"):
        assert words in readme
    assert history.best["score"] == pytest.approx(min(expected))


def test_scalars_can_be_read_with_tensorboard(whole):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    folder, _, losses, _ = whole
    events = EventAccumulator(str(folder / "tensorboard"))
    events.Reload()
    assert {event.step: pytest.approx(event.value) for event in events.Scalars("loss")} == losses
    assert set(events.Tags()["scalars"]) == {"loss", "learning rate", "gradient norm", "iterations per second"}


def test_a_finished_run_stays_as_it_is(whole):
    before = newest(whole[0])
    _, losses, _ = run(small_recipe(), whole[0])
    assert not losses and same(newest(whole[0])["ema"], before["ema"])


def test_a_damaged_checkpoint_falls_back_to_the_one_before(tmp_path):
    recipe = small_recipe("stages=[{size=[16, 16, 8], iterations=4, batch=1}]")
    run(recipe, tmp_path)
    checkpoints = Checkpoints(tmp_path / "checkpoints")
    expected = newest(tmp_path)
    path = checkpoints.paths()[0]
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 0xFF
    path.write_bytes(content)
    _, losses, reported = run(recipe, tmp_path)
    assert list(losses) == [3, 4] and any(path.name in sentence and "damaged" in sentence for sentence in reported)
    assert same(newest(tmp_path)["ema"], expected["ema"])
    for path in checkpoints.paths():
        path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(MedDPMError, match="every checkpoint"):
        run(recipe, tmp_path)


# What another version of MedDPM wrote -------------------------------------------------------------------


def fields_of(table: dict, *above: str) -> list[tuple[str, ...]]:
    """The paths of all fields, those of tables in tables and in the first row of a list too."""
    found = []
    for name, value in table.items():
        path = (*above, name)
        found.append(path)
        if isinstance(value, list) and value and isinstance(value[0], dict):
            value, path = value[0], (*path, 0)
        if isinstance(value, dict):
            found += fields_of(value, *path)
    return found


def removed(table, name) -> None:
    del table[name]


def renamed(table, name) -> None:
    table[f"new_{name}"] = table.pop(name)


def junk(value):
    def replaced(table, name) -> None:
        table[name] = value

    return replaced


CHANGES = [removed, renamed, *map(junk, (None, "text", -1.5, [{}], {"x": 1}))]


def changed(table: dict, path: tuple, change) -> dict:
    """A copy of ``table`` with the field at ``path`` changed."""
    whole = copy.deepcopy(table)
    place = whole
    for name in path[:-1]:
        place = place[name]
    change(place, path[-1])
    return whole


def every_change(table: dict, changes=CHANGES):
    """``table`` with each of its fields changed in each way, and what was done."""
    for path in fields_of(table):
        for change in changes:
            yield path, change, changed(table, path, change)


def begun_run(whole, folder):
    """The run of ``whole`` as it was after six of its seven iterations, in ``folder``, and the checkpoint's path."""
    shutil.copytree(whole[0], folder, ignore=shutil.ignore_patterns("iteration-000000007.pt", "tensorboard"))
    return folder, folder / "checkpoints" / "iteration-000000006.pt"


def test_a_run_whose_recipe_has_former_names_resumes_as_if_nothing_had_changed(whole, tmp_path):
    folder, _ = begun_run(whole, tmp_path / "run")
    path = folder / "recipe.toml"
    text = path.read_text(encoding="utf-8")
    for current, former in (
        ("min_lr_ratio", "final_share"), ("gradient_accumulation_steps", "accumulate"),
        ("max_grad_norm", "gradient_norm"), ("optimizer", "optimiser"), ("tumor_weight", "tumour_weight"),
    ):  # fmt: skip
        assert f"\n{current} = " in text
        text = text.replace(f"\n{current} = ", f"\n{former} = ")
    path.write_text(text, encoding="utf-8")
    assert RunFolder(folder).recipe() == small_recipe()
    history, losses, _ = run(RunFolder(folder).recipe(), folder)
    assert list(losses) == [7] and history.changes == []
    assert same(newest(folder)["ema"], newest(whole[0])["ema"]) and path.read_text(encoding="utf-8") != text


def test_a_history_of_another_version_is_taken_as_far_as_it_can_be(whole):
    """Whatever becomes of one of its fields: the others stay, and the page and the card can be written."""
    folder, history = whole[:2]
    fields = vars(history)
    assert history_fields(fields) == fields
    paths = fields_of(fields)
    assert {("seconds",), ("data", "cases"), ("losses", 0, "loss"), ("best", "score")} <= set(paths)
    for path, change, values in every_change(fields):
        reported: list[str] = []
        found = history_fields(values, reported.append)
        others = {name: value for name, value in fields.items() if name != path[0]}
        assert others == {name: value for name, value in found.items() if name != path[0]}
        if change is renamed and len(path) == 1:
            assert reported == [f'"new_{path[0]}" in the history of the run is unknown to this version and is dropped']
        elif found == others and change is not removed:
            (sentence,) = reported
            assert f'"{path[0]}"' in sentence
        again = RunHistory(**{**found, "data": history.data, "machine": history.machine})
        assert "A training run" in run_page(small_recipe(), again, folder)
        assert "Trained by the recipe" in run_card(small_recipe(), again, 7).training


@pytest.mark.parametrize("change", [removed, renamed])
def test_a_run_with_a_history_of_another_version_ends_with_the_same_weights(whole, tmp_path, change):
    folder, checkpoint = begun_run(whole, tmp_path / "run")
    state = torch.load(checkpoint, weights_only=True)
    expected = newest(whole[0])
    for name in ("data", "iteration", "losses", "best", "changes"):
        torch.save({**state, "story": changed(state["story"], (name,), change)}, checkpoint)
        history, losses, reported = run(small_recipe(), folder)
        assert list(losses) == [7] and same(newest(folder)["ema"], expected["ema"])
        assert history.iteration == 7 and history.data == whole[1].data and RunFolder(folder).history() == history
        assert any(f'"new_{name}"' in sentence for sentence in reported) == (change is renamed)
        (folder / "checkpoints" / "iteration-000000007.pt").unlink()
    torch.save({**state, "story": None}, checkpoint)
    assert list(run(small_recipe(), folder)[1]) == [7]


def test_a_history_without_later_fields_is_taken_up_whole(whole, tmp_path):
    """As older versions wrote it: nothing to say about it."""
    folder, checkpoint = begun_run(whole, tmp_path / "run")
    state = torch.load(checkpoint, weights_only=True)
    del state["story"]["teacher"], state["story"]["changes"]
    torch.save(state, checkpoint)
    history, _, reported = run(small_recipe(), folder)
    assert reported == ["resuming after iteration 6"]
    assert (history.losses, history.best, history.started) == (whole[1].losses, whole[1].best, whole[1].started)


def test_a_checkpoint_of_another_version_is_a_sentence(whole, tmp_path):
    folder, checkpoint = begun_run(whole, tmp_path / "run")
    state = torch.load(checkpoint, weights_only=True)
    whole_parts = {name: state[name] for name in state if name != "story"}
    ours = {name: {} if name in ("network", "ema", "optimiser") else part for name, part in whole_parts.items()}
    for path in fields_of(ours):
        for change in (removed, renamed, junk("text")):
            torch.save(changed(state, path, change), checkpoint)
            try:
                _, losses, _ = run(small_recipe(), folder)
            except MedDPMError as error:
                assert str(folder) in str(error) and "\n" not in str(error)
                assert path != ("losses",) and not (folder / "checkpoints" / "iteration-000000007.pt").exists()
            else:
                assert path in (("losses",), ("scaler",)) and list(losses) == [7]
                (folder / "checkpoints" / "iteration-000000007.pt").unlink()


def test_a_run_json_of_another_version_is_read_or_is_a_sentence(whole, tmp_path):
    """The card says what the model was trained on: without that, the run has to be resumed first, which writes it."""
    folder, _ = begun_run(whole, tmp_path / "run")
    said = json.loads((folder / "run.json").read_text())
    for path, _, values in every_change(said):
        (folder / "run.json").write_text(json.dumps(values))
        try:
            history = RunFolder(folder).history()
        except MedDPMError as error:
            assert path[0] in ("data", "machine")
            assert f'"{path[0]}"' in str(error) and "Resume the run" in str(error)
        else:
            assert "Trained by the recipe" in run_card(small_recipe(), history, 6).training
    out = tmp_path / "model.safetensors"
    for text in ("", "[]", "null", "{", '"text"', "[" * 100_000, json.dumps(changed(said, ("data",), renamed))):
        (folder / "run.json").write_text(text)
        with pytest.raises(MedDPMError, match="run.json"):
            export_run(folder, out)
        assert not out.exists()
    run(small_recipe(), folder)
    export_run(folder, out)
    assert read_bundle(out)[0].training_data[0]["cases"] == 3


def test_a_recipe_of_another_version_is_a_sentence(tmp_path):
    """Or does not matter."""
    recipe, path = small_recipe(), tmp_path / "recipe.toml"
    refused = 0
    for _, _, values in every_change(recipe_values(recipe), [removed, renamed]):
        path.write_text(tomli_w.dumps(values))
        try:
            recipe_changes(RunFolder(tmp_path).recipe(), recipe)
        except MedDPMError as error:
            refused += 1
            assert (str(path) in str(error) or "started with another model" in str(error)) and "\n" not in str(error)
    assert refused > 50


def test_what_a_killed_process_left_is_cleared(tmp_path):
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints" / ".1234abcd.pt").write_bytes(b"half")
    run(small_recipe("stages=[{size=[16, 16, 8], iterations=1, batch=1}]"), tmp_path)
    assert not list((tmp_path / "checkpoints").glob(".*"))


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_writes_a_checkpoint_and_ends(tmp_path, number):
    with StopRequest() as stop:

        def report(iteration, loss):
            if iteration == 1:
                os.kill(os.getpid(), number)

        with pytest.raises(Stopped) as stopped:
            train(small_recipe(), CASES, tmp_path, execution=EXACT, report=report, stop=stop)
    assert stopped.value.signal == number and newest(tmp_path)["iteration"] == stopped.value.iteration == 2
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_a_loss_that_is_not_finite_stops_the_run_and_names_the_case(tmp_path):
    broken = replace(CASES[0], name="broken", image=CASES[0].image.clone())
    broken.image[0, 8, 8, 8] = float("nan")
    with pytest.raises(MedDPMError, match=r"iteration 1 .*broken"):
        run(small_recipe(), tmp_path, [broken])


def test_training_learns(tmp_path):
    """The labels decide the image: after a few dozen iterations they do so whatever the noise."""
    recipe = small_recipe(
        "stages=[{size=[16, 16, 16], iterations=60, batch=1}]", "training.learning_rate=5e-3",
        "training.min_lr_ratio=1", "training.high_noise=4", "training.sigma_floor=1",
    )  # fmt: skip
    _, losses, _ = run(recipe, tmp_path, [ball("one")])
    values = list(losses.values())
    assert np.mean(values[-10:]) < 0.4 * np.mean(values[:5])


def test_held_out_cases_are_measured_and_decide_what_is_best(tmp_path, monkeypatch):
    made = []
    monkeypatch.setattr(task_module, "Examples", lambda *what: made.append(what) or Examples(*what))
    recipe = small_recipe("training.held_out=0.3", "stages=[{size=[16, 16, 8], iterations=4, batch=1}]")
    history, _, _ = run(recipe, tmp_path)
    assert len(history.data["cases"]) == 2 and len(history.data["held_out"]) == 1
    scores = {row["iteration"]: row["held_out"] for row in history.losses}
    assert history.best == {"iteration": min(scores, key=scores.get), "score": min(scores.values())}
    assert torch.load(tmp_path / "checkpoints" / "best.pt", weights_only=True)["score"] == min(scores.values())
    assert len(made) == 2, "to learn from and to measure on, once for all checkpoints"


def test_a_recipe_may_be_changed_on_the_way_and_that_is_reported(tmp_path):
    run(small_recipe(), tmp_path)
    history, losses, reported = run(small_recipe("stages.1.iterations=5"), tmp_path)
    assert list(losses) == [8]
    assert any("stages.1.iterations 4 becomes 5" in sentence for sentence in reported)
    assert history.changes == ["from iteration 8 on: stages.1.iterations 4 becomes 5"]
    assert history.changes[0] in (tmp_path / "README.md").read_text()
    with pytest.raises(MedDPMError, match="another model"):
        run(small_recipe("network.channels=[16, 16]"), tmp_path)


def test_a_run_without_a_checkpoint_may_begin_with_another_model(tmp_path):
    broken = replace(CASES[0], image=torch.full_like(CASES[0].image, float("nan")))
    with pytest.raises(MedDPMError, match="not finite"):
        run(small_recipe(), tmp_path, [broken])
    history, losses, _ = run(small_recipe("network.channels=[16, 16]"), tmp_path)
    assert len(losses) == 7 and not history.changes
    assert load_recipe(tmp_path / "recipe.toml").network["channels"] == [16, 16]


def test_a_picture_that_fails_costs_neither_run_nor_checkpoint(tmp_path, monkeypatch):
    there = []

    def fail(*_):
        there.append(newest(tmp_path)["iteration"])
        raise RuntimeError("no kernel for this")

    monkeypatch.setattr(run_module.Monitor, "montage", fail)
    _, losses, reported = run(small_recipe("monitor.montage_every=2"), tmp_path)
    assert len(losses) == 7 and there == [2, 4, 6, 7]
    assert sum("no montage" in sentence and "no kernel for this" in sentence for sentence in reported) == 4


def test_who_asks_a_run_to_end_does_not_wait_for_a_picture(tmp_path, monkeypatch):
    drawn = []
    monkeypatch.setattr(run_module.Monitor, "montage", lambda *_: drawn.append(1))
    stop = StopRequest()
    stop.signal = signal.SIGTERM
    with pytest.raises(Stopped):
        run(small_recipe("monitor.montage_every=1"), tmp_path, stop=stop)
    assert newest(tmp_path)["iteration"] == 1 and not drawn


def test_a_checkpoint_on_a_full_disk_is_reported_and_the_last_one_stays(tmp_path):
    resource = pytest.importorskip("resource")
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save({"iteration": 1, "ema": {"w": torch.zeros(10)}})
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, limits[1]))
    try:
        with pytest.raises(MedDPMError, match="iteration-000000002.pt cannot be written .* free some space"):
            checkpoints.save({"iteration": 2, "ema": {"w": torch.zeros(100_000)}})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert newest_in(checkpoints)["iteration"] == 1 and len(list(tmp_path.iterdir())) == 1


def test_a_picture_shows_what_the_model_makes(tmp_path):
    from PIL import Image

    recipe = small_recipe("stages=[{size=[16, 16, 16], iterations=2, batch=1}]", "monitor.montage_every=2")
    # A case on the dataset's own grid has its place there.
    size = recipe.grid.size
    large = torch.nn.functional.interpolate(CASES[0].labels[None, None].float(), size[::-1])[0, 0].to(torch.uint8)
    case = Case("large", torch.zeros((2, *size[::-1]), dtype=torch.float16), large, (1.0, 1.0, 1.0))
    _, _, reported = run(recipe, tmp_path, [case])
    assert not reported
    with Image.open(tmp_path / "montages" / "iteration-000000002.png") as picture:
        assert min(picture.size) > 100


# Beginning with other weights ------------------------------------------------------------------------


def test_a_run_begins_with_a_model_as_far_as_it_fits(whole, tmp_path):
    bundle = tmp_path / "first.safetensors"
    card = export_run(whole[0], bundle)
    assert "7 iterations" in card.training and "3 cases" in card.training and card.training_data[0]["cases"] == 3
    _, weights = read_bundle(bundle)
    started = {}

    class Ended(Exception):
        pass

    def see(session):
        started.update(session.engine.network.state_dict())
        raise Ended

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(run_module._Session, "go_on", lambda session, *_: see(session))
        with pytest.raises(Ended):
            run(small_recipe(), tmp_path / "same", init=str(bundle))
        for name, tensor in started.items():
            assert torch.equal(tensor, weights[name].float()), name
        reported = []
        other = small_recipe('scheme="anatomy"')
        with pytest.raises(Ended):
            train(other, CASES, tmp_path / "other", execution=EXACT, init=str(bundle), tell=reported.append)
    assert any("start from scratch" in sentence for sentence in reported)
    assert any("label scheme brats instead of anatomy" in sentence for sentence in reported)
    equal = [n for n in weights if weights[n].shape == started[n].shape and torch.equal(weights[n].float(), started[n])]
    assert 0.5 * len(weights) < len(equal) < len(weights)
    with pytest.raises(MedDPMError, match="no tensor"):
        unet = 'network={kind="unet", base=32, multipliers=[1, 2], blocks=1, attention=[]}'
        run(small_recipe(unet), tmp_path / "unet", init=str(bundle))
    with pytest.raises(MedDPMError, match="is a run, not a model: export it first"):
        run(small_recipe(), tmp_path / "run", init=str(whole[0]))


def test_an_unfinished_run_becomes_a_model_that_says_so(tmp_path):
    class Enough(Exception):
        pass

    def report(iteration, loss):
        if iteration == 3:
            raise Enough

    with pytest.raises(Enough):
        train(small_recipe(), CASES, tmp_path / "run", execution=EXACT, report=report, data={"name": "balls"})
    card = export_run(tmp_path / "run", tmp_path / "model.safetensors")
    assert "2 iterations of 7: the run is not finished" in card.training
    assert card.training_data[0]["name"] == "balls: one, two, three"
    assert export_run(tmp_path / "run", tmp_path / "best.safetensors", best=True).name == card.name
    with pytest.raises(MedDPMError, match="cannot be read"):
        export_run(tmp_path, tmp_path / "none.safetensors")


# What does not fit -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "cases", "says"),
    [
        (["stages.0.size=[18, 16, 8]"], CASES, "stages.0.size is .18, 16, 8.: the network needs .* multiples of 4"),
        (["stages.1.patch=[16, 8, 6]"], CASES, "stages.1.patch is"),
        (["schedule.name=cubic"], CASES, "cubic"),
        (["network.channels=[7]"], CASES, "7"),
        ([], [], "no cases"),
        ([], [replace(CASES[0], spacing=(1.0, 1.0, 1.0))], "16 x 16 x 16 mm.*192 x 192 x 144 mm"),
        (["training.held_out=0.5"], CASES[:1], "held out"),
    ],
)
def test_what_does_not_fit_is_reported_before_the_first_step(tmp_path, changes, cases, says):
    with pytest.raises(MedDPMError, match=says):
        run(small_recipe(*changes), tmp_path, cases)


def test_missing_memory_is_reported_with_what_would_fit(monkeypatch):
    recipe = load_recipe("brats")
    asked = []

    def fake_needs(recipe, stages, device, precision, checkpointing):
        asked.append((precision, checkpointing))
        size = (80 if precision == "float32" else 40) // (3 if checkpointing else 1)
        return [memory_estimate.Need(stages[0].example_size, 1, precision, checkpointing, size * 10**9)]

    monkeypatch.setattr(memory_estimate, "needs", fake_needs)
    monkeypatch.setattr(memory_estimate, "free_memory", lambda device: 30 * 10**9)

    class Network(torch.nn.Module):
        values_per_voxel = 660
        side_multiple = 16

    with pytest.raises(OutOfMemory, match=r"80.0 GB .*192 x 192 x 144 in float32;.*13.0 GB.*bfloat16 with --checkpoi"):
        check_memory(recipe, EXACT, False, Network())
    assert ("float32", False) in asked
    asked.clear()
    small = replace(recipe, stages=(replace(recipe.stages[0], patch=(32, 32, 32)),))
    check_memory(small, EXACT, False, Network())
    assert not asked  # what is far from filling the memory is not measured
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "8")  # which is another matter where eight processes share the memory
    with pytest.raises(OutOfMemory, match="take patches of about [0-9]+ voxels"):
        check_memory(replace(recipe, stages=(replace(recipe.stages[0], patch=(96, 96, 96)),)), EXACT, False, Network())
    assert asked


@pytest.mark.parametrize("measurable", [set(), {("bfloat16", True)}])
def test_an_alternative_that_cannot_be_measured_is_left_out(monkeypatch, measurable):
    """In bfloat16 a gradient may not be finite on random data; how much is missing has to be said all the same."""

    def fake_needs(recipe, stages, device, precision, checkpointing):
        if (precision, checkpointing) not in {("float32", False), *measurable}:
            raise MedDPMError("the measurement failed: the gradient of iteration 2 is not finite")
        size = 80 if precision == "float32" else 13
        return [memory_estimate.Need(stages[0].example_size, 1, precision, checkpointing, size * 10**9)]

    monkeypatch.setattr(memory_estimate, "needs", fake_needs)
    monkeypatch.setattr(memory_estimate, "free_memory", lambda device: 30 * 10**9)

    class Network(torch.nn.Module):
        values_per_voxel = 660
        side_multiple = 16

    says = (
        "what fits: 13.0 GB .* bfloat16 with --checkpointing" if measurable else "take patches of about [0-9]+ voxels"
    )
    with pytest.raises(OutOfMemory, match=f"80.0 GB for .* in float32; {says}"):
        check_memory(load_recipe("brats"), EXACT, False, Network())
    table = list(memory_estimate.memory_table(load_recipe("brats"), torch.device("cpu")))
    assert {(need.precision, need.checkpointing) for need in table} == {("float32", False), *measurable}


def test_the_peak_of_the_process_that_measures_is_not_that_of_the_one_that_asked():
    """A Python of 1.5 GB asks what a network of a few thousand weights takes on 4096 voxels."""
    code = f"""
import sys
sys.path.insert(0, {str(Path(run_module.__file__).parents[2])!r})
from MedDPMLib.recipes.recipe import load_recipe, recipe_values
from MedDPMLib.train.iteration_cost import Job, measure
held = b"x" * 1_500_000_000
values = recipe_values(load_recipe("brats-compact", ["network.channels=[8, 16]"]))
(found,) = measure(Job(values, [(16, 16, 16)], 1, 1, "cpu", "float32", False, baseline=False))
print(found.peak)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert 10**5 < int(done.stdout) < 500_000_000


def test_what_training_takes_is_measured_in_its_own_process(monkeypatch):
    """The straight line through two small grids, against a grid of its own; and both forms in the benchmark."""
    monkeypatch.setattr(benchmark, "can_compile", lambda device: False)  # a minute, and tested on its own
    recipe = small_recipe("network.channels=[16, 32]")
    stage = replace(recipe.stages[0], size=(64, 64, 32), patch=None)
    (need,) = needs(recipe, [stage], torch.device("cpu"), "float32", False)
    rows = measure_training(recipe, grid=(64, 64, 32), iterations=1, device="cpu")
    assert [row.configuration for row in rows] == ["baseline", "optimized", "optimized, --checkpointing"] and rows[
        0
    ].speed_up == 1
    assert all(row.iterations_per_second > 0 and row.peak > 10**6 for row in rows)
    assert 0.5 < need.bytes / rows[0].peak < 2
    with pytest.raises(MedDPMError, match="multiples of 4"):
        measure_training(recipe, grid=(30, 64, 64))
