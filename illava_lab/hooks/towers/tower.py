"""Reducing visual tokens inside an image encoder.

A reduction acts inside a layer, between the attention residual and the MLP. The tower goes on with fewer tokens, and so
does the projector behind it; what the projector returns is spread out again to the places that transformers counts, so
no length that it checks ever changes. Removed places become holes, which the language model drops at its entry.

How a tower lays out its patches is the business of a *form*, made anew for each call of the tower.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, Protocol

from torch import Tensor, nn

from illava_lab.errors import LabError
from illava_lab.hooks.attachment import Attachment
from illava_lab.hooks.changes import Changes
from illava_lab.hooks.compat import ASKS_FOR_LAYERS
from illava_lab.hooks.encoding import Encoding, TowerCall
from illava_lab.hooks.graphs.parts import in_parts, width_of
from illava_lab.hooks.tap import TappedConfig
from illava_lab.hooks.towers.captured import captured_tower


class Form(TowerCall, Protocol):
    """One call of a tower of one layout.

    Attributes:
        states: of the layer that runs: those that its next part takes.
        nothing: (1,) zero, what the layer's own code adds up instead.
    """

    states: Tensor | None
    nothing: Tensor | None

    def enter_tower(self, args: tuple, kwargs: dict[str, Any]) -> tuple[tuple, dict[str, Any]]:
        """What the tower is called with."""
        ...

    def enter_layer(self, kwargs: dict[str, Any]) -> dict[str, Any]:
        """What a layer is called with, behind its states."""
        ...

    def seen(self, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, scaling: float) -> None:
        """The attention of a layer ran at which the strategy is asked."""
        ...

    def weigh(self, key: Tensor, mask: Tensor | None) -> Tensor | None:
        """The mask of an attention: proportional attention (ToMe, equation 1) adds log s to the logits of a key that
        stands for s patches."""
        ...

    def reduce(self, layer: int, hidden: Tensor) -> Tensor:
        """Ask the strategy inside a layer for its note, its map or both; the states that go on."""
        ...

    def leave_tower(self, out: Any) -> Any:
        """What the tower returns: no holes, patches in raster order."""
        ...

    def told(self) -> Any:
        """What the tower left, for somebody who captures it: made of tensors and numbers."""
        ...

    def tell(self, told: Any) -> None:
        """What `told` gave, to a form of the same call that has not run."""
        ...

    def enter_projector(self, hidden: Tensor) -> Tensor:
        """What the projector sees: no holes."""
        ...

    def leave_projector(self, out: Tensor) -> Tensor:
        """What the projector returns, with holes."""
        ...


class Tower:
    """The hooks of a vision tower.

    Args:
        form: makes the form of a call from what the tower is called with.
    """

    def __init__(self, attachment: Attachment, form: Callable[[Attachment, tuple, dict[str, Any]], Form]) -> None:
        self.attachment, self.anatomy, self.form = attachment, attachment.anatomy, form
        self.plan = attachment.schedule.plan("encoder")

    def install(self, changes: Changes) -> None:
        """Hook the tower, if it or the picture before it is reduced.

        Raises:
            LabError: proportional attention is asked of a kernel that takes no mask of numbers.
        """
        module, layers = self.anatomy.tower, self.anatomy.encoder_layers
        if self.attachment.graphs is not None:
            for mlp in (getattr(layer, self.anatomy.layer_parts.mlp) for layer in layers):
                changes.method(mlp, "forward", partial(in_parts, width_of(mlp)))
        if not self.plan and self.attachment.schedule.image is None:
            if self.attachment.graphs is not None:
                changes.method(module, "forward", self._tower)
            return
        strategy = self.attachment.strategy
        weighs = bool(self.plan) and (strategy.proportional_attention or strategy.own_count)
        kernel = str(module.config._attn_implementation)
        if weighs and kernel not in ("None", "eager", "sdpa"):
            what = "proportional attention" if strategy.proportional_attention else "own count"
            raise LabError(f"the {what} of {strategy.name!r} needs sdpa or eager attention in the tower")
        changes.method(module, "forward", self._tower)
        for index, layer in enumerate(layers):
            reduces = index in self.plan or index in self.attachment.looks
            if self.plan and (reduces or self.anatomy.cells is not None):
                changes.method(layer, "forward", self._layer if reduces else self._pass)
            if reduces:
                self._cut(changes, index)
            if reduces or (weighs and index > min(self.plan)):
                attention: Any = getattr(layer, self.anatomy.layer_parts.attention)
                observe = self._observe if reduces else None
                changes.attribute(
                    attention, "config", TappedConfig(attention.config, observe, self._weigh if weighs else None)
                )
        for projector in (self.anatomy.projector, *self.anatomy.deepstack.values()):
            changes.pre_hook(projector, self._enter_projector)
            changes.hook(projector, self._leave_projector)

    @property
    def _form(self) -> Form:
        form: Form = self.attachment.running.encoding.tower
        return form

    def _tower(self, original: Callable, *args: Any, **kwargs: Any) -> Any:
        """Around one call of the tower, which somebody may also make by hand."""
        running = self.attachment.running
        encoding = running.encoding or Encoding()

        def form_of(args: tuple, kwargs: dict[str, Any]) -> Form:
            return self.form(self.attachment, args, kwargs)

        def run(args: tuple, kwargs: dict[str, Any]) -> tuple[Any, Form]:
            form = encoding.tower = form_of(args, kwargs)
            with running.during("encoding", encoding):
                args, kwargs = form.enter_tower(args, kwargs)
                wanted = self._layers_read(kwargs)
                out = original(*args, **kwargs | wanted)
                if isinstance(out, tuple):
                    raise LabError(
                        "the vision tower returned a tuple; call it with return_dict=True while a strategy is attached"
                    )
                if wanted:
                    out["hidden_states"] = (None, *out.hidden_states)  # what enters the first layer
                return form.leave_tower(out), form

        done = captured_tower(self.attachment, run, form_of, args, kwargs)
        out, encoding.tower = run(args, kwargs) if done is None else done
        return out

    def _layers_read(self, kwargs: dict[str, Any]) -> dict[str, Any]:
        """Asks for the states that the projector is given instead of those of all layers, which would be held on to.

        Nothing, where they are asked for one by one already, or where somebody calls the tower himself.
        """
        running, entries = self.attachment.running, len(self.anatomy.encoder_layers) + 1
        inside = running.call is not None or running.prompt_length is not None
        layer = getattr(self.anatomy.base.config, "vision_feature_layer", -1)
        read = {one % entries for one in ([layer] if isinstance(layer, int) else layer)}
        if kwargs.get("output_hidden_states") is not True or not (ASKS_FOR_LAYERS and inside) or 0 in read:
            return {}
        return {"output_hidden_states": [entry - 1 for entry in read]}

    # ---- inside a layer
    def _pass(self, original: Callable, hidden_states: Tensor, *args: Any, **kwargs: Any) -> Any:
        return original(hidden_states, *args, **self._form.enter_layer(kwargs))

    def _layer(self, original: Callable, hidden_states: Tensor, *args: Any, **kwargs: Any) -> Any:
        """Around a layer whose residual sums `_cut` has taken over. Not a forward hook: transformers records hidden
        states with one, and must see the short result."""
        form = self._form
        kwargs, form.states = form.enter_layer(kwargs), hidden_states
        if form.nothing is None or form.nothing.device != hidden_states.device:
            form.nothing = hidden_states.new_zeros(1)
        out = original(form.nothing, *args, **kwargs)
        states, form.states = form.states, None
        return (states, *out[1:]) if isinstance(out, tuple) else states

    def _cut(self, changes: Changes, index: int) -> None:
        """Take both residual sums of a layer out of its own code, which sees one number in place of each summand.

        Between them tokens go; and the layer cannot hold on to the whole sequence while its MLP, where memory peaks,
        runs.
        """
        layer = self.anatomy.encoder_layers[index]
        first_norm, attention, second_norm, mlp = (getattr(layer, name) for name in self.anatomy.layer_parts)

        def enter_attention(module: nn.Module, args: tuple) -> tuple:
            return (self._form.states, *args[1:])

        def leave_attention(module: nn.Module, args: tuple, out: Any) -> Any:
            attended, *rest = out if isinstance(out, tuple) else (out,)
            self._add(attended, getattr(layer, "lambda_1", None))
            nothing = self._form.nothing
            return (nothing, *rest) if isinstance(out, tuple) else nothing

        def enter_mlp(module: nn.Module, args: tuple) -> tuple:
            form = self._form
            assert form.states is not None
            form.states = form.reduce(index, form.states)
            return (form.states, *args[1:])

        def leave_mlp(module: nn.Module, args: tuple, out: Tensor) -> Tensor | None:
            self._add(out, getattr(layer, "lambda_2", None))
            return self._form.nothing

        changes.pre_hook(first_norm, enter_attention)
        changes.hook(attention, leave_attention)
        changes.pre_hook(second_norm, enter_mlp)
        changes.hook(mlp, leave_mlp)

    def _add(self, summand: Tensor, scale: Tensor | None) -> None:
        """A residual sum. `scale` is InternVL's, read now: weights may be offloaded, or assigned anew."""
        form = self._form
        assert form.states is not None
        form.states = form.states.to(summand.device) + (summand if scale is None else scale * summand)

    def _observe(self, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, scaling: float) -> None:
        self._form.seen(query, key, value, mask, scaling)

    def _weigh(self, key: Tensor, mask: Tensor | None) -> Tensor | None:
        return self._form.weigh(key, mask)

    # ---- the projector
    def _enter_projector(self, projector: nn.Module, args: tuple) -> tuple | None:
        if not self._projects_rows():
            return None
        return (self._form.enter_projector(args[0]), *args[1:])

    def _leave_projector(self, projector: nn.Module, args: tuple, out: Tensor) -> Tensor | None:
        return self._form.leave_projector(out) if self._projects_rows() else None

    def _projects_rows(self) -> bool:
        """Not where the projector is called by hand, on what somebody else made, or on what was pooled before it."""
        encoding: Encoding | None = self.attachment.running.encoding
        return encoding is not None and not encoding.pooled
