"""Conversations from real figures, and a tiny LLaVA tuned on them from nothing: the whole path, as it comes out.

    python -m tests.benchmarks.bench_real_instruct 9600      # samples seen by LLaVA

Five times: each time another fifth of the figures is held out, by their names, and what is a copy of one of these is
left out, too. The questions that rules ask of their captions are asked of the model, beside shuffled images and the
best guess. 650 figures teach it what kind of picture one is, and neither to count nor to read words of a few pixels.
"""

from __future__ import annotations

import io
import json
import math
import re
import sys
import tarfile
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from random import Random
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from infra.miniweb import Folder
from pipeline import Catalog, Dag, run
from stages.conversations.templates import turns_of
from stages.conversations.turns import Kind
from tests.benchmarks.bench_real_clip import SHARED, split
from tests.benchmarks.figures import Figure

SAMPLES = 9600
FOLDS = 5
SHORT: tuple[Kind, ...] = ("medium", "colour", "count", "relation", "verify", "place", "reading")
"""Kinds of questions that are answered in a word or two."""
TEXT = """
dag: real_instruct
seed: 17
nodes:
  urls: {{steps: [{{stages.ingest.UrlTables: {{files: {folder}/urls.parquet, url: url, caption: alt}}}}]}}
  pool:
    from: urls
    steps: [{{stages.download.Download: {{side: 256, allow_private_hosts: ["127.0.0.1:{port}"]}}}}]
  measures: {{from: pool, steps: [stages.text_quality.TextQuality]}}
  leaks: {{from: pool, steps: [{{stages.decontaminate.Decontaminate: {{sets: {{held_out: {folder}/held_out}}}}}}]}}
  kept:
    from: [pool, measures, leaks]
    steps:
      - stages.select.Select:
          rules: [downloaded: status = 'success', worded: words >= 3, no_leak: leaks_from IS NULL]
  pairs: {{from: [pool, kept], steps: [{{stages.shard.WebDataset: {{shuffle: true}}}}]}}
  conversations:
    from: pairs
    steps: [{{stages.conversations.Conversations: {{brief: "", texts: true, longest: 300, apart: true}}}}]
  llama:
    from: [pairs, conversations]
    workers: {{cpus: 2}}
    steps:
      - stages.train.Train:
          recipe: llama
          tiny: true
          samples: 2400
          settings:                  # as dags/instruct.yaml has it
            - "data.mixture={{pairs: 1, conversations: 1}}"
            - >-
              model={{models.towers.language_model.CausalLanguageModel: {{config: {{num_hidden_layers: 4,
              hidden_size: 96, intermediate_size: 256, num_attention_heads: 6, initializer_range: 0.1}}}}}}
            - "batch=16"
            - "schedule.warmup=160"
  superclass:
    from: [pairs, kept]
    workers: {{cpus: 2}}
    steps: [{{stages.train.Train: {{recipe: superclass-vit-b16, tiny: true}}}}]
  llava:
    from: [pairs, conversations, kept]
    workers: {{cpus: 2}}
    steps:
      - stages.train.Train:
          recipe: llava-1.5
          tiny: true
          samples: {samples}
          vision: {{node: superclass}}
          language: {{node: llama}}
          settings:
            - "data.texts.turns=apart"
            - "data.texts.context=256"
            - "optimizer.learning_rate=1e-3"
            - "optimizer.betas=[0.9, 0.95]"
            - "guard.spike=30"
  answers:
    from: llava
    workers: {{cpus: 2}}
    steps: [{{stages.evaluate.Evaluate: {{sets: {{held_out: {folder}/held_out}}}}}}]
"""
Rows = dict[str, dict[str, Any]]
"""What an evaluation found, by metric."""


def measure(samples: int = SAMPLES) -> list[Figure]:
    """What is asked and answered, the shuffled images and the best guess in the notes."""
    if not SHARED.is_dir():
        return [Figure("questions about real figures", None, "%", note=f"not run: no {SHARED}")]
    paths, scores = zip(*(asked(fold, samples) for fold in range(FOLDS)), strict=True)
    figures = list(paths)
    for metric in ("vqa_accuracy", *(f"vqa_accuracy/{kind}" for kind in SHORT)):
        rows = [found[metric] for found in scores if metric in found]
        blind = [found[f"{metric}_shuffled"] for found in scores if metric in found]
        if rows:
            count = sum(row["samples"] for row in rows)
            error = math.hypot(*(error_of(row) * row["samples"] for row in rows)) / count
            beside = f"shuffled {100 * mean(blind, 'value'):.1f}, best guess {100 * mean(rows, 'chance'):.1f}"
            about = f"± {100 * error:.1f} of {count} questions; {beside}"
            name = metric.replace("_", " ").replace("vqa", "VQA")
            figures.append(Figure(name, 100 * mean(rows, "value"), "%", note=about))
    return figures


def mean(rows: Sequence[dict[str, Any]], name: str) -> float:
    """Over all questions of all folds."""
    return float(sum(row[name] * row["samples"] for row in rows) / sum(row["samples"] for row in rows))


def error_of(row: dict[str, Any]) -> float:
    """Of one fold; where it had too few questions for that, the most that there can be."""
    known: float | None = row["standard_error"]
    return 0.5 / math.sqrt(row["samples"]) if known is None else known


def asked(fold: int, samples: int) -> tuple[Figure, Rows]:
    """One training, and what it answers about the figures that it has not seen."""
    with tempfile.TemporaryDirectory(prefix="sluice-real-") as name, Folder(SHARED) as web:
        folder = Path(name)
        parts = split(FOLDS, fold)
        held, others = ([one for one in found if one["path"].startswith("openstax")] for found in parts)
        write_questions(folder / "held_out", held)
        rows = [{"url": web.url(entry["path"]), "alt": caption} for entry in others for caption in entry["captions"]]
        pq.write_table(pa.Table.from_pylist(rows), folder / "urls.parquet")
        port = re.findall(r":(\d+)", web.url("x"))[0]
        started = time.perf_counter()
        run(Dag.parse(TEXT.format(folder=folder, port=port, samples=samples)), f"{folder}/root")
        took_s = time.perf_counter() - started
        catalog = Catalog(f"{folder}/root")
        turns = catalog.sql("SELECT verdict, count(*) AS n FROM conversations GROUP BY ALL ORDER BY n DESC").to_pylist()
        losses = catalog.sql("SELECT loss FROM llava ORDER BY samples").column("loss")
        scores = {row["metric"]: row for row in catalog.sql("FROM answers").to_pylist()}
    told = ", ".join(f"{row['n']:,} {row['verdict']}" for row in turns)
    note = f"turns: {told}; loss {losses[0].as_py():.2f} to {losses[-1].as_py():.2f}"
    return Figure(f"fold {fold + 1}: the whole path", took_s, "s", note=note), scores


def write_questions(folder: Path, entries: list[dict[str, Any]]) -> None:
    """A set of what rules ask of captions, in shards."""
    (folder / "test").mkdir(parents=True)
    (folder / "dataset_type.txt").write_text("vqa")
    (folder / "vqa_prompt.txt").write_text("{question}")
    (folder / "test" / "nshards.txt").write_text("1")
    with tarfile.open(folder / "test" / "0.tar", "w") as tar:
        for number, entry in enumerate(entries):
            captions = [{"text": text} for text in entry["captions"]]
            turns = turns_of(captions, [], Random(entry["path"]), SHORT)
            if not turns:
                continue
            said = [{"question": turn.question, "answers": [turn.answer], "type": turn.kind} for turn in turns]
            ending = entry["path"].rpartition(".")[2].lower().replace("jpeg", "jpg")
            data = (SHARED / entry["path"]).read_bytes()
            for suffix, content in ((ending, data), ("json", json.dumps({"questions": said}).encode())):
                info = tarfile.TarInfo(f"{number:04d}.{suffix}")
                info.size = len(content)
                tar.addfile(info, io.BytesIO(content))


if __name__ == "__main__":
    for figure in measure(*(int(argument) for argument in sys.argv[1:])):
        print(figure.name, figure.shown, figure.unit, figure.note, sep=" | ")
