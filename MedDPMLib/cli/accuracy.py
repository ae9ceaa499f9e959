"""meddpm accuracy: the Dice coefficient of a segmenter on brains whose labels are known."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from MedDPMLib.cli.checks import check_writable_file
from MedDPMLib.cli.options import DeviceOption, PrecisionOption, segmenter_names
from MedDPMLib.cli.output import print_table, show_progress
from MedDPMLib.errors import MedDPMError

if TYPE_CHECKING:
    from MedDPMLib.segmentation.accuracy import Known

#: The segmenter that comes with MedDPM.
_BUNDLED = "brain-structures"


def accuracy(
    dataset: Annotated[Path, typer.Argument(help="A dataset with structures, written by meddpm prepare --anatomy.")],
    model: Annotated[
        str, typer.Option("--model", help="The segmenter, by name or file.", autocompletion=segmenter_names)
    ] = _BUNDLED,
    case: Annotated[
        list[str] | None,
        typer.Option("--case", help="Measure on this case; can be repeated. By default on all of the dataset."),
    ] = None,
    write: Annotated[
        Path | None,
        typer.Option("--write", metavar="FILE", help="Write the segmenter with these figures on its card to a bundle."),
    ] = None,
    device: DeviceOption = "auto",
    precision: PrecisionOption = "auto",
) -> None:
    """Print how well a segmenter agrees with known labels: Dice by structure, for each modality and for all together.

    Cases that the segmenter was trained on are refused.
    """
    from MedDPMLib.models.bundle import write_bundle
    from MedDPMLib.models.segmenter_card import ALL
    from MedDPMLib.models.store import SEGMENTER, ModelStore, load_card_and_state
    from MedDPMLib.runtime.device import choose_execution
    from MedDPMLib.segmentation.accuracy import means, measure, summary
    from MedDPMLib.segmentation.segmenter import load_segmenter

    if write is not None:
        check_writable_file(write)
    entry = ModelStore().find(model, SEGMENTER)
    cases = _Cases(dataset, entry.card, case)
    scans = len(entry.card.modalities) + 1
    with show_progress(len(cases) * scans, "measuring") as progress:
        results = measure(
            load_segmenter(entry.path), cases, execution=choose_execution(device, precision), report=progress.advance
        )
    averaged = means(results)
    order = [*(name for name in averaged if name != ALL), *([ALL] if ALL in averaged else [])]
    labels = list(dict.fromkeys(label for scan in reversed(order) for label in averaged[scan]))
    rows = [[label, *(_figure(averaged[scan].get(label)) for scan in order)] for label in labels]
    rows += [
        [title, *(_figure(summary(averaged[scan])[place]) for scan in order)]
        for place, title in enumerate(("mean, large structures", "mean, all structures"))
    ]
    print_table(["Dice", *order], rows, numeric=range(1, 1 + len(order)))
    typer.echo(f"{len(cases)} cases: {', '.join(cases.names)}")
    if write is not None:
        card, state = load_card_and_state(entry.path)
        write_bundle(write, dataclasses.replace(card, dice=averaged, dice_cases=tuple(cases.names)), state)
        typer.echo(str(write))


class _Cases:
    """The cases of a dataset that are asked for, read one by one."""

    def __init__(self, dataset: Path, card, wanted: list[str] | None) -> None:
        from MedDPMLib.data import read_dataset
        from MedDPMLib.recipes.standard import standard
        from MedDPMLib.segmentation.accuracy import check_unseen

        self.modalities = standard(card.scheme.name).modalities
        self.grid = standard(card.scheme.name).grid
        decoded = read_dataset(dataset, self.modalities, scheme=card.scheme.name, grid=self.grid)
        there = {decoded[index].name: index for index in range(len(decoded))}
        self.names = list(dict.fromkeys(wanted)) if wanted else list(there)
        for name in self.names:
            if name not in there:
                raise MedDPMError(f"{dataset} has no case {name}: it has {', '.join(there)}")
            check_unseen(card, name)
        self._open = [(decoded, there[name]) for name in self.names]

    def __len__(self) -> int:
        return len(self.names)

    def __iter__(self) -> Iterator[Known]:
        import numpy as np

        from MedDPMLib.imaging.volume import Volume
        from MedDPMLib.segmentation.accuracy import Known

        geometry = self.grid.centered_on(np.zeros(3))
        for decoded, index in self._open:
            one = decoded[index]
            scans = zip(self.modalities, one.image.numpy(), strict=True)
            yield Known(
                one.name,
                {name: Volume(image.astype(np.float32), geometry) for name, image in scans},
                Volume(one.labels.numpy(), geometry),
            )


def _figure(value: float | None) -> str:
    return "" if value is None else f"{value:.3f}"
