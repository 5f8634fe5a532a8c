"""What numbers alone decide is made on the host once, and kept on each device where it is used."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache, wraps
from typing import Any, Concatenate, ParamSpec

import numpy as np
import torch
from torch import Tensor

from illava_lab.method.blocks import inference_mode
from illava_lab.method.brought import brought

P = ParamSpec("P")
Made = Tensor | np.ndarray


_forget: list[Callable[[], None]] = []


def forget_host_made() -> None:
    """Make everything anew when it is next asked for: a measurement of memory is to count it, whatever ran before."""
    for clear in _forget:
        clear()


def host_made(make: Callable[P, tuple[Made, ...]]) -> Callable[Concatenate[Tensor, P], tuple[Tensor, ...]]:
    """Decorator: of a function of numbers that makes arrays, or tensors of the CPU, a cached one of the same numbers.

    The new function takes a tensor first, and answers with tensors on its device; whole numbers are long. So a device
    waits for numbers from the host once, not at every layer. Nobody may write to what it returns.
    """

    def on(device: torch.device, *args: Any) -> tuple[Tensor, ...]:
        made = make(*args)  # type: ignore[call-arg]
        return tuple(_tensor(part).to(device) for part in made)

    kept = lru_cache(maxsize=32)(on)
    _forget.append(kept.cache_clear)

    @wraps(make)
    def made_for(like: Tensor, *args: Any) -> tuple[Tensor, ...]:
        if type(like) is not Tensor:  # a tensor without values, of a compiler: what is made for it serves no other
            return brought(lambda: on(like.device, *args))
        if not torch.is_inference_mode_enabled():
            return brought(lambda: kept(like.device, *args))
        with inference_mode(False):  # what is made in that mode could not be used outside of it
            return brought(lambda: kept(like.device, *args))

    return made_for  # type: ignore[return-value]


def _tensor(part: Made) -> Tensor:
    if isinstance(part, Tensor):
        return part
    whole = np.issubdtype(part.dtype, np.integer)  # of 32 bits on some systems
    return torch.as_tensor(part.astype(np.int64) if whole else part, device="cpu")
