"""Add at places that may repeat, in the same order every time: floats in another order give other bits."""

from __future__ import annotations

from torch import Tensor

# Where `scatter_add` and `index_add` go through their index in order. CUDA adds in any order with both, and sorts in
# `index_put` first; on a CPU, it is threads that race there.
ADD_IN_ORDER = {"cpu"}


def add_at(into: Tensor, row: Tensor, place: Tensor, what: Tensor, *, in_place: bool = False) -> Tensor:
    """``into[b, place[b, e]] += what[b, e]`` for all b and e, always in the same order of e.

    Args:
        into: (B, M) or (B, M, C) float.
        row: (B, 1) long, 0 to B-1.
        place: (B, E) long; may repeat.
        what: (B, E) or (B, E, C), of the dtype of `into`.
        in_place: whether `into` may be written to. Use what is returned all the same.

    Returns:
        The sums, of the shape of `into`.
    """
    if into.device.type not in ADD_IN_ORDER:
        put = into.index_put_ if in_place else into.index_put
        return put((row, place), what, accumulate=True)
    if into.dim() == 2:
        return into.scatter_add_(1, place, what) if in_place else into.scatter_add(1, place, what)
    flat = into.flatten(0, 1)  # of whole rows, this is four to twenty times as fast as `scatter_add`
    if into.shape[0] > 1:
        place = place + row * into.shape[1]
    add = flat.index_add_ if in_place else flat.index_add
    return add(0, place.flatten(), what.flatten(0, 1)).view(into.shape)
