"""A sample's history: the same by every name, complete, found without a scan, and harmless on a terminal."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pytest
from click.testing import CliRunner

from pipeline import cli
from pipeline.catalog import Catalog
from pipeline.commands.explain import told as page
from pipeline.errors import SluiceError
from pipeline.explain import Explainer, History, Place, Unread, explain
from pipeline.store import Store
from tests.pipeline.seeing import CONTROLS, HOSTILE, LOOSER, REFUSED, Runs, picture, uid, url_of
from tests.pools import write_node, write_run


@pytest.fixture(autouse=True)
def _wide(monkeypatch: pytest.MonkeyPatch) -> None:
    """A page on which no cell is folded."""
    monkeypatch.setattr(cli.out, "_width", 250)


def told(root: str, sample: str, *options: str) -> str:
    done = CliRunner().invoke(cli.main, ["explain", root, sample, *options], catch_exceptions=False, terminal_width=200)
    return done.output


def bytes_at(place: Place) -> bytes:
    return Path(place.path).read_bytes()[place.offset : place.offset + place.nbytes]


# -- which sample ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["uid", "prefix", "url", "own id", "member", "path of a member"])
def test_a_sample_has_one_history_whatever_it_is_called_by(runs: Runs, name: str) -> None:
    names = {
        "uid": uid(8),
        "prefix": uid(8)[:9],
        "url": url_of(8),
        "own id": "own-8",
        "member": f"{uid(8)}.png",
        "path of a member": f"00000002.tar/{uid(8)}.json",
    }
    assert explain(runs.root, names[name]) == explain(runs.root, uid(8))


def test_nobody_knows_it(runs: Runs) -> None:
    rows = Catalog(runs.root).sql("SELECT count(*) AS n FROM urls").column("n")[0].as_py()
    with pytest.raises(SluiceError) as caught:
        explain(runs.root, "https://nowhere.example/x.png")
    said = str(caught.value)
    assert "\n" not in said
    looked_at = int(said.partition("among the ")[2].partition(" rows")[0])
    assert 0 < looked_at < rows, "only the rows of the URL's bucket are looked at"
    assert "the URL must be as it stood in the input" in said
    with pytest.raises(SluiceError, match=r"no sample 'a\\x1b\[2J' among the \d+ rows"):
        explain(runs.root, "a\x1b[2J")


def test_leading_digits_must_be_enough(tmp_path: Path) -> None:
    store = Store(str(tmp_path))
    uids = ["abcdef0" + "0" * 25, "abcdef1" + "0" * 25]
    captions = pa.table({"uid": uids, "caption_id": ["x", "y"], "caption": ["a", "b"], "source": ["web"] * 2})
    write_node(store, "pool", {"000-0": {"image": pa.table({"uid": uids}), "caption": captions}}, tar=True)
    write_run(store, ["pool"])
    with pytest.raises(SluiceError, match=f"'abcdef' means 2 samples: {uids[0]}, {uids[1]}; give more of it"):
        explain(store.root, "abcdef")
    assert explain(store.root, "abcdef1").uid == uids[1], "no record says which bucket it is: every part is read"
    with pytest.raises(SluiceError, match="no sample 'abcde' among"):
        explain(store.root, "abcde")


def test_a_vector_that_is_null_is_said_to_be(tmp_path: Path) -> None:
    store, uids = Store(str(tmp_path)), ["abcdef0" + "0" * 25, "abcdef1" + "0" * 25]
    vectors = pa.array([[1.0, 2.0], None], pa.list_(pa.float16(), 2))
    captions = pa.table({"uid": uids, "caption_id": ["x", "y"], "caption": ["a", "b"], "source": ["web"] * 2})
    tables = {"image": pa.table({"uid": uids, "vector": vectors}), "caption": captions}
    write_node(store, "pool", {"000-0": tables}, tar=True)
    write_run(store, ["pool"])
    assert explain(store.root, uids[0]).value("vector") == Unread("fixed_size_list<element: halffloat>[2]")
    assert explain(store.root, uids[1]).value("vector") is None
    assert "a vector" in told(store.root, uids[0])
    assert "a vector" not in told(store.root, uids[1])


# -- what is told ------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def kept(runs: Runs) -> History:
    return explain(runs.root, uid(8))


def test_every_value_stands_once_with_the_node_and_the_step_that_wrote_it(kept: History) -> None:
    found = {value.column: (value.value, value.node, value.step.rpartition(".")[2]) for value in kept.image}
    assert found["source_row"] == (8, "urls", "UrlTables")
    assert found["source_file"][0].endswith("/in/a.parquet")
    assert found["source_uid"] == ("own-8", "urls", "UrlTables")
    assert found["n"] == (8, "urls", "UrlTables")
    assert found["status"] == ("success", "pool", "Draw")
    assert found["fetched_at"][0] == "2023-11-14 22:13:20.000Z"
    assert found["image_embedding"] == (None, "pool", "Draw")
    products = [value for value in kept.image if value.column == "product"]
    assert [(value.value, value.node, value.step) for value in products] == [
        (16, "scores", "tests.toys.Times"),
        (56, "depth", "tests.toys.Times"),
    ]
    assert [value.column for value in kept.image].count("n") == 1, "a pool repeats the columns of its input"


def test_every_caption_has_its_scores_and_its_verdict(kept: History) -> None:
    first, second = kept.captions
    assert {value.column: value.value for value in first.values}["caption"] == HOSTILE
    label = next(value for value in second.values if value.column == "label")
    assert (label.value, label.step) == ("the title of 8: 16", "tests.toys.Label")
    assert [(verdict.node, verdict.kept, verdict.passed) for verdict in first.verdicts] == [("kept", True, len(LOOSER))]


def test_its_bytes_are_where_it_is_said(runs: Runs, kept: History) -> None:
    pool, image, txt, about = kept.places
    assert bytes_at(pool) == bytes_at(image) == picture(8)
    assert image.member == f"{uid(8)}.png"
    assert bytes_at(txt).decode() == HOSTILE
    assert json.loads(bytes_at(about))["uid"] == kept.uid
    assert {place.node for place in kept.places[1:]} == {"shards"}


def test_a_dropped_pair_says_by_which_rule_and_by_what_it_looked_at(runs: Runs) -> None:
    history = explain(runs.root, uid(7))
    (verdict,) = history.captions[0].verdicts
    assert (verdict.kept, verdict.dropped_by, verdict.rule) == (False, "even", LOOSER["even"])
    assert verdict.looked_at == {"pool.n": 7}
    assert (verdict.passed, verdict.rules) == (1, 4)
    assert [place.node for place in history.places] == ["pool"], "no shard holds what was dropped"
    assert explain(runs.root, uid(7), "0001").captions[0].verdicts[0].rule == "n % 2 = 0"


def test_a_window_names_the_pairs_that_it_compared(runs: Runs) -> None:
    (verdict, *_) = explain(runs.root, uid(24)).captions[0].verdicts
    assert verdict.dropped_by == "first"
    assert verdict.looked_at == {"pool.kind": "kind 8", "pool.n": 24}
    assert verdict.others is not None
    found = Catalog(runs.root).sql(verdict.others).to_pylist()
    assert {row["uid"] for row in found} == {uid(8), uid(24), uid(40)}
    assert {row["uid"] for row in found if row["kept"]} == {uid(8)}
    assert f'"{verdict.others}"' in told(runs.root, uid(24)).replace("\n", "")


def test_a_row_that_was_tried_again_counts_once_and_its_older_ones_are_named(runs: Runs) -> None:
    retried = explain(runs.root, uid(27))
    assert retried.value("status") == "success"
    first = next(row for row in retried.replaced if row.node == "pool")
    assert (first.status, first.by) == ("http_503", f"{first.part}.r1")
    assert explain(runs.root, uid(27), "1").value("status") == "http_503"
    assert explain(runs.root, uid(27), "1").replaced == ()
    assert set(retried.older) == {"0001", "0002", "0003"}
    assert retried.older["0001"]["pool"] == 1
    assert "pool" not in retried.older["0003"], "that generation is the same"


def test_a_url_that_came_again_has_its_newest_row_and_all_its_captions(runs: Runs) -> None:
    history = explain(runs.root, uid(18))
    texts = [value.value for c in history.captions for value in c.values if value.column == "caption"]
    assert texts == ["18 is a number", "18 is a number, again"]
    parts = [(row.part, row.status, row.by) for row in history.replaced if row.node == "pool"]
    assert [(status, by) for _, status, by in parts] == [("http_503", "001-00000"), ("success", "001-00000")]


def test_a_refused_row_and_a_quarantined_one_say_why(runs: Runs, tmp_path: Path) -> None:
    refused = explain(runs.root, REFUSED)
    assert refused.image == ()
    assert all("bad_url" in failure.error and "in/" in failure.error for failure in refused.failures)
    assert [failure.part.partition("-")[0] for failure in refused.failures] == ["000", "001"]
    store = Store(str(tmp_path))
    error = {"uid": ["a"], "row": [0], "step": ["toys.Poison"], "error": ["ValueError: \x1b[1mno"], "traceback": ["t"]}
    tables = {"image": pa.table({"uid": ["a"], "status": ["quarantined"]}), "errors": pa.table(error)}
    captions = pa.table({"uid": ["a"], "caption_id": ["x"], "caption": ["c"], "source": ["web"]})
    write_node(store, "pool", {"000-0": {**tables, "caption": captions}}, tar=True)
    write_node(store, "copies", {"000-0": {"edge": pa.table({"uid_a": ["a"] * 9, "uid_b": list("bcdefghij")})}})
    write_run(store, ["pool", "copies"])
    history = Explainer(store).history("a", frozenset({"000-0"}))
    assert [(failure.node, failure.step) for failure in history.failures] == [("pool", "toys.Poison")]
    assert [(row.node, row.kind, row.values["uid_b"]) for row in history.related[:1]] == [("copies", "edge", "b")]
    with cli.out.capture() as captured:
        page(cli.out, store.root, history)
    assert "1 more; --json has all" in captured.get()
    assert "ValueError: �[1mno" in captured.get()


# -- how it is found ---------------------------------------------------------------------------------------------------


def test_only_the_files_of_its_parts_are_opened(runs: Runs, tmp_path: Path) -> None:
    """The files of all other parts are gone, and nobody misses them. The second increment is one part, for all uids."""
    root = tmp_path / "root"
    shutil.copytree(runs.root, root)
    history = explain(str(root), uid(7))
    gone = [path for path in root.glob("*/data/*.parquet") if not path.name.startswith((*history.parts, "001-"))]
    assert len(gone) > 10
    for path in gone:
        path.unlink()
    assert explain(str(root), uid(7)) == history
    assert explain(str(root), url_of(7)) == history


def test_a_bucket_is_the_leading_bits_of_a_uid(runs: Runs) -> None:
    """Every sample lies in the parts that are looked at; were the bits read otherwise, some would not."""
    explainer = Explainer(Store(runs.root))
    everything = Catalog(runs.root).sql("SELECT uid FROM urls").column("uid").to_pylist()
    assert len(everything) == 54
    assert set(explainer.lookup.parts(everything)) == set(everything)
    for one in everything:
        assert explainer.lookup.resolve(one[:12])[0] == one


def test_damage_is_named_with_its_remedy(runs: Runs, tmp_path: Path) -> None:
    root = tmp_path / "root"
    shutil.copytree(runs.root, root)
    for index in root.glob("shards/data/*samples.parquet"):
        index.unlink()
    with pytest.raises(SluiceError, match=r"samples.parquet.*verify.*--repair"):
        explain(str(root), uid(8))
    (part,) = (part for part in explain(str(root), uid(7)).parts)
    (path,) = (path for path in root.glob(f"depth/data/{part}-*.image.parquet"))
    data = path.read_bytes()
    path.write_bytes(data[:-9] + bytes([data[-9] ^ 1]) + data[-8:])
    with pytest.raises(SluiceError, match=f"{path.name} is corrupt.*verify.*--repair"):
        explain(str(root), uid(7))
    path.unlink()
    with pytest.raises(SluiceError, match=f"{path.name} is gone.*verify.*--repair"):
        explain(str(root), uid(7))


@pytest.mark.parametrize(("sample", "expected"), [(uid(8), ["duckdb"]), (uid(7), ["duckdb"]), (REFUSED, [])])
def test_nothing_heavy_is_loaded(runs: Runs, sample: str, expected: list[str]) -> None:
    """DuckDB alone, which finds a shard and reads the SQL of a rule; a refused row needs not even that."""
    program = (
        "import sys; from click.testing import CliRunner; from pipeline.cli import main;"
        "done = CliRunner().invoke(main, ['explain', *sys.argv[1:]]); assert done.exit_code == 0, done.output;"
        "print([name for name in ('duckdb', 'pandas', 'ray', 'torch', 'transformers', 'cv2') if name in sys.modules])"
    )
    command = [sys.executable, "-c", program, runs.root, sample]
    assert subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip() == str(expected)


# -- how it is shown ---------------------------------------------------------------------------------------------------


def test_nothing_that_a_stranger_wrote_moves_the_terminal(runs: Runs) -> None:
    assert Explainer(Store(runs.root)).of(uid(8)).value("note") == CONTROLS
    shown = told(runs.root, uid(8))
    assert "[bold red]<script>" in shown
    assert "a �caption� [bold red]" in shown
    assert not {"\x1b", "\x9b", "\x07", "\u202e", "\u2066"} & set(shown)
    assert told(runs.root, uid(8), "--json").isascii()


def test_the_page_tells_it_all(runs: Runs) -> None:
    shown = told(runs.root, uid(7))
    for expected in ("source_uid", "own-7", "dropped by even, rule 2 of 4", LOOSER["even"], "pool.n", ".tar", "at "):
        assert expected in shown
    retried = told(runs.root, uid(27))
    assert "(http_503), by part" in retried
    assert "--run 0001 tells them" in retried
    assert "bad_url" in told(runs.root, REFUSED)


def test_json_has_every_value(runs: Runs) -> None:
    found = json.loads(told(runs.root, uid(24), "--json"))
    assert found["uid"] == uid(24)
    assert found["captions"][0]["verdicts"][0]["looked_at"] == {"pool.kind": "kind 8", "pool.n": 24}
    assert found["image"][0].keys() == {"column", "value", "node", "step"}
    assert found["places"][0]["nbytes"] == len(picture(24))
