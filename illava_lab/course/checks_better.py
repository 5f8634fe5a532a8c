"""The automatic checks of chapter 09: attention with sizes, what is common, and a variant compared on validation."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields

import pandas as pd
import torch
from torch import Tensor

from illava_lab.course.exercises import exercise, need, tensor
from illava_lab.course.outcomes import outcome, points
from illava_lab.errors import LabError
from illava_lab.measuring.difference import difference
from illava_lab.method.registry import get_strategy
from illava_lab.method.strategy import Strategy
from illava_lab.method.tokens import Stage, Tokens
from illava_lab.testing import check_strategy

FLOPS = 0.35


@exercise
def check_weighed(function: Callable[[Tensor, Tensor], Tensor]) -> str:
    """(T, N) logits and (N,) sizes -> (T, N) shares: a key that stands for z tokens gets what z equal keys would."""
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
def check_variant(cls: type[Strategy], trial: Strategy, table: pd.DataFrame | None) -> str:
    """A subclass of Tally whose setting is Tally by default; `trial`, with another value; and a table of both."""
    tally = get_strategy("tally")
    need(isinstance(cls, type), f"a class like `class Mine(Tally)` is expected, got {cls!r}")
    need(issubclass(cls, tally) and cls is not tally, "make it a subclass of Tally: then only what you change is other")
    need(cls.name != tally.name, "it is still called 'tally': give it a name of its own")
    need(
        len(fields(cls)) > len(fields(tally)),
        'it has no setting: a setting is a line with a type, such as "weight: float = 1.0"',
    )
    need(
        _same(cls(), tally()),
        "with its default it does not do what Tally does: then a table compares two changes at once",
    )
    need(isinstance(trial, cls), f"trial must be an instance of your class, such as Mine(weight=0.5), got {trial!r}")
    need(not _same(trial, tally()), f"{trial.label} does what Tally does: is the setting used anywhere?")
    for result in check_strategy(trial, raises=False).broken:
        need(False, f"{result.promise} is broken: {result.message}")
    need(table is not None, "it keeps its promises; now compare it")
    assert table is not None
    images = table.attrs.get("answers", {}).get("images", [])
    need(
        bool(images) and all(str(image).startswith("validation") for image in images),
        "these are not the validation questions: what is chosen on the test set is no longer tested by it",
    )
    rows = {name: f"{name} FLOPs {FLOPS:g}" for name in (trial.label, tally.name)}
    try:
        found = difference(table, rows[trial.label], rows[tally.name])
    except LabError as error:
        need(False, f"the table must have rows of {trial.label} and tally at {FLOPS:g} of the FLOPs: {error}")
    return f"{trial.label} is at {points(found)} against tally: {outcome(found)}."


def _distinct(states: Tensor, sizes: Tensor, unit: bool = True) -> Tensor:
    x = states / states.norm(dim=2, keepdim=True) if unit else states
    common = (x * (sizes[..., None] * x).sum(1, keepdim=True)).sum(2)
    return common.argsort(dim=1, descending=True, stable=True).argsort(dim=1).double() / states.shape[1]


def _same(one: Strategy, other: Strategy) -> bool:
    """Whether two strategies do the same with some tokens, at the same layers, with the same switches."""
    draw = torch.Generator().manual_seed(0)

    def some(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=draw)

    states, keys, rows = some(2, 96, 8), some(2, 96, 8), some(2, 5, 96).softmax(2)
    sizes = 1 + some(2, 96).abs().round()
    every = [Tokens("encoder", states, layer=0, keys=keys, size=sizes, grid=(8, 12))]
    every.append(Tokens("llm", states, layer=1, text_rows=rows, size=sizes, grid=(8, 12)))
    maps = all(
        torch.equal(one.map(x, keep).matrix(), other.map(x, keep).matrix()) for x in every for keep in (90, 72, 56)
    )
    switches = ("proportional_attention", "proportional_in_llm", "encoder_share")
    stages: tuple[Stage, ...] = ("encoder", "llm")
    return (
        maps
        and all(getattr(one, name) == getattr(other, name) for name in switches)
        and all(one.layers(stage, depth) == other.layers(stage, depth) for stage in stages for depth in (6, 8, 24))
        and all(one.counts(stage, 3, 90, 45) == other.counts(stage, 3, 90, 45) for stage in stages)
    )


def _listed(row: Tensor) -> str:
    return ", ".join(f"{float(value):.2f}" for value in row)
