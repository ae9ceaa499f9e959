"""Which versions of the software that a result depends on are in use?"""

from __future__ import annotations

import platform
from importlib.metadata import PackageNotFoundError, version

from MedDPMLib.version import __version__

_PACKAGES = ("torch", "numpy", "SimpleITK", "nibabel", "safetensors")


def versions() -> dict[str, str]:
    """Versions of this package, of Python and of the packages that a result depends on."""
    found = {"MedDPM": __version__, "python": platform.python_version(), "platform": platform.platform()}
    for package in _PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:  # Slicer brings some without metadata
            found[package] = "unknown"
    return found
