"""A map that keeps tokens as they are, but for a few slots that are sums."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from illava_lab.method.rows import row_index
from illava_lab.method.token_map import TokenMap, weighted


@dataclass(frozen=True, eq=False)
class Sums:
    """G slots of M, each a weighted sum: ``y[slot[g]] = own x[anchor[slot[g]]] + sum_k share[g, k] x[member[g, k]]``.

    Attributes:
        slot: (B, G) long, all different.
        member: (B, G, K) long, or (B, K) for a single slot.
        share: float, of the shape of `member`, or what broadcasts to it.
        own: a number; None if the first member of each slot is its own token.
    """

    slot: Tensor
    member: Tensor
    share: Tensor
    own: float | None = None


class FewSums(TokenMap):
    """A `TokenMap` in which most slots keep their token, and `sums` says what the others are.

    Those that keep theirs are copied, bit for bit, in the dtype that they have; only the few sums are computed wider.
    What every map has (`self_weight`, `slot`, `source`, `weight`) is made when somebody reads it. Without `sums`, as
    `dataclasses.replace` makes it, it is a plain map.
    """

    sums: Sums | None

    def __init__(
        self,
        anchor: Tensor,
        tokens: int,
        self_weight: Tensor | None = None,
        slot: Tensor | None = None,
        source: Tensor | None = None,
        weight: Tensor | None = None,
        score: Tensor | None = None,
        row: Tensor | None = None,
        counted: tuple[Tensor, Tensor] | None = None,
        *,
        sums: Sums | None = None,
    ) -> None:
        if sums is None:
            super().__init__(anchor, tokens, self_weight, slot, source, weight, score, row, counted)
        else:
            self.__dict__.update(anchor=anchor, tokens=tokens, score=score, row=row, counted=counted)
        self.__dict__["sums"] = sums

    @property
    def merges(self) -> bool:
        return self.sums is not None or super().merges

    def apply(self, x: Tensor) -> Tensor:
        if self.sums is None:
            return super().apply(x)
        sums, row = self.sums, self._row
        kept = x[row, self.anchor]
        several = sums.member.dim() == 3
        rows = x[row_index(x, 2) if several else row, sums.member]
        total = weighted(rows, sums.share).sum(dim=2 if several else 1, keepdim=not several)
        if sums.own is not None:
            total.add_(kept[row, sums.slot], alpha=sums.own)
        return kept.index_put_((row, sums.slot), total.to(x.dtype))  # no slot twice: the order does not matter

    # ---- the same in the words of every map
    @cached_property
    def _members(self) -> tuple[Tensor, Tensor, Tensor]:
        """What joins: slots, tokens and shares (B, G, K) without the slots' own, and the shares of those (B, G)."""
        assert self.sums is not None
        slot, own = self.sums.slot, self.sums.own
        member = self.sums.member.view(*slot.shape, -1)
        share = self.sums.share.expand_as(self.sums.member).view_as(member)
        if own is None:
            return member[..., 1:], share[..., 1:], share[..., 0]
        return member, share, torch.full_like(share[..., 0], own)

    @cached_property
    def self_weight(self) -> Tensor:
        assert self.sums is not None
        ones = torch.ones_like(self.anchor, dtype=self.sums.share.dtype)
        return ones.index_put((self._row, self.sums.slot), self._members[2])

    @cached_property
    def slot(self) -> Tensor:
        assert self.sums is not None
        return self.sums.slot[..., None].expand_as(self._members[0]).flatten(1)

    @cached_property
    def source(self) -> Tensor:
        return self._members[0].flatten(1)

    @cached_property
    def weight(self) -> Tensor:
        return self._members[1].flatten(1)
