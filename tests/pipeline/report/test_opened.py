"""The page as Chromium shows it. Skipped, with the reason, where there is no Chromium; `.ci/run` installs one."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from pipeline.report import report
from tests.browser import Browser
from tests.pipeline.report.hostile import AWAY, TEXTS, TONGUES
from tests.pipeline.report.small_runs import RULES, Row, SmallRun, picture, scored, uid

CANARY = "typeof window.canary"
OVERFLOWING = """
    [...document.querySelectorAll('body *')]
        .filter(e => !e.closest('.scroll, .strip, svg, .frame, .caption, .url'))
        .filter(e => e.getBoundingClientRect().right > innerWidth + 1)
        .map(e => e.outerHTML.slice(0, 200))
"""
HIDDEN = "document.documentElement.scrollWidth > innerWidth"
LEAST_CONTRAST = """(() => {
    const paint = document.createElement('canvas').getContext('2d', {willReadFrequently: true})
    const rgb = colour => {
        paint.fillStyle = colour
        paint.fillRect(0, 0, 1, 1)
        return [...paint.getImageData(0, 0, 1, 1).data].slice(0, 3)
    }
    const linear = v => v <= 0.03928 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4
    const light = colour => rgb(colour).map(v => linear(v / 255))
        .reduce((sum, v, place) => sum + v * [0.2126, 0.7152, 0.0722][place], 0)
    const behind = e => {
        while (e && getComputedStyle(e).backgroundColor === 'rgba(0, 0, 0, 0)') e = e.parentElement
        return e ? getComputedStyle(e).backgroundColor : 'white'
    }
    const written = e => [...e.childNodes].some(node => node.nodeType === 3 && node.data.trim())
    const contrast = e => {
        const style = getComputedStyle(e)
        const [a, b] = [light(e.closest('svg') ? style.fill : style.color), light(behind(e))].sort()
        return [(Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05), e.outerHTML.slice(0, 120)]
    }
    return [...document.querySelectorAll('main *, nav *')]
        .filter(e => written(e) && !e.closest('title')).map(contrast).sort((a, b) => a[0] - b[0])[0]
})()"""
DIRECTIONS = """
    Object.fromEntries([...document.querySelectorAll('.caption')]
        .map(e => [e.textContent, getComputedStyle(e).direction]))
"""
ACTIVE = "document.querySelectorAll('script, iframe, object, embed, form, [onerror], [onload]').length"
BLIND = "[...document.images].filter(image => !image.complete || !image.naturalWidth).length"


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with Browser() as opened:
        yield opened


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("page")
    rows = scored(100)
    for row in rows[:6]:
        row.group, row.similarity = rows[0].uid, 0.9
    long = [{"x" * 60: f"length(url) > 3 AND url <> '{'w' * 200}'"}]
    run = SmallRun(
        rules=[*RULES, *long], dag="d" * 90, shard=f"/{'s' * 150}.tar", errors=["e" * 300], notes={"seconds": 1}
    )
    run.write(str(folder / "root"), rows)
    target = folder / "page.html"
    target.write_text(report(str(folder / "root")), encoding="utf-8")
    return target


@pytest.mark.parametrize("width", [390, 820, 1440])
@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
def test_the_page_fits_its_window_shows_its_pictures_and_asks_for_nothing(
    browser: Browser, page: Path, width: int, dark: bool
) -> None:
    opened = browser.open(page, width, dark=dark)
    assert opened.evaluate("document.images.length") > 50
    assert opened.evaluate(BLIND) == 0
    assert opened.evaluate(HIDDEN) is False
    assert opened.evaluate(OVERFLOWING) == []
    assert opened.problems == []
    assert opened.requests == []


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
def test_text_has_the_contrast_of_wcag(browser: Browser, page: Path, dark: bool) -> None:
    """Success criterion 1.4.3: 4.5 to 1 for text."""
    opened = browser.open(page, dark=dark)
    worst = opened.evaluate(LEAST_CONTRAST)
    assert worst[0] >= 4.5, worst


@pytest.mark.fault(27)
def test_captions_of_every_tongue_run_in_their_direction(browser: Browser, tmp_path: Path) -> None:
    rows = [Row(uid(place), caption=text, picture=picture()) for place, text in enumerate(TONGUES.values())]
    rows.append(Row(uid(99), caption="\u202egnp.exe", picture=picture()))
    SmallRun(rules=[{"all": "true"}]).write(str(tmp_path / "root"), rows)
    target = tmp_path / "page.html"
    target.write_text(report(str(tmp_path / "root")), encoding="utf-8")
    opened = browser.open(target)
    shown = opened.evaluate(DIRECTIONS)
    assert {tongue: shown[text] for tongue, text in TONGUES.items()} == {
        tongue: "rtl" if tongue in ("ar", "he", "fa") else "ltr" for tongue in TONGUES
    }
    isolated = opened.evaluate("[...document.querySelectorAll('.caption')].map(e => getComputedStyle(e).unicodeBidi)")
    assert set(isolated) == {"isolate"}


def test_a_thousand_hostile_texts_run_nothing_and_load_nothing(browser: Browser, hostile_page: Path) -> None:
    opened = browser.open(hostile_page, width=390)
    assert opened.evaluate("document.querySelectorAll('.tile').length") >= 1000
    assert opened.evaluate(CANARY) == "undefined"
    assert opened.evaluate(ACTIVE) == 0
    assert opened.problems == [], "the policy was never needed"
    assert opened.requests == []
    assert opened.evaluate("location.protocol") == "file:"
    assert opened.evaluate(HIDDEN) is False


def test_the_browser_would_have_told(browser: Browser, tmp_path: Path) -> None:
    """The same texts where nobody escapes them: they run without the policy, and are refused with it."""
    texts = f"<p>{TEXTS[0]}</p><p>{AWAY}</p><img src={AWAY}/i.png>"
    target = tmp_path / "page.html"
    target.write_text(f"<!doctype html><body>{texts}", encoding="utf-8")
    opened = browser.open(target)
    assert opened.evaluate(CANARY) == "number"
    assert opened.requests == [f"{AWAY}/i.png"]
    policy = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
    head = f'<meta http-equiv="Content-Security-Policy" content="{policy}">'
    target.write_text(f"<!doctype html>{head}<body>{texts}", encoding="utf-8")
    opened = browser.open(target)
    assert opened.evaluate(CANARY) == "undefined"
    assert opened.problems
