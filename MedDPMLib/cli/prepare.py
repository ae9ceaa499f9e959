"""meddpm prepare: a dataset for training from folders of cases."""

from __future__ import annotations

import os
from collections import Counter
from pathlib import Path
from typing import Annotated

import typer

from MedDPMLib.cli.options import GeometryOption, LabelsOption
from MedDPMLib.cli.output import complain, show_progress
from MedDPMLib.cli.remedies import worded
from MedDPMLib.errors import MedDPMError
from MedDPMLib.imaging.geometry import Grid

#: Bytes that a case takes, about, while it is prepared.
_MEMORY_OF_A_CASE = 1_500_000_000


def _scheme_names(incomplete: str) -> list[str]:
    from MedDPMLib.prepare import STANDARDS

    return [name for name in STANDARDS if name.startswith(incomplete)]


def _normalization_names(incomplete: str) -> list[str]:
    from MedDPMLib.prepare import NORMALIZATIONS

    return [name for name in NORMALIZATIONS if name.startswith(incomplete)]


def prepare(
    sources: Annotated[
        list[Path],
        typer.Argument(
            metavar="SOURCE",
            help="Folders of BraTS cases, nnU-Net raw datasets, Med-DDPM's folders, or folders with images and masks.",
        ),
    ],
    out: Annotated[Path, typer.Option(help="Folder for the dataset; created if missing.")],
    scheme: Annotated[
        str,
        typer.Option(
            help="Label scheme to train with: the name of one that ships with MedDPM, such as brats, or the path of a"
            " file of your own (meddpm labels new).",
            autocompletion=_scheme_names,
        ),
    ],
    anatomy: Annotated[
        Path | None,
        typer.Option(help="Folder of CASE_anatomy.nii.gz, the structures of each case, for the scheme anatomy."),
    ] = None,
    modalities: Annotated[
        str | None,
        typer.Option(
            help="Modalities to use, such as t1,t2; by default all of the scheme. With a scheme of your own, any names."
        ),
    ] = None,
    size: Annotated[
        str | None, typer.Option(metavar="X,Y,Z", help="Voxels of the grid; needed with a scheme of your own.")
    ] = None,
    spacing: Annotated[
        str | None, typer.Option(metavar="X,Y,Z", help="Their size in mm; one number if all three are the same.")
    ] = None,
    orientation: Annotated[
        str, typer.Option(help="Where the axes of the grid run to, if its size is given: LPS, RAS, ...")
    ] = "LPS",
    fill_rest: Annotated[
        bool,
        typer.Option(
            "--fill-rest",
            help="With a scheme of your own: give everything without a label that is not background in the images the"
            ' label with the role "rest". The published schemes of skull-stripped brains do so anyway.',
        ),
    ] = False,
    labels: LabelsOption = None,
    geometry: GeometryOption = None,
    normalize: Annotated[
        str,
        typer.Option(
            help="Intensity normalization: percentiles of the brain, or as for the published networks: per-volume"
            " (BraTS) or per-slice (whole head).",
            autocompletion=_normalization_names,
        ),
    ] = "percentiles",
    workers: Annotated[
        int | None,
        typer.Option(min=1, help="Number of cases prepared at the same time; by default as many as fit into memory."),
    ] = None,
) -> None:
    """Prepare a dataset for training from folders of cases.

    A case that cannot be used is reported and skipped; the exit code is then 2. Stopped and started again, the command
    resumes where it stopped. The table cases.csv in the dataset lists what was found in each case.
    """
    from MedDPMLib.masks.scheme_files import find_scheme
    from MedDPMLib.masks.schemes import scheme_names
    from MedDPMLib.prepare import DatasetSettings, find_cases, standard, write_dataset

    found = find_scheme(scheme)
    is_own = scheme not in scheme_names()
    if modalities is None and is_own:
        raise MedDPMError(f'the scheme "{found.name}" has no modalities of its own: give them with --modalities')
    chosen = tuple(modalities.split(",")) if modalities is not None else standard(scheme).modalities
    if anatomy is not None and not anatomy.is_dir():
        raise MedDPMError(f"{anatomy} is not a folder: --anatomy needs the folder of CASE_anatomy.nii.gz")
    settings = DatasetSettings(
        found if is_own else scheme, chosen, anatomy, labels, normalize, geometry, _grid(size, spacing, orientation),
        fill_rest,
    )  # fmt: skip
    cases = find_cases(sources, found, chosen, numbering=labels)
    for layout, count in Counter(case.layout for case in cases).items():
        typer.echo(f"{layout}: {count} {'case' if count == 1 else 'cases'}")
    done = failed = 0
    with show_progress(len(cases), "preparing") as progress:
        for report in write_dataset(cases, out, settings, workers=workers or _fitting_workers()):
            progress.advance("preparing")
            if report.problem:
                failed += 1
                complain(f"{report.name} is skipped: {worded(report.problem)}")
            elif report.was_done:
                done += 1
            else:
                typer.echo(f"{report.name} prepared")
    summary = [f"{len(cases) - failed} of {len(cases)} cases are in {out}"]
    if done:
        summary.append(f"{done} of them had been prepared before")
    typer.echo("; ".join(summary))
    if failed:
        raise typer.Exit(2)


def _grid(size: str | None, spacing: str | None, orientation: str) -> Grid | None:
    """The grid of the options; None without them."""
    if size is None and spacing is None:
        return None
    try:
        sides = tuple(map(int, (size or "").split(",")))
        steps = tuple(map(float, (spacing or "").split(",")))
    except ValueError:
        sides = steps = ()
    steps = steps * 3 if len(steps) == 1 else steps
    if len(sides) != 3 or len(steps) != 3:
        raise MedDPMError("a grid needs --size and --spacing, as in --size 128,128,96 --spacing 1.5,1.5,2")
    from MedDPMLib.models.card import GRID

    return Grid(**GRID.read({"size": sides, "spacing": steps, "orientation": orientation}, "the grid"))


def _fitting_workers() -> int:
    from MedDPMLib.runtime.host_memory import available_memory

    return max(1, min(os.cpu_count() or 1, available_memory() // _MEMORY_OF_A_CASE))
