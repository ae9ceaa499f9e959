"""What is packaged is what is there, and what is said of the extension is the same everywhere."""

from __future__ import annotations

import ast
import json
import re
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from MedDPMLib.recipes.toml_files import tomllib

ROOT = Path(__file__).parents[1]


def cmake_list(path: Path, variable: str) -> list[str]:
    """The entries of ``set(variable ...)``."""
    body = re.search(rf"set\({variable}\s+(.*?)\)", path.read_text(encoding="utf-8"), re.S)[1]
    return [line.strip() for line in body.splitlines() if line.strip() and not line.strip().startswith("#")]


def files(folder: Path) -> set[str]:
    paths = (path for path in folder.rglob("*") if path.is_file() and "__pycache__" not in path.parts)
    return {path.relative_to(folder).as_posix() for path in paths if path.name != "CMakeLists.txt"}


def test_cmake_installs_every_file_of_the_library():
    library = ROOT / "MedDPMLib"
    scripts = cmake_list(library / "CMakeLists.txt", "MODULE_PYTHON_SCRIPTS")
    resources = cmake_list(library / "CMakeLists.txt", "MODULE_PYTHON_RESOURCES")
    assert scripts == sorted(scripts) and resources == sorted(resources)
    there = files(library)
    assert set(scripts) == {name for name in there if name.endswith(".py")}
    schemes = {name for name in there if re.fullmatch(r"resources/schemes/[^/]+\.json", name)}  # found by a pattern
    assert "CONFIGURE_DEPENDS resources/schemes/*.json)" in (library / "CMakeLists.txt").read_text()
    assert schemes and set(resources) == {name for name in there if not name.endswith(".py")} - schemes


#: What Slicer itself brings, and what the command line alone needs.
BROUGHT_BY_SLICER, OF_THE_COMMAND_LINE = {"numpy", "simpleitk"}, {"pillow", "rich", "tomli", "typer"}


def test_slicer_is_asked_for_the_packages_that_pyproject_names():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    wanted = {Requirement(line).name.lower(): line for line in project["dependencies"]}
    tree = ast.parse((ROOT / "MedDPMLib" / "scene" / "dependencies.py").read_text(encoding="utf-8"))
    constants = {
        node.targets[0].id: ast.literal_eval(node.value)
        for node in tree.body
        if isinstance(node, ast.Assign) and node.targets[0].id in ("TORCH", "REQUIREMENTS")
    }
    asked = {"torch": constants["TORCH"], **constants["REQUIREMENTS"]}
    assert asked == {name: line for name, line in wanted.items() if name not in BROUGHT_BY_SLICER | OF_THE_COMMAND_LINE}


def test_the_extension_is_described_alike_everywhere():
    cmake = (ROOT / "CMakeLists.txt").read_text(encoding="utf-8")
    said = dict(re.findall(r'set\(EXTENSION_(\w+)\s+"([^"]*)"', cmake))
    lines = (ROOT / "MedDPM.s4ext").read_text(encoding="utf-8").splitlines()
    s4ext = {name: rest for name, _, rest in (line.partition(" ") for line in lines if line and line[0] != "#")}
    catalog = json.loads((ROOT / "MedDPM.json").read_text(encoding="utf-8"))
    for key in ("homepage", "contributors", "description", "iconurl", "screenshoturls", "depends"):
        assert s4ext[key] == said[key.upper()], key
    assert catalog["scm_url"] == s4ext["scmurl"] == said["HOMEPAGE"]
    assert catalog["scm_revision"] == s4ext["scmrevision"]
    assert catalog["category"] == s4ext["category"]
    assert catalog["build_dependencies"] == s4ext["depends"].split()
    assert "\n" not in said["DESCRIPTION"]


def test_continuous_integration_runs_the_readme_s_second_command():
    commands = re.findall(r"^```bash\n(.*?)^```", (ROOT / "README.md").read_text(encoding="utf-8"), re.S | re.M)
    second = commands[1].strip()
    assert second in (ROOT / ".ci" / "run").read_text(encoding="utf-8")
    assert (ROOT / second.split()[1]).is_file()


@pytest.mark.parametrize("name", ["README.md", *(f"docs/{page.name}" for page in (ROOT / "docs").glob("*.md"))])
def test_links_and_pictures_of_the_documentation_exist(name):
    page = ROOT / name
    for target in re.findall(r"\]\(([^)#\s]+)", page.read_text(encoding="utf-8")):
        if "://" not in target:
            assert (page.parent / target).exists(), target
