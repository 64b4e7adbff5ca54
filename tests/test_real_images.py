"""The quickstart over real images and captions, and over every malformed file, served on loopback."""

import json
import re
from collections import Counter
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from infra.miniweb import Folder
from pipeline import Catalog, Dag, run
from pipeline.store import Store
from tests.inline import Inline

SETS = ("openstax_ccby", "coco_cc_by")


def manifest(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "manifest.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def curated(shared_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The root of a finished quickstart over all three sets."""
    folder = tmp_path_factory.mktemp("real")
    with Folder(shared_data) as web:
        rows = []
        for name in (*SETS, "malformed"):
            for entry in manifest(shared_data / name):
                url = web.url(f"{name}/{entry['file']}")
                rows += [{"url": url, "alt": caption, "set": name} for caption in entry.get("captions", [name])]
        pq.write_table(pa.Table.from_pylist(rows), folder / "urls.parquet")
        port = int(re.findall(r":(\d+)", web.url("x"))[0])
        overrides = [
            f"urls.files={folder}/urls.parquet",
            f"pool.allow_private_hosts=['127.0.0.1:{port}']",
            "leaks.sets={}",
            "shards.samples_per_shard=256",
        ]
        root = str(folder / "root")
        run(Dag.load("quickstart", overrides), root, until="shards", executor=Inline(Store(root)))
    return folder / "root"


def count(curated: Path, query: str) -> dict[str | None, int]:
    table = Catalog(str(curated)).sql(query)
    return dict(zip(table.column(0).to_pylist(), table.column(1).to_pylist(), strict=True))


def test_every_real_image_is_downloaded(curated: Path, shared_data: Path) -> None:
    images = {name: len({entry["file"] for entry in manifest(shared_data / name)}) for name in SETS}
    assert images == {"openstax_ccby": 820, "coco_cc_by": 57}
    found = count(
        curated, """SELECT "set", count(*) FROM pool WHERE status = 'success' AND "set" <> 'malformed' GROUP BY 1"""
    )
    assert found == images


def test_every_caption_is_kept_beside_its_image(curated: Path, shared_data: Path) -> None:
    pairs = sum(len(set(entry["captions"])) for name in SETS for entry in manifest(shared_data / name))
    found = count(curated, """SELECT 'pairs', count(*) FROM samples WHERE "set" <> 'malformed'""")
    assert found["pairs"] == pairs


def test_every_malformed_file_ends_with_one_status(curated: Path, shared_data: Path) -> None:
    files = {entry["file"] for entry in manifest(shared_data / "malformed")}
    assert len(files) == 1265
    found = Counter(count(curated, "SELECT status, count(*) FROM pool WHERE \"set\" = 'malformed' GROUP BY 1"))
    assert found.total() == 1265
    assert None not in found
    assert "decoder_crash" not in found
    assert "decode_timeout" not in found
    assert found["success"] < 322 + 60  # Pillow read 322, some of them in formats that are refused here


def test_every_pair_is_kept_or_names_a_rule(curated: Path) -> None:
    rules = [next(iter(rule)) for rule in Dag.load("quickstart").nodes["kept"].stages[0].rules]  # type: ignore[attr-defined]
    found = count(curated, "SELECT dropped_by, count(*) FROM samples GROUP BY 1")
    assert set(found) <= {None, *rules}
    assert found[None] > 600


def test_kept_images_are_in_the_shards_once(curated: Path) -> None:
    kept = count(curated, "SELECT 'kept', count(DISTINCT uid) FROM samples WHERE kept")["kept"]
    samples = Catalog(str(curated)).sql("SELECT uid FROM shard_samples").column("uid").to_pylist()
    assert len(samples) == len(set(samples)) == kept
