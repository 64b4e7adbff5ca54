"""What of a caption tells of persons and is masked, and the many numbers that must stay."""

from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from pipeline.errors import SluiceError
from pipeline.stage import Device
from stages.caption_privacy import IBAN_LENGTHS, MaskedCaptions, luhn
from tests.stages.fake_batch import FakeBatch

AMERICAN, INTERNATIONAL = (MaskedCaptions(region=region).open(Device()) for region in ("US", None))
TABLES = Path(__file__).parents[3] / "shared" / "data" / "url_tables"


def rows(*captions: str | None, stage: Any = AMERICAN) -> list[tuple[Any, ...]]:
    table = stage(FakeBatch(pa.table({"caption": pa.array(captions, pa.string())})))
    assert table.schema == MaskedCaptions.adds
    return [tuple(row.values()) for row in table.to_pylist()]


def mask(caption: str, stage: Any = AMERICAN) -> str:
    ((text, _),) = rows(caption, stage=stage)
    return str(text)


def test_the_golden_table_holds_or_the_revision_is_raised() -> None:
    assert MaskedCaptions.revision == 1
    golden = {
        "Call (415) 555-2671 or write to jane.doe@example.co.uk.": (
            "Call [PHONE] or write to [EMAIL].",
            ["phone", "email"],
        ),
        "a@b.example, c@d.example": ("[EMAIL], [EMAIL]", ["email"]),
        "A red bicycle, 1920x1080": ("A red bicycle, 1920x1080", []),
        "": ("", []),
        None: (None, None),
    }
    assert rows(*golden) == list(golden.values())


@pytest.mark.parametrize(
    ("caption", "expected"),
    [
        ("mail joe [at] mail [dot] example.com now", "mail [EMAIL] now"),
        ("joe(at)example.com", "[EMAIL]"),
        ("<joe+news@xn--bcher-kva.example>", "<[EMAIL]>"),
        ("jürgen@bücher.example", "[EMAIL]"),
        ("write to +14155552671@mail.example", "write to [EMAIL]"),
        ("DE89 3704 0044 0532 0130 00 is the account", "[IBAN] is the account"),
        ("GB29NWBK60161331926819", "[IBAN]"),
        ("card 4111 1111 1111 1111", "card [CARD]"),
        ("4111-1111-1111-1111, 378282246310005", "[CARD], [CARD]"),
        ("3782 822463 10005", "[CARD]"),
        ("seen from 93.184.216.34", "seen from [IP]"),
        ("host 2001:4860:4860::8888", "host [IP]"),
        ("+44 20 7031 3000", "[PHONE]"),
        ("WhatsApp: +30 697 435 0179 📍", "WhatsApp: [PHONE] 📍"),
        ("Computer Repair Bellevue Ne 402-505-6600", "Computer Repair Bellevue Ne [PHONE]"),
        ("850 - 244 - 5117", "[PHONE]"),
        ("Tel 4155552671", "Tel [PHONE]"),
        ("📞 415 555 2671", "📞 [PHONE]"),
        ("call us at 415 555 2671!", "call us at [PHONE]!"),
    ],
)
def test_what_tells_of_persons_is_masked(caption: str, expected: str) -> None:
    assert mask(caption) == expected


@pytest.mark.parametrize(
    "caption",
    [
        "icon@2x.png",
        "dinner @ the beach.",
        "@jane_doe on stage",
        "4111 1111 1111 1112",  # Luhn's sum fails
        "4111 1111-1111 1111",
        "1234567812345670",  # Luhn's sum holds, no issuer begins with 1
        "DE89 3704 0044 0532 0130 01",
        "DE89370400440532013000X",
        "ZZ89 3704 0044 0532 0130 00",
        "ISBN 978-3-16-148410-0",
        "ISBN 9783161484100",
        "version 1.2.3.99 and v96.0.46.110",
        "Launcher 3D APK 3.7.5.8",
        "192.168.0.1, 127.0.0.1",
        "at 12:30:45, 5::3 goals",
        "1920x1080, 1999-2003, $1,299.00, 24-70mm f/2.8",
        "2020-03-04 12:13:14 and 20210304121530",
        "IMG_20210304_121530.jpg",
        "article 4155552671",
        "800 600 4000 mm",
        "NGC 4565 4567 4568",
        "Boeing 737-800 G-ABCD",
        "1 2 3 4 5 6 7 8 9 10",
        "2013 2014 2015 2016",
        "221B Baker Street, London NW1 6XE",
    ],
)
def test_other_numbers_and_marks_stay(caption: str) -> None:
    assert rows(caption) == [(caption, [])]


def test_national_numbers_count_in_their_region_alone() -> None:
    assert mask("call (415) 555-2671", INTERNATIONAL) == "call (415) 555-2671"
    assert mask("call +1 415 555 2671", INTERNATIONAL) == "call [PHONE]"
    german = MaskedCaptions(region="DE").open(Device())
    assert mask("Tel. 030 901820", german) == "Tel. [PHONE]"


def test_every_length_of_the_registry_is_read() -> None:
    assert len(IBAN_LENGTHS) == 79
    assert {int(length) for length in IBAN_LENGTHS.values()} <= set(range(15, 33))


def test_a_region_without_numbers_is_refused() -> None:
    with pytest.raises(SluiceError, match="region = 'QQ' has no numbering plan"):
        MaskedCaptions(region="QQ").open(Device())
    with pytest.raises(ValidationError, match="region"):
        MaskedCaptions(region="us")


@pytest.mark.skipif(not TABLES.exists(), reason=f"no real captions: {TABLES} is absent")
def test_of_ten_thousand_captions_of_the_web_few_change_and_rightly() -> None:
    captions = pq.read_table(TABLES / "img2dataset_test_10000.parquet").column("TEXT").to_pylist()
    changed = {text: kinds for text, kinds in rows(*captions) if kinds}
    assert len(changed) == 3
    assert {kind for kinds in changed.values() for kind in kinds} == {"phone"}
    assert "Computer Repair Bellevue Ne [PHONE]" in changed


@given(st.text(st.characters(codec="utf-8")) | st.text("0123456789 -.@+:()aE"))
def test_any_text_is_masked_once_and_for_all(caption: str) -> None:
    text, kinds = rows(caption)[0]
    assert (text == caption) == (not kinds)
    assert rows(text) == [(text, [])]


@given(st.integers(0, 10**15))
def test_exactly_one_last_digit_satisfies_luhn(number: int) -> None:
    assert sum(luhn(f"{number}{digit}") for digit in range(10)) == 1
