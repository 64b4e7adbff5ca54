"""What a copied data set's samples are made of, for the card: a reader that guesses types by a few samples fails."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pyarrow as pa

from pipeline.export.selection import Selection

OF_IMAGE = {"uid", "caption", "blurred_sha256"}
OF_CAPTION = {"caption_id", "text", "source"}
"""Keys that the shards themselves add: texts, all of them."""


def features(selection: Selection) -> list[dict[str, Any]] | None:
    """The members of the shards' samples, as `dataset_info` of a card lists features; None where a type is unknown."""
    keys, inner, endings = _keys(selection)
    try:
        captions = [{"name": key, **_of(selection, key, OF_CAPTION)} for key in inner]
        document = [
            {"name": key, **({"list": captions} if key == "captions" else _of(selection, key, OF_IMAGE))}
            for key in keys
        ]
    except LookupError:
        return None
    if not document or not captions:
        return None
    return [
        *({"name": ending, "dtype": "image"} for ending in endings),
        {"name": "txt", "dtype": "string"},
        {"name": "json", "struct": document},
        {"name": "__key__", "dtype": "string"},
        {"name": "__url__", "dtype": "string"},
    ]


def _keys(selection: Selection) -> tuple[list[str], list[str], list[str]]:
    """The keys of the JSON and of a caption in it, which are the same in every sample; and the images' endings."""
    keys: list[str] = []
    inner: list[str] = []
    endings: set[str] = set()
    for record, file in selection.shards():
        place = selection.store.place(record, file)
        table = selection.store.read_table(record, "samples", ["image", "json_offset", "json_nbytes"])
        endings |= {name.rpartition(".")[2] for name in table.column("image").to_pylist()}
        spans = zip(table.column("json_offset").to_pylist(), table.column("json_nbytes").to_pylist(), strict=True)
        documents = _documents(selection, place, spans)
        while not inner and (document := next(documents, None)) is not None:
            keys = list(document)
            inner = list(document["captions"][0]) if document["captions"] else []
    return keys, inner, sorted(endings)


def _documents(selection: Selection, place: str, spans: Iterator[tuple[int, int]]) -> Iterator[dict[str, Any]]:
    for offset, size in spans:
        yield json.loads(selection.store.get_range(place, offset, offset + size))


def _of(selection: Selection, key: str, texts: set[str]) -> dict[str, Any]:
    """The feature of a key. Raises `LookupError` where nothing is known of it."""
    if key in texts:
        return {"dtype": "string"}
    found = selection.in_shards(key)
    if found is None:
        raise LookupError(key)
    feature = _feature(found.type)
    return {"dtype": feature} if isinstance(feature, str) else feature


def _feature(kind: pa.DataType) -> Any:
    """As JSON has it: hashes of 64 bits and times are texts there."""
    if pa.types.is_list(kind) or pa.types.is_fixed_size_list(kind) or pa.types.is_large_list(kind):
        return {"list": _feature(kind.value_type)}
    if pa.types.is_boolean(kind):
        return "bool"
    if pa.types.is_uint64(kind) or pa.types.is_temporal(kind) or pa.types.is_string(kind):
        return "string"
    if pa.types.is_integer(kind):
        return str(kind)
    if pa.types.is_floating(kind):
        return "float64" if pa.types.is_float64(kind) else "float32"
    raise LookupError(str(kind))
