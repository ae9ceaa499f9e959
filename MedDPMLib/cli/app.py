"""Which commands are there, and how are errors reported?"""

from __future__ import annotations

import traceback
from typing import Annotated

import typer
from typer.core import TyperGroup

from MedDPMLib import __version__
from MedDPMLib.cli import (
    accuracy,
    appearance,
    benchmark,
    complete,
    demo,
    evaluate,
    experiment,
    fidelity,
    generate,
    labels,
    masks,
    models,
    prepare,
    realism,
    segment,
    study,
    training,
)
from MedDPMLib.cli.output import complain
from MedDPMLib.cli.remedies import worded
from MedDPMLib.errors import MedDPMError


class Commands(TyperGroup):
    """The one place that turns the exceptions of commands into a sentence and an exit code."""

    def parse_args(self, ctx, args: list[str]) -> list[str]:
        # After an error, --debug is typically added at the end of the line.
        if "--debug" in args:
            args = ["--debug", *(argument for argument in args if argument != "--debug")]
        return super().parse_args(ctx, args)

    def invoke(self, ctx):
        try:
            return super().invoke(ctx)
        except MedDPMError as error:
            raised, sentence, code = error, worded(error), 2
        except BrokenPipeError:  # the reader of a pipe went away, as head does
            raise
        except OSError as error:
            raised, sentence, code = error, f"{error.filename or 'a file'}: {error.strerror or error}", 2
        except KeyboardInterrupt as error:
            raised, code = error, 130
            sentence = "stopped; no partial file is left, and the same command resumes from here"
        if ctx.params["debug"]:
            traceback.print_exception(raised)
        complain(sentence)
        raise typer.Exit(code)


app = typer.Typer(
    cls=Commands,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
    context_settings={"help_option_names": ["-h", "--help"]},
    help="Generate synthetic brain MRI volumes from segmentation masks. Not for diagnosis.",
)


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"meddpm {__version__}")
        raise typer.Exit


@app.callback()
def options(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and exit.")
    ] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")] = False,
) -> None: ...


app.command()(demo.demo)
app.command()(generate.generate)
app.command()(segment.segment)
app.command()(accuracy.accuracy)
app.command()(complete.complete)
app.command()(masks.masks)
app.command()(appearance.appearance)
app.add_typer(models.app, name="models")
app.add_typer(labels.app, name="labels")
app.command()(prepare.prepare)
app.command()(training.train)
app.command()(fidelity.fidelity)
app.command()(evaluate.evaluate)
app.command()(experiment.experiment)
app.command()(realism.realism)
app.add_typer(benchmark.app, name="benchmark")
app.add_typer(study.app, name="study")
