"""Several texts in one row of a language model, none of which sees another: padding costs nothing then.

packing = Packing(mask_nl)
hidden_rpd = model(inputs_embeds=packing.pack(embedded_nld), **packing.arguments).last_hidden_state
logits_nlv = packing.unpack(head(hidden_rpd))        # row i is of sample i again

Positions begin anew with every text, and from that alone transformers (5.23, `masking_utils`) makes a mask of blocks,
for eager attention and for sdpa: as long as it is given neither an attention mask nor a cache, which `arguments` see
to. Rows are filled by first-fit decreasing (Johnson 1973), which takes at most 11/9 of the rows that the best way does.

Of texts in branches (`models.data.rounds`) positions alone do not say who sees what: a mask does then, of rows x room x
room places, as sdpa takes it.

Labels are not packed: those of a row are what follows within that row, so no text learns how the next one begins.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from models.data.rounds import TRUNK


def first_fit(lengths: Sequence[int], room: int) -> tuple[list[int], list[int]]:
    """The row of every text, and its first place there: the longest first, each where it fits first.

    Raises `ValueError` for a text that no row has room for.
    """
    rows, starts, used = [0] * len(lengths), [0] * len(lengths), list[int]()
    for text in sorted(range(len(lengths)), key=lambda text: -lengths[text]):
        if lengths[text] > room:
            raise ValueError(f"room = {room}: a text of {lengths[text]} tokens does not fit; make room for the longest")
        row = next((row for row, full in enumerate(used) if full + lengths[text] <= room), len(used))
        if row == len(used):
            used.append(0)
        rows[text], starts[text] = row, used[row]
        used[row] += lengths[text]
    return rows, starts


class Packing:
    """Where every token of some padded rows lies in fewer, fuller ones."""

    def __init__(
        self,
        mask_nl: torch.Tensor,
        room: int | None = None,
        branches_nl: torch.Tensor | None = None,
        positions_nl: torch.Tensor | None = None,
    ) -> None:
        """`mask_nl`: other than 0 where there is a token, wherever its padding is. `room`: places of a packed row; by
        default as many as the longest text has tokens. `branches_nl`, `positions_nl`: of texts in branches."""
        self.shape = tuple(mask_nl.shape)
        mask_nl = mask_nl.bool()
        lengths = mask_nl.sum(1).tolist()  # the one thing that a GPU is waited for
        self.room = room or max([*lengths, 1])
        rows, starts = first_fit(lengths, self.room)
        self.rows = max(rows, default=-1) + 1
        device = mask_nl.device
        begins_n = torch.tensor(rows, device=device) * self.room + torch.tensor(starts, device=device)
        within_nl = mask_nl.cumsum(1) - 1
        self._padded_t = mask_nl.flatten().nonzero()[:, 0]
        self._packed_t = (begins_n[:, None] + within_nl)[mask_nl]
        places = torch.zeros(self.rows * self.room, dtype=torch.int64, device=device)
        places[self._packed_t] = (within_nl if positions_nl is None else positions_nl)[mask_nl]
        # What is left over of a row stays at place 0: texts of one token each, that nobody reads.
        self.position_ids = places.view(self.rows, self.room)
        """int64 (rows, room): the place of every token in its own text."""
        self.attention_mask = None if branches_nl is None else self._seen(mask_nl, branches_nl)
        """bool (rows, 1, room, room): whether the first place sees the second; None for texts without branches."""

    @property
    def arguments(self) -> dict[str, Any]:
        """For the model's forward, beside `input_ids` or `inputs_embeds`."""
        return {"position_ids": self.position_ids, "attention_mask": self.attention_mask, "use_cache": False}

    def _seen(self, mask_nl: torch.Tensor, branches_nl: torch.Tensor) -> torch.Tensor:
        texts_n1 = torch.arange(1, len(mask_nl) + 1, device=mask_nl.device)[:, None]  # 0 is what is left over
        text_rp, branch_rp = self.pack(texts_n1.expand_as(mask_nl)), self.pack(branches_nl)
        within = text_rp[:, :, None] == text_rp[:, None]
        reached = (branch_rp[:, None] == TRUNK) | (branch_rp[:, :, None] == branch_rp[:, None])
        return (within & reached).tril()[:, None]

    def pack(self, values_nl: torch.Tensor) -> torch.Tensor:
        """(rows, room, …) of (n, length, …): tokens or their embeddings; 0 where a row is not full."""
        return self._moved(values_nl, self._padded_t, self._packed_t, (self.rows, self.room))

    def unpack(self, values_rp: torch.Tensor) -> torch.Tensor:
        """(n, length, …) of (rows, room, …), with gradients; 0 where there is no token."""
        return self._moved(values_rp, self._packed_t, self._padded_t, self.shape)

    def _moved(
        self, values: torch.Tensor, whence_t: torch.Tensor, where_t: torch.Tensor, shape: tuple[int, ...]
    ) -> torch.Tensor:
        found = values.flatten(0, 1).index_select(0, whence_t)
        moved = found.new_zeros((shape[0] * shape[1], *found.shape[1:])).index_copy(0, where_t, found)
        return moved.view(*shape, *found.shape[1:])
