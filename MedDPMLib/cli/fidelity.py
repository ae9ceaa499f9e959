"""meddpm fidelity: brains generated from the mask of a real brain, compared with that brain."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from MedDPMLib.cli.checks import check_writable_file
from MedDPMLib.cli.options import (
    LabelsOption,
    SeedOption,
    model_names,
    takes_settings,
)
from MedDPMLib.cli.output import Progress, print_table, show_progress
from MedDPMLib.errors import MedDPMError
from MedDPMLib.inference.settings import GenerationSettings
from MedDPMLib.runtime.packages import require

if TYPE_CHECKING:
    from MedDPMLib.imaging.volume import Volume
    from MedDPMLib.masks.mask import Mask
    from MedDPMLib.metrics.label_statistics import Fidelity
    from MedDPMLib.metrics.similarity import Likeness
    from MedDPMLib.models.card import Card


@takes_settings("quality", "sampler", "steps", "guidance", "device", "precision")
def fidelity(
    *,
    mask: Annotated[Path, typer.Argument(help="The mask of a real brain that the model was not trained on.")],
    model: Annotated[
        list[str],
        typer.Option("--model", help="Model by name or file; repeat it to compare models.", autocompletion=model_names),
    ],
    real: Annotated[
        list[str],
        typer.Option("--real", metavar="MODALITY=IMAGE", help="The real image of each modality: --real t1=FILE ..."),
    ],
    tumor: Annotated[
        Path | None,
        typer.Option(
            help="A tumor segmentation in a BraTS label convention; MASK then contains only the structures, and the"
            " rest of the brain is filled in."
        ),
    ] = None,
    labels: LabelsOption = None,
    samples: Annotated[
        int, typer.Option("--samples", min=1, help="Number of volumes to average over, with seeds from --seed on.")
    ] = 1,
    seed: SeedOption = 0,
    settings: GenerationSettings,
    pairs: Annotated[
        bool, typer.Option("--pairs", help="Also compare with the real image voxel by voxel (MSE, MS-SSIM).")
    ] = False,
    json_file: Annotated[
        Path | None, typer.Option("--json", metavar="FILE", help="Also write the figures to a JSON file.")
    ] = None,
) -> None:
    """Compare the mean intensity inside each label, synthetic against real.

    Several models are compared side by side, for the same mask and the same seeds.
    """
    from MedDPMLib.models.store import ModelStore

    if pairs:
        require("--pairs (its MS-SSIM)", "monai")
    if json_file is not None:
        check_writable_file(json_file)
    cards = [ModelStore().find(name).card for name in model]
    images = _real_images(real, list(dict.fromkeys(modality for card in cards for modality in card.modalities)))
    for_cards = [settings.for_card(card) for card in cards]
    painted = [_mask(mask, card, tumor, labels, images) for card in cards]
    references = [_reference(one, card, images) for one, card in zip(painted, cards, strict=True)]
    seeds = range(seed, seed + samples)
    with show_progress(sum(one.steps for one in for_cards) * samples, "generating") as progress:
        results = [
            _measure(name, card, settings, one, reference, seeds, pairs, progress)
            for name, card, one, reference in zip(model, cards, painted, references, strict=True)
        ]

    if json_file is not None:
        from MedDPMLib.runtime.files import atomic_write

        with atomic_write(json_file) as temporary:
            temporary.write_text(json.dumps({"models": [result.to_dict() for result in results]}, indent=2) + "\n")
    _print_means(results)
    _print_summary(results, list(images))
    if pairs:
        typer.echo(
            "MSE and MS-SSIM compare with this one brain only: of two models with equal means, the more varied one"
            " scores worse."
        )


@dataclass(frozen=True)
class _Result:
    """The results of one model: the figures averaged over its seeds, and those of each seed."""

    name: str
    records: list[dict]
    average: Fidelity
    of_seeds: list[Fidelity]
    #: By modality, for each seed; empty unless requested.
    likeness: list[dict[str, Likeness]]

    def correlations(self, modality: str) -> list[float]:
        return [one.correlation[modality] for one in self.of_seeds if one.correlation[modality] is not None]

    def to_dict(self) -> dict:
        seeds = [
            {"seed": record["seed"], "record": record, **one.to_dict()}
            for record, one in zip(self.records, self.of_seeds, strict=True)
        ]
        for entry, pairs in zip(seeds, self.likeness, strict=False):
            entry["pairs"] = {modality: asdict(pair) for modality, pair in pairs.items()}
        return {"model": self.name, **self.average.to_dict(), "seeds": seeds}


def _mask(path: Path, card: Card, tumor: Path | None, numbering: str | None, images: dict[str, Volume]) -> Mask:
    from MedDPMLib.imaging.io import read_volume, volume_stem
    from MedDPMLib.masks.mask import Mask, read_labels, read_mask
    from MedDPMLib.masks.schemes import load_scheme
    from MedDPMLib.prepare import compose_anatomy

    if tumor is None:
        return read_mask(path, card.scheme, numbering=numbering)
    segmentation, said, said_by = read_labels(tumor, load_scheme("brats"), numbering=numbering)
    composed = compose_anatomy(
        read_volume(path),
        list(images.values()),
        segmentation,
        numbering=said,
        name=volume_stem(tumor),
        said_by=said_by,
    )
    return Mask.from_volume(
        composed, card.scheme, name=path.name, source=str(path), numbering=card.scheme.own_numbering
    )


@dataclass(frozen=True)
class _Reference:
    """The reference: the ``labels`` that the model receives, and the real ``images`` on their grid."""

    labels: Volume
    images: dict[str, Volume]


def _reference(mask: Mask, card: Card, images: dict[str, Volume]) -> _Reference:
    """Raises :class:`MedDPMError` if the images cannot be compared, before anything is generated."""
    from MedDPMLib.imaging.resample import resample_image
    from MedDPMLib.imaging.volume import Volume
    from MedDPMLib.masks.fit import fit
    from MedDPMLib.metrics.label_statistics import mask_fidelity

    fitted = fit(mask, card.grid)
    labels = Volume(fitted.labels, fitted.geometry)
    on_grid = {
        modality: resample_image(images[modality], fitted.geometry, fill=float(images[modality].array.min()))
        for modality in card.modalities
    }
    mask_fidelity(on_grid, on_grid, labels, card.scheme)
    return _Reference(labels, on_grid)


def _measure(
    name: str,
    card: Card,
    settings: GenerationSettings,
    mask: Mask,
    real: _Reference,
    seeds: range,
    pairs: bool,
    progress: Progress,
) -> _Result:
    from MedDPMLib import load_model
    from MedDPMLib.inference.generation import plan_run
    from MedDPMLib.metrics.label_statistics import average, mask_fidelity, paired_likeness

    run = plan_run(load_model(name), settings)
    records, results, likeness = [], [], []
    for seed in seeds:
        doing = f"{card.name}, seed {seed}"
        generated = run.generate(mask, seed=seed, progress=lambda *_, doing=doing: progress.advance(doing))
        records.append(generated.record)
        results.append(mask_fidelity(generated, real.images, real.labels, card.scheme))
        if pairs:
            likeness.append(paired_likeness(generated, real.images, real.labels))
    return _Result(name, records, average(results), results, likeness)


def _print_means(results: list[_Result]) -> None:
    """Every label's mean; the models side by side, each with its difference from the real mean."""
    several = len(results) > 1
    headings = ["modality", "label", "voxels", "real"]
    for result in results:
        headings += [result.name, "difference"] if several else ["synthetic", "difference"]
    by_label = [{(mean.modality, mean.label): mean for mean in result.average.means} for result in results]
    rows = []
    for key in dict.fromkeys(key for table in by_label for key in table):
        found = [table.get(key) for table in by_label]
        first = next(mean for mean in found if mean)
        row = [*key, str(first.voxels), f"{first.real:.3f}"]
        for mean in found:
            row += [f"{mean.synthetic:.3f}", f"{mean.difference:+.3f}"] if mean else ["", ""]
        rows.append(row)
    print_table(headings, rows, numeric=range(2, len(headings)))


def _print_summary(results: list[_Result], modalities: list[str]) -> None:
    """A line for each modality and model: correlation and difference, and the voxel-wise figures if requested."""
    headings = ["modality", "model", "correlation over labels", "mean |difference|"]
    if any(result.likeness for result in results):
        headings += ["MSE", "MS-SSIM"]
    rows = []
    for modality in modalities:
        for result in results:
            if modality not in result.average.correlation:
                continue
            row = [
                modality, result.name, _with_range(result.correlations(modality)),
                f"{result.average.mean_difference(modality):.3f}",
            ]  # fmt: skip
            if result.likeness:
                row.append(_with_range([pair[modality].mse for pair in result.likeness]))
                row.append(_with_range([pair[modality].ms_ssim for pair in result.likeness]))
            rows.append(row)
    print_table(headings, rows, numeric=range(2, len(headings)))


def _with_range(figures: list[float]) -> str:
    """The mean, and for several seeds the range."""
    if not figures:
        return "too few labels"
    mean = f"{sum(figures) / len(figures):.3f}"
    return mean if len(figures) == 1 else f"{mean} ({min(figures):.3f} to {max(figures):.3f})"


def _real_images(options: list[str], modalities: list[str]) -> dict[str, Volume]:
    """The images by modality, in the order of ``modalities``."""
    from MedDPMLib.imaging.io import read_volume

    paths = {}
    for option in options:
        modality, equals, path = option.partition("=")
        if not equals or modality not in modalities or modality in paths:
            raise MedDPMError(
                f"--real {option}: give each of {', '.join(modalities)} once, as in --real {modalities[0]}=FILE"
            )
        paths[modality] = path
    missing = [modality for modality in modalities if modality not in paths]
    if missing:
        raise MedDPMError(f"--real is missing for {', '.join(missing)}: give the image, as in --real {missing[0]}=FILE")
    return {modality: read_volume(paths[modality]) for modality in modalities}
