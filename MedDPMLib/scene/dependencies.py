"""Which Python packages does 3D Slicer lack, and how do they get there? Only after a question, on the main thread."""

from __future__ import annotations

import importlib
import importlib.metadata

import slicer

from MedDPMLib.errors import MedDPMError
from MedDPMLib.record import versions

#: What the library needs beside what Slicer brings: import name and requirement.
REQUIREMENTS = {"nibabel": "nibabel>=5.2", "safetensors": "safetensors>=0.4.3", "platformdirs": "platformdirs>=4"}

#: PyTorch comes from the extension of that name, which chooses the build for the computer.
TORCH = ">=2.5"


def missing() -> list[str]:
    """The requirements that are not met, PyTorch ("torch") first."""
    # Not by PyTorchUtilsLogic.torchInstalled(), which imports it: the application would stand still for seconds.
    found = [] if _met(f"torch{TORCH}") else ["torch"]
    return found + [requirement for requirement in REQUIREMENTS.values() if not _met(requirement)]


def ensure() -> None:
    """Asks once for all that is missing and installs it.

    Raises :class:`MedDPMError` if the user declines, if the PyTorch extension is missing, or if pip fails.
    """
    lacking = missing()
    if not lacking:
        return
    names = ", ".join("PyTorch" if requirement == "torch" else requirement for requirement in lacking)
    question = f"MedDPM needs Python packages that are not installed yet: {names}.\n\nInstall them now?"
    if "torch" in lacking:
        question += " PyTorch is large (200 MB to 3 GB), which can take several minutes."
    if not slicer.util.confirmOkCancelDisplay(question, "MedDPM"):
        raise MedDPMError(f"nothing was installed: MedDPM needs {names}")
    try:
        if lacking[0] == "torch":
            _install_torch()
            lacking = lacking[1:]
        if lacking:
            _pip_install(lacking)
    except (RuntimeError, OSError, ImportError) as error:
        raise MedDPMError(
            f"the packages cannot be installed ({error!s:.200}): check the internet connection, then try again"
        ) from error
    importlib.invalidate_caches()


def describe() -> str:
    """What is installed, a line each: for the log."""
    application = f"3D Slicer {slicer.app.applicationVersion} ({slicer.app.revision})"
    lines = [application, *(f"{name} {version}" for name, version in versions().items())]
    lines += [f"missing: {requirement}" for requirement in missing()]
    return "\n".join(lines)


def _install_torch() -> None:
    try:
        from PyTorchUtils import PyTorchUtilsLogic
    except ImportError as error:
        raise MedDPMError(
            "the extension PyTorch is not installed: install it in the Extensions Manager, then start 3D Slicer again"
        ) from error
    if PyTorchUtilsLogic().installTorch(askConfirmation=False, torchVersionRequirement=TORCH) is None:
        raise MedDPMError("PyTorch was not installed: the module PyTorch Utils says why, and can install it")


def _met(requirement: str) -> bool:
    slicer_packaging = _packaging()
    if slicer_packaging is not None:
        return slicer_packaging.pip_check(requirement)
    from packaging.requirements import Requirement

    wanted = Requirement(requirement)
    try:
        return wanted.specifier.contains(importlib.metadata.version(wanted.name), prereleases=True)
    except importlib.metadata.PackageNotFoundError:
        return False


def _pip_install(requirements: list[str]) -> None:
    packaging = _packaging()
    if packaging is not None:
        packaging.pip_install(requirements)
    else:
        for requirement in requirements:
            slicer.util.pip_install(requirement)


def _packaging():
    """``slicer.packaging``, which Slicer has since 5.11."""
    try:
        from slicer import packaging
    except ImportError:
        return None
    return packaging
