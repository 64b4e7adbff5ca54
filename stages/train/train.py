"""Pretraining on curated shards, as a node of a DAG.

    clip:
      from: [shards, kept]          # the selection beside the shards puts its funnel into the model card
      workers: {count: 8, gpus: 1}
      steps: [{stages.train.Train: {recipe: clip-vit-b32}}]

One worker trains in the process that the engine gives it; several are started by Ray Train, as one gang. The training
writes checkpoints beside the node's data: killed anywhere, the next `sluice run` goes on from the newest one.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from hashlib import sha256
from pathlib import Path
from typing import Annotated, Any, ClassVar

import fsspec
import pyarrow as pa
from pydantic import Field

from pipeline.attempt import Attempt
from pipeline.dag import Workers
from pipeline.errors import SluiceError
from pipeline.records import ABOUT, Generation, Record
from pipeline.runs import holds_shards
from pipeline.stage import OBSERVED, Column, Effort, Job, NodeRef, Promise, ResourceMark, Task, Weights, Work
from pipeline.store import Store
from pipeline.worker import progress_path
from stages.train.gang import train_here, train_in_a_gang

Recipe = Annotated[str, ResourceMark("file", shipped="models.recipes")]
"""A recipe by the path of its YAML on any fsspec store, or by the name of one that sluice ships: `sluice recipes`."""
CURVE = pa.schema(
    [
        ("samples", pa.int64()),
        ("loss", pa.float64()),
        ("learning_rate", pa.float64()),
        pa.field("samples_per_second", pa.float64(), metadata=OBSERVED),
    ]
)
"""The training as it went: samples seen by all processes, mean loss since the row before."""
FILES = pa.schema([("name", pa.string()), ("sha256", pa.string())])
"""What the model consists of; what was measured while it was trained is left out, for it differs from run to run."""
MEASURED = frozenset({"README.md", "training.json"})
SHARD = "shard"
BEGINS = ("pretrained", "vision", "language")
"""Parameters that are weights; a recipe's model has one of the same name for each."""
HOW = ("about", "guard", "parallel", "checkpoint_every", "keep")
"""Of a recipe: what changes how it is trained, and not what."""


class Train(Job):
    """Train a recipe on the shards of the nodes in `from`; the files of the model, as transformers loads them.

    Another node names the model as `{node: clip}`. Its table is the curve of the losses.
    """

    promise: ClassVar[Promise] = "numeric"
    seeded: ClassVar[bool] = True
    joins_pools: ClassVar[bool] = True
    gang: ClassVar[bool] = True

    recipe: Recipe
    tiny: bool = False
    """Lay the recipe's `tiny` overlay over it."""
    settings: tuple[str, ...] = ()
    """Changes to the recipe, such as `optimizer.learning_rate=1e-3`."""
    samples: int | None = Field(default=None, ge=1)
    """Seen in all, instead of what the recipe says. Where they are not more than its warmup, `settings` say that, too:
    `schedule.warmup=…`."""
    seeds: int = Field(default=1, ge=1)
    """How many models are trained, with seeds that follow the DAG's: how far two of them differ by chance alone."""
    pretrained: Weights | None = None
    """A model of the recipe's kind to begin with, such as another training's: `{node: blip}`."""
    vision: Weights | None = None
    """What the recipe's image tower begins with."""
    language: Weights | None = None
    """What the recipe's language model begins with."""
    parallel: Annotated[dict[str, Any], Effort] = {}
    """How the work is laid over processes, such as `{mode: fsdp}`, over what the recipe says of it."""
    wandb: Annotated[str | None, Effort] = None
    """A project of Weights & Biases to log to, beside TensorBoard's files."""

    def check(self, inputs: Sequence[Column]) -> None:
        """Raise `SluiceError` for a recipe that cannot be."""
        from pipeline.identity import find_resources

        self._resolved(find_resources([self])["recipe"][0][0], seed=0)

    def assemble(self, work: Work) -> list[Record]:
        recipes = [self._resolved(work.resources["recipe"][0][0], work.seed + number) for number in range(self.seeds)]
        shards = {name: generation for name, generation in work.inputs.items() if holds_shards(generation)}
        data = named(mixed(recipes[0]), list(shards))
        begins = {name: addresses for name in BEGINS if (addresses := self._files(name, work))}
        tasks = [
            Task(
                "model" if self.seeds == 1 else f"model-{number}",
                {"recipe": {key: value for key, value in recipe.items() if key not in HOW}, "data": data},
                {name: generation.records for name, generation in shards.items()},
                rows=recipe["samples"],
                hints={"how": {key: recipe[key] for key in HOW}, "lineage": lineage(work.inputs), "weights": begins},
            )
            for number, recipe in enumerate(recipes)
        ]
        return work.map("train", tasks, self.train)

    def train(self, task: Task, attempt: Attempt) -> None:
        """Train, and make the model's files those of the attempt."""
        workers = task.hints.get("workers", Workers())
        out = attempt.store.url(f"{attempt.node}/checkpoints/{attempt.work_key}")
        call = {
            "recipe": {**task.payload["recipe"], **task.hints["how"]},
            "data": {name: tars(attempt.store, task.inputs[node]) for name, node in task.payload["data"].items()},
            "out": out,
            "refused": f"{out}.refused",
            "progress": attempt.store.url(progress_path(attempt.node, attempt.work_key)),
            "lineage": task.hints["lineage"],
            "weights": task.hints["weights"],
            "wandb": self.wandb,
        }
        curve = train_here(call) if (workers.count or 1) == 1 else train_in_a_gang(call, workers)
        attempt.write("curve", pa.Table.from_pylist(curve, schema=CURVE))
        attempt.write("files", pa.Table.from_pylist(list(_take(attempt, f"{out}/model")), schema=FILES))
        attempt.count({"trained": 1})
        attempt.note(**{ABOUT: {"model": f"{attempt.node}/data/{attempt.stem}", "loss": round(curve[-1]["loss"], 3)}})

    def _files(self, name: str, work: Work) -> list[str]:
        """The addresses of the files of weights, or `org/name@commit` alone where the hub has them."""
        value = getattr(self, name)
        if isinstance(value, NodeRef):
            return list(value.files)
        return [] if value is None else [address for address, _ in work.resources[name]]

    def _resolved(self, path: str, seed: int) -> dict[str, Any]:
        from models.recipe import Recipe, RecipeError  # pydantic and YAML only; torch comes with the training

        with fsspec.open(path, "rt", encoding="utf-8") as handle:
            text = handle.read()
        more = [f"seed={seed}", *(f"parallel.{name}={value}" for name, value in self.parallel.items())]
        if self.samples is not None:
            more.append(f"samples={self.samples}")
        try:
            recipe = Recipe.parse(text, Path(path).stem, self.tiny, [*self.settings, *more])
        except RecipeError as error:
            raise SluiceError(str(error)) from None
        return recipe.model_dump(mode="json")


def mixed(recipe: Mapping[str, Any]) -> set[str]:
    """The sets that the phases of a recipe read."""
    return {name for phase in recipe["phases"] for name in phase["mixture"] or recipe["data"]["mixture"]}


def named(mixture: Collection[str], nodes: Sequence[str]) -> dict[str, str]:
    """Name in the recipe -> node; one of each need not be called the same. Raises `SluiceError` where they differ."""
    if not nodes:
        raise SluiceError("no node in `from` holds shards; add one, such as stages.shard.WebDataset")
    if len(nodes) == len(mixture) == 1:
        return {next(iter(mixture)): nodes[0]}
    if set(nodes) != set(mixture):
        raise SluiceError(
            f"the recipe mixes {', '.join(sorted(mixture))}, and `from` gives {', '.join(sorted(nodes))}; "
            f"set data.mixture to {{{', '.join(f'{node}: 1' for node in nodes)}}}, or that of the phases"
        )
    return {node: node for node in nodes}


def lineage(inputs: Mapping[str, Generation]) -> dict[str, Any]:
    """Where the samples come from: a hash of the content of every set of shards, and how their pairs were selected."""
    shards = {name: generation for name, generation in inputs.items() if holds_shards(generation)}
    funnels = {name: _summed(generation.records) for name, generation in inputs.items()}
    return {
        "shards": {
            name: {
                "selection": generation.content_hash,
                "samples": sum(record.rows.get("samples", 0) for record in generation.records),
            }
            for name, generation in shards.items()
        },
        "funnels": {name: funnel for name, funnel in funnels.items() if funnel},
    }


def _summed(records: Sequence[Record]) -> list[dict[str, Any]]:
    """The funnels of the parts as one."""
    total: dict[str, dict[str, Any]] = {}
    for record in records:
        for step in record.notes.get("funnel", ()):
            found = total.setdefault(step["rule"], {"rule": step["rule"], "rows": 0, "dropped": 0, "left": 0})
            for name in ("rows", "dropped", "left"):
                found[name] += step[name]
    return list(total.values())


def tars(store: Store, records: Sequence[Record]) -> list[str]:
    """The addresses of the shards that the records name."""
    return [store.url(store.place(record, file)) for record in records for file in record.files if file.kind == SHARD]


def _take(attempt: Attempt, folder: str) -> Iterator[dict[str, str]]:
    """Copy the files of a model into the attempt; name and sha256 of those that are the model."""
    fs, path = fsspec.core.url_to_fs(folder)
    for found in sorted(fs.ls(path, detail=False)):
        name = str(found).rpartition("/")[2]
        hasher = sha256()
        sink = attempt.create_in_folder(name)
        with fs.open(found, "rb") as source:
            while block := source.read(1 << 22):
                hasher.update(block)
                sink.write(block)
        if name not in MEASURED:
            yield {"name": name, "sha256": hasher.hexdigest()}
