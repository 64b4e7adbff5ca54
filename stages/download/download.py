"""The stage: a part of URLs becomes a tar of upright images and a row for every URL.

stages.download.Download: {resize: keep_ratio_largest, side: 512, timeout_s: 10, max_mb: 20}
"""

from collections.abc import Callable, Sequence
from typing import Annotated, ClassVar, Literal

import pyarrow as pa
from pydantic import Field, field_validator

from pipeline.errors import SluiceError, did_you_mean
from pipeline.stage import OBSERVED, Column, Device, Effort, File, PoolPart, PoolStage
from stages.download.addresses import Guard
from stages.download.decode import Options
from stages.download.fetch import Limits
from stages.download.hosts import Hosts, Manners
from stages.download.lists import Blocked, Lists, OptOuts
from stages.download.proxy import Proxy, check_proxy
from stages.download.statuses import RETRYABLE


class Download(PoolStage):
    """Fetch every URL once, decode it in a confined process, keep it as JPEG (`statuses.py` has the ways a row ends).

    Only public addresses are reached, on ports 80 and 443, and hosts whose headers reserve their images are left alone.
    What is covered by the content hash follows from the bytes that were served; timings and wording are not covered.
    """

    revision: ClassVar[int] = 2
    promise = "observed"
    retryable: ClassVar[frozenset[str]] = RETRYABLE
    remembered: ClassVar[frozenset[str]] = frozenset({"sha256"})
    adds: ClassVar[pa.Schema] = pa.schema(
        [
            pa.field("key", pa.string()),  # the sample's name in the tar: the uid
            pa.field("status", pa.string()),
            pa.field("error_message", pa.string(), metadata=OBSERVED),
            pa.field("width", pa.int32()),  # pixels, as stored
            pa.field("height", pa.int32()),
            pa.field("original_width", pa.int32()),  # pixels, as fetched, upright
            pa.field("original_height", pa.int32()),
            pa.field("exif", pa.string(), metadata=OBSERVED),  # JSON text; worded by Pillow, so by its version
            pa.field("sha256", pa.string()),  # of the bytes as fetched
            pa.field("stored_sha256", pa.string()),  # of the image: covered, for it is what later stages look at
            pa.field("phash", pa.uint64()),  # what it looks like (perceptual_hash.py): bit_count(xor(a, b)) of 64
            pa.field("offset", pa.int64(), metadata=OBSERVED),  # bytes from the tar's begin to the image's
            pa.field("nbytes", pa.int64(), metadata=OBSERVED),  # of the image
            pa.field("format", pa.string()),  # JPEG, PNG, GIF or WEBP, as fetched
            pa.field("frames", pa.int32()),  # of an animation; frame 0 is kept
            pa.field("final_url", pa.string(), metadata=OBSERVED),  # after redirects
            pa.field("content_type", pa.string(), metadata=OBSERVED),  # what the host claimed
            pa.field("last_modified", pa.timestamp("s", "UTC"), metadata=OBSERVED),  # what the host claimed, too
            pa.field("fetched_at", pa.timestamp("ms", "UTC"), metadata=OBSERVED),
            pa.field("seconds", pa.float32(), metadata=OBSERVED),  # from the first try to the end of decoding
        ]
    )

    resize: Literal["no", "keep_ratio", "keep_ratio_largest", "center_crop", "border"] = "keep_ratio_largest"
    """As img2dataset has it. `keep_ratio`: the shorter side becomes `side`; `center_crop`: and the middle square is cut
    out; `keep_ratio_largest`: the longer side becomes `side`; `border`: and white makes it a square; `no`: as it is."""
    side: Annotated[int, Field(ge=16, le=16_384)] = 512
    """Pixels."""
    resize_only_if_bigger: bool = True
    """Leave alone, uncut and without a border, whatever would be enlarged."""
    passthrough: bool = False
    """Store the bytes as they were fetched where nothing needs to be done to the picture: JPEG, PNG and WebP, under
    their own ending, decoded once and found whole. What a file carries beside its picture (EXIF, profiles, comments,
    an archive behind its end) is stored with it. All others are still made JPEGs: those that are resized, turned by
    EXIF, transparent, animated, CMYK or of 16 bits, and GIFs."""
    quality: Annotated[int, Field(ge=1, le=100)] = 95
    """JPEG quality of what is stored, 4:2:0."""
    timeout_s: Annotated[float, Effort, Field(gt=0)] = 10.0
    """Seconds for one try, from DNS to the last byte, redirects included."""
    decode_timeout_s: Annotated[float, Effort, Field(gt=0)] = 15.0
    """Seconds of wall time for decoding one image; it has 10 s of CPU time as well. Rows that it ends can be retried
    with more (`decode_timeout` is retryable): like `timeout_s` it is no part of what the stage is."""
    max_mb: Annotated[float, Field(gt=0, le=1000)] = 20.0
    """Megabytes (10^6 bytes) of one body, decompressed."""
    max_pixels: Annotated[int, Field(gt=0, le=1_000_000_000)] = 50_000_000
    """Pixels of one image, checked before it is decoded."""
    concurrency: Annotated[int, Effort, Field(ge=1, le=4096)] = 64
    """Rows in flight per worker."""
    tries: Annotated[int, Effort, Field(ge=1, le=10)] = 3
    """Tries of one row at most; retries.py has how many each kind of failure is worth."""
    per_host: Annotated[int, Effort, Field(ge=1, le=4096)] = 16
    """Requests to one host that are under way at once, in the whole run, whatever the number of workers."""
    per_host_rate: Annotated[float | None, Effort, Field(gt=0)] = None
    """Requests to one host that begin per second, in the whole run."""
    wait_s: Annotated[float, Effort, Field(gt=0)] = 1800.0
    """Seconds that a row waits for its host's turn in all, while this worker has time for it; then `host_busy`."""
    robots: bool = True
    """Obey the hosts' robots.txt (RFC 9309), and its Crawl-delay up to 30 s."""
    opt_out: File | None = None
    """A text file of domains (with their subdomains) and URLs that are never asked for; lists.py has its form."""
    blocked_hashes: File | None = None
    """A text file of SHA-256 digests and perceptual hashes of images that are never kept; lists.py has its form."""
    expect_sha256: str | None = None
    """The input's column with the SHA-256 (hex) under which an image was first seen; null: it was not."""
    proxy: Annotated[str | None, Effort] = None
    """An egress proxy, such as `http://${PROXY_USER}:${PROXY_WORD}@proxy.internal:3128`; proxy.py has what it means."""
    user_agent: str = "sluice/0.1 (image dataset curation)"
    """Who we say we are; its first word is the agent that X-Robots-Tag may name."""
    allow_private_hosts: tuple[str, ...] = ()
    """host:port pairs, such as `127.0.0.1:8000`, that may be reached although private or on another port."""

    @field_validator("allow_private_hosts", mode="before")
    @classmethod
    def _are_a_list(cls, entries: object) -> object:
        if not isinstance(entries, list | tuple):
            raise SluiceError(f"allow_private_hosts is {entries!r}; expected a list of host:port: ['127.0.0.1:8000']")
        return entries

    @field_validator("allow_private_hosts")
    @classmethod
    def _are_hosts(cls, entries: tuple[str, ...]) -> tuple[str, ...]:
        Guard(entries)
        return entries

    @field_validator("proxy")
    @classmethod
    def _is_a_proxy(cls, proxy: str | None) -> str | None:
        if proxy is not None:
            check_proxy(proxy)
        return proxy

    @field_validator("user_agent")
    @classmethod
    def _is_a_header(cls, agent: str) -> str:
        if not agent.partition("/")[0].strip() or not (agent.isascii() and agent.isprintable()):
            raise SluiceError(f"user_agent is {agent!r}; expected ASCII text, such as 'sluice/0.1 (me@example.org)'")
        return agent

    def check(self, inputs: Sequence[Column]) -> None:
        """Raise `SluiceError` for columns that are missing or no text, and for lists that cannot be read."""
        for name in ("url", self.expect_sha256):
            for column in inputs:
                if column.name == name and column.type not in (pa.string(), pa.large_string()):
                    raise SluiceError(
                        f"{column.node}.{name} has type {column.type}; stages.download.Download expects string"
                    )
        names = [column.name for column in inputs if column.grain == "image"]
        if self.expect_sha256 is not None and self.expect_sha256 not in names:
            raise SluiceError(
                f"expect_sha256: no input has a column {self.expect_sha256!r}{did_you_mean(self.expect_sha256, names)}"
            )
        self._lists()

    def open(self, device: Device) -> Callable[[PoolPart], pa.Table]:
        """Start the fetching thread and `device.threads` decoders; raises `SluiceError` when one does not start."""
        from stages.download.worker import Worker  # yarl and TLS load where it fetches

        return Worker(
            schema=self.adds,
            limits=Limits(self.timeout_s, int(self.max_mb * 1e6), self.tries, self.user_agent),
            guard=Guard(self.allow_private_hosts),
            options=self._options(),
            decode_timeout_s=self.decode_timeout_s,
            concurrency=self.concurrency,
            threads=max(1, device.threads),
            manners=self._manners(),
            lists=self._lists(),
            expect_sha256=self.expect_sha256,
            proxy=None if self.proxy is None else Proxy.of(self.proxy),
        )

    def shared(self) -> Hosts:
        """Who asks which host, and what its robots.txt says: one for all workers of a run."""
        return self._manners().hosts()

    def _lists(self) -> Lists:
        return Lists(
            None if self.opt_out is None else OptOuts(self.opt_out),
            None if self.blocked_hashes is None else Blocked(self.blocked_hashes),
        )

    def _manners(self) -> Manners:
        return Manners(self.per_host, self.per_host_rate, self.wait_s, self.robots)

    def _options(self) -> Options:
        return Options(
            resize=self.resize,
            side=self.side,
            resize_only_if_bigger=self.resize_only_if_bigger,
            passthrough=self.passthrough,
            quality=self.quality,
            max_pixels=self.max_pixels,
        )
