"""The web's captions and those of several models, merged by hand here; and the rules that say which are used."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import yaml

from pipeline.errors import SluiceError
from pipeline.records import Generation
from pipeline.stage import NodeRef
from pipeline.store import Store
from stages.recaption import Captions, Recaption, RecaptionByServer
from stages.recaption.captions import TOLD, caption_id_of, drawn
from stages.recaption.written import WRITTEN
from stages.select import Select
from tests.pools import InlineWork, write_node

UIDS = ["a", "b", "c", "d"]
WEB: dict[str, list[str | None]] = {"a": ["a cat", "buy now"], "b": ["a dog"], "c": ["a car"], "d": [None]}
OURS: dict[str, list[str] | None] = {
    "a": ["a grey cat", "a cat", "a grey cat"],  # one of the web's, and one twice
    "b": ["a dog", "a dog"],  # nothing new
    "c": None,  # was not downloaded
    "d": ["", "a tree"],  # the web had no caption, which is known by the hash of an empty one
}
THEIRS: dict[str, list[str] | None] = {"a": ["a grey cat", "an old cat"], "b": ["a puppy"], "c": None, "d": ["a tree"]}


def scores_of(node: str, uid: str, count: int) -> list[float]:
    """Another number for every caption, which float32 holds."""
    return [-(1 + UIDS.index(uid) + place / 8 + (node == "theirs") / 16) for place in range(count)]


def written(node: str, texts: dict[str, list[str] | None]) -> pa.Table:
    rows = [
        {"uid": uid}
        if own is None
        else {
            "uid": uid,
            "written": own,
            "written_score": scores_of(node, uid, len(own)),
            "written_source": node,
            "written_model": f"{node}'s model",
            "written_checkpoint": None if node == "theirs" else "c0ffee",
        }
        for uid, own in texts.items()
    ]
    return pa.Table.from_pylist(rows, schema=pa.schema([("uid", pa.string()), *WRITTEN]))


@pytest.fixture
def inputs(tmp_path: Path) -> tuple[Store, list[Generation]]:
    """A node of web captions, then what two models wrote."""
    store = Store(str(tmp_path))
    pairs = [
        {"uid": uid, "caption_id": caption_id_of(text or ""), "caption": text, "source": "web"}
        for uid in UIDS
        for text in WEB[uid]
    ]
    names = ("uid", "caption_id", "caption", "source")
    told = pa.Table.from_pylist(pairs, schema=pa.schema([(name, pa.string()) for name in names]))
    pool = write_node(store, "pool", {"000-0": {"image": pa.table({"uid": UIDS}), "caption": told}}, tar=True)
    nodes = [
        write_node(store, node, {"000-0": {"image": written(node, texts)}}, ["pool"])
        for node, texts in (("ours", OURS), ("theirs", THEIRS))
    ]
    return store, [pool, *nodes]


def merged(store: Store, inputs: list[Generation]) -> tuple[pa.Table, Any]:
    stage = Captions()
    (record,) = stage.assemble(InlineWork(store, "captions", stage, inputs))
    return store.read_table(record, "caption"), record


def test_captions_of_the_web_and_of_two_models_stand_once_each_with_their_provenance(
    inputs: tuple[Store, list[Generation]],
) -> None:
    table, record = merged(*inputs)
    assert table.schema.equals(TOLD)

    def web(uid: str, text: str | None, times: int) -> tuple[Any, ...]:
        return uid, text, "web", None, None, None, None, times

    def of(node: str, uid: str, text: str, candidate: int, times: int) -> tuple[Any, ...]:
        score = scores_of(node, uid, 8)[candidate]
        return uid, text, node, f"{node}'s model", "c0ffee" if node == "ours" else None, candidate, score, times

    names = ("uid", "caption", "source", "model", "checkpoint", "candidate", "caption_score", "times")
    assert [tuple(row[name] for name in names) for row in table.to_pylist()] == [
        web("a", "a cat", 1),  # which one model wrote as well
        web("a", "buy now", 0),
        of("ours", "a", "a grey cat", 0, 3),  # twice by ours, once by theirs: the first to write it is named
        of("theirs", "a", "an old cat", 1, 1),
        web("b", "a dog", 2),
        of("theirs", "b", "a puppy", 0, 1),
        web("c", "a car", 0),
        web("d", None, 1),
        of("ours", "d", "a tree", 1, 2),
    ]
    for row in table.to_pylist():
        assert row["caption_id"] == caption_id_of(row["caption"] or "")
        assert row["draw"] == np.float32(drawn(row["uid"]))
    assert record.statuses == {"web": 5, "ours": 2, "theirs": 2}
    assert record.notes["repeated"] == 7  # of 11 written, four are new


def test_models_are_told_in_the_order_of_from(inputs: tuple[Store, list[Generation]]) -> None:
    store, (pool, ours, theirs) = inputs
    rows = merged(store, [pool, theirs, ours])[0].to_pylist()
    assert [(row["caption"], row["source"]) for row in rows if row["uid"] == "a"] == [
        ("a cat", "web"),
        ("buy now", "web"),
        ("a grey cat", "theirs"),
        ("an old cat", "theirs"),
    ]


def test_what_was_told_already_keeps_its_provenance_and_counts_on(inputs: tuple[Store, list[Generation]]) -> None:
    store, (pool, ours, theirs) = inputs
    first, record = merged(store, [pool, ours])
    earlier = write_node(store, "earlier", {"000-0": {"caption": first}}, ["pool"])
    stage = Captions()
    work = InlineWork(store, "more", stage, [earlier, theirs])
    # The rows come from captions alone here, so that an image without any would be lost: none is.
    (again,) = stage.assemble(work)
    assert (
        store.read_table(again, "caption")
        .sort_by("caption_id")
        .equals(merged(store, [pool, ours, theirs])[0].sort_by("caption_id"))
    )
    assert record.statuses == {"web": 5, "ours": 2}


# -- which are used ----------------------------------------------------------------------------------------------------


def documented() -> dict[str, str]:
    """The rules for captions as dags/README.md shows them."""
    text = (Path(__file__).parent.parent.parent / "dags/README.md").read_text()
    block = text.split("## Captions that models write")[1].split("```yaml")[1].split("```")[0]
    return {name: rule for one in yaml.safe_load(block) for name, rule in one.items()}


MANY = [f"image-{number}" for number in range(400)]


@pytest.mark.parametrize("policy", ["append", "replaced", "mixed"])
def test_policies_keep_every_image_whether_or_not_a_model_wrote_of_it(tmp_path: Path, policy: str) -> None:
    """A third of the images has captions of both, a third of the web alone, a third of the model alone."""
    sources = {uid: (("web", "web", "ours"), ("web",), ("ours", "ours"))[place % 3] for place, uid in enumerate(MANY)}
    rows = [
        {"uid": uid, "caption_id": f"{place}", "source": source, "draw": drawn(uid)}
        for uid, own in sources.items()
        for place, source in enumerate(own)
    ]
    store = Store(str(tmp_path))
    schema = pa.schema(
        [("uid", pa.string()), ("caption_id", pa.string()), ("source", pa.string()), ("draw", pa.float32())]
    )
    told = pa.Table.from_pylist(rows, schema=schema)
    node = write_node(store, "captions", {"000-0": {"image": pa.table({"uid": MANY}), "caption": told}}, tar=True)
    stage = Select(
        rules=[{"known": "source IS NOT NULL"}, *([] if policy == "append" else [{policy: documented()[policy]}])]
    )
    (record,) = stage.assemble(InlineWork(store, "kept", stage, [node]))
    verdicts = store.read_table(record, "caption").to_pylist()
    kept: dict[str, list[str]] = {uid: [] for uid in MANY}
    for row, verdict in zip(rows, verdicts, strict=True):
        if verdict["kept"]:
            kept[str(row["uid"])].append(str(row["source"]))
    both = [uid for uid in MANY if len(set(sources[uid])) == 2]
    assert all(kept.values()), "no image is without a caption"
    for uid in MANY:
        written = drawn(uid) < 0.7 if policy == "mixed" else policy == "replaced"
        if policy == "append" or sources[uid] == ("web",):
            assert kept[uid] == list(sources[uid])
        elif uid in both:
            assert kept[uid] == (["ours"] if written else ["web", "web"])
        else:
            assert kept[uid] == ["ours", "ours"]
    if policy == "mixed":
        share = sum(kept[uid] == ["ours"] for uid in both) / len(both)
        assert share == pytest.approx(0.7, abs=4 * (0.21 / len(both)) ** 0.5)


@pytest.mark.parametrize("rule", ["replace", "ratio", "common"])
def test_the_module_gives_the_rules_of_the_readme(rule: str) -> None:
    import stages.recaption.captions as module

    (line,) = (line for line in (module.__doc__ or "").splitlines() if line.strip().startswith(f"{rule} "))
    assert line.split(":", 1)[1].strip() in documented().values()


def test_no_model_may_call_itself_the_web() -> None:
    told = "source = 'web': rules take that for the web's own captions; give another name in `source`"
    for stage in (
        lambda: Recaption(weights="org/model@0123", source="web"),
        lambda: Recaption(weights=NodeRef(node="web")),
        lambda: Recaption(weights="models/web/"),
        lambda: RecaptionByServer(server="http://127.0.0.1:8000/v1", model="m", source="web"),
        lambda: RecaptionByServer(server="http://127.0.0.1:8000/v1", model="web"),
    ):
        with pytest.raises(SluiceError, match=told):
            stage()
    assert Recaption(weights=NodeRef(node="web"), source="ours").named() == "ours"
