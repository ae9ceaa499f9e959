"""meddpm labels: a label scheme of your own, written and checked."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from MedDPMLib.cli.output import complain, print_table
from MedDPMLib.errors import MedDPMError

app = typer.Typer(no_args_is_help=True, help="Write and check a label scheme of your own.")


@app.command("new")
def new_scheme(
    source: Annotated[
        Path,
        typer.Argument(
            help="A folder of masks, a mask, a .seg.nrrd, nnU-Net's dataset.json, a label file of ITK-SNAP, or a color"
            " table of 3D Slicer or FreeSurfer."
        ),
    ],
    out: Annotated[Path, typer.Option(help="The file to write.")] = Path("labels.toml"),
    name: Annotated[str | None, typer.Option(help="Name of the scheme; by default that of the source.")] = None,
) -> None:
    """Write a first version of a label scheme from what a source holds.

    Correct it in any text editor, then run `meddpm labels check FILE`, and pass the file wherever a scheme is named:
    `meddpm prepare SOURCE --scheme FILE`.
    """
    from MedDPMLib.masks.scheme_files import scheme_toml
    from MedDPMLib.masks.scheme_sources import draft_scheme
    from MedDPMLib.runtime.files import atomic_write

    if out.suffix.lower() != ".toml":
        raise MedDPMError(f"{out} would not be read as a label scheme: choose a name that ends with .toml")
    if out.exists():
        raise MedDPMError(f"{out} exists already: choose another name with --out")

    def report(sentence: str) -> None:
        if sentence.startswith("skipped"):
            complain(sentence)

    scheme, remarks = draft_scheme(source, name, report)
    with atomic_write(out) as temporary:
        temporary.write_text(scheme_toml(scheme, remarks), encoding="utf-8")
    typer.echo(f"{out} written: {scheme.describe_labels()}")


@app.command("check")
def check(file: Annotated[Path, typer.Argument(help="A label scheme, .toml or .json.")]) -> None:
    """Say what is wrong with a label scheme, line by line; show its labels if nothing is."""
    from MedDPMLib.masks.scheme_files import check_scheme

    scheme, problems = check_scheme(file)
    for problem in problems:
        where = f"{file}, line {problem.line}" if problem.line else str(file)
        complain(f"{where}: {'warning: ' if problem.is_warning else ''}{problem.text}")
    if scheme is None:
        raise typer.Exit(2)
    rows = [
        [
            str(one.value),
            one.name,
            one.role or "",
            str(one.priority),
            ", ".join(one.aliases),
            one.type.meaning if one.type else "",
        ]
        for one in scheme.labels
    ]
    print_table(["value", "name", "role", "priority", "aliases", "terminology"], rows, numeric=[0, 3])
    known = ", ".join([scheme.own_numbering, *(one.name for one in scheme.conventions)])
    typer.echo(f'{file} is valid: the scheme "{scheme.name}", {len(scheme.labels)} labels, numberings {known}')
