"""Two views of one image near each other, and far from those of all others (SimCLR, Chen et al. 2020): beside InfoNCE
of pairs, SLIP (Mu et al. 2022)."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional

from models.objectives.ranks import gathered, rank, world
from models.objectives.sizes import wrong_size
from models.trainable import Features, Loss, Objective, Scalars


class SimCLR(Objective):
    """NT-Xent over the two views of all images of all processes (the paper's equation 1), behind a head of its own.

    −log of exp(cosine / τ) of a view with the other one of its image, over the sum with all views but itself; a mean
    over all views. The head stays behind when the tower is exported. It is run once for each view, and so normalises
    each by its own batch, as the head of SLIP's authors does; that of SimCLR's normalises both views together.
    """

    joint = True
    remedy = "data.kind = pairs_and_views, data.crops.count = 2"

    def __init__(self, width: int, hidden: int = 4096, out: int = 256, temperature: float = 0.1) -> None:
        """`width`: of what the image tower pools, before any projection. `hidden`, `out`: widths within the head."""
        super().__init__()
        self._width, self._temperature = width, temperature
        self.head = nn.Sequential(
            nn.Linear(width, hidden, bias=False), Normed(hidden), nn.ReLU(),  # what follows takes any bias off again
            nn.Linear(hidden, hidden, bias=False), Normed(hidden), nn.ReLU(),
            nn.Linear(hidden, out),
        )  # fmt: skip

    def reads(self) -> frozenset[str]:
        return frozenset({"views"})

    def forward(self, features: Features, scalars: Scalars) -> Loss:
        views = features.get("views")
        if views is None or views.shape[1] != 2:
            found = "none" if views is None else str(views.shape[1])
            raise ValueError(f"views of an image: {found}; expected 2: {self.remedy}")
        if views.shape[2] != self._width:
            raise wrong_size("width", self._width, "views", views.shape[2])
        with torch.autocast(views.device.type, enabled=False):
            m = len(views)
            rows_m2d = functional.normalize(torch.stack([self.head(views[:, one]) for one in (0, 1)], dim=1), dim=-1)
            all_n2d = gathered(rows_m2d)
            target_m = torch.arange(m, device=views.device) + rank() * m
            own_mn = functional.one_hot(target_m, len(all_n2d)).bool()
            total = rows_m2d.new_zeros(())
            for one, other in ((0, 1), (1, 0)):
                crossed_mn, same_mn = (rows_m2d[:, one] @ all_n2d[:, which].T for which in (other, one))
                same_mn = same_mn.masked_fill(own_mn, float("-inf"))
                logits = torch.cat([crossed_mn, same_mn], dim=1) / self._temperature
                total = total + functional.cross_entropy(logits, target_m, reduction="sum")
        return Loss(total / 2, total.new_tensor(m))


class Normed(nn.Module):
    """Batch normalisation (Ioffe & Szegedy 2015) over the rows of all processes, which torch has for GPUs alone.

    There are no running statistics: a head that only trains has no use for them.
    """

    def __init__(self, width: int, epsilon: float = 1e-5) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.ones(width)), nn.Parameter(torch.zeros(width))
        self._epsilon = epsilon

    def forward(self, rows_md: torch.Tensor) -> torch.Tensor:
        """(m, width)."""
        mean_d = _over_all(rows_md.mean(dim=0))
        centred_md = rows_md - mean_d
        variance_d = _over_all(centred_md.square().mean(dim=0))
        return centred_md * (variance_d + self._epsilon).rsqrt() * self.weight + self.bias


def _over_all(mean_d: torch.Tensor) -> torch.Tensor:
    """The mean over processes that hold equally many rows."""
    return gathered(mean_d[None]).mean(dim=0) if world() > 1 else mean_d
