"""meddpm study: can experts tell? A blinded reader study, from two folders to a report."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from MedDPMLib.cli.output import print_table, show_progress
from MedDPMLib.errors import MedDPMError
from MedDPMLib.study.definition import DOMAINS, Margin, Sessions, Tasks

app = typer.Typer(
    no_args_is_help=True,
    help="Design, hand out and analyze a blinded reader study: can experts tell real from synthetic?",
)

_TASKS = ("rating", "pair", "scores")
_PASSPHRASE = "MEDDPM_STUDY_PASSPHRASE"

_StudyArgument = Annotated[Path, typer.Argument(metavar="STUDY", help="Folder of the study.")]
_PassphraseOption = Annotated[
    str | None,
    typer.Option(
        "--passphrase", envvar=_PASSPHRASE, help="Passphrase of the truth; by default you are asked.", show_envvar=True
    ),
]


@app.command()
def new(
    out: Annotated[Path, typer.Argument(metavar="STUDY", help="Folder to create; it must not exist yet.")],
    real: Annotated[Path, typer.Option("--real", help="Folder or table (.csv) of real volumes.")],
    synthetic: Annotated[
        list[str],
        typer.Option("--synthetic", metavar="[NAME=]PATH", help="The same for synthetic volumes; once per model."),
    ],
    reader: Annotated[list[str], typer.Option("--reader", help="Name of a reader; repeat it for each.")],
    margin: Annotated[
        float,
        typer.Option("--margin", help="Equivalence margin of the AUC: the difference from 0.5 that does not matter."),
    ],
    accuracy_margin: Annotated[
        float | None, typer.Option("--accuracy-margin", help="The same for the accuracy, if different.")
    ] = None,
    modality: Annotated[
        list[str] | None, typer.Option("--modality", help="Modality, as in the file names; by default t1.")
    ] = None,
    contrast: Annotated[list[str] | None, typer.Option(hidden=True)] = None,  # its name until version 0.1
    title: Annotated[str, typer.Option("--title", help="Title of the study and its report.")] = "Reader study",
    ask: Annotated[
        list[str] | None,
        typer.Option(
            "--ask",
            help="rating: real or synthetic; pair: which of two is synthetic; scores: 1 to 5 by domain. Repeatable.",
            autocompletion=lambda: list(_TASKS),
        ),
    ] = None,
    domain: Annotated[
        list[str] | None, typer.Option("--domain", help=f"Domain to score; by default {', '.join(DOMAINS)}.")
    ] = None,
    reason: Annotated[bool, typer.Option(help="Ask for a reason and its location.")] = True,
    training: Annotated[int, typer.Option("--training", min=0, help="Cases with feedback at the start.")] = 4,
    repeats: Annotated[float, typer.Option("--repeats", min=0, max=0.5, help="Fraction of cases shown twice.")] = 0.1,
    session: Annotated[int, typer.Option("--session", min=1, help="Cases in a session.")] = 40,
    washout: Annotated[float, typer.Option("--washout", min=0, help="Days between two sessions.")] = 0.0,
    break_after: Annotated[
        float, typer.Option("--break-after", min=0, help="Minutes until a break is offered.")
    ] = 20.0,
    spacing: Annotated[
        float | None, typer.Option("--spacing", help="Voxel size in mm for all cases; by default the coarsest.")
    ] = None,
    levels: Annotated[int, typer.Option("--levels", min=16, max=256, help="Number of gray levels.")] = 256,
    smoothing: Annotated[
        float, typer.Option("--smoothing", min=0, help="Gaussian smoothing of all cases, FWHM in mm.")
    ] = 0.0,
    seed: Annotated[int, typer.Option("--seed", min=0, help="Random seed for orders, sides, pairs.")] = 0,
    reader_sd: Annotated[float, typer.Option("--reader-sd", min=0, help="Expected SD of the readers' AUC.")] = 0.04,
    correlation: Annotated[
        float, typer.Option("--correlation", min=0, max=1, help="Expected correlation of two readers' errors.")
    ] = 0.3,
    passphrase: _PassphraseOption = None,
) -> None:
    """Create a study of real and synthetic volumes, and report what it can show.

    All cases are converted to one common form and get random names; the truth is encrypted with a passphrase. Then
    `meddpm study pack` creates the archive for each reader.
    """
    from MedDPMLib.study.create import Plan, create
    from MedDPMLib.study.power import Variance, describe, expect
    from MedDPMLib.study.sources import collect

    asked = ask or ["rating"]
    unknown = [name for name in asked if name not in _TASKS]
    if unknown:
        raise MedDPMError(f'there is no question "{unknown[0]}": use {", ".join(_TASKS)}')
    modalities = tuple([*(modality or ()), *(contrast or ())] or ["t1"])
    models = _models(synthetic)
    plan = Plan(
        title=title,
        modalities=modalities,
        real=collect(real, modalities),
        synthetic={name: collect(path, modalities) for name, path in models.items()},
        readers=tuple(name.strip() for name in reader),
        margin=Margin(margin, margin if accuracy_margin is None else accuracy_margin),
        tasks=Tasks(
            "rating" in asked, "pair" in asked, tuple(domain or DOMAINS) if "scores" in asked else (), reason=reason
        ),
        sessions=Sessions(session, washout, break_after, training, repeats),
        levels=levels,
        smoothing=smoothing,
        spacing=spacing,
        seed=seed,
    )
    number = len(plan.real) + sum(map(len, plan.synthetic.values()))
    variance = Variance(reader_sd, correlation)
    secret = passphrase or typer.prompt("Passphrase of the truth", hide_input=True, confirmation_prompt=True)
    with show_progress(2 * number, "reading") as progress:
        definition, notes = create(out, plan, secret, progress.advance)
    typer.echo(f"{out} created: {definition.real} real and {definition.synthetic} synthetic cases")
    for note in notes:
        typer.echo(note)
    if len(plan.readers) > 1 and plan.tasks.real_or_synthetic:
        # Half of the training cases are of either kind, and count no more.
        each, others = (count - training // 2 for count in (definition.synthetic // len(models), definition.real))
        found = expect(len(plan.readers), each, others, margin, variance)
        for line in describe(found, len(plan.readers), each, others, margin):
            typer.echo(line)


@app.command()
def pack(
    study: _StudyArgument,
    out: Annotated[Path, typer.Option("--out", help="Folder for the archives; created if missing.")],
) -> None:
    """Create one archive for each reader, without the truth; it is opened in 3D Slicer's module MedDPM Study."""
    from MedDPMLib.study.pack import pack as pack_study

    for path in pack_study(study, out):
        typer.echo(str(path))


@app.command("analyse", hidden=True)  # its name until version 0.1
@app.command()
def analyze(
    study: Annotated[Path | None, typer.Argument(metavar="[STUDY]", help="Folder of the study.")] = None,
    answers: Annotated[
        list[Path] | None,
        typer.Argument(metavar="[ANSWERS]...", help="Files that readers sent back, or folders of them."),
    ] = None,
    out: Annotated[
        Path | None, typer.Option("--out", help="Folder for the report, the tables and the files for other programs.")
    ] = None,
    table: Annotated[
        Path | None,
        typer.Option(
            "--table", metavar="FILE", help="Instead of a study: CSV of reader, treatment, case, truth, rating."
        ),
    ] = None,
    json_file: Annotated[Path | None, typer.Option("--json", metavar="FILE", help="Write all figures as JSON.")] = None,
    passphrase: _PassphraseOption = None,
) -> None:
    """Analyze the answers to a study, or a table of ratings from another program.

    AUC with the multi-reader multi-case analysis of Obuchowski and Rockette, accuracy, agreement, equivalence within
    the stated margin, scores, choices and time; as a report (HTML), tables (CSV), JSON, and files for iMRMC
    and RJafroc.
    """
    if (table is None) == (study is None):
        raise MedDPMError("give either the folder of a study with its answers, or --table FILE.csv")
    if out is None and json_file is None:
        raise MedDPMError("choose where to write the results: --out FOLDER, --json FILE or both")
    if table is not None:
        _analyze_table(table, out, json_file)
    else:
        _analyze_study(study, answers or [], out, json_file, passphrase)


@app.command()
def simulate(
    readers: Annotated[int, typer.Option("--readers", min=2, help="Readers per study.")] = 8,
    synthetic: Annotated[int, typer.Option("--synthetic", min=2, help="Synthetic cases per study.")] = 30,
    real: Annotated[int, typer.Option("--real", min=2, help="Real cases per study.")] = 30,
    d_prime: Annotated[float, typer.Option("--d-prime", help="Mean discrimination (d') of the readers.")] = 0.5,
    spread: Annotated[float, typer.Option("--spread", min=0, help="Standard deviation of d' between readers.")] = 0.2,
    bias: Annotated[float, typer.Option("--bias", help="Bias toward the answer synthetic.")] = 0.0,
    lapses: Annotated[
        float, typer.Option("--lapses", min=0, max=1, help="Fraction of answers given at random.")
    ] = 0.02,
    margin: Annotated[float, typer.Option("--margin", min=0, max=0.5, help="Equivalence margin of the AUC.")] = 0.1,
    studies: Annotated[int, typer.Option("--studies", min=1, help="Studies to simulate.")] = 500,
    seed: Annotated[int, typer.Option("--seed", min=0)] = 0,
) -> None:
    """Check the analysis on simulated readers: do intervals cover the truth, does the test keep its level?

    Three populations: readers with the d' given, readers who cannot tell, and readers whose AUC lies on the margin, for
    whom equivalence may be shown in 5 % of studies at most.
    """
    from MedDPMLib.study.simulate import Readers
    from MedDPMLib.study.simulate import simulate as run

    given = Readers(d_prime, spread, bias, lapses)
    populations = {
        f"d' = {d_prime:g}": given,
        "cannot tell": given.with_mean_auc(0.5),
        f"AUC on the margin, {0.5 + margin:g}": given.with_mean_auc(0.5 + margin),
    }
    rows = []
    with show_progress(studies * len(populations), "simulating") as progress:
        for name, population in populations.items():
            found = run(
                population, readers=readers, synthetic=synthetic, real=real, margin=margin, studies=studies, seed=seed,
                advance=lambda name=name: progress.advance(name),
            )  # fmt: skip
            rows.append(
                [
                    name,
                    f"{found.true_auc:.3f}",
                    f"{100 * found.coverage:.1f} %",
                    f"{found.half_width:.3f}",
                    f"{100 * found.shown / studies:.1f} %",
                ]
            )
    print_table(
        ["readers", "true AUC", "covered by 95 %", "half width", "equivalence shown"], rows, numeric=[1, 2, 3, 4]
    )


def _models(synthetic: list[str]) -> dict[str, Path]:
    models: dict[str, Path] = {}
    for one in synthetic:
        name, given, path = one.partition("=")
        if not given:
            name, path = "synthetic", one
        if name in models:
            raise MedDPMError(f'two folders are called "{name}": name each model, as in --synthetic NAME=PATH')
        if not name or name == "real":
            raise MedDPMError(f'"{one}" names no model: write --synthetic NAME=PATH, and not "real"')
        models[name] = Path(path)
    return models


def _analyze_table(table: Path, out: Path | None, json_file: Path | None) -> None:
    from MedDPMLib.study.mrmc_report import analyze_table
    from MedDPMLib.study.table import read_table

    ratings = read_table(table)
    found = analyze_table(ratings)
    if json_file is not None:
        _write_json(json_file, found)
    if out is not None:
        _export(out, ratings, table.stem)
    for note in found["notes"]:
        typer.echo(note, err=True)
    rows = [
        [name, f"{found['mean'][name]:.4f}", _interval(one["ci"]), "" if one["df"] is None else f"{one['df']:.2f}"]
        for name, one in found["single"].items()
    ]
    print_table(["treatment", "mean AUC", "95 % interval", "df"], rows, numeric=[1, 3])
    if "p" in found:
        typer.echo(f"Equal treatments: F = {found['F']:.2f}, ddf = {found['ddf']:.2f}, p = {found['p']:.4f}")


def _analyze_study(
    study: Path, answers: list[Path], out: Path | None, json_file: Path | None, passphrase: str | None
) -> None:
    from MedDPMLib.runtime.files import atomic_write
    from MedDPMLib.study.analysis import analyze, to_json
    from MedDPMLib.study.report.conclusion import conclude
    from MedDPMLib.study.report.page import write_report
    from MedDPMLib.study.rows import read_readings, to_csv

    secret = passphrase or typer.prompt("Passphrase of the truth", hide_input=True)
    analysis = analyze(read_readings(study, answers, secret))
    if json_file is not None:
        _write_json(json_file, to_json(analysis))
    if out is not None:
        write_report(out / "report.html", analysis)
        with atomic_write(out / "answers.csv") as temporary:
            temporary.write_text(to_csv(analysis.readings), encoding="utf-8")
        if analysis.detected is not None:
            _export(out, analysis.detected.ratings, analysis.readings.definition.title)
        typer.echo(str(out / "report.html"))
    for note in analysis.notes:
        typer.echo(f"note: {note}", err=True)
    if analysis.detected is not None:
        for model, both in analysis.detected.equivalence.items():
            mean = analysis.detected.means[model][0]
            typer.echo(f"{model}: {conclude('AUC', mean, both[0] if both else None).words}")


def _export(out: Path, ratings, title: str) -> None:
    from MedDPMLib.runtime.files import atomic_write
    from MedDPMLib.study.exports import numbering, write_imrmc, write_rjafroc

    write_imrmc(out / "ratings.imrmc", ratings, title)
    write_rjafroc(out / "ratings-rjafroc.xlsx", ratings)
    with atomic_write(out / "numbering.csv") as temporary:
        temporary.write_text(numbering(ratings), encoding="utf-8")


def _interval(ci: list[float] | None) -> str:
    return "" if ci is None else f"{ci[0]:.4f} to {ci[1]:.4f}"


def _write_json(path: Path, found: dict) -> None:
    from MedDPMLib.runtime.files import atomic_write

    with atomic_write(path) as temporary:
        temporary.write_text(json.dumps(found, indent=1, ensure_ascii=False, allow_nan=False), encoding="utf-8")
