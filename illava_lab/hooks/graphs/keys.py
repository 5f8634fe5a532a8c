"""When two calls are the same to a graph."""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import fields, is_dataclass
from typing import Any

from illava_lab.method.composed import Composed
from illava_lab.method.strategy import Strategy

_PLAIN = (str, int, float, bool, type(None))


class Same:
    """An object that equals only itself, and that stays alive as long as somebody asks."""

    def __init__(self, thing: Any) -> None:
        self.thing = thing

    def __hash__(self) -> int:
        return id(self.thing)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Same) and other.thing is self.thing


def strategy_key(strategy: Strategy) -> Hashable:
    """Two instances are the same where all that they hold are settings with equal values; else each is its own."""
    cls = type(strategy)
    if isinstance(strategy, Composed):
        return cls, strategy.frames, tuple((stage, layer, strategy_key(part)) for stage, layer, part in strategy.placed)
    settings = {field.name for field in fields(strategy)} if is_dataclass(strategy) else set()
    held = vars(strategy)
    if set(held) - settings or not all(isinstance(value, _PLAIN) for value in held.values()):
        return cls, Same(strategy)
    # Code that somebody replaced in a class is another code.
    code = tuple(getattr(getattr(cls, name, None), "__code__", None) for name in ("map", "score"))
    return cls, code, tuple(sorted((name, repr(value)) for name, value in held.items()))
