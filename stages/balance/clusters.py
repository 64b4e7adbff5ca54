"""Balance images, or captions, over k-means clusters of an embedding, so that no kind of picture fills the set.

    balance:
      from: [pool, scores]
      steps: [{stages.balance.BalanceClusters: {clusters: 10000, cap: 500}}]

Phases: rows are sampled, the clusters trained, the rows of every part assigned and counted, every part drawn from.
"""

from collections.abc import Mapping, Sequence
from math import isqrt
from typing import ClassVar

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from pydantic import Field, model_validator

from pipeline.attempt import Attempt
from pipeline.dag import resolve
from pipeline.errors import SluiceError
from pipeline.records import Record
from pipeline.rows import PartRows, RowBatch, qualified
from pipeline.stage import KEYS, Column, Device, Promise, TableStage, Task, Work
from stages.balance.among import check_among, taking_part
from stages.balance.draws import Chances, Counts, draws, read_counts, statuses, summed, write_counts
from stages.kit.neighbours import ITERATIONS, PER_CELL, index_of, unit
from stages.kit.parts import part_tasks, rows_of
from stages.kit.vectors import Rows, vectors

MOST_SAMPLED = 1 << 20
"""Rows that k-means sees at most: 1 GB of float32 at a width of 256."""
MOST_CLUSTERS = 50_000
"""Of those that the data decides; as many as Abbas et al. 2023 (SemDeDup) take for 440 million images."""
SPREAD = 1024
"""Up to so many centres begin far apart (Arthur & Vassilvitskii 2007, k-means++): where they are few, two that begin in
one group leave another without. More begin at random rows: k-means++ looks at every row for each of them."""
AT_ONCE = 8192
"""Rows that are assigned in one call."""
ADDED = pa.schema([("cluster", pa.int32()), ("cluster_probability", pa.float32()), ("cluster_balanced", pa.bool_())])


class BalanceClusters(TableStage):
    """Add `cluster`, `cluster_probability` and `cluster_balanced` to every image, or caption where the embedding is
    one of captions.

    With `cap`, a cluster of n rows keeps each with probability min(1, cap / n). With `temperature` t and `keep`, the
    kept rows of a cluster go with n**t: with min(1, s * n**(t - 1)), s such that a share of `keep` is kept in all;
    t = 1 takes the same share of every cluster, t = 0 the same number, as far as there are so many.

    Clusters are spherical k-means of a sample: the rows with the smallest draws, so that neither parts nor workers
    change it. The draw of a row depends on the DAG's seed and its keys only. Null where there is no embedding.
    """

    promise: ClassVar[Promise] = "numeric"
    seeded: ClassVar[bool] = True

    embedding: str = "image_embedding"
    """The column that is clustered, `column` or `node.column`."""
    clusters: int | None = Field(default=None, ge=1)
    """k; None takes the root of the number of embeddings, 50,000 at most."""
    cap: int | None = Field(default=None, ge=1)
    """Rows of a cluster that remain, about."""
    temperature: float | None = Field(default=None, ge=0, le=1)
    """t above; needs `keep`."""
    keep: float | None = Field(default=None, gt=0, le=1)
    """The share of all rows that remains, about."""
    among: str | None = None
    """A column that says which rows are counted and drawn: true, or the status `success`; None: all with an
    embedding. The others get their cluster, and null for the rest."""

    @model_validator(mode="after")
    def _one_way(self) -> "BalanceClusters":
        if (self.cap is None) == (self.temperature is None):
            raise ValueError("give either cap, or temperature with keep")
        if (self.temperature is None) != (self.keep is None):
            raise ValueError("temperature and keep belong together: how flat, and how much remains")
        return self

    def needs(self) -> frozenset[str]:
        return frozenset({self.embedding, *({self.among} if self.among is not None else ())})

    def check(self, inputs: Sequence[Column]) -> None:
        """Raise `SluiceError` for columns of another kind."""
        found = resolve(self.embedding, inputs)
        inner = getattr(found.type, "value_type", None)
        if inner is None or not pa.types.is_floating(inner) or found.grain not in KEYS:
            raise SluiceError(
                f"embedding: {self.embedding!r} is {found.type} of {found.grain}s; expected lists of floats"
            )
        check_among(self.among, inputs, found.grain)

    def outputs(self, inputs: Sequence[Column]) -> Mapping[str, pa.Schema]:
        grain = resolve(self.embedding, inputs).grain
        return {grain: pa.schema([*KEYS[grain], *ADDED])}

    def ended(self, rows: pa.Table) -> Mapping[str, int]:
        return {"not_counted": rows.num_rows}

    def assemble(self, work: Work) -> list[Record]:
        column = resolve(self.embedding, work.columns)
        among = None if self.among is None else resolve(self.among, work.columns)
        columns = tuple(found for found in (column, among) if found is not None)
        inputs = {node: g for node, g in work.inputs.items() if node in {found.node for found in columns}}
        hints = {"columns": columns, "embedding": column, "among": among, "seed": work.seed, "grain": column.grain}
        tasks = part_tasks(inputs, hints, counted=True)
        rows = sum(record.rows.get(column.grain, 0) for record in inputs[column.node].records)
        wanted = min(MOST_SAMPLED, PER_CELL * (self.clusters or _from(rows)))
        samples = [_given(task, {"share": min(1.0, 1.2 * wanted / max(1, rows))}) for task in tasks]
        sampled = work.map("sample", samples, self.sample, final=False)
        training = Task("all", {"seed": work.seed, "wanted": wanted}, {"samples": tuple(sampled)})
        (centres,) = work.map("centres", [training], self.train, final=False)
        assigns = [Task(t.part, {}, {**t.inputs, CENTRES: (centres,)}, t.supersedes, t.rows, t.hints) for t in tasks]
        assigned = work.map("assign", assigns, self.assign, final=False)
        total = summed(work, assigned)
        finals = [
            Task(task.part, {}, {"rows": (record,), "total": (total,), CENTRES: (centres,)}, task.supersedes, task.rows,
                 {"seed": work.seed, "grain": column.grain})
            for task, record in zip(tasks, assigned, strict=True)
        ]  # fmt: skip
        return work.map("draw", finals, self.draw)

    def sample(self, task: Task, attempt: Attempt) -> None:
        """Some rows of one part: those whose draws are small."""
        grain = task.hints["grain"]
        rows, vectors_nd = self._vectors(task, attempt)
        takes_part = taking_part(rows, task, attempt, task.hints["among"], grain)
        takes_part &= ~np.isnan(vectors_nd).any(axis=1) if vectors_nd.size else False
        drawn = draws(task.hints["seed"] + 1, rows.keys(grain))  # those with small ones are not kept the more often
        chosen = np.flatnonzero(takes_part & (drawn < task.payload["share"]))
        columns = [pa.array(drawn[chosen]), vectors(vectors_nd[chosen], np.ones(len(chosen), bool))]
        attempt.write("sample", pa.table(columns, names=["draw", "vector"]))
        attempt.note(rows=int(takes_part.sum()))

    def train(self, task: Task, attempt: Attempt) -> None:
        """The centres; the same sample gives the same ones, up to float noise."""
        records = task.inputs["samples"]
        rows = sum(record.notes["rows"] for record in records)
        tables = [attempt.read(record, "sample") for record in records]
        table = pa.concat_tables([table for table in tables if table.num_rows] or tables[:1]).sort_by("draw")
        sample_nd = unit(RowBatch(table.slice(0, task.payload["wanted"]), None).matrix("vector"))
        if not len(sample_nd):
            raise SluiceError(f"{attempt.node}: no row has an embedding in {self.embedding!r}; embed the pool first")
        wanted = self.clusters or _from(rows)
        centres_kd = means(sample_nd, wanted, task.payload["seed"], task.hints.get("device", Device()))
        flat = pa.array(centres_kd.ravel(), pa.float32())
        attempt.write("centres", pa.table({"centre": pa.FixedSizeListArray.from_arrays(flat, centres_kd.shape[1])}))
        attempt.note(rows=rows, sampled=len(sample_nd), clusters=len(centres_kd))

    def assign(self, task: Task, attempt: Attempt) -> None:
        """The nearest centre of every row of one part."""
        grain = task.hints["grain"]
        rows, vectors_nd = self._vectors(task, attempt)
        centres_kd = RowBatch(attempt.read(task.inputs[CENTRES][0], "centres"), None).matrix("centre")
        index = index_of(centres_kd, task.hints.get("device", Device()))
        there = np.flatnonzero(~np.isnan(vectors_nd).any(axis=1)) if vectors_nd.size else np.zeros(0, np.int64)
        cluster = np.full(len(vectors_nd), -1, np.int32)
        for start in range(0, len(there), AT_ONCE):
            chosen = there[start : start + AT_ONCE]
            cluster[chosen] = index.search(unit(vectors_nd[chosen]), 1)[1][:, 0]
        counted = taking_part(rows, task, attempt, task.hints["among"], grain) & (cluster >= 0)
        columns = [pa.array(cluster, mask=cluster < 0), pa.array(counted)]
        names = [*KEYS[grain].names, "cluster", "counted"]
        attempt.write("rows", pa.table([*rows.keys(grain).columns, *columns], names=names))
        write_counts(attempt, cluster[counted].astype(np.int64))

    def draw(self, task: Task, attempt: Attempt) -> None:
        """What remains of one part."""
        grain = task.hints["grain"]
        rows = attempt.read(task.inputs["rows"][0], "rows")
        counts = read_counts(attempt, task.inputs["total"][0])
        counted = np.asarray(rows.column("counted"))
        cluster = rows.column("cluster").fill_null(0).to_numpy()
        chances = np.full(len(counted), np.nan)
        chances[counted] = self.chances(counts)[cluster[counted]]
        keys = rows.select(KEYS[grain].names)
        kept = draws(task.hints["seed"], keys) < chances
        probability = pa.array(chances.astype(np.float32), mask=~counted)
        columns = [rows.column("cluster"), probability, pa.array(kept, mask=~counted)]
        attempt.write(grain, pa.table([*keys.columns, *columns], schema=pa.schema([*KEYS[grain], *ADDED])))
        attempt.count(statuses(kept, counted))
        attempt.note(**task.inputs[CENTRES][0].notes, largest=int(counts.max(initial=0)))

    def chances(self, counts: Counts) -> Chances:
        """float64 (clusters,): the probability that a row of each cluster is kept; 1 for an empty one."""
        sizes = np.maximum(counts, 1).astype(np.float64)
        if self.cap is not None:
            return np.minimum(1.0, self.cap / sizes)
        assert self.temperature is not None
        assert self.keep is not None
        return tempered(counts, self.temperature, self.keep)

    def _vectors(self, task: Task, attempt: Attempt) -> tuple[PartRows, npt.NDArray[np.float32]]:
        rows = rows_of(task, attempt)
        table = rows.image if task.hints["grain"] == "image" or rows.caption is None else rows.caption
        return rows, RowBatch(table, None).matrix(qualified(task.hints["embedding"]))


CENTRES = "-centres"
"""Among the inputs of a task, where nodes have names: the record of the cluster centres."""


def tempered(counts: Counts, temperature: float, keep: float) -> Chances:
    """min(1, s * n**(t - 1)) of every cluster of n rows, s such that a share of `keep` of all rows is kept."""
    sizes = np.maximum(counts, 1).astype(np.float64)
    weights = sizes ** (temperature - 1)
    order = np.argsort(-weights, kind="stable")
    # Of the clusters in this order the first j are kept whole; s is that of the j at which the next one is not.
    rows, shares = counts[order].astype(np.float64), (counts * weights)[order]
    wanted = keep * rows.sum()
    whole, rest = np.cumsum(rows) - rows, np.cumsum(shares[::-1])[::-1]
    with np.errstate(over="ignore"):  # of next to nothing no scale makes enough
        scales = (wanted - whole) / np.maximum(rest, np.finfo(np.float64).tiny)
    fits = np.flatnonzero(scales * weights[order] <= 1)
    scale = scales[fits[0]] if len(fits) else np.inf
    found: Chances = np.minimum(1.0, scale * weights)
    return found


def means(sample_nd: Rows, clusters: int, seed: int, device: Device) -> Rows:
    """float32 (clusters or as many as there are rows, width): spherical k-means of unit rows.

    As `stages.kit.neighbours.Cells` has it, without its cosines between all centres: 10 GB of 50,000.
    """
    import faiss

    faiss.omp_set_num_threads(device.threads)
    rows, width = sample_nd.shape
    spread = faiss.ClusteringInitMethod_KMEANS_PLUS_PLUS
    found = faiss.Kmeans(
        width, max(1, min(clusters, rows)), niter=ITERATIONS, spherical=True, seed=seed % (1 << 31),
        gpu=device.kind == "cuda", min_points_per_centroid=1, max_points_per_centroid=PER_CELL,
        init_method=spread if clusters <= SPREAD else faiss.ClusteringInitMethod_RANDOM,
    )  # fmt: skip
    found.train(sample_nd)
    assert found.centroids is not None
    return unit(found.centroids.astype(np.float32))


def _from(rows: int) -> int:
    return max(1, min(MOST_CLUSTERS, isqrt(rows)))


def _given(task: Task, payload: Mapping[str, object]) -> Task:
    return Task(task.part, payload, task.inputs, task.supersedes, task.rows, task.hints)
