"""Where is the package's data, and how are long paths passed to the system?

Windows accepts long paths only with a prefix.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

#: The data that come with the package: models, cards, schemes, recipes, templates.
RESOURCES = Path(__file__).parents[1] / "resources"

#: Characters; Windows allows 260, and names are still appended to the path of a folder.
_SAFE = 180


def reachable(path: str | os.PathLike) -> Path:
    r"""``path`` in a form in which it, and a name or two below it, can be opened whatever its length.

    On Windows a long path becomes absolute and gets the prefix ``\\?\``, which lifts the limit of 260 characters
    (https://learn.microsoft.com/windows/win32/fileio/maximum-file-path-limitation); elsewhere it stays as it is.
    """
    if sys.platform != "win32":
        return Path(path)
    return Path(_unlimited(os.path.abspath(path)))


def _unlimited(path: str) -> str:
    """The absolute path of Windows with its prefix, if it is long."""
    if len(path) <= _SAFE or path.startswith("\\\\?\\"):
        return path
    if path.startswith("\\\\"):  # \\server\share
        return "\\\\?\\UNC" + path[1:]
    return "\\\\?\\" + path
