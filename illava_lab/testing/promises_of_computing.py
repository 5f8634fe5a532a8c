"""Promises of computing: rows of a batch are alone, types and devices stay, memory is what was declared."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from illava_lab.errors import LabError
from illava_lab.method.ask import own_counts
from illava_lab.method.modes import within
from illava_lab.method.token_map import TokenMap
from illava_lab.method.tokens import Tokens
from illava_lab.testing.cases import Case
from illava_lab.testing.faults import same
from illava_lab.testing.promise import Elsewhere, promise
from illava_lab.testing.subject import Subject, drawn, few, random_state
from illava_lab.testing.tensors import changed, tensors


# ---- batches, dtypes, side effects
@promise(few)
def batch_equals_single(subject: Subject, case: Case) -> str | None:
    """Each row of a batch gives what it gives alone."""
    out = subject.map(case)
    for row in range(case.batch):
        alone = subject.map(replace(case, batch=1), _rows_of(case.tokens(), [row]))
        if not same(alone, _rows_of_map(out, [row])):
            return f"row {row} gives another map in a batch than alone: do not mix rows (mean over dim 0, or a view)"
    return _own_counts(subject, case)


@promise(few)
def batch_permutes(subject: Subject, case: Case) -> str | None:
    """Rows in another order give their maps in that order."""
    order = [*range(1, case.batch), 0]
    if not same(subject.map(case, _rows_of(case.tokens(), order)), _rows_of_map(subject.map(case), order)):
        return "rows in another order give other maps: a row's map must not depend on its number"
    return None


def _own_counts(subject: Subject, case: Case) -> str | None:
    """What is wrong with the numbers of tokens that pictures decide on."""
    ask = partial(own_counts, subject.strategy, keep=max(1, case.keep - case.protected))
    try:
        counts = ask(case.tokens())
        alone = [ask(_rows_of(case.tokens(), [row])) for row in range(case.batch)]
    except LabError as error:
        return str(error)
    if counts is not None and [[count] for count in counts] != alone:
        return f"rows keep {counts} tokens in a batch, and alone {[own[0] for own in alone if own]}: do not mix rows"
    return None


def _rows_of(tokens: Tokens, rows: list[int]) -> Tokens:
    return changed(tokens, lambda name, x: x[rows].clone())


def _rows_of_map(out: TokenMap, rows: list[int]) -> TokenMap:
    self_weight, slot, source, weight = (
        None if x is None else x[rows] for x in (out.self_weight, out.slot, out.source, out.weight)
    )
    return TokenMap(out.anchor[rows], out.tokens, self_weight, slot, source, weight)


def _dtypes(subject: Subject) -> list[Case]:
    devices = ["cpu", "cuda"] if torch.cuda.is_available() else ["cpu"]
    dtypes = (torch.float32, torch.float16, torch.bfloat16, torch.float64)
    return [case for device in devices for dtype in dtypes for case in subject.cases(4, 9, device=device, dtype=dtype)]


@promise(_dtypes)
def dtype_and_device_kept(subject: Subject, case: Case) -> str | None:
    """What comes out has the dtype and the device of what went in."""
    tokens = case.tokens()
    out = subject.map(case, tokens, here=case.dtype in (torch.float16, torch.float64) or case.device != "cpu")
    y = out.apply(tokens.hidden)
    if y.dtype != tokens.hidden.dtype or y.device != tokens.hidden.device:
        return f"{y.dtype} on {y.device} came out: make new tensors with dtype and device of the tokens"
    return None


@promise(lambda subject: subject.cases(4, 9, batch=2, dtype=torch.bfloat16))
def bfloat16_works(subject: Subject, case: Case) -> str | None:
    """Tokens in bfloat16, which numpy does not know and where sums lose digits, are mapped like others."""
    out = subject.map(case, here=True)
    if wrong := subject.unsound(out, case):
        return wrong
    off = float((out.matrix().sum(dim=2) - 1).abs().max())
    if subject.strategy.averages and off > 0.01 and not subject.breaks("rows_sum_to_one"):
        return f"a row of weights is off 1 by {off:.2g}: compute weights in float32, TokenMap casts the result once"
    return None


@promise(lambda subject: subject.cases(4, 9, 25, batch=2))
def deterministic(subject: Subject, case: Case) -> str | None:
    """The same tokens give the same map, and global random numbers are left alone."""
    subject.map(case)
    maps = []
    for seed in (1, 2):
        with random_state(seed):
            before = drawn()
            maps.append(subject.strategy.map(case.tokens(), case.keep))
            if before != drawn():
                return "map draws from or seeds the global random numbers: use torch.Generator().manual_seed(self.seed)"
    if not same(*maps):
        return "the same tokens give another map the second time: results may depend on tokens and settings only"
    return None


@promise(lambda subject: subject.cases(4, 9, batch=2))
def inputs_unchanged(subject: Subject, case: Case) -> str | None:
    """The tokens that it is given stay as they are."""
    tokens = case.tokens()
    before = {name: (x, x.clone()) for name, x in tensors(tokens).items()}
    subject.map(case, tokens)
    after = tensors(tokens)
    for name, (given, copy) in before.items():
        if after.get(name) is not given or not torch.equal(given, copy):
            return f"map changes tokens.{name}: use operations without a trailing underscore, or clone() first"
    return None


# ---- cost
class _Largest(TorchDispatchMode):
    """Bytes of the largest tensor that is made while it is open; those of `tokens` are not counted."""

    def __init__(self, tokens: Tokens) -> None:
        super().__init__()
        self.bytes, self.own = 0, {x.untyped_storage().data_ptr() for x in tensors(tokens).values()}

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = function(*args, **(kwargs or {}))
        for x in out if isinstance(out, (tuple, list)) else [out]:
            if isinstance(x, Tensor) and x.untyped_storage().data_ptr() not in self.own:
                self.bytes = max(self.bytes, x.untyped_storage().nbytes())
        return out


@promise(lambda subject: [case for case in subject.cases(512, keeps=(0.5, 0.8)) if not case.reduced])
def memory_as_declared(subject: Subject, case: Case) -> str | None:
    """The largest tensor grows with the number of tokens as `memory` declares: linear, or quadratic."""
    small = subject.keeping(replace(case, patches=128), case.protected + (case.keep - case.protected) // 4)
    if small is None:
        raise Elsewhere("it cannot keep the same fraction of fewer tokens")
    largest = []
    for each in (small, case):
        tokens = each.tokens()
        with within(_Largest(tokens)) as mode:
            subject.map(each, tokens)
        largest.append(mode.bytes)
    power, growth = (1 if subject.strategy.memory == "linear" else 2), largest[1] / max(largest[0], 1)
    if growth > 4 ** (power + 0.5):
        much = f"grows {growth:.0f} times, to {largest[1] / 1024:.0f} KiB, for 4 times the tokens"
        if power == 1:
            return f'the largest tensor {much}: make no tokens-by-tokens matrix, or declare memory = "quadratic"'
        return f"the largest tensor {much}, more than quadratic: compare pairs of tokens at most"
    return None
