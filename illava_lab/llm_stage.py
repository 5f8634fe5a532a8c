"""Reducing visual tokens inside a language model, and keeping its cache, masks and positions right.

At the entry, holes that the encoder left are dropped. Before each reducing layer K, visual tokens are scored with the
attention of layer K-1 and mapped to fewer. From there on, hidden states, rotary tables and masks are the short ones,
and the cache of each layer is as long as what that layer saw. Outside the language model every length stays the one
the processor made: the last hidden state is spread out again, the cache reports the logical length.
"""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from functools import cache as memoize
from typing import Any, Literal

import torch
from torch import Tensor, nn

from illava_lab.attention import AttentionSite, peek, tap
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

    def __deepcopy__(self, memo: dict) -> CacheState:
        return replace(self)  # nothing in it is ever written to, and the attachment is the same one


@dataclass(eq=False)
class _Prefill:
    """One prefill. I counts the images of the batch, in the order of their placeholders; n their visual tokens."""

    stages: list[Kept]
    positions: Tensor  # (B or 1, L) position ids at the entry, as the processor's prompt has them
    image_rows: list[int]  # the prompt that each image belongs to
    changed: bool = False  # any slot has left its place in the prompt (lengths alone do not tell)
    at: Tensor | None = None  # (I, n) slots of the visual tokens in the current sequence
    size: Tensor | None = None  # (I, n) patches that each stands for
    place: Tensor | None = None  # (I, n) patch in whose place each stands
    entry: tuple[Tensor, Tensor] | None = None  # (B, L, C) the sequence at the entry, and `at` there
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
            self._remember_inputs(module, args, kwargs)
            if self._has_pixels and self._input_ids is not None:
                placeholders = (self._input_ids == self.anatomy.image_token_id).sum(1).tolist()
                per_row = [count // self.anatomy.patches for count in placeholders]
                self.trace.start([], per_row, list(range(sum(per_row))))

        undo.callback(self.anatomy.base.register_forward_pre_hook(note, with_kwargs=True).remove)

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
        visual = self._input_ids == self.anatomy.image_token_id
        hole = hidden[..., 0].isnan()
        # The one host synchronisation of a prefill: these counts decide every later length.
        placeholders, holes, padding = torch.stack([visual.sum(1), hole.sum(1), (~valid).sum(1)]).tolist()

        stage = Kept(0, slots, slots, valid, not any(padding))
        positions = kwargs.get("position_ids")
        positions = slots[:1] if positions is None else positions
        if any(holes):
            order, alive = compact(~hole, length - min(holes))
            full = stage.full and min(holes) == max(holes)
            stage = Kept(0, slots[:, : order.shape[1]], order, valid.gather(1, order) & alive, full)
            visual = visual.gather(1, order) & alive
            positions = gather_sequence(positions, order, -1)
            # Fill slots must be zero, not only masked: 0 * NaN is NaN. An explicit mask keeps transformers from
            # reading gaps in the positions as several packed sequences.
            kwargs = {
                **kwargs,
                "inputs_embeds": gather_sequence(hidden, order, 1).masked_fill(~alive[..., None], 0.0),
                "attention_mask": stage.valid.long(),
                "position_ids": self._pack(stage, positions) if self.positions == "packed" else positions,
            }
        self._call = _Prefill([stage], positions, [], changed=any(holes))
        self._locate_images(self._call, visual, placeholders)
        self._call.entry = kwargs["inputs_embeds"], self._call.at
        return kwargs

    def _locate_images(self, call: _Prefill, visual: Tensor, placeholders: list[int]) -> None:
        """Fill in where the visual tokens of every image are, and start the trace."""
        patches, encoder, device = self.anatomy.patches, self.encoder, visual.device
        per_row = [count // patches for count in placeholders]
        images, encoded = sum(per_row), 0 if encoder.position is None else encoder.position.shape[0]
        if sum(placeholders) != images * patches or (images and (not encoded or images % encoded)):
            raise LabError(f"the prompts have {sum(placeholders)} visual tokens, which do not fit {encoded} encoded images")
        # Beams and several returned sequences repeat a prompt, but its images were encoded once.
        repeats = images // encoded if images else 1
        encoder_image = [
            i for first, count in _runs(per_row[::repeats]) for _ in range(repeats) for i in range(first, first + count)
        ]
        self.trace.start(encoder.steps if images else [], per_row, encoder_image)
        if not images:
            return
        call.image_rows = [row for row, count in enumerate(per_row) for _ in range(count)]
        number = [i for count in per_row for i in range(count)]
        place, size = encoder.survivors()
        pick = torch.tensor(encoder_image, device=device)
        call.place, call.size = place[pick], size[pick]
        left = place.shape[1]  # visual tokens per image
        slots = visual.to(torch.int8).argsort(dim=1, descending=True, stable=True)
        columns = torch.tensor(number, device=device)[:, None] * left + torch.arange(left, device=device)
        call.at = slots[torch.tensor(call.image_rows, device=device)[:, None], columns]

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
        last = call.stages[-1]
        if not call.image_rows:
            call.stages.append(replace(last, layer=index))
            return hidden
        batch, length = last.valid.shape
        rows = torch.tensor(call.image_rows, device=hidden.device)
        tokens = self._tokens(call, index, hidden, rows, rotary)
        before = tokens.count
        reduction = ask(self.strategy, tokens, kept(self.plan[index], before, f"llm layer {index}"))
        self.trace.steps.append(Step("llm", index, len(rows), reduction, before, reduction.slots))
        call.attention, call.changed = None, True

        # Whatever order a strategy gives its slots, the LLM keeps them in the order of their places.
        anchor, order = reduction.anchor.sort(dim=1)
        survivors = call.at.gather(1, anchor)
        flat = (rows[:, None] * length + survivors).flatten()
        if reduction.weight is not None:
            merged = gather_sequence(reduction.apply(tokens.hidden), order, 1)
            hidden = hidden.flatten(0, 1).index_copy(0, flat, merged.flatten(0, 1)).view_as(hidden)
        keep = torch.ones(batch * length, dtype=torch.bool, device=hidden.device)
        keep[(rows[:, None] * length + call.at).flatten()] = False
        keep[flat] = True
        keep = keep.view(batch, length)

        images = [call.image_rows.count(row) for row in range(batch)]
        removed = [count * (before - reduction.slots) for count in images]
        origin, alive = compact(keep, length - min(removed))
        full = last.full and min(removed) == max(removed)
        call.stages.append(
            Kept(index, last.entry.gather(1, origin), last.prompt.gather(1, origin), last.valid.gather(1, origin) & alive, full)
        )
        fill = torch.tensor([count - min(removed) for count in removed], device=hidden.device)
        call.at = (keep.cumsum(1) - 1 + fill[:, None])[rows].gather(1, survivors)
        call.place = call.place.gather(1, anchor)
        call.size = reduction.sizes(call.size).gather(1, order)
        return gather_sequence(hidden, origin, 1)

    def _tokens(
        self, call: _Prefill, index: int, hidden: Tensor, rows: Tensor, rotary: tuple[Tensor, Tensor]
    ) -> Tokens:
        layer, sequence = self.anatomy.llm_layers[index], hidden

        def ahead() -> tuple[Tensor, Tensor]:
            query, key = peek(layer.self_attn, layer.input_layernorm(sequence), rotary)
            return query[rows], key[rows]

        query, key, mask, scaling = call.attention
        stage, valid = call.stages[-1], call.stages[-1].valid
        last = torch.where(valid, torch.arange(valid.shape[1], device=valid.device), -1).max(1).values
        if call.image_rows != list(range(hidden.shape[0])):  # not one image for each prompt
            query, key, hidden, valid, last = (x[rows] for x in (query, key, hidden, valid, last))
            mask = mask[rows] if mask is not None and mask.shape[0] > 1 else mask
        site = AttentionSite(
            query,
            key,
            scaling,
            mask,
            None if stage.full else valid,
            causal=mask is None or mask.dim() == 2,
            visual=call.at,
            hidden=hidden,
            last=last,
            ahead=ahead,
            entry=lambda: (call.entry[0][rows], call.entry[1]),
            norm=self.anatomy.language_model.norm,
        )
        return Tokens(
            "llm",
            gather_sequence(hidden, call.at, 1),
            layer=index,
            size=call.size,
            position=call.place,
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


def _runs(counts: list[int]) -> list[tuple[int, int]]:
    """(first, count) of consecutive runs: [2, 1] -> [(0, 2), (2, 1)]."""
    return [(sum(counts[:i]), count) for i, count in enumerate(counts)]
