"""How is a model trained? :func:`train` is the way from a recipe and cases to a run's folder."""

from MedDPMLib.train.run import train
from MedDPMLib.train.stopping import Stopped, StopRequest

__all__ = ["StopRequest", "Stopped", "train"]
