"""An evaluation asks a trained model: its answers are those of transformers' own `generate`."""

from __future__ import annotations

from pathlib import Path

from PIL import Image

from infra.miniweb import sets
from models.captioners.captioner import Captioner
from models.evaluate import evaluate
from models.evaluate.vqa import answering
from models.evaluate.vqa_sets import from_shards
from tests.models.chat.test_chat import user, whole


def test_a_model_is_asked_every_question_and_its_answers_are_its_own(llava: Path, tmp_path: Path) -> None:
    sets.write(tmp_path, samples=5, names=("questions",))
    asked = from_shards("questions", [str(tmp_path / "questions/test/0.tar")], "{question}")
    images = [one.image for one in asked.questions]
    told = answering(Captioner.load(llava, "cpu", "float32"), asked, batch=3)(asked.questions, images)
    for question, answer in zip(asked.questions, told, strict=True):
        (tmp_path / "one.jpg").write_bytes(asked.load(question.image))
        image = Image.open(tmp_path / "one.jpg").convert("RGB")
        assert answer == " ".join(whole(llava, [user(question.text, 1)], [image], 16).split())
    rows = {row.metric: row for row in evaluate(llava, {"questions": str(tmp_path / "questions")})}
    assert rows["vqa_accuracy"].samples == 5
    assert {"vqa_accuracy_shuffled", "exact_match", "vqa_accuracy/count", "vqa_accuracy/relation_shuffled"} <= set(rows)
