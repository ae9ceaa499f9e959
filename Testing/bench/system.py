"""What the bench needs from the system: shared libraries that no Python package brings along."""

from __future__ import annotations

import ctypes
import glob
import importlib
import importlib.metadata
import os
import sys
from contextlib import suppress

#: Shared library and the Debian package that holds it.
_LIBRARIES = {
    "libEGL.so.1": "libegl1",
    "libEGL_mesa.so.0": "libegl-mesa0",
    "libGL.so.1": "libgl1",
    "libX11.so.6": "libx11-6",
    "libxkbcommon.so.0": "libxkbcommon0",
    "libfontconfig.so.1": "libfontconfig1",
    "libfreetype.so.6": "libfreetype6",
    "libdbus-1.so.3": "libdbus-1-3",
    "libgthread-2.0.so.0": "libglib2.0-0",
}
#: Mesa's software renderer is loaded by EGL, not linked.
_DRIVERS = {"/usr/lib/*/dri/swrast_dri.so": "libgl1-mesa-dri"}


class MissingPackages(RuntimeError):
    """The bench cannot start: the message names the Debian packages to install."""


def prepare() -> None:
    """Chooses off-screen windows for Qt and VTK; raises :class:`MissingPackages` where they could not open.

    To be called before Qt or VTK is imported: both read these variables once.
    """
    missing = missing_packages()
    if missing:
        raise MissingPackages(
            "the bench draws without a display and needs system libraries; as root: "
            f"apt-get install --no-install-recommends {' '.join(missing)}"
        )
    _refuse_broken_pyside()
    # PyTorch's compiler brings an LLVM of its own and crashes where Mesa's renderer has loaded another before.
    with suppress(ImportError):
        importlib.import_module("triton")
    os.environ["QT_QPA_PLATFORM"] = "offscreen"
    os.environ["VTK_DEFAULT_OPENGL_WINDOW"] = "vtkEGLRenderWindow"
    # Mesa's software renderer everywhere: the same picture with and without a graphics card.
    os.environ["LIBGL_ALWAYS_SOFTWARE"] = "1"


def _refuse_broken_pyside() -> None:
    """PySide6 6.12 drops a reference to None whenever it returns it: before Python 3.12 that ends in a crash."""
    version = importlib.metadata.version("PySide6_Essentials")
    if sys.version_info < (3, 12) and version.startswith("6.12."):
        raise MissingPackages(f'PySide6 {version} crashes on this Python: pip install "PySide6_Essentials>=6.8,<6.12"')


def missing_packages() -> list[str]:
    """The Debian packages that this machine lacks."""
    missing = [package for library, package in _LIBRARIES.items() if not _loads(library)]
    return missing + [package for pattern, package in _DRIVERS.items() if not glob.glob(pattern)]


def _loads(library: str) -> bool:
    try:
        ctypes.CDLL(library)
    except OSError:
        return False
    return True


if __name__ == "__main__":  # for a script that installs them
    print(*missing_packages())
