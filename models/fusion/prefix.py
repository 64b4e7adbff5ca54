"""Images among the tokens of a text: their vectors take the places of image tokens, before the first layer."""

from __future__ import annotations

import torch

from models.objectives.language import NOT_LEARNT


def spliced(embedded_nld: torch.Tensor, places_nl: torch.Tensor, features_td: torch.Tensor) -> torch.Tensor:
    """(n, length, d): the embeddings with the features, in order, where `places_nl` is true.

    No features at all are part of the graph as well, so that a process without images takes part in whatever the
    others do with the gradients of what made them. Raises `ValueError` where there are more or fewer places.
    """
    if int(places_nl.sum()) != len(features_td):
        raise ValueError(
            f"{int(places_nl.sum())} places for images, and {len(features_td)} vectors for them; set "
            "data.images.tokens to what the image tower and the connector make of a square"
        )
    return embedded_nld.masked_scatter(places_nl[..., None], features_td.to(embedded_nld.dtype))


def labels_of(ids_nl: torch.Tensor, learnt_nl: torch.Tensor, places_nl: torch.Tensor) -> torch.Tensor:
    """(n, length) int64: what follows each token, where that is to be learnt; never a part of an image."""
    labels_nl = torch.full_like(ids_nl, NOT_LEARNT)
    labels_nl[:, :-1] = ids_nl[:, 1:].masked_fill(~learnt_nl[:, 1:] | places_nl[:, 1:], NOT_LEARNT)
    return labels_nl
