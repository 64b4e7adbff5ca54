"""Candidates are looked at once each, whatever is remembered of the images; and what comes out is pinned."""

import random
from collections import Counter
from functools import cache
from pathlib import Path

import pyarrow as pa
import pytest

from infra.miniweb.render import jpeg, paint
from infra.miniweb.scenes import ATTRIBUTES, SIDES, draw_scene
from pipeline.store import Store
from stages.dedup import NearDuplicates, verify
from stages.kit.pixels import Sight, sight
from tests.stages.dedup.copies import COPIES
from tests.stages.dedup.pools import Inline, Item, spread, uid_of, write_pool
from tests.stages.dedup.test_near_duplicates import items_of

KINDS = ("reencoded", "trimmed", "recoloured", "colour", "place")

GOLDEN = ["6ea6b0ec9d4e8414070dbd751acb1200", "76a5991061a66921f5fed93db9009cc9"]


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(str(tmp_path))


@cache
def pictures() -> list[Item]:
    """Pairs of several kinds; the hashes of the two of a pair are equal, those of pairs far apart."""
    dice, items = random.Random(3), []
    for number, kind in enumerate(KINDS):
        scene = draw_scene(f"verify/{number}", SIDES["small"])
        if kind in COPIES:
            other = COPIES[kind](paint(scene), dice)
        else:
            changed = ATTRIBUTES[kind](scene, dice)
            assert changed is not None
            other = jpeg(changed)
        for end, data in enumerate((jpeg(scene), other)):
            items.append(Item(uid_of(2 * number + end), data, 0xFFF << (12 * number)))
    return items


def edges(store: Store, items: list[Item], parts: int = 3) -> list[dict[str, object]]:
    stage = NearDuplicates(cosine=None)
    work = Inline(store, "copies", stage, write_pool(store, spread(items, parts)))
    rows: list[dict[str, object]] = pa.concat_tables(
        [store.read_table(record, "edge") for record in stage.assemble(work)]
    ).to_pylist()
    return rows


def test_every_image_is_decoded_once_however_many_candidates_it_has(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = Counter[bytes]()

    def counted(data: bytes) -> Sight:
        seen[data] += 1
        return sight(data)

    monkeypatch.setattr(verify, "sight", counted)
    monkeypatch.setattr(verify, "AT_ONCE", 3)
    (first, _), *others = [items[n : n + 2] for items in (pictures(),) for n in range(0, len(items), 2)]
    alike = [Item(uid_of(100 + n), other.data, first.phash) for n, (other, _) in enumerate(others)]
    found = edges(store, [first, *alike], parts=1)
    assert len(found) == 10
    assert set(seen.values()) == {1}


def test_what_is_remembered_changes_no_verdict(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    items = pictures()
    plenty = edges(Store(str(tmp_path / "plenty")), items)
    monkeypatch.setattr(verify, "REMEMBERED_BYTES", 0)
    monkeypatch.setattr(verify, "AT_ONCE", 1)
    nothing = edges(Store(str(tmp_path / "nothing")), items)
    columns = ("uid_a", "uid_b", "agreement", "verified")
    assert [[row[name] for name in columns] for row in plenty] == [[row[name] for name in columns] for row in nothing]
    names = {item.uid: kind for item, kind in zip(items[::2], KINDS, strict=True)}
    names |= {item.uid: kind for item, kind in zip(items[1::2], KINDS, strict=True)}
    assert {names[str(row["uid_a"])]: row["verified"] for row in plenty} == {
        "reencoded": True,
        "trimmed": True,
        "recoloured": True,
        "colour": False,
        "place": False,
    }


def test_the_golden_groups_hold_or_the_revision_is_raised(store: Store) -> None:
    """Of bytes and hashes, which are the same on every machine; of pixels, up to float noise."""
    inputs = write_pool(store, spread(items_of(8, 60), 2))
    stage = NearDuplicates(cosine=None, verify="none")
    records = stage.assemble(Inline(store, "copies", stage, inputs))
    assert NearDuplicates.revision == 2
    assert [record.content_hash for record in records] == [
        "6ea6b0ec9d4e8414070dbd751acb1200",
        "76a5991061a66921f5fed93db9009cc9",
    ]


def test_the_golden_agreements_hold_or_the_revision_is_raised(store: Store) -> None:
    found = sorted(float(str(row["agreement"])) for row in edges(store, pictures()))
    assert NearDuplicates.revision == 2
    assert found == pytest.approx([0.0, 0.0, 0.84, 0.9, 0.94], abs=0.02)
