"""The checks of chapter 06: bytes of a KV cache, divergence, a budget to choose, and the time on another GPU."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import pandas as pd
import torch
from torch import Tensor

from illava_lab.course.exercises import exercise, need, number


@exercise
def check_divergence(function: Callable[[Tensor, Tensor], float]) -> str:
    """Logits (tokens, V) of the unreduced and the reduced model -> mean KL(unreduced || reduced), in nats."""
    p, q = torch.tensor([[0.5, 0.5], [0.5, 0.5]]), torch.tensor([[0.25, 0.75], [0.5, 0.5]])
    reference, reduced = (x.double().log() + torch.tensor([[2.0], [-1.0]]) for x in (p, q))
    one = math.log(2) / 2 - math.log(1.5) / 2  # of the first token; the second has none
    other = 0.75 * math.log(1.5) - 0.25 * math.log(2)  # the same back
    got = number(function(reference, reduced))

    def near(value: float) -> bool:
        return abs(got - value) < 1e-4

    same = number(function(reference, reference))
    need(
        abs(same) < 1e-6,
        f"a model does not diverge from itself: for equal logits 0 is expected, yours gives {same:.3g}",
    )
    moved = number(function(reference + 3, reduced))
    need(
        abs(moved - got) < 1e-4,
        "adding 3 to all logits of a model changes no probability, but it changes your answer: softmax comes first",
    )
    need(
        not near(one),
        f"{one:.4f} is the sum over both tokens; the mean is asked for, so that answers of different length compare",
    )
    need(
        not near(one / 4),
        "that is also a mean over the vocabulary: sum over the words, then take the mean over the tokens",
    )
    need(
        not near(other / 2),
        "that is KL(reduced || unreduced): the *unreduced* model's probabilities weigh the logarithms",
    )
    need(not near(one / 2 / math.log(2)), "that is in bits; natural logarithms give nats")
    need(not near(-one / 2), "a divergence is never negative: is it log P - log Q?")
    need(
        near(one / 2),
        f"the first token gives {one:.4f}, the second 0, so {one / 2:.4f} is expected; yours gives {got:.4f}",
    )
    return "0 only where both models say the same, and each model's own scale of logits cancels."


@exercise
def check_cache_bytes(function: Callable[[Sequence[int], int, int, int], float]) -> str:
    """Tokens held in each LLM layer, KV heads, channels of a head, bytes of a number -> bytes of the KV cache."""
    got = number(function([10, 10, 7], 3, 8, 4))
    need(got != 2592, "each token leaves a key *and* a value: twice as much")
    need(
        got != 1296,
        "that is how many numbers there are of each kind; each takes bytes_each bytes, and there are keys and values",
    )
    need(got != 5760, "that takes the first layer's tokens for all layers; the layers hold 10, 10 and 7")
    need(
        got != 4032,
        "that takes the last layer's tokens for all layers; a token stays in the cache of each layer that it came "
        "through",
    )
    need(got != 1728, "every KV head has a key and a value of its own: times the heads")
    need(got != 8 * 5184, "that is in bits")
    need(got == 5184, f"(10 + 10 + 7) tokens x 2 x 3 heads x 8 channels x 4 bytes = 5184; yours gives {got:.6g}")
    large = number(function([640] * 32, 32, 128, 2))
    need(
        large == 335_544_320,
        f"640 tokens in 32 layers of 32 heads with 128 channels, 2 bytes each: 335,544,320; yours gives {large:,.0f}",
    )
    return "640 tokens of LLaVA-1.5-7B in float16 hold 336 MB of cache."


@exercise
def check_smallest_keep(function: Callable[[pd.DataFrame, str, float], float | None]) -> str:
    """Rows of `il.fidelity`, a strategy, a share -> the smallest keep with at least that mean agreement, or None."""
    agreement = {0.9: (1, 1, 1, 1), 0.5: (1, 1, 0.5, 1), 0.3: (1, 0.5, 0.5, 1), 0.1: (1, 0, 0, 0)}
    table = pd.DataFrame(
        [
            {"number": n, "strategy": "illava", "keep": keep, "agreement": x, "kl": 1 - x}
            for keep, row in agreement.items()
            for n, x in enumerate(row)
        ]
        + [{"number": n, "strategy": "fastv", "keep": 0.3, "agreement": 1.0, "kl": 0.0} for n in range(4)]
    )
    got = function(table, "illava", 0.8)
    need(got is not ..., "nothing is returned yet; a keep, or None, is expected")
    need(got is not None, "illava at 0.5 has a mean agreement of 0.875, which is enough for 0.8")
    need(isinstance(got, float), f"one number is expected, got {type(got).__name__}")
    need(
        got != 0.9,
        "0.9 is enough, but so is 0.5: the *smallest* keep is asked for (is it the mean over questions, not the worst "
        "of them?)",
    )
    need(got != 0.1, "at 0.1 one question of four agrees; the *mean* over the questions has to reach the share")
    need(got != 0.3, "at 0.3 illava's mean is 0.75: too little for 0.8 (fastv's rows are not illava's)")
    need(got == 0.5, f"at 0.5 the mean is 0.875, at 0.3 it is 0.75: 0.5 is expected, yours is {got!r}")
    exact = function(table, "illava", 0.75)
    need(exact == 0.3, f"at 0.3 the mean is exactly 0.75: *at least* 0.75 includes it, so 0.3; yours is {exact!r}")
    never = function(table[table["keep"] < 0.9], "illava", 0.99)
    need(never is None, f"without keep 0.9 nothing reaches 0.99, so None is expected; yours is {never!r}")
    return "a budget that your own pictures chose, and not a paper's benchmark."


@exercise
def check_on_another(function: Callable[[float, float, float], float]) -> str:
    """Milliseconds of the host, of the GPU's own work, how many times slower a GPU is -> milliseconds on that one."""
    got = number(function(60.0, 20.0, 1.0))
    need(got != 80, "host and GPU work at the same time, one ahead of the other: they do not add up")
    need(got != 20, "the GPU waits for the host, which is not ready before 60 ms")
    need(got == 60, f"the host needs 60 ms to call everything, and the GPU is done by then: 60; yours gives {got:.4g}")
    got = number(function(60.0, 20.0, 10.0))
    need(got != 600, "the *GPU* is 10 times slower, not the host")
    need(got != 6 and got != 2, "a slower GPU takes longer: its work is multiplied")
    need(got != 60, "ten times slower, the GPU's work takes 200 ms: now it is the host that waits")
    need(got == 200, f"20 ms of work, ten times slower, outlasts the host's 60: 200; yours gives {got:.4g}")
    return "whoever is slower decides; fewer tokens help only the GPU."
