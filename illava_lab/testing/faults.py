"""What can be wrong with a map, in words."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from illava_lab.method.token_map import TokenMap
from illava_lab.testing.cases import Case

TOLERANCE = 1e-4


def malformed(out: Any, case: Case) -> str:
    if not isinstance(out, TokenMap):
        return f"map returned {type(out).__name__}: return a TokenMap, for example TokenMap.keep(anchor, tokens.count)"
    if not isinstance(out.anchor, Tensor) or out.anchor.dim() != 2 or out.anchor.shape[0] != case.batch:
        return f"anchor must have shape (batch, slots) = ({case.batch}, {case.keep}), got {_shape(out.anchor)}"
    if out.tokens != case.count:
        return f"TokenMap.tokens must be the number of tokens that enter, {case.count}, got {out.tokens!r}"
    if out.score is not None and _shape(out.score) != (case.batch, case.count):
        return f"score must have shape (batch, tokens) = {(case.batch, case.count)}, got {_shape(out.score)}"
    if out.self_weight is not None and _shape(out.self_weight) != _shape(out.anchor):
        return f"self_weight must have the shape of anchor, {_shape(out.anchor)}, got {_shape(out.self_weight)}"
    return ""


def wrong_anchors(out: TokenMap, case: Case, unique: bool = True) -> str:
    if out.anchor.dtype != torch.long:
        return f"anchors are {out.anchor.dtype}: an index is torch.long"
    if out.anchor.numel() and not 0 <= int(out.anchor.min()) <= int(out.anchor.max()) < case.count:
        return f"anchor {_outside(out.anchor, case.count)} is no token; there are 0 to {case.count - 1}"
    for row, anchors in enumerate(out.anchor.tolist() if unique else []):
        if twice := [a for a in anchors if anchors.count(a) > 1]:
            times = anchors.count(twice[0])
            return f"token {twice[0]} is the anchor of {times} slots in row {row}: give each place once"
    return ""


def wrong_edges(out: TokenMap) -> str:
    if out.slot is None and out.source is None and out.weight is None:
        return ""
    shapes = [_shape(value) for value in (out.slot, out.source, out.weight)]
    if len(set(shapes)) > 1 or len(shapes[0]) != 2 or shapes[0][0] != out.anchor.shape[0] or out.edges is None:
        return f"slot, source and weight must all have shape (batch, edges), got {', '.join(map(str, shapes))}"
    slot, source, _ = out.edges
    for name, index, limit, what in (("slot", slot, out.slots, "slots"), ("source", source, out.tokens, "tokens")):
        if index.dtype != torch.long:
            return f"{name} is {index.dtype}: an index is torch.long"
        if index.numel() and not 0 <= int(index.min()) <= int(index.max()) < limit:
            return f"{name} {_outside(index, limit)} is out of range: {what} are 0 to {limit - 1} within each row"
    return ""


def _shape(x: Any) -> tuple[int, ...]:
    return tuple(getattr(x, "shape", ()))


def _outside(index: Tensor, limit: int) -> int:
    return int(index[(index < 0) | (index >= limit)][0])


def same(one: TokenMap, other: TokenMap) -> bool:
    return torch.equal(one.anchor, other.anchor) and torch.allclose(
        one.matrix(), other.matrix(), rtol=0, atol=TOLERANCE, equal_nan=True
    )
