"""The logits of one attention: queries, keys, and which key a query sees."""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from illava_lab.errors import LabError

CPU_KEYS = 2**21  # so many float32 numbers and more are slow to write, as they fit into no cache


class Block(NamedTuple):
    """A part of an attention: some prompts, some heads (all that share their keys, or none), some rows of queries."""

    prompts: slice
    heads: slice
    rows: slice


class Spans(NamedTuple):
    """For each token the sequence it is in, where several lie one after another: (S,) int32 its begin and its end."""

    first: Tensor
    last: Tensor


@dataclass(eq=False)
class Scores:
    """What the softmax of an attention is taken of. All T queries are the tokens of the S keys (T == S).

    Attributes:
        query: (P, H, T, d), key: (P, Hkv, S, d) with H a multiple of Hkv.
        scaling: the factor on the logits.
        mask: None, (P, S) which keys are seen, or (P or 1, H or 1, T or 1, at least S) boolean or additive. Where an
            additive mask is at its lowest, -inf or the least number of its dtype, the key is hidden.
        valid: (P, S) bool or None. A token where it is False sees nothing and is seen by nobody.
        causal: whether later keys are hidden; only where `mask` does not say what each query sees.
        spans: the sequences of a packed prompt (P == 1), of which each attends within itself; or None.

    Raises:
        LabError: the mask is no tensor, or has not two or four dimensions.
    """

    query: Tensor
    key: Tensor
    scaling: float
    mask: Tensor | None = None
    valid: Tensor | None = None
    causal: bool = False
    spans: Spans | None = None

    def __post_init__(self) -> None:
        self.valid = None if self.valid is None else self.valid.bool()
        if self.mask is None:
            return
        if not isinstance(self.mask, Tensor):
            raise LabError(f"mask must be a tensor or None, not {type(self.mask).__name__}")
        if self.mask.dim() not in (2, 4):
            raise LabError(f"mask must have 2 or 4 dimensions, not the shape {tuple(self.mask.shape)}")
        if self.mask.dim() == 2:
            self.mask = self.mask.bool()[:, None, None]
        else:
            self.causal = False
        if self.mask.shape[3] > self.key.shape[2]:  # that of a cache with room for more
            self.mask = self.mask[..., : self.key.shape[2]]

    @property
    def shared(self) -> int:
        """How many heads share their keys."""
        return self.query.shape[1] // self.key.shape[1]

    @property
    def only_causal(self) -> bool:
        """Whether nothing but order hides keys."""
        return self.causal and self.mask is None and self.valid is None and self.spans is None

    def logits(self, at: Block) -> tuple[Tensor, Tensor | None]:
        """(p, h, t, S) float32 logits of a block, -inf where a key is hidden; and where that is.

        The second is bool and broadcasts to the logits; None where every query sees every key.
        """
        groups = slice(at.heads.start // self.shared, at.heads.stop // self.shared)
        logits = products(cut(self.query, *at), cut(self.key, at.prompts, groups), self.scaling)
        mask = None if self.mask is None else cut(self.mask, *at)
        return _masked(logits, mask, self._hidden(at.prompts, at.rows))

    def _hidden(self, prompts: slice, rows: slice) -> Tensor | None:
        """(p or 1, 1, t, S) bool, what validity, order and sequences hide from some rows; None for nothing."""
        count, length = rows.stop - rows.start, self.key.shape[2]
        hidden = None
        if self.valid is not None:
            seen, sees = cut(self.valid, prompts), cut(self.valid, prompts, rows)
            visible = seen.reshape(-1, 1, 1, length) & sees.reshape(-1, 1, count, 1)
            hidden = (visible.tril_(rows.start) if self.causal else visible).logical_not_()
        elif self.causal:
            hidden = torch.ones(1, 1, count, length, device=self.key.device, dtype=torch.bool).triu_(rows.start + 1)
        if self.spans is not None:
            key = torch.arange(length, device=self.key.device, dtype=torch.int32)
            first, last = (cut(edge, rows)[:, None] for edge in self.spans)
            others = (key < first) | (key >= last)
            hidden = others if hidden is None else others | hidden
        return hidden

    def logits_of_rows(self, rows: Tensor | int) -> Tensor:
        """(P, H, R, S) float32 logits of queries at (P, R) or (P,) positions, or at one that all prompts share."""
        prompts, length, mask = len(self.query), self.key.shape[2], self.mask
        at = rows.reshape(prompts, 1, -1, 1) if isinstance(rows, Tensor) else int(rows)
        hidden = None if self.valid is None else ~self.valid.reshape(prompts, 1, 1, length)
        if self.causal and (isinstance(at, Tensor) or at < length - 1):  # the last one sees all
            later = torch.arange(length, device=self.key.device, dtype=torch.long) > at
            hidden = later if hidden is None else later | hidden
        if mask is not None and mask.shape[2] > 1:
            mask = _rows_of(mask, at)
        return _masked(_products_of_few(_rows_of(self.query, at), self.key, self.scaling), mask, hidden)[0]


def cut(x: Tensor, *parts: slice) -> Tensor:
    """x[parts]; a dimension of one is common to all and stays, and what is whole costs no operation."""
    sizes = zip(parts, x.shape, strict=False)
    wanted = [slice(None) if size == 1 or part.stop - part.start == size else part for part, size in sizes]
    return x if all(part == slice(None) for part in wanted) else x[tuple(wanted)]


def _rows_of(x: Tensor, at: Tensor | int) -> Tensor:
    """(P, ..., R, n): rows of (P or 1, ..., T, n), at one place or at (P, 1, R, 1) places."""
    if isinstance(at, int):
        return x[:, :, at : at + 1]
    x = x if len(x) == len(at) else x.expand(len(at), -1, -1, -1)
    return x.gather(2, at.expand(-1, x.shape[1], -1, x.shape[3]))


def products(query: Tensor, key: Tensor, scaling: float) -> Tensor:
    """(P, H, T, S) float32: scaled products of (P, H, T, d) queries and (P, Hkv, S, d) keys.

    In float32 whatever they are: a CPU multiplies that faster than halves, whose logits are off by up to a percent.
    """
    (prompts, heads, count, width), (_, groups, length, _) = query.shape, key.shape
    queries = (_float32(query) * scaling).reshape(prompts * groups, heads // groups * count, width)
    keys = _float32(key).reshape(prompts * groups, length, width)
    device = query.device.type
    cast = torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device)
    with torch.autocast(device, enabled=False) if cast else nullcontext():
        return torch.bmm(queries, keys.mT).view(prompts, heads, count, length)


def _products_of_few(query: Tensor, key: Tensor, scaling: float) -> Tensor:
    """The products where queries are few: on a CPU, large keys of halves become float32 one prompt after another."""
    if key.device.type != "cpu" or key.dtype == torch.float32 or key.numel() < CPU_KEYS or len(key) == 1:
        return products(query, key, scaling)
    return torch.cat(
        [products(*prompt, scaling) for prompt in zip(torch.split(query, 1), torch.split(key, 1), strict=True)]
    )


def _float32(x: Tensor) -> Tensor:
    """A copy of halves comes in order at once, so that merging its dimensions needs no second one."""
    return x if x.dtype == torch.float32 else x.to(torch.float32, memory_format=torch.contiguous_format)


def _masked(logits: Tensor, mask: Tensor | None, hidden: Tensor | None) -> tuple[Tensor, Tensor | None]:
    if mask is not None:
        if mask.dtype == torch.bool:
            dark = ~mask
        else:
            dark = mask <= torch.finfo(mask.dtype).min
            logits = logits.add_(mask)
        hidden = dark if hidden is None else dark | hidden
    return (logits if hidden is None else logits.masked_fill_(hidden, -torch.inf)), hidden
