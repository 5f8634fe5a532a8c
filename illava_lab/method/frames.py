"""The frames of a video, side by side: which tokens of others lie where a token lies."""

from __future__ import annotations

import torch
from torch import Tensor

from illava_lab.errors import LabError
from illava_lab.method.ranking import unit
from illava_lab.method.tokens import Tokens


def frame_of(tokens: Tokens) -> Tensor:
    """(B, N) long, the frame in which each token is; 0 for a token that is in none.

    Raises:
        LabError: these are no tokens of a video.
    """
    return tokens.position.clamp_min(0) // _frames(tokens)[1]


def same_place_before(tokens: Tokens) -> Tensor:
    """(B, N) long, the token at the same place of the nearest frame before; -1 where there is none.

    That is the frame before, unless an earlier reduction took its token away.
    """
    at = _table(tokens)
    count, _ = _frames(tokens)
    # The latest frame up to each that has a token at this place.
    frame = torch.arange(count, dtype=torch.long, device=at.device)[:, None]
    latest = torch.where(at >= 0, frame, -1).cummax(dim=1).values
    latest = torch.cat([torch.full_like(latest[:, :1], -1), latest[:, :-1]], dim=1)
    found = at.gather(1, latest.clamp_min(0)).masked_fill_(latest < 0, -1)
    return _own(found, tokens)


def same_place_in(tokens: Tokens, frame: Tensor) -> Tensor:
    """(B, N) long, the token at the same place of another frame (B, N); -1 where there is none."""
    count, width = _frames(tokens)
    place = tokens.position.clamp_min(0) % width
    found = _table(tokens).flatten(1).gather(1, frame.clamp(0, count - 1) * width + place)
    return found.masked_fill((frame < 0) | (frame >= count) | (tokens.position < 0), -1)


def cosine_to(other: Tensor, tokens: Tokens, without: float) -> Tensor:
    """(B, N) float, the cosine of each token with another, `other` (B, N) long.

    NaN for tokens that hold NaN; `without` where the other is -1, or holds NaN.
    """
    x = unit(tokens.hidden)
    cosine = (x * x[tokens.row, other.clamp_min(0)]).sum(dim=2)
    itself = (x * x).sum(dim=2)  # NaN where the token is
    return torch.where(itself.isnan(), itself, cosine.masked_fill_(other < 0, torch.nan).nan_to_num(nan=without))


def _frames(tokens: Tokens) -> tuple[int, int]:
    if tokens.frames is None:
        raise LabError("frames of a video are compared, and these are no tokens of a video")
    return tokens.frames


def _table(tokens: Tokens) -> Tensor:
    """(B, frames, places) long, the token that is there; -1 where there is none."""
    count, width = _frames(tokens)
    every = count * width
    index = torch.arange(tokens.count, dtype=torch.long, device=tokens.hidden.device).expand(tokens.batch, -1)
    nowhere = (tokens.position < 0).logical_or_(tokens.position >= every)
    place = torch.where(nowhere, every + index, tokens.position)  # behind the frames, each for itself
    table = torch.full((tokens.batch, every + tokens.count), -1, dtype=torch.long, device=index.device)
    return table.index_put_((tokens.row, place), index)[:, :every].view(tokens.batch, count, width)


def _own(table: Tensor, tokens: Tokens) -> Tensor:
    """(B, N) what a table (B, frames, places) has for each token; -1 for a token that is in none."""
    last = table.shape[1] * table.shape[2] - 1
    return table.flatten(1).gather(1, tokens.position.clamp(0, last)).masked_fill(tokens.position < 0, -1)
