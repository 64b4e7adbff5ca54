"""Captions are true, many, and say what they claim."""

import random
import re
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from infra.miniweb.captions import COLOUR_WORDS, SHAPE_WORDS, Caption, Ground, Look, Relation, Written, caption, holds
from infra.miniweb.languages import LANGUAGES
from infra.miniweb.scenes import COLOURS, SHAPES, SIDES, Group, Scene, draw_scene
from infra.miniweb.texts import boilerplate, spam, truncated

NUMBERS = st.integers(0, 10_000)


def scene_of(number: int) -> Scene:
    return draw_scene(f"17/{number}", SIDES["small"])


def told(number: int, turn: int = 0) -> tuple[Scene, Caption]:
    scene = scene_of(number)
    return scene, caption(scene, random.Random(turn))


@given(NUMBERS, st.integers(0, 20))
def test_every_wording_is_true_and_names_a_colour_that_is_there_and_none_that_is_not(number: int, turn: int) -> None:
    scene, said = told(number, turn)
    assert said.true_of(scene)
    words = set(re.findall(r"[a-z]+", said.text.lower()))
    named = {colour for colour, synonyms in COLOUR_WORDS.items() if words & set(synonyms)}
    assert named <= {group.colour for group in scene.groups} | {scene.colour}
    assert named & {group.colour for group in scene.groups}


def test_a_scene_can_be_told_in_many_ways() -> None:
    for number in range(8):
        texts = {caption(scene_of(number), random.Random(turn)).text for turn in range(200)}
        assert len(texts) > 80


def test_counts_attributes_relations_and_backgrounds_are_all_told_now_and_then() -> None:
    claims = [claim for number in range(500) for claim in told(number, number)[1].claims]
    looks = [claim for claim in claims if isinstance(claim, Look)]
    for attribute in ("count", "size", "texture", "place"):
        assert sum(getattr(look, attribute) is not None for look in looks) > 50
    assert sum(isinstance(claim, Relation) for claim in claims) > 50
    assert sum(isinstance(claim, Ground) for claim in claims) > 100


RED = Group(2, "circle", "red", "large", "striped", 0, 0)
BLUE = Group(1, "square", "blue", "small", "plain", 1, 2)
SCENE = replace(scene_of(1), groups=(RED, BLUE), colour="white", pattern="fading")


@given(NUMBERS, st.integers(0, 20))
def test_a_word_over_the_picture_is_told_behind_the_rest(number: int, turn: int) -> None:
    scene, said = told(number, turn)
    read = caption(replace(scene, written="EXIT"), random.Random(turn))
    assert read.text.startswith(said.text.removesuffix("."))
    assert '"EXIT"' in read.text
    assert read.text.endswith(".") == said.text.endswith(".")
    assert read.false_of(scene) == [Written("EXIT")]
    assert read.false_of(replace(scene, written="SALE")) == [Written("EXIT")]
    assert read.true_of(replace(scene, written="EXIT"))


@pytest.mark.parametrize(
    ("claim", "true"),
    [
        (Look("circle"), True),
        (Look("circle", "red", 2, "large", "striped", "in the top left corner"), True),
        (Look("circle", "blue"), False),
        (Look("circle", "red", 3), False),
        (Look("circle", "red", size="small"), False),
        (Look("circle", "red", texture="dotted"), False),
        (Look("square", "blue", place="at the top"), False),
        (Look("star"), False),
        (Ground("white"), True),
        (Ground("white", "fading"), True),
        (Ground("white", "plain"), False),
        (Relation(Look("circle"), "above", Look("square")), True),
        (Relation(Look("circle"), "to the left of", Look("square")), True),
        (Relation(Look("square"), "above", Look("circle")), False),
        (Relation(Look("circle", "blue"), "above", Look("square")), False),
    ],
)
def test_claims_hold_or_do_not(claim: Look | Ground | Relation, true: bool) -> None:
    assert holds(claim, SCENE) is true
    assert Caption("", (claim,)).false_of(SCENE) == ([] if true else [claim])


def test_synonyms_belong_to_one_word_alone() -> None:
    for table in (COLOUR_WORDS, SHAPE_WORDS):
        words = [word for synonyms in table.values() for word in set(synonyms)]
        assert len(words) == len(set(words))


@pytest.mark.parametrize("code", sorted(LANGUAGES))
def test_a_language_names_every_shape_and_colour_in_its_own_words(code: str) -> None:
    language = LANGUAGES[code]
    assert len(set(language.shapes)) == len(SHAPES)
    assert len(set(language.colours)) == len(COLOURS)
    text = language.tell(SCENE, random.Random(1))
    assert language.shapes[SHAPES.index("circle")] in text
    assert language.colours[COLOURS.index("blue")] in text
    assert "2" in text
    assert "{" not in text


def test_languages_come_in_several_scripts() -> None:
    texts = [language.tell(SCENE, random.Random(1)) for language in LANGUAGES.values()]
    scripts = [r"[a-z]", r"[\u0400-\u04ff]", r"[\u0370-\u03ff]", r"[\u0600-\u06ff]", r"[\u0900-\u097f]"]
    scripts += [r"[\u4e00-\u9fff]", r"[\u3040-\u30ff]", r"[\uac00-\ud7af]"]
    assert all(any(re.search(script, text) for text in texts) for script in scripts)


def test_a_truncated_caption_is_the_beginning_of_one() -> None:
    for number in range(200):
        text = told(number)[1].text
        cut = truncated(text, random.Random(number)).rstrip("….")
        assert text.startswith(cut)
        assert 3 <= len(cut) <= 0.6 * len(text) + 1


def test_spam_and_boilerplate_say_nothing_of_shapes() -> None:
    shapes = {word for synonyms in SHAPE_WORDS.values() for word in synonyms}
    for number in range(300):
        for text in (spam(random.Random(number)), boilerplate(random.Random(number))):
            assert text
            assert "{" not in text
            assert not any(re.search(rf"\b{word}s?\b", text.lower()) for word in shapes)
