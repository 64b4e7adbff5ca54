"""The house keeps its plan: rooms, doors and sizes."""

import ast
import subprocess
import tomllib
from importlib.metadata import entry_points
from pathlib import Path

import pytest

PROJECT = Path(__file__).parent.parent
SOURCES = [
    p for room in ("pipeline", "stages", "models", "infra", "dags") for p in sorted((PROJECT / room).rglob("*.py"))
]


def test_the_top_level_is_the_customers() -> None:
    tracked = subprocess.run(["git", "ls-files"], cwd=PROJECT, capture_output=True, text=True, check=True).stdout
    top = {name.split("/")[0] for name in tracked.splitlines()}
    assert {"pyproject.toml", "pipeline", "stages", "models", "dags", "tests", "infra", "README.md"} <= top
    allowed = {"Makefile", "constraints.txt", "LICENSE", "CHANGELOG.md", ".ci", ".gitignore"}
    assert top - allowed == {"pyproject.toml", "pipeline", "stages", "models", "dags", "tests", "infra", "README.md"}


def test_every_package_is_listed_in_the_build() -> None:
    listed = set(tomllib.loads((PROJECT / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"])
    found = {str(path.parent.relative_to(PROJECT)).replace("/", ".") for path in SOURCES if path.name == "__init__.py"}
    assert found == listed


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(PROJECT)))
def test_a_module_says_what_it_does_and_is_named_by_its_subject(path: Path) -> None:
    assert ast.get_docstring(ast.parse(path.read_text())), f"{path} has no docstring"
    assert path.stem not in {"utils", "util", "helpers", "misc", "common"}
    assert len(path.read_text().splitlines()) <= 500


def test_the_command_is_installed() -> None:
    assert [point.value for point in entry_points(group="console_scripts", name="sluice")] == ["pipeline.__main__:main"]


def test_only_the_crew_and_what_it_starts_import_ray() -> None:
    importing = [path for path in SOURCES if "import ray" in path.read_text() or "from ray" in path.read_text()]
    rooms = ["pipeline/cluster.py", "pipeline/crew.py", "pipeline/shared.py", "stages/train/gang.py"]
    assert [str(path.relative_to(PROJECT)) for path in importing] == rooms
