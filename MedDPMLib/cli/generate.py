"""meddpm generate: many masks, many samples, and only what is missing."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from functools import cached_property
from itertools import groupby, product
from operator import itemgetter
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from MedDPMLib.cli.checks import check_writable
from MedDPMLib.cli.options import (
    BrainFromOption,
    GeometryOption,
    LabelsOption,
    ModelOption,
    OutOption,
    SeedOption,
    takes_settings,
)
from MedDPMLib.cli.output import Progress, complain, show_progress
from MedDPMLib.cli.remedies import worded
from MedDPMLib.cli.shards import Shard, ShardOption, find_shard
from MedDPMLib.errors import MedDPMError
from MedDPMLib.inference.settings import SETTINGS, GenerationSettings

if TYPE_CHECKING:
    from MedDPMLib.inference.generation import PlannedRun
    from MedDPMLib.inference.result import Generated
    from MedDPMLib.masks.mask import Mask
    from MedDPMLib.models.card import Card
    from MedDPMLib.models.store import ModelEntry

#: How results are written: a file for each volume, or a dataset that nnU-Net trains with.
_FORMATS = ("volumes", "nnunet")


@takes_settings(*SETTINGS)
def generate(
    *,
    masks: Annotated[list[Path], typer.Argument(metavar="MASK", help="Mask files, or folders of masks.")],
    model: ModelOption,
    out: OutOption,
    samples: Annotated[
        int, typer.Option("--samples", min=1, help="Volumes for each mask, with seeds from --seed on.")
    ] = 1,
    seed: SeedOption = 0,
    settings: GenerationSettings,
    look_like: Annotated[
        list[str] | None,
        typer.Option(
            "--look-like",
            metavar="MODALITY=FILE",
            help="Draw brains that look like this skull-stripped scan: t1=FILE, repeated for more modalities of one"
            " patient; only for models that know appearances.",
        ),
    ] = None,
    scanned: Annotated[
        Path | None,
        typer.Option(
            "--look-like-mask",
            metavar="MASK",
            help="A mask of the brain in the scans of --look-like; by default MASK itself, which then was painted on"
            " them.",
        ),
    ] = None,
    labels: LabelsOption = None,
    brain_from: BrainFromOption = None,
    geometry: GeometryOption = None,
    shard: ShardOption = None,
    write_as: Annotated[
        str,
        typer.Option(
            "--as",
            metavar="FORMAT",
            help="volumes: a file for each; nnunet: a raw dataset of nnU-Net, with the masks as its labels.",
            autocompletion=lambda: list(_FORMATS),
        ),
    ] = _FORMATS[0],
) -> None:
    """Generate synthetic MRI volumes from masks.

    Each volume is written as NIfTI (MASK_seedN_MODALITY.nii.gz) with a JSON record of how it was generated. Volumes
    that exist already, generated with the same settings, are skipped. A mask that cannot be used is reported and
    skipped, the others are processed; the exit code is then 2 (under torchrun, which would end all other processes, 0).
    """
    from MedDPMLib.imaging.io import check_readable
    from MedDPMLib.masks.said import check_said
    from MedDPMLib.models.store import ModelStore

    share = find_shard(shard)
    if write_as not in _FORMATS:
        raise MedDPMError(f'there is no format "{write_as}": use --as {" or --as ".join(_FORMATS)}')
    paths = find_masks(masks, out)
    entry = ModelStore().find(model)
    settings = settings.for_card(entry.card)
    settings = settings.changed(device=share.device(settings.device))
    if labels is not None:
        check_said(entry.card.scheme, labels)
    if brain_from is not None:
        check_readable(brain_from)
    check_writable(out)
    if look_like or scanned is not None:
        settings = _looking_like(entry.card, settings, look_like or [], scanned, paths, out, labels)
    batch = Batch(entry, settings, _results(write_as, out, entry.card), share, labels, brain_from, geometry)
    jobs = share.share_of(list(product(paths, range(seed, seed + samples))))
    with show_progress(len(jobs) * batch.steps, "starting") as progress:
        for path, of_mask in groupby(jobs, key=itemgetter(0)):
            batch.make(path, [seed for _, seed in of_mask], progress)
    batch.results.close()
    typer.echo(batch.summary())
    if batch.failed and share.local_rank is None:
        raise typer.Exit(2)


class _Volumes:
    """Results as ``STEM_MODALITY.nii.gz``, each with its record."""

    def __init__(self, folder: Path, card: Card) -> None:
        self.folder, self.card = folder, card

    def is_finished(self, stem: str, run: dict[str, Any]) -> bool:
        from MedDPMLib.inference.record import is_finished

        return is_finished(self.folder, stem, self.card.modalities, run)

    def write(self, stem: str, generated: Generated, mask: Mask) -> list[Path]:
        from MedDPMLib.inference.record import write_result

        return write_result(self.folder, stem, generated)

    def close(self) -> None: ...


def _results(write_as: str, out: Path, card: Card):
    if write_as == "volumes":
        return _Volumes(out, card)
    from MedDPMLib.inference.nnunet import NnunetDataset

    dataset = NnunetDataset(out, card)
    if dataset.note:
        typer.echo(dataset.note, err=True)
    return dataset


def _looking_like(
    card: Card, settings: GenerationSettings, scans: Sequence[str], scanned: Path | None, masks: Sequence[Path],
    out: Path, labels: str | None,
) -> GenerationSettings:  # fmt: skip
    """``settings`` with the appearance of ``scans``, which is written into ``out``."""
    from MedDPMLib.cli.appearance import scan_files
    from MedDPMLib.imaging.io import read_volume
    from MedDPMLib.inference.scan_appearance import measure, write_appearance
    from MedDPMLib.inference.settings import APPEARANCE_SUFFIX
    from MedDPMLib.masks.mask import read_mask

    if not scans:
        raise MedDPMError("--look-like-mask is the mask of scans: give them with --look-like t1=FILE")
    if not card.draws_by_levels:
        raise MedDPMError(f"the model {card.name} knows no appearances: leave out --look-like")
    if settings.appearance != SETTINGS["appearance"].default:
        raise MedDPMError("--appearance and --look-like contradict each other: leave out one of them")
    if scanned is None and len(masks) > 1:
        raise MedDPMError(
            f"the scans of --look-like show one brain, and {len(masks)} masks are given: name its mask with"
            " --look-like-mask"
        )
    files = scan_files(scans)
    mask = read_mask(scanned or masks[0], card.scheme, numbering=labels)
    path = out / f"look-like{APPEARANCE_SUFFIX}"
    write_appearance(path, measure(card, {name: read_volume(file) for name, file in files.items()}, mask))
    typer.echo(str(path))
    return settings.changed(appearance=str(path))


class Batch:
    """What all masks and seeds have in common; the model is loaded when the first volume is due."""

    def __init__(
        self,
        entry: ModelEntry,
        settings: GenerationSettings,
        results: Any,
        shard: Shard,
        numbering: str | None,
        brain_from: Path | None,
        geometry: str | None = None,
    ) -> None:
        """``settings`` are complete, as :meth:`GenerationSettings.for_card` returns them."""
        from MedDPMLib.runtime.device import choose_execution

        assert settings.steps is not None, "a model's card fills them in"
        self.entry, self.settings, self.steps = entry, settings, settings.steps
        self.results, self.shard = results, shard
        self.reading = {"numbering": numbering, "brain_from": brain_from, "geometry": geometry}
        self.execution = choose_execution(settings.device, settings.precision)
        self.made = self.skipped = self.failed = 0

    @cached_property
    def run(self) -> PlannedRun:
        from MedDPMLib import load_model
        from MedDPMLib.inference.generation import plan_run

        run = plan_run(load_model(self.entry.path), self.settings, self.execution)
        typer.echo(run.description, err=True)
        return run

    def make(self, path: Path, seeds: Sequence[int], progress: Progress) -> None:
        """A sample of the mask in ``path`` for each of ``seeds``.

        An error in the mask is reported, an error in writing ends the run.
        """
        from MedDPMLib.inference.record import describe_run
        from MedDPMLib.masks.mask import read_mask

        card, settings = self.entry.card, self.settings
        try:
            mask = read_mask(path, card.scheme, **self.reading)
        except MedDPMError as error:
            return self._fail(error, len(seeds), progress)
        # Before anything is computed: how the file is read shows whether it is worth the wait.
        for note in mask.notes:
            typer.echo(f"{mask.name}: {note}")
        reported = set(mask.notes)
        for index, seed in enumerate(seeds):
            stem, doing = f"{mask.name}_seed{seed}", f"{mask.name}, seed {seed}"
            run = describe_run(
                card=card, model_hash=self.entry.hash, mask=mask, execution=self.execution, settings=settings,
                seed=seed,
            )  # fmt: skip
            if self.results.is_finished(stem, run):
                self.skipped += 1
                progress.drop(self.steps)
                typer.echo(f"{doing}: finished before, skipped")
                continue
            try:
                generated = self.run.generate(mask, seed=seed, progress=lambda *_, doing=doing: progress.advance(doing))
            except MedDPMError as error:
                return self._fail(error, len(seeds) - index, progress)
            for note in generated.record["notes"]:
                if note not in reported:
                    typer.echo(f"{mask.name}: {note}")
            reported.update(generated.record["notes"])
            for written in self.results.write(stem, generated, mask):
                typer.echo(str(written))
            self.made += 1

    def _fail(self, error: MedDPMError, samples: int, progress: Progress) -> None:
        self.failed += 1
        progress.drop(samples * self.steps)
        complain(worded(error))

    def summary(self) -> str:
        parts = [f"{self.made} generated"]
        if self.skipped:
            parts.append(f"{self.skipped} skipped, because finished before")
        if self.failed:
            parts.append(f"{self.failed} {'mask' if self.failed == 1 else 'masks'} could not be used")
        share = f"share {self.shard}: " if self.shard.count > 1 else ""
        return f"{share}{', '.join(parts)}; results in {self.results.folder}"


def find_masks(arguments: Sequence[Path], out: Path, what: str = "masks") -> list[Path]:
    """The files in ``arguments``, and the volumes in the folders among them; every one needs a name of its own.

    ``what`` they are is for messages.
    """
    from MedDPMLib.imaging.io import check_readable, names_volume, volume_stem

    paths = []
    for argument in arguments:
        found = [argument]
        if argument.is_dir():
            if out.resolve() == argument.resolve():
                raise MedDPMError(
                    f"{out} contains the {what}: choose another folder for the results, which would be read as {what}"
                )
            found = sorted(
                path
                for path in argument.iterdir()
                if names_volume(path) and path.is_file() and not path.name.startswith(".")
            )
            if not found:
                check_readable(argument)
        paths += found
    names = Counter(volume_stem(path) for path in set(paths))
    twice = [name for name, count in names.items() if count > 1]
    if twice:
        raise MedDPMError(f'several {what} are called "{twice[0]}", and their results would be too: rename them')
    return list(dict.fromkeys(paths))
