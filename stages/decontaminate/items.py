"""What an evaluation set holds: the items of its files, and their index that every part of a pool is compared with.

Images, by themselves or in tars (WebDataset), are items of their own. Tables hold what else is known of items:

- `.parquet`: `sha256` (hex), `phash` (uint64), `embedding` (a list), with an id in the first of `ID_COLUMNS`;
- `.npy`, `.npz`, `.safetensors`: rows of `embeddings`; ids in `ids` of the npz, else in `<stem>.txt`, one a line.

An id that is the name of an image of the same set adds to that item. Without ids, rows are named by number.
"""

import hashlib
import io
import tarfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any, BinaryIO, cast

import fsspec
import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image, ImageOps
from safetensors.numpy import load as load_safetensors

from pipeline.attempt import Attempt
from pipeline.errors import SluiceError
from pipeline.rows import FORMATS
from pipeline.stage import Task
from stages.decontaminate.glance import CROPS, WIDTH, glances, gray_of

IMAGES = (".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".ppm", ".pgm")
UNREADABLE = (".heic", ".heif", ".avif", ".jp2", ".jxl", ".svg", ".tga", ".dng")
"""Pictures that Pillow does not read without more: refused, so that nobody believes them compared."""
TABLES = (".parquet", ".npy", ".npz", ".safetensors")
ID_COLUMNS = ("id", "uid", "key", "item", "name", "file_name", "image_id", "url")
EMBEDDINGS = ("embedding", "image_embedding", "embeddings", "vector")

ITEMS = pa.schema(
    [
        ("set", pa.string()),
        ("item", pa.string()),
        ("file", pa.string()),  # within the set; null where there are no pixels
        ("offset", pa.int64()),  # bytes; null: the file is the image
        ("nbytes", pa.int64()),
        ("sha256", pa.string()),
        ("phash", pa.uint64()),
    ]
)
GLANCES = pa.schema([("row", pa.int32()), ("glance", pa.list_(pa.float16(), WIDTH))])
"""`row` is the number of the item."""


@dataclass
class Item:
    """One thing of a set, as far as a file tells of it."""

    name: str
    data: bytes | None = None
    sha256: str | None = None
    phash: int | None = None
    vector: npt.NDArray[np.float32] | None = None
    offset: int | None = None


def kind_of(name: str) -> str:
    """`image`, `tar`, `table`, or nothing for a file that is none of them."""
    ending = PurePosixPath(name).suffix.lower()
    return "image" if ending in IMAGES else "tar" if ending == ".tar" else "table" if ending in TABLES else ""


def check_readable(of: str, names: Sequence[str]) -> None:
    """Raise `SluiceError` for a set with nothing in it, or with pictures that are not read."""
    for name in names:
        if PurePosixPath(name).suffix.lower() in UNREADABLE:
            raise SluiceError(f"sets: {of}/{name} cannot be read; save it as PNG, or leave it out")
    if not any(map(kind_of, names)):
        raise SluiceError(
            f"sets: {of} has no item in its {len(names)} files; expected images, tars of images, or tables "
            f"({', '.join(TABLES)})"
        )


# -- a phase: the items of some files ----------------------------------------------------------------------------------


def read_items(task: Task, attempt: Attempt) -> None:
    """The items of some files of one set, looked at."""
    of = task.payload["set"]
    items: list[tuple[Any, ...]] = []
    seen, vectors = [], []
    for (name, digest), path in zip(task.payload["files"], task.hints["paths"], strict=True):
        for item in _opened(of, name, digest, path):
            row = len(items)
            place = (name, item.offset, len(item.data)) if item.data is not None else (None, None, None)
            items.append((of, item.name, *place, item.sha256, item.phash))
            if item.data is not None:
                seen.append((row, _look(of, item)))
            if item.vector is not None:
                vectors.append((row, item.vector))
    columns = [pa.array([row[place] for row in items], field.type) for place, field in enumerate(ITEMS)]
    attempt.write("items", pa.table(columns, schema=ITEMS))
    rows_gd = [glance for _, found in seen for glance in found]
    of_glance = [row for row, found in seen for _ in found]
    attempt.write("glances", _lists(of_glance, rows_gd, "glance", pa.float16(), WIDTH))
    width = len(vectors[0][1]) if vectors else 0
    if any(len(vector) != width for _, vector in vectors):
        raise SluiceError(f"sets: {of}/{task.payload['files'][0][0]} has embeddings of several widths; expected one")
    rows_vd = [vector for _, vector in vectors]
    attempt.write("vectors", _lists([row for row, _ in vectors], rows_vd, "vector", pa.float32(), width))


def _lists(rows: Sequence[int], values: Sequence[Any], name: str, kind: pa.DataType, width: int) -> pa.Table:
    flat = np.concatenate(values) if values else np.zeros(0, np.float32)
    lists = pa.FixedSizeListArray.from_arrays(pa.array(flat.astype(kind.to_pandas_dtype()), kind), width or 1)
    return pa.table([pa.array(rows, pa.int32()), lists], names=["row", name])


def _look(of: str, item: Item) -> npt.NDArray[np.float32]:
    assert item.data is not None
    try:
        return glances(gray_of(plain(item.data)), CROPS)
    except Exception as error:  # Pillow's readers raise nearly anything on broken input
        why = " ".join(f"{type(error).__name__}: {error}".split())[:120]
        raise SluiceError(f"sets: {of}/{item.name} is no image ({why}); mend it, or leave it out") from None


def plain(data: bytes) -> bytes:
    """The same picture as a pool has pictures: upright, over white, in a format that is read; mostly the same bytes."""
    with Image.open(io.BytesIO(data)) as image:
        turned = image.getexif().get(0x0112, 1) != 1
        clear = image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info
        if image.format in FORMATS and not turned and not clear:
            return data
        upright = ImageOps.exif_transpose(image)
        if clear:
            upright = upright.convert("RGBA")
            white = Image.new("RGBA", upright.size, "white")
            upright = Image.alpha_composite(white, upright)
        made = io.BytesIO()
        upright.convert("RGB").save(made, "PNG")
    return made.getvalue()


# -- files -------------------------------------------------------------------------------------------------------------


def _opened(of: str, name: str, digest: str, path: str) -> Iterator[Item]:
    """Raises `SluiceError` for a file that is not what it was when the run began."""
    with fsspec.open(path, "rb") as file:
        hashed = _Hashed(file)
        yield from items_of(of, name, cast(BinaryIO, hashed), _beside(path) if kind_of(name) == "table" else None)
        while hashed.read(1 << 22):
            pass
    if not digest.startswith("tag:") and hashed.sha.hexdigest() != digest:
        raise SluiceError(f"sets: {path} changed while the run began; run again")


def items_of(of: str, name: str, file: BinaryIO, beside: Sequence[str] | None = None) -> Iterator[Item]:
    """The items of an open file; a tar is streamed. Raises `SluiceError` where it is not what its ending says."""
    kind = kind_of(name)
    try:
        if kind == "image":
            data = file.read()
            yield Item(name, data, hashlib.sha256(data).hexdigest())
        elif kind == "tar":
            yield from _of_tar(name, file)
        elif name.lower().endswith(".parquet"):
            yield from _of_parquet(name, pq.read_table(pa.BufferReader(file.read())))
        else:
            yield from _of_vectors(name, file.read(), beside)
    except (OSError, ValueError, KeyError, tarfile.TarError, pa.ArrowInvalid) as error:
        why = " ".join(str(error).split())[:160]
        raise SluiceError(f"sets: {of}/{name} cannot be read ({why}); see what its ending promises") from None


class _Hashed(io.RawIOBase):
    """A file that knows the sha256 of what was read of it."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self.sha = hashlib.sha256()

    def read(self, size: int = -1) -> bytes:
        data = self._file.read(size)
        self.sha.update(data)
        return data


def _of_tar(name: str, file: BinaryIO) -> Iterator[Item]:
    with tarfile.open(fileobj=file, mode="r|") as tar:
        for member in tar:
            held = tar.extractfile(member) if member.isreg() and kind_of(member.name) == "image" else None
            if held is not None:
                image = held.read()
                sha = hashlib.sha256(image).hexdigest()
                yield Item(f"{name}/{member.name}", image, sha, offset=member.offset_data)


def _of_parquet(name: str, table: pa.Table) -> Iterator[Item]:
    ids = next((column for column in ID_COLUMNS if column in table.column_names), None)
    vectors = next((column for column in EMBEDDINGS if column in table.column_names), None)
    known = [column for column in ("sha256", "phash", vectors) if column in table.column_names]
    if not known:
        raise ValueError(f"no column sha256, phash or embedding among {', '.join(table.column_names)}")
    columns: dict[str | None, list[Any]] = {column: table.column(column).to_pylist() for column in known}
    names = table.column(ids).to_pylist() if ids else [f"{name}/{row}" for row in range(table.num_rows)]
    none = [None] * table.num_rows
    each = zip(names, columns.get("sha256", none), columns.get("phash", none), columns.get(vectors, none), strict=True)
    for own, sha, phash, vector in each:
        hashed = int(phash, 16) if isinstance(phash, str) else None if phash is None else phash % (1 << 64)
        array = None if vector is None else np.asarray(vector, np.float32)
        yield Item(str(own), None, sha.lower() if sha else None, hashed, array)


def _of_vectors(name: str, data: bytes, beside: Sequence[str] | None) -> Iterator[Item]:
    ids: Sequence[Any] | None = beside
    if name.endswith(".safetensors"):
        rows_nd = _only(load_safetensors(data))
    else:
        found = np.load(io.BytesIO(data), allow_pickle=False)
        if isinstance(found, np.ndarray):
            rows_nd = found
        else:
            arrays: Mapping[str, npt.NDArray[Any]] = dict(found)
            ids = arrays["ids"].tolist() if "ids" in arrays else ids
            rows_nd = _only({key: array for key, array in arrays.items() if key != "ids"})
    if rows_nd.ndim != 2:
        raise ValueError(f"an array of shape {rows_nd.shape}; expected rows of embeddings")
    if ids is not None and len(ids) != len(rows_nd):
        raise ValueError(f"{len(ids)} ids for {len(rows_nd)} rows")
    for number, row in enumerate(np.asarray(rows_nd, np.float32)):
        yield Item(f"{name}/{number}" if ids is None else str(ids[number]), vector=row)


def _only(arrays: Mapping[str, npt.NDArray[Any]]) -> npt.NDArray[Any]:
    named = [key for key in EMBEDDINGS if key in arrays] or list(arrays)
    if len(named) != 1:
        raise ValueError(f"arrays {', '.join(arrays)}; expected one named `embeddings`")
    return arrays[named[0]]


def _beside(path: str) -> list[str] | None:
    """The ids of a file of embeddings: `<stem>.txt`, one a line."""
    fs, inner = fsspec.core.url_to_fs(f"{path.rpartition('.')[0]}.txt")
    return fs.cat_file(inner).decode().splitlines() if fs.isfile(inner) else None
