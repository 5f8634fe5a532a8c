"""What methods have in common that pick tokens one after another, or share a count among groups of them."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import pad

from illava_lab.method.adding import add_at
from illava_lab.method.ranking import highest
from illava_lab.method.token_map import TokenMap
from illava_lab.method.tokens import Tokens


def picked(picks: list[Tensor], keep: int, tokens: Tokens) -> TokenMap:
    """Pruning by picks, each (B,) long: protected tokens stay, then the first picks. No token is picked twice."""
    left = torch.arange(len(picks), 0, -1, dtype=torch.float32, device=tokens.hidden.device).expand(tokens.batch, -1)
    score = torch.zeros((tokens.batch, tokens.count), dtype=torch.float32, device=left.device)
    score = add_at(score, tokens.row, torch.stack(picks, dim=1), left, in_place=True)
    return TokenMap.keep(highest(score, keep, tokens), tokens.count, score=score)


def within_quota(order: Tensor, group: Tensor, quota: Tensor) -> Tensor:
    """(B, N) bool: tokens that are among the first of their group, as many of each as its quota says.

    Args:
        order: (B, N) long, tokens, the first first.
        group: (B, N) long, the group of each token, 0 to K-1; K for a token that is in none.
        quota: (B, K) long.
    """
    own = group.gather(1, order)
    by_group = own.argsort(dim=1, stable=True)
    own = own.gather(1, by_group)
    groups = torch.arange(quota.shape[1] + 1, dtype=torch.long, device=own.device).repeat(len(own), 1)
    rank = torch.arange(own.shape[1], dtype=torch.long, device=own.device) - torch.searchsorted(own, groups).gather(
        1, own
    )
    inside = rank < pad(quota, (0, 1)).gather(1, own)
    return inside.gather(1, order.gather(1, by_group).argsort(dim=1))


def hand_out(count: Tensor, room: Tensor, order: Tensor) -> Tensor:
    """(B, K) long: `count` (B, 1) things given to K groups in `order` (B, K), to each as many as it has `room` for."""
    room = room.gather(1, order)
    before = room.cumsum(dim=1) - room
    return torch.minimum(room, (count - before).clamp_min(0)).gather(1, order.argsort(dim=1))


def chosen_first(order: Tensor, chosen: Tensor) -> Tensor:
    """(B, N) tokens in `order` (B, N), but those that are `chosen` (B, N) bool before the others."""
    return order.gather(1, chosen.gather(1, order).to(torch.int8).argsort(dim=1, descending=True, stable=True))
