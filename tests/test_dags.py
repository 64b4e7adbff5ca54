"""The DAGs that sluice ships hold together, as package data."""

import shlex
import shutil
import subprocess
from importlib.resources import files
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml

from infra.miniweb import sets
from pipeline import Dag
from pipeline.errors import SluiceError
from stages.decontaminate import Decontaminate
from tests.models.towers import tiny

ROOT = Path(__file__).parent.parent
LOCAL = {"blip_bootstrap", "instruct", "proof", "quickstart"}
"""Those that run on the small local web."""
TEACHER = "openai/clip-vit-large-patch14"
"""Of dags/README.md: a model of the hub, in whose place the test has one of its own."""
SHIPPED = sorted(item.name.removesuffix(".yaml") for item in files("dags").iterdir() if item.name.endswith(".yaml"))


def test_there_is_a_quickstart() -> None:
    assert "quickstart" in SHIPPED


def _reading_sets(name: str) -> list[str]:
    nodes = yaml.safe_load((files("dags") / f"{name}.yaml").read_text())["nodes"]
    asking = {"stages.decontaminate.Decontaminate", "stages.evaluate.Evaluate"}
    return [node for node, said in nodes.items() for step in said["steps"] if asking & set(step)]


def _write_tables(nodes: dict[str, Any]) -> None:
    """A table of one URL at every address that the DAG reads."""
    for node in nodes.values():
        asked = node["steps"][0].get("stages.ingest.UrlTables")
        if asked is not None:
            Path(asked["files"]).parent.mkdir(parents=True, exist_ok=True)
            table = pa.table({asked["url"]: ["http://a.example/1.jpg"], asked["caption"]: ["a"]})
            pq.write_table(table, asked["files"])


@pytest.mark.parametrize("name", SHIPPED)
def test_nothing_is_wrong_with_it(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    _write_tables(yaml.safe_load((files("dags") / f"{name}.yaml").read_text())["nodes"])
    (tmp_path / "held_out").mkdir()
    (tmp_path / "held_out" / "0.jpg").write_bytes(b"looked at by its name alone")
    Dag.load(name, [f"{node}.sets={{held_out: held_out}}" for node in _reading_sets(name)]).check()


@pytest.mark.parametrize("name", SHIPPED)
def test_none_runs_without_a_word_on_the_evaluation_sets_that_it_must_not_leak(name: str) -> None:
    """Those that run on the small local web name its own."""
    steps = yaml.safe_load((files("dags") / f"{name}.yaml").read_text())["nodes"]["leaks"]["steps"]
    (asked,) = (step["stages.decontaminate.Decontaminate"] for step in steps)
    if name not in LOCAL:
        with pytest.raises(SluiceError, match="sets names no evaluation set"):
            Decontaminate(**asked).check([])
    else:
        assert asked["sets"]


@pytest.mark.skipif(shutil.which("make") is None, reason="reads what make would run")
def test_the_proof_of_bootstrapping_trains_on_no_set_of_the_demo_and_every_arm_of_blip_alike(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    said = subprocess.run(["make", "-n", "proof-blip"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    (words,) = (shlex.split(line) for line in said.splitlines() if "sluice run" in line)
    settings = [words[place + 1] for place, word in enumerate(words) if word == "--set"]
    nodes = yaml.safe_load(Dag.load("blip_bootstrap", settings).text)["nodes"]
    assert "demo/" not in str(nodes)
    monkeypatch.chdir(tmp_path)
    _write_tables(nodes)
    for folder in ("evaluation/images", "sets"):
        (tmp_path / "proof/blip" / folder).mkdir(parents=True)
        (tmp_path / "proof/blip" / folder / "0.jpg").write_bytes(b"looked at by its name alone")
    Dag.load("blip_bootstrap", settings).check()
    raw, both = (nodes[arm]["steps"][0]["stages.train.Train"] for arm in ("blip", "both_blip"))
    assert raw == both
    assert raw["seeds"] == 3
    for node in ("captioner", "filter"):  # of three models one has to be named
        assert nodes[node]["steps"][0]["stages.train.Train"]["pretrained"] == {"node": "blip", "part": "model-0"}


def test_bootstrapping_on_your_own_data_reads_nothing_of_the_demo(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With the command of dags/README.md."""
    (block,) = (text for text in (files("dags") / "README.md").read_text().split("```") if "run blip_bootstrap" in text)
    words = shlex.split(block.replace("\\\n", " ").replace("/data/", "data/"))
    settings = [words[place + 1] for place, word in enumerate(words) if word == "--set"]
    nodes = yaml.safe_load(Dag.load("blip_bootstrap", settings).text)["nodes"]
    assert "demo/" not in str(nodes)
    monkeypatch.chdir(tmp_path)
    asked = {node: nodes[node]["steps"][0]["stages.ingest.UrlTables"] for node in ("urls", "trusted_urls")}
    assert {node: said["caption"] for node, said in asked.items()} == {"urls": "TEXT", "trusted_urls": "caption"}
    asked["urls"]["files"] = asked["urls"]["files"].replace("*", "0")
    _write_tables(nodes)
    sets.write(tmp_path / "data/sets", samples=2, names=("retrieval",))
    Dag.load("blip_bootstrap", settings).check()


def test_the_trainings_of_the_readme_are_nodes_of_a_dag(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    section = (files("dags") / "README.md").read_text().split("\n## Training\n")[1].split("\n## ")[0]
    teacher = str(tiny.save("clip", tmp_path / "clip"))
    nodes = yaml.safe_load(Dag.load("web_pairs", ["leaks.sets={}"]).text)["nodes"]
    for block in section.split("```yaml")[1:]:
        nodes |= yaml.safe_load(block.split("```")[0].replace(TEACHER, teacher))
    assert {"clip", "teacher", "taught", "mobileclip"} <= nodes.keys()
    monkeypatch.chdir(tmp_path)
    _write_tables(nodes)
    Dag.parse(yaml.safe_dump({"dag": "training", "nodes": nodes})).check()


@pytest.mark.parametrize("name", SHIPPED)
def test_all_that_is_trained_on_was_compared_with_the_evaluation_sets(name: str) -> None:
    nodes = yaml.safe_load((files("dags") / f"{name}.yaml").read_text())["nodes"]
    for node in nodes.values():
        if any("stages.shard.WebDataset" in step for step in node["steps"]):
            rules = [
                rule
                for source in node["from"]
                for step in nodes[source]["steps"]
                for rule in step.get("stages.select.Select", {"rules": []})["rules"]
            ]
            assert any("leaks_from IS NULL" in text for rule in rules for text in rule.values())
    steps = [step for node in nodes.values() for step in node["steps"]]
    compared = [
        where.split("::")[0]
        for step in steps
        for where in (step.get("stages.decontaminate.Decontaminate") or {}).get("sets", {}).values()
    ]
    for step in steps:
        for where in step.get("stages.evaluate.Evaluate", {"sets": {}})["sets"].values():
            assert any(Path(where).is_relative_to(folder) for folder in compared)


@pytest.mark.parametrize("name", sorted(set(SHIPPED) - LOCAL))
def test_only_those_of_the_local_web_reach_anything_private(name: str) -> None:
    assert "allow_private_hosts" not in (files("dags") / f"{name}.yaml").read_text()


@pytest.mark.parametrize("name", SHIPPED)
def test_it_says_what_it_is_for(name: str) -> None:
    assert (files("dags") / f"{name}.yaml").read_text().startswith("# ")
