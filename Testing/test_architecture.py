"""Imports run one way, the core knows neither command line nor Slicer, and what moved is still found."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

LIBRARY = Path(__file__).parents[1] / "MedDPMLib"

#: Each may import from those before it (docs/architecture.md); "scene" and "cli" know nothing of each other.
ORDER = (
    "version", "moved", "errors", "validation", "runtime", "imaging", "masks", "diffusion", "networks", "models",
    "inference", "metrics", "segmentation", "recipes", "prepare", "data", "figures", "evaluation", "train", "benchmark",
    "experiment", "worker", "study", "scene", "cli",
)  # fmt: skip


def modules() -> dict[str, Path]:
    found = {}
    for path in LIBRARY.rglob("*.py"):
        parts = path.relative_to(LIBRARY).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


def imported(path: Path) -> set[str]:
    """All modules that a file imports, wherever in it, but for the names of types."""
    names: set[str] = set()

    def visit(node: ast.AST) -> None:
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.If) and "TYPE_CHECKING" in ast.unparse(child.test):
                continue
            if isinstance(child, ast.ImportFrom) and child.module:
                names.update({child.module, *(f"{child.module}.{alias.name}" for alias in child.names)})
            elif isinstance(child, ast.Import):
                names.update(alias.name for alias in child.names)
            visit(child)

    visit(ast.parse(path.read_text(encoding="utf-8")))
    return names


def inside(path: Path) -> set[str]:
    """The modules of the library among :func:`imported`, relative to it."""
    there = modules()
    found = {name.removeprefix("MedDPMLib.") for name in imported(path) if name.startswith("MedDPMLib.")}
    return {name for name in found if name in there}


def package(module: str) -> str:
    return module.partition(".")[0]


def test_packages_import_only_from_those_before_them():
    wrong = []
    for module, path in modules().items():
        if not module or module == "__main__":  # the library's own face
            continue
        for other in inside(path):
            if ORDER.index(package(other)) > ORDER.index(package(module)):
                wrong.append(f"{module} imports {other}")
            assert {package(module), package(other)} != {"scene", "cli"}
    assert not wrong


def test_no_files_import_each_other():
    # To import a module is to import its package: that is no choice of the file's.
    graph = {m: {n for n in inside(path) if not f"{m}.".startswith(f"{n}.")} for m, path in modules().items()}
    settled: set[str] = set()
    while ready := [module for module, needs in graph.items() if module not in settled and needs <= settled]:
        settled.update(ready)
    assert not graph.keys() - settled


@pytest.mark.parametrize("stranger", ["slicer", "vtk", "qt", "ctk"])
def test_the_scene_alone_knows_slicer(stranger):
    for module, path in modules().items():
        if package(module) != "scene":
            assert not any(name.partition(".")[0] == stranger for name in imported(path)), module


def test_the_command_line_alone_knows_its_library():
    for module, path in modules().items():
        if package(module) != "cli":
            assert not {"typer", "rich"} & {name.partition(".")[0] for name in imported(path)}, module


def test_old_names_import_with_a_deprecation():
    code = """
import warnings
with warnings.catch_warnings(record=True) as reported:
    warnings.simplefilter("always")
    from MedDPMLib.masks import Mask, read_mask
    from MedDPMLib.samplers import sample
    from MedDPMLib.volume import Volume, read_volume
assert {str(warning.category.__name__) for warning in reported} == {"DeprecationWarning"}, reported
from MedDPMLib.imaging.volume import Volume as new
from MedDPMLib.masks.mask import Mask as new_mask
assert Volume is new and Mask is new_mask
import MedDPMLib.volume
try:
    MedDPMLib.volume.nothing_of_that_name
except AttributeError:
    pass
else:
    raise AssertionError
try:
    import MedDPMLib.nothing_of_that_name
except ModuleNotFoundError:
    pass
else:
    raise AssertionError
"""
    subprocess.run([sys.executable, "-c", code], check=True)


def test_every_old_name_leads_to_modules_that_exist():
    from MedDPMLib.moved import MASKS, MOVED

    there = modules()
    for old, new in {**MOVED, "masks": MASKS}.items():
        assert old == "masks" or old not in there
        assert set(new) <= there.keys()
