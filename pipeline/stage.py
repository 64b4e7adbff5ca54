"""The contracts between the engine and its stages.

A stage is frozen parameters that say *what* is done. Where it runs never enters it. Four kinds exist:

- `PartStage`: one part in, columns out; the engine batches the rows, decodes pixels and spreads the parts.
- `PoolStage`: one part of URLs in, one part of a pool out (image bytes in a tar, a row for every URL).
- `TableStage`: needs every part; it maps tasks over the workers in a few committed phases.
- `Job`: a `TableStage` that writes files instead of aligned tables.

Every one of them can be tested without Ray.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Annotated, Any, BinaryIO, ClassVar, Literal, Protocol

import pyarrow as pa
from pydantic import BaseModel, ConfigDict, Field

from pipeline.records import Generation, Record

if TYPE_CHECKING:
    import numpy as np

    from pipeline.attempt import Attempt

Grain = Literal["image", "caption", "edge", "document", "conversation"]
Promise = Literal["pure", "numeric", "observed"]

KEYS: dict[str, pa.Schema] = {
    "image": pa.schema([("uid", pa.string())]),
    "caption": pa.schema([("uid", pa.string()), ("caption_id", pa.string())]),
}
"""The key columns that every table of a grain begins with."""

TOLD = frozenset({"caption", "source"})
"""The columns of a caption table that tells captions, and so which pairs there are: that of a pool, or of a node that
adds captions which a model wrote. Every other caption table says something of the captions that such a one tells."""

PIXELS = "pixels"
"""The name under which a stage says in `reads` that it looks at the images."""

Prepare = Callable[["np.ndarray"], "np.ndarray"]
"""What is made of one image, uint8 (height, width, 3): equal ones, by `==` and `hash`, make the same."""

CAPTIONS = pa.field("captions", pa.int32(), metadata={"counts": "captions of the image"})
"""A column of an ingested image table: how many captions of this part belong to the image, at least 1.

Where a table has it, SQL zips images with captions instead of joining them by uid.
"""

OBSERVED: dict[bytes | str, bytes | str] = {"covered": "no"}
"""Field metadata of a column that `content_hash` leaves out: timings, dates, wording of errors."""


@dataclass(frozen=True)
class ResourceMark:
    """Marks a parameter that names something outside; its digest, not its name, is part of the identity."""

    kind: Literal["files", "file", "weights", "sets"]
    shipped: str = ""
    """Of a file: the package that has it under its bare name, with `.yaml` behind it, where no such path exists."""


Files = Annotated[tuple[str, ...] | str, ResourceMark("files")]
"""Paths or globs on any fsspec store; the resource is the list of the matching files, in order of path."""
File = Annotated[str, ResourceMark("file")]
"""One file on any fsspec store."""
Sets = Annotated[dict[str, str], ResourceMark("sets")]
"""Names of sets of files, each with its folder, file or glob on any fsspec store; `pipeline.sets` reads them."""


@dataclass(frozen=True)
class EffortMark:
    """Marks a parameter that says how hard or how fast it is tried, not what is done: no part of the identity.

    A run that changes it reuses what is committed; the statuses of `retryable` are there for what another effort mends.
    """


Effort = EffortMark()
"""`timeout_s: Annotated[float, Effort] = 10`"""


class NodeRef(BaseModel):
    """A parameter that refers to another node's output, such as a checkpoint: `{node: clip}` in YAML.

    Where that node has several, as from a training with several seeds, `{node: clip, part: model-0}` names one.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", coerce_numbers_to_str=True)

    node: str
    part: str | None = Field(default=None, min_length=1)
    files: tuple[str, ...] = ()
    """Full addresses of the files of that node's generation; filled in by the engine."""


Weights = Annotated[str | NodeRef, ResourceMark("weights")]
"""A trained model: a folder of safetensors on any fsspec store, `org/name@commit` on the hub, or `{node: …}`.

A branch, or no revision, is looked up once, when the node is prepared; the commit is then part of the identity.
"""


@dataclass(frozen=True)
class Device:
    """What a worker computes on: `cpu` or `cuda`, and how many threads may decode."""

    kind: Literal["cpu", "cuda"] = "cpu"
    threads: int = 1


@dataclass(frozen=True)
class Column:
    """A column that a stage may read: who wrote it, at which grain, of which type."""

    name: str
    node: str
    grain: str
    type: pa.DataType
    covered: bool = True


class Batch(Protocol):
    """A few hundred rows of one part."""

    table: pa.Table
    """The columns that the step reads, and the keys, in row order."""

    def matrix(self, column: str) -> np.ndarray:
        """A list column as float32 (rows, width); a null row is NaN."""

    def images(self, prepare: Prepare | None = None) -> list[np.ndarray | None]:
        """Every row's image as uint8 (height, width, 3), RGB; None where there is none. Decoded once for all steps.

        With `prepare`, what that makes of each: ahead of the batch, where the step named it in `prepares`.
        """

    def pixels(self, side: int) -> np.ndarray:
        """uint8 (rows, side, side, 3): the shorter side resized to `side`, the centre cut out; zeros for none."""


class Stage(BaseModel):
    """Parameters only. They, `revision` and the resources' digests are the stage's identity."""

    model_config = ConfigDict(frozen=True, extra="forbid", arbitrary_types_allowed=True)

    revision: ClassVar[int] = 1
    """Raised when the meaning of the output changes; a golden output per stage catches a forgotten one."""
    promise: ClassVar[Promise]
    """What a rerun gives: the same bytes (`pure`), the same up to float noise (`numeric`), new facts (`observed`)."""
    seeded: ClassVar[bool] = False
    """Whether the DAG's seed is part of what is done."""

    @classmethod
    def path(cls) -> str:
        """The import path that names this stage in YAML; a package shortens its module to its own name."""
        package = cls.__module__.rpartition(".")[0]
        exported = __import__("sys").modules.get(package)
        shown = package if package and getattr(exported, cls.__name__, None) is cls else cls.__module__
        return f"{shown}.{cls.__name__}"

    def check(self, inputs: Sequence[Column]) -> None:
        """Raise `SluiceError` for anything wrong that can be known before work starts."""


class PartStage(Stage):
    """Works on one part alone: the engine spreads the parts over Ray.

    `open` is called once per worker and loads what is needed; what it returns maps a batch to a table with exactly
    the columns of `gives()`, row for row.
    """

    grain: ClassVar[Grain]
    reads: ClassVar[frozenset[str]] = frozenset()
    adds: ClassVar[pa.Schema] = pa.schema([])

    def needs(self) -> frozenset[str]:
        """The columns it reads (and `pixels`): `reads`, unless the parameters decide."""
        return self.reads

    def gives(self) -> pa.Schema:
        """The columns it adds: `adds`, unless the parameters decide."""
        return self.adds

    def prepares(self, device: Device) -> Prepare | None:
        """What the step wants made of every image by itself, such as the size that a model takes; None: nothing.

        The engine does it in the decoding threads, while the batches before are worked on, once for all steps that want
        the same. The step gets it by `batch.images(prepare)`, and gets no whole images.
        """
        return None

    @abstractmethod
    def open(self, device: Device) -> Callable[[Batch], pa.Table]: ...


class Shared(Protocol):
    """The object that `PoolStage.shared` gave, wherever it lives, as a worker reaches it."""

    def call(self, method: str, *arguments: Any) -> Future[Any]:
        """Call a method with small picklable values; may be called from any thread.

        The object may have been made anew in between, and then the call comes a second time.
        """


class PoolPart(Protocol):
    """One part of URLs on its way into a pool."""

    image: pa.Table
    """The input's image rows (`uid`, `url` and whatever the input carries)."""
    caption: pa.Table
    """The input's caption rows (`uid`, `caption_id`, `caption`, `source`), grouped by image in the order of `image`."""
    before: pa.Table | None
    """Where failed rows are tried again: what `adds` said of every row of `image` until now; None at the first try."""
    shared: Shared | None
    """What all workers of the run share; None where the stage has nothing to share, and outside the engine."""

    def create(self, suffix: str) -> BinaryIO:
        """A new file of this part, such as `tar`; hashed while it is written, committed with the part."""


class PoolStage(Stage):
    """Turns a part of URLs into a part of a pool: image bytes in one `tar`, and a row for every URL, failures included.

    What `open` returns gives a table of the columns of `adds`, row for row; `status` among them. The engine repeats
    the input's columns beside them, so that a pool stands alone. A quarantined row has the status `quarantined`.
    """

    reads: ClassVar[frozenset[str]] = frozenset({"url"})
    adds: ClassVar[pa.Schema]
    retryable: ClassVar[frozenset[str]] = frozenset()
    """Statuses that another try may change."""
    remembered: ClassVar[frozenset[str]] = frozenset()
    """Columns of `adds` that a row keeps when its bytes are lost, to know them again by, such as their sha256."""

    def shared(self) -> Any | None:
        """An object that all workers of a run reach through `part.shared`, such as how often each host was asked.

        It lives in one process, is asked one call at a time, and is made anew, empty, where that process dies.
        """
        return None

    @abstractmethod
    def open(self, device: Device) -> Callable[[PoolPart], pa.Table]: ...


@dataclass(frozen=True)
class Task:
    """One unit of a phase: it is done, committed, retried and reused as a whole.

    `payload` (JSON) and the content of `inputs` make its work key, together with the stage's identity and the phase.
    """

    part: str
    payload: Mapping[str, Any] = field(default_factory=dict)
    inputs: Mapping[str, tuple[Record, ...]] = field(default_factory=dict)
    supersedes: tuple[str, ...] = ()
    rows: int = 0
    """How many rows it will work on, for the progress bar and for bisecting; 0 where nobody knows."""
    hints: Mapping[str, Any] = field(default_factory=dict)
    """What helps to find the inputs and must not enter the work key, such as paths on this machine."""

    def narrowed(self, rows: Sequence[int] | None = None, exclude: Sequence[int] = (), attempt: int = 0) -> Task:
        """The same work for a probe on a few rows, or without the rows that were quarantined."""
        return replace(self, hints={**self.hints, "rows": rows, "exclude": tuple(exclude), "attempt": attempt})


class Work(Protocol):
    """A node on its way to a generation, as a `TableStage` sees it, in the driver."""

    seed: int
    inputs: Mapping[str, Generation]
    """The newest generations of the nodes in `from`, in that order."""
    previous: Generation | None
    """The newest generation of this node with the same parameters, whatever its inputs were."""
    columns: Sequence[Column]
    """The columns of the nodes in `from`. A part from before a column first came along lacks it: it is null there."""
    resources: Mapping[str, Sequence[tuple[str, str]]]
    """(path, digest) of every resource, by parameter."""

    def map(
        self, phase: str, tasks: Iterable[Task], do: Callable[[Task, Attempt], None], final: bool = True
    ) -> list[Record]:
        """Do every task on the workers, or find it committed; the records come in the tasks' order.

        `do` must be picklable: a bound method of the stage, or a function of a module.
        Records of the phases that are not `final` need not outlive the node.
        """


class TableStage(Stage):
    """Needs every part. Its output is aligned to the pool's parts again and is never one table in one process."""

    joins_pools: ClassVar[bool] = False
    """Whether its inputs may come from different pools."""
    pixels: ClassVar[bool] = False
    """Whether its output is a pool: image rows with `offset`, `nbytes` and `stored_sha256`, and a `tar`."""
    gang: ClassVar[bool] = False
    """Whether a task starts the node's workers itself, as processes that talk with each other, where they are several.

    The task is told of them as `task.hints["workers"]`, and takes next to no CPU of its own then.
    """

    def needs(self) -> frozenset[str]:
        """The columns it reads, where it can say so."""
        return frozenset()

    @abstractmethod
    def outputs(self, inputs: Sequence[Column]) -> Mapping[str, pa.Schema]:
        """Grain -> schema of the table that it writes, keys included."""

    def ended(self, rows: pa.Table) -> Mapping[str, int]:
        """By which statuses it counted these rows of its table; asked for those that a retry or later input replaced.

        Of those of which it does not say so, the most frequent status of their part is taken.
        """
        return {}

    @abstractmethod
    def assemble(self, work: Work) -> list[Record]:
        """Map the phases; the records that make the generation. Cheap but for `work.map`: a plan calls it too."""


class Job(TableStage):
    """Produces files, itself in parts: one per output file."""

    def outputs(self, inputs: Sequence[Column]) -> Mapping[str, pa.Schema]:
        return {}
