"""What is searched for, as a vector: by the very stage and weights that made the vectors of the index."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from PIL import Image

from pipeline.catalog import Catalog
from pipeline.dag import Dag
from pipeline.errors import SluiceError
from pipeline.identity import resource_fields
from pipeline.judge import name
from pipeline.node import Prepared, prepare
from pipeline.records import Generation, Run
from pipeline.rows import RowBatch, decode
from pipeline.stage import PIXELS, Device, NodeRef, PartStage, Stage
from pipeline.store import Store

Vector = npt.NDArray[np.float32]


class Encoders:
    """The stages that wrote a column, as the DAG of a run names them.

    `node`, `column`: the embeddings that are searched.
    """

    def __init__(self, store: Store, run: Run, generations: dict[str, Generation], node: str, column: str) -> None:
        self._store, self._generations = store, generations
        self._dag = Dag.parse(run.text)
        self._node, self._column = node, column

    def of_image(self, file: str) -> Vector:
        """The vector of a picture. Raises `SluiceError` where it is none, or where the pixels alone do not make one."""
        _, stage = self._writer()
        if stage.needs() != {PIXELS}:
            others = ", ".join(sorted(stage.needs() - {PIXELS})) or "no pixels"
            raise SluiceError(
                f"--image: {type(stage).path()} made {self._node}.{self._column} from {others}, which a file does not "
                "have; search by --uid"
            )
        try:
            picture = decode(Path(file).read_bytes())
        except (OSError, ValueError, Image.DecompressionBombError) as error:
            raise SluiceError(f"--image {file}: {error}; name a JPEG, PNG, WebP or GIF") from None
        return _one(stage, RowBatch(pa.table({"uid": ["query"]}), [picture]), self._column)

    def of_text(self, text: str) -> Vector:
        """The vector of a caption. Raises `SluiceError` where no node of the run embeds captions by the same model."""
        _, writer = self._writer()
        weights = _weights(writer)
        for _, stage in self._stages():
            if stage.grain == "caption" and stage.needs() == {"caption"} and weights and _weights(stage) == weights:
                keys = {"uid": ["query"], "caption_id": ["query"], "caption": [text]}
                return _one(stage, RowBatch(pa.table(keys), None), stage.gives().names[0])
        made = f"{self._node}.{self._column} by {type(writer).path()}"
        if not weights:
            raise SluiceError(f"--text: {made}, which knows no words; search by --image or --uid")
        raise SluiceError(
            f"--text: no node of this run embeds captions with the weights that made {made}; add "
            f"stages.embed.TextEmbeddings with the same weights to the DAG and run it"
        )

    def _writer(self) -> tuple[Prepared, PartStage]:
        for prepared, stage in self._stages():
            if prepared.node.name == self._node and self._column in stage.gives().names:
                return prepared, stage
        raise SluiceError(
            f"{self._node}.{self._column} was not made image by image, so that no other picture can be; search by --uid"
        )

    def _stages(self) -> Iterator[tuple[Prepared, PartStage]]:
        """Those of the run, their weights what they were in it. Raises `SluiceError` where they have changed since."""
        for node in self._dag.nodes.values():
            if node.name not in self._generations or not any(isinstance(stage, PartStage) for stage in node.stages):
                continue
            prepared = prepare(self._dag, node.name, self._store, self._generations)
            before = self._generations[node.name].resources
            for parameter, files in prepared.resources.items():
                if [digest for _, digest in files] != [digest for _, digest in before.get(parameter, [])]:
                    raise SluiceError(
                        f"{node.name}: {parameter} has changed since this run; `sluice run` the DAG again"
                    )
            for stage in prepared.stages:
                if isinstance(stage, PartStage):
                    yield prepared, stage


def of_uid(catalog: Catalog, node: str, column: str, uid: str) -> Vector:
    """The vector that an image of the run has. Raises `SluiceError` where it has none."""
    found = catalog.sql(f"SELECT {name(column)} AS vector FROM {name(node)} WHERE uid = ?", [uid])  # noqa: S608
    if not found.num_rows:
        raise SluiceError(
            f"--uid: {node} has no image {uid!r} in run {catalog.run.id}; `sluice sql` shows those it has"
        )
    vector = found.column(0)[0].as_py()
    if vector is None:
        raise SluiceError(f"--uid: {uid} has no {column}; its image was not downloaded")
    return np.array(vector, np.float32)


def _one(stage: PartStage, batch: RowBatch, column: str) -> Vector:
    vector = stage.open(Device())(batch).column(column)[0].as_py()
    if vector is None:
        raise SluiceError(f"{type(stage).path()} gives no {column} for this")
    return np.array(vector, np.float32)


def _weights(stage: Stage) -> dict[str, Any]:
    """The models that a stage names, by parameter."""
    named = {name for name, mark in resource_fields(stage) if mark.kind == "weights"}
    named |= {name for name in type(stage).model_fields if isinstance(getattr(stage, name), NodeRef)}
    return {name: getattr(stage, name) for name in named}
