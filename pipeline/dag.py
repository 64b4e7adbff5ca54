"""YAML -> a typed graph, with everything that can be wrong found before anything starts.

dag = Dag.load("dags/quickstart.yaml", overrides=["kept.rules=[{all: 'true'}]"])
dag.check()
"""

from __future__ import annotations

import importlib
import inspect
import pkgutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from graphlib import CycleError, TopologicalSorter
from importlib.resources import files as package_files
from pathlib import Path
from typing import Any

import pyarrow as pa
import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from pipeline.content import covered
from pipeline.errors import SluiceError, did_you_mean
from pipeline.identity import resource_fields, resource_files
from pipeline.sets import check_sets
from pipeline.stage import KEYS, PIXELS, TOLD, Column, Job, NodeRef, PartStage, PoolStage, Stage, TableStage

KEY_COLUMNS = {name for schema in KEYS.values() for name in schema.names}
RESERVED_NODES = {"runs", "resources", "takedowns", "samples", "drops", "errors"}
NODE_KEYS = {"from", "steps", "workers"}


class Workers(BaseModel):
    """Where a node runs. Stands beside the stages and never enters their identity."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    count: int | None = Field(default=None, ge=1)
    """Worker processes; by default as many as the CPUs (or GPUs) allow, of a training one."""
    least: int | None = Field(default=None, ge=1)
    """Of a training: with how many it goes on where `count` cannot be had; by default with no fewer."""
    cpus: float = Field(default=1, gt=0)
    """CPUs of each worker; also its decoding threads."""
    gpus: float = Field(default=0, ge=0)
    """GPUs of each worker."""
    batch_rows: int = Field(default=256, ge=1)
    """Rows that a stage sees at once."""


@dataclass(frozen=True)
class Node:
    """One or more stages placed in a DAG with their inputs."""

    name: str
    inputs: tuple[str, ...]
    stages: tuple[Stage, ...]
    workers: Workers

    @property
    def references(self) -> dict[str, NodeRef]:
        """Parameters that refer to other nodes, by step and name."""
        return {
            f"{step}.{name}": value
            for step, stage in enumerate(self.stages)
            for name in type(stage).model_fields
            if isinstance(value := getattr(stage, name), NodeRef)
        }

    @property
    def depends_on(self) -> set[str]:
        return {*self.inputs, *(reference.node for reference in self.references.values())}

    @property
    def table_stage(self) -> TableStage | None:
        return self.stages[0] if isinstance(self.stages[0], TableStage) else None

    @property
    def pool_stage(self) -> PoolStage | None:
        return self.stages[0] if isinstance(self.stages[0], PoolStage) else None

    def needs(self) -> frozenset[str]:
        """Columns read by any step, as written in the DAG."""
        read: set[str] = set()
        for stage in self.stages:
            read |= stage.reads if isinstance(stage, PoolStage) else stage.needs()  # type: ignore[attr-defined]
        return frozenset(read)


class Dag:
    """A checked graph of nodes, in an order in which they can run."""

    def __init__(self, name: str, seed: int, nodes: Mapping[str, Node], text: str) -> None:
        self.name = name
        self.seed = seed
        self.text = text
        try:
            order = list(
                TopologicalSorter({node.name: sorted(node.depends_on) for node in nodes.values()}).static_order()
            )
        except CycleError as error:
            raise SluiceError(
                f"the nodes form a cycle: {' -> '.join(reversed(error.args[1]))}; remove one `from`"
            ) from None
        self.nodes = {name: nodes[name] for name in order}
        self._columns: dict[str, list[Column]] = {}
        self._tellers: dict[str, str | None] = {}
        self._above: dict[str, set[str]] = {}  # the nodes that a node was made from, near and far
        for node in self.nodes.values():
            self._above[node.name] = {*node.inputs, *(far for near in node.inputs for far in self._above[near])}

    # -- reading -------------------------------------------------------------------------------------------------------

    @classmethod
    def load(cls, source: str | Path, overrides: Sequence[str] = ()) -> Dag:
        """Read a file, or a DAG that sluice ships (`quickstart`), with `node.param=value` laid over it.

        Raises `SluiceError`.
        """
        path = Path(source)
        if not path.is_file():
            shipped = package_files("dags")
            names = sorted(item.name.removesuffix(".yaml") for item in shipped.iterdir() if item.name.endswith(".yaml"))
            if str(source) not in names:
                raise SluiceError(
                    f"no DAG file {str(source)!r}, and sluice ships none of that name{did_you_mean(str(source), names)}"
                )
            text = (shipped / f"{source}.yaml").read_text()
        else:
            try:
                text = path.read_text(encoding="utf-8")
            except UnicodeDecodeError:
                raise SluiceError(f"{path} is no UTF-8 text, so no DAG; name a YAML file") from None
        return cls.parse(text, overrides)

    @classmethod
    def parse(cls, text: str, overrides: Sequence[str] = ()) -> Dag:
        """From YAML text."""
        document = _read_yaml(text)
        _only(document, {"dag", "seed", "nodes"}, "the DAG")
        if not isinstance(document.get("nodes"), dict) or not document["nodes"]:
            raise SluiceError(
                "the DAG has no `nodes`; it needs at least one, such as `urls: {steps: [stages.ingest.UrlTables: …]}`"
            )
        for override in overrides:
            _override(document["nodes"], override)
        name, seed = document.get("dag"), document.get("seed", 0)
        if not isinstance(name, str) or not name.isidentifier():
            raise SluiceError(f"`dag: {name!r}` is no name; use letters, digits and _ such as `dag: web_pairs`")
        if not isinstance(seed, int):
            raise SluiceError(f"`seed: {seed!r}` is no whole number")
        nodes = {node: _node(node, body) for node, body in document["nodes"].items()}
        for node in nodes.values():
            for other in sorted(node.depends_on):
                if other not in nodes:
                    raise SluiceError(f"{node.name} takes from {other!r}, which is no node{did_you_mean(other, nodes)}")
        return cls(name, seed, nodes, yaml.safe_dump(document, sort_keys=False, allow_unicode=True, width=120))

    def until(self, node: str) -> Dag:
        """The part of the graph that `node` needs, itself included."""
        if node not in self.nodes:
            raise SluiceError(f"{self.name} has no node {node!r}{did_you_mean(node, self.nodes)}")
        wanted, stack = set(), [node]
        while stack:
            name = stack.pop()
            if name not in wanted:
                wanted.add(name)
                stack += self.nodes[name].depends_on
        return Dag(self.name, self.seed, {name: self.nodes[name] for name in self.nodes if name in wanted}, self.text)

    # -- columns -------------------------------------------------------------------------------------------------------

    def columns(self, node: str) -> list[Column]:
        """The columns that other nodes can read from `node`."""
        if node not in self._columns:
            self._columns[node] = _gives(self.nodes[node], self.inputs_of(node))
        return self._columns[node]

    def inputs_of(self, node: str) -> list[Column]:
        """The columns that `node` may read: those of the nodes in its `from`. Where one of them tells more captions
        than another, not what was said of the fewer, nor what the images had under the names of the captions."""
        inputs = self.nodes[node].inputs
        found = [column for name in inputs for column in self.columns(name)]
        told_by = {name: self.teller(name) for name in inputs}
        if len({*told_by.values()} - {None}) < 2 or self._joins_pools(node):
            return found
        who = self.teller(node)
        told = {column.name for column in found if column.node == who and column.grain == "caption"}
        return [
            column
            for column in found
            if (told_by[column.node] == who if column.grain == "caption" else column.name not in told)
        ]

    def teller(self, node: str) -> str | None:
        """The node that told the captions that `node` is about: itself, or the last one above it; None for none. Raises
        `SluiceError` where two told more captions, neither of them those of the other."""
        if node not in self._tellers:
            above = list(dict.fromkeys(told for name in self.nodes[node].inputs if (told := self.teller(name))))
            last = [name for name in above if not any(name in self._above[other] for other in above)]
            if len(last) > 1 and not self._joins_pools(node):
                raise SluiceError(f"{node} takes from {' and '.join(last)}, which tell captions each; leave one out")
            self._tellers[node] = last[0] if last else None  # what `columns` asks for, whose captions its own are
            own = {column.name for column in self.columns(node) if column.grain == "caption"}
            self._tellers[node] = node if own >= TOLD else self._tellers[node]
        return self._tellers[node]

    def _joins_pools(self, node: str) -> bool:
        stage = self.nodes[node].table_stage
        return stage is not None and stage.joins_pools

    def check(self) -> None:
        """Raise `SluiceError` for the first thing that is wrong: columns, parameters, files, lineage."""
        for node in self.nodes.values():
            self._check_lineage(node)
            inputs = self.inputs_of(node.name)
            for stage, available in zip(node.stages, self._available(node), strict=True):
                with _named(node, stage):
                    for name in sorted(stage.reads if isinstance(stage, PoolStage) else stage.needs()):  # type: ignore[attr-defined]
                        if name not in KEY_COLUMNS:
                            _check_grain(stage, resolve(name, available))
                    for parameter, mark in resource_fields(stage):
                        if mark.kind == "sets":
                            check_sets(getattr(stage, parameter), parameter)
                            continue
                        resource_files(mark, getattr(stage, parameter), parameter)
                    stage.check(available)
            _no_column_twice(node, inputs)
            self.columns(node.name)

    def _available(self, node: Node) -> list[list[Column]]:
        """What each step may read: the inputs and what the steps before it added."""
        seen, available = list(self.inputs_of(node.name)), []
        for stage in node.stages:
            available.append(list(seen))
            if isinstance(stage, PartStage):
                with _named(node, stage):
                    schema = stage.gives()
                counted = set(covered(schema))
                seen += [Column(f.name, "", stage.grain, f.type, f.name in counted) for f in schema]
        return available

    def sources(self, node: str) -> list[dict[str, Column]]:
        """Per step, what each name in `reads` means. A column of an earlier step has the node ''."""
        found = []
        for stage, available in zip(self.nodes[node].stages, self._available(self.nodes[node]), strict=True):
            names = stage.needs() if isinstance(stage, PartStage) else ()
            found.append({name: resolve(name, available) for name in sorted(names) if name not in KEY_COLUMNS})
        return found

    def exact(self, node: str) -> bool:
        """Whether the node reads columns that content hashes leave out, so that its inputs' bytes decide."""
        inputs = self.inputs_of(node)
        names = self.nodes[node].needs()
        return any(not c.covered and (c.name in names or f"{c.node}.{c.name}" in names) for c in inputs)

    def pool_of(self, node: str) -> str:
        """The ingest node that the node's parts come from."""
        while self.nodes[node].inputs:
            node = self.nodes[node].inputs[0]
        return node

    def _check_lineage(self, node: Node) -> None:
        roots = {name: self.pool_of(name) for name in node.inputs}
        if len(set(roots.values())) > 1 and not (node.table_stage and node.table_stage.joins_pools):
            shown = ", ".join(f"{name} (of {root})" for name, root in roots.items())
            raise SluiceError(f"{node.name} takes from different pools: {shown}; its inputs must come from one")
        if node.inputs and not isinstance(node.stages[0], Job) and not self._joins_pools(node.name):
            who = self.teller(node.name)
            if who not in (None, node.name, self.teller(node.inputs[0])):
                raise SluiceError(f"{node.name} takes from {who}, which tells more captions; name it first in `from`")
        if not node.inputs and not isinstance(node.stages[0], TableStage):
            raise SluiceError(
                f"{node.name} has no `from`; {type(node.stages[0]).__name__} needs a node to read, such as `from: pool`"
            )


def _check_grain(stage: Stage, column: Column) -> None:
    """An image has many captions, so what looks at an image cannot read a column of captions."""
    if isinstance(stage, PartStage) and stage.grain == "image" and column.grain != "image":
        raise SluiceError(f"works on images and reads {column.name!r} of {column.grain}s; let it work on captions")


def resolve(name: str, columns: Sequence[Column]) -> Column:
    """The column that `name` or `node.name` means.

    Raises `SluiceError` where there is none, or where two nodes have it.
    """
    node, _, short = name.rpartition(".")
    found = [c for c in columns if c.name == short and (not node or c.node == node)]
    nodes = list(dict.fromkeys(c.node for c in found))
    if not found:
        if name == PIXELS:
            raise SluiceError("looks at the images, but no node in `from` is a pool; add the download node to `from`")
        known = [c.name for c in columns] + ([f"{c.node}.{c.name}" for c in columns] if node else [])
        raise SluiceError(f"reads {name!r}, which no node in `from` has{did_you_mean(name, known)}")
    if len(nodes) > 1:
        ways = " or ".join(f"'{n}.{short}'" for n in nodes if n)
        raise SluiceError(
            f"reads {short!r}, which {' and '.join(nodes)} both have; write {ways}, or leave one out of `from`"
        )
    return next((c for c in found if c.grain == "caption"), found[0])  # in pairs a caption column shadows the image's


def _gives(node: Node, inputs: list[Column]) -> list[Column]:
    stage = node.stages[0]
    if isinstance(stage, TableStage):
        with _named(node, stage):
            outputs = stage.outputs(inputs)
        columns = [c for grain, schema in outputs.items() for c in _schema_columns(node.name, grain, schema)]
        pool = stage.pixels
    elif isinstance(stage, PoolStage):
        columns = [Column(c.name, node.name, c.grain, c.type, c.covered) for c in inputs if c.name != PIXELS]
        columns += _schema_columns(node.name, "image", stage.adds)
        pool = True
    else:
        columns, pool = [], False
        for step in (step for step in node.stages if isinstance(step, PartStage)):
            with _named(node, step):
                columns += _schema_columns(node.name, step.grain, step.gives())
    return columns + ([Column(PIXELS, node.name, "image", pa.null())] if pool else [])


@contextmanager
def _named(node: Node, stage: Stage) -> Iterator[None]:
    """What goes wrong in a stage names it and its node."""
    try:
        yield
    except SluiceError as error:
        raise SluiceError(f"{node.name}: {type(stage).__name__}: {error}") from None


def _schema_columns(node: str, grain: str, schema: pa.Schema) -> list[Column]:
    counted = set(covered(schema))
    return [Column(f.name, node, grain, f.type, f.name in counted) for f in schema if f.name not in KEY_COLUMNS]


def _no_column_twice(node: Node, inputs: Sequence[Column]) -> None:
    if node.table_stage is not None:
        return
    seen: dict[str, str] = {c.name: c.node for c in inputs} if node.pool_stage else {}
    for stage in node.stages:
        for name in (stage.adds if isinstance(stage, PoolStage) else stage.gives()).names:  # type: ignore[attr-defined]
            if name in KEY_COLUMNS or name in seen:
                owner = seen.get(name, "every table")
                raise SluiceError(f"{node.name}: {type(stage).__name__} adds {name!r}, which {owner} has already")
            seen[name] = type(stage).__name__


# -- YAML --------------------------------------------------------------------------------------------------------------


class _Loader(yaml.SafeLoader):
    """Safe YAML that refuses a key that stands twice; plain YAML would keep the last one silently."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen = set()
        for key, _ in node.value:
            name = self.construct_object(key, deep=True)
            if not isinstance(name, str | int | float | bool | None):
                raise SluiceError(f"line {key.start_mark.line + 1}: {name!r} is no name; a key is a word")
            if name in seen:
                raise SluiceError(f"line {key.start_mark.line + 1}: {name!r} stands twice; keep one of them")
            seen.add(name)
        return super().construct_mapping(node, deep=deep)


def _read_yaml(text: str) -> dict[str, Any]:
    try:
        document = yaml.load(text, Loader=_Loader)  # noqa: S506 - a SafeLoader
    except yaml.MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else "?"
        raise SluiceError(
            f"line {line}: not YAML: {error.problem}; check the indentation and the quotes there"
        ) from None
    if not isinstance(document, dict):
        raise SluiceError("the DAG is no mapping; it begins with `dag: <name>`, then `nodes:`")
    return document


def _only(mapping: Mapping[str, Any], allowed: Iterable[str], where: str) -> None:
    for key in mapping:
        if key not in set(allowed):
            raise SluiceError(f"{where} has no key {key!r}{did_you_mean(str(key), allowed)}")


def _node(name: str, body: Any) -> Node:
    if not isinstance(name, str) or not name.isidentifier() or name in RESERVED_NODES:
        why = "is reserved" if name in RESERVED_NODES else "is no name; use letters, digits and _"
        raise SluiceError(f"node {name!r} {why}")
    if not isinstance(body, dict):
        raise SluiceError(f"{name}: expected a mapping with `steps`, got {body!r}")
    _only(body, NODE_KEYS, name)
    inputs = body.get("from", [])
    inputs = [inputs] if isinstance(inputs, str) else inputs or []
    if not isinstance(inputs, list) or not all(isinstance(other, str) for other in inputs):
        raise SluiceError(f"{name}: `from: {inputs!r}` is no node, and no list of nodes such as [pool, scores]")
    if len(set(inputs)) < len(inputs):
        raise SluiceError(f"{name}: `from` names a node twice: {', '.join(inputs)}; once is enough")
    steps = body.get("steps")
    if not isinstance(steps, list) or not steps:
        raise SluiceError(
            f"{name}: `steps` must be a list of stages, such as `steps: [{{stages.download.Download: {{}}}}]`"
        )
    stages = tuple(_stage(name, step) for step in steps)
    if len(stages) > 1 and not all(isinstance(stage, PartStage) for stage in stages):
        alone = next(type(stage).__name__ for stage in stages if not isinstance(stage, PartStage))
        raise SluiceError(f"{name}: {alone} must be its node's only step; give the others a node of their own")
    return Node(name, tuple(inputs), stages, _parsed(Workers, body.get("workers") or {}, f"{name}.workers"))


def _stage(node: str, step: Any) -> Stage:
    if isinstance(step, str):
        step = {step: {}}
    if not isinstance(step, dict) or len(step) != 1:
        raise SluiceError(f"{node}: a step is `import.path.Stage: {{parameters}}`, got {step!r}")
    path, parameters = next(iter(step.items()))
    stage: Stage = _parsed(import_stage(str(path), node), parameters or {}, f"{node}: {path}")
    return stage


def import_stage(path: str, node: str = "") -> type[Stage]:
    """The stage class at an import path. Raises `SluiceError` with the nearest right one."""
    where = f"{node}: " if node else ""
    module_name, _, class_name = path.rpartition(".")
    if not module_name:
        raise SluiceError(f"{where}{path!r} is no import path; write it like stages.download.Download")
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        if error.name is None or not (module_name + ".").startswith(error.name + "."):
            raise SluiceError(f"{where}{path} needs the module {error.name!r}; install it on every machine") from None
        raise SluiceError(f"{where}no module {module_name!r}{did_you_mean(module_name, _stage_modules())}") from None
    found = getattr(module, class_name, None)
    if not (inspect.isclass(found) and issubclass(found, Stage)) or inspect.isabstract(found):
        stages = [
            n
            for n, c in vars(module).items()
            if inspect.isclass(c) and issubclass(c, Stage) and not inspect.isabstract(c)
        ]
        raise SluiceError(f"{where}{module_name} has no {class_name!r}{did_you_mean(class_name, stages)}")
    return found


def _stage_modules() -> list[str]:
    try:
        package = importlib.import_module("stages")
    except ModuleNotFoundError:
        return []
    return [module.name for module in pkgutil.walk_packages(package.__path__, "stages.")]


def _parsed(model: type[Any], parameters: Any, where: str) -> Any:
    if not isinstance(parameters, dict):
        raise SluiceError(f"{where}: expected a mapping of parameters, got {parameters!r}")
    try:
        return model.model_validate(parameters)
    except ValidationError as error:
        first = error.errors()[0]
        name = ".".join(str(part) for part in first["loc"])
        if first["type"] == "extra_forbidden":
            raise SluiceError(f"{where} has no parameter {name!r}{did_you_mean(name, model.model_fields)}") from None
        if first["type"] == "missing":
            raise SluiceError(f"{where} needs the parameter {name!r}") from None
        message = first["msg"].removeprefix("Value error, ")
        raise SluiceError(f"{where}: {name} = {first['input']!r}: {message[:1].lower()}{message[1:]}") from None
    except SluiceError as error:
        raise SluiceError(f"{where}: {error}") from None


def _override(nodes: dict[str, Any], override: str) -> None:
    """Lay `node.param=value` or `node.workers.count=2` over the document; the value is YAML."""
    target, equals, value = override.partition("=")
    node, _, rest = target.partition(".")
    if not equals or not rest:
        raise SluiceError(f"--set {override!r}: write it as node.param=value, such as pool.side=256")
    if node not in nodes:
        raise SluiceError(f"--set {override!r}: no node {node!r}{did_you_mean(node, nodes)}")
    parsed = _yaml_value(value, override)
    body = nodes[node]
    if rest.startswith("workers."):
        body["workers"] = {**(body.get("workers") or {}), rest.removeprefix("workers."): parsed}
        return
    steps = [step if isinstance(step, dict) else {step: {}} for step in body.get("steps") or []]
    body["steps"] = steps
    owners = [step for step in steps for path in step if rest in import_stage(path, node).model_fields]
    if not owners:
        known = [name for step in steps for path in step for name in import_stage(path, node).model_fields]
        raise SluiceError(f"--set {override!r}: {node} has no parameter {rest!r}{did_you_mean(rest, known)}")
    for step in owners:
        path = next(iter(step))
        step[path] = {**(step[path] or {}), rest: parsed}


def _yaml_value(value: str, override: str) -> Any:
    try:
        return yaml.load(value, Loader=_Loader)  # noqa: S506 - a SafeLoader
    except yaml.YAMLError:
        raise SluiceError(f"--set {override!r}: {value!r} is no YAML value; quote it") from None
