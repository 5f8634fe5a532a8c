"""Towers that see each image, crop or frame as one row of patches (CLIP, SigLIP).

A picture that was shrunk before the tower is treated as one that was reduced: its fewer tokens stand at the places that
they show.
"""

from __future__ import annotations

from typing import Any, Protocol

import torch
from torch import Tensor
from torch.nn import functional

from illava_lab.hooks.attachment import Attachment
from illava_lab.method.ask import ask, take_note
from illava_lab.method.keep import kept
from illava_lab.method.rows import row_index
from illava_lab.method.token_map import TokenMap
from illava_lab.method.tokens import Stage, Tokens
from illava_lab.sites.attention import AttentionSite, tokens_at
from illava_lab.trace.step import Step
from illava_lab.trace.survivors import Survivors


class Rows:
    """One call of such a tower; see `Form`.

    Attributes:
        survivors: (rows, M) what is left, CLS first if there is one.
    """

    survivors: Survivors

    def __init__(self, attachment: Attachment, args: tuple, kwargs: dict[str, Any]) -> None:
        self.attachment, self.anatomy = attachment, attachment.anatomy
        pixels: Tensor = kwargs["pixel_values"] if "pixel_values" in kwargs else args[0]
        self.skip = self.anatomy.cls_tokens
        self.survivors = Survivors.everything(-self.skip, len(pixels), self.anatomy.patches + self.skip, pixels.device)
        self.steps: list[Step] = []
        self.states: Tensor | None = None
        self.nothing: Tensor | None = None
        self.noted: Tensor | None = None
        self._attention: tuple[Tensor, Tensor, Tensor, Tensor | None, float] | None = None
        self._log_size: Tensor | None = None

    # ---- the tower
    def enter_tower(self, args: tuple, kwargs: dict[str, Any]) -> tuple[tuple, dict[str, Any]]:
        if self.attachment.schedule.image is None:
            return args, kwargs
        pixels: Tensor = kwargs["pixel_values"] if "pixel_values" in kwargs else args[0]
        smaller = shrink(self, pixels)
        return with_smaller(smaller, args, kwargs)

    def leave_tower(self, out: Any) -> Any:
        order = self.survivors.place.argsort(dim=1)  # CLS, at -1, comes first: LLaVA cuts off what lies there
        self.survivors = self.survivors.at(order)
        if out.hidden_states is not None:
            states = list(out.hidden_states)
            for entry in self._feature_layers(len(states)):
                same = states[entry] is out.last_hidden_state
                states[entry] = tokens_at(states[entry], self._from(entry, order))
                if same:
                    out["last_hidden_state"] = states[entry]
            out["hidden_states"] = tuple(states)
        return out

    def _feature_layers(self, entries: int) -> list[int]:
        """Which of the hidden states the projector is given; entry i holds the output of layer i-1."""
        layer = self.anatomy.base.config.vision_feature_layer
        return sorted({one % entries for one in ([layer] if isinstance(layer, int) else layer)})

    def _from(self, entry: int, order: Tensor) -> Tensor:
        """(rows, M) where in an entry of the hidden states the anchors of the last survivors are."""
        for step in reversed(self.steps):
            if step.stage == "encoder" and step.layer >= entry:
                order = step.map.anchor.to(order.device).gather(1, order)
        return order

    # ---- a layer
    def enter_layer(self, kwargs: dict[str, Any]) -> dict[str, Any]:
        return kwargs

    def seen(self, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, scaling: float) -> None:
        self._attention = query, key, value, mask, scaling

    def weigh(self, key: Tensor, mask: Tensor | None) -> Tensor | None:
        if all(step.after == step.before for step in self.steps):
            return mask  # all sizes are 1: leave the fused kernel its mask-free path
        if self._log_size is None:
            size = self.survivors.size.log()
            self._log_size = size.view(len(size), 1, 1, -1).to(key.device, key.dtype)
        return self._log_size if mask is None else mask + self._log_size

    def reduce(self, layer: int, hidden: Tensor) -> Tensor:
        assert self._attention is not None
        query, key, value, mask, scaling = self._attention
        self._attention = self._log_size = None
        site = AttentionSite(query, key, scaling, mask, has_cls=bool(self.skip), hidden=hidden, value=value)
        reduction = ask_rows(self, layer, hidden, site)
        return hidden if reduction is None else reduction.apply(hidden)

    # ---- the projector
    def enter_projector(self, hidden: Tensor) -> Tensor:
        return hidden

    def leave_projector(self, out: Tensor) -> Tensor:
        return with_holes(out, self.patches.place, self.anatomy.patches, self._hole)

    @property
    def _hole(self) -> float:
        # NaN, so that features which somebody uses without the strategy cannot pass for whole ones; where the model
        # itself goes on to interpolate between patches, the connector sees to that.
        return 0.0 if any(media.pack for media in self.anatomy.media.values()) else torch.nan

    # ---- what is left
    def told(self) -> Any:
        return self.steps, self.survivors.place, self.survivors.size

    def tell(self, told: Any) -> None:
        self.steps, place, size = told
        self.survivors = known_survivors(place, size)

    @property
    def patches(self) -> Survivors:
        return self.survivors.behind(self.skip)

    counts: list[int] | None = None

    @property
    def kept(self) -> float:
        return (self.survivors.count - self.skip) / self.anatomy.patches


def known_survivors(place: Tensor, size: Tensor) -> Survivors:
    """Tokens whose places and sizes (R, M) are there already."""
    return Survivors(place.shape[1], place.device, lambda: place, lambda: size)


class Reduced(Protocol):
    """What the functions below need of a form of rows, and change in it.

    Attributes:
        noted: what the strategy noted of the tokens that are left; None before its first note.
    """

    attachment: Attachment
    survivors: Survivors
    steps: list[Step]
    noted: Tensor | None


def ask_rows(form: Reduced, layer: int, hidden: Tensor, site: Any) -> TokenMap | None:
    """Ask the strategy about the rows (R, N, C) of a tower inside a layer; its map, if the layer reduces."""
    attachment = form.attachment
    tokens = _tokens(form, "encoder", layer, hidden, site)
    if layer in attachment.looks:
        form.noted = take_note(attachment.strategy, tokens, form.noted)
    if layer not in attachment.schedule.encoder:
        return None
    before = tokens.count - attachment.anatomy.cls_tokens
    return _reduce(form, tokens, before, kept(attachment.schedule.encoder[layer], before, f"encoder layer {layer}"))


def shrink(form: Reduced, pixels: Tensor) -> Tensor:
    """The smaller picture; the form knows afterwards which patches of the full one its patches show."""
    anatomy, image = form.attachment.anatomy, form.attachment.schedule.image
    assert image is not None
    rows = torch.zeros((*form.survivors.place.shape, 1), dtype=pixels.dtype, device=pixels.device)
    after = kept(image, anatomy.patches, "image")
    _reduce(form, _tokens(form, "image", 0, rows, None), anatomy.patches, after)
    strategy: Any = form.attachment.strategy  # the one that serves this stage
    grid = strategy.grid(after, anatomy.grid)
    size = tuple(pixels.shape[2 + i] // anatomy.grid[i] * grid[i] for i in range(2))
    return functional.interpolate(pixels, size, mode="bicubic", antialias=True)


def with_smaller(pixels: Tensor, args: tuple, kwargs: dict[str, Any]) -> tuple[tuple, dict[str, Any]]:
    """What the tower is called with instead."""
    kwargs = {**kwargs, "interpolate_pos_encoding": True}
    return ((pixels, *args[1:]), kwargs) if args else (args, {**kwargs, "pixel_values": pixels})


def _tokens(form: Reduced, stage: Stage, layer: int, hidden: Tensor, site: Any) -> Tokens:
    anatomy = form.attachment.anatomy
    survivors = form.survivors = form.survivors.to(hidden.device)
    noted: dict[str, Any] = {} if form.noted is None else {"noted": form.noted.to(hidden.device)}
    return Tokens(
        stage,
        hidden,
        layer=layer,
        size=lambda: survivors.size,
        position=lambda: survivors.place,
        protected=(lambda: survivors.place < 0) if anatomy.cls_tokens else None,
        protected_count=anatomy.cls_tokens,
        grid=anatomy.grid,
        plan=form.attachment.schedule.plan(stage),
        site=site,
        **noted,
    )


def _reduce(form: Reduced, tokens: Tokens, before: int, after: int) -> TokenMap:
    """Go on with `after` visual tokens of each row."""
    skip = form.attachment.anatomy.cls_tokens
    reduction = ask(form.attachment.strategy, tokens, after + skip)
    form.steps.append(Step(tokens.stage, tokens.layer, range(tokens.batch), reduction, before, reduction.slots - skip))
    form.survivors = form.survivors.after(reduction)
    if form.noted is not None:
        form.noted = form.noted[tokens.row, reduction.anchor]
    return reduction


def with_holes(x: Tensor, place: Tensor, places: int, hole: float) -> Tensor:
    """(R, places, C): x (R, M, C) at its places (R, M), and `hole` elsewhere."""
    full = x.new_full((x.shape[0], places, x.shape[2]), hole)
    return full.index_put_((row_index(x), place.to(x.device)), x)
