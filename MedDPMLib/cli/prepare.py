"""meddpm prepare: from folders of cases to a dataset."""

from __future__ import annotations

import os
from collections import Counter
from pathlib import Path
from typing import Annotated

import typer

from MedDPMLib.cli.options import LabelsOption
from MedDPMLib.cli.output import complain, show_progress
from MedDPMLib.cli.remedies import worded
from MedDPMLib.errors import MedDPMError

#: A case takes about so many bytes while it is prepared.
_MEMORY_OF_A_CASE = 1_500_000_000


def _scheme_names(incomplete: str) -> list[str]:
    from MedDPMLib.prepare import STANDARDS

    return [name for name in STANDARDS if name.startswith(incomplete)]


def _normalisation_names(incomplete: str) -> list[str]:
    from MedDPMLib.prepare import NORMALISATIONS

    return [name for name in NORMALISATIONS if name.startswith(incomplete)]


def prepare(
    sources: Annotated[
        list[Path],
        typer.Argument(
            metavar="SOURCE",
            help="Folders of BraTS cases, nnU-Net raw datasets, Med-DDPM's folders, or folders with image and mask.",
        ),
    ],
    out: Annotated[Path, typer.Option(help="Folder for the dataset; made if it is not there.")],
    scheme: Annotated[
        str,
        typer.Option(help="Labels to train on: anatomy, brats or whole-head.", autocompletion=_scheme_names),
    ],
    anatomy: Annotated[
        Path | None,
        typer.Option(help="Folder with CASE_anatomy.nii.gz, the structures of each case, for the scheme anatomy."),
    ] = None,
    modalities: Annotated[
        str | None, typer.Option(help="Contrasts to take, such as t1,t2; without it all of the scheme.")
    ] = None,
    labels: LabelsOption = None,
    normalise: Annotated[
        str,
        typer.Option(
            help="percentiles of the brain, or what the published networks were trained with: per-volume (BraTS)"
            " or per-slice (whole head).",
            autocompletion=_normalisation_names,
        ),
    ] = "percentiles",
    workers: Annotated[
        int | None, typer.Option(min=1, help="Cases prepared at the same time; without it as many as fit.")
    ] = None,
) -> None:
    """Make a dataset to train on from folders of cases.

    A case that cannot be used is told and left out; the exit code is then 2. Stopped and started again, it goes on
    where it was. The table cases.csv in the dataset says what was found in each case.
    """
    from MedDPMLib.masks.schemes import load_scheme
    from MedDPMLib.prepare import DatasetSettings, find_cases, standard, write_dataset

    chosen = tuple(modalities.split(",")) if modalities is not None else standard(scheme).modalities
    if anatomy is not None and not anatomy.is_dir():
        raise MedDPMError(f"{anatomy} is not a folder: --anatomy needs the folder of CASE_anatomy.nii.gz")
    settings = DatasetSettings(scheme, chosen, anatomy, labels, normalise)
    cases = find_cases(sources, load_scheme(scheme), chosen, numbering=labels)
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
    told = [f"{len(cases) - failed} of {len(cases)} cases are in {out}"]
    if done:
        told.append(f"{done} of them had been prepared before")
    typer.echo("; ".join(told))
    if failed:
        raise typer.Exit(2)


def _fitting_workers() -> int:
    from MedDPMLib.runtime.host_memory import available_memory

    return max(1, min(os.cpu_count() or 1, available_memory() // _MEMORY_OF_A_CASE))
