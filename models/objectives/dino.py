"""What a slow copy sees in one view of an image is to be seen in every other view (DINO, Caron et al. 2021)."""

from __future__ import annotations

import torch
import torch.distributed as dist

from models.objectives.ranks import world
from models.objectives.sizes import wrong_size
from models.trainable import Features, Loss, Objective, Scalars


class SelfDistillation(Objective):
    """−Σ p_teacher log p_student over the prototypes, a mean over all pairs of a large view and another one.

    The teacher's logits are centred, so that no prototype takes all, and sharpened, so that not all take the same
    (section 3.1, equations 1 to 4). The centre moves after every step by the mean over the rows of all processes.
    """

    centre: torch.Tensor

    def __init__(
        self,
        prototypes: int = 65_536,
        temperature: float = 0.1,
        teacher: tuple[float, float] = (0.04, 0.07),
        warmup: float = 0.1,
        momentum: float = 0.9,
    ) -> None:
        """`prototypes`: as many as the model has. `teacher`: its temperature at the start, and from `warmup` on, a
        share of the training. `momentum`: of the centre."""
        super().__init__()
        self._temperature, self._teacher, self._warmup, self._momentum = temperature, teacher, warmup, momentum
        self.register_buffer("centre", torch.zeros(prototypes))
        self._sum: torch.Tensor | None = None
        self._rows = 0

    def reads(self) -> frozenset[str]:
        return frozenset({"student", "teacher"})

    def forward(self, features: Features, scalars: Scalars) -> Loss:
        student_nvk, teacher_nqk = features["student"], features["teacher"]
        if teacher_nqk.shape[-1] != len(self.centre):
            raise wrong_size("prototypes", len(self.centre), "teacher", teacher_nqk.shape[-1])
        seen = teacher_nqk.detach().sum(dim=(0, 1))
        self._sum = seen if self._sum is None else self._sum + seen
        self._rows += teacher_nqk.shape[0] * teacher_nqk.shape[1]
        with torch.autocast(student_nvk.device.type, enabled=False):
            likely_nqk = ((teacher_nqk.detach() - self.centre) / self.teacher_temperature).softmax(dim=-1)
            told_nvk = (student_nvk / self._temperature).log_softmax(dim=-1)
            crossed_nqv = -torch.einsum("nqk,nvk->nqv", likely_nqk, told_nvk)
        views, large = told_nvk.shape[1], likely_nqk.shape[1]
        itself_qv = torch.eye(large, views, dtype=torch.bool, device=crossed_nqv.device)  # no view teaches itself
        total = crossed_nqv.masked_fill(itself_qv, 0).sum() / (large * (views - 1))
        return Loss(total, crossed_nqv.new_tensor(len(crossed_nqv)))

    @property
    def teacher_temperature(self) -> float:
        first, last = self._teacher
        return last if self.done >= self._warmup else first + (last - first) * self.done / self._warmup

    @torch.no_grad()
    def after_step(self) -> None:
        assert self._sum is not None, "a step follows a batch"
        summed = torch.cat([self._sum, self._sum.new_tensor([self._rows])])
        if world() > 1:
            dist.all_reduce(summed)
        self.centre.lerp_(summed[:-1] / summed[-1], 1 - self._momentum)
        self._sum, self._rows = None, 0
