"""What does the folder of a run say about it?

``recipe.toml`` is the recipe with every field, ``run.json`` what happened (data, machine, time, losses), ``README.md``
the same for people; both are written anew with each checkpoint.
"""

from __future__ import annotations

import json
import os
import platform
from dataclasses import asdict, dataclass, field
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from MedDPMLib.errors import MedDPMError
from MedDPMLib.recipes.recipe import Recipe, load_recipe, recipe_toml
from MedDPMLib.runtime.files import written_whole
from MedDPMLib.runtime.versions import versions
from MedDPMLib.train.checkpoints import Checkpoints

#: Rows of the table of losses in the README.
_ROWS = 20


@dataclass
class Story:
    """What happened in a run so far: plain data for JSON."""

    #: ``name``, ``licence`` (None where not known) and names of the ``cases`` learnt from and ``held_out``.
    data: dict[str, Any]
    #: What it was computed on: ``device``, ``precision``, ``processes``, ``threads``, ``processor``, ``versions``.
    machine: dict[str, Any]
    #: The model whose weights it began with, and what of them did not fit; None for fresh weights.
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
    #: Sentences: where the recipe was changed on the way.
    changes: list[str] = field(default_factory=list)


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

    def story(self) -> Story:
        path = self.path / "run.json"
        try:
            return Story(**json.loads(path.read_text(encoding="utf-8")))
        except (OSError, ValueError, TypeError) as error:
            raise MedDPMError(f"{path} cannot be read ({str(error):.80}): it is not the folder of a run") from error

    def write_recipe(self, recipe: Recipe) -> None:
        with written_whole(self.path / "recipe.toml") as temporary:
            temporary.write_text(recipe_toml(recipe), encoding="utf-8")

    def write_story(self, recipe: Recipe, story: Story) -> None:
        story.changed = _now()
        with written_whole(self.path / "run.json") as temporary:
            temporary.write_text(json.dumps(asdict(story), indent=1) + "\n", encoding="utf-8")
        with written_whole(self.path / "README.md") as temporary:
            temporary.write_text(_readme(recipe, story, self.path), encoding="utf-8")


def describe_machine(execution, processes: int) -> dict[str, Any]:
    """For :attr:`Story.machine`."""
    import torch

    device = execution.device
    processor = torch.cuda.get_device_name(device) if device.type == "cuda" else _processor()
    return {
        "device": device.type,
        "processor": processor,
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


def _readme(recipe: Recipe, story: Story, path: Path) -> str:
    data, done = story.data, story.iteration >= recipe.iterations
    where = f"Iteration {story.iteration:,} of {recipe.iterations:,}, after {spoken_time(story.seconds)}"
    lines = [
        f"# A training run of MedDPM: {recipe.name}",
        "",
        f"{recipe.card.get('title', recipe.name)}. {recipe.card.get('summary', '')}",
        "",
        f"**{where}: {'finished' if done else 'not finished'}.** Written {story.changed}.",
        "",
        "| | |",
        "|---|---|",
        f"| recipe | {recipe.name}: {recipe.network['kind']}, predicts {recipe.prediction}; in full in recipe.toml |",
        f"| data | {data['name']}: {len(data['cases'])} cases learnt from, {len(data['held_out'])} held out |",
        f"| begun | {story.started}, {_begun_with(story)} |",
        f"| machine | {spoken_machine(story.machine)} |",
        f"| versions | {', '.join(f'{name} {number}' for name, number in story.machine['versions'].items())} |",
    ]
    lines += [f"| changed | {change} |" for change in story.changes]
    if story.losses:
        lines += [
            "",
            "## Losses",
            "",
            "| iteration | loss (mean since the row above) | held-out cases |",
            "|--:|--:|--:|",
        ]
        lines += [
            f"| {row['iteration']:,} | {row['loss']:.4f} | {_number(row['held_out'])} |"
            for row in _thinned(story.losses)
        ]
    if story.best:
        lines += ["", f"Best: iteration {story.best['iteration']:,}, with {story.best['score']:.4f}."]
    lines += [
        "",
        "## Files",
        "",
        "- `recipe.toml`: the recipe. `run.json`: what this page says, for programs.",
        "- `checkpoints/`: where the run goes on from, and the best averaged weights.",
        "- `montages/`: what the model made on the way. `tensorboard/`: losses and montages for TensorBoard.",
        "",
        f"`meddpm train DATASET --run {path.name}` goes on; `meddpm models export {path.name} FILE` makes a model.",
        "",
    ]
    return "\n".join(lines)


def _begun_with(story: Story) -> str:
    if not story.init:
        return "with fresh weights"
    return f"with the weights of {story.init['model']} ({story.init['fresh']} of {story.init['tensors']} tensors fresh)"


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.4f}"


def _thinned(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """About :data:`_ROWS` rows, each the mean of so many neighbours."""
    each = -(-len(rows) // _ROWS)
    thinned = []
    for start in range(0, len(rows), each):
        group = rows[start : start + each]
        thinned.append({**group[-1], "loss": sum(row["loss"] for row in group) / len(group)})
    return thinned


def _processor() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine() or f"{os.cpu_count()} cores"


def _now() -> str:
    return datetime.now(timezone.utc).strftime("%Y-%m-%d %H:%M UTC")
