"""What decoding needs travels on the cache: how the prompt was reduced for each of its layers."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cache as memoize
from typing import Any

from illava_lab.errors import LabError
from illava_lab.hooks.llm.call import Segment


@dataclass(eq=False)
class CacheState:
    """Travels on the cache: how the prompt was reduced for each of its layers."""

    prompt_length: int
    segments: list[Segment]
    attachment: Any
    inside: bool = False

    def __deepcopy__(self, memo: dict) -> CacheState:
        return replace(self)  # nothing in it is ever written to, and the attachment is the same one


def bind(past_key_values: Any, state: CacheState) -> None:
    """From now on this cache reports the logical length outside the language model."""
    if not hasattr(past_key_values, "_illava_state"):
        kind: Any = type(past_key_values)
        past_key_values.__class__ = _reduced_cache(kind)
    past_key_values._illava_state = state


@memoize
def _reduced_cache(base: Any) -> type:
    class ReducedCache(base):
        """A cache whose layers hold different parts of the prompt. `get_seq_length` counts the whole prompt."""

        def get_seq_length(self, *args: Any, **kwargs: Any) -> int:
            state = self._illava_state
            if state.attachment.closed:
                raise LabError("this cache was filled under a strategy that is no longer attached; start a fresh one")
            held = super().get_seq_length(*args, **kwargs)
            if state.inside or held == 0:
                return held
            return held + state.prompt_length - state.segments[0].prompt.shape[1]

    ReducedCache.__name__ = ReducedCache.__qualname__ = f"Reduced{base.__name__}"
    return ReducedCache
