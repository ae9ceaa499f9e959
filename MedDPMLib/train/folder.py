"""What does the folder of a run say about it?

``recipe.toml`` is the recipe with every field, ``run.json`` what happened (data, machine, time, losses), ``README.md``
the same for people; both are written again with each checkpoint.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from datetime import datetime, timezone
from functools import partial
from pathlib import Path
from typing import Any

from MedDPMLib.errors import MedDPMError
from MedDPMLib.recipes.recipe import Recipe, load_recipe, recipe_toml
from MedDPMLib.runtime.files import atomic_write
from MedDPMLib.runtime.versions import versions
from MedDPMLib.train.checkpoints import Checkpoints
from MedDPMLib.validation import Rule, list_of, number, optional, table, table_with, text, whole

#: Rows of the table of losses in the README.
_ROWS = 20


@dataclass
class RunHistory:
    """What happened in a run so far: plain data for JSON."""

    #: ``name``, ``license`` (None if unknown) and names of the ``cases`` for training and ``held_out``.
    data: dict[str, Any]
    #: What it was computed on: ``device``, ``precision``, ``processes``, ``threads``, ``processor``, ``versions``.
    machine: dict[str, Any]
    #: The model whose weights it began with, and what of them did not fit; None if it started from scratch.
    init: dict[str, Any] | None = None
    #: ``model`` and ``hash`` of the teacher of a student, see :mod:`MedDPMLib.train.distillation`.
    teacher: dict[str, Any] | None = None
    iteration: int = 0
    #: Time spent on the iterations that are in the checkpoint, loading and pictures included.
    seconds: float = 0.0
    started: str = field(default_factory=lambda: _now())
    changed: str = field(default_factory=lambda: _now())
    #: A row for each checkpoint: ``iteration``, mean ``loss`` since the one before, ``held_out`` loss or None.
    losses: list[dict[str, Any]] = field(default_factory=list)
    #: The lowest ``score`` and its ``iteration``: the loss of the held-out cases, or the training's smoothed loss.
    best: dict[str, Any] | None = None
    #: Sentences: where the recipe was changed during the run.
    changes: list[str] = field(default_factory=list)


_TEXT, _COUNT, _TEXTS = text(least=0), whole(0), list_of(text(), 0, 10**6)

_table = partial(table_with, more=True, complete=True)

#: What the fields of a :class:`RunHistory` hold; tables may have more fields than these.
_RULES: dict[str, Rule] = {
    "data": _table({"name": _TEXT, "license": optional(_TEXT), "cases": _TEXTS, "held_out": _TEXTS}),
    "machine": _table(
        {
            "device": _TEXT, "processor": _TEXT, "precision": _TEXT, "processes": _COUNT, "threads": _COUNT,
            "versions": table(),
        }
    ),
    "init": optional(_table({"model": _TEXT, "tensors": _COUNT, "fresh": _COUNT})),
    "teacher": optional(_table({"model": _TEXT, "hash": _TEXT})),
    "iteration": _COUNT,
    "seconds": number(),
    "started": _TEXT,
    "changed": _TEXT,
    "losses": list_of(_table({"iteration": _COUNT, "loss": number(), "held_out": optional(number())}), 0, 10**6),
    "best": optional(_table({"iteration": _COUNT, "score": number()})),
    "changes": _TEXTS,
}  # fmt: skip


def history_fields(values: Any, tell: Callable[[str], None] = lambda sentence: None) -> dict[str, Any]:
    """Those fields of a :class:`RunHistory` that can be used of ``values``, which another version may have written.

    ``tell`` takes a sentence for each field that is unknown or not as expected. What is missing is missing: a history
    is not worth a run.
    """
    if not isinstance(values, dict):
        tell("the history of the run is not a table of fields and is dropped")
        return {}
    for name in sorted(values.keys() - _RULES.keys()):
        tell(f'"{name}" in the history of the run is unknown to this version and is dropped')
    data = values.get("data")
    if isinstance(data, dict) and "licence" in data:  # its name until version 0.1
        values = {**values, "data": {"license" if name == "licence" else name: value for name, value in data.items()}}
    found = {}
    for name, rule in _RULES.items():
        if name in values and rule.fits(values[name]):
            found[name] = values[name]
        elif name in values:
            tell(f'"{name}" in the history of the run is not what this version expects and is dropped')
    return found


class RunFolder:
    """The files of the run in ``path``."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def checkpoints(self, keep: int = 1) -> Checkpoints:
        return Checkpoints(self.path / "checkpoints", keep)

    @property
    def has_recipe(self) -> bool:
        return (self.path / "recipe.toml").is_file()

    def recipe(self) -> Recipe:
        return load_recipe(self.path / "recipe.toml")

    def history(self) -> RunHistory:
        """What ``run.json`` tells; what it lacks beside data and machine is left open."""
        path = self.path / "run.json"
        try:
            found = history_fields(json.loads(path.read_text(encoding="utf-8")))
        except (OSError, ValueError, RecursionError) as error:
            raise MedDPMError(f"{path} cannot be read ({str(error):.80}): it is not the folder of a run") from error
        for name in ("data", "machine"):
            if name not in found:
                raise MedDPMError(
                    f'{path} does not say what the model was trained on: its "{name}" is missing or incomplete. Resume'
                    f" the run (meddpm train DATASET --run {self.path}), which writes it again, then export it"
                )
        return RunHistory(**found)

    def write_recipe(self, recipe: Recipe) -> None:
        with atomic_write(self.path / "recipe.toml") as temporary:
            temporary.write_text(recipe_toml(recipe), encoding="utf-8")

    def write_history(self, recipe: Recipe, history: RunHistory) -> None:
        history.changed = _now()
        with atomic_write(self.path / "run.json") as temporary:
            temporary.write_text(json.dumps(asdict(history), indent=1) + "\n", encoding="utf-8")
        with atomic_write(self.path / "README.md") as temporary:
            temporary.write_text(run_page(recipe, history, self.path), encoding="utf-8")


def training_machine(execution, processes: int) -> dict[str, Any]:
    """For :attr:`RunHistory.machine`."""
    import torch

    from MedDPMLib.runtime.hardware import processor

    device = execution.device
    return {
        "device": device.type,
        "processor": torch.cuda.get_device_name(device) if device.type == "cuda" else processor(),
        "precision": execution.precision,
        "processes": processes,
        "threads": torch.get_num_threads(),
        "versions": versions(),
    }


def spoken_machine(machine: dict[str, Any]) -> str:
    """ "2 threads of AMD EPYC in bfloat16", "2 x NVIDIA H200 in bfloat16"."""
    several = f"{machine['processes']} x " if machine["processes"] > 1 else ""
    threads = f"{machine['threads']} thread(s) of " if machine["device"] == "cpu" else ""
    return f"{several}{threads}{machine['processor']} in {machine['precision']}"


def spoken_time(seconds: float) -> str:
    """ "40 s", "12 min", "3 h 20 min"."""
    minutes = round(seconds / 60)
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{minutes} min" if minutes < 90 else f"{minutes // 60} h {minutes % 60} min"


def run_page(recipe: Recipe, history: RunHistory, path: Path) -> str:
    """The README of the run in the folder ``path``, in Markdown."""
    level, whole, option = "", path, ""
    if recipe.level:
        level, whole, option = f", level {recipe.level}", path.parent, f" --level {recipe.level}"
    data, done = history.data, history.iteration >= recipe.iterations
    where = f"Iteration {history.iteration:,} of {recipe.iterations:,}, after {spoken_time(history.seconds)}"
    lines = [
        f"# A training run of MedDPM: {recipe.name}",
        "",
        f"{recipe.card.get('title', recipe.name)}. {recipe.card.get('summary', '')}",
        "",
        f"**{where}: {'finished' if done else 'not finished'}.** Written {history.changed}.",
        "",
        "| | |",
        "|---|---|",
        f"| recipe | {recipe.name}{level}: {recipe.network['kind']}, predicts {recipe.prediction}; in full in"
        " recipe.toml |",
        f"| data | {data['name']}: {len(data['cases'])} training cases, {len(data['held_out'])} held out |",
        f"| started | {history.started}, {_begun_with(history)} |",
        f"| machine | {spoken_machine(history.machine)} |",
        f"| versions | {', '.join(f'{name} {number}' for name, number in history.machine['versions'].items())} |",
    ]
    lines += [f"| changed | {change} |" for change in history.changes]
    if history.losses:
        lines += [
            "",
            "## Losses",
            "",
            "| iteration | loss (mean since the row above) | held-out cases |",
            "|--:|--:|--:|",
        ]
        lines += [
            f"| {row['iteration']:,} | {row['loss']:.4f} | {_number(row['held_out'])} |"
            for row in _thinned(history.losses)
        ]
    if history.best:
        lines += ["", f"Best: iteration {history.best['iteration']:,}, with {history.best['score']:.4f}."]
    lines += [
        "",
        "## Files",
        "",
        "- `recipe.toml`: the recipe. `run.json`: what this page says, for programs.",
        "- `checkpoints/`: the states from which the run resumes, and the best averaged weights.",
        "- `montages/`: images generated during training. `tensorboard/`: losses and montages for TensorBoard.",
        "",
        f"`meddpm train DATASET --run {whole.name}{option}` resumes the run;"
        f" `meddpm models export {whole.name} FILE` exports its model.",
        "",
    ]
    return "\n".join(lines)


def _begun_with(history: RunHistory) -> str:
    if not history.init:
        return "from scratch"
    init = history.init
    return f"from the weights of {init['model']} ({init['fresh']} of {init['tensors']} tensors from scratch)"


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.4f}"


def _thinned(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """About :data:`_ROWS` rows, each the mean of so many neighbors."""
    each = -(-len(rows) // _ROWS)
    thinned = []
    for start in range(0, len(rows), each):
        group = rows[start : start + each]
        thinned.append({**group[-1], "loss": sum(row["loss"] for row in group) / len(group)})
    return thinned


def _now() -> str:
    return datetime.now(timezone.utc).strftime("%Y-%m-%d %H:%M UTC")
