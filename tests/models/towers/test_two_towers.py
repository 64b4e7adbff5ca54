"""Two towers are transformers' own, but for what a training needs: scalars, bounds, dropped patches, plain refusals."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModel

from models.objectives.contrastive import InfoNCE, Sigmoid
from models.recipe import Recipe
from models.towers.patch_dropout import drawn
from models.towers.two_towers import TOKENS, TwoTowers
from models.train.accumulate import System, gradients
from models.train.parallel import Place, compile_blocks
from models.trainable import Objective
from tests.models.towers import small, tiny

CLIP = Recipe.load("clip-vit-b32", tiny=True)
OWN_LOSSES: dict[str, Objective] = {
    "clip-vit-b32": InfoNCE(),
    "siglip-vit-b16": Sigmoid(),
    "align": InfoNCE(smoothing=0.1),
    "lit": InfoNCE(),
}


@pytest.fixture(scope="module")
def clip() -> TwoTowers:
    return small.model(CLIP)


@pytest.fixture
def rows() -> dict[str, torch.Tensor]:
    return small.batch(CLIP)


@pytest.mark.parametrize("name", OWN_LOSSES)
def test_logits_and_loss_are_those_of_transformers_class(name: str) -> None:
    recipe = Recipe.load(name, tiny=True)
    towers, rows = small.model(recipe).eval(), small.batch(recipe)
    with torch.no_grad():
        for weight in towers.parameters():
            if weight.ndim > 1:
                weight.add_(0.05 * torch.randn_like(weight))  # as initialised, a tiny tower tells little apart
        read = ("input_ids", "pixel_values") if name.startswith("siglip") else tuple(rows)[:3]
        expected = towers.model(**{key: rows[key] for key in read}, return_loss=True)
        features, scalars = towers(rows), towers.scalars()
        logits = scalars["logit_scale"].exp() * features["image"] @ features["text"].T + scalars.get("logit_bias", 0)
        loss = OWN_LOSSES[name](features, scalars)
    assert expected.logits_per_image.std() > 0.1
    torch.testing.assert_close(logits, expected.logits_per_image, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(loss.total / loss.count, expected.loss, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("kind", tiny.KINDS)
def test_every_kind_is_trained_as_transformers_embeds(kind: str, folder_of: Callable[[str], Path]) -> None:
    towers = TwoTowers(pretrained=str(folder_of(kind)))
    pictures = list(np.random.default_rng(0).integers(0, 256, (4, 40, 50, 3), dtype=np.uint8))
    images = tiny.image_processor(kind)(images=pictures, return_tensors="pt")
    padding = {"padding": "max_length", "truncation": True, "max_length": min(towers.context, 64)}
    texts = tiny.tokenizer(kind)(["a red circle", "two", "the cat sat", "on a mat"], return_tensors="pt", **padding)
    names = ("input_ids",) if kind.startswith("siglip") else ("input_ids", "attention_mask")
    read = {name: texts[name] for name in names if name in texts}
    features = towers.eval()({**images, **texts})
    model = AutoModel.from_pretrained(folder_of(kind)).eval()
    for name, outputs in (("image", model.get_image_features(**images)), ("text", model.get_text_features(**read))):
        expected = torch.nn.functional.normalize(outputs.pooler_output, dim=-1)
        torch.testing.assert_close(features[name], expected, atol=1e-5, rtol=0)
    (features["image"] @ features["text"].T).sum().backward()
    scalars = {"model.logit_scale", "model.logit_bias", "model.temperature"}
    idle = {name for name, own in towers.named_parameters() if own.grad is None} - scalars
    assert not idle, "DistributedDataParallel would wait for their gradients"


def test_scale_and_bias_begin_as_published() -> None:
    begin = {name: small.model(Recipe.load(name, tiny=True)).scalars() for name in ("clip-vit-b32", "siglip-vit-b16")}
    assert begin["clip-vit-b32"]["logit_scale"].exp().item() == pytest.approx(1 / 0.07, rel=1e-4)
    assert "logit_bias" not in begin["clip-vit-b32"]
    assert begin["siglip-vit-b16"]["logit_scale"].item() == pytest.approx(math.log(10))
    assert begin["siglip-vit-b16"]["logit_bias"].item() == -10


def test_align_divides_by_its_temperature() -> None:
    towers = small.model(
        Recipe.load("align", tiny=True, overrides=["model={models.towers.two_towers.TwoTowers: {scale: 4}}"])
    )
    assert towers.model.temperature.item() == pytest.approx(1 / 4)
    (slope,) = torch.autograd.grad(towers.scalars()["logit_scale"], towers.model.temperature)
    assert slope.item() == pytest.approx(-4)


@pytest.mark.parametrize("name", ["clip-vit-b32", "align"])
def test_the_scale_stays_at_most_a_hundred(name: str) -> None:
    towers = small.model(Recipe.load(name, tiny=True))
    with torch.no_grad():
        (towers.model.temperature if name == "align" else towers.model.logit_scale).fill_(
            1e-4 if name == "align" else 9
        )
    towers.after_step()
    assert towers.scalars()["logit_scale"].exp().item() == pytest.approx(100, rel=1e-5)


def test_rows_have_length_one_in_float32_under_autocast(clip: TwoTowers, rows: dict[str, torch.Tensor]) -> None:
    with torch.autocast("cpu", torch.bfloat16):
        features = clip(rows)
    for found in features.values():
        assert found.dtype == torch.float32
        torch.testing.assert_close(found.norm(dim=-1), torch.ones(small.ROWS), atol=1e-6, rtol=0)


def test_texts_of_siglip_are_read_at_the_end_of_the_whole_context() -> None:
    recipe = Recipe.load("siglip-vit-b16", tiny=True)
    towers, rows = small.model(recipe), small.batch(recipe)
    longest = int(rows["attention_mask"].sum(dim=1).max())
    short = {"input_ids": rows["input_ids"][:, :longest]}
    assert longest < recipe.data.texts.context
    torch.testing.assert_close(towers.encode(short)["text"], towers.encode(rows)["text"])


def test_several_captions_have_an_axis_of_their_own(clip: TwoTowers, rows: dict[str, torch.Tensor]) -> None:
    pairs = {key: rows[key].reshape(4, 2, -1) for key in ("input_ids", "attention_mask")}
    torch.testing.assert_close(clip.encode(pairs)["text"].reshape(8, -1), clip.encode(rows)["text"])


# -- padding -----------------------------------------------------------------------------------------------------------


def _learnt(towers: TwoTowers, texts: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Features, and what the text tower learns of them."""
    towers.zero_grad()
    found = towers.encode(texts)["text"]
    torch.autograd.backward((found * torch.randn(found.shape, generator=torch.Generator().manual_seed(1))).sum())
    learnt = {name: one.grad.clone() for name, one in towers.named_parameters() if one.grad is not None}
    return {"text": found.detach(), **learnt}


def _cut(towers: TwoTowers, texts: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    places = towers.places(texts)
    return {name: column[..., : places.get(name)] for name, column in texts.items()}


@pytest.mark.parametrize("kind", [*tiny.KINDS, "lit"])
def test_places_that_are_padding_in_all_texts_change_nothing(kind: str, folder_of: Callable[[str], Path]) -> None:
    towers = small.model(Recipe.load("lit", tiny=True)) if kind == "lit" else TwoTowers(pretrained=str(folder_of(kind)))
    towers.eval()  # what dropout leaves depends on the shape
    words = towers.tokenizer or tiny.tokenizer(kind)
    padding = {"padding": "max_length", "truncation": True, "max_length": min(towers.context, 64)}
    texts = dict(words(["a red circle", "two", "the cat sat", "on a mat"], return_tensors="pt", **padding))
    texts.setdefault("attention_mask", (texts["input_ids"] != words.pad_token_id).long())
    cut = _cut(towers, texts)
    assert (cut["input_ids"].shape[1] == texts["input_ids"].shape[1]) is kind.startswith("siglip")
    assert cut["input_ids"].shape == cut["attention_mask"].shape
    torch.testing.assert_close(_learnt(towers, cut), _learnt(towers, texts), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("kind", ["roberta", "xlm-roberta"])
def test_texts_of_roberta_are_cut_too(kind: str) -> None:
    layers = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    text = {"model_type": kind, **layers, "vocab_size": 40, "max_position_embeddings": 40, "pad_token_id": 1}
    vision = {"model_type": "vit", **layers, "image_size": 32, "patch_size": 16}
    joined = {"model_type": "vision-text-dual-encoder", "text_config": text, "vision_config": vision}
    towers = TwoTowers(joined | {"projection_dim": 8}).eval()
    texts = {"input_ids": torch.ones(3, 32, dtype=torch.int64), "attention_mask": torch.zeros(3, 32).long()}
    for row, length in enumerate((3, 9, 12)):
        texts["input_ids"][row, :length], texts["attention_mask"][row, :length] = torch.arange(2, 2 + length), 1
    assert _cut(towers, texts)["input_ids"].shape[1] == 16
    torch.testing.assert_close(_learnt(towers, _cut(towers, texts)), _learnt(towers, texts), atol=1e-5, rtol=1e-5)


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor")  # which the compiler looks at itself
@pytest.mark.parametrize("micro", [None, 3])
def test_compiled_layers_take_texts_of_any_length(monkeypatch: pytest.MonkeyPatch, micro: int | None) -> None:
    """And not a program for each length, of which so many would be made until none is any more."""
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="aot_eager"))
    torch._dynamo.reset()
    learnt = []
    for compiled in (False, True):
        towers, rows = small.model(CLIP), small.batch(CLIP)
        if compiled:
            compile_blocks(towers)
        system = System(towers, [InfoNCE()], [1.0], Place.here())
        for length in range(8, 33, 2):
            cut = {name: column[:, :length] if name in TOKENS else column for name, column in rows.items()}
            with torch._dynamo.config.patch(fail_on_recompile_limit_hit=True):
                gradients(system, cut, 0, micro)
        learnt.append({name: one.grad for name, one in towers.named_parameters() if one.grad is not None})
    torch.testing.assert_close(learnt[1], learnt[0], atol=1e-5, rtol=1e-3)


@pytest.mark.parametrize(("longest", "expected"), [(0, 8), (1, 8), (7, 8), (8, 16), (9, 16), (15, 16), (16, 16)])
def test_the_longest_text_and_one_place_behind_it_are_kept(clip: TwoTowers, longest: int, expected: int) -> None:
    mask = torch.zeros(3, 2, 16, dtype=torch.int64)
    mask[1, 1, :longest] = 1
    texts = {"input_ids": torch.ones_like(mask), "attention_mask": mask}
    assert {one.shape for one in _cut(clip, texts).values()} == {(3, 2, expected)}


def test_an_end_that_is_padding_is_read_where_texts_have_none(clip: TwoTowers) -> None:
    end = clip.model.config.text_config.eos_token_id
    texts = {"input_ids": torch.full((2, 16), end), "attention_mask": torch.zeros(2, 16, dtype=torch.int64)}
    texts["input_ids"][:, :8], texts["attention_mask"][:, :8] = torch.arange(10, 26).view(2, 8), 1
    assert _cut(clip, texts)["input_ids"].shape[1] == 16, "the text ends where a multiple of 8 does"
    texts["input_ids"][:, 7], texts["attention_mask"][:, 7] = end, 0
    assert _cut(clip, texts)["input_ids"].shape[1] == 8
    torch.testing.assert_close(clip.encode(_cut(clip, texts)), clip.encode(texts), atol=1e-6, rtol=0)


# -- dropped patches ---------------------------------------------------------------------------------------------------


@pytest.fixture
def flip() -> TwoTowers:
    return small.model(Recipe.load("flip-vit-b16", tiny=True)).train()


def _seen(towers: TwoTowers, rows: dict[str, torch.Tensor]) -> torch.Tensor:
    with torch.no_grad():
        return towers.encode({key: rows[key] for key in ("pixel_values", "position") if key in rows})["image"]


def test_flip_that_drops_nothing_is_clip(flip: TwoTowers, rows: dict[str, torch.Tensor]) -> None:
    clip = small.model(Recipe.load("flip-vit-b16", tiny=True)).train()
    everything = _seen(clip, rows)
    flip.patch_dropout = 0.5
    assert (_seen(flip, rows) - everything).abs().max() > 1e-4
    flip.patch_dropout = 0
    assert torch.equal(_seen(flip, rows), everything)


def test_half_of_the_patches_and_the_class_token_are_left(flip: TwoTowers, rows: dict[str, torch.Tensor]) -> None:
    lengths = []
    flip.model.vision_model.encoder.register_forward_pre_hook(
        lambda _, given, named: lengths.append(named["inputs_embeds"].shape[1]), with_kwargs=True
    )
    for share in (0.5, 0):
        flip.patch_dropout = share
        _seen(flip, rows)
    assert lengths == [1 + 64 // 2, 1 + 64]


def test_every_image_loses_other_patches_and_always_the_same(flip: TwoTowers, rows: dict[str, torch.Tensor]) -> None:
    flip.patch_dropout = 0.5
    whole = _seen(flip, rows)
    halves = [_seen(flip, {key: value[part] for key, value in rows.items()}) for part in (slice(3), slice(3, 8))]
    torch.testing.assert_close(torch.cat(halves), whole)
    same = {**rows, "pixel_values": rows["pixel_values"][:1].expand(8, -1, -1, -1)}
    assert len(torch.unique(_seen(flip, same), dim=0)) == 8


def test_every_patch_is_left_as_often() -> None:
    left = drawn(torch.arange(4000), 16)[:, :8]
    assert len(torch.unique(left.sort().values, dim=0)) > 3000
    assert torch.bincount(left.flatten(), minlength=16).float() / 4000 == pytest.approx(
        torch.full((16,), 0.5), abs=0.04
    )


def test_evaluation_sees_every_patch(flip: TwoTowers, rows: dict[str, torch.Tensor]) -> None:
    flip.patch_dropout = 0.5
    dropped, flip = _seen(flip, rows), flip.eval()
    assert (_seen(flip, rows) - dropped).abs().max() > 1e-4
    flip.patch_dropout = 0
    assert torch.equal(_seen(flip, rows), _seen(flip, {"pixel_values": rows["pixel_values"]}))


def test_dropping_patches_needs_the_rows_places(flip: TwoTowers, rows: dict[str, torch.Tensor]) -> None:
    flip.patch_dropout = 0.5
    with pytest.raises(ValueError, match="patch dropout draws from `position`, which the batch lacks"):
        _seen(flip, {"pixel_values": rows["pixel_values"]})


def test_every_view_of_an_image_loses_patches_of_its_own() -> None:
    slip = Recipe.load("slip", tiny=True)
    towers, seen = small.model(slip).train(), small.batch(slip)
    seen["view_pixel_values"] = seen["pixel_values"][:1, None].expand(small.ROWS, 2, -1, -1, -1)
    towers.patch_dropout = 0.5
    with torch.no_grad():
        found = towers.encode(seen)["views"]
        halves = [towers.encode({key: rows[part] for key, rows in seen.items()}) for part in (slice(3), slice(3, 8))]
    assert len(torch.unique(found.flatten(0, 1), dim=0)) == 2 * small.ROWS
    torch.testing.assert_close(torch.cat([half["views"] for half in halves]), found)


def test_a_tower_without_patches_says_so() -> None:
    with pytest.raises(ValueError, match="has no patches to drop; take a ViT, or patch_dropout 0"):
        small.model(Recipe.load("clip-rn50", tiny=True)).patch_dropout = 0.5


# -- from folders ------------------------------------------------------------------------------------------------------


def test_training_goes_on_from_a_folder(clip: TwoTowers, rows: dict[str, torch.Tensor], tmp_path: Path) -> None:
    clip.export(tmp_path)
    again = TwoTowers(pretrained=str(tmp_path), tokenizer=clip.tokenizer)
    for name, found in again.eval()(rows).items():
        assert torch.equal(found, clip.eval()(rows)[name])
    assert torch.equal(again.scalars()["logit_scale"], clip.scalars()["logit_scale"])


def test_a_bias_that_transformers_class_lacks_comes_back_from_the_config(tmp_path: Path) -> None:
    towers = small.model(Recipe.load("flair-vit-b16", tiny=True))
    with torch.no_grad():
        towers.model.logit_bias.fill_(-7.5)
    towers.export(tmp_path)
    assert TwoTowers(pretrained=str(tmp_path)).scalars()["logit_bias"].item() == -7.5


def test_towers_come_from_folders_of_their_own(clip: TwoTowers, rows: dict[str, torch.Tensor], tmp_path: Path) -> None:
    lit = small.model(Recipe.load("lit", tiny=True))
    clip.export(tmp_path / "clip")
    lit.model.text_model.save_pretrained(tmp_path / "bert")
    folders = {"vision": str(tmp_path / "clip"), "text": str(tmp_path / "bert")}
    joined = TwoTowers({"projection_dim": 48}, folders, tokenizer=clip.tokenizer)
    assert joined.kind == "vision-text-dual-encoder"
    for own, other in (
        (joined.model.vision_model, clip.model.vision_model),
        (joined.model.text_model, lit.model.text_model),
    ):
        for name, weight in other.state_dict().items():
            assert torch.equal(own.state_dict()[name], weight)
    assert joined(rows)["image"].shape == (8, 48)


def test_none_is_no_pretrained_tower() -> None:
    lit = Recipe.load("lit", tiny=True)
    parameters = lit.model.parameters | {"pretrained": {"vision": None, "text": None}}
    begun = [small.model(one) for one in (lit, Recipe.load("lit", tiny=True, overrides=[_model(parameters)]))]
    for one, other in zip(*(towers.state_dict().values() for towers in begun), strict=True):
        assert torch.equal(one, other)


def _model(parameters: dict[str, Any]) -> str:
    return f"model={json.dumps({'models.towers.two_towers.TwoTowers': parameters})}"


def test_what_is_exported_is_whole_where_a_module_was_left_out(tmp_path: Path) -> None:
    towers = small.model(Recipe.load("align", tiny=True))
    assert not [name for name, _ in towers.named_parameters() if "text_model.pooler" in name]
    towers.export(tmp_path)
    _, found = AutoModel.from_pretrained(tmp_path, output_loading_info=True)
    assert not found["missing_keys"]
    assert not [name for name, _ in towers.named_parameters() if "text_model.pooler" in name]


# -- refusals ----------------------------------------------------------------------------------------------------------


def _config(**changes: Any) -> dict[str, Any]:
    return {**CLIP.model.parameters["config"], **changes}


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (
            {"config": _config(model_type="clipp")},
            "model_type = 'clipp' is not known to transformers; did you mean 'clip'",
        ),
        ({"config": _config(projection_dims=8)}, "clip has no 'projection_dims'; did you mean 'projection_dim'"),
        (
            {"config": _config(text_config={"hiden_size": 8})},
            "text_config of clip has no 'hiden_size'; did you mean 'hidden_size'",
        ),
        ({"config": _config(), "pretrained": "folder"}, "config beside pretrained = 'folder', which has its own"),
        ({"pretrained": "/no/folder"}, "pretrained = '/no/folder' cannot be loaded"),
        ({"pretrained": {"image": "folder"}}, "pretrained.image: no such tower; expected vision or text"),
        (
            {
                "config": {"vision_config": {"model_type": "timm_wrapper", "architecture": "resnet18"}},
                "pretrained": {"vision": "google/vit", "text": "google/bert"},
            },
            "vision_config.model_type = 'timm_wrapper' beside pretrained.vision = 'google/vit', which has a config of",
        ),
        (
            {"config": {"model_type": "vision-text-dual-encoder"}, "pretrained": {"vision": None}},
            "vision-text-dual-encoder has no vision tower; give vision_config a model_type, or pretrained.vision a",
        ),
        (
            {"config": {"model_type": "vision-text-dual-encoder", "vision_config": {"hidden_size": 8}}},
            "vision_config of vision-text-dual-encoder has no model_type; say one",
        ),
        ({"config": _config(text_config={"eos_token_id": 2})}, "eos_token_id = 2: transformers' CLIP would pool at"),
        ({"config": {"model_type": "metaclip_2"}, "patches": True}, "patches of 'metaclip_2' are not known"),
    ],
)
def test_a_mistake_is_answered_in_a_line(given: dict[str, Any], said: str) -> None:
    with torch.device("meta"), pytest.raises(ValueError, match=said) as error:
        TwoTowers(**given)
    assert "\n" not in str(error.value)


def test_texts_that_are_too_long_are_told(clip: TwoTowers, rows: dict[str, torch.Tensor]) -> None:
    with pytest.raises(ValueError, match="texts of 64 tokens; the text tower has 32 places; lower"):
        clip.encode({"input_ids": rows["input_ids"].repeat(1, 2)})


def test_towers_of_different_widths_are_told() -> None:
    recipe = Recipe.load("align", tiny=True)
    parameters = recipe.model.parameters
    towers = TwoTowers({**parameters["config"], "projection_dim": 32}, tokenizer=small.words(1000, 32))
    with pytest.raises(ValueError, match=r"widths \{'image': 64, 'text': 32\}; set projection_dim of 'align'"):
        towers(small.batch(recipe))
