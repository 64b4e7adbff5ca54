"""What FLAIR's text-conditioned loss is."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch.nn import functional

from models.objectives.text_conditioned import TextConditioned

SCALARS = {"logit_scale": torch.tensor(3.0).log(), "logit_bias": torch.tensor(-1.0)}


@pytest.fixture
def objective() -> TextConditioned:
    torch.manual_seed(0)
    return TextConditioned(width=8, heads=2)


def _features(rows: int, captions: int) -> dict[str, torch.Tensor]:
    torch.manual_seed(1)
    texts = functional.normalize(torch.randn(rows, captions, 8), dim=-1)
    return {
        "image": torch.zeros(rows, 8),
        "text": texts,
        "patches": torch.randn(rows, 5, 8),
        "position": torch.arange(rows),
    }


def test_with_one_caption_it_is_the_sigmoid_loss_over_pairs(objective: TextConditioned) -> None:
    features = _features(5, 1)
    texts = features["text"][:, 0]
    seen = objective.pool(texts.expand(5, 5, 8), features["patches"])
    probabilities = torch.sigmoid(3 * torch.einsum("ijd,jd->ij", seen, texts) - 1)
    likely = torch.where(torch.eye(5, dtype=torch.bool), probabilities, 1 - probabilities)
    total, count = objective(features, SCALARS)
    assert float(count) == 5
    assert total.item() == pytest.approx(-likely.log().sum().item(), rel=1e-5)


def test_an_image_meets_all_its_own_texts_and_one_of_every_other(objective: TextConditioned) -> None:
    features = _features(6, 3)
    losing = torch.zeros((), requires_grad=True)
    total, count = objective(features, {"logit_scale": torch.tensor(-100.0), "logit_bias": losing})
    total.backward()
    assert float(count) == 6 + 3 - 1
    assert losing.grad is not None
    assert float(losing.grad) == pytest.approx(0.5 * (6 * 5 - 6 * 3))  # half a step away from every pair's answer


def test_other_texts_are_drawn_anew_with_the_position(objective: TextConditioned) -> None:
    features = _features(6, 3)
    first = objective(features, SCALARS).total
    assert torch.equal(first, objective(features, SCALARS).total)
    assert not torch.equal(first, objective({**features, "position": features["position"] + 6}, SCALARS).total)


def test_a_text_may_look_away(objective: TextConditioned) -> None:
    """Only with the added zero can a text see nothing of an image whose every patch is the same."""
    same = torch.randn(8).expand(1, 5, 8)
    first, second = torch.randn(2, 1, 1, 8)
    with torch.no_grad():
        objective.pool.attention.in_proj_weight.normal_()
    assert not torch.allclose(
        objective.pool.attention(first, same, same)[0], objective.pool.attention(second, same, same)[0]
    )


def test_what_the_model_does_not_give_is_asked_for(objective: TextConditioned) -> None:
    features = _features(4, 1)
    del features["patches"]
    with pytest.raises(ValueError, match="no features 'patches'; the model needs `patches: true`"):
        objective(features, SCALARS)


def test_sizes_that_cannot_be_are_told(objective: TextConditioned) -> None:
    wide = {**_features(4, 1), "patches": torch.randn(4, 5, 12), "text": torch.randn(4, 1, 12)}
    with pytest.raises(ValueError, match=r"^width = 8: the model gives 'patches' of 12 numbers; set width to 12$"):
        objective(wide, SCALARS)
    for heads in (3, 0):
        with pytest.raises(ValueError, match=f"^heads = {heads}: expected a divisor of width = 8$"):
            TextConditioned(8, heads)


def test_the_pool_is_exported(objective: TextConditioned, tmp_path: Path) -> None:
    objective.export(tmp_path)
    again = TextConditioned(width=8, heads=2)
    again.pool.load_state_dict(load_file(tmp_path / "text_conditioned.safetensors"))
    assert torch.equal(objective(_features(4, 2), SCALARS).total, again(_features(4, 2), SCALARS).total)
