"""1,265 malformed images from the fuzz corpora of Pillow, image-rs and go-fuzz, through real decoders."""

import json
from collections import Counter
from contextlib import closing
from pathlib import Path

import pytest

from stages.download.decode import READERS, DecodeError, sniff
from stages.download.decoders import DecoderPool
from stages.download.statuses import IN_DECODING, SUCCESS
from tests.stages.download.decoding import options

CORPUS = Path(__file__).parents[4] / "shared" / "data" / "malformed"

pytestmark = pytest.mark.skipif(not (CORPUS / "manifest.jsonl").exists(), reason=f"{CORPUS} is not here")


def test_every_malformed_file_ends_with_one_known_status() -> None:
    rows = [json.loads(line) for line in (CORPUS / "manifest.jsonl").read_text().splitlines()]
    files = [(CORPUS / row["file"]).read_bytes() for row in rows]
    with closing(DecoderPool(options(), timeout_s=15.0, count=2)) as pool:
        decoded = [future.result(120) for future in [pool.submit(data) for data in files]]
    statuses = Counter(one.status for one in decoded)
    assert len(rows) == 1265
    assert set(statuses) <= IN_DECODING | {SUCCESS}
    assert statuses["decoder_crash"] == statuses["decode_timeout"] == 0, statuses
    readable = [
        one.status
        for row, data, one in zip(rows, files, decoded, strict=True)
        if row["pillow"]["outcome"] == "ok" and _ours(data)
    ]
    assert len(readable) > 100
    assert readable.count("success") >= 0.95 * len(readable), Counter(readable)


def _ours(data: bytes) -> bool:
    try:
        return sniff(data) in READERS
    except DecodeError:
        return False
