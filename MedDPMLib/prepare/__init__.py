"""How do folders of cases become a dataset to train on?"""

from MedDPMLib.imaging.normalize import NORMALISATIONS, normalise
from MedDPMLib.prepare.cases import compose_anatomy
from MedDPMLib.prepare.dataset import DatasetSettings, Report, write_dataset
from MedDPMLib.prepare.sources import CaseFiles, find_cases
from MedDPMLib.recipes.standard import STANDARDS, Standard, standard

__all__ = [
    "NORMALISATIONS",
    "STANDARDS",
    "CaseFiles",
    "DatasetSettings",
    "Report",
    "Standard",
    "compose_anatomy",
    "find_cases",
    "normalise",
    "standard",
    "write_dataset",
]
