"""meddpm prepare: from folders of cases to a dataset."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from MedDPMLib.cli.output import complain
from MedDPMLib.cli.training import _RECIPE_HELP, _recipe_names


def prepare(
    sources: Annotated[
        list[Path], typer.Argument(metavar="SOURCE", help="Folders of case folders, as BraTS ships them.")
    ],
    anatomy: Annotated[Path, typer.Option(help="Folder with CASE_anatomy.nii.gz for every case.")],
    out: Annotated[Path, typer.Option(help="Folder for the dataset; made if it is not there.")],
    recipe: Annotated[str, typer.Option(help=_RECIPE_HELP, autocompletion=_recipe_names)] = "brain-anatomy",
) -> None:
    """Make a dataset to train on from folders of cases.

    A case that cannot be used is told and left out; the exit code is then 2.
    """
    from MedDPMLib.prepare import prepare as prepare_cases
    from MedDPMLib.recipe import load_recipe

    failed = 0
    for name, problem in prepare_cases(sources, out, anatomy=anatomy, modalities=load_recipe(recipe).modalities):
        if problem:
            failed += 1
            complain(f"{name} is left out: {problem}")
        else:
            typer.echo(f"{name} prepared")
    if failed:
        raise typer.Exit(2)
