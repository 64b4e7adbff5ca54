"""Other people's conversations made shards: files such as `llava_v1_5_mix665k.json`, and ShareGPT's.

    conversations:
      steps: [{stages.conversations.ConversationFiles: {file: mix665k.json, images: /data/llava}}]

A JSON list or JSON lines; `image` is the name of one image below `images`, or a list of several; without it the
conversation is about none. The same files give the same bytes.
"""

from __future__ import annotations

import posixpath
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from hashlib import blake2b
from typing import Any, ClassVar

import fsspec
import pyarrow as pa
from pydantic import Field

from pipeline.attempt import Attempt
from pipeline.errors import SluiceError
from pipeline.identity import fingerprint
from pipeline.records import Record, digest
from pipeline.stage import Column, File, Job, Promise, Task, Work
from stages.conversations.conversations import SAMPLES, SHARD, TURN, TURNS, write_sizes
from stages.conversations.json_slices import NoJson, slices
from stages.conversations.json_slices import read as read_slice
from stages.conversations.packing import Packer
from stages.conversations.turns import IMAGE, Malformed, read
from stages.kit.endings import ending_of

SOURCE = "file"
"""Who wrote a turn that does not say so."""
MOST_BYTES = 64 << 20
"""Of an image; a larger one is refused."""


class ConversationFiles(Job):
    """Conversation shards from a JSON file in LLaVA's or ShareGPT's form, and a row for every answer with its verdict:
    `kept`, or why the whole conversation was left out (`no_image`, `no_picture`, `malformed`, `misplaced_image`)."""

    promise: ClassVar[Promise] = "pure"

    file: File
    """A list in JSON, or an object a line; on any fsspec store."""
    images: str | None = None
    """The folder below which images lie, on any fsspec store. What they are is looked at when they are read: images
    that change under their names are not noticed."""
    rows_per_shard: int = Field(default=5000, ge=1)

    def outputs(self, inputs: Sequence[Column]) -> Mapping[str, pa.Schema]:
        return {TURNS: TURN}

    def assemble(self, work: Work) -> list[Record]:
        path, found = work.resources["file"][0]
        try:
            found_slices = list(slices(path, self.rows_per_shard))
        except NoJson as error:
            told = " ".join(str(error).split())
            raise SluiceError(f"{path} is neither a JSON list nor JSON lines: {told}; write it again") from None
        if fingerprint(path) != found:
            raise SluiceError(f"{path} changed while the run began; run again")
        if not found_slices:
            raise SluiceError(f"{path} holds no conversation; expected a JSON list or JSON lines")
        key = digest([found, self.rows_per_shard, self.images])[:12]
        tasks = [
            Task(
                f"{number:08d}",
                {"key": key, "start": start, "end": start + one.entries, "file": found},
                rows=one.entries,
                hints={"path": path, "slice": one},  # follows from the file, so it is no part of what is named by it
            )
            for number, one in enumerate(found_slices)
            for start in [number * self.rows_per_shard]
        ]
        packed = work.map("pack", tasks, self.pack)
        sizes = {record.notes["shard"]: record.rows[SAMPLES] for record in packed}
        if not any(sizes.values()):
            raise SluiceError(f"{path}: no conversation could be used; look at `verdict` in this node's table")
        return packed + work.map("sizes", [Task("sizes", {"key": key, "sizes": sizes})], write_sizes)

    def pack(self, task: Task, attempt: Attempt) -> None:
        """One shard, and a row for each of its answers."""
        name = f"{task.part}.tar"
        rows: list[dict[str, Any]] = []
        with attempt.create_final(SHARD, f"data/{task.payload['key']}/{name}") as stream:
            packer = Packer(stream, name)
            for number, entry in enumerate(read_slice(task.hints["path"], task.hints["slice"]), task.payload["start"]):
                uid = blake2b(f"{task.payload['file']}/{number}".encode(), digest_size=16).hexdigest()
                verdict, images, said = self._usable(entry)
                rows += _rows(uid, said, verdict)
                if verdict == "kept":
                    about = {"uid": uid, "images": names_of(entry), "file_sha256": task.payload["file"]}
                    packer.add(uid, images, {"id": entry.get("id", uid), "conversations": said, "provenance": about})
            index = packer.finish()
        attempt.write(TURNS, pa.Table.from_pylist(rows, schema=TURN))
        attempt.write(SAMPLES, index)
        attempt.count(Counter(row["verdict"] for row in rows))
        attempt.note(samples=index.num_rows, shard=name)

    def _usable(self, entry: Any) -> tuple[str, list[tuple[str, bytes]], list[dict[str, Any]]]:
        """The verdict on an entry, its images with their endings, and its turns."""
        try:
            said = read(entry)
            names = names_of(entry)
        except Malformed:
            return "malformed", [], []
        marks = sum(turn["value"].count(IMAGE) for turn in said if turn["from"] == "human")
        if marks not in (0, len(names)) or any(IMAGE in turn["value"] for turn in said if turn["from"] != "human"):
            return "misplaced_image", [], said
        images = []
        for name in names:
            data = self._image(name)
            if data is None:
                return "no_image", [], said
            ending = ending_of(data[:16])
            if ending is None:
                return "no_picture", [], said
            images.append((ending, data))
        if images and not marks:  # some files leave it out: the images come first
            first = next(place for place, turn in enumerate(said) if turn["from"] == "human")
            said[first] = {**said[first], "value": f"{IMAGE}\n" * len(images) + said[first]["value"]}
        return "kept", images, said

    def _image(self, name: str) -> bytes | None:
        """None where there is none, or none that may be read: a name must stay below the folder."""
        clean = posixpath.normpath(name)
        if self.images is None or clean.startswith(("/", "..")):
            return None
        store, root = fsspec.core.url_to_fs(self.images)
        try:
            path = posixpath.join(root, clean)
            return None if store.size(path) > MOST_BYTES else bytes(store.cat_file(path))
        except (FileNotFoundError, IsADirectoryError):
            return None


def names_of(entry: Mapping[str, Any]) -> list[str]:
    """What its images are called: `image`, a name or a list of them; ShareGPT's `images`. Raises `Malformed`."""
    given = entry.get("image", entry.get("images")) or []
    names = [given] if isinstance(given, str) else given
    if not isinstance(names, list) or not all(isinstance(name, str) and name for name in names):
        raise Malformed(f"its image is {type(given).__name__}; expected a name, or a list of names")
    return names


def _rows(uid: str, said: Sequence[Mapping[str, Any]], verdict: str) -> Iterator[dict[str, Any]]:
    """A row for each answer; one for a conversation without."""
    spoken = [turn for turn in said if turn["from"] != "system"]
    for number, (asked, answer) in enumerate(zip(spoken[::2], spoken[1::2], strict=True)):
        about = {name: answer.get(name) for name in ("caption_id", "source")}
        about["source"] = about["source"] or SOURCE
        texts = {"question": asked["value"], "answer": answer["value"], "kind": answer.get("kind", "question")}
        yield {"uid": uid, "turn": number, **texts, **about, "verdict": verdict}
    if not spoken:
        empty = dict.fromkeys(("kind", "question", "answer", "caption_id"))
        yield {"uid": uid, "turn": 0, **empty, "source": SOURCE, "verdict": verdict}
