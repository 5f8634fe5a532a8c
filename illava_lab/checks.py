"""The automatic checks of the notebooks' exercises. Each returns a sentence: "Right: ..." or "Not yet: ..." and why."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Collection
from typing import Any

import pandas as pd
import torch
from torch import Tensor


class _NotYet(Exception):
    """Carries what is wrong with an answer."""


def _exercise(check: Callable[..., str]) -> Callable[..., str]:
    """Turn what goes wrong, in the check or in the reader's code, into a sentence."""

    @functools.wraps(check)
    def run(*args: Any) -> str:
        try:
            return f"Right: {check(*args)}"
        except _NotYet as fault:
            return f"Not yet: {fault}"
        except Exception as error:  # the reader's code may fail in any way
            return f"Not yet: your code stopped with {type(error).__name__}: {error}"

    return run


def _need(condition: bool | Tensor, fault: str) -> None:
    if not bool(condition):
        raise _NotYet(fault)


def _tensor(value: Any, shape: tuple[int, ...]) -> Tensor:
    _need(value is not None and value is not ..., f"nothing is returned yet; a tensor of shape {shape} is expected")
    _need(isinstance(value, Tensor), f"a tensor of shape {shape} is expected, got {type(value).__name__}")
    _need(tuple(value.shape) == shape, f"the shape must be {shape}, got {tuple(value.shape)}")
    return value.double()


def _number(value: Any) -> float:
    _need(value is not None and value is not ..., "nothing is returned yet; a number is expected")
    if isinstance(value, Tensor):
        _need(value.numel() == 1, f"one number is expected, got a tensor of shape {tuple(value.shape)}")
    return float(value)


# ---------------------------------------------------------------------------------------------- 01: redundancy
@_exercise
def check_similarity(function: Callable[[Tensor], Tensor]) -> str:
    """Cosine similarity: (N, C) -> (N, N)."""
    x = torch.tensor([[3.0, 4.0], [-4.0, 3.0], [6.0, 8.0], [-3.0, -4.0]])
    got = _tensor(function(x), (4, 4))
    _need(
        (got.diagonal() - 1).abs().max() < 1e-5,
        f"a token must be exactly like itself, so the diagonal is 1; yours starts with {got[0, 0]:.3g} "
        "(is every row divided by its own length? is it a similarity, not a distance?)",
    )
    _need((got - got.T).abs().max() < 1e-5, "i is as like j as j is like i: the matrix must be symmetric")
    _need(abs(got[0, 2] - 1) < 1e-5, f"a token twice as long points the same way: entry (0, 2) must be 1, got {got[0, 2]:.3g}")
    _need(abs(got[0, 1]) < 1e-5, f"tokens at a right angle have similarity 0: entry (0, 1) is {got[0, 1]:.3g}")
    _need(abs(got[0, 3] + 1) < 1e-5, f"opposite tokens have similarity -1: entry (0, 3) is {got[0, 3]:.3g}")
    return "symmetric, 1 on the diagonal, and blind to the lengths of tokens."


@_exercise
def check_effective_rank(function: Callable[[Tensor], float]) -> str:
    """Effective rank: (N, C) -> a number between 1 and min(N, C)."""
    equal = _number(function(torch.eye(4)))
    _need(
        abs(equal - 4) < 1e-4,
        f"four directions used equally must count as 4, got {equal:.3g} (the entropy of four equal parts is log 4: what undoes a logarithm?)",
    )
    x = torch.diag(torch.tensor([3.0, 1.0]))
    uneven, scaled = _number(function(x)), _number(function(5 * x))
    _need(abs(uneven - scaled) < 1e-4, f"multiplying all tokens by 5 changes nothing, but yours goes from {uneven:.3g} to {scaled:.3g}")
    want = math.exp(-0.75 * math.log(0.75) - 0.25 * math.log(0.25))
    _need(uneven < 1.99, f"a weak direction counts less than a strong one: singular values 3 and 1 give less than 2, got {uneven:.3g}")
    _need(
        abs(uneven - want) < 1e-3,
        f"singular values 3 and 1 must give {want:.3f}, got {uneven:.3f} (the parts are 3/4 and 1/4: the values themselves, not their squares)",
    )
    return "equal directions count fully, weak ones a little, and no threshold was needed."


@_exercise
def check_most_alike(place: Any, profile: pd.DataFrame) -> str:
    """The (stage, layer) where two visual tokens are most alike on average, in the table of `redundancy.profile`."""
    _need(isinstance(place, tuple) and len(place) == 2, f'a pair such as ("encoder", 3) is expected, got {place!r}')
    table = profile.set_index(["stage", "layer"])["similarity"]
    _need(place[0] in ("encoder", "llm"), f'the stage must be "encoder" or "llm", got {place[0]!r}')
    _need(place in table.index, f"the {place[0]} has layers 0 to {max(table[place[0]].index)}, got {place[1]!r}")
    _need(
        table[place] == table.max(),
        f"there the mean similarity is {table[place]:.2f}; "
        + ("another layer" if place[0] == table.idxmax()[0] else "the other stage") + " has more",
    )  # fmt: skip
    return f"on average two tokens have cosine {table.max():.2f} there."


@_exercise
def check_steady(function: Callable[[Tensor, Tensor], Collection[int]]) -> str:
    """Tokens that get more than five times the mean attention under both of two questions."""
    first, second = torch.ones(40), torch.ones(40)
    first[3], second[3] = 20.0, 12.0  # whatever is asked: a sink
    first[5], second[7] = 16.0, 16.0  # only where the answer is
    first[9], second[9] = 4.0, 4.0  # steady, but not much
    got = function(first, second)
    _need(got is not None and got is not ..., "nothing is returned yet; a set of token numbers is expected")
    got = {int(i) for i in got}
    for number, question in ((5, "first"), (7, "second")):
        _need(number not in got, f"token {number} is heavy for the {question} question only: it is evidence, not a sink")
    _need(9 not in got, "token 9 gets 4 times what most get, which is less than 5 times the mean")
    _need(3 in got, "token 3 gets more than 5 times the mean under both questions, so it must be found")
    _need(got == {3}, f"only token 3 is heavy under both questions, got {sorted(got)}")
    return "what stays heavy whatever is asked is a sink; what moves with the question is evidence."


# ---------------------------------------------------------------------------------------------- 02: merging
@_exercise
def check_recycle(function: Callable[[Tensor, int], Any]) -> str:
    """iLLaVA's choice: scores (N,), keep -> kept tokens, the one that takes in the rest, the rest."""
    score = torch.tensor([0.30, 0.05, 0.20, 0.10, 0.25, 0.02, 0.08])
    answer = function(score, 4)
    _need(answer is not None and answer is not ..., "nothing is returned yet; kept, target, merged are expected")
    _need(isinstance(answer, tuple) and len(answer) == 3, f"three things are expected (kept, target, merged), got {answer!r}")
    kept, merged = ([int(i) for i in part] for part in (answer[0], answer[2]))
    target = int(answer[1])
    _need(len(kept) == 4, f"keep=4 must leave 4 tokens, yours leaves {len(kept)}")
    _need(not set(kept) & set(merged), f"token {min(set(kept) & set(merged) or {0})} is both kept and merged away")
    _need(len(kept) + len(merged) == 7, f"7 tokens came in: 4 are kept, so 3 are merged, yours merges {len(merged)}")
    _need(set(kept) == {0, 2, 3, 4}, f"the highest scores are kept, which are those of tokens 0, 2, 3 and 4; yours keeps {sorted(kept)}")
    _need(kept == sorted(kept), f"survivors stay in the order of their places, so 0, 2, 3, 4; yours come as {kept}")
    _need(target in kept, f"the target must be one of the survivors, token {target} is not")
    _need(target == 3, f"the target is the survivor with the lowest score, token 3 with 0.10; yours is token {target}")
    return "the last survivor takes in everything that scored below it."


@_exercise
def check_ramp(function: Callable[[int, bool], Tensor]) -> str:
    """iLLaVA's weights of R + 1 tokens, from the target (highest score) down to the lowest score."""
    got = _tensor(function(3, False), (4,))
    _need(abs(got.sum() - 1) < 1e-6, f"the weights of an average sum to 1, yours sum to {got.sum():.3g}")
    _need((got > 0).all(), "every token takes part, also the target: no weight may be 0 or less")
    _need(got.max() - got.min() > 1e-6, "all weights are the same: that is the plain mean, not a ramp")
    _need(got[0] < got[-1], "the published code gives the *least* attended token the largest weight; yours gives it to the target")
    steps = got.diff()
    _need((steps - steps[0]).abs().max() < 1e-6, "a ramp rises by equal steps")
    _need(abs(got[0] - 0.1) < 1e-6, f"for R=3 the weights are 1, 2, 3, 4 tenths; yours start with {got[0]:.3g}")
    turned = _tensor(function(3, True), (4,))
    _need((turned - got.flip(0)).abs().max() < 1e-6, "reverse=True must give the same weights in the opposite order")
    return "1, 2, ..., R+1, divided by (R+1)(R+2)/2."


@_exercise
def check_pairs(function: Callable[[Tensor, int], Any]) -> str:
    """ToMe's matching: keys (N, d), r -> the r most similar pairs (even token, odd token)."""
    keys = torch.tensor([[1.0, 0.0], [0.9, 0.1], [0.0, 1.0], [0.6, 0.8], [-1.0, 0.2], [9.0, -9.0], [-1.0, 0.0], [-2.0, 0.1]])
    answer = function(keys, 2)
    _need(answer is not None and answer is not ..., "nothing is returned yet; a list of pairs (a, b) is expected")
    pairs = [(int(a), int(b)) for a, b in answer]
    _need(len(pairs) == 2, f"r=2 asks for 2 pairs, got {len(pairs)}")
    for a, b in pairs:
        _need(a != b, f"token {a} is paired with itself: compare tokens with even numbers to tokens with odd numbers")
        _need(a % 2 == 0 and b % 2 == 1, f"the pair {(a, b)} must join an even token (first) to an odd one (second)")
    _need(
        all(b != 5 for _, b in pairs),
        "token 5 is long, not similar: use the cosine, which does not depend on length",
    )
    _need(set(pairs) == {(0, 1), (6, 7)}, f"the two most similar pairs are (0, 1) and (6, 7), yours are {sorted(pairs)}")
    return "each even token looks for its best odd one, and the r best pairs merge."


@_exercise
def check_provenance(function: Callable[[Tensor, Tensor], Tensor]) -> str:
    """Weights of the patches after two reductions: (M1, N) and (M2, M1) -> (M2, N)."""
    first = torch.tensor([[1.0, 0.0, 0.0, 0.0], [0.0, 0.5, 0.5, 0.0], [0.0, 0.0, 0.0, 1.0]])
    second = torch.tensor([[0.25, 0.75, 0.0], [0.0, 0.0, 1.0]])
    got = _tensor(function(first, second), (2, 4))
    _need((got.sum(1) - 1).abs().max() < 1e-6, f"each row must sum to 1, yours sum to {[round(float(s), 3) for s in got.sum(1)]}")
    _need(
        (got[0] - torch.tensor([0.25, 0.375, 0.375, 0.0])).abs().max() < 1e-6,
        f"patch 1 has half of the middle token, which has 0.75 of the first survivor: 0.375; yours has {got[0, 1]:.3g}",
    )
    _need((got[1] - torch.tensor([0.0, 0.0, 0.0, 1.0])).abs().max() < 1e-6, "patch 3 was never merged: it must have weight 1 in the last survivor")
    return "maps compose like matrices: the later one stands on the left."
