"""Methods of 2025 and 2026 against the worked cases of the method notes, and against slow re-statements."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from conftest import KINDS, PATCHES, Prompt, make_inputs, shared_llava
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


def cdpruner(x: list[Vector], relevance: Vector, keep: int) -> tuple[Vector, list[tuple[int, float]]]:
    """Section 20 by determinants: q, and the picks with what each multiplies the determinant by."""
    n, least, most = len(x), min(relevance), max(relevance)
    q = [(r - least + 1e-6) / (most - least) if most > least else 1.0 for r in relevance]
    kernel = np.array([[q[i] * cosine(x[i], x[j]) * q[j] for j in range(n)] for i in range(n)])
    picks: list[tuple[int, float]] = []
    for _ in range(keep):
        own = [pick for pick, _ in picks]
        gain = {
            j: float(np.linalg.det(kernel[np.ix_([*own, j], [*own, j])]) / np.linalg.det(kernel[np.ix_(own, own)]))
            for j in range(n)
            if j not in own
        }
        if max(gain.values()) <= 1e-6:
            gain = {j: q[j] for j in gain}  # ours
        picks.append(max(gain.items(), key=lambda item: (item[1], -item[0])))
    return q, picks


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


def vscan(
    early: Vector, late: Vector, x: list[Vector], grid: tuple[int, int], keep: int, side: int
) -> dict[int, list[int]]:
    """Section 25: what is kept, each with what joins it. Windows that cannot give their share: ours."""
    n, (height, width) = len(x), grid
    down, across = max(1, height // side), max(1, width // side)
    window = [min(i // width // side, down - 1) * across + min(i % width // side, across - 1) for i in range(n)]
    local: list[int] = []
    for w in range(down * across):
        local += by_score(early, [i for i in range(n) if window[i] == w])[: keep // 2 // (down * across)]
    rest = by_score(late, [i for i in range(n) if i not in local])
    kept = sorted(local + rest[: keep - len(local)])
    joined: dict[int, list[int]] = {i: [] for i in kept}
    for j in rest[keep - len(local) :]:
        joined[max(kept, key=lambda i: (cosine(x[i], x[j]), -i))].append(j)
    return joined


# ---------------------------------------------------------------------------------------------- worked cases
@pytest.mark.parametrize(
    ("image", "q", "gains"),
    [
        (0, [0.55637, 0, 0.30944, 1.0, 0.82487, 0.85519, 0.63606, 0.10233], {3: 1.0, 4: 0.59077, 0: 0.21394}),
        (1, [0.21563, 0, 0.48992, 1.0, 0.65060, 0.60908, 0.35757, 0.04455], {3: 1.0, 4: 0.26627, 0: 0.04459, 2: 1e-4}),
    ],
)
def test_case_20_cdpruner(image, q, gains):
    """Each picture by itself."""
    x, e, t = features(8, 0.5 * image), 0.5 * image + features(8, 1.0 + 0.5 * image), features(2, 2.0)
    relevance = [-sum(cosine(own, text) for text in t.tolist()) / 2 for own in e.tolist()]
    own, picks = cdpruner(x.tolist(), relevance, len(gains))
    close(torch.tensor(own), q)
    assert [pick for pick, _ in picks] == list(gains)
    close(torch.tensor([gain for _, gain in picks]), list(gains.values()), 1e-4)
    tokens = il.Tokens("llm", x[None], joint_hidden=e[None], joint_text=t[None])
    out = make("cdpruner", relevance="clip").map(tokens, len(gains))
    assert out.score[0].argsort(descending=True, stable=True)[: len(gains)].tolist() == list(gains)


def test_case_20_cdpruner_on_a_larger_picture_and_without_a_question():
    tokens = [
        il.Tokens("llm", features(12, shift, 16)[None], joint_hidden=(shift + features(12, 1.0 + shift, 16))[None],
                  joint_text=features(2, 2.0, 16)[None])
        for shift in (0.0, 0.5)
    ]  # fmt: skip
    kept = [make("cdpruner", relevance="clip").map(own, 5).anchor[0].tolist() for own in tokens]
    assert kept == [[2, 3, 5, 10, 11], [2, 3, 4, 5, 11]]
    out = make("cdpruner", relevance="none").map(il.Tokens("llm", features(8, 0.0)[None]), 4)
    assert out.score[0].argsort(descending=True, stable=True)[:4].tolist() == [3, 0, 1, 6]


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


FLOW = dict(
    cls_attention=torch.tensor([[0.05, 0.20, 0.10, 0.02, 0.30, 0.08, 0.15, 0.02]], dtype=torch.float64),
    cls_value_attention=torch.tensor([[0.1, 0.1, 0.1, 0.2, 0.1, 0.1, 0.1, 0.1]], dtype=torch.float64),
    values=features(8, 0.0)[None],
)


def test_case_23_flowcut():
    tokens, strategy = il.Tokens("encoder", features(8, 0.0)[None], **FLOW), make("flowcut", entropy=0.85178)
    flow = strategy.note(tokens, None)
    close(flow[0], [0.35955, 0.85214, 0.56634, 0.76992, 0.39241, 0.78549, 0.44711, 0.33180])
    close(strategy.note(tokens, 3 * flow), 2 * flow)
    assert strategy.map(il.Tokens("encoder", features(8, 0.0)[None], noted=flow), 7).anchor[0].tolist() == list(
        range(7)
    )
    assert strategy.counts("encoder", 2, 8, 4) == [7, 4]


def test_flowcut_takes_most_in_its_last_cut():
    strategy = make("flowcut")
    assert strategy.layers("encoder", 23) == list(range(1, 22, 2))
    assert strategy.counts("encoder", 11, 576, 64) == [554, 532, 510, 487, 464, 440, 415, 388, 357, 318, 64]
    counts = strategy.counts("encoder", 11, 576, 192)
    assert [counts[0], *counts[-2:]] == [560, 383, 192]
    assert make("flowcut", entropy=0.8).counts("encoder", 11, 576, 64)[::9] == [535, 191]
    assert [strategy.layers("encoder", depth) for depth in (1, 2, 5)] == [[0], [0], [1, 3]]


def test_case_25_vscan_keeps():
    i = torch.arange(576).double()
    early, late = (1 + torch.sin(0.37 * i + 0.0011 * i**2)) / 2, (1 + torch.cos(0.23 * i + 0.0007 * i**2)) / 2
    tokens = il.Tokens("encoder", features(576, 0.0)[None], grid=(24, 24), noted=early[None], cls_attention=late[None])
    kept = make("vscan").map(tokens, 96).anchor[0].tolist()
    assert kept[:12] == [0, 1, 4, 20, 25, 26, 34, 35, 47, 48, 61, 68] and kept[-3:] == [545, 551, 573]
    assert (len(kept), sum(kept)) == (96, 27295)
    assert {4, 20, 34, 35, 61, 73, 85, 96} <= set(kept)


def test_case_25_vscan_merges():
    x, early, late = features(6, 0.0), [1.0, 0, 0, 0, 0, 0], [0.0, 0.1, 0.2, 0.9, 0.3, 0.4]
    tokens = il.Tokens("encoder", x[None], grid=(2, 3), noted=torch.tensor([early]), cls_attention=torch.tensor([late]))
    out = make("vscan").map(tokens, 2)
    assert vscan(early, late, x.tolist(), (2, 3), 2, 6) == {0: [5, 4, 1], 3: [2]}
    close(out.apply(x[None])[0, 0], [-0.15918, 0.61745, -0.57231, 0.13116])
    close(out.apply(x[None])[0, 1], [0.70061, -0.82244, 0.57528, -0.15100])


def test_vscan_prunes_in_the_llm():
    tokens = il.Tokens("llm", features(6, 0.0)[None], next_text_attention=torch.tensor([[0.0, 3, 1, 2, 5, 4]]))
    assert make("vscan").map(tokens, 3).anchor.tolist() == [[1, 4, 5]]


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


@given(st.tuples(st.integers(2, 12), st.integers(12, 16), st.integers(0, 2**16)), st.integers(1, 12), st.integers(1, 3))
@few
def test_cdpruner_equals_its_restatement(shape, keep, words):
    count, channels, seed = shape
    tokens, keep = draw(*shape, False), min(keep, count)
    text = torch.randn(1, words, channels, generator=torch.Generator().manual_seed(seed + 1)).double()
    tokens = il.Tokens("llm", tokens.hidden, text_embeddings=text)
    x = tokens.hidden[0].tolist()
    relevance = [sum(cosine(own, word) for word in text[0].tolist()) / words for own in x]
    equals(make("cdpruner"), tokens, keep, [pick for pick, _ in cdpruner(x, relevance, keep)[1]])


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


@given(
    st.integers(1, 7), st.integers(1, 7), st.integers(0, 2**16), st.booleans(), st.integers(1, 49), st.integers(1, 4)
)
@few
def test_vscan_equals_its_restatement(height, width, seed, cls, keep, window):
    count, cls = height * width, int(cls)
    tokens, keep = draw(count, 5, seed, bool(cls), cls_attention=(), noted=()), min(keep, count)
    tokens = il.Tokens(
        "encoder", tokens.hidden, grid=(height, width), position=torch.arange(-cls, count)[None],
        protected=tokens.protected if cls else None, noted=tokens.noted, cls_attention=tokens.cls_attention,
    )  # fmt: skip
    early, late, x = (t[0, cls:].tolist() for t in (tokens.noted, tokens.cls_attention, tokens.hidden))
    want = vscan(early, late, x, (height, width), keep, window)
    matrix = torch.zeros(keep + cls, count + cls, dtype=torch.float64)
    matrix[0, 0] = cls or 1
    for slot, (anchor, joined) in enumerate(want.items()):
        matrix[slot + cls] = 0
        matrix[slot + cls, [anchor + cls, *(j + cls for j in joined)]] = 1 / (1 + len(joined))
    close(make("vscan", window=window).map(tokens, keep + cls).matrix()[0], matrix)


# ---------------------------------------------------------------------------------------------- in a model
def tower_by_hand(
    model, pixels: torch.Tensor, plan: dict[int, int]
) -> tuple[list[int], list[tuple[torch.Tensor, torch.Tensor, torch.Tensor]]]:
    """FlowCut in a CLIP tower: the patches that are left, and of each layer CLS's attention, that of its values, and the
    L1 norm of mean values, of all tokens that it saw."""
    tower, heads, left, flows = model.model.vision_tower, model.config.vision_config.num_attention_heads, None, []
    x, told = tower.pre_layrnorm(tower.embeddings(pixels[None]))[0], []
    left = list(range(len(x)))
    for index, layer in enumerate(tower.encoder.layers[:4]):
        attention, normed = layer.self_attn, layer.layer_norm1(x)
        q, k, v = (
            p(normed).view(len(x), heads, -1).transpose(0, 1)
            for p in (attention.q_proj, attention.k_proj, attention.v_proj)
        )
        weights = (q @ k.mT / k.shape[-1] ** 0.5).softmax(-1)
        x = x + attention.out_proj((weights @ v).transpose(0, 1).flatten(1))
        told.append((weights[:, 0].mean(0), (v[:, :1] @ v.mT).softmax(-1).mean(0)[0], v.mean(0).abs().sum(1)))
        c, s, size = told[-1]
        flow = (c / c[1:].sum() + s / s[1:].sum()) * size
        flows = flow if index == 0 else (flows + flow) / 2
        if index in plan:
            kept = [0, *sorted(by_score(flows.tolist(), range(1, len(x)))[: plan[index]])]
            x, flows, left = x[kept], flows[kept], [left[i] for i in kept]
        x = x + layer.mlp(layer.layer_norm2(x))
    return [place - 1 for place in left[1:]], told


def left_in_the_tower(trace: il.Trace, image: int) -> list[int]:
    return sorted(trace.places(image, 99)[0].tolist())


@torch.no_grad()
def test_flowcut_in_a_tower_equals_it_by_hand():
    """Its notes travel with the patches that are left, also through layers that only look."""
    model, inputs = shared_llava("clip-llama"), make_inputs([Prompt(seed=3), Prompt(text_after=2, seed=4)])
    with il.attach(model, "flowcut", il.Schedule({1: 22, 3: 9})) as trace:
        model(**inputs)
    for image in range(2):
        left, told = tower_by_hand(model, inputs["pixel_values"][image], {1: 22, 3: 9})
        assert [len(c) for c, _, _ in told] == [37, 37, 23, 23]
        assert left_in_the_tower(trace, image) == left


@torch.no_grad()
def test_flowcut_lets_the_picture_decide_as_its_code_does():
    """The number that goes follows from the entropy of each picture, and what a batch keeps is what each keeps alone."""
    model, inputs = shared_llava("clip-llama"), make_inputs([Prompt(seed=3), Prompt(text_after=2, seed=4)])
    strategy = make("flowcut", decides="image")
    counts = []
    with il.attach(model, strategy, il.Schedule({1: 22, 3: 9})) as trace:
        model(**inputs)
    for image in range(2):
        pixels = inputs["pixel_values"][image]
        c = tower_by_hand(model, pixels, {})[1][1][0][1:]
        share = c / c.sum()
        entropy = float(-(share * share.log()).sum()) / math.log(36)
        first = max(9, 36 - round((36 - 9) / math.sqrt(2) * (1 - entropy**2)))
        assert [step.after for step in trace.steps if image in step.rows] == [first, 9]
        assert left_in_the_tower(trace, image) == tower_by_hand(model, pixels, {1: first, 3: 9})[0]
        counts.append(first)
    assert counts[0] != counts[1]


@torch.no_grad()
def test_vscan_reads_a_shallow_layer_at_the_last_one():
    model, inputs = shared_llava("clip-llama"), make_inputs([Prompt(seed=3)])
    strategy = make("vscan", window=3)
    assert strategy.looks(4) == [1]
    _, told = tower_by_hand(model, inputs["pixel_values"][0], {})
    early, late = told[1][0][1:].tolist(), told[3][0][1:].tolist()
    with il.attach(model, strategy, il.Schedule({3: 16})) as trace:
        model(**inputs)
    x = [[1.0]] * PATCHES  # what joins whom is not looked at here
    assert left_in_the_tower(trace, 0) == list(vscan(early, late, x, (6, 6), 16, 3))
    with pytest.raises(il.LabError, match="takes notes at encoder layer 1.*asks for encoder layer 0"):
        il.attach(model, strategy, il.Schedule({0: 16})).__enter__()


@pytest.mark.parametrize("name", ["cdpruner", "scope", "prunesid", "holov", "flowcut", "vscan"])
@torch.no_grad()
def test_in_a_model(kind, name):
    """A batch equals its prompts alone; the count is what was asked for; everything kept is the bare model."""
    model, prompts = shared_llava(kind), [Prompt(text_after=3, seed=1), Prompt(text_after=5, seed=2)]
    has_cls = kind in ("clip-llama", "next", "next-video", "internvl")
    strategy = make(name) if has_cls or name == "cdpruner" else make(name, score="received")
    schedule, inputs = il.Schedule.for_budget(strategy, model, keep=0.4), make_inputs(prompts, kind)
    bare, seen = model(**inputs).logits, inputs["attention_mask"].bool()
    whole = il.Schedule(dict.fromkeys(schedule.encoder, 1.0), dict.fromkeys(schedule.llm, 1.0))
    with il.attach(model, strategy, whole):
        torch.testing.assert_close(model(**inputs).logits[seen], bare[seen], atol=1e-5, rtol=1e-5)
    with il.attach(model, strategy, schedule) as trace:
        together = model(**inputs).logits
        assert together.isfinite().all() and not torch.allclose(together, bare, atol=1e-4)
        counts = [len(trace.sources(image).anchor) / trace.layout(image).tokens for image in range(2)]
        assert counts == pytest.approx([0.4, 0.4], abs=0.04)
        for row, prompt in enumerate(prompts):
            alone = model(**make_inputs([prompt], kind)).logits[0]
            torch.testing.assert_close(together[row, seen[row]], alone, atol=1e-4, rtol=1e-4)


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "kind" in metafunc.fixturenames:
        metafunc.parametrize("kind", KINDS)


@torch.no_grad()
def test_cdpruner_says_what_it_lacks_and_what_there_is_instead():
    model, inputs = shared_llava("clip-llama"), make_inputs([Prompt()])
    lacks = "joint_hidden needs the text tower of CLIP, which this checkpoint has not.*relevance='embeddings' is what"
    with (
        pytest.raises(il.LabError, match=lacks),
        il.attach(model, make("cdpruner", relevance="clip"), il.Schedule(llm={0: 9})),
    ):
        model(**inputs)
    with pytest.raises(il.LabError, match="needs text after the image, this prompt has none"):
        make("cdpruner").map(il.Tokens("llm", features(8, 0.0)[None], text_embeddings=torch.zeros(1, 0, 4)), 3)


# ---------------------------------------------------------------------------------------------- cost and settings
def test_prunesid_asks_an_accelerator_for_three_operations_a_patch():
    tokens = draw(36, 8, 0, True, cls_attention=())
    few_more = operations(lambda: make("prunesid").map(tokens, 13)).total() - 3 * 37
    assert 0 < few_more < 160


@pytest.mark.parametrize(
    ("name", "wrong"),
    [
        ("cdpruner", {"relevance": "text"}), ("scope", {"alpha": -1}), ("scope", {"alpha": math.inf}), ("scope", {"combine": "max"}),
        ("scope", {"score": "text"}), ("prunesid", {"score": "lse"}), ("holov", {"chunks": -1}),
        ("holov", {"chunks": True}), ("holov", {"score": "text"}), ("flowcut", {"entropy": 1.5}),
        ("flowcut", {"score": "text"}), ("vscan", {"window": 0}), ("vscan", {"score": "text"}),
    ],
)  # fmt: skip
def test_settings_are_validated(name, wrong):
    with pytest.raises(il.LabError, match=f"{next(iter(wrong))} must be"):
        make(name, **wrong)
