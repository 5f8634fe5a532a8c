"""Methods of 2025 and 2026 against the worked cases of the method notes, and against slow re-statements."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from helpers.tokens import close, features
from hypothesis import given, settings
from hypothesis import strategies as st

import illava_lab as il
from illava_lab.measuring.operations import operations

Vector = list[float]
few = settings(max_examples=40, deadline=None)


def make(name: str, **setting: object) -> il.Strategy:
    return il.get_strategy(name)(**setting)


def cosine(a: Vector, b: Vector) -> float:
    return sum(x * y for x, y in zip(a, b, strict=True)) / math.sqrt(sum(x * x for x in a) * sum(y * y for y in b))


def by_score(score: Vector, among: list[int]) -> list[int]:
    """Highest first, ties to the smaller index."""
    return sorted(among, key=lambda j: (-score[j], j))


# ---------------------------------------------------------------------------------------------- the rules, naively
def scope(x: list[Vector], a: Vector, keep: int, alpha: float, combine: str) -> list[tuple[int, float]]:
    """Section 21: the picks in their order, with the gain of each."""
    n = len(x)
    alike = [[cosine(x[i], x[j]) for j in range(n)] for i in range(n)]
    covered, picks = [0.0] * n, []
    for _ in range(keep):
        left = [j for j in range(n) if j not in [pick for pick, _ in picks]]
        gain = {j: sum(max(0.0, alike[i][j] - covered[i]) for i in range(n)) for j in left}
        gain = {j: g * a[j] ** alpha if combine == "multiply" else g + a[j] ** alpha for j, g in gain.items()}
        best = min(left, key=lambda j: (-gain[j], j))
        picks.append((best, gain[best]))
        covered = [max(covered[i], alike[i][best]) for i in range(n)]
    return picks


def prunesid(x: list[Vector], a: Vector, total: int) -> list[int]:
    """Section 24: total - 1 patches, group by group."""
    n = len(x)
    z = 1 / (1 + np.exp(-np.array(x, dtype=np.float64)))
    z -= z.mean(axis=1, keepdims=True)
    groups = min(max(1, int(total / 4)), z.shape[0], z.shape[1] - 1)
    v = np.abs(np.linalg.svd(z.T, full_matrices=False)[2][:groups])
    members = [[i for i in range(n) if v[:, i].argmax() == k] for k in range(groups)]
    pairs = [cosine(x[i], x[j]) for i in range(n) for j in range(i)]
    bound = total / 32 * sum(pairs) / len(pairs) if pairs else 0.0
    ranked, taken = [], []
    for own in members:
        first: list[int] = []
        for i in by_score(a, own):
            if a[i] > 0 and all(cosine(x[i], x[j]) <= bound for j in first):
                first.append(i)
        ranked.append(first + [i for i in by_score(a, own) if i not in first])
        taken.append(len(first))
    size = [len(own) for own in members]
    least = [min(1, m) for m in size]
    most = [min(5 * math.ceil(total / 64), m, t) for m, t in zip(size, taken, strict=True)]
    while sum(most) < total:
        most = [min(u + 1, m) for u, m in zip(most, size, strict=True)]
    rest, quota, before = total - 1 - sum(least), [], 0
    for k in range(groups):
        upto = round(rest * sum(taken[: k + 1]) / max(1, sum(taken)))
        quota.append(min(least[k] + upto - before, most[k]))
        before = upto
    for k in sorted(range(groups), key=lambda k: (-taken[k], k)):
        quota[k] += min(most[k] - quota[k], total - 1 - sum(quota))
    return [i for own, t in zip(ranked, quota, strict=True) for i in own[:t]]


def holov(x: list[Vector], a: Vector, keep: int, chunks: int) -> tuple[Vector, list[int]]:
    """Section 22, variance and all: the scores of the chunks, and what is kept (overflow: ours)."""
    n = len(x)
    sizes = [n // chunks + (k < n % chunks) for k in range(chunks)]
    own = [list(range(sum(sizes[:k]), sum(sizes[: k + 1]))) for k in range(chunks)]
    scores = []
    for members in own:
        alike = [[0.0 if i == j else cosine(x[i], x[j]) for j in members] for i in members]
        mean = [sum(row) / (len(members) - 1) for row in alike]
        var = [sum((s - m) ** 2 for s in row) / (len(members) - 1) for row, m in zip(alike, mean, strict=True)]
        attention = [1000 * a[i] for i in members]
        scale = (sum(attention) / len(members)) / (sum(var) / len(members) + 1e-6)
        scores.append(sum(p + 0.09 * scale * v for p, v in zip(attention, var, strict=True)) / len(members))
    share = [s / (sum(scores) + 1e-6) for s in scores]
    quota = [math.floor(w * keep) for w in share]
    # They differ by the epsilon where attention is equal.
    largest = sorted(range(chunks), key=lambda k: (-round(share[k], 6), k))
    for k in largest[: keep - sum(quota)]:
        quota[k] += 1
    quota = [min(q, m) for q, m in zip(quota, sizes, strict=True)]
    for k in largest:
        quota[k] += min(sizes[k] - quota[k], keep - sum(quota))
    return scores, [i for members, q in zip(own, quota, strict=True) for i in by_score(a, members)[:q]]


# ---------------------------------------------------------------------------------------------- worked cases
def test_case_21_scope():
    x, a = features(8, 0.0), [0.05, 0.20, 0.10, 0.02, 0.30, 0.08, 0.15, 0.10]
    tokens = il.Tokens("encoder", x[None], cls_attention=torch.tensor([a]))
    for alpha, gains in ((1.0, {4: 0.92999, 1: 0.27858, 7: 0.19653, 2: 0.06071}),
                         (0, {4: 3.09995, 3: 2.25641, 1: 1.10180, 2: 0.60708})):  # fmt: skip
        picks = scope(x.tolist(), a, 4, alpha, "multiply")
        assert [pick for pick, _ in picks] == list(gains)
        close(torch.tensor([gain for _, gain in picks]), list(gains.values()))
        out = make("scope", alpha=alpha).map(tokens, 4)
        assert out.score[0].argsort(descending=True, stable=True)[:4].tolist() == list(gains)
        assert out.anchor[0].tolist() == sorted(gains)


PRUNESID = [
    (0.4 + features(12, 0.3, 6), [0.02, 0.12, 0.05, 0.01, 0.20, 0.03, 0.10, 0.07, 0.04, 0.06, 0.22, 0.08], 8,
     [4, 7, 1, 10, 8, 6, 11]),
    (0.5 + features(24, 0.3, 32), [0.5 + 0.5 * math.sin(1.3 * i + 0.2) for i in range(24)], 12,
     [1, 21, 2, 7, 6, 3, 5, 4, 11, 20, 16]),
]  # fmt: skip


@pytest.mark.parametrize(("x", "a", "total", "want"), PRUNESID)
def test_case_24_prunesid(x, a, total, want):
    assert prunesid(x.tolist(), a, total) == want
    tokens = il.Tokens("encoder", x[None], cls_attention=torch.tensor([a]))
    assert make("prunesid").map(tokens, total - 1).anchor[0].tolist() == sorted(want)


def test_case_22_holov():
    x, a = features(12, 0.0), [0.02, 0.12, 0.05, 0.01, 0.20, 0.03, 0.10, 0.07, 0.04, 0.06, 0.22, 0.08]
    scores, kept = holov(x.tolist(), a, 6, 3)
    close(torch.tensor(scores), [54.49997, 108.99997, 108.99995], 2e-5)
    tokens = il.Tokens("encoder", x[None], cls_attention=torch.tensor([a]))
    assert sorted(kept) == make("holov", chunks=3).map(tokens, 6).anchor[0].tolist() == [1, 4, 6, 7, 10, 11]


def test_case_22_holov_hands_on_what_a_full_chunk_cannot_take():
    x, a = features(12, 0.0), [0.001] * 4 + [0.30, 0.25, 0.2, 0.2] + [0.001] * 4
    tokens = il.Tokens("encoder", x[None], cls_attention=torch.tensor([a]))
    assert make("holov", chunks=3).map(tokens, 6).anchor[0].tolist() == [0, 1, 4, 5, 6, 7]
    assert holov(x.tolist(), a, 6, 3)[0] == pytest.approx([1.09, 258.87, 1.09], abs=0.01)


# ---------------------------------------------------------------------------------------------- random shapes
def equals(strategy: il.Strategy, tokens: il.Tokens, keep: int, want: list[int]) -> None:
    """These patches are kept, and CLS in front of them."""
    cls = int(tokens.has_protected)
    out = strategy.map(tokens, keep + cls)
    assert out.anchor[0].tolist() == [*range(cls), *sorted(i + cls for i in want)]
    assert torch.equal(out.apply(tokens.hidden), tokens.hidden[:, out.anchor[0]])


def draw(count: int, channels: int, seed: int, cls: bool, **more: tuple[int, ...]) -> il.Tokens:
    """Random tokens in float64, with CLS in front or not; `more` are statistics, with their shapes behind (batch, tokens)."""
    random, n = torch.Generator().manual_seed(seed), count + cls
    given = {name: torch.rand(1, n, *shape, generator=random).double() for name, shape in more.items()}
    protected, hidden = torch.arange(n)[None] < cls, torch.randn(1, n, channels, generator=random).double()
    return il.Tokens("encoder", hidden, protected=protected if cls else None, **given)


shapes = st.tuples(st.integers(2, 24), st.integers(3, 8), st.integers(0, 2**16), st.booleans())


# Without attention, two tokens that only cover each other have gains that differ by rounding.
@given(shapes, st.integers(1, 24), st.sampled_from([0.5, 1.0]), st.sampled_from(["multiply", "add"]))
@few
def test_scope_equals_its_restatement(shape, keep, alpha, combine):
    tokens, keep, cls = draw(*shape, cls_attention=()), min(keep, shape[0]), int(shape[3])
    x, a = tokens.hidden[0, cls:].tolist(), tokens.cls_attention[0, cls:].tolist()
    want = [pick for pick, _ in scope(x, a, keep, alpha, combine)]
    equals(make("scope", alpha=alpha, combine=combine), tokens, keep, want)


@given(shapes, st.integers(1, 24))
@few
def test_prunesid_equals_its_restatement(shape, keep):
    tokens, keep, cls = draw(*shape, cls_attention=()), min(keep, shape[0]), int(shape[3])
    tokens.cls_attention[0, cls::3] *= shape[2] % 2  # a patch that gets nothing is never taken
    x, a = tokens.hidden[0, cls:].tolist(), tokens.cls_attention[0, cls:].tolist()
    want = prunesid(x, a, keep + 1) if keep < shape[0] else list(range(keep))
    equals(make("prunesid"), tokens, keep, want)


@given(shapes, st.integers(1, 24), st.integers(0, 5))
@few
def test_holov_equals_its_restatement(shape, keep, chunks):
    tokens, keep, cls = draw(*shape, cls_attention=()), min(keep, shape[0]), int(shape[3])
    x, a = tokens.hidden[0, cls:].tolist(), tokens.cls_attention[0, cls:].tolist()
    cut = chunks or max(1, int(1024 / 576 * shape[0] / keep))
    if shape[0] >= 2 * cut:  # of a chunk of one token there is no variance
        equals(make("holov", chunks=chunks), tokens, keep, holov(x, a, keep, cut)[1])


# ---------------------------------------------------------------------------------------------- cost and settings
def test_prunesid_asks_an_accelerator_for_three_operations_a_patch():
    tokens = draw(36, 8, 0, True, cls_attention=())
    few_more = operations(lambda: make("prunesid").map(tokens, 13)).total() - 3 * 37
    assert 0 < few_more < 160


@pytest.mark.parametrize(
    ("name", "wrong"),
    [
        ("scope", {"alpha": -1}), ("scope", {"alpha": math.inf}), ("scope", {"combine": "max"}),
        ("scope", {"score": "text"}), ("prunesid", {"score": "lse"}), ("holov", {"chunks": -1}),
        ("holov", {"chunks": True}), ("holov", {"score": "text"}),
    ],
)  # fmt: skip
def test_settings_are_validated(name, wrong):
    with pytest.raises(il.LabError, match=f"{next(iter(wrong))} must be"):
        make(name, **wrong)
