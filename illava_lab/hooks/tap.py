"""Queries, keys and values of one chosen attention, without losing the fused kernel.

A tapped attention runs as configured, and hands them on.
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable
from typing import Any

from torch import Tensor
from transformers import AttentionInterface
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from illava_lab.errors import LabError

TAP = "illava_lab_tap"

# observe(query, key, value, mask, scaling)
Observe = Callable[[Tensor, Tensor, Tensor, Tensor | None, float], None]
# mask(key, mask) -> the mask to run with
Mask = Callable[[Tensor, Tensor | None], Tensor | None]


class TappedConfig:
    """What one attention module sees as its config: everything live, except the name of its attention function.

    Args:
        observe: called after each attention with the query (B, H, T, d), the key and the value (B, Hkv, S, d) as the
            kernel got them: rotated, with what is cached.
        mask: says which mask it runs with; None for the one that it is given.
    """

    def __init__(self, base: Any, observe: Observe | None, mask: Mask | None = None) -> None:
        self._tapped_config, self._attn_implementation = base, TAP
        self._tap = observe, mask

    def __getattr__(self, name: str) -> Any:
        if name in ("_tapped_config", "_attn_implementation", "_tap"):  # while being copied, before it is set
            raise AttributeError(name)
        return getattr(self._tapped_config, name)


class _Peeking(threading.local):
    """Whether this thread wants queries and keys, and no attention."""

    now = False


_peeking = _Peeking()


class _Seen(Exception):
    """Carries queries and keys out of an attention module that is not to attend."""


def _tapped_attention(
    module: Any, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **kwargs: Any
) -> Any:
    if _peeking.now:
        raise _Seen(query, key)
    config = module.config
    observe, change = config._tap
    name = config._tapped_config._attn_implementation
    if name in (None, "eager"):
        run = sys.modules[type(module).__module__].eager_attention_forward
    else:
        run = ALL_ATTENTION_FUNCTIONS[name]
    mask = attention_mask if change is None else change(key, attention_mask)
    out = run(module, query, key, value, mask, **kwargs)
    if observe is not None:
        observe(query, key, value, mask, kwargs.get("scaling", query.shape[-1] ** -0.5))
    return out


def peek(attention: Any, hidden: Tensor, position_embeddings: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    """Queries (B, H, S, d) and keys (B, Hkv, S, d) that a tapped attention would make of normed `hidden` (B, S, C).

    Nothing is attended to, and no cache is touched.
    """
    _peeking.now = True
    try:
        attention(hidden, position_embeddings=position_embeddings, attention_mask=None)
    except _Seen as seen:
        query, key = seen.args
        return query, key
    finally:
        _peeking.now = False
    raise LabError(f"{type(attention).__name__} did not come to its attention function")


AttentionInterface.register(TAP, _tapped_attention)
