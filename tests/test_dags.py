"""The DAGs that sluice ships hold together, as package data."""

from importlib.resources import files
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline import Dag

SHIPPED = sorted(item.name.removesuffix(".yaml") for item in files("dags").iterdir() if item.name.endswith(".yaml"))


def test_there_is_a_quickstart() -> None:
    assert "quickstart" in SHIPPED


@pytest.mark.parametrize("name", SHIPPED)
def test_nothing_is_wrong_with_it(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "demo" / "web").mkdir(parents=True)
    pq.write_table(pa.table({"url": ["http://127.0.0.1:18080/1.jpg"], "alt": ["a"]}), "demo/web/urls.parquet")
    Dag.load(name).check()


@pytest.mark.parametrize("name", SHIPPED)
def test_it_says_what_it_is_for(name: str) -> None:
    assert (files("dags") / f"{name}.yaml").read_text().startswith("# ")
