"""What a strategy returns: a sparse linear map from the tokens that enter a place to the fewer that leave it."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from illava_lab.errors import LabError
from illava_lab.method.adding import add_at
from illava_lab.method.tokens import Tokens
from illava_lab.method.wide import wide


@dataclass(frozen=True, eq=False)
class TokenMap:
    """A batch of sparse linear maps from N tokens to M slots.

    ``y[m] = self_weight[m] * x[anchor[m]] + sum over edges e with slot[e] == m of weight[e] * x[source[e]]``

    Attributes:
        anchor: (B, M) long. The token whose place, position and order each slot takes; also its first source.
        tokens: N, the number of tokens that enter.
        self_weight: (B, M) float or None for ones.
        slot, source: (B, E) long or None for no edges: token `source` contributes to slot `slot`.
        weight: (B, E) float. Rows with fewer edges are padded with weight 0.
        score: (B, N) float or None: what the strategy ranked by, kept for pictures.
        row: (B, 1) long, 0 to B-1, where it is at hand (`Tokens.row`); else it is made when it is needed.
        counted: a size (B, N) and what `sizes` gives for it, where both are at hand.
    """

    anchor: Tensor
    tokens: int
    self_weight: Tensor | None = None
    slot: Tensor | None = None
    source: Tensor | None = None
    weight: Tensor | None = None
    score: Tensor | None = None
    row: Tensor | None = None
    counted: tuple[Tensor, Tensor] | None = None

    # ---- the usual cases
    @staticmethod
    def keep(anchor: Tensor, tokens: int, score: Tensor | None = None) -> TokenMap:
        """Pure pruning: the tokens `anchor` (B, M) survive, the others of the `tokens` are dropped."""
        return TokenMap(anchor, tokens, score=score)

    @staticmethod
    def identity(tokens: Tokens) -> TokenMap:
        """Every token stays where it is."""
        everything = torch.arange(tokens.count, dtype=torch.long, device=tokens.hidden.device)
        return TokenMap.keep(everything.expand(tokens.batch, -1), tokens.count)

    @staticmethod
    def merge_into(
        anchor: Tensor,
        slot: Tensor,
        source: Tensor,
        size: Tensor,
        score: Tensor | None = None,
        row: Tensor | None = None,
    ) -> TokenMap:
        """Size-weighted averages: token `source[e]` joins slot `slot[e]`; every slot is the mean over its members.

        Args:
            anchor: (B, M) long, the survivors.
            slot, source: (B, E) long; each source once, and no survivor.
            size: (B, N) float, how many patches each token stands for.
            row: (B, 1) long, 0 to B-1, if at hand.
        """
        row = _rows(anchor) if row is None else row
        own, joining = size.gather(1, anchor), size.gather(1, source)
        total = add_at(own, row, slot, joining)
        share = joining / total.gather(1, slot)
        return TokenMap(anchor, size.shape[1], own / total, slot, source, share, score, row, (size, total))

    @staticmethod
    def from_matrix(matrix: Tensor, anchor: Tensor) -> TokenMap:
        """The map of a dense (B, M, N) matrix, for teaching: slot m takes the place of token anchor[b, m]."""
        own = matrix.gather(2, anchor[..., None])[..., 0]
        rest = matrix.scatter(2, anchor[..., None], 0.0)
        edges = [torch.nonzero(row) for row in rest]
        width = max((len(e) for e in edges), default=0)
        slot = anchor.new_zeros(len(edges), width)
        source, weight = slot.clone(), matrix.new_zeros(len(edges), width)
        for b, e in enumerate(edges):
            slot[b, : len(e)], source[b, : len(e)] = e[:, 0], e[:, 1]
            weight[b, : len(e)] = rest[b, e[:, 0], e[:, 1]]
        return TokenMap(anchor, matrix.shape[2], own, slot, source, weight)

    # ---- what it does
    @property
    def edges(self) -> tuple[Tensor, Tensor, Tensor] | None:
        """(slot, source, weight), or None for a map without edges.

        Raises:
            LabError: one of the three is missing.
        """
        if self.weight is None:
            return None
        if self.slot is None or self.source is None:
            raise LabError("a TokenMap with weight needs slot and source, too")
        return self.slot, self.source, self.weight

    @property
    def merges(self) -> bool:
        """Whether a slot may hold more than its token; asks for no value."""
        return self.weight is not None

    @property
    def slots(self) -> int:
        """M, the number of tokens that leave."""
        return self.anchor.shape[1]

    @cached_property
    def _row(self) -> Tensor:
        return _rows(self.anchor) if self.row is None else self.row

    def apply(self, x: Tensor) -> Tensor:
        """Map x (B, N, C) to (B, M, C). Accumulates in float32 or better, in a fixed order, and casts once."""
        kept = x[self._row, self.anchor]
        if self.edges is None:
            return kept
        slot, source, weight = self.edges
        kept = kept.to(wide(x.dtype)) if self.self_weight is None else weighted(kept, self.self_weight)
        moved = weighted(x[self._row, source], weight)
        return add_at(kept, self._row, slot, moved, in_place=True).to(x.dtype)

    def sizes(self, size: Tensor) -> Tensor:
        """Patches that each slot stands for: (B, N) -> (B, M).

        A token that keeps a slot keeps its own patches. A token that does not is divided over the slots it feeds, in
        proportion to its weights there, so the total is the total before minus what was dropped.
        """
        if self.counted is not None and self.counted[0] is size:
            return self.counted[1]
        out = size.gather(1, self.anchor)
        if self.edges is None:
            return out
        slot, source, weight = self.edges
        weight = weight.to(size.dtype).abs()
        given = add_at(torch.zeros_like(size), self._row, source, weight, in_place=True)
        survives = torch.zeros_like(size, dtype=torch.bool).scatter(1, self.anchor, True)
        share = weight / given.gather(1, source).clamp_min(torch.finfo(size.dtype).tiny)
        moved = (share * size.gather(1, source)).masked_fill(survives.gather(1, source), 0.0)
        return add_at(out, self._row, slot, moved, in_place=True)

    def matrix(self) -> Tensor:
        """The dense (B, M, N) weights, float64. For pictures and checks; memory grows with M times N."""
        place = self.anchor + self.tokens * torch.arange(self.slots, dtype=torch.long, device=self.anchor.device)
        own = self.self_weight
        weight = torch.ones_like(place, dtype=torch.float64) if own is None else own.double()
        if self.edges is not None:
            slot, source, joining = self.edges
            place = torch.cat([place, slot * self.tokens + source], dim=1)
            weight = torch.cat([weight, joining.double()], dim=1)
        dense = weight.new_zeros(len(place), self.slots * self.tokens)
        return add_at(dense, self._row, place, weight, in_place=True).view(-1, self.slots, self.tokens)

    def then(self, after: TokenMap) -> TokenMap:
        """This map followed by `after`, as one map (through dense matrices: for pictures, not for inference).

        Raises:
            LabError: `after` does not start from as many tokens as this map leaves.
        """
        if after.tokens != self.slots:
            raise LabError(f"cannot compose: this map leaves {self.slots} tokens, the next one expects {after.tokens}")
        return TokenMap.from_matrix(after.matrix() @ self.matrix(), self.anchor.gather(1, after.anchor))

    def __repr__(self) -> str:
        edges = 0 if self.weight is None else self.weight.shape[1]
        return f"TokenMap(batch={self.anchor.shape[0]}, {self.tokens} -> {self.slots} tokens, {edges} edges)"


def weighted(rows: Tensor, weight: Tensor) -> Tensor:
    """Rows (..., C) times weights (...), in float32 or better. May write to `rows`: in float32 they are large."""
    weight = weight.to(wide(rows.dtype))[..., None]
    return rows.mul_(weight) if rows.dtype == weight.dtype else rows * weight


def _rows(index: Tensor) -> Tensor:
    return torch.arange(index.shape[0], dtype=torch.long, device=index.device)[:, None]
