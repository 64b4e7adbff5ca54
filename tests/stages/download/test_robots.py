"""robots.txt: the examples of RFC 9309, and by meaning those of Google's parser."""

import re
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stages.download import robots
from stages.download.robots import parse_robots


def allowed(text: str, path: str, agent: str = "FooBot") -> bool:
    return parse_robots(text.encode(), agent).allows(path)


def cases(*rows: tuple[str, str, bool]) -> pytest.MarkDecorator:
    return pytest.mark.parametrize(("text", "path", "allow"), rows)


EXAMPLE = """User-Agent: *
Disallow: *.gif$
Disallow: /example/
Allow: /publications/

User-Agent: foobot
Disallow:/
Allow:/example/page.html
Allow:/example/allowed.gif

User-Agent: barbot
User-Agent: bazbot
Disallow: /example/page.html

User-Agent: quxbot
"""


@pytest.mark.parametrize(
    ("agent", "path", "allow"),
    [
        ("foobot", "/example/page.html", True),
        ("foobot", "/example/allowed.gif", True),
        ("foobot", "/publications/", False),
        ("FOOBOT", "/", False),
        ("barbot", "/example/page.html", False),
        ("BazBot", "/example/page.html", False),
        ("bazbot", "/example/allowed.gif", True),
        ("quxbot", "/example/page.html", True),
        ("anybot", "/example/x", False),
        ("anybot", "/publications/x.gif", True),
        ("anybot", "/a.gif", False),
        ("anybot", "/a.gif?x", True),
    ],
)
def test_the_example_of_section_5_1(agent: str, path: str, allow: bool) -> None:
    assert allowed(EXAMPLE, path, agent) == allow


@cases(
    ("", "/x", True),
    ("user-agent: FooBot\ndisallow: /", "/x", False),
    ("USER-AGENT: foobot\nDISALLOW: /", "/x", False),
    ("user-agent: FooBot/1.2\ndisallow: /", "/x", False),
    ("user-agent: FooBot-images\ndisallow: /", "/x", True),
    ("user-agent: Foo\ndisallow: /", "/x", True),
    ("disallow: /\nuser-agent: other\ndisallow: /y", "/x", True),
    ("foo: FooBot\nbar: /\n", "/x", True),
    ("user-agent FooBot\ndisallow /", "/x", False),
    ("useragent: FooBot\ndissallow: /", "/x", False),
    ("user-agent: *\ndisallow: /\nuser-agent: FooBot\nallow: /", "/x", True),
    ("user-agent: FooBot\nallow: /y\n\nuser-agent: *\ndisallow: /", "/x", True),
    ("user-agent: * baz\ndisallow: /", "/x", False),
    ("user-agent: FooBot\nuser-agent: *\ndisallow: /", "/x", False),
    ("user-agent: a\nuser-agent: FooBot\nsitemap: https://x/s\nuser-agent: b\ndisallow: /", "/x", False),
    ("user-agent: FooBot\n\n\nuser-agent: b\n\ndisallow: /", "/x", False),
    ("user-agent: FooBot\ndisallow:", "/x", True),
    ("\ufeffuser-agent: FooBot\ndisallow: /", "/x", False),
    ("user-agent: FooBot\rdisallow: /\r", "/x", False),
    ("user-agent: FooBot # us\ndisallow: /x # all of it", "/x", False),
    ("user-agent: FooBot\ndisallow: /", "/robots.txt", True),
)
def test_groups_and_lines(text: str, path: str, allow: bool) -> None:
    assert allowed(text, path) == allow


def test_groups_of_the_same_agent_are_one() -> None:
    text = "user-agent: FooBot\ndisallow: /a\n\nuser-agent: x\ndisallow: /c\n\nuser-agent: foobot\ndisallow: /b"
    assert [allowed(text, path) for path in ("/a", "/b", "/c")] == [False, False, True]


def rules(*lines: str) -> str:
    return "\n".join(("user-agent: FooBot", *lines))


@cases(
    (rules("disallow: /x/page.html", "allow: /x/"), "/x/page.html", False),
    (rules("allow: /x/page.html", "disallow: /x/"), "/x/page.html", True),
    (rules("allow: /x/page.html", "disallow: /x/"), "/x/", False),
    (rules("disallow: /x", "allow: /x"), "/x", True),
    (rules("disallow: ", "allow: "), "/x", True),
    (rules("disallow: /", "allow: "), "/x", False),
    (rules("disallow: /x", "allow: /x/"), "/x", False),
    (rules("disallow: /x", "allow: /x/"), "/x/", True),
    (rules("allow: /page", "disallow: /*.html"), "/page.html", False),
    (rules("allow: /x/page.", "disallow: /*.html"), "/x/page.html", True),
    (rules("disallow: /x/"), "/X/", True),
    (rules("disallow: /fish"), "/fish.html", False),
    (rules("disallow: /fish"), "/fishheads/yummy.html", False),
    (rules("disallow: /fish"), "/fish.php?id=anything", False),
    (rules("disallow: /fish"), "/catfish", True),
    (rules("disallow: /fish"), "/?id=fish", True),
    (rules("disallow: /fish*"), "/fish", False),
    (rules("disallow: /fish/"), "/fish", True),
    (rules("disallow: /*.php"), "/folder/filename.php?parameters", False),
    (rules("disallow: /*.php"), "/php/", True),
    (rules("disallow: /*.php$"), "/filename.php", False),
    (rules("disallow: /*.php$"), "/filename.php?parameters", True),
    (rules("disallow: /*.php$"), "/filename.php5", True),
    (rules("disallow: /fish*.php"), "/fishheads/catfish.php?parameters", False),
    (rules("disallow: /fish*.php"), "/Fish.PHP", True),
    (rules("disallow: /a**b***c$"), "/a1b2c", False),
    (rules("disallow: /a*b$"), "/ab1b", False),
    (rules("disallow: /a*ab$"), "/ab", True),
    (rules("disallow: *"), "/x", False),
    (rules("disallow: $"), "/x", True),
    (rules("disallow: /$"), "/", False),
    (rules("disallow: /$"), "/x", True),
    (rules("allow: /$", "disallow: /"), "/", True),
)
def test_the_longest_rule_decides_and_allowing_wins_a_tie(text: str, path: str, allow: bool) -> None:
    assert allowed(text, path) == allow


@cases(
    (rules("disallow: /bar?qux=taz&baz=http://foo.bar?tar&par"), "/bar?qux=taz&baz=http://foo.bar?tar&par", False),
    (rules("disallow: /foo/bar/ツ"), "/foo/bar/%E3%83%84", False),
    (rules("disallow: /foo/bar/%E3%83%84"), "/foo/bar/%e3%83%84", False),
    (rules("disallow: /foo/bar/%62%61%7A"), "/foo/bar/baz", False),
    (rules("disallow: /foo/bar/baz"), "/foo/bar/%62%61%7a", False),
    (rules("disallow: /a%2Fb"), "/a/b", True),
    (rules("disallow: /path/file-with-a-%2A.html"), "/path/file-with-a-*.html", False),
    (rules("disallow: /path/file-with-a-%2A.html"), "/path/file-with-a-x.html", True),
    (rules("disallow: /path/foo-%24"), "/path/foo-$", False),
    (rules("disallow: /path/foo-%24"), "/path/foo-", True),
    (rules("disallow: /a$b"), "/a$b", False),
)  # fmt: skip
def test_escapes_are_compared_by_meaning(text: str, path: str, allow: bool) -> None:
    assert allowed(text, path) == allow


def test_only_the_first_500_kib_are_parsed_and_no_half_line() -> None:
    start = b"user-agent: FooBot\n"
    filler = b"#" * (robots.MAX_BYTES - len(start) - len(b"\ndisallow: /long"))
    parsed = parse_robots(start + filler + b"\ndisallow: /longer\ndisallow: /", "FooBot")
    assert parsed.allows("/long")
    assert parsed.allows("/x")
    assert not parse_robots(start + filler[:-100] + b"\ndisallow: /longer\n", "FooBot").allows("/longer")


def test_a_crawl_delay_is_honoured_up_to_a_bound() -> None:
    assert parse_robots(b"user-agent: *\ncrawl-delay: 2.5\ndisallow: /x", "FooBot").delay_s == 2.5
    assert parse_robots(b"user-agent: *\ncrawl-delay: 86400", "FooBot").delay_s == robots.MAX_DELAY_S
    assert parse_robots(b"user-agent: *\ncrawl-delay: nan\ncrawl-delay: -1", "FooBot").delay_s == 0
    assert parse_robots(b"user-agent: *\ncrawl-delay: 5\nuser-agent: FooBot\nallow: /", "Other").delay_s == 5
    assert parse_robots(b"user-agent: *\ncrawl-delay: 5\nallow: /\nuser-agent: FooBot", "FooBot").delay_s == 0


def test_a_pattern_that_makes_regular_expressions_run_for_years_is_matched_all_the_same() -> None:
    evil = parse_robots(b"user-agent: *\n" + b"disallow: /" + b"*a" * 900 + b"*b$\n", "FooBot")
    assert evil.allows("/" + "a" * 2000 + "c")


def test_past_a_number_of_stars_more_is_forbidden_and_never_less() -> None:
    many = "\n".join(f"disallow: /{place}{'*a' * 40}" for place in range(5_000))
    parsed = parse_robots(rules("disallow: /first*x", many, "disallow: /last*x", "allow: /last*y").encode(), "FooBot")
    assert sum(len(pattern) for pattern, _ in parsed.rules if "*" in pattern.rstrip("*")) <= robots.MAX_STARRED
    assert [parsed.allows(path) for path in ("/first/y", "/first/x", "/other")] == [True, False, True]
    few = "\n".join(f"disallow: /{place}{'*a' * 40}" for place in range(300))
    parsed = parse_robots(rules(few, "disallow: /last*long", "allow: /last/lo", "disallow: /z").encode(), "FooBot")
    assert [parsed.allows(path) for path in ("/last/long", "/last/lo", "/last", "/z", "/other")] == [False] * 4 + [True]


@pytest.mark.parametrize("line", [b"allow:x%by", b"allow%b", b"%bx", b"user agent%bs"])
def test_a_line_is_parsed_in_linear_time(line: bytes) -> None:
    """It happens in the event loop: 10 seconds to one hostile line would stop every row."""
    began = time.thread_time()
    parse_robots(b"user-agent: FooBot\n" + line % (b" " * 40_000), "FooBot")
    assert time.thread_time() - began < 0.2


@pytest.mark.parametrize(
    ("named", "agent", "concerned"),
    [
        ("img2dataset", "img2dataset", True),
        ("IMG2dataset/1.47 (+https://x)", "img2dataset", True),
        ("FooBot2", "FooBot", True),
        ("img", "img2dataset", False),
        ("my.bot", "my.bot", True),
        ("FooBot*", "FooBot", True),
        ("FooBot_x", "FooBot", False),
    ],
)
def test_an_agent_with_digits_finds_its_group(named: str, agent: str, concerned: bool) -> None:
    assert allowed(f"User Agent: {named}\nDisallow: /", "/x", agent) is not concerned


@given(st.binary(max_size=300), st.text(max_size=50))
def test_nothing_is_an_error(data: bytes, path: str) -> None:
    parse_robots(b"user-agent: *\ndisallow:" + data, "FooBot").allows("/" + path)


@given(st.text("ab*", max_size=8), st.booleans(), st.text("ab", max_size=10))
def test_patterns_match_as_regular_expressions_would(pattern: str, anchored: bool, path: str) -> None:
    meant = re.compile("/" + ".*".join(map(re.escape, pattern.split("*"))) + ("$" if anchored else ""))
    text = f"user-agent: *\ndisallow: /{pattern}{'$' if anchored else ''}"
    assert allowed(text, f"/{path}") == (meant.match(f"/{path}") is None)
