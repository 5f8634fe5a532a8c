"""What a strategy sees of a group of images inside the language model."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from illava_lab.hooks.llm.groups import Group
from illava_lab.hooks.llm.sequence import Sequence, compact
from illava_lab.method.brought import upload
from illava_lab.method.keep import Keep
from illava_lab.method.tokens import Tokens
from illava_lab.sites.attention import AttentionSite, EntrySite, tokens_at


class UnknownText(Exception):
    """Prompts are filled up, so that one graph serves several lengths; who counts their text needs one for each."""


@dataclass(frozen=True, eq=False)
class Around:
    """The prompts in which the images are, at one layer.

    Attributes:
        hidden: (B, L, C) the sequence that the layer receives.
        text: makes (B, L) int8, 1 for text of the prompts.
        seen: queries (B, H, L, d), keys and values (B, Hkv, L, d), scaling, and mask (with proportional attention) of
            the layer before; None where no layer has run.
        ahead: computes queries and keys of the layer to come.
    """

    hidden: Tensor
    text: Callable[[], Tensor]
    seen: tuple[Tensor, Tensor, Tensor, float, Tensor | None] | None = None
    ahead: Callable[[], tuple[Tensor, Tensor]] | None = None


def llm_tokens(
    layer: int, group: Group, around: Around, entry: Around, sequence: Sequence, norm: nn.Module, plan: dict[int, Keep]
) -> Tokens:
    """The tokens of a group of images in front of a layer.

    Args:
        entry: the prompts as they entered the first layer; norm: the last of the language model; plan: what all of its
            layers keep.
    """
    assert around.ahead is not None
    nothing = around.hidden[:, None]
    query, key, value, scaling, mask = around.seen or (nothing, nothing, nothing, 1.0, None)
    device = around.hidden.device
    own, prompt = _prompts(group, len(query), device)

    def of(x: Tensor) -> Tensor:
        """Those of x (B, ...) that belong to the prompts of these images."""
        return x.to(device) if own is None else x.to(device)[own]

    after, ahead = group.text_after, around.ahead

    def text(around: Around) -> Tensor | None:  # none where images differ in how much of it follows
        if sequence.filler is not None:
            raise UnknownText("how much text follows the image is not known here")
        return None if after is None else compact(of(around.text()), after)

    def entered() -> tuple[Tensor, Tensor, Any]:
        return of(entry.hidden), group.entered.to(device), text(entry)

    def coming() -> tuple[Tensor, Tensor]:
        query, key = ahead()
        return of(query), of(key)

    last, valid = sequence.last, sequence.seen()
    hidden, valid = of(around.hidden), None if valid is None else of(valid)
    site = AttentionSite(
        of(query),
        of(key),
        scaling,
        valid if mask is None else of(mask),
        valid,
        causal=True,
        visual=group.at,
        prompt=prompt,
        hidden=hidden,
        last=last if isinstance(last, int) else of(last),
        text=lambda: text(around),
        ahead=coming,
        entry=entered,
        norm=norm,
        value=of(value),
    )
    survivors = group.survivors
    return Tokens(
        "llm",
        tokens_at(hidden, group.at, prompt),
        layer=layer,
        size=lambda: survivors.size,
        position=lambda: survivors.place,
        protected=(lambda: _last_of(group)) if group.ends else None,
        protected_count=int(group.ends),
        grid=group.grid,
        frames=group.frames,
        plan=plan,
        site=site if around.seen is not None else EntrySite(site),
    )


def _prompts(group: Group, batch: int, device: torch.device) -> tuple[Any, Tensor | None]:
    """Which prompts a group of images lies in, None for all; and (I,) which of these each lies in, or None.

    A view wherever prompts lie side by side: a copy for each image would make the peak memory of many images.
    """
    rows = np.array(group.rows)
    prompts = np.unique(rows)
    own: Any = slice(int(prompts[0]), int(prompts[-1]) + 1)
    if len(prompts) < prompts[-1] + 1 - prompts[0]:
        own = upload(prompts, device)
    elif len(prompts) == batch:
        own = None
    return own, None if len(prompts) == len(rows) else upload(np.searchsorted(prompts, rows), device)


def _last_of(group: Group) -> Tensor:
    return torch.zeros_like(group.at, dtype=torch.bool).index_fill(
        1, upload(np.array([group.count - 1]), group.at.device), True
    )
