"""Reducing visual tokens inside a language model, and keeping its cache, masks and positions right.

At the entry, holes that the encoder left are dropped. Before each reducing layer K, visual tokens are scored with the
attention of layer K-1 and mapped to fewer. Padding goes with them, down to the longest prompt of the batch. From there
on, hidden states, rotary tables and masks are the short ones, and the cache of each layer is as long as what that layer
saw. Outside the language model every length stays the one the processor made: the last hidden state is spread out
again, the cache reports the logical length.

Images differ in how many tokens they have. The visual tokens of a batch therefore lie in one flat list, image after
image, and a strategy is asked once for all images of equally many tokens.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from functools import cache as memoize
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from illava_lab.errors import LabError
from illava_lab.hooks.compat import causal_mask
from illava_lab.hooks.towers.rows import EncoderStage, ask
from illava_lab.method.strategy import Strategy, Tokens
from illava_lab.models.families import Anatomy
from illava_lab.models.layout import Medium, Visual, join_tiles
from illava_lab.schedules.schedule import Keep, kept
from illava_lab.sites.attention import AttentionSite, UnequalText, peek, tap, tokens_at
from illava_lab.trace.trace import Step, Trace

Positions = Literal["original", "packed"]


@dataclass(eq=False)
class Kept:
    """What is left of the prompt from some layer on.

    Attributes:
        layer: first LLM layer that runs on it.
        entry: (B, L) slots in the sequence that entered layer 0.
        prompt: (B, L) slots in the processor's prompt.
        valid: (B, L) bool, False at padding.
        full: known on the host: nothing is padded.
        shift: (B,) how far position ids moved ("packed"), or None.
    """

    layer: int
    entry: Tensor
    prompt: Tensor
    valid: Tensor
    full: bool
    shift: Tensor | None = None


@dataclass(eq=False)
class CacheState:
    """Travels on the cache: how the prompt was reduced for each of its layers."""

    prompt_length: int
    stages: list[Kept]
    attachment: LlmStage
    inside: bool = False

    def __deepcopy__(self, memo: dict) -> CacheState:
        return replace(self)  # nothing in it is ever written to, and the attachment is the same one


@dataclass(frozen=True, eq=False)
class _Prompt:
    """What lies in every slot of the processor's prompts, on the host: (B, L) bool each."""

    valid: np.ndarray
    hole: np.ndarray
    media: dict[Medium, np.ndarray]

    @property
    def visual(self) -> np.ndarray:
        return np.any(list(self.media.values()), axis=0)

    @property
    def text(self) -> np.ndarray:
        return self.valid & ~self.visual


@dataclass(frozen=True, eq=False)
class _Image:
    """One image or video of the prompts, as the host knows it."""

    row: int  # the prompt it belongs to
    visual: Visual
    at: np.ndarray  # (S,) slots of its placeholders in the processor's prompt
    text_after: int  # text tokens of the prompt behind it


@dataclass(frozen=True, eq=False)
class _Entry:
    """What entered layer 0: the sequence (B, L, C), and where its text (B, L) and its visual tokens (V,) are."""

    hidden: Tensor
    text: Tensor
    at: Tensor
    counts: list[int]


@dataclass(eq=False)
class _Prefill:
    """One prefill. V counts the visual tokens of the batch, image after image, in the order of their placeholders."""

    stages: list[Kept]
    positions: Tensor  # (B or 1, L) position ids at the entry, as the processor's prompt has them
    images: list[_Image]
    counts: list[int]  # visual tokens that each image has left
    text: Tensor  # (B, L) bool, which tokens of the current sequence are text
    taken: Tensor  # (B, L) bool, which of its slots are no padding
    lengths: np.ndarray  # (B,) how many these are
    some_masked: bool  # the mask hides some of these
    at: Tensor  # (V,) their slots in the current sequence
    size: Tensor  # (V,) patches that each stands for
    place: Tensor  # (V,) whose place in the image each holds, markers not counted
    entry: _Entry
    changed: bool = False  # any slot has left its place in the prompt (lengths alone do not tell)
    attention: tuple[Tensor, Tensor, Tensor | None, float] | None = None
    kwargs: dict[str, Any] | None = None  # what layers get from the last reduction on


@dataclass(eq=False)
class _Decode:
    stages: list[Kept]
    positions: Tensor  # (B, new) position ids, as without reduction
    masks: list[Tensor | None]
    past: int  # tokens generated so far
    kwargs: dict[int, dict[str, Any]] = field(default_factory=dict)


class LlmStage:
    """The language-model half of an attachment."""

    def __init__(
        self,
        anatomy: Anatomy,
        strategy: Strategy,
        plan: dict[int, Keep],
        positions: Positions,
        encoder: EncoderStage,
        trace: Trace,
    ) -> None:
        self.anatomy, self.strategy, self.plan, self.positions = anatomy, strategy, plan, positions
        self.encoder, self.trace = encoder, trace
        self.closed = False
        self._input_ids: Tensor | None = None
        self._has_pixels = False
        self._call: _Prefill | _Decode | None = None
        self._cache_state: CacheState | None = None

    # ---- installing
    def install(self, undo: ExitStack) -> None:
        """Hook the language model; `undo` takes everything back."""
        undo.callback(setattr, self, "closed", True)
        model = self.anatomy.language_model

        def pre(module: nn.Module, hook: Any) -> None:
            undo.callback(module.register_forward_pre_hook(hook, with_kwargs=True, prepend=True).remove)

        pre(self.anatomy.base, self._remember_inputs)
        pre(model, self._enter)
        undo.callback(model.register_forward_hook(self._leave, prepend=True).remove)
        undo.callback(model.register_forward_hook(self._end, always_call=True).remove)
        for layer in self.plan:
            undo.enter_context(tap(self.anatomy.llm_layers[layer - 1].self_attn, self._observe))
        for index, layer in enumerate(self.anatomy.llm_layers):
            pre(layer, self._layer_hook(index))

    def watch(self, undo: ExitStack) -> None:
        """Where nothing is reduced: only note which images a call has, so that the trace can tell their patches."""

        def note(module: nn.Module, args: tuple, kwargs: dict[str, Any]) -> None:
            hidden = kwargs.get("inputs_embeds")
            if self._has_pixels and self._input_ids is not None and hidden is not None:
                self._start_trace(self._images(self._read_prompt(hidden, kwargs.get("attention_mask"))))

        for module, hook in ((self.anatomy.base, self._remember_inputs), (self.anatomy.language_model, note)):
            undo.callback(module.register_forward_pre_hook(hook, with_kwargs=True).remove)

    def _remember_inputs(self, module: nn.Module, args: tuple, kwargs: dict[str, Any]) -> None:
        self._input_ids = kwargs.get("input_ids", args[0] if args else None)
        encoded = (kwargs.get("mm_encoder_outputs") or {}).values()
        given = (kwargs.get("pixel_values"), kwargs.get("pixel_values_videos"), *encoded)
        self._has_pixels = any(value is not None for value in given)

    def _observe(self, query: Tensor, key: Tensor, mask: Tensor | None, scaling: float) -> None:
        if isinstance(self._call, _Prefill):
            self._call.attention = (query, key, mask, scaling)

    # ---- entering
    def _enter(self, module: nn.Module, args: tuple, kwargs: dict[str, Any]) -> tuple[tuple, dict[str, Any]] | None:
        hidden = kwargs.get("inputs_embeds")
        if hidden is None:
            raise LabError(
                "the language model must be called through its vision-language model while a strategy is attached"
            )
        mask, past_key_values = kwargs.get("attention_mask"), kwargs.get("past_key_values")
        if isinstance(mask, dict) or (mask is not None and mask.dim() != 2):
            raise LabError(
                "prepared 4D attention masks and static caches are not supported while a strategy is attached"
            )
        if getattr(past_key_values, "is_compileable", False):
            raise LabError(
                "static caches are not supported while a strategy is attached; use the default dynamic cache"
            )
        state = getattr(past_key_values, "_illava_state", None)
        if state is not None:
            state.inside, self._cache_state = True, state
        past = past_key_values.get_seq_length() if past_key_values is not None else 0
        if past == 0:
            return (), self._prefill(hidden, mask, kwargs)
        if self._has_pixels:
            raise LabError("images cannot be added to a cache that already holds tokens while a strategy is attached")
        if state is None:
            raise LabError("this cache was filled before the strategy was attached; start with a fresh one")
        return (), self._decode(hidden, mask, kwargs, state, past)

    def _prefill(self, hidden: Tensor, mask: Tensor | None, kwargs: dict[str, Any]) -> dict[str, Any]:
        batch, length = hidden.shape[:2]
        if self._input_ids is None:
            raise LabError("input_ids are needed to find the visual tokens; inputs_embeds alone are not supported")
        prompt = self._read_prompt(hidden, mask)
        images = self._images(prompt)
        alive = (prompt.valid | prompt.visual) & ~prompt.hole  # a visual token may be masked, and is no padding then
        lengths = alive.sum(1)
        changed, some_masked = bool(prompt.hole.any()), bool((alive & ~prompt.valid).any())

        slots = torch.arange(length, device=hidden.device).expand(batch, -1)
        valid = torch.ones_like(slots, dtype=torch.bool) if mask is None else mask[:, :length].bool()
        text, taken = (_upload(where, hidden.device) for where in (prompt.text, alive))
        stage = Kept(0, slots, slots, valid, bool(prompt.valid.all()))
        positions = kwargs.get("position_ids")
        positions = slots[:1] if positions is None else positions
        if changed:
            order, there = compact(taken, int(lengths.max()))
            full = lengths.min() == lengths.max() and not some_masked
            stage = Kept(0, slots[:, : order.shape[1]], order, valid.gather(1, order) & there, bool(full))
            text, taken = text.gather(1, order) & there, there
            positions = gather_sequence(positions, order, -1)
            # Fill slots must be zero, not only masked: 0 * NaN is NaN. An explicit mask keeps transformers from
            # reading gaps in the positions as several packed sequences.
            kwargs = {
                **kwargs,
                "inputs_embeds": gather_sequence(hidden, order, 1).masked_fill(~there[..., None], 0.0),
                "attention_mask": stage.valid.long(),
                "position_ids": self._pack(stage, positions) if self.positions == "packed" else positions,
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
        entry = _Entry(kwargs["inputs_embeds"], text, _upload(at, hidden.device), [len(own) for own in at])
        self._call = _Prefill(
            [stage], positions, images, entry.counts, text, taken, lengths, some_masked, at=entry.at,
            size=size[_upload(np.flatnonzero(np.concatenate([[], *left])), hidden.device)],
            place=_upload(place, hidden.device), entry=entry, changed=changed,
        )  # fmt: skip
        self._start_trace(images)
        return kwargs

    @staticmethod
    def _deepstack(kwargs: dict[str, Any], prompt: _Prompt, order: Tensor, there: Tensor) -> dict[str, Any]:
        """What the first layers add to visual tokens (Qwen3-VL), for those that are left."""
        features = kwargs.get("deepstack_visual_embeds")
        if features is None:
            return {}
        left = _upload(np.flatnonzero(~prompt.hole[prompt.visual]), order.device)
        mask = _upload(prompt.visual, order.device).gather(1, order) & there
        return {"visual_pos_masks": mask, "deepstack_visual_embeds": [layer[left] for layer in features]}

    def _read_prompt(self, hidden: Tensor, mask: Tensor | None) -> _Prompt:
        """What lies in every slot. The one host synchronisation of a prefill: it decides every later length."""
        ids, hole = self._input_ids, hidden[..., 0].isnan()
        valid = torch.ones_like(hole) if mask is None else mask[:, : hidden.shape[1]].bool()
        media = [ids == token for token in self.anatomy.placeholders.values()]
        valid, hole, *media = torch.stack([valid, hole, *media]).cpu().numpy()
        return _Prompt(valid, hole, dict(zip(self.anatomy.placeholders, media, strict=True)))

    def _images(self, prompt: _Prompt) -> list[_Image]:
        """The images and videos of the batch in the order of their placeholders."""
        out = []
        for medium, holds in prompt.media.items():
            visuals, (batch, needed) = self.encoder.visuals.get(medium, []), (len(holds), int(holds.sum()))
            ends = np.cumsum([0, *(visual.layout.slots for visual in visuals)])
            # Beams and several returned sequences repeat a prompt, but its images were encoded once.
            repeats = needed // int(ends[-1]) if ends[-1] else 1
            bounds = np.cumsum([0, *holds.sum(1)[:: max(1, repeats)]])
            if needed and (needed != repeats * ends[-1] or batch % repeats or not np.isin(bounds, ends).all()):
                lengths = np.diff(ends).tolist()
                raise LabError(f"the prompts have {needed} places for {medium}s, the encoded ones need {lengths}")
            for row in range(batch if needed else 0):
                own, slots = np.searchsorted(ends, bounds[row // repeats :][:2]), np.flatnonzero(holds[row])
                at = [slots[ends[i] - ends[own[0]] : ends[i + 1] - ends[own[0]]] for i in range(*own)]
                for tiles in _runs(at, self.anatomy.media[medium].tiled):
                    visual = join_tiles([visuals[own[0] + i] for i in tiles])
                    place = np.concatenate([at[i] for i in tiles])
                    out.append(_Image(row, visual, place, int(prompt.text[row, place[-1] :].sum())))
        return sorted(out, key=lambda image: (image.row, image.at[0]))

    def _start_trace(self, images: list[_Image]) -> None:
        rows = [image.row for image in images]
        self.trace.start([image.visual for image in images], [rows.count(row) for row in range(len(self._input_ids))])

    def _pack(self, stage: Kept, positions: Tensor) -> Tensor:
        """(B, L) position ids without gaps; notes on the stage how far the last token moved."""
        if positions.dim() != 2:
            raise LabError('positions="packed" is only defined for one-dimensional positions')
        packed = (stage.valid.long().cumsum(1) - 1).clamp_min(0)
        stage.shift = positions[:, -1] - packed[:, -1]
        return packed

    # ---- each layer
    def _layer_hook(self, index: int) -> Any:
        planned = sorted(self.plan)
        stage = sum(layer <= index for layer in planned)

        def hook(module: nn.Module, args: tuple, kwargs: dict[str, Any]) -> tuple[tuple, dict[str, Any]] | None:
            call = self._call
            hidden = args[0] if args else kwargs["hidden_states"]
            if isinstance(call, _Prefill):
                if index in self.plan:
                    hidden = self._reduce(call, index, hidden, {**kwargs, **(call.kwargs or {})}["position_embeddings"])
                    call.kwargs = None
                if call.kwargs is None:
                    call.kwargs = self._short_kwargs(call, hidden, kwargs)
                new = call.kwargs
            elif isinstance(call, _Decode) and stage:
                if stage not in call.kwargs:
                    call.kwargs[stage] = self._decode_kwargs(call, stage, hidden, kwargs)
                new = call.kwargs[stage]
            else:
                return None
            if not new and index not in self.plan:
                return None
            if args:
                return (hidden, *args[1:]), {**kwargs, **new}
            return args, {**kwargs, **new, "hidden_states": hidden}

        return hook

    def _short_kwargs(self, call: _Prefill, hidden: Tensor, kwargs: dict[str, Any]) -> dict[str, Any]:
        stage = call.stages[-1]
        if not call.changed:
            return {}
        # Rotary tables are made from the true positions; layers only see consecutive ones, because flash attention
        # reads gaps as several packed sequences.
        consecutive = torch.arange(hidden.shape[1], device=hidden.device).expand(hidden.shape[0], -1)
        if stage.layer == 0:
            return {"position_ids": consecutive}
        if self.positions == "packed":
            packed = self._pack(stage, gather_sequence(call.positions, stage.entry, -1))
            tables = self.anatomy.language_model.rotary_emb(hidden, position_ids=packed)
        else:
            tables = tuple(gather_sequence(table, stage.entry, -2) for table in kwargs["position_embeddings"])
        config = self.anatomy.language_model.config
        return {
            "position_ids": consecutive,
            "position_embeddings": tables,
            "attention_mask": causal_mask(config, hidden, None if stage.full else stage.valid, 0),
        }

    def _reduce(self, call: _Prefill, index: int, hidden: Tensor, rotary: tuple[Tensor, Tensor]) -> Tensor:
        """Ask the strategy for every image, and shorten the sequence."""
        last, where = call.stages[-1], f"llm layer {index}"
        batch, length = last.valid.shape
        rows = np.array([image.row for image in call.images], dtype=np.int64)
        first = np.cumsum([0, *call.counts])
        groups: dict[Any, list[int]] = {}
        for i, (image, *counts) in enumerate(zip(call.images, call.counts, call.entry.counts, strict=True)):
            if counts[0]:
                groups.setdefault((*counts, image.visual.layout.grid), []).append(i)
        layer = self.anatomy.llm_layers[index]
        ahead = memoize(lambda states=hidden: peek(layer.self_attn, layer.input_layernorm(states), rotary))
        keep = call.taken.flatten().clone()
        flat = _upload(np.repeat(rows, call.counts) * length, hidden.device) + call.at
        keep[flat] = False

        at, place, size, merged, after = [], [], [], [], np.zeros(len(rows), dtype=np.int64)
        done: list[int] = []
        pending = list(groups.values())
        while pending:
            group = pending.pop(0)
            before = call.counts[group[0]]
            pick = _upload(first[group][:, None] + np.arange(before), hidden.device)
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
            call.stages.append(replace(last, layer=index))
            return hidden

        call.changed = True
        call.at, call.place, call.size = (_in_order(parts, done, after) for parts in (at, place, size))
        call.lengths = call.lengths - np.bincount(rows, np.array(call.counts) - after, minlength=batch).astype(np.int64)
        longest = int(call.lengths.max())
        keep = keep.view(batch, length)
        origin, alive = compact(keep, longest)
        entry, prompt, valid = (x.gather(1, origin) for x in (last.entry, last.prompt, last.valid))
        full = call.lengths.min() == longest and not call.some_masked
        call.stages.append(Kept(index, entry, prompt, valid & alive, bool(full)))
        row = _upload(np.repeat(rows, after), hidden.device)
        call.at = (keep.cumsum(1) - 1 + _upload(longest - call.lengths, hidden.device)[:, None])[row, call.at]
        call.text, call.taken = call.text.gather(1, origin) & alive, alive
        call.counts = after.tolist()
        return gather_sequence(hidden, origin, 1)

    def _tokens(
        self,
        call: _Prefill,
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
        query, key, mask, scaling = call.attention
        stage, at = call.stages[-1], call.at[pick]
        images = [call.images[i] for i in group]
        rows = [image.row for image in images]
        prompts = sorted(set(rows))
        # A view wherever they lie side by side: a copy for each image would make the peak memory of many images.
        own = slice(prompts[0], prompts[-1] + 1)
        if len(prompts) < own.stop - own.start:
            own = _upload(np.array(prompts), hidden.device)
        query, key, hidden, valid, text = (x[own] for x in (query, key, hidden, stage.valid, call.text))
        if mask is not None and mask.shape[0] > 1:
            mask = mask[own]
        prompt = _upload(np.searchsorted(prompts, rows), hidden.device)
        behind = {image.text_after for image in images}
        after = behind.pop() if len(behind) == 1 else None

        def entry() -> tuple[Tensor, Tensor, Tensor | None]:
            first, count = np.cumsum([0, *call.entry.counts]), call.entry.counts[group[0]]
            visual = call.entry.at[_upload(first[group][:, None] + np.arange(count), hidden.device)]
            return call.entry.hidden[own], visual, None if after is None else compact(call.entry.text[own], after)[0]

        site = AttentionSite(
            query,
            key,
            scaling,
            mask,
            None if stage.full else valid,
            causal=mask is None or mask.dim() == 2,
            visual=at,
            prompt=prompt,
            hidden=hidden,
            last=torch.where(valid, torch.arange(valid.shape[1], device=valid.device), -1).max(1).values,
            text=None if after is None else compact(text, after)[0],
            ahead=lambda: tuple(x[own] for x in ahead()),
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

    # ---- decoding
    def _decode(
        self, hidden: Tensor, mask: Tensor | None, kwargs: dict[str, Any], state: CacheState, past: int
    ) -> dict[str, Any]:
        batch, new = hidden.shape[:2]
        if state.stages[0].valid.shape[0] != batch:
            raise LabError(f"the cache holds {state.stages[0].valid.shape[0]} prompts, this call has {batch}")
        generated = past - state.stages[0].prompt.shape[1]
        logical = state.prompt_length + generated
        if mask is not None and mask.shape[1] != logical + new:
            raise LabError(f"attention_mask must have {logical + new} columns, got {mask.shape[1]}")
        shape = (batch, generated + new)
        tail = torch.ones(shape, dtype=torch.bool, device=hidden.device)
        if mask is not None:
            tail = mask[:, state.prompt_length :].bool()
        masks = [None if s.full and mask is None else torch.cat([s.valid, tail], 1) for s in state.stages]
        position_ids = kwargs.get("position_ids")
        if position_ids is None:
            position_ids = (torch.arange(new, device=hidden.device) + logical).expand(batch, -1)
        self._call = _Decode(state.stages, position_ids, masks, generated)
        shift = state.stages[0].shift
        return {
            **kwargs,
            "position_ids": position_ids if shift is None else position_ids - shift[:, None],
            "attention_mask": None if masks[0] is None else masks[0].long(),
        }

    def _decode_kwargs(self, call: _Decode, stage: int, hidden: Tensor, kwargs: dict[str, Any]) -> dict[str, Any]:
        kept_here = call.stages[stage]
        past = kept_here.prompt.shape[1] + call.past
        model = self.anatomy.language_model
        out = {"attention_mask": causal_mask(model.config, hidden, call.masks[stage], past)}
        if self.positions == "packed":
            moved = call.positions - kept_here.shift[:, None]
            out["position_embeddings"] = model.rotary_emb(hidden, position_ids=moved)
        return out

    # ---- leaving
    def _leave(self, module: nn.Module, args: tuple, out: Any) -> Any:
        call = self._call
        if not isinstance(call, _Prefill):
            return out
        last, hidden = call.stages[-1], out.last_hidden_state
        length = self._input_ids.shape[1]
        if call.changed:
            # One dustbin column more, for padding slots.
            full = hidden.new_zeros(hidden.shape[0], length + 1, hidden.shape[2])
            target = last.prompt.masked_fill(~last.valid, length)
            out["last_hidden_state"] = full.scatter(1, target[..., None].expand_as(hidden), hidden)[:, :-1]
        if out.past_key_values is not None:
            _bind(out.past_key_values, CacheState(length, call.stages, self))
        return out

    def _end(self, module: nn.Module, args: tuple, out: Any) -> None:
        if self._cache_state is not None:
            self._cache_state.inside = False
        self._cache_state = self._call = None


# ---------------------------------------------------------------------------------------------- cache
def _bind(past_key_values: Any, state: CacheState) -> None:
    """From now on this cache reports the logical length outside the language model."""
    if not hasattr(past_key_values, "_illava_state"):
        past_key_values.__class__ = _reduced_cache(type(past_key_values))
    past_key_values._illava_state = state


@memoize
def _reduced_cache(base: type) -> type:
    class ReducedCache(base):
        """A cache whose layers hold different parts of the prompt. `get_seq_length` counts the whole prompt."""

        def get_seq_length(self, *args: Any, **kwargs: Any) -> int:
            state = self._illava_state
            if state.attachment.closed:
                raise LabError("this cache was filled under a strategy that is no longer attached; start a fresh one")
            held = super().get_seq_length(*args, **kwargs)
            if state.inside or held == 0:
                return held
            return held + state.prompt_length - state.stages[0].prompt.shape[1]

    ReducedCache.__name__ = ReducedCache.__qualname__ = f"Reduced{base.__name__}"
    return ReducedCache


# ---------------------------------------------------------------------------------------------- tensors
def compact(keep: Tensor, length: int) -> tuple[Tensor, Tensor]:
    """Where each slot of a shorter sequence comes from: survivors keep their order and sit at the right end.

    Args:
        keep: (B, L) bool; length: the largest number of survivors in a row.

    Returns:
        (B, length) long indices and (B, length) bool, False at fill slots of rows with fewer survivors.
    """
    order = keep.to(torch.int8).argsort(dim=1, stable=True)[:, keep.shape[1] - length :]
    return order, keep.gather(1, order)


def gather_sequence(x: Tensor, index: Tensor, dim: int) -> Tensor:
    """Index the sequence axis `dim` of x by (B, L); the axis before it is the batch, and may be 1 (shared)."""
    dim %= x.dim()
    view = [1] * x.dim()
    view[dim - 1], view[dim] = index.shape
    before = list(x.shape)
    before[dim - 1] = index.shape[0]
    after = [*before]
    after[dim] = index.shape[1]
    return x.expand(before).gather(dim, index.view(view).expand(after))


def _upload(values: Any, device: torch.device) -> Tensor:
    """Whole numbers or booleans known on the host, as one tensor; a list of arrays of numbers is joined."""
    if isinstance(values, list):
        values = np.concatenate([[], *values])
    if values.dtype != bool:
        values = values.astype(np.int64)
    # To wait for the copy would be to wait for all that the device has still to do.
    return torch.from_numpy(values).to(device, non_blocking=True)


def _runs(at: list[np.ndarray], tiled: bool) -> list[list[int]]:
    """Which slots belong to one image: where images have tiles, all that follow each other without a gap."""
    out: list[list[int]] = []
    for i, slots in enumerate(at):
        if tiled and i and slots[0] == at[i - 1][-1] + 1:
            out[-1].append(i)
        else:
            out.append([i])
    return out


def _split(group: list[int], by: list[int]) -> list[list[int]]:
    """Parts of a group whose members have the same value."""
    return [[i for i, value in zip(group, by, strict=True) if value == wanted] for wanted in sorted(set(by))]


def _in_order(parts: list[Tensor], images: list[int], counts: np.ndarray) -> Tensor:
    """Join what several groups have for each of their images, image after image; `images` says in whose order."""
    joined = torch.cat(parts)
    if images == sorted(images):
        return joined
    first = dict(zip(images, np.cumsum([0, *counts[images]]), strict=False))
    return joined[_upload([np.arange(first[i], first[i] + counts[i]) for i in sorted(images)], joined.device)]
