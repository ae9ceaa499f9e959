"""meddpm realism: brains generated from the masks of held-out patients, against real ones, in one table."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from MedDPMLib.cli.checks import check_writable, check_writable_file
from MedDPMLib.cli.options import BUNDLED_MODEL, ModelOption, OutOption, SeedOption, takes_settings
from MedDPMLib.cli.output import Progress, print_table, show_progress
from MedDPMLib.errors import MedDPMError
from MedDPMLib.inference.settings import APPEARANCE_SUFFIX, GenerationSettings
from MedDPMLib.runtime.packages import require

if TYPE_CHECKING:
    from MedDPMLib.data import Case
    from MedDPMLib.evaluation.realism import Synthetic
    from MedDPMLib.models.card import Card

_RECIPE = "brain-cascade"


@takes_settings("quality", "sampler", "steps", "guidance", "appearance", "device", "precision")
def realism(
    *,
    dataset: Annotated[Path, typer.Argument(help="A dataset by meddpm prepare with training and held-out brains.")],
    model: ModelOption = BUNDLED_MODEL,
    out: OutOption,
    held_out: Annotated[
        str | None,
        typer.Option(
            "--held-out",
            metavar="NAME,NAME,...",
            help="Cases that the model was not trained on; all others count as its training brains. By default the"
            f" validation cases of the recipe {_RECIPE}.",
        ),
    ] = None,
    samples: Annotated[
        int, typer.Option("--samples", min=1, help="Number of volumes of each mask, with seeds from --seed on.")
    ] = 3,
    seed: SeedOption = 0,
    own_appearance: Annotated[
        bool, typer.Option("--own-appearance", help="Draw each brain in the appearance of its patient's scans.")
    ] = False,
    classifier: Annotated[
        bool, typer.Option("--classifier", help="Also train a classifier to tell real from synthetic: takes minutes.")
    ] = False,
    settings: GenerationSettings,
    json_file: Annotated[
        Path | None, typer.Option("--json", metavar="FILE", help="Also write the figures to a JSON file.")
    ] = None,
) -> None:
    """Measure how real synthetic brains look: contrast, detail, variety and novelty, with real-against-real floors.

    Volumes are generated into the folder --out, and figures of each brain are kept there: the same command later, with
    more seeds or another model, computes only what is missing.
    """
    from MedDPMLib.data import read_dataset
    from MedDPMLib.data.cases import is_one_of
    from MedDPMLib.models.store import ModelStore
    from MedDPMLib.recipes.recipe import load_recipe

    require("realism (its MS-SSIM)", "monai")
    card = ModelStore().find(model).generator_card
    settings = settings.for_card(card)
    assert settings.steps is not None  # the card has filled it in
    if card.completion is not None:
        raise MedDPMError(f"the structures that {card.name} draws are invented: compare a model that takes them")
    if own_appearance and not card.draws_by_levels:
        raise MedDPMError(f"the model {card.name} knows no appearances: leave out --own-appearance")
    check_writable(out)
    if json_file is not None:
        check_writable_file(json_file)
    cases = read_dataset(dataset, card.modalities, scheme=card.scheme.name, grid=card.grid)
    names = held_out.split(",") if held_out else load_recipe(_RECIPE).validation
    known = [cases[index] for index in range(len(cases))]
    unseen = [case for case in known if is_one_of(case.name, names)]
    training = [case for case in known if not is_one_of(case.name, names)]
    if not unseen or not training:
        raise MedDPMError(
            f"{dataset} has {len(training)} training and {len(unseen)} held-out brains: both are needed, name the"
            " latter with --held-out"
        )
    seeds = range(seed, seed + samples)
    with show_progress(len(unseen) * samples * settings.steps, "generating") as progress:
        synthetic = _generated(dataset, model, card, unseen, seeds, settings, out, own_appearance, progress)

    from MedDPMLib.evaluation.realism import Kept, Realism, rows

    with show_progress(len(known) + len(synthetic), "measuring") as progress:
        measured = Realism(
            training, unseen, synthetic, card.scheme.values, card.modalities, Kept(out / "figures.json"),
            lambda doing: progress.reach(min(progress.done + 1, progress.total), doing),
        )  # fmt: skip
        table = measured.table(classifier=classifier)
    print_table(["", *card.modalities], list(rows(table, card.modalities)), numeric=range(1, len(card.modalities) + 1))
    typer.echo(
        f"{card.name}: {len(unseen)} held-out brains, {samples} seeds, {len(training)} training brains; mean or, of"
        " ratios, median, and the 10th to 90th percentile."
    )
    if json_file is not None:
        from MedDPMLib.runtime.files import atomic_write

        data = {
            "model": card.name, "settings": settings.to_dict(), "own_appearance": own_appearance,
            "held_out": [case.name for case in unseen], "training": len(training), "seeds": list(seeds),
            "figures": _plain(table),
        }  # fmt: skip
        with atomic_write(json_file) as temporary:
            temporary.write_text(json.dumps(data, indent=2) + "\n")


def _generated(
    dataset: Path, model: str, card: Card, cases: list[Case], seeds: range, settings: GenerationSettings, out: Path,
    own_appearance: bool, progress: Progress,
) -> list[Synthetic]:  # fmt: skip
    """The volumes of every case and seed in ``out``, generated where they are missing."""
    import hashlib

    from MedDPMLib import load_model
    from MedDPMLib.evaluation.realism import Synthetic
    from MedDPMLib.imaging.io import read_volume
    from MedDPMLib.inference.generation import plan_run
    from MedDPMLib.inference.record import describe_run, is_finished, write_result
    from MedDPMLib.inference.scan_appearance import measure, write_appearance
    from MedDPMLib.masks.mask import read_mask
    from MedDPMLib.models.store import ModelStore
    from MedDPMLib.runtime.device import choose_execution

    execution = choose_execution(settings.device, settings.precision)
    entry, loaded, made = ModelStore().find(model), None, []
    for case in cases:
        mask = read_mask(dataset / "labelsTr" / f"{case.name}.nii.gz", card.scheme, numbering=card.scheme.own_numbering)
        own = settings
        if own_appearance:
            look = out / "appearances" / f"{case.name}{APPEARANCE_SUFFIX}"
            if not look.is_file():
                scans = {
                    modality: read_volume(dataset / "imagesTr" / f"{case.name}_{index:04d}.nii.gz")
                    for index, modality in enumerate(card.modalities)
                }
                look.parent.mkdir(parents=True, exist_ok=True)
                write_appearance(look, measure(card, scans, mask))
            own = settings.changed(appearance=str(look))
        for seed in seeds:
            run = describe_run(
                card=card, model_hash=entry.hash, mask=mask, execution=execution, settings=own, seed=seed
            )
            key = hashlib.sha256(json.dumps(run, sort_keys=True).encode()).hexdigest()[:16]
            folder, stem, doing = out / "volumes" / key, f"{case.name}_seed{seed}", f"{case.name}, seed {seed}"
            if is_finished(folder, stem, card.modalities, run):
                progress.drop(settings.steps)
            else:
                loaded = loaded or load_model(entry.path)
                generated = plan_run(loaded, own, execution).generate(
                    mask, seed=seed, progress=lambda *_, doing=doing: progress.advance(doing)
                )
                write_result(folder, stem, generated)
            made.append(Synthetic(case.name, seed, key, _Loader(folder, stem, card, mask.volume.geometry)))
    return made


class _Loader:
    """Reads the volumes of one result, on the grid of its mask."""

    def __init__(self, folder: Path, stem: str, card: Card, geometry) -> None:
        self.folder, self.stem, self.card, self.geometry = folder, stem, card, geometry

    def __call__(self):
        import numpy as np

        from MedDPMLib.imaging.resample import resample_image
        from MedDPMLib.inference.record import read_result, volume_path

        found = []
        for modality in self.card.modalities:
            volume = read_result(volume_path(self.folder, self.stem, modality))
            if not volume.geometry.is_close(self.geometry):
                volume = resample_image(volume, self.geometry, fill=-1.0)
            found.append(volume.array.astype(np.float32))
        return np.stack(found)


def _plain(table: object) -> object:
    if isinstance(table, dict):
        return {name: _plain(entry) for name, entry in table.items()}
    return asdict(table) if table is not None else None  # type: ignore[call-overload]
