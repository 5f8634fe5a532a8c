"""Reducing visual tokens inside an image encoder.

A reduction acts inside a layer, between the attention residual and the MLP. After the tower, survivors go back to
the places of their anchors and removed places become holes (NaN), so no length that transformers checks ever
changes; the projector runs on survivors only; the LLM stage drops the holes. A picture that was shrunk before the
tower is treated alike: its fewer tokens stand at the places that they show.
"""

from __future__ import annotations

import functools
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import interpolate

from illava_lab.attention import AttentionSite, tap
from illava_lab.errors import LabError
from illava_lab.families import Anatomy
from illava_lab.schedule import Keep, kept
from illava_lab.strategy import Strategy, TokenMap, Tokens
from illava_lab.trace import Step


class EncoderStage:
    """The encoder half of an attachment. Its public attributes describe the last call of the vision tower.

    Attributes:
        position: (images, M) patch index of each survivor, -1 for CLS; None before the first call.
        size: (images, M) patches that each survivor stands for.
        steps: the reductions of that call.
    """

    def __init__(
        self, anatomy: Anatomy, strategy: Strategy, plan: dict[int, Keep], image: Keep | None = None
    ) -> None:
        self.anatomy, self.strategy, self.plan, self.image = anatomy, strategy, plan, image
        self.position: Tensor | None = None
        self.size: Tensor | None = None
        self.steps: list[Step] = []
        self._positions_after: dict[int, Tensor] = {}
        self._attention: tuple[Tensor, Tensor, Tensor | None, float] | None = None

    def survivors(self) -> tuple[Tensor, Tensor]:
        """((images, M), (images, M)): patch index and size of the survivors in raster order, CLS left out."""
        position, order = self.position.sort(dim=1)
        skip = self.anatomy.cls_tokens
        return position[:, skip:], self.size.gather(1, order)[:, skip:]

    # ---- installing
    def install(self, undo: ExitStack) -> None:
        """Hook the tower; `undo` takes everything back."""
        tower, layers = self.anatomy.tower, self.anatomy.encoder_layers
        undo.callback(tower.register_forward_pre_hook(self._start, with_kwargs=True, prepend=True).remove)
        if not self.plan and self.image is None:
            return
        for index in self.plan:
            self._install_layer(undo, index)
        if self.plan and self.strategy.proportional_attention:
            for layer in list(layers)[min(self.plan) + 1 :]:
                undo.callback(layer.register_forward_pre_hook(self._add_log_size, with_kwargs=True, prepend=True).remove)
        undo.callback(tower.register_forward_hook(self._leave, prepend=True).remove)
        projector = self.anatomy.projector
        undo.callback(projector.register_forward_pre_hook(self._drop_holes, prepend=True).remove)
        undo.callback(projector.register_forward_hook(self._restore_holes, prepend=True).remove)

    def _install_layer(self, undo: ExitStack, index: int) -> None:
        layer = self.anatomy.encoder_layers[index]
        attention, norm, mlp = (getattr(layer, name) for name in self.anatomy.layer_parts)
        short: dict[str, Tensor] = {}

        def observe(query: Tensor, key: Tensor, mask: Tensor | None, scaling: float) -> None:
            self._attention = (query, key, mask, scaling)

        def before_norm(module: nn.Module, args: tuple) -> tuple:
            short["residual"] = self._reduce(index, args[0])
            return (short["residual"], *args[1:])

        def after_mlp(module: nn.Module, args: tuple, out: Tensor) -> Tensor:
            short["mlp"] = out
            return out.new_zeros(1)  # the layer's own residual sum becomes a no-op broadcast

        original = layer.forward

        # Not a forward hook: transformers records hidden states with one, and must see the short result.
        @functools.wraps(original)
        def forward(*args: Any, **kwargs: Any) -> Any:
            out = original(*args, **kwargs)
            new = short.pop("residual") + short.pop("mlp")
            return (new, *out[1:]) if isinstance(out, tuple) else new

        undo.enter_context(tap(attention, observe))
        undo.callback(norm.register_forward_pre_hook(before_norm, prepend=True).remove)
        undo.callback(mlp.register_forward_hook(after_mlp, prepend=True).remove)
        set_forward(undo, layer, forward)

    # ---- one call of the tower
    def _start(self, tower: nn.Module, args: tuple, kwargs: dict[str, Any]) -> tuple[tuple, dict[str, Any]] | None:
        pixels = kwargs.get("pixel_values", args[0] if args else None)
        first = -self.anatomy.cls_tokens
        place = torch.arange(first, self.anatomy.patches, device=pixels.device)
        self.position = place.expand(pixels.shape[0], -1)
        self.size = torch.ones(self.position.shape, device=pixels.device)
        self.steps, self._positions_after, self._attention = [], {}, None
        if self.image is None:
            return None
        smaller = self._shrink(pixels)
        kwargs = {**kwargs, "interpolate_pos_encoding": True}
        return ((smaller, *args[1:]), kwargs) if args else (args, {**kwargs, "pixel_values": smaller})

    def _shrink(self, pixels: Tensor) -> Tensor:
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
        after = kept(self.image, anatomy.patches, "image")
        reduction = ask(self.strategy, tokens, after + cls_tokens)
        self.position, self.size = self.position.gather(1, reduction.anchor), reduction.sizes(self.size)
        self._positions_after[-1] = self.position
        self.steps.append(Step("image", 0, len(pixels), reduction, anatomy.patches, after))
        grid = self.strategy.grid(after, anatomy.grid)
        size = tuple(pixels.shape[2 + i] // anatomy.grid[i] * grid[i] for i in range(2))
        return interpolate(pixels, size, mode="bicubic", antialias=True)

    def _reduce(self, index: int, hidden: Tensor) -> Tensor:
        cls_tokens = self.anatomy.cls_tokens
        query, key, mask, scaling = self._attention
        self._attention = None
        site = AttentionSite(query, key, scaling, mask, has_cls=bool(cls_tokens), hidden=hidden)
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
        self.steps.append(Step("encoder", index, hidden.shape[0], reduction, before, reduction.slots - cls_tokens))
        return reduction.apply(hidden)

    def _add_log_size(self, layer: nn.Module, args: tuple, kwargs: dict[str, Any]) -> tuple[tuple, dict[str, Any]] | None:
        """Proportional attention (ToMe, equation 1): a key that stands for s patches gets log s on its logits."""
        if all(step.after == step.before for step in self.steps):
            return None  # all sizes are 1: leave the fused kernel its mask-free path
        bias = self.size.log()[:, None, None, :].to(args[0].dtype)
        return (args[0], bias, *args[2:]), kwargs

    # ---- holes
    def _leave(self, tower: nn.Module, args: tuple, out: Any) -> Any:
        if isinstance(out, tuple):
            raise LabError("the vision tower returned a tuple; call it with return_dict=True while a strategy is attached")
        if out.hidden_states is not None:
            # Entry i holds the output of layer i-1.
            out["hidden_states"] = tuple(
                self._with_holes(hidden, self._position_after_layer(i - 1)) for i, hidden in enumerate(out.hidden_states)
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

    def _drop_holes(self, projector: nn.Module, args: tuple) -> tuple:
        place = self.survivors()[0]
        return (args[0].gather(1, place[..., None].expand(-1, -1, args[0].shape[2])), *args[1:])

    def _restore_holes(self, projector: nn.Module, args: tuple, out: Tensor) -> Tensor:
        place = self.survivors()[0]
        full = out.new_full((out.shape[0], self.anatomy.patches, out.shape[2]), torch.nan)
        return full.scatter(1, place[..., None].expand_as(out), out)


def set_forward(undo: ExitStack, module: nn.Module, forward: Any) -> None:
    """Give one module instance another forward; `undo` takes it back."""
    had = vars(module).get("forward")
    object.__setattr__(module, "forward", forward)
    if had is None:
        undo.callback(module.__dict__.pop, "forward")
    else:
        undo.callback(object.__setattr__, module, "forward", had)


def ask(strategy: Strategy, tokens: Tokens, keep: int) -> TokenMap:
    """The strategy's map for these tokens, refused if it is not what was asked for.

    Raises:
        LabError: more tokens are protected than `keep`, or the strategy returned something else than a TokenMap of
            `keep` slots for every row.
    """
    where = f"strategy {strategy.name!r} at {tokens.stage} layer {tokens.layer}"
    tokens.room(keep)
    answer = strategy.map(tokens, keep)
    if not isinstance(answer, TokenMap):
        raise LabError(f"{where} must return a TokenMap, got {type(answer).__name__}")
    if tuple(answer.anchor.shape) != (tokens.batch, keep) or answer.tokens != tokens.count:
        raise LabError(
            f"{where} was asked to keep {keep} of {tokens.count} tokens for {tokens.batch} rows, "
            f"it returned {answer!r}"
        )
    return answer
