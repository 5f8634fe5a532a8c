"""One decoding step of the language model, as one graph, which reads and writes the buffers of a slot."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import DynamicLayer

from illava_lab.hooks.attachment import Attachment
from illava_lab.hooks.compat import CACHE, cache_of
from illava_lab.hooks.graphs.buffers import Slot
from illava_lab.hooks.llm.cache import CacheState, state_of
from illava_lab.hooks.llm.call import Call, only_usual
from illava_lab.hooks.llm.decode import Decode
from illava_lab.hooks.llm.slots import slot_for


class _Written:
    """Stands in for the cache while a step is captured: new keys and values are written into the buffers."""

    is_compileable = False

    def __init__(self, slot: Slot, at: dict[int, Tensor]) -> None:
        self.slot, self.at = slot, at

    def update(self, key: Tensor, value: Tensor, layer_idx: int, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        slot, at = self.slot, self.at[layer_idx]
        return slot.keys[layer_idx].index_copy_(2, at, key), slot.values[layer_idx].index_copy_(2, at, value)

    def get_seq_length(self, layer_idx: int = 0) -> int:
        return self.slot.shape.lengths[0]


class Step:
    """What the layers of a captured step get: masks over the buffers, and with packed positions rotary tables.

    Args:
        states: (B, 1, C); positions: (..., B, 1); filler: for each segment (1,) long, slots of the prompts that are
            not taken; tail: (B, room) bool, which tokens behind the prompts are seen; count: (1,) long, how many there
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
        room = slot.shape.room
        for number, layer in enumerate(first):
            length = slot.shape.lengths[layer]
            behind = torch.arange(length + room, dtype=torch.long, device=states.device) - (length - filler[number])
            own = torch.cat([slot.valid[number], tail.new_zeros((len(tail), room))], 1)
            seen = torch.where(behind < 0, own, tail[:, behind.clamp(0, room - 1)])
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
    graphs, decode, cache = attachment.graphs, call.llm, cache_of(kwargs)
    if graphs is None or args or not _ordinary(decode, kwargs) or torch.is_grad_enabled():
        return None
    if graphs.state.kernels[-1] != "sdpa":  # flash attention takes no mask over buffers
        return None
    if attachment.strategy.proportional_in_llm:  # the masks of a captured step are yes or no
        return None
    state = state_of(cache)
    assert state is not None
    with graphs.lock:
        slot = slot_for(graphs, cache, state, decode.generated, attachment.running.longest)
        if slot is None:
            return None
        return _captured(attachment, call, original, kwargs, slot, state)


def _ordinary(decode: Decode, kwargs: dict[str, Any]) -> bool:
    cache = cache_of(kwargs)
    return (
        only_usual(kwargs)
        and kwargs["inputs_embeds"].shape[1] == 1
        and decode.generated >= 0
        and all(type(layer) is DynamicLayer for layer in cache.layers)
    )


def _captured(
    attachment: Attachment, call: Call, original: Callable, kwargs: dict[str, Any], slot: Slot, state: CacheState
) -> Any | None:
    assert attachment.graphs is not None
    decode: Decode = call.llm
    hidden, positions, mask = kwargs["inputs_embeds"], decode.positions, kwargs.get("attention_mask")
    count, device, first = decode.generated, hidden.device, [segment.layer for segment in state.segments]
    tail = torch.zeros((len(hidden), slot.shape.room), dtype=torch.bool, device=device)
    tail[:, : count + 1] = True if mask is None else mask[:, state.prompt_length :].bool()
    filler = [slot.shape.lengths[segment.layer] - segment.length for segment in state.segments]
    numbers = [torch.full((1,), value, dtype=torch.long, device=device) for value in (*filler, count)]
    shifts = [segment.shift for segment in state.segments]
    inputs = [hidden, positions, tail, *numbers, *(shift for shift in shifts if shift is not None)]

    def record(own: list[Tensor], _: Slot | None) -> tuple[type, Tensor]:
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
                use_cache=True,
                **{CACHE: _Written(slot, step.at)},
            )
        return type(out), out.last_hidden_state

    def take(out: tuple[type, Tensor], _: Slot | None) -> Any:
        kind, last = out
        cache = cache_of(kwargs)
        slot.show(cache, count + 1)
        return kind(last_hidden_state=last.clone(), **{CACHE: cache})

    key = ("decode", slot.number, tuple(first), tuple(shift is None for shift in shifts), attachment.positions)
    return attachment.graphs.replay(key, inputs, record, take, slot=slot)
