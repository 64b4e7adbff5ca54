"""The model card: what the Hugging Face hub reads (YAML), and what people read.

card.write(Path("out/model"), metrics)       # README.md of the folder, from its training.json and config.json

Everything in it comes from files that lie beside the weights, so it can be written again with newer figures.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from huggingface_hub import EvalResult, ModelCardData

from models.evaluate.metric import Metric, shown
from models.export.loading import use_of

NAME = "README.md"
FILL_IN = "to be filled in by whoever publishes this model"
PIPELINE = "zero-shot-image-classification"
TASKS = {"zeroshot_classification": PIPELINE, "zeroshot_retrieval": "zero-shot-retrieval"}
"""The hub's names; the other tasks have none, and keep their own."""


def write(folder: Path, metrics: Sequence[Metric] = ()) -> None:
    """The card into the folder of an exported model. Raises `ValueError` where that is none."""
    (folder / NAME).write_text(text(folder, metrics), encoding="utf-8")


def text(folder: Path, metrics: Sequence[Metric] = ()) -> str:
    """The card of an exported model, with the figures of an evaluation. Raises `ValueError` where it is none."""
    training, config = _read(folder / "training.json"), _read(folder / "config.json")
    recipe, lineage = training["recipe"], training.get("lineage", {})
    sections = [
        _head(recipe, config, metrics),
        f"# {_inert(recipe['name'])}\n\n{_summary(recipe, training, config)}",
        f"## How to load it\n\n```python\n{use_of(config).code}\n```",
        "## What it was trained on\n\n" + _data(lineage, training),
        *(["## How well it does\n\n" + _figures(metrics)] if metrics else []),
        "## How it was trained\n\n" + _training(recipe, training),
        f"## Licence\n\n**{FILL_IN}**: the images and texts that it learned from belong to those who made them.",
    ]
    return "\n\n".join(sections) + "\n"


def _read(path: Path) -> dict[str, Any]:
    try:
        found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ValueError(f"{path} cannot be read ({error}); expected the folder that a training exported") from None
    return found


def _head(recipe: Mapping[str, Any], config: Mapping[str, Any], metrics: Sequence[Metric]) -> str:
    results = [
        EvalResult(
            task_type=TASKS.get(metric.task, metric.task),
            task_name=metric.task,
            dataset_type=metric.set,
            dataset_name=metric.set,
            metric_type="accuracy" if metric.metric.startswith("acc") else metric.metric.partition("@")[0],
            metric_name=metric.metric,
            metric_value=round(metric.value, 6),
        )
        for metric in metrics
    ]
    use = use_of(config)
    data = ModelCardData(
        library_name="transformers",
        pipeline_tag=use.pipeline,
        tags=[use.samples.replace(" ", "-"), str(config.get("model_type"))],
        **({"model_name": recipe["name"], "eval_results": results} if results else {}),
    )
    return f"---\n{data.to_yaml()}\n---"


def _summary(recipe: Mapping[str, Any], training: Mapping[str, Any], config: Mapping[str, Any]) -> str:
    seen, exported, samples = training["samples"], _exported(training), use_of(config).samples
    trained = f"{seen:,} {samples} seen"
    if exported != seen:
        trained = f"weights after {exported:,} of {seen:,} {samples} (the best checkpoint), seen"
    trained = f"{trained} in batches of {recipe['batch']:,}"
    return f"{_inert(recipe['about'])}, {trained}, trained by the recipe `{_inert(recipe['name'])}` (recipe.yaml)."


def _exported(training: Mapping[str, Any]) -> int:
    """Samples that the weights have seen; fewer than the training has where the best checkpoint was taken."""
    return int(training.get("exported", training["samples"]))


def _data(lineage: Mapping[str, Any], training: Mapping[str, Any]) -> str:
    """Sets of shards by the hash of their content, and the funnels through which their pairs came."""
    mixture = _mixture(training["recipe"])
    rows = [
        (name, f"{share:g}", f"{told.get('samples', 0):,}" if told else "", f"`{told['selection']}`" if told else "")
        for name, share in mixture.items()
        for told in (lineage.get("shards", {}).get(name),)
    ]
    parts = [_table(("set of shards", "share of the samples", "samples", "hash of the selection"), rows)]
    if not lineage.get("shards"):
        parts.append("Nothing is known of how these pairs were selected: they were not given by a run of sluice.")
    for name, funnel in lineage.get("funnels", {}).items():
        steps = [(step["rule"], *(f"{step[key]:,}" for key in ("rows", "dropped", "left"))) for step in funnel]
        parts.append(f"How `{_inert(name)}` selected them: a rule sees what those before it left.")
        parts.append(_table(("rule", "pairs in", "dropped", "left"), steps))
    skipped = training.get("skipped", {})
    if skipped:
        parts.append("Samples that could not be used:")
        parts.append(_table(("reason", "samples"), [(reason, f"{count:,}") for reason, count in skipped.items()]))
    return "\n\n".join(parts)


def _mixture(recipe: Mapping[str, Any]) -> dict[str, float]:
    """Share of all samples by set, over phases that may read different ones."""
    shares: dict[str, float] = {}
    for phase in recipe.get("phases", [{}]):
        own = phase.get("mixture") or recipe.get("data", {}).get("mixture", {})
        for name, share in own.items():
            shares[name] = shares.get(name, 0) + phase.get("share", 1) * share / sum(own.values())
    return shares


def _figures(metrics: Sequence[Metric]) -> str:
    rows = [(one.set, one.task, one.metric, *shown(one), f"{one.samples:,}") for one in metrics]
    head = ("set", "task", "metric", "value", "± standard error", "by chance", "samples")
    return (
        f"{_table(head, rows)}\n\nStandard errors are those of the samples; another seed of the training adds its own."
    )


def _training(recipe: Mapping[str, Any], training: Mapping[str, Any]) -> str:
    """What a reader asks first; recipe.yaml has the rest."""
    curve, code = training.get("curve", []), training.get("code", {})
    last: Mapping[str, Any] = next((row for row in reversed(curve) if row["samples"] <= _exported(training)), {})
    when = "at the end" if _exported(training) == training["samples"] else "when these weights were kept"
    rate, machine = training.get("samples_per_second"), f"{training.get('processes', 1)} × {training.get('device')}"
    rows = [
        ("objectives", ", ".join(f"{term['objective']['path']} × {term['weight']:g}" for term in recipe["objectives"])),
        ("learning rate", f"{recipe['optimizer']['learning_rate']:g}, {recipe['schedule']['kind']}"),
        ("weight decay", f"{recipe['optimizer']['weight_decay']:g}"),
        ("precision", recipe["precision"]),
        ("seed", str(recipe["seed"])),
        ("turns", "each for itself: ask one question at a time" if recipe["data"]["texts"].get("turns") else ""),
        (f"loss {when}", f"{last['loss']:.4g}" if "loss" in last else ""),
        ("speed", f"{rate:,.0f} samples/s on {machine}" if rate else ""),
        ("code", ", ".join(f"{name} {version}" for name, version in code.items())),
    ]
    return _table(("", ""), [row for row in rows if row[1]])


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = ["| " + " | ".join(head) + " |", "|" + " --- |" * len(head)]
    return "\n".join([*lines, *("| " + " | ".join(_inert(cell) for cell in row) + " |" for row in rows)])


def _inert(text: str) -> str:
    """On one line, in one cell, and no HTML."""
    return " ".join(text.split()).replace("|", "\\|").replace("<", "&lt;")
