"""The distillation of similarities is a divergence: 0 from oneself, and what its paper writes otherwise."""

from __future__ import annotations

import math

import pytest
import torch
from torch.nn import functional

from models.objectives.distillation import SimilarityDistillation
from models.trainable import Features


def rows(seed: int, width: int = 8) -> torch.Tensor:
    return functional.normalize(torch.randn(6, width, generator=torch.Generator().manual_seed(seed)), dim=1)


def lost(features: Features, temperature: float, scale: float) -> float:
    total, count = SimilarityDistillation(temperature)(features, {"logit_scale": torch.tensor(scale).log()})
    return float(total / count)


def test_who_finds_the_same_as_the_teacher_loses_nothing() -> None:
    images, texts = rows(0).requires_grad_(), rows(1)
    features = {"image": images, "text": texts, "teacher_image": images.detach(), "teacher_text": texts}
    total, _ = SimilarityDistillation(0.1)(features, {"logit_scale": torch.tensor(10.0).log()})
    assert float(total.detach()) == pytest.approx(0, abs=1e-5)
    total.backward()
    assert images.grad is not None
    assert float(images.grad.abs().max()) < 1e-5


def test_who_tells_nothing_apart_loses_what_a_teacher_who_is_sure_knows() -> None:
    same, sure = rows(0)[:1].expand(6, 8), torch.eye(6)
    found = lost({"image": same, "text": same, "teacher_image": sure, "teacher_text": sure}, 0.01, 10)
    assert found == pytest.approx(math.log(6), rel=1e-6)


def test_it_is_the_mean_of_both_directions_divergences_over_rows() -> None:
    features = {"image": rows(0), "text": rows(1), "teacher_image": rows(2, 5), "teacher_text": rows(3, 5)}
    told, wanted = 4 * rows(0) @ rows(1).T, rows(2, 5) @ rows(3, 5).T / 0.5
    expected = 0.0
    for own, taught in ((told, wanted), (told.T, wanted.T)):
        for mine, theirs in zip(own.softmax(1).tolist(), taught.softmax(1).tolist(), strict=True):
            expected += sum(p * math.log(p / q) for p, q in zip(theirs, mine, strict=True)) / 12
    assert lost(features, 0.5, 4) == pytest.approx(expected, rel=1e-5)


def test_without_a_teacher_it_says_so() -> None:
    with pytest.raises(ValueError, match="no features 'teacher_image'"):
        lost({"image": rows(0), "text": rows(1)}, 0.5, 4)
