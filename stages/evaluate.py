"""What trained models score on evaluation sets, as a table of the run.

comparison:
  from: [clip, raw_clip]
  steps: [{stages.evaluate.Evaluate: {sets: {imagenet: "s3://sets/wds_imagenet1k"}}}]

sluice sql ROOT "FROM comparison WHERE metric = 'acc1'"
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, ClassVar, Literal

import pyarrow as pa
from pydantic import Field

from models.evaluate.tasks import TASKS
from pipeline.attempt import Attempt
from pipeline.errors import SluiceError, did_you_mean
from pipeline.records import Generation, Record
from pipeline.stage import Column, Device, Effort, Job, Promise, Sets, Task, Work

METRICS = pa.schema(
    [
        ("model", pa.string()),
        ("seed", pa.int64()),
        ("set", pa.string()),
        ("task", pa.string()),
        ("metric", pa.string()),
        ("value", pa.float64()),
        ("standard_error", pa.float64()),
        ("chance", pa.float64()),
        ("samples", pa.int64()),
    ]
)
"""A row per number. `model` is the node that trained it, `seed` which of its models that is, counted from 0; task and
metric are called as CLIP_benchmark calls them."""
CONFIG = "config.json"
"""A file that every model has."""


class Evaluate(Job):
    """Zero-shot classification, retrieval, choice of a caption, linear probe, nearest neighbours, questions, by set.

    `from` names the nodes that trained the models: dual encoders, or for questions models that write. Each is evaluated
    on every set, in the tasks that its files say it is for. A set is a folder in CLIP_benchmark's WebDataset layout, or
    as VQAv2, GQA, ScienceQA or VizWiz are published, or a folder of such. The record of each has the model's card with
    its figures, to be published beside the weights.
    """

    revision: ClassVar[int] = 2
    promise: ClassVar[Promise] = "numeric"
    joins_pools: ClassVar[bool] = True

    sets: Sets
    tasks: tuple[str, ...] = ()
    """Only these; by default all that a set is for."""
    dtype: Literal["float32", "float16", "bfloat16"] = "float32"
    batch: Annotated[int, Effort] = Field(default=64, ge=1)
    """Images or texts that the model sees at once."""

    def check(self, inputs: Sequence[Column]) -> None:
        """Raise `SluiceError` where there is no set, or a task that nobody knows."""
        if not self.sets:
            raise SluiceError("sets: none is named; give each a name and its folder")
        for task in self.tasks:
            if task not in TASKS:
                raise SluiceError(f"tasks: no {task!r}{did_you_mean(task, TASKS)}")

    def assemble(self, work: Work) -> list[Record]:
        for node, generation in work.inputs.items():
            if not _holds_a_model(generation):
                raise SluiceError(f"{node} holds no model; name nodes that train one, such as stages.train.Train")
        tasks = [
            Task(f"{node}-{record.part}", {"model": node, "seed": seed}, {node: (record,)}, rows=1)
            for node, generation in work.inputs.items()
            for seed, record in enumerate(generation.records)
        ]
        return work.map("evaluate", tasks, self.evaluate)

    def evaluate(self, task: Task, attempt: Attempt) -> None:
        """One model on all sets."""
        from models.evaluate import evaluate
        from models.export import card

        device = task.hints.get("device", Device())
        model = task.payload["model"]
        with tempfile.TemporaryDirectory(prefix="sluice-model-") as folder:
            _fetch(attempt, task.inputs[model], Path(folder))
            try:
                metrics = evaluate(
                    folder,
                    self._sets(),
                    tasks=self.tasks or None,  # type: ignore[arg-type]  # `check` has seen them
                    device=device.kind,
                    dtype=self.dtype,
                    batch=self.batch,
                    threads=device.threads,
                )
                attempt.create_in_folder(card.NAME).write(card.text(Path(folder), metrics).encode())
            except ValueError as error:
                raise SluiceError(str(error)) from None
        rows = [{"model": model, "seed": task.payload["seed"], **asdict(metric)} for metric in metrics]
        attempt.write("metric", pa.Table.from_pylist(rows, schema=METRICS))
        attempt.count({"evaluated": 1})

    def _sets(self) -> dict[str, str]:
        """Every set by its name: the one it was given, or in a folder of sets that of its own folder."""
        from models.evaluate.sets import found_in

        found: dict[str, str] = {}
        for name, where in self.sets.items():
            inside = found_in(where)
            more = {name: where} if list(inside.values()) == [where.rstrip("/")] else inside
            for twice in found.keys() & more.keys():
                raise SluiceError(f"sets: two are called {twice!r}: {found[twice]} and {more[twice]}; rename one")
            found |= more
        return found


def _holds_a_model(generation: Generation) -> bool:
    return any(record.file(CONFIG) is not None for record in generation.records)


def _fetch(attempt: Attempt, records: Sequence[Record], folder: Path) -> None:
    """The files of a model under their own names, which are their kinds."""
    for record in records:
        for file in record.files:
            if not file.path.endswith(".parquet"):
                place = attempt.store.full(attempt.store.place(record, file))
                attempt.store.fs.get_file(place, str(folder / file.kind))
