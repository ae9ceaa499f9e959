"""How do folders of cases become a dataset to train on?"""

from MedDPMLib.imaging.normalize import NORMALIZATIONS, normalize
from MedDPMLib.moved import former_names
from MedDPMLib.prepare.cases import compose_anatomy
from MedDPMLib.prepare.dataset import DatasetSettings, Report, write_dataset
from MedDPMLib.prepare.sources import CaseFiles, find_cases
from MedDPMLib.recipes.standard import STANDARDS, Standard, standard

__all__ = [
    "NORMALIZATIONS",
    "STANDARDS",
    "CaseFiles",
    "DatasetSettings",
    "Report",
    "Standard",
    "compose_anatomy",
    "find_cases",
    "normalize",
    "standard",
    "write_dataset",
]

__getattr__ = former_names(__name__, {"NORMALISATIONS": "NORMALIZATIONS", "normalise": "normalize"})
