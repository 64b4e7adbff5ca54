"""From a pool to shards by what images show and captions say: faces, text, language, listed words, personal data."""

import io
import json
import tarfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image

from pipeline import Dag, run
from pipeline.store import Store
from tests.inline import Inline
from tests.models.towers import tiny
from tests.stages.test_image_privacy import portrait
from tests.stages.test_text_in_image import scene

DAG = """
dag: private
nodes:
  urls: {{steps: [{{tests.stages.gallery.Links: {{rows: 16}}}}]}}
  pool: {{from: urls, steps: [{{tests.stages.gallery.Gallery: {{missing: 11}}}}]}}
  words:
    from: pool
    steps:
      - stages.language.Language
      - stages.word_lists.WordList: {{words: {terms}, name: toxic_words}}
      - stages.caption_privacy.MaskedCaptions: {{region: US}}
  looks:
    from: pool
    steps:
      - stages.image_privacy.Faces: {{side: 320}}
      - stages.text_in_image.TextInImage
      - stages.embed.ImageEmbeddings: {{weights: {weights}}}
      - stages.text_in_image.MaskedImageEmbeddings: {{weights: {weights}}}
      - stages.embed.TextEmbeddings: {{weights: {weights}}}
      - stages.score.ClipScore
      - stages.score.ClipScore: {{image: masked_image_embedding, name: masked_clip_score}}
  kept:
    from: [pool, words, looks]
    steps:
      - stages.select.Select:
          rules:
            - downloaded: status = 'success'
            - english: language = 'en'
            - civil: len(toxic_words) = 0
            - few_faces: faces <= 1
            - little_text: text_area <= 0.5
            - more_than_its_text: coalesce(masked_clip_score, clip_score) >= -1
  shards:
    from: [pool, words, looks, kept]
    steps:
      - stages.shard.WebDataset: {{text: masked_caption, blur: face_boxes}}
"""
CAPTIONS = (
    "a red circle on a grey wall",
    "write to jane@mail.example for a picture of a wall",
    "ein roter Kreis vor einer grauen Wand",
    "a picture of an old grump at the wall",
    "nothing but a wall of stones",
)
PICTURES = (portrait((110, 110, 45)), scene("SALE TODAY"), portrait(), portrait((80, 100, 40), (230, 110, 40)))


def png(number: int) -> bytes:
    sink = io.BytesIO()
    Image.fromarray(PICTURES[number % len(PICTURES)]).save(sink, "PNG")
    return sink.getvalue()


def test_the_whole_way_from_a_pool_to_private_shards(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tests.stages.gallery.WORDS", CAPTIONS)
    monkeypatch.setattr("tests.stages.gallery.png", png)
    (tmp_path / "terms.txt").write_text("old grump\n")
    weights = tiny.save("clip", tmp_path / "clip")
    store = Store(str(tmp_path / "root"))
    dag = Dag.parse(DAG.format(terms=tmp_path / "terms.txt", weights=weights))
    result = run(dag, store.root, executor=Inline(store))
    tables = {
        (node, grain): pa.concat_tables([store.read_table(one, grain) for one in result.generations[node].records])
        for node, grain in (("kept", "caption"), ("pool", "image"), ("looks", "image"), ("looks", "caption"))
    }
    numbers = dict(zip(*(tables["pool", "image"][name].to_pylist() for name in ("uid", "n")), strict=True))
    dropped: dict[int, list[str | None]] = {}
    for row in tables["kept", "caption"].to_pylist():
        dropped.setdefault(numbers[row["uid"]], []).append(row["dropped_by"])
    # number n has the caption n mod 5, and those divisible by 5 the next one as well; every fourth has two faces
    assert dropped == {
        0: ["downloaded", "downloaded"],
        1: [None],
        2: ["english"],
        3: ["civil"],
        4: [None],
        5: [None, None],
        6: [None],
        7: ["english"],
        8: ["civil"],
        9: [None],
        10: [None, None],
        11: ["downloaded"],
        12: ["english"],
        13: ["civil"],
        14: [None],
        15: ["few_faces", "few_faces"],
    }
    rescored = tables["looks", "caption"].column("masked_clip_score").is_valid().to_pylist()
    with_text = [numbers[uid] % 4 == 1 for uid in tables["looks", "caption"].column("uid").to_pylist()]
    assert rescored == with_text
    (shard,) = [one for one in result.generations["shards"].records if one.phase == "write"]
    with tarfile.open(store.full(f"shards/{shard.notes['path']}")) as tar:
        members = {member.name: tar.extractfile(member).read() for member in tar}  # type: ignore[union-attr]
    documents = [json.loads(data) for name, data in members.items() if name.endswith(".json")]
    assert {numbers[one["uid"]]: len(one["face_boxes"]) for one in documents} == {
        1: 0,
        4: 1,
        5: 0,
        6: 0,
        9: 0,
        10: 0,
        14: 0,
    }
    for one in documents:
        number = numbers[one["uid"]]
        data = members[f"{one['uid']}.png"]
        assert (data == png(number)) == (number != 4) == (one["blurred_sha256"] is None)
        assert np.asarray(Image.open(io.BytesIO(data))).shape == (240, 320, 3)
    texts = b"".join(data for name, data in members.items() if not name.endswith(".png"))
    assert b"jane@mail.example" not in texts
    assert b"write to [EMAIL] for a picture of a wall" in texts
