"""meddpm masks: new masks to generate training images from."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Annotated

import typer

from MedDPMLib.cli.checks import check_writable
from MedDPMLib.cli.generate import find_masks
from MedDPMLib.cli.options import GeometryOption, LabelsOption, OutOption
from MedDPMLib.cli.output import complain, show_progress
from MedDPMLib.cli.remedies import worded
from MedDPMLib.cli.shards import ShardOption, find_shard
from MedDPMLib.errors import MedDPMError
from MedDPMLib.runtime.packages import require


def _scheme_names() -> list[str]:
    from MedDPMLib.masks.schemes import scheme_names

    return scheme_names()


def masks(
    sources: Annotated[list[Path], typer.Argument(metavar="MASK", help="Masks to start from, or folders of masks.")],
    out: OutOption,
    number: Annotated[int, typer.Option("--number", min=1, help="New masks, with seeds from --seed on.")] = 1,
    seed: Annotated[int, typer.Option("--seed", min=0, help="The same seed and masks give the same new mask.")] = 0,
    scheme: Annotated[
        str, typer.Option("--scheme", help="Label scheme of the masks.", autocompletion=_scheme_names)
    ] = "anatomy",
    changes: Annotated[
        str | None,
        typer.Option(
            "--changes",
            metavar="LIST",
            help="What may be changed, separated by commas (all, by default): transplant (the tumor of another mask),"
            " anatomy (deforms the brain), mirror, scale, grow, deform, move.",
        ),
    ] = None,
    across_midline: Annotated[
        bool, typer.Option("--across-midline", help="Tumors may cross the plane between the two sides of the brain.")
    ] = False,
    labels: LabelsOption = None,
    geometry: GeometryOption = None,
    shard: ShardOption = None,
) -> None:
    """Make new masks from given ones: their tumors moved, changed and exchanged, their anatomies deformed.

    A tumor stays inside the brain, out of the ventricles, and on its side of the midline. Each mask is written as a
    segmentation of 3D Slicer, mask_seedN.seg.nrrd, which meddpm generate reads, with a JSON record of what was changed
    by how much. Those that exist already are skipped. A seed whose tumor finds no room is reported and skipped; the
    exit code is then 2.
    """
    from MedDPMLib.inference.record import same_run
    from MedDPMLib.masks.mask import read_mask
    from MedDPMLib.masks.new_masks import CHANGES, new_mask
    from MedDPMLib.masks.schemes import load_scheme
    from MedDPMLib.masks.seg_nrrd import SUFFIX, write_segments
    from MedDPMLib.runtime.files import atomic_write

    require("meddpm masks", "scipy")
    chosen = list(CHANGES) if changes is None else [change.strip() for change in changes.split(",") if change.strip()]
    if unknown := [change for change in chosen if change not in CHANGES]:
        raise MedDPMError(f'there is no change "{unknown[0]}": use {", ".join(CHANGES)}')
    share = find_shard(shard)
    known = load_scheme(scheme)
    check_writable(out)
    given = [read_mask(path, known, numbering=labels, geometry=geometry) for path in find_masks(sources, out)]
    digest = hashlib.sha256("".join(mask.hash for mask in given).encode()).hexdigest()
    seeds = share.share_of(range(seed, seed + number))
    made = skipped = failed = 0
    with show_progress(len(seeds), "making masks") as progress:
        for one in seeds:
            path = out / f"mask_seed{one}{SUFFIX}"
            record = out / f"mask_seed{one}.json"
            asked = {
                "seed": one, "scheme": scheme, "changes": [change for change in CHANGES if change in chosen],
                "across_midline": across_midline, "sources": digest,
            }  # fmt: skip
            if path.is_file() and same_run(record, asked):
                skipped += 1
                progress.drop(1)
                continue
            try:
                new = new_mask(given, one, changes=chosen, across_midline=across_midline)
            except MedDPMError as error:
                failed += 1
                complain(f"seed {one}: {worded(error)}")
                continue
            record.unlink(missing_ok=True)
            write_segments(path, new.labels, known, description=new.record["description"])
            with atomic_write(record) as temporary:
                temporary.write_text(json.dumps({**new.record, "sources": digest}, indent=2) + "\n")
            typer.echo(str(path))
            made += 1
            progress.advance(path.name)
    parts = [f"{made} made"]
    parts += [f"{skipped} skipped, because finished before"] if skipped else []
    parts += [f"{failed} without room for their tumor"] if failed else []
    typer.echo(f"{', '.join(parts)}; masks in {out}")
    if failed and share.local_rank is None:
        raise typer.Exit(2)
