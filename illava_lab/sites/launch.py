"""The Triton kernels as operations of torch: counted, shaped without data and seen by a FLOP counter as any other."""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any

import torch
import triton
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula

from illava_lab.sites import kernels
from illava_lab.sites.scores import Scores

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
WIDEST = 1024  # bytes of a head's row, filled up to a power of two
TILE_BYTES = 2**14  # of queries or keys: three of them fit into the fast memory of any GPU

_ARGUMENTS = "Tensor query, Tensor key, float scaling, Tensor? mask, Tensor? valid, Tensor? first, Tensor? last"
_LIBRARY = torch.library.Library("illava_lab", "DEF")
_LIBRARY.define(f"row_lse({_ARGUMENTS}, bool causal) -> Tensor")
_LIBRARY.define(f"column_sums({_ARGUMENTS}, bool causal, Tensor? lse) -> Tensor")


def takes(scores: Scores) -> bool:
    """Whether the kernels can compute these scores."""
    query, key, mask = scores.query, scores.key, scores.mask
    if query.dtype not in DTYPES or key.dtype != query.dtype or key.device != query.device:
        return False
    if triton.next_power_of_2(query.shape[3]) * query.itemsize > WIDEST:
        return False
    return mask is None or mask.dtype == torch.bool or mask.dtype in DTYPES


def row_lse(scores: Scores) -> Tensor:
    """(P, H, T) float32: natural log-sum-exp of the logits of each query, -inf for one that sees nothing."""
    out: Tensor = torch.ops.illava_lab.row_lse.default(*_given(scores), scores.causal)
    return out


def column_sums(scores: Scores, lse: Tensor | None) -> Tensor:
    """(P, S) float32: the attention that each key receives, summed over heads and queries."""
    out: Tensor = torch.ops.illava_lab.column_sums.default(*_given(scores), scores.causal, lse)
    return out


def _given(scores: Scores) -> tuple[Any, ...]:
    spans = (None, None) if scores.spans is None else scores.spans
    return scores.query, scores.key, scores.scaling, scores.mask, scores.valid, *spans


def _row_lse(
    query: Tensor, key: Tensor, scaling: float, mask: Tensor | None, valid: Tensor | None, first: Tensor | None,
    last: Tensor | None, causal: bool,
) -> Tensor:  # fmt: skip
    out = query.new_empty(query.shape[:3], dtype=torch.float32)
    _launch(kernels.row_kernel, (out,), query.shape[2], query, key, scaling, mask, valid, first, last, causal)
    return out


def _column_sums(
    query: Tensor, key: Tensor, scaling: float, mask: Tensor | None, valid: Tensor | None, first: Tensor | None,
    last: Tensor | None, causal: bool, lse: Tensor | None,
) -> Tensor:  # fmt: skip
    if lse is None:
        lse = _row_lse(query, key, scaling, mask, valid, first, last, causal)
    out = query.new_empty((*query.shape[:2], key.shape[2]), dtype=torch.float32)
    tensors = (out, lse.contiguous())
    _launch(kernels.column_kernel, tensors, key.shape[2], query, key, scaling, mask, valid, first, last, causal)
    return out.sum(1)  # in a fixed order, which adding from several programs at once would not have


def _launch(
    kernel: Any, tensors: tuple[Tensor, ...], count: int, query: Tensor, key: Tensor, scaling: float,
    mask: Tensor | None, valid: Tensor | None, first: Tensor | None, last: Tensor | None, causal: bool,
) -> None:  # fmt: skip
    """One program for each tile of `count` rows or columns and each head of each prompt."""
    (prompts, heads, rows, width), (_, groups, columns, _) = query.shape, key.shape
    kind, lowest, steps = "none", 0.0, [0] * 4
    if mask is not None:
        steps = [step if size > 1 else 0 for step, size in zip(mask.stride(), mask.shape, strict=True)]
        kind = "boolean" if mask.dtype == torch.bool else "additive"
        lowest = 0.0 if mask.dtype == torch.bool else torch.finfo(mask.dtype).min
        mask = mask.view(torch.uint8) if mask.dtype == torch.bool else mask
    padded = max(16, triton.next_power_of_2(width))
    side = min(64, TILE_BYTES // (padded * query.itemsize))
    with torch.cuda.device(query.device) if query.is_cuda else nullcontext():
        kernel[(triton.cdiv(count, side) * prompts * heads,)](
            *tensors, query, key,
            query if mask is None else mask,
            query if valid is None else valid.contiguous().view(torch.uint8),
            query if first is None else first,
            query if last is None else last,
            scaling, lowest, rows, columns, heads, heads // groups, *query.stride(), *key.stride(), *steps,
            CAUSAL=causal, MASK=kind, VALID=valid is not None, SPANS=first is not None,
            WIDEN=not query.is_cuda,  # Triton's interpreter multiplies bfloat16 as if it were whole numbers
            PRECISION="ieee" if query.dtype == torch.float32 else "tf32",
            WIDTH=width, PADDED=padded, SIDE=side, num_warps=4, num_stages=2,
            enable_fp_fusion=True,  # what Triton does by now, and warns that it will not for ever
        )  # fmt: skip


def _flops(query: torch.Size, key: torch.Size, *rest: Any, **named: Any) -> int:
    """Those of the products, once: that a kernel makes them again in place of storing them is its own business."""
    prompts, heads, rows, width = query
    return 2 * prompts * heads * rows * key[2] * width


_LIBRARY.impl("row_lse", _row_lse, "CompositeExplicitAutograd")
_LIBRARY.impl("column_sums", _column_sums, "CompositeExplicitAutograd")
register_flop_formula([torch.ops.illava_lab.row_lse, torch.ops.illava_lab.column_sums])(_flops)


@torch.library.register_fake("illava_lab::row_lse")
def _(query: Tensor, *rest: Any) -> Tensor:
    return query.new_empty(query.shape[:3], dtype=torch.float32)


@torch.library.register_fake("illava_lab::column_sums")
def _(query: Tensor, key: Tensor, *rest: Any) -> Tensor:
    return query.new_empty((query.shape[0], key.shape[2]), dtype=torch.float32)
