"""Exports, read as those read them for whom they are meant."""

from __future__ import annotations

import io
import json
import shutil
from collections.abc import Iterator
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from click.testing import CliRunner

from pipeline import SluiceError
from pipeline.cli import main
from pipeline.export import FORMATS, Exported, export
from pipeline.export.options import Options
from pipeline.store import Store
from pipeline.takedown import erasure
from pipeline.takedown.matching import Asked
from tests import s3 as moto
from tests.pools import write_run
from tests.takedowns import go, members, uid_of, url_of

KEPT = [n for n in range(40) if n % 10 != 9 and n % 4 != 3]
BESIDE = "{} names shards below root/, which is not copied: publish root/shards beside it"
SCORE = Options(columns={"clip_l14_similarity_score": "clip_l14_score"}, rows_per_file=10)


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("export") / "root"
    go(folder)
    return str(folder)


def bytes_of(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


# -- DataComp ----------------------------------------------------------------------------------------------------------


def test_datacomps_resharder_finds_in_the_subset_what_was_kept(root: str, tmp_path: Path) -> None:
    export(root, "kept", "datacomp", str(tmp_path / "out"), options=SCORE)
    subset = np.load(tmp_path / "out/subset.npy", mmap_mode="r")
    assert subset.dtype == np.dtype("u8,u8")
    assert (np.sort(subset) == subset).all()
    for number in range(40):  # as resharder.py looks for the uid in a sample's JSON
        key = np.array([divmod(int(uid_of(number), 16), 2**64)], np.dtype("u8,u8"))[0]
        count = np.searchsorted(subset, key, "right") - np.searchsorted(subset, key, "left")
        assert count == (number in KEPT)


def test_datacomps_metadata_has_its_columns_and_the_text_of_the_shards(root: str, tmp_path: Path) -> None:
    export(root, "kept", "datacomp", str(tmp_path / "out"), options=SCORE)
    files = sorted((tmp_path / "out/metadata").glob("*.parquet"))
    assert [path.name for path in files] == ["00000000.parquet", "00000001.parquet", "00000002.parquet"]
    tables = [pq.read_table(path) for path in files]
    assert [table.num_rows for table in tables] == [10, 10, len(KEPT) - 20]
    rows = pa.concat_tables(tables).to_pylist()
    assert list(rows[0]) == [
        "uid", "url", "text", "original_width", "original_height", "sha256", "clip_l14_similarity_score"
    ]  # fmt: skip
    assert {row["uid"] for row in rows} == {uid_of(n) for n in KEPT}
    assert len(rows) == len(KEPT)
    texts = {key: data.decode() for key, data in texts_of(root).items()}
    for row in rows:
        assert row["text"] == texts[row["uid"]]
        n = int(row["url"].rpartition("/")[2].removesuffix(".jpg"))
        assert row["url"] == url_of(n)
        assert (row["original_width"], row["original_height"]) == (8 + n % 30, 8)
        assert row["clip_l14_similarity_score"] == pytest.approx(n / 100)
    sizes = json.loads((tmp_path / "out/sizes.json").read_text())
    assert sum(sizes.values()) == len(KEPT)
    assert list(sizes) == [f"{number:08d}.tar" for number in range(4)]


def texts_of(root: str) -> dict[str, bytes]:
    texts = ((name, data) for tar, name, data in members(root) if "/shards/" in tar and name.endswith(".txt"))
    return {name.partition(".")[0]: data for name, data in texts}


# -- clip-retrieval ----------------------------------------------------------------------------------------------------


def test_clip_retrievals_files_are_aligned_by_row(root: str, tmp_path: Path) -> None:
    done = export(root, "kept", "clip-retrieval", str(tmp_path / "out"), options=Options(rows_per_file=5))
    pairs = 2 * (len(KEPT) - 1)  # 8 has no text embedding
    assert done.remarks == ["2 kept pairs lack an embedding and were left out"]
    numbers = -(-pairs // 5)
    assert numbers > 10, "so that names of one and of two digits would be sorted wrongly"
    names = sorted(path.name for path in (tmp_path / "out/img_emb").iterdir())
    assert names == [f"img_emb_{number:02d}.npy" for number in range(numbers)]
    seen = set()
    for number in range(numbers):
        images = np.load(tmp_path / f"out/img_emb/img_emb_{number:02d}.npy")
        texts = np.load(tmp_path / f"out/text_emb/text_emb_{number:02d}.npy")
        # as its ParquetMetadataProvider reads them: all files of the folder in the order of their names
        rows = pq.read_table(tmp_path / f"out/metadata/metadata_{number:02d}.parquet").to_pylist()
        assert images.dtype == texts.dtype == np.float16
        assert images.shape == texts.shape == (len(rows), 4)
        for image, text, row in zip(images, texts, rows, strict=True):
            n = int(row["url"].rpartition("/")[2].removesuffix(".jpg"))
            assert row["caption"].startswith(f"secret {n} ")
            assert row["image_path"] == uid_of(n)
            assert image.tolist() == [8 + n % 30, 1, 2, 3]
            assert text.tolist() == [n, 5, 6, 7]
            seen.add(n)
    assert seen == {*KEPT} - {8}


# -- Hugging Face ------------------------------------------------------------------------------------------------------


def front_matter(card: str) -> dict[str, Any]:
    _, head, _ = card.split("---\n", 2)
    found: dict[str, Any] = yaml.safe_load(head)
    return found


def test_a_card_says_what_the_hub_and_people_need(root: str, tmp_path: Path) -> None:
    export(root, "shards", "hf", str(tmp_path / "out"), options=Options(copy_shards=True))
    card = (tmp_path / "out/README.md").read_text()
    head = front_matter(card)
    assert head["configs"] == [{"config_name": "default", "data_files": [{"split": "train", "path": "data/*.tar"}]}]
    assert (head["license"], head["license_name"]) == ("other", "FILL IN")
    assert head["size_categories"] == ["n<1K"]
    assert "webdataset" in head["tags"]
    assert "## Licence\n\n**FILL IN**" in card
    kept = Store(root).newest("kept")
    assert kept is not None
    assert f"`{kept.content_hash}`" in card
    assert "| downloaded | `status = 'success'` | 80 | 8 | 72 |" in card
    assert "| bright | `n % 4 <> 3` | 72 | 16 | 56 |" in card
    assert "| success | 36 |" in card
    assert 'load_dataset("THIS FOLDER", split="train", streaming=True)' in card
    assert "`urls` read 40 rows: 40 images." in card
    assert f"--train-data 'data/{{00000000..00000003}}.tar' --train-num-samples {len(KEPT)} " in card


def test_without_a_copy_the_card_names_the_shards_and_the_table_has_no_pixels(root: str, tmp_path: Path) -> None:
    done = export(root, "kept", "hf", str(tmp_path / "out"), options=Options(license="CC-BY-4.0"))
    assert done.remarks == [BESIDE.format("README.md")]
    files = bytes_of(tmp_path / "out")
    assert sorted(files) == ["README.md", "data/00000000.parquet", "export.begun.json", "export.json"]
    rows = pq.read_table(io.BytesIO(files["data/00000000.parquet"]))
    assert rows.num_rows == 2 * len(KEPT)
    keys = list(zip(rows["uid"].to_pylist(), rows["caption_id"].to_pylist(), strict=True))
    assert keys == sorted(keys)
    card = files["README.md"].decode()
    assert front_matter(card)["license"] == "cc-by-4.0"
    assert "--train-data 'root/shards/data/" in card
    assert root not in card


def test_a_caption_or_rule_cannot_break_out_of_the_card(tmp_path: Path) -> None:
    hostile = "n >= 0 OR '|</td><script>x</script>' = 'y'"
    fenced = "n >= 0 OR '`<script>y</script>``' = 'y'"
    rules = [{"downloaded": "status = 'success'"}, {"sly": hostile}, {"slier": fenced}]
    go(tmp_path / "root", f"kept.rules={json.dumps(rules)}")
    export(str(tmp_path / "root"), "kept", "hf", str(tmp_path / "out"))
    card = (tmp_path / "out/README.md").read_text()
    (row,) = [line for line in card.splitlines() if line.startswith("| sly |")]
    assert "`n >= 0 OR '\\|</td><script>x</script>' = 'y'`" in row
    (row,) = [line for line in card.splitlines() if line.startswith("| slier |")]
    assert "``` n >= 0 OR '`<script>y</script>``' = 'y' ```" in row, "no run of its backticks ends the code"


def test_the_card_lists_the_features_so_that_no_reader_guesses(root: str, tmp_path: Path) -> None:
    export(root, "shards", "hf", str(tmp_path / "out"), options=Options(copy_shards=True))
    info = front_matter((tmp_path / "out/README.md").read_text())["dataset_info"]
    assert info["config_name"] == "default"
    members = {feature["name"]: feature for feature in info["features"]}
    assert {name: kind.get("dtype") for name, kind in members.items()} == {
        "jpg": "image", "txt": "string", "json": None, "__key__": "string", "__url__": "string"
    }  # fmt: skip
    assert members["json"]["struct"] == [
        {"name": "uid", "dtype": "string"},
        {"name": "caption", "dtype": "string"},
        {
            "name": "captions",
            "list": [{"name": name, "dtype": "string"} for name in ("caption_id", "text", "source")],
        },
        {"name": "url", "dtype": "string"},
        {"name": "n", "dtype": "int64"},
        {"name": "source_row", "dtype": "int64"},
        *({"name": name, "dtype": "int32"} for name in ("width", "height", "original_width", "original_height")),
        {"name": "sha256", "dtype": "string"},
    ]


# -- Croissant ---------------------------------------------------------------------------------------------------------

REQUIRED = {
    "@context", "@type", "conformsTo", "description", "license", "name", "url", "creator", "datePublished",
    "distribution",
}  # fmt: skip
"""What the specification demands of every data set (1.1, "Dataset-level Information")."""


def test_croissant_has_what_the_specification_demands_and_every_reference_is_defined(root: str, tmp_path: Path) -> None:
    options = Options(license="https://spdx.org/licenses/CC-BY-4.0.html", published="2026-11-21")
    done = export(root, "kept", "croissant", str(tmp_path / "out"), options=options)
    lacking = [f"croissant.json lacks {name}: give --{name}" for name in ("creator", "url")]
    assert done.remarks == [BESIDE.format("croissant.json"), *lacking]
    document = json.loads((tmp_path / "out/croissant.json").read_text())
    assert document.keys() >= REQUIRED
    assert document["@type"] == "sc:Dataset"
    assert document["conformsTo"] == "http://mlcommons.org/croissant/1.1"
    defined, referred = set(), set()

    def walk(value: Any) -> None:
        if isinstance(value, dict):
            if value.keys() == {"@id"}:
                referred.add(value["@id"])
            elif "@id" in value:
                assert value["@id"] not in defined
                defined.add(value["@id"])
            for inner in value.values():
                walk(inner)
        elif isinstance(value, list):
            for inner in value:
                walk(inner)

    walk({name: value for name, value in document.items() if name != "@context"})
    assert referred <= defined
    assert {"pairs.parquet", "images", "pairs/uid", "samples/image", "00000000.tar"} <= defined
    for entry in document["distribution"]:
        if entry["@type"] == "cr:FileObject":
            above = Path(root).parent if entry["@id"].endswith(".tar") else tmp_path / "out"
            data = (above / entry["contentUrl"]).read_bytes()
            assert (sha256(data).hexdigest(), f"{len(data)} B") == (entry["sha256"], entry["contentSize"])
    columns = pq.read_schema(tmp_path / "out/pairs.parquet").names
    (pairs,) = [entry for entry in document["recordSet"] if entry["@id"] == "pairs"]
    assert [field["source"]["extract"]["column"] for field in pairs["field"]] == columns


# -- what holds for all ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", FORMATS)
def test_a_rerun_writes_the_same_bytes_and_an_interrupted_one_is_finished(
    root: str, tmp_path: Path, form: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    export(root, "kept", form, str(tmp_path / "one"))
    whole = bytes_of(tmp_path / "one")
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "one").rglob("*")}
    export(root, "kept", form, str(tmp_path / "one"))
    assert bytes_of(tmp_path / "one") == whole
    assert {path: path.stat().st_mtime_ns for path in before if path.is_file()} == {
        path: time for path, time in before.items() if path.is_file()
    }
    put = Store.put_file_if_absent
    calls = []

    def dies(self: Store, path: str, local: Path, sha: str) -> None:
        calls.append(path)
        if len(calls) == 2:
            raise KeyboardInterrupt
        put(self, path, local, sha)

    monkeypatch.setattr(Store, "put_file_if_absent", dies)
    with pytest.raises(KeyboardInterrupt):
        export(root, "kept", form, str(tmp_path / "two"))
    monkeypatch.undo()
    assert "export.json" not in bytes_of(tmp_path / "two")
    export(root, "kept", form, str(tmp_path / "two"))
    assert bytes_of(tmp_path / "two") == whole
    listed = json.loads(whole["export.json"])["files"]
    assert {file["path"] for file in listed} == whole.keys() - {"export.json", "export.begun.json"}


def test_nothing_is_overwritten(root: str, tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / "mine.txt").write_text("precious")
    with pytest.raises(SluiceError, match=r"is not empty \(mine.txt\)"):
        export(root, "kept", "datacomp", str(out))
    (out / "mine.txt").unlink()
    export(root, "kept", "datacomp", str(out))
    with pytest.raises(SluiceError, match=r"holds another export \(format 'datacomp', not 'hf'\)"):
        export(root, "kept", "hf", str(out))
    (out / "subset.npy").write_bytes(b"other")
    with pytest.raises(SluiceError, match=r"subset.npy exists with other bytes"):
        export(root, "kept", "datacomp", str(out))
    assert (out / "subset.npy").read_bytes() == b"other"


def test_what_was_taken_down_is_in_no_export_and_the_hash_says_so(root: str, tmp_path: Path) -> None:
    copy = str(shutil.copytree(root, tmp_path / "root"))
    export(copy, "kept", "datacomp", str(tmp_path / "before"))
    store = Store(copy)
    found = erasure.search(store, Asked(uids=(uid_of(4),)), False, lambda *_: None)
    erasure.take_down(store, found, "", lambda *_: None)
    with pytest.raises(SluiceError, match="holds another export"):
        export(copy, "kept", "datacomp", str(tmp_path / "before"))
    for form in FORMATS:
        done = export(copy, "kept", form, str(tmp_path / form), options=Options(copy_shards=form == "hf"))
        assert done.files
        for data in bytes_of(tmp_path / form).values():
            assert uid_of(4).encode() not in data
    assert len(np.load(tmp_path / "datacomp/subset.npy")) == len(KEPT) - 1
    assert "1 takedown(s) were carried out" in (tmp_path / "hf/README.md").read_text()


@pytest.fixture(scope="module")
def server() -> Iterator[moto.S3]:
    with moto.serving() as found, found.environment():
        yield found


def test_to_s3_as_well(root: str, server: moto.S3, tmp_path: Path) -> None:
    place = f"{server.bucket('exports')}/datacomp"
    done = export(root, "kept", "datacomp", place, options=SCORE)
    export(root, "kept", "datacomp", str(tmp_path / "out"), options=SCORE)
    store = Store(place)
    assert {file.path: store.get(file.path) for file in done.files} == {
        path: data for path, data in bytes_of(tmp_path / "out").items() if not path.startswith("export.")
    }


def sluice(*arguments: str) -> tuple[int, str]:
    done = CliRunner().invoke(main, ["export", *arguments], catch_exceptions=False, terminal_width=200)
    return done.exit_code, " ".join(done.output.split())


def test_the_command(root: str, tmp_path: Path) -> None:
    code, said = sluice(root, "--node", "kept", "--format", "datacomp", "--out", str(tmp_path / "out"))
    assert code == 0
    assert "--column clip_l14_similarity_score=NODE.COLUMN names one" in said
    assert "3 files" in said
    assert isinstance(export(root, "kept", "datacomp", str(tmp_path / "out")), Exported)


def test_what_only_an_older_run_selected_is_told_with_that_run(root: str, tmp_path: Path) -> None:
    copy = str(shutil.copytree(root, tmp_path / "root"))
    write_run(Store(copy), ["urls", "pool"], "world")
    given = ("--format", "datacomp", "--out", str(tmp_path / "out"))
    for node in ("kept", "shards"):
        told = f"--node '{node}' of run 0002 selects nothing; run 0001 has it: --run 0001"
        assert sluice(copy, "--node", node, *given) == (2, f"error: {told}")
    assert "of run 0002 selects nothing" in sluice(copy, "--node", "pool", *given)[1]
    assert "--run 0001" not in sluice(copy, "--node", "pool", *given)[1]
    assert sluice(copy, "--node", "shards", *given, "--run", "1")[0] == 0


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (("--node", "kept", "--format", "datacmp"), "--format 'datacmp' is none; did you mean 'datacomp'?"),
        (("--node", "kpet", "--format", "hf"), "--node 'kpet' of run 0001 selects nothing; did you mean 'kept'?"),
        (("--node", "kept", "--format", "hf", "--column", "x"), "--column 'x': write it as NAME=COLUMN"),
        (
            ("--node", "kept", "--format", "clip-retrieval", "--column", "img_emb=image_embeding"),
            "no column 'image_embeding'; did you mean 'image_embedding'?",
        ),
        (("--node", "kept", "--format", "hf", "--run", "7"), "has no run '7'"),
        (("--node", "kept", "--format", "hf", "--column", "uid=url"), "the export has a uid of its own; give another"),
        (("--node", "kept", "--format", "hf", "--column", "URL=n"), "SQL cannot tell it from the column url; give"),
        (
            ("--node", "kept", "--format", "clip-retrieval", "--column", "image_embedding=image_embeding"),
            "no column 'image_embeding'; did you mean 'image_embedding'?",
        ),
        (
            ("--node", "kept", "--format", "datacomp", "--license", "cc0-1.0"),
            "--license means nothing to --format datacomp, only to hf, croissant; leave it out",
        ),
        (
            ("--node", "kept", "--format", "croissant", "--url", "notaurl"),
            "--url 'notaurl' is no URL; write it as https://example.org/data",
        ),
        (
            ("--node", "kept", "--format", "croissant", "--published", "yesterday"),
            "--published 'yesterday' is no date; write it as 2026-11-21",
        ),
    ],
)
def test_mistakes_are_answered_in_a_line(root: str, tmp_path: Path, arguments: tuple[str, ...], expected: str) -> None:
    code, said = sluice(root, *arguments, "--out", str(tmp_path / "out"))
    assert code == 2
    assert expected in said


@pytest.mark.parametrize("below", ["", "/out"])
def test_a_file_in_the_place_of_the_folder_is_told(root: str, tmp_path: Path, below: str) -> None:
    (tmp_path / "file").write_text("mine")
    code, said = sluice(root, "--node", "kept", "--format", "datacomp", "--out", f"{tmp_path}/file{below}")
    assert code == 2
    assert f"--out {tmp_path}/file{below} is a file, or below one; name a folder of its own" in said


def test_embeddings_go_by_both_of_their_names(root: str, tmp_path: Path) -> None:
    for number, name in enumerate(("text_emb", "text_embedding")):
        options = Options(columns={name: "image_embedding"})
        export(root, "kept", "clip-retrieval", str(tmp_path / str(number)), options=options)
    one, other = (np.load(tmp_path / f"{number}/text_emb/text_emb_0.npy") for number in range(2))
    assert (one == other).all()
    assert one[:, 1:].tolist() == [[1, 2, 3]] * len(one)
