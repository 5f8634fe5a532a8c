"""Reducing visual tokens inside a language model, and keeping its cache, masks and positions right.

At the entry, holes that the encoder left are dropped. Before each reducing layer K, visual tokens are scored with the
attention of layer K-1 and mapped to fewer. From there on, hidden states, rotary tables and masks are the short ones,
and the cache of each layer is as long as what that layer saw. Outside the language model every length stays the one
the processor made: the last hidden state is spread out again, the cache reports the logical length.
"""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import cache as memoize
from typing import Any, Literal

import torch
from torch import Tensor, nn

from illava_lab.attention import AttentionSite, tap
from illava_lab.compat import causal_mask
from illava_lab.encoder_stage import EncoderStage, ask
from illava_lab.errors import LabError
from illava_lab.families import Anatomy
from illava_lab.schedule import Keep, kept
from illava_lab.strategy import Strategy, Tokens
from illava_lab.trace import Step, Trace

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


@dataclass(eq=False)
class _Prefill:
    stages: list[Kept]
    visual: Tensor  # (B, L) bool, which slots of the current sequence are visual tokens
    counts: list[int]  # visual tokens of each row
    size: Tensor | None  # (B, L) patches that each slot stands for, anything at text
    place: Tensor | None  # (B, L) image * patches + patch index, anything at text
    position_ids: Tensor | None
    attention: tuple[Tensor, Tensor, Tensor | None, float] | None = None
    kwargs: dict[str, Any] | None = None  # what layers get from the last reduction on


@dataclass(eq=False)
class _Decode:
    stages: list[Kept]
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

    def _remember_inputs(self, module: nn.Module, args: tuple, kwargs: dict[str, Any]) -> None:
        self._input_ids = kwargs.get("input_ids", args[0] if args else None)
        encoded = kwargs.get("mm_encoder_outputs") or {}
        self._has_pixels = kwargs.get("pixel_values") is not None or any(v is not None for v in encoded.values())

    def _observe(self, query: Tensor, key: Tensor, mask: Tensor | None, scaling: float) -> None:
        if isinstance(self._call, _Prefill):
            self._call.attention = (query, key, mask, scaling)

    # ---- entering
    def _enter(self, module: nn.Module, args: tuple, kwargs: dict[str, Any]) -> tuple[tuple, dict[str, Any]] | None:
        hidden = kwargs.get("inputs_embeds")
        if hidden is None:
            raise LabError("the language model must be called through its vision-language model while a strategy is attached")
        mask, past_key_values = kwargs.get("attention_mask"), kwargs.get("past_key_values")
        if isinstance(mask, dict) or (mask is not None and mask.dim() != 2):
            raise LabError("prepared 4D attention masks and static caches are not supported while a strategy is attached")
        if getattr(past_key_values, "is_compileable", False):
            raise LabError("static caches are not supported while a strategy is attached; use the default dynamic cache")
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
        slots = torch.arange(length, device=hidden.device).expand(batch, -1)
        valid = torch.ones_like(slots, dtype=torch.bool) if mask is None else mask[:, :length].bool()
        if self._input_ids is None:
            raise LabError("input_ids are needed to find the visual tokens; inputs_embeds alone are not supported")
        placeholder = self._input_ids == self.anatomy.image_token_id
        hole = hidden[..., 0].isnan()
        # The one host synchronisation of a prefill: counts decide every later length.
        placeholders, holes, padding = torch.stack([placeholder.sum(1), hole.sum(1), (~valid).sum(1)]).tolist()

        counts = [a - b for a, b in zip(placeholders, holes, strict=True)]
        size, place = self._visual_tables(placeholder, placeholders)
        stage = Kept(0, slots, slots, valid, not any(padding))
        position_ids = kwargs.get("position_ids")
        visual = placeholder
        if any(holes):
            order, alive = compact(~hole, length - min(holes))
            ragged = min(holes) != max(holes)
            stage = Kept(0, slots[:, : order.shape[1]], order, alive & valid.gather(1, order), stage.full and not ragged)
            visual = placeholder.gather(1, order) & alive
            size, place = size.gather(1, order), place.gather(1, order)
            position_ids = slots[:1] if position_ids is None else position_ids
            position_ids = gather_sequence(position_ids, order, -1)
            if self.positions == "packed":
                position_ids = self._pack(stage, position_ids)
            # Fill slots must be zero, not only masked: 0 * NaN is NaN. An explicit mask keeps transformers from
            # reading gaps in the positions as several packed sequences.
            hidden = gather_sequence(hidden, order, 1).masked_fill(~alive[..., None], 0.0)
            kwargs = {
                **kwargs,
                "inputs_embeds": hidden,
                "attention_mask": stage.valid.long(),
                "position_ids": position_ids,
            }
        self._call = _Prefill([stage], visual, counts, size, place, position_ids)
        patches = self.anatomy.patches
        self.trace.images_per_row = [n // patches for n in placeholders]
        self.trace.steps = list(self.encoder.steps) if any(placeholders) else []
        return kwargs

    def _visual_tables(self, placeholder: Tensor, counts: list[int]) -> tuple[Tensor, Tensor]:
        """(B, L), (B, L): size and place of the token in every slot of the prompt, zero at text."""
        patches, encoder = self.anatomy.patches, self.encoder
        size = torch.zeros(placeholder.shape, device=placeholder.device)
        place = torch.zeros_like(placeholder, dtype=torch.long)
        if not any(counts):
            return size, place
        rank = placeholder.long().cumsum(1) - 1  # number of each visual token within its prompt
        place = rank.clamp_min(0)
        images = sum(counts) // patches
        encoded = 0 if encoder.position is None else encoder.position.shape[0]
        if sum(counts) % patches or not encoded or images % encoded:
            raise LabError(f"{sum(counts)} visual tokens in the prompt do not belong to the {encoded} images just encoded")
        where, sizes = encoder.survivors()
        by_patch = torch.zeros(encoded, patches, device=size.device).scatter(1, where, sizes)
        # Beams and several returned sequences repeat every prompt: image tables are shared by `repeats` rows.
        repeats, first = images // encoded, 0
        starts = []
        for row, count in enumerate(counts):
            starts.append(first)
            if row % repeats == repeats - 1:
                first += count
        offset = torch.tensor(starts, device=size.device)[:, None]
        size = by_patch.flatten()[(offset + place).clamp_max(by_patch.numel() - 1)]
        return size, place

    def _pack(self, stage: Kept, position_ids: Tensor) -> Tensor:
        if position_ids.dim() != 2:
            raise LabError('positions="packed" is only defined for one-dimensional positions')
        packed = (stage.valid.long().cumsum(1) - 1).clamp_min(0)
        moved = position_ids[:, -1] - packed[:, -1]
        before = self._call.stages[-1].shift if isinstance(self._call, _Prefill) else None
        stage.shift = moved if before is None else before + moved
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
                    hidden = self._reduce(call, index, hidden)
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
        if stage.layer == 0 and stage.prompt.shape[1] == self._input_ids.shape[1]:
            return {}
        # Rotary tables are made from the true positions; layers only see consecutive ones, because flash attention
        # reads gaps as several packed sequences.
        consecutive = torch.arange(hidden.shape[1], device=hidden.device).expand(hidden.shape[0], -1)
        if stage.layer == 0:
            return {"position_ids": consecutive}
        if self.positions == "packed":
            call.position_ids = self._pack(stage, gather_sequence(self._positions(call, kwargs), stage.entry, -1))
            tables = self.anatomy.language_model.rotary_emb(hidden, position_ids=call.position_ids)
        else:
            tables = tuple(gather_sequence(table, stage.entry, -2) for table in kwargs["position_embeddings"])
        return {
            "position_ids": consecutive,
            "position_embeddings": tables,
            "attention_mask": causal_mask(
                self.anatomy.language_model.config, hidden, None if stage.full else stage.valid, 0
            ),
        }

    def _positions(self, call: _Prefill, kwargs: dict[str, Any]) -> Tensor:
        """Position ids at the entry of the language model."""
        if call.position_ids is not None and call.position_ids.shape[1] == call.stages[0].entry.shape[1]:
            return call.position_ids
        return call.stages[0].entry

    def _reduce(self, call: _Prefill, index: int, hidden: Tensor) -> Tensor:
        """Ask the strategy for every group of prompts with equally many visual tokens, and shorten the sequence."""
        groups: dict[int, list[int]] = {}
        for row, count in enumerate(call.counts):
            if count:
                groups.setdefault(count, []).append(row)
        keep = ~call.visual
        size = call.size
        removed = [0] * len(call.counts)
        for count, rows in groups.items():
            everyone = len(rows) == len(call.counts)
            pick = slice(None) if everyone else torch.tensor(rows, device=hidden.device)
            at = call.visual[pick].to(torch.int8).argsort(dim=1, descending=True, stable=True)[:, :count]
            tokens = self._tokens(call, index, hidden, pick, at)
            after = kept(self.plan[index], count, f"llm layer {index}")
            reduction = ask(self.strategy, tokens, after)
            self.trace.steps.append(Step("llm", index, tuple(rows), reduction, count, reduction.slots))
            slots = at.gather(1, reduction.anchor)
            keep = _put(keep, pick, slots, torch.ones_like(slots, dtype=torch.bool))
            if reduction.weight is not None:
                spread = slots[..., None].expand(-1, -1, hidden.shape[2])
                hidden = _put(hidden, pick, spread, reduction.apply(tokens.hidden))
                size = _put(size, pick, slots, reduction.sizes(tokens.size))
            for row in rows:
                removed[row] = count - reduction.slots
                call.counts[row] = reduction.slots
        call.attention = None
        last = call.stages[-1]
        order, alive = compact(keep, keep.shape[1] - min(removed))
        ragged = min(removed) != max(removed)
        valid = last.valid.gather(1, order) & alive
        entry, prompt = last.entry.gather(1, order), last.prompt.gather(1, order)
        call.stages.append(Kept(index, entry, prompt, valid, last.full and not ragged, last.shift))
        call.visual = call.visual.gather(1, order) & alive
        call.size, call.place = size.gather(1, order), call.place.gather(1, order)
        return gather_sequence(hidden, order, 1)

    def _tokens(self, call: _Prefill, index: int, hidden: Tensor, pick: Any, at: Tensor) -> Tokens:
        query, key, mask, scaling = call.attention
        valid = call.stages[-1].valid[pick]
        slots = torch.arange(valid.shape[1], device=valid.device)
        if mask is not None and mask.shape[0] > 1:
            mask = mask[pick]
        site = AttentionSite(
            query[pick], key[pick], scaling, mask, None if call.stages[-1].full else valid,
            causal=mask is None or mask.dim() == 2, visual=at, hidden=hidden[pick],
            last=torch.where(valid, slots, -1).max(1).values,
        )  # fmt: skip
        return Tokens(
            "llm",
            gather_sequence(hidden[pick], at, 1),
            layer=index,
            size=call.size[pick].gather(1, at),
            position=call.place[pick].gather(1, at),
            grid=self.anatomy.grid,
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
        self._call = _Decode(state.stages, masks, generated)
        self._decode_positions = position_ids
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
            moved = self._decode_positions - kept_here.shift[:, None]
            out["position_embeddings"] = model.rotary_emb(hidden, position_ids=moved)
        return out

    # ---- leaving
    def _leave(self, module: nn.Module, args: tuple, out: Any) -> Any:
        call = self._call
        if not isinstance(call, _Prefill):
            return out
        last, hidden = call.stages[-1], out.last_hidden_state
        length = self._input_ids.shape[1]
        if hidden.shape[1] != length:
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
    past_key_values._illava_state = state
    past_key_values.__class__ = _reduced_cache(type(past_key_values))


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


def _put(x: Tensor, rows: Any, index: Tensor, values: Tensor) -> Tensor:
    """A copy of x with `values` scattered along axis 1 of some rows."""
    if isinstance(rows, slice):
        return x.scatter(1, index, values)
    return x.index_copy(0, rows, x[rows].scatter(1, index, values))
