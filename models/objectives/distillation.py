"""As alike as a teacher finds them: what MobileCLIP learns beside InfoNCE (Vasu et al. 2024, section 4.2)."""

from __future__ import annotations

import torch

from models.objectives.contrastive import rows_of, scalar
from models.objectives.ranks import gathered
from models.trainable import Features, Loss, Objective, Scalars


class SimilarityDistillation(Objective):
    """½ (KL of an image's similarities to all texts + KL of a text's to all images), of the teacher's from the model's.

    KL(softmax(teacher / τ) ‖ softmax(model · exp(`logit_scale`))), over the batch of all processes (L_Distill). The
    teacher's width may be another than the model's: it is compared with itself only.
    """

    joint = True
    remedy = "data.kind = pairs_and_teacher"

    def __init__(self, temperature: float = 0.01) -> None:
        """`temperature`: the teacher's; a CLIP's is 0.01."""
        super().__init__()
        self.temperature = temperature

    def reads(self) -> frozenset[str]:
        return frozenset({"image", "text", "teacher_image", "teacher_text"})

    def needs(self) -> frozenset[str]:
        return frozenset({"logit_scale"})

    def forward(self, features: Features, scalars: Scalars) -> Loss:
        pairs = [[rows_of(features, f"{whose}{name}") for name in ("image", "text")] for whose in ("", "teacher_")]
        (images_md, texts_md), (seen_me, read_me) = pairs
        with torch.autocast(images_md.device.type, enabled=False):
            scale = scalar(scalars, "logit_scale").exp()
            total = images_md.new_zeros(())
            for own_md, other_md, taught_me, others_me in (
                (images_md, texts_md, seen_me, read_me),
                (texts_md, images_md, read_me, seen_me),
            ):
                told_mn = (scale * own_md @ gathered(other_md).T).log_softmax(dim=1)
                wanted_mn = (taught_me @ gathered(others_me).T / self.temperature).log_softmax(dim=1).detach()
                total = total + (wanted_mn.exp() * (wanted_mn - told_mn)).sum()
        return Loss(total / 2, total.new_tensor(len(images_md)))
