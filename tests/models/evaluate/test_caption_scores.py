"""The numbers of captions: those of pycocoevalcap with its Java tokenizer, to the sixth digit."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from models.evaluate.caption_scores import caption_scores
from models.evaluate.words import words


@pytest.mark.parametrize("name", ["coco_fakecap_126_overlap", "coco_val2017_human_loo"])
def test_the_numbers_are_those_of_pycocoevalcap(shared_data: Path, name: str) -> None:
    folder = shared_data / "caption_metric_reference"
    given, known = (json.loads((folder / f"{kind}_{name}.json").read_text()) for kind in ("input", "peer"))
    images = list(given["refs"])
    captions = [one if isinstance(one := given["hyps"][image], str) else one[0] for image in images]
    found = caption_scores(captions, [given["refs"][image] for image in images])
    for size, value in enumerate(found.bleu, 1):
        assert value == pytest.approx(known["scores"][f"Bleu_{size}"], abs=1e-9)
    assert found.rouge_l == pytest.approx(known["scores"]["ROUGE_L"], abs=1e-9)
    assert found.cider == pytest.approx(known["scores"]["CIDEr"], abs=1e-9)
    each = [known["cider_per_image"][image] for image in images]
    assert found.cider_each.tolist() == pytest.approx(each, abs=1e-9)


@pytest.mark.parametrize(
    ("caption", "known"),
    [
        ("Children's toys, aren't they? Cannot say.", "children 's toys are n't they can not say"),
        ("A close-up of the tub/shower (white) & more...", "a close-up of the tub/shower -lrb- white -rrb- & more"),
        ("At 4:21 on Wall St. a T.V. shows 1,000 ads.", "at 4:21 on wall st. a t.v. shows 1,000 ads"),
        ("hors d'oeuvre -- the skis' 1950s look", "hors d'oeuvre the skis 1950s look"),
        ('a street.A bus; it;s "red"', "a street.a bus it s red"),
        ("", ""),
    ],
)
def test_captions_are_cut_as_stanfords_tokenizer_does(caption: str, known: str) -> None:
    assert " ".join(words(caption)) == known


def test_a_caption_of_the_same_words_is_as_good_as_can_be() -> None:
    texts = ["a red circle on a blue square", "two green stars above a box"]
    found = caption_scores(texts, [[text] for text in texts])
    assert found.bleu == pytest.approx((1, 1, 1, 1))
    assert found.rouge_l == pytest.approx(1)
    assert found.cider_each.tolist() == pytest.approx([10, 10])


def test_a_caption_without_a_word_scores_nothing() -> None:
    found = caption_scores(["", "..."], [["a cat"], ["a dog"]])
    assert (found.rouge_l, found.cider) == (0, 0)
    assert found.bleu[0] < 1e-6


def test_an_image_without_a_reference_is_refused() -> None:
    with pytest.raises(ValueError, match="without a reference"):
        caption_scores(["a cat"], [[]])
    with pytest.raises(ValueError, match="1 captions and 2 lists"):
        caption_scores(["a cat"], [["a"], ["b"]])
