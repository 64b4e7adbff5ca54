"""BLIP's parts: as transformers has them, shared as the paper says, and learning what they should."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from torch.nn import functional
from transformers import AutoTokenizer, BlipConfig, BlipForConditionalGeneration, BlipForImageTextRetrieval

from models.data.images import save_preprocessor
from models.export.loading import use_of
from models.objectives.contrastive import InfoNCE
from models.objectives.language import NextToken
from models.objectives.matching import Matching
from models.objectives.momentum import MomentumContrast
from models.recipe import Images, Recipe
from models.towers.blip import Blip
from models.towers.blip_tokens import for_matching
from models.trainable import Batch
from tests.models.towers import tiny, tiny_blip
from tests.models.towers.small import words

TOLERANCE: dict[str, Any] = {"atol": 1e-5, "rtol": 0}
TEXT = {**tiny_blip.LAYERS, "max_position_embeddings": tiny_blip.LENGTH}
"""Of a config that has its tokens from a tokenizer."""
HEADS: tuple[tuple[str, ...], ...] = (("contrast", "match", "caption"), ("contrast", "match"), ("caption",))


def inputs(batch: Batch) -> dict[str, torch.Tensor]:
    """What transformers' classes take of it."""
    return {name: batch[name] for name in ("pixel_values", "input_ids", "attention_mask")}


def loaded(kind: Any, folder: Path) -> Any:
    """As anybody would load it; nothing of it is random."""
    model, told = kind.from_pretrained(folder, output_loading_info=True)
    assert not told["missing_keys"]
    return model


def mean(loss: tuple[torch.Tensor, torch.Tensor]) -> float:
    return float(loss[0].detach() / loss[1])


# -- weights out of and into transformers -----------------------------------------------------------------------------


@pytest.mark.parametrize("heads", HEADS)
def test_transformers_loads_what_was_exported_and_gives_the_same(heads: tuple[str, ...], tmp_path: Path) -> None:
    model, batch = tiny_blip.model(heads=heads).eval(), tiny_blip.rows(0, 6)
    model.export(tmp_path)
    with torch.no_grad():
        features = model(batch)
        if "caption" in heads:
            captioner = loaded(BlipForConditionalGeneration, tmp_path)
            logits = captioner(**inputs(batch)).logits[:, :-1]
            torch.testing.assert_close(features["logits"], logits, **TOLERANCE)
        if "match" in heads:
            matcher = loaded(BlipForImageTextRetrieval, tmp_path)
            cosines = matcher(**inputs(batch), use_itm_head=False).itm_score
            torch.testing.assert_close(features["image"] @ features["text"].T, cosines, **TOLERANCE)
            torch.testing.assert_close(features["match"][:, 0], matcher(**inputs(batch)).itm_score, **TOLERANCE)
    expected = {"caption": "BlipForConditionalGeneration", "match": "BlipForImageTextRetrieval"}
    assert BlipConfig.from_pretrained(tmp_path).architectures == [
        expected[h] for h in ("caption", "match") if h in heads
    ]
    assert all(file.is_file() for file in tmp_path.iterdir())


@pytest.mark.parametrize("heads", HEADS)
def test_what_was_exported_goes_on_as_it_was(heads: tuple[str, ...], tmp_path: Path) -> None:
    model, batch = tiny_blip.model(heads=heads, temperature=0.2).eval(), tiny_blip.rows(0, 6)
    model.export(tmp_path)
    again = Blip(pretrained=str(tmp_path), heads=heads).eval()
    before, after = model(batch), again(batch)
    assert before.keys() == after.keys()
    for name, value in before.items():
        torch.testing.assert_close(after[name], value, **TOLERANCE)
    if "match" in heads:
        assert again.scalars()["logit_scale"].exp().item() == pytest.approx(5)
    assert [name for name, _ in again.named_parameters()] == [name for name, _ in model.named_parameters()]


def test_weights_that_transformers_made_are_read(tmp_path: Path) -> None:
    torch.manual_seed(1)
    config: Any = BlipConfig(**tiny_blip.CONFIG)
    config.vision_config.initializer_range = 0.2
    theirs: Any = BlipForConditionalGeneration(config)
    batch = tiny_blip.rows(0, 4)
    theirs.eval()
    theirs.save_pretrained(tmp_path)
    ours = Blip(pretrained=str(tmp_path), heads=["caption"]).eval()
    with torch.no_grad():
        torch.testing.assert_close(ours(batch)["logits"], theirs(**inputs(batch)).logits[:, :-1], **TOLERANCE)


@pytest.mark.parametrize("heads", [("caption",), ("contrast", "match")])
def test_a_fine_tuning_takes_its_part_of_all(heads: tuple[str, ...], tmp_path: Path) -> None:
    model, batch = tiny_blip.model().eval(), tiny_blip.rows(0, 6)
    model.export(tmp_path)
    part = Blip(pretrained=str(tmp_path), heads=heads).eval()
    before, after = model(batch), part(batch)
    assert after.keys() < before.keys()
    for name, value in after.items():
        torch.testing.assert_close(value, before[name], **TOLERANCE)


def test_a_part_that_is_not_there_is_told(tmp_path: Path) -> None:
    tiny_blip.model(heads=["caption"]).export(tmp_path)
    with pytest.raises(ValueError, match=r"holds no whole BlipForImageTextRetrieval: it lacks \d+ tensors, itm_head"):
        Blip(pretrained=str(tmp_path))


@pytest.mark.parametrize(("side", "pixels"), [(16, 16), (32, 32)])
def test_images_of_another_size_find_their_places(side: int, pixels: int, tmp_path: Path) -> None:
    """Interpolated as transformers does it while it runs; the exported config says the new size."""
    model, batch = tiny_blip.model(heads=["caption"]).eval(), tiny_blip.rows(0, 3)
    model.export(tmp_path / "small")
    wide = functional.interpolate(batch["pixel_values"], size=(pixels, pixels))
    theirs = BlipForConditionalGeneration.from_pretrained(tmp_path / "small")
    resized = Blip(pretrained=str(tmp_path / "small"), heads=["caption"], image_size=side).eval()
    with torch.no_grad():
        expected = theirs(**inputs({**batch, "pixel_values": wide}), interpolate_pos_encoding=True).logits[:, :-1]
        torch.testing.assert_close(resized({**batch, "pixel_values": wide})["logits"], expected, **TOLERANCE)
        resized.export(tmp_path / "wide")
        again = BlipForConditionalGeneration.from_pretrained(tmp_path / "wide")
        logits = again(**inputs({**batch, "pixel_values": wide})).logits[:, :-1]
        torch.testing.assert_close(logits, expected, **TOLERANCE)


# -- tokens ------------------------------------------------------------------------------------------------------------


def test_our_tokenizer_begins_and_ends_what_is_written(tmp_path: Path) -> None:
    tokenizer = words(300, tiny_blip.LENGTH)
    model = Blip(tiny_blip.CONFIG, heads=["caption"], tokenizer=tokenizer).eval()
    model.export(tmp_path)
    captioner, read = loaded(BlipForConditionalGeneration, tmp_path), AutoTokenizer.from_pretrained(tmp_path)
    said: Any = captioner.config.text_config
    found = [said.bos_token_id, said.sep_token_id, said.pad_token_id]
    assert found == read.convert_tokens_to_ids(["<|startoftext|>", "<|endoftext|>", "<|pad|>"])
    assert said.vocab_size == len(read)


def test_a_tokenizer_of_berts_gets_its_marks_and_keeps_them(tmp_path: Path) -> None:
    bert = tiny.tokenizer("chinese_clip")
    before = len(bert)
    model = Blip(
        {**tiny_blip.CONFIG, "text_config": {**tiny_blip.LAYERS, "max_position_embeddings": 9}}, tokenizer=bert
    )
    assert len(bert) == before  # the caller's own is left alone
    model.eval().export(tmp_path)
    read = AutoTokenizer.from_pretrained(tmp_path)
    said: Any = BlipConfig.from_pretrained(tmp_path).text_config
    assert said.vocab_size == len(read) == before + 2
    assert said.bos_token_id == read.convert_tokens_to_ids("[DEC]") == before
    assert said.sep_token_id == read.sep_token_id
    ids = torch.tensor(read(["a red circle"])["input_ids"])
    assert read.convert_ids_to_tokens(for_matching(ids, read)[0].tolist())[0] == "[ENC]"
    again = Blip(pretrained=str(tmp_path), tokenizer=read)
    assert len(again.tokenizer) == before + 2


def test_texts_are_embedded_matched_and_written_with_their_own_first_token() -> None:
    bert = tiny.tokenizer("chinese_clip")
    model = Blip(
        {**tiny_blip.CONFIG, "text_config": {**tiny_blip.LAYERS, "max_position_embeddings": 9}}, tokenizer=bert
    )
    batch = tiny_blip.rows(0, 4)
    batch["input_ids"][:, 0] = bert.cls_token_id
    seen: dict[str, set[int]] = {}

    def note(name: str) -> Any:
        return lambda _, __, given: seen.setdefault(name, set()).update(given["input_ids"][:, 0].tolist())

    model.text_encoder.register_forward_pre_hook(
        lambda _, __, given: note("match" if given["encoder_hidden_states"] is not None else "embed")(_, __, given),
        with_kwargs=True,
    )
    model.text_decoder.register_forward_pre_hook(note("write"), with_kwargs=True)
    model(batch)
    marks = model.tokenizer.get_vocab()
    assert seen == {"embed": {bert.cls_token_id}, "match": {marks["[ENC]"]}, "write": {marks["[DEC]"]}}


# -- what is shared ----------------------------------------------------------------------------------------------------


def test_encoder_and_decoder_share_all_but_the_layers_of_self_attention() -> None:
    model = tiny_blip.model()
    encoder = dict(model.text_encoder.named_parameters(remove_duplicate=False))
    decoder = dict(model.text_decoder.bert.named_parameters(remove_duplicate=False))
    assert encoder.keys() == decoder.keys()
    apart = {name for name in encoder if encoder[name] is not decoder[name]}
    assert apart == {name for name in encoder if ".attention." in name}
    assert model.text_decoder.cls.predictions.decoder.weight is model.text_encoder.embeddings.word_embeddings.weight


def test_the_full_size_has_as_many_weights_as_the_authors() -> None:
    """252 million, in the paper's comparison of what may be shared; 361 with nothing shared."""
    with torch.device("meta"):
        model = Recipe.load("blip").model.build()
    assert sum(weight.numel() for weight in model.parameters()) / 1e6 == pytest.approx(252, abs=1)


# -- the slow copy -----------------------------------------------------------------------------------------------------


def test_the_slow_copy_is_no_parameter_and_follows() -> None:
    model = tiny_blip.model(momentum=0.75)
    assert not any(name.startswith("slow") for name, _ in model.named_parameters())
    assert any(name.startswith("slow") for name in model.state_dict())
    with torch.no_grad():
        model.vision_proj.weight.add_(1)
        before = model.vision_proj.weight - 1
    model.after_step()
    assert model.slow is not None
    torch.testing.assert_close(model.slow.get_buffer("vision_proj.weight"), before + 0.25)


def test_slow_features_have_no_gradient_and_are_the_fast_ones_at_first() -> None:
    model = tiny_blip.model(momentum=0.9)
    features = model(tiny_blip.rows(0, 6))
    for name in ("image", "text"):
        assert not features[f"{name}_m"].requires_grad
        torch.testing.assert_close(features[f"{name}_m"], features[name])
    with torch.no_grad():
        model.vision_proj.weight.normal_()
    model.after_step()
    assert not torch.allclose(model(tiny_blip.rows(0, 6))["image_m"], model(tiny_blip.rows(0, 6))["image"], atol=1e-2)


def test_without_alpha_queue_and_momentum_it_is_infonce() -> None:
    model, objective = tiny_blip.model(momentum=0), MomentumContrast(tiny_blip.WIDTH, queue=0, alpha=0)
    adam = torch.optim.Adam(model.parameters(), 1e-3)
    for step in range(3):
        features = model(tiny_blip.rows(8 * step, 8))
        loss = objective(features, model.scalars())
        assert mean(loss) == pytest.approx(mean(InfoNCE()(features, model.scalars())), rel=1e-5)
        loss.total.backward()
        adam.step()
        model.after_step()
        objective.after_step()


# -- matching ----------------------------------------------------------------------------------------------------------


def test_pairs_that_are_asked_of_are_the_true_one_and_two_wrong_ones() -> None:
    """The logits of a wrong pair are those of that pair asked of alone."""
    model, batch = tiny_blip.model().eval(), tiny_blip.rows(0, 6)
    with torch.no_grad():
        features = model(batch)
        assert features["match_labels"].tolist() == [[1, 0, 0]] * 6
        every = torch.stack([_asked(model, batch, image) for image in range(6)])  # (images, texts, 2)
    for row in range(6):
        _, text, image = features["match"][row]
        others = [place for place in range(6) if place != row]
        assert any(torch.allclose(text, every[row, other], atol=1e-5) for other in others)
        assert any(torch.allclose(image, every[other, row], atol=1e-5) for other in others)


def _asked(model: Blip, batch: Batch, image: int) -> torch.Tensor:
    """(texts, 2): one image and every text."""
    seen = model.vision_model(pixel_values=batch["pixel_values"][image : image + 1]).last_hidden_state.expand(6, -1, -1)
    tokens = {name: batch[name] for name in ("input_ids", "attention_mask")}
    asked: torch.Tensor = model.itm_head(
        model.text_encoder(**tokens, encoder_hidden_states=seen).last_hidden_state[:, 0]
    )
    return asked


def test_a_wrong_image_learns_of_the_pair_that_it_was_drawn_for() -> None:
    model, batch = tiny_blip.model(), tiny_blip.rows(0, 6)
    batch["pixel_values"].requires_grad_()
    features = model(batch)
    (image, _), _ = model._negatives(batch, features)
    for pair, seen in ((0, 2), (1, 2), (2, int(image[2]))):
        (gradient,) = torch.autograd.grad(features["match"][2, pair, 1], batch["pixel_values"], retain_graph=True)
        assert gradient.abs().amax(dim=(1, 2, 3)).nonzero().flatten().tolist() == [seen]


def test_copies_of_the_positive_are_no_negatives() -> None:
    """Four equal captions, and two equal images with other captions: neither is ever a wrong partner of the others."""
    batch = tiny_blip.rows(0, 8)
    for name in ("input_ids", "attention_mask"):
        batch[name][:4] = batch[name][0]
    batch["pixel_values"][5] = batch["pixel_values"][4]
    model = tiny_blip.model()
    for start in range(0, 800, 8):
        features = model(batch)
        drawn = model._negatives({**batch, "position": torch.arange(start, start + 8)}, features)
        for chosen, there in drawn:
            assert there.all()
            assert (chosen[:4] >= 4).all()
            assert chosen[4] != 5 and chosen[5] != 4  # noqa: PT018
            assert (chosen != torch.arange(8)).all()


def test_other_crops_of_the_same_file_are_no_negatives() -> None:
    batch = {**tiny_blip.rows(0, 8), "image_id": torch.tensor([7, 1, 7, 2, 3, 4, 7, 5])}
    copies = torch.tensor([0, 2, 6])
    model = tiny_blip.model()
    seen = set()
    for start in range(0, 800, 8):
        for chosen, there in model._negatives({**batch, "position": torch.arange(start, start + 8)}, model(batch)):
            assert there.all()
            assert not torch.isin(chosen[copies], copies).any()
            seen |= set(chosen.tolist())
    assert seen == set(range(8))  # of other pairs they are


@pytest.mark.parametrize("hardness", [0, 0.5, 3])
def test_hardness_multiplies_the_logits_by_which_wrong_partners_are_drawn(hardness: float) -> None:
    model, batch, times = tiny_blip.model(hardness=hardness, temperature=0.5), tiny_blip.rows(0, 6), 2_000
    features = model(batch)
    cosines = (features["image"] @ features["text"].T).detach()
    both = torch.zeros(2, 6, 6)
    for start in range(0, 6 * times, 6):
        for way, (chosen, _) in enumerate(model._negatives({**batch, "position": start + torch.arange(6)}, features)):
            both[way, torch.arange(6), chosen] += 1 / times
    for found, logits in ((both[1], 2 * cosines), (both[0], 2 * cosines.T)):  # an image's texts, a text's images
        expected = (hardness * logits).masked_fill(torch.eye(6, dtype=torch.bool), -torch.inf).softmax(1)
        torch.testing.assert_close(found, expected, atol=4.5 * (0.25 / times) ** 0.5, rtol=0)
        assert (expected.max() > 0.5) == (hardness == 3)


def test_where_all_captions_are_equal_nothing_is_learnt_of_wrong_pairs() -> None:
    batch = tiny_blip.rows(0, 4)
    for name in ("input_ids", "attention_mask"):
        batch[name][:] = batch[name][0]
    features = tiny_blip.model()(batch)
    assert features["match_labels"].tolist() == [[1, -100, -100]] * 4
    assert Matching()(features, {}).count == 4


# -- learning ----------------------------------------------------------------------------------------------------------


def test_losses_begin_at_their_closed_forms() -> None:
    model, batch = tiny_blip.model(spread=0.02), tiny_blip.rows(0, 12)
    features = model(batch)
    assert mean(Matching()(features, {})) == pytest.approx(math.log(2), abs=0.02)
    assert mean(NextToken()(features, {})) == pytest.approx(math.log(tiny_blip.WORDS), abs=0.1)


def test_a_batch_is_learned_by_heart() -> None:
    model, batch, objectives = tiny_blip.model(momentum=0.9), tiny_blip.rows(0, 6), tiny_blip.objectives()[1:]
    contrast = MomentumContrast(tiny_blip.WIDTH, queue=0, alpha=0)  # a queue would hold copies of the batch
    adam = torch.optim.Adam(model.parameters(), 1e-2)
    for _ in range(60):
        features = model(batch)
        losses = [one(features, model.scalars()) for one in (contrast, *objectives)]
        adam.zero_grad()
        torch.stack([loss.total / loss.count for loss in losses]).sum().backward()  # type: ignore[no-untyped-call]
        assert all(parameter.grad is not None for parameter in model.parameters())
        adam.step()
        model.after_step()
    assert mean(losses[0]) < 0.2
    assert mean(losses[1]) < 0.1
    assert mean(NextToken()(features, {})) < 0.3
    written = model.eval()(batch)["logits"].argmax(-1)
    learnt = features["labels"] >= 0
    assert (written == features["labels"])[learnt].float().mean() > 0.95


def test_what_it_learned_by_heart_it_writes(tmp_path: Path) -> None:
    model, batch = tiny_blip.model(heads=["caption"]), tiny_blip.rows(0, 4)
    adam = torch.optim.Adam(model.parameters(), 1e-2)
    for _ in range(60):
        loss = NextToken()(model(batch), {})
        adam.zero_grad()
        loss.total.backward()
        adam.step()
    model.eval().export(tmp_path)
    captioner = BlipForConditionalGeneration.from_pretrained(tmp_path)
    written = captioner.generate(batch["pixel_values"], max_new_tokens=tiny_blip.LENGTH - 1, do_sample=False)
    for found, ids, mask in zip(written, batch["input_ids"], batch["attention_mask"], strict=True):
        assert found[: int(mask.sum())].tolist() == ids[mask == 1].tolist()  # from the start token to the end
        assert (found[int(mask.sum()) :] == tiny_blip.PAD).all()


def test_the_temperature_stays_between_its_bounds() -> None:
    model = tiny_blip.model()
    for value, kept in ((20.0, 1000), (-20.0, 2)):
        with torch.no_grad():
            model.logit_scale.fill_(value)
        model.after_step()
        assert model.scalars()["logit_scale"].exp().item() == pytest.approx(kept, rel=1e-5)


# -- what cannot be ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ({"heads": ["match"]}, r"heads = \['match'\]: expected contrast and match, caption, or all three"),
        ({"heads": ["contrast", "match", "captions"]}, "expected contrast and match, caption"),
        ({"config": None}, "expected either a config or pretrained"),
        ({"config": {"hidden_size": 3}}, "blip has no 'hidden_size'"),
        ({"config": {"text_config": {"hiden_size": 3}}}, "did you mean 'hidden_size'"),
        ({"momentum": 1.5}, "momentum = 1.5: expected a share"),
    ],
)
def test_a_model_that_cannot_be_is_told_in_a_line(given: dict[str, Any], told: str) -> None:
    with pytest.raises(ValueError, match=told):
        Blip(**{"config": tiny_blip.CONFIG, **given})


def test_one_sample_alone_has_no_wrong_text() -> None:
    with pytest.raises(ValueError, match=r"one sample at once: .*; raise batch or parallel.micro_batch"):
        tiny_blip.model()(tiny_blip.rows(0, 1))


def test_several_captions_a_sample_are_told() -> None:
    batch = tiny_blip.rows(0, 4)
    batch |= {name: batch[name][:, None].expand(-1, 2, -1) for name in ("input_ids", "attention_mask")}
    with pytest.raises(ValueError, match=r"texts \(4, 2, 9\): expected one a sample"):
        tiny_blip.model()(batch)


@pytest.mark.parametrize("heads", [("caption",), ("contrast", "match")])
@pytest.mark.parametrize("bert", [False, True])
def test_the_code_on_its_card_runs(
    heads: tuple[str, ...],
    bert: bool,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    tokenizer = tiny.tokenizer("chinese_clip") if bert else words(300, tiny_blip.LENGTH)
    text = {**TEXT, "max_position_embeddings": 32}
    Blip({**tiny_blip.CONFIG, "text_config": text}, heads=heads, tokenizer=tokenizer).eval().export(tmp_path)
    save_preprocessor(Images(side=tiny_blip.SIDE), tmp_path)
    monkeypatch.chdir(tmp_path)
    Image.new("RGB", (40, 30), "red").save("picture.jpg")
    exec(use_of(json.loads((tmp_path / "config.json").read_text())).code.replace("THIS FOLDER", "."), {})
    assert capsys.readouterr().out.startswith("[" if "caption" in heads else "tensor([")
