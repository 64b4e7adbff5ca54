"""Operations that learning needs, whatever was frozen, dropped, padded or computed twice."""

from __future__ import annotations

from random import Random

import pytest
import torch
from torch import nn

from models.data.collate import Room
from models.data.conversations import Conversations
from models.data.images import normalise
from models.recipe import Phase
from models.towers.two_towers import TwoTowers
from models.train import flops, optimizer
from models.train.flops import Work, _operations, measure
from models.train.parallel import CPU
from models.trainable import Batch, Features, Trainable
from tests.models.data import talks
from tests.models.towers import seeing
from tests.models.train.toy import LENGTH, WIDTH, Toy, rows

LAYER = 2 * WIDTH * WIDTH
"""Operations of one layer's product for one row."""


SIDE, PATCH, HIDDEN, INNER, LAYERS, JOINT = 32, 8, 32, 64, 2, 16
"""Of a small CLIP."""


def clip() -> tuple[TwoTowers, Batch]:
    """The model, and four pictures with texts of 16, 12, 8 and 4 tokens."""
    torch.manual_seed(0)
    layers = {"hidden_size": HIDDEN, "intermediate_size": INNER, "num_hidden_layers": LAYERS, "num_attention_heads": 2}
    model = TwoTowers(
        {
            "model_type": "clip",
            "projection_dim": JOINT,
            "vision_config": layers | {"patch_size": PATCH, "image_size": SIDE},
            "text_config": layers | {"vocab_size": 50, "max_position_embeddings": 16, "eos_token_id": 49},
        }
    )
    return model, {
        "pixel_values": torch.randn(4, 3, SIDE, SIDE),
        "input_ids": torch.randint(0, 50, (4, 16)),
        "attention_mask": (torch.arange(16) < torch.tensor([[16], [12], [8], [4]])).long(),
        "position": torch.arange(4),
    }


def of_tokens(count: int) -> int:
    """Operations of an image tower's layers forward: products with weights, and of tokens with each other."""
    return LAYERS * (2 * count * (4 * HIDDEN**2 + 2 * HIDDEN * INNER) + 4 * count**2 * HIDDEN)


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


def test_patches_that_are_dropped_cost_nothing_behind_the_embeddings() -> None:
    """FLIP: of 16 patches 8 are left, beside the class token; forward is a third of it."""
    model, batch = clip()
    found = []
    for share in (0.0, 0.5):
        optimizer.drop_patches(model, Phase(patch_dropout=share))
        found.append(measure(model, batch).of(batch))
    assert found[0] - found[1] == pytest.approx(4 * 3 * (of_tokens(17) - of_tokens(9)), rel=1e-6)


def test_a_tower_that_is_frozen_counts_forward_only() -> None:
    """LiT, and the other way round."""
    model, batch = clip()
    named = dict(model.named_parameters())

    def of(rates: dict[str, float]) -> float:
        optimizer.enter(model, named, Phase(rates=rates))
        return measure(model, batch).of(batch)

    whole, still, texts, images = (of({name: 1.0}) for name in (".*", "none", "text_", "vision_|visual_"))
    assert still < min(texts, images)
    assert texts + images == pytest.approx(whole + still, rel=1e-6)
    texts_alone = {name: batch[name] for name in ("input_ids", "attention_mask")}
    optimizer.enter(model, named, Phase(rates={"text_": 1}))
    patches = (SIDE // PATCH) ** 2 * 2 * 3 * PATCH**2 * HIDDEN
    forward = patches + of_tokens(17) + 2 * HIDDEN * JOINT
    assert texts - measure(model, texts_alone).of(batch) == pytest.approx(4 * forward, rel=1e-6)


def test_a_text_counts_as_long_as_it_is_and_not_as_it_was_padded() -> None:
    model, batch = clip()
    found = measure(model, batch)
    assert found == measure(model, {**batch, "attention_mask": torch.ones(4, 16, dtype=torch.int64)})
    row = {name: column[2:3] for name, column in batch.items()}
    cut = row | {name: row[name][:, :8] for name in ("input_ids", "attention_mask")}
    assert found.of(row) == found.of(cut) == pytest.approx(measure(model, cut).of(cut), rel=1e-3)
    assert found.of(row) < 0.8 * found.of({name: column[:1] for name, column in batch.items()})


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


def test_answers_alone_cost_a_vocabulary_each() -> None:
    """Estimated from two conversations with short answers, and counted of two with long ones."""
    model = seeing.model("mlp")
    short, long = (conversations(words) for words in (2, 20))
    work = measure(model, short)
    assert 0 < work.answer == pytest.approx(6 * 32 * len(seeing.tokenizer()))  # the head's product, thrice
    assert short["learnt"].sum() < long["learnt"].sum() / 3
    for batch in (short, long):
        assert work.of(batch) == pytest.approx(_operations(model, batch), rel=0.02)


def conversations(words: int) -> Batch:
    """Two, whose answers have so many words, all tokens of one length."""
    data = talks.recipe().data
    collate, picture = Conversations(data, seeing.tokenizer()), talks.shape(Random(0))[0]
    said = [("human", "<image>\n" + " ".join(["blue"] * (30 - words))), ("gpt", " ".join(["red"] * words))]
    rows = [collate.row(talks.sample(talks.talk("a", [picture], said)), Random(0), Room(), 0) for _ in range(2)]
    return normalise({**collate.batch(rows), "position": torch.arange(2)}, data.images)
