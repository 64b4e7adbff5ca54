"""A part through img2dataset: what it is asked for, and what its files say, row for row in our words."""

import importlib.util
import json
import math
import os
import re
import secrets
import subprocess
import sys
import tarfile
import tempfile
import weakref
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.errors import SluiceError
from pipeline.stage import PoolPart
from stages.download.addresses import Guard, redact_all
from stages.download.decode import Options
from stages.download.decoders import INHERITED, DecoderPool
from stages.download.outcomes import Outcome, write_pool
from stages.download.statuses import RETRYABLE, SUCCESS, FetchError, is_status

if TYPE_CHECKING:
    from stages.download.img2dataset import Img2Dataset

RESIZER = (
    "image_size", "resize_mode", "resize_only_if_bigger", "upscale_interpolation", "downscale_interpolation",
    "encode_quality", "encode_format", "skip_reencode", "disable_all_reencoding",
)  # fmt: skip
DOWNLOADER = (
    "thread_count", "extract_exif", "timeout", "encode_format", "retries", "user_agent_token",
    "disallowed_header_directives",
)  # fmt: skip
FACTS = ("width", "height", "original_width", "original_height", "exif", "sha256")
DECODE_TIMEOUT_S = 15.0
MAX_PIXELS = 50_000_000

REFUSED = f"refused by sluice {secrets.token_hex(16)}: "
"""What begins a message of our guard's among img2dataset's; no host can know it, and say it in a status line."""
WORDS = (
    (re.compile(r"^HTTP Error 30\d: .* - Redirection to url '.*' is not allowed$", re.DOTALL), "blocked_scheme"),
    (re.compile(r"^HTTP Error 30\d: The HTTP server returned a redirect error that would lead"), "too_many_redirects"),
    (re.compile(r"^HTTP Error (\d{3})\b"), r"http_\1"),  # the rest of it is the host's own words
    (re.compile(rf"^(?:<urlopen error )?{REFUSED}([a-z_]+): "), r"\1"),
    (re.compile(r"unknown url type"), "blocked_scheme"),
    (re.compile(r"X-Robots-Tag"), "opted_out"),
    (re.compile(r"timed out"), "timeout"),
    (re.compile(r"name resolution|Name or service not known|No address associated|nodename nor"), "dns_error"),
    (re.compile(r"SSL|CERTIFICATE"), "tls_error"),
    (re.compile(r"IncompleteRead"), "truncated_body"),
    (re.compile(r"buf\.empty\(\)"), "empty"),
    (re.compile(r"image area too large"), "too_many_pixels"),
    (re.compile(r"memory", re.IGNORECASE), "oom"),
)
"""What is in img2dataset's messages -> our status."""


class Img2DatasetWorker:
    """Turns parts of URLs into parts of a pool; a process of img2dataset for each, and confined decoders between."""

    def __init__(self, stage: "Img2Dataset", threads: int) -> None:
        if importlib.util.find_spec("img2dataset") is None:
            raise SluiceError("stages.download.Img2Dataset needs that library; `pip install img2dataset==1.47.0`")
        self._stage = stage
        self._guard = Guard(stage.allow_private_hosts)
        self._decoders = DecoderPool(_as_it_is(), DECODE_TIMEOUT_S, max(1, threads))
        self.close = weakref.finalize(self, self._decoders.close)
        try:
            self._decoders.wait_ready()
        except BaseException:
            self.close()
            raise

    def __call__(self, part: PoolPart) -> pa.Table:
        urls = part.image.column("url").to_pylist()
        before = [None] * len(urls) if part.before is None else part.before.column("sha256").to_pylist()
        outcomes: list[Outcome | None] = [self._refused(url) for url in urls]
        asked = [row for row, outcome in enumerate(outcomes) if outcome is None]
        with tempfile.TemporaryDirectory(prefix="sluice-img2dataset-") as name:
            folder = Path(name)
            why = self._run(folder, [str(self._guard.check_url(urls[row])) for row in asked]) if asked else None
            with Shard(folder, len(asked)) as shard:
                places = {row: place for place, row in enumerate(asked)}
                ended = (
                    outcome or self._outcome(shard, places[row], why or MISSING, before[row])
                    for row, outcome in enumerate(outcomes)
                )
                return write_pool(part, ended, self._stage.adds)

    def _refused(self, url: str | None) -> Outcome | None:
        try:
            self._guard.check_url(url)
        except FetchError as refusal:
            return _failed(refusal.status, refusal.message)
        return None

    def _run(self, folder: Path, urls: list[str]) -> tuple[str, str] | None:
        """How rows end that it did not write; None where it came to its end."""
        stage = self._stage
        request: dict[str, Any] = {
            "memory_mb": stage.memory_mb,
            "allow": stage.allow_private_hosts,
            "refused": REFUSED,
            "resizer": {name: getattr(stage, name) for name in RESIZER},
            "downloader": {name: getattr(stage, name) for name in DOWNLOADER},
        }
        request["downloader"]["disallowed_header_directives"] = stage.disallowed_header_directives or None
        request["downloader"]["number_sample_per_shard"] = max(10, len(urls))
        (folder / "request.json").write_text(json.dumps(request))
        table = pa.table({"url": urls})
        with pa.ipc.new_file(str(folder / "urls.arrow"), table.schema) as file:
            file.write_table(table)
        command = [sys.executable, "-m", "stages.download.img2dataset_run", str(folder)]
        with (folder / "said").open("wb") as said:
            process = subprocess.Popen(  # noqa: S603 - our own program, no shell
                command, stdin=subprocess.PIPE, stdout=said, stderr=said, cwd=folder, env=_environment()
            )
            try:
                code = process.wait(stage.part_timeout_s)
            except subprocess.TimeoutExpired:
                return "timeout", f"img2dataset had not come to it within part_timeout_s = {stage.part_timeout_s:g}"
            finally:
                process.kill()
                process.wait()
                assert process.stdin is not None
                process.stdin.close()
        if code > 0:
            words = (folder / "said").read_text(errors="replace").strip().splitlines() or ["without a word"]
            raise SluiceError(f"img2dataset ended with exit code {code}: {redact_all(words[-1])}")
        return ("decoder_crash", f"img2dataset was ended by signal {-code}") if code else None

    def _outcome(self, shard: "Shard", place: int, missing: tuple[str, str], seen: str | None) -> Outcome:
        """`seen` is the SHA-256 under which the pool has had the row, in hex."""
        row = shard.rows.get(place)
        if row is None:
            return _failed(*missing, seen)
        if row["status"] != SUCCESS:
            return _failed(*in_our_words(row["error_message"] or ""), seen)
        if seen is not None and row["sha256"] != seen:
            return _failed("hash_mismatch", f"first seen as sha256 {seen}, now it is {row['sha256']}")
        facts = {name: row.get(name) for name in FACTS}
        image = shard.image(place)
        decoded = self._decoders.decode(image)
        facts |= {"status": decoded.status, "error_message": decoded.message, "fetched_at": datetime.now(UTC)}
        if decoded.status != SUCCESS:
            return Outcome(facts | {"width": None, "height": None})
        for name in ("width", "height", "original_width", "original_height"):
            if facts[name] is None:  # it does not look at what it does not encode
                facts[name] = decoded.facts[name]
        if decoded.image is not image:
            facts |= {name: decoded.facts[name] for name in ("width", "height")}
        facts |= {"phash": decoded.facts["phash"], "stored_sha256": decoded.stored_sha256}
        return Outcome(facts, decoded.image, decoded.ending)


MISSING = ("decode_error", "img2dataset wrote no row")


@dataclass(frozen=True)
class Member:
    offset: int
    size: int


class Shard:
    """What img2dataset wrote, also where it was killed: `rows` by the place that a URL had in what was asked for.

    Successes are in the tar, image and JSON, as far as it goes; failures are in a Parquet file that is whole or absent.
    """

    def __init__(self, folder: Path, count: int) -> None:
        self._tar = (folder / "00000.tar").open("rb") if (folder / "00000.tar").exists() else None
        self._images: dict[int, Member] = {}
        self.rows: dict[int, Mapping[str, Any]] = {}
        digits = math.ceil(math.log10(max(10, count)))  # the key is the shard's number and then the row's
        for row in _whole_rows(folder / "00000.parquet"):
            self.rows[int(row["key"][-digits:])] = row
        for name, member in self._members():
            key, _, ending = name.partition(".")
            if ending == "json":
                self.rows[int(key[-digits:])] = json.loads(self._read(member))
            else:
                self._images[int(key[-digits:])] = member
        # A sample's JSON lies before a PNG or a WebP: cut between the two, the sample is none.
        self.rows = {
            place: row for place, row in self.rows.items() if row["status"] != SUCCESS or place in self._images
        }

    def __enter__(self) -> "Shard":
        return self

    def __exit__(self, *_: object) -> None:
        if self._tar is not None:
            self._tar.close()

    def image(self, place: int) -> bytes:
        return self._read(self._images[place])

    def _members(self) -> Iterator[tuple[str, Member]]:
        if self._tar is None:
            return
        size = os.fstat(self._tar.fileno()).st_size
        try:
            with tarfile.open(fileobj=self._tar, mode="r:") as tar:
                for info in tar:
                    if info.offset_data + info.size <= size:
                        yield info.name, Member(info.offset_data, info.size)
        except tarfile.ReadError:  # it ends where img2dataset was killed
            return

    def _read(self, member: Member) -> bytes:
        assert self._tar is not None
        return os.pread(self._tar.fileno(), member.size, member.offset)


def in_our_words(message: str) -> tuple[str, str]:
    """Status and message for what img2dataset says of a failure."""
    if not message:  # a MemoryError has no words
        return "oom", "img2dataset gave no reason"
    for pattern, word in WORDS:
        found = pattern.search(message)
        if found:
            status = found.expand(word)
            failed = is_status(status) and status != SUCCESS
            return (status if failed else "connection_error"), redact_all(message.replace(REFUSED, ""))
    decoding = "decoding" in message or "cv2" in message.lower() or "imdecode" in message
    return ("decode_error" if decoding else "connection_error"), redact_all(message)


def _failed(status: str, message: str, seen: str | None = None) -> Outcome:
    """A row without bytes; where it may be tried again it keeps the digest that they must have."""
    facts = {"status": status, "error_message": redact_all(message), "fetched_at": datetime.now(UTC)}
    return Outcome(facts | {"sha256": seen if status in RETRYABLE else None})


def _as_it_is() -> Options:
    return Options(resize="no", side=1, resize_only_if_bigger=True, passthrough=True, quality=95, max_pixels=MAX_PIXELS)


def _environment() -> dict[str, str]:
    """No secrets and no proxies: urllib would use them."""
    kept = {name: os.environ[name] for name in INHERITED if name in os.environ}
    return kept | {"PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}


def _whole_rows(path: Path) -> list[dict[str, Any]]:
    try:
        return list(pq.read_table(path).to_pylist())
    except (OSError, pa.ArrowInvalid):
        return []
