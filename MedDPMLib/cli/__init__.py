"""The ``meddpm`` command: thin over the library. Only here are results printed and is a terminal known.

What takes long to import (torch above all) is imported inside the commands, so that help and mistakes on the
command line answer at once.
"""

from __future__ import annotations

import sys


def main() -> None:
    """Runs ``meddpm`` with the process's arguments and ends the process.

    Exit codes: 0 done; 2 something that the user can mend, told in a sentence; 130 stopped with Ctrl-C; 1 an error
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
        complain(f"this is an error in MedDPM itself ({what}); --debug shows where, please report it")
        sys.exit(1)
