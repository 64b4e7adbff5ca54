"""A selection in the formats of others: DataComp, clip-retrieval, the Hugging Face hub, Croissant.

    from pipeline.export import export
    export("runs/demo", "kept", "datacomp", "exports/demo")

A file per format; `selection.py` reads what is exported, `target.py` writes it. Nothing is held in memory but batches,
pixels are copied only where they are asked for, and the same run gives the same bytes again.
"""

from pipeline.export.export import FORMATS, Exported, export

__all__ = ["FORMATS", "Exported", "export"]
