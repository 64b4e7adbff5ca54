"""Real URL tables: every row is accounted for, and every URL and caption is there once."""

from collections import defaultdict
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from tests.stages.ingest.conftest import Ingest

TABLES = Path(__file__).parents[4] / "shared" / "data" / "url_tables"

pytestmark = pytest.mark.skipif(not TABLES.is_dir(), reason="the shared data is not here")


@pytest.mark.parametrize(
    ("name", "parameters", "rows"),
    [
        ("coco_val2017_url_caption.parquet", {}, 25_014),
        ("cc3m_val.tsv", {"columns": ["caption", "url"]}, 15_833),
        ("img2dataset_test_1000.parquet", {"url": "URL", "caption": "TEXT"}, 1_000),
        ("img2dataset_test_10000.parquet", {"url": "URL", "caption": "TEXT"}, 10_000),
        ("tate_artworks_url_title.parquet", {"source_uid": "id"}, 6_730),
    ],
)
def test_every_row_of_a_real_table_ends_somewhere(
    ingest: Ingest, name: str, parameters: dict[str, Any], rows: int
) -> None:
    generation = ingest(TABLES / name, **parameters)
    assert sum(generation.statuses.values()) == rows
    assert generation.statuses["ok"] == generation.images
    expected = defaultdict(set)
    if name.endswith(".tsv"):
        pairs = [tuple(reversed(line.split("\t"))) for line in (TABLES / name).read_text().splitlines()]
    else:
        table = pq.read_table(TABLES / name)
        columns = (parameters.get("url", "url"), parameters.get("caption", "caption"))
        pairs = list(zip(*(table.column(column).to_pylist() for column in columns), strict=True))
    good = [(url, caption) for url, caption in pairs if url.startswith("http")]
    assert generation.statuses.get("bad_url", 0) == len(pairs) - len(good)
    for url, caption in good:
        expected[url].add(caption or None)
    for captions in expected.values():
        if len(captions) > 1:
            captions.discard(None)
    assert ingest.pairs(generation) == {(url, caption) for url, captions in expected.items() for caption in captions}


def test_coco_has_five_thousand_photographs_of_about_five_captions(ingest: Ingest) -> None:
    generation = ingest(TABLES / "coco_val2017_url_caption.parquet")
    assert generation.images == 5_000
    assert len(ingest.rows(generation, "caption")) / generation.images == pytest.approx(5.0, abs=0.01)
    columns = ingest.table(generation, "image").schema
    assert str(columns.field("source_width").type) == "int64"
    assert "source_caption_id" in columns.names


def test_the_laion_sample_has_one_row_whose_columns_slipped(ingest: Ingest) -> None:
    generation = ingest(TABLES / "img2dataset_test_10000.parquet", url="URL", caption="TEXT")
    (error,) = ingest.rows(generation, "errors")
    assert error["error"].startswith("bad_url: ")
    assert "'UNLIKELY' has no scheme; expected http:// or https://" in error["error"]
