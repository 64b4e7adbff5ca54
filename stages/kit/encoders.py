"""Dual encoders as stages name them: their width before work starts, and the model itself, once per worker."""

from __future__ import annotations

import re
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import fsspec

from pipeline.errors import SluiceError
from pipeline.stage import NodeRef
from pipeline.weights import from_hub, weight_files

if TYPE_CHECKING:
    from models.towers.dual_encoder import DualEncoder

Dtype = Literal["float32", "float16", "bfloat16"]
DTYPES: dict[str, Dtype] = {"cpu": "float32", "cuda": "float16"}
"""By device class, where no dtype is asked for. Half precision is slower on CPUs without instructions for it: 3 times
in bfloat16, 9 times in float16 on an AVX-512 Xeon; on GPUs float16 keeps eight times finer steps than bfloat16."""
TOKEN = re.compile(r".*-[0-9a-f]{8}\.(.+)")
"""How an attempt names its files: part, random token, then the name that it was given."""


def width_of(weights: str | NodeRef, width: int | None) -> int:
    """The width of a model's embeddings: as given, else from its config.

    Raises `SluiceError` where neither says so.
    """
    if width is not None:
        return width
    if isinstance(weights, NodeRef):
        raise SluiceError(f"weights: node {weights.node!r} has not trained yet; say how wide its embeddings are: width")
    files = weight_files(weights, "weights")
    if files is None:
        return _width_in_hub(weights)
    return _width_in(Path(files[0]).parent) if "://" not in files[0] else _width_elsewhere(weights)


@lru_cache
def _width_in_hub(weights: str) -> int:
    return _width_in(from_hub(weights, "weights", ("config.json",)))


@lru_cache
def _width_elsewhere(weights: str) -> int:
    with model_folder(weights, ("config.json",)) as folder:
        return _width_in(folder)


def _width_in(folder: Path) -> int:
    from models.towers.dual_encoder import embedding_width  # torch: seconds, paid only by DAGs with models

    try:
        return embedding_width(folder)
    except (OSError, ValueError) as error:
        raise SluiceError(f"weights: {error}") from None


@contextmanager
def model_folder(weights: str | NodeRef, names: tuple[str, ...] = ()) -> Iterator[Path]:
    """A folder on this machine with the files of a model, or with those of the given names.

    Raises `SluiceError` where there is none.
    """
    files = list(weights.files) if isinstance(weights, NodeRef) else weight_files(weights, "weights")
    if files is None:
        yield from_hub(str(weights), "weights")
    elif not isinstance(weights, NodeRef) and "://" not in files[0]:
        yield Path(files[0]).parent
    else:
        with fetched(files, "sluice-model-", names) as folder:
            yield folder


@contextmanager
def fetched(files: Sequence[str], prefix: str, names: tuple[str, ...] = ()) -> Iterator[Path]:
    """A folder on this machine with the files at these addresses, called as the model's author called them; all, or
    those of the given names. A single `org/name@commit` is a model of the hub. Raises `SluiceError` for several models.
    """
    if len(files) == 1 and "@" in files[0] and "/" not in files[0].partition("@")[2]:
        yield from_hub(files[0], "weights")
        return
    with tempfile.TemporaryDirectory(prefix=prefix) as folder:
        for file in files:
            base = file.rpartition("/")[2]
            found = TOKEN.fullmatch(base)
            name = found[1] if found else base
            if not names or name in names:
                if Path(folder, name).exists():
                    raise SluiceError(
                        f"weights: that node trained several models, each with a {name}; "
                        "name one, as {node: …, part: model-0}"
                    )
                fs, path = fsspec.core.url_to_fs(file)
                fs.get_file(path, f"{folder}/{name}")
        yield Path(folder)


def encoder(weights: str | NodeRef, dtype: Dtype | None, device: str, width: int) -> DualEncoder:
    """The model on `cpu` or `cuda`; the stages of a worker that name the same share it.

    Raises `SluiceError` for what is no dual encoder, or one of another width.
    """
    found = _loaded(weights, dtype or DTYPES[device], device)
    if found.width != width:
        shown = f"node {weights.node!r}" if isinstance(weights, NodeRef) else repr(weights)
        raise SluiceError(f"width = {width}: the embeddings of {shown} have {found.width}; say that, or nothing")
    return found


@lru_cache(maxsize=2)
def _loaded(weights: str | NodeRef, dtype: Dtype, device: str) -> DualEncoder:
    from models.towers.dual_encoder import DualEncoder

    with model_folder(weights) as folder:
        try:
            return DualEncoder.load(folder, device, dtype)
        except (OSError, ValueError) as error:
            raise SluiceError(f"weights: {error}") from None
