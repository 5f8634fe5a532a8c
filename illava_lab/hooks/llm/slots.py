"""Which buffers a cache fits into, and how it gets there when a step of it is to be captured."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from illava_lab.hooks.graphs.buffers import Shape, Slot
from illava_lab.hooks.graphs.store import Graphs
from illava_lab.hooks.llm.cache import CacheState, Segment

STEP = 16  # tokens; the room for the prompts is a multiple, and so are the lengths of prompts that are captured
ROOM = 32  # tokens that fit behind the prompts at least; twice as many, or four times, where there are more
FORESEEN = 256  # an answer may become this long, but few become as long as they may


def room_for(tokens: int) -> int:
    """Room behind the prompts for so many tokens."""
    room = ROOM
    while room < tokens:
        room *= 2
    return room


def foreseen(longest: int | None) -> int:
    """Tokens that an answer is given room for beforehand, if it may be `longest` tokens long."""
    return min(longest or 0, FORESEEN)


def filled_by(prompt_length: int) -> int:
    """Tokens by which prompts of this length are filled up."""
    return -prompt_length % STEP


def shape_of(
    cached: Sequence[tuple[int, int, int, int]], batch: int, first: Sequence[int], room: int, dtype: torch.dtype
) -> Shape:
    """The shape of buffers for a cache.

    Args:
        cached: for each layer Hkv, tokens of the prompts with what fills them up, and how wide keys and values are.
        first: the layers at which tokens are left out.
    """
    lengths = tuple(-(-length // STEP) * STEP for _, length, _, _ in cached)
    return Shape(
        batch, lengths, room, tuple((heads, key, value) for heads, _, key, value in cached), tuple(first), dtype
    )


def held_by(segments: Sequence[Segment], depth: int) -> list[int]:
    """Tokens of the prompts in each layer."""
    return [max((s for s in segments if s.layer <= i), key=_first).length for i in range(depth)]


def _first(segment: Segment) -> int:
    return segment.layer


def slot_for(graphs: Graphs, cache: Any, state: CacheState, generated: int, longest: int | None) -> Slot | None:
    """Buffers that hold this cache; moved in, where it is in none. None where it has to stay where it is.

    Args:
        generated: tokens behind the prompts; longest: as many as there may be, where that is known.
    """
    buffers = graphs.buffers
    slot, held = buffers.slot_of(cache), held_by(state.segments, len(cache.layers))
    if slot is not None and slot.held == held and generated < slot.shape.room:  # a prompt may have been cropped
        return slot
    filler = filled_by(state.prompt_length)
    cached = [
        (layer.keys.shape[1], length + filler, layer.keys.shape[3], layer.values.shape[3])
        for layer, length in zip(cache.layers, held, strict=True)
    ]
    room = room_for(max(generated + 1, foreseen(longest)))
    first, dtype = [segment.layer for segment in state.segments], cache.layers[0].keys.dtype
    shape = shape_of(cached, state.batch, first, room, dtype)
    if shape.nbytes > graphs.most or not buffers.free_for(cache) or not buffers.vacate():
        return None
    slot = buffers.slot(shape)
    graphs.make_room()
    with torch.inference_mode(False), torch.no_grad():
        buffers.take_in(slot, cache, held, [segment.valid for segment in state.segments])
    return slot
