"""The page of a run: what it says, that it is one file without a script, and that other people's text stays text."""

from __future__ import annotations

import re
from base64 import b64decode
from collections.abc import Sequence
from dataclasses import replace
from html.parser import HTMLParser
from io import BytesIO
from pathlib import Path

import pyarrow as pa
import pytest
from click.testing import CliRunner
from PIL import Image

from pipeline import SluiceError, cli
from pipeline.report import report, words
from pipeline.report.samples import SIDE
from tests.pipeline.report.hostile import AWAY, TEXTS, roomy_page
from tests.pipeline.report.small_runs import RULES, Row, SmallRun, picture, scored, uid

POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"


class Skeleton(HTMLParser):
    """The tags of a page with the names of their attributes, in order, and what stands in them."""

    def __init__(self, page: str) -> None:
        super().__init__(convert_charrefs=True)
        self.tags: list[tuple[str, ...]] = []
        self.values: list[tuple[str, str, str]] = []
        """(tag, attribute, value)."""
        self.texts: list[str] = []
        self.feed(page)
        self.close()

    def handle_starttag(self, tag: str, attrs: Sequence[tuple[str, str | None]]) -> None:
        self.tags.append((tag, *(name for name, _ in attrs)))
        self.values += [(tag, name, value or "") for name, value in attrs]

    def handle_endtag(self, tag: str) -> None:
        self.tags.append((f"/{tag}",))

    def handle_data(self, data: str) -> None:
        self.texts.append(data)

    def handle_comment(self, data: str) -> None:
        self.tags.append(("comment",))

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.texts).split())


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> str:
    rows = scored(200)
    for place, row in enumerate(rows[:8]):
        row.group, row.similarity = (rows[0].uid, 0.9 + place / 100) if place < 5 else (rows[5].uid, 0.99)
    run = SmallRun(
        rules=RULES,
        edges=pa.table({"uid_a": ["a"], "uid_b": ["b"], "cosine": [0.97]}),
        errors=["row 17 broke", "row 18 broke"],
        shard="/data/00000.tar",
        notes={"seconds": 2.0},
    )
    root = str(tmp_path_factory.mktemp("run"))
    run.write(root, rows)
    return report(root)


def test_the_page_is_one_file_that_asks_for_nothing(page: str) -> None:
    found = Skeleton(page)
    metas = [value for tag, name, value in found.values if tag == "meta" and name == "content"]
    assert any(POLICY in value for value in metas)
    assert not {tag[0] for tag in found.tags} & {"script", "link", "iframe", "object", "embed", "form", "base", "video"}
    assert not [name for tag in found.tags for name in tag[1:] if name.startswith("on")]
    for tag, name, value in found.values:
        if name == "src":
            assert (tag, value[:23]) == ("img", "data:image/webp;base64,")
        if name == "href":
            assert value.startswith("#")
    (style,) = re.findall(r"<style>(.*?)</style>", page, re.DOTALL)
    assert "url(" not in style
    assert "@import" not in style


def test_every_link_of_the_page_leads_somewhere_in_it(page: str) -> None:
    found = Skeleton(page)
    targets = [value for _, name, value in found.values if name == "id"]
    assert len(targets) == len(set(targets))
    assert {value[1:] for _, name, value in found.values if name == "href"} <= set(targets)


def test_the_funnel_says_what_each_rule_saw_dropped_and_left(page: str) -> None:
    text = Skeleton(page).text
    found = []
    for name, sql in (item for rule in RULES for item in rule.items()):
        row = re.search(rf"{name} {re.escape(sql)} ([\d,]+) ([\d,]+) [\d.]+ % ([\d,]+)", text)
        assert row is not None, name
        found.append([int(number) for number in row.groups()])
    downloaded, wide, top = found
    assert downloaded == [200, 20, 180]
    assert (wide[0], top[0]) == (180, wide[2])
    assert all(saw - dropped == left for saw, dropped, left in found)


def test_each_threshold_is_drawn_with_pictures_on_both_sides(page: str) -> None:
    text = Skeleton(page).text
    assert {"≥ 80 px", "≤ 250 px"} <= set(re.findall(r"[≥≤] \d+ px", text))
    assert re.search(r"≥ here 0\.\d+", text)
    kept_between = {
        "Just below 80 px": False,
        "Just above 80 px": True,
        "Just below 250 px": True,
        "Just above 250 px": False,
    }
    for title, passed in kept_between.items():
        after = page.partition(title)[2].partition("<h4>")[0]
        tiles = re.findall(r'class="tile (\w+)".*?<span class="head">(\d+) px', after, re.DOTALL)
        assert len(tiles) == 8, title
        assert all((80 <= int(width) <= 250) == passed for _, width in tiles)
        assert {verdict for verdict, _ in tiles} == {"passed" if passed else "dropped"}
        distances = [min(abs(int(width) - 80), abs(int(width) - 250)) for _, width in tiles]
        assert distances == sorted(distances), "the nearest first"


def test_pictures_are_ours_and_small(page: str) -> None:
    found = [value for tag, name, value in Skeleton(page).values if tag == "img" and name == "src"]
    assert len(found) > 50
    for uri in found:
        with Image.open(BytesIO(b64decode(uri.partition(",")[2])), formats=["WEBP"]) as image:
            assert image.size == (24, 18)
    alts = [value for tag, name, value in Skeleton(page).values if tag == "img" and name == "alt"]
    assert len(alts) == len(found)
    assert all(alts)


def test_the_page_tells_copies_hosts_errors_nodes_shards_and_other_tables(page: str) -> None:
    text = Skeleton(page).text
    assert "8 of 200 images (4.0 %) stand in 2 groups of two or more; one of each would leave 194" in text
    assert "0.940" in text
    assert "How 200 URLs of 3 hosts ended" in text
    assert re.search(r"host0\.example http_404 7 89\.6 % 67", text)
    assert "row 17 broke 4" in text, "errors that differ in numbers only stand together"
    assert "2 rows of kind edge" in text, "one in each part"
    assert re.search(r"pool stages\.select\.Select 2 180 [\d.]+ kB 4 s 45", text), "180 rows in 2 parts of 2 s"
    assert "/data/00000.tar 12.3 kB" in text


def test_one_file_under_many_urls_is_shown_as_a_placeholder(tmp_path: Path) -> None:
    urls = [
        "https://a.example/1.png?x",
        "https://a.example/2.png",
        "https://u@b.example/3.png",
        "https://c.example/4.png",
    ]
    rows = [Row(uid(place), url=url, picture=picture((0, 0, 0))) for place, url in enumerate(urls)]
    rows += [Row(uid(9 + place), picture=picture((place, 0, 255))) for place in range(2)]
    SmallRun().write(str(tmp_path), rows)
    page = report(str(tmp_path))
    text = Skeleton(page).text
    assert "4 URLs, 3 hosts https://a.example/1.png?…" in text
    assert len(re.findall(r"\d+ URLs, \d+ host", text)) == 1
    assert len(re.findall(r'<img src="data:', page)) == 1


def test_a_row_that_was_retried_counts_once_and_shows_what_came_of_it(tmp_path: Path) -> None:
    rows = [Row(uid(place), status="timeout", numbers={"score": 0.1}) for place in range(4)]
    again = [Row(uid(0), caption="came later", picture=picture(), numbers={"score": 0.9})]
    SmallRun(rules=[{"downloaded": "status = 'success'"}, {"good": "score > 0.5"}], retried=again).write(
        str(tmp_path), rows
    )
    page = report(str(tmp_path))
    text = Skeleton(page).text
    assert "4 pairs met 2 rules in order" in text
    assert re.search(r"success 1 25\.0 %", text)
    assert re.search(r"timeout 3 75\.0 %", text)
    assert page.count("<img") == text.count("came later") > 0


def test_numbers_that_are_no_numbers_are_said(tmp_path: Path) -> None:
    rows = [
        Row(uid(i), numbers={"x": value}) for i, value in enumerate([1.0, 2.0, float("nan"), float("inf"), None, 3.0])
    ]
    SmallRun().write(str(tmp_path), rows)
    text = Skeleton(report(str(tmp_path))).text
    assert "1 null 1 NaN 1 infinite" in text


def test_a_run_without_pictures_captions_or_verdicts_has_a_page(tmp_path: Path) -> None:
    SmallRun().write(str(tmp_path), [])
    assert "Nodes and throughput" in report(str(tmp_path))


def test_a_root_without_a_run_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(SluiceError, match="has no run"):
        report(str(tmp_path))


def test_secrets_in_urls_are_not_on_the_page(tmp_path: Path) -> None:
    url = "https://alice:hunter2@host.example/a.jpg?token=sesame#key"
    run = SmallRun(
        text=f"dag: demo\nfiles: {url}\nother: s3://key:hunter2@bucket/x?token=sesame\n", errors=[f"{url} broke"]
    )
    run.write(str(tmp_path), [Row(uid(i), url=url, picture=picture()) for i in range(4)])
    page = report(str(tmp_path))
    assert "hunter2" not in page
    assert "sesame" not in page
    assert "https://host.example/a.jpg?…" in page
    assert "s3://bucket/x?…" in page


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("https://a.example/b?c=d", "https://a.example/b?…"),
        ("https://u:p@a.example:80/b", "https://a.example:80/b"),
        ("//u:p@a.example/b#c", "//a.example/b?…"),
        ("https://a.example/@b", "https://a.example/@b"),
        ("https://a.example?x=@", "https://a.example?…"),
        ("no url", "no url"),
    ],
)
def test_a_url_is_shown_without_userinfo_query_and_fragment(url: str, shown: str) -> None:
    assert words.inert(url) == shown


# -- other people's bytes ----------------------------------------------------------------------------------------------


def test_bytes_that_are_no_picture_or_another_one_are_named_not_shown(tmp_path: Path) -> None:
    rows = [
        Row(uid(0), picture=b"<svg xmlns='http://www.w3.org/2000/svg'><script>window.canary=1</script></svg>"),
        Row(uid(1), picture=picture()[:200]),
        Row(uid(2), picture=picture(size=(900, 300)) + b"<script>window.canary=1</script>"),
        Row(uid(3), picture=picture(form="BMP")),
    ]
    store = SmallRun(rules=[{"all": "true"}]).write(str(tmp_path), rows)
    text = Skeleton(report(str(tmp_path))).text
    assert text.count("cannot be decoded") == 3
    (tar,) = Path(store.full("pool/data")).glob("000-0*.tar")
    tar.write_bytes(tar.read_bytes().replace(b"canary", b"kanary"))
    page = report(str(tmp_path))
    assert page.count("corrupt; ") == 2, "both images of the first part have the word, each is checked"
    assert page.count("cannot be decoded") == 2


def test_a_thumbnail_keeps_no_byte_of_the_original(tmp_path: Path) -> None:
    hidden = b"<script>window.canary=1</script>"
    SmallRun(rules=[{"all": "true"}]).write(str(tmp_path), [Row(uid(0), picture=picture(size=(900, 300)) + hidden)])
    page = report(str(tmp_path))
    (uri,) = re.findall(r'src="data:image/webp;base64,([^"]+)"', page)
    data = b64decode(uri)
    assert hidden not in data
    with Image.open(BytesIO(data)) as image:
        assert image.size == (SIDE, round(SIDE / 3))


def test_a_page_has_room_for_so_many_pictures_and_no_more(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    SmallRun(rules=[{"all": "true"}]).write(str(tmp_path), scored(40))
    whole = report(str(tmp_path))
    size = len(re.findall(r'src="(data:[^"]+)"', whole)[0])
    monkeypatch.setattr("pipeline.report.samples.PAGE_BYTES", 4 * size)
    some = report(str(tmp_path))
    assert sum(len(uri) for uri in re.findall(r'src="(data:[^"]+)"', some)) <= 4 * size
    assert "left out: the page is full" in some


# -- other people's text -----------------------------------------------------------------------------------------------


def test_a_thousand_hostile_texts_open_no_tag_and_no_attribute(hostile_page: Path, tmp_path: Path) -> None:
    assert len(TEXTS) == 1000
    hostile = Skeleton(hostile_page.read_text(encoding="utf-8"))
    letters = "abcdefghij"
    numbered = ["text " + "".join(letters[int(digit)] for digit in f"{place:04d}") for place in range(1000)]
    tame = Skeleton(roomy_page(tmp_path, numbered).read_text(encoding="utf-8"))
    assert hostile.tags == tame.tags
    shown = " ".join("".join(hostile.texts).split())
    kept = [text for place, text in enumerate(TEXTS) if place % 10]
    assert all(" ".join(words.clean(text, 220).split()) in shown for text in kept)


def test_hostile_text_in_the_sql_of_a_rule_stays_text(tmp_path: Path) -> None:
    quoted = TEXTS[0].replace("'", "''")
    rules = [{"clean": f"url <> '{quoted}' AND width > 10"}]
    SmallRun(rules=rules).write(str(tmp_path), [replace(row, width=50) for row in scored(4)])
    page = report(str(tmp_path))
    assert TEXTS[0] not in page
    assert "&lt;script&gt;window.canary=1" in page
    assert AWAY not in page


# -- the command -------------------------------------------------------------------------------------------------------


def test_the_command_writes_the_page_and_says_where(tmp_path: Path) -> None:
    SmallRun(rules=RULES).write(str(tmp_path / "root"), scored(20))
    target = tmp_path / "page.html"
    done = CliRunner().invoke(cli.main, ["report", str(tmp_path / "root"), "--out", str(target)])
    assert done.exit_code == 0, done.output
    assert target.read_text(encoding="utf-8").rstrip().endswith("</html>")


def test_a_folder_that_does_not_exist_is_an_error_of_one_line(tmp_path: Path) -> None:
    SmallRun().write(str(tmp_path / "root"), scored(4))
    done = CliRunner().invoke(cli.main, ["report", str(tmp_path / "root"), "--out", str(tmp_path / "no" / "page.html")])
    assert done.exit_code == 2
    assert "name a file in a folder that exists" in done.output
