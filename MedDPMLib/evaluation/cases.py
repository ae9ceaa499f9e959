"""Which cases does a folder hold, real or synthetic, and how are they made comparable?

All cases, real and synthetic, go the same way: onto one grid, placed on the brain and never stretched, intensities from
-1 to 1 between the percentiles 0.5 and 99.5 of the brain, -1 around it. So a figure is no difference of preparation.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from MedDPMLib.errors import MedDPMError
from MedDPMLib.imaging.geometry import Grid, center_of
from MedDPMLib.imaging.io import names_volume, read_volume, volume_stem
from MedDPMLib.imaging.normalize import normalize
from MedDPMLib.imaging.resample import resample_image
from MedDPMLib.imaging.volume import Volume
from MedDPMLib.inference.record import read_record
from MedDPMLib.masks.fit import fit
from MedDPMLib.masks.mask import Mask, read_mask
from MedDPMLib.masks.schemes import LabelScheme
from MedDPMLib.prepare.cases import reoriented
from MedDPMLib.prepare.sources import modality_named
from MedDPMLib.recipes.standard import standard
from MedDPMLib.validation import quoted

#: How deep in a folder its files are looked for.
_DEEPEST = 5

#: "CASE_t1", "CASE-t1n": a case and its modality, or its mask.
_NAME = re.compile(r"(?P<case>.+)[_-](?P<content>[^_-]+)")
_MASK_ENDINGS = ("", "_seg", "-seg", "_mask", "-mask", "_labels", "_anatomy", "_segmentation")

#: An image without a mask is brain where it is brighter than this share of its range.
_FAINT = 0.05


@dataclass(frozen=True, eq=False)
class CaseFiles:
    """The ``images`` of a case by modality; its ``mask`` where it is known. Cases of one ``group`` (patient, or mask)
    are not independent. ``labels`` says what the values of the mask are called, where the folder says so."""

    name: str
    group: str
    images: Mapping[str, Path]
    mask: Path | None = None
    labels: str | None = None


@dataclass(frozen=True, eq=False)
class LoadedCase:
    """``images`` (C, D, H, W) float32 in [-1, 1], ``inside`` (D, H, W) the brain, ``labels`` (D, H, W) uint8 in the
    scheme's values (None without a mask)."""

    name: str
    group: str
    images: np.ndarray
    inside: np.ndarray
    labels: np.ndarray | None


def find_cases(folder: Path, masks: Path | None = None) -> list[CaseFiles]:
    """The cases of ``folder``, by name: an nnU-Net raw dataset, volumes that MedDPM generated, or files named
    CASE_MODALITY in any folders below (BraTS). Masks are looked for in ``masks`` by the names of cases (of synthetic
    ones, by that of the mask in their record), beside the images, and in a dataset's labelsTr.

    Raises :class:`MedDPMError` for a folder without cases.
    """
    if not folder.is_dir():
        raise MedDPMError(f"{folder} is not a folder: give the folder of the volumes")
    if masks is not None and not masks.is_dir():
        raise MedDPMError(f"{masks} is not a folder: give the folder of the masks")
    there = {volume_stem(path): path for path in sorted(masks.iterdir()) if names_volume(path)} if masks else {}
    cases = list(_of_dataset(folder) if (folder / "dataset.json").is_file() else _of_names(folder))
    if not cases:
        raise MedDPMError(
            f"{folder} has no volumes named CASE_MODALITY (case1_t1.nii.gz): generate some, or check the folder"
        )
    return [_with_mask(case, there) for case in sorted(cases, key=lambda case: case.name)]


def _with_mask(case: CaseFiles, there: Mapping[str, Path]) -> CaseFiles:
    for name in (case.group, case.name):
        for ending in _MASK_ENDINGS:
            if name + ending in there:
                return replace(case, mask=there[name + ending], labels=None)
    return case


def _of_dataset(folder: Path) -> Iterator[CaseFiles]:
    path = folder / "dataset.json"
    try:
        said = json.loads(path.read_text(encoding="utf-8"))
        channels = {int(key): str(name) for key, name in said["channel_names"].items()}
        ending = str(said["file_ending"])
        labels = ",".join(f"{value}={name}" for name, value in said["labels"].items() if value)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise MedDPMError(f"{path} is not nnU-Net's description of a dataset ({quoted(error, 100)})") from error
    for mask in sorted((folder / "labelsTr").glob(f"*{ending}")):
        name = mask.name.removesuffix(ending)
        images = {
            modality_named(channel) or channel.casefold(): folder / "imagesTr" / f"{name}_{index:04d}{ending}"
            for index, channel in channels.items()
        }
        group = name
        try:
            group = json.loads((folder / "records" / f"{name}.json").read_text(encoding="utf-8"))["mask"]["name"]
        except (OSError, ValueError, KeyError, TypeError):
            pass
        yield CaseFiles(name, group, images, mask, labels)


def _of_names(folder: Path) -> Iterator[CaseFiles]:
    images: dict[str, dict[str, Path]] = {}
    groups: dict[str, str] = {}
    masks: dict[str, Path] = {}
    for path in _volumes(folder, _DEEPEST):
        match = _NAME.fullmatch(volume_stem(path))
        if match is None:
            continue
        case, content = match["case"], match["content"]
        record = read_record(path)
        modality = record["modality"] if record and isinstance(record.get("modality"), str) else modality_named(content)
        if record and isinstance(record.get("mask"), dict):
            groups[case] = str(record["mask"].get("name", case))
        if modality is not None:
            other = images.setdefault(case, {}).setdefault(modality, path)
            if other != path:
                raise MedDPMError(f"{other} and {path} are both {modality} of {case}: leave one of them")
        elif content.casefold() in ("seg", "mask", "anatomy"):
            masks[case] = path
    for case, of_case in images.items():
        yield CaseFiles(case, groups.get(case, case), of_case, masks.get(case))


def _volumes(folder: Path, depth: int) -> Iterator[Path]:
    for path in sorted(folder.iterdir()):
        if path.name.startswith("."):
            continue
        if path.is_dir():
            if depth > 1:
                yield from _volumes(path, depth - 1)
        elif names_volume(path):
            yield path


def common_modalities(real: Sequence[CaseFiles], synthetic: Sequence[CaseFiles]) -> list[str]:
    """The modalities that a real and a synthetic case have, in the usual order, others last."""
    usual = standard("anatomy").modalities
    ours = [modality for modality in synthetic[0].images if any(modality in case.images for case in real)]
    if not ours:
        raise MedDPMError(
            f"the synthetic volumes are {', '.join(synthetic[0].images)}, the real ones"
            f" {', '.join(real[0].images)}: there is no common modality"
        )
    return sorted(ours, key=lambda modality: usual.index(modality) if modality in usual else len(usual))


def scheme_of(cases: Sequence[CaseFiles]) -> str | None:
    """The label scheme that the records of generated cases say, if any has one."""
    for case in cases:
        record = read_record(next(iter(case.images.values())))
        if record and isinstance(record.get("scheme"), str):
            return record["scheme"]
    return None


def grid_of(case: CaseFiles) -> Grid:
    """The grid of a case's first image, its axes turned to L, P and S: so slices look as radiologists see them."""
    geometry = reoriented(read_volume(next(iter(case.images.values()))), "LPS").geometry
    spacing = tuple(round(float(side), 4) for side in geometry.spacing)
    return Grid(geometry.size, spacing, geometry.orientation)


def load_case(
    case: CaseFiles, modalities: Sequence[str], grid: Grid, scheme: LabelScheme | None, numbering: str | None = None
) -> LoadedCase:
    """The case on ``grid``, see the module. With a ``scheme`` the brain is that of the mask, else of the images.

    Raises :class:`MedDPMError` for a modality that is missing, and an image that is constant, not finite or elsewhere
    than its mask.
    """
    if missing := [modality for modality in modalities if modality not in case.images]:
        raise MedDPMError(f"{case.name} has no {' and no '.join(missing)}")
    volumes = {modality: read_volume(case.images[modality]) for modality in modalities}
    labels = None
    if scheme is not None:
        mask = _mask(case, scheme, numbering, next(iter(volumes.values())))
        fitted = fit(mask, grid)
        labels, geometry = fitted.labels, fitted.geometry
        inside = labels > 0
    else:
        first = next(iter(volumes.values()))
        where = _bright(first.array)
        geometry = grid.place(first.geometry, center_of(where, first.geometry))
        inside = resample_image(Volume(where.astype(np.float32), first.geometry), geometry, fill=0.0).array > 0.5
    images = np.empty((len(modalities), *inside.shape), np.float32)
    for channel, (modality, volume) in zip(images, volumes.items(), strict=True):
        placed = resample_image(volume, geometry, fill=float(volume.array.min()))
        try:
            channel[:] = normalize(placed, inside).array
        except (MedDPMError, IndexError) as error:
            raise MedDPMError(f"{case.images[modality]}: {error}") from error
    return LoadedCase(case.name, case.group, images, inside, labels)


def _mask(case: CaseFiles, scheme: LabelScheme, numbering: str | None, image: Volume) -> Mask:
    if case.mask is None:
        raise MedDPMError(f"{case.name} has no mask")
    said = numbering or case.labels
    try:
        return read_mask(case.mask, scheme, numbering=said)
    except MedDPMError as error:
        if not (error.code or "").startswith("no-brain-area"):
            raise
        return read_mask(case.mask, scheme, numbering=said, brain_from=image)


def _bright(array: np.ndarray) -> np.ndarray:
    """The largest piece of what is not faint, holes filled: the brain of an image without a skull."""
    from scipy.ndimage import binary_fill_holes, label

    low, high = float(array.min()), float(np.percentile(array, 99.5))
    if not high > low:
        raise MedDPMError("an image is constant: there is no brain in it")
    pieces, count = label(array > low + _FAINT * (high - low))
    sizes = np.bincount(pieces.ravel(), minlength=count + 1)
    sizes[0] = 0
    return binary_fill_holes(pieces == sizes.argmax())
