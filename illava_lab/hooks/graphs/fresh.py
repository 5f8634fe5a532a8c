"""What a graph wrote about its reductions, in memory of its own: the next replay writes to the same place again.

These are many small tensors. The graph itself puts them one after another, so that few copies take them all out, and
only these are kept.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass, is_dataclass
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True, eq=False)
class Place:
    """Stands for a tensor: which of those of its dtype it is, and its shape."""

    dtype: torch.dtype
    number: int
    shape: torch.Size


@dataclass(frozen=True, eq=False)
class Packed:
    """Something that holds tensors, and their values one after another, for each dtype.

    Attributes:
        value: made of places, numbers, lists, tuples, dicts and dataclasses of these.
        flat: by dtype, the values of the tensors; lengths: how many each of them has.
    """

    value: Any
    flat: dict[torch.dtype, Tensor]
    lengths: dict[torch.dtype, list[int]]


def pack(value: Any) -> Packed:
    """Put all tensors of something one after another."""
    found: dict[torch.dtype, list[Tensor]] = {}

    def note(x: Tensor) -> Place:
        own = found.setdefault(x.dtype, [])
        own.append(x.reshape(-1))
        return Place(x.dtype, len(own) - 1, x.shape)

    done: dict[int, Any] = {}
    placed = _with(value, Tensor, note, done)
    lengths = {dtype: [len(x) for x in own] for dtype, own in found.items()}
    return Packed(placed, {dtype: torch.cat(own) for dtype, own in found.items()}, lengths)


def unpack(packed: Packed) -> Any:
    """The same with copies of the tensors. What is one tensor in two places stays one."""
    parts = {dtype: flat.clone().split(packed.lengths[dtype]) for dtype, flat in packed.flat.items()}
    return _with(packed.value, Place, lambda x: parts[x.dtype][x.number].view(x.shape), {})


def copied(value: Any) -> Any:
    """The same with copies of its tensors, in memory of their own."""
    return _with(value, Tensor, Tensor.clone, {})


def _with(value: Any, kind: type, change: Callable[[Any], Any], done: dict[int, Any]) -> Any:
    """The same, with something else in the place of what is of a kind."""
    if id(value) not in done:
        done[id(value)] = value, _changed(value, kind, change, done)  # it stays alive, and its id its own
    return done[id(value)][1]


def _changed(value: Any, kind: type, change: Callable[[Any], Any], done: dict[int, Any]) -> Any:
    if isinstance(value, kind):
        return change(value)
    if isinstance(value, (list, tuple)):
        return type(value)(_with(part, kind, change, done) for part in value)
    if isinstance(value, dict):
        return {name: _with(part, kind, change, done) for name, part in value.items()}
    if is_dataclass(value) and not isinstance(value, type):
        out = copy.copy(value)
        out.__dict__.update({name: _with(part, kind, change, done) for name, part in vars(value).items()})
        return out
    return value
