"""meddpm complete: the mask with the structures that a model adds to it, to be viewed and corrected."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from MedDPMLib.cli.checks import check_writable_file
from MedDPMLib.cli.options import BrainFromOption, GeometryOption, LabelsOption, SeedOption, model_names
from MedDPMLib.errors import MedDPMError

#: The bundled model that completes masks.
_COMPLETED = "brain-brats"


def complete(
    mask: Annotated[Path, typer.Argument(help="A mask of a tumor and the rest of the brain.")],
    out: Annotated[
        Path, typer.Option("--out", metavar="FILE", help="The completed mask: .seg.nrrd for 3D Slicer, or NIfTI.")
    ],
    seed: SeedOption = 0,
    model: Annotated[
        str, typer.Option("--model", help="The model that adds the structures.", autocompletion=model_names)
    ] = _COMPLETED,
    labels: LabelsOption = None,
    brain_from: BrainFromOption = None,
    geometry: GeometryOption = None,
) -> None:
    """Write the mask as the model sees it: with the brain structures that the mask does not show, which are invented.

    They are those that `meddpm generate` uses with the same model and seed. In a .seg.nrrd file they are segments with
    names and colors for 3D Slicer; once corrected, the mask can be used with a model that knows all structures: meddpm
    generate FILE --model brain-anatomy
    """
    from MedDPMLib.imaging.io import NIFTI_SUFFIXES, volume_suffix, write_nifti
    from MedDPMLib.imaging.volume import Volume
    from MedDPMLib.inference.atlas import network_labels
    from MedDPMLib.masks.mask import read_mask
    from MedDPMLib.masks.seg_nrrd import SUFFIX, write_segments
    from MedDPMLib.models.store import ModelStore

    suffix = volume_suffix(out)
    if suffix not in (SUFFIX, *NIFTI_SUFFIXES):
        raise MedDPMError(f"{out} cannot be written: choose a name that ends with {SUFFIX}, .nii or .nii.gz")
    if out.resolve() == mask.resolve():
        raise MedDPMError(f"{out} is the mask itself: choose another file for the completed one")
    check_writable_file(out)
    card = ModelStore().find(model).generator_card
    if card.completion is None:
        raise MedDPMError(f"the model {card.name} adds no structures to a mask: use {_COMPLETED}")
    read = read_mask(mask, card.scheme, numbering=labels, brain_from=brain_from, geometry=geometry)
    seen = network_labels(read, card, seed)
    completed = Volume(seen.labels, seen.geometry)
    description = f"label map of MedDPM, partly invented, seed {seed}"
    if suffix == SUFFIX:
        write_segments(out, completed, card.completion, description=description)
    else:
        write_nifti(out, completed, description=description)
    for note in (*read.notes, *seen.notes):
        typer.echo(note)
    typer.echo(str(out))
