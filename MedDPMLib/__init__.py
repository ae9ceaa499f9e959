"""MedDPM: a painted mask becomes an MRI.

The stable interface is ``load_model``, ``generate`` and :mod:`MedDPMLib.samplers`. Importing the package is
light: PyTorch is imported when one of them is first used.
"""

from __future__ import annotations

__version__ = "0.1.0"
__all__ = ["generate", "load_model"]


def __getattr__(name: str):
    if name == "load_model":
        from MedDPMLib.model import load_model

        return load_model
    if name == "generate":
        from MedDPMLib.generation import generate

        return generate
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
