"""What is brought from the host to a device, noted in a rehearsal, for a time when nothing may be brought.

A CUDA graph cannot hold a copy from ordinary memory, and goes on reading the tensors that it saw. So what is captured
runs once before: what it brings then is kept, and handed out again in the same order while it is captured.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor

from illava_lab.method.blocks import block

T = TypeVar("T")


class _Now(threading.local):
    """What goes on in this thread."""

    noted: list[Any] | None = None
    handed_out: Iterator[Any] | None = None


_now = _Now()


def brought(make: Callable[[], T]) -> T:
    """What `make` brings; while `handing_out`, what it brought in the rehearsal."""
    if _now.handed_out is not None:
        again: T = next(_now.handed_out)
        return again
    value = make()
    if _now.noted is not None:
        _now.noted.append(value)
    return value


@block
def noting() -> Iterator[list[Any]]:
    """While open, what is brought is noted in the list that this gives."""
    before, _now.noted = _now.noted, []
    try:
        yield _now.noted
    finally:
        _now.noted = before


@block
def handing_out(noted: list[Any]) -> Iterator[None]:
    """While open, nothing is brought: what was noted is handed out again, in its order."""
    before, _now.handed_out = _now.handed_out, iter(noted)
    try:
        yield
    finally:
        _now.handed_out = before


def capturing() -> bool:
    """Whether what runs in this thread is captured, or rehearsed for that."""
    return _now.noted is not None or _now.handed_out is not None


def upload(values: np.ndarray, device: torch.device) -> Tensor:
    """Whole numbers or booleans known on the host, as one tensor."""
    # To wait for the copy would be to wait for all that the device has still to do.
    return brought(lambda: torch.from_numpy(np.ascontiguousarray(values)).to(device, non_blocking=True))
