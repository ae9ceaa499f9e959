"""MedDPM: a painted mask becomes an MRI.

The stable interface is ``load_model``, ``generate`` and :mod:`MedDPMLib.diffusion.samplers`. Importing the package is
light: PyTorch is imported when one of them is first used.
"""

from __future__ import annotations

from MedDPMLib.moved import keep_old_names
from MedDPMLib.version import __version__ as __version__

__all__ = ["generate", "load_model"]

keep_old_names()


def __getattr__(name: str):
    if name == "load_model":
        from MedDPMLib.models.model import load_model

        return load_model
    if name == "generate":
        from MedDPMLib.inference.generation import generate

        return generate
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
