"""The tensors inside of `Tokens`: all of them by name, and the same with some changed."""

from __future__ import annotations

from collections.abc import Callable
from math import isqrt

from torch import Tensor

from illava_lab.method.tokens import Tokens


def squarest_grid(patches: int) -> tuple[int, int]:
    """The squarest grid of so many patches."""
    height = next(h for h in range(isqrt(patches), 0, -1) if patches % h == 0)
    return height, patches // height


def tensors(tokens: Tokens) -> dict[str, Tensor]:
    own = {"hidden": tokens.hidden, "size": tokens.size, "position": tokens.position}
    return own | ({"protected": tokens.protected} if tokens.has_protected else {}) | tokens._statistics


def changed(tokens: Tokens, change: Callable[[str, Tensor], Tensor]) -> Tokens:
    """New tokens, every tensor x of the old ones replaced by change(name, x)."""
    new = {name: change(name, x) for name, x in tensors(tokens).items()}
    hidden, size, position = (new.pop(name) for name in ("hidden", "size", "position"))
    return Tokens(
        tokens.stage,
        hidden,
        layer=tokens.layer,
        size=size,
        position=position,
        protected=new.pop("protected", None),
        protected_count=None,
        grid=tokens.grid,
        frames=tokens.frames,
        plan=tokens.plan,
        site=tokens._site,
        **new,
    )
