"""Which values has a segmentation that was a label map, and what do they mean? Its segments have numbers, no names.

3D Slicer names the segments of a label map without a color table after its values: "Segment_4", "Label_4".
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import slicer

from MedDPMLib.imaging.volume import Volume
from MedDPMLib.masks.label_tables import is_unnamed
from MedDPMLib.masks.readings import Reading, choose_reading
from MedDPMLib.masks.schemes import LabelScheme
from MedDPMLib.masks.values import volumes_by_value
from MedDPMLib.scene.segmentation import label_map, set_label, set_note, unlabeled_segments

#: A label map holds no more labels than this.
_MOST_VALUES = 254


def numbered_segments(
    segmentation: slicer.vtkMRMLSegmentationNode, table: Mapping[str, int], scheme: LabelScheme
) -> dict[str, int]:
    """Segment ID to value for the painted segments, if none of them has a name, a label or a value of another's."""
    core = segmentation.GetSegmentation()
    open_ = unlabeled_segments(segmentation, table, scheme)
    values = {id_: core.GetSegment(id_).GetLabelValue() for id_ in open_}
    nameless = all(is_unnamed(core.GetSegment(id_).GetName() or "") for id_ in open_)
    if table or not nameless or len(set(values.values())) < len(values) or len(values) > _MOST_VALUES:
        return {}
    return values if len(values) > 1 and all(0 < value < 65_536 for value in values.values()) else {}


def read_numbers(
    segmentation: slicer.vtkMRMLSegmentationNode, values: Mapping[str, int], scheme: LabelScheme
) -> tuple[Reading, str]:
    """What the ``values`` of :func:`numbered_segments` mean, and why; raises as
    :func:`MedDPMLib.masks.readings.choose_reading` where that is to be asked."""
    labels: Volume = label_map(segmentation, values)
    array = labels.array.astype(np.uint16, copy=False)
    volumes = volumes_by_value(array, labels.geometry.voxel_volume)
    return choose_reading(array, labels.geometry, volumes, scheme, segmentation.GetName() or "")


def take_reading(
    segmentation: slicer.vtkMRMLSegmentationNode,
    values: Mapping[str, int],
    scheme: LabelScheme,
    reading: Reading,
    why: str,
) -> str:
    """Gives the segments the labels that ``reading`` says, which their record keeps; the note on it.

    A value for which ``scheme`` has no label stays open.
    """
    known = dict(reading.numbering.values)
    for id_, value in values.items():
        if value in known:
            set_label(segmentation, id_, scheme, known[value])
    note = f'segments read as "{reading.numbering.name}", {why}: {reading.describe()}'
    set_note(segmentation, scheme, note)
    return note
