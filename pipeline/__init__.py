"""The engine: artifacts committed exactly once, DAGs of stages over Ray, SQL over what they leave.

from pipeline import Catalog, Dag, run

run(Dag.load("quickstart"), "runs/demo")
Catalog("runs/demo").sql("SELECT status, count(*) FROM pool GROUP BY status")
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from pipeline.errors import SluiceError

if TYPE_CHECKING:
    from pipeline.catalog import Catalog
    from pipeline.dag import Dag
    from pipeline.driver import run

__all__ = ["Catalog", "Dag", "SluiceError", "run"]


MADE_IN = {"Catalog": "pipeline.catalog", "Dag": "pipeline.dag", "run": "pipeline.driver"}


def __getattr__(name: str) -> Any:
    """Each is loaded by those who ask: a command that only reads a run waits for nothing else."""
    if name not in MADE_IN:
        raise AttributeError(f"module 'pipeline' has no attribute {name!r}")
    return getattr(import_module(MADE_IN[name]), name)
