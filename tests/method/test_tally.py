"""Tally against a plain re-statement of its four steps, token by token."""

from __future__ import annotations

import math

import torch
from helpers.tokens import close
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import illava_lab as il

Rows = dict[int, dict[int, float]]  # anchor -> weight of each token of its slot


def cosine(a: Tensor, b: Tensor) -> float:
    return float(a @ b / a.norm() / b.norm())


def merged(hidden: Tensor, keys: Tensor, sizes: list[float], keep: int, cls: bool) -> Rows:
    """Steps 1 and 2 of one image."""
    count, free = len(sizes), range(int(cls), len(sizes))
    mean = sum(sizes[j] * hidden[j] / hidden[j].norm() for j in free)
    common = [float(hidden[j] / hidden[j].norm() @ mean) for j in range(count)]
    order = sorted(range(count), key=lambda j: -common[j])
    distinct = {token: place / count for place, token in enumerate(order)}
    pairs = []
    for a in range(0, count, 2):
        if cls and a == 0:
            continue
        b = max(range(1, count, 2), key=lambda j: (cosine(keys[a], keys[j]), -j))
        pairs.append((distinct[a] + distinct[b] - cosine(keys[a], keys[b]), a, b))
    slots = {token: [token] for token in range(count)}
    for _, a, b in sorted(pairs)[: count - keep]:
        slots[b].append(a)
        del slots[a]
    totals = {token: sum(sizes[j] for j in members) for token, members in slots.items()}
    return {token: {j: sizes[j] / totals[token] for j in members} for token, members in slots.items()}


@settings(max_examples=30, deadline=None)
@given(st.integers(4, 14), st.integers(0, 2**31), st.booleans(), st.data())
def test_common_pairs_merge_first(count, seed, cls, data):
    draw = torch.Generator().manual_seed(seed)
    hidden, keys = (torch.randn(1, count, 5, generator=draw, dtype=torch.float64) for _ in range(2))
    size = torch.randint(1, 5, (1, count), generator=draw).float()
    keep = data.draw(st.integers(math.ceil(count / 2) + cls, count - 1))
    protected = torch.arange(count)[None] == 0 if cls else None
    tokens = il.Tokens("encoder", hidden, keys=keys, size=size, protected=protected)
    out = il.get_strategy("tally")().map(tokens, keep)
    want = merged(hidden[0], keys[0], size[0].tolist(), keep, cls)
    assert out.anchor[0].tolist() == sorted(want)
    matrix = torch.zeros(keep, count, dtype=torch.float64)
    for row, anchor in enumerate(sorted(want)):
        for token, weight in want[anchor].items():
            matrix[row, token] = weight
    close(out.matrix()[0], matrix)


def test_the_text_chooses_in_the_llm():
    rows = torch.tensor([[[0.1, 0.4, 0.2, 0.3], [0.5, 0.1, 0.3, 0.1]]])  # means 0.3, 0.25, 0.25, 0.2: a tie
    out = il.get_strategy("tally")().map(il.Tokens("llm", torch.randn(1, 4, 3), text_rows=rows), 2)
    assert out.anchor[0].tolist() == [0, 1]
    assert not out.merges
