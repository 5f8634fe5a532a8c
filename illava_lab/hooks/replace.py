"""Let one module call something else in place of a method, and take that back."""

from __future__ import annotations

import functools
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

from torch import nn


def replace_method(undo: ExitStack, owner: nn.Module, name: str, around: Callable) -> None:
    """Let one module instance call `around(original, ...)` instead of a method; `undo` takes it back."""
    had, original = vars(owner).get(name), getattr(owner, name)

    # The signature stays readable: generate looks at it to decide what it may encode ahead.
    @functools.wraps(original)
    def method(*args: Any, **kwargs: Any) -> Any:
        return around(original, *args, **kwargs)

    object.__setattr__(owner, name, method)
    if had is None:
        undo.callback(owner.__dict__.pop, name)
    else:
        undo.callback(object.__setattr__, owner, name, had)
