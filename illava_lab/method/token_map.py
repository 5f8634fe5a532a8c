"""What a strategy returns: a sparse linear map from the tokens that enter a place to the fewer that leave it."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from illava_lab.errors import LabError
from illava_lab.method.tokens import Tokens


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
    """

    anchor: Tensor
    tokens: int
    self_weight: Tensor | None = None
    slot: Tensor | None = None
    source: Tensor | None = None
    weight: Tensor | None = None
    score: Tensor | None = None

    # ---- the usual cases
    @staticmethod
    def keep(anchor: Tensor, tokens: int, score: Tensor | None = None) -> TokenMap:
        """Pure pruning: the tokens `anchor` (B, M) survive, the others of the `tokens` are dropped."""
        return TokenMap(anchor, tokens, score=score)

    @staticmethod
    def identity(tokens: Tokens) -> TokenMap:
        """Every token stays where it is."""
        everything = torch.arange(tokens.count, device=tokens.hidden.device)
        return TokenMap.keep(everything.expand(tokens.batch, -1), tokens.count)

    @staticmethod
    def merge_into(anchor: Tensor, slot: Tensor, source: Tensor, size: Tensor, score: Tensor | None = None) -> TokenMap:
        """Size-weighted averages: token `source[e]` joins slot `slot[e]`; every slot is the mean over its members.

        Args:
            anchor: (B, M) long, the survivors.
            slot, source: (B, E) long.
            size: (B, N) float, how many patches each token stands for.
        """
        own = size.gather(1, anchor)
        joining = size.gather(1, source)
        total = own.scatter_add(1, slot, joining)
        return TokenMap(anchor, size.shape[1], own / total, slot, source, joining / total.gather(1, slot), score=score)

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
    def slots(self) -> int:
        """M, the number of tokens that leave."""
        return self.anchor.shape[1]

    def apply(self, x: Tensor) -> Tensor:
        """Map x (B, N, C) to (B, M, C). Accumulates in float32 or better, and casts once."""
        kept = x.gather(1, self.anchor[..., None].expand(-1, -1, x.shape[2]))
        if self.edges is None:
            return kept
        slot, source, weight = self.edges
        # In place, on what was made here: in float32 these are large.
        wide = torch.promote_types(x.dtype, torch.float32)
        kept = kept.to(wide)
        if self.self_weight is not None:
            kept.mul_(self.self_weight.to(wide)[..., None])
        moved = x.gather(1, source[..., None].expand(-1, -1, x.shape[2])).to(wide)
        moved.mul_(weight.to(wide)[..., None])
        return kept.scatter_add_(1, slot[..., None].expand_as(moved), moved).to(x.dtype)

    def sizes(self, size: Tensor) -> Tensor:
        """Patches that each slot stands for: (B, N) -> (B, M).

        A token that keeps a slot keeps its own patches. A token that does not is divided over the slots it feeds, in
        proportion to its weights there, so the total is the total before minus what was dropped.
        """
        out = size.gather(1, self.anchor)
        if self.edges is None:
            return out
        slot, source, weight = self.edges
        given = torch.zeros_like(size).scatter_add(1, source, weight.to(size.dtype).abs())
        survives = torch.zeros_like(size, dtype=torch.bool).scatter(1, self.anchor, True)
        share = weight.to(size.dtype).abs() / given.gather(1, source).clamp_min(torch.finfo(size.dtype).tiny)
        moved = (share * size.gather(1, source)).masked_fill(survives.gather(1, source), 0.0)
        return out.scatter_add(1, slot, moved)

    def matrix(self) -> Tensor:
        """The dense (B, M, N) weights, float64. For pictures and checks; memory grows with M times N."""
        batch = self.anchor.shape[0]
        own = (
            torch.ones_like(self.anchor, dtype=torch.float64) if self.self_weight is None else self.self_weight.double()
        )
        dense = own.new_zeros(batch, self.slots, self.tokens).scatter(2, self.anchor[..., None], own[..., None])
        if self.edges is None:
            return dense
        slot, source, weight = self.edges
        flat = dense.flatten(1).scatter_add(1, slot * self.tokens + source, weight.double())
        return flat.view_as(dense)

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
