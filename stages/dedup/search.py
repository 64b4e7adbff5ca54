"""The phases that find candidates: rows cut by what they are compared by, and each piece searched by itself."""

from collections.abc import Iterator
from itertools import pairwise

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.attempt import Attempt
from pipeline.stage import Device, Task
from stages.dedup.edges import candidates, together
from stages.dedup.parts import Layout, Live, live
from stages.dedup.uids import Halves, texts
from stages.kit.exchange import PLACE, Scatter, gather
from stages.kit.neighbours import BITS, Cells, Pairs, cosine_pairs, hamming_pairs, lengths, unit
from stages.kit.vectors import matrix, usable

ROWS_AT_ONCE = 2_000_000
"""Rows of which one task compares the bytes' hashes, about."""
HASHES_AT_ONCE = 1_000_000
"""Perceptual hashes that one task searches, about; a million take some 15 s of one core."""
SAMPLE = 65_536
"""Embeddings from which the cells are made; 128 MiB where they have 512 numbers."""
TOO_LARGE = 4
"""A cell of more than so many times `rows_per_cell` asks for more cells."""
TWINS = "-twins"
"""Among the inputs of a task, where nodes have names: which images have the bytes of another one."""

WHO = (PLACE, ("uid", pa.uint64()), ("tail", pa.uint64()), ("part", pa.int64()))
BYTES = pa.schema([*WHO, ("sha", pa.uint64())])
"""The leading 64 bits of a sha256 are the place, the next 64 are `sha`."""
HASHES = pa.schema([*WHO, ("code", pa.uint64()), ("chunk", pa.uint8())])
CELL_SIMILARITY = pa.field("cell_similarity", pa.float32())
HOMES = pa.schema([("uid", pa.uint64()), ("tail", pa.uint64()), CELL_SIMILARITY])


def _vectors(width: int) -> pa.Schema:
    return pa.schema([*WHO, ("lives", pa.bool_()), ("vector", pa.list_(pa.float16(), width))])


# -- the same bytes ----------------------------------------------------------------------------------------------------


def cut_bytes(task: Task, attempt: Attempt) -> None:
    """The images of some parts, cut by the sha256 of their bytes."""
    scatter = Scatter(attempt)
    for part in live(task, attempt, task.hints["pool"], ()):
        digests = part.table.column(f"{task.hints['pool']}.sha256").to_pylist()
        head = np.array([int(digest[:16], 16) for digest in digests], np.uint64)
        rest = np.array([int(digest[16:32], 16) for digest in digests], np.uint64)
        scatter.add(_table(BYTES, head, *part.uids, _numbers(part), rest))
    scatter.close()
    attempt.note(bits=0)


def same_bytes(task: Task, attempt: Attempt) -> None:
    """A star from the smallest uid to all others with the same bytes, sent to the parts of both ends."""
    layout = Layout(**task.payload["layout"])
    rows = _bucket(task, attempt, BYTES)
    order = np.lexsort([rows.column(name).to_numpy() for name in ("tail", "uid", "sha", "_place")])
    rows = rows.take(order)
    head, rest = rows.column("_place").to_numpy(), rows.column("sha").to_numpy()
    fresh = np.ones(len(order), dtype=bool)
    fresh[1:] = (head[1:] != head[:-1]) | (rest[1:] != rest[:-1])
    first = np.flatnonzero(fresh)[np.cumsum(fresh) - 1][~fresh]
    _send(attempt, layout, rows, (first, np.flatnonzero(~fresh), np.ones(len(first), dtype=bool)), "same_bytes", True)
    attempt.note(same_bytes=len(first))


def _first_of_their_bytes(task: Task, attempt: Attempt) -> Iterator[Live]:
    """The parts of a task, without the images whose bytes another one with a smaller uid has."""
    twins = together(gather(attempt, task.inputs[TWINS], task.payload["group_bits"], task.payload["number"]))
    heads, tails = twins.column("b").to_numpy(), twins.column("b_tail").to_numpy()
    known = set(zip(heads.tolist(), tails.tolist(), strict=True))
    for part in live(task, attempt, task.hints["pool"], (task.hints["column"],)):
        maybe = np.isin(part.uids[0], heads)
        for row in np.flatnonzero(maybe):
            maybe[row] = (int(part.uids[0][row]), int(part.uids[1][row])) in known
        yield Live(part.number, part.record, part.table.filter(pa.array(~maybe)), _chosen(part.uids, ~maybe))


# -- near hashes -------------------------------------------------------------------------------------------------------


def hash_bits(rows: int, chunks: int) -> int:
    """Buckets are `2**bits`, each of about `HASHES_AT_ONCE` hashes."""
    return 0 if chunks == 1 else (rows * chunks // HASHES_AT_ONCE).bit_length()


def cut_hashes(task: Task, attempt: Attempt) -> None:
    """The hashes of some parts; where they are many, each once for every chunk of its bits.

    Two hashes that differ in k bits agree in one of k + 1 chunks, so that they meet in the bucket of that chunk.
    """
    column, chunks = task.hints["column"], task.payload["chunks"]
    scatter = Scatter(attempt)
    for part in _first_of_their_bytes(task, attempt):
        values = part.table.column(f"{column.node}.{column.name}")
        there = np.asarray(pc.is_valid(values))
        codes = values.filter(pa.array(there)).to_numpy().astype(np.uint64)
        uids, numbers = _chosen(part.uids, there), _numbers(part)[there]
        for chunk, mask in enumerate(_chunks(chunks)):
            places = _mixed((codes & mask) ^ np.uint64(chunk)) if chunks > 1 else np.zeros(len(codes), np.uint64)
            scatter.add(_table(HASHES, places, *uids, numbers, codes, np.full(len(codes), chunk, np.uint8)))
    scatter.close()
    attempt.note(bits=0)


def near_hashes(task: Task, attempt: Attempt) -> None:
    """All pairs of one bucket within a Hamming distance; each is told by the first chunk in which it agrees."""
    layout, payload = Layout(**task.payload["layout"]), task.payload
    rows = _bucket(task, attempt, HASHES)
    masks = _chunks(payload["chunks"])
    scattered, total = Scatter(attempt), 0
    for chunk, mask in enumerate(masks):
        mine = _by_uid(rows.filter(pc.equal(rows.column("chunk"), chunk)))
        codes = mine.column("code").to_numpy()
        pairs = hamming_pairs(codes, payload["within"], payload["most"])
        if len(masks) > 1:
            differing = codes[pairs[0]] ^ codes[pairs[1]]
            told = (differing & mask) == 0
            for earlier in masks[:chunk]:
                told &= (differing & earlier) != 0
            pairs = pairs[0][told], pairs[1][told], pairs[2][told]
        scattered.add(_edges(layout, mine, pairs, "hamming"))
        total += len(pairs[0])
    scattered.close()
    attempt.note(bits=0, near_hashes=total)


def _chunks(count: int) -> list[np.uint64]:
    edges = [BITS * number // count for number in range(count + 1)]
    return [np.uint64(((1 << b) - 1) ^ ((1 << a) - 1)) for a, b in pairwise(edges)]


def _mixed(numbers: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
    """Spread over all places (the finaliser of SplitMix64, Steele et al. 2014)."""
    with np.errstate(over="ignore"):
        mixed = (numbers ^ (numbers >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return np.asarray(mixed ^ (mixed >> np.uint64(31)), np.uint64)


# -- near embeddings ---------------------------------------------------------------------------------------------------


def sample(task: Task, attempt: Attempt) -> None:
    """The embeddings of the images whose uid, a hash, lies in the first share of all uids."""
    limit = np.uint64(min(2**64 - 1, int(task.payload["share"] * 2**64)))
    tables = []
    for part, vectors_nd in _vectors_of(task, attempt):
        chosen = part.uids[0] <= limit
        tables.append(
            pa.table(
                [pa.array(half[chosen]) for half in part.uids] + [_listed(vectors_nd[chosen])],
                names=["uid", "tail", "vector"],
            )
        )
    attempt.write("sample", pa.concat_tables([table for table in tables if table.num_rows] or tables[:1]))


def train(task: Task, attempt: Attempt) -> None:
    """How many cells, and their centres: enough that the largest one of the sample is no task too large.

    Writes the centres; notes `cells`, `largest_cell` (the rows that the largest will have, about) and `border`.
    """
    tables = [attempt.read(record, "sample") for record in task.inputs["samples"] if record.rows["sample"]]
    rows, per_cell, seed = task.payload["rows"], task.payload["rows_per_cell"], task.payload["seed"]
    device = task.hints.get("device", Device())
    if not tables:
        attempt.write("centres", pa.table({"vector": pa.array([], pa.list_(pa.float32(), 1))}))
        attempt.note(cells=1, largest_cell=0, border=0.5)
        return
    vectors_nd = unit(matrix(_by_uid(pa.concat_tables(tables)).column("vector")))
    wanted = -(-rows // per_cell)
    while True:
        cells = Cells.trained(vectors_nd, wanted, seed, device)
        _, cell, own, _ = cells.visits(vectors_nd, 1.0)
        largest = int(np.bincount(cell[own], minlength=1).max() / len(vectors_nd) * rows)
        if largest <= TOO_LARGE * per_cell or 2 * wanted * 39 > len(vectors_nd):
            break
        wanted *= 2
    width = cells.centres_kd.shape[1]
    flat = pa.array(cells.centres_kd.ravel())
    attempt.write("centres", pa.table({"vector": pa.FixedSizeListArray.from_arrays(flat, width)}))
    attempt.note(cells=len(cells.centres_kd), largest_cell=largest, border=round(cells.border, 4))


def cut_vectors(task: Task, attempt: Attempt) -> None:
    """The embeddings of some parts, each in its cell and in those in which it has to be looked for.

    Writes `cell` as well: how much each is like the centre of its own.
    """
    (record,) = task.inputs["cells"]
    centres_kd = matrix(attempt.read(record, "centres").column("vector"))
    bits = (len(centres_kd) - 1).bit_length() if len(centres_kd) else 0
    device = task.hints.get("device", Device())
    cells = Cells(centres_kd, device, record.notes["border"]) if len(centres_kd) else None
    scatter, cut_off, homes = Scatter(attempt), 0, [HOMES.empty_table()]
    for part, vectors_nd in _vectors_of(task, attempt):
        if cells is not None and len(vectors_nd):
            units_nd = unit(vectors_nd.astype(np.float32))
            row, cell, lives, missed = cells.visits(units_nd, task.payload["cosine"])
            like = np.einsum("nd,nd->n", units_nd, centres_kd[cell[lives]])
            homes.append(pa.table([*(pa.array(half) for half in part.uids), like], schema=HOMES))
            places = cell.astype(np.uint64) << np.uint64(64 - bits) if bits else np.zeros(len(cell), np.uint64)
            uids, numbers = _chosen(part.uids, row), _numbers(part)[row]
            schema = _vectors(vectors_nd.shape[1])
            scatter.add(_table(schema, places, *uids, numbers, lives, _listed(vectors_nd[row])))
            cut_off += missed
    scatter.close()
    attempt.write("cell", pa.concat_tables(homes))
    attempt.note(bits=0, cut_off=cut_off)


def beside_cells(task: Task, attempt: Attempt, image: pa.Table) -> pa.Table:
    """The image table of a part with `cell_similarity`."""
    (record,) = task.inputs["cells"]
    homes = attempt.read(record, "cell")
    uids = texts(*(homes.column(name).to_numpy() for name in ("uid", "tail")))
    place = pc.index_in(image.column("uid"), value_set=uids)
    return image.append_column(CELL_SIMILARITY, homes.column(CELL_SIMILARITY.name).take(place))


def near_vectors(task: Task, attempt: Attempt) -> None:
    """All pairs of one cell whose cosine is large enough."""
    layout, payload = Layout(**task.payload["layout"]), task.payload
    rows = _by_uid(_bucket(task, attempt, None))
    if rows.num_rows:
        vectors_nd = matrix(rows.column("vector"))
        rows = rows.drop_columns("vector")  # room for the search: 1 KiB a row where there are 512 numbers, beside 2
        vectors_nd /= lengths(vectors_nd)
        lives = rows.column("lives").to_numpy()
        device = task.hints.get("device", Device())
        pairs, cut_off = cosine_pairs(vectors_nd, payload["cosine"], payload["most"], payload["seed"], device, lives)
    else:
        nothing = np.zeros(0, np.int64)
        pairs, cut_off = (nothing, nothing, np.zeros(0, np.float32)), 0
    _send(attempt, layout, rows, pairs, "cosine")
    attempt.note(near_vectors=len(pairs[0]), cut_off=cut_off)


def _vectors_of(task: Task, attempt: Attempt) -> Iterator[tuple[Live, npt.NDArray[np.float16]]]:
    """The images that have an embedding, and it; one that is zero or not finite is none."""
    column = task.hints["column"]
    for part in _first_of_their_bytes(task, attempt):
        there, vectors_nd = usable(part.table.column(f"{column.node}.{column.name}"))
        table = part.table.filter(pa.array(there))
        yield Live(part.number, part.record, table, _chosen(part.uids, there)), vectors_nd


# -- rows --------------------------------------------------------------------------------------------------------------


def _bucket(task: Task, attempt: Attempt, schema: pa.Schema | None) -> pa.Table:
    """The rows of this bucket; slices may be wider than it."""
    bits, number = task.payload["bits"], task.payload["number"]
    tables = [*gather(attempt, task.inputs["rows"], bits, number)]
    if not tables:
        return (schema or _vectors(1)).empty_table()
    rows = pa.concat_tables(tables)
    if not bits:
        return rows
    inside = rows.column("_place").to_numpy() >> np.uint64(64 - bits) == number
    return rows.filter(pa.array(inside))


def _send(attempt: Attempt, layout: Layout, rows: pa.Table, pairs: Pairs, said: str, to_both: bool = False) -> None:
    """Pairs to the part of their smaller uid, or to the parts of both."""
    scatter = Scatter(attempt)
    edges = _edges(layout, rows, pairs, said)
    scatter.add(edges)
    if to_both:
        places = layout.places(edges.column("part_b").to_numpy())
        scatter.add(edges.set_column(0, edges.schema.field(0), [places]))
    scatter.close()
    attempt.note(bits=0)


def _edges(layout: Layout, rows: pa.Table, pairs: Pairs, said: str) -> pa.Table:
    first, second, value = pairs
    heads, tails, parts = (rows.column(name).to_numpy() for name in ("uid", "tail", "part"))
    ends = (heads[first], tails[first]), (heads[second], tails[second])
    of = parts[first], parts[second]
    return candidates(layout.places(of[0]), *ends, of, {said: value})


def _table(schema: pa.Schema, *columns: object) -> pa.Table:
    arrays = [
        column if isinstance(column, pa.Array) else pa.array(column, field.type)
        for column, field in zip(columns, schema, strict=True)
    ]
    return pa.Table.from_arrays(arrays, schema=schema)


def _numbers(part: Live) -> npt.NDArray[np.int64]:
    return np.full(part.table.num_rows, part.number, np.int64)


def _chosen(uids: Halves, rows: npt.NDArray[np.generic]) -> Halves:
    return uids[0][rows], uids[1][rows]


def _by_uid(rows: pa.Table) -> pa.Table:
    return rows.take(np.lexsort([rows.column(name).to_numpy() for name in ("tail", "uid")]))


def _listed(vectors_nd: npt.NDArray[np.float16]) -> pa.Array:
    return pa.FixedSizeListArray.from_arrays(pa.array(vectors_nd.ravel(), pa.float16()), vectors_nd.shape[1])
