"""Reducing visual tokens inside a language model, and keeping its cache, masks and positions right.

At the entry, holes that the encoder left are dropped. Before each reducing layer K, visual tokens are scored with the
attention of layer K-1 and mapped to fewer. Padding goes with them, down to the longest prompt of the batch. From there
on, hidden states, rotary tables and masks are the short ones, and the cache of each layer is as long as what that layer
saw. Outside the language model every length stays the one the processor made: the last hidden state is spread out
again, the cache counts the whole prompt.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from torch import Tensor, nn

from illava_lab.errors import LabError
from illava_lab.hooks.attachment import Attachment
from illava_lab.hooks.changes import Changes
from illava_lab.hooks.compat import cache_of
from illava_lab.hooks.graphs.parts import in_parts, width_of
from illava_lab.hooks.llm.cache import CacheState, bind, state_of
from illava_lab.hooks.llm.call import Call
from illava_lab.hooks.llm.captured_decode import captured_decode
from illava_lab.hooks.llm.captured_prefill import captured_prefill
from illava_lab.hooks.llm.decode import Decode
from illava_lab.hooks.llm.prefill import Prefill
from illava_lab.hooks.llm.proportional import weighed
from illava_lab.hooks.tap import TappedConfig
from illava_lab.trace.trace import Prefilled


class LanguageModel:
    """The hooks of a language model."""

    def __init__(self, attachment: Attachment) -> None:
        self.attachment, self.plan = attachment, attachment.schedule.plan("llm")

    def install(self, changes: Changes) -> None:
        """Hook the language model and its layers.

        Raises:
            LabError: proportional attention is asked of a kernel that takes no mask of numbers.
        """
        anatomy, strategy = self.attachment.anatomy, self.attachment.strategy
        weighs = strategy.proportional_in_llm and self.attachment.schedule.reduces
        kernel = str(anatomy.language_model.config._attn_implementation)
        if weighs and kernel not in ("None", "eager", "sdpa"):
            raise LabError(f"the proportional attention of {strategy.name!r} needs sdpa or eager attention in the LLM")
        changes.method(anatomy.language_model, "forward", self._language_model)
        layer: Any
        for index, layer in enumerate(anatomy.llm_layers):
            changes.pre_hook(layer, partial(self._enter_layer, index), with_kwargs=True)
            attends = index not in anatomy.linear
            # One tap for what was, and for a look ahead.
            if attends and (weighs or index in self.plan or index + 1 in self.plan):
                observe = self._observe if index + 1 in self.plan else None
                weigh = partial(self._weigh, index) if weighs else None
                changes.attribute(layer.self_attn, "config", TappedConfig(layer.self_attn.config, observe, weigh))
            if self.attachment.graphs is not None:
                changes.method(layer.mlp, "forward", partial(in_parts, width_of(layer.mlp)))

    @property
    def _call(self) -> Call:
        call: Call | None = self.attachment.running.call
        if call is None:
            raise LabError(
                "the language model must be called through its vision-language model while a strategy is attached"
            )
        return call

    def _language_model(self, original: Callable, *args: Any, **kwargs: Any) -> Any:
        """Around one call of the language model."""
        call, cache = self._call, cache_of(kwargs)
        hidden: Tensor = kwargs["inputs_embeds"]
        state = state_of(cache)
        try:
            if state is not None:
                state.inside = True
            if call.prompt is not None:
                done = captured_prefill(self.attachment, call, original, args, kwargs)
                if done is not None:
                    return self._finish(*done)
                call.llm = Prefill(self.attachment, call, hidden, kwargs)
                kwargs = call.llm.kwargs
            elif state is not None:
                call.llm = Decode(self.attachment, hidden, kwargs, state)
                done = captured_decode(self.attachment, call, original, args, kwargs)
                if done is not None:
                    return done
                kwargs = call.llm.enter(kwargs)
            out = original(*args, **kwargs)
            return self._leave(call.llm, out) if isinstance(call.llm, Prefill) else out
        finally:
            call.llm = None
            if state is not None:
                state.inside = False

    def _leave(self, prefill: Prefill, out: Any) -> Any:
        # The call itself ends here, with all that it held.
        return self._finish(prefill.leave(out), prefill.cache_state(), prefill.shown())

    def _finish(self, out: Any, state: CacheState, shown: Prefilled) -> Any:
        if (cache := cache_of(out)) is not None:
            bind(cache, state)
        self.attachment.trace.show(lambda: shown)
        return out

    def _enter_layer(
        self, index: int, layer: nn.Module, args: tuple, kwargs: dict[str, Any]
    ) -> tuple[tuple, dict[str, Any]] | None:
        llm = self._call.llm
        hidden = args[0] if args else kwargs["hidden_states"]
        if isinstance(llm, Prefill):
            hidden, new = llm.enter_layer(index, hidden, kwargs)
        else:
            new = llm.layer_arguments(index, hidden)
        if not new:
            return None
        if args:
            return (hidden, *args[1:]), {**kwargs, **new}
        return args, {**kwargs, **new, "hidden_states": hidden}

    def _observe(self, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, scaling: float) -> None:
        llm = self._call.llm
        if isinstance(llm, Prefill):
            llm.seen = query, key, value, scaling, mask if llm.weighs else None

    def _weigh(self, index: int, key: Tensor, mask: Tensor | None) -> Tensor | None:
        llm = self._call.llm
        bias = llm.bias(index)
        return mask if bias is None else weighed(bias, key, mask, isinstance(llm, Prefill))
