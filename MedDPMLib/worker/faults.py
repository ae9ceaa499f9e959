"""How are errors reported to the client?"""

from __future__ import annotations

from MedDPMLib.errors import MedDPMError, OutOfMemory
from MedDPMLib.worker.protocol import Error


def describe_fault(id: str | None, error: BaseException) -> Error:
    """The event that reports ``error`` in the request with that ``id``."""
    if isinstance(error, MedDPMError):
        kind = "memory" if isinstance(error, OutOfMemory) else "input"
        values = {name: str(value) for name, value in error.values.items()}
        return Error(id=id, kind=kind, message=str(error), fact=error.fact, code=error.code, values=values)
    kind, message = _describe_other(error)
    return Error(id=id, kind=kind, message=message)


def _describe_other(error: BaseException) -> tuple[str, str]:
    """Kind and sentence of what is raised by something else than MedDPM's own checks."""
    out_of_memory = type(error).__name__ == "OutOfMemoryError" or (  # torch's, which may not be imported
        isinstance(error, RuntimeError) and "alloc" in str(error) and "memory" in str(error)
    )
    if isinstance(error, MemoryError) or out_of_memory:
        return "memory", "there is not enough memory on this computer: close other programs or choose a smaller model"
    if isinstance(error, ImportError):
        package = (error.name or "").partition(".")[0] or "a Python package"
        package = {"torch": "PyTorch (torch)"}.get(package, package)
        if isinstance(error, ModuleNotFoundError):
            return "package", f"{package} is not installed in this Python: install it, then try again"
        return "package", f"{package} cannot be imported ({error!s:.200}): install it again, then restart 3D Slicer"
    return "internal", f"an error in MedDPM ({type(error).__name__}: {error!s:.200}): see the worker log"
