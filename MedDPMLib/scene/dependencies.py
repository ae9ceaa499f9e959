"""Which Python packages does 3D Slicer lack, and how are they installed? Only after a question, on the main thread."""

from __future__ import annotations

import importlib
import importlib.metadata
from subprocess import CalledProcessError

import slicer
from packaging.requirements import Requirement
from slicer.i18n import tr as _

from MedDPMLib.errors import MedDPMError
from MedDPMLib.runtime.versions import versions

#: PyTorch comes from the extension of that name, which chooses the build for the computer.
TORCH = "torch>=2.5"

#: What the library needs besides PyTorch and the packages of Slicer: distribution and requirement.
REQUIREMENTS = {
    "nibabel": "nibabel>=5.2",
    "safetensors": "safetensors>=0.4.3",
    "platformdirs": "platformdirs>=4",
    "psutil": "psutil>=5.9",
}

_NO_EXTENSION = _(
    "the extension PyTorch is not installed: install it in the Extensions Manager, then restart 3D Slicer"
)

#: Installers let the event loop run: another installation must not start in the meantime.
_installing = False


def missing() -> list[str]:
    """The requirements that are not met, PyTorch first.

    By their metadata: an import (as in ``PyTorchUtilsLogic.torchInstalled``) blocks the application for seconds.
    """
    return [requirement for requirement in (TORCH, *REQUIREMENTS.values()) if not _met(requirement)]


def ensure(*, torch: bool = True) -> None:
    """Asks once for all that is missing and installs it; without ``torch``, PyTorch is not needed.

    Raises :class:`MedDPMError`, before it asks, if the PyTorch extension that installs PyTorch is missing. Raises it
    too if the user declines, if an installer fails, and while an installation is running.
    """
    global _installing
    lacking = missing()
    if TORCH in lacking and not _torch_can_be_installed():
        if torch:
            raise MedDPMError(_NO_EXTENSION)
        lacking.remove(TORCH)
    if not lacking or (lacking == [TORCH] and not torch):
        return
    if _installing:
        raise MedDPMError(_("packages are being installed: wait until this has finished, then try again"))
    names = ", ".join(lacking)
    if slicer.app.testingEnabled():  # as slicer.packaging does: tests do not change the application's Python
        raise MedDPMError(_("MedDPM needs {names}, and nothing is installed in testing mode").format(names=names))
    question = _("MedDPM needs Python packages that are not installed yet: {names}.\n\nInstall them now?")
    if TORCH in lacking:
        question += " " + _("PyTorch (torch) is large, 200 MB to 3 GB, which can take several minutes.")
    if not slicer.util.confirmOkCancelDisplay(question.format(names=names), "MedDPM"):
        raise MedDPMError(_("nothing was installed, and MedDPM needs {names}: try again and agree").format(names=names))
    _installing = True
    try:
        _install(lacking)
    finally:
        _installing = False
    failed = [requirement for requirement in missing() if requirement in lacking]
    if failed:
        text = _("{names} was not installed, although no error was reported: see the Python console for details")
        raise MedDPMError(text.format(names=", ".join(failed)))


def describe() -> str:
    """Version, location and state of what is used, one per line, for the log."""
    lines = [
        f"{slicer.app.applicationName} {slicer.app.applicationVersion} ({slicer.app.revision})",
        *(f"{name} {version}" for name, version in versions().items()),
        *(f"missing: {requirement}" for requirement in missing()),
        f"temporary files in {slicer.app.temporaryPath}",
    ]
    return "\n".join(lines)


def _met(requirement: str) -> bool:
    wanted = Requirement(requirement)
    try:
        # A preview of a version is that version: pip would install nothing in its place.
        return wanted.specifier.contains(importlib.metadata.version(wanted.name), prereleases=True)
    except importlib.metadata.PackageNotFoundError:
        return False


def _torch_can_be_installed() -> bool:
    try:
        import PyTorchUtils  # noqa: F401
    except ImportError:
        return False
    return True


def _install(requirements: list[str]) -> None:
    """Raises :class:`MedDPMError` for whatever an installer raises."""
    try:
        if TORCH in requirements:
            _install_torch()
        others = [requirement for requirement in requirements if requirement != TORCH]
        if others:
            _pip_install(others)
    except MedDPMError:
        raise
    except Exception as error:  # pip ends in CalledProcessError, the rest depends on extension and version
        reason = f"{error!s:.200}"
        if isinstance(error, CalledProcessError):
            reason = _("pip ended with exit code {code}, the Python console says why").format(code=error.returncode)
        text = _("the packages cannot be installed ({reason}): check the internet connection, then try again")
        raise MedDPMError(text.format(reason=reason)) from error
    finally:
        importlib.invalidate_caches()


def _install_torch() -> None:
    try:
        from PyTorchUtils import PyTorchUtilsLogic
    except ImportError as error:
        raise MedDPMError(_NO_EXTENSION) from error
    wanted = TORCH.removeprefix("torch")
    if PyTorchUtilsLogic().installTorch(askConfirmation=False, torchVersionRequirement=wanted) is None:
        raise MedDPMError(_("PyTorch was not installed: the module PyTorch Utils shows the reason, and can install it"))


def _pip_install(requirements: list[str]) -> None:
    try:
        from slicer import packaging
    except ImportError:  # before Slicer 5.11
        slicer.util.pip_install(requirements)
    else:  # shows the progress, and offers a restart where a package in use was replaced
        packaging.pip_ensure(requirements, prompt_install=False, requester="MedDPM")
