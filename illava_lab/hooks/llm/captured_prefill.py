"""The prefill of the language model with its reductions, as one graph.

Prompts are filled up behind their end to a step of lengths, so that a conversation is not captured anew at every
question. What lies behind a prompt is hidden from it by the order of attention, counts in no statistic, and is cut off
again.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional
from transformers.cache_utils import DynamicCache, DynamicLayer

from illava_lab.hooks.attachment import Attachment
from illava_lab.hooks.graphs.fresh import Packed, pack, unpack
from illava_lab.hooks.graphs.keys import strategy_key
from illava_lab.hooks.llm.cache import CacheState
from illava_lab.hooks.llm.call import Call, only_usual
from illava_lab.hooks.llm.prefill import Prefill
from illava_lab.hooks.llm.prompt import Prompt, placed_images
from illava_lab.hooks.llm.site import UnknownText
from illava_lab.method.brought import upload
from illava_lab.models.layout import Medium
from illava_lab.trace.encoded import EncodedImage
from illava_lab.trace.step import Step
from illava_lab.trace.trace import Prefilled

STEP = 16  # tokens; lengths are filled up to a multiple


class _Kept(DynamicLayer):
    """A cache layer that holds what it was given, without a copy."""

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        self.dtype, self.device = key_states.dtype, key_states.device
        self.keys, self.values, self.is_initialized = key_states, value_states, True
        return key_states, value_states


@dataclass(frozen=True, eq=False)
class _Out:
    """What a graph of a prefill writes."""

    kind: type
    last: Tensor
    keys: list[Tensor]
    values: list[Tensor]
    packed: Packed  # steps and segments


def captured_prefill(
    attachment: Attachment, call: Call, original: Callable, args: tuple, kwargs: dict[str, Any]
) -> tuple[Any, CacheState, Prefilled] | None:
    """What the language model returns, what decoding needs, and what the trace tells, computed by a graph.

    None where it must be computed plainly.
    """
    graphs, prompt = attachment.graphs, call.prompt
    if graphs is None or prompt is None or args or not _ordinary(prompt, call, kwargs):
        return None
    if attachment.strategy.own_count:
        return None
    cache = _cache(attachment, kwargs)
    if not _grows(cache):
        return None
    kwargs = {**kwargs, "past_key_values": cache}
    counts_text = "counts text", strategy_key(attachment.strategy)
    with graphs.lock:
        try:
            filler = None if counts_text in graphs.notes else -prompt.length % STEP
            return _captured(attachment, call, original, kwargs, filler)
        except UnknownText:
            graphs.notes.add(counts_text)
            return None


def _cache(attachment: Attachment, kwargs: dict[str, Any]) -> Any:
    """The one that is given, or that the language model would make."""
    cache = kwargs.get("past_key_values")
    return DynamicCache(config=attachment.anatomy.language_model.config) if cache is None else cache


def _grows(cache: Any) -> bool:
    """Whether all layers of a cache only become longer, and stay on the device."""
    plain = type(cache) is DynamicCache and not getattr(cache, "offloading", False)
    return plain and all(type(layer) is DynamicLayer for layer in cache.layers)


def _ordinary(prompt: Prompt, call: Call, kwargs: dict[str, Any]) -> bool:
    """Whether this is a prefill as `generate` makes it."""
    return (
        only_usual(kwargs)
        and kwargs.get("use_cache") is True
        and prompt.length == prompt.valid.shape[1]
        and prompt.text_at_end > 0
        and all(image.known is not None for images in call.encoded.values() for image in images)
    )


def _captured(
    attachment: Attachment, call: Call, original: Callable, kwargs: dict[str, Any], filler: int | None
) -> tuple[Any, CacheState, Prefilled] | None:
    graphs, prompt = attachment.graphs, call.prompt
    assert graphs is not None and prompt is not None
    more = filler or 0
    filled, positions = _filled(prompt, more), kwargs.get("position_ids")
    inputs = [functional.pad(kwargs["inputs_embeds"], (0, 0, 0, more))]
    if filler is not None:
        inputs.append(torch.full((1,), filler, dtype=torch.long, device=inputs[0].device))
    if positions is not None:
        inputs.append(_more_positions(positions, more))
    pictures = [(medium, image) for medium, images in call.encoded.items() for image in images]
    for _, image in pictures:
        if image.left is not None:
            inputs += [image.left, image.size]
    given = positions is not None, filler is not None
    depth = len(attachment.anatomy.llm_layers)

    def record(own: list[Tensor]) -> _Out:
        rest = iter(own)
        states = next(rest)
        behind = next(rest) if given[1] else None
        places = next(rest) if given[0] else None
        cache = DynamicCache()
        cache.layers = [_Kept() for _ in range(depth)]
        mask = None if filled.valid.all() else upload(filled.valid, states.device).long()
        kwargs = {"inputs_embeds": states, "attention_mask": mask, "position_ids": places, "past_key_values": cache,
                  "use_cache": True}  # fmt: skip
        now = Call(_encoded(pictures, rest), filled)
        with attachment.running.during("call", now):
            prefill = now.llm = Prefill(attachment, now, states, kwargs, behind)
            out = prefill.leave(original(**prefill.kwargs))
        keys, values = ([getattr(layer, name) for layer in cache.layers] for name in ("keys", "values"))
        return _Out(type(out), out.last_hidden_state, keys, values, pack((prefill.steps, prefill.segments)))

    def take(out: _Out) -> tuple[Any, CacheState, Prefilled]:
        cache = kwargs["past_key_values"]
        _fill(cache, out, more)
        steps, segments = unpack(out.packed)
        if more:
            segments = [segment.without_last(more) for segment in segments]
        state = CacheState(attachment, prompt.length, len(prompt.valid), segments, prompt.text_at_end)
        last = out.last[:, : prompt.length].clone()
        return out.kind(last_hidden_state=last, past_key_values=cache), state, _shown(attachment, call, steps)

    key = _key(attachment, filled, pictures, given)
    return graphs.replay(key, inputs, record, take, through=UnknownText)


def _filled(prompt: Prompt, filler: int) -> Prompt:
    """The same prompts with more text behind them."""
    if not filler:
        return prompt
    more = ((0, 0), (0, filler))
    media = {medium: np.pad(holds, more) for medium, holds in prompt.media.items()}
    return Prompt(np.pad(prompt.valid, more, constant_values=True), media, prompt.length + filler)


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


def _fill(cache: DynamicCache, out: _Out, filler: int) -> None:
    """Give a cache copies of what was computed, without what lies behind the prompts."""
    cache.layers += [DynamicLayer() for _ in range(len(out.keys) - len(cache.layers))]
    for layer, key, value in zip(cache.layers, out.keys, out.values, strict=True):
        length = key.shape[2] - filler
        layer.dtype, layer.device, layer.is_initialized = key.dtype, key.device, True
        layer.keys, layer.values = (x[:, :, :length].clone(memory_format=torch.contiguous_format) for x in (key, value))


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
