"""What is searched for, as a vector: by the very stage and weights that made the vectors of the index."""

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from PIL import Image, UnidentifiedImageError

from pipeline.catalog import Catalog
from pipeline.dag import Dag
from pipeline.errors import SluiceError
from pipeline.identity import resource_fields
from pipeline.judge import name
from pipeline.node import prepare
from pipeline.records import Generation, Run
from pipeline.rows import RowBatch, decode
from pipeline.stage import PIXELS, Device, NodeRef, PartStage, Stage
from pipeline.store import Store

Vector = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Encoders:
    """The stages of a run, to make vectors like those in `column` of `node`, which are searched."""

    store: Store
    run: Run
    generations: dict[str, Generation]
    node: str
    column: str

    def of_image(self, file: str) -> Vector:
        """The vector of a picture. Raises `SluiceError` where it is none, or where its pixels alone do not make one."""
        stage = self._writer
        if stage.needs() != {PIXELS}:
            others = ", ".join(sorted(stage.needs() - {PIXELS})) or "no pixels"
            raise SluiceError(f"--image: {self._made} from {others}, which a file does not have; search by --uid")
        expected = "name a JPEG, PNG, WebP or GIF"
        try:
            data = Path(file).read_bytes()
        except OSError as error:
            raise SluiceError(f"--image {file}: {error.strerror}; {expected}") from None
        try:
            picture = decode(data)
        except UnidentifiedImageError:
            raise SluiceError(f"--image {file}: is no picture; {expected}") from None
        except (OSError, ValueError, Image.DecompressionBombError) as error:
            raise SluiceError(f"--image {file}: {error}; {expected}") from None
        return self._vector(self.node, stage, RowBatch(pa.table({"uid": ["query"]}), [picture]), self.column)

    def of_text(self, text: str) -> Vector:
        """The vector of a caption. Raises `SluiceError` where no node of the run embeds captions by the same model."""
        weights = _weights(self._writer)
        if not weights:
            raise SluiceError(f"--text: {self._made}, which knows no words; search by --image or --uid")
        for node in self._dag.nodes.values():
            for stage in node.stages if node.name in self.generations else ():
                told = isinstance(stage, PartStage) and stage.grain == "caption" and stage.needs() == {"caption"}
                if isinstance(stage, PartStage) and told and _weights(stage) == weights:
                    keys = {"uid": ["query"], "caption_id": ["query"], "caption": [text]}
                    return self._vector(node.name, stage, RowBatch(pa.table(keys), None), stage.gives().names[0])
        raise SluiceError(
            f"--text: {self._made}, and no node of this run embeds captions with its weights; add "
            "stages.embed.TextEmbeddings to the DAG and run it"
        )

    @cached_property
    def _dag(self) -> Dag:
        return Dag.parse(self.run.text)

    @cached_property
    def _writer(self) -> PartStage:
        for stage in self._dag.nodes[self.node].stages:
            if isinstance(stage, PartStage) and self.column in stage.gives().names:
                return stage
        raise SluiceError(
            f"{self.node}.{self.column} was not made image by image, so that no other picture can be; search by --uid"
        )

    @property
    def _made(self) -> str:
        return f"{type(self._writer).path()} made {self.node}.{self.column}"

    def _vector(self, node: str, stage: PartStage, batch: RowBatch, column: str) -> Vector:
        """What the stage of a node gives, its weights being what they were in the run. Raises `SluiceError`."""
        prepared = prepare(self._dag, node, self.store, self.generations)
        before = self.generations[node].resources
        for parameter, files in prepared.resources.items():
            if [digest for _, digest in files] != [digest for _, digest in before.get(parameter, [])]:
                raise SluiceError(f"{node}: {parameter} has changed since run {self.run.id}; run its DAG again")
        filled = prepared.stages[self._dag.nodes[node].stages.index(stage)]
        assert isinstance(filled, PartStage)
        vector = filled.open(Device())(batch).column(column)[0].as_py()
        if vector is None:
            raise SluiceError(f"{type(stage).path()} gives no {column} for this; search for something else")
        return np.array(vector, np.float32)


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


def _weights(stage: Stage) -> dict[str, Any]:
    """The models that a stage names, by parameter."""
    named = {name for name, mark in resource_fields(stage) if mark.kind == "weights"}
    named |= {name for name in type(stage).model_fields if isinstance(getattr(stage, name), NodeRef)}
    return {name: getattr(stage, name) for name in named}
