"""LLaMA, BERT, ViT and DINO: what they lose at first, that they learn a batch, and that transformers says the same."""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn import functional

import models.without_torchvision  # isort: skip  # noqa: F401
from transformers import AutoModel, AutoModelForCausalLM, AutoModelForImageClassification, BertForPreTraining, ViTModel

from models.data.tokenizer import MASKED, WRITTEN_ON, Tokens, trained
from models.objectives.classes import ClassOf, MaskedTokens, NextSentence
from models.objectives.dino import SelfDistillation
from models.objectives.language import NextToken
from models.towers.bert import Bert
from models.towers.dino import Dino
from models.towers.language_model import CausalLanguageModel, following
from models.towers.vit import VisionClassifier
from models.trainable import Batch, Objective, Trainable

SIZES = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
LLAMA = {"model_type": "llama", **SIZES, "max_position_embeddings": 32}
BERT = {
    "model_type": "bert",
    **SIZES,
    "max_position_embeddings": 32,
    "hidden_dropout_prob": 0.0,
    "attention_probs_dropout_prob": 0.0,
}
VIT = {"model_type": "vit", **SIZES, "patch_size": 8, "image_size": 32}
LINES = ["a red circle on grey", "two blue squares", "the cat sat on the mat", "it rained"]


def read() -> tuple[Any, Batch]:
    tokenizer = trained(LINES * 5, 300, 32, WRITTEN_ON)
    tokens = Tokens(tokenizer)
    return tokenizer, tokens.padded([tokens(line) for line in LINES], 12)


def guessed() -> tuple[Any, Batch]:
    """Of ten tokens two are to be guessed, or one."""
    tokenizer, dice = trained(LINES * 5, 300, 32, MASKED), torch.Generator().manual_seed(0)
    ids = torch.randint(4, len(tokenizer), (6, 10), generator=dice)
    mask = torch.ones_like(ids)
    mask[::2, 8:] = 0
    places = torch.tensor([[1, 4], [2, 3], [0, 0], [5, 7], [6, 0], [1, 2]])
    labels = ids.gather(1, places)
    labels[2, 1] = labels[4, 1] = -100
    hidden = ids.clone()
    hidden[:, 1] = tokenizer.mask_token_id
    return tokenizer, {
        "input_ids": hidden,
        "attention_mask": mask,
        "token_type_ids": (torch.arange(10) > 5).long().expand(6, 10),
        "masked_places": places,
        "masked_labels": labels,
        "next_labels": torch.tensor([0, 1, 1, 0, 1, 0]),
    }


def pictures() -> Batch:
    dice = torch.Generator().manual_seed(0)
    return {"pixel_values": torch.randn(6, 3, 32, 32, generator=dice), "classes": torch.arange(6) % 3}


def crops() -> Batch:
    dice = torch.Generator().manual_seed(0)
    whole = torch.randn(6, 1, 3, 32, 32, generator=dice)
    return {
        "pixel_values": whole + 0.1 * torch.randn(6, 2, 3, 32, 32, generator=dice),
        "small_pixel_values": whole[..., :16, :16] + 0.1 * torch.randn(6, 3, 3, 16, 16, generator=dice),
    }


def lost(model: Trainable, objectives: Sequence[Objective], batch: Batch) -> list[torch.Tensor]:
    features = model(batch)
    return [loss.total / loss.count for loss in (objective(features, model.scalars()) for objective in objectives)]


def fit(model: Trainable, objectives: Sequence[Objective], batch: Batch, steps: int, rate: float = 5e-3) -> list[float]:
    adam = torch.optim.AdamW([own for own in model.parameters() if own.requires_grad], lr=rate, weight_decay=0)
    losses = []
    for step in range(steps):
        model.done = step / steps
        for objective in objectives:
            objective.done = step / steps
        loss = torch.stack(lost(model, objectives, batch)).sum()
        adam.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        adam.step()
        model.after_step()
        for objective in objectives:
            objective.after_step()
        losses.append(loss.item())
    return losses


# -- LLaMA -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("pack", [True, False])
def test_a_language_model_loses_what_transformers_says_and_at_first_the_logarithm_of_its_words(pack: bool) -> None:
    tokenizer, batch = read()
    torch.manual_seed(0)
    model = CausalLanguageModel(LLAMA, pack=pack, tokenizer=tokenizer)
    (loss,) = lost(model, [NextToken()], batch)
    assert loss.item() == pytest.approx(math.log(len(tokenizer)), abs=0.1)
    labels = batch["input_ids"].masked_fill(batch["attention_mask"] == 0, -100)
    theirs = model.model(**batch, labels=labels).loss
    assert loss.item() == pytest.approx(theirs.item(), rel=1e-6)


def test_no_label_reaches_over_the_end_of_a_text_or_out_of_padding() -> None:
    ids, mask = torch.tensor([[5, 6, 7, 0], [0, 5, 6, 7]]), torch.tensor([[1, 1, 1, 0], [0, 1, 1, 1]])
    assert following(ids, mask).tolist() == [[6, 7, -100, -100], [-100, 6, 7, -100]]


def test_a_language_model_learns_lines_by_heart_and_writes_them_after_export(tmp_path: Path) -> None:
    tokenizer, batch = read()
    torch.manual_seed(0)
    model = CausalLanguageModel(LLAMA, tokenizer=tokenizer)
    losses = fit(model, [NextToken()], batch, 60, 1e-2)
    assert losses[-1] < 0.5  # which of four lines it is nobody can know: ln 4 over some six tokens
    model.eval().export(tmp_path)
    loaded: Any = AutoModelForCausalLM.from_pretrained(tmp_path)
    loaded.eval()
    with torch.inference_mode():
        torch.testing.assert_close(loaded(**batch).logits, model.model(**batch).logits)
        for line in LINES:
            prompt = tokenizer(line.rpartition(" ")[0], return_tensors="pt").input_ids
            written = loaded.generate(prompt, max_new_tokens=8, do_sample=False)
            assert torch.equal(written, model.model.generate(prompt, max_new_tokens=8, do_sample=False))
            assert tokenizer.decode(written[0], skip_special_tokens=True).strip() == line


def test_what_a_language_model_cannot_be_given_is_an_error_of_one_line(tmp_path: Path) -> None:
    tokenizer, batch = read()
    with pytest.raises(ValueError, match="expected either a config or pretrained"):
        CausalLanguageModel()
    with pytest.raises(ValueError, match="llama has no 'hiden_size'; did you mean 'hidden_size'"):
        CausalLanguageModel({"model_type": "llama", "hiden_size": 4})
    with pytest.raises(ValueError, match=r"texts of \d+ tokens; the model has 4 places"):
        CausalLanguageModel(LLAMA | {"max_position_embeddings": 4}, tokenizer=tokenizer)(batch)
    CausalLanguageModel(LLAMA | {"vocab_size": 20}).export(tmp_path)
    with pytest.raises(ValueError, match=r"a tokenizer of .* tokens; the model knows 20"):
        CausalLanguageModel(pretrained=str(tmp_path), tokenizer=tokenizer)


# -- BERT --------------------------------------------------------------------------------------------------------------


def test_bert_loses_what_transformers_says_and_at_first_the_logarithms_of_its_words_and_of_two() -> None:
    tokenizer, batch = guessed()
    torch.manual_seed(0)
    model = Bert(BERT, tokenizer=tokenizer)
    masked, following_ = lost(model, [MaskedTokens(), NextSentence()], batch)
    assert masked.item() == pytest.approx(math.log(len(tokenizer)), abs=0.15)
    assert following_.item() == pytest.approx(math.log(2), abs=0.05)
    labels = torch.full_like(batch["input_ids"], -100)
    for row, (places, found) in enumerate(zip(batch["masked_places"], batch["masked_labels"], strict=True)):
        labels[row, places[found >= 0]] = found[found >= 0]
    names = ("input_ids", "attention_mask", "token_type_ids")
    theirs = model.model(**{n: batch[n] for n in names}, labels=labels, next_sentence_label=batch["next_labels"]).loss
    assert (masked + following_).item() == pytest.approx(theirs.item(), rel=1e-6)


def test_bert_learns_a_batch_by_heart_and_transformers_guesses_the_same(tmp_path: Path) -> None:
    tokenizer, batch = guessed()
    torch.manual_seed(0)
    model = Bert(BERT, tokenizer=tokenizer)
    losses = fit(model, [MaskedTokens(), NextSentence()], batch, 40)
    assert losses[-1] < 0.1 * losses[0]
    model.eval().export(tmp_path)
    loaded: Any = BertForPreTraining.from_pretrained(tmp_path)
    loaded.eval()
    with torch.inference_mode():
        found = loaded(**{name: batch[name] for name in ("input_ids", "attention_mask", "token_type_ids")})
        ours = model(batch)
    places = batch["masked_places"][..., None].expand(-1, -1, len(tokenizer))
    torch.testing.assert_close(found.prediction_logits.gather(1, places), ours["masked_logits"])
    torch.testing.assert_close(found.seq_relationship_logits, ours["next_logits"])


# -- ViT ---------------------------------------------------------------------------------------------------------------


def test_a_classifier_learns_a_batch_by_heart_and_is_exported_with_the_names(tmp_path: Path) -> None:
    batch = pictures()
    torch.manual_seed(0)
    model = VisionClassifier(VIT, classes=["cat", "dog", "cow"])
    theirs = model.model(pixel_values=batch["pixel_values"], labels=batch["classes"]).loss
    losses = fit(model, [ClassOf()], batch, 30)
    assert losses[0] == pytest.approx(theirs.item(), rel=1e-6)
    assert losses[0] == pytest.approx(math.log(3), abs=0.2)
    assert losses[-1] < 0.1
    model.eval().export(tmp_path)
    loaded = AutoModelForImageClassification.from_pretrained(tmp_path).eval()
    assert loaded.config.id2label == {0: "cat", 1: "dog", 2: "cow"}
    with torch.inference_mode():
        torch.testing.assert_close(loaded(pixel_values=batch["pixel_values"]).logits, model(batch)["logits"])
    with pytest.raises(ValueError, match="knows 3 classes; the recipe has 7"):
        VisionClassifier(pretrained=str(tmp_path), classes=7)
    with pytest.raises(ValueError, match="a sample of class 9; the model knows 3"):
        model({**batch, "classes": torch.full((6,), 9)})


def test_smoothing_and_labels_that_do_not_count() -> None:
    logits, labels = torch.randn(5, 4), torch.tensor([0, 3, -100, 1, 2])
    loss = ClassOf(smoothing=0.2)({"logits": logits, "labels": labels}, {})
    kept = labels >= 0
    expected = functional.cross_entropy(logits[kept], labels[kept], label_smoothing=0.2)
    assert (loss.total / loss.count).item() == pytest.approx(expected.item(), rel=1e-6)
    with pytest.raises(ValueError, match="no features 'masked_logits'; this model gives labels, logits"):
        MaskedTokens()({"logits": logits, "labels": labels}, {})


# -- DINO --------------------------------------------------------------------------------------------------------------


def dino(**changes: Any) -> Dino:
    torch.manual_seed(0)
    settings: dict[str, Any] = {"config": VIT, "prototypes": 128, "hidden": 64, "bottleneck": 32}
    return Dino(**settings | changes)


def test_views_that_say_nothing_cost_the_logarithm_of_the_prototypes() -> None:
    same = {"student": torch.zeros(3, 5, 128), "teacher": torch.zeros(3, 2, 128)}
    loss = SelfDistillation(128)(same, {})
    assert (loss.total / loss.count).item() == pytest.approx(math.log(128), rel=1e-6)
    model = dino(prototypes=4096, bottleneck=256)
    (loss_at_first,) = lost(model, [SelfDistillation(4096, teacher=(0.1, 0.1))], crops())
    assert loss_at_first.item() == pytest.approx(math.log(4096), abs=0.5)


def test_distillation_is_the_mean_over_pairs_of_different_views_centred_and_sharpened() -> None:
    student, teacher = torch.randn(3, 5, 16, dtype=torch.float64), torch.randn(3, 2, 16, dtype=torch.float64)
    objective = SelfDistillation(16, temperature=0.2, teacher=(0.05, 0.09), warmup=0.5).double()
    objective.centre.copy_(torch.randn(16))
    objective.done = 0.25
    loss = objective({"student": student, "teacher": teacher}, {})
    pairs = [(large, view) for large in range(2) for view in range(5) if large != view]
    expected = torch.zeros((), dtype=torch.float64)
    for large, view in pairs:
        likely = ((teacher[:, large] - objective.centre) / 0.07).softmax(-1)
        expected -= (likely * (student[:, view] / 0.2).log_softmax(-1)).sum(-1).mean() / len(pairs)
    assert (loss.total / loss.count).item() == pytest.approx(expected.item(), rel=1e-12)
    before = objective.centre.clone()
    objective.after_step()
    torch.testing.assert_close(objective.centre, 0.9 * before + 0.1 * teacher.mean(dim=(0, 1)))
    objective.done = 0.9
    assert objective.teacher_temperature == 0.09


def test_the_centre_is_the_same_however_the_batch_is_cut() -> None:
    features = {"student": torch.randn(6, 3, 16), "teacher": torch.randn(6, 2, 16)}
    whole, cut = SelfDistillation(16), SelfDistillation(16)
    whole(features, {})
    for rows in (slice(0, 4), slice(4, 6)):
        cut({name: each[rows] for name, each in features.items()}, {})
    for objective in (whole, cut):
        objective.after_step()
    torch.testing.assert_close(whole.centre, cut.centre)
    with pytest.raises(ValueError, match="prototypes = 8: the model gives 'teacher' of 16 numbers"):
        SelfDistillation(8)(features, {})


def test_dino_learns_a_batch_and_the_tower_of_its_slow_copy_is_exported(tmp_path: Path) -> None:
    batch, model = crops(), dino(momentum=0.9)
    losses = fit(model, [SelfDistillation(128, teacher=(0.04, 0.04))], batch, 30, 2e-3)
    assert min(losses[10:]) < 0.7 * losses[0]
    model.eval().export(tmp_path)
    pixels = batch["pixel_values"][:, 0]
    with torch.inference_mode():
        slow = model.teacher.get_submodule("backbone")(pixel_values=pixels).last_hidden_state
        fast = model.backbone(pixel_values=pixels).last_hidden_state
        assert not torch.allclose(slow, fast, atol=1e-4)
        kinds: list[Any] = [ViTModel, AutoModel]
        for kind in kinds:
            loaded, found = kind.from_pretrained(tmp_path, add_pooling_layer=False, output_loading_info=True)
            assert not found["missing_keys"]
            assert not found["unexpected_keys"]
            torch.testing.assert_close(loaded.eval()(pixel_values=pixels).last_hidden_state, slow)


def test_the_slow_copy_has_no_gradient_and_follows_slower_and_slower() -> None:
    model, batch = dino(momentum=0.9), crops()
    torch.stack(lost(model, [SelfDistillation(128)], batch)).sum().backward()  # type: ignore[no-untyped-call]
    assert all(own.grad is not None for own in model.parameters())
    assert not [name for name, _ in model.named_parameters() if name.startswith("teacher")]
    before = copy.deepcopy(dict(model.teacher.named_buffers()))
    with torch.no_grad():
        for own in model.parameters():
            own.add_(1)
    for done, momentum in ((1.0, 1.0), (0.5, 0.95), (0.0, 0.9)):
        model.done = done
        model.teacher.load_state_dict(before)
        model.after_step()
        for name, value in model.teacher.named_buffers():
            if name in dict(model.named_parameters()):
                torch.testing.assert_close(value, before[name] + 1 - momentum, atol=1e-5, rtol=0)


def test_prototypes_are_held_at_first_and_have_no_length() -> None:
    model, batch = dino(held=0.5), crops()
    for done, held in ((0.49, True), (0.5, False)):
        model.zero_grad()
        model.done = done
        torch.stack(lost(model, [SelfDistillation(128)], batch)).sum().backward()  # type: ignore[no-untyped-call]
        assert (model.head.prototypes.grad is None) == held
        assert model.head.layers[0].weight.grad is not None
    before = model(batch)["student"]
    with torch.no_grad():
        model.head.prototypes.mul_(3)
    torch.testing.assert_close(model(batch)["student"], before)
    assert before.abs().max() <= 1 + 1e-6


def test_small_views_see_their_places_interpolated() -> None:
    """A small view that is the corner of a large one has the corner's tokens, but for what its place adds."""
    model = dino()
    with torch.no_grad():
        model.backbone.embeddings.position_embeddings.normal_()
    batch = crops()
    without = {"pixel_values": batch["pixel_values"]}
    assert model(batch)["student"].shape == (6, 5, 128)
    assert model(without)["student"].shape == (6, 2, 128)
    torch.testing.assert_close(model(batch)["student"][:, :2], model(without)["student"])
    small = model.backbone(pixel_values=batch["small_pixel_values"][:, 0], interpolate_pos_encoding=True)
    assert small.last_hidden_state.shape == (6, 5, 32)
