"""A toy job: files under final names, created exclusively."""

from collections.abc import Sequence

from pipeline.attempt import Attempt
from pipeline.records import Record
from pipeline.stage import Job, Task, Work


class Bundle(Job):
    """One text file per part with every label in it, as `data/bundle-<part>.txt`."""

    promise = "pure"

    def assemble(self, work: Work) -> list[Record]:
        (source,) = work.inputs.values()
        tasks = [
            Task(record.part, inputs={source.node: (record,)}, rows=record.rows["caption"]) for record in source.records
        ]
        return work.map("bundle", tasks, self.bundle)

    def bundle(self, task: Task, attempt: Attempt) -> None:
        (records,) = task.inputs.values()
        labels = attempt.read(records[0], "caption", ["label"]).column("label").to_pylist()
        attempt.create_final("bundle", f"data/bundle-{task.part}.txt").write("\n".join(labels).encode())
        attempt.count({"ok": len(labels)})


def paths(records: Sequence[Record]) -> list[str]:
    return [file.path for record in records for file in record.files]
