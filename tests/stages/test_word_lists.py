"""Which words of a list are found in captions, and which only look like them."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from pipeline.errors import SluiceError
from pipeline.identity import find_resources, generation_key, node_identity
from pipeline.stage import Batch, Device
from stages.word_lists import WordList
from tests.stages.fake_batch import FakeBatch

TERMS = """
# terms of a fictitious list
grump
Old  Grump

s&m*rk
@nger
straße
café
悪口
नमस्ते
"""


@pytest.fixture
def words(tmp_path: Path) -> str:
    path = tmp_path / "terms.txt"
    path.write_text(TERMS, encoding="utf-8")
    return str(path)


def listed(words: str, *captions: str | None) -> list[Any]:
    table = WordList(words=words).open(Device())(FakeBatch(pa.table({"caption": pa.array(captions, pa.string())})))
    assert table.schema == WordList(words=words).gives()
    found: list[Any] = table["listed_words"].to_pylist()
    return found


def test_the_golden_column_holds_or_the_revision_is_raised(words: str) -> None:
    assert WordList.revision == 1
    golden = {
        "A GRUMP, and a grump!": ["grump"],
        "the old\u00a0grump of the street": ["old grump", "grump"],
        "Grumps and ungrump": [],
        "": [],
        None: None,
    }
    assert listed(words, *golden) == list(golden.values())


def test_a_term_is_a_whole_word_whatever_stands_around_it(words: str) -> None:
    assert listed(words, "(grump)", "grump-like", "grump's", "#grump") == [["grump"]] * 4
    assert listed(words, "grumpy", "agrump", "grump2", "grump_1", "grump\u0301") == [[]] * 5


def test_marks_belong_to_a_term_as_they_stand(words: str) -> None:
    assert listed(words, "pure s&M*rk!", "an @nger!", "s m rk", "nger") == [["s&m*rk"], ["@nger"], [], []]


def test_case_width_and_encoding_of_accents_make_no_difference(words: str) -> None:
    assert listed(words, "STRASSE", "cafe\u0301", "ＧＲＵＭＰ", "cafe") == [["strasse"], ["café"], ["grump"], []]


def test_scripts_without_spaces_match_anywhere_and_others_by_their_words(words: str) -> None:
    assert listed(words, "これは悪口です", "अनमस्ते", "नमस्ते!") == [["悪口"], [], ["नमस्ते"]]


def test_a_comment_is_no_term(words: str) -> None:
    assert listed(words, "# terms of a fictitious list") == [[]]


def test_several_lists_have_columns_of_their_own_names(words: str) -> None:
    assert WordList(words=words, name="toxic_words").gives().names == ["toxic_words"]
    with pytest.raises(ValidationError, match="should match pattern"):
        WordList(words=words, name="toxic words")


def test_another_list_is_other_work_and_the_same_elsewhere_is_not(words: str, tmp_path: Path) -> None:
    def key(file: Path | str) -> str:
        stage = WordList(words=str(file))
        return generation_key(node_identity([stage], 0), find_resources([stage]), {}, {})

    copy, other = tmp_path / "copy.txt", tmp_path / "other.txt"
    copy.write_text(TERMS, encoding="utf-8")
    other.write_text(TERMS + "ogre\n", encoding="utf-8")
    assert key(copy) == key(words) != key(other)


@pytest.mark.parametrize(
    ("content", "message"),
    [(b"\n# nothing\n", "holds no term; expected one a line"), (b"caf\xe9\n", r"is no UTF-8 \(.* at byte 3\)")],
)
def test_a_list_that_is_none_is_refused_by_name(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "terms.txt"
    path.write_bytes(content)
    with pytest.raises(SluiceError, match=rf"words: .*terms\.txt {message}"):
        WordList(words=str(path)).open(Device())


@given(st.lists(st.sampled_from(["grump", "grumpy", "ogre", "a", ",", "-", "GRUMP", "old"]), max_size=8))
def test_one_word_is_found_where_splitting_finds_it(one: Callable[[Batch], pa.Table], pieces: list[str]) -> None:
    (found,) = one(FakeBatch(pa.table({"caption": [" ".join(pieces)]})))["listed_words"].to_pylist()
    assert found == ["grump"] * ("grump" in [piece.casefold() for piece in pieces])


@pytest.fixture(scope="module")
def one(tmp_path_factory: pytest.TempPathFactory) -> Callable[[Batch], pa.Table]:
    path = tmp_path_factory.mktemp("list") / "one.txt"
    path.write_text("grump\n")
    return WordList(words=str(path)).open(Device())
