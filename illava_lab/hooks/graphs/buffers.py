"""Memory for the keys and values of one cache at a time, in the same place for every graph that reads or writes them.

A captured prefill writes there, a captured step goes on there, and the cache that is handed out has views of it: it
exists once. Everybody may go on with it as with any other cache, and whoever makes it longer another way makes copies,
which move in again at the next step.

The cache still owns what is in it. Before another one takes its place it is moved into memory of its own, and while
somebody sees these buffers who cannot be moved (a fork of the cache, a view), nothing is written to them.
"""

from __future__ import annotations

import itertools
import sys
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from math import prod
from typing import Any, NamedTuple
from weakref import ref

import torch
from torch import Tensor

SHAPES = 24  # views for so many shapes are kept


class Shape(NamedTuple):
    """What decides where the keys and values of a cache lie.

    Attributes:
        batch: B, how many prompts.
        lengths: for each layer, how many tokens of the prompts there is room for; room: how many behind them.
        heads: for each layer, Hkv, and how wide its keys and values are.
        first: the layers at which tokens are left out, 0 among them.
    """

    batch: int
    lengths: tuple[int, ...]
    room: int
    heads: tuple[tuple[int, int, int], ...]
    first: tuple[int, ...]
    dtype: torch.dtype

    @property
    def tensors(self) -> list[tuple[int, int, int, int]]:
        """(B, Hkv, length + room, d) of the keys of all layers, and then of their values."""
        rows = [length + self.room for length in self.lengths]
        keys = [(self.batch, heads, row, key) for row, (heads, key, _) in zip(rows, self.heads, strict=True)]
        values = [(self.batch, heads, row, value) for row, (heads, _, value) in zip(rows, self.heads, strict=True)]
        return keys + values

    @property
    def nbytes(self) -> int:
        return sum(map(prod, self.tensors)) * self.dtype.itemsize


@dataclass(eq=False)
class Slot:
    """Views of the buffers for caches of one shape, and what the graph of a step reads beside them.

    Attributes:
        keys, values: for each layer (B, Hkv, length + room, d).
        valid: for each segment (B, length) bool, which tokens of the prompts are seen.
        held: tokens of the prompts in each layer of the cache that is here now.
        top: most tokens behind the prompts that were ever shown to it.
    """

    shape: Shape
    keys: list[Tensor]
    values: list[Tensor]
    valid: list[Tensor]
    held: list[int] = field(default_factory=list)
    top: int = 0
    number: int = field(default_factory=itertools.count().__next__)

    def put(self, layer: int, keys: Tensor, values: Tensor) -> None:
        """Write the first keys and values (B, Hkv, L, d) of a layer."""
        length = keys.shape[2]
        for own, given in ((self.keys[layer], keys), (self.values[layer], values)):
            own[:, :, :length].copy_(given)
            own[:, :, length:].zero_()  # what is hidden is multiplied by 0, and 0 * NaN is NaN

    def show(self, cache: Any, more: int) -> None:
        """The cache has the prompts, and so many tokens behind them."""
        self.top = max(self.top, more)
        for layer, key, value, held in zip(cache.layers, self.keys, self.values, self.held, strict=True):
            layer.keys, layer.values = key[:, :, : held + more], value[:, :, : held + more]

    def has(self, cache: Any) -> bool:
        """Whether all keys and values of a cache are views of these, with equally many tokens behind the prompts."""
        more = {_length(layer.keys) - held for layer, held in zip(cache.layers, self.held, strict=True)}
        return len(more) == 1 and all(
            _begins(layer.keys, key) and _begins(layer.values, value)
            for layer, key, value in zip(cache.layers, self.keys, self.values, strict=True)
        )


class Buffers:
    """The memory for one cache at a time of one model, and the views of it for caches of several shapes.

    Args:
        dropped: called when slots went, for whoever holds on to them.
    """

    def __init__(self, device: torch.device, dropped: Callable[[], None]) -> None:
        self.device, self._dropped = device, dropped
        self._memory: list[Tensor] = []  # for each tensor of a shape
        self._slots: OrderedDict[Shape, Slot] = OrderedDict()
        self._slot: Slot | None = None  # where the cache is
        self._cache: Any = None  # a weak reference
        self._waits: Any = None  # one to a cache that would like to be here
        self._views = 0  # how often the memory is referred to, where nobody else does

    @property
    def nbytes(self) -> int:
        masks = sum(x.nbytes for slot in self._slots.values() for x in slot.valid)
        return sum(x.nbytes for x in self._memory) + masks

    def knows(self, slot: Slot) -> bool:
        """Whether a slot is still one of these buffers."""
        return self._slots.get(slot.shape) is slot

    # ---- who is there
    def slot_of(self, cache: Any) -> Slot | None:
        """Where a cache is, all of it, and may be written to; None where it is elsewhere."""
        slot = self._slot
        if slot is None or self._owner is not cache or len(cache.layers) != len(slot.keys) or not slot.has(cache):
            return None
        if _length(cache.layers[0].keys) - slot.held[0] < slot.top and self._forked(cache):
            return None  # it was cropped, and what would be written over is somebody else's, too
        self._waits = None
        return slot

    @property
    def _owner(self) -> Any:
        return None if self._cache is None else self._cache()

    def free_for(self, cache: Any) -> bool:
        """Whether a cache may take the place of another, which goes on more slowly then: nobody else needs it, or it
        is asked about twice while the other is not."""
        if self._owner is None or self._owner is cache:
            return True
        before, self._waits = self._waits, ref(cache)
        return before is not None and before() is cache

    def vacate(self) -> bool:
        """Move the cache that is there into memory of its own. False where somebody sees it who cannot be moved."""
        places = {x.untyped_storage().data_ptr() for x in self._memory}
        for layer in [] if self._owner is None else self._owner.layers:
            for name in ("keys", "values"):
                x = getattr(layer, name)
                if isinstance(x, Tensor) and x.untyped_storage().data_ptr() in places:
                    setattr(layer, name, x.clone(memory_format=torch.contiguous_format))
                del x
        self._cache = self._slot = self._waits = None
        return self._referred() == self._views

    def _referred(self) -> int:
        """How often the memory is referred to, views included."""
        count = torch._C._storage_Use_Count
        return sum(count(x.untyped_storage()._cdata) for x in self._memory)

    def _forked(self, cache: Any) -> bool:
        """Whether somebody beside this cache sees what is in it: a fork of it, or a view."""
        alone = torch.empty(0)  # this name refers to it, as a layer does to its tensor, and nobody else
        held = [x for layer in cache.layers for x in (layer.keys, layer.values)]
        usual, *counts = [sys.getrefcount(x) for x in (alone, *held)]
        return max(counts) > usual + 1 or self._referred() > self._views + len(held)  # one more: by the list

    # ---- moving in, where nobody is
    def slot(self, shape: Shape) -> Slot:
        """Views for caches of a shape. Where the memory is too small for them, that of all other shapes goes."""
        with torch.inference_mode(False), torch.no_grad():
            if not self._fits(shape):
                self._slots.clear()
                self._memory.clear()  # before there is more of it
                self._views = 0
                self._dropped()
                self._memory += [torch.zeros(prod(x), dtype=shape.dtype, device=self.device) for x in shape.tensors]
            if shape not in self._slots:
                self._slots[shape] = self._new(shape)
                if len(self._slots) > SHAPES:
                    self._slots.popitem(last=False)
            self._slots.move_to_end(shape)
            self._dropped()
            self._views = self._referred()
        return self._slots[shape]

    def _fits(self, shape: Shape) -> bool:
        return len(self._memory) == len(shape.tensors) and all(
            x.dtype == shape.dtype and len(x) >= prod(wanted)
            for x, wanted in zip(self._memory, shape.tensors, strict=True)
        )

    def _new(self, shape: Shape) -> Slot:
        views = [x[: prod(own)].view(own) for x, own in zip(self._memory, shape.tensors, strict=True)]
        valid = [
            torch.ones((shape.batch, shape.lengths[layer]), dtype=torch.bool, device=self.device)
            for layer in shape.first
        ]
        return Slot(shape, views[: len(shape.lengths)], views[len(shape.lengths) :], valid)

    def take_in(self, slot: Slot, cache: Any, held: list[int], valid: Sequence[Tensor | None]) -> None:
        """Move a cache in, layer by layer: each gives its own memory back, and is whole at every moment."""
        self._slot, self._cache, more = slot, ref(cache), _length(cache.layers[0].keys) - held[0]
        for number, layer in enumerate(cache.layers):
            length = _length(layer.keys)
            slot.put(number, layer.keys, layer.values)
            layer.keys, layer.values = slot.keys[number][:, :, :length], slot.values[number][:, :, :length]
        self.hand_out(slot, cache, held, valid, more)

    def hand_out(self, slot: Slot, cache: Any, held: list[int], valid: Sequence[Tensor | None], more: int = 0) -> None:
        """What was written into a slot is the cache's from here on.

        Args:
            held: tokens of the prompts in each layer; valid: for each segment (B, L) bool, None for all; more: how many
                tokens there are behind.
        """
        for own, given in zip(slot.valid, valid, strict=True):
            own.fill_(True)
            if given is not None:
                own[:, : given.shape[1]].copy_(given)
        slot.held, slot.top = held, 0
        self._slot, self._cache, self._waits = slot, ref(cache), None
        slot.show(cache, more)


def _length(x: Tensor | None) -> int:
    return -1 if x is None else x.shape[2]


def _begins(x: Tensor | None, buffer: Tensor) -> bool:
    """Whether a tensor is the beginning of a buffer (B, Hkv, length + room, d) along its tokens."""
    return x is not None and x.data_ptr() == buffer.data_ptr() and x.stride() == buffer.stride()
