"""Which label is each segment of a segmentation file of 3D Slicer (``.seg.nrrd``)? Read, and written.

3D Slicer numbers segments in the order in which they were added and says in the header what they are, so the
header counts, not the values: terminology first, name second. Overlapping segments lie in several layers.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from MedDPMLib.errors import MedDPMError
from MedDPMLib.imaging.geometry import Geometry
from MedDPMLib.imaging.io import (
    ITK_SUFFIXES,
    check_readable,
    itk_array,
    itk_ijk_to_ras,
    itk_image,
    read_itk,
    volume_suffix,
)
from MedDPMLib.imaging.volume import Volume
from MedDPMLib.masks.schemes import Label, LabelScheme
from MedDPMLib.runtime.files import written_whole

#: How the file of a segmentation ends.
SUFFIX = ".seg.nrrd"
#: The lists of 3D Slicer in which the labels' codes are found: what a segment is, and which part of the body.
TYPES = "Segmentation category and type - 3D Slicer General Anatomy list"
REGIONS = "Anatomic codes - DICOM master list"


@dataclass(frozen=True)
class Segment:
    """A segment as the header has it: voxels of ``value`` in ``layer``; ``code`` is (scheme, value) of its type."""

    name: str
    value: int
    layer: int
    code: tuple[str, str] | None

    def label_in(self, scheme: LabelScheme) -> Label | None:
        """The label of ``scheme`` that this segment is, by its terminology or else by its name."""
        by_code = scheme.label_by_code(*self.code) if self.code else None
        return by_code or scheme.label_by_name(self.name)


def holds_segments(path: str | os.PathLike) -> bool:
    """Whether the file says in its header which segments it holds. Its voxels are not read."""
    path = Path(path)
    return check_readable(path) in ITK_SUFFIXES and "Segment0_LabelValue" in _metadata(path)


def read_segments(path: str | os.PathLike, scheme: LabelScheme) -> Volume:
    """The file's segments as one volume of ``scheme``'s values, uint8; of overlapping ones the priority decides.

    The notes say which segment became which label. Raises :class:`MedDPMError` when a segment that is not
    empty is none of the scheme's labels, when two are the same label, and for a damaged file.
    """
    path = Path(path)
    image = read_itk(path)
    if image.GetDimension() != 3:
        raise MedDPMError(f"{path} has {image.GetDimension()} axes: one segmentation of a 3-D volume is needed")
    geometry = Geometry(image.GetSize(), itk_ijk_to_ras(image))
    layers = itk_array(image).reshape(*geometry.shape, -1)
    taken: dict[int, Segment] = {}
    strangers = []
    for segment in _segments(path):
        if not 0 <= segment.layer < layers.shape[-1]:
            raise MedDPMError(f'{path}: the segment "{segment.name}" lies in a layer that the file does not have')
        if not (layers[..., segment.layer] == segment.value).any():
            continue
        label = segment.label_in(scheme)
        if label is None:
            strangers.append(segment.name)
        elif label.value in taken:
            raise MedDPMError(
                f'{path}: the segments "{taken[label.value].name}" and "{segment.name}" are both the label'
                f' "{label.name}": merge them or name one of them otherwise'
            )
        else:
            taken[label.value] = segment
    if strangers:
        raise MedDPMError(
            f"{path}: none of the scheme {scheme.name}'s labels ({scheme.describe_labels()}) is the segment"
            f" {', '.join(strangers[:10])}: rename it after its label or remove it"
        )
    labels = np.zeros(geometry.shape, np.uint8)
    notes = []
    for value in reversed(scheme.priority):
        if value in taken:
            labels[layers[..., taken[value].layer] == taken[value].value] = value
            notes.append(f'segment "{taken[value].name}" is taken for {scheme.label_by_value(value).name.lower()}')
    return Volume(labels, geometry, tuple(notes))


def write_segments(path: str | os.PathLike, labels: Volume, scheme: LabelScheme, *, description: str = "") -> None:
    """Writes ``labels`` (values of ``scheme``, on a geometry without shear) for 3D Slicer, whole or not at all.

    Every label that is there becomes a segment of its value, with the scheme's name, colour and terminology;
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
    with written_whole(path) as temporary:
        try:
            SimpleITK.WriteImage(image, str(temporary), useCompression=True)
            written = itk_array(SimpleITK.ReadImage(str(temporary)))
        except RuntimeError as error:
            raise OSError(str(error)) from error
        if not np.array_equal(written, array):  # a full disk is not always told
            raise OSError("not all of it arrived")


def _segmentation_header(geometry: Geometry) -> dict[str, str]:
    """What 3D Slicer's header says of all segments: above all, on which voxels one goes on painting."""
    extent = [end for size in geometry.size for end in (0, size - 1)]
    place = ";".join(f"{number:.17g}" for number in (*geometry.ijk_to_ras.ravel(), *extent))
    return {
        "MasterRepresentation": "Binary labelmap",
        "ContainedRepresentationNames": "Binary labelmap|",
        "ConversionParameters": f"Reference image geometry|{place};|Where the segments are painted.&",
        "ReferenceImageExtentOffset": "0 0 0",
    }


def _segment_header(label: Label, geometry: Geometry) -> dict[str, str]:
    codes = [f"{code.scheme}^{code.value}^{code.meaning}" for code in (label.category, label.type)]
    return {
        "ID": label.name,
        "Name": label.name,
        "NameAutoGenerated": "0",
        "Color": " ".join(f"{part / 255:.6g}" for part in label.color),
        "ColorAutoGenerated": "0",
        "LabelValue": str(label.value),
        "Layer": "0",
        "Extent": " ".join(f"0 {size - 1}" for size in geometry.size),
        "Tags": f"TerminologyEntry:{'~'.join([TYPES, *codes, '^^', REGIONS, '^^', '^^'])}|",
    }


def _segments(path: Path) -> list[Segment]:
    metadata = _metadata(path)
    segments = []
    while (value := metadata.get(f"Segment{len(segments)}_LabelValue")) is not None:
        prefix = f"Segment{len(segments)}_"
        layer = metadata.get(prefix + "Layer", "0")
        if not (re.fullmatch(r"\d{1,9}", value) and re.fullmatch(r"\d{1,9}", layer)):
            raise MedDPMError(f"{path}: the header's description of segment {len(segments)} is damaged")
        name = metadata.get(prefix + "Name") or metadata.get(prefix + "ID", "")
        segments.append(Segment(name, int(value), int(layer), _type_code(metadata.get(prefix + "Tags", ""))))
    return segments


def _type_code(tags: str) -> tuple[str, str] | None:
    """(scheme, value) of the type in "...|TerminologyEntry:context~category~SCT^79654002^Edema~...|"."""
    for tag in tags.split("|"):
        key, _, entry = tag.partition(":")
        parts = entry.split("~")
        if key.strip() == "TerminologyEntry" and len(parts) > 2:
            scheme, _, rest = parts[2].partition("^")
            return (scheme, rest.partition("^")[0]) if rest else None
    return None


def _metadata(path: Path) -> dict[str, str]:
    import SimpleITK

    reader = SimpleITK.ImageFileReader()
    reader.SetFileName(str(path))
    try:
        reader.ReadImageInformation()
    except RuntimeError as error:
        raise MedDPMError(f"{path} cannot be read: the file is damaged or not NRRD or MetaImage") from error
    return {key: reader.GetMetaData(key) for key in reader.GetMetaDataKeys()}
