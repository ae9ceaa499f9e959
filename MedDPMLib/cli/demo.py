"""meddpm demo: from nothing to a picture, with what ships in the package."""

from __future__ import annotations

import json

import typer

from MedDPMLib.cli.generate import check_writable
from MedDPMLib.cli.options import (
    BUNDLED_MODEL,
    DeviceOption,
    MemoryOption,
    ModelOption,
    OutOption,
    PrecisionOption,
    QualityOption,
    SamplerOption,
    SeedOption,
    StepsOption,
    check_settings,
    planned,
)
from MedDPMLib.cli.output import show_progress


def demo(
    out: OutOption,
    model: ModelOption = BUNDLED_MODEL,
    seed: SeedOption = 0,
    quality: QualityOption = "standard",
    sampler: SamplerOption = None,
    steps: StepsOption = None,
    device: DeviceOption = "auto",
    precision: PrecisionOption = "auto",
    memory: MemoryOption = "auto",
) -> None:
    """Make MRI volumes from the demo's mask, with a picture of them. Nothing is downloaded.

    Writes the mask, a volume of each modality (NIfTI, each with its JSON record), montage.png with the outline of
    the painted tumour, and record.json.
    """
    from MedDPMLib.models.store import ModelStore

    card = ModelStore().find(model).card
    settings = check_settings(card, quality, sampler, steps, device, precision, memory=memory)
    check_writable(out)

    from MedDPMLib import generate, load_model
    from MedDPMLib.figures.montage import draw_montage
    from MedDPMLib.imaging.io import SYNTHETIC, write_nifti
    from MedDPMLib.inference.record import write_result
    from MedDPMLib.masks.templates import demo_mask
    from MedDPMLib.runtime.files import written_whole

    mask = demo_mask(card.scheme)
    mask_path, montage_path, record_path = out / "demo_mask.nii.gz", out / "montage.png", out / "record.json"
    loaded = load_model(model)
    settings = planned(settings, loaded)
    with show_progress(settings.steps, "generating") as progress:
        generated = generate(
            loaded,
            mask,
            seed=seed,
            progress=lambda *_: progress.advance("generating"),
            **settings.keywords(),
        )
    write_nifti(mask_path, mask.volume, description="label map of MedDPM")
    written = [mask_path, *write_result(out, "demo", generated)]
    picture = draw_montage(generated, mask.volume, mask.scheme, caption=f"{SYNTHETIC}, {card.name}, seed {seed}")
    with written_whole(montage_path) as temporary:
        picture.save(temporary)
    with written_whole(record_path) as temporary:
        temporary.write_text(json.dumps(generated.record, indent=2) + "\n")
    for path in [*written, montage_path, record_path]:
        typer.echo(str(path))
    typer.echo(f"Made in {generated.record['seconds']:.0f} s. Synthetic: not an image of a patient, not for diagnosis.")
