"""What counts as a match, against the plain way of looking for every entry in every text."""

import json
import random
from pathlib import Path

import pytest

from pipeline.errors import SluiceError
from stages.balance.matching import Matcher, read_concepts, spaced


def plain(text: str, entries: list[str]) -> list[int]:
    """Every entry looked for by itself, as MetaCLIP's code does it but for the automaton."""
    for mark in ",.;:?!`":
        text = text.replace(mark, f" {mark} ")
    text = f" {text} "
    for blank in "\t\n\r":
        text = text.replace(blank, " ")
    return [number for number, entry in enumerate(entries) if f" {entry} " in text]


def test_an_entry_matches_between_blanks_and_marks_and_nowhere_else() -> None:
    matcher = Matcher(["cat", "red cat", "cathedral", "New York", "it's"])
    assert matcher.of("a red cat, asleep") == [0, 1]
    assert matcher.of("cat") == [0]
    assert matcher.of("the cathedral of cats") == [2]
    assert matcher.of("New\tYork: it's a cat!") == [0, 3, 4]
    assert matcher.of("new york") == []
    assert matcher.of("(cat) cat's cat-like") == []
    assert matcher.of("") == []


def test_entries_that_share_a_blank_are_all_found() -> None:
    assert Matcher(["red", "car", "red car", "car red"]).of("red car red car") == [0, 1, 2, 3]


def test_an_entry_with_a_mark_matches_here() -> None:
    assert Matcher(["St. Louis", "U.S.", "what?"]).of("St. Louis in the U.S.") == [0, 1]
    assert plain("St. Louis in the U.S.", ["St. Louis", "U.S."]) == []


def test_case_counts_unless_it_is_said_not_to() -> None:
    assert Matcher(["Paris", "cat"]).of("paris Cat") == []
    assert Matcher(["Paris", "cat", "CAT"], lowercase=True).of("paris Cat") == [0, 1]


def test_it_finds_what_looking_for_every_entry_finds() -> None:
    dice = random.Random(7)
    words = ["a", "b", "ab", "ba", "abc", "café", "猫", "-", "b's"]
    entries = list({" ".join(dice.choices(words, k=dice.randint(1, 3))) for _ in range(200)})
    matcher = Matcher(entries)
    texts = [
        "".join(word + dice.choice([" ", " ", ", ", ".", "\n"]) for word in dice.choices(words, k=8))
        for _ in range(300)
    ]
    found = [matcher.of(text) for text in texts]
    assert found == [plain(text, entries) for text in texts]
    assert sum(map(len, found)) > 500


def test_white_space_and_marks_are_spaced() -> None:
    assert spaced("a,b\n") == " a , b  "


def test_a_list_is_lines_or_json(tmp_path: Path) -> None:
    lines, listed = tmp_path / "concepts.txt", tmp_path / "metadata.json"
    lines.write_text("red fox\n\n owl \nred fox\n", encoding="utf-8-sig")
    listed.write_text(json.dumps(["red fox", "owl"]))
    assert read_concepts(str(lines)) == read_concepts(str(listed)) == ("red fox", "owl")


@pytest.mark.parametrize(
    ("name", "data", "said"),
    [
        ("a.txt", b"caf\xe9", "is no UTF-8"),
        ("b.txt", b"\n \n", "holds no concept; expected one a line, or a JSON list"),
        ("c.json", b"[1, 2]", 'expected a list of texts such as ."red fox".'),
        ("d.json", b"red fox", "is no JSON"),
    ],
)
def test_a_list_that_is_none_is_refused(tmp_path: Path, name: str, data: bytes, said: str) -> None:
    (tmp_path / name).write_bytes(data)
    with pytest.raises(SluiceError, match=said):
        read_concepts(str(tmp_path / name))
