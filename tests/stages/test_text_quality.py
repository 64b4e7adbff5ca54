"""What the measures of a caption mean."""

import string
import unicodedata
from hashlib import sha256
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.errors import SluiceError
from pipeline.stage import Device
from stages.text_quality import AROUND_WORDS, BIDI_CONTROLS, PHRASES, TextQuality
from tests.stages.fake_batch import FakeBatch

MEASURE = TextQuality().open(Device())
SHARES = ("letters_share", "digits_share", "upper_share", "repeated_word_share")


def measures(*captions: str | None) -> pa.Table:
    return MEASURE(FakeBatch(pa.table({"caption": pa.array(captions, pa.string())})))


def each(name: str, *captions: str | None) -> list[Any]:
    values: list[Any] = measures(*captions)[name].to_pylist()
    return values


def test_the_golden_table_holds_or_the_revision_is_raised() -> None:
    captions = {
        "A red circle, a RED square": (26, 6, 20 / 26, 0, 4 / 20, 2 / 6, False, False, 0, 0, False),
        "IMG_1234.jpg": (12, 1, 6 / 12, 4 / 12, 3 / 6, 0, False, True, 0, 0, False),
        "Click  here to enlarge!": (23, 4, 18 / 23, 0, 1 / 18, 0, False, False, 0, 0, True),
        "see https://example.com/a": (25, 2, 19 / 25, 0, 0, 0, True, False, 0, 0, False),
        "赤い丸と red circle": (15, 6, 13 / 15, 0, 0, 0, False, False, 0, 0, False),
        "a\x00b \u202egpj": (8, 2, 5 / 8, 0, 0, 0, False, False, 1, 1, False),
        "": (0, 0, 0, 0, 0, 0, False, False, 0, 0, False),
        None: (None,) * 11,
    }
    assert TextQuality.revision == 1
    found = measures(*captions)
    assert found.schema == TextQuality.adds
    golden = [pytest.approx(dict(zip(found.column_names, row, strict=True))) for row in captions.values()]
    assert found.to_pylist() == golden


def test_the_phrases_are_part_of_the_meaning() -> None:
    assert TextQuality.revision == 1
    assert sha256("\n".join(PHRASES).encode()).hexdigest()[:16] == "e0cad4865958a02d"


def test_a_missing_caption_is_null_not_zero() -> None:
    assert [set(row.values()) == {None} for row in measures("a", None, "").to_pylist()] == [False, True, False]


def test_characters_are_code_points_not_bytes() -> None:
    assert each("characters", "Übergröße", "猫", "👩‍🚀") == [9, 1, 3]


def test_words_stand_between_any_white_space() -> None:
    assert each("words", "two words", "  two\twords\n", "two\u00a0words", "\u3000", "one-word!") == [2, 2, 2, 0, 1]


def test_han_and_kana_count_one_word_each_and_hangul_by_spaces() -> None:
    assert each("words", "一只猫", "ネコとcat 2", "고양이 한 마리", "ﾈｺ", "𠮷野") == [3, 5, 3, 2, 2]


def test_letters_are_of_every_script_with_their_marks() -> None:
    assert each("letters_share", "हिन्दी", "e\u0301", "ab1!", "...", "") == [1, 1, 0.5, 0, 0]


def test_digits_are_decimal_of_every_script() -> None:
    assert each("digits_share", "2024", "٣٤ab", "½²", "a") == [1, 0.5, 0, 0]


def test_upper_share_is_of_the_letters() -> None:
    assert each("upper_share", "BUY NOW!!!", "Ab", "ÄÖ", "123", "猫A") == [1, 0.5, 1, 0, 0.5]


def test_a_word_repeats_whatever_its_case_and_punctuation() -> None:
    assert each("repeated_word_share", "Sale, sale SALE! «sale»", "a b c", "a b a b", "") == [0.75, 0, 0.5, 0]


def test_separators_are_no_repeated_words() -> None:
    assert each("repeated_word_share", "red | blue | green | red", "- - -") == [0.25, 0]


def test_words_of_one_caption_do_not_repeat_those_of_another() -> None:
    assert each("repeated_word_share", "a cat", "a cat", None, "a a") == [0, 0, None, 0.5]


@pytest.mark.parametrize("text", ["http://x.y", "see HTTPS://X.Y", "(www.example.com)", "ftp://a"])
def test_has_url(text: str) -> None:
    assert each("has_url", text) == [True]


@pytest.mark.parametrize("text", ["http", "awww.cute", "www.", "the end.Next", "http:// nothing", ""])
def test_has_no_url(text: str) -> None:
    assert each("has_url", text) == [False]


@pytest.mark.parametrize(
    "text", ["IMG_1234.jpg", " dsc00012 ", "photo-1.PNG", "my trip 12.jpeg", "DSCN-0042", "scan_2020-01-05", "x.webp"]
)
def test_looks_like_a_filename(text: str) -> None:
    assert each("looks_like_filename", text) == [True]


@pytest.mark.parametrize(
    "text", ["a cat.", "jpg", "img", "a photo of a cat that I took.jpg", "http://x.y/z.jpg", "IMG_1234 of a cat", ""]
)
def test_does_not_look_like_a_filename(text: str) -> None:
    assert each("looks_like_filename", text) == [False]


def test_control_characters_are_counted_without_tabs_and_line_ends() -> None:
    assert each("control_characters", "a\0b\x1b\x7f\x85", "a\tb\r\n") == [4, 0]


def test_bidi_controls_are_counted_and_the_marks_of_right_to_left_scripts_are_not() -> None:
    assert each("bidi_controls", "\u202eabc\u202c", "\u2067א\u2069", "שלום\u200f", "שלום") == [2, 2, 0, 0]
    assert each("control_characters", BIDI_CONTROLS) == [0]


@pytest.mark.parametrize(
    "text", ["image", "Image 12", "  CLICK here\n to  enlarge... ", "[Photo]", "3. Untitled", "N/A"]
)
def test_boilerplate_is_the_whole_caption_whatever_stands_around_it(text: str) -> None:
    assert each("boilerplate", text) == [True]


@pytest.mark.parametrize("text", ["image of a cat", "a logo", "12", "", "imaged"])
def test_a_caption_that_says_more_or_nothing_is_no_boilerplate(text: str) -> None:
    assert each("boilerplate", text) == [False]


def test_a_file_of_phrases_takes_the_place_of_the_list(tmp_path: Path) -> None:
    file = tmp_path / "phrases.txt"
    file.write_text("zum vergrößern klicken\n\nbild\n", encoding="utf-8")
    measure = TextQuality(boilerplate=str(file)).open(Device())
    found = measure(FakeBatch(pa.table({"caption": ["Zum Vergrößern klicken!", "Bild 3", "image", ""]})))
    assert found["boilerplate"].to_pylist() == [True, True, False, False]


def test_a_file_without_phrases_is_refused_by_name(tmp_path: Path) -> None:
    file = tmp_path / "phrases.txt"
    file.write_text("\n 12 \n")
    with pytest.raises(SluiceError, match=r"phrases\.txt: no phrase"):
        TextQuality(boilerplate=str(file)).open(Device())


def test_no_rows_and_rows_without_text_are_measured() -> None:
    assert measures() == TextQuality.adds.empty_table()
    assert each("words", None, None) == [None, None]
    assert each("words", "", "") == [0, 0]


def test_other_string_types_slices_and_chunks_are_read_alike() -> None:
    captions = ["zero", "ein Bild", None, "", "猫 cat cat", "last"]
    whole = measures(*captions)
    for kind in (pa.large_string(), pa.string_view(), pa.dictionary(pa.int32(), pa.string())):
        table = pa.table({"caption": pa.array(captions, kind)})
        assert MEASURE(FakeBatch(table)) == whole
        assert MEASURE(FakeBatch(table.slice(1, 4))) == whole.slice(1, 4)
        assert MEASURE(FakeBatch(pa.concat_tables([table.slice(0, 2), table.slice(2)]))) == whole


TEXT = st.text() | st.text(string.printable) | st.text(" aA猫ネ1|.\u0301\u202e\0\u3000")


@given(st.lists(st.none() | TEXT, max_size=6))
def test_any_text_is_measured_within_bounds_and_whatever_its_neighbours(captions: list[str | None]) -> None:
    rows = measures(*captions).to_pylist()
    for caption, row in zip(captions, rows, strict=True):
        assert (row["characters"] is None) == (caption is None)
        if caption is not None:
            assert all(0 <= row[share] <= 1 for share in SHARES)
            assert row["words"] <= row["characters"] == len(caption)
            assert measures(caption).to_pylist() == [row]


@given(st.text() | st.text(string.printable))
def test_plain_python_measures_the_same(caption: str) -> None:
    (row,) = measures(caption).to_pylist()
    kinds = [unicodedata.category(character) for character in caption]
    letters = sum(kind[0] in "LM" for kind in kinds)
    assert row["letters_share"] == pytest.approx(letters / max(len(caption), 1))
    assert row["digits_share"] == pytest.approx(kinds.count("Nd") / max(len(caption), 1))
    assert row["upper_share"] == pytest.approx(sum(kind in ("Lu", "Lt") for kind in kinds) / max(letters, 1))
    assert row["control_characters"] == kinds.count("Cc") - sum(caption.count(white) for white in "\t\n\r")
    if caption.isascii():
        bare = [word for word in (word.lower().strip(AROUND_WORDS) for word in caption.split()) if word]
        assert row["words"] == len(caption.split())
        assert row["repeated_word_share"] == pytest.approx((len(bare) - len(set(bare))) / max(len(bare), 1))
