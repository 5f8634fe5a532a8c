"""Tokens in the order of a score."""

from __future__ import annotations

import torch
from torch import Tensor

from illava_lab.method.tokens import Tokens


def highest(score: Tensor, keep: int, tokens: Tokens) -> Tensor:
    """(B, keep) indices of the highest scores, ascending; protected tokens first, ties to the smaller index.

    Raises:
        LabError: there are more protected tokens than `keep`.
    """
    tokens.room(keep)
    return ranking(score, tokens)[:, :keep].sort(dim=1).values


def ranking(score: Tensor, tokens: Tokens) -> Tensor:
    """(B, N) indices by falling score; protected tokens first, NaN last, ties to the smaller index."""
    score = score if score.is_floating_point() else score.float()
    # Below the infinity of protected tokens, and NaN, which sorting would put first, below everything.
    score = score.nan_to_num(nan=-torch.inf, posinf=torch.finfo(score.dtype).max, neginf=-torch.inf)
    if tokens.has_protected:
        score = score.masked_fill(tokens.protected, float("inf"))
    return score.argsort(dim=1, descending=True, stable=True)
