"""Croissant 1.1 metadata (mlcommons.org/croissant/1.1): which files a data set has and what is in them, as JSON-LD.

croissant.json            the metadata
pairs.parquet             url, caption and sizes of every kept pair: the record set `pairs`, which is one file by nature

Where the run made shards, each stands with its SHA-256, and the record set `samples` reads the images from them by
uid; their texts are in `pairs`, and in the shards beside the images.
"""

from __future__ import annotations

import json
from typing import Any

import pyarrow as pa

from pipeline.export import hf
from pipeline.export.facts import Facts
from pipeline.export.options import FILL_IN, Options
from pipeline.export.selection import Selection
from pipeline.export.target import Target

VERSION = "http://mlcommons.org/croissant/1.1"
CONTEXT: dict[str, Any] = {
    "@language": "en",
    "@vocab": "https://schema.org/",
    "arrayShape": "cr:arrayShape",
    "citeAs": "cr:citeAs",
    "column": "cr:column",
    "conformsTo": "dct:conformsTo",
    "containedIn": "cr:containedIn",
    "cr": "http://mlcommons.org/croissant/",
    "data": {"@id": "cr:data", "@type": "@json"},
    "dataType": {"@id": "cr:dataType", "@type": "@vocab"},
    "dct": "http://purl.org/dc/terms/",
    "description": {"@container": "@language"},
    "equivalentProperty": "cr:equivalentProperty",
    "examples": {"@id": "cr:examples", "@type": "@json"},
    "extract": "cr:extract",
    "field": "cr:field",
    "fileObject": "cr:fileObject",
    "fileProperty": "cr:fileProperty",
    "fileSet": "cr:fileSet",
    "format": "cr:format",
    "includes": "cr:includes",
    "isArray": "cr:isArray",
    "isLiveDataset": "cr:isLiveDataset",
    "jsonPath": "cr:jsonPath",
    "key": "cr:key",
    "md5": "cr:md5",
    "name": {"@container": "@language"},
    "parentField": "cr:parentField",
    "path": "cr:path",
    "rai": "http://mlcommons.org/croissant/RAI/",
    "recordSet": "cr:recordSet",
    "references": "cr:references",
    "regex": "cr:regex",
    "repeated": "cr:repeated",
    "replace": "cr:replace",
    "samplingRate": "cr:samplingRate",
    "sc": "https://schema.org/",
    "separator": "cr:separator",
    "source": "cr:source",
    "subField": "cr:subField",
    "transform": "cr:transform",
}
"""The context that the specification recommends, as MLCommons' own library writes it."""
TABLE = "pairs.parquet"
KEY = r"^(?:.*/)?([^./]+)\.[^/]*$"
"""What a member's name says of its sample: the uid."""


def write(selection: Selection, target: Target, options: Options) -> list[str]:
    """The table of pairs, then the metadata."""
    columns = {"uid": pa.string(), "caption_id": pa.string()}
    columns |= {name: column.type for name, column in hf.pairs(selection, target, options, TABLE, None).items()}
    facts = Facts.of(selection)
    document = {
        "@context": CONTEXT,
        "@type": "sc:Dataset",
        "name": options.name or f"{facts.dag}-{facts.node}",
        "description": _description(facts),
        "conformsTo": VERSION,
        "license": options.license,
        "url": options.url,
        "creator": {"@type": "sc:Organization", "name": options.creator},
        # A date that nobody gave must not be made up, and anything but a date is refused by every reader.
        **({"datePublished": options.published} if options.published != FILL_IN else {}),
        "version": f"{int(facts.run)}.0.0",
        "distribution": [*_tables(target), *_shards(facts)],
        "recordSet": [_pairs(columns), *([_samples()] if facts.shards else [])],
    }
    target.write("croissant.json", json.dumps(document, indent=1, ensure_ascii=False).encode())
    asked = {"license": options.license, "creator": options.creator, "url": options.url, "published": options.published}
    lacking = [f"croissant.json lacks {name}: give --{name}" for name, value in asked.items() if value == FILL_IN]
    return [*facts.remarks("croissant.json"), *lacking]


def _description(facts: Facts) -> str:
    rules = "; ".join(f"{name}: {condition}" for name, condition in facts.rules)
    return (
        f"{facts.pairs:,} image-text pairs that the node {facts.node} of {facts.dag} kept in run {facts.run} "
        f"(selection {facts.hash}). A pair is kept where, in SQL: {rules}."
    )


def _tables(target: Target) -> list[dict[str, Any]]:
    files = [file for file in target.files() if file.path == TABLE]
    return [
        {
            "@type": "cr:FileObject",
            "@id": file.path,
            "name": file.path,
            "contentUrl": file.path,
            "contentSize": f"{file.bytes} B",
            "encodingFormat": "application/x-parquet",
            "sha256": file.sha256,
        }
        for file in files
    ]


def _shards(facts: Facts) -> list[dict[str, Any]]:
    """The shards where they lie, and what is in them by kind."""
    if not facts.shards:
        return []
    names = [place.rpartition("/")[2] for place, _, _ in facts.shards]
    objects = [
        {
            "@type": "cr:FileObject",
            "@id": name,
            "name": name,
            "contentUrl": place,
            "contentSize": f"{size} B",
            "encodingFormat": "application/x-tar",
            "sha256": sha,
        }
        for name, (place, size, sha) in zip(names, facts.shards, strict=True)
    ]
    inside = [{"@id": name} for name in names]
    sets = [
        {
            "@type": "cr:FileSet",
            "@id": label,
            "name": label,
            "containedIn": inside,
            "encodingFormat": encoding,
            "includes": includes,
        }
        for label, encoding, includes in (
            ("images", "image/jpeg", ["*.jpg", "*.png", "*.webp", "*.gif"]),
            ("texts", "text/plain", ["*.txt"]),
        )
    ]
    return [*objects, *sets]


def _pairs(columns: dict[str, pa.DataType]) -> dict[str, Any]:
    fields = [
        {
            "@type": "cr:Field",
            "@id": f"pairs/{name}",
            "name": name,
            "dataType": _type(kind),
            "source": {"fileObject": {"@id": TABLE}, "extract": {"column": name}},
        }
        for name, kind in columns.items()
    ]
    key = [{"@id": "pairs/uid"}, {"@id": "pairs/caption_id"}]
    return {"@type": "cr:RecordSet", "@id": "pairs", "name": "pairs", "key": key, "field": fields}


def _type(kind: pa.DataType) -> str:
    if pa.types.is_boolean(kind):
        return "sc:Boolean"
    if pa.types.is_integer(kind):
        return "sc:Integer"
    return "sc:Float" if pa.types.is_floating(kind) else "sc:Text"


def _samples() -> dict[str, Any]:
    def field(name: str, kind: str, files: str, extract: str, **more: Any) -> dict[str, Any]:
        source = {"fileSet": {"@id": files}, "extract": {"fileProperty": extract}, **more}
        return {"@type": "cr:Field", "@id": f"samples/{name}", "name": name, "dataType": kind, "source": source}

    return {
        "@type": "cr:RecordSet",
        "@id": "samples",
        "name": "samples",
        "key": {"@id": "samples/uid"},
        "field": [
            field("uid", "sc:Text", "images", "filename", transform={"regex": KEY}),
            field("image", "sc:ImageObject", "images", "content"),
        ],
    }
