"""What had another place or name in version 0.1? The old ones still work, with a deprecation.

Removed with version 0.3.
"""

from __future__ import annotations

import importlib
import importlib.abc
import importlib.machinery
import sys
import warnings
from collections.abc import Callable, Mapping
from types import ModuleType
from typing import Any

#: For each old name, below this package, the modules that what it held is in now.
MOVED = {
    "bundle": ("models.bundle",),
    "card": ("models.card",),
    "checkpoint": ("models.official_checkpoint",),
    "device": ("runtime.device",),
    "generation": ("inference.generation",),
    "geometry": ("imaging.geometry",),
    "labels": ("masks.schemes",),
    "model": ("models.model",),
    "record": ("inference.record",),
    "samplers": ("diffusion.samplers", "diffusion.names"),
    "schedule": ("diffusion.schedule",),
    "segments": ("masks.seg_nrrd",),
    "store": ("models.store",),
    "templates": ("masks.templates",),
    "volume": ("imaging.volume", "imaging.io", "imaging.resample", "runtime.files"),
}

#: "masks" was a module and is a package now, which gives these names in the same way.
MASKS = ("masks.mask", "masks.fit", "masks.condition")


def find_moved(old: str, modules: tuple[str, ...], name: str) -> object:
    """What ``name`` was in the module called ``old``; AttributeError if it is in none of ``modules``."""
    for module in modules:
        found = getattr(importlib.import_module(f"MedDPMLib.{module}"), name, None)
        if found is not None:
            warnings.warn(f"MedDPMLib.{old}.{name} has moved to MedDPMLib.{module}", DeprecationWarning, stacklevel=3)
            return found
    raise AttributeError(f"module 'MedDPMLib.{old}' has no attribute {name!r}")


def former_names(module: str, names: Mapping[str, str]) -> Callable[[str], object]:
    """A ``__getattr__`` for ``module``, by which each former name of ``names`` gives what has the current one."""

    def look_up(name: str) -> object:
        if name not in names:
            raise AttributeError(f"module {module!r} has no attribute {name!r}")
        warnings.warn(f"{module}.{name} is now {names[name]}", DeprecationWarning, stacklevel=2)
        return getattr(sys.modules[module], names[name])

    return look_up


def former_attribute(name: str, current: str) -> Any:
    """A property for a class that calls ``current`` now what was its attribute ``name``."""

    def look_up(instance: object) -> object:
        warnings.warn(f"{type(instance).__name__}.{name} is now {current}", DeprecationWarning, stacklevel=2)
        return getattr(instance, current)

    return property(look_up)


class _Finder(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Makes an empty module for an old name, which looks its names up where they are now."""

    def find_spec(self, fullname, path=None, target=None):
        package, _, old = fullname.rpartition(".")
        if package == "MedDPMLib" and old in MOVED:
            return importlib.machinery.ModuleSpec(fullname, self)
        return None

    def exec_module(self, module: ModuleType) -> None:
        old = module.__name__.rpartition(".")[2]

        def look_up(name: str) -> object:
            if name.startswith("__"):
                raise AttributeError(name)
            return find_moved(old, MOVED[old], name)

        module.__getattr__ = look_up  # type: ignore[method-assign]


def keep_old_names() -> None:
    """Lets the old names import; asked last, after all modules that exist."""
    sys.meta_path.append(_Finder())
