"""Pairs made conversations: what is in the shards, why a turn is not, and that the same pairs give the same bytes."""

from __future__ import annotations

import json
import re
from collections import Counter
from pathlib import Path

import pytest

from models.data.shards import Samples
from pipeline.errors import SluiceError
from pipeline.records import Generation
from pipeline.store import Store
from stages.conversations import Conversations
from stages.conversations.conversations import KINDS
from stages.conversations.turns import Kind, Turn, conversation
from tests.pools import InlineWork
from tests.stages.conversations.conftest import CAPTIONS, made, picture, sample, tars, turns, uid, write_pairs

RELATED: tuple[Kind, ...] = ("relation", "verify")
"""How one thing lies to another, which is asked one way or the other."""


def two_shards(store: Store) -> Generation:
    return write_pairs(store, [[sample(0, CAPTIONS[0]), sample(1, CAPTIONS[1])], [sample(2, "a cat")]])


@pytest.fixture
def pairs(store: Store) -> Generation:
    return two_shards(store)


def read(path: Path) -> dict[str, dict[str, bytes]]:
    return dict(Samples.open(str(path)))


def spoken(store: Store, stage: Conversations, pairs: Generation) -> dict[str, list[dict[str, str]]]:
    """What is said about every sample."""
    members = [member for path in tars(store, made(store, stage, pairs)) for member in read(path).values()]
    return {said["id"]: said["conversations"] for said in (json.loads(member["json"]) for member in members)}


def test_every_sample_has_its_image_and_speaks_as_llava_does(store: Store, pairs: Generation) -> None:
    stage = Conversations(brief="In a word.", kinds=("count", "description"))
    first, second = (read(path) for path in tars(store, made(store, stage, pairs)))
    assert list(first) == [uid(0), uid(1)]
    assert list(second) == [uid(2)]
    assert first[uid(0)]["jpg"] == picture()
    document = json.loads(first[uid(0)]["json"])
    assert document["id"] == uid(0)
    said = document["conversations"]
    assert [turn["from"] for turn in said] == ["human", "gpt"] * (len(said) // 2)
    assert [turn["value"].count("<image>") for turn in said] == [1] + [0] * (len(said) - 1)
    asked = {turn["value"]: answer["value"] for turn, answer in zip(said[::2], said[1::2], strict=True)}
    brief = {question for question in asked if question.endswith("?\nIn a word.")}
    assert {asked[question] for question in asked if question not in brief} == {CAPTIONS[0]}


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


def test_what_gives_an_answer_away_is_said_after_it_was_asked_for(store: Store) -> None:
    caption = "Two red circles to the left of a blue star at the top on a green background."
    pairs = write_pairs(store, [[sample(number, caption) for number in range(200)]])
    found = spoken(store, Conversations(turns=20), pairs)
    begun = Counter(said[1]["kind"] for said in found.values())
    assert begun.keys() == set(KINDS) - {"reading", "medium"}
    assert min(begun.values()) >= 4, "who is always asked for one thing first learns to answer that"
    for said in found.values():
        kinds = [turn["kind"] for turn in said[1::2]]
        assert [KINDS.index(kind) for kind in kinds] == sorted(KINDS.index(kind) for kind in kinds)
        for place, turn in enumerate(said[1::2]):
            if turn["kind"] in ("colour", "question"):
                asked = " ".join(earlier["value"] for earlier in said[: 2 * place : 2])
                assert turn["value"] not in asked.replace("?", " ").split()


def test_which_colour_comes_first_changes_from_sample_to_sample(store: Store) -> None:
    """Asked of a background first, always, a model answers for the background whatever the question names."""
    pairs = write_pairs(store, [[sample(number, "A red star on a green background.") for number in range(60)]])
    found = spoken(store, Conversations(kinds=("colour",)), pairs)
    first = Counter(said[1]["value"] for said in found.values())
    assert first.keys() == {"red", "green"}
    assert min(first.values()) >= 15


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
    said = spoken(store, Conversations(turns=1, kinds=("count", "colour")), pairs)
    assert len(said[uid(0)]) == 2
    assert said[uid(0)][1]["kind"] in ("count", "colour")


def test_the_same_pairs_give_the_same_bytes_and_other_parameters_other_names(
    store: Store, pairs: Generation, tmp_path: Path
) -> None:
    one = tars(store, made(store, Conversations(), pairs))
    other = Store(str(tmp_path / "other"))
    again = tars(other, made(other, Conversations(), two_shards(other)))
    assert [path.read_bytes() for path in one] == [path.read_bytes() for path in again]
    assert [path.parent.name for path in one] == [path.parent.name for path in again]
    for number, changed in enumerate((Conversations(turns=1), Conversations(apart=True))):
        found = tars(store, made(store, changed, pairs, node=f"other{number}"))
        assert found[0].parent.name != one[0].parent.name


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


@pytest.mark.parametrize(
    ("centres", "told"),
    [
        ([(0.12, 0.62), (0.38, 0.62), (0.12, 0.88), (0.38, 0.88)], "in the bottom left corner"),  # a quarter of it
        ([(0.08, 0.25), (0.25, 0.25), (0.42, 0.25)], "in the top left corner"),
        ([(0.5, 0.1), (0.5, 0.9)], None),  # the middle is where none of them is
        ([(0.1, 0.5), (0.9, 0.5)], None),
        ([(0.33, 0.5), (0.67, 0.5)], None),  # near to the middle, and none in it
        ([(0.05, 0.1), (0.4, 0.1)], "in the top left corner"),  # 0.175 from their middle each
        ([(0.05, 0.1), (0.42, 0.1)], None),  # 0.185
        ([(0.34, 0.1)], None),  # in the top left corner, or at the top?
        ([(0.9, 0.65)], None),
        ([(0.36, 0.1)], "at the top"),
    ],
)
def test_things_have_a_place_where_they_stand_together(
    store: Store, centres: list[tuple[float, float]], told: str | None
) -> None:
    boxes = [{"label": "dog", "box": [x - 0.05, y - 0.05, x + 0.05, y + 0.05]} for x, y in centres]
    rows = turns(store, made(store, Conversations(), write_pairs(store, [[sample(0, boxes=boxes)]])))
    assert [row["answer"] for row in rows if row["kind"] == "place"] == ([told] if told else [])


def test_boxes_are_asked_about_too(store: Store) -> None:
    boxes = [{"label": "dog", "box": [0.1, 0.1, 0.2, 0.2]}, {"label": "cat", "box": [0.7, 0.1, 0.9, 0.2]}, {"label": 3}]
    pairs = write_pairs(store, [[sample(0, boxes=boxes)]])
    rows = turns(store, made(store, Conversations(), pairs))
    assert counts(rows) == {"dogs": "one", "cats": "one"}
    places = {row["question"]: row["answer"] for row in rows if row["kind"] == "place"}
    assert places == {"Where is the dog?": "in the top left corner", "Where is the cat?": "in the top right corner"}
    (relation,) = (row for row in rows if row["kind"] in RELATED)
    assert (relation["question"], relation["answer"]) in {
        ("Is the dog to the left of the cat?", "yes"),
        ("Is the dog to the right of the cat?", "no"),
        ("Is the cat to the right of the dog?", "yes"),
        ("Is the cat to the left of the dog?", "no"),
        ("Is the dog to the left of or to the right of the cat?", "to the left of"),
        ("Is the cat to the left of or to the right of the dog?", "to the right of"),
    }
    assert {row["verdict"] for row in rows} == {"kept"}


def test_of_several_boxes_of_a_label_all_stand_so_or_nothing_is_asked(store: Store) -> None:
    """Three stars over two hearts, one of them to the right of a heart and two to the left."""
    places = {"red star": [(0.1, 0.1), (0.2, 0.1), (0.8, 0.1)], "blue heart": [(0.5, 0.6), (0.6, 0.6)]}
    boxes = [
        {"label": label, "box": [x - 0.05, y - 0.05, x + 0.05, y + 0.05]} for label in places for x, y in places[label]
    ]
    rows = turns(store, made(store, Conversations(), write_pairs(store, [[sample(0, boxes=boxes)]])))
    assert counts(rows) == {"stars": "three", "hearts": "two"}
    (place,) = (row for row in rows if row["kind"] == "place")
    assert (place["question"], place["answer"]) == ("Where are the blue hearts?", "in the middle")
    (relation,) = (row for row in rows if row["kind"] in RELATED)
    assert (relation["question"], relation["answer"]) in {
        ("Are the red stars above the blue hearts?", "yes"),
        ("Are the red stars below the blue hearts?", "no"),
        ("Are the blue hearts below the red stars?", "yes"),
        ("Are the blue hearts above the red stars?", "no"),
        ("Are the red stars above or below the blue hearts?", "above"),
        ("Are the blue hearts above or below the red stars?", "below"),
    }


def test_where_turns_are_read_apart_nothing_is_left_out_and_relations_are_asked_in_every_way(store: Store) -> None:
    boxes = [{"label": "red star", "box": [0.1, 0.1, 0.2, 0.2]}, {"label": "blue heart", "box": [0.7, 0.1, 0.8, 0.2]}]
    pairs = write_pairs(store, [[sample(number, boxes=boxes) for number in range(30)]])
    kinds: tuple[Kind, ...] = ("count", "colour", "place", "relation", "verify")
    found = spoken(store, Conversations(apart=True, turns=20, brief="", kinds=kinds), pairs)
    asked_from = set()
    for said in found.values():
        counted = Counter(turn["kind"] for turn in said[1::2])
        assert counted == {"count": 2, "colour": 2, "place": 2, "relation": 2, "verify": 2}
        rounds = zip(said[::2], said[1::2], strict=True)
        told = {question["value"]: answer["value"] for question, answer in rounds if answer["kind"] in RELATED}
        first, other = next(
            (first, other)
            for first, other in (("red star", "blue heart"), ("blue heart", "red star"))
            if f"Is the {first} to the left of the {other}?" in told
        )
        true, false = ("left", "right") if first == "red star" else ("right", "left")
        assert told == {
            f"Is the {first} to the left of or to the right of the {other}?": f"to the {true} of",
            f"Is the {other} to the left of or to the right of the {first}?": f"to the {false} of",
            f"Is the {first} to the {true} of the {other}?": "yes",
            f"Is the {first} to the {false} of the {other}?": "no",
        }
        asked_from.add(first)
    assert asked_from == {"red star", "blue heart"}
    chained = spoken(store, Conversations(brief=""), pairs).values()
    assert all(sum(turn.get("kind") in RELATED for turn in said) <= 1 for said in chained)


@pytest.mark.parametrize("wanted", RELATED)
def test_a_relation_is_asked_in_a_way_that_is_wanted(store: Store, wanted: Kind) -> None:
    boxes = [{"label": "star", "box": [0.1, 0.1, 0.2, 0.2]}, {"label": "heart", "box": [0.7, 0.1, 0.8, 0.2]}]
    told = [sample(number, "a red dog in front of a blue house", boxes=boxes) for number in range(20)]
    rows = turns(store, made(store, Conversations(kinds=(wanted,)), write_pairs(store, [told])))
    assert Counter(row["kind"] for row in rows) == {wanted: 40}, "one of the caption and one of the boxes, each time"
    yes_or_no = {row["answer"] in ("yes", "no") for row in rows}
    assert yes_or_no == {wanted == "verify"}


def test_no_word_of_a_relation_gives_the_answer_away_where_boxes_are_in_reading_order(store: Store) -> None:
    boxes = [{"label": "star", "box": [0.1, 0.1, 0.2, 0.2]}, {"label": "heart", "box": [0.7, 0.7, 0.8, 0.8]}]
    pairs = write_pairs(store, [[sample(number, boxes=boxes) for number in range(100)]])
    rows = [row for row in turns(store, made(store, Conversations(), pairs)) if row["kind"] == "verify"]
    for words in ("to the left of", "to the right of", "above", "below"):
        answers = [row["answer"] for row in rows if f" {words} the " in row["question"]]
        assert 0.3 < answers.count("yes") / len(answers) < 0.7, words


def test_no_word_of_a_relation_gives_the_answer_away_where_captions_always_tell_it_so(store: Store) -> None:
    pairs = write_pairs(store, [[sample(number, "a red dog in front of a blue house") for number in range(200)]])
    rows = [row for row in turns(store, made(store, Conversations(), pairs)) if row["question"].startswith("Is ")]
    for words in ("in front of", "behind"):
        answers = [row["answer"] for row in rows if f" {words} the " in row["question"]]
        assert 0.35 < answers.count("yes") / len(answers) < 0.65, words


def counts(rows: list[dict[str, str]]) -> dict[str, str]:
    """What was counted, in words without its colour."""
    counted = [row for row in rows if row["kind"] == "count"]
    words = [re.sub("How many |What is the number of | are there|[?]", "", row["question"]) for row in counted]
    return {word.split()[-1]: row["answer"] for word, row in zip(words, counted, strict=True)}


STAR, HEART = [0.1, 0.8, 0.2, 0.9], [0.45, 0.1, 0.55, 0.2]


def test_what_has_boxes_is_asked_of_these_alone(store: Store) -> None:
    boxes = [{"label": "red star", "box": STAR}, {"label": "blue heart", "box": HEART}]
    caption = "three red stars at the top, two green boxes above a blue heart, five red stars above a dog"
    said = sample(0, caption, boxes=boxes)
    rows = turns(store, made(store, Conversations(), write_pairs(store, [[said]])))
    of_captions, of_boxes = ([row for row in rows if bool(row["caption_id"]) == told] for told in (True, False))
    assert {words.split()[-1]: number for words, number in counts(of_captions).items()} == {"boxes": "two"}
    assert {words.split()[-1]: number for words, number in counts(of_boxes).items()} == {
        "stars": "one",
        "hearts": "one",
    }
    assert {row["answer"] for row in of_captions if row["kind"] == "colour"} == {"green"}
    assert not any(row["kind"] in RELATED for row in of_captions)
    assert {row["answer"] for row in of_boxes if row["kind"] == "colour"} == {"red", "blue"}
    assert {row["answer"] for row in rows if row["kind"] == "place"} == {"in the bottom left corner", "at the top"}
    more = sample(1, "five red stars and two green boxes", boxes=boxes), sample(2, "five red stars and two green boxes")
    rows = turns(store, made(store, Conversations(), write_pairs(store, [list(more)], node="more")))
    assert {row["uid"] for row in rows if row["kind"] == "reasoning"} == {uid(2)}


@pytest.mark.parametrize(
    ("caption", "denied"),
    [
        ("a green star on a white background", True),
        ("a red star and a green heart on a white background", True),
        ("a crimson star on a white background", False),  # called otherwise
        ("a turquoise star on a white background", False),  # which some call red, who knows
        ("a star on a white background", False),
        ("a green box on a white background", False),  # which nobody looked for
        ("a black lorry on a white background", True),  # a fire lorry is one
    ],
)
def test_a_caption_that_boxes_deny_is_asked_nothing(store: Store, caption: str, denied: bool) -> None:
    boxes = [{"label": "red star", "box": STAR}, {"label": "blue heart", "box": HEART}]
    boxes.append({"label": "dark red fire lorry", "box": HEART})
    rows = turns(store, made(store, Conversations(), write_pairs(store, [[sample(0, caption, boxes=boxes)]])))
    verdicts = {row["verdict"] for row in rows if row["caption_id"]}
    assert verdicts == ({"denied"} if denied else {"kept"})
    assert {row["verdict"] for row in rows if not row["caption_id"]} == {"kept"}


@pytest.mark.parametrize(
    ("labels", "counted"),
    [
        (("red star", "Red  Stars", "RED_STAR"), {"stars": "three"}),
        (("red star", "star"), {}),  # which may be red, too
        (("red star", "blue star", "star"), {}),
        (("dark red star", "light red star", "blue star"), {"stars": "one"}),  # blue ones
        (("grey cat", "gray cat"), {}),
        (("tennis ball", "ball"), {"balls": "one"}),
        (("background", "red star"), {"stars": "one"}),
    ],
)
def test_a_label_is_asked_of_by_words_that_fit_no_other(
    store: Store, labels: tuple[str, ...], counted: dict[str, str]
) -> None:
    boxes = [{"label": label, "box": STAR} for label in labels]
    pairs = write_pairs(store, [[sample(number, "asleep", boxes=boxes) for number in range(10)]])
    rows = turns(store, made(store, Conversations(), pairs))
    assert counts(rows) == counted
    if "blue star" in labels:
        assert not any(re.search("(many|of) stars", row["question"]) for row in rows)
        assert not any(row["kind"] == "colour" for row in rows)


def test_what_two_captions_say_is_asked_once(store: Store) -> None:
    one, other = "a red star to the left of a blue heart", "a blue heart to the right of a red star"
    pairs = write_pairs(store, [[sample(number, one, other) for number in range(20)]])
    rows = [row for row in turns(store, made(store, Conversations(), pairs)) if row["kind"] != "description"]
    assert {row["verdict"] for row in rows if row["caption_id"].endswith("-1")} == {"duplicate"}
    assert {row["verdict"] for row in rows if row["caption_id"].endswith("-0")} == {"kept"}


def test_what_two_captions_read_is_asked_once_and_another_word_too(store: Store) -> None:
    texts = ('a wall with the word "STOP"', 'a sign that says "stop"', 'a wall and the text "SALE"')
    pairs = write_pairs(store, [[sample(number, *texts) for number in range(20)]])
    rows = [row for row in turns(store, made(store, Conversations(), pairs)) if row["kind"] == "reading"]
    assert {row["verdict"] for row in rows if row["answer"] == "stop"} == {"duplicate"}
    assert {row["verdict"] for row in rows if row["answer"] == "STOP"} == {"kept"}
    assert "kept" in {row["verdict"] for row in rows if row["answer"] == "SALE"}, "unless in the same words"


def test_two_ways_in_which_things_lie_to_each_other_are_both_asked(store: Store) -> None:
    one, other = "a red star above a blue heart", "a red star to the left of a blue heart"
    rows = turns(store, made(store, Conversations(), write_pairs(store, [[sample(0, one, other)]])))
    assert [row["verdict"] for row in rows if row["kind"] in RELATED] == ["kept", "kept"]


def test_another_revision_writes_other_shards(store: Store, pairs: Generation, monkeypatch: pytest.MonkeyPatch) -> None:
    before = tars(store, made(store, Conversations(), pairs))
    monkeypatch.setattr(Conversations, "revision", Conversations.revision + 1)
    after = tars(store, made(store, Conversations(), pairs, node="after"))
    assert {path.parent.name for path in before}.isdisjoint(path.parent.name for path in after)


def test_one_denied_caption_silences_no_other(store: Store) -> None:
    boxes = [{"label": "red star", "box": STAR}]
    caption = "a {} star on a white background, a black dog"
    said = sample(0, caption.format("green"), caption.format("red"), boxes=boxes)
    rows = turns(store, made(store, Conversations(), write_pairs(store, [[said]])))
    verdicts = {(row["caption_id"], row["verdict"]) for row in rows if row["answer"] in ("white", "black")}
    assert verdicts == {("c0-0", "denied"), ("c0-1", "kept")}


def test_a_colour_that_the_label_leaves_open_is_asked_of_captions(store: Store) -> None:
    dog, others = {"label": "dog", "box": STAR}, {"label": "dog", "box": HEART}
    for boxes, answers in (([dog], ["brown"]), ([dog, others], [])):  # of two dogs, which is brown?
        pairs = write_pairs(store, [[sample(0, "a brown dog", boxes=boxes)]])
        rows = turns(store, made(store, Conversations(), pairs))
        assert [row["answer"] for row in rows if row["kind"] == "colour"] == answers
        assert [row["caption_id"] for row in rows if row["kind"] == "count"] == [None]


@pytest.mark.parametrize(
    "box", [[10, 20, 300, 400], [0.5, 0.1, 0.2, 0.2], [0.1, 0.1, None, 0.2], [0.1, 0.1, 0.2], "0.1"]
)
def test_of_a_label_with_a_box_that_is_none_nothing_is_asked(store: Store, box: object) -> None:
    boxes = [{"label": "dog", "box": [0.1, 0.1, 0.2, 0.2]}, {"label": "Dog", "box": box}]
    cat = {"label": "cat", "box": [0.7, 0.1, 0.9, 0.2]}
    for told in ([*boxes, cat], json.dumps([*boxes, cat])):  # as lists, and as text
        rows = turns(store, made(store, Conversations(), write_pairs(store, [[sample(0, boxes=told)]])))
        assert counts(rows) == {"cats": "one"}
        assert not any("dog" in row["question"].lower() for row in rows)


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
