"""The ``meddpm`` command, a thin layer over the library. Only this package prints results and uses a terminal.

What takes long to import (torch above all) is imported inside the commands, so that help and usage errors appear at
once.
"""

from __future__ import annotations

import sys


def main() -> None:
    """Runs ``meddpm`` with the process's arguments and ends the process.

    Exit codes: 0 done; 2 an error that the user can fix, reported in a sentence; 130 stopped with Ctrl-C; 1 an error
    in MedDPM itself.
    """
    from MedDPMLib.cli.app import app
    from MedDPMLib.cli.output import complain
    from MedDPMLib.runtime.allocator import keep_freed_memory

    keep_freed_memory()
    try:
        app(prog_name="meddpm")
    except Exception as error:
        if "--debug" in sys.argv:
            raise
        what = f"{type(error).__name__}: {error}"
        complain(f"this is an error in MedDPM itself ({what}): please report it, with the output of --debug")
        sys.exit(1)
