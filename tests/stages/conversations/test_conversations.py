"""Pairs made conversations: what is in the shards, why a turn is not, and that the same pairs give the same bytes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from models.data.shards import Samples
from pipeline.errors import SluiceError
from pipeline.records import Generation
from pipeline.store import Store
from stages.conversations import Conversations
from stages.conversations.turns import Kind, Turn, conversation
from tests.pools import InlineWork
from tests.stages.conversations.conftest import CAPTIONS, made, picture, sample, tars, turns, uid, write_pairs

COUNTING = {("How many", " are there"), ("What is the number of", "")}


def two_shards(store: Store) -> Generation:
    return write_pairs(store, [[sample(0, CAPTIONS[0]), sample(1, CAPTIONS[1])], [sample(2, "a cat")]])


@pytest.fixture
def pairs(store: Store) -> Generation:
    return two_shards(store)


def read(path: Path) -> dict[str, dict[str, bytes]]:
    return dict(Samples.open(str(path)))


def test_every_sample_has_its_image_and_speaks_as_llava_does(store: Store, pairs: Generation) -> None:
    first, second = (
        read(path) for path in tars(store, made(store, Conversations(turns=20, brief="In a word."), pairs))
    )
    assert list(first) == [uid(0), uid(1)]
    assert list(second) == [uid(2)]
    assert first[uid(0)]["jpg"] == picture()
    document = json.loads(first[uid(0)]["json"])
    assert document["id"] == uid(0)
    said = document["conversations"]
    assert [turn["from"] for turn in said] == ["human", "gpt"] * (len(said) // 2)
    assert [turn["value"].count("<image>") for turn in said] == [1] + [0] * (len(said) - 1)
    asked = dict(zip((turn["value"] for turn in said[::2]), (turn["value"] for turn in said[1::2]), strict=True))
    (counted,) = (question for question, answer in asked.items() if answer == "two")
    assert counted in {f"{words} red circles{end}?\nIn a word." for words, end in COUNTING}
    (described,) = (question for question, answer in asked.items() if answer == CAPTIONS[0])
    assert "In a word." not in described


def test_of_the_kinds_of_the_shipped_dag_no_colour_is_lost_to_a_question(store: Store) -> None:
    pairs = write_pairs(store, [[sample(number, "A red star.") for number in range(20)]])
    rows = turns(store, made(store, Conversations(kinds=("colour", "count", "relation")), pairs))
    assert [row["kind"] for row in rows].count("colour") == 20


@pytest.mark.parametrize(
    ("kind", "source", "brief"),
    [
        ("colour", "template", True),
        ("question", "template", True),
        ("question", "a-model", False),
        ("count", "a-model", True),
        ("reasoning", "template", False),
        ("description", "template", False),
    ],
)
def test_a_word_is_asked_for_where_the_answer_is_one(kind: Kind, source: str, brief: bool) -> None:
    asked, _ = conversation([Turn(kind, "What?", "this", None, source)], 0, "In a word.")
    assert asked["value"] == ("What?\nIn a word." if brief else "What?")


def test_where_a_turn_comes_from_stays_with_it(store: Store, pairs: Generation) -> None:
    generation = made(store, Conversations(turns=20), pairs)
    document = json.loads(read(tars(store, generation)[0])[uid(0)]["json"])
    assert document["provenance"] == {"uid": uid(0), "url": "http://a.example/0.jpg"}
    answers = document["conversations"][1::2]
    assert {(turn["source"], turn["caption_id"]) for turn in answers} == {("template", "c0-0")}
    assert {turn["kind"] for turn in answers} >= {"count", "colour", "relation", "description"}


def test_what_gives_an_answer_away_is_said_after_it_was_asked_for(store: Store, pairs: Generation) -> None:
    generation = made(store, Conversations(turns=20), pairs)
    kinds = [t["kind"] for t in json.loads(read(tars(store, generation)[0])[uid(0)]["json"])["conversations"][1::2]]
    assert kinds.index("count") < kinds.index("relation") < kinds.index("description")
    assert "colour" not in kinds[kinds.index("count") :]  # who asks how many names it


def test_every_turn_has_a_row_and_the_counts_are_its_verdicts(store: Store) -> None:
    pairs = write_pairs(store, [[sample(0, "a red dog", "a red dog", "a" * 3000)]])
    generation = made(store, Conversations(), pairs)
    rows = turns(store, generation)
    verdicts = [row["verdict"] for row in rows]
    assert {"kept", "duplicate", "too_long"} == set(verdicts)
    counted = next(record.statuses for record in generation.records if record.phase == "turns")
    assert counted == {verdict: verdicts.count(verdict) for verdict in set(verdicts)}
    assert [row["turn"] for row in rows] == list(range(len(rows)))


def test_no_more_turns_than_asked_for_and_only_of_the_kinds_that_were(store: Store, pairs: Generation) -> None:
    stage = Conversations(turns=2, kinds=("count", "colour"))
    document = json.loads(read(tars(store, made(store, stage, pairs))[0])[uid(0)]["json"])
    assert [turn["kind"] for turn in document["conversations"][1::2]] in (["count", "count"], ["count", "colour"])


def test_the_same_pairs_give_the_same_bytes_and_other_parameters_other_names(
    store: Store, pairs: Generation, tmp_path: Path
) -> None:
    one = tars(store, made(store, Conversations(), pairs))
    other = Store(str(tmp_path / "other"))
    again = tars(other, made(other, Conversations(), two_shards(other)))
    assert [path.read_bytes() for path in one] == [path.read_bytes() for path in again]
    assert [path.parent.name for path in one] == [path.parent.name for path in again]
    fewer = tars(store, made(store, Conversations(turns=1), pairs, node="fewer"))
    assert fewer[0].parent.name != one[0].parent.name


def test_a_second_time_nothing_is_done_and_a_changed_shard_alone_is_done_again(store: Store, pairs: Generation) -> None:
    stage = Conversations()
    made(store, stage, pairs)
    work = InlineWork(store, "chats", stage, [pairs])
    stage.assemble(work)
    assert work.done == []
    changed = write_pairs(store, [[sample(0, CAPTIONS[0]), sample(1, CAPTIONS[1])], [sample(2, "two cats")]])
    work = InlineWork(store, "chats", stage, [changed])
    stage.assemble(work)
    assert [part for phase, part in work.done if phase == "turns"] == ["00000001"]


def test_a_sample_of_which_nothing_can_be_asked_is_left_out(store: Store) -> None:
    pairs = write_pairs(store, [[sample(0), sample(1, "a cat")]])
    (path,) = tars(store, made(store, Conversations(), pairs))
    assert list(read(path)) == [uid(1)]


def test_boxes_are_asked_about_too(store: Store) -> None:
    boxes = [{"label": "dog", "box": [0.1, 0.1, 0.2, 0.2]}, {"label": "cat", "box": [0.7, 0.1, 0.9, 0.2]}, {"label": 3}]
    pairs = write_pairs(store, [[sample(0, boxes=boxes)]])
    rows = turns(store, made(store, Conversations(), pairs))
    assert {(row["question"], row["answer"]) for row in rows if row["kind"] == "count"} == {
        ("How many dogs are there?", "one"),
        ("How many cats are there?", "one"),
    }
    (relation,) = (row for row in rows if row["kind"] == "relation")
    assert (relation["question"], relation["answer"]) in {
        ("Is the dog to the left of the cat?", "yes"),
        ("Is the dog to the right of the cat?", "no"),
        ("Is the cat to the right of the dog?", "yes"),
        ("Is the cat to the left of the dog?", "no"),
    }
    assert {row["verdict"] for row in rows} == {"kept"}


def test_of_several_boxes_of_a_label_all_stand_so_or_nothing_is_asked(store: Store) -> None:
    """Three stars over two hearts, one of them to the right of a heart and two to the left."""
    places = {"red star": [(0.1, 0.1), (0.2, 0.1), (0.8, 0.1)], "blue heart": [(0.5, 0.6), (0.6, 0.6)]}
    boxes = [
        {"label": label, "box": [x - 0.05, y - 0.05, x + 0.05, y + 0.05]} for label in places for x, y in places[label]
    ]
    rows = turns(store, made(store, Conversations(), write_pairs(store, [[sample(0, boxes=boxes)]])))
    assert {(row["question"], row["answer"]) for row in rows if row["kind"] == "count"} == {
        ("How many red stars are there?", "three"),
        ("How many blue hearts are there?", "two"),
    }
    (relation,) = (row for row in rows if row["kind"] == "relation")
    assert (relation["question"], relation["answer"]) in {
        ("Are the red stars above the blue hearts?", "yes"),
        ("Are the red stars below the blue hearts?", "no"),
        ("Are the blue hearts below the red stars?", "yes"),
        ("Are the blue hearts above the red stars?", "no"),
    }


def test_no_word_of_a_relation_gives_the_answer_away_where_boxes_are_in_reading_order(store: Store) -> None:
    boxes = [{"label": "star", "box": [0.1, 0.1, 0.2, 0.2]}, {"label": "heart", "box": [0.7, 0.7, 0.8, 0.8]}]
    pairs = write_pairs(store, [[sample(number, boxes=boxes) for number in range(100)]])
    rows = [row for row in turns(store, made(store, Conversations(), pairs)) if row["kind"] == "relation"]
    for words in ("to the left of", "to the right of", "above", "below"):
        answers = [row["answer"] for row in rows if f" {words} the " in row["question"]]
        assert 0.3 < answers.count("yes") / len(answers) < 0.7, words


def test_no_word_of_a_relation_gives_the_answer_away_where_captions_always_tell_it_so(store: Store) -> None:
    pairs = write_pairs(store, [[sample(number, "a red dog in front of a blue house") for number in range(200)]])
    rows = [row for row in turns(store, made(store, Conversations(), pairs)) if row["question"].startswith("Is ")]
    for words in ("in front of", "behind"):
        answers = [row["answer"] for row in rows if f" {words} the " in row["question"]]
        assert 0.35 < answers.count("yes") / len(answers) < 0.65, words


def test_what_has_boxes_is_counted_and_placed_by_these_alone(store: Store) -> None:
    """The caption is another image's."""
    star, heart = [0.1, 0.8, 0.2, 0.9], [0.6, 0.1, 0.7, 0.2]
    boxes = [{"label": "red star", "box": star}, {"label": "blue heart", "box": heart}]
    said = sample(0, "three red stars above a blue heart, two green boxes", boxes=boxes)
    rows = turns(store, made(store, Conversations(), write_pairs(store, [[said]])))
    counts = {(row["answer"], row["question"].rpartition("green boxes")[1]) for row in rows if row["kind"] == "count"}
    assert counts == {("one", ""), ("two", "green boxes")}
    more = sample(1, "five red stars and two green boxes", boxes=boxes), sample(2, "five red stars and two green boxes")
    rows += turns(store, made(store, Conversations(), write_pairs(store, [list(more)], node="more")))
    assert {row["uid"] for row in rows if row["kind"] == "reasoning"} == {uid(2)}
    for row in (row for row in rows if row["kind"] == "relation"):
        low = "red star above" in row["question"] or "blue heart below" in row["question"]
        assert row["answer"] == "no" if low else row["caption_id"] is None


@pytest.mark.parametrize(
    "box", [[10, 20, 300, 400], [0.5, 0.1, 0.2, 0.2], [0.1, 0.1, None, 0.2], [0.1, 0.1, 0.2], "0.1"]
)
def test_of_a_label_with_a_box_that_is_none_nothing_is_asked(store: Store, box: object) -> None:
    boxes = [{"label": "dog", "box": [0.1, 0.1, 0.2, 0.2]}, {"label": "Dog", "box": box}]
    cat = {"label": "cat", "box": [0.7, 0.1, 0.9, 0.2]}
    for told in ([*boxes, cat], json.dumps([*boxes, cat])):  # as lists, and as text
        rows = turns(store, made(store, Conversations(), write_pairs(store, [[sample(0, boxes=told)]])))
        assert [(row["question"], row["answer"]) for row in rows] == [("How many cats are there?", "one")]


def test_of_pairs_of_which_nothing_was_kept_the_remedy_is_told(store: Store) -> None:
    with pytest.raises(SluiceError, match=r"no turn was kept .* lower `grounded`"):
        made(store, Conversations(), write_pairs(store, [[sample(0)]]))


def test_what_holds_no_shards_is_refused(store: Store) -> None:
    pairs = write_pairs(store, [[sample(0, "a cat")]])
    with pytest.raises(SluiceError, match="no node in `from` holds shards"):
        made(store, Conversations())
    with pytest.raises(SluiceError, match="shards and more hold shards"):
        made(store, Conversations(), pairs, write_pairs(store, [[sample(1, "a dog")]], node="more"))


def test_a_damaged_tar_is_named_with_its_repair(store: Store) -> None:
    pairs = write_pairs(store, [[sample(0, "a cat"), sample(1, "a dog")]])
    (path,) = tars(store, pairs)
    path.write_bytes(b"rot" * 1000)
    with pytest.raises(SluiceError, match=r"verify .* --repair"):
        made(store, Conversations(), pairs)


def test_what_is_said_may_also_be_read_as_text(store: Store, pairs: Generation) -> None:
    generation = made(store, Conversations(texts=True, brief="", kinds=("count",)), pairs)
    members = read(tars(store, generation)[0])[uid(0)]
    said = json.loads(members["json"])["conversations"]
    assert members["txt"].decode() == "\n".join(turn["value"].removeprefix("<image>\n") for turn in said)
    assert list(members)[-1] == "json", "an index of sluice ends a sample with it"
