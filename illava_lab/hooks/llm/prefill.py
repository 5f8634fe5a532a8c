"""A prefill: what is left of the prompt, layer by layer."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import cache as memoize
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from illava_lab.errors import LabError
from illava_lab.hooks.compat import causal_mask
from illava_lab.hooks.llm.call import Decode, Entry, PlacedImage, Prefill, Prompt, Segment
from illava_lab.hooks.llm.prompt import images_of, read_prompt
from illava_lab.hooks.llm.sequence import compact, gather_sequence, in_order, upload
from illava_lab.hooks.tap import peek
from illava_lab.hooks.towers.rows import RowsTower
from illava_lab.method.ask import ask
from illava_lab.method.keep import Keep, kept
from illava_lab.method.strategy import Strategy
from illava_lab.method.tokens import Tokens
from illava_lab.models.families import Anatomy
from illava_lab.sites.attention import AttentionSite, UnequalText, tokens_at
from illava_lab.trace.step import Step
from illava_lab.trace.trace import Trace

Positions = Literal["original", "packed"]


class Prefilling:
    """The part of an attachment that reduces the prompt inside the language model."""

    anatomy: Anatomy
    strategy: Strategy
    plan: dict[int, Keep]
    positions: Positions
    encoder: RowsTower
    trace: Trace
    _input_ids: Tensor | None
    _call: Prefill | Decode | None

    def _prefill(self, hidden: Tensor, mask: Tensor | None, kwargs: dict[str, Any]) -> dict[str, Any]:
        batch, length = hidden.shape[:2]
        if self._input_ids is None:
            raise LabError(
                "visual tokens are found in input_ids, and none came to the model, which drops them where "
                "inputs_embeds are given; pass input_ids with pixel_values, without inputs_embeds"
            )
        prompt = read_prompt(self.anatomy, self._input_ids, hidden, mask)
        images = images_of(self.anatomy, prompt, self.encoder.visuals)
        alive = (prompt.valid | prompt.visual) & ~prompt.hole  # a visual token may be masked, and is no padding then
        lengths = alive.sum(1)
        changed, some_masked = bool(prompt.hole.any()), bool((alive & ~prompt.valid).any())

        slots = torch.arange(length, device=hidden.device).expand(batch, -1)
        valid = torch.ones_like(slots, dtype=torch.bool) if mask is None else mask[:, :length].bool()
        text, taken = (upload(where, hidden.device) for where in (prompt.text, alive))
        segment = Segment(0, slots, slots, valid, bool(prompt.valid.all()))
        positions = kwargs.get("position_ids")
        positions = slots[:1] if positions is None else positions
        if changed:
            order, there = compact(taken, int(lengths.max()))
            full = lengths.min() == lengths.max() and not some_masked
            segment = Segment(0, slots[:, : order.shape[1]], order, valid.gather(1, order) & there, bool(full))
            text, taken = text.gather(1, order) & there, there
            positions = gather_sequence(positions, order, -1)
            # Fill slots must be zero, not only masked: 0 * NaN is NaN. An explicit mask keeps transformers from
            # reading gaps in the positions as several packed sequences.
            kwargs = {
                **kwargs,
                "inputs_embeds": gather_sequence(hidden, order, 1).masked_fill(~there[..., None], 0.0),
                "attention_mask": segment.valid.long(),
                "position_ids": _pack(segment, positions) if self.positions == "packed" else positions,
                **self._deepstack(kwargs, prompt, order, there),
            }

        now = np.broadcast_to(np.arange(length), alive.shape)  # slots of the sequence that enters
        if changed:
            now = alive.cumsum(1) - 1 + (lengths.max() - lengths)[:, None]
        left = [~image.visual.layout.marker.numpy() & alive[image.row, image.at] for image in images]
        at = [now[image.row, image.at[own]] for image, own in zip(images, left, strict=True)]
        place = [image.visual.layout.place.numpy()[own] for image, own in zip(images, left, strict=True)]
        sizes = [image.visual.size.to(hidden.device) for image in images]
        size = torch.cat([hidden.new_zeros(0, dtype=torch.float32), *sizes])
        entry = Entry(kwargs["inputs_embeds"], text, upload(at, hidden.device), [len(own) for own in at])
        self._call = Prefill(
            [segment], positions, images, entry.counts, text, taken, lengths, some_masked, at=entry.at,
            size=size[upload(np.flatnonzero(np.concatenate([[], *left])), hidden.device)],
            place=upload(place, hidden.device), entry=entry, changed=changed,
        )  # fmt: skip
        self._start_trace(images)
        return kwargs

    @staticmethod
    def _deepstack(kwargs: dict[str, Any], prompt: Prompt, order: Tensor, there: Tensor) -> dict[str, Any]:
        """What the first layers add to visual tokens (Qwen3-VL), for those that are left."""
        features = kwargs.get("deepstack_visual_embeds")
        if features is None:
            return {}
        left = upload(np.flatnonzero(~prompt.hole[prompt.visual]), order.device)
        mask = upload(prompt.visual, order.device).gather(1, order) & there
        return {"visual_pos_masks": mask, "deepstack_visual_embeds": [layer[left] for layer in features]}

    def _start_trace(self, images: list[PlacedImage]) -> None:
        assert self._input_ids is not None
        rows = [image.row for image in images]
        self.trace.start([image.visual for image in images], [rows.count(row) for row in range(len(self._input_ids))])

    def _short_kwargs(self, call: Prefill, hidden: Tensor, kwargs: dict[str, Any]) -> dict[str, Any]:
        segment = call.segments[-1]
        if not call.changed:
            return {}
        # Rotary tables are made from the true positions; layers only see consecutive ones, because flash attention
        # reads gaps as several packed sequences.
        consecutive = torch.arange(hidden.shape[1], device=hidden.device).expand(hidden.shape[0], -1)
        if segment.layer == 0:
            return {"position_ids": consecutive}
        if self.positions == "packed":
            packed = _pack(segment, gather_sequence(call.positions, segment.entry, -1))
            tables = self.anatomy.language_model.rotary_emb(hidden, position_ids=packed)
        else:
            tables = tuple(gather_sequence(table, segment.entry, -2) for table in kwargs["position_embeddings"])
        config = self.anatomy.language_model.config
        return {
            "position_ids": consecutive,
            "position_embeddings": tables,
            "attention_mask": causal_mask(config, hidden, None if segment.full else segment.valid, 0),
        }

    def _reduce(self, call: Prefill, index: int, hidden: Tensor, rotary: tuple[Tensor, Tensor]) -> Tensor:
        """Ask the strategy for every image, and shorten the sequence."""
        last, where = call.segments[-1], f"llm layer {index}"
        batch, length = last.valid.shape
        rows = np.array([image.row for image in call.images], dtype=np.int64)
        first = np.cumsum([0, *call.counts])
        groups: dict[Any, list[int]] = {}
        for i, (image, *counts) in enumerate(zip(call.images, call.counts, call.entry.counts, strict=True)):
            if counts[0]:
                groups.setdefault((*counts, image.visual.layout.grid), []).append(i)
        layer: Any = self.anatomy.llm_layers[index]
        ahead = memoize(lambda states=hidden: peek(layer.self_attn, layer.input_layernorm(states), rotary))
        keep = call.taken.flatten().clone()
        flat = upload(np.repeat(rows, call.counts) * length, hidden.device) + call.at
        keep[flat] = False

        at, place, size, merged, after = [], [], [], [], np.zeros(len(rows), dtype=np.int64)
        done: list[int] = []
        pending = list(groups.values())
        while pending:
            group = pending.pop(0)
            before = call.counts[group[0]]
            pick = upload(first[group][:, None] + np.arange(before), hidden.device)
            try:
                tokens = self._tokens(call, index, hidden, group, pick, ahead)
                reduction = ask(self.strategy, tokens, kept(self.plan[index], before, where))
            except UnequalText:
                pending = [*_split(group, [call.images[i].text_after for i in group]), *pending]
                continue
            self.trace.steps.append(Step("llm", index, group, reduction, before, reduction.slots))
            # Whatever order a strategy gives its slots, the LLM keeps them in the order of their places.
            anchor, order = reduction.anchor.sort(dim=1)
            at.append(call.at[pick].gather(1, anchor).flatten())
            place.append(call.place[pick].gather(1, anchor).flatten())
            size.append(reduction.sizes(call.size[pick]).gather(1, order).flatten())
            keep[flat[pick].gather(1, anchor)] = True
            if reduction.weight is not None:
                merged.append((flat[pick].gather(1, anchor), gather_sequence(reduction.apply(tokens.hidden), order, 1)))
            after[group] = reduction.slots
            done += group
        for target, states in merged:
            hidden = hidden.flatten(0, 1).index_copy(0, target.flatten(), states.flatten(0, 1)).view_as(hidden)
        call.attention = None
        if not done:
            call.segments.append(replace(last, layer=index))
            return hidden

        call.changed = True
        call.at, call.place, call.size = (in_order(parts, done, after) for parts in (at, place, size))
        call.lengths = call.lengths - np.bincount(rows, np.array(call.counts) - after, minlength=batch).astype(np.int64)
        longest = int(call.lengths.max())
        keep = keep.view(batch, length)
        origin, alive = compact(keep, longest)
        entry, prompt, valid = (x.gather(1, origin) for x in (last.entry, last.prompt, last.valid))
        full = call.lengths.min() == longest and not call.some_masked
        call.segments.append(Segment(index, entry, prompt, valid & alive, bool(full)))
        row = upload(np.repeat(rows, after), hidden.device)
        call.at = (keep.cumsum(1) - 1 + upload(longest - call.lengths, hidden.device)[:, None])[row, call.at]
        call.text, call.taken = call.text.gather(1, origin) & alive, alive
        call.counts = after.tolist()
        return gather_sequence(hidden, origin, 1)

    def _tokens(
        self,
        call: Prefill,
        index: int,
        hidden: Tensor,
        group: list[int],
        pick: Tensor,
        ahead: Callable[[], tuple[Tensor, Tensor]],
    ) -> Tokens:
        """The tokens of a group of images that have equally many.

        Args:
            pick: (I, n) where they are in the flat list; ahead: queries and keys of the layer to come.
        """
        assert call.attention is not None
        query, key, mask, scaling = call.attention
        segment, at = call.segments[-1], call.at[pick]
        images = [call.images[i] for i in group]
        rows = [image.row for image in images]
        prompts = sorted(set(rows))
        # A view wherever they lie side by side: a copy for each image would make the peak memory of many images.
        own: slice | Tensor = slice(prompts[0], prompts[-1] + 1)
        if len(prompts) < prompts[-1] + 1 - prompts[0]:
            own = upload(np.array(prompts), hidden.device)
        query, key, hidden, valid, text = (x[own] for x in (query, key, hidden, segment.valid, call.text))
        if mask is not None and mask.shape[0] > 1:
            mask = mask[own]
        prompt = upload(np.searchsorted(prompts, rows), hidden.device)
        behind = {image.text_after for image in images}
        after = behind.pop() if len(behind) == 1 else None

        def entry() -> tuple[Tensor, Tensor, Any]:  # no text where images differ in how much of it follows
            first, count = np.cumsum([0, *call.entry.counts]), call.entry.counts[group[0]]
            visual = call.entry.at[upload(first[group][:, None] + np.arange(count), hidden.device)]
            return call.entry.hidden[own], visual, None if after is None else compact(call.entry.text[own], after)[0]

        def coming() -> tuple[Tensor, Tensor]:
            query, key = ahead()
            return query[own], key[own]

        site = AttentionSite(
            query,
            key,
            scaling,
            mask,
            None if segment.full else valid,
            causal=mask is None or mask.dim() == 2,
            visual=at,
            prompt=prompt,
            hidden=hidden,
            last=torch.where(valid, torch.arange(valid.shape[1], device=valid.device), -1).max(1).values,
            text=None if after is None else compact(text, after)[0],
            ahead=coming,
            entry=entry,
            norm=self.anatomy.language_model.norm,
        )
        return Tokens(
            "llm",
            tokens_at(hidden, at, prompt),
            layer=index,
            size=call.size[pick],
            position=call.place[pick],
            grid=images[0].visual.layout.grid,
            site=site,
        )


def _pack(segment: Segment, positions: Tensor) -> Tensor:
    """(B, L) position ids without gaps; notes on the segment how far the last token moved."""
    if positions.dim() != 2:
        raise LabError('positions="packed" is only defined for one-dimensional positions')
    packed = (segment.valid.long().cumsum(1) - 1).clamp_min(0)
    segment.shift = positions[:, -1] - packed[:, -1]
    return packed


def _split(group: list[int], by: list[int]) -> list[list[int]]:
    """Parts of a group whose members have the same value."""
    return [[i for i, value in zip(group, by, strict=True) if value == wanted] for wanted in sorted(set(by))]
