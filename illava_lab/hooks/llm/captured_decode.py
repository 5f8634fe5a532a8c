"""One decoding step of the language model, as one graph.

A graph reads and writes the same memory every time. So a cache moves into buffers that have room for more tokens: each
layer has its own length, and its keys and values are from then on views of these. Everybody may go on with the cache as
with any other; whoever makes it longer another way makes copies, which move in again at the next step.
"""

from __future__ import annotations

import itertools
import sys
from collections.abc import Callable, Hashable
from dataclasses import dataclass, field
from typing import Any
from weakref import ref

import torch
from torch import Tensor
from transformers.cache_utils import DynamicLayer

from illava_lab.hooks.attachment import Attachment
from illava_lab.hooks.graphs.store import Graphs
from illava_lab.hooks.llm.cache import CacheState, Segment, state_of
from illava_lab.hooks.llm.call import Call
from illava_lab.hooks.llm.decode import Decode

ROOM = 256  # tokens that fit behind the prompts
STEP = 64  # tokens; the room for the prompts is a multiple
SLOTS = 2  # caches of one size at a time; others go on plainly
_TAKEN = {"inputs_embeds", "attention_mask", "position_ids", "past_key_values", "use_cache"}
_IGNORED = {"cache_position", "logits_to_keep", "return_dict"}  # what others read


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


class _Written:
    """Stands in for the cache while a step is captured: new keys and values are written into the buffers."""

    is_compileable = False

    def __init__(self, slot: Slot, at: dict[int, Tensor]) -> None:
        self.slot, self.at = slot, at

    def update(self, key: Tensor, value: Tensor, layer_idx: int, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        slot, at = self.slot, self.at[layer_idx]
        return slot.keys[layer_idx].index_copy_(2, at, key), slot.values[layer_idx].index_copy_(2, at, value)

    def get_seq_length(self, layer_idx: int = 0) -> int:
        return self.slot.lengths[0]


class Step:
    """What the layers of a captured step get: masks over the buffers, and with packed positions rotary tables.

    Args:
        states: (B, 1, C); positions: (..., B, 1); filler: for each segment (1,) long, slots of the prompts that are
            not taken; tail: (B, ROOM) bool, which tokens behind the prompts are seen; count: (1,) long, how many there
            are before this one; shift: for each segment (B,) long or None.
    """

    def __init__(
        self, attachment: Attachment, slot: Slot, first: list[int], states: Tensor, positions: Tensor,
        filler: list[Tensor], tail: Tensor, count: Tensor, shift: list[Tensor | None],
    ) -> None:  # fmt: skip
        self.first = first
        self.at: dict[int, Tensor] = {}
        self._given: list[dict[str, Any]] = []
        rotary = attachment.anatomy.language_model.rotary_emb
        self.positions = [positions if by is None else positions - by[:, None] for by in shift]
        for number, layer in enumerate(first):
            length = slot.lengths[layer]
            behind = torch.arange(length + ROOM, dtype=torch.long, device=states.device) - (length - filler[number])
            own = torch.cat([slot.valid[number], tail.new_zeros((len(tail), ROOM))], 1)
            seen = torch.where(behind < 0, own, tail[:, behind.clamp(0, ROOM - 1)])
            given: dict[str, Any] = {"attention_mask": seen[:, None, None]}
            if shift[number] is not None and number:
                given["position_embeddings"] = rotary(states, position_ids=self.positions[number])
            self._given.append(given)
            end = first[number + 1] if number + 1 < len(first) else len(slot.keys)
            self.at |= dict.fromkeys(range(layer, end), length - filler[number] + count)

    def layer_arguments(self, index: int, hidden: Tensor) -> dict[str, Any]:
        """Mask and tables of one layer."""
        return self._given[max(i for i, first in enumerate(self.first) if first <= index)]


def captured_decode(
    attachment: Attachment, call: Call, original: Callable, args: tuple, kwargs: dict[str, Any]
) -> Any | None:
    """What the language model returns for one more token of each prompt, computed by a graph.

    None where it must be computed plainly.
    """
    graphs, decode, cache = attachment.graphs, call.llm, kwargs.get("past_key_values")
    if graphs is None or args or not _ordinary(decode, kwargs) or torch.is_grad_enabled():
        return None
    if graphs.state.kernels[-1] != "sdpa":  # flash attention takes no mask over buffers
        return None
    state = state_of(cache)
    assert state is not None
    with graphs.lock:
        slot = _slot(graphs, cache, state)
        if slot is None:
            return None
        return _captured(attachment, call, original, kwargs, slot, state)


def _ordinary(decode: Decode, kwargs: dict[str, Any]) -> bool:
    cache = kwargs["past_key_values"]
    given = {name for name, value in kwargs.items() if value is not None and value is not False}
    return (
        given <= _TAKEN | _IGNORED
        and kwargs["inputs_embeds"].shape[1] == 1
        and 0 <= decode.generated < ROOM
        and all(type(layer) is DynamicLayer for layer in cache.layers)
    )


def _held(state: CacheState, depth: int) -> list[int]:
    """Tokens of the prompts in each layer."""
    return [max((s for s in state.segments if s.layer <= i), key=_first).length for i in range(depth)]


def _first(segment: Segment) -> int:
    return segment.layer


def _slot(graphs: Graphs, cache: Any, state: CacheState) -> Slot | None:
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


def _captured(
    attachment: Attachment, call: Call, original: Callable, kwargs: dict[str, Any], slot: Slot, state: CacheState
) -> Any | None:
    assert attachment.graphs is not None
    decode: Decode = call.llm
    hidden, positions, mask = kwargs["inputs_embeds"], decode.positions, kwargs.get("attention_mask")
    count, device, first = decode.generated, hidden.device, [segment.layer for segment in state.segments]
    tail = torch.zeros((len(hidden), ROOM), dtype=torch.bool, device=device)
    tail[:, : count + 1] = True if mask is None else mask[:, state.prompt_length :].bool()
    filler = [slot.lengths[segment.layer] - segment.length for segment in state.segments]
    numbers = [torch.full((1,), value, dtype=torch.long, device=device) for value in (*filler, count)]
    shifts = [segment.shift for segment in state.segments]
    inputs = [hidden, positions, tail, *numbers, *(shift for shift in shifts if shift is not None)]

    def record(own: list[Tensor]) -> tuple[type, Tensor]:
        states, places, seen, *rest = own
        fillers, so_far, moved = rest[: len(first)], rest[len(first)], iter(rest[len(first) + 1 :])
        shift = [None if by is None else next(moved) for by in shifts]
        step = Step(attachment, slot, first, states, places, fillers, seen, so_far, shift)
        now = Call({})
        now.llm = step
        with attachment.running.during("call", now):
            out = original(
                inputs_embeds=states,
                attention_mask=step.layer_arguments(0, states)["attention_mask"],
                position_ids=step.positions[0],
                past_key_values=_Written(slot, step.at),
                use_cache=True,
            )
        return type(out), out.last_hidden_state

    def take(out: tuple[type, Tensor]) -> Any:
        kind, last = out
        cache = kwargs["past_key_values"]
        slot.show(cache, count + 1)
        return kind(last_hidden_state=last.clone(), past_key_values=cache)

    key = ("decode", slot.number, tuple(first), tuple(shift is None for shift in shifts), attachment.positions)
    return attachment.graphs.replay(key, inputs, record, take, about=slot)
