"""Edges between images on their way from one phase to the next, and as the table that they end in."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.stage import OBSERVED
from stages.dedup.uids import Halves, texts
from stages.kit.exchange import PLACE

ENDS = (("a", pa.uint64()), ("a_tail", pa.uint64()), ("b", pa.uint64()), ("b_tail", pa.uint64()))
"""Both uids in two halves each; the first one is the smaller."""
PARTS = (("part_a", pa.int64()), ("part_b", pa.int64()))
"""The numbers of the parts in which they lie."""
SAID = (("same_bytes", pa.bool_()), ("hamming", pa.int8()), ("cosine", pa.float32()))
CANDIDATES = pa.schema([PLACE, *ENDS, *PARTS, *SAID])
"""A pair that some evidence brought up. `hamming` and `cosine` are null where they are not near enough to tell."""
JUDGED = pa.schema([*CANDIDATES, ("agreement", pa.float32()), ("verified", pa.bool_())])

TABLE = pa.schema(
    [
        ("uid_a", pa.string()),
        ("uid_b", pa.string()),
        ("evidence", pa.string()),
        ("hamming", pa.int8()),
        ("cosine", pa.float32()),
        ("agreement", pa.float32()),
        ("verified", pa.bool_()),
        pa.field("part_b", pa.string(), metadata=OBSERVED),
    ]
)
"""The edge table: uid_a < uid_b, in their order. An edge lies in the part of its uid_a.

- `evidence`: what brought the pair up: `sha256`, `phash`, `cosine`, joined by `+`.
- `hamming`: bits in which the perceptual hashes differ, and `cosine`; null beyond what was searched.
- `agreement`: how well the pictures agree where they overlap, 0 to 1; null where nobody looked.
- `verified`: whether they are copies: by their bytes or their pixels; null where nobody looked.
"""


def candidates(
    places: npt.NDArray[np.uint64],
    a: Halves,
    b: Halves,
    parts: tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]],
    said: Mapping[str, npt.NDArray[Any]],
) -> pa.Table:
    """Rows of `CANDIDATES`; what `said` leaves out is null."""
    columns = [places, *a, *b, *parts]
    ours = [pa.array(column, field.type) for column, field in zip(columns, CANDIDATES, strict=False)]
    evidence = [pa.array(said[name], kind) if name in said else pa.nulls(len(places), kind) for name, kind in SAID]
    return pa.table([*ours, *evidence], schema=CANDIDATES)


def together(tables: Iterable[pa.Table], schema: pa.Schema = CANDIDATES) -> pa.Table:
    """One row per pair, in order of the uids: the evidence of all phases that brought it up."""
    rows = pa.concat_tables([schema.empty_table(), *(table.cast(schema) for table in tables)]).combine_chunks()
    ends = [rows.column(name).to_numpy() for name, _ in ENDS]
    order = np.lexsort(ends[::-1])
    rows = rows.take(order)
    fresh = np.ones(len(order), dtype=bool)
    if len(order):
        fresh[1:] = np.any([end[order][1:] != end[order][:-1] for end in ends], axis=0)
    pair = pa.array(np.cumsum(fresh) - 1)
    best = (
        pa.table([pair, *(rows.column(name) for name, _ in SAID)], names=["pair", *(name for name, _ in SAID)])
        .group_by("pair", use_threads=False)
        .aggregate([("same_bytes", "max"), ("hamming", "min"), ("cosine", "max")])
        .sort_by("pair")
    )
    first = rows.filter(pa.array(fresh))
    for name, how in (("same_bytes", "max"), ("hamming", "min"), ("cosine", "max")):
        place = first.column_names.index(name)
        first = first.set_column(place, schema.field(name), best.column(f"{name}_{how}").cast(schema.field(name).type))
    return first


def strength(rows: pa.Table) -> npt.NDArray[np.float32]:
    """How much alike the ends are, 0 to 1, by the best that is known: bytes, pixels, cosine, hash."""
    bits = pc.subtract(pa.scalar(1.0, pa.float32()), pc.divide(rows.column("hamming").cast(pa.float32()), 64.0))
    same = pc.if_else(pc.fill_null(rows.column("same_bytes"), False), pa.scalar(1.0, pa.float32()), None)
    known = pc.coalesce(same, rows.column("agreement"), rows.column("cosine"), bits.cast(pa.float32()))
    return np.asarray(pc.fill_null(known, 0), np.float32)


def shown(rows: pa.Table, parts: Sequence[str]) -> pa.Table:
    """Rows of `JUDGED` as the edge table has them; `parts` are the names by number."""
    a, b = (texts(*(rows.column(f"{end}{half}").to_numpy() for half in ("", "_tail"))) for end in "ab")
    named = [
        pc.if_else(found, name, None)
        for found, name in (
            (pc.fill_null(rows.column("same_bytes"), False), "sha256"),
            (pc.is_valid(rows.column("hamming")), "phash"),
            (pc.is_valid(rows.column("cosine")), "cosine"),
        )
    ]
    evidence = pc.binary_join_element_wise(*named, "+", null_handling="skip")
    names = pa.array(parts, pa.string()).take(rows.column("part_b").combine_chunks())
    columns = [a, b, evidence, *(rows.column(name) for name in ("hamming", "cosine", "agreement", "verified")), names]
    return pa.table(columns, schema=TABLE)
