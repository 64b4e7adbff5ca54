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
