"""How is a model trained, from the first iteration to the last, with interruptions?"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from torch.utils.data import Dataset

from MedDPMLib.data import Case
from MedDPMLib.errors import MedDPMError
from MedDPMLib.models.card import Card
from MedDPMLib.models.store import ModelStore, load_card_and_state
from MedDPMLib.recipes.recipe import Recipe, recipe_card, recipe_changes
from MedDPMLib.recipes.segmenter import SegmenterRecipe
from MedDPMLib.runtime.device import Execution
from MedDPMLib.train.convolution_check import check_convolution
from MedDPMLib.train.engine import Engine
from MedDPMLib.train.examples import (
    batch_numbers,
    made_ahead,
    remaining_stages,
    split_cases,
)
from MedDPMLib.train.folder import RunFolder, RunHistory, history_fields, training_machine
from MedDPMLib.train.memory_estimate import check_memory, memory_explained
from MedDPMLib.train.monitor import Monitor
from MedDPMLib.train.stopping import Stopped, StopRequest
from MedDPMLib.train.stored_tables import TABLES, cascade_tables, for_brains
from MedDPMLib.train.task import BatchesByNumber
from MedDPMLib.validation import list_of, number

#: What a checkpoint calls the history.
_HISTORY = "story"

#: What a checkpoint has to hold for a run to resume: what :meth:`MedDPMLib.train.engine.Engine.state` gives.
_NEEDED = ("iteration", "network", "ema", "optimiser", "scaler", "random")


def train(
    recipe: Recipe | SegmenterRecipe,
    cases: Dataset | Sequence[Case],
    run: Path,
    *,
    execution: Execution,
    data: Mapping[str, Any] | None = None,
    init: str | None = None,
    checkpointing: bool = False,
    compile: bool = False,
    shard: bool = False,
    workers: int = 1,
    report: Callable[[int, float], None] = lambda iteration, loss: None,
    tell: Callable[[str], None] = lambda sentence: None,
    stop: StopRequest | None = None,
) -> RunHistory:
    """Trains with ``recipe`` on ``cases`` in the folder ``run``, or resumes from its newest checkpoint.

    A level of a cascade is trained in a folder of its own in ``run``, beside the tables that all levels share.

    Args:
        execution: where, and in which precision forward and backward run.
        data: ``name`` and ``license`` of the data, for the run's README and the model's card.
        init: the model (a name or file) from whose weights a new run starts, as far as they fit.
        checkpointing: less memory for a third more time, see :func:`MedDPMLib.train.blocks.recompute_activations`.
        compile: fuses the network's kernels, which takes a minute and a C++ compiler.
        shard: divides weights, average and optimizer among the processes, see :mod:`MedDPMLib.train.sharding`.
        workers: number of threads that prepare examples in advance.
        report: called with iteration (from 1) and loss after each one, only in the main process.
        tell: called with messages for the user.
        stop: once it has a signal, a checkpoint is written and :class:`Stopped` raised.

    Raises :class:`MedDPMError` for arguments that do not fit together, before the first step, and for a loss that is
    not finite, with the iteration and the cases.
    """
    accelerator = Accelerator(cpu=execution.device.type == "cpu")
    if accelerator.num_processes > 1:
        execution = replace(execution, device=accelerator.device)
    if not accelerator.is_main_process:
        report, tell = lambda iteration, loss: None, lambda sentence: None
    check_data(recipe, cases)
    training = recipe.training
    training_cases, held_out = split_cases(cases, training.held_out, training.seed, recipe.validation)
    if not len(training_cases):
        raise MedDPMError(f"every case is for validation by the recipe {recipe.name}: prepare others to train on")
    tables = None
    if isinstance(recipe, Recipe) and recipe.level:
        recipe = for_brains(recipe, len(training_cases))
        with accelerator.main_process_first():
            tables = cascade_tables(recipe, training_cases, run / TABLES, tell)
        run = run / recipe.trained_level.name
    with memory_explained(recipe, execution, checkpointing):
        engine = Engine(
            recipe, execution, accelerator=accelerator, tables=tables, checkpointing=checkpointing, compile=compile,
            shard=shard,
        )  # fmt: skip
        _check_grids(recipe, engine)
        session = _Session(recipe, (training_cases, held_out), RunFolder(run), engine, data or {}, tell)
        session.begin(init)
        if engine.iteration < recipe.iterations and not shard:  # what shards take is not measured
            check_memory(recipe, execution, checkpointing, engine.network)
        try:
            session.go_on(workers, report, stop or StopRequest())
        except Stopped:
            _leave(engine)
            raise
        finally:
            session.close()
        _leave(engine)
    return session.history


def _leave(engine: Engine) -> None:
    """Leaves the process group, as all processes do at the end; one that fails alone must exit without waiting."""
    if engine.processes > 1:
        torch.distributed.destroy_process_group()


class _Session:
    """One process's work on a run."""

    def __init__(
        self,
        recipe: Recipe | SegmenterRecipe,
        split: tuple[Dataset, Dataset],
        folder: RunFolder,
        engine: Engine,
        data: Mapping[str, Any],
        tell: Callable[[str], None],
    ) -> None:
        self.recipe, self.folder, self.engine, self.tell = recipe, folder, engine, tell
        self.main = engine.accelerator.is_main_process
        self.training_cases, self.held_out = split
        self.checkpoints = folder.checkpoints(recipe.monitor.keep)
        self.history = RunHistory(
            data={
                "name": data.get("name", "cases"),
                "license": data.get("license"),
                "cases": [case.name for case in _each(self.training_cases)],
                "held_out": [case.name for case in _each(self.held_out)],
            },
            machine=training_machine(engine.execution, engine.processes),
        )
        #: The losses since the last row of the history.
        self.losses: list[float] = []
        self.clock = time.monotonic()
        self.monitor: Monitor | None = None
        #: The examples of the held-out cases, once they are needed.
        self.measured: BatchesByNumber | None = None

    def begin(self, init: str | None) -> None:
        """Resumes from the newest checkpoint, or starts from scratch or from the weights of ``init``."""
        state = self.checkpoints.load(self.tell, needed=_NEEDED)
        if state is None:
            if init is not None:
                self.history.init = self._initialize(init)
            self.history.teacher = self.engine.task.teacher.identity if self.engine.task.teacher else None
        else:
            changes = recipe_changes(self.folder.recipe(), self.recipe) if self.folder.has_recipe else []
            self._load(state)
            before = history_fields(state.get(_HISTORY, {}), self.tell)
            now = {"data": self.history.data, "machine": self.history.machine, "iteration": self.engine.iteration}
            self.history = RunHistory(**{"started": "unknown", **before, **now})
            self._check_teacher()
            if "data" in before and before["data"]["cases"] != self.history.data["cases"]:
                changes.append(f"the cases become {len(self.history.data['cases'])} of {self.history.data['name']}")
            for change in changes:
                sentence = f"from iteration {self.engine.iteration + 1:,} on: {change}"
                self.history.changes.append(sentence)
                self.tell(sentence)
            self.tell(f"resuming after iteration {self.engine.iteration:,}")
        self._check_together()
        if self.main:
            self.checkpoints.clean()
            self.folder.write_recipe(self.recipe)
            self.folder.write_history(self.recipe, self.history)
            self.monitor = Monitor(self.folder.path, self.engine.iteration)

    def _load(self, state: dict[str, Any]) -> None:
        """Restores weights, optimizer and random numbers from a checkpoint, and the losses since its last row."""
        try:
            self.engine.load_state(state)
        except MedDPMError:
            raise
        except (KeyError, TypeError, ValueError, AttributeError, RuntimeError) as error:
            raise MedDPMError(
                f"the newest checkpoint in {self.checkpoints.folder} is of another version of MedDPM"
                f" ({type(error).__name__}: {str(error):.80}): resume the run with that version, or start a new run"
                " from its model (meddpm models export, --init)"
            ) from error
        losses = state.get("losses", [])
        self.losses = losses if list_of(number(), 0, 10**6).fits(losses) else []

    def _check_teacher(self) -> None:
        teacher = self.engine.task.teacher
        if teacher and teacher.identity != self.history.teacher:
            raise MedDPMError(
                f"the teacher {teacher.identity['model']} has changed since the run was started: restore it, or"
                " choose another run folder"
            )

    def _check_together(self) -> None:
        """Raises :class:`MedDPMError` unless all processes resume from the same iteration with the same cases."""
        if self.engine.processes == 1:
            return
        from accelerate.utils import gather_object

        points = gather_object([(self.engine.iteration, self.history.data["cases"], self.history.data["held_out"])])
        if any(point != points[0] for point in points):
            iterations = ", ".join(f"{iteration:,}" for iteration, _, _ in points)
            raise MedDPMError(
                f"the processes do not have the same run and dataset (they are at iterations {iterations}): put both"
                " into a folder that all machines share"
            )

    def go_on(self, workers: int, report: Callable[[int, float], None], stop: StopRequest) -> None:
        engine, recipe = self.engine, self.recipe
        accelerator = engine.accelerator
        each = recipe.training.gradient_accumulation_steps // engine.processes
        for stage, iterations in remaining_stages(recipe, engine.iteration):
            coarsest = [side // engine.network.side_multiple for side in reversed(stage.example_size)]
            check_convolution(engine.device, engine.execution.dtype, coarsest)
            examples = engine.task.examples(stage, self.training_cases)
            wanted = (
                numbers
                for iteration in iterations
                for numbers in batch_numbers(recipe, iteration, accelerator.process_index, engine.processes)
            )
            with closing(made_ahead(examples.batch, wanted, workers)) as ahead:  # type: ignore[type-var]
                for _ in iterations:
                    begun = time.monotonic()
                    loss, stopping = engine.step(islice(ahead, each), stopping=stop.signal is not None)
                    self._note(loss, time.monotonic() - begun)
                    report(engine.iteration, loss)
                    self._write_if_due(stopping)
                    if stopping:
                        raise Stopped(stop.signal or 15, engine.iteration)

    def close(self) -> None:
        if self.monitor is not None:
            self.monitor.close()

    def _note(self, loss: float, seconds: float) -> None:
        self.losses.append(loss)
        now = time.monotonic()
        self.history.iteration = self.engine.iteration
        self.history.seconds += now - self.clock
        self.clock = now
        if self.monitor is not None:
            rate = self.engine.optimizer.param_groups[0]["lr"]
            values = {"loss": loss, "learning rate": rate, "gradient norm": self.engine.gradient_norm}
            self.monitor.scalars(self.engine.iteration, {**values, "iterations per second": 1 / max(seconds, 1e-9)})

    def _write_if_due(self, stopping: bool) -> None:
        """Writes row, checkpoint and picture. What needs several processes is done by all of them."""
        iteration, plan = self.engine.iteration, self.recipe.monitor
        last = iteration == self.recipe.iterations
        due = last or iteration % plan.checkpoint_every == 0
        if due:
            self._add_row()
        if due or stopping:
            state = self.engine.state()
            if self.main:
                self.checkpoints.save({**state, "losses": self.losses, _HISTORY: vars(self.history)})
                self.folder.write_history(self.recipe, self.history)
        # After the checkpoint, which matters more; not when the run is asked to stop, but always at its end.
        if plan.montage_every and (last or (iteration % plan.montage_every == 0 and not stopping)):
            self._draw()
        if due or stopping:
            if self.monitor is not None:
                self.monitor.flush()
            self.engine.accelerator.wait_for_everyone()

    def _add_row(self) -> None:
        """A row of the history; the best weights are kept when its score is the lowest yet.

        The score is the loss of the averaged weights on the held-out cases at fixed noise. Without such cases it is
        the mean training loss since the previous row, which also depends on the noise levels that were drawn.
        """
        held_out = None
        if len(self.held_out):
            self.measured = self.measured or self.engine.task.examples(self.recipe.stages[-1], self.held_out)
            held_out = self.engine.measure(self.measured.held_out())
        loss = sum(self.losses) / len(self.losses)
        self.losses = []
        iteration = self.engine.iteration
        self.history.losses.append({"iteration": iteration, "loss": loss, "held_out": held_out})
        if self.monitor is not None and held_out is not None:
            self.monitor.scalars(iteration, {"held-out loss": held_out})
        score = loss if held_out is None else held_out
        if self.history.best is None or score < self.history.best["score"]:
            self.history.best = {"iteration": iteration, "score": score}
            weights = self.engine.averaged_weights()
            if self.main:  # before the checkpoint that refers to them
                self.checkpoints.save_best(weights, iteration, score)

    def _draw(self) -> None:
        weights = self.engine.averaged_weights()
        if self.monitor is None:
            return
        case = next(_each(self.held_out if len(self.held_out) else self.training_cases))
        try:
            self.monitor.montage(self.recipe, weights, case, self.engine.execution, self.engine.iteration)
        except Exception as error:  # whatever goes wrong with a picture must not end the run
            self.tell(f"no montage of iteration {self.engine.iteration:,}: {error}")

    def _tell_differences(self, init: str, card: Card) -> None:
        """Weights of a different kind of model may fit in shape: this is allowed, and reported."""
        ours = recipe_card(self.recipe)
        if not isinstance(card, Card) or not isinstance(ours, Card):
            return
        pairs = {
            "prediction": (card.prediction, ours.prediction),
            "label scheme": (card.condition_scheme.name, ours.condition_scheme.name),
            "modalities": (", ".join(card.modalities), ", ".join(ours.modalities)),
            "mask encoding": (card.mask_encoding, ours.mask_encoding),
            "order of axes": (card.axes, ours.axes),
            "intensities": (card.image_range, ours.image_range),
            "schedule": (card.schedule["name"], ours.schedule["name"]),
        }
        differences = [f"{what} {theirs} instead of {own}" for what, (theirs, own) in pairs.items() if theirs != own]
        if differences:
            self.tell(f"{init} was trained for something else, and has to be retrained: {'; '.join(differences)}")

    def _initialize(self, init: str) -> dict[str, Any]:
        try:
            entry = ModelStore().find(init, self.recipe.kind)
        except MedDPMError:
            if RunFolder(Path(init)).has_recipe:
                raise MedDPMError(
                    f"{init} is a run, not a model: export it first (meddpm models export {init} FILE)"
                ) from None
            raise
        card, weights = load_card_and_state(entry.path)
        self._tell_differences(init, card)
        fresh = self.engine.start_from(self.engine.task.own_weights(weights))
        count = len(self.engine.network.state_dict())
        if len(fresh) == count:
            raise MedDPMError(f"no tensor of {init} fits the network of the recipe {self.recipe.name}: choose another")
        if fresh:
            listed = ", ".join(fresh[:5]) + (", ..." if len(fresh) > 5 else "")
            self.tell(f"{len(fresh)} of {count} tensors start from scratch; {init} has none of their shape: {listed}")
        return {"model": entry.name, "hash": entry.hash, "tensors": count, "fresh": len(fresh)}


def check_data(recipe: Recipe | SegmenterRecipe, cases: Dataset | Sequence[Case]) -> None:
    """Raises :class:`MedDPMError` unless there are cases, and they span the box of the recipe's grid."""
    if not len(cases):
        raise MedDPMError("there are no cases to train on: prepare some with meddpm prepare")
    if recipe.training.held_out and len(cases) < 2:
        raise MedDPMError("a single case cannot be held out from training: set training.held_out to 0, or add cases")
    case = cases[0]
    found = np.multiply(case.labels.shape[::-1], case.spacing)
    wanted = np.multiply(recipe.grid.size, recipe.grid.spacing)
    if not np.allclose(found, wanted, rtol=1e-3):
        boxes = [" x ".join(f"{mm:g}" for mm in box) for box in (found, wanted)]
        raise MedDPMError(
            f"the cases span {boxes[0]} mm, but the recipe {recipe.name} needs {boxes[1]} mm: prepare them with"
            f" meddpm prepare --scheme {recipe.label_scheme.name}"
        )


def _check_grids(recipe: Recipe | SegmenterRecipe, engine: Engine) -> None:
    multiple = engine.network.side_multiple
    for index, stage in enumerate(recipe.stages):
        for field, box in (("size", stage.size), ("patch", stage.patch)):
            needed = field == "patch" or stage.patch is None or index == len(recipe.stages) - 1
            if box is not None and needed and any(side % multiple for side in box):
                raise MedDPMError(
                    f"stages.{index}.{field} is {list(box)}: the network needs sides that are multiples of {multiple}"
                )


def _each(cases: Dataset | Sequence[Case]):
    return (cases[index] for index in range(len(cases)))
