"""meddpm demo: volumes and a picture of them from what comes with the package."""

from __future__ import annotations

import json

import typer

from MedDPMLib.cli.checks import check_writable
from MedDPMLib.cli.options import (
    BUNDLED_MODEL,
    ModelOption,
    OutOption,
    SeedOption,
    takes_settings,
)
from MedDPMLib.cli.output import show_progress
from MedDPMLib.inference.settings import GenerationSettings


@takes_settings("quality", "sampler", "steps", "device", "precision", "memory")
def demo(
    *,
    out: OutOption,
    model: ModelOption = BUNDLED_MODEL,
    seed: SeedOption = 0,
    settings: GenerationSettings,
) -> None:
    """Generate MRI volumes from the bundled demo mask, and a picture of them. Nothing is downloaded.

    Writes the mask, a volume of each modality (NIfTI, each with its JSON record), montage.png with the outline of
    the painted tumor, and record.json.
    """
    from MedDPMLib.models.store import ModelStore

    card = ModelStore().find(model).card
    settings = settings.for_card(card)
    check_writable(out)

    from MedDPMLib import load_model
    from MedDPMLib.figures.montage import draw_montage
    from MedDPMLib.imaging.io import SYNTHETIC, write_nifti
    from MedDPMLib.inference.generation import plan_run
    from MedDPMLib.inference.record import write_result
    from MedDPMLib.masks.templates import demo_mask
    from MedDPMLib.runtime.files import atomic_write

    mask = demo_mask(card.scheme)
    mask_path, montage_path, record_path = out / "demo_mask.nii.gz", out / "montage.png", out / "record.json"
    run = plan_run(load_model(model), settings)
    typer.echo(run.description, err=True)
    with show_progress(run.settings.steps, "generating") as progress:
        generated = run.generate(mask, seed=seed, progress=lambda *_: progress.advance("generating"))
    write_nifti(mask_path, mask.volume, description="label map of MedDPM")
    written = [mask_path, *write_result(out, "demo", generated)]
    picture = draw_montage(generated, mask.volume, mask.scheme, caption=f"{SYNTHETIC}, {card.name}, seed {seed}")
    with atomic_write(montage_path) as temporary:
        picture.save(temporary)
    with atomic_write(record_path) as temporary:
        temporary.write_text(json.dumps(generated.record, indent=2) + "\n")
    for path in [*written, montage_path, record_path]:
        typer.echo(str(path))
    typer.echo(
        f"Generated in {generated.record['seconds']:.0f} s. Synthetic: not an image of a patient, not for diagnosis."
    )
