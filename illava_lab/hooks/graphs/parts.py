"""Wide layers of what is captured run on a part of the rows at a time.

A graph keeps the memory that it needs at its worst moment, and that is inside an MLP, whose states are several times as
wide as those that it is given. Every row is computed on its own, and a graph pays nothing for more operations.
"""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor, nn

from illava_lab.method.brought import capturing

MOST = 2**26  # bytes of one state inside


def width_of(mlp: nn.Module) -> int:
    """The most numbers that it makes of a row; 0 where that is not known."""
    return max((int(getattr(part, "out_features", 0)) for part in mlp.modules()), default=0)


def in_parts(width: int, original: Callable[[Tensor], Tensor], hidden: Tensor) -> Tensor:
    """Around an MLP of states (..., C) that are `width` wide inside; (..., C)."""
    rows = hidden.numel() // hidden.shape[-1]
    parts = -(-rows * width * hidden.element_size() // MOST)
    if parts <= 1 or not capturing():
        return original(hidden)
    out = hidden.new_empty(hidden.shape)
    each = -(-rows // parts)
    for given, made in zip(hidden.flatten(0, -2).split(each), out.flatten(0, -2).split(each), strict=True):
        made.copy_(original(given))
    return out
