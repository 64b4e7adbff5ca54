"""How well a caption fits its image, by a model that was trained to tell: BLIP's filter (Li et al. 2022, section 3.3).

Nothing is dropped here: `stages.select.Select` decides, per source if the rule says so:

    fits: CASE WHEN source = 'web' THEN itm_score >= 0.5 ELSE itm_score >= 0.8 END
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import TYPE_CHECKING, Annotated, ClassVar

import numpy as np
import pyarrow as pa
from pydantic import Field

from pipeline.errors import SluiceError
from pipeline.stage import PIXELS, Batch, Device, Effort, NodeRef, PartStage, Prepare, Promise, Weights
from stages.kit.encoders import DTYPES, Dtype, model_folder

if TYPE_CHECKING:
    from models.towers.matcher import Matcher


class ItmScore(PartStage):
    """Add `itm_score`, the probability that a caption is of its image, and `itc_score`, the cosine of the two.

    Null where the image was not downloaded or the caption is null. The image is looked at once for all its captions.
    """

    promise: ClassVar[Promise] = "numeric"
    grain = "caption"
    reads = frozenset({PIXELS, "caption"})
    adds = pa.schema([("itm_score", pa.float32()), ("itc_score", pa.float32())])

    weights: Weights
    """BLIP with a head for matching, as transformers' `BlipForImageTextRetrieval` loads it."""
    dtype: Dtype | None = None
    """What the model computes in; None takes float32 on CPUs and float16 on GPUs."""
    batch: Annotated[int, Effort] = Field(default=64, ge=1)
    """Pairs that the model sees at once; halved where memory runs out."""

    def prepares(self, device: Device) -> Prepare:
        return self._matcher(device).preprocessing

    def open(self, device: Device) -> Callable[[Batch], pa.Table]:
        matcher = self._matcher(device)

        def score(batch: Batch) -> pa.Table:
            images = batch.images(matcher.preprocessing)
            captions = batch.table["caption"].to_pylist()
            there = [row for row, image in enumerate(images) if image is not None and captions[row] is not None]
            uids = batch.table["uid"].to_pylist()
            firsts: dict[str, int] = {}
            image_of = [firsts.setdefault(uids[row], len(firsts)) for row in there]
            distinct = {uids[row]: images[row] for row in there}
            pictures = [image for image in distinct.values() if image is not None]
            scores_n2 = np.full((len(captions), 2), np.nan, np.float32)
            if there:
                texts = [captions[row] for row in there]
                try:
                    scores_n2[there] = matcher.scores(pictures, texts, np.array(image_of), self.batch)
                except FloatingPointError as error:
                    raise SluiceError(f"dtype: {error}") from None
            return pa.table([pa.array(column, mask=np.isnan(column)) for column in scores_n2.T], schema=self.adds)

        return score

    def _matcher(self, device: Device) -> Matcher:
        """Loaded once per worker. Raises `SluiceError` for what does not match images and texts."""
        return _loaded(self.weights, self.dtype or DTYPES[device.kind], device.kind)


@lru_cache(maxsize=1)
def _loaded(weights: str | NodeRef, dtype: Dtype, device: str) -> Matcher:
    from models.towers.matcher import Matcher

    with model_folder(weights) as folder:
        try:
            return Matcher.load(folder, device, dtype)
        except (OSError, ValueError) as error:
            raise SluiceError(f"weights: {error}") from None
