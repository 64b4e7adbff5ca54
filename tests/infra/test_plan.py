"""What is planted is planted in the shares that its mix names, from arguments alone, and is what it says."""

from collections import Counter
from dataclasses import replace
from hashlib import sha256
from itertools import pairwise

import pytest

from infra.miniweb import FACTS, MIXES, Family, Kind, Plan
from infra.miniweb.captions import SHAPE_WORDS
from infra.miniweb.mixes import ranges
from infra.miniweb.plan import FORBIDDEN_ADDRESSES, Page

BASE = "http://127.0.0.1:18080"
PLAN = Plan(2000, 5)


@pytest.mark.parametrize("mix", sorted(MIXES))
@pytest.mark.parametrize("pages", [20, 200, 2000, 2401, 1_000_000])
def test_kinds_fill_the_pages_without_gap_or_overlap_in_their_shares(mix: str, pages: int) -> None:
    found = ranges(mix, pages)
    assert next(iter(found.values())).start == 0
    assert all(one.stop == other.start for one, other in pairwise(found.values()))
    assert found[Kind.CLEAN].stop == pages
    assert len(found[Kind.CLEAN]) >= 0.19 * pages
    assert all(abs(len(found[kind]) - share * pages) <= 1 for kind, share in MIXES[mix].items())


def test_the_web_is_three_fifths_damaged_and_has_every_kind_from_2000_pages_on() -> None:
    damaged = sum(share for kind, share in MIXES["web"].items() if FACTS[kind].damaged)
    assert 0.55 < damaged < 0.65
    for pages in range(2000, 3000, 37):
        assert all(len(places) for places in ranges("web", pages).values())
    assert set(MIXES["web"]) | {Kind.CLEAN} == set(Kind)
    harmful = [k for k, facts in FACTS.items() if facts.family in (Family.FORBIDDEN, Family.HARMFUL)]
    assert sum(MIXES["web"][kind] for kind in harmful) < 0.03


def test_a_page_is_known_without_the_others() -> None:
    counts = Counter(page.kind for page in PLAN)
    assert counts == {kind: len(places) for kind, places in ranges("web", 2000).items()}
    for kind in Kind:
        for page in PLAN.of(kind):
            again = Plan(2000, 5)[page.number]
            assert (again.kind, again.rank, again.caption) == (kind, page.rank, page.caption)


def test_a_page_of_a_million_is_known_at_once() -> None:
    page = Plan(1_000_000)[987_654]
    assert page.caption == Plan(1_000_000)[987_654].caption
    assert next(Plan(1_000_000).of(Kind.PNG_BOMB)).kind is Kind.PNG_BOMB


def test_another_seed_is_another_web() -> None:
    other = Plan(2000, 6)
    assert sum(PLAN[number].kind is other[number].kind for number in range(2000)) < 600
    assert sum(PLAN[number].scene == other[number].scene for number in range(200)) == 0


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        ({"pages": 19}, "pages is 19; expected 20 to 1,000,000"),
        ({"pages": 1_000_001}, "pages is 1,000,001"),
        ({"pages": 20, "mix": "wep"}, "mix is 'wep'; expected web, clean"),
        ({"pages": 20, "sides": "huge"}, "sides is 'huge'; expected small, medium, large"),
        ({"pages": 20, "evaluation": 0}, "evaluation is 0"),
    ],
)
def test_what_cannot_be_planned_is_told(arguments: dict[str, object], complaint: str) -> None:
    with pytest.raises(ValueError, match=complaint):
        Plan(**arguments)  # type: ignore[arg-type]


def sourced(page: Page) -> Page:
    assert page.source is not None
    assert page.source.kind is Kind.CLEAN
    return page.source


def test_mismatches_are_captions_of_a_page_of_the_same_classes_and_false_of_their_own_image() -> None:
    seen = Counter[str]()
    for page in PLAN.of(Kind.MISMATCH):
        source, claimed = sourced(page), page._claimed
        assert page.caption == claimed.text
        assert claimed.true_of(source.scene)
        assert not claimed.true_of(page.scene)
        assert {group.shape for group in page.scene.groups} == {group.shape for group in source.scene.groups}
        colours = [{one.colour, *(group.colour for group in one.groups)} for one in (page.scene, source.scene)]
        assert page.scene.colour != source.scene.colour
        assert page.changed == "colour" or colours[0] == colours[1]
        seen[str(page.changed)] += 1
    assert set(seen) == {"colour", "binding"}
    assert seen["colour"] < 0.25 * seen.total()


def test_captions_of_mismatches_are_worded_as_those_of_clean_pages() -> None:
    def lengths(kind: Kind) -> list[int]:
        return sorted(len(page.caption) for page in PLAN.of(kind))

    clean, false = lengths(Kind.CLEAN), lengths(Kind.MISMATCH)
    for share in (0.25, 0.5, 0.75):
        assert clean[int(share * len(clean))] == pytest.approx(false[int(share * len(false))], rel=0.12)


def test_look_alikes_differ_in_one_attribute_and_tell_the_truth() -> None:
    seen = set()
    for page in PLAN.of(Kind.LOOK_ALIKE):
        source = sourced(page)
        differing = [group for group in page.scene.groups if group not in source.scene.groups]
        assert 1 <= len(differing) <= (2 if page.changed == "place" else 1)
        assert page.scene.grain == source.scene.grain
        assert (page.scene.width, page.scene.height) == (source.scene.width, source.scene.height)
        assert not page.facts.damaged
        seen.add(page.changed)
    assert seen == {"colour", "count", "size", "texture", "place", "shape"}


def test_copies_show_what_their_source_shows_under_its_caption_or_another_true_one() -> None:
    same = Counter[bool]()
    for kind in (kind for kind, facts in FACTS.items() if facts.family is Family.COPY):
        for page in PLAN.of(kind):
            source = sourced(page)
            assert page.scene == source.scene
            assert page.path != source.path
            same[page.caption == source.caption] += 1
    assert min(same.values()) > 0.3 * same.total()


def test_a_repeat_has_the_address_of_its_source_and_another_wording() -> None:
    for page in PLAN.of(Kind.REPEATED_URL):
        assert page.url(BASE) == sourced(page).url(BASE)
        assert page.caption != sourced(page).caption


def test_leaks_show_images_of_the_evaluation_set_and_clean_pages_do_not() -> None:
    grains = {PLAN.evaluation_scene(number).grain for number in range(PLAN.evaluation)}
    for kind in (Kind.EXACT_LEAK, Kind.ALTERED_LEAK):
        for page in PLAN.of(kind):
            assert page.leaked is not None
            assert page.scene == PLAN.evaluation_scene(page.leaked)
    assert not grains & {page.scene.grain for page in PLAN.of(Kind.CLEAN)}


def test_evaluation_captions_are_five_different_true_ones() -> None:
    for number in range(20):
        captions = PLAN.evaluation_captions(number)
        assert len({said.text for said in captions}) == 5
        assert all(said.true_of(PLAN.evaluation_scene(number)) for said in captions)


def test_captions_are_of_their_kind() -> None:
    shapes = {word for synonyms in SHAPE_WORDS.values() for word in synonyms}
    for page in PLAN:
        if page.kind is Kind.OTHER_LANGUAGE:
            assert page.language not in (None, "en")
        elif page.kind in (Kind.SPAM, Kind.BOILERPLATE):
            assert page.language is None
        elif page.kind is Kind.TRUNCATED_CAPTION:
            assert page.true_caption.startswith(page.caption.rstrip("….")), page.caption
        else:
            assert page.language == "en"
            assert any(word in page.caption.lower() for word in shapes)
            assert (page.caption == page.true_caption) == (page.kind not in (Kind.MISMATCH, Kind.CHANGED))


def test_addresses_tell_nothing_but_what_their_kind_is_about() -> None:
    for page in PLAN:
        url = page.url(BASE)
        match page.kind:
            case Kind.NO_URL:
                assert not url
            case Kind.BAD_NAME:
                assert ".invalid/" in str(url)
            case Kind.BLOCKED_ADDRESS:
                assert str(url).split("/")[2] in FORBIDDEN_ADDRESSES
            case Kind.ROBOTS_BROKEN:
                assert url == f"http://localhost:18080/5/{page.number:07d}.jpg"
            case Kind.BAD_TLS:
                assert url == f"https://127.0.0.1:18080/5/{page.number:07d}.jpg"
            case Kind.DISALLOWED:
                assert url == f"{BASE}/5/private/{page.number:07d}.jpg"
            case Kind.REPEATED_URL:
                assert url == f"{BASE}/5/{sourced(page).number:07d}.jpg"
            case _:
                assert url == f"{BASE}/5/{page.number:07d}.jpg"


def test_a_path_finds_its_page_and_no_other_path_finds_any() -> None:
    for page in PLAN:
        found = PLAN.find(page.path or "")
        if page.kind is Kind.REPEATED_URL:
            assert found is not None
            assert found.number == sourced(page).number
        elif page.kind is not Kind.NO_URL:
            assert found == page
    clean = next(PLAN.of(Kind.CLEAN)).number
    wrong = [f"/6/{clean:07d}.jpg", f"/5/{clean}.jpg", f"/5/{clean:07d}.png", f"/5/private/{clean:07d}.jpg"]
    wrong += [f"/5/moved/{clean:07d}.jpg", "/5/9999999.jpg", "/5/٠٠٠٠٠٠١.jpg", "/", "", "/5/", f"{clean:07d}.jpg"]
    assert [PLAN.find(path) for path in wrong] == [None] * len(wrong)


def test_a_share_of_the_scenes_has_a_word_and_is_else_as_without() -> None:
    pages = list(Plan(2000, 5, words=0.25))
    written = [page for page in pages if page.scene.written is not None]
    assert 0.2 < len(written) / len(pages) < 0.3
    for page in pages:
        plain = PLAN[page.number]
        assert (page.url(BASE), page.kind) == (plain.url(BASE), plain.kind)
        if page.source is None:  # another scene of a page with a word takes one draw more
            assert replace(page.scene, written=None) == plain.scene
    told = [page for page in written if page.kind in (Kind.CLEAN, Kind.EXACT_COPY, Kind.MISMATCH)]
    assert all('"' in page.caption for page in told)
    assert all((f'"{page.scene.written}"' in page.caption) == (page.kind is not Kind.MISMATCH) for page in told)
    assert {page.kind for page in told} == {Kind.CLEAN, Kind.EXACT_COPY, Kind.MISMATCH}
    held_out = map(Plan(20, words=0.25).evaluation_scene, range(200))
    assert 0.2 < sum(scene.written is not None for scene in held_out) / 200 < 0.3
    with pytest.raises(ValueError, match="words is 25; expected a share, 0 to 1"):
        Plan(300, words=25)


def test_the_benchmark_stays_the_one_that_was_measured() -> None:
    """Golden: what is said of a web holds as long as its pages are these. Whoever means to change them renews it."""
    told = [(page.kind.value, page.url(BASE), page.caption, page.changed) for page in Plan(200, 17)]
    digest = sha256(repr(told).encode()).hexdigest()
    assert digest[:16] == "fc0869c32c894966"
