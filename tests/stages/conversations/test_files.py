"""LLaVA's and ShareGPT's files become shards, and shards become such files again."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import fsspec
import pytest
from click.testing import CliRunner
from fsspec.implementations.local import LocalFileSystem

from models.data.shards import Samples
from pipeline.errors import SluiceError
from pipeline.identity import find_resources
from pipeline.records import Generation
from pipeline.store import Store
from stages.conversations import ConversationFiles, Conversations
from stages.conversations.command import conversations
from stages.conversations.turns import Malformed, read
from tests.pools import InlineWork, seal_node, write_run
from tests.stages.conversations.conftest import CAPTIONS, made, picture, sample, tars, turns, write_pairs

CHAT = [{"from": "human", "value": "<image>\nWhat is it?"}, {"from": "gpt", "value": "A square."}]
TEXT = [{"from": "human", "value": "Two and two?"}, {"from": "gpt", "value": "Four."}]


@pytest.fixture
def images(tmp_path: Path) -> Path:
    folder = tmp_path / "pictures"
    (folder / "coco").mkdir(parents=True)
    for name, colour in (("coco/1.jpg", "red"), ("2.jpg", "blue")):
        (folder / name).write_bytes(picture(colour))
    (folder / "none.jpg").write_bytes(b"<html>")
    (tmp_path / "secret.jpg").write_bytes(picture())
    return folder


def taken(store: Store, entries: Any, images: Path, lines: bool = False, **more: Any) -> Generation:
    path = images.parent / "mix.json"
    path.write_text("\n".join(map(json.dumps, entries)) if lines else json.dumps(entries))
    stage = ConversationFiles(file=str(path), images=str(images), **more)
    work = InlineWork(store, "chats", stage, [])
    work.resources = find_resources([stage])
    return seal_node(store, "chats", stage.assemble(work))


@pytest.mark.parametrize("lines", [False, True])
def test_one_image_several_or_none(store: Store, images: Path, lines: bool) -> None:
    two = [{"from": "human", "value": "<image>\n<image>\nWhich is red?"}, {"from": "gpt", "value": "The first."}]
    entries = [
        {"id": "a", "image": "coco/1.jpg", "conversations": CHAT},
        {"id": "b", "image": ["coco/1.jpg", "2.jpg"], "conversations": two},
        {"id": "c", "conversations": TEXT},
    ]
    samples = list(Samples.open(str(tars(store, taken(store, entries, images, lines))[0])))
    assert [sorted(members) for _, members in samples] == [["jpg", "json"], ["0.jpg", "1.jpg", "json"], ["json"]]
    assert samples[1].members["1.jpg"] == picture("blue")
    said = [json.loads(members["json"]) for _, members in samples]
    assert [one["id"] for one in said] == ["a", "b", "c"]
    assert [one["conversations"] for one in said] == [CHAT, two, TEXT]


def test_sharegpts_words_become_llavas(store: Store, images: Path) -> None:
    messages = [
        {"role": "system", "content": "Be short."},
        {"role": "user", "content": "What is it?"},
        {"role": "assistant", "content": "A square."},
    ]
    generation = taken(store, [{"messages": messages, "images": ["2.jpg"]}], images)
    (only,) = Samples.open(str(tars(store, generation)[0]))
    assert json.loads(only.members["json"])["conversations"] == [
        {"from": "system", "value": "Be short."},
        {"from": "human", "value": "<image>\nWhat is it?"},  # the image, for which no place was told, comes first
        {"from": "gpt", "value": "A square."},
    ]


@pytest.mark.parametrize(
    ("entry", "verdict"),
    [
        ({"image": "gone.jpg", "conversations": CHAT}, "no_image"),
        ({"image": "../secret.jpg", "conversations": CHAT}, "no_image"),
        ({"image": "/etc/hostname", "conversations": CHAT}, "no_image"),
        ({"image": "none.jpg", "conversations": CHAT}, "no_picture"),
        ({"conversations": CHAT}, "misplaced_image"),
        ({"image": "2.jpg", "conversations": [CHAT[0], {"from": "gpt", "value": "<image>"}]}, "misplaced_image"),
        ({"image": 3, "conversations": CHAT}, "malformed"),
        ({"conversations": [{"from": "human", "value": "?"}]}, "malformed"),
        ({"conversations": []}, "malformed"),
        (7, "malformed"),
    ],
)
def test_what_cannot_be_used_is_left_out_and_says_why(entry: Any, verdict: str, store: Store, images: Path) -> None:
    generation = taken(store, [entry, {"conversations": TEXT}], images)
    assert [row["verdict"] for row in turns(store, generation)] == [verdict, "kept"]
    assert len(Samples.open(str(tars(store, generation)[0]))) == 1
    assert generation.statuses == {verdict: 1, "kept": 1}


def test_a_long_file_becomes_several_shards(store: Store, images: Path) -> None:
    generation = taken(store, [{"id": str(n), "conversations": TEXT} for n in range(5)], images, rows_per_shard=2)
    found = [json.loads(s.members["json"])["id"] for path in tars(store, generation) for s in Samples.open(str(path))]
    assert found == ["0", "1", "2", "3", "4"]
    assert json.loads((tars(store, generation)[0].parent / "sizes.json").read_text()) == {
        "00000000.tar": 2,
        "00000001.tar": 2,
        "00000002.tar": 1,
    }


@pytest.mark.parametrize(("text", "told"), [("", "holds no conversation"), ("{]", "neither"), ("[1, ", "neither")])
def test_what_is_no_such_file_is_told_in_a_line(text: str, told: str, store: Store, images: Path) -> None:
    path = images.parent / "mix.json"
    path.write_text(text)
    stage = ConversationFiles(file=str(path), images=str(images))
    work = InlineWork(store, "chats", stage, [])
    work.resources = find_resources([stage])
    with pytest.raises(SluiceError, match=told):
        stage.assemble(work)


@pytest.mark.parametrize(
    ("after", "told"),
    [("find_resources", "changed while the run began"), ("slices", "changed while the run went on")],
)
def test_a_file_that_changes_during_the_run_is_not_read_at_old_places(
    after: str, told: str, store: Store, images: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = images.parent / "mix.json"
    entries = [{"id": str(number), "conversations": TEXT} for number in range(4)]
    path.write_text(json.dumps(entries))

    def change() -> None:
        path.write_text(json.dumps([{"id": "new", "conversations": TEXT}, *entries]))

    def map_changed(*given: Any) -> Any:
        change()
        return map_all(*given)

    stage = ConversationFiles(file=str(path), rows_per_shard=2)
    work = InlineWork(store, "chats", stage, [])
    work.resources = find_resources([stage])
    map_all = work.map
    if after == "find_resources":
        change()
    else:
        monkeypatch.setattr(work, "map", map_changed)
    with pytest.raises(SluiceError, match=f"{path} {told}; run again$"):
        stage.assemble(work)


@pytest.mark.parametrize(
    "said", [{}, {"conversations": "hello"}, {"conversations": [{"from": "cat", "value": "meow"}]}]
)
def test_what_is_no_conversation_is_told(said: Any) -> None:
    with pytest.raises(Malformed):
        read(said)


def exported(store: Store, out: Path, *options: str) -> Any:
    write_run(store, [node for node in ("shards", "chats") if store.newest(node)])
    given = [str(store.root), "--node", "chats", "--out", str(out), *options]
    result = CliRunner().invoke(conversations, given, catch_exceptions=False)
    assert result.exit_code == 0
    return json.loads(out.read_text())


def test_what_was_written_out_is_read_again(store: Store, tmp_path: Path) -> None:
    made(store, Conversations(), write_pairs(store, [[sample(0, CAPTIONS[0]), sample(1, CAPTIONS[1])]]))
    said = exported(store, tmp_path / "mix.json", "--images", str(tmp_path / "out"))
    again = Store(str(tmp_path / "again"))
    found = list(Samples.open(str(tars(again, taken(again, said, tmp_path / "out"))[0])))
    assert [members["jpg"] for _, members in found] == [picture(), picture()]
    assert [json.loads(members["json"])["conversations"] for _, members in found] == [e["conversations"] for e in said]


def test_sharegpts_form_has_nothing_but_who_and_what(store: Store, tmp_path: Path) -> None:
    made(store, Conversations(), write_pairs(store, [[sample(0, CAPTIONS[0])]]))
    (entry,) = exported(store, tmp_path / "chats.json", "--form", "sharegpt")
    assert {frozenset(turn) for turn in entry["conversations"]} == {frozenset({"from", "value"})}
    assert len(entry["images"]) == 1


def test_pairs_are_no_conversations(store: Store, tmp_path: Path) -> None:
    write_pairs(store, [[sample(0, "a cat")]], node="chats")
    with pytest.raises(SluiceError, match="holds pairs and no conversation"):
        exported(store, tmp_path / "x.json")
    assert not list(tmp_path.glob("*x.json*"))
    given = [str(store.root), "--out", str(tmp_path / "x.json"), "--node"]
    with pytest.raises(SluiceError, match="did you mean 'chats'"):
        CliRunner().invoke(conversations, [*given, "chat"], catch_exceptions=False)
    write_pairs(store, [[sample(1, "a dog")]], node="others")
    write_run(store, ["others"])
    with pytest.raises(SluiceError, match="--node 'chats' made no shards in run 0002; run 0001 did: --run 0001"):
        CliRunner().invoke(conversations, [*given, "chats"], catch_exceptions=False)


@pytest.mark.parametrize("lines", [False, True])
def test_however_many_shards_the_file_is_read_twice(
    lines: bool, store: Store, images: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Once as a whole, to know where entries begin; then of each shard its own entries alone."""
    entries = [{"id": str(n), "conversations": TEXT} for n in range(60)]
    opened, taken_bytes = list[str](), list[int]()
    whole, some = fsspec.open, LocalFileSystem.cat_file

    def opening(path: str, *rest: Any, **more: Any) -> Any:
        opened.append(path)
        return whole(path, *rest, **more)

    def cut(self: Any, path: str, **more: Any) -> bytes:
        data: bytes = some(self, path, **more)
        taken_bytes.append(len(data))
        return data

    monkeypatch.setattr("stages.conversations.json_slices.fsspec.open", opening)
    monkeypatch.setattr(LocalFileSystem, "cat_file", cut)
    generation = taken(store, entries, images, lines, rows_per_shard=2)
    assert len(tars(store, generation)) == 30
    assert [Path(path).name for path in opened].count("mix.json") == 1
    assert len(taken_bytes) == 30
    assert sum(taken_bytes) <= (images.parent / "mix.json").stat().st_size
