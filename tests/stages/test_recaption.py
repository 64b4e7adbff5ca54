"""Captions that a model wrote become pairs beside those of the web: scored, selected, written, none lost."""

from __future__ import annotations

import json
import shutil
import tarfile
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch

import models.without_torchvision  # isort: skip  # noqa: F401
from transformers import BlipForConditionalGeneration, BlipForImageTextRetrieval

from models.captioners.checkpoint import content_hash
from models.towers.matcher import Matcher
from pipeline import Catalog, Dag, run
from pipeline.driver import Result
from pipeline.errors import SluiceError
from pipeline.report import report
from pipeline.rows import decode
from pipeline.stage import Device
from pipeline.store import Store
from stages.match import ItmScore
from stages.recaption import Recaption
from stages.recaption.captions import caption_id_of, drawn
from tests.inline import Inline
from tests.models.captioners import tiny
from tests.stages.fake_batch import FakeBatch
from tests.stages.gallery import picture

LOOP = """
dag: loop
nodes:
  urls: {{steps: [tests.stages.gallery.Links]}}
  pool: {{from: urls, steps: [tests.stages.gallery.Gallery]}}
  written:
    from: pool
    workers: {{batch_rows: 5}}
    steps: [{{stages.recaption.Recaption: {{weights: {captioner}, source: ours, candidates: 2, most_tokens: 6}}}}]
  captions: {{from: [pool, written], steps: [stages.recaption.Captions]}}
  match:
    from: [captions, pool]
    workers: {{batch_rows: 7}}
    steps:
      - stages.match.ItmScore: {{weights: {matcher}}}
      - stages.text_quality.TextQuality
  raw:
    from: pool
    steps: [{{stages.select.Select: {{rules: [downloaded: status = 'success']}}}}]
  both:
    from: [captions, pool, match]
    steps:
      - stages.select.Select:
          rules:
            - downloaded: status = 'success'
            - told: caption IS NOT NULL AND words >= 1
            - fits: CASE WHEN source = 'web' THEN itm_score >= 0.4 ELSE itm_score >= 0.2 END
            - not_common: count(*) OVER (PARTITION BY caption_id) <= 9
  shards:
    from: [pool, captions, match, both]
    steps: [stages.shard.WebDataset]
"""


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="module")
def captioner(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.captioner(tmp_path_factory.mktemp("captioner"))


@pytest.fixture(scope="module")
def matcher(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.matcher(tmp_path_factory.mktemp("matcher"))


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory, captioner: Path, matcher: Path) -> tuple[Store, Result]:
    store = Store(str(tmp_path_factory.mktemp("root")))
    dag = Dag.parse(LOOP.format(captioner=captioner, matcher=matcher))
    dag.check()
    return store, run(dag, store.root, executor=Inline(store))


def rows(store: Store, result: Result, node: str, kind: str = "caption") -> list[dict[str, Any]]:
    found = [store.read_table(record, kind) for record in result.generations[node].records]
    return [row for table in found for row in table.to_pylist()]


def test_every_caption_is_told_once_with_who_wrote_it(done: tuple[Store, Result], captioner: Path) -> None:
    store, result = done
    web = {(row["uid"], row["caption_id"]): row for row in rows(store, result, "pool")}
    told = rows(store, result, "captions")
    by_pair = {(row["uid"], row["caption_id"]): row for row in told}
    assert len(by_pair) == len(told)
    assert web.keys() <= by_pair.keys()
    for image in rows(store, result, "written", "image"):
        own = [row for row in told if row["uid"] == image["uid"]]
        texts = image["written"]
        assert (texts is None) == (image["written_source"] is None)
        for text in texts or []:
            row = by_pair[image["uid"], caption_id_of(text)]
            assert row["times"] == texts.count(text)
            assert (row["caption"], row["source"], row["model"]) == (text, "ours", "BlipForConditionalGeneration")
            assert row["checkpoint"] == content_hash(captioner)
            assert row["candidate"] == texts.index(text)
            assert row["caption_score"] == image["written_score"][texts.index(text)]
        assert {row["draw"] for row in own} == {np.float32(drawn(image["uid"]))}
        assert [row["source"] for row in own] == sorted((row["source"] for row in own), key=lambda s: s != "web")
    counted = Counter(row["source"] for row in told)
    assert result.generations["captions"].statuses == dict(counted)
    assert counted["ours"] > 10


def test_captions_of_the_web_and_of_the_model_are_scored_as_the_model_does(
    done: tuple[Store, Result], matcher: Path
) -> None:
    store, result = done
    told = {(row["uid"], row["caption_id"]): row for row in rows(store, result, "captions")}
    numbers = {row["uid"]: row["n"] for row in rows(store, result, "pool", "image")}
    scored = rows(store, result, "match")
    assert len(scored) == len(told)
    model = Matcher.load(matcher, "cpu", "float32")
    for row in scored:
        number, caption = numbers[row["uid"]], told[row["uid"], row["caption_id"]]["caption"]
        if number % 7 == 0:
            assert (row["itm_score"], row["itc_score"]) == (None, None)
        elif number < 8:
            known = model.scores([model.preprocessing(picture(number))], [caption], np.array([0]), 4)[0]
            assert [row["itm_score"], row["itc_score"]] == pytest.approx(known.tolist(), abs=1e-4)


def test_every_pair_ends_with_one_verdict_and_sources_have_rules_of_their_own(done: tuple[Store, Result]) -> None:
    store, result = done
    scores = {(row["uid"], row["caption_id"]): row["itm_score"] for row in rows(store, result, "match")}
    verdicts = rows(store, result, "both")
    told = rows(store, result, "captions")
    assert [(row["uid"], row["caption_id"]) for row in verdicts] == [(row["uid"], row["caption_id"]) for row in told]
    for row, verdict in zip(told, verdicts, strict=True):
        score = scores[row["uid"], row["caption_id"]]
        assert verdict["kept"] == (verdict["dropped_by"] is None)
        if score is None:
            assert verdict["dropped_by"] == "downloaded"
        elif verdict["dropped_by"] != "told":
            fits = score >= (0.4 if row["source"] == "web" else 0.2)
            assert (verdict["dropped_by"] == "fits") == (not fits)
    kept = Counter(row["source"] for row, verdict in zip(told, verdicts, strict=True) if verdict["kept"])
    assert set(kept) == {"web", "ours"}


def test_a_sample_holds_all_its_kept_captions_with_their_source_model_and_checkpoint(
    done: tuple[Store, Result], captioner: Path
) -> None:
    store, result = done
    kept = {(row["uid"], row["caption_id"]) for row in rows(store, result, "both") if row["kept"]}
    told = {(row["uid"], row["caption_id"]): row for row in rows(store, result, "captions")}
    (record,) = [record for record in result.generations["shards"].records if record.file("shard")]
    file = record.file("shard")
    assert file is not None
    found = set()
    with tarfile.open(store.full(store.place(record, file))) as tar:
        for member in tar:
            if member.name.endswith(".json"):
                content = tar.extractfile(member)
                assert content is not None
                said = json.load(content)
                for caption in said["captions"]:
                    pair = said["uid"], caption["caption_id"]
                    known = told[pair]
                    assert caption["text"] == known["caption"]
                    for name in ("source", "model", "checkpoint"):
                        assert caption[name] == known[name]
                    assert caption["itm_score"] is not None
                    found.add(pair)
                assert said["caption"] == said["captions"][0]["text"]
    assert found == kept


def test_a_rerun_writes_the_same_and_another_batch_as_well(done: tuple[Store, Result], captioner: Path) -> None:
    store, result = done
    images = [picture(number) for number in (1, 2, 3)]
    known = {row["uid"]: row["written"] for row in rows(store, result, "written", "image")}
    by_number = {row["n"]: row["uid"] for row in rows(store, result, "pool", "image")}
    stage = Recaption(weights=str(captioner), source="ours", candidates=2, most_tokens=6)
    batch = FakeBatch(pa.table({"uid": [by_number[number] for number in (1, 2, 3)]}), images)
    again = stage.open(Device())(batch).column("written").to_pylist()
    assert again == [known[by_number[number]] for number in (1, 2, 3)]


def test_both_sets_of_pairs_can_be_asked_in_sql(done: tuple[Store, Result]) -> None:
    store, result = done
    with Catalog(store.root) as catalog:
        found = catalog.sql(
            "SELECT pool, count(*) AS pairs, count_if(source = 'web') AS web, count(itm_score) AS scored, "
            "count(kept) AS judged, count(url) AS urls FROM samples GROUP BY pool"
        ).to_pylist()
        captions = catalog.sql("SELECT caption, source FROM samples WHERE pool = 'captions'").to_pylist()
    by_pool = {row["pool"]: row for row in found}
    web, told = len(rows(store, result, "pool")), len(rows(store, result, "captions"))
    scored = sum(row["itm_score"] is not None for row in rows(store, result, "match"))
    assert by_pool["pool"] == {"pool": "pool", "pairs": web, "web": web, "scored": 0, "judged": web, "urls": web}
    names = ("pairs", "web", "scored", "judged", "urls")
    assert tuple(by_pool["captions"][name] for name in names) == (told, web, scored, told, told)
    assert Counter((row["caption"], row["source"]) for row in captions) == Counter(
        (row["caption"], row["source"]) for row in rows(store, result, "captions")
    )


def test_the_report_shows_captions_of_both_kinds(done: tuple[Store, Result]) -> None:
    page = report(done[0].root)
    texts = [row["caption"] for row in rows(*done, "captions") if row["source"] == "ours" and row["caption"]]
    assert sum(text in page for text in texts) > 3
    assert "selection-1-1-captions" in page


def test_what_tells_more_captions_stands_first(captioner: Path, matcher: Path) -> None:
    text = LOOP.format(captioner=captioner, matcher=matcher)
    with pytest.raises(SluiceError, match=r"match takes from captions, which tells more captions; name it first"):
        Dag.parse(text.replace("from: [captions, pool]\n", "from: [pool, captions]\n")).check()


def test_what_was_said_of_fewer_captions_is_no_column_of_more(captioner: Path, matcher: Path) -> None:
    text = LOOP.format(captioner=captioner, matcher=matcher).replace(
        "from: [captions, pool, match]", "from: [captions, pool, raw]"
    )
    with pytest.raises(SluiceError, match="'itm_score', which no node"):
        Dag.parse(text.replace("[pool, captions, match, both]", "[pool, captions, both]")).check()


def test_two_that_tell_captions_do_not_meet(captioner: Path, matcher: Path) -> None:
    text = LOOP.format(captioner=captioner, matcher=matcher)
    text += "  others: {from: [pool, written], steps: [stages.recaption.Captions]}\n"
    text += "  mixed: {from: [captions, others, pool], steps: [stages.text_quality.TextQuality]}\n"
    with pytest.raises(SluiceError, match="captions and others, which tell captions each; leave one out"):
        Dag.parse(text).check()


def test_what_is_no_captioner_or_filter_is_told_in_a_line(captioner: Path, matcher: Path) -> None:
    with pytest.raises(SluiceError, match=r"weights: .* lacks \d+ tensors"):
        Recaption(weights=str(matcher)).open(Device())
    with pytest.raises(SluiceError, match=r"weights: .* lacks \d+ tensors"):
        ItmScore(weights=str(captioner)).open(Device())
    with pytest.raises(SluiceError, match="beams = 3: less than the 4 candidates"):
        Recaption(weights=str(captioner), method="beam", candidates=4)


def test_a_model_whose_numbers_overflow_is_refused_and_no_row_is_quarantined(
    captioner: Path, matcher: Path, tmp_path: Path
) -> None:
    """float16 ends at 65,504."""
    for kind, place, head in (
        (BlipForConditionalGeneration, captioner, "text_decoder.cls.predictions"),
        (BlipForImageTextRetrieval, matcher, "itm_head"),
    ):
        model: Any = kind.from_pretrained(place)
        with torch.no_grad():
            model.get_submodule(head).bias.add_(1e5)
        shutil.copytree(place, tmp_path / head)
        model.save_pretrained(tmp_path / head)
    loop = LOOP.format(captioner=tmp_path / "text_decoder.cls.predictions", matcher=tmp_path / "itm_head")
    told = "dtype: BlipForConditionalGeneration: float16 cannot hold this model's numbers; take bfloat16 or float32"
    for node, step, error in (("written", "Recaption", told), ("match", "ItmScore", "dtype: .*float16 cannot hold")):
        narrow = loop.replace(f"{step}: {{", f"{step}: {{dtype: float16, ")
        store = Store(str(tmp_path / f"root-{node}"))
        with pytest.raises(SluiceError, match=error):
            run(Dag.parse(narrow), store.root, until=node, executor=Inline(store))


def test_a_prompt_that_leaves_no_room_is_refused(captioner: Path) -> None:
    stage = Recaption(weights=str(captioner), prompt=" ".join(["cat"] * 40))
    with pytest.raises(SluiceError, match=r"has places for 32.*shorten the prompt"):
        stage.open(Device())(FakeBatch(pa.table({"uid": ["a"]}), [picture(1)]))


def test_the_stages_work_on_real_photographs(shared_data: Path, captioner: Path, matcher: Path) -> None:
    folder = shared_data / "coco_cc_by"
    lines = (folder / "manifest.jsonl").read_text().splitlines()[:3]
    known = [json.loads(line) for line in lines]
    photographs = [decode((folder / one["file"]).read_bytes()) for one in known]
    uids = [f"{row:032x}" for row in range(len(known))]
    write = Recaption(weights=str(captioner), candidates=2, most_tokens=5).open(Device())
    written = write(FakeBatch(pa.table({"uid": uids}), photographs)).column("written").to_pylist()
    assert all(len(texts) == 2 and all(texts) for texts in written)
    rows = [(row, text) for row in range(len(known)) for text in (*known[row]["captions"], *written[row])]
    table = pa.table({"uid": [uids[row] for row, _ in rows], "caption": [text for _, text in rows]})
    score = ItmScore(weights=str(matcher)).open(Device())
    scores = score(FakeBatch(table, [photographs[row] for row, _ in rows]))
    assert scores.num_rows == len(rows)
    assert scores.column("itm_score").null_count == 0
