"""Which URLs can be fetched, and what is left of a caption."""

import pyarrow as pa
import pyarrow.compute as pc
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stages.ingest.texts import PLAIN_URL, clean, reason, why_bad


@pytest.mark.parametrize(
    ("url", "why"),
    [
        ("http://a.example/x.jpg", None),
        ("HTTPS://A.example:8443?x#y", None),
        ("http://bücher.example/ü ö.png", None),
        ("http://under_score.example/", None),
        ("http://[::1]:80/x", None),
        ("//a.example/x.jpg", "has no scheme; expected http:// or https://"),
        ("data:image/png;base64,AAAA", "has the scheme 'data'; expected http or https"),
        ("file:///etc/passwd", "has the scheme 'file'; expected http or https"),
        ("http://a.example:99999/", "cannot be parsed: Port out of range 0-65535"),
        ("http://a.example:0/", "has the port 0"),
        ("http://a.example:x/", "cannot be parsed: "),
        ("http:///x.jpg", "names no host"),
        ("http://[::1", "cannot be parsed: "),
        ("http://a/\nb", "has control characters"),
        ("http://a/" + "x" * 20_000, "has 20009 characters; at most 16384 are taken"),
    ],
)
def test_a_url_that_cannot_be_fetched_says_why(url: str, why: str | None) -> None:
    (found,) = why_bad(pa.array([url]), pa.array([False])).to_pylist()
    assert found == why if why is None else found.startswith(why)


@given(st.from_regex(r"\A(?i:https?)://[-a-zA-Z0-9.:@_\[\]%]{0,12}([/?#].{0,5})?\Z") | st.text(max_size=20))
@settings(max_examples=300, deadline=None)
def test_the_quick_look_at_a_url_takes_nothing_that_parsing_would_refuse(url: str) -> None:
    looks_plain = pc.match_substring_regex(pa.array([url]), pattern=PLAIN_URL)[0].as_py()
    if looks_plain:
        assert reason(url) is None


@given(st.lists(st.none() | st.binary(max_size=12), max_size=8))
@settings(max_examples=200, deadline=None)
def test_whatever_bytes_come_the_text_is_clean_and_says_whether_it_was(values: list[bytes | None]) -> None:
    done = clean(pa.array(values, pa.binary()))
    for value, text, cleaned, raw in zip(
        values, done.text.to_pylist(), done.cleaned.to_pylist(), done.raw_sha256.to_pylist(), strict=True
    ):
        if value is None:
            assert (text, cleaned, raw) == (None, False, None)
            continue
        assert not any((ord(c) < 32 and c not in "\t\n\r") or 127 <= ord(c) < 160 for c in text)
        assert cleaned == (text.encode() != value)
        valid = value.decode("utf-8", "replace").encode() == value
        assert (raw is None) == valid
