"""Which cases does a folder hold? The layouts in which public data sets come are distinguished by their files."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from MedDPMLib.errors import MedDPMError
from MedDPMLib.imaging.io import names_volume, read_volume, volume_stem, volume_suffix
from MedDPMLib.masks.label_tables import nnunet_labels
from MedDPMLib.masks.numberings import label_named, numberings
from MedDPMLib.masks.schemes import LabelScheme
from MedDPMLib.validation import quoted

#: The layouts.
BRATS, NNUNET, MED_DDPM, PAIRS = "BraTS", "nnU-Net raw dataset", "Med-DDPM", "image and mask folders"

#: What a modality is called in file names and channel lists: here and in BraTS to 2021, in BraTS 2023, elsewhere.
_MODALITY_NAMES = {
    "t1": ("t1", "t1n", "t1w", "t1pre"),
    "t1ce": ("t1ce", "t1c", "t1gd", "t1post", "t1km"),
    "t2": ("t2", "t2w"),
    "flair": ("flair", "t2f", "t2flair"),
}

#: What stands behind a modality and says how the image was processed: UCSF-PDGM has both T1c and T1c_bias.
_PROCESSED = "bias|unstripped|stripped|brain|reg|registered|corrected|n4|sri"

#: Segmentations that a program has made, and somebody may have corrected.
_AUTOMATIC = "automated_approx_segm|glistrboost"

#: "BraTS20_Training_001_t1ce" (2018 to 2021), "BraTS-GLI-00000-000-t1c" (2023), "UPENN-GBM-00001_11_T1GD",
#: "TCGA-02-0006_1999.01.01_t1Gd", "UCSF-PDGM-0004_T1c_bias", "VSD.Brain.XX.O.MR_T1c.35533" (2013 and 2015): case and
#: content.
_BRATS_NAMES = (
    re.compile(
        rf"(?P<case>.+)_(?P<content>t1|t1ce|t1gd|t1c|t1post|t2|flair)(_(?P<processed>{_PROCESSED}))?", re.IGNORECASE
    ),
    re.compile(
        r"(?P<case>.+?)_(?P<content>seg|segm|automated_approx_segm|tumou?r_segmentation"
        r"|glistrboost(_manuallycorrected)?)",
        re.IGNORECASE,
    ),
    re.compile(r"(?P<case>.+)-(?P<content>t1n|t1c|t2w|t2f|seg)", re.IGNORECASE),
    re.compile(r"(?P<case>VSD\.Brain\.XX\.O)\.MR_(?P<content>t1|t1c|t2|flair)\.\d+", re.IGNORECASE),
    re.compile(r"(?P<case>VSD)\.Brain_3more\.XX\.O\.(?P<content>OT)\.\d+", re.IGNORECASE),
    re.compile(r"(?P<case>VSD)\.Brain\.XX\.O\.(?P<content>OT)\.\d+", re.IGNORECASE),
)

#: How deep in a BraTS folder cases lie at most: HGG/CASE/FILE, and BRATS2015_Training/HGG/CASE/VSD.Brain.../FILE.
_DEEPEST = 5

#: The folder of Med-DDPM's repository that holds the cases of a scheme.
_MED_DDPM_PARTS = {"brats": "brats2021", "anatomy": "brats2021", "whole-head": "whole_head"}

_IMAGE_FOLDERS = ("image", "images", "img", "imgs")
_MASK_FOLDERS = ("mask", "masks", "label", "labels", "seg", "segmentation", "segmentations")

#: What may follow a pair's common name.
_PAIR_ENDING = re.compile(r"[_-](image|img|mask|label|labels|seg|segmentation)$", re.IGNORECASE)

_EXPECTED = (
    "expected are BraTS cases (CASE_t1.nii.gz, CASE_t1ce, CASE_t2, CASE_flair, CASE_seg, or CASE-t1n and so on), an"
    " nnU-Net raw dataset (dataset.json, imagesTr, labelsTr), Med-DDPM's folders (t1, t1ce, t2, flair, seg), or two"
    " folders of pairs (image and mask)"
)


@dataclass(frozen=True)
class CaseFiles:
    """The files of one case: an image for each modality, and where the ``segmentation`` is or would be.

    ``labels`` says what the segmentation's values are called, by value, where the layout tells; ``components`` which
    part of its image file each modality is, where that has four axes. ``problem`` is what is wrong with it already.
    """

    name: str
    layout: str
    source: Path
    images: Mapping[str, Path]
    segmentation: Path
    labels: Mapping[int, str] | None = None
    components: Mapping[str, int] | None = None
    problem: str | None = None


def find_cases(
    sources: Sequence[Path], scheme: LabelScheme, modalities: Sequence[str], *, numbering: str | None = None
) -> list[CaseFiles]:
    """All cases of ``sources``, by name. A case that lacks a file is among them, with its ``problem``.

    With ``numbering``, which says what the values of segmentations mean, what a layout calls its labels is not asked.
    Raises :class:`MedDPMError` for a source of no known layout, and for a case's name that is met twice.
    """
    found: dict[str, CaseFiles] = {}
    for source in sources:
        if not source.is_dir():
            raise MedDPMError(f"{source} is not a folder: {_EXPECTED}")
        for case in _cases_of(source, scheme, modalities, numbering):
            # Some systems' files do not know capitals from small letters.
            other = found.setdefault(case.name.casefold(), case)
            if other is not case:
                raise MedDPMError(
                    f"the case {case.name} occurs twice, in {other.source} and in {case.source}: rename one of them,"
                    " or prepare one of them only"
                )
    return sorted(found.values(), key=lambda case: case.name)


def _cases_of(source: Path, scheme: LabelScheme, modalities: Sequence[str], numbering: str | None) -> list[CaseFiles]:
    if (source / "dataset.json").is_file() and (source / "imagesTr").is_dir():
        return list(_nnunet_cases(source, scheme, modalities, numbering))
    for folder in (source, source / _MED_DDPM_PARTS.get(scheme.name, "")):
        if not folder.is_dir():
            continue
        if (folders := _modality_folders(folder, modalities)) is not None:
            return list(_modality_cases(folder, folders, modalities))
        if (pair := _pair_folders(folder)) is not None:
            return list(_paired_cases(folder, *pair, modalities))
    if cases := list(_brats_cases(source, modalities)):
        return cases
    raise _unknown(source)


# BraTS -----------------------------------------------------------------------------------------------


def _brats_cases(source: Path, modalities: Sequence[str]) -> Iterator[CaseFiles]:
    groups: dict[tuple[Path, str], dict[str, list[Path]]] = {}
    processed: dict[Path, bool] = {}
    for path in _volumes_below(source, _DEEPEST):
        stem = file_stem(path)
        for pattern in _BRATS_NAMES:
            if match := pattern.fullmatch(stem):
                folder, name = _holder(path), match["case"]
                if name.upper().startswith("VSD"):  # one folder for each case, and in it one for each file
                    folder = folder.parent if folder.name.upper().startswith("VSD") else folder
                    name = folder.name
                content = modality_named(match["content"], modalities) or "seg"
                groups.setdefault((folder, name), {}).setdefault(content, []).append(path)
                is_automatic = re.fullmatch(_AUTOMATIC, match["content"], re.IGNORECASE) is not None
                processed[path] = is_automatic or bool(match.groupdict().get("processed"))
                break
    _join_folders(groups, processed)
    for (folder, name), files in sorted(groups.items()):
        for paths in files.values():
            # The image itself goes before what was made of it, a corrected segmentation before an automatic one.
            plain = [path for path in paths if not processed[path]]
            paths[:] = plain or paths
        some = next(iter(files.values()))[0]
        separator, suffix = (file_stem(some) + "_")[len(name)], volume_suffix(some)
        separator = separator if separator in "_-" else "_"
        style = 1 if separator == "-" else 0
        names = {modality: _MODALITY_NAMES.get(modality, (modality, modality)) for modality in modalities}
        endings = {modality: known[style] for modality, known in names.items()} | {"seg": "seg"}
        wanted = {what: folder / f"{name}{separator}{ending}{suffix}" for what, ending in endings.items()}
        yield _case(name, BRATS, folder, files, wanted, modalities)


def _join_folders(groups: dict[tuple[Path, str], dict[str, list[Path]]], processed: Mapping[Path, bool]) -> None:
    """Makes one case of what UPENN-GBM has in several folders: files by content of (folder, name of the case).

    Segmentations go to the images of their case, and images that were ``processed`` before those that were not.
    """
    for name in {name for _, name in groups}:
        images = {key: files for key, files in groups.items() if key[1] == name and files.keys() - {"seg"}}
        as_they_are = [
            key for key, files in images.items() if not all(processed[path] for path in sum(files.values(), []))
        ]
        if len(as_they_are) != 1:
            continue
        (own,) = as_they_are
        for key in [key for key in groups if key[1] == name and key != own]:
            groups[own].setdefault("seg", []).extend(groups.pop(key).get("seg", []))


def file_stem(path: Path) -> str:
    """The name of the volume in ``path`` without suffix: its folder's, if that is called like a file.

    So Kaggle unpacks BraTS: ``BraTS20_Training_001_t1.nii/00000057_brain_t1.nii``.
    """
    return volume_stem(path.parent if volume_suffix(path.parent) else path)


def _holder(path: Path) -> Path:
    """The folder that ``path`` lies in, not counting one that is called like a file."""
    return path.parent.parent if volume_suffix(path.parent) else path.parent


# nnU-Net ---------------------------------------------------------------------------------------------


def _nnunet_cases(
    source: Path, scheme: LabelScheme, modalities: Sequence[str], numbering: str | None
) -> Iterator[CaseFiles]:
    description = source / "dataset.json"
    try:
        said = json.loads(description.read_text(encoding="utf-8"))
        channels = {int(key): str(name) for key, name in (said.get("channel_names") or said["modality"]).items()}
        labels = nnunet_labels(said["labels"])
    except (OSError, ValueError, KeyError, TypeError, AttributeError, ArithmeticError, RecursionError) as error:
        raise MedDPMError(
            f"{description} is not nnU-Net's description of a dataset ({quoted(error, 100)}): it needs channel_names"
            " and labels"
        ) from error
    numbers: dict[str, int] = {}
    for number, name in channels.items():
        if modality := modality_named(name, modalities):
            numbers.setdefault(modality, number)
    if len(channels) == len(modalities) == 1:
        numbers = {modalities[0]: next(iter(channels))}
    if missing := [modality for modality in modalities if modality not in numbers]:
        raise MedDPMError(
            f"{description} names the channels {', '.join(channels.values())}: {', '.join(missing)} is missing"
        )
    for name in labels.values():
        if numbering is None:
            _check_label(name, scheme, description)
    ending = str(said.get("file_ending", ".nii.gz"))
    names = {path.name.removesuffix(ending) for path in _entries(source / "labelsTr") if path.name.endswith(ending)}
    images = {path.name for path in _entries(source / "imagesTr") if path.name.endswith(ending)}
    names |= {name.removesuffix(ending)[:-5] for name in images if re.fullmatch(r".+_\d{4}", name.removesuffix(ending))}
    for name in sorted(names):
        segmentation = source / "labelsTr" / f"{name}{ending}"
        wanted = {modality: source / "imagesTr" / f"{name}_{n:04d}{ending}" for modality, n in numbers.items()}
        components, joined = None, source / "imagesTr" / f"{name}{ending}"
        if joined.is_file() and not any(path.is_file() for path in wanted.values()):
            # The Medical Segmentation Decathlon has all channels in one file of four axes.
            wanted, components = dict.fromkeys(wanted, joined), numbers
        wanted["seg"] = segmentation
        files = {content: [path] for content, path in wanted.items() if path.is_file()}
        yield replace(
            _case(name, NNUNET, source, files, wanted, modalities),
            labels=None if numbering else labels,
            components=components,
        )


def _check_label(name: str, scheme: LabelScheme, description: Path) -> None:
    if label_named(name, scheme):
        return
    known = ", ".join(label.name for label in scheme.labels)
    names = ", ".join(one.name for one in numberings(scheme))
    raise MedDPMError(
        f'{description} names a label {quoted(name)}, which is none of the scheme "{scheme.name}" ({known}):'
        " rename it there,"
        f" or choose the label convention with --labels ({names})"
    )


# Med-DDPM and pairs ----------------------------------------------------------------------------------


def _modality_folders(folder: Path, modalities: Sequence[str]) -> dict[str, Path] | None:
    """The folders of ``folder`` by modality, and "seg", if it has a folder for each modality."""
    folders = {}
    for path in _entries(folder):
        content = "seg" if path.name.casefold() in _MASK_FOLDERS else modality_named(path.name, modalities)
        if path.is_dir() and content:
            folders[content] = path
    return folders if "seg" in folders and len(folders) > 1 else None


def _modality_cases(source: Path, folders: Mapping[str, Path], modalities: Sequence[str]) -> Iterator[CaseFiles]:
    groups: dict[str, dict[str, list[Path]]] = {}
    for content, folder in folders.items():
        for path in _volumes_below(folder, 1):
            stem = volume_stem(path)
            match = next((match for pattern in _BRATS_NAMES if (match := pattern.fullmatch(stem))), None)
            groups.setdefault(match["case"] if match else stem, {}).setdefault(content, []).append(path)
    for name, files in sorted(groups.items()):
        path = next(iter(files.values()))[0]
        with_ending = volume_stem(path) != name
        wanted = {}
        for what in (*modalities, "seg"):
            ending = f"_{what}" if with_ending else ""
            wanted[what] = folders.get(what, source / what) / f"{name}{ending}{volume_suffix(path)}"
        yield _case(name, MED_DDPM, source, files, wanted, modalities)


def _pair_folders(folder: Path) -> tuple[Path, Path] | None:
    by_name = {path.name.casefold(): path for path in _entries(folder) if path.is_dir()}
    images = next((by_name[name] for name in _IMAGE_FOLDERS if name in by_name), None)
    masks = next((by_name[name] for name in _MASK_FOLDERS if name in by_name), None)
    return (images, masks) if images and masks else None


def _paired_cases(source: Path, images: Path, masks: Path, modalities: Sequence[str]) -> Iterator[CaseFiles]:
    groups: dict[str, dict[str, list[Path]]] = {}
    for path in _volumes_below(images, 1):
        name, modality = _PAIR_ENDING.sub("", volume_stem(path)), None
        longest = sorted(map(re.escape, modalities), key=len, reverse=True)
        match = re.fullmatch(rf"(.+?)[_-]({'|'.join(longest)})", name, re.IGNORECASE)
        match = match or re.fullmatch(r"(.+)[_-]([^_-]+)", name)
        if match and (modality := modality_named(match[2], modalities)):
            name = match[1]
        if modality is None and len(modalities) == 1:
            modality = modalities[0]
        groups.setdefault(name, {}).setdefault(modality or volume_stem(path), []).append(path)
    for path in _volumes_below(masks, 1):
        groups.setdefault(_PAIR_ENDING.sub("", volume_stem(path)), {}).setdefault("seg", []).append(path)
    for name, files in sorted(groups.items()):
        suffix = volume_suffix(next(iter(files.values()))[0])
        wanted = {what: images / f"{name}_{what}{suffix}" for what in modalities}
        if len(modalities) == 1:
            wanted = {modalities[0]: images / f"{name}{suffix}"}
        yield _case(name, PAIRS, source, files, wanted | {"seg": masks / f"{name}{suffix}"}, modalities)


# Shared ----------------------------------------------------------------------------------------------


def _case(
    name: str,
    layout: str,
    source: Path,
    files: Mapping[str, Sequence[Path]],
    wanted: Mapping[str, Path],
    modalities: Sequence[str],
) -> CaseFiles:
    """The case of ``files`` (by modality and "seg"); ``wanted`` is where the layout would have each of them."""
    images = {modality: files[modality][0] for modality in modalities if modality in files}
    segmentation = files.get("seg", [wanted["seg"]])[0]
    problem = None
    for content in (*modalities, "seg"):
        if len(files.get(content, ())) > 1:
            problem = f"{' and '.join(map(str, files[content]))} both exist: keep one of them"
    if missing := [str(wanted[modality]) for modality in modalities if modality not in files]:
        there = [*images.values(), *(path for paths in files.values() for path in paths)]
        problem = f"{there[0]} exists, but " if there else ""
        problem += f"{' and '.join(missing)} {'is' if len(missing) == 1 else 'are'} missing"
        if not images:
            problem += ": a mask without its image is nothing to train on"
    return CaseFiles(name, layout, source, images, segmentation, problem=problem)


def modality_named(name: str, modalities: Sequence[str] = ()) -> str | None:
    """The modality that ``name`` means in file names and lists of channels: one of ``modalities``, whatever these are
    called, or one that is known ("T1Gd" is t1ce), if any."""
    wanted = name.strip().casefold().replace(" ", "")
    if wanted in modalities:
        return wanted
    return next((modality for modality, names in _MODALITY_NAMES.items() if wanted in names), None)


def _entries(folder: Path) -> list[Path]:
    """What lies in ``folder``, in the order of names; nothing hidden."""
    try:
        return sorted(path for path in folder.iterdir() if not path.name.startswith("."))
    except OSError as error:
        raise MedDPMError(f"{folder} cannot be read ({error.strerror}): check the path and its permissions") from error


def _volumes_below(folder: Path, depth: int) -> Iterator[Path]:
    for path in _entries(folder):
        if path.is_dir():
            if depth > 1:
                yield from _volumes_below(path, depth - 1)
        elif names_volume(path):
            yield path


def _unknown(source: Path) -> MedDPMError:
    """What to say about a source without a known layout: most often it is masks alone."""
    first = next(_volumes_below(source, _DEEPEST), None)
    if first is None:
        return MedDPMError(f"{source} holds no volumes: {_EXPECTED}")
    try:
        array = read_volume(first).array
    except MedDPMError:
        return MedDPMError(f"{source} has none of the known layouts: {_EXPECTED}")
    if array.dtype.kind in "bui" and array.max() <= 255 and array.min() >= 0 and len(set(array.flat[::97])) < 64:
        return MedDPMError(
            f"{source} holds masks without images ({first.name} is a map of labels): training needs the image of each"
            f" mask; {_EXPECTED}"
        )
    return MedDPMError(f"{source} has none of the known layouts: {_EXPECTED}")
