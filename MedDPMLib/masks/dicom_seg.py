"""How is a DICOM segmentation read? By the codes of its segments; through highdicom, an extra of the package."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from MedDPMLib.errors import MedDPMError
from MedDPMLib.imaging.geometry import Geometry
from MedDPMLib.imaging.volume import Volume
from MedDPMLib.masks.schemes import Label, LabelScheme
from MedDPMLib.masks.seg_nrrd import Segment, merge_segments
from MedDPMLib.runtime.content import read_head

#: Segmentation Storage and Label Map Segmentation Storage.
_CLASSES = re.compile(rb"1\.2\.840\.10008\.5\.1\.4\.1\.1\.66\.[47]\b")

_LPS_TO_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])


def is_dicom_segmentation(path: Path) -> bool:
    """Whether ``path`` is a DICOM segmentation, by what its head says."""
    if not path.is_file():
        return False
    try:
        head = read_head(path)
    except OSError:
        return False
    return head[128:132] == b"DICM" and _CLASSES.search(head) is not None


def read_dicom_segments(path: Path, scheme: LabelScheme, said: Mapping[str, Label | None] | None = None) -> Volume:
    """The file's segments as one volume of ``scheme``'s values, as :func:`MedDPMLib.masks.seg_nrrd.read_segments`.

    Raises :class:`MedDPMError` without highdicom, and for a file that it cannot read or whose frames make no volume.
    """
    try:
        from highdicom.seg import segread
    except ImportError as error:
        raise MedDPMError(
            f"{path} is a DICOM segmentation", remedy='it needs highdicom: pip install "meddpm[dicom]"'
        ) from error
    # A damaged file makes the parsers fail in any way they like; whatever they raise, the file is at fault.
    try:
        file = segread(path)
        found = file.get_volume(skip_overlap_checks=True)
        layers = np.asarray(found.array) > 0.5
        matrix = _LPS_TO_RAS @ np.asarray(found.affine, np.float64)[:, [2, 1, 0, 3]]
        segments = [_segment(file.get_segment_description(n), place) for place, n in enumerate(file.segment_numbers)]
        geometry = Geometry(layers.shape[2::-1], matrix)
    except Exception as error:
        raise MedDPMError(
            f"{path} cannot be read ({type(error).__name__}): it is damaged, or convert it to .seg.nrrd in 3D Slicer"
        ) from error
    return merge_segments(path, segments, layers.astype(np.uint8), geometry, scheme, said)


def _segment(description, layer: int) -> Segment:
    kind = description.segmented_property_type
    return Segment(str(description.segment_label), 1, layer, (kind.scheme_designator, kind.value), str(kind.meaning))
