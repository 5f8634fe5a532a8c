"""Tokens in the order of a score, and rows as directions."""

from __future__ import annotations

import torch
from torch import Tensor

from illava_lab.method.tokens import Tokens
from illava_lab.method.wide import wide


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
        score = score.masked_fill_(tokens.protected, torch.inf)
    return score.argsort(dim=1, descending=True, stable=True)


def unit(x: Tensor, eps: float = 1e-12) -> Tensor:
    """x (..., C) divided by its length along C, in float32 or better; rows shorter than `eps` are divided by `eps`."""
    length = torch.linalg.vector_norm(x, dim=-1, keepdim=True, dtype=wide(x.dtype))
    out: Tensor = x / length.clamp_min(eps)
    return out
