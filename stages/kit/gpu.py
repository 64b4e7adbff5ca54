"""FAISS on the GPU that a worker was given: Ray shows every worker its own GPUs, so that the first one is always its.

A worker without `gpus` computes on its CPUs, also where the machine has a GPU: that one is another worker's.
"""

from functools import cache
from typing import Any

import numpy as np
import numpy.typing as npt

from pipeline.errors import SluiceError
from pipeline.stage import Device

MOST = 2048
"""Neighbours that a search on a GPU gives at most."""

Vectors = npt.NDArray[np.float32]


def placed(index: Any, device: Device) -> Any:
    """The index on the worker's GPU, or as it is on a CPU.

    Raises `SluiceError` where the worker has a GPU and FAISS sees none.
    """
    import faiss

    if device.kind != "cuda":
        return index
    if not getattr(faiss, "get_num_gpus", int)():
        raise SluiceError(
            f"this worker has a GPU, but FAISS {faiss.__version__} sees none; install faiss-gpu in the place of "
            "faiss-cpu, or leave `gpus` out of the node's workers"
        )
    return faiss.index_cpu_to_gpu(_resources(), 0, index)


def fetched(index: Any, device: Device) -> Any:
    """The index back from the GPU, fit to be written."""
    import faiss

    return faiss.index_gpu_to_cpu(index) if device.kind == "cuda" else index


@cache
def _resources() -> Any:
    """One for the process: each holds a part of the GPU's memory."""
    import faiss

    return faiss.StandardGpuResources()


def within(
    index: Any, base_nd: Vectors, asked_nd: Vectors, cosine: float, few: int
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """All pairs (row of `asked_nd`, row of `base_nd`) of at least this cosine, from an index of `base_nd` on a GPU.

    GPUs have no search by radius: the `few` nearest are searched, and the rows that have as many so near are compared
    with everything, so that a GPU finds what a CPU finds.
    """
    few = min(few, len(base_nd), MOST)
    near_nf, columns_nf = index.search(asked_nd, few)
    close_nf = (near_nf >= cosine) & (columns_nf >= 0)
    full_n = close_nf[:, -1].copy() if few < len(base_nd) else np.zeros(len(asked_nd), dtype=bool)
    close_nf[full_n] = False
    rows, places = np.nonzero(close_nf)
    full = np.flatnonzero(full_n)
    crowded, columns = np.nonzero(asked_nd[full] @ base_nd.T >= cosine)
    return np.concatenate([rows, full[crowded]]), np.concatenate([columns_nf[rows, places], columns]).astype(np.int64)
