"""3D Slicer without 3D Slicer: what a scripted module meets in the application, on a machine without a display.

MRML is real (``slicer-core``), Qt is PySide6 made to behave as PythonQt, the views are drawn by Slicer's own
displayable managers. What only the application has is stood in for, as plainly as tests allow.

    from bench import start_application
    app = start_application()

The first call takes seconds; afterwards ``import slicer, qt, ctk, vtk`` works as in Slicer's Python.
"""

from __future__ import annotations

from bench.system import prepare

prepare()

from bench.application import start_application
from bench.dialogs import Shown, dialogs

__all__ = ["Shown", "dialogs", "start_application"]
