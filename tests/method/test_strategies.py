"""Each strategy against the worked cases of the method notes, and against a slow re-statement on random shapes."""

from __future__ import annotations

import math

import pytest
import torch
from helpers import reference
from helpers.tokens import close, features
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import illava_lab as il
from illava_lab.method.declared import declared
from illava_lab.method.keep import kept
from illava_lab.method.registry import KINDS


def attention(count: int, causal: bool = False, heads: int = 2) -> Tensor:
    """Row softmax of 2 sin(0.5 q + 0.8 k + 1.1 h + 0.23 q k)."""
    h = torch.arange(heads)[:, None, None].double()
    q, k = torch.arange(count)[None, :, None].double(), torch.arange(count)[None, None].double()
    logits = 2 * torch.sin(0.5 * q + 0.8 * k + 1.1 * h + 0.23 * q * k)
    if causal:
        logits = logits.masked_fill(torch.ones(count, count).triu(1).bool(), -math.inf)
    return logits.softmax(-1)


def encoder_tokens(x: Tensor, **statistics: Tensor) -> il.Tokens:
    return il.Tokens("encoder", x[None], **{name: value[None] for name, value in statistics.items()})


# ---------------------------------------------------------------------------------------------- worked cases
def test_case_a_illava_in_the_encoder():
    score = attention(12).mean((0, 1))
    close(score, [0.080217, 0.098761, 0.075229, 0.079897, 0.076406, 0.077895,
                  0.085443, 0.082793, 0.092292, 0.083132, 0.095543, 0.072393], 1e-6)  # fmt: skip
    x = features(12, 0.0)
    out = il.get_strategy("illava")(ramp="reference").map(encoder_tokens(x, attention_received=score), keep=9)
    assert out.anchor[0].tolist() == [0, 1, 3, 5, 6, 7, 8, 9, 10]
    merged = out.apply(x[None])[0]
    close(merged[3], [-0.077117, 0.158441, 0.317907, 0.294102], 1e-6)
    others = [0, 1, 2, 4, 5, 6, 7, 8]
    assert torch.equal(merged[others], x[out.anchor[0, others]]), "survivors other than the target are not touched"


@pytest.mark.parametrize(("ramp", "target"), [("reference", 3.2), ("reversed", 4.8), ("uniform", 4.0), ("size", 4.0)])
def test_case_a_by_hand(ramp, target):
    score = torch.tensor([5.0, 1, 4, 0, 7, 2, 6, 3])
    x = torch.arange(8.0)[:, None]
    out = il.get_strategy("illava")(ramp=ramp).map(encoder_tokens(x, attention_received=score), keep=5)
    close(out.apply(x[None])[0, :, 0], [0, 2, 4, 6, target])


def llm_case() -> tuple[Tensor, Tensor]:
    """(scores of the 12 image tokens at 4..15 in a prompt of 18, their states)."""
    row = attention(18, causal=True)[:, -1].mean(0)
    return row[4:16], features(18, 0.4)[4:16]


def test_case_b_illava_in_the_llm():
    score, x = llm_case()
    assert score.argsort(descending=True).tolist() == [1, 5, 9, 8, 4, 0, 2, 6, 10, 11, 7, 3]
    keep = kept(0.70, 12, "here")
    tokens = il.Tokens("llm", x[None], text_attention=score[None])
    out = il.get_strategy("illava")().map(tokens, keep)
    assert out.anchor[0].tolist() == [0, 1, 2, 4, 5, 6, 8, 9]
    close(out.apply(x[None])[0, 5], [0.182309, 0.063565, 0.785401, 0.052148], 1e-6)


def test_case_d_tome_two_steps():
    x = features(13, 0.0)
    protected = torch.zeros(1, 13, dtype=torch.bool)
    protected[0, 0] = True
    strategy = il.get_strategy("tome")()
    first = strategy.map(il.Tokens("encoder", x[None], keys=features(13, 0.2)[None], protected=protected), keep=9)
    groups = [torch.nonzero(row)[:, 0].tolist() for row in first.matrix()[0]]
    assert groups == [[0], [10], [12], [1, 8], [3], [4, 5], [2, 7], [9], [6, 11]]
    sizes = first.sizes(torch.ones(1, 13))
    assert sizes[0].tolist() == [1, 1, 1, 2, 1, 2, 2, 1, 2]

    merged = first.apply(x[None])
    tokens = il.Tokens("encoder", merged, keys=merged, size=sizes, protected=protected[:, :9])
    second = strategy.map(tokens, keep=6)
    assert second.sizes(sizes)[0].tolist() == [1, 1, 1, 4, 5, 1]
    close(second.apply(merged)[0, 4], [-0.726257, 0.369906, 0.039534, 0.303704], 1e-6)


@pytest.mark.parametrize(("keep", "want"), [(3, [1, 5, 9]), (6, [0, 1, 4, 5, 8, 9])])
def test_case_e_fastv(keep, want):
    score, x = llm_case()
    out = il.get_strategy("fastv")().map(il.Tokens("llm", x[None], text_attention=score[None]), keep)
    assert out.anchor[0].tolist() == want
    assert torch.equal(out.apply(x[None])[0], x[want])


def test_case_n_rounding():
    assert [kept(fraction, n, "") for fraction, n in ((0.9, 15), (0.7, 12), (0.7, 2333), (0.01, 10))] == [
        14,
        8,
        1633,
        1,
    ]


# ---------------------------------------------------------------------------------------------- random shapes
shapes = st.tuples(st.integers(2, 24), st.integers(3, 8), st.integers(0, 2**16), st.booleans())


def draw_tokens(shape) -> tuple[il.Tokens, int]:
    """Random tokens with sizes, in the encoder, perhaps with CLS in front; and the number protected."""
    count, channels, seed, cls = shape
    draw = torch.Generator().manual_seed(seed)
    protected = torch.zeros(1, count, dtype=torch.bool)
    protected[:, 0] = cls
    return il.Tokens(
        "encoder",
        torch.randn(1, count, channels, generator=draw),
        size=torch.randint(1, 9, (1, count), generator=draw).float(),
        keys=torch.randn(1, count, channels, generator=draw),
        attention_received=torch.rand(1, count, generator=draw),
        text_attention=torch.rand(1, count, generator=draw),
        protected=protected if cls else None,
    ), int(cls)  # fmt: skip


@given(shapes, st.integers(1, 24))
@settings(max_examples=200, deadline=None)
def test_illava_equals_its_restatement(shape, keep):
    tokens, cls = draw_tokens(shape)
    keep = max(1 + cls, min(keep, tokens.count))
    out = il.get_strategy("illava")().map(tokens, keep)
    want = reference.illava_matrix(tokens.attention_received[0].tolist(), keep, cls)
    close(out.matrix()[0], want)
    close(out.apply(tokens.hidden)[0], want.float() @ tokens.hidden[0])
    assert out.sizes(tokens.size).sum() == tokens.size.sum()


@given(shapes, st.integers(1, 24))
@settings(max_examples=200, deadline=None)
def test_fastv_equals_its_restatement(shape, keep):
    tokens, _ = draw_tokens((*shape[:3], False))
    keep = min(keep, tokens.count)
    out = il.get_strategy("fastv")().map(tokens, keep)
    close(out.matrix()[0], reference.fastv_matrix(tokens.text_attention[0].tolist(), keep))


@given(shapes, st.integers(0, 12))
@settings(max_examples=200, deadline=None)
def test_tome_equals_its_restatement(shape, merges):
    tokens, cls = draw_tokens(shape)
    merges = min(merges, (tokens.count - cls) // 2)
    out = il.get_strategy("tome")().map(tokens, tokens.count - merges)
    want = reference.tome_matrix(tokens.keys[0], tokens.size[0].tolist(), tokens.count - merges, cls)
    if merges == 0:
        want = torch.eye(tokens.count).double()
    close(out.matrix()[0], want)
    raster = il.get_strategy("tome")(order="raster").map(tokens, tokens.count - merges)
    order = out.anchor[0].argsort()
    close(raster.matrix()[0], want[order])
    assert torch.equal(raster.anchor[0], out.anchor[0, order])
    assert out.sizes(tokens.size).sum() == tokens.size.sum()


def test_tome_refuses_more_than_half():
    tokens, _ = draw_tokens((13, 4, 0, True))
    with pytest.raises(il.LabError, match="at most 6 of 13"):
        il.get_strategy("tome")().map(tokens, keep=6)


def test_random_is_seeded_and_the_same_for_every_sample():
    tokens = il.Tokens("encoder", torch.randn(3, 40, 2))
    make = il.get_strategy("random")
    first, again, other = (make(seed=s).map(tokens, 10).anchor for s in (0, 0, 1))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert (first == first[:1]).all()


@pytest.mark.parametrize(
    ("name", "settings"), [("illava", {"ramp": "upwards"}), ("tome", {"order": "none"}), ("random", {"seed": -1})]
)
def test_settings_are_validated(name, settings):
    (setting,) = settings
    with pytest.raises(il.LabError, match=f"{setting} must be"):
        il.get_strategy(name)(**settings)


def test_the_repr_is_the_configuration():
    ILLaVA = il.get_strategy("illava")
    assert eval(repr(ILLaVA(ramp="size"))) == ILLaVA(ramp="size")


def test_every_published_method_is_there_with_its_paper_stages_and_kind():
    # Other tests register theirs.
    known = {name: cls for name, cls in il.strategies().items() if cls.__module__.startswith("illava_lab.strategies.")}
    assert len(known) >= 17
    for name, cls in known.items():
        assert declared(cls, "kind") in KINDS and (declared(cls, "stages") or name == "none")
        assert declared(cls, "paper") or name in ("none", "random", "stride", "pool", "downsample", "tally")
