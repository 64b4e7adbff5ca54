"""`sluice neighbours` over a small gallery: by a picture, by words, by an image of the run; and its damage mended."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from click.testing import CliRunner, Result

from pipeline import Dag, run
from pipeline.catalog import Catalog
from pipeline.cli import main
from pipeline.records import Generation
from pipeline.stage import PIXELS, Batch, Device, PartStage
from pipeline.store import Store
from stages.index.command import redacted
from stages.kit.vectors import vector_type, vectors
from tests.inline import Inline
from tests.models.towers import tiny
from tests.pools import write_run
from tests.stages.gallery import WORDS, png
from tests.toys import uid_of

GALLERY = """
dag: gallery
nodes:
  urls: {{steps: [{{tests.stages.gallery.Links: {{rows: 30, parts: 2}}}}]}}
  pool: {{from: urls, steps: [tests.stages.gallery.Gallery]}}
  scores:
    from: pool
    steps:
      - stages.embed.ImageEmbeddings: {{weights: {weights}}}
      - stages.embed.TextEmbeddings: {{weights: {weights}}}
      - stages.score.ClipScore
  colours: {{from: pool, steps: [tests.stages.index.test_command.Colours]}}
  numbered: {{from: pool, steps: [tests.stages.index.test_command.Numbered]}}
  kept:
    from: [pool, scores]
    steps: [{{stages.select.Select: {{rules: [{{downloaded: status = 'success'}}, {{even: n % 2 = 0}}]}}}}]
  index: {{from: scores, steps: [{{stages.index.EmbeddingIndex: {{rows_per_file: 15}}}}]}}
  by_colour: {{from: [pool, colours], steps: [{{stages.index.EmbeddingIndex: {{embedding: colour}}}}]}}
  by_number: {{from: numbered, steps: [{{stages.index.EmbeddingIndex: {{embedding: numbers}}}}]}}
"""


class Colours(PartStage):
    """A descriptor without weights: the mean colour, beside a constant."""

    promise = "pure"
    grain = "image"
    reads = frozenset({PIXELS})
    adds = pa.schema([("colour", vector_type(4))])

    def open(self, device: Device) -> Callable[[Batch], pa.Table]:
        def describe(batch: Batch) -> pa.Table:
            images = batch.images()
            there = np.array([image is not None for image in images], bool)
            means = [[*(image.mean((0, 1)) / 255), 0.1] for image in images if image is not None]
            return pa.table([vectors(np.array(means, np.float32).reshape(-1, 4), there)], schema=self.adds)

        return describe


class Numbered(PartStage):
    """A column that no picture gives: made of the row's number."""

    promise = "pure"
    grain = "image"
    reads = frozenset({"n"})
    adds = pa.schema([("numbers", vector_type(2))])

    def open(self, device: Device) -> Callable[[Batch], pa.Table]:
        def turn(batch: Batch) -> pa.Table:
            angles = np.array(batch.table["n"].to_pylist()) / 30
            rows_nd = np.stack([np.cos(angles), np.sin(angles)], axis=1).astype(np.float32)
            return pa.table([vectors(rows_nd, np.ones(len(angles), bool))], schema=self.adds)

        return turn


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.save("clip", tmp_path_factory.mktemp("clip"))


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory, weights: Path) -> str:
    folder = str(tmp_path_factory.mktemp("gallery"))
    run(Dag.parse(GALLERY.format(weights=weights)), folder, executor=Inline(Store(folder)))
    return folder


def sluice(*arguments: str) -> Result:
    return CliRunner().invoke(main, ["neighbours", *arguments])


def asked(*arguments: str) -> list[dict[str, object]]:
    done = sluice(*arguments, "--json")
    assert done.exit_code == 0, done.output
    return [json.loads(line) for line in done.stdout.splitlines()]


def refused(*arguments: str) -> str:
    done = sluice(*arguments)
    assert done.exit_code == 2, done.output
    assert len(done.stderr.splitlines()) == 1
    return done.stderr


def test_a_picture_finds_itself_and_what_is_known_of_it(root: str, tmp_path: Path) -> None:
    picture = tmp_path / "query.png"
    picture.write_bytes(png(11))
    for node, column in (("index", "scores"), ("by_colour", "colours")):
        found = asked(root, "--image", str(picture), "--node", node, "-k", "3")
        assert len(found) == 3
        first = found[0]
        assert (first["uid"], first["cosine"]) == (uid_of(11), pytest.approx(1, abs=2e-3)), column
        assert first["url"] == "http://gallery/11"
        assert (first["status"], first["caption"], first["kept"]) == ("success", WORDS[11 % 5], "even")
        cosines = [float(str(row["cosine"])) for row in found]
        assert cosines == sorted(cosines, reverse=True)


def test_words_find_the_images_whose_clip_score_with_them_is_best(root: str) -> None:
    found = asked(root, "--text", WORDS[2], "--node", "index", "-k", "30")
    with Catalog(root) as catalog:
        scored = catalog.sql("SELECT uid, clip_score FROM samples WHERE caption = ? AND status = 'success'", [WORDS[2]])
    scores = dict(zip(*scored.to_pydict().values(), strict=True))
    cosines = {str(row["uid"]): row["cosine"] for row in found}
    assert len(found) == 25, "those that were downloaded"
    assert len(scores) >= 5
    assert {uid: cosines[uid] for uid in scores} == pytest.approx(scores, abs=2e-3)


def test_an_image_of_the_run_finds_others_and_not_itself(root: str) -> None:
    found = asked(root, "--uid", uid_of(10), "--node", "by_number", "-k", "2")
    assert {row["uid"] for row in found} == {uid_of(9), uid_of(11)}
    assert asked(root, "--uid", uid_of(10)[:8], "--node", "by_number", "-k", "2") == found
    assert [row["cosine"] for row in found] == pytest.approx([np.cos(1 / 30)] * 2, abs=2e-3)


def test_people_see_a_table(root: str) -> None:
    shown = sluice(root, "--uid", uid_of(11), "--node", "index", "-k", "2").stdout  # at 80 columns, as in a pipe
    found = [str(row["uid"]) for row in asked(root, "--uid", uid_of(11), "--node", "index", "-k", "2")]
    assert all(uid in shown for uid in found)
    assert [word in shown for word in ("uid", "cosine", "url", "caption", "kept", "http://gallery/")] == [True] * 6


def test_the_best_caption_is_the_one_that_fits_best(root: str) -> None:
    (row,) = (row for row in asked(root, "--uid", uid_of(6), "--node", "index", "-k", "30") if row["uid"] == uid_of(25))
    with Catalog(root) as catalog:
        best = catalog.sql("SELECT arg_max(caption, clip_score) FROM samples WHERE uid = ?", [uid_of(25)])
        assert catalog.sql("SELECT count(*) FROM samples WHERE uid = ?", [uid_of(25)])[0][0].as_py() == 2
    assert row["caption"] == best[0][0].as_py()


def test_what_cannot_be_asked_is_refused_with_a_remedy(root: str, tmp_path: Path) -> None:
    text = tmp_path / "text.png"
    text.write_text("no picture")
    index = ("--node", "index")
    for arguments, said in (
        ([], "say what to search for: one of --image FILE, --text TEXT, --uid UID"),
        (["--uid", "x", "--text", "y"], "say what to search for"),
        (["--uid", uid_of(11)], "3 indexes (by_colour, by_number, index); name one with --node"),
        (["--uid", "abc", *index], "no sample 'abc' among the 30 rows"),
        (["--uid", uid_of(7), *index], f"{uid_of(7)} has no image_embedding; its image was not downloaded"),
        (["--image", str(text), *index], f"--image {text}: is no picture; name a JPEG, PNG, WebP or GIF"),
        (["--image", "/nowhere.png", *index], "--image /nowhere.png: No such file or directory; name a JPEG"),
        (["--image", str(text), "--node", "by_number"], "from n, which a file does not have; search by --uid"),
        (["--text", "red", "--node", "by_colour"], "which knows no words; search by --image or --uid"),
    ):
        assert said in refused(root, *arguments)


def test_an_index_that_only_an_older_run_has_is_told_with_that_run(root: str, tmp_path: Path) -> None:
    copy, red = str(shutil.copytree(root, tmp_path / "root")), ("--text", "red")
    write_run(Store(copy), ["urls", "pool", "scores"], "gallery")
    assert refused(copy, *red) == "error: run 0002 has no index; run 0001 has one: --run 0001\n"
    told = "error: --node: 'index' is no node of run 0002; run 0001 has it: --run 0001\n"
    assert refused(copy, *red, "--node", "index") == told
    assert refused(copy, *red, "--node", "scores") == "error: --node: 'scores' is no index of run 0002\n"
    index = ("--node", "index", *red)
    assert asked(copy, *index, "--run", "1") == asked(root, *index)
    Store(copy).delete("by_colour/generations/0001.json")  # of a run of which anything is gone, nothing can be asked
    assert refused(copy, *red).startswith("error: run 0002 has no index; add `index: {from: scores, ")


def test_an_image_that_was_taken_down_is_said_to_be_and_is_found_no_more(root: str, tmp_path: Path) -> None:
    copy, gone = str(shutil.copytree(root, tmp_path / "root")), tmp_path / "gone.txt"
    picture = tmp_path / "query.png"
    picture.write_bytes(png(10))
    gone.write_text(f"{uid_of(11)}\n")
    for tar in Path(copy).glob("pool/data/*.tar"):
        tar.write_bytes(bytes(10240))  # the gallery's are no whole tars
    before = index_files(copy)
    done = CliRunner().invoke(main, ["takedown", copy, "--uids", str(gone), "--no-copies", "--yes"])
    assert done.exit_code == 0, done.output
    assert "made from  index" in done.output
    left = index_files(copy)
    assert 0 < len(left) < len(before), "the file without it stays"
    assert f"--uid: {uid_of(11)} was taken down" in refused(copy, "--uid", uid_of(11), "--node", "index")
    assert newest(copy, "by_colour").records == (), "it had one file"
    erased = "a takedown erased every file of by_colour; `sluice run` with the same DAG makes it anew"
    for question in (["--uid", uid_of(10)], ["--text", "red"], ["--image", str(picture)]):
        assert erased in refused(copy, *question, "--node", "by_colour")
    assert "3 indexes (by_colour, by_number, index); name one" in refused(copy, "--uid", uid_of(10))
    run(Dag.parse(next(Store(copy).runs()).text), copy, executor=Inline(Store(copy)))
    assert len(index_files(copy)) == len(before)
    assert not {*index_files(copy).values()} & {data for path, data in before.items() if path not in left}
    found = asked(copy, "--uid", uid_of(10), "--node", "index", "-k", "30")
    assert len(found) == 23, "25 were downloaded"
    assert uid_of(11) not in {row["uid"] for row in found}
    assert len(asked(copy, "--image", str(picture), "--node", "by_colour", "-k", "3")) == 3


def test_words_need_a_node_that_embeds_captions_by_the_same_model(tmp_path: Path, weights: Path) -> None:
    other = tiny.save("clip", tmp_path / "other", seed=1)
    text = GALLERY.format(weights=weights).replace(
        f"TextEmbeddings: {{weights: {weights}}}", f"TextEmbeddings: {{weights: {other}}}"
    )
    root = str(tmp_path / "root")
    run(Dag.parse(text).until("index"), root, executor=Inline(Store(root)))
    assert "add stages.embed.TextEmbeddings" in refused(root, "--text", "red")


def test_weights_that_changed_since_the_run_are_refused(tmp_path: Path) -> None:
    folder, root = tiny.save("clip", tmp_path / "clip"), str(tmp_path / "root")
    run(Dag.parse(GALLERY.format(weights=folder)).until("index"), root, executor=Inline(Store(root)))
    assert len(asked(root, "--text", "red", "-k", "4")) == 4
    tiny.save("clip", folder, seed=1)
    assert "weights has changed since run 0001; run its DAG again" in refused(root, "--text", "red")


def test_no_secret_of_a_url_is_shown() -> None:
    assert redacted("https://me:secret@host:8080/a/b.jpg?token=secret#secret") == "https://host:8080/a/b.jpg"
    assert redacted("//host/a?secret") == "//host/a"


def index_files(root: str) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in Path(root, "index", "data").glob("0*.faiss")}


def newest(root: str, node: str = "index") -> Generation:
    found = Store(root).newest(node)
    assert found is not None
    return found


@pytest.mark.fault(51)
def test_a_truncated_index_is_refused_and_rebuilt_from_the_parts(tmp_path: Path, weights: Path) -> None:
    root = str(tmp_path)
    run(Dag.parse(GALLERY.format(weights=weights)).until("index"), root, executor=Inline(Store(root)))
    before, whole, content = asked(root, "--text", "red"), index_files(root), newest(root).content_hash
    assert len(whole) == 2
    victim = Path(min(whole, key=lambda path: Path(path).name))
    victim.write_bytes(whole[str(victim)][:-64])
    assert len(victim.read_bytes()) == len(whole[str(victim)]) - 64, "the fault has landed"
    assert f"{victim.name} is corrupt" in refused(root, "--text", "red")
    mended = CliRunner().invoke(main, ["verify", root, "--repair"])
    assert "index part 00000: rebuilt" in mended.output
    assert newest(root).content_hash == content
    assert asked(root, "--text", "red") == before
    assert CliRunner().invoke(main, ["verify", root]).exit_code == 0
