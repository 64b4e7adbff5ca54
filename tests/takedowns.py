"""A tiny world for takedowns and exports: real tars, hosts, copies under other URLs, a selection, shards, a model."""

import io
import json
import tarfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from hashlib import blake2b, sha256
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from PIL import Image

from pipeline import Dag, run
from pipeline.attempt import Attempt
from pipeline.records import Generation, Record
from pipeline.stage import (
    CAPTIONS,
    OBSERVED,
    Batch,
    Device,
    Job,
    PartStage,
    PoolPart,
    PoolStage,
    TableStage,
    Task,
    Work,
)
from pipeline.store import Store
from stages.kit.tar import TarWriter
from tests.inline import Inline

TEXT = """
dag: world
seed: 3
nodes:
  urls: {steps: [{tests.takedowns.Listing: {rows: 40, parts: 3}}]}
  pool: {from: urls, steps: [tests.takedowns.FetchTar]}
  scores:
    from: pool
    steps: [tests.takedowns.Embedded, tests.takedowns.EmbeddedText]
  kept:
    from: [pool, scores]
    steps: [{stages.select.Select: {rules: [{downloaded: "status = 'success'"}, {bright: "n % 4 <> 3"}]}}]
  shards: {from: [pool, kept], steps: [{stages.shard.WebDataset: {samples_per_shard: 8, shuffle: true}}]}
  model: {from: shards, steps: [tests.takedowns.Trained]}
"""
ASKED: list[str] = []
"""The URLs that `FetchTar` was asked for in this process."""


def url_of(number: int) -> str:
    return f"http://{'art' if number % 5 else 'cats'}.example.org/{number}.jpg"


def uid_of(number: int) -> str:
    return blake2b(url_of(number).encode(), digest_size=16).hexdigest()


def picture(number: int) -> bytes:
    """A JPEG; the numbers n and n + 30 have the same one."""
    shade = np.full((8, 8 + number % 30, 3), 7 * (number % 30), np.uint8)
    sink = io.BytesIO()
    Image.fromarray(shade).save(sink, "jpeg")
    return sink.getvalue()


class Listing(TableStage):
    """Rows with URLs of two hosts, and two captions each; `first` is the first number."""

    promise = "pure"

    rows: int = 40
    parts: int = 3
    first: int = 0

    def outputs(self, inputs: Sequence[Any]) -> Mapping[str, pa.Schema]:
        image = pa.schema([("uid", pa.string()), ("url", pa.string()), ("n", pa.int64()), ("source_row", pa.int64())])
        caption = [(name, pa.string()) for name in ("uid", "caption_id", "caption", "source")]
        return {"image": image.append(CAPTIONS), "caption": pa.schema(caption)}

    def assemble(self, work: Work) -> list[Record]:
        payload = {"rows": self.rows, "first": self.first}
        tasks = [Task(f"000-{part:05d}", {"part": part, **payload}, rows=self.rows) for part in range(self.parts)]
        return work.map("make", tasks, self.make)

    def make(self, task: Task, attempt: Attempt) -> None:
        numbers = range(self.first + task.payload["part"], self.first + self.rows, self.parts)
        images = [{"uid": uid_of(n), "url": url_of(n), "n": n, "source_row": 1000 + n, "captions": 2} for n in numbers]
        captions = [
            {"uid": uid_of(n), "caption_id": uid_of(1000 * n + k), "caption": f"secret {n} {k}", "source": "web"}
            for n in numbers
            for k in range(2)
        ]
        schemas = self.outputs([])
        attempt.write("image", pa.Table.from_pylist(images, schema=schemas["image"]))
        attempt.write("caption", pa.Table.from_pylist(captions, schema=schemas["caption"]))
        attempt.count({"ok": len(images)})


class FetchTar(PoolStage):
    """A pool with real tars, without a network: every tenth URL is `http_503` until the file `answers` exists."""

    promise = "observed"
    retryable = frozenset({"http_503", "lost", "quarantined"})
    remembered = frozenset({"sha256"})
    adds = pa.schema(
        [
            ("status", pa.string()),
            pa.field("exif", pa.string(), metadata=OBSERVED),
            ("width", pa.int32()),
            ("height", pa.int32()),
            ("original_width", pa.int32()),
            ("original_height", pa.int32()),
            ("sha256", pa.string()),
            ("stored_sha256", pa.string()),
            pa.field("offset", pa.int64(), metadata=OBSERVED),
            pa.field("nbytes", pa.int64(), metadata=OBSERVED),
        ]
    )
    answers: str = ""

    def open(self, device: Device) -> Callable[[PoolPart], pa.Table]:
        def fetch(part: PoolPart) -> pa.Table:
            up = bool(self.answers) and Path(self.answers).exists()
            rows: list[dict[str, Any]] = []
            archive = TarWriter(part.create("tar"))
            for row in part.image.to_pylist():
                ASKED.append(row["url"])
                number = int(row["url"].rpartition("/")[2].removesuffix(".jpg"))
                if number % 10 == 9 and not up:
                    rows.append({"status": "http_503"})
                    continue
                data = picture(number)
                exif = json.dumps({"Artist": f"secret artist {number}"})
                members = [(f"{row['uid']}.jpg", data), (f"{row['uid']}.json", exif.encode())]
                offset = archive.add(members)[0]
                sums = {"sha256": sha256(data).hexdigest(), "stored_sha256": sha256(data).hexdigest()}
                sizes = {"width": 8 + number % 30, "height": 8, "original_width": 8 + number % 30, "original_height": 8}
                places = {"offset": offset, "nbytes": len(data)}
                rows.append({"status": "success", "exif": exif, **sizes, **sums, **places})
            archive.finish()
            return pa.Table.from_pylist(rows, schema=self.adds)

        return fetch


class Adopted(TableStage):
    """A pool whose tar lies elsewhere and is only named; `again` makes it do its work anew."""

    promise = "pure"
    pixels = True

    tar: str
    again: int = 0

    def outputs(self, inputs: Sequence[Any]) -> Mapping[str, pa.Schema]:
        listed = Listing().outputs([])
        return {"image": pa.schema([*listed["image"], *FetchTar.adds]), "caption": listed["caption"]}

    def assemble(self, work: Work) -> list[Record]:
        return work.map("adopt", [Task("000-00000", {"again": self.again}, rows=6)], self.adopt)

    def adopt(self, task: Task, attempt: Attempt) -> None:
        data = Path(self.tar).read_bytes()
        images, captions = [], []
        with tarfile.open(self.tar) as tar:
            for n, member in enumerate(tar):
                sums = dict.fromkeys(("sha256", "stored_sha256"), sha256(picture(n)).hexdigest())
                places = {"offset": member.offset_data, "nbytes": member.size}
                images.append({"uid": uid_of(n), "url": url_of(n), "n": n, "status": "success", **sums, **places})
                captions.append({"uid": uid_of(n), "caption_id": uid_of(n), "caption": f"secret {n} 0"})
        schemas = self.outputs([])
        attempt.adopt("tar", self.tar, len(data), sha256(data).hexdigest())
        attempt.write("image", pa.Table.from_pylist(images, schema=schemas["image"]))
        attempt.write("caption", pa.Table.from_pylist(captions, schema=schemas["caption"]))
        attempt.count({"success": len(images)})


def adoptable(path: Path) -> None:
    """A tar of somebody's, with the pictures 0 to 5."""
    with path.open("wb") as stream:
        archive = TarWriter(stream)
        archive.add([(f"{n:09d}.jpg", picture(n)) for n in range(6)])
        archive.finish()


class Embedded(PartStage):
    """Adds `image_embedding`, four numbers; null where there is no image."""

    promise = "pure"
    grain = "image"
    reads = frozenset({"width"})
    adds = pa.schema([("image_embedding", pa.list_(pa.float16(), 4))])

    def open(self, device: Device) -> Callable[[Batch], pa.Table]:
        def embed(batch: Batch) -> pa.Table:
            widths = batch.table["width"].to_pylist()
            vectors = [None if w is None else [float(w), 1.0, 2.0, 3.0] for w in widths]
            return pa.table({"image_embedding": pa.array(vectors, self.adds.field(0).type)})

        return embed


class EmbeddedText(PartStage):
    """Adds `text_embedding`, four numbers, and `clip_l14_score`; the ninth caption has none."""

    promise = "pure"
    grain = "caption"
    reads = frozenset({"caption", "n"})
    adds = pa.schema([("text_embedding", pa.list_(pa.float16(), 4)), ("clip_l14_score", pa.float32())])

    def open(self, device: Device) -> Callable[[Batch], pa.Table]:
        def embed(batch: Batch) -> pa.Table:
            numbers = batch.table["n"].to_pylist()
            vectors = [None if n in (8, None) else [float(n), 5.0, 6.0, 7.0] for n in numbers]
            scores = [None if n is None else n / 100 for n in numbers]
            return pa.table([pa.array(vectors, self.adds.field(0).type), pa.array(scores, pa.float32())], self.adds)

        return embed


class ExifLength(PartStage):
    """Adds how long the EXIF is, which the pool's content hash does not cover."""

    promise = "pure"
    grain = "image"
    reads = frozenset({"exif"})
    adds = pa.schema([("exif_length", pa.int64())])

    def open(self, device: Device) -> Callable[[Batch], pa.Table]:
        return lambda batch: pa.table([[len(exif or "") for exif in batch.table["exif"].to_pylist()]], self.adds)


class Trained(Job):
    """A file that no image could be cut from."""

    promise = "pure"

    def assemble(self, work: Work) -> list[Record]:
        (shards,) = work.inputs.values()
        return work.map("train", [Task("weights", {"on": shards.content_hash})], self.train)

    def train(self, task: Task, attempt: Attempt) -> None:
        attempt.write_bytes("weights", "safetensors", b"weights")
        attempt.count({"trained": 1})


class Indexed(Job):
    """An index like those of vectors: a centre of all, then a file of bytes and the uids of its rows for each part."""

    promise = "pure"

    def assemble(self, work: Work) -> list[Record]:
        (scores,) = work.inputs.values()
        parts = [Task(record.part, inputs={"scores": (record,)}) for record in scores.records]
        sampled = tuple(work.map("sample", parts, self.sample, final=False))
        (centre,) = work.map("train", [Task("all", inputs={"sampled": sampled})], self.train, final=False)
        files = [Task(r.part, inputs={"scores": (r,), "centre": (centre,)}) for r in scores.records]
        return work.map("files", files, self.build)

    def sample(self, task: Task, attempt: Attempt) -> None:
        attempt.write("sample", self.rows(task, attempt))

    def train(self, task: Task, attempt: Attempt) -> None:
        tables = [attempt.read(record, "sample") for record in task.inputs["sampled"]]
        attempt.write_bytes("trained", "trained.faiss", b"".join(map(vector_bytes, tables)))

    def build(self, task: Task, attempt: Attempt) -> None:
        rows = self.rows(task, attempt)
        attempt.write_bytes("index", "index.faiss", vector_bytes(rows))
        attempt.write("ids", rows.select(["uid"]))
        attempt.count({"indexed": rows.num_rows})

    def rows(self, task: Task, attempt: Attempt) -> pa.Table:
        table = attempt.store.read_table(task.inputs["scores"][0], "image", ["uid", "image_embedding"])
        return table.filter(table.column("image_embedding").is_valid())


def vector_bytes(table: pa.Table) -> bytes:
    return np.array(table.column("image_embedding").to_pylist(), np.float16).tobytes()


def vector_of(number: int) -> bytes:
    """The embedding of a picture as an index has it."""
    return np.array([8 + number % 30, 1, 2, 3], np.float16).tobytes()


def go(root: str | Path, *overrides: str, retry: tuple[str, ...] = ()) -> tuple[dict[str, Generation], list[str]]:
    """Run the world in this process: its generations, and the URLs that were asked for."""
    ASKED.clear()
    result = run(Dag.parse(TEXT, overrides), str(root), executor=Inline(Store(str(root))), retry=retry)
    return result.generations, list(ASKED)


def members(root: str | Path) -> Iterator[tuple[str, str, bytes]]:
    """(tar, name, bytes) of every member of every tar of a store, whoever names it."""
    store = Store(str(root))
    for path in sorted(store.fs.find(store.path)):
        if str(path).endswith(".tar"):
            with store.fs.open(path, "rb") as handle, tarfile.open(fileobj=io.BytesIO(handle.read())) as tar:
                for member in tar:
                    content = tar.extractfile(member)
                    assert content is not None
                    yield str(path), member.name, content.read()


def table(store: Store, generation: Generation, kind: str) -> pa.Table:
    """All rows of a kind, every part's."""
    return pa.concat_tables([store.read_table(record, kind) for record in generation.records if record.file(kind)])
