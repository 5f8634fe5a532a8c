"""What a graph wrote, in memory of its own: the next replay writes to the same place again."""

from __future__ import annotations

import copy
from typing import Any

from torch import Tensor

from illava_lab.hooks.llm.cache import Segment
from illava_lab.method.few_sums import Sums
from illava_lab.method.token_map import TokenMap
from illava_lab.trace.step import Step

_PARTS = (Step, TokenMap, Sums, Segment)


def fresh(value: Any, done: dict[int, Any] | None = None) -> Any:
    """A copy of tensors and of what holds them: lists, tuples, dicts, steps, maps and segments.

    What is one object in two places stays one; what holds no tensors is not copied.
    """
    done = {} if done is None else done
    if id(value) not in done:
        done[id(value)] = _fresh(value, done)
    return done[id(value)]


def _fresh(value: Any, done: dict[int, Any]) -> Any:
    if isinstance(value, Tensor):
        return value.clone()
    if isinstance(value, (list, tuple)) and not hasattr(value, "_fields"):
        return type(value)(fresh(part, done) for part in value)
    if isinstance(value, dict):
        return {key: fresh(part, done) for key, part in value.items()}
    if isinstance(value, _PARTS):
        out = copy.copy(value)
        out.__dict__.update({name: fresh(part, done) for name, part in vars(value).items()})
        return out
    return value
