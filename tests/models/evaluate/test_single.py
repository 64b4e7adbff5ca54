"""Language models and image towers alone: perplexity to the token, probes, own classes, and where they look."""

from __future__ import annotations

import io
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from PIL import Image

import models.without_torchvision  # isort: skip  # noqa: F401
from transformers import AutoConfig, AutoModel

from models.data.images import save_preprocessor
from models.data.tokenizer import WRITTEN_ON, Tokens, trained
from models.evaluate import SetError, evaluate
from models.evaluate.__main__ import main
from models.evaluate.attention import KINDS, Looker, drawn
from models.evaluate.attention import main as draw
from models.recipe import Images
from models.towers.language_model import CausalLanguageModel
from models.towers.vit import VisionClassifier
from tests.models.data.tars_made import tar_of

SIZES = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2}
VIT = {"model_type": "vit", **SIZES, "patch_size": 8, "image_size": 32}
TEXTS = ["a red circle", "two blue squares and a small green star", "it rained all day " * 12]


@pytest.fixture(scope="module")
def language(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("language")
    config = {"model_type": "llama", **SIZES, "max_position_embeddings": 24, "initializer_range": 0.5}
    CausalLanguageModel(config, tokenizer=trained(TEXTS, 300, 24, WRITTEN_ON)).eval().export(folder)
    return folder


@pytest.fixture(scope="module")
def classifier(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of two colours, which it was taught."""
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("classifier")
    model = VisionClassifier(VIT, classes=["dark", "light"])
    adam = torch.optim.Adam(model.parameters(), 3e-3)
    for _ in range(15):
        labels = torch.randint(0, 2, (16,))
        pixels = torch.randn(16, 3, 32, 32) * 0.3 + (2.0 * labels - 1)[:, None, None, None]
        found = model({"pixel_values": pixels, "classes": labels})
        adam.zero_grad()
        torch.nn.functional.cross_entropy(found["logits"], labels).backward()  # type: ignore[no-untyped-call]
        adam.step()
    model.eval().export(folder)
    save_preprocessor(Images(side=32, mean=(0.5, 0.5, 0.5), deviation=(0.5, 0.5, 0.5)), folder)
    return folder


def of_texts(folder: Path, texts: list[str], kind: str = "texts") -> Path:
    (folder / "test").mkdir(parents=True)
    (folder / "dataset_type.txt").write_text(kind)
    (folder / "test" / "nshards.txt").write_text("1")
    members = [(f"{number}.txt", text.encode()) for number, text in enumerate(texts)]
    (folder / "test" / "0.tar").write_bytes(tar_of(members))
    return folder


def of_classes(folder: Path, names: list[str]) -> Path:
    rng = np.random.default_rng(0)
    (folder).mkdir()
    (folder / "classnames.txt").write_text("\n".join(names))
    for split, count in (("train", 24), ("test", 10)):
        members = []
        for number in range(count):
            pixels = np.clip(rng.normal(60 + 130 * (number % 2), 20, (40, 32, 3)), 0, 255).astype(np.uint8)
            sink = io.BytesIO()
            Image.fromarray(pixels).save(sink, "PNG")
            members += [(f"{number}.png", sink.getvalue()), (f"{number}.cls", b"%d" % (number % 2))]
        (folder / split).mkdir()
        (folder / split / "nshards.txt").write_text("1")
        (folder / split / "0.tar").write_bytes(tar_of(members))
    return folder


def by_hand(folder: Path) -> tuple[float, int]:
    """Nats and tokens of all texts, one token after the other."""
    model: Any = CausalLanguageModel(pretrained=str(folder)).eval().model
    tokens = Tokens(trained(TEXTS, 300, 24, WRITTEN_ON))
    nats, count = 0.0, 0
    for text in TEXTS:
        whole = tokens(text)
        pieces = -(-len(whole) // 24)
        for number in range(pieces):
            piece = whole[len(whole) * number // pieces : len(whole) * (number + 1) // pieces]
            for place in range(1, len(piece)):
                with torch.inference_mode():
                    likely = model(torch.tensor([piece[:place]])).logits[0, -1].log_softmax(-1)
                nats -= float(likely[piece[place]])
                count += 1
    return nats, count


@pytest.mark.parametrize("batch", [1, 64])
def test_perplexity_is_that_of_every_token_given_those_before_it(language: Path, tmp_path: Path, batch: int) -> None:
    found = evaluate(language, {"texts": str(of_texts(tmp_path / "set", TEXTS))}, batch=batch)
    nats, count = by_hand(language)
    rows = {metric.metric: metric for metric in found}
    assert rows["perplexity"].value == pytest.approx(math.exp(nats / count), rel=1e-5)
    assert rows["perplexity"].chance == json.loads((language / "config.json").read_text())["vocab_size"]
    assert rows["perplexity"].standard_error is not None
    size = sum(len(text.encode()) for text in TEXTS)
    assert rows["bits_per_byte"].value == pytest.approx(nats / math.log(2) / size, rel=1e-5)
    assert {metric.task for metric in found} == {"language_modelling"}


def test_captions_of_a_retrieval_set_are_texts_line_by_line(language: Path, tmp_path: Path) -> None:
    lines = of_texts(tmp_path / "lines", ["a red circle\n\nit rained", "two blue squares"], "retrieval")
    alone = of_texts(tmp_path / "alone", ["a red circle", "it rained", "two blue squares"])
    found = [evaluate(language, {"set": str(folder)})[0].value for folder in (lines, alone)]
    assert found[0] == pytest.approx(found[1], rel=1e-6)


def test_a_classifier_is_judged_by_its_own_classes_and_by_probes(classifier: Path, tmp_path: Path) -> None:
    own, other = of_classes(tmp_path / "own", ["dark", "light"]), of_classes(tmp_path / "other", ["night", "day"])
    found = evaluate(classifier, {"own": str(own), "other": str(other)})
    right = {(metric.set, metric.task): metric.value for metric in found if metric.metric == "acc1"}
    assert right == {
        ("own", "classification"): 1.0,
        ("own", "linear_probe"): 1.0,
        ("own", "knn"): 1.0,
        ("other", "linear_probe"): 1.0,
        ("other", "knn"): 1.0,
    }
    with pytest.raises(SetError, match="none of the sets own is for it"):
        evaluate(classifier, {"own": str(own)}, tasks=["zeroshot_classification"])


def test_the_command_shows_perplexity_as_a_number_and_accuracy_as_a_share(
    language: Path, classifier: Path, tmp_path: Path
) -> None:
    texts, classes = of_texts(tmp_path / "texts", TEXTS), of_classes(tmp_path / "classes", ["dark", "light"])
    told = CliRunner().invoke(main, [str(language), str(texts)], catch_exceptions=False).output
    assert "perplexity" in told
    assert "%" not in told
    assert "100.0%" in CliRunner().invoke(main, [str(classifier), str(classes)], catch_exceptions=False).output


@pytest.mark.parametrize("kind", KINDS)
def test_of_every_kind_the_map_is_of_patches_alone(kind: str, tmp_path: Path) -> None:
    """DeiT has a token for distillation behind the class token, others have registers there."""
    torch.manual_seed(0)
    registers = {"num_register_tokens": 3} if kind in ("dinov2_with_registers", "dinov3_vit") else {}
    shape = {**SIZES, "patch_size": 8, "image_size": 32}
    loads: Any = AutoModel
    model = loads.from_config(AutoConfig.for_model(kind, **shape, **registers), attn_implementation="eager").eval()
    model.save_pretrained(tmp_path)
    save_preprocessor(Images(side=32), tmp_path)
    looker = Looker.load(tmp_path)
    seen, maps = looker.maps(np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8))
    pixels = looker._preprocessing.normalise(torch.from_numpy(seen.copy())[None]).permute(0, 3, 1, 2)
    with torch.inference_mode():
        whole = model(pixel_values=pixels, output_attentions=True).attentions[-1][0, :, 0].numpy()
    others = 1 + (kind == "deit") + registers.get("num_register_tokens", 0)
    assert whole.shape == (2, others + 16)
    np.testing.assert_allclose(maps.reshape(2, 16), whole[:, others:], atol=1e-6)


def test_attention_of_the_class_token_over_the_patches_is_drawn(classifier: Path, tmp_path: Path) -> None:
    picture = np.zeros((64, 48, 3), np.uint8)
    picture[:32] = 255
    seen, maps = Looker.load(classifier).maps(picture)
    assert seen.shape == (32, 32, 3)
    assert maps.shape == (2, 4, 4)
    assert ((maps > 0) & (maps < 1)).all()
    assert (maps.sum(axis=(1, 2)) < 1).all(), "the class token looks at itself, too"
    for map_rc in maps:  # what is alike is looked at alike, but for its place
        assert abs(map_rc[:2].mean() - map_rc[2:].mean()) > map_rc[:1].std()
    assert drawn(seen, maps).size == (4 * 192 + 3 * 4, 192)
    Image.fromarray(picture).save(tmp_path / "half.png")
    told = CliRunner().invoke(draw, [str(classifier), str(tmp_path / "half.png"), "--out", str(tmp_path / "maps")])
    assert told.exit_code == 0, told.output
    assert len(np.unique(np.asarray(Image.open(tmp_path / "maps" / "half.png")))) > 20
    (tmp_path / "none").mkdir()
    (tmp_path / "none" / "config.json").write_text('{"model_type": "bert"}')
    refused = CliRunner().invoke(draw, [str(tmp_path / "none"), str(tmp_path / "half.png")])
    assert "holds a 'bert'; expected one of vit, deit, vit_msn" in refused.output
