"""What the contrastive losses are: closed forms, independent sums, and the same on any number of processes."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from importlib import import_module
from inspect import isabstract
from pkgutil import iter_modules
from typing import Any

import pytest
import torch
from torch.nn import functional

import models.objectives
from models.objectives.classes import ClassOf, NextSentence
from models.objectives.contrastive import HardNegativeNCE, InfoNCE, Sigmoid
from models.objectives.matching import Matching
from models.objectives.momentum import MomentumContrast
from models.trainable import Objective
from tests.models.objectives import sharded

Found = dict[tuple[str, torch.dtype], sharded.Gradients]
TOLERANCE = {torch.float32: 1e-6, torch.float64: 1e-14}


@pytest.fixture(scope="module", params=[2, 3])
def on_processes(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Found:
    return sharded.together(request.param, tmp_path_factory.mktemp("sharded"))


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("case", sharded.CASES)
def test_losses_and_gradients_do_not_depend_on_the_number_of_processes(
    on_processes: Found, case: str, dtype: torch.dtype
) -> None:
    found, expected = on_processes[case, dtype], sharded.step(case, dtype)
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        assert value.abs().max() > 1e-3, f"{name} tells nothing"
        far = float((found[name] - value).abs().max())
        assert far < TOLERANCE[dtype] * max(1, float(value.abs().max())), f"{name} is off by {far:.2g}"


def _rows(*shape: int, seed: int = 0) -> torch.Tensor:
    return functional.normalize(torch.randn(*shape, generator=torch.Generator().manual_seed(seed)), dim=-1)


def _scalars(scale: float, bias: float = 0) -> dict[str, torch.Tensor]:
    return {"logit_scale": torch.tensor(scale).log(), "logit_bias": torch.tensor(bias)}


def _mean(loss: tuple[torch.Tensor, torch.Tensor]) -> float:
    return float(loss[0] / loss[1])


def test_rows_that_are_all_alike_cost_the_logarithm_of_their_number() -> None:
    same = _rows(1, 8).expand(32, 8)
    assert _mean(InfoNCE()({"image": same, "text": same}, _scalars(14))) == pytest.approx(math.log(32), rel=1e-6)


def test_one_pair_alone_costs_nothing() -> None:
    assert _mean(InfoNCE()({"image": _rows(1, 8), "text": _rows(1, 8, seed=1)}, _scalars(14))) == 0


def test_infonce_is_the_mean_of_both_directions() -> None:
    images, texts = _rows(6, 8), _rows(6, 8, seed=1)
    logits = 14 * images @ texts.T
    to_texts, to_images = ((torch.logsumexp(logits, dim) - logits.diagonal()).mean() for dim in (1, 0))
    found = _mean(InfoNCE()({"image": images, "text": texts}, _scalars(14)))
    assert found == pytest.approx(float(to_texts + to_images) / 2, rel=1e-6)


def test_smoothing_spreads_a_share_of_the_target_over_all_rows() -> None:
    images, texts = _rows(6, 8), _rows(6, 8, seed=1)
    logits = 14 * images @ texts.T
    target = 0.9 * torch.eye(6) + 0.1 / 6
    expected = -sum((target * logits.log_softmax(dim)).sum() for dim in (1, 0)) / 12
    found = _mean(InfoNCE(smoothing=0.1)({"image": images, "text": texts}, _scalars(14)))
    assert found == pytest.approx(float(expected), rel=1e-6)


def test_a_fixed_temperature_leaves_the_models_own_alone() -> None:
    features = {"image": _rows(6, 8), "text": _rows(6, 8, seed=1)}
    assert _mean(InfoNCE(temperature=0.1)(features, {})) == pytest.approx(
        _mean(InfoNCE()(features, _scalars(10))), rel=1e-6
    )


def test_others_weigh_as_much_as_they_are_alike() -> None:
    images, texts = _rows(6, 8), _rows(6, 8, seed=1)
    scores, lost = (5 * images @ texts.T).tolist(), 0.0
    for rows in (scores, list(zip(*scores, strict=True))):
        for i, row in enumerate(rows):
            alike = sum(math.exp(0.5 * row[k]) for k in range(6) if k != i)
            others = sum(5 * math.exp(0.5 * row[j]) / alike * math.exp(row[j]) for j in range(6) if j != i)
            lost -= math.log(math.exp(row[i]) / (0.7 * math.exp(row[i]) + others)) / 12
    found = _mean(HardNegativeNCE(alpha=0.7, beta=0.5)({"image": images, "text": texts}, _scalars(5)))
    assert found == pytest.approx(lost, rel=1e-5)


def test_where_all_others_weigh_the_same_it_is_infonce() -> None:
    features = {"image": _rows(6, 8), "text": _rows(6, 8, seed=1)}
    same = HardNegativeNCE(alpha=1, beta=0)(features, _scalars(14))
    assert _mean(same) == pytest.approx(_mean(InfoNCE()(features, _scalars(14))), rel=1e-6)
    assert _mean(HardNegativeNCE()(features, _scalars(14))) > _mean(same) + 0.1


def test_rows_that_are_all_alike_have_no_hard_ones() -> None:
    same = _rows(1, 8).expand(32, 8)
    found = _mean(HardNegativeNCE(beta=2)({"image": same, "text": same}, _scalars(14)))
    assert found == pytest.approx(math.log(32), rel=1e-6)
    assert _mean(HardNegativeNCE()({"image": same[:1], "text": same[:1]}, _scalars(14))) == 0


@pytest.mark.parametrize(("alpha", "beta"), [(0, 1), (1.5, 1), (1, -1)])
def test_weights_that_cannot_be(alpha: float, beta: float) -> None:
    with pytest.raises(ValueError, match="expected 0 < alpha <= 1 and beta >= 0"):
        HardNegativeNCE(alpha, beta)


def test_siglip_begins_at_ten() -> None:
    images, texts = _rows(64, 512), _rows(64, 512, seed=1)
    assert _mean(Sigmoid()({"image": images, "text": texts}, _scalars(10, -10))) == pytest.approx(10, abs=0.15)


def test_sigmoid_asks_every_pair_alone() -> None:
    images, texts = _rows(5, 8), _rows(5, 8, seed=1)
    probabilities = torch.sigmoid(3 * images @ texts.T - 1)
    likely = torch.where(torch.eye(5, dtype=torch.bool), probabilities, 1 - probabilities)
    found = _mean(Sigmoid()({"image": images, "text": texts}, _scalars(3, -1)))
    assert found == pytest.approx(float(-likely.log().sum() / 5), rel=1e-5)


def test_a_sample_is_positive_with_each_of_its_captions() -> None:
    images, texts = _rows(4, 8), _rows(4, 3, 8, seed=1)
    every = torch.sigmoid(3 * torch.einsum("id,jkd->ijk", images, texts) - 1)
    likely = torch.where(torch.eye(4, dtype=torch.bool)[..., None], every, 1 - every)
    found = _mean(Sigmoid()({"image": images, "text": texts}, _scalars(3, -1)))
    assert found == pytest.approx(float(-likely.log().sum() / 12), rel=1e-5)


def test_one_caption_a_sample_is_the_same_with_and_without_its_axis() -> None:
    images, texts = _rows(4, 8), _rows(4, 8, seed=1)
    with_axis = Sigmoid()({"image": images, "text": texts[:, None]}, _scalars(3, -1))
    assert _mean(with_axis) == _mean(Sigmoid()({"image": images, "text": texts}, _scalars(3, -1)))


def test_several_captions_are_not_one_row() -> None:
    with pytest.raises(ValueError, match=r"text is \(4, 3, 8\); this objective takes one row a sample"):
        InfoNCE()({"image": _rows(4, 8), "text": _rows(4, 3, 8)}, _scalars(14))


def test_a_feature_that_is_missing_is_named_with_those_there_are() -> None:
    with pytest.raises(ValueError, match="no features 'view'; this model gives image, text"):
        InfoNCE(right="view")({"image": _rows(4, 8), "text": _rows(4, 8)}, _scalars(14))


def test_a_model_without_a_bias_is_told_how_to_get_one() -> None:
    with pytest.raises(ValueError, match="the model has no logit_bias; give it one at the start: `bias`"):
        Sigmoid()({"image": _rows(4, 8), "text": _rows(4, 8)}, {"logit_scale": torch.zeros(())})


@pytest.mark.parametrize("objective", [InfoNCE(), Sigmoid()])
def test_losses_are_computed_in_float32_where_the_towers_are_not(objective: InfoNCE | Sigmoid) -> None:
    features, scalars = {"image": _rows(6, 8), "text": _rows(6, 8, seed=1)}, _scalars(14, -10)
    with torch.autocast("cpu", torch.bfloat16):
        found = objective(features, scalars)
    assert _mean(found) == _mean(objective(features, scalars))


class Read(dict[str, torch.Tensor]):
    """Keeps what was read of it."""

    def __init__(self, **values: torch.Tensor) -> None:
        super().__init__(values)
        self.names: set[str] = set()

    def __getitem__(self, name: str) -> torch.Tensor:
        self.names.add(name)
        return super().__getitem__(name)

    def get(self, name: str, default: Any = None) -> Any:
        self.names.add(name)
        return super().get(name, default)


ALL: dict[str, Callable[[], Objective]] = {
    **sharded.CASES,
    "MomentumContrast": partial(MomentumContrast, width=8, queue=4),
    "Matching": Matching,
    "ClassOf": ClassOf,
    "NextSentence": NextSentence,
}


def _known() -> set[type[Objective]]:
    """All that can be made."""
    modules = [import_module(f"models.objectives.{found.name}") for found in iter_modules(models.objectives.__path__)]
    return {
        thing
        for module in modules
        for thing in vars(module).values()
        if isinstance(thing, type) and issubclass(thing, Objective) and not isabstract(thing)
    }


def test_no_objective_is_forgotten_here() -> None:
    assert {type(make()) for make in ALL.values()} == _known()


def test_no_objective_is_another_one_changed() -> None:
    assert not [known for known in _known() if _known() & set(known.__mro__[1:])]


@pytest.mark.parametrize("case", ALL)
def test_what_an_objective_says_that_it_reads_and_needs_is_what_it_does(case: str) -> None:
    objective, labels = ALL[case](), torch.zeros(3, 5, dtype=torch.int64)
    given = {name: _rows(3, 8) for name in ("image", "text", "other", "image_m", "text_m")}
    given |= {"teacher_image": _rows(3, 4), "teacher_text": _rows(3, 4), "patches": _rows(3, 5, 8)}
    given |= {"views": _rows(3, 2, 8), "student": _rows(3, 4, 8), "teacher": _rows(3, 2, 8)}
    given |= {
        "position": torch.arange(3),
        "labels": labels,
        "masked_labels": labels,
        "masked_logits": _rows(3, 5, 8),
    }
    given |= {"match": _rows(3, 4, 2), "match_labels": labels[:, :4], "next_logits": _rows(3, 2)}
    given |= {"next_labels": labels[:, 0], "logits": _rows(3, 8) if case == "CaptionTokens" else _rows(3, 5, 8)}
    features, scalars = Read(**given), Read(logit_scale=torch.tensor(1.0), logit_bias=torch.tensor(-1.0))
    objective(features, scalars)
    assert objective.reads() == features.names
    assert objective.needs() == scalars.names
