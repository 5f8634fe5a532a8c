"""Buffers into which the keys and values of a cache move, so that a captured step finds them in the same place.

Each layer has its own length. From then on the cache has views of them: everybody may go on with it as with any other,
and whoever makes it longer another way makes copies, which move in again at the next step.
"""

from __future__ import annotations

import itertools
import sys
from collections.abc import Hashable
from dataclasses import dataclass, field
from typing import Any
from weakref import ref

import torch
from torch import Tensor

from illava_lab.hooks.graphs.store import Graphs
from illava_lab.hooks.llm.cache import CacheState, Segment

ROOM = 256  # tokens that fit behind the prompts
STEP = 64  # tokens; the room for the prompts is a multiple
SLOTS = 2  # caches of one size at a time; others go on plainly


@dataclass(eq=False)
class Slot:
    """Buffers for one cache at a time, and what the graph of a step reads beside them.

    Attributes:
        lengths: for each layer, how many tokens of the prompts it has room for.
        keys, values: for each layer (B, Hkv, length + ROOM, d).
        valid: for each segment (B, length) bool, which tokens of the prompts are seen.
        cache: whose tokens it holds, a weak reference.
    """

    lengths: list[int]
    keys: list[Tensor]
    values: list[Tensor]
    valid: list[Tensor]
    cache: Any = None
    views: int = 0  # how often storages are referred to, where nobody else does
    top: int = 0  # most tokens behind the prompts that were ever shown to the cache
    number: int = field(default_factory=itertools.count().__next__)
    held: list[int] = field(default_factory=list)  # tokens of the prompts in each layer

    def __post_init__(self) -> None:
        self.views = self._referred()

    def _referred(self) -> int:
        """How often all of these buffers are referred to, views included."""
        count = torch._C._storage_Use_Count
        return sum(count(x.untyped_storage()._cdata) for x in (*self.keys, *self.values))

    def _shared(self, cache: Any) -> bool:
        """Whether somebody beside this cache sees what is in these buffers: a fork of it, or a view."""
        held = [x for layer in cache.layers for x in (layer.keys, layer.values)]
        forked = any(sys.getrefcount(x) > 3 for x in held)  # by the layer, by the list, and as an argument
        return forked or self._referred() > self.views + len(held)

    @property
    def free(self) -> bool:
        """Whether the cache is gone, and with it all views of these buffers, which a fork of it may still have."""
        return self.cache is None or (self.cache() is None and self._referred() == self.views)

    def holds(self, cache: Any) -> bool:
        """Whether all keys and values of a cache are views of these buffers, with equally many tokens generated."""
        if self.cache is None or self.cache() is not cache:
            return False
        more = {layer.keys.shape[2] - held for layer, held in zip(cache.layers, self.held, strict=True)}
        if min(more) < self.top and self._shared(cache):
            return False  # it was cropped, and what would be written over is somebody else's, too
        return len(more) == 1 and all(
            layer.keys.data_ptr() == key.data_ptr() and layer.values.data_ptr() == value.data_ptr()
            for layer, key, value in zip(cache.layers, self.keys, self.values, strict=True)
        )

    def take_in(self, cache: Any, state: CacheState) -> None:
        """Move a cache into these buffers."""
        self.cache, self.held, self.top = None, _held(state, len(self.keys)), 0
        for layer, key, value in zip(cache.layers, self.keys, self.values, strict=True):
            length = layer.keys.shape[2]
            key[:, :, :length].copy_(layer.keys)
            value[:, :, :length].copy_(layer.values)
        for segment, valid in zip(state.segments, self.valid, strict=True):
            valid.fill_(True)
            if segment.valid is not None:
                valid[:, : segment.length].copy_(segment.valid)
        self.cache = ref(cache)
        self.show(cache, cache.layers[0].keys.shape[2] - self.held[0])

    def show(self, cache: Any, more: int) -> None:
        """The cache has the prompts, and so many tokens behind them."""
        self.top = max(self.top, more)
        for layer, key, value, held in zip(cache.layers, self.keys, self.values, self.held, strict=True):
            layer.keys, layer.values = key[:, :, : held + more], value[:, :, : held + more]


def _held(state: CacheState, depth: int) -> list[int]:
    """Tokens of the prompts in each layer."""
    return [max((s for s in state.segments if s.layer <= i), key=_first).length for i in range(depth)]


def _first(segment: Segment) -> int:
    return segment.layer


def slot_for(graphs: Graphs, cache: Any, state: CacheState) -> Slot | None:
    """Buffers that hold this cache; moved in, where it is in none."""
    for slots in graphs.slots.values():
        for slot in slots:
            if slot.holds(cache):
                return slot
    held = _held(state, len(cache.layers))
    lengths = [-(-length // STEP) * STEP for length in held]
    key: Hashable = (
        state.batch, tuple(segment.layer for segment in state.segments), tuple(lengths),
        cache.layers[0].keys.dtype, tuple(tuple(layer.keys.shape[i] for i in (1, 3)) for layer in cache.layers),
    )  # fmt: skip
    slots = graphs.slots.setdefault(key, [])
    graphs.slots.move_to_end(key)
    slot = next((slot for slot in slots if slot.free), None)
    if slot is None:
        if len(slots) >= SLOTS:
            return None
        slot = _new_slot(cache, state, lengths)
        slots.append(slot)
        graphs.make_room()
    with torch.inference_mode(False), torch.no_grad():
        slot.take_in(cache, state)
    return slot


def _new_slot(cache: Any, state: CacheState, lengths: list[int]) -> Slot:
    with torch.inference_mode(False), torch.no_grad():

        def room(x: Tensor, length: int) -> Tensor:
            # Zero and not empty: what is hidden is multiplied by 0, and 0 * NaN is NaN.
            return torch.zeros((x.shape[0], x.shape[1], length + ROOM, x.shape[3]), dtype=x.dtype, device=x.device)

        keys = [room(layer.keys, length) for layer, length in zip(cache.layers, lengths, strict=True)]
        values = [room(layer.values, length) for layer, length in zip(cache.layers, lengths, strict=True)]
        device = cache.layers[0].keys.device
        valid = [
            torch.ones((state.batch, lengths[segment.layer]), dtype=torch.bool, device=device)
            for segment in state.segments
        ]
    return Slot(lengths, keys, values, valid)
