"""Two Triton kernels: the log-sum-exp of an attention's rows, and the sums of its columns.

Neither stores a matrix of weights: a program holds one tile of logits at a time. Both add in a fixed order, so that the
same input gives the same bits. `TRITON_INTERPRET=1`, set before triton is imported, runs them on CPU tensors.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def _tile(start, row, count, row_stride, column_stride, WIDTH: tl.constexpr, PADDED: tl.constexpr):
    """(rows, PADDED) queries or keys, zero where there are none."""
    column = tl.arange(0, PADDED)
    inside = (row < count)[:, None] & (column < WIDTH)[None, :]
    return tl.load(start + row.to(tl.int64)[:, None] * row_stride + column[None, :] * column_stride, inside, other=0.0)


@triton.jit
def _logits(
    query, key, scaling, row, column, rows, columns, mask, mask_row, mask_column, lowest, valid, first, last,
    CAUSAL: tl.constexpr, MASK: tl.constexpr, VALID: tl.constexpr, SPANS: tl.constexpr, WIDEN: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    """(rows, columns) float32 logits of two tiles, -inf where a key is hidden."""
    if WIDEN:
        query, key = query.to(tl.float32), key.to(tl.float32)
    logits = tl.dot(query, tl.trans(key), input_precision=PRECISION) * scaling
    seen = (row < rows)[:, None] & (column < columns)[None, :]
    if CAUSAL:
        seen &= column[None, :] <= row[:, None]
    if VALID:
        seeing = tl.load(valid + row, row < rows, other=0) != 0
        shown = tl.load(valid + column, column < columns, other=0) != 0
        seen &= seeing[:, None] & shown[None, :]
    if SPANS:
        begin = tl.load(first + row, row < rows, other=0)
        end = tl.load(last + row, row < rows, other=0)
        seen &= (column[None, :] >= begin[:, None]) & (column[None, :] < end[:, None])
    if MASK == "boolean":
        place = mask + row.to(tl.int64)[:, None] * mask_row + column[None, :] * mask_column
        seen &= tl.load(place, seen, other=0) != 0
    if MASK == "additive":
        place = mask + row.to(tl.int64)[:, None] * mask_row + column[None, :] * mask_column
        added = tl.load(place, seen, other=0).to(tl.float32)
        seen &= ~(added <= lowest)
        logits += added
    return tl.where(seen, logits, float("-inf"))


@triton.jit(do_not_specialize=["rows", "columns", "mask_prompt", "mask_head", "mask_row", "mask_column"])
def row_kernel(
    out, query, key, mask, valid, first, last, scaling, lowest, rows, columns, heads, shared,
    query_prompt, query_head, query_row, query_column, key_prompt, key_head, key_row, key_column,
    mask_prompt, mask_head, mask_row, mask_column,
    CAUSAL: tl.constexpr, MASK: tl.constexpr, VALID: tl.constexpr, SPANS: tl.constexpr, WIDEN: tl.constexpr,
    PRECISION: tl.constexpr, WIDTH: tl.constexpr, PADDED: tl.constexpr, SIDE: tl.constexpr,
):  # fmt: skip
    """out (P, H, T): the log-sum-exp of SIDE rows of one head."""
    tiles = tl.cdiv(rows, SIDE)
    tile, which = tl.program_id(0) % tiles, (tl.program_id(0) // tiles).to(tl.int64)
    prompt, head = which // heads, which % heads
    query += prompt * query_prompt + head * query_head
    key += prompt * key_prompt + head // shared * key_head
    mask += prompt * mask_prompt + head * mask_head
    valid += prompt * columns
    row = tile * SIDE + tl.arange(0, SIDE)
    start, stop = 0, columns
    if CAUSAL:
        stop = tl.minimum(columns, (tile + 1) * SIDE)
    if SPANS:
        start = tl.min(tl.load(first + row, row < rows, other=columns))
        stop = tl.max(tl.load(last + row, row < rows, other=0))
    queries = _tile(query, row, rows, query_row, query_column, WIDTH, PADDED)
    largest = tl.full([SIDE], float("-inf"), tl.float32)
    total = tl.zeros([SIDE], tl.float32)
    for begin in range(start, stop, SIDE):
        column = begin + tl.arange(0, SIDE)
        keys = _tile(key, column, columns, key_row, key_column, WIDTH, PADDED)
        logits = _logits(
            queries, keys, scaling, row, column, rows, columns, mask, mask_row, mask_column, lowest, valid, first, last,
            CAUSAL, MASK, VALID, SPANS, WIDEN, PRECISION,
        )  # fmt: skip
        new = tl.maximum(largest, tl.max(logits, 1))
        finite = tl.where(new == float("-inf"), 0.0, new)
        total = total * tl.exp(largest - finite) + tl.sum(tl.exp(logits - finite[:, None]), 1)
        largest = new
    tl.store(out + which * rows + row, largest + tl.log(total), row < rows)


@triton.jit(do_not_specialize=["rows", "columns", "mask_prompt", "mask_head", "mask_row", "mask_column"])
def column_kernel(
    out, lse, query, key, mask, valid, first, last, scaling, lowest, rows, columns, heads, shared,
    query_prompt, query_head, query_row, query_column, key_prompt, key_head, key_row, key_column,
    mask_prompt, mask_head, mask_row, mask_column,
    CAUSAL: tl.constexpr, MASK: tl.constexpr, VALID: tl.constexpr, SPANS: tl.constexpr, WIDEN: tl.constexpr,
    PRECISION: tl.constexpr, WIDTH: tl.constexpr, PADDED: tl.constexpr, SIDE: tl.constexpr,
):  # fmt: skip
    """out (P, H, S): the attention that SIDE keys receive from the queries of one head."""
    tiles = tl.cdiv(columns, SIDE)
    tile, which = tl.program_id(0) % tiles, (tl.program_id(0) // tiles).to(tl.int64)
    prompt, head = which // heads, which % heads
    query += prompt * query_prompt + head * query_head
    key += prompt * key_prompt + head // shared * key_head
    mask += prompt * mask_prompt + head * mask_head
    valid += prompt * columns
    lse += which * rows
    column = tile * SIDE + tl.arange(0, SIDE)
    start, stop = 0, rows
    if CAUSAL:
        start = tile * SIDE
    if SPANS:
        start = tl.min(tl.load(first + column, column < columns, other=columns))
        stop = tl.max(tl.load(last + column, column < columns, other=0))
    keys = _tile(key, column, columns, key_row, key_column, WIDTH, PADDED)
    total = tl.zeros([SIDE], tl.float32)
    for begin in range(start, stop, SIDE):
        row = begin + tl.arange(0, SIDE)
        queries = _tile(query, row, rows, query_row, query_column, WIDTH, PADDED)
        logits = _logits(
            queries, keys, scaling, row, column, rows, columns, mask, mask_row, mask_column, lowest, valid, first, last,
            CAUSAL, MASK, VALID, SPANS, WIDEN, PRECISION,
        )  # fmt: skip
        sums = tl.load(lse + row, row < rows, other=0.0)
        # A query that sees nothing has no finite sum; what is hidden has no weight whatever the sum is.
        total += tl.sum(tl.where(logits == float("-inf"), 0.0, tl.exp(logits - sums[:, None])), 0)
    tl.store(out + which * columns + column, total, column < columns)
