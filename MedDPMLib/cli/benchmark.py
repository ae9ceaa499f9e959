"""meddpm benchmark: how fast is it here, and what is the effect of fewer steps?"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from MedDPMLib.cli.checks import check_writable, check_writable_file
from MedDPMLib.cli.options import (
    BUNDLED_MODEL,
    DeviceOption,
    LabelsOption,
    ModelOption,
    OutOption,
    SeedOption,
    model_names,
    takes_settings,
)
from MedDPMLib.cli.output import print_table, show_progress
from MedDPMLib.errors import MedDPMError
from MedDPMLib.inference.settings import GenerationSettings
from MedDPMLib.runtime.packages import require

if TYPE_CHECKING:
    from MedDPMLib.benchmark.steps import Row
    from MedDPMLib.models.model import Model

app = typer.Typer(
    no_args_is_help=True, help="Measure speed and memory on this machine, and the effect of fewer denoising steps."
)

_JsonOption = Annotated[
    Path | None,
    typer.Option("--json", metavar="FILE", help="Write all figures and a description of the machine to a JSON file."),
]


def _recipe_names() -> list[str]:
    from MedDPMLib.recipes.recipe import recipe_names

    return recipe_names()


_GridOption = Annotated[
    float, typer.Option("--grid", help="Scale the sides of the grid, for small machines: 0.5 halves them.")
]
_QuickOption = Annotated[
    bool, typer.Option("--quick", help="Use a quarter of each side and measure once: a check that it runs at all.")
]
_QUICK_GRID = 0.25


@app.command()
def generate(
    model: Annotated[
        list[str] | None,
        typer.Option(
            "--model",
            help="Model by name or file; can be repeated. By default all.",
            autocompletion=model_names,
        ),
    ] = None,
    device: Annotated[
        list[str] | None, typer.Option("--device", help="cpu, cuda, cuda:1 or mps; can be repeated. By default all.")
    ] = None,
    steps_measured: Annotated[
        int,
        typer.Option(
            "--steps-measured", min=1, help="Number of steps to measure in each configuration, after the first."
        ),
    ] = 3,
    grid: _GridOption = 1.0,
    quick: _QuickOption = False,
    json_file: _JsonOption = None,
) -> None:
    """Time the generation of a volume: baseline and optimized, side by side.

    The baseline is float32, channels first, every step of the schedule; optimized is what `meddpm generate` does. Each
    configuration runs in a process of its own, their steps in turn, with a large matrix product in between that
    measures the peak throughput of the machine. Quote the ratios.
    """
    from MedDPMLib.benchmark.inference import benchmark, phases
    from MedDPMLib.benchmark.report import HEADINGS, NUMERIC, remarks, rows
    from MedDPMLib.benchmark.workload import all_names
    from MedDPMLib.runtime.hardware import devices as all_devices

    if json_file is not None:
        check_writable_file(json_file)
    if quick:
        grid, steps_measured = _QUICK_GRID, 1
    names, devices = model or all_names(), device or all_devices()
    reports = len(names) * sum(phases(steps_measured, one) for one in devices)
    with show_progress(reports, "starting") as progress:
        result = benchmark(names, devices, share=grid, steps=steps_measured, report=progress.advance)
    if json_file is not None:
        _write_json(json_file, result.to_dict())
    print_table(HEADINGS, rows(result), numeric=NUMERIC)
    for remark in remarks(result):
        typer.echo(remark)


@app.command()
def train(
    recipes: Annotated[
        list[str] | None,
        typer.Option(
            "--recipe",
            metavar="RECIPE",
            help="A recipe that comes with MedDPM, or a TOML file; can be repeated. By default all that come with it.",
            autocompletion=_recipe_names,
        ),
    ] = None,
    iterations: Annotated[
        int,
        typer.Option(
            "--iterations", min=1, help="Number of iterations to measure in each configuration, after the first."
        ),
    ] = 3,
    grid: _GridOption = 1.0,
    quick: _QuickOption = False,
    device: DeviceOption = "auto",
    json_file: _JsonOption = None,
) -> None:
    """Time an iteration of training: baseline and optimized, side by side; nothing is trained.

    The baseline is float32, channels first; optimized is what `meddpm train` does. Each configuration runs in a process
    of its own. Quote the ratios.
    """
    from dataclasses import asdict

    from MedDPMLib.benchmark.training import measure_training
    from MedDPMLib.benchmark.workload import scaled_size
    from MedDPMLib.recipes.recipe import load_recipe, recipe_names
    from MedDPMLib.runtime.hardware import describe_machine, load

    require("benchmark train", "accelerate", "monai")
    if json_file is not None:
        check_writable_file(json_file)
    if quick:
        grid, iterations = _QUICK_GRID, 1
    from MedDPMLib.train.tasks import network_of

    loaded = []
    for settings in map(load_recipe, recipes or recipe_names()):
        loaded += [settings.at_level(level.name) for level in settings.levels] or [settings]
    multiples = [network_of(settings).side_multiple for settings in loaded]
    sizes = [
        scaled_size(settings.stages[-1].example_size, grid, multiple)
        for settings, multiple in zip(loaded, multiples, strict=True)
    ]
    before = load()
    found = []
    with show_progress(len(loaded), "starting") as progress:
        for settings, size in zip(loaded, sizes, strict=True):
            progress.reach(progress.done, settings.name)
            found += measure_training(settings, grid=size, iterations=iterations, device=device)
            progress.advance(settings.name)
    if json_file is not None:
        rows = [asdict(row) for row in found]
        _write_json(json_file, {"machine": describe_machine(), "before": before, "share": grid, "rows": rows})
    print_table(
        ["recipe", "grid", "configuration", "precision", "iterations/s", "speedup", "memory"],
        [
            [row.recipe, " x ".join(map(str, row.grid)), row.configuration, row.precision, *_training_figures(row)]
            for row in found
        ],
        numeric=[4, 5, 6],
    )
    typer.echo("One example per iteration; memory is the peak without that of PyTorch itself.")
    typer.echo(f"Other work kept {before['busy']:.0%} of the cores busy: compare ratios, not seconds.")


def _training_figures(row) -> list[str]:
    if row.iterations_per_second is None:
        return ["", "", row.problem]
    faster = f"{row.speed_up:.3g}x" if row.speed_up is not None else ""
    return [f"{row.iterations_per_second:.3g}", faster, f"{row.peak / 2**30:.2f} GiB"]


@app.command()
@takes_settings("device", "precision")
def steps(
    *,
    out: OutOption,
    masks: Annotated[
        list[Path] | None,
        typer.Argument(metavar="MASK", help="Mask files or folders; by default the bundled templates."),
    ] = None,
    model: ModelOption = BUNDLED_MODEL,
    step_counts: Annotated[
        str | None,
        typer.Option(
            "--steps",
            metavar="N,N,...",
            help="Numbers of denoising steps, optionally with a sampling algorithm: 4,20,20:ddim.",
        ),
    ] = None,
    guidance: Annotated[
        str, typer.Option("--guidance", metavar="G,G,...", help="Guidance scales, for each number of steps.")
    ] = "1",
    student: Annotated[
        list[str] | None,
        typer.Option(
            "--student",
            metavar="MODEL",
            help="A model distilled from the one studied, with its own number of steps.",
            autocompletion=model_names,
        ),
    ] = None,
    samples: Annotated[
        int, typer.Option("--samples", min=1, help="Number of volumes for each mask, with seeds from --seed on.")
    ] = 2,
    seed: SeedOption = 0,
    labels: LabelsOption = None,
    settings: GenerationSettings,
) -> None:
    """Compare few denoising steps with many, for the same masks and seeds: image quality and time.

    The reference images are those with the most steps (the reference quality, if it is included). Writes all volumes,
    steps.json with the figures by modality, and steps.png with a picture of all settings. Existing volumes are not
    generated again: a run that was stopped resumes.
    """
    from MedDPMLib.cli.generate import find_masks
    from MedDPMLib.models.store import ModelStore

    require("benchmark steps (its MS-SSIM)", "monai")
    card = ModelStore().find(model).card
    paths = find_masks(masks, out) if masks else []
    check_writable(out)

    from MedDPMLib import load_model
    from MedDPMLib.benchmark.steps import STEPS, Study, reference_of, student_variant, variants
    from MedDPMLib.figures.comparison import draw_comparison
    from MedDPMLib.imaging.io import SYNTHETIC
    from MedDPMLib.masks.mask import read_mask
    from MedDPMLib.masks.templates import load_template, template_names
    from MedDPMLib.runtime.device import choose_execution
    from MedDPMLib.runtime.files import atomic_write

    total = card.qualities["reference"]["steps"] if card.draws_by_levels else card.schedule["timesteps"]
    counts = step_counts.split(",") if step_counts else [*(n for n in STEPS if n < total), total]
    students: dict[str, Model] = {}
    for taught in map(load_model, student or []):
        if taught.card.name in (card.name, *students):
            raise MedDPMError(
                f"two of the models are called {taught.card.name}: rename one of them (meddpm models import --name)"
            )
        students[taught.card.name] = taught
    compared = variants(card, counts, _numbers(guidance), settings)
    compared += [student_variant(card, found.card, settings) for found in students.values()]
    painted = [read_mask(path, card.scheme, numbering=labels) for path in paths]
    painted = painted or [load_template(name, card.scheme) for name in template_names()]
    seeds = range(seed, seed + samples)
    execution = choose_execution(settings.device, settings.precision)
    study = Study(load_model(model), painted, seeds, compared, out, execution, students)
    with show_progress(sum(one.settings.steps for one in compared) * len(painted) * samples, "generating") as progress:
        study.make(lambda doing, done: progress.reach(progress.done + done, doing))
    with show_progress(len(compared) * len(painted), "comparing") as progress:
        rows = study.compare(progress.advance)

    reference = reference_of(card, compared)
    _write_json(
        out / "steps.json",
        {
            "model": {"name": card.name, "hash": study.model.hash},
            "masks": [mask.name for mask in painted],
            "seeds": list(seeds),
            "device": str(study.execution.device),
            "precision": study.execution.precision,
            "reference": reference.name,
            "rows": [row.to_dict() for row in rows],
        },
    )
    mask = study.example()
    picture = draw_comparison(
        {one.name: study.volumes(one, mask, seed) for one in compared}, mask.volume, card.scheme,
        caption=f"{SYNTHETIC}, {card.name}, {mask.name}, seed {seed}",
    )  # fmt: skip
    with atomic_write(out / "steps.png") as temporary:
        picture.save(temporary)
    print_table(_STEPS_HEADINGS, [_steps_row(row) for row in rows], numeric=range(1, len(_STEPS_HEADINGS)))
    typer.echo(f"Means over modalities, {len(painted)} masks and {samples} seeds; the reference is {reference.name}.")
    typer.echo("correlation, mean, sd: of intensities inside labels, against the reference of the same mask and seed.")
    typer.echo("sharpness: gradient energy over the reference's. between seeds, sd: variation of images of one mask.")
    for path in (out / "steps.json", out / "steps.png"):
        typer.echo(str(path))


_STEPS_HEADINGS = (
    "steps", "s/volume", "correlation", "|mean|", "|sd|", "MS-SSIM", "MAE", "sharpness", "between seeds", "sd tumor",
    "sd brain",
)  # fmt: skip


def _steps_row(row: Row) -> list[str]:
    figures = (
        row.correlation, row.mean_difference, row.sd_difference, row.ms_ssim, row.mae, row.sharpness,
        row.ms_ssim_between_seeds, row.sd_tumor, row.sd_brain,
    )  # fmt: skip
    return [row.variant.name, f"{row.seconds:.3g}", *map(_over_modalities, figures)]


def _over_modalities(by_modality: dict[str, float | None]) -> str:
    known = [value for value in by_modality.values() if value is not None]
    return f"{sum(known) / len(known):.3f}" if known else ""


def _numbers(text: str) -> list[float]:
    try:
        return [float(number) for number in text.split(",")]
    except ValueError:
        raise MedDPMError(f'"{text}" is not a list of numbers: write 1,1.5,2') from None


def _write_json(path: Path, data: dict) -> None:
    from MedDPMLib.runtime.files import atomic_write

    with atomic_write(path) as temporary:
        temporary.write_text(json.dumps(data, indent=2) + "\n")
