"""meddpm appearance: how a patient's scans look, for brains that look like them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from MedDPMLib.cli.checks import check_writable_file
from MedDPMLib.cli.options import BUNDLED_MODEL, LabelsOption, model_names
from MedDPMLib.errors import MedDPMError


def appearance(
    mask: Annotated[Path, typer.Argument(help="The structures of the scanned brain, in the model's labels.")],
    scan: Annotated[
        list[str],
        typer.Option("--scan", metavar="MODALITY=FILE", help="A skull-stripped scan: t1=FILE, t2=FILE and so on."),
    ],
    out: Annotated[Path, typer.Option("--out", metavar="FILE.json", help="Where the appearance is written.")],
    model: Annotated[
        str, typer.Option("--model", help="The model that is to draw such brains.", autocompletion=model_names)
    ] = BUNDLED_MODEL,
    labels: LabelsOption = None,
) -> None:
    """Measure how scans look: contrast, noise and sharpness, some numbers without any anatomy.

    meddpm generate MASK --appearance FILE.json draws brains that look so.
    """
    from MedDPMLib.imaging.io import read_volume
    from MedDPMLib.inference.scan_appearance import measure, write_appearance
    from MedDPMLib.inference.settings import APPEARANCE_SUFFIX
    from MedDPMLib.masks.mask import read_mask
    from MedDPMLib.models.store import ModelStore

    if out.suffix != APPEARANCE_SUFFIX:
        raise MedDPMError(f"{out} cannot be written: give it a name that ends with {APPEARANCE_SUFFIX}")
    check_writable_file(out)
    card = ModelStore().find(model).card
    if not card.draws_by_levels:
        raise MedDPMError(f"the model {card.name} knows no appearances")
    files = scan_files(scan)
    structures = read_mask(mask, card.condition_scheme, numbering=labels)
    scans = {modality: read_volume(path) for modality, path in files.items()}
    write_appearance(out, measure(card, scans, structures))
    typer.echo(str(out))


def scan_files(given: Sequence[str]) -> dict[str, Path]:
    """The files by modality of options such as t1=FILE; :class:`MedDPMError` for anything else."""
    files: dict[str, Path] = {}
    for one in given:
        modality, _, file = one.partition("=")
        if not file or modality in files:
            raise MedDPMError(f'"{one}" is not one modality and its file: write it as t1=FILE, each once')
        files[modality] = Path(file)
    return files
