"""Shards of a selection: every kept image once, in the right place, the same bytes always."""

import gc
import json
import tarfile
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from hashlib import blake2b, sha256
from pathlib import Path
from typing import Any

import braceexpand
import pyarrow as pa
import pytest
import webdataset

from pipeline.attempt import Attempt
from pipeline.errors import SluiceError
from pipeline.records import Generation, Record, digest
from pipeline.stage import CAPTIONS, OBSERVED, PIXELS, Column, Task
from pipeline.store import Store
from stages.kit import exchange
from stages.shard import WebDataset
from tests.pools import InlineWork, seal_node, write_node

IMAGE = pa.schema(
    [
        ("uid", pa.string()),
        ("url", pa.string()),
        ("license", pa.string()),
        ("caption", pa.string()),
        CAPTIONS,
        pa.field("source_file", pa.string(), metadata=OBSERVED),
        ("key", pa.string()),
        ("status", pa.string()),
        ("width", pa.int32()),
        ("height", pa.int32()),
        ("phash", pa.uint64()),
        ("sha256", pa.string()),
        pa.field("stored_sha256", pa.string(), metadata=OBSERVED),
        pa.field("offset", pa.int64(), metadata=OBSERVED),
        pa.field("nbytes", pa.int64(), metadata=OBSERVED),
    ]
)
CAPTION = pa.schema(
    [("uid", pa.string()), ("caption_id", pa.string()), ("caption", pa.string()), ("source", pa.string())]
)


def identity(text: str) -> str:
    return blake2b(text.encode(), digest_size=16).hexdigest()


def picture(uid: str) -> bytes:
    """Bytes that begin like a JPEG and differ from image to image, in length too."""
    return b"\xff\xd8\xff" + uid.encode() * (1 + int(uid[0], 16))


class World:
    """A pool, a table of scores and a selection, without a download: image n has the captions `n a`, `n b`."""

    def __init__(self, root: Path) -> None:
        self.store = Store(str(root))

    def part(self, name: str, numbers: Sequence[int], supersedes: tuple[str, ...] = ()) -> Record:
        attempt = Attempt(self.store, "pool", "parts", Task(name, supersedes=supersedes), digest([name, list(numbers)]))
        rows, captions, offset = [], [], 0
        with attempt.create("tar") as tar:
            for n in numbers:
                uid = identity(f"http://a/{n}")
                failed = n % 10 == 9
                data = b"" if failed else picture(uid)
                tar.write(bytes(512) + data)
                where = {"offset": offset + 512, "nbytes": len(data), "stored_sha256": sha256(data).hexdigest()}
                rows.append(
                    {
                        "uid": uid,
                        "url": f"http://a/{n}",
                        "license": "CC0",
                        "caption": f"{n} a",
                        "captions": 2,
                        "key": uid,
                        "status": "http_404" if failed else "success",
                        "width": n,
                        "height": 7,
                        "phash": (1 << 64) - 1 - n,
                        "sha256": f"{n}",
                        **({} if failed else where),
                        "source_file": name,
                    }
                )
                captions += [
                    {"uid": uid, "caption_id": identity(f"{n} {x}"), "caption": f"{n} {x}", "source": "web"}
                    for x in "ab"
                ]
                offset += 512 + len(data)
        attempt.write("image", pa.Table.from_pylist(rows, schema=IMAGE))
        attempt.write("caption", pa.Table.from_pylist(captions, schema=CAPTION))
        return attempt.commit()

    def pool(
        self, parts: Mapping[str, Sequence[int]], supersedes: Mapping[str, tuple[str, ...]] | None = None
    ) -> Generation:
        return seal_node(
            self.store, "pool", [self.part(n, rows, (supersedes or {}).get(n, ())) for n, rows in parts.items()]
        )

    def beside(self, node: str, pool: Generation, **columns: Any) -> Generation:
        """A caption table with columns made from each caption."""
        parts = {}
        for record in pool.records:
            captions = self.store.read_table(record, "caption").select(["uid", "caption_id", "caption"])
            table = captions.select(["uid", "caption_id"])
            for name, (make, kind) in columns.items():
                values = [make(caption) for caption in captions.column("caption").to_pylist()]
                table = table.append_column(name, pa.array(values, kind))
            parts[record.part] = {"caption": table}
        return write_node(self.store, node, parts)

    def shards(self, *inputs: Generation, seed: int = 0, **parameters: Any) -> "Shards":
        stage = WebDataset(**parameters)
        work = InlineWork(self.store, "shards", stage, inputs)
        work.seed = seed
        return Shards(self.store, stage.assemble(work), work)


class Shards:
    """What the job left."""

    def __init__(self, store: Store, records: list[Record], work: InlineWork) -> None:
        self.store, self.work = store, work
        self.written = [record for record in records if record.phase == "write"]
        (self.sizes,) = [record for record in records if record.phase == "sizes"]

    @property
    def paths(self) -> list[str]:
        return [self.store.full(f"shards/{record.notes['path']}") for record in self.written]

    @property
    def sums(self) -> list[str]:
        return [sha256(Path(path).read_bytes()).hexdigest() for path in self.paths]

    def samples(self) -> list[tuple[str, dict[str, bytes]]]:
        """(uid, ending -> bytes), in order."""
        found: dict[str, dict[str, bytes]] = {}
        for path in self.paths:
            with tarfile.open(path) as tar:
                for member in tar:
                    uid, _, ending = member.name.partition(".")
                    content = tar.extractfile(member)
                    assert content is not None
                    found.setdefault(uid, {})[ending] = content.read()
        return list(found.items())


def number(caption: str) -> int:
    return int(caption.split()[0])


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path / "root")


PARTS = {"000-00000": range(25), "000-00001": range(25, 50), "000-00002": range(50, 60)}
GOOD = [n for n in range(60) if n % 10 != 9]


def kept_where(world: World, pool: Generation, rule: Any = lambda caption: number(caption) % 10 != 9) -> Generation:
    return world.beside("kept", pool, kept=(rule, pa.bool_()), dropped_by=(lambda caption: None, pa.string()))


def test_every_kept_image_is_there_once_with_its_own_bytes_text_and_facts(world: World) -> None:
    pool = world.pool(PARTS)
    kept = kept_where(world, pool, lambda caption: number(caption) in (3, 4, 30) or caption == "55 b")
    shards = world.shards(pool, kept, samples_per_shard=3)
    samples = shards.samples()
    assert [uid for uid, _ in samples] == [identity(f"http://a/{n}") for n in (3, 4, 30, 55)]
    for uid, members in samples:
        assert sorted(members) == ["jpg", "json", "txt"]
        assert members["jpg"] == picture(uid)
    assert [members["txt"].decode() for _, members in samples] == ["3 a", "4 a", "30 a", "55 b"]
    assert json.loads(samples[3][1]["json"]) == {
        "uid": identity("http://a/55"),
        "caption": "55 b",
        "captions": [{"caption_id": identity("55 b"), "text": "55 b", "source": "web"}],
        "url": "http://a/55",
        "license": "CC0",
        "width": 55,
        "height": 7,
        "phash": "ffffffffffffffc8",
        "sha256": "55",
    }
    assert [len(json.loads(members["json"])["captions"]) for _, members in samples] == [2, 2, 2, 1]
    sizes = json.loads((Path(shards.paths[0]).parent / "sizes.json").read_bytes())
    assert sizes == {"00000000.tar": 3, "00000001.tar": 1}


def test_the_best_caption_is_the_text_and_scores_stand_in_the_json(world: World) -> None:
    pool = world.pool({"000-00000": range(3)})
    kept = kept_where(world, pool)
    score = {"0 a": 0.1, "0 b": 0.3, "1 a": None, "1 b": 0.2, "2 a": float("nan"), "2 b": None}
    scores = world.beside(
        "scores", pool, clip_score=(score.get, pa.float32()), embedding=(lambda _: [1.0], pa.list_(pa.float32()))
    )
    samples = world.shards(pool, scores, kept, best_by="clip_score").samples()
    assert [members["txt"] for _, members in samples] == [b"0 b", b"1 b", b"2 a"]
    captions = [json.loads(members["json"])["captions"] for _, members in samples]
    assert [[caption["clip_score"] for caption in found] for found in captions] == [
        [0.1, 0.3],
        [None, 0.2],
        [None, None],
    ]
    assert "embedding" not in captions[0][0]
    chosen = world.shards(pool, scores, kept, json_columns=["scores.embedding", "width"]).samples()
    document = json.loads(chosen[0][1]["json"])
    assert sorted(document) == ["caption", "captions", "uid", "width"]
    assert document["captions"][0]["embedding"] == [1.0]


def test_boxes_with_their_labels_stand_in_the_json_and_other_lists_do_not(world: World) -> None:
    """Whatever else is known of a box, and however long their lists are."""
    pool = world.pool({"000-00000": range(3)})
    seen = [{"label": "dog", "box": [0.1, 0.5, 0.75, 1.0], "at": datetime(2026, 11, 22, tzinfo=UTC), "features": [1.0]}]
    kind = [("label", pa.string()), ("at", pa.timestamp("us", "UTC")), ("features", pa.list_(pa.float32()))]
    images = pa.table(
        {
            "uid": [identity(f"http://a/{number}") for number in range(3)],
            "boxes": pa.array([seen, [], None], pa.list_(pa.struct([*kind, ("box", pa.list_(pa.float32(), 4))]))),
            "image_embedding": pa.array([[1.0]] * 3, pa.list_(pa.float32())),
            "times": pa.array(
                [[{"at": seen[0]["at"], "hash": 2**64 - 1}], [None], None],
                pa.list_(pa.struct([("at", pa.timestamp("us", "UTC")), ("hash", pa.uint64())])),
            ),
        }
    )
    detector = write_node(world.store, "detector", {"000-00000": {"image": images}})
    kept = kept_where(world, pool)
    documents = [json.loads(members["json"]) for _, members in world.shards(pool, detector, kept).samples()]
    assert [document["boxes"] for document in documents] == [[{"label": "dog", "box": [0.1, 0.5, 0.75, 1.0]}], [], None]
    assert all(document.keys().isdisjoint({"image_embedding", "times"}) for document in documents)
    chosen = world.shards(pool, detector, kept, json_columns=["times", "boxes"]).samples()
    documents = [json.loads(members["json"]) for _, members in chosen]
    assert documents[0]["boxes"][0]["features"] == [1.0]
    assert [document["times"] for document in documents] == [
        [{"at": "2026-11-22 00:00:00.000000Z", "hash": "f" * 16}],
        [None],
        None,
    ]


def test_captions_that_another_node_wrote_are_found_by_their_key(world: World) -> None:
    pool = world.pool({"000-00000": range(2)})
    uid, text = identity("http://a/1"), "a better one"
    pair = {"uid": [uid], "caption_id": [identity(text)]}
    written = {"000-00000": {"caption": pa.table({**pair, "caption": [text], "source": ["captioner"]})}}
    better = write_node(world.store, "better", written)
    kept = write_node(world.store, "kept", {"000-00000": {"caption": pa.table({**pair, "kept": [True]})}})
    ((_, members),) = world.shards(pool, better, kept).samples()
    assert members["txt"].decode() == text
    assert json.loads(members["json"])["captions"][0]["source"] == "captioner"
    with pytest.raises(SluiceError, match=f"has the text of the kept pair .*{uid}"):
        world.shards(pool, kept)


def test_an_image_without_a_caption_has_no_text(world: World) -> None:
    pool = world.pool({"000-00000": range(1)})
    record = pool.records[0]
    null = pa.table(
        {**world.store.read_table(record, "caption").slice(0, 1).to_pydict(), "caption": pa.nulls(1, pa.string())}
    )
    texts = write_node(world.store, "texts", {"000-00000": {"caption": null}})
    kept = write_node(
        world.store,
        "kept",
        {"000-00000": {"caption": null.select(["uid", "caption_id"]).append_column("kept", [[True]])}},
    )
    ((_, members),) = world.shards(texts, pool, kept).samples()
    assert members["txt"] == b"0 a", "the pool still knows a text"
    empty = pool.model_copy(
        update={
            "records": (record.model_copy(update={"files": tuple(f for f in record.files if f.kind != "caption")}),)
        }
    )
    ((_, members),) = world.shards(texts, empty, kept).samples()
    assert sorted(members) == ["jpg", "json"]
    assert json.loads(members["json"])["captions"] == []


def test_rows_that_a_retry_replaced_do_not_count(world: World) -> None:
    pool = world.pool({"000-00000": range(8), "000-00000.r1": [2, 5]}, {"000-00000.r1": ("000-00000",)})
    first = pool.model_copy(update={"records": pool.records[:1]})
    for kept in (kept_where(world, pool), kept_where(world, first)):
        uids = [uid for uid, _ in world.shards(pool, kept).samples()]
        assert uids == [identity(f"http://a/{n}") for n in (0, 1, 3, 4, 6, 7, 2, 5)]


# -- order -------------------------------------------------------------------------------------------------------------


def test_shuffling_is_exact_and_follows_the_seed(world: World) -> None:
    pool = world.pool(PARTS)
    kept = kept_where(world, pool)
    plain, one, other = (
        [uid for uid, _ in world.shards(pool, kept, samples_per_shard=8, shuffle=shuffle, seed=seed).samples()]
        for shuffle, seed in ((False, 1), (True, 1), (True, 2))
    )
    assert plain == [identity(f"http://a/{n}") for n in GOOD]
    assert sorted(plain) == sorted(one) == sorted(other)
    assert plain != one != other != plain


def test_shards_beyond_one_exchange_are_right_as_well(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    pool = world.pool(PARTS)
    kept = kept_where(world, pool)
    expected = world.shards(pool, kept, samples_per_shard=4, shuffle=True, seed=3).samples()
    monkeypatch.setattr(exchange, "STEP", 2)
    stepwise = World(Path(world.store.root).parent / "other")
    pool = stepwise.pool(PARTS)
    found = stepwise.shards(pool, kept_where(stepwise, pool), samples_per_shard=4, shuffle=True, seed=3)
    assert [phase for phase, _ in found.work.done].count("spread2") == 4
    assert found.samples() == expected


# -- bytes -------------------------------------------------------------------------------------------------------------


def test_the_same_selection_gives_the_same_bytes_anywhere(world: World, tmp_path: Path) -> None:
    pool = world.pool(PARTS)
    first = world.shards(pool, kept_where(world, pool), samples_per_shard=20, shuffle=True)
    elsewhere = World(tmp_path / "elsewhere")
    pool = elsewhere.pool(PARTS)
    second = elsewhere.shards(pool, kept_where(elsewhere, pool), samples_per_shard=20, shuffle=True)
    assert first.sums == second.sums
    assert [r.content_hash for r in first.written] == [r.content_hash for r in second.written]
    assert [r.notes["path"] for r in first.written] == [r.notes["path"] for r in second.written]


def test_the_bytes_are_what_they_were(world: World) -> None:
    """Golden: a change here needs a new `revision`."""
    pool = world.pool({"000-00000": range(5)})
    assert world.shards(pool, kept_where(world, pool), samples_per_shard=3).sums == [
        "f8de3ba01fd3d5a32f5749bb4c28ddb9dce3a89a175c1deff44cb7d1d19c147c",
        "1561aa92e67c03e87fc8c5aa1f0835f185f7fafc195ef0674f0e8f02feb48351",
    ]


def test_another_selection_lies_elsewhere_and_the_same_one_is_found_again(world: World) -> None:
    pool = world.pool(PARTS)
    one = world.shards(pool, kept_where(world, pool), samples_per_shard=20)
    sums = one.sums
    fewer = world.shards(pool, kept_where(world, pool, lambda caption: number(caption) < 9), samples_per_shard=20)
    again = world.shards(pool, kept_where(world, pool), samples_per_shard=20)
    assert {Path(path).parent for path in one.paths}.isdisjoint(Path(path).parent for path in fewer.paths)
    assert not again.work.done
    assert again.sums == sums


def test_damaged_images_are_named_and_nothing_is_written(world: World) -> None:
    pool = world.pool({"000-00000": range(5)})
    tar = pool.records[0].file("tar")
    assert tar is not None
    path = Path(world.store.full(world.store.place(pool.records[0], tar)))
    data = bytearray(path.read_bytes())
    data[600] ^= 1
    path.write_bytes(data)
    with pytest.raises(SluiceError, match=r"\.tar is corrupt at byte 512 \(uid .*; `sluice verify .* --repair`"):
        world.shards(pool, kept_where(world, pool))
    assert not list(Path(world.store.root).glob("shards/data/*/*.tar"))


@pytest.mark.filterwarnings("ignore::ResourceWarning")  # webdataset leaves the closing of tars to the collector
def test_readers_of_webdataset_find_every_sample_by_braces(world: World) -> None:
    pool = world.pool(PARTS)
    shards = world.shards(pool, kept_where(world, pool), samples_per_shard=20)
    braces = world.store.full(f"shards/{shards.sizes.notes['path']}")
    assert braces.endswith("/{00000000..00000002}.tar")
    assert list(braceexpand.braceexpand(braces)) == shards.paths
    read = list(webdataset.WebDataset(braces, shardshuffle=False, empty_check=False))
    assert [sample["__key__"] for sample in read] == [identity(f"http://a/{n}") for n in GOOD]
    assert all(sample["jpg"] == picture(sample["__key__"]) for sample in read)
    assert [sample["txt"].decode() for sample in read] == [f"{n} a" for n in GOOD]
    gc.collect()


def test_the_index_says_where_every_member_lies(world: World) -> None:
    pool = world.pool(PARTS)
    shards = world.shards(pool, kept_where(world, pool), samples_per_shard=30)
    for record, path in zip(shards.written, shards.paths, strict=True):
        data = Path(path).read_bytes()
        for row in world.store.read_table(record, "samples").to_pylist():
            assert data[row["image_offset"] :][: row["image_nbytes"]] == picture(row["uid"])
            text = data[row["txt_offset"] :][: row["txt_nbytes"]].decode()
            assert identity(text) == row["caption_id"]
            assert json.loads(data[row["json_offset"] :][: row["json_nbytes"]])["uid"] == row["uid"]
            assert row["shard"] == Path(path).name


def test_tar_headers_say_nothing_of_clock_or_user(world: World) -> None:
    pool = world.pool({"000-00000": range(3)})
    with tarfile.open(world.shards(pool, kept_where(world, pool)).paths[0]) as tar:
        for member in tar:
            assert (member.mtime, member.uid, member.gid, member.uname, member.gname) == (0, 0, 0, "", "")
            assert member.mode == 0o644


# -- mistakes ----------------------------------------------------------------------------------------------------------


def test_a_kept_pair_without_an_image_is_told_with_the_rule_that_is_missing(world: World) -> None:
    pool = world.pool(PARTS)
    with pytest.raises(
        SluiceError, match=r"were not downloaded \(uid .*: http_404\); begin the rules with `downloaded"
    ):
        world.shards(pool, kept_where(world, pool, lambda caption: True))


def test_an_empty_selection_is_told(world: World) -> None:
    pool = world.pool(PARTS)
    told = "shards: kept keeps no pair, so there is nothing to write; .*`sluice what-if ROOT --node kept --rule"
    with pytest.raises(SluiceError, match=told):
        world.shards(pool, kept_where(world, pool, lambda caption: False))


def test_columns_that_would_change_the_bytes_or_rank_nothing_are_told_first() -> None:
    inputs = [
        Column("kept", "kept", "caption", pa.bool_()),
        Column("seconds", "pool", "image", pa.float32(), covered=False),
        Column("exif", "pool", "image", pa.binary()),
        Column(PIXELS, "pool", "image", pa.null()),
        Column("language", "tags", "caption", pa.string()),
    ]
    for parameters, message in (
        ({"json_columns": ["seconds"]}, "'seconds' may differ from run to run"),
        ({"json_columns": ["pool.exif"]}, r"'pool\.exif' is binary"),
        ({"best_by": "language"}, "best_by: 'language' is no number of a caption"),
        ({"best_by": "pool.seconds"}, r"best_by: 'pool\.seconds' is no number of a caption"),
    ):
        with pytest.raises(SluiceError, match=message):
            WebDataset.model_validate(parameters).check(inputs)
    assert WebDataset(best_by="clip_score").needs() == {"kept", PIXELS, "clip_score"}


def test_png_and_webp_keep_their_endings(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    heads = [b"\x89PNG\r\n\x1a\n", b"RIFF\0\0\0\0WEBP", b"\xff\xd8\xff"]
    monkeypatch.setattr("tests.stages.test_shard.picture", lambda uid: heads[int(uid[0], 16) % 3] + uid.encode())
    pool = world.pool({"000-00000": range(9)})
    samples = world.shards(pool, kept_where(world, pool)).samples()
    endings = {ending for _, members in samples for ending in members}
    assert endings == {"png", "webp", "jpg", "txt", "json"}
