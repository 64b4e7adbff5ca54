"""How well a caption fits its image, and how badly it fits others (Wang et al. 2024, CLIPLoss and Norm-Based Data
Selection, section 3.1): a CLIP score from which what an all-purpose caption scores with anything is taken off.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from pydantic import Field

from pipeline.attempt import Attempt
from pipeline.dag import resolve
from pipeline.errors import SluiceError
from pipeline.records import Generation, Record
from pipeline.rows import PartRows, RowBatch, qualified
from pipeline.stage import KEYS, Column, TableStage, Task, Work
from stages.kit.vectors import Rows, nullable

BLOCK = 1024
"""Pairs that are compared with a whole batch at once: 128 MB of cosines at the largest batch."""
Images = npt.NDArray[np.int64]
Logs = npt.NDArray[np.float64]


class NegClipLoss(TableStage):
    """Add `neg_clip_loss` to every pair: −τ times its contrastive loss in random batches, averaged; 0 at most.

    A part is a random sample of the pool, so a pair's batches are drawn from its own part, whatever the engine's
    batches are. Where that has fewer pairs than a batch, the sum over the others is scaled up to a batch's, so that
    parts of any size compare. Captions of one image are no contrast to each other. Null where image or caption has no
    embedding, and where there is nothing to contrast with.
    """

    promise = "numeric"
    seeded = True

    temperature: float = Field(default=0.01, gt=0)
    """τ: 0.01 for OpenAI's CLIP and most that were trained like it."""
    batch: int = Field(default=32768, ge=2)
    """Pairs in a batch."""
    batches: int = Field(default=10, ge=1)
    """Random batches per pair; where all pairs of a part make one batch, there is only one."""

    def needs(self) -> frozenset[str]:
        return frozenset({"image_embedding", "text_embedding"})

    def outputs(self, inputs: Sequence[Column]) -> Mapping[str, pa.Schema]:
        return {"caption": pa.schema([*KEYS["caption"], ("neg_clip_loss", pa.float32())])}

    def assemble(self, work: Work) -> list[Record]:
        columns = [resolve(name, work.columns) for name in sorted(self.needs())]
        inputs = {name: generation for name, generation in work.inputs.items() if name in {c.node for c in columns}}
        return work.map("parts", self._tasks(inputs, columns, work.seed), self.measure)

    def _tasks(self, inputs: Mapping[str, Generation], columns: Sequence[Column], seed: int) -> list[Task]:
        first, *others = inputs.values()
        tasks = []
        for record in first.records:
            records = {first.node: (record,)}
            for other in others:
                match = other.for_part(record.part)
                if match is None:
                    raise SluiceError(f"{other.node} has no part {record.part}, which {first.node} has; run again")
                records[other.node] = (match,)
            hints = {"columns": tuple(columns), "seed": seed}
            tasks.append(Task(record.part, {}, records, record.supersedes, record.rows.get("caption", 0), hints))
        return tasks

    def measure(self, task: Task, attempt: Attempt) -> None:
        """One part."""
        columns = task.hints["columns"]
        rows = PartRows.load(attempt.store, task.inputs, columns)
        assert rows.caption is not None  # the captions' embeddings are a column of it
        image, text = (qualified(resolve(name, columns)) for name in ("image_embedding", "text_embedding"))
        images_nd = RowBatch(rows.image, None).matrix(image)[rows.image_of]
        texts_nd = RowBatch(rows.caption, None).matrix(text)
        present = ~(np.isnan(images_nd).any(axis=1) | np.isnan(texts_nd).any(axis=1))
        found = np.full(len(present), np.nan)
        seed = [task.hints["seed"], *task.part.encode()]
        found[present] = self.of(images_nd[present], texts_nd[present], rows.image_of[present], seed)
        attempt.write("caption", rows.keys("caption").append_column("neg_clip_loss", nullable(found)))
        attempt.count({"ok": rows.image.num_rows})

    def of(self, images_nd: Rows, texts_nd: Rows, image_of: Images, seed: Sequence[int]) -> Logs:
        """float64 (pairs,): the mean over the pair's batches; NaN where none of them holds another image."""
        sums, seen = np.zeros(len(images_nd)), np.zeros(len(images_nd))
        for rows in draw(len(images_nd), self.batch, self.batches, seed):
            losses = self._losses(images_nd[rows], texts_nd[rows], image_of[rows])
            sums[rows] += np.nan_to_num(losses)
            seen[rows] += ~np.isnan(losses)
        with np.errstate(invalid="ignore"):
            return -self.temperature * sums / seen

    def _losses(self, images_nd: Rows, texts_nd: Rows, image_of: Images) -> Logs:
        """float64 (pairs,): the contrastive loss of every pair in one batch, over images and texts; NaN if alone."""
        own = np.einsum("nd,nd->n", images_nd, texts_nd).astype(np.float64) / self.temperature
        others = len(own) - np.bincount(image_of)[image_of]
        more = np.log((self.batch - 1) / np.maximum(others, 1))
        to_texts = np.logaddexp(own, self._contrast(images_nd, texts_nd, image_of) + more)
        to_images = np.logaddexp(own, self._contrast(texts_nd, images_nd, image_of) + more)
        losses: Logs = (to_texts + to_images) / 2 - own
        losses[others == 0] = np.nan
        return losses

    def _contrast(self, ours_nd: Rows, theirs_nd: Rows, image_of: Images) -> Logs:
        """float64 (pairs,): log Σ exp(cosine / τ) of each of ours with all of theirs that are of other images."""
        sums = []
        for start in range(0, len(ours_nd), BLOCK):
            logits = ours_nd[start : start + BLOCK] @ theirs_nd.T / np.float32(self.temperature)
            logits[image_of[start : start + BLOCK, None] == image_of] = -np.inf
            most = np.maximum(logits.max(axis=1, keepdims=True), np.finfo(np.float32).min)
            with np.errstate(divide="ignore"):
                sums.append(np.log(np.exp(logits - most).sum(axis=1, dtype=np.float64)) + most[:, 0])
        logs: Logs = np.concatenate(sums)
        return logs


def draw(pairs: int, batch: int, batches: int, seed: Sequence[int]) -> list[npt.NDArray[np.int64]]:
    """Random batches, every pair in `batches` of them or more: the last of a round is filled up from its first."""
    if pairs <= batch:
        return [np.arange(pairs)] if pairs else []
    random = np.random.default_rng(seed)
    rounds = [random.permutation(pairs) for _ in range(batches)]
    starts = range(0, pairs, batch)
    return [np.take(order, range(start, start + batch), mode="wrap") for order in rounds for start in starts]
