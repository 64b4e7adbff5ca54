"""Captions by models: drawn from the image's own numbers, in any company, as transformers would write them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import models.without_torchvision  # isort: skip  # noqa: F401
from transformers import BlipForConditionalGeneration

from models.captioners.captioner import Captioner, PromptError, _mean_scores
from models.captioners.checkpoint import content_hash
from models.captioners.decoding import Decoding, Written
from tests.models.captioners import tiny

DECODING = Decoding(candidates=2, most_tokens=8, seed=3)


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.captioner(tmp_path_factory.mktemp("captioner"))


@pytest.fixture(scope="module")
def captioner(folder: Path) -> Captioner:
    return Captioner.load(folder, "cpu", "float32")


def pictures(count: int) -> list[np.ndarray]:
    dice = np.random.default_rng(0)
    return [dice.integers(0, 256, (20 + n, 24, 3), dtype=np.uint8) for n in range(count)]


def texts(found: list[list[Written]]) -> list[list[str]]:
    return [[one.text for one in captions] for captions in found]


UIDS = ["a1", "b2", "c3", "d4", "e5"]


def test_what_is_drawn_depends_on_the_uid_and_not_on_the_neighbours(captioner: Captioner) -> None:
    images = pictures(5)
    together = texts(captioner.write(images, UIDS, DECODING))
    alone = [texts(captioner.write([image], [uid], DECODING))[0] for image, uid in zip(images, UIDS, strict=True)]
    assert together == alone
    assert texts(captioner.write(images[::-1], UIDS[::-1], DECODING, batch=2)) == together[::-1]
    torch.manual_seed(99)
    assert texts(captioner.write(images, UIDS, DECODING)) == together


def test_other_uids_seeds_and_candidates_are_other_draws(captioner: Captioner) -> None:
    same = pictures(1) * 3
    found = texts(captioner.write(same, UIDS[:3], DECODING))
    assert len({caption for captions in found for caption in captions}) == 6
    other = texts(captioner.write(same, UIDS[:3], replace(DECODING, seed=4)))
    assert not {one for captions in other for one in captions} & {one for captions in found for one in captions}


def test_with_no_room_to_draw_it_writes_what_transformers_does_greedily(captioner: Captioner, folder: Path) -> None:
    images = pictures(3)
    found = captioner.write(images, UIDS[:3], Decoding(top_p=1e-6, most_tokens=8))
    model: Any = BlipForConditionalGeneration.from_pretrained(folder)
    assert captioner.preprocessing is not None
    pixels = captioner.preprocessing.normalise(torch.from_numpy(np.stack([captioner.preprocessing(i) for i in images])))
    tokens = model.generate(pixel_values=pixels.permute(0, 3, 1, 2), max_new_tokens=8, do_sample=False)
    known = tiny.tokenizer().batch_decode(tokens, skip_special_tokens=True)
    assert [captions[0].text for captions in found] == [" ".join(text.split()) for text in known]


def test_the_score_is_the_mean_logarithm_of_what_the_model_gave_its_tokens(
    captioner: Captioner, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (image,) = pictures(1)
    spelt = lambda rows, **_: [" ".join(str(token) for token in row) for row in rows.tolist()]  # noqa: E731
    monkeypatch.setattr(captioner._inputs.tokenizer, "batch_decode", spelt)
    written = captioner.write([image] * 5, UIDS, Decoding(most_tokens=12, least_tokens=12, temperature=2.0, seed=1))
    model: Any = BlipForConditionalGeneration.from_pretrained(folder)
    assert captioner.preprocessing is not None
    pixels = captioner.preprocessing.normalise(torch.from_numpy(captioner.preprocessing(image)[None].copy()))
    own = tiny.tokenizer()
    for (one,) in written:
        tokens = [int(token) for token in one.text.split()]
        ids = torch.tensor([[own.bos_token_id, *tokens]])
        with torch.no_grad():
            logits = model(pixel_values=pixels.permute(0, 3, 1, 2), input_ids=ids).logits[0, :-1]
        logits[:, own.eos_token_id] = float("-inf")  # least_tokens forbids an end, and what is left shares its chance
        known = logits.log_softmax(1).gather(1, ids[0, 1:, None]).mean()
        assert one.score == pytest.approx(known.item(), abs=1e-4)


def test_what_stands_behind_the_end_of_a_caption_has_no_part_in_its_score() -> None:
    tokens = torch.tensor([[5, 1, 0, 0], [5, 6, 7, 1], [5, 6, 7, 8], [5, 1, 1, 1]])
    scores = torch.tensor([[-1.0, -3, -90, -90], [-1, -2, -3, -4], [-1, -2, -3, -6], [-1, -3, -90, -90]])
    assert _mean_scores(tokens, scores, frozenset({1})) == [-2, -2.5, -3, -2]


def test_a_beam_search_gives_its_best_with_their_scores(captioner: Captioner) -> None:
    decoding = Decoding(method="beam", beams=3, candidates=2, most_tokens=6)
    images = pictures(2)
    found = captioner.write(images, UIDS[:2], decoding)
    for captions in found:
        assert len(captions) == 2
        assert captions[0].score is not None
        assert captions[1].score is not None
        assert captions[0].score >= captions[1].score
    assert texts(captioner.write(images, UIDS[2:4], decoding)) == texts(found)


def test_captions_do_not_repeat_what_they_were_to_begin_with(captioner: Captioner) -> None:
    images = pictures(4)
    prompts: list[str | None] = ["a red", None, "two green stars and", "a red"]
    found = texts(captioner.write(images, UIDS[:4], DECODING, prompts, batch=2))
    for image, uid, prompt, captions in zip(images, UIDS, prompts, found, strict=False):
        assert texts(captioner.write([image], [uid], DECODING, [prompt]))[0] == captions
    plain = texts(captioner.write(images, UIDS[:4], DECODING))
    assert found[1] == plain[1]
    assert found[0] != plain[0]


@pytest.mark.parametrize("method", ["nucleus", "beam"])
def test_prompts_are_sorted_by_length_and_past_tokens_cached_without_a_change_in_what_is_written(
    folder: Path, monkeypatch: pytest.MonkeyPatch, method: Any
) -> None:
    captioner = Captioner.load(folder, "cpu", "float32")
    model: Any = captioner._model
    generate, lengths, steps = model.generate, [], []
    model.text_decoder.register_forward_pre_hook(
        lambda _, __, given: steps.append(given["input_ids"].shape[1]), with_kwargs=True
    )

    def called(**given: Any) -> Any:
        lengths.append(tuple(given["input_ids"].shape))
        assert given["use_cache"]
        steps.clear()
        found = generate(**given)
        assert steps[0] == given["input_ids"].shape[1] - 1
        assert set(steps[1:]) == {1}  # the newest token alone
        assert len(steps) == 8
        return found

    monkeypatch.setattr(model, "generate", called)
    prompts: list[str | None] = ["two green stars and", "a red", "a cat sat on", "the", "a large", "a cat"]
    images, uids, decoding = pictures(6), [*UIDS, "f6"], replace(DECODING, method=method, least_tokens=8)
    together = captioner.write(images, uids, decoding, prompts, batch=2)
    assert [length for _, length in lengths] == sorted(length for _, length in lengths)
    assert max(rows for rows, _ in lengths) == 2
    monkeypatch.setattr(model, "generate", lambda **given: generate(**{**given, "use_cache": False}))
    for row, captions in enumerate(together):
        (alone,) = captioner.write(images[row : row + 1], uids[row : row + 1], decoding, prompts[row : row + 1])
        assert [one.text for one in alone] == [one.text for one in captions]
        assert [one.score for one in alone] == pytest.approx([one.score for one in captions], abs=1e-4)
    assert steps[-1] > 8  # and without a cache all of them


@pytest.mark.parametrize("decoding", [DECODING, Decoding(method="beam", beams=2, most_tokens=4)])
def test_numbers_that_a_dtype_cannot_hold_are_an_error_and_no_caption(tmp_path: Path, decoding: Decoding) -> None:
    model: Any = BlipForConditionalGeneration.from_pretrained(tiny.captioner(tmp_path))
    with torch.no_grad():
        model.text_decoder.cls.predictions.bias.add_(1e5)  # float16 ends at 65,504
    model.save_pretrained(tmp_path)
    narrow = Captioner.load(tmp_path, "cpu", "float16")
    with pytest.raises(FloatingPointError, match=r"BlipForConditionalGeneration: float16 cannot hold .* take bfloat16"):
        narrow.write(pictures(1), UIDS[:1], decoding)
    assert Captioner.load(tmp_path, "cpu", "float32").write(pictures(1), UIDS[:1], decoding)
    with torch.no_grad():
        model.text_decoder.cls.predictions.bias[3] = float("nan")
    model.save_pretrained(tmp_path)
    with pytest.raises(FloatingPointError, match=r"float32 cannot hold .* train its weights again"):
        Captioner.load(tmp_path, "cpu", "float32").write(pictures(1), UIDS[:1], decoding)


@pytest.mark.parametrize("method", ["nucleus", "beam"])
def test_a_caption_ends_where_the_model_has_no_more_places(captioner: Captioner, method: Any) -> None:
    """Of the tiny one there are 32."""
    images, most = pictures(2), 31
    endless = Decoding(method=method, beams=2, most_tokens=400, least_tokens=most)
    found = captioner.write(images, UIDS[:2], endless)
    assert found == captioner.write(images, UIDS[:2], replace(endless, most_tokens=most))
    prompt = " ".join(["cat"] * 20)
    length = captioner._inputs.size(prompt) - 1
    captioner.write(images, UIDS[:2], replace(endless, least_tokens=32 - length), [prompt] * 2)
    with pytest.raises(PromptError, match=f"prompt: {length} tokens, and BlipFor.* has places for 32.*shorten"):
        captioner.write(images, UIDS[:2], replace(endless, least_tokens=33 - length), [prompt] * 2)


def test_a_captioner_is_known_by_what_decides_its_captions(folder: Path, tmp_path: Path) -> None:
    known = content_hash(folder)
    (folder / "training.json").write_text("{}")
    (folder / "README.md").write_text("# it")
    assert content_hash(folder) == known
    assert content_hash(tiny.captioner(tmp_path, seed=1)) != known


def test_a_folder_that_holds_no_captioner_is_told_in_a_line(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"lacks \d+ tensors"):
        Captioner.load(tiny.matcher(tmp_path), "cpu", "float32")
    with pytest.raises(ValueError, match="no model that transformers knows"):
        Captioner.load(tmp_path / "nothing", "cpu", "float32")
