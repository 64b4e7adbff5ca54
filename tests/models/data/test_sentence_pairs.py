"""What BERT reads: half of the pairs go on, 15 in 100 tokens are to be guessed, and all of it follows from the dice."""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path
from random import Random
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from models.data.collate import Room
from models.data.masking import Masking
from models.data.sentence_pairs import NEXT, RANDOM, SentencePairs, fitted, halves
from models.data.shards import Damaged, Sample, Samples
from models.data.tokenizer import CAPTION, MASKED, trained
from models.recipe import Data
from tests.models.data.tars_made import tar_of

TEXTS = [f"number{number} begins here. number{number} ends there." for number in range(20)]
CONTEXT = 48


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return trained(TEXTS, 350, CONTEXT, MASKED)


@pytest.fixture
def sets(tmp_path: Path) -> dict[str, Samples]:
    members = [(f"{number:03}.txt", text.encode()) for number, text in enumerate(TEXTS)]
    (tmp_path / "0.tar").write_bytes(tar_of(members))
    return {"shards": Samples.open(str(tmp_path))}


def reader(tokenizer: Any, sets: dict[str, Samples], context: int = CONTEXT) -> SentencePairs:
    pairs = SentencePairs(Data.model_validate({"kind": "sentence_pairs", "texts": {"context": context}}), tokenizer)
    pairs.meet(sets)
    return pairs


def test_half_of_the_pairs_go_on_and_the_others_come_from_another_sample(
    tokenizer: Any, sets: dict[str, Samples]
) -> None:
    pairs = reader(tokenizer, sets)
    rows = [pairs.row(sets["shards"][at % 20], Random(at), Room(), 0) for at in range(400)]
    batch = pairs.batch(rows)
    restored = batch["input_ids"].clone()
    for row, (places, labels) in enumerate(zip(batch["masked_places"], batch["masked_labels"], strict=True)):
        learnt = labels >= 0
        restored[row, places[learnt]] = labels[learnt]
    counts = Counter(batch["next_labels"].tolist())
    assert abs(counts[NEXT] - counts[RANDOM]) < 80  # 4 standard deviations
    for ids, types, mask, label in zip(
        restored, batch["token_type_ids"], batch["attention_mask"].bool(), batch["next_labels"], strict=True
    ):
        first, second = (tokenizer.decode(ids[mask & (types == kind)]) for kind in (0, 1))
        assert first.startswith("[CLS]")
        assert first.endswith("[SEP]")
        assert second.endswith("[SEP]")
        whose = [re.findall(r"number\d+", text) for text in (first, second)]
        assert (whose[0] == whose[1]) == (label == NEXT)
        assert "begins" in first
        assert "ends" in second
    assert not batch["token_type_ids"][~batch["attention_mask"].bool()].any()


def test_the_masks_are_fifteen_in_a_hundred_and_of_these_eight_in_ten_hidden(tokenizer: Any) -> None:
    masking, dice = Masking(tokenizer, most=60), Random(0)
    text = [4 + place % 300 for place in range(300)] + [tokenizer.sep_token_id]
    fates: Counter[str] = Counter()
    for _ in range(60):
        masked = masking(text, dice)
        learnt = [(place, label) for place, label in zip(masked.places, masked.labels, strict=True) if label >= 0]
        assert len(learnt) == 45
        assert len(masked.places) == len(masked.labels) == 60
        assert [text[place] for place, _ in learnt] == [label for _, label in learnt]
        for place, label in learnt:
            now = masked.tokens[place]
            fates["hidden" if now == tokenizer.mask_token_id else "same" if now == label else "other"] += 1
        untouched = set(range(301)) - {place for place, _ in learnt}
        assert all(masked.tokens[place] == text[place] for place in untouched)
        assert masked.tokens[-1] == tokenizer.sep_token_id
    assert fates["hidden"] / 2700 == pytest.approx(0.8, abs=0.03)
    assert fates["other"] / 2700 == pytest.approx(0.1, abs=0.025)
    assert not set(masking([10] * 400, Random(0)).tokens) & ({*tokenizer.all_special_ids} - {tokenizer.mask_token_id})


def test_a_tokenizer_without_a_mask_is_refused() -> None:
    with pytest.raises(ValueError, match="has no mask token"):
        Masking(trained(TEXTS, 300, CONTEXT, CAPTION), 4)


def test_the_same_dice_give_the_same_row_and_others_another(tokenizer: Any, sets: dict[str, Samples]) -> None:
    pairs, one = reader(tokenizer, sets), sets["shards"][3]
    assert pairs.row(one, Random(5), Room(), 0) == pairs.row(one, Random(5), Room(), 7)
    assert len({str(pairs.row(one, Random(seed), Room(), 0)) for seed in range(20)}) > 15


def test_a_lone_sample_has_no_random_partner(tokenizer: Any, tmp_path: Path) -> None:
    (tmp_path / "0.tar").write_bytes(tar_of([("0.txt", b"one text alone")]))
    sets = {"shards": Samples.open(str(tmp_path))}
    pairs = reader(tokenizer, sets)
    label = next(seed for seed in range(20) if not _goes_on(pairs, sets["shards"][0], seed))
    with pytest.raises(Damaged, match="no other text"):
        pairs.row(sets["shards"][0], Random(label), Room(), 0)


def _goes_on(pairs: SentencePairs, sample: Sample, seed: int) -> bool:
    try:
        return pairs.row(sample, Random(seed), Room(), 0).label == NEXT
    except Damaged:
        return False


@given(text=st.text(st.characters(codec="ascii"), max_size=60), seed=st.integers(0, 9))
def test_halves_lose_nothing_but_white_space(text: str, seed: int) -> None:
    first, second = halves(text, Random(seed))
    assert "".join((first + second).split()) == "".join(text.split())
    assert bool(second) == (len("".join(text.split())) > 1)


@given(first=st.integers(1, 40), second=st.integers(1, 40), room=st.integers(2, 50))
def test_what_is_cut_off_is_far_from_the_cut_and_the_room_is_used(first: int, second: int, room: int) -> None:
    left, right = list(range(first)), list(range(100, 100 + second))
    kept = fitted(left, right, room)
    assert len(kept[0]) + len(kept[1]) == min(room, first + second)
    assert kept[0] == left[first - len(kept[0]) :]
    assert kept[1] == right[: len(kept[1])]
    assert min(map(len, kept)) >= min(first, second, room // 2)


def test_a_long_pair_fits_the_context(tokenizer: Any, tmp_path: Path) -> None:
    long = " ".join(TEXTS * 3)
    (tmp_path / "0.tar").write_bytes(tar_of([("0.txt", long.encode()), ("1.txt", long.encode())]))
    sets = {"shards": Samples.open(str(tmp_path))}
    pairs = reader(tokenizer, sets, context=20)
    rows = [pairs.row(sets["shards"][0], Random(seed), Room(), 0) for seed in range(30)]
    batch = pairs.batch(rows)
    assert batch["input_ids"].shape == (30, 20)
    assert batch["attention_mask"].sum(dim=1).float().mean() > 18
    assert batch["masked_places"].shape == (30, 3)
