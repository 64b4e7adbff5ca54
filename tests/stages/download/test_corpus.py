"""1,265 malformed images from the fuzz corpora of Pillow, image-rs and go-fuzz: through decoders, and as responses."""

import json
from collections import Counter
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from infra.miniweb import Scripted
from stages.download.decode import MEMORY_BYTES, READERS, DecodeError, sniff
from stages.download.decoders import Decoded, DecoderPool
from stages.download.statuses import IN_DECODING, SUCCESS
from tests.stages.download.conftest import opened
from tests.stages.download.decoding import options
from tests.stages.download.doubles import part_of
from tests.stages.download.test_decoders import peak_bytes

Row = tuple[dict[str, Any], bytes]


@pytest.fixture(scope="module")
def corpus(shared_data: Path) -> list[Row]:
    """What a manifest says of a file, and its bytes."""
    folder = shared_data / "malformed"
    rows = [json.loads(line) for line in (folder / "manifest.jsonl").read_text().splitlines()]
    assert len(rows) == 1265
    return [(row, (folder / row["file"]).read_bytes()) for row in rows]


def decoded(corpus: list[Row], **changes: Any) -> list[Decoded]:
    with closing(DecoderPool(options(**changes), timeout_s=15.0, count=2)) as pool:
        pool.wait_ready()
        pids = pool.pids()
        ended = [future.result(120) for future in [pool.submit(data) for _, data in corpus]]
        assert pool.pids() == pids  # none crashed, hung or lied
        assert max(map(peak_bytes, pids)) < MEMORY_BYTES
    statuses = Counter(one.status for one in ended)
    assert set(statuses) <= IN_DECODING | {SUCCESS}
    assert statuses["decoder_crash"] == statuses["decode_timeout"] == statuses["oom"] == 0, statuses
    return ended


def test_every_malformed_file_ends_with_one_known_status(corpus: list[Row]) -> None:
    readable = [
        one.status
        for (row, data), one in zip(corpus, decoded(corpus), strict=True)
        if row["pillow"]["outcome"] == "ok" and _ours(data)
    ]
    assert len(readable) > 100
    assert readable.count("success") >= 0.95 * len(readable), Counter(readable)


def test_what_is_passed_through_was_found_whole_by_full_decoding_too(corpus: list[Row]) -> None:
    """A JPEG that is only proved at 1/8 ends as it does at full scale, and so does everything else."""
    kept = decoded(corpus, resize="no", passthrough=True)
    full = decoded(corpus, resize="no")
    assert [one.status for one in kept] == [one.status for one in full]
    same = [one for one, (_, data) in zip(kept, corpus, strict=True) if one.image == data]
    assert len(same) > 100


def test_as_responses_of_a_hostile_host_they_end_with_one_status_each(corpus: list[Row], server: Scripted) -> None:
    urls: list[str | None] = [server.serve(f"/malformed/{place}", data) for place, (_, data) in enumerate(corpus)]
    worker = opened(server, max_mb=20)
    pids = worker.decoder_pids()
    statuses = worker(part_of(urls)).column("status").to_pylist()
    assert worker.decoder_pids() == pids
    assert max(map(peak_bytes, pids)) < MEMORY_BYTES
    worker.close()
    assert all(server.hits[f"/malformed/{place}"] == 1 for place in range(len(corpus)))
    assert len(statuses) == 1265
    assert set(statuses) <= IN_DECODING | {SUCCESS, "empty"}


def _ours(data: bytes) -> bool:
    try:
        return sniff(data) in READERS
    except DecodeError:
        return False
