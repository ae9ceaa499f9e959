"""meddpm benchmark: how fast is it here, and what do fewer steps cost?"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from MedDPMLib.cli.options import model_names
from MedDPMLib.cli.output import print_table, show_progress

app = typer.Typer(no_args_is_help=True, help="Measure speed and memory on this machine, and what fewer steps cost.")

_JsonOption = Annotated[
    Path | None, typer.Option("--json", metavar="FILE", help="Write all figures, and the machine's, to a JSON file.")
]


@app.command()
def generate(
    model: Annotated[
        list[str] | None,
        typer.Option(
            "--model",
            help="Model by name or file, several if given several times; all without it.",
            autocompletion=model_names,
        ),
    ] = None,
    device: Annotated[
        list[str] | None, typer.Option("--device", help="cpu, cuda, cuda:1 or mps; all that are there without it.")
    ] = None,
    steps_measured: Annotated[
        int, typer.Option("--steps-measured", min=1, help="Steps to measure of each way, beside the first.")
    ] = 3,
    grid: Annotated[
        float, typer.Option("--grid", help="Scale the sides of every grid, for small machines: 0.5 is half.")
    ] = 1.0,
    quick: Annotated[
        bool, typer.Option("--quick", help="A quarter of each side and a single step: does it run at all?")
    ] = False,
    json_file: _JsonOption = None,
) -> None:
    """Time a volume, side by side: the plain way, and ours as `meddpm generate` makes it.

    The plain way is float32, channels first, every step of the schedule. Each way runs in a process of its own, their
    steps in turn, with a large matrix product in between that shows what the machine can do. Quote the ratios.
    """
    from MedDPMLib.benchmark.inference import benchmark, phases
    from MedDPMLib.benchmark.machine import devices as all_devices
    from MedDPMLib.benchmark.report import HEADINGS, NUMERIC, remarks, rows
    from MedDPMLib.benchmark.subject import all_names

    if quick:
        grid, steps_measured = 0.25, 1
    names, devices = model or all_names(), device or all_devices()
    with show_progress(len(names) * len(devices) * phases(steps_measured), "starting") as progress:
        result = benchmark(names, devices, share=grid, steps=steps_measured, report=progress.advance)
    if json_file is not None:
        _write_json(json_file, result.to_dict())
    print_table(HEADINGS, rows(result), numeric=NUMERIC)
    for remark in remarks(result):
        typer.echo(remark)


def _write_json(path: Path, data: dict) -> None:
    from MedDPMLib.volume import written_whole

    with written_whole(path) as temporary:
        temporary.write_text(json.dumps(data, indent=2) + "\n")
