"""The automatic checks of chapter 01: cosine similarity, effective rank, where tokens are alike, sinks."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection
from typing import Any

import pandas as pd
import torch
from torch import Tensor

from illava_lab.course.exercises import exercise, need, number, tensor


@exercise
def check_similarity(function: Callable[[Tensor], Tensor]) -> str:
    """Cosine similarity: (N, C) -> (N, N)."""
    x = torch.tensor([[3.0, 4.0], [-4.0, 3.0], [6.0, 8.0], [-3.0, -4.0]])
    got = tensor(function(x), (4, 4))
    need(
        (got.diagonal() - 1).abs().max() < 1e-5,
        f"a token must be exactly like itself, so the diagonal is 1; yours starts with {got[0, 0]:.3g} "
        "(is every row divided by its own length? is it a similarity, not a distance?)",
    )
    need((got - got.T).abs().max() < 1e-5, "i is as like j as j is like i: the matrix must be symmetric")
    need(
        abs(got[0, 2] - 1) < 1e-5,
        f"a token twice as long points the same way: entry (0, 2) must be 1, got {got[0, 2]:.3g}",
    )
    need(abs(got[0, 1]) < 1e-5, f"tokens at a right angle have similarity 0: entry (0, 1) is {got[0, 1]:.3g}")
    need(abs(got[0, 3] + 1) < 1e-5, f"opposite tokens have similarity -1: entry (0, 3) is {got[0, 3]:.3g}")
    return "symmetric, 1 on the diagonal, and blind to the lengths of tokens."


@exercise
def check_effective_rank(function: Callable[[Tensor], float]) -> str:
    """Effective rank: (N, C) -> a number between 1 and min(N, C)."""
    equal = number(function(torch.eye(4)))
    need(
        abs(equal - 4) < 1e-4,
        f"four directions used equally must count as 4, got {equal:.3g} (the entropy of four equal parts is log 4: "
        "what undoes a logarithm?)",
    )
    x = torch.diag(torch.tensor([3.0, 1.0]))
    uneven, scaled = number(function(x)), number(function(5 * x))
    need(
        abs(uneven - scaled) < 1e-4,
        f"multiplying all tokens by 5 changes nothing, but yours goes from {uneven:.3g} to {scaled:.3g}",
    )
    want = math.exp(-0.75 * math.log(0.75) - 0.25 * math.log(0.25))
    need(
        uneven < 1.99,
        f"a weak direction counts less than a strong one: singular values 3 and 1 give less than 2, got {uneven:.3g}",
    )
    need(
        abs(uneven - want) < 1e-3,
        f"singular values 3 and 1 must give {want:.3f}, got {uneven:.3f} (the parts are 3/4 and 1/4: the values "
        "themselves, not their squares)",
    )
    return "equal directions count fully, weak ones a little, and no threshold was needed."


@exercise
def check_most_alike(place: Any, profile: pd.DataFrame) -> str:
    """The (stage, layer) where two visual tokens are most alike on average, in the table of `redundancy.profile`."""
    need(isinstance(place, tuple) and len(place) == 2, f'a pair such as ("encoder", 3) is expected, got {place!r}')
    table = profile.set_index(["stage", "layer"])["similarity"]
    need(place[0] in ("encoder", "llm"), f'the stage must be "encoder" or "llm", got {place[0]!r}')
    need(place in table.index, f"the {place[0]} has layers 0 to {max(table[place[0]].index)}, got {place[1]!r}")
    need(
        table[place] == table.max(),
        f"there the mean similarity is {table[place]:.2f}; "
        + ("another layer" if place[0] == table.idxmax()[0] else "the other stage") + " has more",
    )  # fmt: skip
    return f"on average two tokens have cosine {table.max():.2f} there."


@exercise
def check_steady(function: Callable[[Tensor, Tensor], Collection[int]]) -> str:
    """Tokens that get more than five times the mean attention under both of two questions."""
    first, second = torch.ones(40), torch.ones(40)
    first[3], second[3] = 20.0, 12.0  # whatever is asked: a sink
    first[5], second[7] = 16.0, 16.0  # only where the answer is
    first[9], second[9] = 4.0, 4.0  # steady, but not much
    got = function(first, second)
    need(got is not None and got is not ..., "nothing is returned yet; a set of token numbers is expected")
    got = {int(i) for i in got}
    for token, question in ((5, "first"), (7, "second")):
        need(token not in got, f"token {token} is heavy for the {question} question only: it is evidence, not a sink")
    need(9 not in got, "token 9 gets 4 times what most get, which is less than 5 times the mean")
    need(3 in got, "token 3 gets more than 5 times the mean under both questions, so it must be found")
    need(got == {3}, f"only token 3 is heavy under both questions, got {sorted(got)}")
    return "what stays heavy whatever is asked is a sink; what moves with the question is evidence."
