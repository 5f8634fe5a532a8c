"""A prefill: what is left of the prompts, layer by layer.

Every length follows from the prompt and the schedule, and is known on the host. Which tokens are left is known on the
device only, and nothing here waits for it.
"""

from __future__ import annotations

from functools import cache as memoize
from functools import partial
from typing import Any

import torch
from torch import Tensor

from illava_lab.errors import LabError
from illava_lab.hooks.attachment import Attachment
from illava_lab.hooks.compat import cache_of, causal_mask
from illava_lab.hooks.llm.cache import CacheState, Segment
from illava_lab.hooks.llm.call import Call
from illava_lab.hooks.llm.groups import Group, group_images, split
from illava_lab.hooks.llm.prompt import placed_images
from illava_lab.hooks.llm.proportional import entry_counts, log_sizes
from illava_lab.hooks.llm.sequence import Sequence, gather_sequence
from illava_lab.hooks.llm.site import Around, llm_tokens
from illava_lab.hooks.tap import peek
from illava_lab.method.ask import ask, own_counts
from illava_lab.method.brought import upload
from illava_lab.method.keep import kept
from illava_lab.method.token_map import TokenMap
from illava_lab.sites.attention import UnequalText
from illava_lab.trace.step import Step
from illava_lab.trace.trace import Prefilled


def _nothing_hidden(attachment: Attachment, kwargs: dict[str, Any]) -> bool:
    return attachment.graphs is not None and kwargs.get("attention_mask") is None


class Prefill:
    """One prefill that reduces.

    Args:
        hidden: (B, L, C) what enters the language model; kwargs: its arguments.
        filler: (1,) long, how many tokens at the end belong to no prompt; None where none do.

    Attributes:
        images: the images and videos of the prompts, in their order.
        groups: those that have equally many tokens left, and are asked about together.
        sequence: what the layers see at this moment.
        segments: what they cache, from the first layer on.
        steps: the reductions so far.
    """

    def __init__(
        self, attachment: Attachment, call: Call, hidden: Tensor, kwargs: dict[str, Any], filler: Tensor | None = None
    ) -> None:
        assert call.prompt is not None
        self.attachment, self.anatomy, self.prompt = attachment, attachment.anatomy, call.prompt
        self.images = placed_images(self.anatomy, self.prompt, call.encoded)
        self.steps: list[Step] = list({id(step): step for i in self.images for step in i.encoded.steps}.values())
        self.sequence = Sequence(self.prompt, hidden, filler)
        # Queries, keys and values of the layer that ran last, the scaling of its logits, and their mask if it weighs.
        self.seen: tuple[Tensor, Tensor, Tensor, float, Tensor | None] | None = None
        self._positions: Tensor | None = kwargs.get("position_ids")
        self._shift: Tensor | None = None
        # What layers get from the last reduction on; or from the first layer on, where no value may be looked at to
        # find that nothing is hidden.
        self._arguments: dict[str, Any] = {"attention_mask": None} if _nothing_hidden(attachment, kwargs) else {}
        self.kwargs = self._enter(hidden, kwargs)
        self.weighs = attachment.strategy.proportional_in_llm and attachment.schedule.reduces
        self.groups: list[Group] = []
        if attachment.schedule.llm or self.weighs:
            self.groups = group_images(self.images, self.sequence)
            self.entry = Around(self.kwargs["inputs_embeds"], self.sequence.text_now())
        for group in self.groups if self.weighs else ():
            group.counts = entry_counts(group)
        self.segments: list[Segment] = []
        self._segment(0)

    # ---- the entry
    def _enter(self, hidden: Tensor, kwargs: dict[str, Any]) -> dict[str, Any]:
        """Drop what the encoder removed, and padding with it; the arguments of the language model."""
        gone = [image.encoded.layout.tokens - image.encoded.tokens for image in self.images]
        if not any(gone):
            # Nobody need look at a mask that hides nothing; without a cache it says that a row is one prompt.
            whole = self.prompt.valid.all() and cache_of(kwargs) is not None
            return {**kwargs, "attention_mask": None} if whole else kwargs
        sequence, left = self.sequence, torch.cat([image.left_on(hidden.device) for image in self.images])
        present = sequence.present.view(-1).index_put((sequence.flat(self.images),), left.to(torch.int8))
        order = sequence.shorten(present.view(len(hidden), -1), [image.row for image in self.images], gone)
        self._positions = order if self._positions is None else gather_sequence(self._positions, order, -1)
        self._arguments["position_ids"] = None  # flash attention reads gaps as several packed sequences
        return {
            **kwargs,
            "inputs_embeds": sequence.cleared(hidden[sequence.row, order]),
            "attention_mask": sequence.mask(cache_of(kwargs) is not None),
            "position_ids": self._pack() if self.attachment.positions == "packed" else self._positions,
            **self._deepstack(kwargs, order, left),
        }

    def _deepstack(self, kwargs: dict[str, Any], order: Tensor, left: Tensor) -> dict[str, Any]:
        """What the first layers add to visual tokens (Qwen3-VL), for those that are left."""
        features = kwargs.get("deepstack_visual_embeds")
        if features is None:
            return {}
        count = sum(image.encoded.tokens for image in self.images)
        index = (~left).to(torch.int8).argsort(stable=True)[:count]
        visual = upload(self.prompt.visual, order.device)[self.sequence.row, order]
        return {
            "visual_pos_masks": visual & (self.sequence.present > 0),
            "deepstack_visual_embeds": [layer[index.to(layer.device)] for layer in features],
        }

    def _pack(self) -> Tensor:
        """(B, L) position ids without gaps; notes how far the last token moved."""
        assert self._positions is not None
        packed = self.sequence.numbered()
        self._shift = self._positions[:, -1] - packed[:, -1]
        return packed

    # ---- a layer
    def enter_layer(self, index: int, hidden: Tensor, kwargs: dict[str, Any]) -> tuple[Tensor, dict[str, Any]]:
        """What a layer is called with."""
        if index in self.attachment.schedule.llm:
            kwargs = {**kwargs, **self._arguments}
            hidden = self._reduce(index, hidden, kwargs)
        if index in self.anatomy.linear and "attention_mask" in self._arguments:
            valid = self.sequence.valid  # such a layer wants to know what is padding, and sees nothing that comes later
            return hidden, {**self._arguments, "attention_mask": None if valid is None else valid.long()}
        return hidden, self._arguments

    def _ahead(self, index: int, hidden: Tensor, tables: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        """Queries and keys of a layer to come."""
        layer: Any = self.anatomy.llm_layers[index]
        if index in self.anatomy.linear:
            raise LabError(
                f"llm layer {index} has linear attention: no queries and keys that tell what it would attend to"
            )
        return peek(layer.self_attn, layer.input_layernorm(hidden), tables)

    def _reduce(self, index: int, hidden: Tensor, kwargs: dict[str, Any]) -> Tensor:
        """Ask the strategy for every image, and shorten the sequence."""
        tables = kwargs["position_embeddings"]
        ahead = memoize(partial(self._ahead, index, hidden, tables))
        sequence, norm = self.sequence, self.anatomy.language_model.norm
        sequence.to(hidden.device)
        around = Around(hidden, sequence.text_now(), self.seen, ahead)
        present, merged, done, pending = sequence.present, [], [], [*self.groups]
        gone: list[int] = []
        plan, strategy = self.attachment.schedule.plan("llm"), self.attachment.strategy
        media = strategy.at("llm", index).media
        while pending:
            group = pending.pop(0)
            group.to(hidden.device)
            try:
                tokens = llm_tokens(index, group, around, self.entry, sequence, norm, plan)
                own = own_counts(strategy, tokens, plan[index]) if group.medium in media else None
                if own is not None and len(set(own)) > 1:
                    pending = [*split(group, own), *pending]
                    continue
                if group.medium in media:
                    keep = kept(plan[index], group.count, f"llm layer {index}") if own is None else own[0]
                    reduction = ask(strategy, tokens, keep)
                else:
                    reduction = TokenMap.identity(tokens)
            except UnequalText:
                pending = [*split(group, [image.text_after for image in group.images]), *pending]
                continue
            self.steps.append(Step("llm", index, group.numbers, reduction, group.count, reduction.slots))
            gone.append(group.count - reduction.slots)
            # Whatever order a strategy gives its slots, the language model keeps them in the order of their places.
            anchor, order = reduction.anchor.sort(dim=1)
            present = sequence.without(present, group.row, group.at)
            group.at = group.at.gather(1, anchor)
            present = sequence.with_(present, group.row, group.at)
            if reduction.merges:
                merged.append((group, reduction.apply(tokens.hidden)[tokens.row, order]))
            group.survivors = group.survivors.after(reduction).at(order)
            if group.counts is not None:
                group.counts = reduction.sizes(group.counts).gather(1, order)
            done.append(group)
        self.groups, self.seen = done, None
        return self._go_on(index, hidden, present, gone, merged, tables)

    def _go_on(
        self, index: int, hidden: Tensor, present: Tensor, gone: list[int], merged: list[tuple[Group, Tensor]],
        tables: tuple[Tensor, Tensor],
    ) -> Tensor:  # fmt: skip
        """The shorter sequence, and what the layers behind get with it."""
        if not self.groups:
            self._segment(index)
            return hidden
        rows = [row for group in self.groups for row in group.rows]
        counts = [count for group, count in zip(self.groups, gone, strict=True) for _ in group.rows]
        order = self.sequence.shorten(present, rows, counts)
        for group in self.groups:
            group.at = self.sequence.places[group.row, group.at]
        hidden = hidden[self.sequence.row, order]
        for group, states in merged:
            hidden = hidden.index_put((group.row, group.at), states)
        if self.attachment.positions == "packed":
            self._positions = order if self._positions is None else gather_sequence(self._positions, order, -1)
            tables = self.anatomy.language_model.rotary_emb(hidden, position_ids=self._pack())
        else:
            cos, sin = (gather_sequence(table, order, -2) for table in tables)
            tables = cos, sin
        config = self.anatomy.language_model.config
        self._arguments = {
            # Layers see no position ids: flash attention reads gaps as several packed sequences.
            "position_ids": None,
            "position_embeddings": tables,
            "attention_mask": causal_mask(config, hidden, self.sequence.valid, 0),
        }
        self._segment(index)
        return hidden

    def _segment(self, index: int) -> None:
        """A stretch of layers begins."""
        if index == 0:  # no layer has seen what entered
            self.segments.clear()
        fewer = self.weighs and any(group.count < group.images[0].encoded.layout.tokens for group in self.groups)
        bias = log_sizes(self.groups, self.sequence) if fewer else None
        self.segments.append(Segment(index, self.sequence.length, self.sequence.valid, self._shift, bias))

    def bias(self, index: int) -> Tensor | None:
        """(B, L) of the layers that run now, the log of how many tokens each stands for; None where each is one."""
        return self.segments[-1].bias

    # ---- the end
    def leave(self, out: Any) -> Any:
        """What the language model returns: as long as the prompt again, zero where tokens went."""
        if self.sequence.changed:
            out["last_hidden_state"] = self.sequence.spread(out.last_hidden_state)
        return out

    def end(self, hidden: Tensor, count: int) -> Tensor:
        """(B, count, C): of states (B, L, C) those of the last `count` tokens, which are text in all prompts."""
        if self.sequence.filler is None:
            return hidden[:, -count:].clone()
        at = torch.arange(self.sequence.length - count, self.sequence.length, dtype=torch.long, device=hidden.device)
        return hidden.index_select(1, at - self.sequence.filler)

    def cache_state(self) -> CacheState:
        """What decoding needs."""
        prompt, tail, segments = self.prompt, self.sequence.tail, self.segments
        if tail:  # what was drafted behind the prompt counts as generated
            segments = [segment.without_last(tail) for segment in segments]
        return CacheState(self.attachment, prompt.length, len(prompt.valid), segments, prompt.text_at_end)

    def shown(self) -> Prefilled:
        """What the trace tells of it."""
        rows = [image.row for image in self.images]
        per_row = [rows.count(row) for row in range(len(self.prompt.valid))]
        return Prefilled(self.steps, [image.encoded for image in self.images], per_row)
