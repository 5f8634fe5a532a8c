"""A TokenMap is a matrix: whatever it does sparsely must equal the dense product."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import illava_lab as il
from illava_lab.method import FewSums, Sums, adding


@pytest.fixture(params=["cpu", "accelerator"], autouse=True)
def way(request: pytest.FixtureRequest):
    """Maps add in two ways, and everything here is true of both."""
    with pytest.MonkeyPatch.context() as patch:
        if request.param == "accelerator":
            patch.setattr(adding, "ADD_IN_ORDER", set())
        yield


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


@st.composite
def few_sums(draw) -> FewSums:
    """One slot or several that are sums, each once; with their own token among the members or besides."""
    batch, count = draw(st.integers(1, 3)), draw(st.integers(2, 12))
    slots, several = draw(st.integers(1, count)), draw(st.booleans())
    groups, each = draw(st.integers(1, slots)) if several else 1, draw(st.integers(2, 5))
    random = torch.Generator().manual_seed(draw(st.integers(0, 2**16)))
    anchor = torch.stack([torch.randperm(count, generator=random)[:slots] for _ in range(batch)])
    slot = torch.stack([torch.randperm(slots, generator=random)[:groups] for _ in range(batch)])
    member = torch.randint(count, (batch, groups, each), generator=random)
    share = torch.rand(batch, groups, each, generator=random, dtype=torch.float64)
    own = draw(st.sampled_from([0.5, None]))
    if own is None:
        member[..., 0] = anchor.gather(1, slot)
    if not several:
        member, share = member[:, 0], share[0, 0] if draw(st.booleans()) else share[:, 0]
    return FewSums(anchor, count, sums=Sums(slot, member, share, own))


@given(few_sums())
@settings(max_examples=200, deadline=None)
def test_few_sums_are_a_map_like_any(token_map):
    x = torch.randn(token_map.anchor.shape[0], token_map.tokens, 5, dtype=torch.float64)
    got = token_map.apply(x)
    torch.testing.assert_close(got, token_map.matrix() @ x)
    plain = il.TokenMap(
        token_map.anchor, token_map.tokens, token_map.self_weight, token_map.slot, token_map.source, token_map.weight
    )
    torch.testing.assert_close(got, plain.apply(x))
    size = torch.randint(1, 9, x.shape[:2]).double()
    torch.testing.assert_close(token_map.sizes(size), plain.sizes(size))
    again = dataclasses.replace(token_map, score=x[..., 0])
    torch.testing.assert_close(again.apply(x), got)
    assert token_map.merges and plain.merges and repr(token_map) == repr(plain)


def test_few_sums_leave_the_bits_of_other_slots_and_cast_once():
    x = torch.randn(2, 40, 8).bfloat16()
    x[:, 3], x[:, 5] = torch.nan, torch.inf
    anchor, slot = torch.arange(20).expand(2, -1), torch.tensor([[7], [9]])
    sums = Sums(slot, torch.arange(20, 40).expand(2, -1), torch.full((20,), 0.05, dtype=torch.float32), own=0.25)
    got = FewSums(anchor, 40, sums=sums).apply(x)
    for row, at in enumerate((7, 9)):
        others = [i for i in range(20) if i != at]
        assert torch.equal(got[row, others].view(torch.int16), x[row, others].view(torch.int16))
        want = 0.25 * x[row, at].double() + 0.05 * x[row, 20:].double().sum(0)
        torch.testing.assert_close(got[row, at].double(), want, rtol=2**-8, atol=1e-6)


def test_nan_stays_in_the_slot_that_it_feeds():
    x = torch.randn(1, 9, 4)
    x[:, 7] = torch.nan
    out = il.TokenMap.merge_into(
        torch.tensor([[0, 2, 4]]), torch.tensor([[1, 2]]), torch.tensor([[7, 8]]), torch.ones(1, 9)
    )
    assert out.apply(x).isnan().any(2).tolist() == [[False, True, False]]


def test_sizes_of_averages_are_those_that_were_summed():
    """The totals that weights were divided by are the sizes; of another size they are computed."""
    size, other = torch.tensor([[1.0, 2, 3, 4]]), torch.ones(1, 4)
    out = il.TokenMap.merge_into(torch.tensor([[0, 2]]), torch.tensor([[1, 1]]), torch.tensor([[1, 3]]), size)
    assert out.sizes(size).tolist() == out.sizes(size.clone()).tolist() == [[1, 9]]
    assert out.sizes(other).tolist() == [[1, 3]]


def test_rows_that_are_not_contiguous_are_added_to_as_well():
    into, row = torch.zeros(5, 4, 3).transpose(0, 1), torch.arange(4)[:, None]
    place, what = torch.tensor([[0, 0, 2]] * 4), torch.ones(4, 3, 3)
    got = adding.add_at(into, row, place, what, in_place=True)
    assert got.sum(2).tolist() == [[6, 0, 3, 0, 0]] * 4
