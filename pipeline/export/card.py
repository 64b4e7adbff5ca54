"""The card of a data set: what the hub reads (YAML), and what people read."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import Any

import yaml

from pipeline.export.facts import Facts
from pipeline.export.options import FILL_IN, Options

SIZES = (1_000, 10_000, 100_000, 1_000_000, 10_000_000, 100_000_000, 1_000_000_000, 10_000_000_000)
NAMES = ("1K", "10K", "100K", "1M", "10M", "100M", "1B", "10B")


def card(facts: Facts, options: Options, pattern: str, features: list[dict[str, Any]] | None = None) -> str:
    """Markdown with YAML before it; `pattern` says which files are the data, `features` what is in them."""
    name = options.name or f"{facts.dag}-{facts.node}"
    sections = [
        _head(facts, options, name, pattern, features),
        f"# {_inert(name)}\n\n{_summary(facts)}",
        _licence(options),
        _loading(facts, pattern),
        "## How it was selected\n\n" + _rules(facts),
        "## Where it comes from\n\n" + _sources(facts),
        "## How it was made\n\n" + _steps(facts),
    ]
    return "\n\n".join(sections) + "\n"


def _head(facts: Facts, options: Options, name: str, pattern: str, features: list[dict[str, Any]] | None) -> str:
    known = options.license not in (FILL_IN, "") and "/" not in options.license
    licence = {"license": options.license.lower()} if known else {"license": "other", "license_name": options.license}
    webdataset = pattern.endswith(".tar")
    head = {
        **licence,
        "pretty_name": name,
        "task_categories": ["image-to-text", "text-to-image", "zero-shot-image-classification"],
        "size_categories": [_size(facts.samples if webdataset and facts.samples is not None else facts.pairs)],
        "tags": ["image-text-pairs", *(["webdataset"] if webdataset else [])],
        "configs": [{"config_name": "default", "data_files": [{"split": "train", "path": pattern}]}],
        **({"dataset_info": {"config_name": "default", "features": features}} if features else {}),
    }
    return "---\n" + yaml.safe_dump(head, sort_keys=False, allow_unicode=True) + "---"


def _size(count: int) -> str:
    """The hub's word for a number of rows."""
    for place, limit in enumerate(SIZES):
        if count < limit:
            return f"{NAMES[place - 1]}<n<{NAMES[place]}" if place else f"n<{NAMES[0]}"
    return f"n>{NAMES[-1]}"


def _summary(facts: Facts) -> str:
    samples = f", {facts.samples:,} samples in {len(facts.shards):,} shards" if facts.samples is not None else ""
    gone = f" {facts.taken_down} takedown(s) were carried out in it." if facts.taken_down else ""
    return (
        f"{facts.pairs:,} image-text pairs{samples}: what the node `{facts.node}` of the DAG `{facts.dag}` kept in run "
        f"{facts.run}. The selection's hash is `{facts.hash}`; the same hash is the same selection.{gone}"
    )


def _licence(options: Options) -> str:
    said = options.license if options.license != FILL_IN else f"**{FILL_IN}**"
    return (
        f"## Licence\n\n{said}. It is for whoever publishes this to say: the images belong to those who made them, and "
        "the pages that they come from have licences of their own, which nobody has looked up here."
    )


def _loading(facts: Facts, pattern: str) -> str:
    lines = ["## How to load it", "", "```python", "from datasets import load_dataset", ""]
    if pattern.endswith(".tar"):
        lines.append('data = load_dataset("THIS FOLDER", split="train", streaming=True)  # or its name on the hub')
        braces = f"data/{_braces(facts)}"
    else:
        lines.append(f'data = load_dataset("parquet", data_files={{"train": "{pattern}"}})  # URLs, no pixels')
        braces = facts.shards[0][0].rpartition("/")[0] + "/" + _braces(facts) if facts.shards else ""
    lines.append("```")
    if braces:
        lines += [
            "", "With open_clip:" if pattern.endswith(".tar") else "The shards, pixels included, for open_clip:", "",
            "```sh",
            f"python -m open_clip_train.main --dataset-type webdataset --train-data '{braces}' "
            f"--train-num-samples {facts.samples} --model ViT-B-32",
            "```",
        ]  # fmt: skip
    return "\n".join(lines)


def _braces(facts: Facts) -> str:
    names = [place.rpartition("/")[2].removesuffix(".tar") for place, _, _ in facts.shards]
    return f"{{{names[0]}..{names[-1]}}}.tar" if len(names) > 1 else f"{names[0]}.tar"


def _rules(facts: Facts) -> str:
    conditions = dict(facts.rules)
    rows = [
        (step["rule"], _code(conditions.get(step["rule"], "")), *(f"{step[n]:,}" for n in _COUNTS))
        for step in facts.funnel
    ]
    listed = {step["rule"] for step in facts.funnel}
    rows += [(rule, _code(condition), "", "0", "") for rule, condition in facts.rules if rule not in listed]
    table = _table(("rule", "keeps a pair where", "pairs in", "dropped", "left"), rows)
    return f"Rules in SQL, in order; a rule sees what those before it left.\n\n{table}"


_COUNTS = ("pairs_in", "dropped", "pairs_left")


def _sources(facts: Facts) -> str:
    rows = [(source.node, source.path, _code(f"{source.digest[:16]}…")) for source in facts.sources]
    parts = [_table(("node", "input file", "digest"), rows)] if rows else []
    parts += [f"`{node}` read {rows:,} rows: {images:,} images." for node, (rows, images) in facts.input_rows.items()]
    for node, statuses in facts.statuses.items():
        ordered = sorted(statuses.items(), key=lambda item: (-item[1], item[0]))
        parts.append(f"How the images of `{node}` ended:")
        parts.append(_table(("status", "images"), [(status, f"{count:,}") for status, count in ordered]))
    return "\n\n".join(parts)


def _steps(facts: Facts) -> str:
    rows = [(node, _Code(", ".join(map(_code, steps)))) for node, steps in facts.steps.items()]
    return _table(("node", "stages"), rows)


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = ["| " + " | ".join(head) + " |", "|" + " --- |" * len(head)]
    return "\n".join([*lines, *("| " + " | ".join(_inert(cell) for cell in row) + " |" for row in rows)])


class _Code(str):
    """Between backticks, where HTML is text already."""


def _code(text: str) -> _Code:
    """Between more backticks than the text has in a row, so that none of its own ends it."""
    longest = max(map(len, re.findall("`+", text)), default=0)
    fence, gap = "`" * (longest + 1), " " if longest else ""
    return _Code(f"{fence}{gap}{text}{gap}{fence}")


def _inert(text: str) -> str:
    """On one line, in one cell, and no HTML."""
    line = " ".join(text.split()).replace("|", "\\|")
    return line if isinstance(text, _Code) else line.replace("<", "&lt;").replace("`", "\\`")
