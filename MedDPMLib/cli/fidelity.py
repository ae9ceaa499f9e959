"""meddpm fidelity: a brain made from a real brain's mask, beside that brain."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from MedDPMLib.cli.options import (
    DeviceOption,
    LabelsOption,
    ModelOption,
    PrecisionOption,
    QualityOption,
    SamplerOption,
    SeedOption,
    StepsOption,
    check_settings,
)
from MedDPMLib.cli.output import print_table, show_progress
from MedDPMLib.errors import MedDPMError


def fidelity(
    mask: Annotated[Path, typer.Argument(help="The mask of a real brain that the model was not trained on.")],
    model: ModelOption,
    real: Annotated[
        list[str],
        typer.Option("--real", metavar="MODALITY=IMAGE", help="The real image of each modality: --real t1=FILE ..."),
    ],
    tumour: Annotated[
        Path | None,
        typer.Option(
            help="A tumour segmentation in a BraTS numbering; MASK then holds structures alone, the brain is filled up."
        ),
    ] = None,
    labels: LabelsOption = None,
    seed: SeedOption = 0,
    quality: QualityOption = "standard",
    sampler: SamplerOption = None,
    steps: StepsOption = None,
    device: DeviceOption = "auto",
    precision: PrecisionOption = "auto",
    json_file: Annotated[
        Path | None, typer.Option("--json", metavar="FILE", help="Write the figures to a JSON file too.")
    ] = None,
) -> None:
    """Measure how well labels keep their look: mean intensity inside each label, synthetic against real."""
    from MedDPMLib.store import ModelStore

    card = ModelStore().find(model).card
    images = _real_images(real, card.modalities)
    settings = check_settings(card, quality, sampler, steps, device, precision)

    from MedDPMLib import generate, load_model
    from MedDPMLib.fidelity import mask_fidelity
    from MedDPMLib.masks import Mask, fit, read_mask
    from MedDPMLib.prepare import compose_anatomy
    from MedDPMLib.volume import Volume, read_volume, resample_image, written_whole

    if tumour is None:
        painted = read_mask(mask, card.scheme, numbering=labels)
    else:
        composed = compose_anatomy(read_volume(mask), list(images.values()), read_volume(tumour))
        painted = Mask.from_volume(
            composed, card.scheme, name=mask.name, source=str(mask), numbering=card.scheme.own_numbering
        )
    with show_progress(settings.steps, "generating") as progress:
        generated = generate(
            load_model(model),
            painted,
            seed=seed,
            progress=lambda *_: progress.advance("generating"),
            **settings.keywords(),
        )
    fitted = fit(painted, card.grid)
    on_grid = {
        modality: resample_image(image, fitted.geometry, fill=float(image.array.min()))
        for modality, image in images.items()
    }
    result = mask_fidelity(generated, on_grid, Volume(fitted.labels, fitted.geometry), card.scheme)

    if json_file is not None:
        with written_whole(json_file) as temporary:
            temporary.write_text(json.dumps({**generated.record, **result.to_dict()}, indent=2) + "\n")
    print_table(
        ["modality", "label", "voxels", "synthetic", "real", "difference"],
        [
            [m.modality, m.label, str(m.voxels), f"{m.synthetic:.3f}", f"{m.real:.3f}", f"{m.difference:+.3f}"]
            for m in result.means
        ],
        numeric=[2, 3, 4, 5],
    )
    for modality, correlation in result.correlation.items():
        known = "too few labels" if correlation is None else f"{correlation:.3f}"
        typer.echo(f"correlation over labels, {modality}: {known}")


def _real_images(options: list[str], modalities: tuple[str, ...]) -> dict:
    """The images by modality, in the order of ``modalities``."""
    from MedDPMLib.volume import read_volume

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
