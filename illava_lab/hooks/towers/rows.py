"""Reducing visual tokens inside an image encoder.

A reduction acts inside a layer, between the attention residual and the MLP. After the tower, survivors go back to
the places of their anchors and removed places become holes (NaN), so no length that transformers checks ever
changes; the projector runs on survivors only; the LLM stage drops the holes. Where a model joins crops or pools
patches after that, holes go the same way, and `hooks/connectors` say which placeholders are left. A picture that was
shrunk before the tower is treated alike: its fewer tokens stand at the places that they show.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from illava_lab.errors import LabError
from illava_lab.hooks.connectors.connector import Connector
from illava_lab.hooks.replace import replace_method
from illava_lab.hooks.tap import tap
from illava_lab.method.ask import ask
from illava_lab.method.keep import Keep, kept
from illava_lab.method.strategy import Strategy
from illava_lab.method.token_map import TokenMap
from illava_lab.method.tokens import Tokens
from illava_lab.models.families import Anatomy
from illava_lab.sites.attention import AttentionSite
from illava_lab.trace.step import Step


class RowsTower(Connector):
    """The encoder half of an attachment.

    Its state describes the last call of the tower.
    """

    _mask: Callable[[Tensor, Tensor | None], Tensor | None] | None = None  # see `tap`

    def __init__(self, anatomy: Anatomy, strategy: Strategy, plan: dict[int, Keep], image: Keep | None = None) -> None:
        super().__init__(anatomy)
        self.strategy, self.plan, self.image = strategy, plan, image
        self._positions_after: dict[int, Tensor] = {}
        self._attention: tuple[Tensor, Tensor, Tensor | None, float] | None = None

    # ---- installing
    def install(self, undo: ExitStack) -> None:
        """Hook the tower; `undo` takes everything back."""
        tower, layers = self.anatomy.tower, self.anatomy.encoder_layers
        if not self.plan and self.image is None:
            return
        for index in self.plan:
            self._install_layer(undo, index)
        if self.plan and self.strategy.proportional_attention:
            for index in range(min(self.plan) + 1, len(layers)):
                self._weigh_keys(undo, index)
        undo.callback(tower.register_forward_hook(self._leave, prepend=True).remove)
        projector = self.anatomy.projector
        undo.callback(projector.register_forward_pre_hook(self._drop_holes, prepend=True).remove)
        undo.callback(projector.register_forward_hook(self._restore_holes, prepend=True).remove)

    def _install_layer(self, undo: ExitStack, index: int) -> None:
        """Take both residual sums of a layer out of its own code, which sees one number in place of each summand.

        Between them tokens go; and the layer cannot hold on to the whole sequence while its MLP, where memory peaks,
        runs.
        """
        layer = self.anatomy.encoder_layers[index]
        first_norm, attention, second_norm, mlp = (getattr(layer, name) for name in self.anatomy.layer_parts)
        attention_scale, mlp_scale = (getattr(layer, name, None) for name in ("lambda_1", "lambda_2"))  # of InternVL
        states: list[Tensor] = []  # of the call that runs: those that the next part takes

        def enter_attention(module: nn.Module, args: tuple) -> tuple:
            return (states[0], *args[1:])

        def after_attention(module: nn.Module, args: tuple, out: Any) -> Any:
            attended, *rest = out if isinstance(out, tuple) else (out,)
            states[0] = states[0] + _scaled(attended, attention_scale)
            nothing = attended.new_zeros(1)
            return (nothing, *rest) if isinstance(out, tuple) else nothing

        def enter_mlp(module: nn.Module, args: tuple) -> tuple:
            states[0] = self._reduce(index, states[0])
            return (states[0], *args[1:])

        def after_mlp(module: nn.Module, args: tuple, out: Tensor) -> Tensor:
            states[0] = states[0] + _scaled(out, mlp_scale)
            return out.new_zeros(1)

        # Not a forward hook: transformers records hidden states with one, and must see the short result.
        def forward(original: Callable, hidden_states: Tensor, *args: Any, **kwargs: Any) -> Any:
            states[:] = [hidden_states]
            out = original(hidden_states.new_zeros(1), *args, **kwargs)
            new = states.pop()
            return (new, *out[1:]) if isinstance(out, tuple) else new

        undo.enter_context(tap(attention, self._observe, self._mask))
        undo.callback(first_norm.register_forward_pre_hook(enter_attention, prepend=True).remove)
        undo.callback(attention.register_forward_hook(after_attention, prepend=True).remove)
        undo.callback(second_norm.register_forward_pre_hook(enter_mlp, prepend=True).remove)
        undo.callback(mlp.register_forward_hook(after_mlp, prepend=True).remove)
        replace_method(undo, layer, "forward", forward)

    def _weigh_keys(self, undo: ExitStack, index: int) -> None:
        layer = self.anatomy.encoder_layers[index]
        undo.callback(layer.register_forward_pre_hook(self._add_log_size, with_kwargs=True, prepend=True).remove)

    def _observe(self, query: Tensor, key: Tensor, mask: Tensor | None, scaling: float) -> None:
        self._attention = (query, key, mask, scaling)

    # ---- one call of the tower
    def _start(self, tower: nn.Module, args: tuple, kwargs: dict[str, Any]) -> tuple[tuple, dict[str, Any]] | None:
        pixels: Tensor = kwargs["pixel_values"] if "pixel_values" in kwargs else args[0]
        first = -self.anatomy.cls_tokens
        place = torch.arange(first, self.anatomy.patches, device=pixels.device)
        self.position = place.expand(pixels.shape[0], -1)
        self.size = torch.ones(1, 1, device=pixels.device).expand(self.position.shape)
        self.steps, self._positions_after, self._attention, self._visuals = [], {}, None, []
        if self.image is None:
            return None
        smaller = self._shrink(pixels, self.image)
        kwargs = {**kwargs, "interpolate_pos_encoding": True}
        return ((smaller, *args[1:]), kwargs) if args else (args, {**kwargs, "pixel_values": smaller})

    def _shrink(self, pixels: Tensor, image: Keep) -> Tensor:
        """The smaller picture; notes which patches of the full one its patches show."""
        anatomy, cls_tokens = self.anatomy, self.anatomy.cls_tokens
        tokens = Tokens(
            "image",
            pixels.new_zeros(*self.position.shape, 1),
            position=self.position,
            protected=self.position < 0 if cls_tokens else None,
            protected_count=cls_tokens,
            grid=anatomy.grid,
        )
        after = kept(image, anatomy.patches, "image")
        reduction = ask(self.strategy, tokens, after + cls_tokens)
        self.position, self.size = self.position.gather(1, reduction.anchor), reduction.sizes(self.size)
        self._positions_after[-1] = self.position
        self.steps.append(Step("image", 0, range(len(pixels)), reduction, anatomy.patches, after))
        strategy: Any = self.strategy  # the one that serves this stage
        grid = strategy.grid(after, anatomy.grid)
        size = tuple(pixels.shape[2 + i] // anatomy.grid[i] * grid[i] for i in range(2))
        return functional.interpolate(pixels, size, mode="bicubic", antialias=True)

    def _reduce(self, index: int, hidden: Tensor) -> Tensor:
        return self._ask(index, hidden, self._site(hidden)).apply(hidden)

    def _site(self, hidden: Tensor) -> AttentionSite:
        assert self._attention is not None
        query, key, mask, scaling = self._attention
        self._attention = None
        return AttentionSite(query, key, scaling, mask, has_cls=bool(self.anatomy.cls_tokens), hidden=hidden)

    def _ask(self, index: int, hidden: Tensor, site: Any) -> TokenMap:
        """The strategy's map for the tokens (rows, N, C) inside a layer, noted as done."""
        cls_tokens = self.anatomy.cls_tokens
        tokens = Tokens(
            "encoder",
            hidden,
            layer=index,
            size=self.size,
            position=self.position,
            protected=self.position < 0 if cls_tokens else None,
            protected_count=cls_tokens,
            grid=self.anatomy.grid,
            site=site,
        )
        before = hidden.shape[1] - cls_tokens
        after = kept(self.plan[index], before, f"encoder layer {index}")
        reduction = ask(self.strategy, tokens, after + cls_tokens)
        self.position = self.position.gather(1, reduction.anchor)
        self.size = reduction.sizes(self.size)
        self._positions_after[index] = self.position
        self.steps.append(
            Step("encoder", index, range(hidden.shape[0]), reduction, before, reduction.slots - cls_tokens)
        )
        return reduction

    def _add_log_size(
        self, layer: nn.Module, args: tuple, kwargs: dict[str, Any]
    ) -> tuple[tuple, dict[str, Any]] | None:
        """Proportional attention (ToMe, equation 1): a key that stands for s patches gets log s on its logits."""
        if all(step.after == step.before for step in self.steps):
            return None  # all sizes are 1: leave the fused kernel its mask-free path
        bias = self.size.log()[:, None, None, :].to(args[0].dtype)
        return (args[0], bias, *args[2:]), kwargs

    # ---- holes
    def _leave(self, tower: nn.Module, args: tuple, out: Any) -> Any:
        if isinstance(out, tuple):
            raise LabError(
                "the vision tower returned a tuple; call it with return_dict=True while a strategy is attached"
            )
        if out.hidden_states is not None:
            # Entry i holds the output of layer i-1.
            out["hidden_states"] = tuple(
                self._with_holes(hidden, self._position_after_layer(i - 1))
                for i, hidden in enumerate(out.hidden_states)
            )
        if out.last_hidden_state is not None:
            out["last_hidden_state"] = self._with_holes(out.last_hidden_state, self.position)
        return out

    def _position_after_layer(self, index: int) -> Tensor | None:
        done = [layer for layer in self._positions_after if layer <= index]
        return self._positions_after[max(done)] if done else None

    def _with_holes(self, hidden: Tensor | None, position: Tensor | None) -> Tensor | None:
        if hidden is None or position is None:
            return hidden
        cls_tokens = self.anatomy.cls_tokens
        full = hidden.new_full((hidden.shape[0], self.anatomy.patches + cls_tokens, hidden.shape[2]), torch.nan)
        return full.scatter(1, (position + cls_tokens)[..., None].expand_as(hidden), hidden)

    def _survivors(self) -> Tensor:
        """(rows, M) patch index of the survivors in raster order, CLS left out."""
        return self.position.sort(dim=1).values[:, self.anatomy.cls_tokens :]

    def _drop_holes(self, projector: nn.Module, args: tuple) -> tuple:
        place = self._survivors()
        return (args[0].gather(1, place[..., None].expand(-1, -1, args[0].shape[2])), *args[1:])

    def _restore_holes(self, projector: nn.Module, args: tuple, out: Tensor) -> Tensor:
        place = self._survivors()
        full = out.new_full((out.shape[0], self.anatomy.patches, out.shape[2]), torch.nan)
        return full.scatter(1, place[..., None].expand_as(out), out)


def _scaled(x: Tensor, scale: Tensor | None) -> Tensor:
    return x if scale is None else scale * x
