"""Images and texts near each other, taught by a slow copy of the towers and a queue of what it saw: ITC of ALBEF, BLIP.

objective = MomentumContrast(width=256)      # needs features `image`, `text` and their slow copies' `image_m`, `text_m`
"""

from __future__ import annotations

import torch

from models.objectives.contrastive import scalar
from models.objectives.ranks import gathered, rank
from models.objectives.sizes import wrong_size
from models.trainable import Features, Loss, Objective, Scalars

OTHER = {"image": "text", "text": "image"}


class MomentumContrast(Objective):
    """½ (CE of an image among texts + CE of a text among images), Li et al. 2021, equations 1 and 6.

    What is searched are the slow copy's rows of the whole batch, and those of earlier batches, newest `queue` of them.
    The target is 1 − α for the partner, and α is spread as the slow copy itself judges. With α = 0, no queue and a
    copy that is as fast as its original the value is InfoNCE's.
    """

    joint = True
    remedy = "`momentum` of the model"

    def __init__(self, width: int = 256, queue: int = 57_600, alpha: float = 0.4, ramp: int = 0) -> None:
        """`width`: of the features. `ramp`: samples over which α grows from 0. Raises `ValueError`
        for an `alpha` outside 0 to 1, or a `ramp` below 0."""
        super().__init__()
        if not 0 <= alpha <= 1:
            raise ValueError(f"alpha = {alpha}: expected a share, 0 to 1")
        if ramp < 0:
            raise ValueError(f"ramp = {ramp}: expected samples, 0 or more")
        self.image_queue: torch.Tensor
        self.text_queue: torch.Tensor
        self.seen: torch.Tensor
        self.register_buffer("image_queue", torch.zeros(queue, width))
        self.register_buffer("text_queue", torch.zeros(queue, width))
        self.register_buffer("seen", torch.zeros((), dtype=torch.int64))  # rows, of which the queue has the newest
        self._alpha, self._ramp = alpha, ramp
        self._coming: dict[str, torch.Tensor] = {}

    def reads(self) -> frozenset[str]:
        return frozenset({"image", "text", "image_m", "text_m"})

    def needs(self) -> frozenset[str]:
        return frozenset({"logit_scale"})

    def forward(self, features: Features, scalars: Scalars) -> Loss:
        rows, slow, width = self._rows(features), {}, self.image_queue.shape[1]
        for name in OTHER:
            slow[name] = features[f"{name}_m"].detach()
            if rows[name].shape[1] != width:
                raise wrong_size("width", width, name, rows[name].shape[1])
        with torch.autocast(rows["image"].device.type, enabled=False):
            scale = scalar(scalars, "logit_scale").exp()
            batch = {name: gathered(rows_md) for name, rows_md in slow.items()}
            keys = {name: torch.cat([batch[name], self._queue(name).to(batch[name].dtype)]) for name in OTHER}
            count, every = len(rows["image"]), len(batch["image"])
            places_k = torch.arange(len(keys["image"]), device=scale.device)
            empty_k = places_k >= every + self.seen
            own_mk = places_k == (rank() * count + torch.arange(count, device=scale.device))[:, None]
            total = scale.new_zeros(())
            for name, other in OTHER.items():
                with torch.no_grad():
                    judged_mk = (scale * slow[name] @ keys[other].T).masked_fill(empty_k, -torch.inf).softmax(1)
                    target_mk = torch.lerp(own_mk.to(judged_mk.dtype), judged_mk, self._share(judged_mk))
                logits_mk = (scale * rows[name] @ keys[other].T).masked_fill(empty_k, -torch.inf)
                likely_mk = logits_mk.log_softmax(1).masked_fill(empty_k, 0)
                total = total - (target_mk * likely_mk).sum()
        self._coming = batch
        return Loss(total / 2, total.new_tensor(count))

    def _share(self, like: torch.Tensor) -> torch.Tensor:
        """(): α by now."""
        alpha = like.new_tensor(self._alpha)
        return alpha * (self.seen / self._ramp).clamp(max=1).to(like.dtype) if self._ramp else alpha

    def _queue(self, name: str) -> torch.Tensor:
        queue: torch.Tensor = getattr(self, f"{name}_queue")
        return queue

    @torch.no_grad()
    def after_step(self) -> None:
        """The batch's rows take the place of the oldest."""
        places = len(self.image_queue)
        for name, rows_nd in self._coming.items():
            newest = rows_nd[-places:] if places else rows_nd[:0]
            first = self.seen + len(rows_nd) - len(newest)
            at = (first + torch.arange(len(newest), device=newest.device)) % max(places, 1)
            self._queue(name)[at] = newest.to(self._queue(name).dtype)
        if self._coming:
            self.seen += len(self._coming["image"])
        self._coming = {}

    def _rows(self, features: Features) -> Features:
        for name in sorted(self.reads()):
            if name not in features:
                raise ValueError(f"no features {name!r}; this model gives {', '.join(sorted(features))}")
        return features
