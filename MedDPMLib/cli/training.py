"""meddpm train: a model trained on a dataset of your own."""

from __future__ import annotations

import json
import os
import signal
import time
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from MedDPMLib.cli.checks import check_writable
from MedDPMLib.cli.options import DeviceOption, PrecisionOption
from MedDPMLib.cli.output import complain, print_table, show_progress
from MedDPMLib.errors import MedDPMError
from MedDPMLib.runtime.packages import OPTIONAL, require

if TYPE_CHECKING:
    from torch.utils.data import Dataset

    from MedDPMLib.data import Case
    from MedDPMLib.recipes.recipe import Recipe
    from MedDPMLib.recipes.segmenter import SegmenterRecipe


def _recipe_names(incomplete: str) -> list[str]:
    from MedDPMLib.recipes.recipe import recipe_names

    return [name for name in recipe_names() if name.startswith(incomplete)]


def train(
    dataset: Annotated[Path | None, typer.Argument(help="A dataset written by meddpm prepare.")] = None,
    recipe: Annotated[
        str | None,
        typer.Option(
            help="whole-head, brats, brain-anatomy, brain-cascade, brats-compact, brain-structures, or a TOML file; by"
            " default that of the run.",
            autocompletion=_recipe_names,
        ),
    ] = None,
    run: Annotated[
        Path | None, typer.Option(help="Folder of the run; a run that was stopped or killed resumes.")
    ] = None,
    level: Annotated[
        str | None,
        typer.Option(
            metavar="LEVEL",
            help="Level of a cascade to train, coarse, middle or fine: each by itself, also at the same time. By"
            " default one after the other.",
        ),
    ] = None,
    changes: Annotated[
        list[str] | None,
        typer.Option(
            "--set", metavar="FIELD=VALUE", help="Change a field of the recipe, such as training.learning_rate=1e-4."
        ),
    ] = None,
    init: Annotated[
        str | None,
        typer.Option(metavar="MODEL", help="Start from the weights of this bundle, checkpoint or installed model."),
    ] = None,
    device: DeviceOption = "auto",
    precision: PrecisionOption = "auto",
    checkpointing: Annotated[
        bool, typer.Option("--checkpointing", help="Recompute activations: less memory, a third more time.")
    ] = False,
    compile_kernels: Annotated[
        bool,
        typer.Option(
            "--compile", help="Compile the network with fused kernels: takes a minute and needs a C++ compiler."
        ),
    ] = False,
    shard: Annotated[
        bool, typer.Option("--shard", help="Divide weights and optimizer among the processes of torchrun (FSDP).")
    ] = False,
    workers: Annotated[int, typer.Option(min=1, help="Number of threads that prepare examples in advance.")] = 1,
    estimate_memory: Annotated[
        bool,
        typer.Option("--estimate-memory", help="Train nothing: measure and print how much memory it would take."),
    ] = False,
) -> None:
    """Train a model with a recipe.

    Killed at any moment and started again with the same command, the run resumes from its last checkpoint and ends
    with the same weights. Ctrl-C and SIGTERM write a checkpoint first. Several GPUs or machines share the accumulated
    batches of an iteration, at least one each (the two dashes keep torchrun from reading --run as its own option):

    torchrun --nproc-per-node 4 -m -- MedDPMLib train DATASET --recipe X --run RUN
    --set training.gradient_accumulation_steps=4

    `meddpm models export RUN FILE` exports the model of a run.
    """
    settings = _recipe(recipe, run, changes or [])
    parts = [settings]
    if settings.levels or level is not None:
        parts = [settings.at_level(name) for name in ([level] if level else [one.name for one in settings.levels])]
    from MedDPMLib.runtime.device import choose_execution

    if device in ("auto", "cuda"):
        _take_own_gpu()
    execution = choose_execution(device, precision)
    if estimate_memory:
        require("--estimate-memory", "accelerate", "monai")
        for part in parts:
            if part.level:
                typer.echo(f"level {part.level}:")
            _print_memory(part, execution.device)
        return
    if dataset is None or run is None:
        raise MedDPMError(
            "training needs a dataset and a folder for the run: meddpm train DATASET --recipe X --run RUN"
        )
    require("training", *OPTIONAL)
    if compile_kernels:
        from MedDPMLib.benchmark.training import can_compile

        if not can_compile(execution.device):
            needed = "Triton" if execution.device.type == "cuda" else "a C++ compiler (g++ or clang++) and a CPU"
            raise MedDPMError(f"--compile needs {needed}: install it, or train without --compile")
    check_writable(run)

    from MedDPMLib.data import read_dataset, read_label_maps
    from MedDPMLib.recipes.segmenter import SegmenterRecipe
    from MedDPMLib.train.folder import RunFolder
    from MedDPMLib.train.run import train as train_network
    from MedDPMLib.train.stopping import Stopped, StopRequest

    cases: Dataset | list[Case] = read_dataset(dataset, settings.modalities, scheme=settings.label_scheme)
    if isinstance(settings, SegmenterRecipe):
        cases = [*(cases[index] for index in range(len(cases))), *read_label_maps(dataset, settings.grid)]
    main = os.environ.get("RANK", "0") == "0"
    if settings.levels and main:  # each level has a folder of its own with its recipe
        RunFolder(run).write_recipe(settings)
    for part in parts:
        doing = f"training {part.level}" if part.level else "training"
        with StopRequest() as stop, show_progress(part.iterations, doing) if main else nullcontext() as progress:
            reporter = _Reporter(progress, doing) if main else None
            try:
                history = train_network(
                    part,
                    cases,
                    run,
                    execution=execution,
                    data=_data(dataset),
                    init=init,
                    checkpointing=checkpointing,
                    compile=compile_kernels,
                    shard=shard,
                    workers=workers,
                    report=reporter or (lambda iteration, loss: None),
                    tell=complain,
                    stop=stop,
                )
            except Stopped as stopped:
                if main:
                    name = signal.Signals(stopped.signal).name
                    complain(
                        f"stopped by {name} after iteration {stopped.iteration:,}, whose checkpoint was written;"
                        " the same command resumes from here"
                    )
                raise typer.Exit(128 + stopped.signal) from None
        if main:
            what = f"level {part.level}, " if part.level else ""
            typer.echo(
                f"{run}: {what}{history.iteration:,} iterations done; meddpm models export {run} FILE exports the model"
            )


def _take_own_gpu() -> None:
    """Selects a GPU for this process, if it is one of several that torchrun started, before anything runs there."""
    import torch

    rank = os.environ.get("LOCAL_RANK")
    if rank is not None and int(rank) < torch.cuda.device_count():
        torch.cuda.set_device(int(rank))


class _Reporter:
    """Loss (smoothed) and speed beside the bar."""

    def __init__(self, progress, doing: str) -> None:
        self.progress, self.doing = progress, doing
        self.loss: float | None = None
        self.speed: float | None = None
        self.last = time.monotonic()

    def __call__(self, iteration: int, loss: float) -> None:
        now = time.monotonic()
        speed, self.last = 1 / max(now - self.last, 1e-9), now
        self.loss = loss if self.loss is None else 0.95 * self.loss + 0.05 * loss
        self.speed = speed if self.speed is None else 0.9 * self.speed + 0.1 * speed
        pace = f"{self.speed:.2f} iterations/s" if self.speed > 1 else f"{1 / self.speed:.1f} s an iteration"
        self.progress.reach(iteration, f"{self.doing}, loss {self.loss:.4f}, {pace}")


def _recipe(recipe: str | None, run: Path | None, changes: list[str]) -> Recipe | SegmenterRecipe:
    from MedDPMLib.recipes.recipe import load_recipe, recipe_names

    if recipe is not None:
        return load_recipe(recipe, changes)
    if run is not None and (run / "recipe.toml").is_file():
        return load_recipe(run / "recipe.toml", changes)
    raise MedDPMError(f"--recipe is missing: name one of {', '.join(recipe_names())}, or a .toml file")


def _data(dataset: Path) -> dict:
    """Name and license of the dataset, from nnU-Net's optional fields."""
    fields = json.loads((dataset / "dataset.json").read_text(encoding="utf-8"))
    license = fields.get("license", fields.get("licence"))  # nnU-Net itself writes the latter
    return {
        "name": str(fields.get("name") or dataset.resolve().name),
        "license": None if license is None else str(license),
    }


def _print_memory(recipe: Recipe | SegmenterRecipe, device) -> None:
    from MedDPMLib.runtime.device import free_memory
    from MedDPMLib.train.memory_estimate import memory_table

    free = free_memory(device)
    rows = []
    for need in memory_table(recipe, device):
        fits = "yes" if need.bytes < free else "no"
        grid = " x ".join(map(str, need.grid))
        recomputed = "yes" if need.checkpointing else "no"
        rows.append([grid, str(need.batch), need.precision, recomputed, f"{need.bytes / 1e9:.1f} GB", fits])
    print_table(["grid", "batch", "precision", "--checkpointing", "memory", "fits now"], rows, numeric=[1, 4])
    typer.echo("Measured on two small grids and extrapolated linearly, without the memory of PyTorch itself.")
