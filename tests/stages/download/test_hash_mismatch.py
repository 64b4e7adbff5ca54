"""Content that changed since it was first seen is not what the caption describes: it is never kept."""

from dataclasses import replace
from hashlib import sha256

import pyarrow as pa
import pytest

from infra.miniweb import Scripted
from pipeline.errors import SluiceError
from pipeline.stage import Column
from stages.download import Download
from stages.download.statuses import RETRYABLE
from tests.stages.download.conftest import opened
from tests.stages.download.doubles import encoded, part_of, picture, uid


@pytest.mark.fault(52)
def test_swapped_bytes_are_a_mismatch_and_leave_no_trace(server: Scripted) -> None:
    honest = encoded(picture(seed=1))
    swapped = encoded(picture(seed=2))
    urls = [server.serve(f"/seen/{name}", body) for name, body in
            {"same": honest, "swapped": swapped, "new": honest, "nonsense": honest}.items()]  # fmt: skip
    digest = sha256(honest).hexdigest()
    part = part_of(urls)
    seen = pa.array([digest.upper(), digest, None, "nonsense"])
    part.image = part.image.append_column("first_seen", seen)
    worker = opened(server, threads=1, expect_sha256="first_seen")
    rows = worker(part).to_pylist()
    worker.close()
    assert [row["status"] for row in rows] == ["success", "hash_mismatch", "success", "hash_mismatch"]
    assert [row["sha256"] for row in rows] == [digest, None, digest, None]
    assert [name for name in part.members() if name.endswith("jpg")] == [f"{uid(urls[0])}.jpg", f"{uid(urls[2])}.jpg"]
    assert digest in rows[1]["error_message"]
    assert sha256(swapped).hexdigest() in rows[1]["error_message"]
    assert server.hits["/seen/swapped"] == 1
    assert "hash_mismatch" not in RETRYABLE


@pytest.mark.fault(52)
def test_a_row_that_was_lost_must_come_back_as_it_was(server: Scripted) -> None:
    honest = encoded(picture(seed=1))
    urls = [server.serve("/lost/same", honest), server.serve("/lost/swapped", encoded(picture(seed=2)))]
    part = replace(part_of(urls), before=pa.table({"sha256": [sha256(honest).hexdigest()] * 2}))
    worker = opened(server, threads=1)
    assert worker(part).column("status").to_pylist() == ["success", "hash_mismatch"]
    worker.close()


@pytest.mark.fault(52)
def test_a_row_that_was_lost_is_known_until_it_is_settled(server: Scripted) -> None:
    """A retry that finds the host down must not make the next one believe whatever it is given."""
    digest = sha256(encoded(picture(seed=1))).hexdigest()
    urls = [server.serve(f"/down/{code}", b"", status=f"{code} No") for code in (503, 404)]
    worker = opened(server, threads=1, tries=1)
    down = worker(replace(part_of(urls), before=pa.table({"sha256": [digest] * 2})))
    assert down.column("status").to_pylist() == ["http_503", "http_404"]
    assert down.column("sha256").to_pylist() == [digest, None]
    server.serve("/down/503", encoded(picture(seed=2)))
    again = replace(part_of(urls), before=down.select(["sha256"]))
    assert worker(again).column("status").to_pylist() == ["hash_mismatch", "http_404"]
    worker.close()


def test_a_column_that_is_missing_or_no_text_is_refused_before_work_starts() -> None:
    stage = Download(expect_sha256="first_seen")
    columns = [Column("url", "urls", "image", pa.string()), Column("first_sen", "urls", "image", pa.string())]
    with pytest.raises(SluiceError, match="no input has a column 'first_seen'; did you mean 'first_sen'"):
        stage.check(columns)
    with pytest.raises(SluiceError, match=r"urls\.first_seen has type int64"):
        stage.check([*columns, Column("first_seen", "urls", "image", pa.int64())])
    stage.check([*columns, Column("first_seen", "urls", "image", pa.string())])
