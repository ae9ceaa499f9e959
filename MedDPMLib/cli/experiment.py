"""meddpm experiment: are synthetic volumes of use for training a segmenter?"""

from __future__ import annotations

from typing import Annotated

import typer

from MedDPMLib.cli.checks import check_writable
from MedDPMLib.cli.options import DeviceOption, OutOption, PrecisionOption
from MedDPMLib.cli.output import complain, print_table, show_progress
from MedDPMLib.cli.shards import ShardOption, find_shard
from MedDPMLib.runtime.packages import OPTIONAL, require


def experiment(
    recipe: Annotated[
        str, typer.Argument(help="Name of an experiment (phantoms, brains-at-hand, paper-table), or a .toml file.")
    ],
    out: OutOption,
    changes: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="FIELD=VALUE", help="Change a field of the recipe: --set real=FOLDER."),
    ] = None,
    shard: ShardOption = None,
    device: DeviceOption = "auto",
    precision: PrecisionOption = "auto",
) -> None:
    """Train segmenters on real, synthetic and augmented data, and compare them on patients that none has seen.

    Every arm of the recipe is trained with every seed and number of real cases. These jobs are independent: several
    processes may share the folder, each with a --shard of its own or started by torchrun. Killed at any moment and
    started again with the same command, an experiment resumes, and nothing is done twice. Whoever finds all jobs done
    prints the table and writes experiment.csv, experiment.json and experiment.html.
    """
    require("meddpm experiment", *OPTIONAL, "matplotlib", "jinja2", "statsmodels")
    from MedDPMLib.experiment.recipe import load_experiment

    settings = load_experiment(recipe, changes or [])
    check_writable(out)
    from MedDPMLib.experiment.cases import open_cases
    from MedDPMLib.experiment.comparison import compare
    from MedDPMLib.experiment.jobs import ExperimentFolder, jobs_of, run_jobs
    from MedDPMLib.experiment.report import estimated, probability, real_patients, write_report
    from MedDPMLib.runtime.device import choose_execution

    split = open_cases(settings)
    folder = ExperimentFolder(out, settings, split)
    jobs, share = jobs_of(settings), find_shard(shard)
    own = share.share_of(jobs)
    execution = choose_execution(share.device(device), precision)
    iterations = settings.iterations
    with show_progress(len(own) * iterations, "training") as progress:
        run_jobs(
            folder,
            own,
            execution,
            lambda job, done: progress.reach(own.index(job) * iterations + done, job.name),
            complain,
        )
    results = [folder.result(job) for job in jobs]
    found = [result for result in results if result is not None]
    if len(found) < len(jobs):
        typer.echo(
            f"{len(found)} of {len(jobs)} jobs are done; the table follows when all are: the same command without"
            " --shard does what is left, and prints it"
        )
        return
    comparison = compare(settings, split, found)
    kinds = settings.figures
    # IoU follows from Dice: it is in the files.
    rows = [
        [kinds[row.figure].title, row.subject, real_patients(row.count), row.arm,
         estimated(row.mean, kinds[row.figure]), estimated(row.difference, kinds[row.figure]),
         probability(row.p), probability(row.p_corrected)]
        for row in comparison.rows
        if row.figure != "iou"
    ]  # fmt: skip
    compared = ["mean (95 %)", "difference (95 %)", "p", "p, corrected"]
    print_table(["figure", settings.subject, "real patients", "arm", *compared], rows)
    for note in comparison.notes:
        typer.echo(f"Note: {note}.")
    for name, text in comparison.about.items():
        typer.echo(f"{name}: {text}")
    for path in write_report(out, comparison):
        typer.echo(str(path))
