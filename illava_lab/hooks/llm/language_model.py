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

from contextlib import ExitStack
from typing import Any

from torch import Tensor, nn

from illava_lab.errors import LabError
from illava_lab.hooks.llm.cache import CacheState, bind
from illava_lab.hooks.llm.call import Decode, Prefill
from illava_lab.hooks.llm.decode import layer_arguments, start_decoding
from illava_lab.hooks.llm.prefill import Positions, Prefilling
from illava_lab.hooks.llm.prompt import images_of, read_prompt
from illava_lab.hooks.tap import tap
from illava_lab.hooks.towers.rows import RowsTower
from illava_lab.method.keep import Keep
from illava_lab.method.strategy import Strategy
from illava_lab.models.families import Anatomy
from illava_lab.trace.trace import Trace


class LlmHooks(Prefilling):
    """The language-model half of an attachment."""

    def __init__(
        self,
        anatomy: Anatomy,
        strategy: Strategy,
        plan: dict[int, Keep],
        positions: Positions,
        encoder: RowsTower,
        trace: Trace,
    ) -> None:
        self.anatomy, self.strategy, self.plan, self.positions = anatomy, strategy, plan, positions
        self.encoder, self.trace = encoder, trace
        self.closed = False
        self._input_ids: Tensor | None = None
        self._has_pixels = False
        self._call: Prefill | Decode | None = None
        self._cache_state: CacheState | None = None

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
        layer: Any
        for index, layer in enumerate(self.anatomy.llm_layers):
            if index + 1 in self.plan:
                undo.enter_context(tap(layer.self_attn, self._observe))
            pre(layer, self._layer_hook(index))

    def watch(self, undo: ExitStack) -> None:
        """Where nothing is reduced: only note which images a call has, so that the trace can tell their patches."""

        def note(module: nn.Module, args: tuple, kwargs: dict[str, Any]) -> None:
            hidden = kwargs.get("inputs_embeds")
            if self._has_pixels and self._input_ids is not None and hidden is not None:
                prompt = read_prompt(self.anatomy, self._input_ids, hidden, kwargs.get("attention_mask"))
                self._start_trace(images_of(self.anatomy, prompt, self.encoder.visuals))

        for module, hook in ((self.anatomy.base, self._remember_inputs), (self.anatomy.language_model, note)):
            undo.callback(module.register_forward_pre_hook(hook, with_kwargs=True).remove)

    def _remember_inputs(self, module: nn.Module, args: tuple, kwargs: dict[str, Any]) -> None:
        self._input_ids = kwargs.get("input_ids", args[0] if args else None)
        encoded = (kwargs.get("mm_encoder_outputs") or {}).values()
        given = (kwargs.get("pixel_values"), kwargs.get("pixel_values_videos"), *encoded)
        self._has_pixels = any(value is not None for value in given)

    def _observe(self, query: Tensor, key: Tensor, mask: Tensor | None, scaling: float) -> None:
        if isinstance(self._call, Prefill):
            self._call.attention = (query, key, mask, scaling)

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
        self._call, kwargs = start_decoding(hidden, mask, kwargs, state, past)
        return (), kwargs

    def _layer_hook(self, index: int) -> Any:
        planned = sorted(self.plan)
        segment = sum(layer <= index for layer in planned)

        def hook(module: nn.Module, args: tuple, kwargs: dict[str, Any]) -> tuple[tuple, dict[str, Any]] | None:
            call = self._call
            hidden = args[0] if args else kwargs["hidden_states"]
            if isinstance(call, Prefill):
                if index in self.plan:
                    hidden = self._reduce(call, index, hidden, {**kwargs, **(call.kwargs or {})}["position_embeddings"])
                    call.kwargs = None
                if call.kwargs is None:
                    call.kwargs = self._short_kwargs(call, hidden, kwargs)
                new = call.kwargs
            elif isinstance(call, Decode) and segment:
                if segment not in call.kwargs:
                    call.kwargs[segment] = layer_arguments(
                        self.anatomy, self.positions == "packed", call, segment, hidden
                    )
                new = call.kwargs[segment]
            else:
                return None
            if not new and index not in self.plan:
                return None
            if args:
                return (hidden, *args[1:]), {**kwargs, **new}
            return args, {**kwargs, **new, "hidden_states": hidden}

        return hook

    def _leave(self, module: nn.Module, args: tuple, out: Any) -> Any:
        call = self._call
        if not isinstance(call, Prefill):
            return out
        assert self._input_ids is not None
        last, hidden = call.segments[-1], out.last_hidden_state
        length = self._input_ids.shape[1]
        if call.changed:
            # One dustbin column more, for padding slots.
            full = hidden.new_zeros(hidden.shape[0], length + 1, hidden.shape[2])
            target = last.prompt.masked_fill(~last.valid, length)
            out["last_hidden_state"] = full.scatter(1, target[..., None].expand_as(hidden), hidden)[:, :-1]
        if out.past_key_values is not None:
            bind(out.past_key_values, CacheState(length, call.segments, self))
        return out

    def _end(self, module: nn.Module, args: tuple, out: Any) -> None:
        if self._cache_state is not None:
            self._cache_state.inside = False
        self._cache_state = self._call = None
