"""Self-distillation, beside what `test_contrastive` sees of it on several processes."""

from contextlib import nullcontext

import pytest
import torch

from models.objectives.dino import SelfDistillation


def test_it_takes_steps_wherever_it_was_moved_to(monkeypatch: pytest.MonkeyPatch) -> None:
    """The trainer builds objectives on the CPU and moves them; `meta` stands for a GPU, but knows no autocast."""
    monkeypatch.setattr(torch, "autocast", lambda *_, **__: nullcontext())
    objective = SelfDistillation(8).to("meta")
    features = {name: torch.ones(3, 2, 8, device="meta") for name in ("student", "teacher")}
    for _ in range(2):
        assert objective(features, {}).total.device.type == "meta"
        objective.after_step()
    assert objective.centre.device.type == "meta"


def test_no_view_teaches_itself_and_every_other_pair_counts_alike() -> None:
    """Against section 3.1 written out, with a centre that is not nought."""
    torch.manual_seed(0)
    objective = SelfDistillation(8, teacher=(0.05, 0.05))
    objective.centre.normal_()
    student_nvk, teacher_nqk = torch.randn(3, 4, 8), torch.randn(3, 2, 8)
    expected = 0.0
    for row in range(3):
        for large in range(2):
            likely_k = ((teacher_nqk[row, large] - objective.centre) / 0.05).softmax(0)
            for view in range(4):
                if view != large:
                    expected -= float((likely_k * (student_nvk[row, view] / 0.1).log_softmax(0)).sum()) / 6
    found = objective({"student": student_nvk, "teacher": teacher_nqk}, {})
    torch.testing.assert_close(float(found.total), expected, rtol=1e-5, atol=1e-5)
