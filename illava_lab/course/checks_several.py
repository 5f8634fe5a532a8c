"""The automatic checks of chapter 08: what changes in a film, every second frame, one budget for several pictures."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from illava_lab.course.exercises import exercise, need, tensor
from illava_lab.method.strategy import Strategy
from illava_lab.method.tokens import Tokens

FRAMES, EACH = 4, 3  # of the film of `check_every_second`


@exercise
def check_changes(function: Callable[[Tensor], Any]) -> str:
    """(F, P, C) tokens of F frames -> (F - 1, P) one minus the cosine to the same place one frame before."""
    x = torch.tensor([[[1.0, 0.0], [0.0, 2.0]], [[3.0, 0.0], [2.0, 0.0]], [[0.0, 1.0], [2.0, 0.0]]])
    got = tensor(function(x), (2, 2))
    need(
        not torch.allclose(got, torch.tensor([[1.0, 0.0], [0.0, 1.0]]).double(), atol=1e-5),
        "that is the cosine: what stands still must have 0, and what changes more",
    )
    need(
        abs(float(got[0, 0])) < 1e-5,
        "place 0 has the same direction in frames 0 and 1, only longer: its change is 0; divide by both lengths",
    )
    need(
        not torch.allclose(got, torch.tensor([[0.0, 1.0], [1.0, 1.0]]).double(), atol=1e-5),
        "each frame is compared with the one before it, not with the first",
    )
    need(
        torch.allclose(got, torch.tensor([[0.0, 1.0], [1.0, 0.0]]).double(), atol=1e-5),
        f"the changes of this film are 0, 1 and 1, 0; yours are {[round(float(value), 2) for value in got.flatten()]}",
    )
    return "what stands still has 0, however bright; these are the scores of EVS."


@exercise
def check_every_second(strategy: type[Strategy]) -> str:
    """A Scorer that keeps the tokens of frames 0, 2, 4 ... before any other, for films of any length."""
    need(isinstance(strategy, type) and issubclass(strategy, Strategy), f"a class is expected, got {strategy!r:.60}")
    for frames, each in ((FRAMES, EACH), (6, 2)):
        torch.manual_seed(0)
        count = frames * each
        film = Tokens("llm", torch.randn(1, count, 8), layer=0, frames=(frames, each))
        score = strategy().score(film)  # type: ignore[attr-defined]
        need(score is not None and score is not ..., "nothing is returned yet; a score for each token is expected")
        need(
            isinstance(score, Tensor) and tuple(score.shape) == (1, count),
            f"score must return one number for each token, shape (1, {count}), got {getattr(score, 'shape', score)}",
        )
        kept = strategy().map(film, count // 2).anchor[0].sort().values.tolist()
        wanted = [f * each + p for f in range(0, frames, 2) for p in range(each)]
        odd = [f * each + p for f in range(1, frames, 2) for p in range(each)]
        need(kept != odd, "these are the frames 1, 3, ...; the highest scores are kept, and frame 0 should stay")
        need(
            kept != list(range(0, count, 2)),
            "this keeps every second *token*; `frame_of(tokens)` says in which frame each token is",
        )
        need(
            kept == wanted,
            f"of {frames} frames with {each} tokens each, half of the tokens must be {wanted}; yours are {kept}",
        )
    return "every second frame stays whole; what happens between two of them is gone."


@exercise
def check_share_out(function: Callable[[Tensor, int], Any]) -> str:
    """(I, N) scores of I pictures and a total -> (I,) how many tokens each keeps if all are ranked in one list."""
    scores = torch.tensor([[9.0, 8.0, 7.0, 1.0], [6.0, 2.0, 0.5, 0.4], [0.3, 0.2, 0.1, 0.0]])
    got = tensor(function(scores, 6), (3,))
    need(
        got.tolist() != [2, 2, 2],
        "that is an equal share for each picture; the 6 highest scores of all may lie where they like",
    )
    need(got.tolist() != [1, 2, 4], "keep the highest scores, not the lowest")
    need(
        got.tolist() != [4, 2, 0],
        "every picture keeps one token at least; the last one has none",
    )
    need(
        got.tolist() == [4, 2, 1],
        f"the 6 highest lie in pictures 0, 0, 0, 0, 1, 1, and picture 2 keeps one: 4, 2, 1; yours {got.tolist()}",
    )
    equal = tensor(function(torch.tensor([[1.0, 2.0], [4.0, 3.0]]), 2), (2,))
    need(
        equal.tolist() == [1, 2],
        f"of scores 1, 2 and 4, 3 the two highest are in picture 1: 1, 2; yours {equal.tolist()}",
    )
    return "a picture that is looked at keeps more; one that is not may be left with a single token."
