"""A parameter that names a trained model: its content is the identity, not its place."""

from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pytest
from huggingface_hub import constants

from pipeline import Dag, run
from pipeline.errors import SluiceError
from pipeline.identity import find_resources, generation_key, node_identity
from pipeline.node import prepare
from pipeline.ship import ship
from pipeline.stage import Batch, Device, NodeRef, PartStage, Weights
from pipeline.store import Store
from tests.inline import Inline

COMMIT = "0123456789" * 4


class Named(PartStage):
    """Adds the address under which a worker finds the weights."""

    promise = "pure"
    grain = "image"
    reads = frozenset({"n"})
    adds = pa.schema([("address", pa.string())])

    weights: Weights

    def open(self, device: Device) -> Callable[[Batch], pa.Table]:
        return lambda batch: pa.table({"address": [str(self.weights)] * batch.table.num_rows})


class Renamed(Named):
    """The same under another name, for a second step."""

    adds = pa.schema([("other", pa.string())])


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    made = tmp_path / "model"
    made.mkdir()
    (made / "config.json").write_text("{}")
    (made / "model.safetensors").write_bytes(b"weights")
    return made


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The hub's cache with one model in it, and no network."""
    cache = tmp_path / "hub"
    snapshot = cache / "models--org--clip" / "snapshots" / COMMIT
    snapshot.mkdir(parents=True)
    (snapshot / "config.json").write_text("{}")
    (cache / "models--org--clip" / "refs").mkdir()
    (cache / "models--org--clip" / "refs" / "main").write_text(COMMIT)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(cache))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    return cache


def key(weights: str | Path) -> str:
    stage = Named(weights=str(weights))
    return generation_key(node_identity([stage], 0), find_resources([stage]), {}, {})


def test_other_weights_are_other_work_and_another_place_or_another_readme_is_not(folder: Path, tmp_path: Path) -> None:
    first = key(folder)
    (folder / "README.md").write_text("of last year")
    moved = folder.rename(tmp_path / "moved")
    assert key(moved) == first
    (moved / "model.safetensors").write_bytes(b"Weights")
    assert key(moved) != first


def test_a_model_of_the_hub_is_known_by_its_commit_whatever_branch_names_it(hub: Path) -> None:
    assert key("org/clip") == key("org/clip@main") == key(f"org/clip@{COMMIT}")
    (hub / "models--org--clip" / "refs" / "main").write_text("f" * 40)
    (hub / "models--org--clip" / "snapshots" / ("f" * 40)).mkdir()
    assert key("org/clip") != key(f"org/clip@{COMMIT}")


@pytest.mark.usefixtures("hub")
def test_the_commit_is_what_workers_are_told(tmp_path: Path) -> None:
    store = Store(str(tmp_path / "root"))
    result = run(dag("org/clip"), store.root, executor=Inline(store))
    (record,) = result.generations["named"].records
    assert set(store.read_table(record, "image")["address"].to_pylist()) == {f"org/clip@{COMMIT}"}


def test_workers_are_told_of_a_copy_under_its_content_so_that_no_two_models_have_one_name(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    store = Store(str(tmp_path / "root"))

    def told() -> Path:
        result = run(dag("model"), store.root, executor=Inline(store))
        (record,) = result.generations["named"].records
        (address,) = set(store.read_table(record, "image")["address"].to_pylist())
        return Path(address)

    first = told()
    assert {path.name: path.read_bytes() for path in first.iterdir()} == {
        "config.json": b"{}",
        "model.safetensors": b"weights",
    }
    (folder / "model.safetensors").write_bytes(b"Weights")
    assert told() != first
    assert (first / "model.safetensors").read_bytes() == b"weights"
    assert {path.name[0] for path in (tmp_path / "root" / "resources").iterdir()} != {"."}
    assert len(list((tmp_path / "root" / "resources").iterdir())) == 2


def test_a_root_elsewhere_takes_the_weights_along(folder: Path) -> None:
    store = Store("memory://weights-elsewhere")
    result = run(dag(str(folder)), store.root, executor=Inline(store))
    (record,) = result.generations["named"].records
    (address,) = set(store.read_table(record, "image")["address"].to_pylist())
    assert address.startswith("memory://weights-elsewhere/resources/")
    assert store.get(f"{address}/model.safetensors") == b"weights"
    assert (folder / "model.safetensors").read_bytes() == b"weights"


def test_weights_that_change_while_the_run_begins_are_noticed(folder: Path, tmp_path: Path) -> None:
    store = Store(str(tmp_path / "root"))
    urls = run(dag(str(folder)), store.root, until="urls", executor=Inline(store)).generations["urls"]
    prepared = prepare(dag(str(folder)), "named", store, {"urls": urls})
    (folder / "model.safetensors").write_bytes(b"Weights")
    with pytest.raises(SluiceError, match=r"model\.safetensors changed while the run began; run again"):
        ship(prepared, store)


@pytest.mark.usefixtures("hub")
def test_what_no_one_has_is_refused_in_one_line(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(SluiceError, match=r"weights: 'org/absent' is neither a folder nor a model .*; check the name$"):
        key("org/absent")
    with pytest.raises(SluiceError, match=r"no folder '/no/such/place/at/all'.*org/name@commit$"):
        dag("/no/such/place/at/all").check()
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    with pytest.raises(SluiceError, match=r"holds no \*\.safetensors; save the model with save_pretrained first"):
        dag(str(folder)).check()


def test_two_steps_of_one_node_may_take_the_checkpoints_of_two_nodes() -> None:
    text = """
    dag: two
    nodes:
      a: {steps: [tests.toys.Numbers]}
      b: {steps: [tests.toys.Numbers]}
      both:
        from: a
        steps:
          - tests.pipeline.test_weights.Named: {weights: {node: a}}
          - tests.pipeline.test_weights.Renamed: {weights: {node: b}}
    """
    node = Dag.parse(text).nodes["both"]
    assert node.depends_on == {"a", "b"}
    assert {reference.node for reference in node.references.values()} == {"a", "b"}
    assert isinstance(node.stages[0], Named)
    assert node.stages[0].weights == NodeRef(node="a")
    assert find_resources(node.stages) == {}
    assert "'node': 'b'" in str(node_identity(node.stages, 0))


def test_of_a_node_that_has_several_models_one_can_be_named(tmp_path: Path) -> None:
    store = Store(str(tmp_path / "root"))

    def told(reference: str) -> str:
        text = f"""
        dag: several
        nodes:
          urls: {{steps: [{{tests.toys.Numbers: {{rows: 3, parts: 3}}}}]}}
          named: {{from: urls, steps: [{{tests.pipeline.test_weights.Named: {{weights: {reference}}}}}]}}
        """
        result = run(Dag.parse(text), store.root, executor=Inline(store))
        return "".join(
            store.read_table(record, "image")["address"][0].as_py() for record in result.generations["named"].records
        )

    assert "000-00000" in told("{node: urls}")
    for part, other in (("000-00001", "000-00002"), ("000-00002", "000-00001")):
        said = told(f"{{node: urls, part: {part}}}")
        assert f"{part}-" in said
        assert f"{other}-" not in said
    with pytest.raises(SluiceError, match=r"named: weights: node 'urls' has no part '7'; there are: 000-00000, "):
        told("{node: urls, part: 7}")
    with pytest.raises(SluiceError, match=r"named: weights: node 'urls' has no part '000-00003'; did you mean"):
        told("{node: urls, part: 000-00003}")


def test_what_is_made_of_one_model_is_not_made_anew_because_there_are_more(tmp_path: Path) -> None:
    store = Store(str(tmp_path / "root"))

    def worked_on(models: int, reference: str) -> bool:
        text = f"""
        dag: more
        nodes:
          urls: {{steps: [{{tests.toys.Numbers: {{rows: 3, parts: 1}}}}]}}
          models: {{steps: [{{tests.toys.Numbers: {{rows: {models}, parts: {models}}}}}]}}
          named: {{from: urls, steps: [{{tests.pipeline.test_weights.Named: {{weights: {reference}}}}}]}}
        """
        executor = Inline(store)
        run(Dag.parse(text), store.root, executor=executor)
        return "named" in executor.calls

    one = "{node: models, part: 000-00001}"
    assert [worked_on(models, one) for models in (3, 4, 4)] == [True, False, False]
    assert [worked_on(models, "{node: models}") for models in (3, 4, 4)] == [True, True, False]


def dag(weights: str) -> Dag:
    return Dag.parse(
        f"""
        dag: named
        nodes:
          urls: {{steps: [{{tests.toys.Numbers: {{rows: 3, parts: 1}}}}]}}
          named: {{from: urls, steps: [{{tests.pipeline.test_weights.Named: {{weights: "{weights}"}}}}]}}
        """
    )
