"""What modules import in the application: ``slicer.packaging``, ``PyTorchUtils``, ``SampleData``, ``slicer.i18n``.

Nothing is installed from here: what would be is recorded in :data:`installed`.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import types
from pathlib import Path

import slicer
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

#: Requirements (text) that a module asked to be installed, in that order.
installed: list[str] = []
#: Names of packages that are to be taken for missing, by whoever asks for their metadata, too.
hidden: set[str] = set()

_version = importlib.metadata.version


def _version_unless_hidden(name: str) -> str:
    if canonicalize_name(name) in hidden:
        raise importlib.metadata.PackageNotFoundError(name)
    return _version(name)


def packaging_module() -> types.ModuleType:
    """``slicer.packaging`` of Slicer 5.11 and later."""
    module = types.ModuleType("slicer.packaging")

    def load_requirements(path):
        lines = [line.partition("#")[0].strip() for line in Path(path).read_text().splitlines()]
        return [Requirement(line) for line in lines if line]

    def pip_check(requirements):
        return not _unmet(requirements)

    def pip_install(requirements, **_kwargs):
        texts = (
            requirements.split()
            if isinstance(requirements, str)
            else [str(requirement) for requirement in requirements]
        )
        installed.extend(texts)
        hidden.difference_update(canonicalize_name(Requirement(text).name) for text in texts)

    def pip_ensure(requirements, prompt_install=True, prompt_restart=True, requester=None, **_kwargs):
        unmet = _unmet(requirements)
        if not unmet:
            return
        question = f"{requester or 'A module'} needs Python packages: {', '.join(map(str, unmet))}. Install them?"
        if prompt_install and not slicer.util.confirmOkCancelDisplay(question):
            raise RuntimeError("the installation was declined")
        pip_install(unmet)

    importlib.metadata.version = _version_unless_hidden
    for function in (load_requirements, pip_check, pip_install, pip_ensure):
        setattr(module, function.__name__, function)
    return module


def _unmet(requirements) -> list[Requirement]:
    if isinstance(requirements, (str, Requirement)):
        requirements = [requirements]
    return [requirement for requirement in (Requirement(str(text)) for text in requirements) if not _met(requirement)]


def _met(requirement: Requirement) -> bool:
    try:
        return requirement.specifier.contains(importlib.metadata.version(requirement.name), prereleases=True)
    except importlib.metadata.PackageNotFoundError:
        return False


def pytorch_utils_module() -> types.ModuleType:
    """``PyTorchUtils`` of the PyTorch extension."""
    module = types.ModuleType("PyTorchUtils")

    class PyTorchUtilsLogic:
        @staticmethod
        def torchInstalled():
            return "torch" not in hidden and importlib.util.find_spec("torch") is not None

        def installTorch(
            self, askConfirmation=False, forceComputationBackend=None, torchVersionRequirement=None, **_kwargs
        ):
            if askConfirmation and not slicer.util.confirmOkCancelDisplay("PyTorch will be installed. Continue?"):
                return None
            installed.append(f"torch{torchVersionRequirement or ''}")
            hidden.discard("torch")
            return self.torch

        @property
        def torch(self):
            import torch

            return torch

        @staticmethod
        def getDevice():
            return "cpu"

    module.PyTorchUtilsLogic = PyTorchUtilsLogic
    return module


def sample_data_module() -> types.ModuleType:
    """``SampleData``: ``SampleDataLogic.sources`` lists what modules registered."""
    module = types.ModuleType("SampleData")

    class SampleDataLogic:
        sources: list[dict] = []
        categories: list[str] = []

        @classmethod
        def registerCustomSampleDataSource(cls, **source):
            cls.sources.append(source)

        @classmethod
        def registerCustomSampleDataCategory(cls, category, title=None):
            cls.categories.append(category)

    module.SampleDataLogic = SampleDataLogic
    return module


def i18n_module() -> types.ModuleType:
    """``slicer.i18n`` in English; what was asked for is kept in ``seen``, as (context, text)."""
    module = types.ModuleType("slicer.i18n")
    module.seen = set()

    def translate(context, text):
        module.seen.add((context, text))
        return text

    def tr(text):
        return translate("", text)

    module.translate, module.tr = translate, tr
    return module
