"""One sweep on several processes or GPUs, under `accelerate launch`: each answers a share, the first writes and prints.

    accelerate launch --multi_gpu --num_processes 2 -m illava_lab compare ... --device cuda

(without a GPU the same words start two CPU processes). A single process is the default.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from datetime import timedelta
from functools import cache
from typing import Any, TypeVar

import torch

T = TypeVar("T")


@cache
def _state() -> Any:
    """accelerate's PartialState, or None in a single process."""
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        return None
    from accelerate import PartialState

    # The others wait while the first takes times.
    return PartialState(cpu=not torch.cuda.is_available(), timeout=timedelta(days=1))


def is_first() -> bool:
    """Whether this process is the one that writes, prints and takes times. Also makes "cuda" this process's own GPU."""
    return _state() is None or _state().is_main_process


def device() -> torch.device | None:
    """Where processes exchange tensors; None in a single one."""
    return None if _state() is None else _state().device


def number() -> int:
    """Of this process, from 0."""
    return 0 if _state() is None else int(_state().process_index)


def share(items: Sequence[T]) -> list[T]:
    """The items that this process does: a contiguous part, which may be empty."""
    if _state() is None:
        return list(items)
    with _state().split_between_processes(list(items)) as own:
        return own


def gather(items: list[T]) -> list[T]:
    """The items of all processes, in the order in which `share` gave them out. Every process must call it."""
    if _state() is None:
        return items
    from accelerate.utils import gather_object

    return gather_object(items)


def from_first(value: T) -> T:
    """The value that the first process has. Every process must call it."""
    return gather([value])[0]
