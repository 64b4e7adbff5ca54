"""What would run, and why: per node and part reuse, resume or run, without Ray and without a write."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from pipeline.dag import Dag
from pipeline.identity import Resources
from pipeline.node import NodeWork, Prepared, Unfinished, prepare
from pipeline.records import Generation, Record
from pipeline.store import Store
from pipeline.takedown.tombstones import TAKEN_DOWN

State = Literal["reuse", "resume", "run", "wait"]


@dataclass(frozen=True)
class NodePlan:
    """What a run would do with one node.

    `reuse`: everything is committed. `resume`: some of it. `run`: nothing. `wait`: it depends on what runs before it.
    """

    name: str
    state: State
    reasons: list[str] = field(default_factory=list)
    parts: list[tuple[str, bool]] = field(default_factory=list)
    """(part, whether it is committed), as far as it is known."""
    generation: Generation | None = None
    """The sealed generation that serves as it is."""
    records: list[Record] | None = None
    """Committed records that only lack their seal."""
    prepared: Prepared | None = None
    previous: Generation | None = None


def survey(dag: Dag, store: Store, retry: Collection[str] = ()) -> dict[str, NodePlan]:
    """The plan of every node, in order."""
    plans: dict[str, NodePlan] = {}
    generations: dict[str, Generation] = {}
    for name, node in dag.nodes.items():
        waits_for = [other for other in sorted(node.depends_on) if plans[other].state != "reuse"]
        newest = store.newest(name)
        if waits_for:
            plans[name] = NodePlan(name, "wait", [f"waits for {', '.join(waits_for)}"], previous=newest)
            continue
        prepared = prepare(dag, name, store, generations)
        plans[name] = plan_node(prepared, store, newest, name in retry)
        generation = plans[name].generation or _unsealed(plans[name], prepared)
        if generation is not None:
            generations[name] = generation
    return plans


def plan_node(prepared: Prepared, store: Store, newest: Generation | None, retry: bool) -> NodePlan:
    """One node's plan; its inputs are known."""
    name = prepared.node.name
    key = prepared.key
    if newest is not None and newest.key == key and not retry:
        parts = [(record.part, True) for record in newest.records]
        return NodePlan(name, "reuse", ["nothing changed"], parts, generation=newest, prepared=prepared)
    reasons = ["its failed rows are tried again"] if retry else why(prepared, newest)
    previous = last_alike(prepared, store, newest)
    work = NodeWork(prepared, store, previous, None, retry)
    try:
        records = work.assemble()
    except Unfinished as unfinished:
        parts = work.done + unfinished.parts
        state: State = "resume" if any(done for _, done in parts) else "run"
        return NodePlan(name, state, reasons, parts, prepared=prepared, previous=previous)
    return NodePlan(name, "reuse", [*reasons, "but done before"], work.done, None, records, prepared, previous)


def last_alike(prepared: Prepared, store: Store, newest: Generation | None) -> Generation | None:
    """The newest generation of the same work, with its retries and repairs; else the newest of the same identity."""
    if newest is None:
        return None
    alike: Generation | None = None
    key = prepared.key
    for number in reversed(store.generation_numbers(newest.node)):
        generation = newest if number == newest.number else store.generation(newest.node, number)
        if generation is not None and generation.identity == prepared.identity:
            if generation.key == key:
                return generation
            alike = alike or generation
    return alike


def _unsealed(plan: NodePlan, prepared: Prepared) -> Generation | None:
    if plan.records is None:
        return None
    inputs = {name: generation.content_hash for name, generation in prepared.inputs.items()}
    return Generation(
        node=plan.name,
        number=0,
        key=prepared.key,
        identity=prepared.identity,
        resources=prepared.resources,
        inputs=inputs,
        records=tuple(plan.records),
    )


def why(prepared: Prepared, newest: Generation | None) -> list[str]:
    """What differs from the newest generation, in words."""
    if newest is None:
        return ["never run"]
    before, after = newest.identity, prepared.identity
    reasons = ["a takedown erased what it had made"] if newest.key == TAKEN_DOWN else []
    reasons += steps_differ(before["steps"], after["steps"])
    if before.get("seed") != after.get("seed"):
        reasons.append(f"seed: {before.get('seed')} → {after.get('seed')}")
    reasons += resources_differ(newest.resources, prepared.resources)
    for name, generation in prepared.inputs.items():
        if newest.inputs.get(name) != generation.content_hash:
            reasons.append(f"input {name} changed")
    if not reasons and not prepared.references:
        reasons = ["bytes of its inputs changed, as by a takedown or a repair"]  # beside what their content covers
    return reasons or ["a node that it refers to changed"]


def steps_differ(before: list[Mapping[str, Any]], after: list[Mapping[str, Any]]) -> list[str]:
    """What two nodes do differently: steps, revisions, parameters."""
    if [step["stage"] for step in before] != [step["stage"] for step in after]:
        names = [" + ".join(step["stage"].rpartition(".")[2] for step in steps) for steps in (before, after)]
        return [f"steps: {names[0]} → {names[1]}"]
    reasons = []
    for old, new in zip(before, after, strict=True):
        short = new["stage"].rpartition(".")[2]
        if old["revision"] != new["revision"]:
            reasons.append(f"{short} revision: {old['revision']} → {new['revision']}")
        for name in sorted({*old["parameters"], *new["parameters"]}):
            was, now = old["parameters"].get(name), new["parameters"].get(name)
            if was != now:
                reasons.append(f"{name}: {_difference(was, now)}")
    return reasons


def _difference(was: Any, now: Any) -> str:
    """The two values, or only the entries that differ where both are lists."""
    if isinstance(was, list) and isinstance(now, list):
        gone, new = [v for v in was if v not in now], [v for v in now if v not in was]
        if not gone and not new:
            return "another order"
        was, now = (gone[0] if len(gone) == 1 else gone), (new[0] if len(new) == 1 else new)
    return f"{_short(was)} → {_short(now)}"


def _short(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False) if not isinstance(value, str) else value
    return text if len(text) <= 90 else text[:87] + "…"


def resources_differ(before: Resources, after: Resources) -> list[str]:
    """Which files outside changed, came or went."""
    reasons = []
    for name in sorted({*before, *after}):
        was, now = before.get(name, []), after.get(name, [])
        old, new = {digest for _, digest in was}, {digest for _, digest in now}
        changed = [path for path, digest in now if digest not in old]
        gone = [path for path, digest in was if digest not in new and path not in {p for p, _ in now}]
        reasons += [f"{name}: {path} {'changed' if path in {p for p, _ in was} else 'is new'}" for path in changed[:3]]
        reasons += [f"{name}: {path} is gone" for path in gone[:3]]
        if not changed and not gone and [d for _, d in was] != [d for _, d in now]:
            reasons.append(f"{name}: another order")
        if len(changed) + len(gone) > 6:
            reasons.append(f"{name}: and more")
    return reasons
