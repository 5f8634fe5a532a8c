"""The checks of chapter 02: iLLaVA's choice and its ramp, ToMe's pairs, provenance over two steps, dropping instead."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from illava_lab.course.exercises import exercise, need, tensor
from illava_lab.method.registry import get_strategy
from illava_lab.method.strategy import Strategy
from illava_lab.method.tokens import Tokens
from illava_lab.testing import check_strategy


@exercise
def check_recycle(function: Callable[[Tensor, int], Any]) -> str:
    """iLLaVA's choice: scores (N,), keep -> kept tokens, the one that takes in the rest, the rest."""
    score = torch.tensor([0.30, 0.05, 0.20, 0.10, 0.25, 0.02, 0.08])
    answer = function(score, 4)
    need(answer is not None and answer is not ..., "nothing is returned yet; kept, target, merged are expected")
    need(
        isinstance(answer, tuple) and len(answer) == 3,
        f"three things are expected (kept, target, merged), got {answer!r}",
    )
    kept, merged = ([int(i) for i in part] for part in (answer[0], answer[2]))
    target = int(answer[1])
    need(len(kept) == 4, f"keep=4 must leave 4 tokens, yours leaves {len(kept)}")
    need(not set(kept) & set(merged), f"token {min(set(kept) & set(merged) or {0})} is both kept and merged away")
    need(len(kept) + len(merged) == 7, f"7 tokens came in: 4 are kept, so 3 are merged, yours merges {len(merged)}")
    need(
        set(kept) == {0, 2, 3, 4},
        f"the highest scores are kept, which are those of tokens 0, 2, 3 and 4; yours keeps {sorted(kept)}",
    )
    need(kept == sorted(kept), f"survivors stay in the order of their places, so 0, 2, 3, 4; yours come as {kept}")
    need(target in kept, f"the target must be one of the survivors, token {target} is not")
    need(target == 3, f"the target is the survivor with the lowest score, token 3 with 0.10; yours is token {target}")
    return "the last survivor takes in everything that scored below it."


@exercise
def check_ramp(function: Callable[[int, bool], Tensor]) -> str:
    """iLLaVA's weights of R + 1 tokens, from the target (highest score) down to the lowest score."""
    got = tensor(function(3, False), (4,))
    need(abs(got.sum() - 1) < 1e-6, f"the weights of an average sum to 1, yours sum to {got.sum():.3g}")
    need((got > 0).all(), "every token takes part, also the target: no weight may be 0 or less")
    need(got.max() - got.min() > 1e-6, "all weights are the same: that is the plain mean, not a ramp")
    need(
        got[0] < got[-1],
        "the published code gives the *least* attended token the largest weight; yours gives it to the target",
    )
    steps = got.diff()
    need((steps - steps[0]).abs().max() < 1e-6, "a ramp rises by equal steps")
    need(abs(got[0] - 0.1) < 1e-6, f"for R=3 the weights are 1, 2, 3, 4 tenths; yours start with {got[0]:.3g}")
    turned = tensor(function(3, True), (4,))
    need((turned - got.flip(0)).abs().max() < 1e-6, "reverse=True must give the same weights in the opposite order")
    return "1, 2, ..., R+1, divided by (R+1)(R+2)/2."


@exercise
def check_pairs(function: Callable[[Tensor, int], Any]) -> str:
    """ToMe's matching: keys (N, d), R -> the R most similar pairs (even token, odd token)."""
    keys = torch.tensor(
        [[1.0, 0.0], [0.9, 0.1], [0.0, 1.0], [0.6, 0.8], [-1.0, 0.2], [9.0, -9.0], [-1.0, 0.0], [-2.0, 0.1]]
    )
    answer = function(keys, 2)
    need(answer is not None and answer is not ..., "nothing is returned yet; a list of pairs (a, b) is expected")
    pairs = [(int(a), int(b)) for a, b in answer]
    need(len(pairs) == 2, f"R = 2 asks for 2 pairs, got {len(pairs)}")
    for a, b in pairs:
        need(a != b, f"token {a} is paired with itself: compare tokens with even numbers to tokens with odd numbers")
        need(a % 2 == 0 and b % 2 == 1, f"the pair {(a, b)} must join an even token (first) to an odd one (second)")
    need(
        all(b != 5 for _, b in pairs),
        "token 5 is long, not similar: use the cosine, which does not depend on length",
    )
    need(set(pairs) == {(0, 1), (6, 7)}, f"the two most similar pairs are (0, 1) and (6, 7), yours are {sorted(pairs)}")
    return "each even token looks for its best odd one, and the R best pairs merge."


@exercise
def check_provenance(function: Callable[[Tensor, Tensor], Tensor]) -> str:
    """Weights of the patches after two reductions: (M1, N) and (M2, M1) -> (M2, N)."""
    first = torch.tensor([[1.0, 0.0, 0.0, 0.0], [0.0, 0.5, 0.5, 0.0], [0.0, 0.0, 0.0, 1.0]])
    second = torch.tensor([[0.25, 0.75, 0.0], [0.0, 0.0, 1.0]])
    got = tensor(function(first, second), (2, 4))
    need(
        (got.sum(1) - 1).abs().max() < 1e-6,
        f"each row must sum to 1, yours sum to {[round(float(s), 3) for s in got.sum(1)]}",
    )
    need(
        (got[0] - torch.tensor([0.25, 0.375, 0.375, 0.0])).abs().max() < 1e-6,
        f"patch 1 has half of the middle token, which has 0.75 of the first survivor: 0.375; yours has {got[0, 1]:.3g}",
    )
    need(
        (got[1] - torch.tensor([0.0, 0.0, 0.0, 1.0])).abs().max() < 1e-6,
        "patch 3 was never merged: it must have weight 1 in the last survivor",
    )
    return "maps compose like matrices: the later one stands on the left."


@exercise
def check_dropped(strategies: Mapping[str, type[Strategy]]) -> str:
    """A registered strategy "dropped": the survivors of iLLaVA, without what it merges into them."""
    need("dropped" in strategies, 'no strategy named "dropped" is registered yet; @il.register goes above the class')
    strategy, draw = strategies["dropped"](), torch.Generator().manual_seed(0)
    score = torch.rand(2, 12, generator=draw)
    tokens = Tokens("encoder", torch.randn(2, 12, 4, generator=draw), attention_received=score, text_attention=score)
    got, right = strategy.map(tokens, 5), get_strategy("illava")().map(tokens, 5)
    need(
        got.slots == 5,
        f"keep=5 must leave 5 tokens, yours leaves {got.slots}: the target stays too, only nothing is poured into it",
    )
    need(
        torch.equal(got.anchor, right.anchor),
        f"iLLaVA keeps tokens {right.anchor[0].tolist()} of the first image, yours keeps {got.anchor[0].tolist()}",
    )
    heaviest = int((got.matrix() != 0).sum(2).max())
    need(
        heaviest == 1,
        f"a survivor is still made of {heaviest} tokens: nothing may be merged, each is its own token alone",
    )
    need(
        (got.matrix().amax(2) == 1).all(),
        "a survivor must be copied with weight 1; yours keeps the target's share of the ramp",
    )
    for fault in check_strategy(strategy, raises=False).broken:
        need(False, f"the promise {fault.promise} is broken: {fault.message}")
    return "the same survivors, and what iLLaVA would merge is gone. It keeps every promise."
