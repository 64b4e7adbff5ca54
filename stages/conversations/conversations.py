"""Curated pairs made conversations about their images.

    conversations:
      from: shards
      steps: [{stages.conversations.Conversations: {turns: 6}}]

Two tables come of it, and shards: every turn with its verdict (`sluice sql ROOT "FROM conversations"`), and beside each
new shard what is in it. A shard of pairs becomes one shard of conversations; a sample of which nothing can be asked is
left out.
"""

from __future__ import annotations

import json
from abc import abstractmethod
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from random import Random
from typing import Any, ClassVar

import pyarrow as pa
from pydantic import Field

from pipeline.attempt import Attempt
from pipeline.errors import SluiceError
from pipeline.records import Generation, Record, digest
from pipeline.stage import Column, Device, Job, Promise, Task, Work
from stages.conversations.boxed import label_of
from stages.conversations.filters import WORD, judged
from stages.conversations.packing import Packer
from stages.conversations.templates import turns_of
from stages.conversations.turns import Kind, Turn, as_text, conversation

SHARD, TURNS, SAMPLES = "shard", "conversation", "samples"
"""Kinds of file: a tar, the table of turns, the table of what is in the tar."""
BRIEF = "Answer the question using a single word or phrase."
"""What LLaVA-1.5 puts behind a question that has a short answer (Liu et al. 2024, section 3.3)."""
KINDS: tuple[Kind, ...] = (
    "medium", "question", "count", "colour", "relation", "verify", "place", "reading", "reasoning", "description",
)  # fmt: skip
"""In the order in which they are asked: what is told early must not give away what is asked later. Who asks for the
colour names a number (`is the star`), who asks what stands where names both, and two places say what is left of what.
"""
TURN = pa.schema(
    [
        ("uid", pa.string()),
        ("turn", pa.int32()),  # counted from 0 within the sample, in the order in which they were written
        ("kind", pa.string()),
        ("question", pa.string()),
        ("answer", pa.string()),
        ("caption_id", pa.string()),
        ("source", pa.string()),
        ("verdict", pa.string()),  # `kept`, or why not: `stages.conversations.filters`
    ]
)
"""Everything that was written, kept or not."""
SAID_ABOUT = ("uid", "url", "sha256", "source_uid", "license", "licence", "credit", "author")
"""What a sample's JSON says of where the image comes from; a conversation's repeats it."""

Sample = tuple[str, list[tuple[str, bytes]], dict[str, Any]]
"""Key, images with their endings, and what the JSON says."""
Writer = Callable[[Sequence[Sample]], list[list[Turn]]]
"""The turns of each of some samples."""


class Writing(Job):
    """What all that write conversations have in common; how the turns come about is theirs."""

    kinds: tuple[Kind, ...] = KINDS
    """Which kinds of turns are asked, and in which order; in another one than the default's, early turns may give the
    answers of later ones away."""
    turns: int = Field(default=8, ge=1)
    """Of a conversation, at most; where more were kept, they are drawn, the same for the same sample. The table of
    turns has those that were not drawn, too."""
    brief: str = BRIEF
    """What follows a question whose answer is a word or two; nothing where empty."""
    grounded: float = Field(default=0.6, ge=0, le=1)
    """Share of an answer's words of meaning that the captions must have. Numbers must all be there."""
    longest: int = Field(default=2000, ge=1)
    """Characters of a question or an answer, at most."""
    texts: bool = False
    """Also write what was said as a `txt`, from which language models learn that read texts."""
    at_once: ClassVar[int] = 64
    """Samples whose turns are written together."""

    def outputs(self, inputs: Sequence[Column]) -> Mapping[str, pa.Schema]:
        return {TURNS: TURN}

    @abstractmethod
    def open(self, device: Device) -> Writer:
        """Loads what is needed, once a shard."""

    def assemble(self, work: Work) -> list[Record]:
        shards = shards_of(work.inputs)
        tasks = [Task(record.part, {}, {record.node: (record,)}, rows=record.rows.get(SAMPLES, 0)) for record in shards]
        written = work.map("turns", tasks, self.write_turns)
        # What was said decides the bytes of the shards, so it names them.
        said = [record.content_hash for record in written], [record.content_hash for record in shards]
        key = digest([*said, list(self.kinds), *self._drawn_by(), self.brief, self.texts, self.revision])[:12]
        packs = [
            Task(f"{number:08d}", {"key": key}, {"turns": (turns,), "shards": (shard,)}, rows=turns.notes["samples"])
            for number, (turns, shard) in enumerate(zip(written, shards, strict=True))
            if turns.notes["samples"]
        ]
        if not packs:
            raise SluiceError(
                f"{shards[0].node}: no turn was kept of its samples; look at `verdict` in this node's table, and lower "
                "`grounded` or ask other `kinds`"
            )
        packed = work.map("pack", packs, self.pack)
        sizes = {record.notes["shard"]: record.rows[SAMPLES] for record in packed}
        last = work.map("sizes", [Task("sizes", {"key": key, "sizes": sizes})], write_sizes)
        return [*written, *packed, *last]

    # -- phases --------------------------------------------------------------------------------------------------------

    def write_turns(self, task: Task, attempt: Attempt) -> None:
        """The turns of the samples of a shard, with their verdicts."""
        (record,) = next(iter(task.inputs.values()))
        write = self.open(task.hints.get("device", Device()))
        rows: list[dict[str, Any]] = []
        for some in _in_chunks(samples_of(attempt, record), self.at_once):
            for sample, turns in zip(some, write(some), strict=True):
                rows += self._rows(sample, turns)
        verdicts = Counter(row["verdict"] for row in rows)
        attempt.write(TURNS, pa.Table.from_pylist(rows, schema=TURN))
        attempt.count(verdicts)
        attempt.note(samples=len({row["uid"] for row in rows if row["verdict"] == "kept"}))

    def _rows(self, sample: Sample, turns: Sequence[Turn]) -> Iterator[dict[str, Any]]:
        key, _, said = sample
        texts = [caption["text"] for caption in captions_of(said)]
        labels = [str(box["label"]) for box in boxes_of(said)]
        turns = [turn for turn in turns if turn.kind in self.kinds]
        verdicts = judged(turns, texts, labels, self.grounded, self.longest)
        for number, (turn, verdict) in enumerate(zip(turns, verdicts, strict=True)):
            yield {"uid": key, "turn": number, **vars(turn), "verdict": verdict}

    def pack(self, task: Task, attempt: Attempt) -> None:
        """One shard: the samples that have a turn, each with its image."""
        (turns,), (shard,) = task.inputs["turns"], task.inputs["shards"]
        kept: dict[str, list[Turn]] = {}
        for row in attempt.read(turns, TURNS).to_pylist():
            if row["verdict"] == "kept":
                about = {name: row[name] for name in ("kind", "question", "answer", "caption_id", "source")}
                kept.setdefault(row["uid"], []).append(Turn(**about))
        name = f"{task.part}.tar"
        with attempt.create_final(SHARD, f"data/{task.payload['key']}/{name}") as stream:
            packer = Packer(stream, name)
            for key, images, said in samples_of(attempt, shard):
                if key in kept:
                    spoken = conversation(self._asked(key, kept[key]), len(images), self.brief)
                    about = {field: said[field] for field in SAID_ABOUT if said.get(field) is not None}
                    document = {"id": key, "conversations": spoken, "provenance": about}
                    packer.add(key, images, document, as_text(spoken) if self.texts else None)
            index = packer.finish()
        attempt.write(SAMPLES, index)
        attempt.note(samples=index.num_rows, shard=name)

    def _drawn_by(self) -> list[Any]:
        """The parameters that say which turns become a conversation."""
        return [self.turns]

    def _asked(self, key: str, turns: Sequence[Turn]) -> list[Turn]:
        """As many as there may be, in the order of their kinds."""
        drawn = Random(f"turns/{key}").sample(range(len(turns)), min(len(turns), self.turns))
        return self._in_order(turns[number] for number in sorted(drawn))

    def _in_order(self, turns: Iterable[Turn]) -> list[Turn]:
        return sorted(turns, key=lambda turn: self.kinds.index(turn.kind))


class Conversations(Writing):
    """Questions and answers by rules, without any model: colours, numbers, relations, places, what can be read, which
    are more, and a description; from captions in English, and from `boxes` where a sample's JSON has them.

    Every other conversation begins at a kind that is drawn, without those before it, and turns of one kind come in any
    order: who is always asked for a number first, and for the background before the star, learns to answer so whatever
    is asked. Where turns are read apart, only what is more than `turns` is left out.
    """

    apart: bool = False
    """For trainings that read turns apart (`data.texts.turns=apart`): what another turn tells is asked, too, and how
    two labels of boxes lie to each other in all ways that `kinds` has."""
    revision: ClassVar[int] = 10
    promise: ClassVar[Promise] = "pure"

    def open(self, device: Device) -> Writer:
        def write(some: Sequence[Sample]) -> list[list[Turn]]:
            return [
                turns_of(captions_of(said), boxes_of(said), Random(key), self.kinds, self.apart)
                for key, _, said in some
            ]

        return write

    def _drawn_by(self) -> list[Any]:
        return [self.turns, self.apart]

    def _asked(self, key: str, turns: Sequence[Turn]) -> list[Turn]:
        if self.apart:
            return super()._asked(key, turns)
        dice = Random(f"turns/{key}")
        found = sorted({self.kinds.index(turn.kind) for turn in turns})
        first = dice.choice((found[0], dice.choice(found)))
        shuffled = dice.sample(turns, len(turns))
        asked = list(_untold(self._in_order(turn for turn in shuffled if self.kinds.index(turn.kind) >= first)))
        return super()._asked(key, asked)


def _untold(turns: Sequence[Turn]) -> Iterator[Turn]:
    """Without those whose answer, a colour or a name, an earlier question says: `How many red stars are there?`"""
    said = ""
    for turn in turns:
        if turn.kind in ("colour", "question") and f" {turn.answer.lower()} " in said:
            continue
        yield turn
        said += f" {' '.join(WORD.findall(turn.question.lower()))} "


# -- shards of pairs ---------------------------------------------------------------------------------------------------


def shards_of(inputs: Mapping[str, Generation]) -> list[Record]:
    """The records of the one node that made shards. Raises `SluiceError` where none did, or several."""
    holding = {
        name: [record for record in generation.records if record.file(SHARD) is not None]
        for name, generation in inputs.items()
    }
    found = {name: records for name, records in holding.items() if records}
    if len(found) != 1:
        told = "no node in `from` holds" if not found else f"{' and '.join(found)} hold"
        raise SluiceError(f"{told} shards; name one that made them, such as stages.shard.WebDataset")
    return next(iter(found.values()))


def samples_of(attempt: Attempt, record: Record) -> Iterator[Sample]:
    """The samples of a shard. Raises `SluiceError` for a damaged one."""
    from models.data.images import ENDINGS
    from models.data.shards import Damaged, DataError, Samples

    file = record.file(SHARD)
    assert file is not None
    try:
        for sample in Samples.open(attempt.store.url(attempt.store.place(record, file))):
            images = [(ending, sample.members[ending]) for ending in ENDINGS if ending in sample.members]
            try:
                said = json.loads(sample.members.get("json", b"{}"))
            except (ValueError, RecursionError):
                said = {}
            said = said if isinstance(said, dict) else {}
            if "txt" in sample.members:
                said.setdefault("caption", sample.members["txt"].decode("utf-8", "replace"))
            yield sample.key, images[:1], said
    except (DataError, Damaged) as error:
        raise SluiceError(f"{record.node}: {error}; `sluice verify {attempt.store.root} --repair`") from None


def captions_of(said: Mapping[str, Any]) -> list[dict[str, Any]]:
    """`caption_id` and `text` of every caption: those of the list in sluice's shards, else the one of others'."""
    listed = said.get("captions")
    found = [one for one in listed if isinstance(one, dict)] if isinstance(listed, list) else []
    if not found and isinstance(said.get("caption"), str):
        found = [{"caption_id": said.get("caption_id"), "text": said["caption"]}]
    return [one for one in found if isinstance(one.get("text"), str) and one["text"].strip()]


def boxes_of(said: Mapping[str, Any]) -> list[dict[str, Any]]:
    """What a detector or an annotator found: `boxes`, a list of `label` and `box` (left, top, right, bottom, in shares
    of the sides), or the same as text, as a table without lists has it. Anything else of that name is passed over; so
    is a label of which one box is none, such as one in pixels, for nobody knows then how many there are."""
    listed = said.get("boxes")
    if isinstance(listed, str):
        try:
            listed = json.loads(listed)
        except (ValueError, RecursionError):
            listed = None
    found = [one for one in listed if isinstance(one, dict)] if isinstance(listed, list) else []
    labelled = [one for one in found if isinstance(one.get("label"), str) and one["label"].strip()]
    broken = {label_of(one) for one in labelled if not _is_box(one.get("box"))}
    return [one for one in labelled if label_of(one) not in broken]


def _is_box(box: Any) -> bool:
    if not isinstance(box, list) or len(box) != 4 or not all(isinstance(edge, int | float) for edge in box):
        return False
    left, top, right, bottom = box
    return bool(0 <= left < right <= 1 and 0 <= top < bottom <= 1)


def write_sizes(task: Task, attempt: Attempt) -> None:
    """`sizes.json`: how many samples each shard holds; its presence says that all shards are there."""
    with attempt.create_final("sizes", f"data/{task.payload['key']}/sizes.json") as stream:
        stream.write(json.dumps(task.payload["sizes"], indent=1).encode())
    attempt.note(samples=sum(task.payload["sizes"].values()), path=f"data/{task.payload['key']}/sizes.json")


def _in_chunks(samples: Iterator[Sample], size: int) -> Iterator[list[Sample]]:
    some: list[Sample] = []
    for sample in samples:
        some.append(sample)
        if len(some) == size:
            yield some
            some = []
    if some:
        yield some
