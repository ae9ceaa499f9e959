"""Where does the package keep its data, and how is a path given to the system?

Windows finds long paths only in a spelling of their own.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

#: What ships with the package as data: models, cards, schemes, recipes, templates.
RESOURCES = Path(__file__).parents[1] / "resources"

#: Characters; Windows takes 260, and names are still added to a folder's path.
_SAFE = 180


def reachable(path: str | os.PathLike) -> Path:
    r"""``path``, so that files at it and a name or two below it can be opened however long it is.

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
