"""Queries and keys of one chosen attention, without losing the fused kernel.

A `tap` lets the attention of one layer run as configured and hands on its queries and keys.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NoReturn

from torch import Tensor, nn
from transformers import AttentionInterface
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from illava_lab.errors import LabError

TAP, PEEK = "illava_lab_tap", "illava_lab_peek"


class _ConfigView:
    """What one attention module sees as its config: everything live, except the name of its attention function."""

    def __init__(self, base: Any, name: str) -> None:
        self._tapped_config, self._attn_implementation = base, name

    def __getattr__(self, name: str) -> Any:
        if name in ("_tapped_config", "_attn_implementation"):  # while being copied, before it is set
            raise AttributeError(name)
        return getattr(self._tapped_config, name)


@contextmanager
def tap(
    attention: Any,
    observe: Callable[[Tensor, Tensor, Tensor | None, float], None],
    mask: Callable[[Tensor, Tensor | None], Tensor | None] | None = None,
) -> Iterator[None]:
    """While open, `observe(query, key, mask, scaling)` is called after each attention of this one module.

    Query (B, H, T, d) and key (B, Hkv, S, d) come as the kernel got them: rotated, with cached keys. The attention
    itself runs with the implementation that the model is configured for; other layers do not notice. If given,
    `mask(key, mask)` says which mask it runs with.
    """
    config = attention.config
    attention.config = _ConfigView(config, TAP)
    attention._illava_tap = (observe, mask)
    try:
        yield
    finally:
        attention.config = config
        del attention._illava_tap


def _tapped_attention(
    module: Any, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **kwargs: Any
) -> Any:
    name = module.config._tapped_config._attn_implementation
    if name in (None, "eager"):
        run = sys.modules[type(module).__module__].eager_attention_forward
    else:
        run = ALL_ATTENTION_FUNCTIONS[name]
    observe, change = module._illava_tap
    mask = attention_mask if change is None else change(key, attention_mask)
    out = run(module, query, key, value, mask, **kwargs)
    observe(query, key, mask, kwargs.get("scaling", query.shape[-1] ** -0.5))
    return out


class _Seen(Exception):
    """Carries queries and keys out of an attention module that is not to attend."""


def _peeking_attention(module: nn.Module, query: Tensor, key: Tensor, *args: Any, **kwargs: Any) -> NoReturn:
    raise _Seen(query, key)


def peek(attention: Any, hidden: Tensor, position_embeddings: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    """Queries (B, H, S, d) and keys (B, Hkv, S, d) that an attention module would make of normed `hidden` (B, S, C).

    Nothing is attended to, and no cache is touched.
    """
    config = attention.config
    attention.config = _ConfigView(config, PEEK)
    try:
        attention(hidden, position_embeddings=position_embeddings, attention_mask=None, past_key_values=None)
    except _Seen as seen:
        query, key = seen.args
        return query, key
    finally:
        attention.config = config
    raise LabError(f"{type(attention).__name__} did not come to its attention function")


AttentionInterface.register(TAP, _tapped_attention)
AttentionInterface.register(PEEK, _peeking_attention)
