"""meddpm evaluate: how good are synthetic volumes? Two folders, a table and a report."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from MedDPMLib.cli.checks import check_writable
from MedDPMLib.cli.options import LabelsOption, OutOption, segmenter_names
from MedDPMLib.cli.output import complain, print_table, show_progress
from MedDPMLib.errors import MedDPMError
from MedDPMLib.runtime.packages import require


def evaluate(
    real: Annotated[
        Path, typer.Argument(help="Folder of real cases: BraTS, an nnU-Net raw dataset, or CASE_MODALITY.")
    ],
    synthetic: Annotated[Path, typer.Argument(help="Folder of synthetic volumes, as meddpm generate writes them.")],
    out: OutOption,
    masks: Annotated[
        Path | None, typer.Option("--masks", help="Folder of the masks, named after the cases: for figures by label.")
    ] = None,
    scheme: Annotated[
        str | None,
        typer.Option("--scheme", help="Label scheme of the masks, a name or a file; by default that of the records."),
    ] = None,
    labels: LabelsOption = None,
    training: Annotated[
        Path | None, typer.Option("--training", help="Folder of the cases that the model was trained on: finds copies.")
    ] = None,
    medicalnet: Annotated[
        Path | None,
        typer.Option(
            "--medicalnet",
            metavar="FILE",
            help="Weights of a MedicalNet ResNet for the 3D-FID; otherwise MedDPM's own features, without a network.",
        ),
    ] = None,
    segmenter: Annotated[
        str | None,
        typer.Option(
            "--segmenter",
            metavar="NAME|FILE",
            help="A segmenter as judge of whether images show what their masks ask for (Dice by label); needs masks.",
            autocompletion=segmenter_names,
        ),
    ] = None,
    vessels: Annotated[
        bool, typer.Option("--vessels/--no-vessels", help="Measure bright tubes in t1ce (exploratory; slow).")
    ] = True,
) -> None:
    """Compare synthetic volumes with real ones: a table, evaluation.json and evaluation.html.

    All cases are prepared alike. Cases that cannot be used are reported and skipped.
    """
    from MedDPMLib.masks.scheme_files import find_scheme

    require("meddpm evaluate", "scipy", "monai", "sklearn", "matplotlib", "jinja2")
    if vessels:
        require("measuring vessels", "skimage")
    check_writable(out)
    from MedDPMLib.evaluation.cases import find_cases, scheme_of
    from MedDPMLib.evaluation.features import HaarFeatures, MedicalNetFeatures
    from MedDPMLib.evaluation.report import write_report
    from MedDPMLib.evaluation.run import Request
    from MedDPMLib.evaluation.run import evaluate as compare
    from MedDPMLib.evaluation.table import formatted
    from MedDPMLib.segmentation.segmenter import load_segmenter

    if masks is not None and scheme is None:
        scheme = scheme_of(find_cases(synthetic))
        if scheme is None:
            raise MedDPMError(f"nothing in {synthetic} says of which scheme the masks are: choose it with --scheme")
    if segmenter is not None and scheme is None:
        raise MedDPMError("--segmenter compares with masks: give their folder with --masks")
    request = Request(
        real=real,
        synthetic=synthetic,
        masks=masks,
        training=training,
        scheme=find_scheme(scheme) if scheme else None,
        numbering=labels,
        features=MedicalNetFeatures(medicalnet) if medicalnet else HaarFeatures(),
        vessels=vessels,
        segmenter=load_segmenter(segmenter) if segmenter is not None else None,
    )
    with show_progress(1, "reading") as progress:

        def show(done: int, total: int, doing: str) -> None:
            progress.drop(progress.total - total)
            progress.reach(done, doing)

        evaluation = compare(request, show)
    for problem in evaluation.skipped:
        complain(problem)
    rows = [
        [one.group, one.subject, one.name, formatted(one.value, one.ci),
         formatted(one.floor, one.floor_ci) if one.floor is not None else "", one.n, one.note]
        for one in evaluation.figures
    ]  # fmt: skip
    print_table(["", "of", "figure", "synthetic (95 %)", "real against real", "N", "note"], rows)
    for note in evaluation.notes:
        typer.echo(f"Note: {note}.")
    for name, text in evaluation.about.items():
        typer.echo(f"{name}: {text}")
    for path in write_report(out, evaluation):
        typer.echo(str(path))
