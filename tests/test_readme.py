"""The README is short, and what it says to type works."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from infra.miniweb import Miniweb, evaluation

PROJECT = Path(__file__).parent.parent
README = (PROJECT / "README.md").read_text()
BLOCKS = re.findall(r"```(\w*)\n(.*?)```", README, re.DOTALL)


def test_it_is_short_and_begins_with_the_two_commands() -> None:
    assert len(README.split()) < 860
    assert [line.split("#")[0].strip() for line in BLOCKS[0][1].strip().splitlines()] == ["make demo", "make test"]


def test_its_file_tree_names_what_is_there() -> None:
    tree = next(text for _, text in BLOCKS if text.startswith("pipeline/"))
    named = {line.split("/")[0] for line in tree.splitlines() if line}
    assert named == {"pipeline", "stages", "models", "dags", "infra", "tests"}
    assert all((PROJECT / folder).is_dir() for folder in named)


@pytest.fixture(scope="module")
def playground(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in which the README's demo paths hold, served while the tests of this module run."""
    return tmp_path_factory.mktemp("readme")


def test_its_commands_and_its_python_run(playground: Path) -> None:
    commands = next(text for _, text in BLOCKS if text.startswith("sluice check"))
    python = next(text for language, text in BLOCKS if language == "python" and "from pipeline import" in text)
    environment = {**os.environ, "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}
    with Miniweb(playground / "demo" / "web", pages=200, seed=17, port=18080) as web:
        evaluation.write(web.pages, playground / "demo" / "evaluation")
        first = "sluice run quickstart demo/root --until shards --set urls.rows_per_part=100"
        sets = "python -m infra.miniweb.sets demo/sets --samples 4 --sets binding retrieval --processes 0"
        for command in [sets, first, *commands.strip().splitlines()]:
            done = subprocess.run(
                ["bash", "-c", command], cwd=playground, env=environment, capture_output=True, text=True
            )
            assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
        done = subprocess.run(
            [sys.executable, "-c", python], cwd=playground, env=environment, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stderr


def test_its_stage_is_a_stage() -> None:
    import pyarrow as pa

    from pipeline.stage import Device

    source = next(text for language, text in BLOCKS if "class Shouting" in text and language == "python")
    names: dict[str, object] = {}
    exec(compile(source, "README.md", "exec"), names)
    stage = names["Shouting"]()  # type: ignore[operator]

    class OneBatch:
        table = pa.table({"caption": ["A CAT", "a dog", None]})

    assert stage.open(Device())(OneBatch()).to_pydict() == {"shouting": [True, False, None]}
