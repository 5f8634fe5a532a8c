"""The prefill of the language model with its reductions, as one graph.

Prompts are filled up behind their end to a step of lengths, so that a conversation is not captured anew at every
question. What lies behind a prompt is hidden from it by the order of attention, counts in no statistic, and is cut off
again. Keys and values are written where a step of decoding reads them: there is no other copy of the cache.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers.cache_utils import DynamicCache, DynamicLayer

from illava_lab.hooks.attachment import Attachment
from illava_lab.hooks.compat import CACHE, cache_of
from illava_lab.hooks.graphs.buffers import Shape, Slot
from illava_lab.hooks.graphs.fresh import Packed, pack, unpack
from illava_lab.hooks.graphs.keys import strategy_key
from illava_lab.hooks.graphs.staging import Input, Padded
from illava_lab.hooks.llm.cache import CacheState
from illava_lab.hooks.llm.call import Call, only_usual
from illava_lab.hooks.llm.prefill import Prefill
from illava_lab.hooks.llm.prompt import Prompt, placed_images
from illava_lab.hooks.llm.site import UnknownText
from illava_lab.hooks.llm.slots import filled_by, foreseen, held_by, room_for, shape_of
from illava_lab.method.brought import upload
from illava_lab.models.layout import Medium
from illava_lab.trace.encoded import EncodedImage
from illava_lab.trace.step import Step
from illava_lab.trace.trace import Prefilled


class _Sent(DynamicLayer):
    """A cache layer whose keys and values go into the buffers for caches. No copy of them is kept.

    Attributes:
        slot: where; None where they go nowhere, and it is only noted how many there are.
        shape: Hkv, L, and how wide keys and values are; kind: their dtype.
    """

    def __init__(self, number: int, slot: Slot | None) -> None:
        super().__init__()
        self.number, self.slot = number, slot
        self.shape: tuple[int, int, int, int] = (0, 0, 0, 0)
        self.kind = torch.float32

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        _, heads, length, wide = key_states.shape
        self.shape, self.kind = (heads, length, wide, value_states.shape[3]), key_states.dtype
        if self.slot is not None:
            self.slot.put(self.number, key_states, value_states)
        return key_states, value_states


@dataclass(frozen=True, eq=False)
class _Out:
    """What a graph of a prefill gives, beside keys and values.

    Attributes:
        last: (B, k, C) states of the last tokens that somebody reads, or (B, L, C).
        packed: steps and segments.
        cached: for each layer Hkv, L, and how wide keys and values are; dtype: of these.
        first: the layers at which tokens are left out.
    """

    kind: type
    last: Tensor
    packed: Packed
    cached: list[tuple[int, int, int, int]]
    dtype: torch.dtype
    first: list[int]


def captured_prefill(
    attachment: Attachment, call: Call, original: Callable, args: tuple, kwargs: dict[str, Any]
) -> tuple[Any, CacheState, Prefilled] | None:
    """What the language model returns, what decoding needs, and what the trace tells, computed by a graph.

    None where it must be computed plainly.
    """
    graphs, prompt = attachment.graphs, call.prompt
    if graphs is None or prompt is None or args or not _ordinary(prompt, kwargs):
        return None
    if attachment.strategy.own_count:
        return None
    cache = _cache(attachment, kwargs)
    if not _grows(cache):
        return None
    kwargs = {**kwargs, CACHE: cache}
    counts_text = "counts text", strategy_key(attachment.strategy)
    with graphs.lock:
        try:
            filler = None if counts_text in graphs.notes else filled_by(prompt.length)
            return _captured(attachment, call, original, kwargs, filler)
        except UnknownText:
            graphs.notes.add(counts_text)
            return None


def _cache(attachment: Attachment, kwargs: dict[str, Any]) -> Any:
    """The one that is given, or that the language model would make."""
    cache = cache_of(kwargs)
    return DynamicCache(config=attachment.anatomy.language_model.config) if cache is None else cache


def _grows(cache: Any) -> bool:
    """Whether all layers of a cache only become longer, and stay on the device."""
    plain = type(cache) is DynamicCache and not getattr(cache, "offloading", False)
    return plain and all(type(layer) is DynamicLayer for layer in cache.layers)


def _ordinary(prompt: Prompt, kwargs: dict[str, Any]) -> bool:
    """Whether this is a prefill as `generate` makes it."""
    return (
        only_usual(kwargs)
        and kwargs.get("use_cache") is True
        and prompt.length == prompt.valid.shape[1]
        and prompt.text_at_end > 0
    )


def _captured(
    attachment: Attachment, call: Call, original: Callable, kwargs: dict[str, Any], filler: int | None
) -> tuple[Any, CacheState, Prefilled] | None:
    graphs, prompt, running = attachment.graphs, call.prompt, attachment.running
    assert graphs is not None and prompt is not None
    more = filler or 0
    filled, positions = _filled(prompt, more), kwargs.get("position_ids")
    hidden: Tensor = kwargs["inputs_embeds"]
    inputs: list[Input] = [Padded(hidden, more)]
    if filler is not None:
        inputs.append(torch.full((1,), filler, dtype=torch.long, device=hidden.device))
    if positions is not None:
        inputs.append(_more_positions(positions, more))
    pictures = [(medium, _counted(image)) for medium, images in call.encoded.items() for image in images]
    for _, image in pictures:
        if image.left is not None:
            inputs += [image.left, image.size]
    given = positions is not None, filler is not None
    depth, room = len(attachment.anatomy.llm_layers), room_for(foreseen(running.longest))
    read = _last_read(running.read, prompt)

    def record(own: list[Tensor], slot: Slot | None) -> _Out:
        rest = iter(own)
        states = next(rest)
        behind = next(rest) if given[1] else None
        places = next(rest) if given[0] else None
        cache, layers = DynamicCache(), [_Sent(number, slot) for number in range(depth)]
        cache.layers = [*layers]
        mask = None if filled.valid.all() else upload(filled.valid, states.device).long()
        kwargs = {"inputs_embeds": states, "attention_mask": mask, "position_ids": places, CACHE: cache,
                  "use_cache": True}  # fmt: skip
        now = Call(_encoded(pictures, rest), filled)
        with attachment.running.during("call", now):
            prefill = now.llm = Prefill(attachment, now, states, kwargs, behind)
            out = original(**prefill.kwargs)
        last = prefill.leave(out).last_hidden_state if read is None else prefill.end(out.last_hidden_state, read)
        cached, first = [layer.shape for layer in layers], [segment.layer for segment in prefill.segments]
        return _Out(type(out), last, pack((prefill.steps, prefill.segments)), cached, layers[0].kind, first)

    def needs(out: _Out) -> Shape:
        # What fills a prompt up is left out where text is counted; a step finds the same buffers either way.
        wide = filled_by(prompt.length) - more
        cached = [(heads, length + wide, key, value) for heads, length, key, value in out.cached]
        return shape_of(cached, len(prompt.valid), out.first, room, out.dtype)

    def take(out: _Out, slot: Slot | None) -> tuple[Any, CacheState, Prefilled]:
        assert slot is not None
        steps, segments = unpack(out.packed)
        if more:
            segments = [segment.without_last(more) for segment in segments]
        cache = cache_of(kwargs)
        _start(cache, slot)
        graphs.buffers.hand_out(slot, cache, held_by(segments, depth), [segment.valid for segment in segments])
        state = CacheState(attachment, prompt.length, len(prompt.valid), segments, prompt.text_at_end)
        last = (out.last if read is not None else out.last[:, : prompt.length]).clone()
        return out.kind(last_hidden_state=last, **{CACHE: cache}), state, _shown(attachment, call, steps)

    key = _key(attachment, filled, pictures, given), room, read
    return graphs.replay(key, inputs, record, take, through=UnknownText, needs=needs)


def _last_read(wanted: Any, prompt: Prompt) -> int | None:
    """How many of the last states somebody reads, if these are text in all prompts; None for all."""
    return wanted if type(wanted) is int and 0 < wanted <= prompt.text_at_end else None


def _counted(image: EncodedImage) -> EncodedImage:
    """With the number of tokens that are left of it. Where the device has to count them, this waits for it."""
    return image if image.known is not None else replace(image, known=image.tokens)


def _filled(prompt: Prompt, filler: int) -> Prompt:
    """The same prompts with more text behind them."""
    if not filler:
        return prompt
    more = ((0, 0), (0, filler))
    media = {medium: np.pad(holds, more) for medium, holds in prompt.media.items()}
    valid = np.pad(prompt.valid, more, constant_values=True)
    return Prompt(valid, media, prompt.length + filler, np.pad(prompt.ids, more))


def _more_positions(positions: Tensor, filler: int) -> Tensor:
    """(..., L + filler) positions that go on behind (..., L)."""
    if not filler:
        return positions
    behind = torch.arange(1, filler + 1, dtype=positions.dtype, device=positions.device)
    return torch.cat([positions, positions[..., -1:] + behind], -1)


def _encoded(pictures: list[tuple[Medium, EncodedImage]], inputs: Iterator[Tensor]) -> dict[Medium, list[EncodedImage]]:
    """The pictures as the graph sees them: what is left of them is read from its inputs."""
    out: dict[Medium, list[EncodedImage]] = {}
    for medium, image in pictures:
        if image.left is not None:
            left, size = next(inputs), next(inputs)
            image = replace(image, steps=[], left=left, make_size=partial(_same, size))
        else:
            image = replace(image, steps=[])
        out.setdefault(medium, []).append(image)
    return out


def _same(x: Tensor) -> Tensor:
    return x


def _start(cache: DynamicCache, slot: Slot) -> None:
    """Make a cache ready to be given keys and values."""
    cache.layers += [DynamicLayer() for _ in range(len(slot.keys) - len(cache.layers))]
    for layer, keys in zip(cache.layers, slot.keys, strict=True):
        layer.dtype, layer.device, layer.is_initialized = keys.dtype, keys.device, True


def _shown(attachment: Attachment, call: Call, steps: list[Step]) -> Prefilled:
    assert call.prompt is not None
    images = placed_images(attachment.anatomy, call.prompt, call.encoded)
    before = list({id(step): step for image in images for step in image.encoded.steps}.values())
    rows = [image.row for image in images]
    per_row = [rows.count(row) for row in range(len(call.prompt.valid))]
    return Prefilled(before + steps, [image.encoded for image in images], per_row)


def _key(
    attachment: Attachment, prompt: Prompt, pictures: list[tuple[Medium, EncodedImage]], given: tuple[bool, bool]
) -> Hashable:
    schedule = repr(attachment.schedule.plan("llm"))  # as words: 1 token and all of them, 1.0, are equal numbers
    places = tuple((medium, holds.tobytes()) for medium, holds in prompt.media.items())
    shown = tuple((medium, image.layout.key, image.known, image.left is None) for medium, image in pictures)
    strategy = strategy_key(attachment.strategy)
    return "prefill", strategy, schedule, attachment.positions, prompt.valid.tobytes(), places, shown, given
