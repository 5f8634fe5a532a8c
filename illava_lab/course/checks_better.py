"""The automatic checks of chapter 09: attention with sizes, what is common, and a picture on which Tally must lose."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from illava_lab.course.exercises import exercise, need, tensor
from illava_lab.method.registry import get_strategy
from illava_lab.method.tokens import Tokens

PATCHES, KEPT, FEWEST, SAME = 16, 14, 4, 0.9999
"""Of the picture that `check_crowd` asks for: its patches, what is left, things at least, and a cosine of one thing."""


@exercise
def check_weighed(function: Callable[[Tensor, Tensor], Tensor]) -> str:
    """Logits (queries, N), sizes (N,) -> shares (queries, N): a key of z tokens gets what z equal keys would."""
    logits = torch.tensor([[1.0, 0.0, 2.0], [0.5, -1.0, 0.0]])
    sizes = torch.tensor([1.0, 4.0, 2.0])
    got = tensor(function(logits.clone(), sizes.clone()), (2, 3))
    apart = torch.repeat_interleave(logits, sizes.long(), dim=1).softmax(1)
    wanted = torch.stack([part.sum(1) for part in apart.split(sizes.int().tolist(), dim=1)], dim=1).double()
    off = (got.sum(1) - 1).abs().max()
    need(
        (got.sum(0) - 1).abs().max() > 1e-4,
        "your columns sum to 1: the softmax runs over the keys, the last dimension",
    )
    need(off < 1e-5, f"each query's shares must sum to 1, yours sum to {[round(float(s), 2) for s in got.sum(1)]}")
    need(
        not torch.allclose(got, logits.softmax(1).double(), atol=1e-5),
        "that is attention without sizes: a key that stands for 4 gets no more than one that stands for 1",
    )
    need(
        not torch.allclose(got, (logits + sizes).softmax(1).double(), atol=1e-5),
        "the size itself was added: exp(x + 4) is 55 exp(x), not 4 exp(x); add its log",
    )
    need(
        not torch.allclose(got, (logits * sizes).softmax(1).double(), atol=1e-5),
        "the logits were multiplied: what counts z times is exp(logit), not the logit",
    )
    need(
        torch.allclose(got, wanted, atol=1e-5),
        f"with logits 1, 0, 2 and sizes 1, 4, 2 the shares are {_listed(wanted[0])}; yours are {_listed(got[0])}",
    )
    return "one key of size z counts as z equal keys."


@exercise
def check_distinct(function: Callable[[Tensor, Tensor], Tensor]) -> str:
    """states (B, N, C) and sizes (B, N) -> (B, N): ranks from 0, the most common token, to (N - 1) / N."""
    one = torch.tensor([[1.0, 0.1], [0.0, 9.0], [1.0, 0.0], [0.9, 0.4]])
    states, sizes = torch.stack([one, one.flip(1)]), torch.ones(2, 4)
    got = tensor(function(states.clone(), sizes.clone()), (2, 4))
    wanted = _distinct(states, sizes)
    need(
        got[0].sort().values.tolist() == [0, 0.25, 0.5, 0.75],
        f"ranks over N are asked for, 0, 0.25, 0.5 and 0.75 in some order; yours are {_listed(got[0])}",
    )
    alone = tensor(function(states[:1].clone(), sizes[:1].clone()), (1, 4))
    need(
        torch.equal(alone, got[:1]),
        "the ranks of an image change with what else is in its batch: each image has a mean of its own",
    )
    need(
        not torch.equal(got, 0.75 - wanted),
        "the other way round: 0 is the most common token, and the one that is least like the mean has the highest rank",
    )
    need(
        not torch.equal(got, _distinct(states, sizes, unit=False)),
        "token 1 is long, not common: divide each state by its length before you take the mean and the product",
    )
    need(torch.equal(got, wanted), f"the ranks are {_listed(wanted[0])}, yours are {_listed(got[0])}")
    heavy = torch.tensor([[1.0, 40.0, 1.0, 1.0], [1.0, 1.0, 1.0, 1.0]])
    need(
        torch.equal(tensor(function(states.clone(), heavy.clone()), (2, 4)), _distinct(states, heavy)),
        "when token 1 stands for 40 patches, its direction is the common one: in the mean a token counts as often as "
        "its size says",
    )
    return "what is like the mean of the picture comes first."


@exercise
def check_crowd(function: Callable[[], tuple[Tensor, Tensor]]) -> str:
    """-> states (16, C) and thing (16,), a picture whose things stay apart under ToMe and are merged away by Tally."""
    answer = function()
    need(
        answer is not None and answer is not ..., "nothing is returned yet; two tensors, states and thing, are expected"
    )
    need(
        isinstance(answer, tuple) and len(answer) == 2 and all(isinstance(part, Tensor) for part in answer),
        f"two tensors, states and thing, are expected, got {type(answer).__name__}",
    )
    states, thing = answer[0].detach().float(), answer[1]
    need(
        states.ndim == 2 and len(states) == PATCHES and thing.shape == (PATCHES,),
        f"the shapes must be (16, C) and (16,), got {tuple(states.shape)} and {tuple(thing.shape)}",
    )
    need(thing.dtype == torch.bool, f"thing must hold True and False, got {thing.dtype}")
    things, rest = int(thing.sum()), int((~thing).sum())
    need(
        things >= FEWEST and rest >= FEWEST,
        f"four things and four of background at least; yours are {things} and {rest}",
    )
    need(states.isfinite().all() and (states.norm(dim=1) > 0).all(), "a state is zero, infinite or NaN")
    unit = states / states.norm(dim=1, keepdim=True)
    alike = (unit @ unit.T).fill_diagonal_(-1)[thing][:, thing].max()
    need(
        alike < SAME, "two of your things are the same vector: what is the same may be merged; let each look different"
    )
    rank = _distinct(states[None], torch.ones(1, PATCHES))[0]
    need(
        rank[thing].mean() < rank[~thing].mean(),
        f"step 1 takes your background for the common: mean rank {float(rank[~thing].mean()):.2f}, things "
        f"{float(rank[thing].mean()):.2f}. There tally is right; what would have to be like the mean of the picture?",
    )
    left = {name: _alone(name, states, thing) for name in ("tome", "tally")}
    need(
        left["tome"] == things,
        f"ToMe, too, merges things of yours: {left['tome']} of {things} are left. It joins what is most alike, an even "
        "place with an odd one: let that be background, on places of both kinds, and more alike than any two things",
    )
    need(
        left["tally"] < things,
        f"tally leaves all {things} things apart as well: no pair of things, on an even place and an odd one, is worth "
        "more than pairs of your background (similarity minus both ranks)",
    )
    return f"of {things} things tome leaves {left['tome']} apart, tally {left['tally']}: here the common was asked for."


def _alone(name: str, states: Tensor, thing: Tensor) -> int:
    """How many things still have a token of their own after the strategy has left `KEPT` tokens."""
    tokens = Tokens("encoder", states[None], layer=0, keys=states[None], size=torch.ones(1, PATCHES), grid=(4, 4))
    members = get_strategy(name)().map(tokens, KEPT).matrix()[0] != 0
    return int(members[members.sum(1) == 1].any(0)[thing].sum())


def _distinct(states: Tensor, sizes: Tensor, unit: bool = True) -> Tensor:
    x = states / states.norm(dim=2, keepdim=True) if unit else states
    common = (x * (sizes[..., None] * x).sum(1, keepdim=True)).sum(2)
    return common.argsort(dim=1, descending=True, stable=True).argsort(dim=1).double() / states.shape[1]


def _listed(row: Tensor) -> str:
    return ", ".join(f"{float(value):.2f}" for value in row)
