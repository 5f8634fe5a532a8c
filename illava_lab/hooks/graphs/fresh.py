"""What a graph wrote about its reductions, in memory of its own: the next replay writes to the same place again.

These are many small tensors. The graph itself puts them one after another, so that few copies take them all out.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass, is_dataclass
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True, eq=False)
class Packed:
    """Something that holds tensors, and their values one after another, for each dtype.

    Attributes:
        value: made of tensors, numbers, lists, tuples and dataclasses of these.
        tensors: those in it, for each dtype; flat: the values of these.
    """

    value: Any
    tensors: list[list[Tensor]]
    flat: list[Tensor]


def pack(value: Any) -> Packed:
    """Put all tensors of something one after another."""
    found: dict[torch.dtype, list[Tensor]] = {}

    def note(x: Tensor) -> Tensor:
        found.setdefault(x.dtype, []).append(x)
        return x

    _with(value, note, {})
    tensors = list(found.values())
    return Packed(value, tensors, [torch.cat([x.reshape(-1) for x in own]) for own in tensors])


def unpack(packed: Packed) -> Any:
    """The same with copies of the tensors. What is one tensor in two places stays one."""
    copies: dict[int, Tensor] = {}
    for tensors, flat in zip(packed.tensors, packed.flat, strict=True):
        parts = flat.clone().split([x.numel() for x in tensors])
        copies |= {id(x): part.view(x.shape) for x, part in zip(tensors, parts, strict=True)}
    return _with(packed.value, lambda x: copies[id(x)], {})


def _with(value: Any, change: Callable[[Tensor], Tensor], done: dict[int, Any]) -> Any:
    """The same, with other tensors in it."""
    if id(value) not in done:
        done[id(value)] = _changed(value, change, done)
    return done[id(value)]


def _changed(value: Any, change: Callable[[Tensor], Tensor], done: dict[int, Any]) -> Any:
    if isinstance(value, Tensor):
        return change(value)
    if isinstance(value, (list, tuple)):
        return type(value)(_with(part, change, done) for part in value)
    if is_dataclass(value) and not isinstance(value, type):
        out = copy.copy(value)
        out.__dict__.update({name: _with(part, change, done) for name, part in vars(value).items()})
        return out
    return value
