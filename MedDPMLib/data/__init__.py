"""Which cases are used for training, and how are they augmented?"""

from MedDPMLib.data.cases import Case, read_dataset, read_label_maps, smoothed_for
from MedDPMLib.data.samples import BALANCE, Sample, VariedCases
from MedDPMLib.data.variation import Part, Variation, draw_variation

__all__ = [
    "BALANCE",
    "Case",
    "Part",
    "Sample",
    "Variation",
    "VariedCases",
    "draw_variation",
    "read_dataset",
    "read_label_maps",
    "smoothed_for",
]
