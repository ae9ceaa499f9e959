"""meddpm train: from a dataset to a model of one's own."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from MedDPMLib.cli.generate import check_writable
from MedDPMLib.cli.options import DeviceOption, PrecisionOption
from MedDPMLib.cli.output import show_progress


def _recipe_names(incomplete: str) -> list[str]:
    from MedDPMLib.recipe import recipe_names

    return [name for name in recipe_names() if name.startswith(incomplete)]


_RECIPE_HELP = "A recipe that ships with MedDPM (brain-anatomy), or a TOML file."


def train(
    recipe: Annotated[str, typer.Argument(help=_RECIPE_HELP, autocompletion=_recipe_names)],
    dataset: Annotated[Path, typer.Argument(help="A dataset of meddpm prepare.")],
    run: Annotated[Path, typer.Option(help="Folder of this run; one that was stopped is continued.")],
    export: Annotated[Path, typer.Option(metavar="FILE", help="The model bundle to write when training is done.")],
    device: DeviceOption = "auto",
    precision: PrecisionOption = "auto",
    compile_kernels: Annotated[
        bool, typer.Option("--compile", help="Fuse the network's kernels first: needs a minute and a C++ compiler.")
    ] = False,
) -> None:
    """Train a model by a recipe and write it as a bundle, with its card.

    Stopped with Ctrl-C and started again, it goes on from the last checkpoint.
    """
    from MedDPMLib.recipe import load_recipe, recipe_card

    settings = load_recipe(recipe)
    card = recipe_card(settings)
    for folder in (run, export.parent):
        check_writable(folder)

    import torch

    from MedDPMLib.bundle import write_bundle
    from MedDPMLib.data import read_dataset
    from MedDPMLib.device import choose_execution
    from MedDPMLib.train import train as train_network

    cases = read_dataset(dataset, settings.modalities)
    execution = choose_execution(device, precision)
    with show_progress(settings.iterations, "training") as progress:
        state = train_network(
            settings,
            cases,
            run,
            execution=execution,
            report=lambda iteration, loss: progress.reach(iteration, f"training, loss {loss:.4f}"),
            compile=compile_kernels,
        )
    write_bundle(export, card, state, dtype=torch.float16)
    typer.echo(f"{export} written; meddpm models import {export} installs it")
