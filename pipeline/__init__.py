"""The engine: artifacts committed exactly once, DAGs of stages over Ray, SQL over what they leave.

from pipeline import Catalog, Dag, run

run(Dag.load("quickstart"), "runs/demo")
Catalog("runs/demo").sql("SELECT status, count(*) FROM pool GROUP BY status")
"""

from typing import TYPE_CHECKING, Any

from pipeline.dag import Dag
from pipeline.errors import SluiceError
from pipeline.run import run

if TYPE_CHECKING:
    from pipeline.catalog import Catalog

__all__ = ["Catalog", "Dag", "SluiceError", "run"]


def __getattr__(name: str) -> Any:
    if name == "Catalog":  # DuckDB is only loaded by those who ask
        from pipeline.catalog import Catalog

        return Catalog
    raise AttributeError(f"module 'pipeline' has no attribute {name!r}")
