"""Which label is each segment of a segmentation file of 3D Slicer (``.seg.nrrd``)? Read, and written.

3D Slicer numbers segments in the order in which they were added and says in the header what they are, so the
header counts, not the values: terminology first, name second. Overlapping segments lie in several layers.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from MedDPMLib.errors import MedDPMError
from MedDPMLib.imaging.geometry import Geometry
from MedDPMLib.imaging.io import (
    check_readable,
    itk_array,
    itk_ijk_to_ras,
    itk_image,
    notes_on_space,
    read_itk,
    volume_suffix,
)
from MedDPMLib.imaging.text_headers import TextHeader, read_text_header
from MedDPMLib.imaging.volume import Volume
from MedDPMLib.masks.numberings import has_side, label_named
from MedDPMLib.masks.regions import lone_regions
from MedDPMLib.masks.schemes import Code, Label, LabelScheme
from MedDPMLib.runtime.content import read_head, volume_format
from MedDPMLib.runtime.files import atomic_write
from MedDPMLib.validation import quoted

#: How the file of a segmentation ends.
SUFFIX = ".seg.nrrd"
#: The lists of 3D Slicer in which the labels' codes are found: what a segment is, and which part of the body.
TYPES = "Segmentation category and type - 3D Slicer General Anatomy list"
REGIONS = "Anatomic codes - DICOM master list"

#: The type of a segment that nobody has described: tissue.
_UNDESCRIBED = ("85756007",)

#: More layers than segments can be in.
_MOST_LAYERS = 1_000_000


@dataclass(frozen=True)
class Segment:
    """A segment as the header has it: voxels of ``value`` in ``layer``; ``code`` is (scheme, value) of its type, and
    ``meaning`` what that is called. ``terminology`` is its category and type, ``color`` red, green and blue."""

    name: str
    value: int
    layer: int
    code: tuple[str, str] | None
    meaning: str = ""
    terminology: tuple[Code, Code] | None = None
    color: tuple[int, int, int] | None = None

    def label_in(self, scheme: LabelScheme) -> Label | None:
        """The label of ``scheme`` that this segment is, by its terminology or else by its name."""
        return self.label_by_code(scheme) or label_named(self.name, scheme) or label_named(self.meaning, scheme)

    def label_by_code(self, scheme: LabelScheme) -> Label | None:
        return scheme.label_by_code(*self.code) if self.code else None


def holds_segments(path: str | os.PathLike) -> bool:
    """Whether the file says in its header which segments it holds. Its voxels are not read."""
    path = Path(path)
    check_readable(path)
    if volume_format(read_head(path)) != "NRRD":
        return False
    return any(re.fullmatch(r"Segment\d+_(ID|Name)", key) for key in read_text_header(path).keys)


def header_segments(path: str | os.PathLike) -> list[Segment]:
    """The segments that the header of ``path`` describes. Its voxels are not read."""
    path = Path(path)
    check_readable(path)
    return _segments(path, read_text_header(path), _MOST_LAYERS)


def read_segments(
    path: str | os.PathLike, scheme: LabelScheme, said: Mapping[str, Label | None] | None = None
) -> Volume:
    """The file's segments as one volume of ``scheme``'s values, uint8; of overlapping ones the priority decides.

    ``said`` is what somebody says of segments by their names in small letters; None leaves one out. Left and right, and
    structures that ``scheme`` does not tell apart, are combined. The notes say which segment
    became which label. Raises :class:`MedDPMError` when a segment that is not empty is none of the scheme's labels or
    may be several (``masks/regions.py``),
    when two are the same label, when there is a value that is no segment's, and for a damaged file.
    """
    path = Path(path)
    header = read_text_header(path)
    image = read_itk(path, header)
    if image.GetDimension() != 3:
        raise MedDPMError(f"{path} has {image.GetDimension()} axes: one segmentation of a 3-D volume is needed")
    try:
        geometry = Geometry(image.GetSize(), itk_ijk_to_ras(image))
    except MedDPMError as error:
        raise MedDPMError(f"{path}: {error}") from None
    layers = itk_array(image).reshape(*geometry.shape, -1)
    segments = _segments(path, header, layers.shape[-1])
    return merge_segments(path, segments, layers, geometry, scheme, said, notes_on_space(path, header))


def merge_segments(
    path: Path,
    segments: list[Segment],
    layers: np.ndarray,
    geometry: Geometry,
    scheme: LabelScheme,
    said: Mapping[str, Label | None] | None = None,
    notes: tuple[str, ...] = (),
) -> Volume:
    """The ``segments`` in ``layers`` (k, j, i, layer) as a volume of ``scheme``'s values, see :func:`read_segments`."""
    taken: dict[int, list[Segment]] = {}
    said = said or {}
    if said and not any(_key(segment) in said for segment in segments):
        names = ", ".join(quoted(segment.name) for segment in segments[:10])
        raise MedDPMError(f"{path} has no segment called {quoted(next(iter(said)))}: its segments are {names}")
    remarks, strangers = [*notes], []
    lone = _lone(segments, scheme, said)
    for segment in _present(path, segments, layers):
        label = said[_key(segment)] if _key(segment) in said else segment.label_in(scheme)
        if label is not None:
            if segment.name in lone:
                raise _lone_region(path, segment, scheme)
            taken.setdefault(label.value, []).append(segment)
        elif _key(segment) in said:
            remarks.append(f"segment {quoted(segment.name)} is left out, as requested")
        else:
            strangers.append(segment.name)
    if strangers:
        raise MedDPMError(
            f"{path}: none of the scheme {scheme.name}'s labels ({scheme.describe_labels()}) is the segment"
            f" {', '.join(f'{name:.50}' for name in strangers[:10])}",
            remedy="rename it after its label or remove it",
            code="unknown-segment",
            example=f"{strangers[0]}={scheme.labels[-1].name.lower()}",
        )
    labels = np.zeros(geometry.shape, np.uint8)
    for value in reversed(scheme.priority):
        label = scheme.label_by_value(value)
        own = taken.get(value, [])
        for segment in own:
            labels[layers[..., segment.layer] == segment.value] = value
        if len(own) == 1:
            remarks.append(f"segment {quoted(own[0].name)} is taken for {label.name.lower()}")
        elif own:
            _check_together(path, own, label)
            names = ", ".join(quoted(segment.name) for segment in own)
            remarks.append(f"segments {names} are combined for {label.name.lower()}")
    return Volume(labels, geometry, tuple(remarks))


def _key(segment: Segment) -> str:
    """The name of ``segment`` as what somebody says of it is found by."""
    return " ".join(segment.name.casefold().split())


def _lone(segments: list[Segment], scheme: LabelScheme, said: Mapping[str, Label | None]) -> set[str]:
    """The names of segments that may be several labels, if neither a code nor ``said`` says which."""
    labels = {one.name: said[_key(one)] if _key(one) in said else one.label_in(scheme) for one in segments}
    known = {one.name for one in segments if _key(one) in said or one.label_by_code(scheme)}
    return lone_regions(labels) - known


def _lone_region(path: Path, segment: Segment, scheme: LabelScheme) -> MedDPMError:
    parts = ", ".join(label.name.lower() for label in scheme.tumor)
    example = f"{segment.name}={scheme.tumor[0].name.lower()}"
    return MedDPMError(
        f"{path}: the segment {quoted(segment.name)} is a region inside which no part of the tumor is named: it can be"
        f" any of {parts}",
        remedy=f'say which it is, as in "{example}"',
        code="lone-region",
        example=example,
    )


def _present(path: Path, segments: list[Segment], layers: np.ndarray) -> list[Segment]:
    """Those of ``segments`` that are not empty, if every voxel of ``layers`` (k, j, i, layer) is one of theirs."""
    found = []
    for number in range(layers.shape[-1]):
        values = set(np.unique(layers[..., number]).tolist()) - {0}
        own = [segment for segment in segments if segment.layer == number]
        if nameless := sorted(values - {segment.value for segment in own}):
            raise MedDPMError(
                f"{path} holds the value {', '.join(f'{value:g}' for value in nameless[:10])}, which is none of its"
                f" segments' ({', '.join(segment.name for segment in own) or 'none'}): open it in 3D Slicer, where such"
                " voxels are missing, and save it again"
            )
        found += [segment for segment in own if segment.value in values]
    order = {id(segment): place for place, segment in enumerate(segments)}
    return sorted(found, key=lambda segment: order[id(segment)])


def _check_together(path: Path, segments: list[Segment], label: Label) -> None:
    """Refuses two segments of one label that are neither its sides nor its parts: which of them is meant?"""
    if label.role != "tumor" or all(has_side(segment.name) for segment in segments):
        names = [" ".join(segment.name.casefold().split()) for segment in segments]
        if len(set(names)) == len(names):
            return
    raise MedDPMError(
        f"{path}: the segments {quoted(segments[0].name)} and {quoted(segments[1].name)} are both the label"
        f' "{label.name}": merge them or rename one of them'
    )


def write_segments(path: str | os.PathLike, labels: Volume, scheme: LabelScheme, *, description: str = "") -> None:
    """Writes ``labels`` (values of ``scheme``, on a geometry without shear) for 3D Slicer, whole or not at all.

    Every label that is there becomes a segment of its value, with the scheme's name, color and terminology;
    ``description`` goes into the header.
    """
    import SimpleITK

    path = Path(path)
    if volume_suffix(path) != SUFFIX:
        raise MedDPMError(f"{path} cannot be written as a segmentation: the name has to end with {SUFFIX}")
    array = labels.array.astype(np.uint8)
    image = itk_image(array, labels.geometry)
    if description:
        image.SetMetaData("Description", description)
    there = [scheme.label_by_value(int(value)) for value in np.unique(array) if value]
    blocks = {"Segmentation": _segmentation_header(labels.geometry)}
    blocks.update({f"Segment{n}": _segment_header(label, labels.geometry) for n, label in enumerate(there)})
    for block, fields in blocks.items():
        for key, value in fields.items():
            image.SetMetaData(f"{block}_{key}", value)
    with atomic_write(path) as temporary:
        try:
            SimpleITK.WriteImage(image, str(temporary), useCompression=True)
            written = itk_array(SimpleITK.ReadImage(str(temporary)))
        except RuntimeError as error:
            raise OSError(str(error)) from error
        if not np.array_equal(written, array):  # a full disk is not always reported
            raise OSError("it was not written completely")


def _segmentation_header(geometry: Geometry) -> dict[str, str]:
    """What 3D Slicer's header says of all segments: above all, on which voxels painting continues."""
    extent = [end for size in geometry.size for end in (0, size - 1)]
    place = ";".join(f"{number:.17g}" for number in (*geometry.ijk_to_ras.ravel(), *extent))
    return {
        "MasterRepresentation": "Binary labelmap",
        "ContainedRepresentationNames": "Binary labelmap|",
        "ConversionParameters": f"Reference image geometry|{place};|Where the segments are painted.&",
        "ReferenceImageExtentOffset": "0 0 0",
    }


def _segment_header(label: Label, geometry: Geometry) -> dict[str, str]:
    described = {}
    if label.category and label.type:
        codes = [f"{code.scheme}^{code.value}^{code.meaning}" for code in (label.category, label.type)]
        described["Tags"] = f"TerminologyEntry:{'~'.join([TYPES, *codes, '^^', REGIONS, '^^', '^^'])}|"
    return {
        "ID": label.name,
        "Name": label.name,
        "NameAutoGenerated": "0",
        "Color": " ".join(f"{part / 255:.6g}" for part in label.color),
        "ColorAutoGenerated": "0",
        "LabelValue": str(label.value),
        "Layer": "0",
        "Extent": " ".join(f"0 {size - 1}" for size in geometry.size),
        **described,
    }


def _segments(path: Path, text: TextHeader, layers: int) -> list[Segment]:
    """The segments that the header describes, whatever their numbers; ``layers`` is how many the file has.

    Before version 4.11 3D Slicer gave each segment a layer of its own, and did not say so.
    """
    header = text.keys
    numbers = sorted({int(match[1]) for key in header if (match := re.fullmatch(r"Segment(\d{1,6})_(ID|Name)", key))})
    segments = []
    for place, number in enumerate(numbers):
        prefix = f"Segment{number}_"
        name = header.get(prefix + "Name") or header.get(prefix + "ID", "")
        is_old = prefix + "LabelValue" not in header
        value = header.get(prefix + "LabelValue", "1").strip()
        layer = header.get(prefix + "Layer", str(place) if is_old else "0").strip()
        if not (re.fullmatch(r"\d{1,9}", value) and re.fullmatch(r"\d{1,9}", layer)):
            raise MedDPMError(f"{path}: the header's description of segment {number} is damaged")
        if int(value) == 0:
            raise MedDPMError(
                f"{path}: the segment {quoted(name)} has the value 0, which is the background's: save it again in 3D"
                " Slicer"
            )
        if int(layer) >= layers:
            raise MedDPMError(f"{path}: the segment {quoted(name)} lies in a layer that the file does not have")
        tags, color = header.get(prefix + "Tags", ""), header.get(prefix + "Color", "")
        segments.append(
            Segment(
                name, int(value), int(layer), _type_code(tags), terminology=_terminology(tags), color=_color(color)
            )
        )  # fmt: skip
    return segments


def _entry(tags: str) -> list[str]:
    """The parts of "...|TerminologyEntry:context~category~SCT^79654002^Edema~...|"."""
    for tag in tags.split("|"):
        key, _, entry = tag.partition(":")
        parts = entry.split("~")
        if key.strip() == "TerminologyEntry" and len(parts) > 2:
            return parts
    return []


def _type_code(tags: str) -> tuple[str, str] | None:
    """(scheme, value) of the type."""
    if not (parts := _entry(tags)):
        return None
    scheme, _, rest = parts[2].partition("^")
    return (scheme, rest.partition("^")[0]) if rest else None


def _terminology(tags: str) -> tuple[Code, Code] | None:
    """Category and type, if both are whole. What 3D Slicer gives a segment that nobody has described is none."""
    codes = [part.split("^") for part in _entry(tags)[1:3]]
    if len(codes) != 2 or any(len(code) != 3 or not all(code) for code in codes) or codes[1][1] in _UNDESCRIBED:
        return None
    category, kind = (Code(*code) for code in codes)
    return category, kind


def _color(text: str) -> tuple[int, int, int] | None:
    """Red, green and blue of "0.5 0.2 1"."""
    try:
        red, green, blue = (round(255 * min(max(float(part), 0.0), 1.0)) for part in text.split())
    except ValueError:
        return None
    return red, green, blue
