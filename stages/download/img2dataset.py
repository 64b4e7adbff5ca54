"""The same contract with the img2dataset library as the worker, for teams that have its settings.

stages.download.Img2Dataset: {image_size: 256, resize_mode: center_crop, encode_quality: 95, retries: 1}
"""

from collections.abc import Callable, Sequence
from typing import Annotated, ClassVar, Literal

import pyarrow as pa
from pydantic import Field, field_validator

from pipeline.errors import SluiceError
from pipeline.stage import Column, Device, Effort, PoolPart, PoolStage
from stages.download.addresses import Guard
from stages.download.download import Download
from stages.download.statuses import RETRYABLE

Interpolation = Literal["nearest", "linear", "cubic", "area", "lanczos"]


class Img2Dataset(PoolStage):
    """Fetch and resize with img2dataset (`pip install img2dataset`); rows, tar, statuses and columns are `Download`'s.

    A URL that must not be fetched is never given to it, and every address that it connects to, redirects included, is
    checked by the same guard. What it made is decoded once more in a confined process, which also takes the perceptual
    hash. `format`, `frames`, `final_url` and `content_type` stay null: it does not tell. What `Download` has beyond it
    is missing: robots.txt, rates per host, limits on bodies, upright pictures, digests that the input brings along
    (`expect_sha256`); and it decodes hostile images in its own process, which has the memory and the time of one part,
    and neither secrets nor our environment.
    """

    promise = "observed"
    retryable: ClassVar[frozenset[str]] = RETRYABLE
    remembered: ClassVar[frozenset[str]] = Download.remembered
    adds: ClassVar[pa.Schema] = Download.adds

    image_size: Annotated[int, Field(ge=1, le=16_384)] = 256
    resize_mode: Literal["no", "border", "keep_ratio", "keep_ratio_largest", "center_crop"] = "border"
    resize_only_if_bigger: bool = False
    upscale_interpolation: Interpolation = "lanczos"
    downscale_interpolation: Interpolation = "area"
    encode_quality: Annotated[int, Field(ge=0, le=100)] = 95
    encode_format: Literal["jpg", "png", "webp"] = "jpg"
    skip_reencode: bool = False
    disable_all_reencoding: bool = False
    thread_count: Annotated[int, Effort, Field(ge=1, le=1024)] = 64
    timeout: Annotated[int, Effort, Field(ge=1)] = 10
    """Seconds without a byte."""
    retries: Annotated[int, Effort, Field(ge=0, le=10)] = 0
    extract_exif: bool = True
    user_agent_token: str | None = None
    disallowed_header_directives: tuple[str, ...] = ("noai", "noimageai", "noindex", "noimageindex")
    part_timeout_s: Annotated[float, Effort, Field(gt=0)] = 3600.0
    """Seconds for a part; then img2dataset is killed, and rows that it had not written end as `timeout`."""
    memory_mb: Annotated[int, Effort, Field(ge=1024)] = 8192
    """Megabytes (2^20 bytes) of address space of its process."""
    allow_private_hosts: tuple[str, ...] = ()
    """host:port pairs, such as `127.0.0.1:8000`, that may be reached although private or on another port."""

    @field_validator("allow_private_hosts")
    @classmethod
    def _are_hosts(cls, entries: tuple[str, ...]) -> tuple[str, ...]:
        Guard(entries)
        return entries

    def check(self, inputs: Sequence[Column]) -> None:
        """Raise `SluiceError` where `url` is no text, or a PNG is to have a quality that only a JPEG can have."""
        for column in inputs:
            if column.name == "url" and column.type not in (pa.string(), pa.large_string()):
                raise SluiceError(f"{column.node}.url has type {column.type}; {self.path()} expects string")
        if self.encode_format == "png" and self.encode_quality > 9:
            raise SluiceError(
                f"encode_quality is {self.encode_quality}; img2dataset takes it for a PNG's compression, from 0 to 9: "
                "set encode_quality: 9"
            )

    def open(self, device: Device) -> Callable[[PoolPart], pa.Table]:
        """Raises `SluiceError` where img2dataset is not installed."""
        from stages.download.img2dataset_parts import Img2DatasetWorker

        return Img2DatasetWorker(self, device.threads)
