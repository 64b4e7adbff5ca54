"""The DAGs that sluice ships hold together, as package data."""

from importlib.resources import files
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml

from pipeline import Dag
from pipeline.errors import SluiceError
from stages.decontaminate import Decontaminate

LOCAL = {"blip_bootstrap", "instruct", "proof", "quickstart"}
"""Those that run on the small local web."""
SHIPPED = sorted(item.name.removesuffix(".yaml") for item in files("dags").iterdir() if item.name.endswith(".yaml"))


def test_there_is_a_quickstart() -> None:
    assert "quickstart" in SHIPPED


def _reading_sets(name: str) -> list[str]:
    nodes = yaml.safe_load((files("dags") / f"{name}.yaml").read_text())["nodes"]
    asking = {"stages.decontaminate.Decontaminate", "stages.evaluate.Evaluate"}
    return [node for node, said in nodes.items() for step in said["steps"] if asking & set(step)]


@pytest.mark.parametrize("name", SHIPPED)
def test_nothing_is_wrong_with_it(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for node in yaml.safe_load((files("dags") / f"{name}.yaml").read_text())["nodes"].values():
        asked = node["steps"][0].get("stages.ingest.UrlTables")
        if asked is not None:
            Path(asked["files"]).parent.mkdir(parents=True, exist_ok=True)
            table = pa.table({asked["url"]: ["http://a.example/1.jpg"], asked["caption"]: ["a"]})
            pq.write_table(table, asked["files"])
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


@pytest.mark.parametrize("name", sorted(set(SHIPPED) - LOCAL))
def test_only_those_of_the_local_web_reach_anything_private(name: str) -> None:
    assert "allow_private_hosts" not in (files("dags") / f"{name}.yaml").read_text()


@pytest.mark.parametrize("name", SHIPPED)
def test_it_says_what_it_is_for(name: str) -> None:
    assert (files("dags") / f"{name}.yaml").read_text().startswith("# ")
