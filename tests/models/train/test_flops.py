"""Operations that learning needs, whatever was frozen, dropped, padded or computed twice."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from models.recipe import Phase
from models.train import flops, optimizer
from models.train.flops import Work, measure
from models.train.parallel import CPU
from models.trainable import Batch, Features, Trainable
from tests.models.train.toy import LENGTH, WIDTH, Toy, rows

LAYER = 2 * WIDTH * WIDTH
"""Operations of one layer's product for one row."""


def full(count: int) -> Batch:
    return {**rows(0, count), "attention_mask": torch.ones(count, LENGTH, dtype=torch.int64)}


def test_forward_is_one_product_a_weight_and_backward_two_but_for_inputs() -> None:
    model = Toy()
    found = measure(model, full(4))
    images = (2 + 2 + 2 - 0) * LAYER  # both layers forward; by the weights; by the rows, which lead to the first norm
    texts = 6 * LAYER * LENGTH
    assert found.of(full(5)) == pytest.approx(5 * (images + texts))
    assert all(parameter.grad is None for parameter in model.parameters())


def test_padding_counts_nothing() -> None:
    found = measure(Toy(), rows(0, 4))
    tokens = int(rows(0, 6)["attention_mask"].sum())
    assert tokens < 6 * LENGTH
    assert found.of(rows(0, 6)) == pytest.approx(6 * LAYER * 6 + 6 * LAYER * tokens)


def test_of_several_texts_a_sample_each_counts() -> None:
    work = Work(constant=7.0, linear=2.0, square=0.5)
    one = {"attention_mask": torch.tensor([[1, 1, 0], [1, 1, 1]])}
    several = {"attention_mask": torch.tensor([[[1, 1, 0], [1, 1, 1]]])}
    assert work.of(one) == 14 + 2 * 5 + 0.5 * (4 + 9)
    assert work.of(several) == 7 + (2 * 5 + 0.5 * (4 + 9)) / 2


def test_attention_grows_with_the_square_of_the_tokens() -> None:
    class Attention(Trainable):
        def __init__(self) -> None:
            super().__init__()
            self.words = nn.Embedding(32, WIDTH)

        def encode(self, batch: Batch) -> Features:
            x = self.words(batch["input_ids"])[:, None]
            return {"text": nn.functional.scaled_dot_product_attention(x, x, x)}

        def export(self, folder: object) -> None:
            raise NotImplementedError

    found = measure(Attention(), full(2))
    assert found.square == pytest.approx(2 * 3 * 2 * WIDTH)  # two products forward and twice as many back
    assert found.linear == pytest.approx(0, abs=1)


def test_what_is_frozen_has_no_backward_pass() -> None:
    model = Toy()
    named = dict(model.named_parameters())
    whole = measure(model, full(4)).of(full(1))
    optimizer.enter(model, named, Phase(rates={"^image": 0, ".*": 1}))
    assert measure(model, full(4)).of(full(1)) == pytest.approx(whole - 4 * LAYER)
    optimizer.enter(model, named, Phase(rates={"logit_scale": 1}))
    assert measure(model, full(4)).of(full(1)) == pytest.approx(whole / 3)


def test_statistics_are_as_they_were_before_it_was_measured() -> None:
    class Normed(Toy):
        def __init__(self) -> None:
            super().__init__()
            self.norm = nn.BatchNorm1d(WIDTH)

        def encode(self, batch: Batch) -> Features:
            return super().encode({**batch, "x": self.norm(batch["x"])})

    model = Normed()
    before = {name: buffer.clone() for name, buffer in model.named_buffers()}
    measure(model, full(4))
    assert all(torch.equal(buffer, before[name]) for name, buffer in model.named_buffers())


def test_the_peak_is_the_data_sheet_s_and_measured_where_there_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "NVIDIA H100 80GB HBM3")
    assert flops.peak(torch.device("cuda", 0), True) == 989e12
    assert flops.peak(torch.device("cuda", 0), False) == 67e12
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "NVIDIA H100 PCIe")
    assert flops.peak(torch.device("cuda", 0), True) == 756e12
    for name, known in (("NVIDIA GH200 480GB", 989e12), ("NVIDIA L40S", 362e12), ("no A1000 but T4", 65e12)):
        monkeypatch.setattr(torch.cuda, "get_device_name", lambda _, name=name: name)
        assert flops.peak(torch.device("cuda", 0), True) == known
    assert 1e8 < flops.peak(CPU, False) < 1e14
