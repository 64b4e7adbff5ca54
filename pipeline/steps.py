"""Who wrote a column: which step of a node, by its stage's import path; and the rules of a selection.

A node's generation says which steps it has, not which columns each of them gave: where there are several, the stages
themselves are asked what they add.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from inspect import getattr_static

from pipeline.errors import SluiceError
from pipeline.records import Generation


class Steps:
    """The steps of the nodes of a run."""

    def __init__(self, generations: Mapping[str, Generation]) -> None:
        self._paths = {
            node: [str(step["stage"]) for step in generation.identity.get("steps", [])]
            for node, generation in generations.items()
        }
        self._known: dict[tuple[str, str], tuple[dict[str, str], list[str]]] = {}

    def of(self, node: str, kind: str, column: str, columns: Sequence[str]) -> str:
        """The stage that wrote `column` of a node's table of one kind, which has these `columns`.

        Where the stages cannot say, all that may have written it, joined by +.
        """
        paths = self._paths[node]
        if len(paths) <= 1:
            return paths[0] if paths else ""
        if (node, kind) not in self._known:
            self._known[node, kind] = _owners(paths, kind)
        owners, silent = self._known[node, kind]
        return owners.get(column) or " + ".join(silent or paths)


def _owners(paths: Sequence[str], kind: str) -> tuple[dict[str, str], list[str]]:
    """Column -> stage, and the stages of this kind whose parameters decide what they add."""
    from pipeline.dag import import_stage
    from pipeline.stage import PartStage

    owners: dict[str, str] = {}
    silent: list[str] = []
    for path in paths:
        try:
            stage = import_stage(path, "")
        except SluiceError:  # it was renamed, or its package is not installed here
            silent.append(path)
            continue
        if not issubclass(stage, PartStage) or stage.grain != kind:
            continue
        if getattr_static(stage, "gives") is getattr_static(PartStage, "gives"):
            owners |= dict.fromkeys(stage.adds.names, path)
        else:
            silent.append(path)
    return owners, silent


def rules_of(generation: Generation) -> dict[str, str]:
    """Name -> SQL of a selection's rules, in order; empty where the node has none."""
    for step in generation.identity.get("steps", []):
        rules = step.get("parameters", {}).get("rules")
        if isinstance(rules, list) and all(isinstance(rule, dict) for rule in rules):
            return {str(name): str(sql) for rule in rules for name, sql in rule.items()}
    return {}
