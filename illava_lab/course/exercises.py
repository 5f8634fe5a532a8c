"""The automatic checks of the notebooks' exercises. Each returns a sentence: "Right: ..." or "Not yet: ..." and why."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

from torch import Tensor


class NotYet(Exception):
    """Carries what is wrong with an answer."""


def exercise(check: Callable[..., str]) -> Callable[..., str]:
    """Turn what goes wrong, in the check or in the reader's code, into a sentence."""

    @functools.wraps(check)
    def run(*args: Any) -> str:
        try:
            return f"Right: {check(*args)}"
        except NotYet as fault:
            return f"Not yet: {fault}"
        except Exception as error:  # the reader's code may fail in any way
            return f"Not yet: your code stopped with {type(error).__name__}: {error}"

    return run


def need(condition: bool | Tensor, fault: str) -> None:
    if not bool(condition):
        raise NotYet(fault)


def tensor(value: Any, shape: tuple[int, ...]) -> Tensor:
    need(value is not None and value is not ..., f"nothing is returned yet; a tensor of shape {shape} is expected")
    need(isinstance(value, Tensor), f"a tensor of shape {shape} is expected, got {type(value).__name__}")
    need(tuple(value.shape) == shape, f"the shape must be {shape}, got {tuple(value.shape)}")
    return value.double()


def number(value: Any) -> float:
    need(value is not None and value is not ..., "nothing is returned yet; a number is expected")
    if isinstance(value, Tensor):
        need(value.numel() == 1, f"one number is expected, got a tensor of shape {tuple(value.shape)}")
    return float(value)
