"""meddpm models: which models are installed, and what is on their cards?"""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Annotated

import typer

from MedDPMLib.cli.options import ModelArgument, model_names
from MedDPMLib.cli.output import print_table, size

app = typer.Typer(no_args_is_help=True, help="List, show, import, export and remove models.")


@app.command("list")
def list_models() -> None:
    """List the installed models."""
    from MedDPMLib.models.segmenter_card import SegmenterCard
    from MedDPMLib.models.store import ModelStore

    store = ModelStore()
    rows = []
    for entry in store.list(None):
        where = "bundled" if entry.bundled else "imported"
        if entry.problem:
            rows.append([entry.name, entry.problem, "", "", size(entry.size), entry.hash[:12], where])
            continue
        card = entry.card
        if isinstance(card, SegmenterCard):
            made = f"masks of {card.spacing:g} mm from any scan"
            rows.append([entry.name, made, "", card.scheme.name, size(entry.size), entry.hash[:12], where])
            continue
        grid = " x ".join(map(str, card.grid.size)) + " of " + " x ".join(f"{mm:g}" for mm in card.grid.spacing) + " mm"
        rows.append(
            [entry.name, ", ".join(card.modalities), grid, card.scheme.name, size(entry.size), entry.hash[:12], where]
        )
    print_table(["name", "modalities", "grid", "labels", "size", "hash", "source"], rows, numeric=[4])
    typer.echo(f"Imported models are in {store.folder}")


@app.command("show")
def show_model(model: ModelArgument) -> None:
    """Show the card of a model: modalities, labels, training data, intended use and limitations."""
    from MedDPMLib.models.store import ModelStore

    entry = ModelStore().find(model, None)
    typer.echo(entry.card.describe())
    typer.echo(f"{'File':<14}{entry.path}, {size(entry.size)}\n{'SHA-256':<14}{entry.hash}")


@app.command("import")
def import_model(
    file: Annotated[Path, typer.Argument(help="A bundle, or a checkpoint of Med-DDPM's family, which is converted.")],
    name: Annotated[
        str | None, typer.Option("--name", help="Name of the installed model; by default the one on its card.")
    ] = None,
    card: Annotated[
        Path | None,
        typer.Option(help="Card of a checkpoint that is none of the published ones; see meddpm models card."),
    ] = None,
) -> None:
    """Check a model file and install it.

    The published networks of Med-DDPM and GliomaGen are recognized. Any other network of the family needs a card.
    """
    from MedDPMLib.models.bundle import bundle_hash
    from MedDPMLib.models.store import ModelStore

    entry = ModelStore().add(file, name, card)
    typer.echo(f"{entry.name} installed: {entry.path}")
    if card is None and bundle_hash(file) != entry.hash:
        typer.echo(
            f"It was recognized as {entry.card.title}. If it was trained with other labels or images, remove it, and"
            " import it with a card: meddpm models card writes one."
        )


@app.command("card")
def write_card(
    file: Annotated[Path, typer.Argument(help="A checkpoint of Med-DDPM's family.")],
    out: Annotated[Path, typer.Option(help="The file to write.")] = Path("card.toml"),
) -> None:
    """Write a card for a checkpoint, with everything that its weights say filled in.

    Replace every "?" in it, and import the checkpoint with it: meddpm models import FILE --card CARD. The card of a
    published network is written as it is known: change it if yours was trained otherwise.
    """
    from MedDPMLib.errors import MedDPMError
    from MedDPMLib.models.card_file import card_template, card_values
    from MedDPMLib.models.official_checkpoint import open_checkpoint, read_checkpoint
    from MedDPMLib.runtime.files import atomic_write

    if out.exists():
        raise MedDPMError(f"{out} exists already: choose another name with --out")
    checkpoint = open_checkpoint(file)
    try:
        published, _ = read_checkpoint(file)
    except MedDPMError:  # it is of the family, but none of the published ones
        published = None
    values = card_values(published) if published else None
    with atomic_write(out) as temporary:
        temporary.write_text(card_template(checkpoint, values), encoding="utf-8")
    command = f"meddpm models import {shlex.quote(str(file))} --card {shlex.quote(str(out))}"
    todo = "fill it in"
    if published:
        typer.echo(f"recognized as {published.name}, which needs no card, unless it was trained with other labels")
        todo = "change what is different"
    typer.echo(f"{checkpoint.describe()}\n{out} written: {todo}, then {command}")


@app.command("export")
def export_model(
    model: Annotated[
        str,
        typer.Argument(
            metavar="NAME", help="Installed model, or the folder of a training run.", autocompletion=model_names
        ),
    ],
    path: Annotated[Path, typer.Argument(help="The file to write, or the folder to write it into.")],
    best: Annotated[
        bool, typer.Option("--best", help="For a run: export the best weights instead of the newest.")
    ] = False,
) -> None:
    """Copy the bundle of a model, or create one from a training run, finished or not."""
    if (Path(model) / "recipe.toml").is_file():
        _export_run(Path(model), path, best)
        return
    from MedDPMLib.models.store import ModelStore

    typer.echo(f"{ModelStore().export(model, path)}")


def _export_run(run: Path, path: Path, best: bool) -> None:
    from MedDPMLib.errors import MedDPMError
    from MedDPMLib.models.bundle import SUFFIX
    from MedDPMLib.train.export import export_run

    target = path / f"{run.resolve().name}{SUFFIX}" if path.is_dir() else path
    if target.exists():
        raise MedDPMError(f"{target} exists already: choose another name")
    card = export_run(run, target, best=best)
    typer.echo(
        f"{target} written; meddpm models import {target} installs it as {card.name}, with --name under another name"
    )


@app.command("remove")
def remove_model(model: ModelArgument) -> None:
    """Delete an imported model; bundled models cannot be deleted."""
    from MedDPMLib.models.store import ModelStore

    ModelStore().remove(model)
    typer.echo(f"{model} removed")
