"""A TokenMap is a matrix: whatever it does sparsely must equal the dense product."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import illava_lab as il


@st.composite
def maps(draw) -> il.TokenMap:
    """Any sparse map: anchors in any order, edges from anywhere to anywhere, repeated ones and padding included."""
    batch, count = draw(st.integers(1, 3)), draw(st.integers(1, 12))
    slots, edges = draw(st.integers(1, count)), draw(st.integers(0, 15))
    random = torch.Generator().manual_seed(draw(st.integers(0, 2**16)))
    anchor = torch.stack([torch.randperm(count, generator=random)[:slots] for _ in range(batch)])
    if edges == 0:
        return il.TokenMap.keep(anchor, count)
    weight = torch.rand(batch, edges, generator=random, dtype=torch.float64)
    weight[:, -1] = 0.0  # padding
    return il.TokenMap(
        anchor,
        count,
        torch.rand(batch, slots, generator=random, dtype=torch.float64),
        torch.randint(slots, (batch, edges), generator=random),
        torch.randint(count, (batch, edges), generator=random),
        weight,
    )


@given(maps())
@settings(max_examples=200, deadline=None)
def test_apply_is_the_dense_product(token_map):
    x = torch.randn(token_map.anchor.shape[0], token_map.tokens, 5, dtype=torch.float64)
    torch.testing.assert_close(token_map.apply(x), token_map.matrix() @ x)


@given(maps())
@settings(max_examples=100, deadline=None)
def test_from_matrix_restores_the_map(token_map):
    again = il.TokenMap.from_matrix(token_map.matrix(), token_map.anchor)
    torch.testing.assert_close(again.matrix(), token_map.matrix())
    assert torch.equal(again.anchor, token_map.anchor)


@given(maps(), st.data())
@settings(max_examples=100, deadline=None)
def test_then_is_one_after_the_other(first, data):
    keep = data.draw(st.integers(1, first.slots))
    second = il.TokenMap.keep(
        torch.arange(first.slots - keep, first.slots).expand(first.anchor.shape[0], -1), first.slots
    )
    x = torch.randn(first.anchor.shape[0], first.tokens, 3, dtype=torch.float64)
    torch.testing.assert_close(first.then(second).apply(x), second.apply(first.apply(x)))
    assert torch.equal(first.then(second).anchor, first.anchor.gather(1, second.anchor))
    if first.slots > 1:
        with pytest.raises(il.LabError, match="cannot compose"):
            second.then(second) if keep != first.slots else second.then(il.TokenMap.keep(torch.tensor([[0]]), 99))


@given(maps())
@settings(max_examples=200, deadline=None)
def test_sizes_lose_only_what_is_dropped(token_map):
    """A token that keeps a slot keeps its patches; one that feeds slots is divided over them; the rest is lost."""
    size = torch.randint(1, 9, (token_map.anchor.shape[0], token_map.tokens)).double()
    got = token_map.sizes(size).sum(1)
    used = torch.zeros_like(size)
    if token_map.weight is not None:
        used.scatter_add_(1, token_map.source, token_map.weight)
    alive = (used > 0).scatter(1, token_map.anchor, True)
    torch.testing.assert_close(got, (size * alive).sum(1))


def test_averages_accumulate_in_float32():
    """Thousand tokens of 1 + 2^-9 in bfloat16: summing in bfloat16 would stall at 256."""
    x = torch.ones(1, 1001, 1, dtype=torch.bfloat16)
    size = torch.ones(1, 1001)
    source = torch.arange(1, 1001)[None]
    out = il.TokenMap.merge_into(torch.zeros(1, 1, dtype=torch.long), torch.zeros_like(source), source, size)
    assert out.apply(x).dtype == torch.bfloat16
    assert out.apply(x).item() == 1.0
    unnormalised = il.TokenMap(out.anchor, 1001, torch.ones(1, 1), out.slot, source, torch.ones(1, 1000))
    assert unnormalised.apply(x).item() == 1000.0, "1001 rounds to 1000 in bfloat16; a bfloat16 sum stalls at 256"


def test_pure_pruning_keeps_bits():
    x = torch.randn(2, 9, 4).half()
    anchor = torch.tensor([[0, 3, 8], [1, 2, 4]])
    assert torch.equal(il.TokenMap.keep(anchor, 9).apply(x), torch.stack([x[0, anchor[0]], x[1, anchor[1]]]))
